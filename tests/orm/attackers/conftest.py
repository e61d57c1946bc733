"""The scene of the attacks, on both databases."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from tests.orm.attackers.scene import Scene, make_scene


@pytest.fixture
def scene(sqlite_engine: Engine) -> Iterator[Scene]:
    """On SQLite."""
    yield from make_scene(sqlite_engine)


@pytest.fixture
def both(engine: Engine) -> Iterator[Scene]:
    """On SQLite and on PostgreSQL."""
    yield from make_scene(engine)
