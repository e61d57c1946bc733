"""A table that is searched for the remains of a column, and the report on each place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Table

State = Literal["holds plaintext", "may hold plaintext", "clean", "unknown"]


@dataclass(frozen=True)
class Residue:
    """A place where plaintext lies or may lie.

    Attributes:
        place: the name of the place.
        state: whether the place holds plaintext, as far as the database tells.
        known: the figures behind `state`.
        cure: the statement to run, or another thing to do; empty if there is nothing to do.
    """

    place: str
    state: State
    known: str
    cure: str


class Place:
    """A table, the previous column's name if it is still there, and ways to ask about them."""

    def __init__(self, connection: Connection, table: Table, name: str | None) -> None:
        self.connection, self.table, self.name = connection, table, name
        preparer = connection.dialect.identifier_preparer
        self.sql_table = preparer.format_table(table)
        self.sql_name = preparer.quote(name) if name is not None else None

    def all(self, sql: str, **parameters: Any) -> list[Any]:
        return list(self.connection.execute(text(sql), parameters).all())

    def one(self, sql: str, **parameters: Any) -> Any:
        return self.connection.execute(text(sql), parameters).one()

    def allowed(self, sql: str) -> list[Any] | None:
        """The answer of MySQL or SQLite; None if the database cannot answer or this user may not ask."""
        try:
            return list(self.connection.exec_driver_sql(sql).all())
        except DBAPIError:
            return None
