"""The kind of index that finds equal values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.sql import operators

from sqlalchemy_envelope.orm.indexes.kinds.kind import Wanted
from sqlalchemy_envelope.orm.indexes.kinds.part import Part

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy_envelope.orm.columns.plans import EncryptedColumn
    from sqlalchemy_envelope.orm.indexes.normalizers import Normalizer

_ONE = {operators.eq: False, operators.ne: True}
_SOME = {operators.in_op: False, operators.not_in_op: True}
"""The operators that it answers, and whether they ask for all other values."""


class Equal:
    """Finds equal values: it hashes a value as it is encoded, in one form for equal values."""

    rank = 0
    answers = "for `==`, `!=`, `in_()` and `not_in()`"

    def __init__(self, source: EncryptedColumn, normalizer: Normalizer | None = None) -> None:
        self._part = Part(source, normalizer)
        self._encode = self._part.encode if normalizer is None else self._part.data
        self.form = self._part.form

    def data(self, values: Sequence[Any]) -> bytes | None:
        """What is hashed of a value; None of None."""
        (value,) = values
        return None if value is None else self._encode(value)

    def answer(self, op: Any, operand: Any, options: dict[str, Any]) -> Wanted | None:
        """Answer `==`, `!=`, `in_` and `not_in`."""
        if op in _ONE:
            return Wanted(self._wanted([operand]), _ONE[op])
        if op in _SOME:
            return Wanted(self._wanted(listed(operand)), _SOME[op])
        return None

    def _wanted(self, values: Sequence[Any]) -> tuple[bytes, ...]:
        return tuple(data for one in values if (data := self._part.sought(one)) is not None)


class Normalized(Equal):
    """Finds values that are equal by a normaliser: it hashes the text that the normaliser makes of a
    value."""

    rank = 1


def listed(operand: Any) -> list[Any]:
    """The values of `in_()`. A text is none."""
    if isinstance(operand, (str, bytes, bytearray, memoryview)):
        raise TypeError("a text is no list of values")
    return list(operand)
