"""Tables with encrypted columns by name, and their namesakes: other `Table` objects of the same name, in
whichever schema. A tenant's schema has what the model's has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from sqlalchemy import Column, LargeBinary, Table
from sqlalchemy.sql.selectable import TableClause

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.columns.encrypted_type import EncryptedType
from sqlalchemy_envelope.orm.columns.plans import plan_of_table
from sqlalchemy_envelope.orm.columns.previous import previous_of
from sqlalchemy_envelope.orm.tables.default_schema import schema_of
from sqlalchemy_envelope.orm.tables.watched import watch_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection, MetaData

    from sqlalchemy_envelope.orm.tables.owners import OwnerClass

    Options = Mapping[str, Any]

_by_name: dict[str, WeakSet[Table]] = {}


def note_table(table: Table) -> None:
    """Remember the name of a table with encrypted columns."""
    _by_name.setdefault(table.name.lower(), WeakSet()).add(table)
    watch_name(table)


def encrypted_tables(
    metadata: Sequence[MetaData], owner_class: OwnerClass
) -> list[tuple[Table, list[Column[Any]]]]:
    """The tables of these MetaData with encrypted columns, and those of others with values of these owners;
    each with its encrypted columns, and with the binary previous columns, which may hold older ciphertext.
    """
    found = []
    for table in [table for tables in list(_by_name.values()) for table in tuple(tables)]:
        if table.metadata in metadata:
            is_in_metadata = table.metadata.tables.get(table.key) is table
        else:
            is_in_metadata = _may_be_owned(table, owner_class)
        if is_in_metadata:
            columns = list(encrypted_in(table).values())
            previous = [previous_of(column) for column in columns]
            columns += [one for one in previous if one is not None and isinstance(one.type, LargeBinary)]
            found.append((table, columns))
    return found


def _may_be_owned(table: Table, owner_class: OwnerClass) -> bool:
    try:
        plan = plan_of_table(table)
    except ConfigurationError:
        return False  # nothing can be written to it
    return plan is not None and any(owner_class in path.owner_classes for path, _ in plan.groups)


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
