"""Which session uses which connection. Events of a connection do not say, and a session does not tell."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import ref

from sqlalchemy.orm import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine

_CONNECTIONS = "sqlalchemy_envelope.connections"
USE = "_sqlalchemy_envelope_use"
"""An attribute of a connection: its `Use`. It is on the connection itself, because each statement asks."""


class Use:
    """A session's use of a connection.

    Attributes:
        holds_locks: whether a statement of the connection's present transaction took locks.
    """

    __slots__ = ("holds_locks", "session", "transaction")

    def __init__(self, session: Session, connection: Connection) -> None:
        transaction = connection.get_transaction()
        before: Use | None = getattr(connection, USE, None)
        self.session = ref(session)
        self.transaction = ref(transaction) if transaction is not None else _nothing
        self.holds_locks: bool = before is not None and before.locks_in(connection)

    def locks_in(self, connection: Connection) -> bool:
        """Whether the transaction that the connection is in now holds locks."""
        return self.holds_locks and self.transaction() is connection.get_transaction() is not None


def _nothing() -> None:
    return None


def after_begin(session: Session, transaction: object, connection: Connection) -> None:
    """A session uses a connection from here on; later ones of the same connection take over."""
    setattr(connection, USE, Use(session, connection))
    session.info.setdefault(_CONNECTIONS, {})[connection.engine.dialect] = connection


def session_of(connection: Connection) -> Session | None:
    """The session whose statements run on this connection."""
    use: Use | None = getattr(connection, USE, None)
    return use.session() if use is not None else None


def holds_locks(session: Session) -> bool:
    """Whether a transaction of the session holds locks, on any of its connections."""
    connections: dict[object, Connection] = session.info.get(_CONNECTIONS, {})
    return any(getattr(one, USE).locks_in(one) for one in connections.values())


def connection_of(session: Session, engine: Engine) -> Connection | None:
    """The connection that a session uses to this engine's database, or used last: its options still say which
    schema the session works in."""
    found: Connection | None = session.info.get(_CONNECTIONS, {}).get(engine.dialect)
    return found


@contextmanager
def lent_session(connection: Connection) -> Iterator[Session]:
    """A session for the keys of a statement on a connection that belongs to none. It works in the
    connection's transaction, and ends nothing there: neither commits nor rolls back what is not its own."""
    session = Session(connection, join_transaction_mode="rollback_only")
    before = getattr(connection, USE, None)
    setattr(connection, USE, Use(session, connection))
    try:
        yield session
    finally:
        session.close()
        setattr(connection, USE, before)
