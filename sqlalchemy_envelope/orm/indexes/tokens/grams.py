"""`Grams`: a text is found by any part of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.indexes.tokens.operators import fold, pattern_of
from sqlalchemy_envelope.orm.indexes.tokens.token_set import NotAnsweredError, WantedTokens

if TYPE_CHECKING:
    from collections.abc import Collection

_SHORTEST, _LONGEST = 2, 32
_MOST = 16
"""The most tokens that a comparison looks for. More would leave out hardly a row."""


class Grams:
    """Finds a text by any part of it that has so many characters: `contains`, `startswith`, `endswith` and
    `like`, in upper and lower case as they are written; or `icontains` and its like.

    The parts of a text overlap, and each is a token. A longer operand finds candidates, texts that have all
    its parts somewhere.

    What it tells somebody who has the database: much more than words do. How often each part of three
    letters occurs is known of every language, and texts can be put together again from that. Take it for
    short values that are no text, such as part numbers.

    Args:
        size: the characters of a part, from 2 to 32. A shorter operand is refused.
        fold: whether upper and lower case are the same to the index.

    Raises:
        ConfigurationError: the size is out of range.
    """

    operators = "`.contains()`, `.startswith()`, `.endswith()` and `.like()`"

    def __init__(self, size: int = 3, *, fold: bool = False) -> None:
        if not isinstance(size, int) or not _SHORTEST <= size <= _LONGEST:
            raise ConfigurationError(f"Grams({size!r}): a number from {_SHORTEST} to {_LONGEST}.")
        self._size = size
        self._folds = fold
        self.form = f"grams {size}{' folded' if fold else ''}"
        if fold:
            self.operators = "`.contains()`, `.icontains()`, `.like()`, `.ilike()` and so on"

    def tokens(self, text: str) -> Collection[str]:
        """The different parts of a text."""
        text = fold(text) if self._folds else text
        return {text[at : at + self._size] for at in range(len(text) - self._size + 1)}

    def answer(self, op: Any, operand: Any, options: dict[str, Any]) -> WantedTokens | None:
        """Answer the operators of patterns."""
        pattern = pattern_of(op, operand, options)
        if pattern is None or (pattern.folds and not self._folds):
            return None
        sought = pattern.folded() if pattern.folds else pattern
        parts = [token for text in sought.texts for token in sorted(self.tokens(text))]
        if not parts:
            raise NotAnsweredError(f"it has parts of {self._size} characters, and the operand is shorter")
        is_exact = sought.parts == (True, parts[0], True) and pattern.folds is self._folds
        if is_exact:
            return WantedTokens((parts[0],))
        regex = sought.regex()
        check = (lambda text: regex.fullmatch(fold(text))) if pattern.folds else regex.fullmatch
        return WantedTokens(tuple(dict.fromkeys(parts))[:_MOST], lambda text: check(text) is not None)

    def __repr__(self) -> str:
        return f"Grams({self._size}{', fold=True' if self._folds else ''})"
