"""Tables with encrypted columns by name, and their namesakes: other `Table` objects of the same name, in
whichever schema. A tenant's schema has what the model's has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from sqlalchemy import Column, Table
from sqlalchemy.sql.selectable import TableClause

from sqlalchemy_envelope.orm.columns.encrypted_type import EncryptedType
from sqlalchemy_envelope.orm.columns.previous import previous_of
from sqlalchemy_envelope.orm.tables.default_schema import schema_of
from sqlalchemy_envelope.orm.tables.watched import watch_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection

    Options = Mapping[str, Any]

_by_name: dict[str, WeakSet[Table]] = {}


def note_table(table: Table) -> None:
    """Remember the name of a table with encrypted columns."""
    _by_name.setdefault(table.name.lower(), WeakSet()).add(table)
    watch_name(table)


def is_twin(target: Any) -> bool:
    """Whether a table without encrypted columns has the name of a table with some."""
    name = getattr(target, "name", None)
    return isinstance(target, TableClause) and name is not None and name.lower() in _by_name


def unknown_columns(target: Any) -> set[str]:
    """The columns that a namesake of this table has encrypted and this table has not, by their names in the
    database. The namesake may be in any schema."""
    name = getattr(target, "name", None)
    tables = tuple(_by_name.get(name.lower(), ())) if name is not None else ()
    others = [table for table in tables if table is not target]
    return {name for table in others for name in encrypted_in(table)} - known_in(target)


def unknown_to(connection: Connection, target: Any, options: Options) -> dict[str, Column[Any]]:
    """The columns that a namesake has encrypted and this table has not, by their names in the database."""
    own = known_in(target)
    return {
        name: column
        for table in namesakes_of(connection, target, options)
        for name, column in encrypted_in(table).items()
        if name not in own
    }


def namesakes_of(connection: Connection, target: Any, options: Options) -> list[Table]:
    """The other tables with encrypted columns that have this name. A table with encrypted columns of its
    own knows what is encrypted in its schema: then namesakes of another schema do not count."""
    others = [table for table in tuple(_by_name.get(target.name.lower(), ())) if table is not target]
    if not others or not encrypted_in(target):
        return others
    schema = schema_of(connection, target, options)
    return [table for table in others if schema_of(connection, table, options) == schema]


def known_in(table: Any) -> set[str]:
    """The columns that a table knows as encrypted, or as the previous column of an encrypted one."""
    encrypted = encrypted_in(table)
    previous = [previous_of(column) for column in encrypted.values()]
    return encrypted.keys() | {column.name.lower() for column in previous if column is not None}


def encrypted_in(table: Any) -> dict[str, Column[Any]]:
    """The encrypted columns of a table, by their names in the database."""
    return {column.name.lower(): column for column in table.columns if isinstance(column.type, EncryptedType)}
