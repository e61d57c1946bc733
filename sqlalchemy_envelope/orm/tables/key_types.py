"""Types of primary keys: `"1"` does not name the owner `1`, whatever the database makes of it."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import TYPE_CHECKING, Any

from sqlalchemy import TypeDecorator
from sqlalchemy.engine.default import DefaultDialect

from sqlalchemy_envelope.orm.tables.python_types import python_type_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Column

    Kind = type[Any] | TypeDecorator[Any] | None

_KINDS: tuple[type[Any], ...] = (int, str, uuid.UUID, bytes, dt.datetime, dt.date)
_DIALECT = DefaultDialect()


def mistyped(columns: Sequence[Column[Any]], values: Sequence[Any]) -> str | None:
    """Which value is of another type than its column, in words and without the value; None if all fit."""
    return mistyped_for(columns, kinds_of(columns), values)


def mistyped_for(columns: Sequence[Column[Any]], kinds: Sequence[Kind], values: Sequence[Any]) -> str | None:
    """The same, where the types are known already. A value of a type that no key has is refused where the
    key is used."""
    for column, kind, value in zip(columns, kinds, values, strict=True):
        if kind is None or not isinstance(value, _KINDS):
            continue
        where, given = f"{column.table.name}.{column.key}", type(value).__name__
        if isinstance(kind, type):
            # A datetime is a date in Python, and another value than the date that is read.
            if not isinstance(value, kind) or (kind is dt.date and isinstance(value, dt.datetime)):
                return f"{where} takes {kind.__name__} values, and was given a value of the type {given}"
            continue
        read = _read_back(kind, value)
        if not isinstance(value, type(read)):
            return f"{where} reads {type(read).__name__} values, and was given a value of the type {given}"
        if read != value:
            return f"{where} reads another value than it was given: give the value as it is read"
    return None


def kinds_of(columns: Iterable[Column[Any]]) -> tuple[Kind, ...]:
    """The types of columns' values. A decorator stands for itself, because it alone can say; None for any
    type."""
    return tuple(_kind_of(column) for column in columns)


def _kind_of(column: Column[Any]) -> Kind:
    if isinstance(column.type, TypeDecorator):
        return column.type
    python_type = python_type_of(column.type) or object
    return next((kind for kind in _KINDS if issubclass(python_type, kind)), None)


def _read_back(decorator: TypeDecorator[Any], value: Any) -> Any:
    """The value that is read after this value was written. A decorator may take several forms of one key, for
    example text and UUID; an owner's name in memory and in its keys has the form that is read.

    A value that the decorator does not take is refused by the statement that brings it.
    """
    bind, result = decorator.bind_processor(_DIALECT), decorator.result_processor(_DIALECT, None)
    try:
        stored = value if bind is None else bind(value)
        return stored if result is None else result(stored)
    except Exception:  # noqa: BLE001 - of the application's own code
        return value
