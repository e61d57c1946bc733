"""The tag of a value: on its way to the database, where an index takes nothing else, and as it is read."""

from __future__ import annotations

from typing import Any

TAG: Any = object()
"""The mark of a pair (TAG, bytes)."""


def marked(tag: bytes) -> tuple[Any, bytes]:
    """A tag that the library made."""
    return TAG, tag


class StoredTag(bytes):
    """A tag as it was read. A relationship looks for rows that have it: it is a value in a condition, where
    other bytes are refused. A statement that writes it is refused with every other value for an index."""

    __slots__ = ()
