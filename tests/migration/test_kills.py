"""Whatever is killed at whatever moment, a process that migrates, its workers, or the database server: what
was done stays done, nothing is half done, and the next run goes on from there.

`ENVELOPE_KILLS`, `ENVELOPE_SERVER_KILLS` and `ENVELOPE_KILL_ROWS` set how many: 1000, 100 and 200000 before a
release. What a run of it came to is printed (`pytest -s`).
"""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy import URL, Engine, create_engine, make_url
from sqlalchemy.orm import Session

from sqlalchemy_envelope import enforce_foreign_keys
from sqlalchemy_envelope.migration.jobs.owner_ciphers import OwnerCiphers
from sqlalchemy_envelope.migration.jobs.stored import open_stored
from tests.migration.engine_models import SERVER_KEY, Trial, migrate, new_envelope, notes
from tests.throwaway_postgres import QUIET, runnable_binaries, throwaway_postgres, unprivileged_account

KILLS = int(os.environ.get("ENVELOPE_KILLS", "6"))
SERVER_KILLS = int(os.environ.get("ENVELOPE_SERVER_KILLS", "1"))
ROWS = int(os.environ.get("ENVELOPE_KILL_ROWS", "8000"))
CHANCE = random.Random(int(os.environ.get("ENVELOPE_KILL_SEED", "4")))
NAME = "notes.body"

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9 on Windows"),
]

# Forked from a process that has imported everything and opened nothing: started in some milliseconds.
processes: Any = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["sqlalchemy_envelope.migration.migrator", "psycopg", "alembic"])


class Watch:
    """Looks at every row after each kill, and remembers the ciphertexts that it has seen."""

    def __init__(self, engine: Engine) -> None:
        self.trial = Trial(engine)
        self.engine = engine
        self.expected = {row["id"]: row["body"] for row in notes(ROWS)}
        self.owners = {row["id"]: row["user_id"] for row in notes(ROWS)}
        self.seen: dict[int, bytes] = {}

    def look(self) -> int:
        """How many rows are encrypted; everything that must hold, holds."""
        migrator = self.trial.migrator()
        column = migrator.column(NAME)
        # One transaction: what the checkpoints say, and what the rows hold.
        options = {"isolation_level": "REPEATABLE READ"} if self.engine.dialect.name == "postgresql" else {}
        with self.engine.connect().execution_options(**options) as connection:
            tables = sa.inspect(connection).get_table_names()
            columns = [one["name"] for one in sa.inspect(connection).get_columns("notes")]
            checked_in = 0
            if "envelope_migration_range" in tables:
                query = "SELECT coalesce(sum(rows), 0) FROM envelope_migration_range WHERE job = 'backfill'"
                checked_in = int(connection.exec_driver_sql(query).scalar_one())
            stored = "body_encrypted" if "body_encrypted" in columns else "NULL"
            rows = connection.exec_driver_sql(f"SELECT id, body, {stored} FROM notes").all()
        assert {row[0]: row[1] for row in rows} == self.expected, "rows were lost, or plaintext was"
        made = {row[0]: bytes(row[2]) for row in rows if row[2] is not None}
        assert checked_in == len(made), "a chunk and its checkpoint are one"
        assert all(made.get(key) == blob for key, blob in self.seen.items()), "encrypted twice, or lost"
        new = {key: blob for key, blob in made.items() if key not in self.seen}
        envelope = new_envelope(SERVER_KEY)
        with Session(self.engine) as session, envelope.server_mode(session, reason="look"):
            keys = OwnerCiphers(session, column)
            keys.prepare_read({blob[:17]: 1 for blob in new.values()})
            for key, blob in new.items():
                plaintext = open_stored(column, keys, (key,), blob, (self.owners[key],))
                assert plaintext is not None, "the key of a value that was committed is not there"
                assert plaintext.decode() == self.expected[key]
        self.seen = made
        return len(made)


class Runs:
    """The processes of one round."""

    def __init__(self, url: str, count: int, workers: int) -> None:
        self.pooled = workers > 1
        self.started = [processes.Process(target=migrate, args=(url, workers)) for _ in range(count)]
        for one in self.started:
            one.start()

    def wait(self, seconds: float) -> bool:
        """Whether all have ended by themselves within that time."""
        until = time.monotonic() + seconds
        for one in self.started:
            one.join(max(until - time.monotonic(), 0))
        return all(one.exitcode is not None for one in self.started)

    def kill(self) -> int:
        """Kill a worker, or who started it; then the rest. How many were killed."""
        killed = 0
        if self.pooled and CHANCE.random() < 0.5:
            children = workers_of(self.started[0].pid)
            if children:
                killed += try_to_kill(CHANCE.choice(children))
                self.wait(30.0)  # who started it finds out, and ends cleanly
                return killed
        for one in CHANCE.sample(self.started, len(self.started)):
            if one.exitcode is None:
                killed += try_to_kill(one.pid)
                one.join()
        return killed


def workers_of(pid: int) -> list[int]:
    """The children of a process that encrypt: those that multiprocessing has spawned."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    found = [int(one) for one in path.read_text().split()] if path.exists() else []
    return [one for one in found if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]


def try_to_kill(pid: int) -> int:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return 0
    return 1


def kill_again_and_again(
    engine: Engine, url: str, kills: int, begin_anew: Callable[[], None], pooled: float
) -> None:
    """Rounds of migrating and killing, over as many migrations as it takes."""
    began = time.monotonic()
    killed = finished = most_rounds = 0
    longest, slowest = 0.6 * min(ROWS / 100_000, 1.0) + 0.05, 0.0
    watch = Watch(engine)
    while killed < kills and most_rounds < 20 * kills:
        most_rounds += 1
        runs = Runs(url, CHANCE.choice([1, 2]), 1) if CHANCE.random() >= pooled else Runs(url, 1, 2)
        if runs.wait(CHANCE.uniform(0.02, longest) + (1.5 if runs.pooled else 0.0)):
            assert [one.exitcode for one in runs.started] == [0] * len(runs.started)
        else:
            killed += runs.kill()
        looked = time.monotonic()
        if watch.look() == ROWS:
            finish(watch)
            finished += 1
            engine.dispose()
            begin_anew()
            watch = Watch(engine)
        slowest = max(slowest, time.monotonic() - looked)
    while watch.look() < ROWS and most_rounds < 20 * kills + 20:
        most_rounds += 1
        runs = Runs(url, 1, 1)
        assert runs.wait(300.0)
        assert runs.started[0].exitcode == 0
    finish(watch)
    seconds = time.monotonic() - began
    print(
        f"\n{engine.dialect.name}: {killed} kills in {finished + 1} migrations of {ROWS} rows, "
        f"{seconds:.0f} s; looked at every row {most_rounds} times"
    )
    assert killed >= kills


def finish(watch: Watch) -> None:
    """The end of a migration: nothing is left, and all is as an uninterrupted run leaves it."""
    migrator = watch.trial.migrator()
    report = migrator.run(NAME)
    assert (report.finished, report.rows, report.pending) == (True, ROWS, 0)
    verified = migrator.verify(NAME)
    assert (verified.is_clean, verified.rows, verified.locked) == (True, ROWS, 0)
    before = dict(watch.seen)
    watch.look()
    assert watch.seen == before


def prepare(engine: Engine) -> None:
    """The old application's rows."""
    trial = Trial(engine).create("notes")
    trial.insert("notes", notes(ROWS))
    engine.dispose()


def test_no_kill_of_a_process_loses_or_repeats_anything_on_sqlite(tmp_path: Path) -> None:
    """SIGKILL at random moments, of one process that migrates, of two at once, of workers and who started
    them: after each, every value is whole and checked in."""
    before, path = tmp_path / "before.db", tmp_path / "kills.db"
    prepare(create_engine(f"sqlite:///{before}"))

    def begin_anew() -> None:
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        shutil.copy(before, path)

    begin_anew()
    engine = create_engine(f"sqlite:///{path}")
    enforce_foreign_keys(engine)
    kill_again_and_again(engine, str(engine.url), KILLS // 2, begin_anew, 0.02)
    engine.dispose()


def test_no_kill_of_a_process_loses_or_repeats_anything_on_postgresql(postgres_url: URL) -> None:
    """The same on PostgreSQL."""
    first = postgres_url.set(drivername="postgresql+psycopg")
    prepare(create_engine(first))
    url = first.set(database="envelope_kills")

    def begin_anew() -> None:
        copy(postgres_url, "envelope_kills")

    begin_anew()
    engine = create_engine(url)
    text = url.render_as_string(hide_password=False)
    try:
        kill_again_and_again(engine, text, KILLS - KILLS // 2, begin_anew, 0.04)
    finally:
        engine.dispose()
        with maintenance(postgres_url) as connection:
            connection.execute("DROP DATABASE IF EXISTS envelope_kills WITH (FORCE)")


def maintenance(url: URL) -> Any:
    address = url.set(drivername="postgresql", database="postgres").render_as_string(hide_password=False)
    return psycopg.connect(address, autocommit=True)


def copy(url: URL, name: str) -> None:
    """A database with the content of another."""
    with maintenance(url) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{url.database}"')


class Server:
    """A PostgreSQL server that keeps what it has acknowledged, and is killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.account = unprivileged_account()
        copied = folder / "wheel"
        self.binaries = (
            next(copied.glob("*/pginstall/bin"))
            if copied.exists()
            else runnable_binaries(folder, self.account)
        )
        self.url = make_url(f"postgresql+psycopg://postgres@/postgres?host={folder}&port=5432")

    def kill(self) -> None:
        """SIGKILL to the server, and what it says when it comes back."""
        pid = int((self.folder / "data" / "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, signal.SIGKILL)
        command = [self.binaries / "pg_ctl", "-D", self.folder / "data", "--wait", "restart"]
        command += [f"--log={self.folder / 'log'}"]
        for _ in range(50):  # its last processes have to go first
            if subprocess.run([*command], **self.account, **QUIET, stderr=subprocess.DEVNULL).returncode == 0:
                return
            time.sleep(0.1)
        raise AssertionError((self.folder / "log").read_text()[-2000:])


@pytest.fixture
def server() -> Iterator[Server]:
    settings = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
    with throwaway_postgres(**settings) as folder:
        yield Server(folder)


@pytest.mark.backend
def test_no_kill_of_the_server_loses_or_repeats_anything(server: Server) -> None:
    """SIGKILL to PostgreSQL itself in the middle of a migration: the process that migrates waits until it is
    back and goes on by itself, and what was acknowledged is there."""
    url = server.url.render_as_string()
    first = server.url.set(database="envelope_before")
    with maintenance(server.url) as connection:
        connection.execute("CREATE DATABASE envelope_before")
    prepare(create_engine(first))
    copy(first, "kills")
    engine = create_engine(server.url.set(database="kills"))
    url = engine.url.render_as_string()
    began, killed, migrations = time.monotonic(), 0, 1
    watch, runs = Watch(engine), Runs(url, 1, 1)
    stopped = rounds = 0
    longest = 1.5 * min(ROWS / 100_000, 1.0) + 0.05
    while killed < SERVER_KILLS and rounds < 20 * SERVER_KILLS:
        rounds += 1
        ended = runs.wait(CHANCE.uniform(0.05, longest))
        server.kill()
        killed += 1
        engine.dispose()
        if watch.look() == ROWS:
            assert runs.wait(120.0)
            finish(watch)
            engine.dispose()
            copy(first, "kills")
            watch, ended, migrations = Watch(engine), True, migrations + 1
        if ended:
            stopped += any(one.exitcode for one in runs.started)
            runs = Runs(url, 1, CHANCE.choice([1, 1, 2]) if ROWS >= 100_000 else 1)
    assert runs.wait(300.0)
    if watch.look() < ROWS:
        migrate(url)
        watch.look()
    finish(watch)
    engine.dispose()
    print(
        f"\nserver: {killed} kills in {migrations} migrations of {ROWS} rows, "
        f"{time.monotonic() - began:.0f} s; {stopped} processes gave up and were started again"
    )
    assert stopped == 0
