"""Comparisons on an encrypted column, answered by its blind indexes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, LargeBinary, bindparam
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BindParameter, ClauseElement

from sqlalchemy_envelope.exceptions import StatementRefusedError
from sqlalchemy_envelope.orm.columns.encrypted_type import shown_operator
from sqlalchemy_envelope.orm.columns.previous import base_of, column_beside
from sqlalchemy_envelope.orm.indexes.among import among
from sqlalchemy_envelope.orm.indexes.candidates import is_certain, rechecked
from sqlalchemy_envelope.orm.indexes.indexed import indexes_on
from sqlalchemy_envelope.orm.indexes.kinds.equal import Equal
from sqlalchemy_envelope.orm.indexes.sought import Sought

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn
    from sqlalchemy_envelope.orm.indexes.kinds.kind import Wanted


def search(column: Any, op: Any, other: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """The expression on an index that answers a comparison on the column that it indexes; None for a column
    without an index.

    Raises:
        StatementRefusedError: no index of the column answers it.
    """
    base = base_of(column)
    indexes = () if base is None else indexes_on(base)
    if not indexes:
        return None
    operand: Any = other[0] if len(other) == 1 else other
    if hasattr(operand, "__clause_element__"):
        operand = operand.__clause_element__()  # an attribute of a mapped class
    if isinstance(operand, ColumnElement) and not isinstance(operand, BindParameter) and op is operators.eq:
        return _joined(column, indexes, operand)
    if isinstance(operand, ClauseElement):
        raise StatementRefusedError(
            f"{str(column)!r} is found by a blind index, which looks for values: compare it with values, and "
            "not with an SQL expression."
        )
    for index in indexes:
        wanted = None if not other else _answer(index, op, operand, options)
        if wanted is not None:
            return _condition(column, index, wanted)
    raise _refused(column, op, indexes)


def _answer(index: IndexedColumn, op: Any, operand: Any, options: dict[str, Any]) -> Wanted | None:
    try:
        return index.kind.answer(op, operand, options)
    except StatementRefusedError:
        raise
    except Exception:  # noqa: BLE001, S110 - raised below, chained to nothing that holds the value
        pass
    raise StatementRefusedError(
        f"{shown_operator(op)} on {index.label!r}: its operand, of the type {type(operand).__name__}, is no "
        "value of the column."
    )


def _condition(column: Any, index: IndexedColumn, wanted: Wanted) -> Any:
    wanted = rechecked(index, wanted)
    tags = column_beside(column, index.column)
    # Not `values`: the tags are made when the statement is sent, and the statement itself may be kept.
    given: Any = bindparam(
        None, callable_=Sought(index, wanted), expanding=True, unique=True, type_=LargeBinary()
    )
    return among(tags, given, negated=wanted.negated)


def _joined(column: Any, indexes: Sequence[IndexedColumn], other: Any) -> Any:
    """Equality with another column that has an index of the same label: equal values have equal tags."""
    base = base_of(other) if hasattr(other, "base_columns") else None
    for index in indexes:
        for same in () if base is None else indexes_on(base):
            if index.is_like(same) and is_certain(index) and isinstance(index.kind, Equal):
                return column_beside(column, index.column) == column_beside(other, same.column)
    return None  # as without an index: it is refused if it is sent


def _refused(column: Any, op: Any, indexes: Sequence[IndexedColumn]) -> StatementRefusedError:
    names = "; and ".join(f"{one.key}, {one.kind.answers.replace('<index>', one.key)}" for one in indexes)
    return StatementRefusedError(
        f"{shown_operator(op)} on the encrypted column {str(column)!r} is answered by no blind index. It has "
        f"{names}. Else load the rows and compare the decrypted values."
    )
