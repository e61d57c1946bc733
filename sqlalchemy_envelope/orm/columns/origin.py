"""Which column another one is a copy of: `Table.to_metadata()` copies tables, and not who owns their rows."""

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
    """The column of the same table in another MetaData that this is a copy of; None if it is none."""
    origin = notes_of(column).origin
    found = None if origin is None else origin.column()
    if found is None or found is column:
        return None
    here, there = column.table, found.table
    is_same = (here.name, here.schema) == (there.name, there.schema) and here.metadata is not there.metadata
    return found if is_same else None
