"""Moving a plaintext column to an encrypted one: rows a second, beside the database's own speed.

One table has an integer key, a column of 20 characters, and a hundred owners whose keys a provider holds. In
each round the table is filled anew, and moved by one worker and by two. It is also updated by the bare
driver, with the same chunks and statements, as many bytes, and no cryptography: nothing could be faster than
that. Workers are processes of their own, and report the times of their chunks and their peak memory.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from statistics import median, quantiles
from threading import Event, Thread
from typing import Any

from sqlalchemy import Engine, ForeignKey, String, create_engine, event, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.databases import do_not_wait_for_the_disk
from benchmarks.sheets import DATABASE_NAMES, Finding, Sheet
from sqlalchemy_envelope import (
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyOwner,
    PreviousColumn,
    ServerKeyring,
    enforce_foreign_keys,
)
from sqlalchemy_envelope.migration.migrator import Migrator
from sqlalchemy_envelope.migration.running.runner import Chunk, Pace, Runner
from sqlalchemy_envelope.migration.running.setting import Setting

NAME = "migration"
ADDRESS, KEY = "BENCHMARK_MIGRATION_DATABASE", "BENCHMARK_MIGRATION_KEY"
"""The environment variables in which workers find the database, and the server's key."""
OWNERS = 100
SIZE = 20
COLUMN = "moving_rows.body"
CHUNK = Pace.largest
STORED = bytes(range(SIZE + 45))
"""As many bytes as a stored value has."""


class Base(DeclarativeBase):
    """The registry of the table that is moved."""


class MovingOwner(KeyOwner, Base):
    """The owner of rows."""

    __tablename__ = "moving_owners"

    id: Mapped[int] = mapped_column(primary_key=True)


class MovingRow(Base):
    """A row whose column is moved."""

    __tablename__ = "moving_rows"

    id: Mapped[int] = mapped_column(primary_key=True)
    owner_id: Mapped[int] = mapped_column(ForeignKey("moving_owners.id"))
    body: Mapped[str | None] = mapped_column(
        "body_encrypted",
        EncryptedType(String(SIZE), owner="owner_id", previous=PreviousColumn("body", String(SIZE))),
    )


CHUNKS: list[Chunk] = []
"""The times of the chunks, in a worker's process."""


class TimedSetting(Setting):
    """A setting that notes the time of each chunk."""

    def runner(self, *arguments: Any, **options: Any) -> Runner:
        """A runner that notes the time of each chunk."""
        return super().runner(*arguments, **{**options, "told": CHUNKS.append})


def migrator() -> Migrator:
    """The migrator that a worker's process loads."""
    engine = create_engine(os.environ[ADDRESS])
    enforce_foreign_keys(engine)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", do_not_wait_for_the_disk)
    keys = ServerKeyring([bytes.fromhex(os.environ[KEY])])
    envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=keys)
    found = Migrator(engine, envelope, Base, provider="server", reference=f"{__name__}:migrator")
    found.setting = TimedSetting(engine, envelope, "server", found.reference)
    return found


@dataclass(frozen=True)
class Told:
    """The report of a worker's process: seconds of its chunks, seconds on the processor, peak memory."""

    chunks: list[float]
    rows: int
    cpu: float
    peak: int | None


def tell(forget: bool = False) -> Told:
    """The report, made in a worker's process."""
    if forget:
        CHUNKS.clear()
    rows = sum(one.rows for one in CHUNKS)
    return Told([one.seconds for one in CHUNKS], rows, time.process_time(), peak_memory())


def peak_memory() -> int | None:
    """The peak of this process's resident memory, in bytes. The figure of `getrusage` counts the parent's
    too."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


@dataclass
class Round:
    """The figures of one round; rates are rows a second."""

    limit: float
    limit_cpu: float
    rate: float
    rate_cpu: float
    verified: float
    chunks: list[float]
    peak: int | None
    load: float
    two: float | None = None
    held: float | None = None
    waited: float | None = None


@dataclass
class Place:
    """A database to move a table on, with its name in the output."""

    name: str
    url: str
    is_sqlite: bool
    rounds: list[Round] = field(default_factory=list)


def measure_migration(engine: Engine, row_count: int, round_count: int) -> Finding:
    """Move the table on one database; on SQLite with both of its journals."""
    with tempfile.TemporaryDirectory() as folder:
        if engine.dialect.name == "sqlite":
            places = [
                Place(f"SQLite, {title}", f"sqlite:///{Path(folder) / journal}.sqlite3", is_sqlite=True)
                for title, journal in (("rollback journal", "delete"), ("WAL", "wal"))
            ]
        else:
            address = engine.url.render_as_string(hide_password=False)
            places = [Place(DATABASE_NAMES[engine.dialect.name], address, is_sqlite=False)]
        for _ in range(round_count):
            for place in places:
                place.rounds.append(measure_round(place, row_count))
    return Finding(NAME, engine.dialect.name, [sheet(places, row_count)], figures(places[-1]))


def sheet(places: list[Place], row_count: int) -> Sheet:
    """All places side by side: medians over the rounds, and the longest time of each thing that must not be
    long."""
    measures: list[tuple[str, Callable[[Place], str]]] = [
        ("rows a second, one worker", lambda one: f"{middle(one, 'rate'):,.0f}"),
        ("plaintext updates a second, the limit", lambda one: f"{middle(one, 'limit'):,.0f}"),
        ("share of the limit", lambda one: f"{share(one, 'rate', 'limit'):.2f}"),
        ("rows a second of the worker's processor", lambda one: f"{middle(one, 'rate_cpu'):,.0f}"),
        ("plaintext updates a second of the processor", lambda one: f"{middle(one, 'limit_cpu'):,.0f}"),
        ("rows verified a second", lambda one: f"{middle(one, 'verified'):,.0f}"),
        ("two workers, ratio to one", lambda one: dash(two_to_one(one), "{:.2f}")),
        ("most memory of a worker, MiB", lambda one: dash(peak(one), "{:.0f}")),
        ("a chunk, ms: median", lambda one: f"{median(chunks(one)) * 1e3:.0f}"),
        ("a chunk, ms: 99 of 100", lambda one: f"{percentile(chunks(one), 99) * 1e3:.0f}"),
        ("a chunk, ms: longest", lambda one: f"{max(chunks(one)) * 1e3:.0f}"),
        ("longest that rows were locked, ms", lambda one: dash(longest(one, "held"), "{:.0f}", 1e3)),
        ("longest wait for a lock, ms", lambda one: dash(longest(one, "waited"), "{:.0f}", 1e3)),
        ("load of the machine", lambda one: f"{middle(one, 'load'):.1f}"),
    ]
    lines = [[name, *(show(place) for place in places)] for name, show in measures]
    what = f"moving {row_count:,} rows, one {SIZE}-character column"
    return Sheet(f"Migration: {what}", ["", *(place.name for place in places)], lines)


def figures(place: Place) -> dict[str, float]:
    """The figures that have limits."""
    found = {
        "rows a second": middle(place, "rate"),
        "share of the plaintext limit": share(place, "rate", "limit"),
        "MiB of a worker": peak(place),
        "two workers": two_to_one(place),
        "seconds locked": longest(place, "held"),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def middle(place: Place, name: str) -> float:
    found: list[float] = [getattr(one, name) for one in place.rounds]
    return median(found)


def share(place: Place, name: str, whole: str) -> float:
    found: list[float] = [getattr(one, name) / getattr(one, whole) for one in place.rounds]
    return median(found)


def two_to_one(place: Place) -> float | None:
    found = [one.two / one.rate for one in place.rounds if one.two is not None]
    return median(found) if found else None


def peak(place: Place) -> float | None:
    found = [one.peak for one in place.rounds if one.peak is not None]
    return max(found) / 2**20 if found else None


def longest(place: Place, name: str) -> float | None:
    found = [getattr(one, name) for one in place.rounds if getattr(one, name) is not None]
    return max(found) if found else None


def chunks(place: Place) -> list[float]:
    return [seconds for one in place.rounds for seconds in one.chunks]


def percentile(values: list[float], which: int) -> float:
    return quantiles(values, n=100, method="inclusive")[which - 1] if len(values) > 1 else values[0]


def dash(value: float | None, form: str, factor: float = 1) -> str:
    return "–" if value is None else form.format(value * factor)


def measure_round(place: Place, row_count: int) -> Round:
    """One round: the bare driver, one worker, a verification, two workers."""
    os.environ[ADDRESS] = place.url
    os.environ.setdefault(KEY, os.urandom(32).hex())
    mover = migrator()
    try:
        if place.is_sqlite:
            with mover.engine.connect() as connection:
                connection.exec_driver_sql(f"PRAGMA journal_mode = {Path(place.url).stem}")
        make_tables(mover.engine, row_count)
        limit, limit_cpu = plaintext_updates(mover.engine, row_count)
        make_tables(mover.engine, row_count)
        with workers(1) as pool, Watch(mover.engine) as watch:
            before = pool.submit(tell, forget=True).result()
            report = mover.run(COLUMN, executor=pool)
            told = pool.submit(tell).result()
            rate, cpu = row_count / report.seconds, row_count / (told.cpu - before.cpu)
            assert (report.finished, told.rows) == (True, row_count)
            began = time.perf_counter()
            verified = mover.verify(COLUMN, executor=pool)
            verify_rate = row_count / (time.perf_counter() - began)
            assert (verified.is_clean, verified.locked) == (True, 0)
        load = os.getloadavg()[0]
        found = Round(limit, limit_cpu, rate, cpu, verify_rate, told.chunks, told.peak, load)
        if not place.is_sqlite:  # on SQLite one writer keeps all others out
            found.held, found.waited = watch.held, watch.waited
            make_tables(mover.engine, row_count)
            with workers(2) as pool:
                found.two = row_count / mover.run(COLUMN, workers=2, executor=pool).seconds
        return found
    finally:
        mover.engine.dispose()


@contextmanager
def workers(count: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that have started and imported everything."""
    with ProcessPoolExecutor(count, get_context("spawn")) as pool:
        list(pool.map(ready, range(count)))
        yield pool


def ready(_: int) -> None:
    """Answer from a worker's process. It stays busy for a moment, so that each process is asked."""
    time.sleep(0.3)


def make_tables(engine: Engine, row_count: int) -> None:
    """Make the full table, as before the migration, and remove every trace of an earlier one."""
    series = {
        "sqlite": "WITH RECURSIVE series(n) AS "
        "(SELECT 1 UNION ALL SELECT n + 1 FROM series WHERE n < :count) ",
        "postgresql": "WITH series AS (SELECT generate_series(1, :count) AS n) ",
    }[engine.dialect.name]
    digits = "printf('%014d', n)" if engine.dialect.name == "sqlite" else "lpad(n::text, 14, '0')"
    with engine.begin() as connection:
        for name in ("envelope_migration", "envelope_migration_job", "envelope_migration_range"):
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {name}")
        Base.metadata.drop_all(connection)
        others = [one for name, one in Base.metadata.tables.items() if name != "moving_rows"]
        Base.metadata.create_all(connection, others)
        connection.exec_driver_sql(
            "CREATE TABLE moving_rows (id INTEGER PRIMARY KEY, owner_id INTEGER NOT NULL REFERENCES "
            "moving_owners (id), body VARCHAR(20))"
        )
        connection.execute(
            text("INSERT INTO moving_owners (id) " + series + "SELECT n FROM series"), {"count": OWNERS}
        )
        connection.execute(
            text(
                f"INSERT INTO moving_rows (id, owner_id, body) {series}"
                f"SELECT n, 1 + n % {OWNERS}, 'value ' || {digits} FROM series"
            ),
            {"count": row_count},
        )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        # Clean up after dropped and filled tables first, so that the database does not do it meanwhile.
        connection.exec_driver_sql("VACUUM")
        connection.exec_driver_sql("ANALYZE")


def plaintext_updates(engine: Engine, row_count: int) -> tuple[float, float]:
    """The rows a second that the bare driver updates, by the clock and by this process's processor time."""
    is_sqlite = engine.dialect.name == "sqlite"
    with engine.begin() as connection:
        kind = "BLOB" if is_sqlite else "BYTEA"
        connection.exec_driver_sql(f"ALTER TABLE moving_rows ADD COLUMN body_encrypted {kind}")
    bare: Any = engine.raw_connection()
    try:
        cursor, mark = bare.cursor(), "?" if is_sqlite else "%s"
        began, cpu, last, done = time.perf_counter(), time.process_time(), 0, 0
        while True:
            cursor.execute(
                "SELECT id, owner_id, body FROM moving_rows WHERE body IS NOT NULL "
                f"AND body_encrypted IS NULL AND id > {mark} ORDER BY id LIMIT {mark}",
                (last, CHUNK),
            )
            rows = cursor.fetchall()
            if not rows:
                break
            write_sqlite(cursor, rows) if is_sqlite else write_postgresql(cursor, rows)
            bare.commit()
            last, done = rows[-1][0], done + len(rows)
        assert done == row_count
        return done / (time.perf_counter() - began), done / (time.process_time() - cpu)
    finally:
        bare.close()


def write_sqlite(cursor: Any, rows: list[Any]) -> None:
    """Send the statement that the migration sends to SQLite, with the same bytes for each row."""
    cursor.executemany(
        "UPDATE moving_rows SET body_encrypted = ? WHERE id = ? AND body_encrypted IS NULL "
        "AND body COLLATE BINARY IS ?",
        [(STORED, number, body) for number, _, body in rows],
    )


def write_postgresql(cursor: Any, rows: list[Any]) -> None:
    """Send the statement that the migration sends to PostgreSQL, with the same bytes for each row."""
    stored = "\\x" + STORED.hex()
    sent = json.dumps([{"id": number, "seen": body, "made": stored} for number, _, body in rows])
    cursor.execute(
        "UPDATE moving_rows SET body_encrypted = sent.made "
        "FROM json_to_recordset(%s::json) AS sent (id INTEGER, seen TEXT, made BYTEA) "
        "WHERE moving_rows.id = sent.id AND body_encrypted IS NULL AND body::text = sent.seen",
        (sent,),
    )


class Watch:
    """Watches PostgreSQL's locks: the seconds for which the table's rows, or the whole table, were locked,
    and the longest wait for a lock."""

    def __init__(self, engine: Engine) -> None:
        self.held = self.waited = 0.0
        self._engine = engine
        self._ended = Event()
        self._thread = Thread(target=self._look) if engine.dialect.name == "postgresql" else None

    def __enter__(self) -> Watch:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _look(self) -> None:
        query = text(
            "SELECT a.pid, a.xact_start, EXTRACT(EPOCH FROM clock_timestamp() - l.waitstart) "
            "FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE a.pid <> pg_backend_pid() "
            "AND (NOT l.granted OR (l.relation = to_regclass('moving_rows') AND l.mode IN "
            "('RowExclusiveLock', 'ShareRowExclusiveLock', 'AccessExclusiveLock')))"
        )
        seen: dict[tuple[Any, Any], float] = {}
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not self._ended.wait(0.01):
                now, rows = time.monotonic(), connection.execute(query).all()
                # No view says since when a transaction holds a lock: count from the first sight of it.
                rows_held = ((pid, start) for pid, start, wait in rows if wait is None)
                seen = {one: seen.get(one, now) for one in rows_held}
                self.held = max([self.held, *(now - since for since in seen.values())])
                self.waited = max([self.waited, *(float(wait) for *_, wait in rows if wait is not None)])
