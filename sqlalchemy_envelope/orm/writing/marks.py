"""The mark of a statement that the statement hook has seen: its values are encrypted, or compared with what
is stored.

The mark is an annotation, and so a part of SQLAlchemy's cache key: marked statements share a compiled form,
and unmarked statements another. What the gate finds out about a compiled form holds for each of its
executions.
"""

from __future__ import annotations

from typing import Any

_MARK = "sqlalchemy_envelope"
_KEPT = "_sqlalchemy_envelope_marked"
_MARKS = {_MARK: True}


def mark(statement: Any) -> Any:
    """A copy of the statement that carries the mark."""
    return statement._annotate(_MARKS)


def mark_lasting(statement: Any) -> Any:
    """The same for a statement that is sent as it came. The marked copy is kept on the statement, with its
    cache key: SQLAlchemy takes longer to make a key than to send a row."""
    kept = statement.__dict__.get(_KEPT)
    # A statement that is built on this one does not inherit the copy; an annotated copy of it does.
    if kept is None or kept[0] is not statement:
        kept = statement, mark(statement)
        statement._set_memoized_attribute(_KEPT, kept)
    return kept[1]


def is_marked(statement: Any) -> bool:
    """Whether the statement hook has seen this very statement."""
    return _MARK in statement._annotations
