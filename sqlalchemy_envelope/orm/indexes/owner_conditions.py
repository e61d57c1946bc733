"""Conditions on an index under its owners' keys. A row of an owner who is locked fulfils none of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Case, and_, bindparam
from sqlalchemy.sql.elements import BinaryExpression, Label, UnaryExpression
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import Exists, ScalarSelect, Select, SelectBase

from sqlalchemy_envelope.exceptions import StatementRefusedError
from sqlalchemy_envelope.orm.columns.previous import column_beside
from sqlalchemy_envelope.orm.indexes.sought import OpenOwners

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn


class _Condition(BinaryExpression[bool]):
    """A condition on an index.

    Attributes:
        index: the index.
    """

    inherit_cache = True
    index: IndexedColumn

    @classmethod
    def of(cls, index: IndexedColumn, plain: Any) -> Any:
        """The same condition, which knows its index."""
        made = cls(plain.left, plain.right, plain.operator, plain.type, plain.negate, plain.modifiers)
        made.index = index
        return made


class ComparedTags(_Condition):
    """Two columns of tags, which are under the keys of many owners. It is refused when it is sent: until then
    it serves Python, which compares columns to find one in a list."""

    inherit_cache = True


class _OwnedRows(_Condition):
    """A condition that only rows of open owners fulfil."""

    inherit_cache = True


class FoundRows(_OwnedRows):
    """`tags IN (...)`. Its negation is limited to the rows of owners who are open with every index key, the
    earlier ones too: of other rows nothing is known."""

    inherit_cache = True

    def _negate(self) -> Any:
        negated: Any = super()._negate()  # type: ignore[no-untyped-call]  # of SQLAlchemy
        return and_(negated, OpenRows.of(self.index, _is_open(self.left, self.index)))


class OpenRows(_OwnedRows):
    """The rows of the owners who are open."""

    inherit_cache = True


def _is_open(tags: Any, index: IndexedColumn) -> Any:
    """The condition that a row's owner is open.

    Raises:
        StatementRefusedError: a row does not say by itself whose it is.
    """
    path, owner = index.path, None
    grants = [grant for one in path.owner_classes for grant in one.grants_with(None)]
    if any(grant.history == "from_join" for grant in grants):
        raise StatementRefusedError(
            f"The index {index.label!r} is under the keys of groups, and who joins does not read what was "
            "before: earlier values would count as other values. Load the rows and compare the decrypted "
            "values."
        )
    if path.is_direct and len(path.columns) == 1 and path.columns[0].table is index.column.table:
        owner = column_beside(tags, path.columns[0])
    if owner is None:
        raise StatementRefusedError(
            f"The index {index.label!r} is under its owners' keys. To look for other values than these, it "
            "needs the rows of the owners who are open, and a row does not name its owner in one column. "
            "Load the rows and compare the decrypted values; or BlindIndex(..., scope='server')."
        )
    owners: Any = bindparam(
        None, callable_=OpenOwners(index), expanding=True, unique=True, type_=path.columns[0].type
    )
    return owner.in_(owners)


def check_conditions(elements: Sequence[Any]) -> None:
    """Refuse to compute with a condition on rows of open owners: NOT, CASE or a column of it would take the
    rows of all other owners for rows with other values.

    Args:
        elements: every element of a statement.

    Raises:
        StatementRefusedError: the statement does, or it compares tags of two owners.
    """
    if not any(isinstance(one, _Condition) for one in elements):
        return
    for element in elements:
        if isinstance(element, ComparedTags):
            raise StatementRefusedError(
                f"{element.index.label!r} is under its owners' keys: equal values of two owners have "
                "different tags, and two columns cannot be compared by them. Compare with values; or "
                "BlindIndex(..., scope='server')."
            )
        inner: Iterable[Any] = ()
        if isinstance(element, Select):
            inner = (*element._raw_columns, *element._order_by_clauses, *element._group_by_clauses)
        elif isinstance(element, _COMPUTING) and not isinstance(element, (_OwnedRows, Exists, ScalarSelect)):
            inner = element.get_children()
        for one in inner:
            _refuse_within(one)


_COMPUTING = (UnaryExpression, BinaryExpression, Case, FunctionElement, Label)
"""What computes with its operands. AND, OR and brackets do not: they are of other classes."""


def _refuse_within(element: Any) -> None:
    for one in _within(element):
        if isinstance(one, _OwnedRows):
            index = one.index
            names = " and ".join(source.key for source in index.sources)
            raise StatementRefusedError(
                f"A comparison of {names}, whose index {index.label!r} is under its owners' keys, stands "
                "inside NOT, CASE or an expression, which would count the rows of locked owners as rows with "
                "other values. Compare with `!=` or `not_in`, which count rows of open owners alone, and "
                "join such comparisons with `and_` and `or_`."
            )


def _within(element: Any) -> Iterator[Any]:
    """An element and what it consists of, without the queries in it."""
    if isinstance(element, SelectBase):
        return
    yield element
    for child in element.get_children():
        yield from _within(child)
