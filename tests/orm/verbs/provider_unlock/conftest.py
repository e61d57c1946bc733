"""That application on both databases, and a clock that goes by on request."""

import pytest
from sqlalchemy import Engine

from tests.orm.models import Base
from tests.orm.verbs.provider_unlock.remote import Application
from tests.prepared import tables_of


@pytest.fixture
def app(engine: Engine) -> Application:
    """The application, on SQLite and on PostgreSQL."""
    tables_of(Base.metadata, engine)
    return Application(engine)
