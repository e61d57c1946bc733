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
_SESSION = "_sqlalchemy_envelope_session"  # on the connection itself: each statement asks


def after_begin(session: Session, transaction: object, connection: Connection) -> None:
    """A session uses a connection from here on; later ones of the same connection take over."""
    setattr(connection, _SESSION, ref(session))
    session.info.setdefault(_CONNECTIONS, {})[connection.engine.dialect] = connection


def session_of(connection: Connection) -> Session | None:
    """The session whose statements run on this connection."""
    found: ref[Session] | None = getattr(connection, _SESSION, None)
    return found() if found is not None else None


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
    before = getattr(connection, _SESSION, None)
    setattr(connection, _SESSION, ref(session))
    try:
        yield session
    finally:
        session.close()
        setattr(connection, _SESSION, before)
