"""Whose keys are seen where: 10,000 interleaved unlocks of different users in tasks and in threads, each of which
opens its own user's values and nobody else's; and a table of what each way of running code inherits.
"""

import asyncio
import contextvars
import gc
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import greenlet
import pytest
import sqlalchemy as sa
from sqlalchemy import ForeignKey, StaticPool, String, Text, create_engine, event, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import (
    AsyncEnvelope,
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyOwner,
    LockedError,
    Sealed,
    SessionForkedError,
    SessionLeftError,
    UnlockedSession,
    enforce_foreign_keys,
)
from sqlalchemy_envelope.crypto.aead import Field, ValueCipher
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.keys import keyring as keyring_module
from sqlalchemy_envelope.keys.hierarchy import describe
from sqlalchemy_envelope.keys.keyring import Keyring
from sqlalchemy_envelope.keys.model import Purpose
from sqlalchemy_envelope.orm import context

UNLOCKS = 10_000
WORKERS = 8
TASKS = 40
USERS = 24

envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), concurrent_derivations=64, derivation_wait=60)


class Base(DeclarativeBase):
    pass


class Person(KeyOwner, Base):
    __tablename__ = "people"

    id: Mapped[int] = mapped_column(primary_key=True)
    phone: Mapped[str | None] = mapped_column(EncryptedType(String))


class Letter(Base):
    __tablename__ = "letters"

    id: Mapped[int] = mapped_column(primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("people.id", ondelete="CASCADE"), index=True)
    body: Mapped[str | None] = mapped_column(EncryptedType(Text))


def secret_of(person_id: int) -> str:
    return f"the secret of person {person_id}"


def body_of(person_id: int) -> str:
    return f"written by person {person_id}"


def populate(session: Session) -> None:
    """The people, each with a secret of its own and one letter, whose id is the person's."""
    for person_id in range(1, USERS + 1):
        person = Person(id=person_id, phone=f"phone of {person_id}")
        with envelope.enroll(session, person, secret=secret_of(person_id)):
            session.add(Letter(id=person_id, person_id=person_id, body=body_of(person_id)))
            session.commit()


def visits(worker: int, count: int) -> Iterator[tuple[int, int, int]]:
    """Who is unlocked in each turn of a worker, who is not, and the number of the turn."""
    for turn in range(count):
        own = 1 + (worker * 7 + turn * 5) % USERS
        yield own, 1 + (own + turn % (USERS - 1)) % USERS, turn


def require_clean_context() -> None:
    """Nothing is left in this context of an unlocked session, open or closed."""
    assert context.CURRENT.get() is context.NOTHING
    assert context.USING.get() is None


LETTERS = select(Letter)
COLUMNS = select(Letter.person_id, Letter.body)


def require_own_letter_alone(letters: list[Letter], own: int, other: int) -> None:
    """Of two entities one shows its value; touching the other one's raises."""
    by_person = {letter.person_id: letter for letter in letters}

    assert by_person[own].body == body_of(own)
    require_locked([by_person[other]])


def require_own_column_alone(rows: list[Any], own: int, other: int) -> None:
    """Of two selected columns one is the value; the other stays sealed."""
    by_person = {person_id: body for person_id, body in rows}

    assert by_person[own] == body_of(own)
    assert type(by_person[other]) is Sealed


def require_locked(letters: list[Letter]) -> None:
    """Nobody's value shows."""
    for letter in letters:
        try:
            shown = letter.body
        except LockedError:
            continue
        pytest.fail(f"{shown!r} shows in a locked letter")


def foreign_insert(other: int) -> Any:
    """A statement that writes for somebody who is not unlocked."""
    return sa.insert(Letter).values(person_id=other, body="forged")


def require_every_row_under_its_owners_key(connection: sa.Connection, written: int) -> None:
    """Each stored value, read past the library, names a key that its row's owner has, and nobody else."""
    raw = sa.table("letters", sa.column("person_id"), sa.column("body", sa.LargeBinary))
    keys: dict[int, set[bytes]] = {}
    for owner_id, key_id in connection.execute(
        select(Person.metadata.tables["people_key"].c.owner_id, Person.metadata.tables["people_key"].c.key_id)
    ):
        keys.setdefault(owner_id, set()).add(key_id.bytes)
    rows = connection.execute(select(raw.c.person_id, raw.c.body)).all()
    wrong = [person_id for person_id, body in rows if bytes(body)[1:17] not in keys[person_id]]

    assert USERS + written == len(rows)
    assert [] == wrong
    assert 2 * USERS == len(set().union(*keys.values()))


@contextmanager
def no_key_remains() -> Iterator[None]:
    """No unlocked session that was opened inside is open at the end, and no key made inside holds anything."""
    gc.collect()
    before = [one for one in gc.get_objects() if isinstance(one, (UnlockedSession, KeyBytes))]
    known = {id(one) for one in before}
    yield
    gc.collect()
    after = [one for one in gc.get_objects() if isinstance(one, (UnlockedSession, KeyBytes))]
    new = [one for one in after if id(one) not in known]

    assert [] == [one for one in new if isinstance(one, UnlockedSession) and one.is_open]
    assert [] == [one for one in new if isinstance(one, KeyBytes) and any(one.buffer)]


@pytest.fixture
async def shared_memory() -> AsyncIterator[AsyncEngine]:
    """One connection in autocommit: each statement stands alone, and closing a session takes nothing from others."""
    engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool, isolation_level="AUTOCOMMIT")
    enforce_foreign_keys(engine)
    yield engine
    await engine.dispose()


async def test_ten_thousand_unlocks_in_tasks(shared_memory: AsyncEngine) -> None:
    """40 tasks unlock 24 people 10,000 times, giving way in between: each sees its own person's values alone."""
    engine = shared_memory
    asynchronous = AsyncEnvelope(envelope)
    written = 0

    async def work(worker: int, count: int) -> None:
        nonlocal written
        async with AsyncSession(engine, expire_on_commit=False) as session:
            people = {one.id: one for one in await session.scalars(select(Person))}
            letters: list[Letter] = []
            for own, other, turn in visits(worker, count):
                require_clean_context()
                async with asynchronous.unlock(session, people[own], secret=secret_of(own)) as unlocked:
                    if turn % 10 == 0:
                        session.add(Letter(person_id=own, body=body_of(own)))
                        await session.flush()
                        written += 1
                        with pytest.raises(LockedError):
                            await session.execute(foreign_insert(other))
                    else:
                        await asyncio.sleep(0)
                    pair = Letter.id.in_((own, other))
                    if turn % 2:
                        letters = list(await session.scalars(LETTERS.where(pair)))
                        require_own_letter_alone(letters, own, other)
                    else:
                        rows = list(await session.execute(COLUMNS.where(pair)))
                        require_own_column_alone(rows, own, other)
                    assert context.CURRENT.get() is unlocked
                require_locked(letters)
                require_clean_context()
                if turn % 4 == 3:  # the other times the same objects are locked and unlocked again
                    session.expunge_all()

    with no_key_remains():
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        async with AsyncSession(engine) as session:
            await session.run_sync(populate)
        async with asyncio.TaskGroup() as group:
            for number in range(TASKS):
                group.create_task(work(number, UNLOCKS // TASKS))
        require_clean_context()
        async with engine.connect() as connection:
            await connection.run_sync(require_every_row_under_its_owners_key, written)


@pytest.fixture
def hurried_switching() -> Iterator[None]:
    """Threads change places as often as the interpreter lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def eight_connections(tmp_path: Path) -> Iterator[sa.Engine]:
    """A file that eight threads read while one writes; in autocommit too."""
    engine = create_engine(
        f"sqlite:///{tmp_path / 'threads.db'}",
        isolation_level="AUTOCOMMIT",
        pool_size=WORKERS,
        connect_args={"timeout": 60},
    )
    enforce_foreign_keys(engine)

    @event.listens_for(engine, "connect")
    def hurry(connection: Any, _: object) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=OFF")

    yield engine
    engine.dispose()


@pytest.mark.usefixtures("hurried_switching")
def test_ten_thousand_unlocks_in_threads(eight_connections: sa.Engine) -> None:
    """Eight threads do the same, changing places every microsecond."""
    engine = eight_connections
    written = [0] * WORKERS

    def work(worker: int, count: int) -> None:
        with Session(engine, expire_on_commit=False) as session:
            people = {one.id: one for one in session.scalars(select(Person))}
            letters: list[Letter] = []
            for own, other, turn in visits(worker, count):
                require_clean_context()
                with envelope.unlock(session, people[own], secret=secret_of(own)) as unlocked:
                    if turn % 10 == 0:
                        session.add(Letter(person_id=own, body=body_of(own)))
                        session.flush()
                        written[worker] += 1
                        with pytest.raises(LockedError):
                            session.execute(foreign_insert(other))
                    pair = Letter.id.in_((own, other))
                    if turn % 2:
                        letters = list(session.scalars(LETTERS.where(pair)))
                        require_own_letter_alone(letters, own, other)
                    else:
                        rows = list(session.execute(COLUMNS.where(pair)))
                        require_own_column_alone(rows, own, other)
                    assert context.CURRENT.get() is unlocked
                require_locked(letters)
                require_clean_context()
                if turn % 4 == 3:  # as above
                    session.expunge_all()

    with no_key_remains():
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            populate(session)
        with ThreadPoolExecutor(WORKERS) as pool:
            for one in [pool.submit(work, number, UNLOCKS // WORKERS) for number in range(WORKERS)]:
                one.result(timeout=300)
        with engine.connect() as connection:
            require_every_row_under_its_owners_key(connection, sum(written))
