"""The rows that a statement writes: what the statement, and the objects of a flush behind it, say of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Insert

from sqlalchemy_envelope.orm.tables.connections import session_of
from sqlalchemy_envelope.orm.writing.assignments import Assignments, literal_value
from sqlalchemy_envelope.orm.writing.flush_notes import notes_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection
    from sqlalchemy.orm import InstanceState

    from sqlalchemy_envelope.orm.columns.plans import EncryptedColumn, TablePlan
    from sqlalchemy_envelope.orm.tables.owner_paths import OwnerPath

    Row = Mapping[str, Any]


class WrittenRows:
    """The rows of one statement. A row is a dictionary of the statement's parameters.

    Attributes:
        plan: the encrypted columns of the table.
        session: the session that the statement runs in; None on a connection without a session.
        notes: the notes of the flush that sends the statement; None outside of a flush.
        inserts: whether the statement is an INSERT.
        upserts: whether it also changes rows that exist.
        assignments: what the statement itself sets.
        literals: the values that it sets in every row, unless they are in the rows already.
    """

    __slots__ = (
        "_parameters",
        "assignments",
        "connection",
        "inserts",
        "literals",
        "notes",
        "plan",
        "session",
        "statement",
        "upserts",
    )

    def __init__(self, plan: TablePlan, connection: Connection, statement: Any) -> None:
        self.plan = plan
        self.connection = connection
        self.session = session_of(connection)
        self.notes = notes_of(connection)
        self.statement = statement
        self.inserts = isinstance(statement, Insert)
        self.upserts = getattr(statement, "_post_values_clause", None) is not None
        self.assignments = Assignments(plan, statement)
        self.literals: Row = {}
        self._parameters = self.assignments.parameters

    def parameter(self, key: str) -> str:
        """The parameter that a column is written from: `values(body=bindparam("other"))` names another."""
        return self._parameters.get(key, key)

    def value(self, key: str, row: Row) -> Any:
        """What is written into a column of a row; None where the statement does not say."""
        return row.get(self._parameters.get(key, key), self.literals.get(key))

    def given(self, path: OwnerPath, row: Row) -> dict[str, Any]:
        """What the statement gives the owner's columns of a row, as far as it names them."""
        given = {}
        for key in path.keys:
            name = self.parameter(key)
            if name in row:
                given[key] = literal_value(row[name])
            elif key in self.literals:
                given[key] = self.literals[key]
            elif key in self.assignments.clauses:
                given[key] = literal_value(self.assignments.clauses[key])
        return given

    def is_empty(self, row: Row, columns: Sequence[EncryptedColumn]) -> bool:
        """Whether a row has no value in these columns."""
        return all([row.get(self.parameter(column.key)) is None for column in columns])  # noqa: C419

    def first_written(self, row: Row, columns: Sequence[EncryptedColumn]) -> EncryptedColumn:
        """The column that an error about this row names: the first with a value."""
        written = (column for column in columns if row.get(self.parameter(column.key)) is not None)
        return next(written, columns[0])

    def identity(self, row: Row) -> tuple[Any, ...]:
        """The primary key by which the statement finds a row: an INSERT names it by column, a flush's UPDATE
        by `table_column`."""
        columns: Any = self.plan.table.primary_key.columns
        if self.inserts:
            return tuple(row.get(self.parameter(column.key)) for column in columns)
        return tuple(row.get(column._label) for column in columns)

    def object_of(self, row: Row) -> InstanceState[Any] | None:
        """The object whose row this is, during a flush."""
        return None if self.notes is None else self.notes.find(self.plan.table, self.identity(row))

    def new_object_of(self, state: InstanceState[Any]) -> InstanceState[Any]:
        """The new object that takes over the row of a deleted one; else the object itself."""
        return state if self.notes is None else self.notes.replacing.get(state, state)
