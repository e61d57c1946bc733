"""The comparisons of texts that a token index may answer, each as the pattern that a text has to have."""

from __future__ import annotations

import re
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from sqlalchemy.sql import operators

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

NEGATED = {
    operators.not_contains_op: operators.contains_op,
    operators.not_icontains_op: operators.icontains_op,
    operators.not_startswith_op: operators.startswith_op,
    operators.not_istartswith_op: operators.istartswith_op,
    operators.not_endswith_op: operators.endswith_op,
    operators.not_iendswith_op: operators.iendswith_op,
    operators.not_like_op: operators.like_op,
    operators.not_ilike_op: operators.ilike_op,
}
"""By an operator that asks for all other rows, the operator that it negates."""

_AROUND = {
    operators.contains_op: ("%", "%"),
    operators.icontains_op: ("%", "%"),
    operators.startswith_op: ("", "%"),
    operators.istartswith_op: ("", "%"),
    operators.endswith_op: ("%", ""),
    operators.iendswith_op: ("%", ""),
    operators.like_op: ("", ""),
    operators.ilike_op: ("", ""),
}
_FOLDING = (operators.icontains_op, operators.istartswith_op, operators.iendswith_op, operators.ilike_op)
TEXT_OPERATORS = frozenset((*_AROUND, *NEGATED))
"""The operators that compare a text with a pattern."""


class Pattern(NamedTuple):
    """The pattern of LIKE, taken apart.

    Attributes:
        parts: texts between the wildcards, in order, and "%" and "_" as True and False.
        folds: whether upper and lower case are the same.
    """

    parts: tuple[str | bool, ...]
    folds: bool

    @property
    def texts(self) -> list[str]:
        """The texts between the wildcards."""
        return [part for part in self.parts if isinstance(part, str)]

    def regex(self) -> re.Pattern[str]:
        """What a text is compared with; a folded text, if the pattern folds."""
        found = [re.escape(part) if isinstance(part, str) else (".*" if part else ".") for part in self.parts]
        return re.compile("".join(found), re.DOTALL)

    def folded(self) -> Pattern:
        """The same pattern in folded case."""
        parts = [fold(part) if isinstance(part, str) else part for part in self.parts]
        return Pattern(tuple(parts), folds=True)


def fold(text: str) -> str:
    """A text without the difference of upper and lower case. The fold of two texts after another is that of
    the whole, so a part of a text stays a part."""
    return text.casefold()


def pattern_of(op: Any, operand: Any, options: dict[str, Any]) -> Pattern | None:
    """The pattern of a comparison; None if the operator has none.

    Raises:
        TypeError: the operand is no text.
    """
    around = _AROUND.get(op)
    if around is None:
        return None
    if not isinstance(operand, str):
        raise TypeError("a pattern is a text")
    before, after = around
    if options.get("autoescape"):
        parts: tuple[str | bool, ...] = (operand,) if operand else ()
    else:
        parts = tuple(_parts(operand, options.get("escape")))
    first: tuple[bool, ...] = (True,) if before else ()
    last: tuple[bool, ...] = (True,) if after else ()
    return Pattern(tuple(_joined((*first, *parts, *last))), op in _FOLDING)


def _parts(pattern: str, escape: str | None) -> Iterator[str | bool]:
    characters = iter(pattern)
    for character in characters:
        if character == escape:
            yield next(characters, character)
        elif character in "%_":
            yield character == "%"
        else:
            yield character


def _joined(parts: Iterable[str | bool]) -> Iterator[str | bool]:
    """Put the characters of a text together, and "%" that follow each other."""
    for part, same in groupby(parts, key=lambda one: "" if isinstance(one, str) else one):
        if part == "":
            yield "".join(cast("Iterable[str]", same))
        elif part is True:
            yield True
        else:
            yield from same
