"""Which errors of a database say that a row refers to another row that does not exist."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy_envelope.orm.tables.conflict_errors import error_number, sql_state

if TYPE_CHECKING:
    from sqlalchemy.exc import IntegrityError

_STATE = "23503"
_SQLITE_NAME = "SQLITE_CONSTRAINT_FOREIGNKEY"
_MYSQL_CODES = frozenset({1216, 1452})


def is_foreign_key_error(error: IntegrityError) -> bool:
    """Whether a foreign key was broken. The text does not decide: it is in the server's language."""
    state, original = sql_state(error), error.orig
    if state is not None or hasattr(original, "sqlite_errorname"):
        return state == _STATE or getattr(original, "sqlite_errorname", None) == _SQLITE_NAME
    return error_number(error) in _MYSQL_CODES
