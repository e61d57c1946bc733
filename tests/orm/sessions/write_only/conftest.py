"""That webhook on both databases, and a clock that goes by on request."""

import pytest
from sqlalchemy import Engine

from tests.orm.models import Base
from tests.orm.sessions.write_only.webhook import Webhook
from tests.prepared import tables_of


@pytest.fixture
def webhook(engine: Engine) -> Webhook:
    """The application, on SQLite and on PostgreSQL."""
    tables_of(Base.metadata, engine)
    return Webhook(engine)


@pytest.fixture
def lite(sqlite_engine: Engine) -> Webhook:
    """The application, on SQLite."""
    tables_of(Base.metadata, sqlite_engine)
    return Webhook(sqlite_engine)
