"""Where the values of an encrypted column are stored, asked of the database.

A table of another database or schema may have the name of a table with encrypted columns. So the database is
asked, once for each engine, schema and table (`answers`), whether the column holds bytes there and the
owner's keys are stored beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Table, inspect

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.columns.plans import plan_of_table
from sqlalchemy_envelope.orm.tables.default_schema import schema_of, schemas_beside
from sqlalchemy_envelope.orm.tables.python_types import python_type_of
from sqlalchemy_envelope.orm.writing.answers import answer, is_temporary, keep_answer
from sqlalchemy_envelope.orm.writing.namesakes import namesakes_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Column, Connection
    from sqlalchemy.engine import Inspector

    Options = Mapping[str, Any]


def stores_column(connection: Connection, column: Column[Any]) -> bool:
    """Whether the database has a column of bytes where this connection finds the column's table."""
    return stores_values(connection, column, schema_of(connection, column.table))


def stores_values(connection: Connection, column: Column[Any], schema: str) -> bool:
    """Whether a schema has the encrypted column, as a column of bytes. If the table does not exist, no
    answer is kept."""
    table = column.table.name
    question = ("values", schema, table, column.name)
    known = answer(connection, question)
    if known is not None:
        return known
    inspector = inspect(connection)
    if not inspector.has_table(table, schema=schema):
        return False
    is_stored = any(
        there["name"] == column.name and python_type_of(there["type"]) is bytes
        for there in inspector.get_columns(table, schema=schema)
    )
    keep_answer(connection, question, is_stored)
    return is_stored


def holds_encrypted(connection: Connection, target: Any, name: str, options: Options) -> bool:
    """Whether a statement reaches the table with the encrypted column, and not only a table of its name."""
    schema = schema_of(connection, target, options)
    keys = _key_tables(connection, target, schema, name, options)
    question = (schema, target.name.lower(), name, *sorted(keys.keys()))
    known = answer(connection, question)
    if known is False:
        return False
    if target.schema is None and is_temporary(connection, target):
        return False  # not kept: it may be dropped, and the table behind it is another
    if known is True:
        return True
    is_here = _look(connection, target, schema, name, keys.values())
    if is_here is None:
        key_tables = [key for key, _ in keys.values()]
        return connection.dialect.name == "sqlite" and _is_attached(connection, target, name, key_tables)
    keep_answer(connection, question, is_here)
    return is_here


def _is_attached(connection: Connection, target: Any, name: str, keys: Sequence[Table]) -> bool:
    """Whether SQLite finds the table in an attached file, where it looks for a name without a schema."""
    schemas = inspect(connection).get_schema_names()
    return any(_look(connection, target, file, name, [(key, file) for key in keys]) for file in schemas)


def _look(
    connection: Connection, target: Any, schema: str, name: str, keys: Iterable[tuple[Table, str]]
) -> bool | None:
    """Whether a schema has the column as bytes and the keys beside it; None if the table does not exist."""
    inspector = inspect(connection)
    columns = _columns_of(inspector, target.name, schema)
    if columns is None:
        return None
    types = [column["type"] for column in columns if column["name"].lower() == name]
    if not any(python_type_of(type_) is bytes for type_ in types):
        return False
    return any(_stores_keys(inspector, table, there) for table, there in keys)


def _stores_keys(inspector: Inspector, table: Table, schema: str) -> bool:
    """Whether a schema has this table of keys. Another table may have its name."""
    names = {column["name"].lower() for column in _columns_of(inspector, table.name, schema) or ()}
    return all(column.name.lower() in names for column in table.primary_key)


def _columns_of(inspector: Inspector, name: str, schema: str | None) -> Sequence[Any] | None:
    """The columns of a table, as the database describes them; None if the table does not exist."""
    # `has_table` first: SQLite raises for the columns of a table in a database that is not attached.
    return inspector.get_columns(name, schema=schema) if inspector.has_table(name, schema=schema) else None


def _key_tables(
    connection: Connection, target: Any, schema: str, name: str, options: Options
) -> dict[tuple[str, str], tuple[Table, str]]:
    """The tables of the keys that encrypt a column and the schemas in which they may be, by the names of
    both."""
    return {
        (key.name, there): (key, there)
        for table in namesakes_of(connection, target, options)
        for key in _keys_of(table, name)
        for there in schemas_beside(connection, table, schema, key, options)
    }


def _keys_of(table: Table, name: str) -> list[Table]:
    try:
        plan = plan_of_table(table)
    except ConfigurationError:
        return []  # nothing can be encrypted in it, and its own statements say why
    columns = () if plan is None else plan.columns
    encrypted = [each for each in columns if each.column.name.lower() == name]
    # The classes of a registry that was disposed of have no tables any more.
    classes = [owner_class.key_class for each in encrypted for owner_class in each.path.owner_classes]
    tables = [getattr(key_class, "__table__", None) for key_class in classes]
    return [table for table in tables if table is not None]
