"""Contexts: what a key or a value is bound to, encoded so that it cannot be read two ways (section 1).

Counts and lengths stand before the bytes that they count. Without them ("ab", "c") and ("a", "bc") would
encode alike, and a ciphertext could be moved from one to the other.
"""

import datetime as dt
import uuid
from collections.abc import Iterable

from sqlalchemy_envelope.exceptions import ConfigurationError

_PREFIX = b"sqlalchemy-envelope/v1/"
_SIZES = tuple(size.to_bytes(4, "big") for size in range(256))


def encode_context(label: str, *fields: bytes) -> bytes:
    """Encode `ctx(label, f1 .. fn)` of section 1: two different lists never encode alike.

    Args:
        label: ASCII without NUL.
        fields: at most 255.

    Raises:
        ValueError: the label holds a NUL, or there are too many fields.
    """
    name = label.encode("ascii")
    if b"\0" in name:
        raise ValueError("a context label must not hold a NUL")
    parts = [_PREFIX, name, b"\0", bytes([len(fields)])]
    for field in fields:
        size = len(field)
        parts += (_SIZES[size] if size < 256 else size.to_bytes(4, "big"), field)
    return b"".join(parts)


def _reference_part(value: object) -> tuple[bytes, bytes]:
    # `isinstance`, and not the exact type: names arrive as `quoted_name`, and asyncpg has its own UUID class.
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
            raise ConfigurationError(
                "A primary key holds a lone surrogate, which has no UTF-8: nothing can be bound to it."
            ) from None
    if isinstance(value, uuid.UUID):
        return b"u", value.bytes
    if isinstance(value, bytes):
        return b"b", value
    if isinstance(value, dt.date) and not isinstance(value, dt.datetime):
        return b"d", value.isoformat().encode("ascii")
    raise ConfigurationError(
        f"A primary key of type {type(value).__name__} cannot identify an owner or a row; "
        "use an int, str, UUID, bytes or date."
    )


def encode_reference(parts: Iterable[object]) -> bytes:
    """Encode a primary key as `reference(parts)` of section 1.

    Integers encode alike, whatever their SQL width.

    Args:
        parts: the values of the primary key's columns, in the order of the table.

    Raises:
        ConfigurationError: a part is not an int, str, UUID, bytes or date.
    """
    encoded: list[bytes] = []
    for value in parts:
        if type(value) is int:  # as most primary keys; a row-bound column calls this for every row
            digits = b"%d" % value
            encoded.append(b"i" + len(digits).to_bytes(4, "big") + digits)
            continue
        if type(value) is uuid.UUID:  # as most other keys
            encoded.append(b"u\0\0\0\x10" + value.bytes)
            continue
        tag, data = _reference_part(value)
        encoded += (tag, len(data).to_bytes(4, "big"), data)
    return b"".join(encoded)


def owner_reference(label: str, primary_key: Iterable[object]) -> bytes:
    """Encode the owner that the owner's keys are bound to: `ctx("owner", label, reference)` of section 1.

    Args:
        label: the name of the owner's table, or the label that the class pins.
    """
    return encode_context("owner", label.encode("utf-8"), encode_reference(primary_key))
