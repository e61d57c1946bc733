"""Workers side by side, wherever an executor runs them: processes of this machine, threads, a Dask cluster.
They share the rows without doing one twice, and end cleanly when they are told to, or killed."""

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

import pytest
from sqlalchemy import Engine

from sqlalchemy_envelope import ConfigurationError, MigrationStoppedError
from sqlalchemy_envelope.migration.migrator import Migrator
from sqlalchemy_envelope.migration.running.reports import Progress
from sqlalchemy_envelope.migration.running.runner import Pace
from tests.migration.engine_models import KILL_URL, Trial, made_here, notes
from tests.migration.test_kills import workers_of

NOTES = "notes.body"
ROWS = 3000
PACE = Pace(smallest=10, largest=100, range_rows=250, patience=20.0)


@pytest.fixture
def trial(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trial]:
    """Rows of three owners without keys, in ranges for several workers."""
    monkeypatch.setenv(KILL_URL, engine.url.render_as_string(hide_password=False))
    trial = Trial(engine, pace=PACE).create("notes")
    trial.insert("notes", notes(ROWS))
    yield trial
    while made_here:
        made_here.pop().dispose()


def migrator_of(trial: Trial) -> Migrator:
    return trial.migrator(reference="tests.migration.engine_models:kill_migrator")


def is_whole(trial: Trial) -> None:
    """Each row was encrypted once, and says what it said."""
    migrator = trial.migrator()
    verified = migrator.verify(NOTES)
    assert (verified.rows, verified.mismatches, verified.pending) == (ROWS, 0, 0)
    counted = trial.sql("SELECT sum(rows) FROM envelope_migration_range WHERE job = 'backfill'")
    assert int(counted[0][0]) == ROWS
    assert trial.sql("SELECT count(*) FROM notes WHERE body IS NULL OR body_encrypted IS NULL") == [(0,)]


@contextmanager
def dask() -> Iterator[Executor]:
    """A cluster of two processes, and its client's executor."""
    distributed = pytest.importorskip("distributed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own
        cluster = distributed.LocalCluster(
            processes=True, n_workers=2, threads_per_worker=1, dashboard_address=None
        )
        client = distributed.Client(cluster)
        try:
            yield client.get_executor(pure=False)
        finally:
            client.close()
            cluster.close()


@contextmanager
def threads() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@contextmanager
def spawned() -> Iterator[Executor]:
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        yield pool


def test_two_workers_of_this_machine(trial: Trial) -> None:
    """Every verb that goes over rows, in processes that it starts itself."""
    migrator = migrator_of(trial)
    told: list[Progress] = []
    report = migrator.run(NOTES, workers=2, progress=told.append)
    assert (report.rows, report.finished) == (ROWS, True)
    assert told[-1].done == told[-1].total == ROWS
    is_whole(trial)
    assert migrator.verify(NOTES, workers=2).is_clean


@pytest.mark.any_database
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("kind", ["threads", "spawned", "dask"])
def test_an_executor_that_is_given(trial: Trial, kind: str) -> None:
    """Any `concurrent.futures.Executor` does: threads, processes, and a real Dask cluster of processes."""
    made: Any = {"threads": threads, "spawned": spawned, "dask": dask}[kind]
    with made() as executor:
        report = migrator_of(trial).run(NOTES, workers=2, executor=executor)
        assert (report.rows, report.finished) == (ROWS, True)
        trial.sql("UPDATE notes SET body = 'late' WHERE id <= 20")
        again = migrator_of(trial).run(NOTES, workers=2, executor=executor)
        assert again.rows == ROWS + 20
    assert migrator_of(trial).verify(NOTES).is_clean


def test_workers_need_to_find_the_migrator(trial: Trial) -> None:
    """Without a reference, or with one that leads nowhere, it is said before anything is done."""
    with pytest.raises(ConfigurationError, match="reference="):
        trial.migrator().run(NOTES, workers=2)
    nowhere = trial.migrator(reference="tests.migration.engine_models:none_such")
    with ThreadPoolExecutor(1) as pool, pytest.raises(ConfigurationError, match="none_such"):
        nowhere.run(NOTES, workers=1, executor=pool)
    assert trial.migrator().status(NOTES).both == 0


@pytest.mark.skipif(sys.platform != "linux", reason="finds the children of a process in /proc")
def test_a_worker_that_is_killed(trial: Trial) -> None:
    """The run stops with what to do, the other worker ends too, and the next run goes on."""
    migrator = migrator_of(trial)
    migrator.pace = Pace(smallest=10, largest=20, range_rows=250, patience=20.0, load=0.2)
    killed: list[int] = []

    def stop() -> bool:
        workers = workers_of(os.getpid())
        if not killed and len(workers) >= 2 and migrator.status(NOTES).both > 0:
            os.kill(workers[0], signal.SIGKILL)
            killed.append(workers[0])
        return False

    with pytest.raises(MigrationStoppedError, match="Run it again to go on"):
        migrator.run(NOTES, workers=2, stop=stop)
    assert killed
    assert workers_of(os.getpid()) == []
    assert 0 < migrator.status(NOTES).both < ROWS
    assert trial.migrator().run(NOTES).finished
    is_whole(trial)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_stopping_in_the_middle(trial: Trial, workers: int) -> None:
    """All workers end after the chunk they are at, within seconds, and the next run goes on."""
    migrator = migrator_of(trial)
    migrator.pace = Pace(smallest=10, largest=20, range_rows=250, patience=20.0, load=0.2)
    asked: list[float] = []

    def stop() -> bool:
        if asked or migrator.status(NOTES).both > 0:
            asked.append(time.monotonic())
        return bool(asked)

    report = migrator.run(NOTES, workers=workers, stop=stop)
    took = time.monotonic() - asked[0]
    assert not report.finished
    assert 0 < migrator.status(NOTES).both < ROWS
    assert took < 5.0
    assert trial.migrator().run(NOTES).finished
    is_whole(trial)


def test_workers_in_threads_are_stopped_through_the_state_table(trial: Trial) -> None:
    """A worker elsewhere asks the database: it has no other link to who started it."""
    migrator = migrator_of(trial)
    migrator.pace = Pace(smallest=10, largest=10, range_rows=250, patience=20.0, load=0.1)
    moment = threading.Event()

    def stop() -> bool:
        if migrator.status(NOTES).both > 0:
            moment.set()
        return moment.is_set()

    with ThreadPoolExecutor(2) as pool:
        report = migrator.run(NOTES, workers=2, executor=pool, stop=stop)
    assert not report.finished
    assert trial.migrator().run(NOTES).finished
    is_whole(trial)
