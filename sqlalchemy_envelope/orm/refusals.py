"""Statements that no comparator can see through, refused before they are sent: a bare `ORDER BY`, `GROUP BY`,
`func.f(column)`, `cast`, `DISTINCT`, a `UNION` of two labels.

Checked in `before_cursor_execute`, once for each compiled statement: SQLAlchemy caches those, so a statement
that runs a thousand times is walked once.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

from sqlalchemy import Column, CompoundSelect, Delete, Insert, Null, Select, Table, TypeCoerce, Update
from sqlalchemy.sql import functions, operators
from sqlalchemy.sql.elements import BinaryExpression, ClauseElement, ColumnElement, Grouping, Label
from sqlalchemy.sql.selectable import ScalarSelect

from sqlalchemy_envelope.exceptions import StatementRefusedError
from sqlalchemy_envelope.orm.types import EncryptedType

_checked: WeakSet[Any] = WeakSet()


def before_cursor_execute(
    connection: object, cursor: object, statement: str, parameters: object, context: Any, executemany: bool
) -> None:
    """Refuse a statement that would compare, sort or compute on ciphertext.

    Raises:
        StatementRefusedError: it would.
    """
    compiled = getattr(context, "compiled", None)
    if compiled is None or compiled in _checked:
        return
    root = getattr(compiled.compile_state, "statement", None)
    if root is None:
        root = compiled.statement
    if isinstance(root, ClauseElement):
        _Walk().element(root)
    _checked.add(compiled)


class _Walk:
    """One walk over a statement; the same element is looked at once."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def element(self, element: Any, place: str = "an SQL expression") -> None:
        """Look at an element in which an encrypted column is out of place."""
        if _is_encrypted_column(element):
            raise _refusal(element, place)
        if id(element) in self._seen or isinstance(element, Table):
            return
        self._seen.add(id(element))
        if isinstance(element, Select):
            self._select(element)
        elif isinstance(element, CompoundSelect):
            self._compound(element)
        elif isinstance(element, (Insert, Update, Delete)):
            self._written(element)
        else:
            for child in element.get_children():
                self._child(element, child)

    def _child(self, parent: Any, child: Any) -> None:
        if _tolerates(parent):
            self.read(child)
        else:
            self.element(child, _name_of(parent))

    def read(self, element: Any) -> None:
        """Look at an element that is only handed out: an encrypted column is welcome there."""
        if isinstance(element, (Label, Grouping)):
            self.read(element.element)
        elif not _is_encrypted_column(element):
            self.element(element)

    def _select(self, select: Select[Any]) -> None:
        outputs = list(select._raw_columns)
        for output in outputs:
            self.read(output)
        parts = (
            ("ORDER BY", select._order_by_clauses),
            ("GROUP BY", select._group_by_clauses),
            ("DISTINCT ON", select._distinct_on),
        )
        for place, clauses in parts:
            for clause in clauses:
                self.element(
                    getattr(clause, "element", clause) if isinstance(clause, Label) else clause, place
                )
        if select._distinct and not select._distinct_on:
            _check_distinct(select)
        handled = {id(one) for one in outputs} | {id(one) for _, clauses in parts for one in clauses}
        for child in select.get_children():
            if id(child) not in handled:
                self.element(child)

    def _written(self, statement: Any) -> None:
        """An encrypted column may be written to and returned. What it is set to was checked by the statement hook."""
        clause = getattr(statement, "_post_values_clause", None)
        pairs = getattr(statement, "_ordered_values", None) or (getattr(statement, "_values", None) or {}).items()
        targets = {id(key) for key, _ in pairs}
        for output in (*statement._returning, *(statement._supplemental_returning or ())):
            self.read(output)
            targets.add(id(output))
        for child in statement.get_children():
            if id(child) not in targets and child is not clause:
                self.element(child, "an SQL expression in a write")
        for name in ("inferred_target_whereclause", "update_whereclause"):
            condition = getattr(clause, name, None)
            if isinstance(condition, ClauseElement):
                self.element(condition, "the WHERE of an upsert")

    def _compound(self, compound: CompoundSelect[Any]) -> None:
        columns = [list(select.selected_columns) for select in compound.selects]
        for position in zip(*columns, strict=False):
            labels = {one.type.label if _is_encrypted(one) else None for one in position}
            if len(labels) > 1:
                raise StatementRefusedError(
                    f"A UNION mixes columns bound to different labels ({', '.join(sorted(map(str, labels)))}"
                    "): a value could not be told from one moved there. Pin one label on both: "
                    "EncryptedType(..., label='...')."
                )
        for clause in (*compound._order_by_clauses, *compound._group_by_clauses):
            self.element(clause, "ORDER BY")
        for select in compound.selects:
            self.element(select)


def _is_encrypted(element: Any) -> bool:
    return isinstance(element, ColumnElement) and isinstance(element.type, EncryptedType)


def _is_encrypted_column(element: Any) -> bool:
    # A scalar subquery or a function has the type of its column; what is inside is looked at by itself.
    return _is_encrypted(element) and element.__visit_name__ in (
        "column",
        "label_reference",
        "textual_label_reference",
    )


def _tolerates(parent: Any) -> bool:
    """Whether this expression says nothing of a value but whether it is there, or hands it on as it is."""
    if isinstance(parent, BinaryExpression):
        return parent.operator in (operators.is_, operators.is_not) and isinstance(parent.right, Null)
    return isinstance(parent, (functions.count, TypeCoerce, ScalarSelect)) or parent.__visit_name__ in (
        "alias",
        "subquery",
        "cte",
        "lateral",
        "tablesample",
    )


def _check_distinct(select: Select[Any]) -> None:
    columns = list(select.selected_columns)
    keys = {base for column in columns if isinstance(column, Column) for base in column.base_columns}
    for column in columns:
        if not _is_encrypted(column) or not isinstance(column, Column):
            continue
        base = next(iter(column.base_columns)).table
        if not isinstance(base, Table) or not set(base.primary_key.columns) <= keys:
            raise _refusal(column, "DISTINCT")


def _name_of(element: Any) -> str:
    if isinstance(element, functions.FunctionElement):
        return f"func.{getattr(element, 'name', 'f')}()"
    operator = getattr(element, "operator", None)
    return str(getattr(operator, "__name__", element.__visit_name__))


def _refusal(column: Any, place: str) -> StatementRefusedError:
    return StatementRefusedError(
        f"{place} on the encrypted column {str(column)!r} would work on ciphertext and give a wrong answer; "
        "nothing was sent. Load the rows of one owner and sort, group or compute on the decrypted values."
    )
