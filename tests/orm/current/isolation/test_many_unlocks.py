"""Hundreds of unlocks in tasks and threads at once: each sees its own person's values alone."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import StaticPool, create_engine, event, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sqlalchemy_envelope import AsyncEnvelope, Envelope, KdfProfile, LockedError, Sealed, enforce_foreign_keys
from sqlalchemy_envelope.orm.current import context
from tests.orm.current.isolation.letters import (
    LETTERS,
    Base,
    Letter,
    Person,
    body_of,
    no_key_remains,
    populate,
    require_clean_context,
    require_every_row_under_its_owners_key,
    require_locked,
    secret_of,
)

MANY = int(os.environ.get("ENVELOPE_UNLOCKS", "320"))
"""How many unlocks the tasks share, and the threads, with `--all`; 10,000 take some minutes."""
UNLOCKS = pytest.mark.parametrize("unlocks", [80, pytest.param(MANY, marks=pytest.mark.thorough)])
WORKERS = 8
TASKS = 40
USERS = 24
envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), concurrent_derivations=64, derivation_wait=60)


def visits(worker: int, count: int) -> Iterator[tuple[int, int, int]]:
    """Who is unlocked in each turn of a worker, who is not, and the number of the turn."""
    for turn in range(count):
        own = 1 + (worker * 7 + turn * 5) % USERS
        yield own, 1 + (own + turn % (USERS - 1)) % USERS, turn


COLUMNS = select(Letter.person_id, Letter.body)


def require_own_letter_alone(letters: list[Letter], own: int, other: int) -> None:
    """Of two entities one shows its value; touching the other one's raises."""
    by_person = {letter.person_id: letter for letter in letters}

    assert by_person[own].body == body_of(own)
    require_locked([by_person[other]])


def require_own_column_alone(rows: list[Any], own: int, other: int) -> None:
    """Of two selected columns one is the value; the other stays sealed."""
    by_person: dict[int, Any] = dict(rows)

    assert by_person[own] == body_of(own)
    assert type(by_person[other]) is Sealed


def foreign_insert(other: int) -> Any:
    """A statement that writes for somebody who is not unlocked."""
    return sa.insert(Letter).values(person_id=other, body="forged")


@pytest.fixture
async def shared_memory() -> AsyncIterator[AsyncEngine]:
    """One connection in autocommit: each statement stands alone, and closing a session
    takes nothing from others."""
    engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool, isolation_level="AUTOCOMMIT")
    enforce_foreign_keys(engine)
    yield engine
    await engine.dispose()


@UNLOCKS
async def test_many_unlocks_in_tasks(shared_memory: AsyncEngine, unlocks: int) -> None:
    """40 tasks unlock 24 people dozens of times, giving way in between: each sees its own
    person's values alone."""
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
                group.create_task(work(number, unlocks // TASKS))
        require_clean_context()
        async with engine.connect() as connection:
            await connection.run_sync(require_every_row_under_its_owners_key, written)


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
@UNLOCKS
def test_many_unlocks_in_threads(eight_connections: sa.Engine, unlocks: int) -> None:
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
            for one in [pool.submit(work, number, unlocks // WORKERS) for number in range(WORKERS)]:
                one.result(timeout=300)
        with engine.connect() as connection:
            require_every_row_under_its_owners_key(connection, sum(written))
