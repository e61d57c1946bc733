"""Types of primary keys: `"1"` does not name the owner `1`, whatever the database makes of it."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import TYPE_CHECKING, Any

from sqlalchemy import TypeDecorator

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Column

_KINDS: tuple[type[Any], ...] = (int, str, uuid.UUID, bytes, dt.date)


def mistyped(columns: Iterable[Column[Any]], values: Iterable[Any]) -> str | None:
    """Which value is of another type than its column, in words and without the value; None if all fit. What
    is of no type that a key has is told where the key is used."""
    for column, value in zip(columns, values, strict=True):
        expected = _kind_of(column)
        if expected is not None and isinstance(value, _KINDS) and not isinstance(value, expected):
            return (
                f"{column.table.name}.{column.key} takes {expected.__name__} values, and was given a value "
                f"of the type {type(value).__name__}"
            )
    return None


def _kind_of(column: Column[Any]) -> type[Any] | None:
    """The type of a column's values; None where a decorator or an own type may take any."""
    if isinstance(column.type, TypeDecorator):
        return None
    try:
        python_type = column.type.python_type
    except NotImplementedError:
        return None
    return next((kind for kind in _KINDS if issubclass(python_type, kind)), None)
