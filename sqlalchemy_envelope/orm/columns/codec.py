"""A codec: how the values of one type become bytes, and bytes values."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Codec:
    """How one type's values become bytes. What `encode` and `decode` raise may hold the value
    and never leaves `orm`.

    Attributes:
        convert: what a `TypeDecorator` makes of a value before it is encoded, and of None, which is stored as
            NULL if it stays None; None without a conversion.
        encode_converted: the bytes of a value that was converted.
        read_null: what a `TypeDecorator` makes of NULL; None without a conversion.
    """

    tag: str
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]
    convert: Callable[[Any], Any] | None = None
    encode_converted: Callable[[Any], bytes] | None = None
    read_null: Callable[[], Any] | None = None


def refused(value: object, wanted: str) -> TypeError:
    """The error for a value of another type than is wanted. It does not show the value."""
    return TypeError(f"expected {wanted}, not {type(value).__name__}")


def canonical(encode: Callable[[Any], bytes], decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """`decode`, for bytes that `encode` makes: Python's parsers read many spellings of one value."""

    def strict(data: bytes) -> Any:
        value = decode(data)
        if encode(value) != data:
            raise ValueError("not the canonical bytes of this value")
        return value

    return strict
