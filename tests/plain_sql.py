"""Statements of a program that knows nothing of the library, as strings of SQL: tests change with them
what is stored. The same statement made of a `Table` is recognised, and refused before it is sent."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import Dialect, TextClause, text


def update_of(dialect: Dialect, table: str, values: dict[str, Any], where: dict[str, Any]) -> TextClause:
    """Set these columns in the rows that have those values."""
    quote = _quoting(dialect)
    names = {f"v{at}": name for at, name in enumerate(values)}
    conditions = {f"w{at}": name for at, name in enumerate(where)}
    sql = f"UPDATE {quote(table)} SET " + ", ".join(f"{quote(name)} = :{at}" for at, name in names.items())
    if where:
        sql += " WHERE " + " AND ".join(f"{quote(name)} = :{at}" for at, name in conditions.items())
    bound = {at: values[name] for at, name in names.items()} | {
        at: where[name] for at, name in conditions.items()
    }
    return text(sql).bindparams(**bound)


def insert_of(dialect: Dialect, table: str, values: dict[str, Any]) -> TextClause:
    """Store a row of these values."""
    quote = _quoting(dialect)
    names = {f"v{at}": name for at, name in enumerate(values)}
    columns, marks = ", ".join(map(quote, values)), ", ".join(f":{at}" for at in names)
    sql = f"INSERT INTO {quote(table)} ({columns}) VALUES ({marks})"
    return text(sql).bindparams(**{at: values[name] for at, name in names.items()})


def _quoting(dialect: Dialect) -> Callable[[str], str]:
    # Not `quote()` of the preparer: where the driver's marks begin with %, `text()` doubles that once more.
    preparer = dialect.identifier_preparer
    return lambda name: f"{preparer.initial_quote}{name}{preparer.final_quote}"
