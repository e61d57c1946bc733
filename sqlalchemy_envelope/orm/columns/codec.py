"""Codecs: how the values of one type become bytes, and bytes values."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Codec:
    """How one type's values become bytes. Errors of `encode` and `decode` may hold the value, and never leave
    `orm`.

    Attributes:
        convert: what a `TypeDecorator` makes of a value before it is encoded. A None that it makes is stored
            as NULL. None if there is no conversion.
        encode_converted: the bytes of a converted value.
        read_null: what a `TypeDecorator` makes of NULL; None if there is no conversion.
    """

    tag: str
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]
    convert: Callable[[Any], Any] | None = None
    encode_converted: Callable[[Any], bytes] | None = None
    read_null: Callable[[], Any] | None = None


def refused(value: object, wanted: str) -> TypeError:
    """The error for a value of another type than the column takes. It does not show the value."""
    return TypeError(f"expected {wanted}, not {type(value).__name__}")


def canonical(encode: Callable[[Any], bytes], decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """`decode`, restricted to the bytes that `encode` makes: Python's parsers read many spellings of one
    value."""

    def strict(data: bytes) -> Any:
        value = decode(data)
        if encode(value) != data:
            raise ValueError("not the canonical bytes of this value")
        return value

    return strict
