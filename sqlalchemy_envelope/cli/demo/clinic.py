"""The demo's database: an SQLite file, the people in it, and ways to look at it from outside."""

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, select
from sqlalchemy.orm import Session

from sqlalchemy_envelope import Envelope, UnlockedSession, enforce_foreign_keys
from sqlalchemy_envelope.cli.demo.models import Base, Entry, Person, journal

APPLICATION_ID = 0x456E764C
"""The mark of a demo file, in SQLite's field for the program that a file belongs to."""
ADA, GRACE = "Ada Lovelace", "Grace Hopper"
DATA_TABLES = ("people", "journal")
KEY_TABLES = ("people_key", "people_keyslot")


def is_demo_file(path: Path) -> bool:
    """Whether the demo made this file. Only the header is read, so that SQLite repairs nothing on the way."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        header = file.read(100)
    return header.startswith(b"SQLite format 3\0") and header[68:72] == APPLICATION_ID.to_bytes(4, "big")


@dataclass
class Clinic:
    """The file, the access to it, and the secrets of the people in it."""

    path: Path
    envelope: Envelope
    record_count: int
    secrets: dict[str, str] = field(
        default_factory=lambda: {ADA: "analytical engine 1843", GRACE: "nanosecond of wire, 11.8 in"}
    )
    phones: dict[str, str] = field(
        default_factory=lambda: {ADA: "+44 20 7946 0018", GRACE: "+1 202 555 0147"}
    )
    engine: Engine = field(init=False)
    unlock_seconds: float = 0.0
    """The seconds that the last successful unlock took."""

    def __post_init__(self) -> None:
        with self.path.open("xb"):  # create the file, or fail if it exists
            pass
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        self.engine = create_engine(URL.create("sqlite", database=str(self.path)))
        enforce_foreign_keys(self.engine)
        # Otherwise SQLite leaves deleted data in the free space of the file, wrapped keys too.
        event.listen(
            self.engine, "connect", lambda connection, _: connection.execute("PRAGMA secure_delete=ON")
        )
        Base.metadata.create_all(self.engine)

    def records(self, name: str) -> list[dict[str, Any]]:
        """The records of a person: half of all records, and for Ada the odd record too."""
        half = self.record_count // 2
        return list(
            journal(half if name == GRACE else self.record_count - half, seed=1815 if name == ADA else 1906)
        )

    def enroll(self, name: str) -> float:
        """Enrol a person and write the journal; return the seconds that the enrolment took."""
        with Session(self.engine) as session:
            person = Person(name=name, phone=self.phones[name])
            started = perf_counter()
            unlocked = self.envelope.enroll(session, person, secret=self.secrets[name])
            seconds = perf_counter() - started
            with unlocked:
                session.add_all(Entry(person=person, **record) for record in self.records(name))
                session.commit()
        return seconds

    @contextmanager
    def unlocked(self, name: str) -> Iterator[tuple[Session, Person, UnlockedSession]]:
        """A session in which a person is unlocked with their own secret."""
        with Session(self.engine) as session:
            person = session.scalars(select(Person).where(Person.name == name)).one()
            envelope, secret = self.envelope, self.secrets[name]
            started = perf_counter()
            with envelope.unlock(session, person, secret=secret) as unlocked:
                self.unlock_seconds = perf_counter() - started
                yield session, person, unlocked

    def try_secret(self, name: str, secret: str) -> None:
        """Unlock a person with this secret, and lock the person again."""
        with Session(self.engine) as session:
            person = session.scalars(select(Person).where(Person.name == name)).one()
            with self.envelope.unlock(session, person, secret=secret):
                pass

    def execute(self, statement: str, *parameters: Any) -> list[Any]:
        """Run raw SQL in a transaction of its own, past the library, as anybody with the file could."""
        with self.engine.begin() as connection:
            result = connection.exec_driver_sql(statement, parameters)
            return [tuple(row) for row in result] if result.returns_rows else []

    def count(self, table: str) -> int:
        """Rows of a table."""
        return int(self.execute(f"SELECT count(*) FROM {table}")[0][0])  # noqa: S608 - our own table names

    def cells(self, tables: tuple[str, ...]) -> dict[tuple[str, int, str], bytes]:
        """Every stored cell of these tables, by table, row number and column."""
        found = {}
        with self.engine.connect() as connection:
            for table in tables:
                result = connection.exec_driver_sql(f"SELECT rowid, * FROM {table}")  # noqa: S608 - as above
                names = list(result.keys())[1:]
                for rowid, *values in result:
                    for name, value in zip(names, values, strict=True):
                        found[table, rowid, name] = value if isinstance(value, bytes) else str(value).encode()
        return found


def digest(cells: dict[tuple[str, int, str], bytes]) -> str:
    """A single hash over all these cells and their places."""
    hashed = hashlib.sha256()
    for place, value in sorted(cells.items()):
        hashed.update(f"{place} {len(value)} ".encode() + value)
    return hashed.hexdigest()
