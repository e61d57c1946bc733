"""The forms that an INSERT or UPDATE comes in: by itself, in a lambda, in `from_statement()`, in a CTE. The
functions here take the statement out of its form, and put it back when it is encrypted.

What a statement writes is named by the keys of columns, whether it is of a table or of a mapped class.
SQLAlchemy translates the names of attributes before a statement comes here: `values()` at once, a bulk
statement for each of the class's tables. They must not be translated again: an attribute may have the name of
another column.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Cast, Column, CompoundSelect, Insert, Label, Null, Table, TypeCoerce, Update
from sqlalchemy.orm import FromStatement
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.elements import (
    BinaryExpression,
    BindParameter,
    BooleanClauseList,
    ClauseElement,
    ColumnClause,
    Grouping,
)
from sqlalchemy.sql.lambdas import LambdaElement, NullLambdaStatement
from sqlalchemy.sql.selectable import CTE, Alias, AliasedReturnsRows, SelectStatementGrouping

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

WRITE_IN_CTES = ("postgresql", "mssql")
"""The databases that take an INSERT or UPDATE in a CTE."""

LAMBDAS = (LambdaElement, NullLambdaStatement)


def plain(statement: Any) -> Any:
    """The statement that a lambda stands for, with the present values of its variables and the notes that the
    ORM left on the lambda."""
    while isinstance(statement, LAMBDAS):
        noted, statement = statement._annotations, statement._resolved
        if noted:
            statement = statement._annotate(noted)
    return statement


def target_of(statement: Any) -> Any:
    """The table that an INSERT or UPDATE writes to."""
    return _unaliased(emitted_table(statement, statement.table))


def emitted_table(statement: Any, table: Any) -> Any:
    """The table that a bulk statement on a joined subclass writes to. Such a statement comes once for each of
    the class's tables, and only an annotation names the table. For any other statement the answer is `table`.
    """
    marks = statement._annotations
    return marks.get("_emit_insert_table", marks.get("_emit_update_table", table))


def table_of(column: Any) -> Any:
    """The table that a column belongs to, without aliases."""
    return _unaliased(column.table)


def _unaliased(table: Any) -> Any:
    while isinstance(table, AliasedReturnsRows) and not isinstance(table, CTE):
        table = table.element
    return table


def beside(statement: Any) -> list[Any]:
    """The columns of other tables that an UPDATE writes, as MySQL and MariaDB allow."""
    target = target_of(statement)
    columns = [key for row in named_by(statement) for key in row if isinstance(key, ColumnClause)]
    of_tables = [column for column in columns if column.table is not None]
    # An annotated copy has the hash of its original.
    return [column for column in of_tables if hash(table_of(column)) != hash(target)]


def named_by(statement: Any) -> list[Collection[Any]]:
    """The columns, or their keys, that a statement itself names: a collection for each row of
    `values([...])`."""
    if isinstance(statement, Insert) and statement._multi_values:
        return [row.keys() for row in rows_of(statement)]
    names = [*assigned_by(statement), *(getattr(statement, "_select_names", None) or ())]
    return [names] if names else []


def parts_of(select: Any) -> list[Any]:
    """The SELECTs that a UNION consists of; a SELECT alone is its only part."""
    if isinstance(select, CompoundSelect):
        return [part for joined in select.selects for part in parts_of(joined)]
    if isinstance(select, SelectStatementGrouping):
        return parts_of(select.element)
    return [select]


def source_of(output: Any) -> Any:
    """The expression that a SELECT puts out, without its label."""
    while isinstance(output, (Label, Grouping)):
        output = output.element
    return output


def is_null(value: Any) -> bool:
    """Whether an expression is NULL in every execution, whatever type it has."""
    while isinstance(value, (Cast, TypeCoerce, Label, Grouping)):
        value = value.element if isinstance(value, (Label, Grouping)) else value.clause
    return isinstance(value, Null)


def elements_in(*roots: Any) -> Iterator[Any]:
    """Every element of these statements, each once, down to the elements that they select from."""
    seen: set[int] = set()
    waiting = list(roots)
    while waiting:
        element = waiting.pop()
        if element is None or id(element) in seen:
            continue
        seen.add(id(element))
        yield element
        if isinstance(element, ColumnClause):
            # SQLAlchemy takes it for a leaf, but a CTE may stand nowhere else in an UPDATE.
            table = element.table if not isinstance(element, Column) else None
            waiting += () if table is None or isinstance(table, Table) else (table,)
        elif not isinstance(element, Table):
            waiting.extend(element.get_children())
            waiting.extend(_values_in(element))


def rows_of(statement: Any) -> list[Mapping[Any, Any]]:
    """The rows of `values([...])`, by column, whether they are given as dictionaries or as tuples."""
    columns = list(statement.table.columns)
    return [
        row if hasattr(row, "keys") else dict(zip(columns, row, strict=False))
        for group in statement._multi_values
        for row in group
    ]


def _values_in(element: Any) -> list[Any]:
    """The elements that `get_children` leaves out: the rows of a multiple VALUES, and what an upsert sets."""
    if not isinstance(element, (Insert, Update)):
        return []
    rows = rows_of(element) if element._multi_values else []
    values = [value for row in rows for value in row.values()]
    values += assigned_by_upsert(element).values()
    return [value for value in values if isinstance(value, ClauseElement)]


def column_key(named: Any) -> str:
    """The key of a column that a statement names by the column or by its key."""
    key: str = getattr(named, "key", named)
    return key


def assigned_by(statement: Any) -> dict[Any, Any]:
    """What a statement itself sets, by column or key."""
    # `ordered_values()` in SQLAlchemy 2.0
    assigned = dict(getattr(statement, "_ordered_values", None) or statement._values or {})
    target = emitted_table(statement, None)
    if target is None or not assigned:
        return assigned
    # A bulk statement on a joined subclass: each table gets its own columns.
    return {key: value for key, value in assigned.items() if _is_in(target, key)}


def _is_in(target: Any, named: Any) -> bool:
    table = getattr(named, "table", None)
    return table is None or hash(_unaliased(table)) == hash(target)


def changed_by(statement: Any) -> dict[Any, Any]:
    """What an UPDATE or an upsert itself changes in rows that exist, by column or key. A column that it
    sets to itself is left out."""
    target = target_of(statement)
    assigned = assigned_by_upsert(statement) if isinstance(statement, Insert) else assigned_by(statement)
    return {named: value for named, value in assigned.items() if not _stays(target, named, value)}


def _stays(target: Any, named: Any, value: Any) -> bool:
    if not isinstance(value, ColumnClause) or value.table is None or value.key != column_key(named):
        return False
    return hash(value.table) == hash(target)  # an alias of it is another row


def assigned_by_upsert(statement: Any) -> dict[Any, Any]:
    """What an upsert sets where the row exists, by column or key."""
    clause = getattr(statement, "_post_values_clause", None)
    updates = getattr(clause, "update_values_to_set", None) or getattr(clause, "update", None) or {}
    pairs = updates.items() if hasattr(updates, "items") else updates
    return {_named_by_upsert(statement, key): value for key, value in pairs}


def with_upserted(statement: Any, added: dict[str, Any]) -> Any:
    """The upsert, which sets these columns as well."""
    clause = statement._post_values_clause
    attribute = "update_values_to_set" if hasattr(clause, "update_values_to_set") else "update"
    updates = getattr(clause, attribute)
    whole = dict(updates.items() if hasattr(updates, "items") else updates) | added
    statement, clause = statement._clone(), clause._clone()
    setattr(clause, attribute, whole if isinstance(updates, dict) else list(whole.items()))
    statement._post_values_clause = clause
    return statement


def _named_by_upsert(statement: Any, named: Any) -> Any:
    """The column that an upsert names, or its key. SQLAlchemy takes text that is no key for a name in the
    database, and leaves attributes as they are in MySQL's upserts."""
    if hasattr(named, "__clause_element__"):
        return named.__clause_element__()
    columns = statement.table.columns
    if not isinstance(named, str) or named in columns:
        return named
    return next((column.key for column in columns if column.name == named), named)


def is_proposed(statement_table: Any, value: Any) -> bool:
    """Whether a value is a column of the row that an upsert was to insert, `excluded.body`. That table is an
    alias of the target; another table may have its name."""
    table = getattr(value, "table", None)
    return (
        isinstance(table, Alias)
        and table.name in ("excluded", "inserted")
        and hash(_unaliased(table)) == hash(_unaliased(statement_table))
    )


def equalities(statement: Any, target: Any, row: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """The columns that the WHERE of an UPDATE compares with a value, and the values: all its rows have
    them."""
    for condition in conditions(statement):
        if not isinstance(condition, BinaryExpression) or condition.operator is not operators.eq:
            continue
        left, right = condition.left, condition.right
        for column, value in ((left, right), (right, left)):
            if not isinstance(column, Column) or not isinstance(value, BindParameter):
                continue
            # An annotated table has the hash of the table itself; an alias is another row.
            if hash(column.table) == hash(target):
                (base,) = column.base_columns
                default = None if value.required else value.effective_value
                yield base, row.get(value.key, default)


def conditions(statement: Any) -> Iterator[Any]:
    """Each condition that the WHERE of an UPDATE joins by AND."""
    waiting = list(statement._where_criteria)
    while waiting:
        condition = waiting.pop()
        condition = condition.element if isinstance(condition, Grouping) else condition
        if isinstance(condition, BooleanClauseList) and condition.operator is operators.and_:
            waiting.extend(condition.clauses)
        else:
            yield condition


def in_from_statement(statement: FromStatement[Any], encrypted: Any) -> FromStatement[Any]:
    """`from_statement(...)` around the encrypted statement."""
    copy: FromStatement[Any] = statement._clone()
    copy.element = encrypted
    return copy


def may_hold_ctes(statement: Any) -> bool:
    """Whether a statement shows a CTE at first sight. A walk over the whole statement would cost too much; a
    CTE that is missed here is refused when the statement is compiled."""
    if getattr(statement, "_independent_ctes", None):
        return True
    if isinstance(statement, UpdateBase):
        inner = statement.select if isinstance(statement, Insert) else None
        return inner is not None and may_hold_ctes(inner)
    for output in getattr(statement, "_raw_columns", ()):
        if isinstance(output, CTE) or isinstance(getattr(output, "table", None), CTE):
            return True
    return False


def with_ctes(statement: Any, encrypt: Callable[[Any], Any]) -> Any:
    """The statement, with every INSERT and UPDATE of its CTEs encrypted."""
    new: dict[CTE, CTE] = {}
    for cte in elements_in(statement):
        if isinstance(cte, CTE) and isinstance(cte.element, (Insert, Update)):
            if "parententity" in cte._annotations:
                return statement  # `aliased(Model, cte)` would still select from the old CTE
            inner = encrypt(cte.element)
            if inner is not cte.element:
                new[cte] = inner.cte(cte.name, nesting=cte.nesting)
    if not new:
        return statement

    def replace(element: Any) -> Any:
        if isinstance(element, CTE):
            return new.get(element)
        table = getattr(element, "table", None) if isinstance(element, ColumnClause) else None
        return new[table].c[element.key] if isinstance(table, CTE) and table in new else None

    return visitors.replacement_traverse(statement, {}, lambda element, **_: replace(element))
