"""One table, asked for what remains of a column in it, and what is told of each place."""

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
    """One place where plaintext lies or may lie.

    Attributes:
        place: what it is.
        state: whether it holds plaintext, as far as the database tells.
        known: the figures behind that.
        cure: the statement to run, or what else to do; empty if there is nothing to do.
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
        """What MySQL or SQLite answers, or None if it has no such thing or this user may not ask."""
        try:
            return list(self.connection.exec_driver_sql(sql).all())
        except DBAPIError:
            return None
