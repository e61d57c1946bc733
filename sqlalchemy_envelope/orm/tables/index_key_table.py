"""`<table>_indexkey`: the index keys of the blind indexes on one table whose scope is the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Column, DateTime, Integer, LargeBinary, String, Table, UniqueConstraint

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.tables.generated import LONGEST_NAME, is_of_keys, note_table, now
from sqlalchemy_envelope.orm.tables.owners import KEY_UUID
from sqlalchemy_envelope.orm.tables.records import records_of_table

if TYPE_CHECKING:
    pass

_NAME = "{table}_indexkey"
_KEYS = "index keys"


def add_index_key_table(table: Table) -> Table:
    """Give a table its table of index keys, in the same MetaData and schema.

    Raises:
        ConfigurationError: the name is too long, or another table has it.
    """
    records = records_of_table(table)
    known: Table | None = records.get(_KEYS)
    if known is not None:
        return known
    name = _NAME.format(table=table.name)
    if len(name.encode()) > LONGEST_NAME:
        raise ConfigurationError(
            f"The table {name!r} of the index keys of {table.name} would have a name of more than "
            f"{LONGEST_NAME} bytes, which PostgreSQL does not take. Give {table.name} a shorter name."
        )
    existing = table.metadata.tables.get(f"{table.schema}.{name}" if table.schema else name)
    if existing is not None and not is_of_keys(existing):
        if "commitment" not in existing.columns:
            raise ConfigurationError(f"The MetaData has a table {name!r} already, which is not ours.")
        table.metadata.remove(existing)  # a reflected table
        existing = None
    if existing is None:
        existing = Table(
            name,
            table.metadata,
            Column("key_id", KEY_UUID, primary_key=True),
            Column("label", String(255), nullable=False),
            Column("epoch", Integer, nullable=False),
            Column("state", String(16), nullable=False),
            Column("commitment", LargeBinary(32), nullable=False),
            Column("provider_ref", String(255), nullable=False),
            Column("wrapped", LargeBinary, nullable=False),
            Column("seal", LargeBinary(32), nullable=False),
            Column("created_at", DateTime(timezone=True), nullable=False, default=now),
            Column("changed_at", DateTime(timezone=True), nullable=False, default=now),
            UniqueConstraint("label", "epoch", name=f"uq_{name}_epoch"[:LONGEST_NAME]),
            schema=table.schema,
        )
        note_table(existing, beside=table)
    records[_KEYS] = existing
    return existing


def index_key_table_of(table: Table) -> Table | None:
    """The table of the index keys of a table; None if it has no index of the server's scope."""
    found: Table | None = records_of_table(table).get(_KEYS)
    return found
