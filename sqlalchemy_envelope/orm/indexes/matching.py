"""`matches`: looks for values in one blind index, which the application names."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import ClauseElement

from sqlalchemy_envelope.crypto.frames import emptying
from sqlalchemy_envelope.exceptions import StatementRefusedError
from sqlalchemy_envelope.orm.columns.previous import base_of, policy_of_column
from sqlalchemy_envelope.orm.indexes.comparisons import _condition
from sqlalchemy_envelope.orm.indexes.indexed import indexes_of_table
from sqlalchemy_envelope.orm.indexes.kinds.compound import Compound

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn
    from sqlalchemy_envelope.orm.indexes.kinds.kind import Wanted

_NOTHING: Any = object()


@emptying
def matches(index: Any, value: Any = _NOTHING, /, **values: Any) -> ColumnElement[bool]:
    """The condition that a row's values are those that are given, as this blind index compares them:

        select(Person).where(matches(Person.name_index, last="Lovelace", born=date(1815, 12, 10)))

    A comparison of the attributes themselves picks an index by itself. `matches` says which: it is the way to
    an index over several attributes, and to one of two that compare differently.

    Args:
        index: the mapped attribute of a blind index, `Person.name_index`.
        value: the value, of an index over one attribute.
        values: the values by attribute, of an index over several. All of them are needed.

    Raises:
        StatementRefusedError: it is no blind index, or other values are needed.
    """
    column = index.__clause_element__() if hasattr(index, "__clause_element__") else index
    indexed = _index_of(column)
    if value is not _NOTHING and not values and len(indexed.type.of) == 1:
        values = {indexed.type.of[0]: value}
    if set(values) != set(indexed.type.of):
        del value
        raise StatementRefusedError(_line(indexed, values))
    if any(policy_of_column(one.column) == "both" for one in indexed.sources):
        raise StatementRefusedError(
            f"matches(...) on {indexed.label!r}: values are being moved, and the index does not have all of "
            "them yet. From the policy 'read' on, the index answers."
        )
    wanted = _wanted(indexed, [values[name] for name in indexed.type.of])
    found: ColumnElement[bool] = _condition(column, indexed, wanted)
    return found


def _index_of(column: Any) -> IndexedColumn:
    base = base_of(column) if hasattr(column, "base_columns") else None
    found = () if base is None else indexes_of_table(base.table)
    for one in found:
        if one.column is base:
            return one
    raise StatementRefusedError(
        "matches(...) takes the mapped attribute of a blind index first: matches(User.email_index, ...)."
    )


def _line(index: IndexedColumn, given: dict[str, Any]) -> str:
    names = ", ".join(f"{name}=..." for name in index.type.of)
    what = " and ".join(index.type.of)
    has = " and ".join(sorted(given)) or "none by name"
    return (
        f"The blind index {index.label!r} is of {what}, and {has} was given: write "
        f"matches({index.key}, {names})."
    )


def _wanted(index: IndexedColumn, values: list[Any]) -> Wanted:
    if any(isinstance(one, ClauseElement) or hasattr(one, "__clause_element__") for one in values):
        raise StatementRefusedError(
            f"matches(...) on {index.label!r} looks for values: give it values, and not SQL expressions."
        )
    wanted: Wanted | None = None
    try:
        if isinstance(index.kind, Compound):
            wanted = index.kind.match(values)
        else:
            wanted = index.kind.answer(operators.eq, values[0], {})
    except Exception:  # noqa: BLE001 - raised below, chained to nothing that holds the value
        types = " and ".join(type(one).__name__ for one in values)
        failed = True
    else:
        failed = False
    del values
    if failed:
        raise StatementRefusedError(
            f"matches(...) on {index.label!r}: its operands, of the types {types}, are no values of the "
            "columns."
        )
    if wanted is None:
        raise StatementRefusedError(f"matches(...) on {index.label!r}: that index is {index.kind.answers}.")
    return wanted if wanted.datas else replace(wanted, has_null=True)
