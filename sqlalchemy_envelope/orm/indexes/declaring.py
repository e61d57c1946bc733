"""What happens when a blind index is declared: it gets its label, and its table a table of index keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Table, UniqueConstraint

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.columns.searching import answer_by
from sqlalchemy_envelope.orm.indexes import executing, several_rows
from sqlalchemy_envelope.orm.indexes.blind_index import BlindIndex
from sqlalchemy_envelope.orm.indexes.candidates import refuse_unique
from sqlalchemy_envelope.orm.indexes.comparisons import search
from sqlalchemy_envelope.orm.indexes.guards import IndexGuard, add_guard
from sqlalchemy_envelope.orm.indexes.indexed import forget_indexes, indexes_of_table
from sqlalchemy_envelope.orm.tables.index_key_table import add_index_key_table

if TYPE_CHECKING:
    from sqlalchemy.orm import Mapper


def declare_index(column: Column[Any], table: Any) -> bool:
    """Complete a column that joins its table, if it is a blind index; tells whether it is one."""
    if not isinstance(table, Table):
        return False
    forget_indexes(table)
    if not isinstance(column.type, BlindIndex) or isinstance(column.type, IndexGuard):
        return False
    if column.type.label is None:
        column.type = column.type.labelled(f"{table.name}.{column.name}")
    refuse_unique(column)
    column.nullable = True  # NULL has no tag
    if column.type.scope == "server":
        add_index_key_table(table)
        add_guard(column, table)
    answer_by(search)
    executing.listen()
    several_rows.listen()
    return True


def check_indexes(mapper: Mapper[Any]) -> None:
    """Find the columns that a mapper's blind indexes index.

    Raises:
        ConfigurationError: an index names no encrypted attribute of its table, or one of few values.
    """
    for table in mapper.tables:
        if isinstance(table, Table) and any(isinstance(one.type, BlindIndex) for one in table.columns):
            for index in indexes_of_table(table):
                if index.type.prefix is not None:
                    _refuse_unique(index.column)


def _refuse_unique(column: Column[Any]) -> None:
    """Refuse a unique index of beginnings: the database would refuse the second value that begins so."""
    table: Table = column.table
    groups = [one.columns.values() for one in table.constraints if isinstance(one, UniqueConstraint)]
    groups += [one.columns.values() for one in table.indexes if one.unique]
    if column.unique or any(column in group for group in groups):
        raise ConfigurationError(
            f"{table.name}.{column.name} is a blind index of beginnings, and unique: two values that begin "
            "alike could not be stored. Leave `unique=True` out, or declare a second index of whole values."
        )
