"""Which errors of a database say that a table does not exist, and what to do if it is a table of keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Table
from sqlalchemy.sql.visitors import iterate

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.tables.owners import owner_class_of

if TYPE_CHECKING:
    from sqlalchemy.exc import DBAPIError

_STATE = "42P01"
_MYSQL_CODE = 1146
_SQLITE_WORDS = "no such table: "


def missing_tables(error: DBAPIError, statement: Any) -> ConfigurationError | None:
    """The error for key tables that the database does not have; None if the error has another cause."""
    if not _is_no_table(error.orig):
        return None
    text = str(error.orig)
    tables = {table for table in iterate(statement) if isinstance(table, Table)}
    names = sorted(table.fullname for table in tables if owner_class_of(table) is None and table.name in text)
    if not names:
        return None
    return ConfigurationError(
        f"The database has no table {' or '.join(names)}, which holds keys. Tables of keys are in the "
        "metadata of your models: make them as you make your own, with `Base.metadata.create_all(engine)` or "
        "a revision of Alembic (`alembic revision --autogenerate`, `alembic upgrade head`)."
    )


def _is_no_table(original: Any) -> bool:
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    if state is not None:
        return bool(state == _STATE)
    first = next(iter(getattr(original, "args", ())), None)
    # SQLite has no code for this error, and its text is English everywhere.
    return first == _MYSQL_CODE or str(first).startswith(_SQLITE_WORDS)
