"""The kind of index that finds rows by several values together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.crypto.context import encode_context
from sqlalchemy_envelope.orm.indexes.kinds.kind import Wanted
from sqlalchemy_envelope.orm.indexes.kinds.part import NO_ROW, Part

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy_envelope.orm.columns.plans import EncryptedColumn
    from sqlalchemy_envelope.orm.indexes.normalizers import Normalizer


class Compound:
    """Finds rows that are equal in several attributes. Only all of them together have a tag: a row with NULL
    in one of them has none."""

    rank = 2_000_000

    def __init__(self, sources: Sequence[EncryptedColumn], normalizers: Sequence[Normalizer | None]) -> None:
        self._parts = [Part(*one) for one in zip(sources, normalizers, strict=True)]
        self.form = f"compound [{', '.join(part.form for part in self._parts)}]"
        names = ", ".join(f"{one.key}=..." for one in sources)
        self.answers = f"for all together: `matches(<index>, {names})`"

    def data(self, values: Sequence[Any]) -> bytes | None:
        """What is hashed of a row's values; None if one of them is None."""
        datas = [part.data(value) for part, value in zip(self._parts, values, strict=True)]
        return None if None in datas else _joined(datas)

    def answer(self, op: Any, operand: Any, options: dict[str, Any]) -> Wanted | None:
        """A comparison of one attribute is not answered."""
        return None

    def match(self, values: Sequence[Any]) -> Wanted:
        """Look for rows with these values."""
        datas = [part.sought(value) for part, value in zip(self._parts, values, strict=True)]
        if None in datas:
            return Wanted(())
        return Wanted((NO_ROW if NO_ROW in datas else _joined(datas),))


def _joined(datas: Sequence[bytes | None]) -> bytes:
    """The values of the parts, so that ("ab", "c") and ("a", "bc") differ."""
    return encode_context("index-parts", *(one for one in datas if one is not None))
