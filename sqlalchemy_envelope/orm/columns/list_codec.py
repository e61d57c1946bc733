"""The codec of lists: a count, then each item with its kind and its size (wire format, section 6)."""

import struct
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import types as sa

from sqlalchemy_envelope.orm.columns.codec import Codec, refused

_COUNT = struct.Struct(">I")
MAX_LIST_DEPTH = 8
"""The greatest depth of nested lists. PostgreSQL has six dimensions."""


def list_codec(inner: sa.ARRAY[Any], item: Codec) -> Codec:
    """The codec of an ARRAY, made of the codec of its items."""
    flat = inner.dimensions == 1
    collect: Callable[[list[Any]], Any] = tuple if inner.as_tuple else list
    encode_item, convert, read_null = item.encode_converted or item.encode, item.convert, item.read_null
    # The result of a user's conversion of an item does not tell the original item.
    reversible = convert is None and read_null is None

    def encode(value: Any, depth: int = 1) -> bytes:
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes, bytearray, memoryview)):
            raise refused(value, "list")
        if depth > MAX_LIST_DEPTH:
            raise ValueError("too many lists inside each other")
        parts = [_COUNT.pack(len(value))]
        for one in value:
            nested = not flat and isinstance(one, (list, tuple))
            given = one if nested or convert is None else convert(one)
            if given is None or (given is sa.JSON.NULL and item.tag == "json"):
                parts.append(b"\0")
                continue
            data = encode(given, depth + 1) if nested else encode_item(given)
            parts += (b"\2" if nested else b"\1", _COUNT.pack(len(data)), data)
        return b"".join(parts)

    def read(view: memoryview, position: int, end: int, depth: int) -> Any:
        """The list between two positions. Only items are copied, whatever the depth."""
        if depth > MAX_LIST_DEPTH:
            raise ValueError("too many lists inside each other")
        count, position = _read_count(view, position, end)
        values: list[Any] = []
        for _ in range(count):
            if position == end:
                raise ValueError("fewer items than were counted")
            kind, position = view[position], position + 1
            if kind == 0:
                values.append(None if read_null is None else read_null())
                continue
            if kind > 2 or (kind == 2 and flat):
                raise ValueError("no such kind of list item")
            size, position = _read_count(view, position, end)
            if size > end - position:
                raise ValueError("a list item is cut short")
            if kind == 2:
                values.append(read(view, position, position + size, depth + 1))
            else:
                values.append(read_item(view[position : position + size].tobytes()))
            position += size
        if position != end:
            raise ValueError("bytes follow the last item")
        return collect(values)

    def read_item(data: bytes) -> Any:
        one = item.decode(data)
        if reversible and (one is None or (not flat and isinstance(one, (list, tuple)))):
            raise ValueError("not the canonical bytes of this item")
        return one

    return Codec(f"list:{item.tag}", encode, lambda data: read(memoryview(data), 0, len(data), 1))


def _read_count(view: memoryview, position: int, end: int) -> tuple[int, int]:
    """A number of four bytes, and the position after it."""
    if end - position < _COUNT.size:
        raise ValueError("a list is cut short")
    return _COUNT.unpack_from(view, position)[0], position + _COUNT.size
