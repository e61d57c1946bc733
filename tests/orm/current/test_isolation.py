"""Whose keys are seen where: interleaved unlocks of different users in tasks and in threads, each of
which opens its own user's values and nobody else's; and a table of what each way of running code inherits.
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
from pathlib import Path
from typing import Any

import greenlet
import pytest
import sqlalchemy as sa
from sqlalchemy import ForeignKey, StaticPool, String, Text, create_engine, event, select
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import (
    AsyncEnvelope,
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyOwner,
    LockedError,
    Sealed,
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

MANY = int(os.environ.get("ENVELOPE_UNLOCKS", "320"))
"""How many unlocks the tasks share, and the threads, with `--all`; 10,000 take some minutes."""
UNLOCKS = pytest.mark.parametrize("unlocks", [80, pytest.param(MANY, marks=pytest.mark.thorough)])
WORKERS = 8
TASKS = 40
USERS = 24
FEW = 3

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


def populate(session: Session, people: int = USERS) -> None:
    """The people, each with a secret of its own and one letter, whose id is the person's."""
    for person_id in range(1, people + 1):
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
    by_person: dict[int, Any] = dict(rows)

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


def require_every_row_under_its_owners_key(
    connection: sa.Connection, written: int, people: int = USERS
) -> None:
    """Each stored value, read past the library, names a key that its row's owner has, and nobody else."""
    raw = sa.table("letters", sa.column("person_id"), sa.column("body", sa.LargeBinary))
    keys: dict[int, set[bytes]] = {}
    for owner_id, key_id in connection.execute(
        select(Person.metadata.tables["people_key"].c.owner_id, Person.metadata.tables["people_key"].c.key_id)
    ):
        keys.setdefault(owner_id, set()).add(key_id.bytes)
    rows = connection.execute(select(raw.c.person_id, raw.c.body)).all()
    wrong = [person_id for person_id, body in rows if bytes(body)[1:17] not in keys[person_id]]

    assert people + written == len(rows)
    assert wrong == []
    assert len(set().union(*keys.values())) == 2 * people


@contextmanager
def no_key_remains() -> Iterator[None]:
    """No unlocked session that was opened inside is open at the end, and no key made
    inside holds anything."""
    # By exact type: `isinstance` asks a Protocol's metaclass about every object of the process.
    before = [one for one in gc.get_objects() if type(one) in (UnlockedSession, KeyBytes)]
    known = {id(one) for one in before}
    yield
    gc.collect()
    after = [one for one in gc.get_objects() if type(one) in (UnlockedSession, KeyBytes)]
    new = [one for one in after if id(one) not in known]

    assert [one for one in new if isinstance(one, UnlockedSession) and one.is_open] == []
    assert [one for one in new if isinstance(one, KeyBytes) and any(one.buffer)] == []


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
