"""Tables as an old application has them, the classes of each step over them, and migrations to try."""

import datetime as dt
import enum
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy import Engine, ForeignKey, event
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, configure_mappers, mapped_column

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
from sqlalchemy_envelope.migration.running.runner import Pace
from sqlalchemy_envelope.orm.columns.column_notes import notes_of

SECRET = "correct horse battery staple"
SERVER_KEY = b"k" * 32


class Color(enum.Enum):
    RED = "rot"
    BLUE = "bläu"


INNER_TYPES: dict[str, tuple[Any, Any, list[Any]]] = {
    "int": (sa.BigInteger, sa.BigInteger, [0, -1, 2**62, -(2**63)]),
    "float": (sa.Double, sa.Double, [0.0, -0.0, 1.5, 1e-300, 0.1, float("inf"), float("nan")]),
    "decimal": (sa.Numeric(30, 10), sa.Numeric(30, 10), [Decimal("1.5"), Decimal("-0.0000000001")]),
    "bool": (sa.Boolean, sa.Boolean, [True, False]),
    "date": (sa.Date, sa.Date, [dt.date(1, 1, 1), dt.date(9999, 12, 31)]),
    "time": (sa.Time, sa.Time, [dt.time(0, 0), dt.time(23, 59, 59, 999999)]),
    "datetime": (sa.DateTime, sa.DateTime, [dt.datetime(2020, 2, 29, 1, 2, 3, 4)]),
    "datetimetz": (
        sa.DateTime(timezone=True),
        sa.DateTime(timezone=True),
        [dt.datetime(2020, 2, 29, 23, 30, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=30)))],
    ),
    "timedelta": (sa.Interval, sa.Interval, [dt.timedelta(0), dt.timedelta(days=400, microseconds=1)]),
    "uuid": (sa.Uuid, sa.Uuid, [uuid.UUID(int=0), uuid.UUID(int=2**128 - 1)]),
    "enum": (sa.Enum(Color), sa.Enum(Color), [Color.RED, Color.BLUE]),
    "json": (sa.JSON, sa.JSON, [{"b": [1, 2.5, None], "a": "ü"}, [], "text", 0, False]),
    "bytes": (sa.LargeBinary, sa.LargeBinary, [b"", b"\0\xff", bytes(range(256)) * 40]),
    "str": (sa.Text, sa.Text, ["", " ", "Zürich 漢字 🙂", "%s :x 'q' \\ \"d\"", "x" * 100_000, "null"]),
}
"""Of each type: the inner one, the previous one, and values at its edges."""


@dataclass
class Deployment:
    """The classes of one step."""

    base: Any
    classes: dict[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        return self.classes[name]


@cache
def deployment(policy: str = "both") -> Deployment:
    """The classes of one step; the tables' names are the same in all."""

    class Base(DeclarativeBase):
        pass

    def moved(name: str, inner: Any = sa.Text, previous: Any = None, **options: Any) -> Any:
        declared = PreviousColumn(name, inner if previous is None else previous, policy)  # type: ignore[arg-type]
        return mapped_column(f"{name}_encrypted", EncryptedType(inner, previous=declared, **options))

    def owned(**options: Any) -> Any:
        return mapped_column(ForeignKey("users.id", ondelete="CASCADE"), **options)

    class User(KeyOwner, Base):
        __tablename__ = "users"

        id: Mapped[int] = mapped_column(primary_key=True)
        email: Mapped[str | None]
        phone: Mapped[str | None] = moved("phone", sa.String(40))

    class Note(Base):
        __tablename__ = "notes"

        id: Mapped[int] = mapped_column(primary_key=True)
        user_id: Mapped[int | None] = owned()
        title: Mapped[str | None]
        body: Mapped[str | None] = moved("body")

    class Cell(Base):
        __tablename__ = "cells"

        user_id: Mapped[int] = owned(primary_key=True)
        number: Mapped[int] = mapped_column(primary_key=True)
        body: Mapped[str | None] = moved("body", bind="row")

    class Doc(Base):
        __tablename__ = "docs"

        id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
        user_id: Mapped[int] = owned()
        body: Mapped[str | None] = moved("body", bind="row")

    class HexDoc(Base):
        __tablename__ = "hexdocs"

        id: Mapped[uuid.UUID] = mapped_column(sa.Uuid(native_uuid=False), primary_key=True)
        user_id: Mapped[int] = owned()
        body: Mapped[str | None] = moved("body", bind="row")

    class Word(Base):
        __tablename__ = "words"

        id: Mapped[str] = mapped_column(sa.String(60), primary_key=True)
        user_id: Mapped[int] = owned()
        body: Mapped[str | None] = moved("body", bind="row")

    class Day(Base):
        __tablename__ = "days"

        id: Mapped[dt.date] = mapped_column(primary_key=True)
        user_id: Mapped[int] = owned()
        body: Mapped[str | None] = moved("body", bind="row")

    class Moment(Base):
        __tablename__ = "moments"

        id: Mapped[dt.datetime] = mapped_column(sa.DateTime(timezone=False), primary_key=True)
        color: Mapped[Color] = mapped_column(sa.Enum(Color), primary_key=True)
        user_id: Mapped[int] = owned()
        body: Mapped[str | None] = moved("body")

    class Big(Base):
        __tablename__ = "bigs"

        id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
        user_id: Mapped[int] = owned()
        body: Mapped[str | None] = moved("body", bind="row")

    class Blob(Base):
        __tablename__ = "blobs"

        id: Mapped[bytes] = mapped_column(sa.LargeBinary(16), primary_key=True)
        user_id: Mapped[int] = owned()
        body: Mapped[str | None] = moved("body", bind="row")

    class Order(Base):
        __tablename__ = "order"

        id: Mapped[int] = mapped_column("key : id", primary_key=True)
        user_id: Mapped[int] = mapped_column("select", ForeignKey("users.id", ondelete="CASCADE"))
        body: Mapped[str | None] = mapped_column(
            'it\'s "sealed" %s',
            EncryptedType(sa.Text, previous=PreviousColumn("user name%", sa.Text, policy)),  # type: ignore[arg-type]
        )

    class Person(Base):
        __tablename__ = "people"

        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        user_id: Mapped[int | None] = owned()
        __mapper_args__: ClassVar[dict[str, str]] = {
            "polymorphic_on": "kind",
            "polymorphic_identity": "person",
        }

    class Staff(Person):
        """Its column is in a table of its own, its owner in its parent's."""

        __tablename__ = "staff"

        id: Mapped[int] = mapped_column(ForeignKey("people.id"), primary_key=True)
        salary: Mapped[str | None] = moved("salary", sa.String(20), owner="user_id")
        __mapper_args__: ClassVar[dict[str, str]] = {"polymorphic_identity": "staff"}

    class Padded(Base):
        __tablename__ = "padded"

        id: Mapped[int] = mapped_column(primary_key=True)
        user_id: Mapped[int] = owned()
        body: Mapped[str | None] = moved("body", sa.CHAR(10))

    values: dict[str, Any] = {
        "__tablename__": "kinds",
        "id": mapped_column(sa.Integer, primary_key=True),
        "user_id": mapped_column(ForeignKey("users.id", ondelete="CASCADE")),
        "__annotations__": {},
    }
    for kind, (inner, previous, _) in INNER_TYPES.items():
        values[f"a_{kind}"] = moved(f"a_{kind}", inner, previous)
    kinds = type("Kind", (Base,), values)

    configure_mappers()
    found = {name: one for name, one in locals().items() if isinstance(one, type) and issubclass(one, Base)}
    return Deployment(Base, found | {"Kind": kinds})


def old_tables(base: Any) -> sa.MetaData:
    """The tables as they were before: without the encrypted columns."""
    before = sa.MetaData()
    for table in base.metadata.sorted_tables:
        moving = [one for one in table.columns if notes_of(one).previous is not None]
        if not moving:
            table.to_metadata(before)
            continue
        columns = [one._copy() for one in table.columns if one not in moving]
        for one in columns:
            one.key = one.name
        sa.Table(table.name, before, *columns, schema=table.schema)
    return before


@dataclass
class Trial:
    """A database of an old application, with what migrates it.

    Attributes:
        make: the step's classes, by policy.
        users: the ids of the owners.
    """

    engine: Engine
    make: Callable[[str], Deployment] = deployment
    provider: str | None = "server"
    pace: Pace = field(default_factory=lambda: Pace(patience=5.0))
    users: list[int] = field(default_factory=lambda: [1, 2, 3])

    def __post_init__(self) -> None:
        self.envelope = new_envelope()
        self.before = old_tables(self.make("both").base)

    def create(self, *tables: str) -> "Trial":
        """Make the old tables, with three owners who have no keys. Given names: these alone, and `users`."""
        wanted = None
        if tables:
            named = {"users", *tables}
            wanted = [
                one for one in self.before.tables.values() if one.name in named or "users_" in one.name
            ] + [one for one in self.before.tables.values() if one.name.startswith("user_")]
            wanted = list(dict.fromkeys(wanted))
        self.before.create_all(self.engine, tables=wanted)
        self.insert("users", [{"id": one, "email": f"{one}@example.org"} for one in self.users])
        return self

    def migrator(self, policy: str = "both", **options: Any) -> Migrator:
        """The migrator of the program that is deployed with this policy."""
        options = {"provider": self.provider, "pace": self.pace} | options
        return Migrator(options.pop("engine", self.engine), self.envelope, self.make(policy).base, **options)

    def table(self, name: str) -> sa.Table:
        """An old table."""
        return self.before.tables[name]

    def insert(self, table: str, rows: list[dict[str, Any]]) -> None:
        """What the old program inserts."""
        with self.engine.begin() as connection:
            connection.execute(self.table(table).insert(), rows)

    def sql(self, statement: str, **values: Any) -> list[Any]:
        """What a program does that knows nothing of the encrypted column; gives the rows it asks for."""
        with self.engine.begin() as connection:
            result = connection.execute(sa.text(statement), values)
            return list(result.all()) if result.returns_rows else []

    def states(self, table: str, name: str, key: str = "id") -> dict[Any, tuple[Any, bytes | None]]:
        """What the two columns of each row hold."""
        rows = self.sql(f"SELECT {key}, {name}, {name}_encrypted FROM {table} ORDER BY {key}")
        return {row[0]: (row[1], None if row[2] is None else bytes(row[2])) for row in rows}

    @contextmanager
    def server(self, policy: str = "both") -> Iterator[Session]:
        """A session of the application in server mode."""
        with Session(self.engine) as session, self.envelope.server_mode(session, reason="test"):
            yield session

    def read(self, name: str, attribute: str, policy: str = "both") -> dict[Any, Any]:
        """What the application reads, by primary key, in server mode."""
        cls = getattr(self.make(policy), name)
        keys = sa.inspect(cls).primary_key
        with self.server(policy) as session:
            rows = session.execute(sa.select(*keys, getattr(cls, attribute))).all()
            return {tuple(row[:-1]): row[-1] for row in rows}

    def to_cutover(self, name: str, policy: str = "both") -> Migrator:
        """Run, verify and cut over."""
        migrator = self.migrator(policy)
        assert migrator.run(name).finished
        assert migrator.verify(name).is_clean
        migrator.cutover(name)
        return migrator


def new_envelope(key: bytes = SERVER_KEY, **options: Any) -> Envelope:
    """An envelope with a cheap derivation and a server key."""
    return Envelope(
        kdf_profile=KdfProfile.unsafe_for_tests(),
        **({"server_keys": ServerKeyring([key])} | options),
    )


def notes(count: int, users: int = 3, first: int = 1) -> list[dict[str, Any]]:
    """Rows of `notes`."""
    return [
        {"id": number, "user_id": number % users + 1, "body": f"note body {number:010d}"}
        for number in range(first, first + count)
    ]


@contextmanager
def on_statement(engine: Engine, call: Callable[[str], None]) -> Iterator[None]:
    """Call something with each statement before it is sent."""

    def before(_: Any, __: Any, statement: str, *___: Any) -> None:
        call(statement)

    event.listen(engine, "before_cursor_execute", before)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", before)


# ---------------------------------------------------------------- programs that are killed

KILL_URL = "ENVELOPE_KILL_URL"
"""The environment variable that tells a process which database to migrate."""
KILL_PACE = Pace(largest=1000, range_rows=25_000, patience=60.0)


made_here: list[Engine] = []
"""The engines of workers that are threads of this process."""


def kill_migrator() -> Migrator:
    """The migrator of a process of its own: by this reference its workers find theirs."""
    engine = sa.create_engine(os.environ[KILL_URL])
    made_here.append(engine)
    if engine.dialect.name == "sqlite":
        enforce_foreign_keys(engine)
    return Migrator(
        engine,
        new_envelope(),
        deployment("both").base,
        provider="server",
        reference="tests.migration.engine_models:kill_migrator",
        pace=KILL_PACE,
    )


def migrate(url: str, workers: int = 1) -> None:
    """What a process does that is to be killed."""
    os.environ[KILL_URL] = url
    kill_migrator().run("notes.body", workers=workers)
