"""How the columns that lead to a row's owner get their values, where a statement leaves them out.

A value is encrypted before its row is sent. So a default in Python is evaluated then, once, and written with
the statement. A value that the database makes is not known in time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.sql.elements import BindParameter, ClauseElement, Null

from sqlalchemy_envelope.exceptions import StatementRefusedError
from sqlalchemy_envelope.orm.tables.owner_paths import ChosenPath
from sqlalchemy_envelope.orm.writing.defaults import has_python_default

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sqlalchemy import Column

    from sqlalchemy_envelope.orm.tables.owner_paths import OwnerPath
    from sqlalchemy_envelope.orm.writing.rows import WrittenRows

    Row = Mapping[str, Any]


def _is_made_by_database(column: Column[Any]) -> bool:
    """Whether the database makes the value: by a default of its own, or from an SQL expression."""
    made = (column.server_default, column.computed, column.identity)
    return any(source is not None for source in made) or (
        column.default is not None and not has_python_default(column)
    )


def _is_expression(value: Any) -> bool:
    """Whether the database computes a value that a statement gives."""
    return isinstance(value, ClauseElement) and not isinstance(value, (BindParameter, Null))


def why_unknown(path: OwnerPath, given: Mapping[str, Any], *, inserts: bool) -> str | None:
    """Why a statement does not say whose a row is before the database has the row; None if it does.

    Args:
        given: what the statement gives, by column.
    """
    for column in path.columns:
        value = given.get(column.key)
        if _is_expression(value):
            return f"{column.key} is an SQL expression. Give it a value"
        if isinstance(value, BindParameter):
            rows = ", or give the rows beside the statement: `execute(insert(...), [{...}, ...])`"
            return (
                f"{column.key} is the parameter {value.key!r}, which has no value when the row is encrypted: "
                "none was given, or it stands inside of `values([...])`. Write the value itself in its place"
                f"{rows if inserts else ''}"
            )
        if inserts and column.key not in given and _is_made_by_database(column):
            return f"the database makes {column.key}. Give it a value" + _or_null(path)
    return None


def default_beside(path: OwnerPath) -> str:
    """A hint for a row with several of its possible owners: a default may have set one of them."""
    defaults = [column.key for column in path.columns if has_python_default(column)]
    return f" ({' and '.join(defaults)} has a default{_or_null(path)})" if defaults else ""


def _or_null(path: OwnerPath) -> str:
    return ": for none, give `sqlalchemy.null()`" if isinstance(path, ChosenPath) else ""


def require_uniform(rows: WrittenRows, given: Sequence[Row]) -> None:
    """Refuse rows of which the first leaves out what a value is encrypted for or, in an UPDATE, the value:
    SQLAlchemy writes no column that the first row does not name.

    Raises:
        StatementRefusedError: a later row names such a column.
    """
    if len(given) < 2:
        return
    for _, columns in rows.plan.groups:
        decided_by = {column.key for each in columns for column in rows.plan.decided_by(each)}
        names = [rows.parameter(key) for key in decided_by if key not in rows.assignments.clauses]
        names += [] if rows.inserts else [rows.parameter(column.key) for column in columns]
        left_out = _left_out_by_the_first(names, given)
        if not left_out or (rows.inserts and all(rows.is_empty(row, columns) for row in given)):
            continue
        raise StatementRefusedError(
            f"Rows for {rows.plan.table.name} do not all name {', '.join(sorted(left_out))}, and the "
            "database gets no column that the first row leaves out: name the same columns in each row."
        )


def _left_out_by_the_first(names: Sequence[str], rows: Sequence[Row]) -> Collection[str]:
    """The parameters that the first of many rows leaves out and another row has."""
    return {name for name in names if name not in rows[0] and any([name in row for row in rows])}  # noqa: C419
