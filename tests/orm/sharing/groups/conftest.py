"""A group's founder, a member and a newcomer, in a database of their own."""

import pytest
from sqlalchemy import Engine

from tests.orm.sharing.groups.steps import with_users


@pytest.fixture
def shared(engine: Engine) -> Engine:
    """A database with three enrolled users, on SQLite and on PostgreSQL."""
    return with_users(engine, "founder", "member", "newcomer")


@pytest.fixture
def lite(sqlite_engine: Engine) -> Engine:
    """The same, on SQLite."""
    return with_users(sqlite_engine, "founder", "member", "newcomer")
