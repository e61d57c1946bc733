"""A worker: takes ranges, does them chunk by chunk, and stops when it is told to."""

from __future__ import annotations

import gc
import random
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sqlalchemy_envelope.crypto.frames import emptying
from sqlalchemy_envelope.exceptions import (
    ConfigurationError,
    EnvelopeError,
    MigrationStoppedError,
    ProviderError,
    TransactionConflictError,
)
from sqlalchemy_envelope.migration.database.faults import advice, is_lost
from sqlalchemy_envelope.migration.jobs.owner_ciphers import keys_at_hand
from sqlalchemy_envelope.migration.running.ranges import Ranges
from sqlalchemy_envelope.orm.tables.collisions import collided, may_pass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from sqlalchemy_envelope.migration.database.rows import Rows
    from sqlalchemy_envelope.migration.jobs.work import Step, Work
    from sqlalchemy_envelope.orm.verbs.envelope.envelope import Envelope


@dataclass(frozen=True)
class Pace:
    """How hard a migration works.

    Attributes:
        chunk_seconds: how long a chunk, and with it each row lock, should last; the chunk's size follows.
        load: the share of time in which the migration works, from 0 to 1; it rests in between.
        smallest, largest: bounds on the number of rows in a chunk.
        patience: seconds to wait out locks, conflicts and a lost connection. A driver may wait for a lock by
            itself, that of SQLite for 5 seconds: a last try of that length is added.
        range_rows: the number of rows in a range; a worker takes a range at a time.
        sweeps: the most times that a run goes over the rows again. While other programs write, there are
            always new rows to do.
    """

    chunk_seconds: float = 0.1
    load: float = 1.0
    smallest: int = 20
    largest: int = 4000
    patience: float = 30.0
    range_rows: int = 50_000
    sweeps: int = 5

    def __post_init__(self) -> None:
        for name in ("chunk_seconds", "load", "patience"):
            if not getattr(self, name) >= 0:  # so written, it refuses NaN too
                raise ConfigurationError(
                    f"Pace({name}={getattr(self, name)}): give a number that is not negative."
                )


@dataclass(frozen=True)
class Chunk:
    """The report after each chunk: the number of rows, and the seconds that the chunk took."""

    rows: int
    seconds: float
    size: int


class _Next(Enum):
    """The next move of a worker without a free range: take a range of a new sweep, wait, or end."""

    TAKE = auto()
    WAIT = auto()
    END = auto()


class Runner:
    """A worker of a job.

    Args:
        number: the number of this worker among several.
        stop: asked before each chunk; true ends the work cleanly.
        told: called after each chunk.
    """

    def __init__(
        self,
        engine: Engine,
        envelope: Envelope,
        rows: Rows,
        name: str,
        work: Work,
        *,
        provider: str | None,
        pace: Pace,
        number: int = 0,
        stop: Callable[[], bool] = lambda: False,
        told: Callable[[Chunk], None] = lambda chunk: None,
        sleep: Callable[[float], Any] = time.sleep,
    ) -> None:
        self._engine, self._envelope, self._rows, self._work = engine, envelope, rows, work
        self._ranges = Ranges(rows, name, work.job, part=work.part, sampled=work.sampled)
        self._provider, self._pace, self._number = provider, pace, number
        self._stop, self._told, self._sleep = stop, told, sleep
        self._size = min(500, pace.largest)
        self._asked, self._stopping = time.monotonic(), False
        self._rest = 0.0
        self._first_sweep: int | None = None
        self._affordable = pace.largest
        self.rows = 0

    @emptying
    def run(self, *, sweeps: bool) -> bool:
        """Work until nothing is left, or until told to stop; True if nothing is left.

        Args:
            sweeps: whether to go over the rows again, for rows that were changed meanwhile.

        Raises:
            MigrationStoppedError: the database or the machine refused; finished chunks stay done.
        """
        average = self._patiently(lambda session: self._rows.average_size(session.connection()))
        self._affordable = max(int(_CHUNK_BYTES / max(average, 1.0)), 1)
        with keys_at_hand(self._envelope, self._provider, f"migration: {self._work.job.value}"):
            while not self._told_to_stop():
                done = self._patiently(self._chunk)
                if done is not None:
                    self._take_rest()
                    continue
                then = self._patiently(lambda session: self._between(session, sweeps))
                if then is _Next.END:
                    return True
                if then is _Next.WAIT:
                    self._sleep(0.02)
        return False

    def _told_to_stop(self) -> bool:
        """Whether this worker was told to stop: by its caller, or through the state table.

        The state table is asked once a second.
        """
        if time.monotonic() - self._asked > 1.0:
            self._asked = time.monotonic()
            self._stopping = self._stopping or self._patiently(self._ranges.is_stopping)
        return self._stopping or self._stop()

    def _chunk(self, session: Session) -> Step | None:
        began = time.perf_counter()
        taken = self._ranges.take(session, self._number)
        if taken is None:
            return None
        size = min(self._size, self._affordable)
        with self._envelope.write_only(session):
            with _uncollected():
                step = self._work.step(session, self._rows, taken.position, taken.upper, size)
            self._ranges_checkpoint(session, taken, step)
            session.commit()
        seconds = time.perf_counter() - began
        self.rows += step.rows
        self._adapt(seconds, size)
        self._told(Chunk(step.rows, seconds, size))
        self._rest = seconds * (1 / min(max(self._pace.load, 0.01), 1.0) - 1)
        return step

    def _take_rest(self) -> None:
        """Leave the database to others for a while. The naps are short, so that a stop ends the rest soon."""
        until = time.monotonic() + self._rest
        while (left := until - time.monotonic()) > 0 and not self._told_to_stop():
            self._sleep(min(left, 0.2))

    def _ranges_checkpoint(self, session: Session, taken: Any, step: Step) -> None:
        if not self._ranges.checkpoint(session, taken, step):
            raise _DoneByAnotherError

    def _adapt(self, seconds: float, size: int) -> None:
        wanted = size * self._pace.chunk_seconds / max(seconds, 1e-6)
        bounded = min(max(wanted, size / 2), size * 2)
        self._size = int(min(max(bounded, self._pace.smallest), self._pace.largest))

    def _between(self, session: Session, sweeps: bool) -> _Next:
        """Decide what to do while no range is free: end, wait for other workers, or begin another sweep."""
        if not self._ranges.is_mine(session):
            return _Next.END  # another job was begun in the place of this job
        count = self._ranges.count(session)
        if not count.finished:
            return _Next.WAIT
        due = sweeps and self._rows.any(session.connection(), self._work.due(self._rows))
        if self._first_sweep is None:
            self._first_sweep = count.sweep  # the first sweep of this run; earlier runs made sweeps too
        if not due or count.sweep - self._first_sweep >= self._pace.sweeps:
            return _Next.END
        began = self._ranges.next_sweep(session)
        session.commit()
        if began:
            return _Next.TAKE
        # Another worker began a sweep, or no work that is left can be done here.
        return _Next.END if self._ranges.count(session).finished else _Next.WAIT

    def _patiently(self, call: Callable[[Session], Any]) -> Any:
        """Run the call in a transaction of its own, and again while that may help.

        Raises:
            MigrationStoppedError: another try does not help.
        """
        until = time.monotonic() + self._pace.patience
        tries, warmed = 0, False
        try:
            while True:
                try:
                    return self._once(call)
                except _DoneByAnotherError:
                    continue
                except ProviderError as error:
                    if warmed:
                        raise
                    warmed = True
                    self._warm(error)
                    continue
                except TransactionConflictError as lost:
                    failed: EnvelopeError = lost
                    again = tries < _MOST_COLLISIONS
                except EnvelopeError:
                    raise
                except Exception as error:  # noqa: BLE001 - told apart below
                    failed = stopped(self._work.job.value, error)
                    # An owner may be deleted while its keys are made. The next try no longer finds the owner.
                    again = may_pass(error) or is_lost(error)
                    again = again or (collided(error) and tries < _MOST_COLLISIONS)
                # Outside of `except`: the database's message may show the values of a row.
                if not again or time.monotonic() >= until or self._stop():
                    raise failed
                tries += 1
                self._size = max(self._size // 2, self._pace.smallest)
                self._rows.skip_locked = self._rows.dialect.name != "sqlite"
                self._sleep(min(0.01 * 2**tries, 1.0) * random.uniform(0.5, 1.0))  # noqa: S311 - a delay
        finally:
            self._rows.skip_locked = False

    def _once(self, call: Callable[[Session], Any]) -> Any:
        with ExitStack() as stack:
            session = stack.enter_context(Session(self._engine))
            stack.callback(restore_waits, session)
            limit_waits(session)
            return call(session)

    def _warm(self, error: ProviderError) -> None:
        """Open the keys that the next chunk needs, and roll back.

        No provider is called while rows are locked.
        """
        with Session(self._engine) as session, self._envelope.write_only(session):
            taken = self._ranges.take(session, self._number)
            session.rollback()
            if taken is None:
                raise error
            try:
                self._work.step(session, self._rows, taken.position, taken.upper, self._size)
            except DBAPIError:
                pass  # the chunk itself follows, and meets the same error
            session.rollback()


@contextmanager
def _uncollected() -> Iterator[None]:
    """Disable the garbage collector while the rows of a chunk are in memory. It would count them as old, and
    go over all objects of the process several times a second, which took a third of all the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


_MOST_COLLISIONS = 8
_CHUNK_BYTES = 32 * 1024 * 1024
"""The approximate size of a chunk's values. Several copies are in memory for a moment."""


class _DoneByAnotherError(Exception):
    """Another worker has done the same chunk, so this worker's transaction is rolled back."""


_PLANS = ("seqscan", "bitmapscan", "sort", "hashjoin", "mergejoin")
_POSTGRESQL = "SELECT set_config('lock_timeout', '500ms', true), " + ", ".join(
    f"set_config('enable_{plan}', 'off', true)" for plan in _PLANS
)
"""A chunk is read in the order of the key, and written by the key. With old statistics, PostgreSQL would
otherwise go over the whole table for each chunk."""


def limit_waits(session: Session) -> None:
    """Let this transaction wait for a lock for half a second at most: others wait for it meanwhile."""
    name = session.get_bind().dialect.name
    if name == "postgresql":
        session.execute(text(_POSTGRESQL))
    elif name in ("mysql", "mariadb"):
        session.execute(text("SET @envelope_mode = @@sql_mode, innodb_lock_wait_timeout = 1"))
        # Without this mode, MySQL cuts off a value that does not fit, and says nothing.
        session.execute(text("SET SESSION sql_mode = CONCAT(@@sql_mode, ',STRICT_ALL_TABLES')"))


def restore_waits(session: Session) -> None:
    """Leave the connection as the application's pool knows it."""
    if session.get_bind().dialect.name not in ("mysql", "mariadb"):
        return
    try:
        session.rollback()
        session.execute(text("SET SESSION sql_mode = @envelope_mode, innodb_lock_wait_timeout = DEFAULT"))
    except DBAPIError:
        pass  # the connection is gone, and its settings with it


def stopped(what: str, error: Exception) -> MigrationStoppedError:
    """The error for a job that cannot go on."""
    return MigrationStoppedError(
        f"The {what} stopped: {advice(error)}. What is done stays done and was checked in; nothing is half "
        "done. "
        "Run it again to go on."
    )
