"""Types of primary keys: `"1"` does not name the owner `1`, whatever the database makes of it."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import TYPE_CHECKING, Any

from sqlalchemy import TypeDecorator

from sqlalchemy_envelope.orm.tables.python_types import python_type_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Column

_KINDS: tuple[type[Any], ...] = (int, str, uuid.UUID, bytes, dt.date)


def mistyped(columns: Sequence[Column[Any]], values: Sequence[Any]) -> str | None:
    """Which value is of another type than its column, in words and without the value; None if all fit."""
    return mistyped_for(columns, kinds_of(columns), values)


def mistyped_for(
    columns: Sequence[Column[Any]], kinds: Sequence[type[Any] | None], values: Sequence[Any]
) -> str | None:
    """The same, where the types are known already. What is of no type that a key has is told where the key is
    used."""
    for column, kind, value in zip(columns, kinds, values, strict=True):
        if kind is not None and not isinstance(value, kind) and isinstance(value, _KINDS):
            return (
                f"{column.table.name}.{column.key} takes {kind.__name__} values, and was given a value of "
                f"the type {type(value).__name__}"
            )
    return None


def kinds_of(columns: Iterable[Column[Any]]) -> tuple[type[Any] | None, ...]:
    """The types of columns' values; None where a decorator or an own type may take any."""
    return tuple(_kind_of(column) for column in columns)


def _kind_of(column: Column[Any]) -> type[Any] | None:
    if isinstance(column.type, TypeDecorator):
        return None
    python_type = python_type_of(column.type) or object
    return next((kind for kind in _KINDS if issubclass(python_type, kind)), None)
