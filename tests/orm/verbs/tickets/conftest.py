"""The application on SQLite alone, and on both databases."""

import pytest
from sqlalchemy import Engine

from tests.orm.verbs.tickets.application import Application, make_application


@pytest.fixture
def app(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Application:
    """On SQLite and on PostgreSQL."""
    return make_application(engine, monkeypatch)


@pytest.fixture
def lite_app(sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Application:
    """On SQLite."""
    return make_application(sqlite_engine, monkeypatch)
