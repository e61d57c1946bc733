"""The mark of a statement whose values were encrypted, or compared, in the statement hook.

It is an annotation, and so a part of SQLAlchemy's cache key: a compiled form is shared by marked statements,
or by unmarked ones, never by both. What is found out about a compiled form holds for each of its executions.
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
    """The same for a statement that is executed as it came. The copy is kept beside it: it has its cache key,
    and SQLAlchemy takes longer to make a key than to send a row."""
    kept = statement.__dict__.get(_KEPT)
    # SQLAlchemy drops what it memoized from whatever is built on a statement; an annotated copy keeps it.
    if kept is None or kept[0] is not statement:
        kept = statement, mark(statement)
        statement._set_memoized_attribute(_KEPT, kept)
    return kept[1]


def is_marked(statement: Any) -> bool:
    """Whether the statement hook has seen this very statement."""
    return _MARK in statement._annotations
