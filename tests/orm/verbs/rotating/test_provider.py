"""Rotation of a provider's key: slots are wrapped anew, rows sealed anew, and no key of an owner changes."""

from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    AsyncEnvelope,
    AuditEvent,
    ConfigurationError,
    Envelope,
    KdfProfile,
    OfflineKey,
    ProviderError,
    ProviderRotation,
    ServerKeyring,
    TamperedKeyError,
)
from tests.orm.sharing_models import Base, Group, User
from tests.orm.verbs.rotating.scene import (
    NEW,
    NEW_ID,
    OLD,
    OLD_ID,
    WRITTEN,
    application,
    read,
    rows_with,
    started,
    unlocked,
)

KEYS = Base.metadata.tables["users_key"]
SLOTS = Base.metadata.tables["users_keyslot"]


def _rotate(engine: Engine, envelope: Envelope, batch: int = 500) -> dict[str, ProviderRotation]:
    found = {}
    with Session(engine) as session:
        for owner_class in (User, Group):
            found[owner_class.__name__] = _last(
                session, envelope.rotate_provider(session, owner_class, batch=batch)
            )
    return found


def _last(session: Session, run: Iterable[ProviderRotation]) -> ProviderRotation:
    last = ProviderRotation()
    for so_far in run:
        session.commit()
        last = so_far
    return last


@pytest.mark.parametrize("batch", [1, 500])
def test_the_old_key_can_be_taken_away(engine: Engine, batch: int) -> None:
    """Then no byte in the database names the old server key, and an application with the new key alone opens
    all that was written, by provider, by secret and through grants. A second run finds nothing."""
    started(engine)
    seen: list[AuditEvent] = []
    found = _rotate(engine, application(NEW, OLD, audit=seen.append), batch)
    again = _rotate(engine, application(NEW, OLD), batch)

    assert (found["User"].rotated, found["User"].slots, found["User"].skipped, found["User"].refused) == (
        3,
        3,
        0,
        (),
    )
    assert (found["Group"].rotated, found["Group"].slots) == (1, 1)
    assert found["User"].keks <= 1
    assert sum(one.count for one in seen if one.name == "provider_rotated") == 4
    assert rows_with(engine, OLD_ID) == 0
    assert rows_with(engine, NEW_ID) > 0
    only_new = application(NEW)
    assert read(engine, only_new) == WRITTEN
    with unlocked(engine, only_new, 2) as (session, user, _):
        assert user.diary == "diary 2"
        assert session.get_one(Group, 1).name == "group 1"
    assert [(one.rotated, one.unchanged) for one in again.values()] == [(0, 3), (0, 1)]


def test_slots_under_a_pepper(sqlite_engine: Engine) -> None:
    """The seals of slots under a pepper are renewed as their rows are, also without the pepper at hand."""
    started(sqlite_engine)
    pepper = ServerKeyring([b"p" * 32])
    with Session(sqlite_engine) as session:
        for _ in application(OLD, pepper=pepper).rotate_pepper(session, User):
            session.commit()
    found = _rotate(sqlite_engine, application(NEW, OLD))
    refused, under_pepper = found["User"].refused, application(NEW, pepper=pepper)

    assert (refused, rows_with(sqlite_engine, OLD_ID)) == ((), 0)
    with unlocked(sqlite_engine, under_pepper, 2) as (_, user, _):
        assert user.diary == "diary 2"


def test_an_interrupted_rotation_goes_on(sqlite_engine: Engine) -> None:
    """A rotation that stops after its first batch, and loses its second, is finished by the next run."""
    started(sqlite_engine)
    envelope = application(NEW, OLD)
    with Session(sqlite_engine) as session:
        run = envelope.rotate_provider(session, User, batch=1)
        next(run)
        session.commit()
        next(run)
        session.rollback()
    found = _rotate(sqlite_engine, envelope)

    assert (found["User"].rotated, found["User"].unchanged) == (2, 1)
    assert rows_with(sqlite_engine, OLD_ID) == 0


def test_what_others_hold_is_skipped(postgres_engine: Engine) -> None:
    """A row that another transaction holds is not waited for: its owner is left to the next run."""
    started(postgres_engine)
    with postgres_engine.begin() as other:
        other.execute(select(SLOTS).limit(1).with_for_update())
        found = _rotate(postgres_engine, application(NEW, OLD))
    again = _rotate(postgres_engine, application(NEW, OLD))

    assert (found["User"].rotated, found["User"].skipped) == (2, 1)
    assert (again["User"].rotated, again["User"].skipped) == (1, 0)
    assert rows_with(postgres_engine, OLD_ID) == 0


@pytest.mark.parametrize("table", ["users_key", "users_keyslot", "memberships_keygrant"])
def test_an_altered_row_is_refused_and_never_sealed(sqlite_engine: Engine, table: str) -> None:
    """A rotation gives no seal to a row that the application did not write as it is."""
    started(sqlite_engine)
    with sqlite_engine.begin() as connection:
        connection.execute(text(f"UPDATE {table} SET wrapped = zeroblob(105)"))
        before = connection.execute(text(f"SELECT seal FROM {table} ORDER BY 1")).all()
    found = _rotate(sqlite_engine, application(NEW, OLD))

    refused = {code for one in found.values() for _, code, _ in one.refused}
    assert {"row-seal"} == refused
    with sqlite_engine.connect() as connection:
        assert before == connection.execute(text(f"SELECT seal FROM {table} ORDER BY 1")).all()


@pytest.mark.parametrize("verb", ["rotate_provider", "settle_all"])
def test_text_in_a_binary_column_is_not_shown(sqlite_engine: Engine, verb: str) -> None:
    """SQLite takes any bytes as text. The error is the library's, and nothing of it holds the bytes."""
    started(sqlite_engine)
    with sqlite_engine.begin() as connection:
        connection.execute(text("UPDATE users_key SET wrapped = CAST(X'ff414243' AS TEXT)"))
    envelope = application(NEW, OLD)
    how = {} if verb == "rotate_provider" else {"provider": "server", "reason": "test"}
    with Session(sqlite_engine) as session, pytest.raises(TamperedKeyError, match="cannot hold") as caught:
        list(getattr(envelope, verb)(session, User, **how))

    assert caught.value.__context__ is None


def test_without_the_old_key_nothing_is_lost(sqlite_engine: Engine) -> None:
    """If the old key was taken away too early, owners are refused and stay as they are."""
    started(sqlite_engine)
    found = _rotate(sqlite_engine, application(NEW))

    assert len(found["User"].refused) == 3
    assert read(sqlite_engine, application(NEW, OLD)) == WRITTEN


class _Remote:
    """A provider over a network, with a version that can be turned, and that may wrap wrongly."""

    local = False

    def __init__(self) -> None:
        self.keys = {"1": ServerKeyring([b"\x01" * 32])}
        self.version = "1"
        self.calls: list[str] = []
        self.lies = False

    @property
    def reference(self) -> str:
        return f"remote/{self.version}"

    def wrap(self, key: bytes, context: Mapping[str, str]) -> bytes:
        self.calls.append("wrap")
        key = bytes(32) if self.lies else key
        return self.version.encode() + self.keys[self.version].wrap(key, context)

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        self.calls.append("unwrap")
        return self.keys[chr(wrapped[0])].unwrap(wrapped[1:], context)

    def turn(self) -> None:
        self.version = "2"
        self.keys["2"] = ServerKeyring([b"\x02" * 32])


def _remote_scene(engine: Engine) -> tuple[_Remote, Envelope]:
    remote = _Remote()
    envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), providers={"kms": remote})
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        for numbers in ((1, 2, 3), (4,)):
            envelope.enroll(session, [User(id=n, email=f"user{n}") for n in numbers], provider="kms")
            session.commit()
            envelope.policy.require_providers().forget()  # another process: another KEK
    remote.turn()
    remote.calls.clear()
    return remote, envelope


def test_a_kek_costs_three_calls_however_many_slots_it_serves(sqlite_engine: Engine) -> None:
    """Four owners share two KEKs: each is unwrapped, wrapped, and unwrapped again to be sure."""
    remote, envelope = _remote_scene(sqlite_engine)
    with Session(sqlite_engine) as session:
        so_far = _last(session, envelope.rotate_provider(session, User, provider="kms", batch=2))

    assert remote.calls == ["unwrap", "wrap", "unwrap"] * 2
    assert (so_far.rotated, so_far.keks, so_far.slots) == (4, 2, 4)
    del remote.keys["1"]
    with Session(sqlite_engine) as session:
        user = session.get_one(User, 4)
        with envelope.unlock(session, user, provider="kms", reason="test"):
            user.diary = "diary 4"
            session.commit()
            assert user.diary == "diary 4"


def test_a_provider_that_wraps_wrongly_costs_no_old_wrap(sqlite_engine: Engine) -> None:
    """The old wrap stays where the new one does not open as the same key."""
    remote, envelope = _remote_scene(sqlite_engine)
    remote.lies = True
    with sqlite_engine.connect() as connection:
        before = connection.execute(select(SLOTS)).all()
    with Session(sqlite_engine) as session:
        with pytest.raises(ProviderError, match="the old wrap was kept"):
            next(envelope.rotate_provider(session, User, provider="kms"))
        session.commit()

    with sqlite_engine.connect() as connection:
        assert before == connection.execute(select(SLOTS)).all()


async def test_the_same_under_asyncio(async_engine: AsyncEngine) -> None:
    """An `AsyncEnvelope` rotates in an `async for`."""
    envelope = AsyncEnvelope(application(NEW, OLD))
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(async_engine) as session:
        await AsyncEnvelope(application(OLD)).enroll(
            session, [User(id=n, email=f"user{n}", diary=f"diary {n}") for n in (1, 2)], provider="server"
        )
        await session.commit()
    async with AsyncSession(async_engine) as session:
        found = []
        async for so_far in envelope.rotate_provider(session, User, batch=1):
            await session.commit()
            found.append((so_far.rotated, so_far.slots))
        async for seals in envelope.rotate_seals(session, User):
            await session.commit()
            found.append((seals.rotated, seals.unchanged))

    assert found == [(1, 1), (2, 2), (0, 2)]
    only_new = AsyncEnvelope(application(NEW))
    async with AsyncSession(async_engine) as session:
        with only_new.server_mode(session, reason="test"):
            assert (await session.get_one(User, 2)).diary == "diary 2"


def test_seals_alone(sqlite_engine: Engine) -> None:
    """`rotate_seals` renews the seals and leaves the slots under the old key."""
    started(sqlite_engine)
    envelope = application(NEW, OLD)
    with Session(sqlite_engine) as session:
        slots = [_last(session, envelope.rotate_seals(session, one)).slots for one in (User, Group)]

    assert slots == [0, 0]
    with Session(sqlite_engine) as session:
        references = set(session.execute(select(SLOTS.c.provider_ref)).scalars())
        assert {None, f"server server:{OLD_ID.hex()}"} == references
        assert {NEW_ID} == {bytes(seal)[:16] for seal in session.execute(select(KEYS.c.seal)).scalars()}


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda e, s: e.rotate_provider(s, str), "takes a class of key owners"),
        (lambda e, s: e.rotate_provider(s, User, provider="kms"), "No provider 'kms'"),
        (lambda e, s: e.rotate_provider(s, User, batch=0), "at least 1"),
        (lambda e, s: e.rotate_provider(s, User, provider="offline"), "is an offline key"),
        (lambda e, s: application().rotate_seals(s, User), "no server keys"),
    ],
)
def test_bad_arguments(sqlite_engine: Engine, call: Any, why: str) -> None:
    """What cannot be rotated is refused before anything is read."""
    envelope = application(NEW, providers={"offline": OfflineKey(OfflineKey.generate())})
    with Session(sqlite_engine) as session, pytest.raises(ConfigurationError, match=why):
        call(envelope, session)
