"""That group, on both databases."""

import pytest
from sqlalchemy import Engine

from tests.orm.verbs.why_locked.scene import make_scene


@pytest.fixture
def scene(sqlite_engine: Engine) -> Engine:
    """A group of a founder and a member, with one post; and an outsider."""
    return make_scene(sqlite_engine)


@pytest.fixture
def both(engine: Engine) -> Engine:
    """The same, on SQLite and on PostgreSQL."""
    return make_scene(engine)
