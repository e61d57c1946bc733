"""`Words`: a text is found by the words in it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.columns.searching import has_word_op, has_words_op
from sqlalchemy_envelope.orm.indexes.tokens.token_set import NotAnsweredError, WantedTokens
from sqlalchemy_envelope.words import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

_WORD = re.compile(r"\w+")


def _words_v1(text: str) -> Iterable[str]:
    """Letters, digits and "_" that stand together, without upper case and without forms of one character."""
    return _WORD.findall(normalize("NFKC", normalize("NFKC", text).casefold()))


_splitters: dict[str, Callable[[str], Iterable[str]]] = {"words-v1": _words_v1}


def register_splitter(name: str, split: Callable[[str], Iterable[str]]) -> None:
    """Name a function that takes texts apart, for `Words(name)`.

    What it makes of a text must stay as it is: a changed function gets another name, "german-v2" for example,
    and its index is filled again.

    Raises:
        ConfigurationError: another function has the name.
    """
    if _splitters.setdefault(name, split) is not split:
        raise ConfigurationError(
            f"register_splitter({name!r}): another function has that name. Raise its version."
        )


class Words:
    """Finds a text by whole words, `has_word` and `has_words`.

    What it tells somebody who has the database: how many different words each text has, which texts have a
    word in common, and how frequent each word is. Frequent words are told by their frequency.

    Args:
        split: the name of the function that takes a text apart. "words-v1": letters, digits and "_" that
            stand together are a word, and upper case does not count.

    Raises:
        ConfigurationError: no function has the name.
    """

    operators = "`.has_word()` and `.has_words()`"

    def __init__(self, split: str = "words-v1") -> None:
        if split not in _splitters:
            raise ConfigurationError(
                f"Words({split!r}): no function has that name. Call `register_splitter({split!r}, ...)` "
                f"first; there are {', '.join(sorted(_splitters))}."
            )
        self._name = split
        self._split = _splitters[split]
        self.form = f"words {split}"

    def tokens(self, text: str) -> Collection[str]:
        """The different words of a text."""
        return set(filter(None, self._split(text)))

    def answer(self, op: Any, operand: Any, options: dict[str, Any]) -> WantedTokens | None:
        """Answer `has_word` and `has_words`."""
        if op not in (has_word_op, has_words_op):
            return None
        if not isinstance(operand, str):
            raise TypeError("a word is a text")
        words = self.tokens(operand)
        if op is has_word_op and len(words) != 1:
            raise NotAnsweredError(
                f"its operand is {counted(len(words), 'word')}. `.has_words()` asks for all words of a text"
            )
        if not words:
            raise NotAnsweredError("its operand has no word")
        return WantedTokens(tuple(sorted(words)))

    def __repr__(self) -> str:
        return f"Words({self._name!r})"
