"""Which session uses which connection. Events of a connection do not say, and a session does not tell."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, ref

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine
    from sqlalchemy.orm import Session

_CONNECTIONS = "sqlalchemy_envelope.connections"
_sessions: WeakKeyDictionary[Connection, ref[Session]] = WeakKeyDictionary()


def after_begin(session: Session, transaction: object, connection: Connection) -> None:
    """A session uses a connection from here on; later ones of the same connection take over."""
    _sessions[connection] = ref(session)
    session.info.setdefault(_CONNECTIONS, {})[connection.engine.dialect] = connection


def session_of(connection: Connection) -> Session | None:
    """The session whose statements run on this connection."""
    found = _sessions.get(connection)
    return found() if found is not None else None


def connection_of(session: Session, engine: Engine) -> Connection | None:
    """The connection that a session uses to this engine's database, or used last: its options still say which
    schema the session works in."""
    found: Connection | None = session.info.get(_CONNECTIONS, {}).get(engine.dialect)
    return found
