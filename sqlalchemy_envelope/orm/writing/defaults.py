"""Defaults in Python: they are evaluated before the statement hook encrypts the values, and only once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from sqlalchemy_envelope.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Column

    from sqlalchemy_envelope.orm.writing.rows import WrittenRows

    Row = Mapping[str, Any]


def has_python_default(column: Column[Any]) -> bool:
    """Whether Python makes the value: from a constant, or by a function."""
    default: Any = column.default
    return default is not None and (default.is_scalar or default.is_callable)


def client_default(column: Any) -> Any:
    """The value of a column's Python default. Evaluated later, it would reach the database unencrypted."""
    default = column.default
    return default.arg(_NoContext()) if default.is_callable else default.arg


class _NoContext:
    """Stands for the context of a statement, which does not exist yet when a default is evaluated here."""

    def __getattr__(self, name: str) -> NoReturn:
        raise ConfigurationError(
            "A default of an encrypted column, of its owner's column, or of the primary key that a value is "
            "bound to reads the statement's context, which does not exist yet when values are encrypted. Use "
            "a default= function without arguments, or give the value."
        )


def with_defaults(rows: WrittenRows, given: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows of an INSERT with the Python defaults that a value depends on: the value's own, those of its
    owner's columns, and that of the primary key it is bound to."""
    made = [dict(row) for row in given]
    for row in made:
        _add_own_defaults(rows, row)
    for path, columns in rows.plan.groups:
        if path.is_self or not rows.plan.has(path) or all([rows.is_empty(row, columns) for row in made]):  # noqa: C419
            continue
        for column in filter(has_python_default, path.columns):
            for row in made:  # in every one: SQLAlchemy takes the columns from the first
                if column.key not in rows.given(path, row):
                    row[column.key] = client_default(column)
    return made


def _add_own_defaults(rows: WrittenRows, row: dict[str, Any]) -> None:
    for encrypted in rows.plan.columns:
        key, column = encrypted.key, encrypted.column
        if column.default is not None and key not in row and key not in rows.literals:
            row[key] = client_default(column)
    for column in rows.plan.table.primary_key if rows.plan.row_bound else ():
        if column.default is not None and row.get(column.key, rows.literals.get(column.key)) is None:
            row[column.key] = client_default(column)
