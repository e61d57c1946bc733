"""Attributes over two columns: the encrypted column, and the previous column while values are moved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Column, Table

from sqlalchemy_envelope.orm.columns.plans import plan_of_mapper
from sqlalchemy_envelope.orm.columns.previous import has_previous, policy_of_column, previous_of
from sqlalchemy_envelope.orm.tables.records import records_of_mapper

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.orm import Mapper

    from sqlalchemy_envelope.orm.columns.previous import ColumnPolicy


class DualAttribute(NamedTuple):
    """A mapped attribute over an encrypted column, and the hidden attribute over its previous column."""

    key: str
    previous: str
    policy: ColumnPolicy


_DUALS = "dual_attributes"


def dual_attributes(mapper: Mapper[Any]) -> tuple[DualAttribute, ...]:
    """The attributes of a mapper whose columns have a previous column."""
    records = records_of_mapper(mapper)
    known: tuple[DualAttribute, ...] | None = records.get(_DUALS)
    if known is None:
        known = records[_DUALS] = tuple(_find(mapper))
    return known


def _find(mapper: Mapper[Any]) -> Iterable[DualAttribute]:
    for attribute in plan_of_mapper(mapper):
        column = attribute.encrypted.column
        previous, policy = previous_of(column), policy_of_column(column)
        for prop in mapper.column_attrs if previous is not None and policy is not None else ():
            first = prop.columns[0]
            if isinstance(first, Column) and previous in first.base_columns:
                yield DualAttribute(attribute.key, prop.key, policy)  # type: ignore[arg-type]  # not None
                break


def map_previous(mapper: Mapper[Any]) -> None:
    """Map the previous columns that SQLAlchemy left out: those that a class adds to its parent's table."""
    for column in list(mapper.columns):
        if isinstance(column, Column) and isinstance(column.table, Table) and has_previous(column):
            previous: Any = previous_of(column)
            if not mapper.columns.contains_column(previous):
                mapper.add_property(previous.key, previous)
