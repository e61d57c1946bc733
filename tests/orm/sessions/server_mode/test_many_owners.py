"""Many owners, many threads, forks: keys are found in few queries, and kept in a cache with limits."""

import asyncio
import os
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from sqlalchemy import URL, insert, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sqlalchemy_envelope import CachePolicy, LockedError, ServerSession, enforce_foreign_keys
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.tables.owners import require_owner_class
from tests.orm.models import Base, Note, User, statements_sent
from tests.orm.sessions.server_mode.devices import OWNERS, Serving

KEY = b"\x07" * 32


WAIT = 30
"""Seconds after which a thread that does not come is given up."""


def key_queries(sent: Sequence[str]) -> list[str]:
    """The statements that ask key tables."""
    return [one for one in sent if one.lstrip().startswith("SELECT") and "_key" in one]


# Many owners


@pytest.fixture(scope="module")
def many_owners(tmp_path_factory: pytest.TempPathFactory) -> URL:
    """An SQLite database of many owners with a row each; nobody writes in it."""
    url = sa.make_url(f"sqlite:///{tmp_path_factory.mktemp('many') / 'many.db'}")
    engine = sa.create_engine(url)
    enforce_foreign_keys(engine)
    Base.metadata.create_all(engine)
    many(Serving(engine), OWNERS)
    engine.dispose()
    return url


def test_loading_many_rows_of_many_owners_costs_few_queries(many_owners: URL) -> None:
    """Rows of as many owners: a query for the keys of each thousand, none for a row."""
    engine = sa.create_engine(many_owners)
    with Serving(engine).mode(), Session(engine) as session, statements_sent(engine) as sent:
        notes = session.scalars(select(Note)).all()

        assert all(note.body == f"note {note.user_id}" for note in notes)
        assert len(notes) == OWNERS
        assert 1 <= len(key_queries(sent)) <= 2 + OWNERS // 1000
        assert len(sent) <= 4 + OWNERS // 1000  # and the rows' own, and SQLite's PRAGMA
    engine.dispose()


@pytest.mark.parametrize("streamed", [False, True], ids=["all", "stream"])
@pytest.mark.thorough
async def test_the_same_with_an_asynchronous_session(many_owners: URL, streamed: bool) -> None:
    """The same with `AsyncSession`; or a query for each partition."""
    engine = create_async_engine(many_owners.set(drivername="sqlite+aiosqlite"))
    async with AsyncSession(engine) as session:
        with Serving(engine.sync_engine).mode(), statements_sent(engine.sync_engine) as sent:
            if streamed:
                rows = await session.stream_scalars(select(Note).execution_options(yield_per=OWNERS // 4))
                right = [note.body == f"note {note.user_id}" async for note in rows]
            else:
                right = [n.body == f"note {n.user_id}" for n in await session.scalars(select(Note))]

            assert len(right) == OWNERS
            assert all(right)
            assert 1 <= len(key_queries(sent)) <= 2 + max(OWNERS // 1000, 4 if streamed else 0)
    await engine.dispose()


def test_partitions_cost_a_query_each(serving: Serving) -> None:
    """Rows that come in partitions have their keys fetched by partition, on both databases."""
    many(serving, 300)
    for options, most in (({}, 2), ({"yield_per": 75}, 6), ({"stream_results": True}, 12)):
        with serving.mode(), Session(serving.engine) as session, statements_sent(serving.engine) as sent:
            notes = session.scalars(select(Note).execution_options(**options))

            assert sum(note.body == f"note {note.user_id}" for note in notes) == 300
            assert 1 <= len(key_queries(sent)) <= most


@pytest.mark.parametrize("streamed", [False, True], ids=["all", "stream"])
async def test_joins_of_many_owners_async(async_engine: AsyncEngine, streamed: bool) -> None:
    """Rows of several entities through asyncio drivers: keys come in batches, whole or streamed."""
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    serving = Serving(async_engine.sync_engine)
    async with AsyncSession(async_engine) as session:
        with serving.mode():
            session.add_all([User(email=str(n), notes=[Note(body=f"note {n}")]) for n in range(300)])
            await session.commit()
    async with AsyncSession(async_engine) as session:
        with serving.mode(), statements_sent(async_engine.sync_engine) as sent:
            query = select(Note, User.email).join(Note.user)
            if streamed:
                rows = await session.stream(query.execution_options(yield_per=100))
                found = [(note.body, email) async for note, email in rows]
            else:
                found = [(note.body, email) for note, email in (await session.execute(query)).all()]

            assert len(found) == 300
            assert all(body == f"note {email}" for body, email in found)
            assert 1 <= len(key_queries(sent)) <= 6


async def test_tasks_interleave(
    async_engine: AsyncEngine, everywhere: Callable[[ServerSession], ServerSession]
) -> None:
    """Tasks that read and write for different owners at once in one process each get their own."""
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    serving = Serving(async_engine.sync_engine)
    everywhere(serving.mode())
    writing = asyncio.Lock()  # SQLite takes one writer

    async def one(number: int) -> list[str | None]:
        async with AsyncSession(async_engine) as session, writing:
            user = User(email=str(number), phone=f"phone {number}")
            session.add(user)
            await session.flush()
            user_id = user.id
            session.add(Note(user_id=user_id, body=f"note {number}"))
            await session.commit()
        async with AsyncSession(async_engine) as session:
            user = await session.get_one(User, user_id)
            notes = (await session.scalars(select(Note).where(Note.user_id == user_id))).all()
            return [user.phone, *(note.body for note in notes)]

    found = await asyncio.gather(*(one(number) for number in range(30)))

    assert [[f"phone {number}", f"note {number}"] for number in range(30)] == found


def many(serving: Serving, count: int) -> None:
    """So many users with one note each, which says its owner's id."""
    with serving.mode(), Session(serving.engine) as session:
        users = [User(email=str(number)) for number in range(count)]
        session.add_all(users)
        session.flush()
        session.execute(insert(Note), [{"user_id": user.id, "body": f"note {user.id}"} for user in users])
        session.commit()


# The cache


def test_a_small_cache_serves_many_owners_from_many_threads(
    serving: Serving,
    everywhere: Callable[[ServerSession], ServerSession],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With room for 10 owners and 100 in the database, 8 threads at once read and write everything right."""
    owners = serving.users(100)
    monkeypatch.setattr("sqlalchemy_envelope.orm.sessions.kept_owners._IN_USE", 0.3)
    server = everywhere(serving.mode(cache=CachePolicy(keys=10)))
    barrier = threading.Barrier(8)
    writing = threading.Lock()

    def work(number: int) -> list[str]:
        wrong = []
        barrier.wait(WAIT)
        for turn in range(6):
            with Session(serving.engine) as session:
                some = owners[(number * 12 + turn * 7) % 100 :][:9]
                notes = session.scalars(
                    select(Note).where(Note.user_id.in_(some), Note.title.is_(None))
                ).all()
                wrong += [str(n.body) for n in notes if n.body != f"note {owners.index(n.user_id)}"]
                with writing:
                    session.add(Note(user_id=some[0], title="more", body=f"{number} {turn} {some[0]}"))
                    session.commit()
        return wrong

    with ThreadPoolExecutor(8) as pool:
        wrong = [one for found in pool.map(work, range(8)) for one in found]
    later = time.monotonic() + 100
    monkeypatch.setattr("sqlalchemy_envelope.orm.sessions.kept_owners.time.monotonic", lambda: later)
    with Session(serving.engine) as session:
        session.execute(select(1))
    assert len(server.keyring) <= 10
    server.stop()

    assert wrong == []
    with serving.mode(), Session(serving.engine) as session:
        more = session.scalars(select(Note).where(Note.title == "more")).all()
        assert len(more) == 48
        assert all((note.body or "").endswith(f" {note.user_id}") for note in more)


@pytest.mark.parametrize("limit", ["seconds", "uses"])
def test_an_owner_over_a_limit_is_opened_anew(
    lite: Serving, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """After so many seconds or uses an owner's keys leave the memory, and come back when asked for."""
    now = [1000.0]
    monkeypatch.setattr("sqlalchemy_envelope.orm.sessions.kept_owners.time.monotonic", lambda: now[0])
    lite.users(1, "hello")
    cache = CachePolicy(seconds=60) if limit == "seconds" else CachePolicy(uses=3)
    with lite.mode(cache=cache) as server:
        for _ in range(5):
            with Session(lite.engine) as session:
                assert session.scalars(select(Note)).one().body == "hello"
        opened = [event.name for event in lite.events].count("server_opened")
        now[0] += 10 if limit == "uses" else 61
        with Session(lite.engine) as session:
            session.execute(select(1))
            assert len(server.keyring) == 0
            assert session.scalars(select(Note)).one().body == "hello"

        assert [event.name for event in lite.events].count("server_opened") == opened + 1


def test_a_busy_owner_is_opened_anew_too(lite: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner that is read every second still has its keys opened again after the cache's seconds."""
    now = [1000.0]
    monkeypatch.setattr("sqlalchemy_envelope.orm.sessions.kept_owners.time.monotonic", lambda: now[0])
    lite.users(1, "hello")
    with lite.mode(cache=CachePolicy(seconds=60)):
        lite.events.clear()
        for _ in range(200):
            now[0] += 1
            with Session(lite.engine) as session:
                assert session.scalars(select(Note)).one().body == "hello"

        assert 3 <= [event.name for event in lite.events].count("server_opened") <= 6


def test_a_slot_that_was_taken_away_ends_access(lite: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the cache's seconds nothing opens without the provider's slot, in use or not, read or written."""
    now = [1000.0]
    monkeypatch.setattr("sqlalchemy_envelope.orm.sessions.kept_owners.time.monotonic", lambda: now[0])
    ada, ben = lite.users(2)
    slots = Base.metadata.tables["users_keyslot"]
    with lite.mode(cache=CachePolicy(seconds=60)), Session(lite.engine) as session:
        assert len([note.body for note in session.scalars(select(Note))]) == 2
        session.commit()
        with lite.engine.begin() as connection:
            connection.execute(sa.delete(slots))
        for _ in range(70):
            now[0] += 1
            session.execute(select(1))
            session.get_one(Note, 1, populate_existing=True)
        session.commit()
        with pytest.raises(LockedError):
            _ = session.scalars(select(Note).where(Note.user_id == ada)).one().body
        session.add(Note(user_id=ben, body="lost"))
        with pytest.raises(LockedError):
            session.flush()
        session.rollback()


# Forks


def in_child(work: Callable[[], None]) -> str:
    """Run something in a forked child; what it says went wrong, or nothing."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = ""
        try:
            work()
        except BaseException:  # noqa: BLE001 - the child must not go on into pytest
            said = traceback.format_exc()
        finally:
            os.write(write, said.encode()[:60_000])
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(pid, 0)
    return said


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_serves_with_keys_of_its_own(
    serving: Serving, everywhere: Callable[[ServerSession], ServerSession]
) -> None:
    """A worker forked after server mode came on has none of its parent's keys, and goes on serving."""
    (ada,) = serving.users(1, "hello")
    server = everywhere(serving.mode())
    with Session(serving.engine) as session:
        assert session.scalars(select(Note)).one().body == "hello"

    def work() -> None:
        serving.engine.dispose(close=False)
        assert len(server.keyring) == 0
        with Session(serving.engine) as session:
            assert session.scalars(select(Note)).one().body == "hello"
            session.add(Note(user_id=ada, body="child"))
            session.add(User(email="child@example.org", phone="123", notes=[Note(body="new")]))
            session.commit()

    assert in_child(work) == ""
    assert len(server.keyring) == 1
    with Session(serving.engine) as session:
        assert [n.body for n in session.scalars(select(Note).order_by(Note.id))] == ["hello", "child", "new"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_wipes_its_parents_keys(
    lite: Serving, everywhere: Callable[[ServerSession], ServerSession]
) -> None:
    """In the child the parent's keys are zeros, of owners not committed yet too; stop wipes both."""
    server = everywhere(lite.mode())
    with Session(lite.engine) as session:
        session.add(User(email="committed@example.org", phone="123"))
        session.commit()
        user = User(email="waiting@example.org", phone="123")
        session.add(user)
        session.flush()
        owners = [Names(session).owner(require_owner_class(user), (number,)) for number in (1, user.id)]
        rings = [server.keyring_for(owner, session) for owner in owners]
        roots = [ring.root(owner) for ring, owner in zip(rings, owners, strict=True) if ring is not None]
        buffers = [root.key.buffer for root in roots if root is not None]
        assert [any(buffer) for buffer in buffers] == [True, True]

        def work() -> None:
            assert not any(any(buffer) for buffer in buffers)

        assert in_child(work) == ""
        assert all(any(buffer) for buffer in buffers)
        server.stop()
        assert not any(any(buffer) for buffer in buffers)
        session.rollback()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_block_does_not_cross_a_fork(lite: Serving) -> None:
    """A job's server mode, unlike the process's, ends in a forked child."""
    lite.users(1, "hello")
    with lite.mode() as server:

        def work() -> None:
            lite.engine.dispose(close=False)
            assert not server.is_open
            with Session(lite.engine) as session, pytest.raises(LockedError):
                _ = session.scalars(select(Note)).one().body

        assert in_child(work) == ""
        with Session(lite.engine) as session:
            assert session.scalars(select(Note)).one().body == "hello"
