"""A short transaction beside that of the session: what it writes stays, whatever becomes of the session's."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection
from sqlalchemy.pool import AssertionPool, SingletonThreadPool, StaticPool

from sqlalchemy_envelope.orm.tables.binds import bind_for
from sqlalchemy_envelope.orm.tables.location import bind_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import Mapper, Session

_ONE_CONNECTION = (StaticPool, SingletonThreadPool, AssertionPool)


@contextmanager
def own_transaction(session: Session, mapper: Mapper[Any]) -> Iterator[Connection]:
    """A transaction of its own, on a further connection to the database of this class; committed at the end.

    Where there is only one connection, as for a database in memory or a session that is bound to a
    connection, the block is part of the session's transaction. For an `AsyncSession`, call this inside its
    greenlet.
    """
    bind = bind_of(session, mapper)
    if isinstance(bind, Connection) or isinstance(bind.pool, _ONE_CONNECTION):
        yield session.connection(bind_arguments=bind_for(session, mapper))
        return
    with bind.begin() as connection:
        yield connection
