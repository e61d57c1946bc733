"""Those models with two users, on both databases."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from tests.orm.writing.owner_columns.settings import Application, start


@pytest.fixture
def app(engine: Engine) -> Iterator[Application]:
    yield from start(engine)


@pytest.fixture
def lite(sqlite_engine: Engine) -> Iterator[Application]:
    yield from start(sqlite_engine)
