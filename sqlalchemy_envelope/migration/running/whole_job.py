"""A job over all rows of a column: begun or resumed, worked on by a crew, and counted."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy.orm import Session

from sqlalchemy_envelope.migration.database.state import create_state_tables
from sqlalchemy_envelope.migration.running.ranges import Ranges
from sqlalchemy_envelope.migration.running.workers import run_workers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy_envelope.migration.database.columns import MigratingColumn
    from sqlalchemy_envelope.migration.database.rows import Rows
    from sqlalchemy_envelope.migration.jobs.work import Work
    from sqlalchemy_envelope.migration.running.setting import Setting
    from sqlalchemy_envelope.migration.running.workers import Crew


class WholeJob:
    """A kind of work, done to every row of a column that needs it."""

    def __init__(self, setting: Setting, column: MigratingColumn, work: Work) -> None:
        self._setting, self._column, self._work = setting, column, work

    def begin(self, *, again: bool = False, sample: float | None = None) -> int:
        """Make the job's ranges, unless the job is under way; go over them once more if rows are left.

        Returns the number of rows that earlier runs of the job did.

        Args:
            again: begin anew in any case.
            sample: for a verification, the share of rows to check.
        """
        create_state_tables(self._setting.engine)
        with self.opened() as (session, rows, ranges):
            if again or not ranges.exist(session) or not ranges.are_whole(session):
                total = rows.count(session.connection(), self._work.due(rows))
                ranges.make(session, size=self._setting.pace.range_rows, total=total, sample=sample)
            elif ranges.count(session).finished and rows.any(session.connection(), self._work.due(rows)):
                ranges.next_sweep(session, anyway=True)
            ranges.ask_to_stop(session, False)
            done = ranges.count(session).rows
            session.commit()
        return done

    def is_over(self) -> bool:
        """Whether the job was begun before, and came to its end."""
        create_state_tables(self._setting.engine)
        with self.opened() as (session, _, ranges):
            return ranges.exist(session) and ranges.count(session).finished

    def run(self, crew: Crew, *, sweeps: bool = False) -> bool:
        """Do the job; True if nothing is left.

        Args:
            sweeps: whether to go over the rows again, for rows that were changed meanwhile.
        """
        return run_workers(self._setting, self._column, self._work, crew, sweeps=sweeps)

    @contextmanager
    def opened(self) -> Iterator[tuple[Session, Rows, Ranges]]:
        """A session, with the column's rows and the job's ranges."""
        work = self._work
        with Session(self._setting.engine) as session:
            rows = self._setting.rows(session.connection(), self._column)
            yield (
                session,
                rows,
                Ranges(rows, self._column.name, work.job, part=work.part, sampled=work.sampled),
            )
