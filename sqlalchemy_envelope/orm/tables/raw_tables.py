"""Tables as the database has them: where a connection finds them, and their columns without the types of this
library, which refuse expressions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, LargeBinary, MetaData, Table, inspect

from sqlalchemy_envelope.orm.tables.default_schema import schema_of
from sqlalchemy_envelope.orm.tables.records import records_of_table

_RAW = "raw"

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Connection


def raw_table(table: Table, binary: Iterable[Column[Any]], others: Iterable[Column[Any]] = ()) -> Table:
    """A table with some of its columns: the first as bytes, the others as they are.

    Send its statements with `UNCACHED`.
    """
    # A `Table` and no `table()`: `schema_translate_map` moves only a `Table` to a tenant's schema.
    columns = [Column(one.name, LargeBinary) for one in binary]
    columns += [Column(one.name, one.type) for one in others]
    made = Table(table.name, MetaData(), *columns, schema=table.schema)
    records_of_table(made)[_RAW] = True
    return made


def is_raw(table: Any) -> bool:
    """Whether this is a table that this library made to write what the database has: bytes, and tags."""
    return isinstance(table, Table) and _RAW in records_of_table(table)


UNCACHED = {"compiled_cache": None}
"""The execution options of a statement on a `Table` of the moment: no later statement can be its like."""


def schema_in(connection: Connection, table: Table) -> str | None:
    """The schema that a table names on this connection; None for the connection's default schema."""
    translate = connection.get_execution_options().get("schema_translate_map") or {}
    schema: str | None = translate.get(table.schema, table.schema)
    return schema


def quoted_name(connection: Connection, table: Table) -> str:
    """A table's name in the SQL text of this connection."""
    preparer, schema = connection.dialect.identifier_preparer, schema_in(connection, table)
    name = preparer.quote(table.name)
    return f"{preparer.quote_schema(schema)}.{name}" if schema else name


def full_name(connection: Connection, table: Table) -> str:
    """A table's name for another connection to the same database, with the schema if it is no default."""
    schema = schema_in(connection, table)
    if not schema:
        found = schema_of(connection, table)
        schema = None if found == connection.dialect.default_schema_name else found
    return f"{schema}.{table.name}" if schema else table.name


def is_there(connection: Connection, table: Table) -> bool:
    """Whether the database has a table: models may declare one that is not made yet."""
    return bool(inspect(connection).has_table(table.name, schema=schema_in(connection, table)))
