"""The original of a copied column: `Table.to_metadata()` copies tables, but not the owners of their rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.orm.columns.column_notes import Origin, note, notes_of

if TYPE_CHECKING:
    from sqlalchemy import Column


def note_origin(column: Column[Any]) -> None:
    """Remember a column in itself and in its later copies."""
    if notes_of(column).origin is None:
        note(column, origin=Origin(column))


def origin_of(column: Column[Any]) -> Column[Any] | None:
    """Return the original of a copied column, in the same table of another MetaData; None for no copy."""
    origin = notes_of(column).origin
    found = None if origin is None else origin.column()
    if found is None or found is column:
        return None
    here, there = column.table, found.table
    is_same = (here.name, here.schema) == (there.name, there.schema) and here.metadata is not there.metadata
    return found if is_same else None
