"""Owners whose keys an outside provider holds: enrolled and unlocked with it, one KEK for many of them, and a
network that is never waited for while others wait for the database.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    AsyncEnvelope,
    CachePolicy,
    ConfigurationError,
    KeyNotFoundError,
    ProviderError,
    ProviderTimeoutError,
    TamperedKeyError,
    UnlockError,
)
from tests.orm.models import SECRET, Base, Note, User
from tests.orm.verbs.provider_unlock.remote import Application, Remote, down
from tests.prepared import tables_of

pytestmark = pytest.mark.any_database

WAIT = 10
"""Seconds after which a thread that does not come is given up."""


@pytest.fixture
def lite(sqlite_engine: Engine) -> Application:
    """The application, on SQLite."""
    tables_of(Base.metadata, sqlite_engine)
    return Application(sqlite_engine)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A function that lets seconds go by for what is cached."""
    now = [1000.0]
    monkeypatch.setattr("sqlalchemy_envelope.orm.current.providers.time.monotonic", lambda: now[0])

    def go_by(seconds: float) -> None:
        now[0] += seconds

    return go_by


# Enrolling and unlocking


@pytest.mark.parametrize(
    ("how", "slots", "by_secret", "by_provider"),
    [
        ({"secret": SECRET}, ["secret"], True, False),
        ({"provider": "remote"}, ["provider"], False, True),
        ({"secret": SECRET, "provider": "remote"}, ["provider", "secret"], True, True),
    ],
    ids=["secret", "provider", "both"],
)
def test_what_opens_an_owner_is_what_it_was_enrolled_with(
    app: Application, how: Any, slots: list[str], by_secret: bool, by_provider: bool
) -> None:
    """A secret, a provider or both open an owner, in another process, and nothing else does."""
    ada = app.enroll(**how)
    with app.engine.connect() as connection:
        stored = connection.scalars(select(Base.metadata.tables["users_keyslot"].c.kind)).all()
    app.restart()

    assert sorted(stored) == slots
    if by_secret:
        assert app.read(ada, secret=SECRET) == "of ada"
    else:
        with pytest.raises(KeyNotFoundError):
            app.read(ada, secret=SECRET)
    if by_provider:
        assert app.read(ada) == "of ada"
    else:
        with pytest.raises(KeyNotFoundError):
            app.read(ada)


def test_a_provider_without_a_slot_is_named(app: Application) -> None:
    """The error names the provider, and the line that gives it a slot."""
    ada = app.enroll(secret=SECRET)
    with pytest.raises(
        KeyNotFoundError, match=r"Provider 'remote' has no key slot of this User.*add_provider"
    ):
        app.read(ada, provider="remote", reason="test")


def test_a_wrong_secret_is_not_helped_by_a_provider_slot(app: Application) -> None:
    """An owner with both slots opens with the right secret and with no other."""
    ada = app.enroll(secret=SECRET, provider="remote")
    with pytest.raises(UnlockError):
        app.read(ada, secret="wrong")


def test_changing_the_secret_leaves_the_provider_slot(app: Application) -> None:
    """After a change of secret the provider opens as before, and the new secret does."""
    ada = app.enroll(secret=SECRET, provider="remote")
    with Session(app.engine) as session:
        app.envelope.change_secret(session, session.get_one(User, ada), old=SECRET, new="another one")
        session.commit()
    app.restart()

    assert app.read(ada) == "of ada"
    assert app.read(ada, secret="another one") == "of ada"


@pytest.mark.parametrize("reason", [None, "", "  "])
def test_unlocking_with_a_provider_needs_a_reason(app: Application, reason: str | None) -> None:
    """Without one nothing is asked of the provider."""
    ada = app.enroll()
    app.restart()
    calls = app.remote.calls
    with pytest.raises(ConfigurationError, match="reason"):
        app.read(ada, provider="remote", reason=reason)

    assert app.remote.calls == calls


def test_the_audit_event_carries_the_reason(app: Application, capture_logs: Any) -> None:
    """Who opened what and why goes to the application's function and to the log, with no value in it."""
    ada = app.enroll()
    app.restart()
    app.events.clear()
    app.read(ada, provider="remote", reason="nightly export")
    (told,) = [one for one in app.events if one.name == "provider_unlocked"]

    assert (told.owner_class, told.reason, told.provider) == ("User", "nightly export", "remote")
    assert told.key_id
    assert "nightly export" in capture_logs.text
    assert "of ada" not in str(told)


def test_a_secret_or_a_provider(app: Application) -> None:
    """Unlock takes one of the two."""
    ada = app.enroll(secret=SECRET, provider="remote")
    for how in ({}, {"secret": SECRET, "provider": "remote", "reason": "both"}):
        with Session(app.engine) as session, pytest.raises(ConfigurationError, match="one of them"):
            app.envelope.unlock(session, session.get_one(User, ada), **how)  # type: ignore[arg-type]


def test_unknown_providers(app: Application) -> None:
    """A name that the envelope does not know is told, at enrolment and at unlock, and nothing is written."""
    ada = app.enroll()
    rows = app.count("users_key")
    with pytest.raises(ConfigurationError, match="'kms'"):
        app.enroll("ben", provider="kms")
    with pytest.raises(ConfigurationError, match="'kms'"):
        app.read(ada, provider="kms", reason="test")

    assert rows == app.count("users_key")
    assert app.count("users") == 1


def test_a_slot_of_another_provider_does_not_open(app: Application) -> None:
    """A configured provider opens the owners that have a slot of it, and is not asked for the others."""
    other = Remote(b"\x22" * 32)
    app.restart(providers={"remote": app.remote, "other": other})
    ada = app.enroll()
    with pytest.raises(KeyNotFoundError, match="'other'"):
        app.read(ada, provider="other", reason="test")

    assert other.calls == 0


# Failing


def test_a_provider_that_is_down(app: Application) -> None:
    """Down at unlock or enrolment: a ProviderError with its cause, nothing half-written; it works later."""
    ada = app.enroll()
    app.restart()
    app.remote.before = down
    with pytest.raises(ProviderError) as refused:
        app.read(ada)
    assert isinstance(refused.value.__cause__, ConnectionError)
    assert not isinstance(refused.value, ProviderTimeoutError)
    with pytest.raises(ProviderError):
        app.enroll("ben")
    with Session(app.engine) as session:
        user = User(email="cid")
        with pytest.raises(ProviderError):
            app.envelope.enroll(session, user, secret=SECRET, provider="remote")
        session.commit()

    assert [app.count(name) for name in ("users", "users_key", "users_keyslot")] == [1, 2, 1]
    app.remote.before = lambda: None
    assert app.read(ada) == "of ada"
    assert app.read(app.enroll("ben")) == "of ben"


def test_a_provider_that_is_down_for_a_moment_is_asked_again(app: Application) -> None:
    """A failure that may pass is tried again, as often as `provider_retries` says."""
    ada = app.enroll()
    app.restart(provider_retries=2)
    failures = [down, down, lambda: None]
    app.remote.before = lambda: failures.pop(0)()
    unwraps = app.remote.unwraps

    assert app.read(ada) == "of ada"
    assert app.remote.unwraps == unwraps + 3


def test_a_provider_that_is_slow(app: Application) -> None:
    """One that does not answer in time is not waited for; the session goes on."""
    ada = app.enroll()
    app.restart(provider_timeout=0.05)
    answered = threading.Event()
    app.remote.before = lambda: answered.wait(WAIT) and None
    try:
        with Session(app.engine) as session:
            user = session.get_one(User, ada)
            with pytest.raises(ProviderTimeoutError):
                app.envelope.unlock(session, user, provider="remote", reason="test")
            with pytest.raises(ProviderTimeoutError):
                app.envelope.enroll(session, User(email="ben"), provider="remote")
            assert session.scalar(select(sa.func.count()).select_from(User)) == 1
    finally:
        answered.set()
    assert app.read(ada) == "of ada"
    assert app.count("users_keyslot") == 1


def test_a_provider_that_answers_with_another_key(app: Application) -> None:
    """What it answers is compared with the slot before it is used."""
    ada = app.enroll()
    app.restart()
    app.remote.answer = b"\x55" * 32
    with pytest.raises(ProviderError, match="another key"):
        app.read(ada)
    app.remote.answer = None

    assert app.read(ada) == "of ada"


def test_a_wrap_for_another_kek_is_refused(app: Application) -> None:
    """A slot's provider bytes cannot be exchanged for those of another slot: the context does not fit."""
    ada = app.enroll("ada")
    app.restart()
    ben = app.enroll("ben")
    slots = Base.metadata.tables["users_keyslot"]
    with app.engine.begin() as connection:
        wraps = connection.execute(select(slots.c.slot_id, slots.c.provider_wrapped)).all()
        assert wraps[0].provider_wrapped != wraps[1].provider_wrapped
        for slot, other in ((wraps[0], wraps[1]), (wraps[1], wraps[0])):
            connection.execute(
                sa.update(slots)
                .where(slots.c.slot_id == slot.slot_id)
                .values(provider_wrapped=other.provider_wrapped)
            )
    app.restart()
    for owner in (ada, ben):
        with pytest.raises((ProviderError, TamperedKeyError)):
            app.read(owner)


# One KEK for many


def test_many_enrolments_call_the_provider_once(app: Application) -> None:
    """30 owners share one KEK: one wrap, and in another process one unwrap for all of them."""
    owners = [app.enroll(str(number)) for number in range(30)]
    assert (app.remote.wraps, app.remote.unwraps) == (1, 0)
    app.restart()

    assert [f"of {number}" for number in range(30)] == [app.read(owner) for owner in owners]
    assert (app.remote.wraps, app.remote.unwraps) == (1, 1)
    with app.engine.connect() as connection:
        slots = Base.metadata.tables["users_keyslot"]
        assert connection.scalar(select(sa.func.count(slots.c.provider_wrapped.distinct()))) == 1
        assert connection.scalar(select(sa.func.count(slots.c.wrapped.distinct()))) == 30


def test_new_slots_get_a_new_kek_after_a_day(lite: Application, clock: Callable[[float], None]) -> None:
    """A KEK is shared for a day; what is under an earlier one opens as before."""
    ada = lite.enroll("ada")
    clock(86_401)
    ben = lite.enroll("ben")

    assert lite.remote.wraps == 2
    assert [lite.read(ada), lite.read(ben)] == ["of ada", "of ben"]


def test_a_kek_is_kept_for_its_seconds(lite: Application, clock: Callable[[float], None]) -> None:
    """After `seconds` the provider is asked again."""
    ada = lite.enroll()
    lite.restart(cache=CachePolicy(seconds=60))
    for seconds, expected in ((0, 1), (59, 1), (2, 2), (59, 2)):
        clock(seconds)
        lite.read(ada)
        assert expected == lite.remote.unwraps


def test_a_kek_is_kept_for_its_uses(lite: Application) -> None:
    """After `uses` the provider is asked again."""
    ada = lite.enroll()
    lite.restart(cache=CachePolicy(uses=3))
    for _ in range(9):
        lite.read(ada)

    assert lite.remote.unwraps == 3


@pytest.mark.parametrize(("room", "expected"), [(2, 6), (3, 3)])
def test_so_many_keks_are_kept(lite: Application, room: int, expected: int) -> None:
    """With room for fewer KEKs than there are, the one that was used longest ago goes."""
    owners = []
    for name in ("ada", "ben", "cid"):
        lite.restart()
        owners.append(lite.enroll(name))
    lite.restart(cache=CachePolicy(keys=room))
    for owner in owners * 2:
        lite.read(owner)

    assert expected == lite.remote.unwraps


# Asyncio


async def test_the_event_loop_is_never_held_up(async_engine: AsyncEngine) -> None:
    """Each call of the provider is on another thread and waits for the loop: else nobody comes on."""
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    app = Application(async_engine.sync_engine)
    loop, mine = asyncio.get_running_loop(), threading.get_ident()

    def wait_for_the_loop() -> None:
        turned = threading.Event()
        loop.call_soon_threadsafe(turned.set)
        if not turned.wait(WAIT):
            raise AssertionError("the event loop stands still")

    app.remote.before = wait_for_the_loop
    envelope = AsyncEnvelope(app.envelope)
    async with AsyncSession(async_engine) as session:
        user = User(email="ada")
        async with envelope.enroll(session, user, provider="remote"):
            session.add(Note(user=user, body="of ada"))
            await session.flush()
            ada = user.id
            await session.commit()
    assert app.remote.calls == 1
    envelope = AsyncEnvelope(app.restart())
    async with AsyncSession(async_engine) as session:
        user = await session.get_one(User, ada)
        async with envelope.unlock(session, user, provider="remote", reason="test"):
            assert (await session.scalars(select(Note))).one().body == "of ada"
    assert app.remote.calls == 2
    with app.restart().server_mode(provider="remote", reason="test"):
        async with AsyncSession(async_engine) as session:
            assert (await session.scalars(select(Note))).one().body == "of ada"
    assert app.remote.calls == 3
    with app.restart().server_mode(provider="remote", reason="test"):
        async with AsyncSession(async_engine) as session:
            session.add(User(email="ben", phone="123"))
            await session.commit()
            rows = await session.stream_scalars(select(Note))
            assert [note.body async for note in rows] == ["of ada"]
    assert app.remote.calls == 5
    assert mine not in app.remote.threads


async def test_a_slow_provider_under_asyncio_times_out(async_engine: AsyncEngine) -> None:
    """A time-out reaches the task that waits, and the session of it goes on."""
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    app = Application(async_engine.sync_engine)
    envelope = AsyncEnvelope(app.restart(provider_timeout=0.05))
    answered = threading.Event()
    app.remote.before = lambda: answered.wait(WAIT) and None
    try:
        async with AsyncSession(async_engine) as session:
            with pytest.raises(ProviderTimeoutError):
                await envelope.enroll(session, User(email="ada"), provider="remote")
            assert await session.scalar(select(sa.func.count()).select_from(User)) == 0
    finally:
        answered.set()


# A key service


def test_against_aws_kms_over_http(lite: Application) -> None:
    """Enrolled, unlocked and served with boto3 against moto's KMS: one Encrypt and one Decrypt for ten."""
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
    moto_server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    from sqlalchemy_envelope import AwsKms

    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client(
        "kms",
        endpoint_url=f"http://{host}:{port}",
        region_name="eu-central-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    made: list[str] = []
    client.meta.events.register("before-call.kms", lambda model, **_: made.append(model.name))
    try:
        arn = client.create_key()["KeyMetadata"]["Arn"]
        made.clear()
        kms = {"kms": AwsKms(client, arn)}
        lite.restart(providers=kms, provider_timeout=WAIT)
        owners = [lite.enroll(str(number), provider="kms") for number in range(10)]
        assert made == ["Encrypt"]
        lite.restart(providers=kms, provider_timeout=WAIT)
        assert [f"of {n}" for n in range(10)] == [
            lite.read(owner, provider="kms", reason="test") for owner in owners
        ]
        lite.restart(providers=kms, provider_timeout=WAIT)
        with lite.envelope.server_mode(provider="kms", reason="test"), Session(lite.engine) as session:
            assert len([note.body for note in session.scalars(select(Note))]) == 10
        assert made == ["Encrypt", "Decrypt", "Decrypt"]
    finally:
        client.close()
        server.stop()
