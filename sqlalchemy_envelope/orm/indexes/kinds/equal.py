"""The kind of index that finds equal values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.sql import operators

from sqlalchemy_envelope.orm.indexes.kinds.kind import Wanted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy_envelope.orm.columns.plans import EncryptedColumn

_ONE = {operators.eq: False, operators.ne: True}
_SOME = {operators.in_op: False, operators.not_in_op: True}
"""The operators that it answers, and whether they ask for all other values."""


class Equal:
    """Finds equal values: it hashes a value as it is encoded to be encrypted."""

    def __init__(self, source: EncryptedColumn) -> None:
        self._source = source
        self.form = f"exact {source.type.codec.tag}"

    def data(self, values: Sequence[Any]) -> bytes | None:
        """What is hashed of a value; None of None."""
        (value,) = values
        return None if value is None else self._source.encode_converted(value)

    def answer(self, op: Any, operand: Any, options: dict[str, Any]) -> Wanted | None:
        """Answer `==`, `!=`, `in_` and `not_in`."""
        if op in _ONE:
            return Wanted(self._wanted([operand]), _ONE[op])
        if op in _SOME:
            return Wanted(self._wanted(operand), _SOME[op])
        return None

    def _wanted(self, values: Sequence[Any]) -> tuple[bytes, ...]:
        convert = self._source.convert
        converted = values if convert is None else [convert(one) for one in values]
        return tuple(data for one in converted if (data := self.data([one])) is not None)
