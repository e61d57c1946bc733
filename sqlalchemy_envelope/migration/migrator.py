"""`Migrator`: the steps of a migration, each of them safe to repeat, and refused while it would lose
something."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, func, inspect, select
from sqlalchemy.orm import Session
from sqlalchemy.types import NullType

from sqlalchemy_envelope.crypto.frames import emptying_class
from sqlalchemy_envelope.exceptions import ConfigurationError, EnvelopeError, MigrationRefusedError
from sqlalchemy_envelope.migration.database import schema
from sqlalchemy_envelope.migration.database.columns import (
    MigratingColumn,
    column_named,
    encrypted_columns,
    migrating_columns,
)
from sqlalchemy_envelope.migration.database.state import Job, MigrationState, Phase, RangeState, StateBase
from sqlalchemy_envelope.migration.inspection.obstacles import find_obstacles
from sqlalchemy_envelope.migration.jobs.jobs import Backfill, Reencrypt, Reverse, Verify
from sqlalchemy_envelope.migration.jobs.preflight import check_sample
from sqlalchemy_envelope.migration.jobs.repair import Repair
from sqlalchemy_envelope.migration.running.ranges import Ranges
from sqlalchemy_envelope.migration.running.reports import (
    ColumnStatus,
    Progress,
    ReencryptReport,
    RepairReport,
    RunReport,
    VerifyReport,
)
from sqlalchemy_envelope.migration.running.runner import Pace, stopped
from sqlalchemy_envelope.migration.running.setting import Setting
from sqlalchemy_envelope.migration.running.steady import steady
from sqlalchemy_envelope.migration.running.workers import run_workers

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from sqlalchemy import Connection, Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from sqlalchemy_envelope.migration.inspection.obstacles import Finding
    from sqlalchemy_envelope.migration.jobs.jobs import Work
    from sqlalchemy_envelope.orm.verbs.envelope import Envelope

_ORDER = list(Phase)
_UNFINISHED = frozenset({Phase.TRACKING, Phase.BACKFILLED, Phase.VERIFIED, Phase.REVERSING})
"""Phases in which the application reads and writes both columns."""


@emptying_class
class Migrator:
    """Moves the values of columns with a `PreviousColumn` while the application runs.

    Args:
        engine: of the database; an asynchronous one works through `AsyncMigrator`.
        envelope: the application's.
        base: the declarative base, or registry, of its models.
        provider: the provider that holds owners' keys, or a campaign's: owners without keys get some under
            it. None: owners who have keys are written to by sealed write epochs, others are left.
        reference: `"module:attribute"` by which other processes find this very object; workers need it.
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
        if provider is not None:
            envelope.policy.require_providers().named(provider)

    @property
    def engine(self) -> Engine:
        """The synchronous engine; its logs and errors show no parameters."""
        return self.setting.engine

    @property
    def given_engine(self) -> Engine | AsyncEngine:
        """The engine as it was given."""
        return self.setting.given_engine

    @property
    def reference(self) -> str | None:
        """Where other processes find this very object."""
        return self.setting.reference

    @reference.setter
    def reference(self, reference: str | None) -> None:
        self.setting.reference = reference

    @property
    def pace(self) -> Pace:
        """How hard it works."""
        return self.setting.pace

    @pace.setter
    def pace(self, pace: Pace) -> None:
        self.setting.pace = pace

    # ------------------------------------------------------------------ what there is

    @property
    def columns(self) -> list[MigratingColumn]:
        """The columns that are being moved."""
        return migrating_columns(self.base)

    def column(self, name: str) -> MigratingColumn:
        """One of them, as `table.attribute`; or one of `leftovers`."""
        known = self.columns
        try:
            return column_named(known, name)
        except ConfigurationError:
            pass
        try:
            return column_named([*known, *self.leftovers()], name)
        except ConfigurationError:
            if name in self.forgotten():
                raise ConfigurationError(self.put_back([name])) from None
            raise

    def forgotten(self) -> list[str]:
        """The names of columns whose models have forgotten the previous one before the migration let them."""
        undeclared = {one.name for one in encrypted_columns(self.base) if one.previous is None}
        return sorted(undeclared & self._unfinished().keys())

    def put_back(self, names: Iterable[str]) -> str:
        """The cure for columns of `forgotten`."""
        phases = self._unfinished()
        told = [f"{name} is in the phase {str(phases[name])!r}" for name in names]
        return (
            f"{', '.join(told)}, and the models have no `previous=` any more: put `previous=` "
            f"back, finish the "
            "migration (cut over, guard), and remove `previous=` after that."
        )

    def _unfinished(self) -> dict[str, Phase]:
        with Session(self.engine) as session:
            if not self._has_state(session):
                return {}
            phases = {state.name: Phase(state.phase) for state in session.scalars(select(MigrationState))}
        return {name: phase for name, phase in phases.items() if phase in _UNFINISHED}

    def leftovers(self) -> list[MigratingColumn]:
        """Columns whose models have forgotten the previous one, while the database still has it."""
        with Session(self.engine) as session:
            if not self._has_state(session):
                return []
            states = {state.name: state for state in session.scalars(select(MigrationState))}
        return [
            replace(column, previous=Column(states[column.name].previous, NullType()))
            for column in encrypted_columns(self.base)
            if column.previous is None
            and column.name in states
            and states[column.name].previous is not None
            and states[column.name].phase in (Phase.CUT_OVER, Phase.GUARDED)
        ]

    def phase(self, name: str) -> Phase:
        """How far a column is."""
        with Session(self.engine) as session:
            return self._phase(session, self.column(name))

    def plan(self, name: str) -> list[Finding]:
        """What will hurt, found in the database; changes nothing."""
        with self.engine.connect() as connection:
            return find_obstacles(connection, self.column(name))

    @steady
    def status(self, name: str) -> ColumnStatus:
        """Where a migration stands. Counts rows: some tenths of a second for each million."""
        column = self.column(name)
        with Session(self.engine) as session:
            state = self._state(session, column)
            done = late = pending = both = alone = unowned = 0
            connection = session.connection()
            columns = schema.tracked(column)
            if schema.has_column(connection, columns, columns.encrypted):
                rows = self.setting.rows(connection, column)
                if not schema.has_column(connection, columns, columns.previous):
                    # Contracted, while this program's models still declare it.
                    alone = rows.count(connection, rows.encrypted.is_not(None))
                else:
                    pending = rows.count(connection, rows.pending)
                    both = rows.count(connection, rows.previous.is_not(None) & rows.encrypted.is_not(None))
                    alone = rows.count(connection, rows.encrypted_alone)
                    if pending:
                        unowned = rows.count(connection, rows.pending & ~rows.owned)
                ranges = Ranges(rows, column.name, Job.BACKFILL)
                if state is not None and ranges.exist(session):
                    count = ranges.count(session)
                    done, late = count.rows, count.late
            else:
                rows = self.setting.rows(connection, column)
                pending = rows.count(connection, rows.previous.is_not(None))
            return ColumnStatus(
                column.name,
                Phase(state.phase) if state is not None else Phase.NEW,
                column.policy,
                pending,
                both,
                alone,
                unowned,
                done,
                late,
                state.verified_at if state is not None else None,
                state.mismatches if state is not None else None,
                state.locked if state is not None else None,
                state.verified_sample if state is not None else None,
            )

    # ------------------------------------------------------------------ the steps

    @steady
    def expand(self, name: str) -> None:
        """Add the encrypted column, if it is not there, and begin to notice who writes the previous one
        alone."""
        column = self.column(name)
        self._prepare_state()
        columns, dialect = schema.tracked(column), self.engine.dialect

        def missing(connection: Connection) -> list[str]:
            schema.require_trackable(connection, columns)
            there = schema.has_column(connection, columns, column.encrypted.name)
            # A reverse that was killed in the middle has left its guard.
            unguarded = schema.unguard(dialect, columns) if phase is Phase.REVERSED else []
            added = [] if there else schema.add_column(dialect, columns)
            return [*added, *unguarded, *schema.track(dialect, columns)]

        with Session(self.engine) as session:
            phase = self._phase(session, column)
        if phase in (Phase.CUT_OVER, Phase.GUARDED, Phase.CONTRACTED, Phase.REVERSING):
            raise MigrationRefusedError(
                f"{column.name} is in the phase {phase.value!r}: it was expanded before."
            )
        schema.change(self.engine, missing, patience=self.pace.patience)
        self._advance(column, Phase.TRACKING)
        # Each in a transaction of its own: the second one reads the whole table, and lets others write.
        for step in (schema.add_missing_check, schema.validate_check):
            schema.change(self.engine, partial(step, columns=columns), patience=self.pace.patience)

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
        """Encrypt every row that has a previous value alone; goes on where an earlier run stopped.

        Repeated until a look over the table finds none: who writes meanwhile is found.

        Args:
            workers: how many work side by side; more than one needs `reference`.
            executor: where they run, in place of this machine's processes: any `concurrent.futures.Executor`.
            stop: asked after each chunk.
            progress: told about twice a second.

        Raises:
            MigrationRefusedError: the tables for owners' keys are missing.
            MigrationStoppedError: the database or the machine refused; what is done stays done.
            PreviousValueError: a previous value cannot be read. Of another library's ciphertext a sample is
                read before anything is changed.
        """
        column = self.column(name)
        began = time.perf_counter()
        with Session(self.engine) as session:
            phase = self._phase(session, column)
        if phase in (Phase.CONTRACTED, Phase.REVERSING):
            raise MigrationRefusedError(f"{column.name} is {phase.value}: there is nothing to encrypt.")
        self._require_key_tables(column)
        self._look_first(column)
        if phase in (Phase.NEW, Phase.REVERSED):
            self.expand(column.name)
        self._track_again(column)
        self._begin(column, Backfill(), again=phase is Phase.REVERSED)
        finished = self._do(column, Backfill(), workers, executor, stop, progress, sweeps=True)
        with Session(self.engine) as session:
            rows = self.setting.rows(session.connection(), column)
            count = Ranges(rows, column.name, Job.BACKFILL).count(session)
            pending = rows.count(session.connection(), rows.pending)
            unowned = rows.count(session.connection(), rows.pending & ~rows.owned) if pending else 0
        if finished and pending == 0:
            self._advance(column, Phase.BACKFILLED)
        seconds = time.perf_counter() - began
        return RunReport(
            column.name, count.rows, count.late, pending, unowned, finished and not pending, seconds
        )

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
        """Decrypt every encrypted value, or a random share of them, and compare it with the previous one."""
        if sample is not None and not 0 < sample <= 1:
            raise ConfigurationError(f"verify(sample={sample!r}): a share of the rows, over 0 and up to 1.")
        column = self.column(name)
        self._require(column, Phase.TRACKING)
        self._track_again(column)
        work = Verify(sample)
        self._begin(column, work, again=True, sample=sample)
        before = self._encrypted_so_far(column)
        finished = self._do(column, work, workers, executor, stop, progress, sweeps=False)
        # What another process encrypted meanwhile may lie behind the place where this one was.
        finished = finished and self._encrypted_so_far(column) == before
        with Session(self.engine) as session:
            rows = self.setting.rows(session.connection(), column)
            ranges = Ranges(rows, column.name, Job.VERIFY, sampled=work.sampled)
            count = ranges.count(session)
            # Another may have begun anew meanwhile: then these are its numbers.
            finished = finished and count.finished and ranges.is_mine(session)
            pending = rows.count(session.connection(), rows.pending)
            examples = ranges.examples(session)
            report = VerifyReport(
                column.name, count.rows, count.bad, count.locked, pending, sample, finished, examples
            )
            state = self._state(session, column)
            if state is not None and finished:
                state.verified_rows, state.verified_sample = count.rows, sample
                state.mismatches, state.locked = count.bad, count.locked
                state.verified_at = dt.datetime.now(dt.UTC)
                session.commit()
        if report.is_clean:
            self._advance(column, Phase.VERIFIED)
        return report

    @steady
    def cutover(self, name: str, *, accept_sample: bool = False, accept_locked: int = 0) -> None:
        """From here on the encrypted column counts alone: let the previous one be NULL.

        Deploy the policy "read" after it. The migration can be reversed until `contract`.

        Raises:
            MigrationRefusedError: rows are pending, or the verification is missing, old or not clean.
        """
        column = self.column(name)
        self._require(column, Phase.TRACKING)
        self._track_again(column)
        self._require_clean(column, accept_sample, accept_locked)
        with self.engine.connect() as connection:
            statements = schema.make_nullable(connection, schema.tracked(column))
        statements += schema.keep(self.engine.dialect, schema.tracked(column))
        schema.change(self.engine, statements, patience=self.pace.patience)
        self._advance(column, Phase.CUT_OVER)

    @steady
    def guard(self, name: str, *, accept_sample: bool = False, accept_locked: int = 0) -> None:
        """Let the database refuse plaintext: from here on the application may forget the previous column.

        Remove `previous=` from the model and deploy that after it, then `contract`.

        Raises:
            MigrationRefusedError: not cut over, the policy "both" is still declared, rows are pending, or the
                verification is missing, old or not clean.
        """
        column = self.column(name)
        self._require(column, Phase.CUT_OVER)
        if column.policy == "both":
            raise MigrationRefusedError(
                f"{column.name} still has the policy 'both': this program writes plaintext. Deploy "
                "policy='refuse' everywhere first."
            )
        self._track_again(column)
        self._require_clean(column, accept_sample, accept_locked)
        columns, dialect = schema.tracked(column), self.engine.dialect
        # From here on nobody can make a row pending: what is looked at below stays so.
        schema.change(self.engine, schema.guard(dialect, columns), patience=self.pace.patience)
        try:
            self._require_none_pending(column)
        except BaseException:
            back = schema.unguard(dialect, columns) + schema.keep(dialect, columns)
            schema.change(self.engine, back, patience=self.pace.patience)
            raise
        self._advance(column, Phase.GUARDED)

    @steady
    def contract(
        self, name: str, *, accept_sample: bool = False, accept_locked: int = 0, stopped: bool = False
    ) -> None:
        """Drop the previous column. There is no way back after it.

        Args:
            stopped: nothing of the application runs, so that no program reads the column that goes: it may
                be declared still.

        Raises:
            MigrationRefusedError: as for `guard`, which is done first; or the models declare `previous=`.
        """
        column = self.column(name)
        self._require(column, Phase.CUT_OVER)
        with self.engine.connect() as connection:
            dropped = not schema.has_column(connection, schema.tracked(column), column.from_column.name)
            if not dropped:
                schema.require_droppable(connection, schema.tracked(column), column.from_column.name)
        if dropped:  # by one that was killed before it could note it
            self._advance(column, Phase.CONTRACTED)
            return
        if column.policy != "none" and not stopped:
            raise MigrationRefusedError(
                f"{column.name} still declares `previous=`: programs with these models read the column, and "
                "would fail when it is gone. After `guard`, remove it and deploy that; or say that nothing "
                "runs: stopped=True."
            )
        with Session(self.engine) as session:
            guarded = self._phase(session, column) is Phase.GUARDED
        if guarded and not self._track_again(column):
            self._require_none_pending(column)
        else:
            self.guard(name, accept_sample=accept_sample, accept_locked=accept_locked)
        columns, dialect = schema.tracked(column), self.engine.dialect
        dropping = [
            *schema.untrack(dialect, columns),
            *schema.drop_column(dialect, columns, columns.previous),
        ]
        schema.change(self.engine, dropping, patience=self.pace.patience)
        self._advance(column, Phase.CONTRACTED)

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
        """Move every value back to the previous column; what was written since the cut-over is decrypted.

        Deploy the policy "both" before it.

        Args:
            drop: drop the encrypted column too, when every value is back.

        Raises:
            MigrationRefusedError: contracted already; or, with `drop`, values that no key here opens.
        """
        column = self.column(name)
        self._require(column, Phase.TRACKING, dropping=drop)
        if column.policy != "both":
            raise MigrationRefusedError(
                f"{column.name} has the policy {column.policy!r}, under which the previous column "
                "is left "
                "empty. Deploy policy='both' first: it writes to both."
            )
        began = time.perf_counter()
        columns, dialect = schema.tracked(column), self.engine.dialect
        if drop:
            with self.engine.connect() as connection:
                schema.require_droppable(connection, columns, columns.encrypted)
        schema.change(self.engine, schema.unkeep(dialect, columns), patience=self.pace.patience)
        self._set_phase(column, Phase.REVERSING)
        self._begin(column, Reverse(), again=True)
        finished = self._do(column, Reverse(), workers, executor, stop, progress, sweeps=True)
        with Session(self.engine) as session:
            rows = self.setting.rows(session.connection(), column)
            count = Ranges(rows, column.name, Job.REVERSE).count(session)
            left = rows.count(session.connection(), rows.encrypted_alone)
        if finished and left == 0:
            self._set_phase(column, Phase.REVERSED)
            self._forget_verification(column)
        if drop:
            # From here on nobody can write the encrypted column alone: what is looked at below stays so.
            guards = schema.guard(dialect, columns, back=True)
            schema.change(self.engine, guards, patience=self.pace.patience)
            with Session(self.engine) as session:
                rows = self.setting.rows(session.connection(), column)
                left = rows.count(session.connection(), rows.encrypted_alone)
            if left:
                schema.change(self.engine, schema.unguard(dialect, columns), patience=self.pace.patience)
                raise MigrationRefusedError(
                    f"{left} values of {column.name} are encrypted alone. Either no key here opens them, "
                    "since "
                    "their owners hold the keys, or a program with the policy 'read' goes on writing: "
                    "stop it, "
                    "and reverse again. The encrypted column stays."
                )
            dropping = [
                *schema.untrack(dialect, columns),
                *schema.drop_column(dialect, columns, columns.encrypted),
            ]
            schema.change(self.engine, dropping, patience=self.pace.patience)
        seconds = time.perf_counter() - began
        return RunReport(column.name, count.rows, count.late, left, 0, finished and left == 0, seconds)

    @steady
    def repair(self, name: str, *, stop: Callable[[], bool] = lambda: False) -> RepairReport:
        """Put rows right that a verification found, by which of their two values counts.

        Before the cut-over the previous one: the row becomes pending, and the next run encrypts it. After it
        the encrypted one, and the previous one is emptied; where that does not authenticate, the previous one
        is encrypted anew. Look first at who wrote those rows.
        """
        column = self.column(name)
        self._require(column, Phase.TRACKING)
        with Session(self.engine) as session:
            cut_over = self._phase(session, column) in (Phase.CUT_OVER, Phase.GUARDED)
        work = Repair(cut_over=cut_over)
        self._begin(column, work, again=True)
        finished = self._do(column, work, 1, None, stop, None, sweeps=False)
        with Session(self.engine) as session:
            count = Ranges(self.setting.rows(session.connection(), column), column.name, Job.REPAIR).count(
                session
            )
        self._forget_verification(column)
        return RepairReport(column.name, count.rows, count.locked, finished)

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
        """Encrypt every value anew that is not under its owner's current data key: after a new epoch.

        Args:
            name: any encrypted column, as `table.attribute`.
            owner: do this owner's rows alone, with the keys of the unlocked session around this call.
        """
        column = column_named(encrypted_columns(self.base), name)
        key = None if owner is None else column.path.owner_class.mapper.primary_key_from_instance(owner)
        if key is not None and column.path.columns and not column.path.is_direct:
            raise ConfigurationError(
                f"reencrypt(owner=...) needs a column that names its owner itself; {name} leads to it "
                f"through others. "
                "Leave `owner` out: whoever is unlocked here gets their values encrypted anew."
            )
        if key is not None and (workers > 1 or executor is not None):
            raise ConfigurationError(
                "reencrypt(owner=...) works with the keys that are unlocked here: without workers or "
                "executor."
            )
        work = Reencrypt(None if key is None or not column.path.columns else tuple(key))
        began = time.perf_counter()
        self._prepare_state()
        self._begin(column, work, again=True)
        finished = self._do(column, work, workers, executor, stop, progress, sweeps=False)
        with Session(self.engine) as session:
            ranges = Ranges(
                self.setting.rows(session.connection(), column), column.name, work.job, part=work.part
            )
            count = ranges.count(session)
            if work.part:
                ranges.clear(session)
                session.commit()
        finished = finished and count.finished
        seconds = time.perf_counter() - began
        return ReencryptReport(column.name, count.rows, count.locked, count.bad, finished, seconds)

    # ------------------------------------------------------------------ inside

    def _do(
        self,
        column: MigratingColumn,
        work: Work,
        workers: int,
        executor: Executor | None,
        stop: Callable[[], bool],
        progress: Callable[[Progress], None] | None,
        *,
        sweeps: bool,
    ) -> bool:
        return run_workers(self.setting, column, work, workers, executor, stop, progress, sweeps=sweeps)

    def _require_key_tables(self, column: MigratingColumn) -> None:
        with self.engine.connect() as connection:
            missing = schema.missing_key_tables(connection, column)
        if missing:
            raise MigrationRefusedError(
                f"The tables for the keys of {column.path.owner_class.name} are missing: "
                f"{', '.join(missing)}. Create them first, with an Alembic revision or "
                "`metadata.create_all()`. Nothing was changed."
            )

    def _look_first(self, column: MigratingColumn) -> None:
        """Refuse, before anything is changed, previous values that cannot be read."""
        try:
            with self.engine.connect() as connection:
                check_sample(connection, self.setting.rows(connection, column))
            return
        except EnvelopeError:
            raise
        except Exception as error:  # noqa: BLE001 - told without what a database shows of a row
            failed = stopped("look at the previous values", error)
        raise failed

    def _track_again(self, column: MigratingColumn) -> bool:
        """Put triggers back that went with a table which was built anew, or were disabled; whether there were
        such. Who wrote meanwhile was not noticed: what was verified before says nothing any more."""
        columns, dialect = schema.tracked(column), self.engine.dialect
        with Session(self.engine) as session:
            phase = self._phase(session, column)
            kept, guarded = phase in (Phase.CUT_OVER, Phase.GUARDED), phase is Phase.GUARDED
            if schema.is_tracked(session.connection(), columns, kept=kept, guarded=guarded):
                return False
        missing = schema.untrack(dialect, columns) + schema.track(dialect, columns)
        missing += schema.keep(dialect, columns) if kept else []
        missing += schema.guard(dialect, columns) if guarded else []
        schema.change(self.engine, missing, patience=self.pace.patience)
        self._forget_verification(column)
        return True

    def _prepare_state(self) -> None:
        with self.engine.begin() as connection:
            StateBase.metadata.create_all(connection)

    def _has_state(self, session: Session) -> bool:
        return inspect(session.connection()).has_table(MigrationState.__tablename__)

    def _state(self, session: Session, column: MigratingColumn) -> MigrationState | None:
        return session.get(MigrationState, column.name) if self._has_state(session) else None

    def _phase(self, session: Session, column: MigratingColumn) -> Phase:
        state = self._state(session, column)
        return Phase.NEW if state is None else Phase(state.phase)

    def _begin(
        self, column: MigratingColumn, work: Work, *, again: bool = False, sample: float | None = None
    ) -> None:
        """Make a job's ranges, unless it is under way; go over them once more if something is left."""
        self._prepare_state()
        with Session(self.engine) as session:
            rows = self.setting.rows(session.connection(), column)
            ranges = Ranges(rows, column.name, work.job, part=work.part)
            if again or not ranges.exist(session) or not ranges.are_whole(session):
                total = rows.count(session.connection(), work.due(rows))
                ranges.make(session, size=self.pace.range_rows, total=total, sample=sample)
            elif ranges.count(session).finished and rows.any(session.connection(), work.due(rows)):
                ranges.next_sweep(session, anyway=True)
            ranges.ask_to_stop(session, False)
            session.commit()

    def _encrypted_so_far(self, column: MigratingColumn) -> list[int]:
        """How many rows the jobs that write ciphertexts have written."""
        with Session(self.engine) as session:
            by_job = select(RangeState.job, func.sum(RangeState.rows)).where(RangeState.name == column.name)
            counted = session.execute(by_job.group_by(RangeState.job)).all()
            writing = (Job.BACKFILL.value, Job.REENCRYPT.value)
            return sorted(int(count) for job, count in counted if job.startswith(writing))

    def _advance(self, column: MigratingColumn, phase: Phase) -> None:
        """Note a phase, unless a later one is reached."""
        with Session(self.engine) as session:
            now = self._phase(session, column)
        if now in (Phase.REVERSING, Phase.REVERSED) or _ORDER.index(phase) > _ORDER.index(now):
            self._set_phase(column, phase)

    def _set_phase(self, column: MigratingColumn, phase: Phase) -> None:
        with Session(self.engine) as session:
            state = self._state(session, column)
            if state is None:
                session.add(
                    MigrationState(name=column.name, phase=phase.value, previous=column.from_column.name)
                )
            else:
                state.phase = phase.value
            session.commit()

    def _forget_verification(self, column: MigratingColumn) -> None:
        """Rows were written since: what was verified says nothing of them."""
        with Session(self.engine) as session:
            state = self._state(session, column)
            if state is not None:
                state.verified_at = state.mismatches = state.locked = None
                if state.phase == Phase.VERIFIED:
                    state.phase = Phase.BACKFILLED.value
                session.commit()

    def _require(self, column: MigratingColumn, phase: Phase, *, dropping: bool = False) -> None:
        with Session(self.engine) as session:
            now = self._phase(session, column)
        if dropping and now is Phase.REVERSED:
            return
        reached = _ORDER.index(now) >= _ORDER.index(phase)
        if (
            not reached
            or now in (Phase.CONTRACTED, Phase.REVERSED)
            or (now is Phase.REVERSING and phase is Phase.CUT_OVER)
        ):
            raise MigrationRefusedError(
                f"{column.name} is in the phase {now.value!r}, and has to be in {phase.value!r}."
            )

    def _require_none_pending(self, column: MigratingColumn) -> None:
        with self.engine.connect() as connection:
            rows = self.setting.rows(connection, column)
            pending = rows.count(connection, rows.pending)
            unowned = rows.count(connection, rows.pending & ~rows.owned) if pending else 0
        if pending:
            why = (
                f", {unowned} of them because they have no owner: give them one, or delete them"
                if unowned
                else ""
            )
            raise MigrationRefusedError(
                f"{pending} rows of {column.name} have a previous value alone{why}. Run `migrate run` and "
                "`migrate verify` again. If rows come back, somebody still writes the previous column alone: "
                "a program that knows nothing of the migration, or, under the policy 'both', one that writes "
                "for locked owners without `envelope.write_only(session)`."
            )

    def _require_clean(self, column: MigratingColumn, accept_sample: bool, accept_locked: int) -> None:
        self._require_none_pending(column)
        with Session(self.engine) as session:
            state = self._state(session, column)
            state = None if state is None or state.verified_at is None else state
        if state is None:
            raise MigrationRefusedError(
                f"{column.name} was not verified since it was last written to: verify it."
            )
        if state.mismatches:
            raise MigrationRefusedError(
                f"The verification of {column.name} found {state.mismatches} values that differ or do not "
                "authenticate. Find out who wrote those rows. `repair` puts them right by the value that "
                "counts, the "
                "previous one before the cut-over, and the encrypted one after it; then run and verify again."
            )
        if state.verified_sample is not None and not accept_sample:
            raise MigrationRefusedError(
                f"Of {column.name} a sample of {state.verified_sample:.2%} was verified. Verify all, or "
                "accept the sample: accept_sample=True."
            )
        if (state.locked or 0) > accept_locked:
            raise MigrationRefusedError(
                f"{state.locked} values of {column.name} could not be verified: their owners hold the keys "
                "alone. Accept "
                f"that many, if that is as it should be: accept_locked={state.locked}."
            )
