"""Which session's statements run on a connection: events of a connection do not say."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, ref

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

_sessions: WeakKeyDictionary[Connection, ref[Session]] = WeakKeyDictionary()


def after_begin(session: Session, transaction: object, connection: Connection) -> None:
    """A session uses a connection from here on; later ones of the same connection take over."""
    _sessions[connection] = ref(session)


def session_of(connection: Connection) -> Session | None:
    """The session whose statements run on this connection."""
    found = _sessions.get(connection)
    return found() if found is not None else None
