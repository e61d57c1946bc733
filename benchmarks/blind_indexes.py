"""Blind indexes: a look-up among many rows beside a plaintext look-up by an indexed column, and what a tag
adds to an insert.

A tag is stored in a column of its own, and a column costs SQLAlchemy and the database something whatever is
in it. So inserts are compared with those of a table without the column, and of a table with a plain column of
16 random bytes.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from statistics import median
from typing import Any

from sqlalchemy import Engine, ForeignKey, LargeBinary, String, func, insert, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from benchmarks.databases import SECRET
from benchmarks.measure import Timing, timed
from benchmarks.sheets import DATABASE_NAMES, Finding, Sheet
from sqlalchemy_envelope import BlindIndex, EncryptedType, Envelope, KdfProfile, KeyOwner, ServerKeyring

NAME = "blind-indexes"
_CHUNK = 10_000
_SOUGHT = 300
"""Look-ups that are timed together."""


class Base(DeclarativeBase):
    """A separate MetaData."""


class Reader(KeyOwner, Base):
    """The owner of all rows."""

    __tablename__ = "index_readers"
    id: Mapped[int] = mapped_column(primary_key=True)


class Account(Base):
    """What is looked for by a blind index."""

    __tablename__ = "index_accounts"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    reader_id: Mapped[int] = mapped_column(ForeignKey("index_readers.id", ondelete="CASCADE"))
    email: Mapped[str] = mapped_column(EncryptedType(String))
    email_index: Mapped[bytes] = mapped_column(BlindIndex("email", scope="server"), unique=True)


class PlainAccount(Base):
    """The same in plaintext."""

    __tablename__ = "index_plain_accounts"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    reader_id: Mapped[int] = mapped_column(ForeignKey("index_readers.id", ondelete="CASCADE"))
    email: Mapped[str] = mapped_column(String, unique=True)


class Note(Base):
    """An encrypted column, and no index."""

    __tablename__ = "index_notes"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    reader_id: Mapped[int] = mapped_column(ForeignKey("index_readers.id", ondelete="CASCADE"))
    title: Mapped[str] = mapped_column(EncryptedType(String))


class WiderNote(Base):
    """The same, and a column as wide as a tag."""

    __tablename__ = "index_wider_notes"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    reader_id: Mapped[int] = mapped_column(ForeignKey("index_readers.id", ondelete="CASCADE"))
    title: Mapped[str] = mapped_column(EncryptedType(String))
    other: Mapped[bytes] = mapped_column(LargeBinary(16))


class FoundNote(Base):
    """The same, with tags in that column. The database has no index on it: what that costs has nothing to do
    with the library."""

    __tablename__ = "index_found_notes"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    reader_id: Mapped[int] = mapped_column(ForeignKey("index_readers.id", ondelete="CASCADE"))
    title: Mapped[str] = mapped_column(EncryptedType(String))
    title_index: Mapped[bytes] = mapped_column(BlindIndex("title", scope="server"))


def measure_blind_indexes(engine: Engine, sought_among: int, row_count: int, round_count: int) -> Finding:
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    envelope = Envelope(
        kdf_profile=KdfProfile.unsafe_for_tests(),
        server_keys=ServerKeyring.from_text(ServerKeyring.generate_key()),
    )
    with Session(engine) as session:
        reader = Reader()
        with envelope.enroll(session, reader, secret=SECRET):
            session.commit()
            fill(engine, reader.id, sought_among)
            inserts = measure_inserts(engine, reader.id, row_count, round_count)
            opened = measure_look_ups(engine, envelope, sought_among, round_count, load_object)
        locked = measure_look_ups(engine, envelope, sought_among, round_count, load_object)
        ids = measure_look_ups(engine, envelope, sought_among, round_count, load_id)
    name = DATABASE_NAMES[engine.dialect.name]
    sheets = [
        Sheet(
            f"{name}: one row among {sought_among:,}",
            ["", "µs, plaintext", "µs, blind index", "ratio, processor", "ratio, wall clock"],
            [
                line("its id", ids),
                line("the object, locked", locked),
                line("the object, with its value", opened),
            ],
        ),
        Sheet(
            f"{name}: bulk insert with one blind index",
            ["", "µs a value, processor"],
            [[what, f"{cost:.2f}"] for what, cost in inserts.items()],
        ),
    ]
    clock = "cpu" if engine.dialect.name == "sqlite" else "wall"  # PostgreSQL looks up in its own process
    figures = {
        "ratio, id": ids[clock],
        "ratio, locked object": locked[clock],
        "ratio, object": opened[clock],
        **{f"µs, {what}": cost for what, cost in inserts.items()},
    }
    return Finding(NAME, engine.dialect.name, sheets, figures)


def line(what: str, found: dict[str, float]) -> list[str]:
    times = [f"{found[name]:.0f}" for name in ("plain", "index")]
    return [what, *times, *(f"{found[name]:.2f}" for name in ("cpu", "wall"))]


def email(number: int) -> str:
    return f"user.{number:08d}@mail.example.org"


def fill(engine: Engine, reader_id: int, count: int) -> None:
    with Session(engine) as session:
        for start in range(0, count, _CHUNK):
            numbers = range(start, min(count, start + _CHUNK))
            rows = [{"id": one, "reader_id": reader_id, "email": email(one)} for one in numbers]
            session.execute(insert(Account), rows)
            session.execute(insert(PlainAccount), rows)
        session.commit()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))


def load_id(session: Session, model: Any, sought: str) -> object:
    return session.scalars(select(model.id).where(model.email == sought)).one()


def load_object(session: Session, model: Any, sought: str) -> object:
    found = session.scalars(select(model).where(model.email == sought)).one()
    session.expunge(found)
    return found


def measure_look_ups(
    engine: Engine,
    envelope: Envelope,
    count: int,
    round_count: int,
    load: Callable[[Session, Any, str], object],
) -> dict[str, float]:
    """Blocks of look-ups by turns: microseconds of each, and the median ratio of neighbouring blocks."""
    timings: list[tuple[Timing, Timing]] = []
    with Session(engine) as session:
        envelope.attach(session)
        assert session.scalar(select(func.count()).select_from(Account)) == count
        for _ in range(2 * round_count + 1):
            sought = [email(one) for one in random.sample(range(count), _SOUGHT)]
            pair = [timed(looked_up(session, model, sought, load)) for model in (PlainAccount, Account)]
            timings.append((pair[0], pair[1]))
    del timings[0]  # it fills caches
    return {
        "plain": median(plain.wall for plain, _ in timings) / _SOUGHT * 1e6,
        "index": median(index.wall for _, index in timings) / _SOUGHT * 1e6,
        "cpu": median(index.cpu / plain.cpu for plain, index in timings),
        "wall": median(index.wall / plain.wall for plain, index in timings),
    }


def looked_up(
    session: Session, model: Any, sought: list[str], load: Callable[[Session, Any, str], object]
) -> Callable[[], object]:
    def run() -> None:
        for one in sought:
            load(session, model, one)

    return run


def measure_inserts(engine: Engine, reader_id: int, count: int, round_count: int) -> dict[str, float]:
    """The microseconds of a row that an index adds, beyond two other tables, paired within a round."""
    rows = [{"id": one, "reader_id": reader_id, "title": email(one)} for one in range(count)]
    wider = [row | {"other": os.urandom(16)} for row in rows]
    models: list[tuple[Any, list[dict[str, Any]]]] = [(Note, rows), (WiderNote, wider), (FoundNote, rows)]
    costs: list[dict[Any, float]] = []
    for number in range(round_count + 1):
        costs.append({})
        for model, given in random.sample(models, len(models)):
            costs[number][model] = timed(inserted(engine, model, given)).cpu / count * 1e6
    del costs[0]
    return {
        "an index, beyond a plain column": median(one[FoundNote] - one[WiderNote] for one in costs),
        "an index, beyond nothing": median(one[FoundNote] - one[Note] for one in costs),
        "a plain column, beyond nothing": median(one[WiderNote] - one[Note] for one in costs),
    }


def inserted(engine: Engine, model: Any, rows: list[dict[str, Any]]) -> Callable[[], object]:
    with engine.begin() as connection:
        connection.execute(text(f"DELETE FROM {model.__tablename__}"))

    def run() -> None:
        with Session(engine) as session:
            session.execute(insert(model), rows)
            session.commit()

    return run
