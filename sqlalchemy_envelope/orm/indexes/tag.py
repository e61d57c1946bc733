"""The tag of a value on its way to the database: the only thing that a blind index takes."""

from __future__ import annotations

from typing import Any

TAG: Any = object()
"""The mark of a pair (TAG, bytes)."""


def marked(tag: bytes) -> tuple[Any, bytes]:
    """A tag that the library made."""
    return TAG, tag
