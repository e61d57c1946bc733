"""Plain statements: they need nothing before they are compiled.

Every statement is asked this first, and once: most are on tables that have nothing to do with encryption. A
plain statement passes the gate all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Select, UpdateBase

from sqlalchemy_envelope.orm.tables.cascades import deleted_with, deletes_grants
from sqlalchemy_envelope.orm.tables.watched import is_watched
from sqlalchemy_envelope.orm.writing.forms import WRITE_IN_CTES, emitted_table, may_hold_ctes

if TYPE_CHECKING:
    from sqlalchemy import Connection


def is_plain(connection: Connection, statement: Any) -> bool:
    """Whether a statement needs nothing here: it is a SELECT, or writes to a table that is not watched and
    deletes no owners; and it shows no CTE that may write."""
    if isinstance(statement, UpdateBase):
        table: Any = statement.table
        if is_watched(table):
            return False
        if statement._annotations and is_watched(emitted_table(statement, table)):
            return False
        if statement.is_delete and (deleted_with(table) or deletes_grants(table)):
            return False
    elif not isinstance(statement, Select):
        return False
    return connection.dialect.name not in WRITE_IN_CTES or not may_hold_ctes(statement)
