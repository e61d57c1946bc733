"""A throttle in a table: one count for several processes, past rollbacks, beside the caller's transaction."""

import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, MetaData, create_engine, event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from sqlalchemy_envelope import (
    AsyncEnvelope,
    ConfigurationError,
    Envelope,
    KdfProfile,
    ServerKeyring,
    TableThrottle,
    Throttle,
    UnlockError,
    UnlockThrottledError,
    throttle_table,
)
from sqlalchemy_envelope.orm.throttling import table as throttling_table
from sqlalchemy_envelope.orm.throttling.throttle import Reservation, owner_account
from tests.orm.conftest import Started
from tests.orm.models import SECRET, Base, User
from tests.orm.verbs.kill_points import processes

CHEAP = KdfProfile.unsafe_for_tests()
TABLE = throttle_table(MetaData())
HOME, ELSEWHERE = "203.0.113.7", "198.51.100.9"


def envelope_with(throttle: Throttle, **options: Any) -> Envelope:
    return Envelope(kdf_profile=CHEAP, throttle=throttle, **options)


def guess(envelope: Envelope, session: Session, owner: User, source: str = ELSEWHERE) -> type[Exception]:
    """A wrong secret, and how it was refused."""
    with pytest.raises((UnlockError, UnlockThrottledError)) as caught:
        envelope.unlock(session, owner, secret="wrong", source=source)
    return caught.type


def locked() -> sa.exc.DBAPIError:
    """What SQLAlchemy makes of a database that another process writes to."""
    original = sqlite3.OperationalError("database is locked")
    original.sqlite_errorcode = sqlite3.SQLITE_BUSY
    return sa.exc.OperationalError("INSERT", {}, original)


def rows(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(sa.select(TABLE)))


@pytest.fixture
def throttled(started: Started) -> tuple[Started, Envelope]:
    """Two owners, on SQLite and on PostgreSQL, with a throttle that counts through the session's engine."""
    TABLE.create(started.engine)
    return started, envelope_with(Throttle(TableThrottle(TABLE)))


def test_a_count_survives_the_callers_rollback(throttled: tuple[Started, Envelope]) -> None:
    """Five wrong secrets, each rolled back, as a login view does; the sixth attempt is not made, right or
    wrong. Home, which unlocked before, is let in."""
    at, envelope = throttled
    with envelope.unlock(at.session, at.ada, secret=SECRET, source=HOME):
        pass
    refused = []
    for _ in range(6):
        refused.append(guess(envelope, at.session, at.ada))
        at.session.rollback()

    assert [UnlockError] * 5 + [UnlockThrottledError] == refused
    with pytest.raises(UnlockThrottledError) as caught:
        envelope.unlock(at.session, at.ada, secret=SECRET, source=ELSEWHERE)
    assert 0 < caught.value.retry_after <= 1
    with envelope.unlock(at.session, at.ada, secret=SECRET, source=HOME) as unlocked:
        assert unlocked.is_open


def test_a_caller_who_has_written_is_not_waited_for(throttled: tuple[Started, Envelope]) -> None:
    """A session that holds locks, on SQLite that of the whole file, counts without waiting for itself; on
    PostgreSQL the count outlives its rollback, on SQLite it cannot."""
    at, envelope = throttled
    at.ada.email = "changed"
    at.session.flush()
    refused = [guess(envelope, at.session, at.ada) for _ in range(6)]
    at.session.rollback()
    again = guess(envelope, at.session, at.ada)

    assert [UnlockError] * 5 + [UnlockThrottledError] == refused
    assert again is (UnlockError if at.engine.dialect.name == "sqlite" else UnlockThrottledError)


async def test_a_count_under_asyncio(async_engine: AsyncEngine) -> None:
    """The same through asyncio's drivers, for an owner and for an account that does not exist."""
    envelope = AsyncEnvelope(envelope_with(Throttle(TableThrottle(TABLE))))
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.run_sync(TABLE.create)
    refused = []
    async with AsyncSession(async_engine) as session:
        ada = User(email="ada")
        await envelope.enroll(session, ada, secret=SECRET)
        await session.commit()
        await session.refresh(ada)
        for _ in range(6):
            with pytest.raises((UnlockError, UnlockThrottledError)) as caught:
                await envelope.unlock(session, ada, secret="wrong", source=ELSEWHERE)
            refused.append(caught.type)
        for _ in range(6):
            with pytest.raises((UnlockError, UnlockThrottledError)) as caught:
                await envelope.unlock_unknown(secret="wrong", account="eve", session=session)
            refused.append(caught.type)
        await session.rollback()

    assert ([UnlockError] * 5 + [UnlockThrottledError]) * 2 == refused


async def test_an_engine_for_threads_does_not_hold_up_the_loop(sqlite_engine: Engine) -> None:
    """A throttle with a synchronous engine, under asyncio and without a session."""
    TABLE.create(sqlite_engine)
    envelope = AsyncEnvelope(envelope_with(Throttle(TableThrottle(TABLE, sqlite_engine))))
    refused = []
    for _ in range(6):
        with pytest.raises((UnlockError, UnlockThrottledError)) as caught:
            await envelope.unlock_unknown(secret="wrong", account="eve")
        refused.append(caught.type)

    assert [UnlockError] * 5 + [UnlockThrottledError] == refused


async def test_an_engine_for_asyncio_without_a_session(tmp_path: Path) -> None:
    """A throttle with an asynchronous engine of its own."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'own.db'}")
    async with engine.begin() as connection:
        await connection.run_sync(TABLE.create)
    envelope = AsyncEnvelope(envelope_with(Throttle(TableThrottle(TABLE, engine))))
    refused = []
    for _ in range(6):
        with pytest.raises((UnlockError, UnlockThrottledError)) as caught:
            await envelope.unlock_unknown(secret="wrong", account="eve")
        refused.append(caught.type)
    await engine.dispose()

    assert [UnlockError] * 5 + [UnlockThrottledError] == refused


def attempts_of_a_process(url: str, times: int, gate: Any, passed: Any) -> None:
    """Try as fast as possible, and tell how many attempts were not refused."""
    engine = create_engine(url)
    throttle = Throttle(TableThrottle(TABLE, engine), clock=lambda: 1_800_000_000.0)
    store, count = throttle.store_for(None), 0
    gate.wait(60)
    for number in range(times):
        names = throttle.names(owner_account(b"ada"), f"198.51.100.{number % 7}")
        count += isinstance(throttle.reserve(store, names), Reservation)
    engine.dispose()
    passed.put(count)


def test_processes_share_one_count(engine: Engine) -> None:
    """Four processes of their own, thirty attempts each at one moment of the clock: five pass in all."""
    TABLE.create(engine)
    url = engine.url.render_as_string(hide_password=False)
    gate, passed = processes.Barrier(4), processes.Queue()
    started = [
        processes.Process(target=attempts_of_a_process, args=(url, 30, gate, passed)) for _ in range(4)
    ]
    for one in started:
        one.start()
    counts = [passed.get(timeout=60) for _ in started]
    for one in started:
        one.join(60)

    assert sum(counts) == 5
    assert [one.exitcode for one in started] == [0] * 4


def test_the_table_says_nothing(throttled: tuple[Started, Envelope]) -> None:
    """Neither an address nor a name that was typed is in the table, nor a plain hash of one; under a server
    key the names are others."""
    at, envelope = throttled
    keyed = envelope_with(Throttle(TableThrottle(TABLE)), server_keys=ServerKeyring([b"k" * 32]))
    for one in (envelope, keyed):
        with pytest.raises(UnlockError):
            one.unlock_unknown(secret="wrong", account="eve@example.org", source=HOME, session=at.session)
    at.session.rollback()
    stored = rows(at.engine)

    assert len({row.name for row in stored}) == len(stored) == 6
    assert not any("eve" in str(row) or HOME in str(row) for row in stored)
    assert {int} == {type(value) for row in stored for value in row[1:]}


def test_rows_that_say_nothing_are_swept(sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of sources leaves rows for a time; later attempts delete them, and keep what still counts."""
    now = [1_800_000_000.0]
    throttle = Throttle(TableThrottle(TABLE, sqlite_engine), clock=lambda: now[0])
    TABLE.create(sqlite_engine)
    store = throttle.store_for(None)
    for number in range(100):
        throttle.reserve(store, throttle.names(owner_account(b"ada"), f"198.51.100.{number}"))
    home = throttle.reserve(store, throttle.names(owner_account(b"ben"), HOME))
    assert isinstance(home, Reservation)
    throttle.give_back(store, home, opened=True)
    before = len(rows(sqlite_engine))
    now[0] += 86_400
    monkeypatch.setattr(random, "random", lambda: 0.0)
    throttle.reserve(store, throttle.names(owner_account(b"cleo"), None))
    after = {row.name for row in rows(sqlite_engine)}

    ben, cleo = (throttle.names(owner_account(*of), at) for *of, at in [(b"ben", HOME), (b"cleo", None)])

    assert before > 10
    assert {ben.pair, cleo.account} == after


def test_what_an_attempt_costs(throttled: tuple[Started, Envelope], monkeypatch: pytest.MonkeyPatch) -> None:
    """Three statements before the derivation and three after a success; two while it waits."""
    at, envelope = throttled
    monkeypatch.setattr(random, "random", lambda: 0.5)
    sent: list[str] = []

    def count(*arguments: Any) -> None:
        if TABLE.name in arguments[2]:
            sent.append(arguments[2])

    event.listen(at.engine, "before_cursor_execute", count)
    with envelope.unlock(at.session, at.ada, secret=SECRET, source=HOME):
        pass
    success = len(sent)
    counts = []
    for _ in range(6):
        sent.clear()
        guess(envelope, at.session, at.ada)
        counts.append(len(sent))

    assert success == 6
    assert counts == [3] * 5 + [2]


# ------------------------------------------------------------------ where there is one connection


def test_in_memory_the_session_counts() -> None:
    """A database in memory has one connection: the count is in the session's transaction, and is lost with
    it, as the page says."""
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    TABLE.create(engine)
    envelope = envelope_with(Throttle(TableThrottle(TABLE)))
    refused = []
    with Session(engine) as session:
        for turn in range(8):
            with pytest.raises((UnlockError, UnlockThrottledError)) as caught:
                envelope.unlock_unknown(secret="wrong", account="eve", session=session)
            refused.append(caught.type)
            if turn == 5:
                session.rollback()
    engine.dispose()

    assert [UnlockError] * 5 + [UnlockThrottledError] + [UnlockError] * 2 == refused


def test_a_session_on_a_connection_counts_there(started: Started) -> None:
    """A session that is bound to a connection, as in many test suites: nothing is written beside it."""
    envelope = envelope_with(Throttle(TableThrottle(TABLE)))
    TABLE.create(started.engine)
    with started.engine.connect() as connection, Session(connection) as session:
        ada = session.get_one(User, started.ada.id)
        refused = [guess(envelope, session, ada) for _ in range(6)]
        connection.rollback()

    assert [UnlockError] * 5 + [UnlockThrottledError] == refused
    assert rows(started.engine) == []


# ------------------------------------------------------------------ what cannot be


def test_without_engine_and_session_it_cannot_count() -> None:
    """An attempt that cannot be counted is not made."""
    envelope = envelope_with(Throttle(TableThrottle(TABLE)))
    with pytest.raises(ConfigurationError, match="session="):
        envelope.unlock_unknown(secret="wrong", account="eve")


def test_a_session_without_an_engine_for_the_table(lite: Started) -> None:
    """The message says what to write."""
    envelope = envelope_with(Throttle(TableThrottle(TABLE)))
    with Session(binds={Base: lite.engine}) as session:
        ada = session.get_one(User, lite.ada.id)
        with pytest.raises(ConfigurationError, match="binds="):
            envelope.unlock(session, ada, secret=SECRET)


def test_a_missing_table_is_no_way_around(lite: Started) -> None:
    """Where the table was not made the database says so, and nothing is tried."""
    envelope = envelope_with(Throttle(TableThrottle(TABLE)))
    with pytest.raises(sa.exc.OperationalError, match=TABLE.name):
        envelope.unlock(lite.session, lite.ada, secret=SECRET)


def test_others_who_come_first_are_waited_for(sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What says that another transaction came first is tried again; after many times it is told."""
    TABLE.create(sqlite_engine)
    throttle = Throttle(TableThrottle(TABLE, sqlite_engine))
    store, turns = throttle.store_for(None), [0]

    def busy(*_: Any) -> None:
        turns[0] += 1
        if turns[0] <= limit:
            raise locked()

    event.listen(sqlite_engine, "before_cursor_execute", busy)
    limit = 3
    reserved = throttle.reserve(store, throttle.names(owner_account(b"ada"), None))
    limit, turns[0] = 1_000, 0
    with pytest.raises(sa.exc.DBAPIError):
        throttle.reserve(store, throttle.names(owner_account(b"ada"), None))

    assert isinstance(reserved, Reservation)
    assert turns[0] == throttling_table._TURNS
