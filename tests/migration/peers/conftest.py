"""A database with a column of another library."""

import pytest
from sqlalchemy import Engine

from tests.migration.peers.other_libraries import Database


@pytest.fixture
def database(engine: Engine) -> Database:
    return Database(engine)
