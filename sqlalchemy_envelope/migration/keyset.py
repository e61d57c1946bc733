"""Going over a table in the order of its primary key, whatever that is made of."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, bindparam, not_, or_, tuple_

from sqlalchemy_envelope.exceptions import MigrationError
from sqlalchemy_envelope.orm.columns.codecs import key_codec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement

Position = tuple[Any, ...]
"""A primary key: everything up to it is done."""


def beyond(keys: Sequence[Any], position: Position, dialect: str) -> ColumnElement[bool]:
    """The rows after this one."""
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
    """The rows up to this one, itself included."""
    if len(keys) == 1 or dialect in ("postgresql", "sqlite"):
        values = [bindparam(None, value, type_=key.type) for key, value in zip(keys, position, strict=True)]
        compared: ColumnElement[bool] = (
            keys[0] <= values[0] if len(keys) == 1 else tuple_(*keys) <= tuple_(*values)
        )
        return compared
    return and_(keys[0] <= position[0], not_(beyond(keys, position, dialect)))


def encode_position(keys: Sequence[Any], position: Position | None) -> str | None:
    """A position as text, the same for the same key: the canonical encoding of each of its values."""
    if position is None:
        return None
    parts = []
    for key, value in zip(keys, position, strict=True):
        codec = key_codec(key.type)
        parts.append([codec.tag, base64.b64encode(codec.encode(value)).decode("ascii")])
    return json.dumps(parts)


def decode_position(keys: Sequence[Any], text: str | None) -> Position | None:
    """The position that a text stands for.

    Raises:
        MigrationError: it is of another primary key than the table has now.
    """
    if text is None:
        return None
    parts = json.loads(text)
    codecs = [key_codec(key.type) for key in keys]
    if [tag for tag, _ in parts] != [codec.tag for codec in codecs]:
        raise MigrationError("The primary key has changed its type since the migration began: run it again.")
    return tuple(codec.decode(base64.b64decode(data)) for codec, (_, data) in zip(codecs, parts, strict=True))
