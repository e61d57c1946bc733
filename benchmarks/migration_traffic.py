"""A migration under traffic, from start to contract: nothing lost, nothing stale, no error seen by a reader.

    python -m benchmarks.migration_traffic --database postgresql --rows 1000000

This is one long file, because it is one application with its traffic, to be read from top to bottom.

There are three existing tables: with an integer key, a composite key and UUIDs. An application reads and
writes them through SQLAlchemy, and is deployed anew for each step; the old and the new release run side by
side for a while. Another program, which knows nothing of the migration, writes plaintext by bare SQL.

A ledger outside the database notes every write before it begins and after its commit, and every read with its
result. Afterwards each read must have returned a value that was current at some time during the read, and the
database must hold the values of the ledger.
"""

from __future__ import annotations

import argparse
import datetime as dt
import itertools
import json
import os
import random
import tempfile
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from statistics import quantiles
from types import SimpleNamespace
from typing import Any

from rich.console import Console
from sqlalchemy import (
    Engine,
    ForeignKey,
    String,
    Text,
    Uuid,
    create_engine,
    delete,
    event,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import (
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyOwner,
    PreviousColumn,
    ServerKeyring,
    enforce_foreign_keys,
)
from sqlalchemy_envelope.exceptions import MigrationRefusedError
from sqlalchemy_envelope.migration.migrator import Migrator
from sqlalchemy_envelope.migration.running.runner import Pace

Key = tuple[Any, ...]
COLUMNS = ("customers.phone", "orders.note", "documents.title")
RELEASES = ("plain", "both", "read", "refuse", "without")
"""The releases, in the order of their deployment: before the migration, the three policies, without
`previous`."""
HOT = 50
"""The number of rows of each table that all processes write to, again and again."""


# ---------------------------------------------------------------------- the application


def models(release: str) -> SimpleNamespace:
    """The application's models in a release."""

    class Base(DeclarativeBase):
        pass

    def moving(name: str, inner: Any, **options: Any) -> Any:
        if release == "plain":
            return mapped_column(name, inner)
        previous: dict[str, Any] = {}
        if release != "without":
            previous = {"previous": PreviousColumn(name, inner, release)}  # type: ignore[arg-type]
        return mapped_column(f"{name}_encrypted", EncryptedType(inner, **options, **previous))

    class Customer(*([] if release == "plain" else [KeyOwner]), Base):  # type: ignore[misc]
        __tablename__ = "customers"

        id: Mapped[int] = mapped_column(primary_key=True)
        phone: Mapped[str | None] = moving("phone", String(20))

    class Order(Base):
        __tablename__ = "orders"

        customer_id: Mapped[int] = mapped_column(
            ForeignKey("customers.id", ondelete="CASCADE"), primary_key=True
        )
        number: Mapped[int] = mapped_column(primary_key=True)
        note: Mapped[str | None] = moving("note", Text(), **owned("customer_id"))

    class Document(Base):
        __tablename__ = "documents"

        id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True)
        customer_id: Mapped[int] = mapped_column(ForeignKey("customers.id", ondelete="CASCADE"))
        title: Mapped[str | None] = moving("title", String(20), bind="row", **owned("customer_id"))

    return SimpleNamespace(Base=Base, customers=Customer, orders=Order, documents=Document)


def owned(attribute: str) -> dict[str, Any]:
    """The `owner=` of a column."""
    return {"owner": attribute}


ATTRIBUTES = dict(one.split(".") for one in COLUMNS)


def connect(url: str, *, writes: bool = False) -> Engine:
    """The database, as a program of this application opens it."""
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        enforce_foreign_keys(engine)

        @event.listens_for(engine, "connect")
        def on_connect(connection: Any, _record: Any) -> None:
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("PRAGMA busy_timeout = 30000")
            if writes:
                connection.isolation_level = None

        if writes:
            # A transaction that reads first and then writes would be refused if another wrote in between.
            @event.listens_for(engine, "begin")
            def on_begin(connection: Any) -> None:
                connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def envelope() -> Envelope:
    """The application's envelope; every process has the same server key."""
    keys = ServerKeyring([bytes.fromhex(os.environ["MIGRATION_TRAFFIC_KEY"])])
    return Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=keys)


@dataclass(frozen=True)
class Scale:
    """The number of rows, and the speed of the traffic.

    Attributes:
        rate: the reads, and the writes, a second of each process.
        seconds: the length of each stretch of time with traffic alone.
        chunk_seconds: the intended time of a chunk of the migration.
    """

    rows: int
    rate: float = 60.0
    seconds: float = 10.0
    chunk_seconds: float = Pace.chunk_seconds

    @property
    def customers(self) -> int:
        return max(self.rows // 500, 20)

    @property
    def numbers(self) -> int:
        """The numbers of a customer's orders."""
        return (self.rows - self.customers) // 2 // self.customers

    @property
    def documents(self) -> int:
        return self.rows - self.customers - self.customers * self.numbers

    def keys(self, table: str) -> Iterator[Key]:
        """Every key at the beginning."""
        if table == "customers":
            return ((number,) for number in range(1, self.customers + 1))
        if table == "orders":
            # In an order other than that of the keys, as orders come in.
            numbers = range(1, self.numbers + 1)
            return ((owner, one) for one in numbers for owner in range(1, self.customers + 1))
        return ((document(number),) for number in range(self.documents))

    def any_key(self, table: str, chance: random.Random) -> Key:
        """A random key; every fifth time a key that all processes write to."""
        hot = chance.random() < 0.2
        if table == "customers":
            return (chance.randint(1, min(HOT, self.customers) if hot else self.customers),)
        if table == "orders":
            return (
                (chance.randint(1, 10), 1)
                if hot
                else (
                    chance.randint(1, self.customers),
                    chance.randint(1, self.numbers),
                )
            )
        return (document(chance.randrange(min(HOT, self.documents) if hot else self.documents)),)


def document(number: int) -> uuid.UUID:
    """The id of a document: scattered, and the same each time."""
    return uuid.UUID(int=(number * 0x9E3779B97F4A7C15F39CC0605CEDC835 + 0x2545F4914F6CDD1D) % 2**128)


def customer_of(key: Key, scale: Scale) -> int:
    """The customer whose document this is."""
    return int(key[0].int % scale.customers) + 1


def first_value(table: str, key: Key) -> str | None:
    """The value of a row at the beginning: some rows hold NULL, some an empty text."""
    number = key[0].int if table == "documents" else sum(key)
    if number % 97 == 0:
        return None
    if number % 89 == 0:
        return ""
    digits = key[0].hex[:14] if table == "documents" else "".join(f"{part:07d}" for part in key)[:14]
    return f"start {digits}"


# ---------------------------------------------------------------------- the ledger

GONE = "(no such row)"
CUT_OVER = "cut-over"
"""A file that exists from the cut-over on. A program that knows nothing of the migration then finds NULL
where only the encrypted column has the value, and cannot set it."""


class Ledger:
    """The notes of one process, in a file of its own."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self._file = (folder / f"{name}.jsonl").open("a", encoding="utf-8")
        self._number = itertools.count()

    @contextmanager
    def writing(self, table: str, key: Key, value: str | None) -> Iterator[None]:
        """Note a write before it begins, and again when it is committed or has failed."""
        number = next(self._number)
        self._note("before", number, table, named(key), value)
        try:
            yield
        except Exception as error:  # noqa: BLE001 - counted, and told at the end
            self._note("failed", number, f"{type(error).__name__}: {error}"[:600])
        else:
            self._note("after", number)

    @contextmanager
    def reading(self) -> Iterator[list[tuple[str, Key, str | None]]]:
        """Note a read with its whole result."""
        found: list[tuple[str, Key, str | None]] = []
        began = time.monotonic_ns()
        try:
            yield found
            if any(not isinstance(value, str | None) for _, _, value in found):
                raise TypeError("a reader was given something that is no text")
        except Exception as error:  # noqa: BLE001 - counted, and told at the end
            self._note("error", f"{type(error).__name__}: {error}"[:600])
        else:
            self._note("read", began, [(table, named(key), value) for table, key, value in found])

    def _note(self, *what: Any) -> None:
        self._file.write(json.dumps([what[0], time.monotonic_ns(), *what[1:]]) + "\n")

    def close(self) -> None:
        """Put all notes on the disk."""
        self._file.close()


def named(key: Key) -> str:
    """A key as text."""
    return "/".join(str(part) for part in key)


@dataclass
class Write:
    """A write: when it began and was committed, in nanoseconds of one clock; None if it was not committed."""

    value: str | None
    began: int
    ended: int | None = None
    by: str = ""


# ---------------------------------------------------------------------- the traffic


def serve(url: str, release: str, role: str, scale: Scale, folder: str, stop: Any, ready: Any) -> None:
    """One process of the traffic, until it is told to stop."""
    name = f"{release}-{role}-{os.getpid()}"
    ledger, chance = Ledger(Path(folder), name), random.Random(os.getpid())
    engine = connect(url, writes=role != "reader")
    app = models("plain" if role == "old" else release)
    step = {"reader": read_step, "writer": write_step, "old": old_step}[role]
    with ExitStack() as stack:
        if release not in ("plain", "old"):
            stack.enter_context(envelope().server_mode(None, provider="server", reason="a request"))
        ready.set()
        turn, numbers = 1 / scale.rate, itertools.count(1)
        following = time.monotonic()
        parent = os.getppid()
        while not stop.is_set() and os.getppid() == parent:
            step(engine, app, ledger, scale, chance, numbers)
            following = max(following + turn, time.monotonic() - 1)
            time.sleep(max(following - time.monotonic(), 0))
    ledger.close()
    engine.dispose()


def read_step(
    engine: Engine, app: Any, ledger: Ledger, scale: Scale, chance: random.Random, _: Iterator[int]
) -> None:
    """Read one row as an object, or one value, or all orders of a customer."""
    table = chance.choice(list(ATTRIBUTES))
    model, attribute, key = getattr(app, table), ATTRIBUTES[table], scale.any_key(table, chance)
    with ledger.reading() as found, Session(engine) as session:
        kind = chance.random()
        if kind < 0.5:
            row = session.get(model, key)
            found.append((table, key, GONE if row is None else getattr(row, attribute)))
        elif kind < 0.8 and table != "documents":  # its values are bound to their rows: objects alone
            where = (one == part for one, part in zip(keys_of(model), key, strict=True))
            value = session.execute(select(getattr(model, attribute)).where(*where)).first()
            found.append((table, key, GONE if value is None else value[0]))
        else:
            owner, other = scale.any_key("customers", chance)[0], chance.choice([app.orders, app.documents])
            name = other.__tablename__
            query = select(other).where(other.customer_id == owner).limit(50)
            for row in session.scalars(query):
                identity = tuple(getattr(row, one.key) for one in keys_of(other))
                found.append((name, identity, getattr(row, ATTRIBUTES[name])))


def write_step(
    engine: Engine, app: Any, ledger: Ledger, scale: Scale, chance: random.Random, numbers: Iterator[int]
) -> None:
    """Change a row, as an object or by a statement; add a row; or delete a row."""
    table = chance.choice(list(ATTRIBUTES))
    model, attribute, key = getattr(app, table), ATTRIBUTES[table], scale.any_key(table, chance)
    kind, number = chance.random(), next(numbers)
    value = new_value("n", number, chance)
    if kind < 0.6:
        with ledger.writing(table, key, value), Session(engine) as session:
            row = session.get(model, key)
            if row is None:
                raise LookupError("it was deleted")
            setattr(row, attribute, value)
            session.commit()
    elif kind < 0.75 and table == "orders":
        # The statement names the owner; without it, the row would stay pending under "both".
        with ledger.writing(table, key, value), Session(engine) as session:
            where = (one == part for one, part in zip(keys_of(model), key, strict=True))
            values = {"customer_id": key[0], attribute: value}
            done: Any = session.execute(update(model).where(*where).values(values))
            session.commit()
            if done.rowcount != 1:
                raise LookupError("it was deleted")
    elif kind < 0.95 or table == "customers":
        table, key, extra = new_row(scale, chance, number)
        with ledger.writing(table, key, value), Session(engine) as session:
            session.add(getattr(app, table)(**extra, **{ATTRIBUTES[table]: value}))
            session.commit()
    else:
        with ledger.writing(table, key, GONE), Session(engine) as session:
            where = (one == part for one, part in zip(keys_of(model), key, strict=True))
            session.execute(delete(model).where(*where))
            session.commit()


def old_step(
    engine: Engine, app: Any, ledger: Ledger, scale: Scale, chance: random.Random, numbers: Iterator[int]
) -> None:
    """Change or add a row by bare SQL, which names the plaintext column and not the encrypted column."""
    table = chance.choice(list(ATTRIBUTES))
    base: Any = getattr(app, table).__table__
    key, number = scale.any_key(table, chance), next(numbers)
    value = new_value("o", number, chance, nothing=not (ledger.folder / CUT_OVER).exists())
    if chance.random() < 0.7 or table == "customers":
        with ledger.writing(table, key, value), engine.begin() as connection:
            where = (one == part for one, part in zip(base.primary_key, key, strict=True))
            done = connection.execute(update(base).where(*where).values({ATTRIBUTES[table]: value}))
            if done.rowcount != 1:
                raise LookupError("it was deleted")
    else:
        table, key, extra = new_row(scale, chance, number)
        base = getattr(app, table).__table__
        with ledger.writing(table, key, value), engine.begin() as connection:
            connection.execute(insert(base).values({**extra, ATTRIBUTES[table]: value}))


def keys_of(model: Any) -> tuple[Any, ...]:
    """The mapped primary key."""
    return tuple(getattr(model, one.name) for one in model.__table__.primary_key)


def new_value(who: str, number: int, chance: random.Random, *, nothing: bool = True) -> str | None:
    """A value that no other write has; now and then NULL, where that may be, or an empty text."""
    kind = chance.random()
    return None if kind < 0.03 and nothing else "" if kind < 0.06 else f"{who}{os.getpid() % 10**6}é{number}"


def new_row(scale: Scale, chance: random.Random, number: int) -> tuple[str, Key, dict[str, Any]]:
    """The table, key and columns of a row to add."""
    owner = scale.any_key("customers", chance)[0]
    if chance.random() < 0.5:
        key: Key = (owner, 10**8 + (os.getpid() % 10**4) * 10**5 + number)
        return "orders", key, {"customer_id": owner, "number": key[1]}
    key = (uuid.uuid4(),)
    return "documents", key, {"id": key[0], "customer_id": owner}


# ---------------------------------------------------------------------- what it comes to


@dataclass
class Outcome:
    """The result of a migration under traffic."""

    database: str
    rows: int
    reads: int = 0
    values: int = 0
    stale_reads: list[str] = field(default_factory=list)
    reader_errors: Counter[str] = field(default_factory=Counter)
    writes: Counter[str] = field(default_factory=Counter)
    writer_errors: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    checked: int = 0
    late: int = 0
    old_found: int = 0
    refused: list[str] = field(default_factory=list)
    mismatches: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    latencies: dict[str, dict[str, float]] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)

    @property
    def is_clean(self) -> bool:
        """Whether nothing was lost, nothing was stale, and no reader saw an error."""
        wrong = (
            self.lost,
            self.stale,
            self.unexpected,
            self.stale_reads,
            self.reader_errors,
            self.mismatches,
        )
        return not any(wrong)


class Traffic:
    """The migration, with the processes beside it."""

    def __init__(self, url: str, scale: Scale, folder: Path, tell: Callable[[str], None]) -> None:
        self.url, self.scale, self.folder, self._tell = url, scale, folder, tell
        self._context = get_context("spawn")
        self._running: dict[str, list[tuple[Any, Any]]] = {}
        self._stretches: list[tuple[str, int, int]] = []
        self.engine = connect(url)
        self.outcome = Outcome(self.engine.dialect.name, scale.rows)
        self.declared: list[SimpleNamespace] = []

    def migrate(self) -> Outcome:
        """Run the migration from start to contract, and compare everything with the ledger."""
        try:
            self._fill()
            self._start("old", "old")
            self._deploy("plain")
            self._stretch("before", lambda: time.sleep(self.scale.seconds))
            both = self._migrator("both")
            self._each("expand", both.expand)
            self._deploy("both")
            self._stretch("both, at rest", lambda: time.sleep(self.scale.seconds))
            self._stretch("run", lambda: self._each("run", lambda one: self._run(both, one)))
            self._stretch("verify", lambda: self._each("verify", lambda one: self._verify(both, one)))
            # The old program still writes: its last rows are pending.
            self._refuses("cutover", both.cutover)
            self._stop("old")
            (self.folder / CUT_OVER).touch()
            for one in COLUMNS:
                self._run(both, one)
                self._verify(both, one)
                both.cutover(one)
            self._deploy("read")
            read = self._migrator("read")
            self._start("old", "old")  # a job that somebody forgot to stop
            self._stretch("read, at rest", lambda: time.sleep(self.scale.seconds))
            refuse = self._migrator("refuse")
            self._refuses("guard", refuse.guard)
            self._stop("old")
            for one in COLUMNS:
                self._run(read, one)
                self._verify(read, one)
            self._deploy("refuse")
            self._stretch("refuse, at rest", lambda: time.sleep(self.scale.seconds))
            self._each("guard", refuse.guard)
            # A release that still reads the previous column would miss it.
            self._deploy("without")
            self._each("contract", self._migrator("without").contract)
            self._refuse_old_writes()
            self._stretch("after", lambda: time.sleep(self.scale.seconds))
        finally:
            for release in list(self._running):
                self._stop(release)
        self._reckon()
        self.engine.dispose()
        return self.outcome

    # ------------------------------------------------------------------ the steps

    def _migrator(self, release: str) -> Migrator:
        pace = Pace(chunk_seconds=self.scale.chunk_seconds)
        declared = models(release)
        self.declared.append(declared)  # SQLAlchemy keeps a class no longer than others do
        return Migrator(self.engine, envelope(), declared.Base, provider="server", pace=pace)

    def _each(self, what: str, step: Callable[[str], Any]) -> None:
        began = time.monotonic()
        for one in COLUMNS:
            self._tell(f"{what} {one}")
            step(one)
        self.outcome.seconds[what] = time.monotonic() - began

    def _run(self, mover: Migrator, column: str) -> None:
        before = mover.status(column).encrypted_by_job
        report = mover.run(column)
        self.outcome.late += report.late
        rate = (report.rows - before) / report.seconds
        self.outcome.rates.setdefault(f"run {column}", rate)
        self._tell(f"{report} {rate:,.0f} rows/s")

    def _verify(self, mover: Migrator, column: str) -> None:
        began = time.monotonic()
        report = mover.verify(column)
        self.outcome.rates.setdefault(f"verify {column}", report.rows / (time.monotonic() - began))
        self.outcome.mismatches += report.mismatches + report.locked
        self._tell(str(report))

    def _refuses(self, what: str, step: Callable[[str], Any]) -> None:
        chance, ledger = random.Random(self.scale.rows), Ledger(self.folder, f"old-old-{what}")
        for one in COLUMNS:
            table = one.partition(".")[0]
            # One last write of the old program: it may be silent at this moment.
            self._write_old(ledger, table, chance)
            try:
                step(one)
            except MigrationRefusedError as error:
                self.outcome.refused.append(f"{what} while the old program writes: {error}")
        ledger.close()

    def _write_old(self, ledger: Ledger, table: str, chance: random.Random) -> None:
        base: Any = models("plain").Base.metadata.tables[table]
        done = False
        for number in range(100):
            key, value = self.scale.any_key(table, chance), f"last{number}"
            where = [one == part for one, part in zip(base.primary_key, key, strict=True)]
            with ledger.writing(table, key, value), self.engine.begin() as connection:
                changed = connection.execute(update(base).where(*where).values({ATTRIBUTES[table]: value}))
                if changed.rowcount != 1:
                    raise LookupError("it was deleted")
                done = True
            if done:
                return

    def _refuse_old_writes(self) -> None:
        tables: Any = models("plain").Base.metadata.tables
        for table, attribute in ATTRIBUTES.items():
            try:
                with self.engine.begin() as connection:
                    connection.execute(update(tables[table]).values({attribute: "plaintext"}))
            except DBAPIError as error:
                self.outcome.refused.append(f"an old write after the contract: {error.orig}".splitlines()[0])
            else:
                raise AssertionError("plaintext was written after the contract")

    def _stretch(self, name: str, action: Callable[[], Any]) -> None:
        self._tell(name)
        began = time.monotonic_ns()
        action()
        self._stretches.append((name, began, time.monotonic_ns()))

    # ------------------------------------------------------------------ the processes

    def _start(self, release: str, *roles: str) -> None:
        started = []
        for role in roles:
            stop, ready = self._context.Event(), self._context.Event()
            arguments = (self.url, release, role, self.scale, str(self.folder), stop, ready)
            process = self._context.Process(target=serve, args=arguments)
            process.start()
            started.append((process, stop, ready))
        for process, _, ready in started:
            while not ready.wait(1) and process.is_alive():
                pass
        self._running[release] = [(process, stop) for process, stop, _ in started]

    def _deploy(self, release: str) -> None:
        """Start a release; stop the release before it after both have run for a while."""
        self._tell(f"deploy {release}")
        before = [one for one in self._running if one != "old"]
        self._start(release, "reader", "writer")
        time.sleep(min(self.scale.seconds, 2.0))
        for one in before:
            self._stop(one)

    def _stop(self, release: str) -> None:
        for process, stop in self._running.pop(release):
            stop.set()
            process.join()
            if process.exitcode != 0:
                raise AssertionError(f"a process of the release {release!r} died: {process.exitcode}")

    # ------------------------------------------------------------------ the tables

    def _fill(self) -> None:
        is_sqlite = self.engine.dialect.name == "sqlite"
        kind = "CHAR(32)" if is_sqlite else "UUID"
        owner = "customer_id INTEGER NOT NULL REFERENCES customers (id) ON DELETE CASCADE"
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            if is_sqlite:
                connection.exec_driver_sql("PRAGMA journal_mode = WAL")
            for columns in (
                "customers (id INTEGER PRIMARY KEY, phone VARCHAR(20))",
                f"orders ({owner}, number INTEGER NOT NULL, note TEXT, PRIMARY KEY (customer_id, number))",
                f"documents (id {kind} PRIMARY KEY, {owner}, title VARCHAR(20))",
            ):
                connection.exec_driver_sql(f"CREATE TABLE {columns}")
            connection.exec_driver_sql("CREATE INDEX documents_of ON documents (customer_id)")
        plain: Any = models("plain").Base.metadata.tables
        for table in ATTRIBUTES:
            rows = self._rows(table)
            while some := list(itertools.islice(rows, 20_000)):
                with self.engine.begin() as connection:
                    connection.execute(insert(plain[table]).inline(), some)
        for table in models("both").Base.metadata.sorted_tables:
            if table.name not in ATTRIBUTES:  # the library's own
                table.create(self.engine)
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("ANALYZE"))

    def _rows(self, table: str) -> Iterator[dict[str, Any]]:
        names = {"customers": ["id"], "orders": ["customer_id", "number"], "documents": ["id"]}[table]
        for key in self.scale.keys(table):
            row = dict(zip(names, key, strict=True)) | {ATTRIBUTES[table]: first_value(table, key)}
            if table == "documents":
                row["customer_id"] = customer_of(key, self.scale)
            yield row

    # ------------------------------------------------------------------ the reckoning

    def _reckon(self) -> None:
        """Compare all reads, and the whole database, with the ledger."""
        self._tell("reckoning")
        writes, reads = self._ledger()
        self.outcome.reads = len(reads)
        for began, ended, found in reads:
            for table, key, value in found:
                self.outcome.values += 1
                if not was_current(
                    writes.get((table, key), ()), self._first(table, key), value, began, ended
                ):
                    self.outcome.stale_reads.append(f"{table} {key}: {value!r}")
        self._compare(writes)

    def _first(self, table: str, key: str) -> str | None:
        parts: Key = tuple(uuid.UUID(one) if table == "documents" else int(one) for one in key.split("/"))
        if table == "documents":
            return first_value(table, parts) if parts[0] in self._documents else GONE
        there = parts[0] <= self.scale.customers and (len(parts) == 1 or parts[1] <= self.scale.numbers)
        return first_value(table, parts) if there else GONE

    def _ledger(self) -> tuple[dict[tuple[str, str], list[Write]], list[tuple[int, int, Any]]]:
        self._documents = {document(number) for number in range(self.scale.documents)}
        writes: dict[tuple[str, str], list[Write]] = defaultdict(list)
        reads, times = [], defaultdict(list)
        for file in sorted(self.folder.glob("*.jsonl")):
            who, open_ones = file.stem.rpartition("-")[0], {}
            for line in file.read_text(encoding="utf-8").splitlines():
                kind, at, *rest = json.loads(line)
                if kind == "before":
                    number, table, key, value = rest
                    open_ones[number] = (table, key, Write(value, at, by=who))
                elif kind == "after":
                    table, key, write = open_ones.pop(rest[0])
                    write.ended = at
                    writes[table, key].append(write)
                    self.outcome.writes[who] += 1
                    if who.endswith("writer"):
                        times[self._stretch_of(write.began)].append((at - write.began) / 1e6)
                elif kind == "failed":
                    open_ones.pop(rest[0])
                    if not rest[1].startswith("LookupError"):
                        self.outcome.writer_errors[f"{who}: {rest[1]}"] += 1
                elif kind == "read":
                    reads.append((rest[0], at, rest[1]))
                else:
                    self.outcome.reader_errors[f"{who}: {rest[0]}"] += 1
        for name, _, _ in self._stretches:
            if len(times[name]) > 1:
                cuts = quantiles(times[name], n=100, method="inclusive")
                self.outcome.latencies[name] = {"p50": cuts[49], "p99": cuts[98], "writes": len(times[name])}
        return writes, reads

    def _stretch_of(self, at: int) -> str:
        return next((name for name, began, ended in self._stretches if began <= at <= ended), "")

    def _compare(self, writes: dict[tuple[str, str], list[Write]]) -> None:
        app, found = models("without"), 0
        expected = {(table, named(key)) for table in ATTRIBUTES for key in self.scale.keys(table)} | set(
            writes
        )
        with envelope().server_mode(None, provider="server", reason="reckoning"):
            for table, attribute in ATTRIBUTES.items():
                model: Any = getattr(app, table)
                with Session(self.engine) as session:
                    names = [one.key for one in keys_of(model)]
                    for row in session.scalars(select(model).execution_options(yield_per=2_000)):
                        place = (table, named(tuple(getattr(row, name) for name in names)))
                        value = getattr(row, attribute)
                        if place not in expected:
                            self.outcome.unexpected.append(str(place))
                        expected.discard(place)
                        self._judge(place, value, writes.get(place, ()))
                        found += 1
        for place in expected:
            self._judge(place, GONE, writes.get(place, ()))
        self.outcome.checked = found

    def _judge(self, place: tuple[str, str], value: str | None, writes: Iterable[Write]) -> None:
        end = time.monotonic_ns()
        if was_current(writes, self._first(*place), value, end, end):
            self.outcome.old_found += any(one.by == "old-old" and one.value == value for one in writes)
        elif value == GONE:
            self.outcome.lost.append(str(place))
        else:
            last = max(writes, key=lambda one: one.ended or 0, default=None)
            self.outcome.stale.append(
                f"{place}: {value!r}, not {last and last.value!r} by {last and last.by}"
            )


def was_current(
    writes: Iterable[Write], first: str | None, value: str | None, began: int, ended: int
) -> bool:
    """Whether a row may have held this value at some time between two moments. Of two writes at the same
    time, either may have been the last."""
    known = [Write(first, 0, 0), *writes]
    return any(
        one.value == value
        and one.began <= ended
        and not any(one.ended < other.began and other.ended < began for other in known)  # type: ignore[operator]
        for one in known
    )


# ---------------------------------------------------------------------- from the command line


def run_traffic(url: str, scale: Scale, tell: Callable[[str], None] = lambda what: None) -> Outcome:
    """Run a whole migration on an empty database."""
    os.environ.setdefault("MIGRATION_TRAFFIC_KEY", os.urandom(32).hex())
    with tempfile.TemporaryDirectory() as folder:
        return Traffic(url, scale, Path(folder), tell).migrate()


@contextmanager
def empty_database(name: str) -> Iterator[str]:
    """The address of an empty database."""
    with ExitStack() as stack:
        if name == "sqlite":
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            yield f"sqlite:///{folder}/traffic.sqlite3"
            return
        from tests.throwaway_postgres import throwaway_postgres

        yield f"postgresql+psycopg://postgres@/postgres?host={stack.enter_context(throwaway_postgres())}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.migration_traffic")
    parser.add_argument("--database", default="sqlite", choices=("sqlite", "postgresql"))
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument(
        "--rate", type=float, default=60.0, help="reads, and writes, a second of each process"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of each stretch of traffic alone")
    parser.add_argument("--chunk-seconds", type=float, default=Pace.chunk_seconds, help="of the migration")
    options = parser.parse_args()
    scale = Scale(options.rows, options.rate, options.seconds, options.chunk_seconds)
    console = Console(width=150, highlight=False)

    def tell(what: str) -> None:
        load = os.getloadavg()[0]
        console.print(f"{dt.datetime.now():%H:%M:%S} load {load:.1f} {what}", markup=False)

    with empty_database(options.database) as url:
        outcome = run_traffic(url, scale, tell)
    for name, value in vars(outcome).items():
        if isinstance(value, list) and len(value) > 12:
            value = [len(value), *value[:12]]
        console.print(f"{name}: {value}", markup=False)
    console.print("clean" if outcome.is_clean else "NOT CLEAN")


if __name__ == "__main__":
    main()
