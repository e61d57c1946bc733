"""The kind of index that finds values by how they begin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.sql import operators

from sqlalchemy_envelope.orm.indexes.kinds.equal import listed
from sqlalchemy_envelope.orm.indexes.kinds.kind import Wanted
from sqlalchemy_envelope.orm.indexes.kinds.part import NO_ROW, Part
from sqlalchemy_envelope.orm.indexes.kinds.patterns import beginning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy_envelope.orm.columns.plans import EncryptedColumn
    from sqlalchemy_envelope.orm.indexes.normalizers import Normalizer

_STARTS = {
    operators.startswith_op: (False, False),
    operators.not_startswith_op: (True, False),
    operators.istartswith_op: (False, True),
    operators.not_istartswith_op: (True, True),
}
_LIKES = {
    operators.like_op: (False, False),
    operators.not_like_op: (True, False),
    operators.ilike_op: (False, True),
    operators.not_ilike_op: (True, True),
}
"""The operators that it answers: whether they ask for all other rows, and whether case makes no difference to
them."""


class Prefix:
    """Finds text by its first characters: it hashes that many of each value. A longer beginning, or a whole
    value, finds candidates.

    Args:
        length: the number of characters, after the normaliser.
    """

    def __init__(self, source: EncryptedColumn, normalizer: Normalizer | None, length: int) -> None:
        self._part = Part(source, normalizer)
        self._length = length
        self.form = f"prefix {length} of {self._part.form}"
        self.rank = 1_000_000 - length  # after those for whole values; the longest first
        self.answers = (
            f"for `startswith()` of at least {length} characters, with `autoescape=True` if they may hold % "
            "or _, and for `like('abc%')`"
        )

    def data(self, values: Sequence[Any]) -> bytes | None:
        """What is hashed of a value: its first characters; None of None."""
        (value,) = values
        return None if value is None else self._cut(self._part.text(value))

    def answer(self, op: Any, operand: Any, options: dict[str, Any]) -> Wanted | None:
        """Answer `startswith`, `like('abc%')` and their kin, and `==` and `in_` by candidates."""
        if op in (operators.eq, operators.in_op):
            return self._equal(listed(operand) if op is operators.in_op else [operand])
        pattern = op in _LIKES
        negated, caseless = _LIKES[op] if pattern else _STARTS.get(op, (False, False))
        if not (pattern or op in _STARTS) or (caseless and self._part.normalizer is None):
            return None
        start = beginning(operand, options.get("escape"), is_pattern=pattern)
        text = None if start is None else self._part.sought_text(start)
        if text is None or len(text) < self._length:
            return None
        if len(text) == self._length:
            return Wanted((self._cut(text),), negated)
        return None if negated else Wanted((self._cut(text),), check=lambda value: self._begins(value, text))

    def _equal(self, values: Sequence[Any]) -> Wanted:
        """Look for whole values: rows that begin alike are candidates."""
        part = self._part
        plain = [one for value in values if (one := part.converted(value)) is not None]
        texts = [part.sought_text(one) for one in plain]
        wanted = frozenset(texts) - {None}
        datas = tuple(NO_ROW if text is None else self._cut(text) for text in texts)
        return Wanted(datas, check=lambda value: self._text(value) in wanted)

    def _begins(self, value: Any, start: str) -> bool:
        text = self._text(value)
        return text is not None and text.startswith(start)

    def _text(self, value: Any) -> str | None:
        """The text of a decrypted value."""
        value = self._part.converted(value)
        return None if value is None else self._part.sought_text(value)

    def _cut(self, text: str) -> bytes:
        return text[: self._length].encode("utf-8")
