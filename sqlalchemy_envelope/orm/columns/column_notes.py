"""The library's notes in `Column.info`: a `ColumnNotes`.

A copy of a column, as by `Table.to_metadata()`, shares the contents of `Column.info`. So the notes never
change: for a further note, a column gets new notes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import ref

if TYPE_CHECKING:
    from sqlalchemy import Column

NOTES = "sqlalchemy_envelope"
"""The key in `Column.info`."""


class Origin:
    """A reference to a column, which it does not keep alive. After pickling, it refers to no column."""

    def __init__(self, column: Column[Any] | None = None) -> None:
        self.column = (lambda: None) if column is None else ref(column)

    def __reduce__(self) -> tuple[Any, ...]:
        return Origin, ()


@dataclass(frozen=True, slots=True)
class ColumnNotes:
    """The notes on a column.

    Attributes:
        origin: for an encrypted column, the column; for a copy, the original column.
        previous: for an encrypted column, the key of its previous column.
        replaced_by: for a previous column, the key of the encrypted column.
        check_name: for an encrypted column in a CREATE TABLE of Alembic, the name of its CHECK.
        guard: for a blind index, the key of its guard.
    """

    origin: Origin | None = None
    previous: str | None = None
    replaced_by: str | None = None
    check_name: str | None = None
    guard: str | None = None


_NO_NOTES = ColumnNotes()


def notes_of(column: Column[Any]) -> ColumnNotes:
    """Return the notes on a column. Reading `Column.info` makes a dictionary, so this avoids it."""
    notes: ColumnNotes = column.info.get(NOTES, _NO_NOTES) if "info" in column.__dict__ else _NO_NOTES
    return notes


def note(column: Column[Any], **more: Any) -> None:
    """Add a note to a column."""
    column.info[NOTES] = replace(notes_of(column), **more)
