"""Workers side by side: in this process, in processes of this machine, or wherever an executor runs them.

Workers share nothing but the database. Each worker finds the migrator by its reference, `"module:attribute"`,
and makes connections and keys of its own.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from concurrent.futures import FIRST_EXCEPTION, BrokenExecutor, ProcessPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for_processes
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import Session

from sqlalchemy_envelope.exceptions import ConfigurationError, MigrationStoppedError
from sqlalchemy_envelope.migration.database.greenlets import run_apart
from sqlalchemy_envelope.migration.database.state import Job
from sqlalchemy_envelope.migration.jobs.backfill import Backfill
from sqlalchemy_envelope.migration.jobs.index_work import IndexFill, IndexRefill, IndexVerify
from sqlalchemy_envelope.migration.jobs.reencrypt import Reencrypt
from sqlalchemy_envelope.migration.jobs.reverse import Reverse
from sqlalchemy_envelope.migration.jobs.verify import Verify
from sqlalchemy_envelope.migration.running.ranges import Ranges
from sqlalchemy_envelope.migration.running.reports import Progress

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor, Future

    from sqlalchemy_envelope.migration.database.columns import MigratingColumn
    from sqlalchemy_envelope.migration.jobs.work import Work
    from sqlalchemy_envelope.migration.running.runner import Pace
    from sqlalchemy_envelope.migration.running.setting import Setting


def load(reference: str) -> Any:
    """The object that `"module:attribute"` names. A function is called for it.

    Raises:
        ConfigurationError: there is no such object.
    """
    name, _, attribute = reference.partition(":")
    if not name or not attribute:
        raise ConfigurationError(f"{reference!r} names no object: write 'package.module:attribute'.")
    try:
        found: Any = importlib.import_module(name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"{reference!r} cannot be loaded: {error}.") from None
    return found() if callable(found) and not isinstance(found, type) and not hasattr(found, "run") else found


def work_of(job: str, sample: float | None = None) -> Work:
    """The `Work` of the job with this name."""
    kinds: dict[str, Callable[[], Work]] = {
        Job.BACKFILL: Backfill,
        Job.VERIFY: lambda: Verify(sample),
        Job.REVERSE: Reverse,
        Job.REENCRYPT: Reencrypt,
        Job.INDEX_FILL: IndexFill,
        Job.INDEX_REFILL: IndexRefill,
        Job.INDEX_VERIFY: IndexVerify,
    }
    return kinds[job]()


def work(
    reference: str,
    column: str,
    job: str,
    number: int,
    sweeps: bool,
    sample: float | None,
    pace: Pace | None = None,
) -> bool:
    """Run a worker in a process of its own, as an executor does; True if nothing is left."""
    migrator = load(reference)
    setting: Setting = migrator.setting
    if pace is not None:
        setting.pace = pace

    def whole() -> bool:
        runner = setting.runner(
            migrator.worked_on(column, Job(job)), work_of(job, sample), number, stop=lambda: _told_to_end
        )
        return runner.run(sweeps=sweeps)

    return run_apart(setting.given_engine, whole)


@dataclass(frozen=True)
class Crew:
    """The workers of a job.

    Attributes:
        workers: the number of workers side by side; two or more need a `reference`.
        executor: runs the workers, in place of this machine's processes.
        stop: asked after each chunk; true ends the work cleanly.
        progress: called about twice a second.
    """

    workers: int = 1
    executor: Executor | None = None
    stop: Callable[[], bool] = lambda: False
    progress: Callable[[Progress], None] | None = None


def run_workers(
    setting: Setting,
    column: MigratingColumn,
    job: Work,
    crew: Crew,
    *,
    sweeps: bool,
) -> bool:
    """Do a job with these workers; True if nothing is left."""
    meter = _Meter(setting, column, job, crew.progress)
    workers, executor = crew.workers, crew.executor
    if workers <= 1 and executor is None:
        runner = setting.runner(column, job, stop=crew.stop, told=lambda _: meter.tell())
        finished = runner.run(sweeps=sweeps)
        meter.tell(last=True)
        return finished
    if setting.reference is None:
        raise ConfigurationError(
            "Workers in other processes have to find this migrator: Migrator(..., "
            "reference='package.module:attribute')."
        )
    with ExitStack() as stack:
        if executor is None:
            # Spawn the processes, do not fork: connections and keys must not cross a fork.
            context = multiprocessing.get_context("spawn")
            executor = stack.enter_context(ProcessPoolExecutor(workers, context, initializer=_note_signals))
        sample = job.sample if isinstance(job, Verify) else None
        futures = [
            executor.submit(
                work,
                setting.reference,
                column.name,
                job.job.value,
                number,
                sweeps,
                sample,
                setting.pace,
            )
            for number in range(max(workers, 1))
        ]
        return _watch(setting, column, job, futures, crew.stop, meter)


def _watch(
    setting: Setting,
    column: MigratingColumn,
    job: Work,
    futures: list[Future[bool]],
    stop: Callable[[], bool],
    meter: _Meter,
) -> bool:
    asked, waiting = False, set(futures)
    try:
        while waiting:
            # No wait here: an event loop may have other things to do.
            done, waiting = wait(waiting, timeout=0, return_when=FIRST_EXCEPTION)
            if waiting and not done:
                setting.sleep(0.1)
            meter.tell()
            if stop() and not asked:
                asked = True
                _ask(setting, column, job)
            for future in done:
                future.result()
    except BrokenExecutor:
        raise MigrationStoppedError(
            f"The {job.job.value} stopped: a worker was ended from outside, as for want of memory. What "
            "it had not checked in was rolled back. Run it again to go on."
        ) from None
    except BaseException:
        _ask(setting, column, job)
        wait(waiting, timeout=setting.pace.patience)
        raise
    meter.tell(last=True)
    # A worker that was told to stop has not seen the end of the job. Another worker may have seen it.
    return any(future.result() for future in futures)


def _ask(setting: Setting, column: MigratingColumn, job: Work) -> None:
    with Session(setting.engine) as session:
        rows = setting.rows(session.connection(), column)
        Ranges(rows, column.name, job.job, part=job.part).ask_to_stop(session, True)
        session.commit()


_told_to_end = False


def _note_signals() -> None:
    """Set how a worker process takes signals. Ctrl-C reaches every process of a terminal, so a worker ignores
    it: the parent process tells the workers to stop. SIGTERM to a worker ends it after its chunk. If the
    parent is killed, the workers end, since they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, _end)


def _end_with(parent: int) -> None:
    wait_for_processes([parent])
    os._exit(1)  # the database rolls the chunk at hand back


def _end(number: int, frame: object) -> None:
    global _told_to_end
    _told_to_end = True


class _Meter:
    """Reports how far a job is, about twice a second."""

    def __init__(
        self,
        setting: Setting,
        column: MigratingColumn,
        job: Work,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self._setting, self._column, self._job, self._progress = setting, column, job, progress
        self._seen: deque[tuple[float, int]] = deque(maxlen=20)
        self._last = 0.0

    def tell(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if self._progress is None or (now - self._last < 0.5 and not last):
            return
        self._last = now
        with Session(self._setting.engine) as session:
            rows = self._setting.rows(session.connection(), self._column)
            count = Ranges(rows, self._column.name, self._job.job, part=self._job.part).count(session)
        self._seen.append((now, count.rows))
        (then, before), (_, done) = self._seen[0], self._seen[-1]
        rate = (done - before) / (now - then) if now > then else 0.0
        left = max(count.total - done, 0) / rate if rate > 0 else None
        self._progress(
            Progress(
                self._column.name,
                self._job.job.value,
                done,
                max(count.total, done),
                rate,
                left,
                count.late,
            )
        )
