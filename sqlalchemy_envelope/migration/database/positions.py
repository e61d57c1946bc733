"""Primary keys as text, for the state tables."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.exceptions import MigrationError
from sqlalchemy_envelope.orm.columns.codecs import key_codec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy_envelope.orm.tables.keyset import Position


def encode_position(keys: Sequence[Any], position: Position | None) -> str | None:
    """A position as text: the canonical encoding of each key value, so that equal keys give equal text."""
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
        MigrationError: the text is of another primary key than the table has now.
    """
    if text is None:
        return None
    parts = json.loads(text)
    codecs = [key_codec(key.type) for key in keys]
    if [tag for tag, _ in parts] != [codec.tag for codec in codecs]:
        raise MigrationError("The primary key has changed its type since the migration began: run it again.")
    return tuple(codec.decode(base64.b64decode(data)) for codec, (_, data) in zip(codecs, parts, strict=True))
