"""`Migrator`: the steps of a migration. Over 400 lines, since its docstrings are the reference.

Each step is safe to repeat, and is refused while it would lose something.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.crypto.frames import emptying_class
from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.migration.database.columns import column_named, encrypted_columns
from sqlalchemy_envelope.migration.database.known_columns import KnownColumns
from sqlalchemy_envelope.migration.database.state import Job, Phase, create_state_tables
from sqlalchemy_envelope.migration.inspection.plan import plan_of
from sqlalchemy_envelope.migration.jobs.backfill import Backfill
from sqlalchemy_envelope.migration.jobs.reencrypt import Reencrypt
from sqlalchemy_envelope.migration.jobs.repair import Repair
from sqlalchemy_envelope.migration.jobs.reverse import Reverse
from sqlalchemy_envelope.migration.jobs.verify import Verify
from sqlalchemy_envelope.migration.running.reports import (
    ColumnStatus,
    Progress,
    ReencryptReport,
    RepairReport,
    RunReport,
    VerifyReport,
)
from sqlalchemy_envelope.migration.running.runner import Pace
from sqlalchemy_envelope.migration.running.setting import Setting
from sqlalchemy_envelope.migration.running.steady import steady
from sqlalchemy_envelope.migration.running.whole_job import WholeJob
from sqlalchemy_envelope.migration.running.workers import Crew
from sqlalchemy_envelope.migration.steps.column_migration import ColumnMigration
from sqlalchemy_envelope.migration.steps.index_steps import INDEX_JOBS, IndexSteps
from sqlalchemy_envelope.migration.steps.status import status_of

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from sqlalchemy_envelope.migration.database.columns import MigratingColumn
    from sqlalchemy_envelope.migration.inspection.findings import Finding
    from sqlalchemy_envelope.orm.verbs.envelope.envelope import Envelope


@emptying_class
class Migrator(IndexSteps):
    """Moves the values of columns with a `PreviousColumn` while the application runs.

    Args:
        engine: the engine of the database. An asynchronous engine works through `AsyncMigrator`.
        envelope: the application's `Envelope`.
        base: the declarative base, or registry, of the application's models.
        provider: the provider that holds owners' keys, or a campaign's provider: owners without keys get keys
            under it. With None, owners with keys are written to by sealed write epochs; others are left.
        reference: `"module:attribute"`, by which other processes find this very object. Workers need it.
    """

    def __init__(
        self,
        engine: Engine | AsyncEngine,
        envelope: Envelope,
        base: Any,
        *,
        provider: str | None = None,
        reference: str | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.setting = Setting(engine, envelope, provider, reference, pace or Pace())
        self.base = base
        self._known = KnownColumns(self.setting.engine, base)
        if provider is not None:
            envelope.policy.require_providers().named(provider)

    @property
    def engine(self) -> Engine:
        """The synchronous engine; its logs and errors show no parameters."""
        return self.setting.engine

    @property
    def given_engine(self) -> Engine | AsyncEngine:
        """The engine as the application gave it."""
        return self.setting.given_engine

    @property
    def reference(self) -> str | None:
        """The reference by which other processes find this very object."""
        return self.setting.reference

    @reference.setter
    def reference(self, reference: str | None) -> None:
        self.setting.reference = reference

    @property
    def pace(self) -> Pace:
        """How hard the migration works."""
        return self.setting.pace

    @pace.setter
    def pace(self, pace: Pace) -> None:
        self.setting.pace = pace

    # ------------------------------------------------------------------ what there is

    @property
    def columns(self) -> list[MigratingColumn]:
        """The columns that are being moved."""
        return self._known.moving

    def column(self, name: str) -> MigratingColumn:
        """The column of `columns` or `leftovers` with this name, `table.attribute`."""
        return self._known.named(name)

    def worked_on(self, name: str, job: Job) -> MigratingColumn:
        """The column or index on which a job works, as other processes find it."""
        return self.index(name) if job in INDEX_JOBS else self.column(name)

    def _migration(self, name: str, reached: Phase | None = None) -> ColumnMigration:
        """The migration of a column. It must have reached the phase, if a phase is given."""
        migration = ColumnMigration(self.setting, self.column(name))
        if reached is not None:
            migration.require.reached(reached)
        return migration

    def forgotten(self) -> list[str]:
        """The names of columns that lost `previous=` in the models before the migration allowed it."""
        return self._known.forgotten()

    def put_back(self, names: Iterable[str]) -> str:
        """What to do about columns of `forgotten`."""
        return self._known.put_back(names)

    def leftovers(self) -> list[MigratingColumn]:
        """Columns without `previous=` in the models, while the database still has the previous column."""
        return self._known.leftovers()

    def phase(self, name: str) -> Phase:
        """The phase of a column's migration."""
        return self._migration(name).standing().phase

    def plan(self, name: str) -> list[Finding]:
        """Find what will hurt, how many owners need keys, and how fast rows are written; change nothing."""
        return plan_of(self.engine, self.column(name), self.setting.provider)

    @steady
    def status(self, name: str) -> ColumnStatus:
        """The state of a migration. Rows are counted: some tenths of a second for each million."""
        return status_of(self.setting, self.column(name))

    # ------------------------------------------------------------------ the steps

    @steady
    def expand(self, name: str) -> None:
        """Add the encrypted column, if it does not exist, and begin to notice writes to the previous column
        alone."""
        migration = self._migration(name)
        create_state_tables(self.engine)
        migration.require.not_cut_over()
        migration.schema.add(reversed_before=migration.standing().phase is Phase.REVERSED)
        migration.advance(Phase.TRACKING)
        migration.schema.add_check()

    @steady
    def run(
        self,
        name: str,
        *,
        workers: int = 1,
        executor: Executor | None = None,
        stop: Callable[[], bool] = lambda: False,
        progress: Callable[[Progress], None] | None = None,
    ) -> RunReport:
        """Encrypt every row that has a previous value alone; go on where an earlier run stopped.

        The run repeats until a look over the table finds no such row, so rows that are written meanwhile are
        found too.

        Args:
            workers: the number of workers side by side; two or more need `reference`.
            executor: runs the workers, in place of this machine's processes; any
                `concurrent.futures.Executor`.
            stop: asked after each chunk; true ends the work cleanly.
            progress: called about twice a second.

        Raises:
            MigrationRefusedError: the tables for owners' keys are missing.
            MigrationStoppedError: the database or the machine refused; finished chunks stay done.
            PreviousValueError: a previous value cannot be read. A sample of another library's ciphertext is
                read before anything is changed.
        """
        migration, began = self._migration(name), time.perf_counter()
        phase = migration.standing().phase
        migration.require.something_to_encrypt()
        migration.require.key_tables()
        migration.require.index_columns()
        migration.require.readable_values()
        if phase in (Phase.NEW, Phase.REVERSED):
            self.expand(migration.name)
        migration.schema.track_again()
        job = migration.job(Backfill())
        earlier = job.begin(again=phase is Phase.REVERSED)
        finished = job.run(Crew(workers, executor, stop, progress), sweeps=True)
        with job.opened() as (session, rows, ranges):
            count, connection = ranges.count(session), session.connection()
            pending = rows.count(connection, rows.pending)
            unowned = rows.count(connection, rows.pending & ~rows.owned) if pending else 0
        finished = finished and pending == 0
        if finished:
            migration.advance(Phase.BACKFILLED)
        seconds = time.perf_counter() - began
        return RunReport(migration.name, count.rows, count.late, pending, unowned, finished, seconds, earlier)

    @steady
    def verify(
        self,
        name: str,
        *,
        sample: float | None = None,
        workers: int = 1,
        executor: Executor | None = None,
        stop: Callable[[], bool] = lambda: False,
        progress: Callable[[Progress], None] | None = None,
    ) -> VerifyReport:
        """Decrypt every encrypted value, or a random share, and compare it with the previous value."""
        if sample is not None and not 0 < sample <= 1:
            raise ConfigurationError(f"verify(sample={sample!r}): a share of the rows, over 0 and up to 1.")
        migration = self._migration(name, Phase.TRACKING)
        migration.schema.track_again()
        job = migration.job(Verify(sample))
        job.begin(again=True, sample=sample)
        before = migration.written_so_far()
        finished = job.run(Crew(workers, executor, stop, progress))
        # Another process may have encrypted rows behind the position of this verification meanwhile.
        finished = finished and migration.written_so_far() == before
        with job.opened() as (session, rows, ranges):
            count, connection = ranges.count(session), session.connection()
            # Another process may have begun the verification anew: then these numbers belong to it.
            finished = finished and count.finished and ranges.is_mine(session)
            pending, examples = rows.count(connection, rows.pending), ranges.examples(session)
            if finished:
                migration.note_verification(session, count, sample)
        report = VerifyReport(
            migration.name, count.rows, count.bad, count.locked, pending, sample, finished, examples
        )
        if report.is_clean:
            migration.advance(Phase.VERIFIED)
        return report

    @steady
    def cutover(self, name: str, *, accept_sample: bool = False, accept_locked: int = 0) -> None:
        """Let the encrypted column alone count from here on, and let the previous column be NULL.

        Deploy the policy "read" after it. The migration can be reversed until `contract`.

        Raises:
            MigrationRefusedError: rows are pending, or the verification is missing, old or not clean.
        """
        migration = self._migration(name, Phase.TRACKING)
        migration.schema.track_again()
        migration.require.clean(accept_sample=accept_sample, accept_locked=accept_locked)
        migration.schema.let_previous_be_empty()
        migration.advance(Phase.CUT_OVER)

    @steady
    def guard(self, name: str, *, accept_sample: bool = False, accept_locked: int = 0) -> None:
        """Let the database refuse plaintext: from here on the application may forget the previous column.

        Remove `previous=` from the model and deploy that after it, then `contract`.

        Raises:
            MigrationRefusedError: not cut over, the policy "both" is still declared, rows are pending, or the
                verification is missing, old or not clean.
        """
        migration = self._migration(name, Phase.CUT_OVER)
        migration.require.no_plaintext_writer()
        migration.schema.track_again()
        migration.require.clean(accept_sample=accept_sample, accept_locked=accept_locked)
        with migration.schema.guarded():
            migration.require.none_pending()
        migration.advance(Phase.GUARDED)

    @steady
    def contract(
        self, name: str, *, accept_sample: bool = False, accept_locked: int = 0, stopped: bool = False
    ) -> None:
        """Drop the previous column. There is no way back after it.

        Args:
            stopped: the whole application is stopped, so no program reads the column: the models may still
                declare it.

        Raises:
            MigrationRefusedError: as for `guard`, which is done first; or the models declare `previous=`.
        """
        migration = self._migration(name, Phase.CUT_OVER)
        if not migration.schema.require_previous_droppable():
            # A contract that was killed dropped the column before it could record that.
            migration.advance(Phase.CONTRACTED)
            return
        if not stopped:
            migration.require.undeclared()
        if migration.standing().phase is Phase.GUARDED and not migration.schema.track_again():
            migration.require.none_pending()
        else:
            self.guard(name, accept_sample=accept_sample, accept_locked=accept_locked)
        migration.schema.drop_previous()
        migration.advance(Phase.CONTRACTED)

    @steady
    def reverse(
        self,
        name: str,
        *,
        workers: int = 1,
        executor: Executor | None = None,
        stop: Callable[[], bool] = lambda: False,
        progress: Callable[[Progress], None] | None = None,
        drop: bool = False,
    ) -> RunReport:
        """Move every value back to the previous column. Values written since the cut-over are decrypted.

        Deploy the policy "both" before it.

        Args:
            drop: drop the encrypted column too, when every value is back.

        Raises:
            MigrationRefusedError: the column is contracted already; or, with `drop`, no key here opens some
                values.
        """
        migration, began = self._migration(name), time.perf_counter()
        if not (drop and migration.standing().phase is Phase.REVERSED):
            migration.require.reached(Phase.TRACKING)
        migration.require.both_written()
        if drop:
            migration.schema.require_encrypted_droppable()
        migration.schema.unkeep()
        migration.set_phase(Phase.REVERSING)
        job = migration.job(Reverse())
        job.begin(again=True)
        finished = job.run(Crew(workers, executor, stop, progress), sweeps=True)
        with job.opened() as (session, rows, ranges):
            count = ranges.count(session)
            left = rows.count(session.connection(), rows.encrypted_alone)
        if finished and left == 0:
            migration.set_phase(Phase.REVERSED)
            migration.forget_verification()
        if drop:
            migration.schema.drop_encrypted()
            left = 0
        seconds = time.perf_counter() - began
        return RunReport(migration.name, count.rows, count.late, left, 0, finished and left == 0, seconds)

    @steady
    def repair(self, name: str, *, stop: Callable[[], bool] = lambda: False) -> RepairReport:
        """Repair the rows that a verification found.

        Before the cut-over the previous value counts: the row becomes pending, and the next run encrypts it.
        After the cut-over the encrypted value counts, and the previous value is emptied. If the encrypted
        value does not authenticate, the previous value is encrypted anew. Find out first which program wrote
        the rows.
        """
        migration = self._migration(name, Phase.TRACKING)
        cut_over = migration.standing().phase in (Phase.CUT_OVER, Phase.GUARDED)
        job = migration.job(Repair(cut_over=cut_over))
        job.begin(again=True)
        finished = job.run(Crew(stop=stop))
        with job.opened() as (session, _, ranges):
            count = ranges.count(session)
        migration.forget_verification()
        return RepairReport(migration.name, count.rows, count.locked, finished)

    @steady
    def reencrypt(
        self,
        name: str,
        *,
        owner: object | None = None,
        workers: int = 1,
        executor: Executor | None = None,
        stop: Callable[[], bool] = lambda: False,
        progress: Callable[[Progress], None] | None = None,
    ) -> ReencryptReport:
        """Re-encrypt every value that is not under its owner's current data key, as after a new epoch.

        Args:
            name: any encrypted column, as `table.attribute`.
            owner: re-encrypt this owner's rows alone, with the keys of the unlocked session around this call.
        """
        column = column_named(encrypted_columns(self.base), name)
        if owner is not None and (workers > 1 or executor is not None):
            raise ConfigurationError(
                "reencrypt(owner=...) works with the keys that are unlocked here: without workers or "
                "executor."
            )
        work = Reencrypt() if owner is None else Reencrypt.of_owner(column, owner)
        began, job = time.perf_counter(), WholeJob(self.setting, column, work)
        job.begin(again=True)
        finished = job.run(Crew(workers, executor, stop, progress))
        with job.opened() as (session, _, ranges):
            count = ranges.count(session)
            if work.part:
                ranges.clear(session)
                session.commit()
        finished, seconds = finished and count.finished, time.perf_counter() - began
        return ReencryptReport(
            column.name, count.rows, count.locked, count.bad, finished, seconds, count.shredded
        )
