"""What a rotation of an index key does with the rows of the index, whatever the kind of index."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from sqlalchemy_envelope.orm.columns.plans import mapper_of_table
from sqlalchemy_envelope.orm.tables.binds import bind_for
from sqlalchemy_envelope.orm.tables.conflict_errors import should_retry
from sqlalchemy_envelope.orm.tables.raw_tables import quoted_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import ColumnElement, Connection, Table
    from sqlalchemy.orm import Mapper, Session

    from sqlalchemy_envelope.crypto.blind_index import IndexHasher
    from sqlalchemy_envelope.orm.tables.keyset import Position


class Batch(NamedTuple):
    """Some rows that were done.

    Attributes:
        last: the primary key of the last row that was looked at; None if no row was left.
        rows: the number of rows that were written.
    """

    last: Position | None
    rows: int


class MovedRows(ABC):
    """The rows of an index.

    Attributes:
        connection: where they are.
        pending: the condition for rows whose values have to be open before they are moved.
        unmoved: the condition for rows that can be moved.
        left: the condition for both.
        guarded: the condition for rows with a guard.
        moves_at_once: whether rows are moved as they are filled, without a guard.
    """

    pending: ColumnElement[bool]
    unmoved: ColumnElement[bool]
    left: ColumnElement[bool]
    guarded: ColumnElement[bool]
    moves_at_once: ClassVar[bool] = False

    def __init__(self, session: Session, table: Table) -> None:
        mapper: Mapper[Any] = mapper_of_table(table)  # type: ignore[assignment]  # its columns are encrypted
        self._session, self._mapper, self._table = session, mapper, table
        self.connection: Connection = session.connection(bind_arguments=bind_for(session, mapper))
        self._dialect = self.connection.dialect.name

    @abstractmethod
    def know(self, old: IndexHasher | None) -> None:
        """Take note of the key that rows are moved from.

        Args:
            old: makes its tags; None while no row is moved yet.
        """

    @abstractmethod
    def any(self, condition: ColumnElement[bool], *, locks: bool = False) -> bool:
        """Whether a row fulfils a condition.

        Args:
            locks: wait for rows that others have written and not committed.
        """

    @abstractmethod
    def count(self, condition: ColumnElement[bool]) -> int:
        """How many rows fulfil a condition."""

    @abstractmethod
    def fill(self, hasher: IndexHasher, after: Position | None, size: int) -> Batch:
        """Do pending rows whose values are open here."""

    @abstractmethod
    def move(self, after: Position | None, size: int) -> Batch:
        """Move rows."""

    @abstractmethod
    def clear(self, after: Position | None, size: int) -> Batch:
        """Empty guards."""

    @contextmanager
    def undoing(self) -> Iterator[None]:
        """A block that leaves nothing behind if it raises."""
        savepoint = self.connection.begin_nested()
        try:
            yield
        except BaseException:
            savepoint.rollback()
            raise
        savepoint.commit()

    def lock(self) -> bool:
        """Wait for all transactions that have written to the table, and let nobody write to it; whether they
        ended in time."""
        if self._dialect != "postgresql":
            return True  # SQLite has one writer; MySQL's locking read waits for rows
        wait = text("SELECT set_config('lock_timeout', :wait, true)")
        before = self.connection.execute(text("SELECT current_setting('lock_timeout')")).scalar_one()
        self.connection.execute(wait, {"wait": "2s"})
        try:
            with self.connection.begin_nested():
                name = quoted_name(self.connection, self._table)
                self.connection.exec_driver_sql(f"LOCK TABLE {name} IN SHARE MODE")
        except DBAPIError as error:
            if not should_retry(error):
                raise
            return False
        finally:
            self.connection.execute(wait, {"wait": before})
        return True

    @property
    def reads_with_locks(self) -> bool:
        """Whether a read has to lock rows to see those that are not committed."""
        return self._dialect in ("mysql", "mariadb")
