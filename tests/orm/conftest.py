"""What most tests of the ORM start from: the shared tables, and two enrolled owners."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from tests.orm.models import Base, User, new_user
from tests.prepared import prepared


@dataclass
class Started:
    """A database with two owners, both locked, and a session on it."""

    engine: Engine
    session: Session
    ada: User
    ben: User

    def fresh(self) -> Session:
        """Another session on the same database, to be used in a `with`."""
        return Session(self.engine)


def _start(engine: Engine) -> Iterator[Started]:
    def make() -> list[int]:
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            return [new_user(session, name).id for name in ("ada", "ben")]

    ids = prepared(engine, "started", make)
    with Session(engine) as session:
        ada, ben = (session.get_one(User, one) for one in ids)
        session.commit()
        yield Started(engine, session, ada, ben)


@pytest.fixture
def started(engine: Engine) -> Iterator[Started]:
    """Two owners, on SQLite and on PostgreSQL."""
    yield from _start(engine)


@pytest.fixture
def lite(sqlite_engine: Engine) -> Iterator[Started]:
    """Two owners, on SQLite."""
    yield from _start(sqlite_engine)
