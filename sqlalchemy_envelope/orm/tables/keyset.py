"""The order of a table's primary key, whatever it is made of: a job goes over the table in this order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, bindparam, not_, or_, tuple_

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement

Position = tuple[Any, ...]
"""A primary key: everything up to it is done."""


def beyond(keys: Sequence[Any], position: Position, dialect: str) -> ColumnElement[bool]:
    """The rows after this position."""
    values = [bindparam(None, value, type_=key.type) for key, value in zip(keys, position, strict=True)]
    if len(keys) == 1:
        compared: ColumnElement[bool] = keys[0] > values[0]
        return compared
    if dialect in ("postgresql", "sqlite"):
        return tuple_(*keys) > tuple_(*values)
    # MySQL finds no index for a comparison of rows.
    steps = [
        and_(
            *(a == b for a, b in zip(keys[:depth], values[:depth], strict=True)), keys[depth] > values[depth]
        )
        for depth in range(len(keys))
    ]
    return and_(keys[0] >= values[0], or_(*steps))


def up_to(keys: Sequence[Any], position: Position, dialect: str) -> ColumnElement[bool]:
    """The rows up to this position, itself included."""
    if len(keys) == 1 or dialect in ("postgresql", "sqlite"):
        values = [bindparam(None, value, type_=key.type) for key, value in zip(keys, position, strict=True)]
        compared: ColumnElement[bool] = (
            keys[0] <= values[0] if len(keys) == 1 else tuple_(*keys) <= tuple_(*values)
        )
        return compared
    return and_(keys[0] <= position[0], not_(beyond(keys, position, dialect)))
