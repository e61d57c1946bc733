"""Statements that a comparator cannot see into, refused before they are sent: a bare `ORDER BY`, `GROUP BY`,
`func.f(column)`, `cast`, `DISTINCT`, a `UNION` of two labels.

Each compiled statement is walked once. SQLAlchemy caches compiled statements, so a statement that runs a
thousand times is walked once too. In a statement with encrypted columns, whatever is not known to be harmless
is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import CompoundSelect, Exists, Insert, Null, Select, Table, TypeCoerce, Update
from sqlalchemy.sql import functions, operators
from sqlalchemy.sql.elements import (
    BinaryExpression,
    ClauseElement,
    ClauseList,
    ColumnClause,
    ColumnElement,
    Grouping,
    Label,
    UnaryExpression,
)
from sqlalchemy.sql.selectable import FromClause, ScalarSelect, SelectBase

from sqlalchemy_envelope.exceptions import StatementRefusedError
from sqlalchemy_envelope.orm.columns.encrypted_type import EncryptedType, shown_operator
from sqlalchemy_envelope.orm.columns.previous import is_moving, policy_of_column, previous_of
from sqlalchemy_envelope.orm.writing.copies import holds_ciphertext
from sqlalchemy_envelope.orm.writing.forms import assigned_by_upsert, is_null, rows_of, target_of


def check(compiled: Any, elements: Iterable[Any]) -> None:
    """Refuse a statement that would compare, sort or compute on ciphertext.

    Args:
        elements: every element of the statement.

    Raises:
        StatementRefusedError: the statement would do so.
    """
    if not any(_touches_encrypted(element) for element in elements):
        return
    root = getattr(compiled.compile_state, "statement", None)
    if root is None:
        root = compiled.statement
    if isinstance(root, ClauseElement):
        _Walk(root, getattr(compiled.compile_state, "select_statement", None)).element(root)


def _touches_encrypted(element: Any) -> bool:
    if isinstance(element, Table):
        return any(isinstance(column.type, EncryptedType) for column in element.columns)
    return _is_encrypted(element)


class _Walk:
    """One walk over a statement: each element is looked at once."""

    def __init__(self, root: ClauseElement, asked: Any = None) -> None:
        self._root = root
        # What the application asked the ORM for. What is sent is more: while a value is moved, objects come
        # with both of its columns.
        self._asked = asked
        self._seen: set[int] = set()
        self._unread: set[int] = set()

    def element(self, element: Any, place: str = "an SQL expression") -> None:
        """Look at an element where an encrypted column would be computed on."""
        if _is_column(element):
            raise _refusal(element, place)
        if id(element) in self._seen or isinstance(element, Table):
            return
        self._seen.add(id(element))
        if isinstance(element, Select):
            self._select(element)
        elif isinstance(element, CompoundSelect):
            self._compound(element)
        elif isinstance(element, (Insert, Update)):
            self._write(element)
        elif isinstance(element, functions.FunctionElement):
            self._function(element)
        else:
            self._operands(element)

    def read(self, element: Any) -> None:
        """Look at an element that is handed out as it is: an encrypted column is welcome there."""
        if isinstance(element, (Label, Grouping)):
            self.read(element.element)
        elif not _is_column(element):
            self.element(element)

    def _operands(self, parent: Any) -> None:
        if isinstance(parent, Exists):
            inner = parent.element
            self._unread.add(id(getattr(inner, "element", inner)))
        for child in parent.get_children():
            if _hands_on(parent):
                self.read(child)
                continue
            # A joined table hands its columns on; the condition is a child of its own.
            outputs = [child] if isinstance(child, ScalarSelect) else _outputs(child)
            outputs = [] if isinstance(child, FromClause) else outputs
            for output in outputs:
                if _is_encrypted(output):
                    raise _refusal(output, _name_of(parent))
            self.element(child, _name_of(parent))

    def _function(self, function: Any) -> None:
        counts = isinstance(function, functions.count)
        # `Sequence.next_value()` has no arguments.
        for argument in function.clauses if hasattr(function, "clause_expr") else ():
            if counts:
                _check_counted(argument)
                self.read(argument)
            else:
                self.element(argument, f"func.{getattr(function, 'name', 'f')}()")

    def _select(self, select: Select[Any]) -> None:
        handled = list(select._raw_columns)
        for output in handled:
            self.read(output)
        if id(select) not in self._unread:
            whole = select if select is not self._root or self._asked is None else self._asked
            _check_dual(whole._raw_columns)
        names = {output.key: output for output in select.selected_columns if _is_encrypted(output)}
        parts = [
            ("ORDER BY", select._order_by_clauses),
            ("GROUP BY", select._group_by_clauses),
            ("DISTINCT ON", select._distinct_on),
        ]
        for place, clauses in parts:
            self._sorted(place, clauses, names)
            handled += clauses
        if select._distinct and not select._distinct_on:
            _check_distinct(select)
        done = {id(element) for element in handled}
        for child in select.get_children():
            if id(child) not in done:
                self.element(child)

    def _sorted(self, place: str, clauses: Any, names: Mapping[Any, Any]) -> None:
        for clause in clauses:
            inner = clause
            while isinstance(inner, UnaryExpression) or _is_label_reference(inner):  # desc(), nulls_first()
                inner = inner.element
            if isinstance(inner, str) and inner in names:  # a label by its name: `order_by("body")`
                raise _refusal(names[inner], place)
            if isinstance(inner, ScalarSelect) and _is_encrypted(inner):
                raise _refusal(inner, place)
            self.element(inner.element if isinstance(inner, Label) else clause, place)

    def _compound(self, compound: CompoundSelect[Any]) -> None:
        columns = [list(select.selected_columns) for select in compound.selects]
        for position in zip(*columns, strict=False):
            _check_labels(position)
        if compound.keyword.value != "UNION ALL":  # all others compare rows
            for select in compound.selects:
                _check_distinct(select, compound.keyword.value)
        names = {output.key: output for output in columns[0] if _is_encrypted(output)}
        self._sorted("ORDER BY", compound._order_by_clauses, names)
        for select in compound.selects:
            self.element(select)

    def _assigned(self, statement: Any, target: Any, value: Any) -> None:
        if not isinstance(value, ClauseElement) or _is_bind(value):
            return
        key = getattr(target, "key", target)
        column = target if isinstance(target, ColumnElement) else target_of(statement).columns.get(target)
        if _is_encrypted(column):
            return
        place = f"assigning to {key!r}"
        if holds_ciphertext(value):
            raise _refusal(value, place)
        self.element(value, place)

    def _write(self, statement: Any) -> None:
        """Look at what an INSERT or UPDATE reads. What it writes into encrypted columns was looked at by the
        statement hook."""
        values = dict(getattr(statement, "_ordered_values", None) or statement._values or {})
        rows = rows_of(statement) if getattr(statement, "_multi_values", None) else []
        for row in (values, *rows, assigned_by_upsert(statement)):
            for target, value in row.items():
                self._assigned(statement, target, value)
        outputs = (*statement._returning, *(getattr(statement, "_supplemental_returning", None) or ()))
        for output in outputs:
            self.read(output)
        _check_dual(outputs)
        upsert = getattr(statement, "_post_values_clause", None)
        self._conditions(upsert)
        self._children(statement, (*outputs, *values.values(), upsert))

    def _conditions(self, upsert: Any) -> None:
        for name in ("inferred_target_whereclause", "update_whereclause"):
            condition = getattr(upsert, name, None)
            if isinstance(condition, ClauseElement):
                self.element(condition, "the WHERE of an upsert")

    def _children(self, statement: Any, handled: Iterable[Any]) -> None:
        """Look at the elements of a statement that are not handled yet."""
        done = {id(element) for element in handled}
        for child in statement.get_children():
            if id(child) not in done and not _is_column(child):
                self.element(child)


def _check_labels(position: Iterable[Any]) -> None:
    """Refuse a UNION that puts values of two labels, or of none, into one column."""
    outputs = [output for output in position if not is_null(output)]
    labels = {output.type.label if _is_encrypted(output) else None for output in outputs}
    if len(labels) > 1:
        raise StatementRefusedError(
            "A UNION mixes columns bound to different labels "
            f"({', '.join(sorted(map(str, labels)))}): nothing would distinguish a value from one that was "
            "moved there. Pin one label on both: EncryptedType(..., label='...')."
        )


def _check_dual(outputs: Sequence[Any]) -> None:
    """Refuse to hand out an encrypted column alone while its values are moved: it is NULL where the previous
    column still has the value."""
    columns = [column for output in outputs for column in _columns_of(output)]
    for column in columns:
        if not (_is_column(column) and is_moving(column)) or policy_of_column(column) == "refuse":
            continue
        previous = previous_of(column)
        if previous is None or not any(other is previous or _is_same(other, previous) for other in columns):
            raise StatementRefusedError(
                f"The values of {str(column)!r} are being moved: read alone here, a value that is not moved "
                "yet would be None. Select the object, or the column through a Session and not inside a "
                "subquery, or the previous column beside it."
            )


def _columns_of(output: Any) -> list[Any]:
    """The columns that an element of a SELECT list names. A whole table names none: with it come both
    columns of a value."""
    while isinstance(output, (Label, Grouping)):
        output = output.element
    if isinstance(output, ClauseList):  # a Bundle
        return [column for element in output.clauses for column in _columns_of(element)]
    return [output] if isinstance(output, ColumnElement) else []


def _is_same(column: Any, other: Any) -> bool:
    return getattr(column, "table", None) is other.table and getattr(column, "key", None) == other.key


def _check_counted(argument: Any) -> None:
    for column in _columns_of(argument):
        if _is_column(column) and is_moving(column) and policy_of_column(column) != "refuse":
            raise StatementRefusedError(
                f"count() of {str(column)!r} would leave out the values that are not moved yet. Count the "
                f"rows `.where({column.key}.is_not(None))`."
            )


def _is_encrypted(element: Any) -> bool:
    return isinstance(element, ColumnElement) and isinstance(element.type, EncryptedType)


def _is_column(element: Any) -> bool:
    # A bind parameter, a scalar subquery or a function may have the type of a column: they are looked at
    # themselves.
    return _is_encrypted(element) and element.__visit_name__ == "column"


def _is_label_reference(element: Any) -> bool:
    return getattr(element, "__visit_name__", None) in ("label_reference", "textual_label_reference")


def _is_bind(element: Any) -> bool:
    return getattr(element, "__visit_name__", None) == "bindparam"


def _outputs(element: Any) -> list[Any]:
    """The columns of a subquery that stands as an operand."""
    inner = element.element if isinstance(element, Grouping) else element
    inner = getattr(inner, "element", inner) if not isinstance(inner, SelectBase) else inner
    return list(inner.selected_columns) if isinstance(inner, SelectBase) else []


def _hands_on(parent: Any) -> bool:
    """Whether an element asks only if a value exists, or hands it on as it is."""
    if isinstance(parent, BinaryExpression):
        return parent.operator in (operators.is_, operators.is_not) and isinstance(parent.right, Null)
    if isinstance(parent, (TypeCoerce, ScalarSelect, Exists)):
        return True
    return parent.__visit_name__ in (
        "alias",
        "cte",
        "delete",
        "lateral",
        "subquery",
        "tablesample",
        "textual_select",
    )


def _check_distinct(select: Any, place: str = "DISTINCT") -> None:
    """Refuse a comparison of whole rows with ciphertext in them. Beside the primary key it is harmless: no
    two rows are equal then."""
    outputs = list(select.selected_columns)
    encrypted = [output for output in outputs if _is_encrypted(output)]
    keys = {base for output in outputs if isinstance(output, ColumnClause) for base in output.base_columns}
    for output in encrypted:
        tables = [getattr(base, "table", None) for base in output.base_columns]
        if not all(isinstance(table, Table) and set(table.primary_key) <= keys for table in tables):
            raise _refusal(output, place)


def _name_of(element: Any) -> str:
    operator = getattr(element, "operator", None) or getattr(element, "modifier", None)
    return str(element.__visit_name__) if operator is None else shown_operator(operator)


def _refusal(column: Any, place: str) -> StatementRefusedError:
    label = getattr(column.type, "label", None)
    name = str(column) if _is_column(column) else str(getattr(column, "key", None) or label or column)
    return StatementRefusedError(
        f"{place} on the encrypted column {name!r} would work on ciphertext and give a wrong answer; "
        "nothing was sent. Load the rows of one owner and sort, group or compute on the decrypted values."
    )
