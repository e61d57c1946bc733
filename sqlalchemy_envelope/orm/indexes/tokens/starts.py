"""`Starts`: a text is found by its beginning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.indexes.tokens.operators import fold, pattern_of
from sqlalchemy_envelope.orm.indexes.tokens.token_set import NotAnsweredError, WantedTokens

if TYPE_CHECKING:
    from collections.abc import Collection

_LONGEST = 64


class Starts:
    """Finds a text by its beginning, as somebody types it: `startswith`, `like("ab%")`; with `fold`,
    `istartswith` and `ilike("ab%")`.

    Every beginning of the text is a token. An operand that is longer than the longest token finds candidates.

    What it tells somebody who has the database: which texts begin alike, how far, and how long short texts
    are.

    Args:
        shortest: the characters of the shortest beginning that is found.
        longest: those of the longest that is found by its token alone, at most 64.
        fold: whether upper and lower case are the same to the index.

    Raises:
        ConfigurationError: a number is out of range.
    """

    operators = "`.startswith()` and `.like('...%')`"

    def __init__(self, shortest: int = 1, longest: int = 12, *, fold: bool = False) -> None:
        if (
            not all(isinstance(one, int) for one in (shortest, longest))
            or not 1 <= shortest <= longest <= _LONGEST
        ):
            raise ConfigurationError(
                f"Starts({shortest!r}, {longest!r}): two numbers from 1 to {_LONGEST}, the smaller one first."
            )
        self._shortest = shortest
        self._longest = longest
        self._folds = fold
        self.form = f"starts {shortest} {longest}{' folded' if fold else ''}"
        if fold:
            self.operators = "`.startswith()`, `.istartswith()`, `.like('...%')` and `.ilike('...%')`"

    def tokens(self, text: str) -> Collection[str]:
        """The beginnings of a text."""
        text = fold(text) if self._folds else text
        return {text[:end] for end in range(self._shortest, min(self._longest, len(text)) + 1)}

    def answer(self, op: Any, operand: Any, options: dict[str, Any]) -> WantedTokens | None:
        """Answer the operators of patterns that begin with a text."""
        pattern = pattern_of(op, operand, options)
        if pattern is None or (pattern.folds and not self._folds):
            return None
        sought = pattern.folded() if self._folds else pattern
        if not sought.parts or not isinstance(sought.parts[0], str) or len(sought.parts[0]) < self._shortest:
            raise NotAnsweredError(f"it finds a beginning of {self._shortest} characters or more")
        begin = sought.parts[0]
        token = begin[: self._longest]
        if token == begin and sought.parts[1:] == (True,) and pattern.folds is self._folds:
            return WantedTokens((token,))
        regex = (sought if pattern.folds else pattern).regex()
        if pattern.folds:
            return WantedTokens((token,), lambda text: regex.fullmatch(fold(text)) is not None)
        return WantedTokens((token,), lambda text: regex.fullmatch(text) is not None)

    def __repr__(self) -> str:
        return f"Starts({self._shortest}, {self._longest}{', fold=True' if self._folds else ''})"
