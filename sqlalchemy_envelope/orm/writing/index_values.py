"""The values of a row that an index over several attributes is made of: also those that an UPDATE leaves as
they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.exceptions import StatementRefusedError
from sqlalchemy_envelope.orm.columns.plans import plan_of_mapper
from sqlalchemy_envelope.orm.columns.sealed import Sealed
from sqlalchemy_envelope.orm.indexes.indexed import indexes_of_table

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sqlalchemy.orm import Mapper

    from sqlalchemy_envelope.orm.columns.plans import EncryptedColumn
    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn
    from sqlalchemy_envelope.orm.writing.flush_notes import FlushNotes
    from sqlalchemy_envelope.orm.writing.rows import WrittenRows

_ABSENT: Any = object()


def values_of(rows: WrittenRows, index: IndexedColumn, row: Mapping[str, Any]) -> list[Any]:
    """The values of a row, as their inner types have converted them.

    Raises:
        StatementRefusedError: an UPDATE sets some of them, and nothing tells the others.
    """
    names = [rows.parameter(one.key) for one in index.sources]
    if rows.inserts:
        return [row.get(name) for name in names]
    nulls = {one.key for one in index.sources if one.key in rows.assignments.clauses}
    values = [
        row.get(name, None if one.key in nulls else _ABSENT)
        for name, one in zip(names, index.sources, strict=True)
    ]
    if None in values or _ABSENT not in values:
        return [None if one is _ABSENT else one for one in values]  # of a row with NULL there is no tag
    return [
        _held(rows, index, row, source) if value is _ABSENT else value
        for source, value in zip(index.sources, values, strict=True)
    ]


def _held(rows: WrittenRows, index: IndexedColumn, row: Mapping[str, Any], source: EncryptedColumn) -> Any:
    """What the row of an object holds in a column that is not written."""
    if rows.object_of(row) is not None and rows.notes is not None:
        value = rows.notes.parts.of(rows.connection, index, rows.identity(row))[source.column]
        if isinstance(value, Sealed):
            raise value.error()
        return value if source.convert is None else source.convert(value)
    keys = [one.key for one in index.sources]
    written = " and ".join(key for key in keys if rows.parameter(key) in row)
    every = ", ".join(f"{key}=..." for key in keys)
    raise StatementRefusedError(
        f"The blind index {index.label!r} is made of {' and '.join(keys)}, and a statement changes {written} "
        f"alone. Set all of them, `values({every})`; or change the object in a session, which reads the "
        "others."
    )


def forget_parts(rows: WrittenRows, row: Mapping[str, Any]) -> None:
    """Forget what a flush has read of a table, if a statement is not the flush's own."""
    if rows.notes is not None and rows.object_of(row) is None:
        rows.notes.parts.forget(rows.plan.table)


class Compounds:
    """The indexes of a mapper over several attributes."""

    def __init__(self, mapper: Mapper[Any]) -> None:
        by_column = {one.encrypted.column: one.key for one in plan_of_mapper(mapper)}
        indexes = [one for table in {one.table for one in by_column} for one in indexes_of_table(table)]
        self._indexes: list[tuple[IndexedColumn, frozenset[str]]] = [
            (
                one,
                frozenset(by_column[source.column] for source in one.sources if source.column in by_column),
            )
            for one in indexes
            if len(one.sources) > 1
        ]

    def note(self, notes: FlushNotes, changed: Collection[str], key: Sequence[Any]) -> None:
        """Note that the flush changes parts of an index: the other parts of all such rows are read
        together."""
        for index, attributes in self._indexes:
            if not attributes.isdisjoint(changed):
                notes.parts.wanted(index, tuple(key))
