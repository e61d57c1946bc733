"""A statement with several rows of parameters looks for a value: SQLAlchemy sends no list of tags with such a
statement, and its error names parameters that the application has not written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Engine, event
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import BindParameter, ClauseElement

from sqlalchemy_envelope.exceptions import StatementRefusedError
from sqlalchemy_envelope.orm.indexes.executing import execution_now
from sqlalchemy_envelope.orm.indexes.sought import OpenOwners, Sought

if TYPE_CHECKING:
    from sqlalchemy.engine import ExceptionContext


def listen() -> None:
    """Say it in the library's words. Registered with the first blind index."""
    if not event.contains(Engine, "handle_error", _handle_error):
        event.listen(Engine, "handle_error", _handle_error)


def _handle_error(context: ExceptionContext) -> StatementRefusedError | None:
    execution = execution_now()
    if execution is None or not isinstance(context.original_exception, InvalidRequestError):
        return None
    _, statement, rows, _ = execution
    if not isinstance(statement, ClauseElement) or not rows or len(rows) < 2:
        return None
    for one in visitors.iterate(statement):
        sought = getattr(one, "callable", None) if isinstance(one, BindParameter) else None
        if isinstance(sought, (Sought, OpenOwners)):
            return StatementRefusedError(
                f"A statement with several rows of parameters looks for a value in {sought.index.label!r}, "
                "and SQLAlchemy sends no such statement; nothing was sent. Send it for each row: "
                "`for row in rows: session.execute(statement, row)`."
            )
    return None
