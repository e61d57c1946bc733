"""The migration of a column, as its steps see it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy_envelope.migration.database.record import Record
from sqlalchemy_envelope.migration.running.ranges import written_so_far
from sqlalchemy_envelope.migration.running.whole_job import WholeJob
from sqlalchemy_envelope.migration.steps.both_columns import BothColumns
from sqlalchemy_envelope.migration.steps.requirements import Requirements

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.migration.database.columns import MigratingColumn
    from sqlalchemy_envelope.migration.database.record import Standing
    from sqlalchemy_envelope.migration.database.state import Phase
    from sqlalchemy_envelope.migration.jobs.work import Work
    from sqlalchemy_envelope.migration.running.ranges import JobCount
    from sqlalchemy_envelope.migration.running.setting import Setting


class ColumnMigration:
    """A column, the requirements and changes of its steps, and the record of its migration.

    Attributes:
        name: the migration's name.
        require: the requirements of the steps.
        schema: the two columns in the database, and their triggers.
    """

    def __init__(self, setting: Setting, column: MigratingColumn) -> None:
        self._setting, self.column, self.name = setting, column, column.name
        self.require = Requirements(setting, column)
        self.schema = BothColumns(setting, column)

    def standing(self) -> Standing:
        """The recorded state of the migration."""
        return self.require.standing()

    def job(self, work: Work) -> WholeJob:
        """A job over all rows."""
        return WholeJob(self._setting, self.column, work)

    def advance(self, phase: Phase) -> None:
        """Record a phase, unless the migration has reached a later phase."""
        with self._setting.engine.begin() as connection:
            Record(connection, self.name).advance(phase, self.column.from_column.name)

    def set_phase(self, phase: Phase) -> None:
        """Record a phase, even an earlier phase."""
        with self._setting.engine.begin() as connection:
            Record(connection, self.name).set_phase(phase, self.column.from_column.name)

    def note_verification(self, session: Session, count: JobCount, sample: float | None) -> None:
        """Record the result of a finished verification, and commit."""
        record = Record(session.connection(), self.name)
        record.note_verification(count.rows, count.bad, count.locked, sample)
        session.commit()

    def forget_verification(self) -> None:
        """Record that rows were written since the verification."""
        with self._setting.engine.begin() as connection:
            Record(connection, self.name).forget_verification()

    def written_so_far(self) -> list[int]:
        """The number of rows that each job has written, of the jobs that write ciphertexts."""
        with self._setting.engine.connect() as connection:
            return written_so_far(connection, self.name)
