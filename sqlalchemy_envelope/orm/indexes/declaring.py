"""What happens when a blind index is declared: it gets its label, and its table a table of index keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Table

from sqlalchemy_envelope.orm.columns.searching import answer_by
from sqlalchemy_envelope.orm.indexes import executing
from sqlalchemy_envelope.orm.indexes.blind_index import BlindIndex
from sqlalchemy_envelope.orm.indexes.candidates import refuse_unique
from sqlalchemy_envelope.orm.indexes.comparisons import search
from sqlalchemy_envelope.orm.indexes.indexed import forget_indexes
from sqlalchemy_envelope.orm.tables.index_key_table import add_index_key_table

if TYPE_CHECKING:
    pass


def declare_index(column: Column[Any], table: Any) -> bool:
    """Complete a column that joins its table, if it is a blind index; tells whether it is one."""
    if not isinstance(table, Table):
        return False
    forget_indexes(table)
    if not isinstance(column.type, BlindIndex):
        return False
    if column.type.label is None:
        column.type = column.type.labelled(f"{table.name}.{column.name}")
    refuse_unique(column)
    column.nullable = True  # NULL has no tag
    if column.type.scope == "server":
        add_index_key_table(table)
    answer_by(search)
    executing.listen()
    return True
