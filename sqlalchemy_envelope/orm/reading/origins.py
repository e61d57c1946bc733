"""The origins of a statement's outputs: each output is traced through labels, aliases, subqueries and the
parts of a UNION down to the columns of tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, CompoundSelect, Label, Null
from sqlalchemy.sql.elements import ColumnClause, Grouping
from sqlalchemy.sql.selectable import SelectStatementGrouping

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Way = tuple[int, ...]
    """The selectables on the way, and which of their parts."""
    Origin = tuple[Way, Column[Any]]


def output_column(entry: Any) -> ColumnClause[Any] | None:
    """Return the column that an output selects, whatever the output's name is."""
    for one in entry.objects:
        column = unlabelled(one)
        if isinstance(column, ColumnClause):
            return column
    return None


def unlabelled(element: Any) -> Any:
    """Return an output without its label and brackets."""
    while isinstance(element, (Label, Grouping)):
        element = element.element
    return element


def origins_of(compiled: Any, columns: Sequence[Any]) -> list[list[Origin] | None]:
    """Return the origins of each output: several for the parts of a UNION, None if they cannot be traced."""
    statement = compiled.statement
    if not isinstance(statement, CompoundSelect):
        return [None if column is None else trace(column) for column in columns]
    parts = [list(part.selected_columns) for part in _parts(statement)]
    if any(len(part) != len(columns) for part in parts) or not _agree(columns, parts[0]):
        return [None] * len(columns)
    found: list[list[Origin] | None] = []
    for outputs in zip(*parts, strict=True):
        traced: list[Origin] | None = []
        for number, output in enumerate(outputs):
            mine = trace(output)
            if mine is None or traced is None:
                traced = None
                break
            traced += [((number, *way), base) for way, base in mine]
        found.append(traced)
    return found


def _parts(statement: Any) -> Iterable[Any]:
    for part in statement.selects:
        while isinstance(part, SelectStatementGrouping):
            part = part.element
        if isinstance(part, CompoundSelect):
            yield from _parts(part)
        else:
            yield part


def _agree(columns: Sequence[Any], outputs: Sequence[Any]) -> bool:
    """Tell whether a part gives its columns in the order in which they were compiled."""
    return all(
        column is None or (trace(column) or None) == (trace(output) or None)
        for column, output in zip(columns, outputs, strict=True)
    )


def trace(output: Any) -> list[Origin] | None:
    """Return the table columns that an output comes from, with the way there; None for an expression."""
    column = unlabelled(output)
    if isinstance(column, Null):
        return []
    if not isinstance(column, ColumnClause) or column.table is None:
        return None
    here = hash(column.table)
    proxies = _proxies(column)
    if not proxies:
        return [((here,), column)] if isinstance(column, Column) else None
    found: list[Origin] = []
    for number, inner in enumerate(proxies):
        traced = trace(inner)
        if traced is None:
            return None
        found += [((here, number, *way), base) for way, base in traced]
    return found


def _proxies(column: Any) -> list[Any]:
    """Return the columns behind a subquery's column. SQLAlchemy lists both a label and its element."""
    labelled = {hash(unlabelled(one)) for one in column._proxies if isinstance(one, Label)}
    return [one for one in column._proxies if isinstance(one, Label) or hash(one) not in labelled]
