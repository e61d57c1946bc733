"""Patterns of LIKE: what they look for, where an index can tell."""

from __future__ import annotations

from typing import Any


def beginning(pattern: Any, escape: str | None, *, is_pattern: bool) -> str | None:
    """The text that a value has to begin with, for `LIKE 'abc%'` or `startswith('abc')`; None if the pattern
    asks for anything else.

    Databases disagree about a backslash: PostgreSQL takes what follows it literally, and SQLite does not. So
    a pattern with one is understood only if it says what escapes.

    Args:
        escape: the character that makes the next one literal.
        is_pattern: whether it is a whole pattern, which ends with `%`.
    """
    if not isinstance(pattern, str):
        raise TypeError("a pattern is text")
    if (escape is None and "\\" in pattern) or (escape is not None and len(escape) != 1):
        return None
    literal: list[str] = []
    characters = iter(pattern)
    for one in characters:
        if one == escape:
            following = next(characters, None)
            if following is None:
                return None
            literal.append(following)
        elif one in "%_":
            # Nothing may follow but the same again: `abc%%` is `abc%`.
            is_end = is_pattern and one == "%" and not set(characters) - {"%"}
            return "".join(literal) if is_end else None
        else:
            literal.append(one)
    return None if is_pattern else "".join(literal)
