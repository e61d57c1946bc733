"""Who answers a comparison on an encrypted column: the blind indexes, which are declared above this room."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Search = Callable[[Any, Any, tuple[Any, ...], dict[str, Any]], Any]

_searches: list[Search] = []


def has_word_op(column: Any, word: str) -> Any:
    """The operator of `has_word`."""
    return column.has_word(word)


def has_words_op(column: Any, text: str) -> Any:
    """The operator of `has_words`."""
    return column.has_words(text)


def answer_by(search: Search, *, first: bool = False) -> None:
    """Ask this function for the expression that answers a comparison.

    Args:
        first: whether to ask it before the others.
        search: takes the column, the operator, the operands, and the operator's options. It returns None
            for a column without an index, and raises StatementRefusedError if no index of the column
            answers the operator.
    """
    if search not in _searches:
        _searches.insert(0 if first else len(_searches), search)


def answered(column: Any, op: Any, other: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """The expression that answers a comparison on an encrypted column; None if nothing does.

    Raises:
        StatementRefusedError: the column has an index, and none that answers this.
    """
    for search in _searches:
        found = search(column, op, other, options)
        if found is not None:
            return found
    return None
