"""The values of a row that an index over several attributes is made of: also those that an UPDATE leaves as
they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import InvalidRequestError

from sqlalchemy_envelope.exceptions import StatementRefusedError
from sqlalchemy_envelope.orm.columns.plans import plan_of_mapper
from sqlalchemy_envelope.orm.indexes.indexed import indexes_of_table
from sqlalchemy_envelope.orm.writing.missing_owner import not_loaded

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sqlalchemy.orm import InstanceState, Mapper

    from sqlalchemy_envelope.orm.columns.plans import EncryptedAttribute, EncryptedColumn
    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn
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
    """What the object of this row holds in a column that is not written."""
    state = rows.object_of(row)
    for holder in () if state is None else (rows.new_object_of(state), state):
        for attribute in plan_of_mapper(holder.mapper):
            if attribute.encrypted.column is source.column and attribute.key in holder.dict:
                value = holder.dict[attribute.key]
                return value if source.convert is None else source.convert(value)
    keys = [one.key for one in index.sources]
    written = " and ".join(key for key in keys if rows.parameter(key) in row)
    every = ", ".join(f"{key}=..." for key in keys)
    raise StatementRefusedError(
        f"The blind index {index.label!r} is made of {' and '.join(keys)}, and a statement changes {written} "
        f"alone. Set all of them, `values({every})`; or change the object in a session, which knows the "
        "others."
    )


class Compounds:
    """The indexes of a mapper over several attributes."""

    def __init__(self, mapper: Mapper[Any]) -> None:
        by_column = {one.encrypted.column: one for one in plan_of_mapper(mapper)}
        indexes = [one for table in {one.table for one in by_column} for one in indexes_of_table(table)]
        self._indexes: list[tuple[str, Sequence[EncryptedAttribute]]] = [
            (one.label, [by_column[source.column] for source in one.sources if source.column in by_column])
            for one in indexes
            if len(one.sources) > 1
        ]

    def load(self, state: InstanceState[Any], changed: Collection[str]) -> None:
        """Load the attributes that are indexed with a changed one: the statement hook must not emit SQL.

        Raises:
            LockedError: one cannot be opened.
            StatementRefusedError: the application forbids to load it.
        """
        for label, attributes in self._indexes:
            if any(one.key in changed for one in attributes):
                for one in attributes:
                    _load(state, one.key, label)


def _load(state: InstanceState[Any], key: str, label: str) -> None:
    try:
        getattr(state.obj(), key)
    except InvalidRequestError:
        pass
    else:
        return
    raise not_loaded(state, key, f"the blind index {label!r} is made of it and of what was changed")
