"""What the library notes in `Column.info`: one `ColumnNotes`.

`Column.info` and what is in it go along into a copy, as `Table.to_metadata()` makes it. So the notes never
change: a column that has more to say gets others.
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
    """A column, which this does not keep alive. A pickled one leads to nothing."""

    def __init__(self, column: Column[Any] | None = None) -> None:
        self.column = (lambda: None) if column is None else ref(column)

    def __reduce__(self) -> tuple[Any, ...]:
        return Origin, ()


@dataclass(frozen=True, slots=True)
class ColumnNotes:
    """What is noted on one column.

    Attributes:
        origin: of an encrypted column, itself; of a copy, what it is a copy of.
        previous: of an encrypted column, the key of its previous column.
        replaced_by: of a previous column, the key of the encrypted one.
        check_name: of an encrypted column in a CREATE TABLE of Alembic's, the name of its CHECK.
    """

    origin: Origin | None = None
    previous: str | None = None
    replaced_by: str | None = None
    check_name: str | None = None


_NO_NOTES = ColumnNotes()


def notes_of(column: Column[Any]) -> ColumnNotes:
    """The notes on a column. To read `Column.info` makes a dictionary: a column without notes gets none."""
    notes: ColumnNotes = column.info.get(NOTES, _NO_NOTES) if "info" in column.__dict__ else _NO_NOTES
    return notes


def note(column: Column[Any], **more: Any) -> None:
    """Note something more on a column."""
    column.info[NOTES] = replace(notes_of(column), **more)
