"""Which connection a statement is being sent on. SQLAlchemy asks for the values of a statement's parameters
without a word about the connection, and the tags of a value are those of one database."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from weakref import ref

from sqlalchemy import Engine, event

if TYPE_CHECKING:
    from sqlalchemy import Connection

_CONNECTION: ContextVar[ref[Connection] | None] = ContextVar("executing", default=None)


def listen() -> None:
    """Note the connection of each statement, after all else that is done before it. Registered with the first
    blind index."""
    if not event.contains(Engine, "before_execute", _before_execute):
        event.listen(Engine, "before_execute", _before_execute)


def _before_execute(connection: Connection, *_: Any) -> None:
    _CONNECTION.set(ref(connection))


def connection_now() -> Connection | None:
    """The connection of the statement that is being sent; None outside of an execution."""
    found = _CONNECTION.get()
    return None if found is None else found()
