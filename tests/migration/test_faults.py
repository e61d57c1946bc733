"""Every fault that a database, a provider or a machine can come up with, in the middle of a migration: it is
waited out, or the migration stops cleanly and says what to do; nothing is lost, nothing is shown, and the
next run goes on.

MariaDB's are run where `ENVELOPE_MARIADB_URL` names a server.
"""

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, create_engine, event

from sqlalchemy_envelope import (
    ConfigurationError,
    EnvelopeError,
    MigrationError,
    MigrationStoppedError,
    ServerKeyring,
)
from sqlalchemy_envelope.migration.running.runner import Pace
from tests.conftest import EveryNth
from tests.migration.engine_models import Trial, new_envelope, notes
from tests.migration.faulty import goes_on, shows_nothing
from tests.throwaway_postgres import unprivileged_account

NOTES = "notes.body"
ROWS = 120
CHUNKED = Pace(smallest=10, largest=20, range_rows=50, patience=10.0)
HASTY = Pace(smallest=10, largest=20, range_rows=50, patience=0.3)


def prepared(engine: Engine, pace: Pace = CHUNKED, rows: int = ROWS) -> Trial:
    """An old database, expanded."""
    trial = Trial(engine, pace=pace).create("notes")
    trial.insert("notes", notes(rows))
    trial.migrator().expand(NOTES)
    return trial


def encrypt_some(trial: Trial) -> None:
    """A run that ends after some chunks."""
    chunks: list[int] = []

    def stop() -> bool:
        chunks.append(1)
        return len(chunks) > 3

    assert not trial.migrator().run(NOTES, stop=stop).finished


@contextmanager
def at_statements(engine: Engine, call: Callable[[int, Any, str], None]) -> Iterator[list[int]]:
    """Call something before each statement, with its number; gives how many there were."""
    count = [0]

    def before(connection: Any, _: Any, statement: str, *__: Any) -> None:
        count[0] += 1
        call(count[0], connection, statement)

    event.listen(engine, "before_cursor_execute", before)
    try:
        yield count
    finally:
        event.remove(engine, "before_cursor_execute", before)


# ---------------------------------------------------------------- keys and providers


def test_another_server_key_than_the_owners_keys_are_under(engine: Engine) -> None:
    """Refused at the first chunk: no owner gets a second set of keys, and no value is encrypted."""
    trial = prepared(engine)
    encrypt_some(trial)
    before, keys = trial.states("notes", "body"), trial.sql("SELECT count(*) FROM users_key")
    other = Trial(engine, pace=HASTY)
    other.envelope = new_envelope(b"another server key, of 32 bytes.")
    with pytest.raises(EnvelopeError) as caught:
        other.migrator().run(NOTES)
    shows_nothing(caught.value)
    assert trial.states("notes", "body") == before
    assert trial.sql("SELECT count(*) FROM users_key") == keys
    goes_on(trial)


def test_a_provider_that_is_not_there(engine: Engine) -> None:
    """A name that is not configured is refused before anything is done."""
    trial = prepared(engine)
    with pytest.raises(ConfigurationError, match="'vault'"):
        trial.migrator(provider="vault")


def test_a_provider_of_another_name_than_holds_the_keys(engine: Engine) -> None:
    """Owners whose keys another provider holds are written to by sealed epochs: nothing is lost, and the
    verification says that it could not read them."""
    trial = prepared(engine)
    encrypt_some(trial)
    other = Trial(engine, pace=CHUNKED, provider="second")
    second = ServerKeyring([b"s" * 32])
    other.envelope = new_envelope(providers={"second": second})
    assert other.migrator().run(NOTES).finished
    assert other.migrator().verify(NOTES).locked == ROWS
    goes_on(trial)


class Shaky:
    """A provider that goes down, with a network between."""

    local = False

    def __init__(self) -> None:
        self.inner = ServerKeyring([b"r" * 32])
        self.down = False
        self.calls = 0

    @property
    def reference(self) -> str:
        return "shaky"

    def wrap(self, key: bytes, context: dict[str, str]) -> bytes:
        return self._call(lambda: self.inner.wrap(key, context))

    def unwrap(self, wrapped: bytes, context: dict[str, str]) -> bytes:
        return self._call(lambda: self.inner.unwrap(wrapped, context))

    def _call(self, call: Callable[[], bytes]) -> bytes:
        self.calls += 1
        if self.down:
            raise ConnectionError("no route to host: note body")
        return call()


def test_a_provider_that_goes_down_in_the_middle(engine: Engine) -> None:
    """A process that has no keys yet: it stops, says which provider, and goes on when that is back."""
    shaky = Shaky()
    trial = Trial(engine, pace=HASTY, provider="shaky")
    trial.envelope = new_envelope(providers={"shaky": shaky}, provider_retries=0)
    trial.create("notes")
    trial.insert("notes", notes(ROWS))
    encrypt_some(trial)
    assert shaky.calls
    shaky.down = True
    later = Trial(engine, pace=HASTY, provider="shaky")
    later.envelope = new_envelope(providers={"shaky": shaky}, provider_retries=0)
    with pytest.raises(EnvelopeError, match="shaky") as caught:
        later.migrator().run(NOTES)
    assert "note body" not in str(caught.value)
    shaky.down = False
    goes_on(later)


# ---------------------------------------------------------------- space


def test_a_full_disk_on_sqlite(sqlite_engine: Engine) -> None:
    """The file may not grow: it stops with what to do, and goes on when there is room."""
    trial = prepared(sqlite_engine, rows=2000)

    def limit(connection: Any, _: object) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 4}")

    event.listen(sqlite_engine, "connect", limit)
    sqlite_engine.dispose()
    trial.pace = Pace(largest=500, patience=0.3)
    with pytest.raises(MigrationStoppedError, match=r"out of space.*Make room") as caught:
        trial.migrator().run(NOTES)
    shows_nothing(caught.value)
    event.remove(sqlite_engine, "connect", limit)
    sqlite_engine.dispose()
    goes_on(trial, 2000)


@pytest.fixture
def small_disk(tmp_path: Path, postgres_engine: Engine) -> Iterator[Path]:
    """A file system of a few megabytes for one tablespace; skipped where none may be mounted."""
    with postgres_engine.connect() as connection:
        host = connection.exec_driver_sql("SHOW unix_socket_directories").scalar_one()
    path = Path(str(host)) / "small"
    path.mkdir()
    options = "size=1100k,mode=0777"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], capture_output=True)
    if done.returncode:
        path.rmdir()
        pytest.skip("no file system may be mounted here")
    account = unprivileged_account()
    (path / "space").mkdir()
    if account:
        os.chown(path / "space", account["user"], account["group"])
    try:
        yield path / "space"
    finally:
        with postgres_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("DROP TABLE IF EXISTS notes")
            connection.exec_driver_sql("DROP TABLESPACE IF EXISTS small")
        subprocess.run(["umount", str(path)], check=True)
        path.rmdir()


def test_a_full_disk_on_postgresql(postgres_engine: Engine, small_disk: Path) -> None:
    """A table whose disk is full: the same."""
    with postgres_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"CREATE TABLESPACE small LOCATION '{small_disk}'")
    trial = prepared(postgres_engine, rows=8000)
    with postgres_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ALTER TABLE notes SET TABLESPACE small")
    trial.pace = Pace(largest=2000, patience=0.3)
    with pytest.raises(MigrationStoppedError, match=r"out of space.*Make room") as caught:
        trial.migrator().run(NOTES)
    shows_nothing(caught.value)
    assert trial.migrator().status(NOTES).pending
    with postgres_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ALTER TABLE notes SET TABLESPACE pg_default")
    goes_on(trial, 8000)


# ---------------------------------------------------------------- locks, conflicts, connections


def test_rows_that_somebody_holds_locked(postgres_engine: Engine) -> None:
    """A transaction that stays open: its rows are passed over and come last; when it does not end, the run
    stops waiting and says so."""
    trial = prepared(postgres_engine, Pace(smallest=10, largest=20, range_rows=50, patience=2.0))
    with postgres_engine.connect() as holder:
        holder.exec_driver_sql("UPDATE notes SET title = 'held' WHERE id IN (3, 50)")
        report = trial.migrator().run(NOTES)
        assert (report.finished, report.pending) == (False, 2)
    goes_on(trial)


def test_a_deadlock(postgres_engine: Engine) -> None:
    """Somebody locks the same rows in the other order, again and again: both go on, and both come to an
    end."""
    trial = prepared(postgres_engine, Pace(smallest=10, largest=60, range_rows=200, patience=20.0))
    trial.sql("UPDATE notes SET title = 'x'")
    ended, failed = threading.Event(), []

    def other() -> None:
        engine = create_engine(postgres_engine.url)
        try:
            for _ in range(400):
                if ended.is_set():
                    break
                try:
                    with engine.begin() as connection:
                        connection.exec_driver_sql("SET LOCAL deadlock_timeout = '10ms'")
                        for number in (110, 60, 10):
                            connection.exec_driver_sql(f"UPDATE notes SET title = 'y' WHERE id = {number}")
                except sa.exc.OperationalError as error:
                    if getattr(error.orig, "sqlstate", "") != "40P01":
                        failed.append(error)
        finally:
            engine.dispose()

    thread = threading.Thread(target=other)
    thread.start()
    try:
        for _ in range(5):
            trial.migrator().run(NOTES)  # rows that are held at that very moment may be left
            trial.sql("UPDATE notes SET body = body || '.' WHERE id NOT IN (10, 60, 110)")
    finally:
        ended.set()
        thread.join()
    assert trial.migrator().run(NOTES).finished
    assert failed == []
    assert trial.migrator().verify(NOTES).is_clean


@pytest.mark.parametrize("level", ["SERIALIZABLE", "REPEATABLE READ"])
def test_serialization_failures(postgres_engine: Engine, level: str) -> None:
    """An engine of that level, while others write the same rows: conflicts are done again, no write of
    theirs is lost."""
    trial = prepared(postgres_engine)
    strict = create_engine(postgres_engine.url, isolation_level=level)
    ended = threading.Event()
    written: dict[int, str] = {}

    def other() -> None:
        engine = create_engine(postgres_engine.url, isolation_level=level)
        try:
            for turn in range(400):
                if ended.is_set():
                    break
                number = turn * 7 % ROWS + 1
                try:
                    with engine.begin() as connection:
                        connection.exec_driver_sql(f"UPDATE notes SET body = 'w {turn}' WHERE id = {number}")
                except sa.exc.OperationalError:
                    continue
                written[number] = f"w {turn}"
        finally:
            engine.dispose()

    thread = threading.Thread(target=other)
    thread.start()
    try:
        migrator = trial.migrator(engine=strict)
        for _ in range(4):
            migrator.run(NOTES)
    finally:
        ended.set()
        thread.join()
    assert migrator.run(NOTES).finished
    assert migrator.verify(NOTES).is_clean
    states = trial.states("notes", "body")
    assert {key: states[key][0] for key in written} == written
    strict.dispose()


def test_a_connection_that_is_cut_at_every_statement(postgres_engine: Engine) -> None:
    """pg_terminate_backend before the n-th statement, for one after the other: each time it connects anew
    and goes on by itself."""
    trial = prepared(postgres_engine)
    killer = create_engine(postgres_engine.url, isolation_level="AUTOCOMMIT")
    cut: list[int] = []

    def terminate(number: int, connection: Any, _: str) -> None:
        if number % 7 == 0 and len(cut) < 25:
            cut.append(number)
            pid = connection.connection.dbapi_connection.info.backend_pid
            with killer.connect() as other:
                other.exec_driver_sql(f"SELECT pg_terminate_backend({pid}, 1000)")

    migrator = trial.migrator()
    with at_statements(postgres_engine, terminate):
        report = migrator.run(NOTES)
    killer.dispose()
    assert len(cut) == 25
    assert report.finished
    goes_on(trial)


def test_a_connection_that_does_not_come_back(postgres_engine: Engine) -> None:
    """It stops when its patience is over, and says that the connection was lost."""
    trial = prepared(postgres_engine, HASTY)
    killer = create_engine(postgres_engine.url, isolation_level="AUTOCOMMIT")

    def terminate(_: int, connection: Any, __: str) -> None:
        pid = connection.connection.dbapi_connection.info.backend_pid
        with killer.connect() as other:
            other.exec_driver_sql(f"SELECT pg_terminate_backend({pid}, 1000)")

    with (
        at_statements(postgres_engine, terminate),
        pytest.raises(MigrationStoppedError, match="connection to the database was lost") as caught,
    ):
        trial.migrator().run(NOTES)
    shows_nothing(caught.value)
    killer.dispose()
    goes_on(trial)


def test_a_statement_timeout(postgres_engine: Engine) -> None:
    """So short that no chunk passes: it stops with what to do; without it, it goes on."""
    trial = prepared(postgres_engine, HASTY, rows=3000)
    trial.pace = Pace(smallest=1000, largest=1000, range_rows=3000, patience=0.5)
    hasty = create_engine(postgres_engine.url, connect_args={"options": "-c statement_timeout=1"})
    with pytest.raises(MigrationStoppedError) as caught:
        trial.migrator(engine=hasty).run(NOTES)
    shows_nothing(caught.value)
    hasty.dispose()
    goes_on(trial, 3000)


def test_a_locked_sqlite_file(sqlite_engine: Engine) -> None:
    """Somebody keeps it locked: it stops when its patience is over."""
    trial = prepared(sqlite_engine, HASTY)
    hasty = create_engine(sqlite_engine.url, connect_args={"timeout": 0.05})
    with sqlite_engine.connect() as holder:
        holder.exec_driver_sql("BEGIN IMMEDIATE")
        with pytest.raises(MigrationStoppedError, match="Locks or conflicts did not clear") as caught:
            trial.migrator(engine=hasty).run(NOTES)
    shows_nothing(caught.value)
    hasty.dispose()
    goes_on(trial)


# ---------------------------------------------------------------- the process itself


def test_an_interruption_at_every_statement_of_a_run(engine: Engine, every_nth: EveryNth) -> None:
    """Raised before the n-th statement, for each fifth n of a run, or every n with `--all` (each third on
    PostgreSQL): what is committed is whole, and the next run goes on. Ctrl-C on one database, and no memory
    left on the other."""
    kind: type[BaseException] = KeyboardInterrupt if engine.dialect.name == "sqlite" else MemoryError
    trial = prepared(engine, Pace(smallest=10, largest=10, range_rows=100, patience=0.2), rows=20)
    with at_statements(engine, lambda *_: None) as count:
        assert trial.migrator().run(NOTES).finished
    statements = count[0]
    assert statements > 10
    apart = 1 if engine.dialect.name == "sqlite" else 3
    for stop_at in every_nth(5, range(1, statements + 1, apart)):
        trial.sql("UPDATE notes SET body_encrypted = NULL")
        for table in ("envelope_migration_job", "envelope_migration_range"):
            trial.sql(f"DELETE FROM {table}")

        def interrupt(number: int, _: Any, __: str, stop_at: int = stop_at) -> None:
            if number == stop_at:
                raise kind

        expected = KeyboardInterrupt if kind is KeyboardInterrupt else MigrationError
        try:
            with at_statements(engine, interrupt):
                trial.migrator().run(NOTES)
        except expected as error:
            shows_nothing(error)
        checked_in = trial.sql("SELECT coalesce(sum(rows), 0) FROM envelope_migration_range")
        assert int(checked_in[0][0]) == trial.migrator().status(NOTES).both
        goes_on(trial, 20)
