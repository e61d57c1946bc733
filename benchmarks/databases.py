"""The databases to measure on: SQLite in a temporary file, and a real PostgreSQL."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.orm import Session

from benchmarks.variants import Base, User
from sqlalchemy_envelope import Envelope, binary_results, enforce_foreign_keys

SECRET = "correct horse battery staple"


@contextmanager
def sqlite() -> Iterator[Engine]:
    with tempfile.TemporaryDirectory() as folder:
        engine = create_engine(f"sqlite:///{Path(folder) / 'benchmarks.sqlite3'}")
        enforce_foreign_keys(engine)
        event.listen(engine, "connect", do_not_wait_for_the_disk)
        yield engine
        engine.dispose()


def do_not_wait_for_the_disk(connection: Any, _record: Any) -> None:
    """Switch off the waits for the disk, whose speed is not measured here."""
    connection.execute("PRAGMA synchronous = OFF")


@contextmanager
def postgresql() -> Iterator[Engine]:
    # Needs the wheel with PostgreSQL in it. To measure on SQLite alone, nobody needs to have it.
    from tests.throwaway_postgres import throwaway_postgres

    with throwaway_postgres() as socket_folder:
        engine = create_engine(f"postgresql+psycopg://postgres@/postgres?host={socket_folder}")
        yield engine
        engine.dispose()


@contextmanager
def postgresql_binary() -> Iterator[Engine]:
    with postgresql() as engine:
        binary_results(engine)
        yield engine


@contextmanager
def postgresql_asyncpg() -> Iterator[Engine]:
    """An engine for code that runs in a greenlet, as under an `AsyncSession`."""
    from sqlalchemy.ext.asyncio import create_async_engine

    from tests.throwaway_postgres import throwaway_postgres

    with throwaway_postgres() as socket_folder:
        engine = create_async_engine(f"postgresql+asyncpg://postgres@/postgres?host={socket_folder}")
        yield engine.sync_engine
        engine.sync_engine.dispose()


Opener = Callable[[], AbstractContextManager[Engine]]
DATABASES: dict[str, Opener] = {
    "sqlite": sqlite,
    "postgresql": postgresql,
    "postgresql-binary": postgresql_binary,
    "postgresql-asyncpg": postgresql_asyncpg,
}
SAME_DATABASE = frozenset({"postgresql-binary", "postgresql-asyncpg"})
"""Other drivers for a database that is measured already: only the cost of a value differs."""


@contextmanager
def database(name: str) -> Iterator[Engine]:
    """Start a database and create all tables in it."""
    with DATABASES[name]() as engine:
        Base.metadata.create_all(engine)
        yield engine


def enroll_owner(engine: Engine, envelope: Envelope) -> int:
    """Make the only user, the owner of all rows."""
    with Session(engine) as session:
        user = User()
        with envelope.enroll(session, user, secret=SECRET):
            session.commit()
            return user.id


@contextmanager
def unlocked_owner(engine: Engine, envelope: Envelope) -> Iterator[int]:
    """Unlock the owner once, for all measurements in the block."""
    user_id = enroll_owner(engine, envelope)
    with Session(engine) as session:
        user = session.get_one(User, user_id)
        with envelope.unlock(session, user, secret=SECRET):
            session.commit()
            yield user_id
