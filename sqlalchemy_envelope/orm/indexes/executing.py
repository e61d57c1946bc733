"""Which statement is being sent, and on which connection. SQLAlchemy asks for the values of a statement's
parameters without a word about either, and the tags of a value are those of one database.

And since when the connection's transaction lasts: what it reads of index keys may be as old as that.
"""

from __future__ import annotations

from contextvars import ContextVar
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import ref

from sqlalchemy import Engine, event

from sqlalchemy_envelope.orm.indexes.given import unshown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection


class Execution(NamedTuple):
    """A statement on its way.

    Attributes:
        connection: a weak reference.
        statement: as `before_execute` has it.
        rows: its rows of parameters.
        params: its parameters, if it has a single row of them.
    """

    connection: ref[Connection]
    statement: Any
    rows: Any
    params: Any

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Its parameters; those of the first row, if it has several."""
        found: Mapping[str, Any] = self.rows[0] if self.rows else self.params or {}
        return found


# Tuples, which are made and let go with every statement.
_NOW: ContextVar[tuple[Any, ...] | None] = ContextVar("executing", default=None)


def listen() -> None:
    """Note each statement, after all else that is done before it, until its parameters are made. Registered
    with the first blind index."""
    if not event.contains(Engine, "before_execute", _before_execute):
        event.listen(Engine, "before_execute", _before_execute, retval=True)
        event.listen(Engine, "before_cursor_execute", _before_cursor_execute)
        event.listen(Engine, "begin", _begin)


def _before_execute(
    conn: Connection, clauseelement: Any, multiparams: Any, params: Any, execution_options: Any
) -> tuple[Any, Any, Any]:
    if params or multiparams:
        multiparams, params = unshown(clauseelement, multiparams, params)
    _NOW.set((ref(conn), clauseelement, multiparams, params))
    return clauseelement, multiparams, params


def _before_cursor_execute(
    conn: Connection, cursor: Any, statement: Any, parameters: Any, context: Any, executemany: Any
) -> None:
    _NOW.set(None)


def execution_now() -> tuple[Any, ...] | None:
    """The statement whose parameters are being made, as an `Execution` is made from it; None outside of
    that."""
    return _NOW.get()


def resume(execution: tuple[Any, ...] | None) -> None:
    """Go on with a statement, after others were sent to make its parameters."""
    _NOW.set(execution)


def connection_now() -> Connection | None:
    """The connection of the statement whose parameters are being made; None outside of that."""
    found = _NOW.get()
    connection: Connection | None = None if found is None else found[0]()
    return connection


class Transaction:
    """The present transaction of a connection.

    Attributes:
        begun_at: when it began, by `monotonic`.
        checked: what it sees of index keys, by database and label: a progress that is also the newest.
    """

    __slots__ = ("_reads_snapshot", "begun_at", "checked")

    def __init__(self) -> None:
        self.begun_at = monotonic()
        self.checked: dict[tuple[bytes, str], int] = {}
        self._reads_snapshot: bool | None = None

    def reads_snapshot(self, connection: Connection) -> bool:
        """Whether its statements see the database as it was when the transaction began."""
        if self._reads_snapshot is None:
            one = connection.dialect.name == "sqlite" or connection.get_isolation_level() in _SNAPSHOTS
            self._reads_snapshot = one
        return self._reads_snapshot


_TRANSACTION = "_sqlalchemy_envelope_transaction"
"""The attribute of a connection with its `Transaction`."""
_SNAPSHOTS = ("REPEATABLE READ", "SERIALIZABLE", "SNAPSHOT")


def _begin(connection: Connection) -> None:
    setattr(connection, _TRANSACTION, Transaction())


def transaction_of(connection: Connection) -> Transaction:
    """The present transaction of a connection."""
    found: Transaction | None = getattr(connection, _TRANSACTION, None)
    if found is None:  # it began before there was a blind index
        found = Transaction()
        setattr(connection, _TRANSACTION, found)
    return found
