"""Whose keys are seen where: interleaved unlocks of different users in tasks and in threads, each of
which opens its own user's values and nobody else's; and a table of what each way of running code inherits.
"""

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import greenlet
import pytest
import sqlalchemy as sa
from sqlalchemy import select
from sqlalchemy.ext.asyncio import async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    AsyncEnvelope,
    Envelope,
    KdfProfile,
    LockedError,
    UnlockedSession,
    enforce_foreign_keys,
)
from sqlalchemy_envelope.crypto.aead import Field, ValueCipher
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.keys import keyring as keyring_module
from sqlalchemy_envelope.keys.hierarchy import describe
from sqlalchemy_envelope.keys.keyring import Keyring
from sqlalchemy_envelope.keys.model import OpenedKey, Purpose
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

USERS = 24
FEW = 3
envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), concurrent_derivations=64, derivation_wait=60)


# What each way of running code sees of an unlocked session around it


@pytest.fixture
def ada_and_ben(sqlite_engine: sa.Engine) -> sa.Engine:
    """The first three people on a plain SQLite file; Ada has the id 1, Ben 2."""
    Base.metadata.create_all(sqlite_engine)
    with Session(sqlite_engine) as session:
        populate(session, FEW)
    return sqlite_engine


@contextmanager
def unlocked_person(engine: sa.Engine, person_id: int) -> Iterator[tuple[Session, UnlockedSession]]:
    """A session in which one person is unlocked."""
    with Session(engine) as session:
        person = session.get_one(Person, person_id)
        with envelope.unlock(session, person, secret=secret_of(person_id)) as unlocked:
            yield session, unlocked


def look(session: Session, person_id: int) -> str:
    """What somebody's letter shows here: "open", or the name of the error."""
    letter = session.get_one(Letter, person_id, populate_existing=True)
    try:
        shown = letter.body
    except LockedError as error:
        return type(error).__name__
    assert shown == body_of(person_id)
    return "open"


def look_anew(engine: sa.Engine, person_id: int) -> str:
    """The same through a session of its own, so that only the context can tell who is unlocked."""
    with Session(engine) as session:
        return look(session, person_id)


def in_thread(read: Callable[[], str]) -> str:
    seen: list[str] = []
    thread = threading.Thread(target=lambda: seen.append(read()))
    thread.start()
    thread.join()
    return seen[0]


def in_pool(read: Callable[[], str]) -> str:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(read).result()


def in_pool_with_context(read: Callable[[], str]) -> str:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(contextvars.copy_context().run, read).result()


def in_executor(read: Callable[[], str]) -> str:
    async def run() -> str:
        return await asyncio.get_running_loop().run_in_executor(None, read)

    return asyncio.run(run())


def in_to_thread(read: Callable[[], str]) -> str:
    return asyncio.run(asyncio.to_thread(read))


def in_empty_context(read: Callable[[], str]) -> str:
    return contextvars.Context().run(read)


def in_bare_greenlet(read: Callable[[], str]) -> str:
    answer: str = greenlet.greenlet(read).switch()
    return answer


def in_greenlet_with_context(read: Callable[[], str]) -> str:
    inside = greenlet.greenlet(read)
    inside.gr_context = contextvars.copy_context()
    answer: str = inside.switch()
    return answer


@pytest.mark.parametrize(
    ("way", "seen"),
    [
        (lambda read: read(), "open"),
        (in_to_thread, "open"),
        (in_pool_with_context, "open"),
        (in_greenlet_with_context, "open"),
        (in_thread, "LockedError"),
        (in_pool, "LockedError"),
        (in_executor, "LockedError"),
        (in_empty_context, "LockedError"),
        (in_bare_greenlet, "LockedError"),
    ],
    ids=[
        "here",
        "asyncio.to_thread",
        "ThreadPoolExecutor with copy_context",
        "greenlet with a context",
        "Thread",
        "ThreadPoolExecutor",
        "run_in_executor",
        "empty context",
        "bare greenlet",
    ],
)
def test_who_inherits_the_context(
    ada_and_ben: sa.Engine, way: Callable[[Callable[[], str]], str], seen: str
) -> None:
    """Where the context goes, the unlocked session goes, and nowhere else; after leaving
    it is closed everywhere."""
    with unlocked_person(ada_and_ben, 1):
        assert seen == way(lambda: look_anew(ada_and_ben, 1))
        assert way(lambda: look_anew(ada_and_ben, 2)) == "LockedError"

    assert way(lambda: look_anew(ada_and_ben, 1)) == "LockedError"


@pytest.mark.parametrize("way", [in_thread, in_pool, in_executor, in_empty_context, in_bare_greenlet])
def test_a_bound_session_carries_its_keys_along(
    ada_and_ben: sa.Engine, way: Callable[[Callable[[], str]], str]
) -> None:
    """Code in another context that is handed the unlocked `Session` itself sees what that is bound to."""
    with unlocked_person(ada_and_ben, 1) as (session, _):
        assert way(lambda: look(session, 1)) == "open"
        assert way(lambda: look(session, 2)) == "LockedError"

    assert way(lambda: look(session, 1)) == "LockedError"


def test_a_thread_that_outlives_the_unlock_is_locked(ada_and_ben: sa.Engine) -> None:
    """A thread that inherited the context keeps a closed session: what it reads later
    is locked, and says why."""
    left = threading.Event()

    def wait_and_look() -> str:
        assert left.wait(30)
        return look_anew(ada_and_ben, 1)

    with ThreadPoolExecutor(1) as pool:
        with unlocked_person(ada_and_ben, 1):
            later = pool.submit(contextvars.copy_context().run, wait_and_look)
        left.set()

        assert later.result() == "SessionLeftError"


def test_a_task_that_outlives_the_unlock_is_locked(ada_and_ben: sa.Engine) -> None:
    """So does a task that was started inside."""

    async def run() -> str:
        left = asyncio.Event()

        async def wait_and_look() -> str:
            await left.wait()
            return look_anew(ada_and_ben, 1)

        with unlocked_person(ada_and_ben, 1):
            task = asyncio.create_task(wait_and_look())
        left.set()
        return await task

    assert asyncio.run(run()) == "SessionLeftError"


def test_two_users_gathered(ada_and_ben: sa.Engine) -> None:
    """Two tasks unlock two users and meet while both are unlocked: each sees its own."""

    async def run() -> list[tuple[str, str]]:
        both = asyncio.Barrier(2)

        async def one(own: int, other: int) -> tuple[str, str]:
            with unlocked_person(ada_and_ben, own):
                await both.wait()
                seen = look_anew(ada_and_ben, own), look_anew(ada_and_ben, other)
                await both.wait()
                return seen

        return list(await asyncio.gather(one(1, 2), one(2, 1)))

    assert asyncio.run(run()) == [("open", "LockedError")] * 2
    require_clean_context()


def test_a_task_may_unlock_inside_what_it_inherited(ada_and_ben: sa.Engine) -> None:
    """What a task unlocks, its parent does not see; what the parent leaves, the task no longer sees."""

    async def run() -> None:
        inside, left, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def child() -> None:
            with unlocked_person(ada_and_ben, 2):
                assert (look_anew(ada_and_ben, 1), look_anew(ada_and_ben, 2)) == ("open", "open")
                inside.set()
                await left.wait()
                assert look_anew(ada_and_ben, 2) == "open"
                assert look_anew(ada_and_ben, 1) != "open"
            assert context.CURRENT.get() is context.NOTHING
            done.set()

        with unlocked_person(ada_and_ben, 1):
            task = asyncio.create_task(child())
            await inside.wait()
            assert (look_anew(ada_and_ben, 1), look_anew(ada_and_ben, 2)) == ("open", "LockedError")
        left.set()
        await task
        assert done.is_set()

    asyncio.run(run())


def test_a_cancelled_task_leaves_nothing_open(ada_and_ben: sa.Engine) -> None:
    """Cancelling a task in the middle of its unlocked block closes it at once."""

    async def run() -> UnlockedSession:
        inside = asyncio.Event()
        opened: list[UnlockedSession] = []

        async def stay() -> None:
            with unlocked_person(ada_and_ben, 1) as (_, unlocked):
                opened.append(unlocked)
                inside.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(stay())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return opened[0]

    with no_key_remains():
        assert not asyncio.run(run()).is_open


def test_a_generator_closed_in_another_context(ada_and_ben: sa.Engine) -> None:
    """A generator dependency that is entered in one context and closed in another closes its keys, without an
    error; the context it was entered in finds them closed."""

    def dependency() -> Iterator[Session]:
        with unlocked_person(ada_and_ben, 1) as (session, _):
            yield session

    running = dependency()
    entered = contextvars.copy_context()
    session = entered.run(next, running)

    assert entered.run(look_anew, ada_and_ben, 1) == "open"
    assert look(session, 1) == "open"
    with no_key_remains():
        contextvars.copy_context().run(running.close)

    assert entered.run(look_anew, ada_and_ben, 1) == "SessionLeftError"
    assert look_anew(ada_and_ben, 1) == "LockedError"
    require_clean_context()


async def test_an_async_generator_closed_in_another_task(ada_and_ben: sa.Engine) -> None:
    """So does an asynchronous one that is closed by a task that never saw it."""

    async def dependency() -> AsyncIterator[UnlockedSession]:
        with unlocked_person(ada_and_ben, 1) as (_, unlocked):
            yield unlocked

    running = dependency()
    unlocked = await asyncio.create_task(anext(running))  # type: ignore[arg-type]  # an async generator's is a coroutine
    assert unlocked.is_open
    await asyncio.create_task(running.aclose())  # type: ignore[attr-defined]

    assert not unlocked.is_open
    require_clean_context()


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
@pytest.mark.parametrize("same_session", [True, pytest.param(False, marks=pytest.mark.thorough)])
def test_nested_unlocks_left_in_any_order(
    ada_and_ben: sa.Engine, order: tuple[int, ...], same_session: bool
) -> None:
    """Three nested unlocks, left in every order: each takes its own keys and no more, and at
    last the context is clean."""
    with ExitStack() as stack, no_key_remains():
        blocks: list[UnlockedSession] = []
        session = stack.enter_context(Session(ada_and_ben))
        for person_id in (1, 2, 3):
            if not same_session:
                session = stack.enter_context(Session(ada_and_ben))
            person = session.get_one(Person, person_id)
            blocks.append(envelope.unlock(session, person, secret=secret_of(person_id)).__enter__())
        still_open = {0, 1, 2}
        for index in order:
            assert {"open"} == {look_anew(ada_and_ben, 1 + one) for one in still_open}
            blocks[index].__exit__(None, None, None)
            still_open.remove(index)
            assert all(look_anew(ada_and_ben, 1 + one) != "open" for one in {0, 1, 2} - still_open)

        require_clean_context()
        assert context.bound_to(session) is None


def test_two_sessions_bound_to_two_users_in_one_thread(ada_and_ben: sa.Engine) -> None:
    """Each session answers with its own user's keys, in a context that knows neither."""
    with Session(ada_and_ben) as first, Session(ada_and_ben) as second:
        opened = []
        for session, person_id in ((first, 1), (second, 2)):
            person = session.get_one(Person, person_id)
            unlocked = envelope.unlock(session, person, secret=secret_of(person_id))
            contextvars.Context().run(unlocked.__enter__)
            opened.append(unlocked)

        assert context.CURRENT.get() is context.NOTHING
        assert (look(first, 1), look(first, 2)) == ("open", "LockedError")
        assert (look(second, 1), look(second, 2)) == ("LockedError", "open")

        second.add(Letter(person_id=2, body="to the second"))
        second.commit()
        first.add(Letter(person_id=2, body="to the first"))
        with pytest.raises(LockedError):
            first.commit()
        first.rollback()
        opened[0].__exit__(None, None, None)

        assert look(second, 2) != "SessionLeftError"
        assert look(first, 1) != "open"
        opened[1].__exit__(None, None, None)
    with ada_and_ben.connect() as connection:
        require_every_row_under_its_owners_key(connection, 1, FEW)


async def test_an_async_scoped_session(tmp_path: Path) -> None:
    """`async_scoped_session` is unlocked like the session behind it, and another person's expired
    value asks for no SQL."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'scoped.db'}")
    enforce_foreign_keys(engine)
    asynchronous = AsyncEnvelope(envelope)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    sessions = async_scoped_session(async_sessionmaker(engine, expire_on_commit=False), asyncio.current_task)
    await sessions().run_sync(populate)
    people = {one.id: one for one in await sessions.scalars(select(Person))}
    async with asynchronous.unlock(sessions, people[1], secret=secret_of(1)):
        adas = (await sessions.scalars(LETTERS.where(Letter.id == 1))).one()
        assert adas.body == body_of(1)
    async with asynchronous.unlock(sessions, people[2], secret=secret_of(2)):
        # It was decrypted and expired: Ben's keys are no reason to ask the database for it,
        # here without a greenlet.
        require_locked([adas])
    await sessions.remove()
    await engine.dispose()


# Keys that go while another thread is using them


FIELD = Field("letters.body", "str", False)


def opened_ring() -> tuple[Keyring, bytes, OpenedKey]:
    """A keyring with one data key, its owner's name and that key."""
    ring, owner = Keyring(), b"ada"
    data = describe(KeyBytes.generate(), owner, Purpose.DATA)
    ring.add(owner, [data])
    return ring, owner, data


@pytest.mark.parametrize("of", ["writer", "reader"])
def test_a_key_wiped_while_its_cipher_is_built(monkeypatch: pytest.MonkeyPatch, of: str) -> None:
    """A cipher over a key that another thread just wiped would encrypt under 32
    zeros: it is not handed out."""
    ring, owner, data = opened_ring()
    header = b"\1" + data.stored.key_id.bytes

    def wiped_first(*arguments: Any) -> ValueCipher:
        ring.wipe()
        return ValueCipher(*arguments)

    monkeypatch.setattr(keyring_module, "ValueCipher", wiped_first)
    cipher = ring.writer(owner, "", FIELD) if of == "writer" else ring.reader(header, FIELD)

    assert cipher is None
    assert ring.writer(owner, "", FIELD) is None
    assert ring.reader(header, FIELD) is None
    assert bytes(32) == data.key.buffer


def test_a_cipher_found_before_leaving_is_not_kept_after(ada_and_ben: sa.Engine) -> None:
    """A thread that found a cipher just before its session was left does not put it where
    later reads would find it."""
    with unlocked_person(ada_and_ben, 1) as (session, unlocked):
        blob = session.execute(sa.text("SELECT body FROM letters WHERE person_id = 1")).scalar_one()
        field: Any = Letter.__table__.c.body.type.field
        cipher = unlocked.reader(bytes(blob[:17]), field)
        assert cipher is not None
        unlocked.lock()
        unlocked.remember(object(), bytes(blob[:17]), cipher, (cipher.open, cipher.aad))

        assert not any(unlocked.readers.values())


@pytest.mark.usefixtures("hurried_switching")
def test_a_thread_writes_while_the_unlock_is_left(ada_and_ben: sa.Engine) -> None:
    """A thread that inherited the context writes while its session is left, again and again: what is stored
    opens with the owner's key, and the rest is refused."""
    written = 0

    def write(engine: sa.Engine, begin: threading.Barrier) -> int:
        with Session(engine) as session:
            begin.wait(30)
            try:
                session.execute(sa.insert(Letter).values(person_id=1, body=body_of(1)))
                session.commit()
            except LockedError:
                return 0
            return 1

    with ThreadPoolExecutor(1) as pool, Session(ada_and_ben) as session:
        ada = session.get_one(Person, 1)
        session.commit()
        for turn in range(100):
            begin = threading.Barrier(2)
            with envelope.unlock(session, ada, secret=secret_of(1)):
                session.rollback()
                later = pool.submit(contextvars.copy_context().run, write, ada_and_ben, begin)
                begin.wait(30)
                sum(range(turn * 40))  # leave a little later each time
            written += later.result()
    with ada_and_ben.connect() as connection:
        require_every_row_under_its_owners_key(connection, written, FEW)
    with unlocked_person(ada_and_ben, 1) as (session, _):
        bodies = session.scalars(select(Letter.body).where(Letter.person_id == 1)).all()

        assert {body_of(1)} == set(bodies)
        assert 1 + written == len(bodies)
