"""A kind of blind index: what it hashes of a value, and which comparisons it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True)
class Wanted:
    """What a comparison looks for in an index.

    Attributes:
        datas: what is hashed. A row is found if its tag is that of one of them.
        negated: whether all other rows are asked for.
        check: tells of a decrypted value whether the comparison is true of it; of an index over several
            attributes it takes their values. None if a tag alone tells.
        has_null: whether None is among the operands. SQL compares NULL with nothing: no row is in such a
            list, and none is outside of it.
        is_empty: whether the operand is an empty list: every row is outside of it, those with NULL included.
    """

    datas: tuple[bytes, ...] = field(repr=False)
    negated: bool = False
    check: Callable[..., bool] | None = field(default=None, repr=False)
    has_null: bool = False
    is_empty: bool = False


class Kind(Protocol):
    """What an index makes of values. Errors of its methods may hold a value: they never leave `orm`.

    Attributes:
        form: its name, bound into every tag. An index with another form has other tags.
        rank: its place among the indexes of a column: the first that answers a comparison is asked.
        answers: the comparisons that it answers, for a message.
    """

    form: str
    rank: int
    answers: str

    def data(self, values: Sequence[Any]) -> bytes | None:
        """What is hashed of a row's values, which their inner types have converted; None for no tag."""
        ...

    def answer(self, op: Any, operand: Any, options: dict[str, Any]) -> Wanted | None:
        """What to look for, for `attribute <op> operand`; None if this kind does not answer the operator."""
        ...
