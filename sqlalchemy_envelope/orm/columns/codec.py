"""Codecs: they turn the values of a type into bytes, and the bytes into values."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Codec:
    """Turns the values of a type into bytes and back. Errors of `encode` and `decode` may hold the value, so
    they never leave `orm`.

    Attributes:
        convert: the conversion of a `TypeDecorator` before a value is encoded. If it returns None, NULL is
            stored. None if there is no conversion.
        encode_converted: returns the bytes of a converted value.
        read_null: returns the value that a `TypeDecorator` reads for NULL; None if there is no conversion.
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
