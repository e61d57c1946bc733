"""A job is a kind of work, done to a table chunk by chunk.

Each kind writes to a row only if the row is still as it was read. A row that was changed meanwhile is left
for the next sweep. A chunk that is done twice changes nothing the second time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy_envelope.exceptions import EnvelopeError
from sqlalchemy_envelope.migration.jobs.preflight import find_unreadable, is_of_the_value, unreadable

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.migration.database.rows import Rows
    from sqlalchemy_envelope.migration.database.state import Job
    from sqlalchemy_envelope.orm.tables.keyset import Position


@dataclass
class Step:
    """The result of a chunk.

    Attributes:
        position: the last primary key that was looked at; None if no row was left.
        full: whether there may be more rows after `position`.
        rows: the number of rows that were written or compared.
        bad, locked: for a verification, the number of values that differ, and of values that no key here
            opens.
        shredded: the number of values whose keys are destroyed.
        examples: the primary keys of some rows that differ; never values.
    """

    position: Position | None
    full: bool
    rows: int = 0
    bad: int = 0
    locked: int = 0
    shredded: int = 0
    examples: tuple[Position, ...] = ()


class Work(ABC):
    """A kind of job.

    Attributes:
        part: tells apart jobs of this kind that run at the same time; empty if only a single job may run.
        sampled: for a verification, whether it looks at a sample.
    """

    job: ClassVar[Job]
    part: str = ""
    sampled: bool | None = None

    @abstractmethod
    def due(self, rows: Rows) -> ColumnElement[bool]:
        """The condition for rows that are still to be done."""

    @abstractmethod
    def work(self, session: Session, rows: Rows, parts: list[Any], step: Step) -> None:
        """Do the rows of a chunk, each in its parts (`Rows.split`), and count them in its result."""

    def step(
        self, session: Session, rows: Rows, after: Position | None, upto: Position | None, size: int
    ) -> Step:
        """Do a chunk, in the session's transaction.

        Raises:
            PreviousValueError: a previous value cannot be read.
        """
        found = _read(session, rows, self.due(rows), after, upto, size)
        parts = [rows.split(row) for row in found]
        step = Step(parts[-1][0] if parts else None, full=len(parts) == size)
        if parts:
            self.work(session, rows, parts, step)
        return step


def _read(
    session: Session,
    rows: Rows,
    where: ColumnElement[bool],
    after: Position | None,
    upto: Position | None,
    size: int,
) -> list[Any]:
    """Read a chunk. If the type cannot read a previous value, the error names its row's key.

    Raises:
        PreviousValueError: a previous value cannot be read.
    """
    try:
        return rows.read(session.connection(), where, after, upto, size)
    except EnvelopeError:
        raise
    except Exception as error:
        if rows.column.previous is None or not is_of_the_value(rows, error):
            raise
        why = f"{type(error).__name__} was raised"
    # Chain nothing: an error of the type may show the value that it tried to read.
    session.rollback()
    positions = rows.positions(session.connection(), where, after, upto, size)
    failed = find_unreadable(session.connection(), rows, positions)
    raise unreadable(rows, *(failed or (None, why)))
