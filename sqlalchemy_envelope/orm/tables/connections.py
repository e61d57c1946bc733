"""Which session uses which connection. A connection's events do not name its session, and a session does
not list its connections."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import ref

from sqlalchemy.orm import Session

from sqlalchemy_envelope.orm.tables.session_notes import known_page, page_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine

USE = "_sqlalchemy_envelope_use"
"""The attribute of a connection that holds its `Use`. It is on the connection itself, because every
statement reads it."""


@dataclass(slots=True)
class _Connections:
    """A page of `SessionNotes`: the connections that a session uses, or used last."""

    by_dialect: dict[Any, Connection] = field(default_factory=dict)


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
        """Whether the connection's present transaction holds locks."""
        return self.holds_locks and self.transaction() is connection.get_transaction() is not None


def _nothing() -> None:
    return None


def after_begin(session: Session, transaction: object, connection: Connection) -> None:
    """A session starts to use a connection. A session that uses the same connection later takes it over."""
    setattr(connection, USE, Use(session, connection))
    page_of(session, _Connections).by_dialect[connection.engine.dialect] = connection


def session_of(connection: Connection) -> Session | None:
    """The session whose statements run on this connection."""
    use: Use | None = getattr(connection, USE, None)
    return use.session() if use is not None else None


def holds_locks(session: Session) -> bool:
    """Whether a transaction of the session holds locks, on any of its connections."""
    page = known_page(session, _Connections)
    return page is not None and any(getattr(one, USE).locks_in(one) for one in page.by_dialect.values())


def connection_of(session: Session, engine: Engine) -> Connection | None:
    """The connection that a session uses to this engine's database, or used last: its options still say in
    which schema the session works."""
    page = known_page(session, _Connections)
    return None if page is None else page.by_dialect.get(engine.dialect)


@contextmanager
def lent_session(connection: Connection) -> Iterator[Session]:
    """A session for the keys of a statement on a connection without a session. It works in the
    connection's transaction and ends nothing there: it neither commits nor rolls back the work of others."""
    session = Session(connection, join_transaction_mode="rollback_only")
    before = getattr(connection, USE, None)
    setattr(connection, USE, Use(session, connection))
    try:
        yield session
    finally:
        session.close()
        setattr(connection, USE, before)
