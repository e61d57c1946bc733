"""A job's ranges of keys: made once, worked on side by side, gone over again in sweeps.

A worker holds a lock on the row of its range for the length of a chunk. The chunk's work and its checkpoint
are a single transaction. So a worker that dies leaves nothing half done, and its lock ends with its
connection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import case, delete, exists, func, insert, select, true, update

from sqlalchemy_envelope.exceptions import MigrationError
from sqlalchemy_envelope.migration.database.positions import decode_position, encode_position
from sqlalchemy_envelope.migration.database.record import Record
from sqlalchemy_envelope.migration.database.state import Job, JobState, RangeState

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.migration.database.rows import Rows
    from sqlalchemy_envelope.migration.jobs.work import Step
    from sqlalchemy_envelope.orm.tables.keyset import Position

_RANGE_TABLE: Any = RangeState.__table__
_JOB_TABLE: Any = JobState.__table__
_RANGES, _JOBS = _RANGE_TABLE.c, _JOB_TABLE.c


@dataclass(frozen=True)
class Range:
    """A range that a worker took, with the position from which to go on."""

    number: int
    sweep: int
    position: Position | None
    upper: Position | None
    stored_position: str | None


@dataclass(frozen=True)
class JobCount:
    """The results of a job so far, summed over all its ranges."""

    rows: int
    late: int
    bad: int
    locked: int
    shredded: int
    finished: bool
    sweep: int
    total: int


class Ranges:
    """The ranges of a job of a migration.

    Args:
        part: tells apart jobs of this kind that run at the same time; empty if only a single job may run.
        sampled: for a verification, whether it looks at a sample; a verification of the other kind takes
            none of these ranges.
    """

    def __init__(
        self, rows: Rows, name: str, job: Job, *, part: str = "", sampled: bool | None = None
    ) -> None:
        self._rows, self._name, self._job, self._stored_job = rows, name, job, f"{job.value}{part}"
        self._mine = (_RANGES.name == name, _RANGES.job == self._stored_job)
        self._my_job = (_JOBS.name == name, _JOBS.job == self._stored_job)
        same = true() if sampled is None else _JOBS.sample.is_not(None) if sampled else _JOBS.sample.is_(None)
        self._is_mine = exists(select(_JOBS.name).where(*self._my_job, same).correlate(None))
        self._is_sqlite = rows.dialect.name == "sqlite"

    def exist(self, session: Session) -> bool:
        """Whether the job was begun."""
        return session.execute(select(_JOBS.name).where(*self._my_job)).first() is not None

    def is_mine(self, session: Session) -> bool:
        """Whether the job under way is still this job, and was not begun anew as the other kind meanwhile."""
        return bool(session.execute(select(self._is_mine)).scalar())

    def are_whole(self, session: Session) -> bool:
        """Whether the ranges cover all keys and can be read. If not, make them anew."""
        c, keys = _RANGES, self._rows.keys
        found = session.execute(
            select(c.number, c.lower, c.upper, c.position).where(*self._mine).order_by(c.number)
        ).all()
        try:
            for row in found:
                for one in (row.lower, row.upper, row.position):
                    decode_position(keys, one)
        except (MigrationError, ValueError, TypeError, ArithmeticError):
            return False
        lowers, uppers = [row.lower for row in found], [row.upper for row in found]
        return bool(found) and [*lowers, None] == [None, *uppers]

    def make(self, session: Session, *, size: int, total: int, sample: float | None = None) -> None:
        """Begin the job: make ranges of about `size` rows each. The last range is open, for rows to come."""
        self.clear(session)
        bounds: list[Position | None] = [*self._rows.boundaries(session.connection(), size), None]
        keys, lower, made = self._rows.keys, None, []
        for number, upper in enumerate(bounds):
            ends = {"lower": encode_position(keys, lower), "upper": encode_position(keys, upper)}
            made.append(
                {
                    "name": self._name,
                    "job": self._stored_job,
                    "number": number,
                    "position": ends["lower"],
                    **ends,
                }
            )
            lower = upper
        session.execute(
            insert(_JOB_TABLE).values(name=self._name, job=self._stored_job, total=total, sample=sample)
        )
        session.execute(insert(_RANGE_TABLE), made)

    def ask_to_stop(self, session: Session, stopping: bool) -> None:
        """Tell all workers to end after their chunk, or with False, to go on."""
        session.execute(update(_JOB_TABLE).where(*self._my_job).values(stopping=stopping))

    def is_stopping(self, session: Session) -> bool:
        """Whether workers were told to end."""
        return bool(session.execute(select(_JOBS.stopping).where(*self._my_job)).scalar())

    def clear(self, session: Session) -> None:
        """Forget the job."""
        session.execute(delete(_RANGE_TABLE).where(*self._mine))
        session.execute(delete(_JOB_TABLE).where(*self._my_job))

    def take(self, session: Session, worker: int = 0) -> Range | None:
        """Take an unfinished range that no other worker holds, locked until the transaction ends."""
        query = select(_RANGES.number, _RANGES.sweep, _RANGES.position, _RANGES.upper)
        query = query.where(*self._mine, _RANGES.finished.is_(False), self._is_mine)
        query = query.order_by(_RANGES.number)
        if self._is_sqlite:
            # SQLite has no row locks: workers begin in different places; the checkpoint is compare-and-swap.
            found = session.execute(query.limit(worker + 1)).all()
            row = found[-1] if found else None
        else:
            row = session.execute(query.limit(1).with_for_update(skip_locked=True)).first()
        if row is None:
            return None
        keys = self._rows.keys
        return Range(
            row.number,
            row.sweep,
            decode_position(keys, row.position),
            decode_position(keys, row.upper),
            row.position,
        )

    def checkpoint(self, session: Session, taken: Range, step: Step) -> bool:
        """Record, in the chunk's own transaction, how far it came; False if another worker did it first."""
        c = _RANGES
        seen = c.position.is_(None) if taken.stored_position is None else c.position == taken.stored_position
        finished = not step.full
        examples = ", ".join(repr(one) for one in step.examples)
        position = taken.position if step.position is None else step.position
        result = session.execute(
            update(_RANGE_TABLE)
            .where(*self._mine, c.number == taken.number, c.sweep == taken.sweep, c.finished.is_(False), seen)
            .values(
                position=encode_position(self._rows.keys, position),
                finished=finished,
                rows=c.rows + step.rows,
                late=c.late + (step.rows if taken.sweep > 1 else 0),
                bad=c.bad + step.bad,
                locked=c.locked + step.locked,
                shredded=c.shredded + step.shredded,
                **({"examples": func.coalesce(c.examples, examples)} if examples else {}),
            )
        )
        if step.rows and self._job in (Job.BACKFILL, Job.REENCRYPT):
            Record(session.connection(), self._name).forget_verification()
        return result.rowcount == 1  # type: ignore[attr-defined, no-any-return]  # an UPDATE has it

    def next_sweep(self, session: Session, *, anyway: bool = False) -> bool:
        """Begin another sweep over all ranges; False if the last sweep changed nothing, or another worker
        has begun the sweep.

        Args:
            anyway: begin even if the last sweep changed nothing: owners may have got keys since.
        """
        count = self.count(session)
        done = select(_JOBS.rows_before).where(*self._my_job).scalar_subquery()
        before = session.execute(select(done)).scalar_one()
        if count.sweep > 1 and count.rows == before and not anyway:
            return False
        result = session.execute(
            update(_JOB_TABLE)
            .where(*self._my_job, _JOBS.sweep == count.sweep)
            .values(sweep=count.sweep + 1, rows_before=count.rows)
        )
        if result.rowcount != 1:  # type: ignore[attr-defined]
            return False
        session.execute(
            update(_RANGE_TABLE)
            .where(*self._mine)
            .values(sweep=count.sweep + 1, finished=False, position=_RANGES.lower)
        )
        return True

    def examples(self, session: Session) -> tuple[str, ...]:
        """The keys of some rows that differ."""
        query = select(_RANGES.examples).where(*self._mine, _RANGES.examples.is_not(None))
        return tuple(session.execute(query.order_by(_RANGES.number).limit(3)).scalars())

    def count(self, session: Session) -> JobCount:
        """The results of the job so far.

        Raises:
            MigrationError: the job was not begun.
        """
        job = session.execute(select(_JOBS.sweep, _JOBS.total).where(*self._my_job)).first()
        if job is None:
            raise MigrationError(f"The {self._job.value} of {self._name} was not begun.")
        sums = [
            func.coalesce(func.sum(column), 0)
            for column in (_RANGES.rows, _RANGES.late, _RANGES.bad, _RANGES.locked, _RANGES.shredded)
        ]
        unfinished = func.coalesce(func.sum(case((_RANGES.finished.is_(False), 1), else_=0)), 0)
        row: Any = session.execute(select(*sums, unfinished).where(*self._mine)).one()
        rows, late, bad, locked, shredded, pending = map(int, row)
        return JobCount(rows, late, bad, locked, shredded, pending == 0, job.sweep, job.total)


def written_so_far(connection: Connection, name: str) -> list[int]:
    """The number of rows that each job has written, of the jobs that write a column's ciphertexts."""
    by_job = select(_RANGES.job, func.sum(_RANGES.rows)).where(_RANGES.name == name)
    counted = connection.execute(by_job.group_by(_RANGES.job)).all()
    writing = (Job.BACKFILL.value, Job.REENCRYPT.value)
    return sorted(int(count) for job, count in counted if job.startswith(writing))
