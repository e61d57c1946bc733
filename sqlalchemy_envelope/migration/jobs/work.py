"""What a job is: a kind of work, done to a table chunk by chunk.

Each kind writes only where a row still is what was read of it. What was changed meanwhile is left for the
next sweep, and a chunk that is done twice changes nothing the second time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

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
    """What one chunk came to.

    Attributes:
        position: the last key that was looked at; None if there was no row left.
        full: whether there may be more rows after it.
        rows: how many were written or compared.
        bad, locked: of a verification: how many differ, and how many no key here opens.
        examples: the keys of some that differ; keys, never values.
    """

    position: Position | None
    full: bool
    rows: int = 0
    bad: int = 0
    locked: int = 0
    examples: tuple[Position, ...] = ()


class Work(Protocol):
    """One kind of job.

    Attributes:
        part: of a job that several do at once, each for themselves: which of them.
        sampled: of a verification: whether it looks at a sample.
    """

    job: Job
    part: str
    sampled: bool | None

    def due(self, rows: Rows) -> ColumnElement[bool]:
        """Which rows are still to be done."""
        ...

    def step(
        self, session: Session, rows: Rows, after: Position | None, upto: Position | None, size: int
    ) -> Step:
        """Do one chunk, in the session's transaction."""
        ...


def read_parts(
    session: Session,
    rows: Rows,
    where: ColumnElement[bool],
    after: Position | None,
    upto: Position | None,
    size: int,
) -> tuple[Step, list[Any]]:
    """The rows of a chunk, each in its parts (`Rows.split`), and what the chunk comes to before any is done.

    Raises:
        PreviousValueError: a previous value cannot be read.
    """
    parts = [rows.split(row) for row in _read(session, rows, where, after, upto, size)]
    return Step(parts[-1][0] if parts else None, full=len(parts) == size), parts


def _read(
    session: Session,
    rows: Rows,
    where: ColumnElement[bool],
    after: Position | None,
    upto: Position | None,
    size: int,
) -> list[Any]:
    """Read a chunk; a previous value that its type cannot read is told with its row's key.

    Raises:
        PreviousValueError: it cannot be read.
    """
    try:
        return rows.read(session.connection(), where, after, upto, size)
    except EnvelopeError:
        raise
    except Exception as error:
        if not is_of_the_value(rows, error):
            raise
        why = f"{type(error).__name__} was raised"
    # Nothing is chained: what a type raises may show what it tried to read.
    session.rollback()
    positions = rows.positions(session.connection(), where, after, upto, size)
    failed = find_unreadable(session.connection(), rows, positions)
    raise unreadable(rows, *(failed or (None, why)))
