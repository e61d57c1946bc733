"""The condition that a column has one of the values of a parameter, made without a detour.

`column.in_(parameter)` makes the same expression, and takes 12 µs for it where this takes 3: it looks at what
it is given first, and copies the parameter. A look-up by a blind index takes about 150 µs in all, so that
this shows. A test compares the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Boolean
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BinaryExpression

if TYPE_CHECKING:
    from sqlalchemy.sql.elements import BindParameter

_BOOLEAN = Boolean()


def among(column: Any, parameter: BindParameter[Any], *, negated: bool = False) -> Any:
    """`column.in_(parameter)`, or `column.not_in(parameter)`.

    Args:
        parameter: an expanding parameter that stands in no other expression.
    """
    is_in: Any = operators.in_op
    op, other = (operators.not_in_op, is_in) if negated else (is_in, operators.not_in_op)
    given: Any = parameter
    given.expand_op = op
    return BinaryExpression(column, given, op, type_=_BOOLEAN, negate=other)
