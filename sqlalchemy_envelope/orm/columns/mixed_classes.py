"""SQLAlchemy's classes with a few methods of ours in front, for single objects of a mapping: the attribute
and the property of an encrypted column."""

from __future__ import annotations

from typing import Any

_mixed: dict[tuple[type, type], type] = {}
"""For each mixin and class, the class made from both."""


def mix_in(mixin: type, thing: Any, name: str, **own: Any) -> None:
    """Give an object a class with a mixin's methods before the methods of its own class. Once is enough.

    Args:
        name: the name of the new class.
        own: attributes of the new class.
    """
    base = type(thing)
    if issubclass(base, mixin):
        return
    if (mixin, base) not in _mixed:
        _mixed[mixin, base] = type(name, (mixin, base), {"__slots__": (), **own})
    thing.__class__ = _mixed[mixin, base]
