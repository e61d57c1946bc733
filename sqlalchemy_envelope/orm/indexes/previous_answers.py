"""Comparisons while values are moved into an encrypted column: the previous column has them all, and answers.

Under the policy "both" the blind index is being filled. From "read" on it is whole, and answers itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BindParameter, ClauseElement
from sqlalchemy.types import TypeDecorator

from sqlalchemy_envelope.exceptions import StatementRefusedError
from sqlalchemy_envelope.orm.columns.encrypted_type import shown_operator
from sqlalchemy_envelope.orm.columns.previous import previous_of
from sqlalchemy_envelope.orm.indexes.kinds.equal import Equal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn

_ANSWERED = (operators.eq, operators.ne, operators.in_op, operators.not_in_op)


def by_previous(
    column: Any, indexes: Sequence[IndexedColumn], op: Any, other: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    """The comparison on the previous column.

    Raises:
        StatementRefusedError: the previous column answers otherwise than the index will.
    """
    previous = previous_of(column)
    exact = any(type(one.kind) is Equal and one.type.normalize is None for one in indexes)
    values = not any(isinstance(one, ClauseElement) and not isinstance(one, BindParameter) for one in other)
    plain = not isinstance(getattr(previous, "type", None), TypeDecorator)
    if previous is not None and exact and plain and values and op in _ANSWERED:
        return previous.operate(op, *other, **options)
    name = "its previous column" if previous is None else f"{previous.table.name}.{previous.name}"
    raise StatementRefusedError(
        f"{shown_operator(op)} on {str(column)!r}: its values are being moved, and its blind index does not "
        f"have all of them yet. Under the policy 'both', compare {name} in SQL; from the policy 'read' on, "
        "the index answers."
    )
