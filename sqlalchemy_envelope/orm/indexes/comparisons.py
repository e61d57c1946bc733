"""Comparisons on an encrypted column, answered by its blind indexes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import Boolean, ColumnElement, LargeBinary, and_, bindparam, or_
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BindParameter, BooleanClauseList, ClauseElement
from sqlalchemy.sql.lambdas import PyWrapper

from sqlalchemy_envelope.crypto.blind_index import FULL_BITS
from sqlalchemy_envelope.exceptions import StatementRefusedError
from sqlalchemy_envelope.orm.columns.encrypted_type import shown_operator
from sqlalchemy_envelope.orm.columns.previous import base_of, column_beside, policy_of_column
from sqlalchemy_envelope.orm.indexes.among import among
from sqlalchemy_envelope.orm.indexes.candidates import is_certain, names_of, rechecked
from sqlalchemy_envelope.orm.indexes.given import SoughtParameter, given
from sqlalchemy_envelope.orm.indexes.guards import guard_beside
from sqlalchemy_envelope.orm.indexes.indexed import indexes_on
from sqlalchemy_envelope.orm.indexes.kinds.kind import Wanted
from sqlalchemy_envelope.orm.indexes.owner_conditions import ComparedTags, FoundRows
from sqlalchemy_envelope.orm.indexes.previous_answers import by_previous
from sqlalchemy_envelope.orm.indexes.sought import Rotating, Sought, Steady

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy_envelope.orm.indexes.executing import Execution
    from sqlalchemy_envelope.orm.indexes.given import Given
    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn

_LISTS = (operators.in_op, operators.not_in_op)
_TAGS = LargeBinary()
_VALUES = (operators.eq, operators.ne, *_LISTS)


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
    if not isinstance(operand, PyWrapper) and hasattr(operand, "__clause_element__"):
        operand = operand.__clause_element__()  # an attribute of a mapped class
    if policy_of_column(base) == "both":
        return by_previous(column, indexes, op, (operand,) if len(other) == 1 else other, options)
    if isinstance(operand, ColumnElement) and not isinstance(operand, BindParameter) and op is operators.eq:
        return _joined(column, indexes, operand)
    later = given(operand)
    if later is not None:
        return _condition_later(column, op, indexes, later)
    if _is_expression(operand):
        raise StatementRefusedError(
            f"{str(column)!r} is found by a blind index, which looks for values: compare it with values, and "
            "not with an SQL expression."
        )
    for index in indexes:
        wanted = None if not other else _answer(index, op, operand, options)
        if wanted is not None:
            return _condition(column, index, wanted)
    raise _refused(column, op, indexes)


def _is_expression(operand: Any) -> bool:
    if isinstance(operand, (list, tuple, set, frozenset)):
        return any(isinstance(one, ClauseElement) or hasattr(one, "__clause_element__") for one in operand)
    return isinstance(operand, ClauseElement)


def _answer(index: IndexedColumn, op: Any, operand: Any, options: dict[str, Any]) -> Wanted | None:
    try:
        values = operand
        if op in _LISTS:
            values = None if isinstance(operand, (str, bytes)) else list(operand)
        wanted = index.kind.answer(op, values, options)
        return wanted if wanted is None else _with_nulls(wanted, op, values)
    except StatementRefusedError:
        raise
    except Exception:  # noqa: BLE001, S110 - raised below, chained to nothing that holds the value
        pass
    raise StatementRefusedError(
        f"{shown_operator(op)} on {names_of(index)[0]}, which is found by {index.label!r}: its operand, of "
        f"the type {type(operand).__name__}, is no value of the attribute."
    )


def _with_nulls(wanted: Wanted, op: Any, operand: Any) -> Wanted:
    """Say of an operand whether it is None, or has None in it, also by its inner type."""
    if op in _LISTS:
        if operand and len(wanted.datas) == len(operand):
            return wanted
        return replace(wanted, has_null=len(wanted.datas) < len(operand), is_empty=not operand)
    return replace(wanted, has_null=True) if op in _VALUES and not wanted.datas else wanted


def _condition(column: Any, index: IndexedColumn, wanted: Wanted) -> Any:
    wanted = rechecked(index, wanted)
    return _among(column, Sought(index, wanted), (), negated=wanted.negated)


def _among(column: Any, sought: Sought, parameters: tuple[Any, ...], *, negated: bool) -> Any:
    """The condition that a row's tag is among those that are sought."""
    tags = _tags(column, sought.index)
    if tags is None:
        raise StatementRefusedError(
            f"The subquery that {str(column)!r} stands in leaves out its blind index. Select "
            f"{sought.index.column.table.name}.{sought.index.column.name} there, too."
        )
    # Not `values`: the tags are made when the statement is sent, and the statement itself may be kept.
    kind = SoughtParameter if parameters else BindParameter
    made: Any = kind(None, callable_=sought, expanding=True, unique=True, type_=_TAGS)
    if parameters:
        made.given = parameters
    if sought.index.scope == "server":
        return among(tags, made, negated=negated)
    found = FoundRows.of(sought.index, among(tags, made))
    return ~found if negated else found


def _condition_later(column: Any, op: Any, indexes: Sequence[IndexedColumn], later: Given) -> Any:
    """The condition for values that are given when the statement is sent."""
    for index in indexes:
        if index.bits < FULL_BITS or op not in _VALUES:
            continue
        answers = _answer(index, op, [] if op in _LISTS else None, {})
        if answers is None or answers.check is not None:
            continue

        def wanted(execution: Execution, index: IndexedColumn = index) -> Wanted:
            found = _answer(index, op, later.value(execution.statement, execution.parameters), {})
            if found is not None and found.check is None:
                return found
            raise StatementRefusedError(
                f"{shown_operator(op)} on {names_of(index)[0]}, which is found by {index.label!r}, gives "
                "candidates for this value. Compare with the value itself, and not with a parameter that "
                "gets it later."
            )

        return _among(column, Sought(index, answers, wanted), later.parameters, negated=answers.negated)
    raise StatementRefusedError(
        f"{shown_operator(op)} on the encrypted column {str(column)!r}: no blind index of it takes a value "
        "that is given when the statement is sent. Compare it with the value itself."
    )


def _joined(column: Any, indexes: Sequence[IndexedColumn], other: Any) -> Any:
    """Equality with another column that has an index of the same label: equal values have equal tags."""
    base = base_of(other) if hasattr(other, "base_columns") else None
    for index in indexes:
        for same in () if base is None else indexes_on(base):
            if index.is_like(same) and is_certain(index):
                if index.scope == "server":
                    return _same_tags(index, column, other, same)
                mine, others = _tags(column, index), _tags(other, same)
                if mine is None or others is None:
                    return None
                return ComparedTags.of(index, mine == others)
    return None  # as without an index: it is refused if it is sent


class _Followed(BooleanClauseList):
    """The condition of a relationship. Python compares the keys of a dictionary so, too, and asks for a bool.

    Attributes:
        is_same: whether it compares a column with itself.
    """

    inherit_cache = True
    is_same = False

    def __bool__(self) -> bool:
        return self.is_same


def _same_tags(index: IndexedColumn, column: Any, other: Any, same: IndexedColumn) -> Any:
    tags, others = _tags(column, index), _tags(other, same)
    if tags is None or others is None:
        return None
    equal = tags == others
    if index.guard is None or same.guard is None:
        return equal
    if {"foreign", "remote"} & (tags._annotations.keys() | others._annotations.keys()):
        # A relationship compares what an object holds of its index, and an object holds no guard.
        steady: Any = bindparam(None, callable_=Steady(index), unique=True, type_=Boolean())
        followed: Any = and_(equal, steady)
        followed.__class__ = _Followed
        followed.is_same = hash(tags) == hash(others)
        return followed
    # A column of the same row: Python compares the keys of a dictionary so, too, and asks for a bool.
    if hash(tags) == hash(others):
        return equal
    guard, other_guard = guard_beside(column, index.column), guard_beside(other, same.column)
    if guard is None or other_guard is None:
        return None  # a subquery leaves them out
    # During a rotation the two rows may have the tags of two keys: then both have a guard.
    rotates: Any = bindparam(None, callable_=Rotating(index), unique=True, type_=Boolean())
    return or_(equal, and_(rotates, guard == other_guard))


def _tags(column: Any, index: IndexedColumn) -> Any:
    """The tags beside a column, with what a relationship says of the column: `foreign()`, `remote()`. None if
    a subquery leaves them out."""
    tags, known = column_beside(column, index.column), column._annotations
    if "foreign" not in known and "remote" not in known:
        return tags
    said = {name: known[name] for name in ("foreign", "remote") if name in known}
    return None if tags is None else tags._annotate(said)


def _refused(column: Any, op: Any, indexes: Sequence[IndexedColumn]) -> StatementRefusedError:
    names = "; and ".join(f"{one.key}, {one.kind.answers.replace('<index>', one.key)}" for one in indexes)
    return StatementRefusedError(
        f"{shown_operator(op)} on the encrypted column {str(column)!r} is answered by no blind index. It has "
        f"{names}. Else load the rows and compare the decrypted values."
    )
