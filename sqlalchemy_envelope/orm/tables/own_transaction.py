"""A short transaction beside that of the session: what it writes stays, whatever becomes of the session's."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection
from sqlalchemy.pool import AssertionPool, SingletonThreadPool, StaticPool

from sqlalchemy_envelope.orm.tables.binds import bind_for
from sqlalchemy_envelope.orm.tables.connections import connection_of
from sqlalchemy_envelope.orm.tables.location import bind_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import Engine
    from sqlalchemy.orm import Mapper, Session

ONE_CONNECTION = (StaticPool, SingletonThreadPool, AssertionPool)
"""Pools that give no second connection."""


@contextmanager
def own_transaction(session: Session, mapper: Mapper[Any]) -> Iterator[Connection]:
    """A transaction of its own, on a further connection to the database of this class; committed at the end.

    Where there is only one connection, as for a database in memory or a session that is bound to a
    connection, the block is part of the session's transaction. So it is on SQLite in a session that has
    written: its own lock would be in the way. For an `AsyncSession`, call this inside its greenlet.
    """
    with transaction_beside(session, bind_of(session, mapper), bind_for(session, mapper)) as connection:
        yield connection


@contextmanager
def transaction_beside(
    session: Session, bind: Engine | Connection, arguments: Mapping[str, Any]
) -> Iterator[Connection]:
    """As `own_transaction`, for the database that the session finds with these `bind_arguments`."""
    if (
        isinstance(bind, Connection)
        or isinstance(bind.pool, ONE_CONNECTION)
        or _holds_the_lock(session, bind)
    ):
        with session.no_autoflush:
            yield session.connection(bind_arguments=dict(arguments))
        return
    with bind.begin() as connection:
        yield connection


def _holds_the_lock(session: Session, engine: Engine) -> bool:
    """Whether the session holds the one lock of an SQLite file, for which a second connection would wait."""
    if engine.dialect.name != "sqlite":
        return False
    mine = connection_of(session, engine)
    if mine is None or mine.closed or not mine.in_transaction():
        return False
    # The driver begins a transaction with the first write; or with a read, if the application says so.
    return bool(getattr(mine.connection.driver_connection, "in_transaction", False))
