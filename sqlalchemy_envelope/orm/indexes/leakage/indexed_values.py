"""Public values as an index takes them: values that it does not tell apart stand together."""

from __future__ import annotations

import enum
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy_envelope.orm.columns.plans import EncryptedColumn
    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn
    from sqlalchemy_envelope.orm.indexes.leakage.public_values import PublicValues

_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")


@dataclass(frozen=True)
class IndexedValues:
    """What an index hashes, the commonest first.

    Attributes:
        datas: what is hashed. Empty if only a written row tells, as of a compound index.
        shares: how often each occurs; together 1.
        named: of the rows with it, the share that has its commonest value.
        unfit: public values that have no tag: the column cannot hold them.
    """

    datas: tuple[bytes, ...]
    shares: tuple[float, ...]
    named: tuple[float, ...]
    unfit: int = 0


def indexed_values(index: IndexedColumn, public: PublicValues) -> IndexedValues:
    """What an index makes of public values."""
    source, *others = index.sources
    # A slow index would take long for each value.
    if others or getattr(index.type, "slow", False):
        return IndexedValues((), public.shares, (1.0,) * len(public))
    together: defaultdict[bytes, list[float]] = defaultdict(list)
    for value, share in zip(public.values, public.shares, strict=True):
        data = _data(index, source, value)
        if data is not None:
            together[data].append(share)
    found = sorted(together.items(), key=lambda one: -sum(one[1]))
    whole = sum(sum(shares) for _, shares in found)
    return IndexedValues(
        tuple(data for data, _ in found),
        tuple(sum(shares) / whole for _, shares in found),
        tuple(max(shares) / sum(shares) for _, shares in found),
        len(public) - sum(len(shares) for _, shares in found),
    )


def _data(index: IndexedColumn, source: EncryptedColumn, value: Any) -> bytes | None:
    """What the index hashes of a public value; None if the column cannot hold it."""
    try:
        fitting = _fitting(value, source.type.inner.python_type)
        return index.kind.data([fitting if source.convert is None else source.convert(fitting)])
    except Exception:  # noqa: BLE001 - whatever a codec or a normaliser says of a text that is no value
        return None


def _fitting(value: Any, python_type: type[Any]) -> Any:
    """A value of this type: public figures come from a file, and are text."""
    if isinstance(value, python_type) or not isinstance(value, str):
        return value
    if python_type is bool:
        return {**dict.fromkeys(_TRUE, True), **dict.fromkeys(_FALSE, False)}[value.lower()]
    if issubclass(python_type, enum.Enum):
        return python_type[value]
    read = getattr(python_type, "fromisoformat", python_type)
    return read(value)
