"""Threads and tasks read the same rows at once, by nested unlocks, through groups and in server mode; some
values were moved. Nobody gets another owner's value, no genuine one is called moved, and none that is open is
missed.

For half a second each. `ENVELOPE_STRESS_SECONDS=60` for longer.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count
from random import Random
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, ForeignKey, String, create_engine, event, select, text, union_all
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, mapped_column

from sqlalchemy_envelope import (
    AsyncEnvelope,
    DecryptionError,
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyGrant,
    KeyOwner,
    LockedError,
    Sealed,
    ServerKeyring,
    enforce_foreign_keys,
)

SECONDS = float(os.environ.get("ENVELOPE_STRESS_SECONDS", "0.5"))
THREADS, TASKS = 8, 12
USERS, ROWS = 4, 40
MEMBERS = {1: (1, 2), 2: (2, 3)}
"""The users in each group."""
MOVED = range(1, ROWS, 5)
"""The rows with a value of another owner."""

envelope = Envelope(
    kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([bytes(32)]), derivation_wait=60
)


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)


class Group(KeyOwner, Base):
    __tablename__ = "groups"
    id: Mapped[int] = mapped_column(primary_key=True)


class Member(KeyGrant, Base, of="group_id", to="user_id"):
    __tablename__ = "members"
    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    body: Mapped[str] = mapped_column(EncryptedType(String))


class Page(Base):
    __tablename__ = "pages"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    owner_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    body: Mapped[str] = mapped_column(EncryptedType(String, bind="row"))


class Post(Base):
    __tablename__ = "posts"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"))
    body: Mapped[str] = mapped_column(EncryptedType(String))


MODELS: tuple[Any, ...] = (Note, Page, Post)
Read = tuple[int, int, Any]
"""A row's number, its owner, and what reads its value."""


def fill(engine: Engine) -> None:
    """Users and groups with rows, some of which have the value of a row of another owner."""
    Base.metadata.create_all(engine)
    with Session(engine) as session, ExitStack() as stack:
        for number in range(1, USERS + 1):
            user = User(id=number)
            stack.enter_context(envelope.enroll(session, user, secret=f"s{number}", provider="server"))
        for number, members in MEMBERS.items():
            stack.enter_context(envelope.enroll(session, Group(id=number), provider="server"))
            session.add_all(Member(group_id=number, user_id=user) for user in members)
        for model in MODELS:
            owners = len(MEMBERS) if model is Post else USERS
            for number in range(1, ROWS + 1):
                session.add(model(id=number, owner_id=1 + number % owners, body=word(model, number)))
        session.commit()
        for model in MODELS:
            name, moved = model.__tablename__, ", ".join(map(str, MOVED))
            session.execute(text(f"CREATE TABLE former AS SELECT * FROM {name}"))
            former = f"(SELECT body FROM former WHERE former.id = {name}.id + 1)"
            session.execute(text(f"UPDATE {name} SET body = {former} WHERE id IN ({moved})"))
            session.execute(text("DROP TABLE former"))
        session.commit()


def word(model: Any, number: int) -> str:
    """What was written in a row."""
    return f"{model.__tablename__} {number}"


def columns(session: Session, model: Any) -> Iterable[Read]:
    return [(row[0], row[2], row[1]) for row in session.execute(select(model.id, model.body, model.owner_id))]


def labelled(session: Session, model: Any) -> Iterable[Read]:
    inner = select(model.id, model.body, model.owner_id).subquery()
    found = session.execute(select(inner.c.id, inner.c.body.label("x"), inner.c.owner_id.label("y")))
    return [(row[0], row[2], row[1]) for row in found]


def united(session: Session, model: Any) -> Iterable[Read]:
    one = select(model.id, model.body, model.owner_id)
    found = session.execute(union_all(one.where(model.id % 2 == 0), one.where(model.id % 2 == 1)))
    return [(row[0], row[2], row[1]) for row in found]


def by_core(session: Session, model: Any) -> Iterable[Read]:
    found = session.connection().execute(select(*model.__table__.c["id", "body", "owner_id"]))
    return [(row[0], row[2], row[1]) for row in found]


def objects(session: Session, model: Any) -> Iterable[Read]:
    return [(one.id, one.owner_id, one) for one in session.scalars(select(model))]


def some_at_a_time(session: Session, model: Any) -> Iterable[Read]:
    found = session.scalars(select(aliased(model)).execution_options(yield_per=7))
    return [(one.id, one.owner_id, one) for one in found]


def expired(session: Session, model: Any) -> Iterable[Read]:
    held = session.scalars(select(model)).all()
    session.expire_all()
    return [(one.id, one.owner_id, one) for one in held]


def populated(session: Session, model: Any) -> Iterable[Read]:
    found = session.scalars(select(model).execution_options(populate_existing=True))
    return [(one.id, one.owner_id, one) for one in found]


WAYS: tuple[Callable[[Session, Any], Iterable[Read]], ...] = (
    columns, labelled, united, by_core, objects, some_at_a_time, expired, populated,
)  # fmt: skip


class Reader:
    """One thread or task: what it does next, and what it has seen."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.seen: Counter[str] = Counter()
        self.held: Any = ()

    def open_next(self) -> list[int]:
        """Which users to unlock, each inside the one before; none for server mode."""
        return self.random.sample(range(1, USERS + 1), self.random.choice((0, 1, 1, 2, 3)))

    def look(self, session: Session) -> None:
        """Load something before anything is unlocked, or nothing."""
        self.held = (
            session.scalars(select(self.random.choice(MODELS))).all() if self.random.random() < 0.5 else ()
        )

    def read(self, session: Session, users: list[int]) -> None:
        """Read in some way, and judge each value."""
        model, way = self.random.choice(MODELS), self.random.choice(WAYS)
        groups = {number for number, members in MEMBERS.items() if set(members) & set(users)}
        opened = groups if model is Post else set(users)
        for number, owner, found in way(session, model):
            self.seen[judge(model, number, found, is_open=not users or owner in opened)] += 1

    def write(self, session: Session, users: list[int]) -> None:
        """Write a genuine value anew, as its owner."""
        for user in users[:1]:
            note = session.scalars(
                select(Note).where(Note.owner_id == user, Note.id.not_in(MOVED)).limit(1)
            ).one()
            note.body = word(Note, note.id)
            session.commit()
            self.seen["written"] += 1


def judge(model: Any, number: int, found: Any, *, is_open: bool) -> str:
    """What was read, in a word."""
    moved = number in MOVED
    try:
        if isinstance(found, model):
            found = found.body
        if isinstance(found, Sealed):
            raise found.error()
    except LockedError:
        return "missed" if is_open and not moved else "sealed"
    except DecryptionError:
        return "refused" if moved else "a false alarm"
    if moved or found != word(model, number):
        return "a foreign value"
    return "value" if is_open else "a value whose owner is locked"


def until(end: float) -> Iterator[None]:
    """Rounds until the end, and three at least: a busy machine may be late."""
    for number in count():
        if number >= 3 and time.monotonic() >= end:
            return
        yield


def run_thread(engine: Engine, seed: int, end: float) -> Counter[str]:
    """Read until the end, each time in a Session of its own."""
    reader = Reader(seed)
    for _ in until(end):
        users = reader.open_next()
        with Session(engine) as session:
            reader.look(session)
            with ExitStack() as stack:
                if not users:
                    stack.enter_context(envelope.server_mode(session, reason="stress"))
                for depth, user in enumerate(users, start=1):
                    owner = session.get_one(User, user)
                    stack.enter_context(envelope.unlock(session, owner, secret=f"s{user}"))
                    reader.read(session, users[:depth])
                reader.read(session, users)
                if reader.random.random() < 0.02:
                    reader.write(session, users)
            reader.seen["after leaving"] += sum(
                judge(type(one), one.id, one, is_open=False) not in ("sealed", "refused")
                for one in session.identity_map.values()
                if isinstance(one, MODELS)
            )
    return reader.seen


async def run_task(engine: Any, seed: int, end: float) -> Counter[str]:
    """The same as a task."""
    reader, both = Reader(seed), AsyncEnvelope(envelope)
    for _ in until(end):
        users = reader.open_next()
        async with AsyncSession(engine) as session:
            await session.run_sync(reader.look)
            await nested(reader, both, session, users, 0)
    return reader.seen


async def nested(
    reader: Reader, both: AsyncEnvelope, session: AsyncSession, users: list[int], depth: int
) -> None:
    """Unlock one user more, and read; at last, read again."""
    if not users:
        with both.server_mode(session, reason="stress"):
            await session.run_sync(reader.read, users)
        return
    if depth < len(users):
        async with both.unlock(session, await session.get_one(User, users[depth]), secret=f"s{users[depth]}"):
            await session.run_sync(reader.read, users[: depth + 1])
            await nested(reader, both, session, users, depth + 1)
        if depth:
            await session.run_sync(reader.read, users[:depth])


async def run_tasks(url: sa.URL, end: float) -> Counter[str]:
    """All tasks, in a loop of their own."""
    engine = create_async_engine(url, pool_size=TASKS)
    if engine.dialect.name == "sqlite":
        enforce_foreign_keys(engine.sync_engine)
    found = await asyncio.gather(*(run_task(engine, THREADS + number, end) for number in range(TASKS)))
    await engine.dispose()
    return sum(found, Counter[str]())


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.backend)])
def addresses(request: pytest.FixtureRequest) -> tuple[sa.URL, sa.URL]:
    """The same database for threads and for tasks."""
    if request.param == "sqlite":
        sqlite: sa.URL = request.getfixturevalue("sqlite_url")
        return sqlite, sqlite.set(drivername="sqlite+aiosqlite")
    postgres: sa.URL = request.getfixturevalue("postgres_url")
    return postgres.set(drivername="postgresql+psycopg"), postgres.set(drivername="postgresql+asyncpg")


@pytest.fixture
def engine(addresses: tuple[sa.URL, sa.URL]) -> Iterator[Engine]:
    """The database of the threads."""
    engine = create_engine(addresses[0], pool_size=THREADS)
    if engine.dialect.name == "sqlite":
        enforce_foreign_keys(engine)
        event.listen(engine, "connect", lambda one, _: one.execute("PRAGMA journal_mode = WAL"))
    yield engine
    engine.dispose()


def test_many_readers_at_once(engine: Engine, addresses: tuple[sa.URL, sa.URL]) -> None:
    """No foreign value, no false alarm, nothing that is missed; and what was moved is refused."""
    fill(engine)
    end = time.monotonic() + SECONDS
    with ThreadPoolExecutor(THREADS + 1) as pool:
        threads = [pool.submit(run_thread, engine, number, end) for number in range(THREADS)]
        tasks = pool.submit(asyncio.run, run_tasks(addresses[1], end))
        seen = [sum((one.result() for one in threads), Counter[str]()), tasks.result()]
    for name, found in zip(("threads", "tasks"), seen, strict=True):
        print(engine.dialect.name, name, dict(found))

        assert set() == {one for one, count in found.items() if count} - {
            "value",
            "sealed",
            "refused",
            "written",
        }
        assert found["value"] > 0
        assert found["refused"] > 0
