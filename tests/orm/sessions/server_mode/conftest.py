"""A server with keys, on both databases."""

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine

from sqlalchemy_envelope import ServerSession
from sqlalchemy_envelope.orm.current.context import NOTHING
from tests.orm.models import Base
from tests.orm.sessions.server_mode.devices import Serving
from tests.prepared import tables_of


@pytest.fixture
def serving(engine: Engine) -> Serving:
    """The application, on SQLite and on PostgreSQL."""
    tables_of(Base.metadata, engine)
    return Serving(engine)


@pytest.fixture
def lite(sqlite_engine: Engine) -> Serving:
    """The application, on SQLite."""
    tables_of(Base.metadata, sqlite_engine)
    return Serving(sqlite_engine)


@pytest.fixture
def everywhere() -> Iterator[Callable[[ServerSession], ServerSession]]:
    """Turns server mode on for the process, and off when the test ends."""
    yield lambda server: server.everywhere()
    serving = NOTHING.server
    if isinstance(serving, ServerSession):
        serving.stop()
