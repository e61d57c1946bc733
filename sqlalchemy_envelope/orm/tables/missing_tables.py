"""Which errors of a database say that a table or a column does not exist, and what to do if it is of keys."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from sqlalchemy import Table
from sqlalchemy.sql.visitors import iterate

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.tables.owners import owner_class_of

if TYPE_CHECKING:
    from sqlalchemy.exc import DBAPIError

_NO_TABLE = ("42P01", 1146)
"""SQLSTATE of PostgreSQL, code of MySQL and MariaDB."""
_NO_COLUMN = ("42703", 1054)
_SQLITE_NO_TABLE = "no such table: "
_SQLITE_NO_COLUMN = re.compile(r"no such column: |table \S+ has no column named ")
_MARKS = frozenset({"key_id", "share_id"})
"""Each table of keys has one of these columns."""


def missing_tables(error: DBAPIError, statement: Any) -> ConfigurationError | None:
    """The error for key tables, or columns of them, that the database does not have; None if the error has
    another cause."""
    return _no_table(error, statement) or _no_column(error, statement)


def _no_table(error: DBAPIError, statement: Any) -> ConfigurationError | None:
    text = str(error.orig)
    if not _says(error.orig, _NO_TABLE, text.startswith(_SQLITE_NO_TABLE)):
        return None
    names = sorted(
        table.fullname for table in _tables(statement) if owner_class_of(table) is None and table.name in text
    )
    if not names:
        return None
    return ConfigurationError(
        f"The database has no table {' or '.join(names)}, which holds keys. Tables of keys are in the "
        "metadata of your models: make them as you make your own, with `Base.metadata.create_all(engine)` or "
        "a revision of Alembic (`alembic revision --autogenerate`, `alembic upgrade head`)."
    )


def _no_column(error: DBAPIError, statement: Any) -> ConfigurationError | None:
    text = str(error.orig)
    if not _says(error.orig, _NO_COLUMN, _SQLITE_NO_COLUMN.match(text) is not None):
        return None
    # PostgreSQL shows the statement below the first line, with every column in it.
    words = set(re.findall(r"\w+", text.partition("\n")[0]))
    tables = [table for table in _tables(statement) if _MARKS & set(table.columns.keys())]
    tables = [table for table in tables if table.name in words] or tables
    names = sorted(
        f"{one.table.fullname}.{one.name}" for table in tables for one in table.c if one.name in words
    )
    if not names:
        return None
    return ConfigurationError(
        f"The database has no column {' or '.join(names)}. A later release of sqlalchemy_envelope brought "
        "it: upgrade the schema before the application, with a revision of Alembic (`alembic revision "
        "--autogenerate`, `alembic upgrade head`)."
    )


def _tables(statement: Any) -> set[Table]:
    return {table for table in iterate(statement) if isinstance(table, Table)}


def _says(original: Any, codes: tuple[str, int], in_words: bool) -> bool:
    """Whether a driver's error says this, by its code. SQLite has no code for it, and its text is English
    everywhere."""
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    if state is not None:
        return bool(state == codes[0])
    return next(iter(getattr(original, "args", ())), None) == codes[1] or in_words
