"""That application, on both databases."""

from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.orm.models import Base
from tests.orm.verbs.claiming.application import Application
from tests.prepared import tables_of


@pytest.fixture
def app(engine: Engine, tmp_path: Path) -> Application:
    """The application, on SQLite and on PostgreSQL."""
    tables_of(Base.metadata, engine)
    return Application(engine, tmp_path)


@pytest.fixture
def lite(sqlite_engine: Engine, tmp_path: Path) -> Application:
    """The application, on SQLite."""
    tables_of(Base.metadata, sqlite_engine)
    return Application(sqlite_engine, tmp_path)
