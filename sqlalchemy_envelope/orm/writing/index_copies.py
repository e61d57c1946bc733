"""Blind indexes where a statement copies values inside the database: a value that is copied takes its tag
with it, from the same row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.exceptions import StatementRefusedError
from sqlalchemy_envelope.orm.indexes.indexed import indexes_of_table
from sqlalchemy_envelope.orm.writing.copies import trace
from sqlalchemy_envelope.orm.writing.forms import (
    assigned_by_upsert,
    column_key,
    is_null,
    is_proposed,
    parts_of,
    with_upserted,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Table

    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn
    from sqlalchemy_envelope.orm.writing.copies import Source


def check_copied_indexes(table: Table, statement: Any) -> None:
    """Refuse an INSERT .. FROM SELECT that copies a value without its tag, or a tag without its value.

    Raises:
        StatementRefusedError: it does.
    """
    indexes = () if statement.select is None else indexes_of_table(table)
    if not indexes:
        return
    names: list[str] = list(statement._select_names or ())
    for part in parts_of(statement.select):
        copied = dict(zip(names, part.selected_columns, strict=False))
        for index in indexes:
            if not _is_copied_whole(index, copied):
                raise _refusal(index)


def _is_copied_whole(index: IndexedColumn, copied: Mapping[str, Any]) -> bool:
    """Whether a SELECT gives an index the tags of the values that it gives the indexed columns."""
    values = [copied[source.key] for source in index.sources if _is_given(copied, source.key)]
    if not values:
        return not _is_given(copied, index.key)
    if len(values) < len(index.sources) or not _is_given(copied, index.key):
        return False
    traces = [trace(value) for value in (copied[index.key], *values)]
    parts = max(map(len, traces))
    return all(len(one) == parts for one in traces) and all(
        _is_tag_of(index, *taken) for taken in zip(*traces, strict=True)
    )


def _is_given(copied: Mapping[str, Any], key: str) -> bool:
    return key in copied and not is_null(copied[key])


def _is_tag_of(index: IndexedColumn, tag: Source | None, *values: Source | None) -> bool:
    """Whether the tag and the values are of one row, whose index has the same tags for the same values."""
    if tag is None or None in values:
        return False
    origin = next((one for one in indexes_of_table(tag.column.table) if one.column is tag.column), None)
    if origin is None or not index.is_like(origin):
        return False
    columns = [source.column for source in origin.sources]
    return len(columns) == len(values) and all(
        value is not None and value.way == tag.way and value.column is column
        for value, column in zip(values, columns, strict=True)
    )


def _refusal(index: IndexedColumn) -> StatementRefusedError:
    table, names = index.column.table.name, [source.key for source in index.sources]
    whole = ", ".join(repr(name) for name in (*names, index.key))
    return StatementRefusedError(
        f"A statement copies rows into {table} by FROM SELECT, and would leave the blind index {index.key!r} "
        f"without the tags of {' and '.join(names)}. Copy them together, from one row of the same table: "
        f"`.from_select([..., {whole}], select(...))`; or load the rows and add them as objects."
    )


def upsert_indexes(table: Table, statement: Any) -> Any:
    """The upsert, which sets an index from the proposed row wherever it sets what is indexed.

    Raises:
        StatementRefusedError: it sets the index to anything else, or a part of what is indexed.
    """
    pairs = assigned_by_upsert(statement)
    if not pairs:
        return statement
    sets = {column_key(named): value for named, value in pairs.items()}
    proposed: Any = getattr(statement, "excluded", None)
    row = "inserted" if proposed is None else "excluded"
    proposed = statement.inserted if proposed is None else proposed
    added: dict[str, Any] = {}
    for index in indexes_of_table(table):
        key, sources = index.key, [source.key for source in index.sources]
        changed = [name for name in sources if name in sets]
        value = sets.get(key)
        is_own = key not in sets or (
            bool(changed) and is_proposed(statement.table, value) and getattr(value, "key", None) == key
        )
        if not is_own or (changed and len(changed) < len(sources)):
            whole = " and ".join(f"{name} from `{row}.{name}`" for name in sources)
            raise StatementRefusedError(
                f"An upsert keeps the blind index {index.label!r} in step by itself. Set {whole}, and leave "
                f"{key} out."
            )
        if changed:
            guard = getattr(index, "guard", None)
            keys = [one for one in (key, None if guard is None else guard.key) if one is not None]
            added |= {one: proposed[one] for one in keys if one not in sets}
    return with_upserted(statement, added) if added else statement
