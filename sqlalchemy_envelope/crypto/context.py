"""Contexts: what a key or a value is bound to, encoded so that it cannot be read two ways (section 1).

Lengths and counts stand before the bytes they speak of. Without them ("ab", "c") and ("a", "bc") would encode
alike, and a ciphertext could be moved from one to the other.
"""

import datetime as dt
import uuid
from collections.abc import Iterable

from sqlalchemy_envelope.exceptions import ConfigurationError

_PREFIX = b"sqlalchemy-envelope/v1/"
_SIZES = tuple(size.to_bytes(4, "big") for size in range(256))


def encode_context(label: str, *fields: bytes) -> bytes:
    """Encode `ctx(label, f1 .. fn)` of section 1: injective over label and fields."""
    name = label.encode("ascii")
    if b"\0" in name:
        raise ValueError("a context label holds no NUL")
    parts = [_PREFIX, name, b"\0", bytes([len(fields)])]
    for field in fields:
        size = len(field)
        parts += (_SIZES[size] if size < 256 else size.to_bytes(4, "big"), field)
    return b"".join(parts)


def _reference_part(value: object) -> tuple[bytes, bytes]:
    # By value and never by exact type: names arrive as quoted_name, and asyncpg has a UUID class of its own.
    if isinstance(value, bool):
        raise ConfigurationError(
            "A bool cannot identify an owner or a row; use an int, str, UUID, bytes or date."
        )
    if isinstance(value, int):
        return b"i", b"%d" % value
    if isinstance(value, str):
        try:
            return b"s", value.encode("utf-8")
        except UnicodeEncodeError:
            raise ConfigurationError("A primary key holds a lone surrogate; it cannot be bound to.") from None
    if isinstance(value, uuid.UUID):
        return b"u", value.bytes
    if isinstance(value, bytes):
        return b"b", value
    if isinstance(value, dt.date) and not isinstance(value, dt.datetime):
        return b"d", value.isoformat().encode("ascii")
    raise ConfigurationError(
        f"A primary key of type {type(value).__name__} cannot be bound to; use int, str, UUID, bytes or date."
    )


def encode_reference(parts: Iterable[object]) -> bytes:
    """Encode a primary key as `reference(parts)` of section 1; integers encode alike
    whatever their SQL width.

    Raises:
        ConfigurationError: a part is not an int, str, UUID, bytes or date.
    """
    encoded: list[bytes] = []
    for value in parts:
        if type(value) is int:  # most primary keys are, and a row-bound column asks for every row
            digits = b"%d" % value
            encoded.append(b"i" + len(digits).to_bytes(4, "big") + digits)
            continue
        if type(value) is uuid.UUID:  # and most of the others
            encoded.append(b"u\0\0\0\x10" + value.bytes)
            continue
        tag, data = _reference_part(value)
        encoded += (tag, len(data).to_bytes(4, "big"), data)
    return b"".join(encoded)


def owner_reference(label: str, primary_key: Iterable[object]) -> bytes:
    """What the wraps of an owner's keys are bound to: its table's label and its primary key."""
    return encode_context("owner", label.encode("utf-8"), encode_reference(primary_key))
