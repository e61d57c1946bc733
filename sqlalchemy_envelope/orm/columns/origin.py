"""Which column another one is a copy of: `Table.to_metadata()` copies tables, and not who owns their rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import ref

if TYPE_CHECKING:
    from sqlalchemy import Column

_ORIGIN = "sqlalchemy_envelope.origin"
"""In `Column.info`, which a copy gets as well."""


class _Origin:
    """A column, which this does not keep alive. A pickled one leads to nothing."""

    def __init__(self, column: Column[Any] | None = None) -> None:
        self.column = (lambda: None) if column is None else ref(column)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Origin, ()


def note_origin(column: Column[Any]) -> None:
    """Remember a column in itself and in its later copies."""
    column.info.setdefault(_ORIGIN, _Origin(column))


def origin_of(column: Column[Any]) -> Column[Any] | None:
    """The column of the same table in another MetaData that this is a copy of; None if it is none."""
    origin: _Origin | None = column.info.get(_ORIGIN)
    found = None if origin is None else origin.column()
    if found is None or found is column:
        return None
    here, there = column.table, found.table
    is_same = (here.name, here.schema) == (there.name, there.schema) and here.metadata is not there.metadata
    return found if is_same else None
