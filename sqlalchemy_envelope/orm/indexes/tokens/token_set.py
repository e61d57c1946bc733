"""A kind of token index: which tokens it makes of a text, and which comparisons it answers by them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection


class NotAnsweredError(Exception):
    """A token index has no answer for an operand. The text says why, and never has the operand in it."""


@dataclass(frozen=True)
class WantedTokens:
    """What a comparison looks for in a token index.

    Attributes:
        tokens: a row is found if it has all of them.
        check: tells of a decrypted text whether the comparison is true of it. None if the tokens alone tell.
    """

    tokens: tuple[str, ...] = field(repr=False)
    check: Callable[[str], bool] | None = field(default=None, repr=False)


class TokenSet(Protocol):
    """Takes texts apart.

    Attributes:
        form: its name, bound into every tag. An index with another form has other tags.
        operators: the comparisons that it answers, as an application writes them.
    """

    form: str
    operators: str

    def tokens(self, text: str) -> Collection[str]:
        """The different tokens of a text. None of them is empty."""
        ...

    def answer(self, op: Any, operand: Any, options: dict[str, Any]) -> WantedTokens | None:
        """What to look for, for `attribute <op> operand`; None if the index never answers the operator.

        Raises:
            NotAnsweredError: it does not answer the operator for this operand.
        """
        ...
