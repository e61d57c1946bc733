"""A recovery code opens its owner, resets a forgotten secret once, and opens nobody else."""

import uuid
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    AsyncEnvelope,
    Backoff,
    ConfigurationError,
    EnrollmentError,
    Envelope,
    EnvelopeError,
    KdfProfile,
    KeyNotFoundError,
    LockedError,
    MemoryThrottle,
    NotEnrolledError,
    RecoveryCode,
    RecoveryCodeError,
    SecretError,
    TamperedKeyError,
    Throttle,
    UnlockError,
    UnlockThrottledError,
)
from sqlalchemy_envelope.crypto.recovery_code import new_code
from tests.orm.models import SECRET, Base, Note, User, envelope, statements_sent
from tests.orm.verbs.recovering.conftest import NEW, Forgetful


def test_a_code_opens_its_owner(forgetful: Forgetful) -> None:
    """However it is typed, and as often as it is used; what is written with it is read with the secret."""
    typed = str(forgetful.code).lower().replace("-", " ")

    assert forgetful.bodies(recovery_code=typed) == ["of ada"]
    forgetful.write("with the code", recovery_code=forgetful.code)
    assert forgetful.bodies(secret=SECRET) == ["of ada", "with the code"]
    assert forgetful.slots() == [("recovery", "in the safe"), ("secret", None)]


def test_a_reset_puts_a_new_secret_and_a_new_code_in_place(forgetful: Forgetful) -> None:
    """The new secret and the new code open everything; the old secret and the used code open nothing."""
    made = forgetful.reset(forgetful.code)

    assert forgetful.bodies(secret=NEW) == ["of ada"]
    assert forgetful.bodies(recovery_code=made) == ["of ada"]
    for way in ({"secret": SECRET}, {"recovery_code": forgetful.code}):
        with pytest.raises(UnlockError):
            forgetful.bodies(**way)
    with pytest.raises(UnlockError):
        forgetful.reset(forgetful.code)
    assert forgetful.slots() == [("recovery", "in the safe"), ("secret", None)]


def test_the_other_codes_stay(lite: Forgetful) -> None:
    """A reset replaces the code that was used, and no other."""
    other = lite.new_code("with the notary")
    lite.reset(lite.code)

    assert lite.bodies(recovery_code=other) == ["of ada"]
    assert lite.slots() == [("recovery", "in the safe"), ("recovery", "with the notary"), ("secret", None)]


def test_a_reset_replaces_every_secret(lite: Forgetful) -> None:
    """Of an owner with several secrets none opens any more, and the new one costs one derivation."""
    with Session(lite.engine) as session:
        owner = session.get_one(User, lite.user)
        with lite.envelope.unlock(session, owner, secret=SECRET) as unlocked:
            unlocked.add_secret(owner, "of the phone", label="phone")
            session.commit()
    lite.reset(lite.code)

    for secret in (SECRET, "of the phone"):
        with pytest.raises(UnlockError):
            lite.bodies(secret=secret)
    assert lite.bodies(secret=NEW) == ["of ada"]


def test_what_is_stored_of_a_code_is_a_public_key(lite: Forgetful) -> None:
    """No row holds the text of a code, or the bytes behind it."""
    code = str(lite.code).replace("-", "")
    number = 0
    for symbol in code:
        number = number * 32 + "0123456789ABCDEFGHJKMNPQRSTVWXYZ".index(symbol)
    random = (number >> 20).to_bytes(20, "big")
    with lite.engine.connect() as connection:
        tables = Base.metadata.tables
        stored = [
            value
            for name in ("users_key", "users_keyslot")
            for row in connection.execute(tables[name].select())
            for value in row
        ]

    assert not any(random in value for value in stored if isinstance(value, bytes))
    assert not any(part in str(value) for value in stored for part in (code, str(lite.code)))


def test_it_costs_no_derivation_to_try_a_code(lite: Forgetful, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unlock with a code sends two queries, and derives nothing; a wrong code costs a reset nothing."""
    monkeypatch.setattr(lite.envelope, "perform", lambda work: pytest.fail("a derivation"))
    other = str(new_code())
    with Session(lite.engine) as session:
        owner = session.get_one(User, lite.user)
        session.commit()
        with (
            statements_sent(lite.engine) as sent,
            lite.envelope.unlock(session, owner, recovery_code=lite.code),
        ):
            pass
        assert len(sent) == 2
        with pytest.raises(UnlockError):
            lite.envelope.reset_secret(session, owner, recovery_code=other, new=NEW)


# ---------------------------------------------------------------- who had no secret


def test_an_owner_without_a_secret_gets_one(forgetful: Forgetful) -> None:
    """An owner whom a provider alone opened gets the first secret by a code, and the provider stays."""
    user = forgetful.enrolled("ben", provider="server")
    with Session(forgetful.engine) as session:
        owner = session.get_one(User, user)
        with pytest.raises(EnvelopeError) as caught:
            forgetful.envelope.unlock(session, owner, secret=SECRET)
        assert "held by provider 'server' alone and has no secret" in str(caught.value)
        with forgetful.envelope.unlock(session, owner, provider="server", reason="a code") as unlocked:
            code = unlocked.add_recovery_code(owner)
            session.commit()
    forgetful.reset(code, user=user)

    assert forgetful.bodies(user, secret=NEW) == ["of ben"]
    assert forgetful.bodies(user, provider="server", reason="still there") == ["of ben"]


def test_an_owner_with_a_code_alone_is_told_so(lite: Forgetful) -> None:
    """Who logs in with a secret, and has a code and no secret, is told what to do."""
    with Session(lite.engine) as session:
        owner = session.get_one(User, lite.user)
        with lite.envelope.unlock(session, owner, recovery_code=lite.code) as unlocked:
            (secret,) = [slot for slot in lite.envelope.slots(session, owner) if slot.kind == "secret"]
            unlocked.remove_slot(owner, secret)
            session.commit()
        with pytest.raises(EnvelopeError) as caught:
            lite.envelope.unlock(session, owner, secret=SECRET)

    assert "has no secret, and is opened by a recovery code" in str(caught.value)
    assert "envelope.reset_secret(session, owner, recovery_code=..., new=...)" in str(caught.value)


def test_an_owner_without_keys(lite: Forgetful) -> None:
    """A code for a user who has no keys is refused as every unlock of that user."""
    with Session(lite.engine) as session:
        owner = User(email="ben")
        session.add(owner)
        session.commit()
        for call in (
            lambda: lite.envelope.unlock(session, owner, recovery_code=lite.code),
            lambda: lite.envelope.reset_secret(session, owner, recovery_code=lite.code, new=NEW),
        ):
            with pytest.raises(NotEnrolledError):
                call()


# ---------------------------------------------------------------- bad input: nothing half made


def test_a_mistyped_code_tries_nothing(lite: Forgetful) -> None:
    """It is refused before a query is sent, with the group of the typo, and nothing changes."""
    code = str(lite.code)
    typo = code[:15] + ("2" if code[15] != "2" else "3") + code[16:]
    before = lite.rows()
    with Session(lite.engine) as session:
        owner = session.get_one(User, lite.user)
        session.commit()
        with statements_sent(lite.engine) as sent:
            for call in (
                lambda: lite.envelope.unlock(session, owner, recovery_code=typo),
                lambda: lite.envelope.reset_secret(session, owner, recovery_code=typo, new=NEW),
            ):
                with pytest.raises(RecoveryCodeError) as caught:
                    call()
                assert "probably in its group 4." in str(caught.value)

    assert sent == []
    assert before == lite.rows()


@pytest.mark.parametrize("new", [NEW, "", "weak"])
@pytest.mark.parametrize("typed", ["none", "typo", "1234"])
def test_a_reset_tells_not_who_has_an_account(lite: Forgetful, typed: str, new: str) -> None:
    """A code that is not right is refused alike for a known and an unknown account, whatever the new secret
    is: a word on it is for whoever has the code. Both are counted at their source, and have to wait."""
    none = str(new_code())
    code = {"none": none, "typo": none[:-1] + ("2" if none[-1] != "2" else "3")}.get(typed, typed)
    store = MemoryThrottle()
    envelope = Envelope(
        kdf_profile=KdfProfile.unsafe_for_tests(),
        throttle=Throttle(store, source=Backoff(free=2)),
        secret_strength=lambda secret, _: "Too weak." if secret == "weak" else None,
    )
    answers: list[tuple[object, ...]] = []
    with Session(lite.engine) as session:
        ada = session.get_one(User, lite.user)
        for at, refused in enumerate(
            (
                lambda source: envelope.reset_secret(
                    session, ada, recovery_code=code, new=new, source=source
                ),
                lambda source: envelope.unlock_unknown(recovery_code=code, source=source, session=session),
            )
        ):
            for _ in range(4):
                with pytest.raises(EnvelopeError) as caught:
                    refused(f"198.51.100.{at}")
                error = caught.value
                answers.append((type(error), error.args if isinstance(error, RecoveryCodeError) else None))

    assert answers[:4] == answers[4:]
    expected = [UnlockError] * 2 + [UnlockThrottledError] * 2 if typed == "none" else [RecoveryCodeError] * 4
    assert expected == [kind for kind, _ in answers[:4]]


def test_an_unknown_account_is_refused_for_one_reason(lite: Forgetful) -> None:
    """Its event names no account. Both a secret and a code, or neither, is a mistake of the caller."""
    with pytest.raises(UnlockError):
        lite.envelope.unlock_unknown(recovery_code=lite.code)
    for given in ({}, {"secret": SECRET, "recovery_code": lite.code}):
        with pytest.raises(ConfigurationError, match="one of them"):
            lite.envelope.unlock_unknown(**given)

    (event,) = lite.events
    told = (event.name, event.owner_class, event.owner_id, event.slot_kind)
    assert told == ("unlock_failed", "unknown", None, "recovery")


def test_the_code_of_another_owner_opens_nothing(forgetful: Forgetful) -> None:
    """It opens its own owner and is refused for any other, with an error that tells nothing of either."""
    ben = forgetful.enrolled("ben")
    forgetful.new_code(user=ben)
    before = forgetful.rows()
    for call in (forgetful.reset, lambda code, user: forgetful.bodies(user, recovery_code=code)):
        with pytest.raises(UnlockError) as caught:
            call(forgetful.code, user=ben)
        assert "This is no recovery code of this User" in str(caught.value)

    assert before == forgetful.rows()
    assert forgetful.bodies(recovery_code=forgetful.code) == ["of ada"]


def test_the_code_of_a_deleted_owner_opens_not_the_next(forgetful: Forgetful) -> None:
    """An owner that was deleted and made again with the same primary key has another code."""
    with Session(forgetful.engine) as session:
        session.delete(session.get_one(User, forgetful.user))
        session.commit()
        again = User(id=forgetful.user, email="ada")
        with forgetful.envelope.enroll(session, again, secret=NEW):
            session.add(Note(user=again, body="of the next"))
            session.commit()
    before = forgetful.rows()
    for call in (
        lambda: forgetful.bodies(recovery_code=forgetful.code),
        lambda: forgetful.reset(forgetful.code),
    ):
        with pytest.raises(UnlockError):
            call()

    assert before == forgetful.rows()
    assert forgetful.bodies(secret=NEW) == ["of the next"]


def test_a_bad_new_secret_leaves_all_as_it_was(lite: Forgetful) -> None:
    """A reset with a secret that cannot be used changes nothing, and the code is still good."""
    before = lite.rows()
    for new in ("", "a\nb", "x" * 1025):
        with pytest.raises(SecretError):
            lite.reset(lite.code, new)

    assert before == lite.rows()
    lite.reset(lite.code)


def test_a_reset_that_is_rolled_back_was_none(forgetful: Forgetful) -> None:
    """The used code and the old secret are as good as before, and the code that it returned is not."""
    with Session(forgetful.engine) as session:
        owner = session.get_one(User, forgetful.user)
        made = forgetful.envelope.reset_secret(session, owner, recovery_code=forgetful.code, new=NEW)
        session.rollback()

    assert forgetful.bodies(recovery_code=forgetful.code) == ["of ada"]
    assert forgetful.bodies(secret=SECRET) == ["of ada"]
    for way in ({"secret": NEW}, {"recovery_code": made}):
        with pytest.raises(UnlockError):
            forgetful.bodies(**way)


def test_one_way_at_a_time(lite: Forgetful) -> None:
    """A secret and a code at once, or neither, are no way to unlock, nor is an `authenticated` code."""
    for ways in ({"secret": SECRET, "recovery_code": lite.code}, {}):
        with pytest.raises(ConfigurationError, match="one of them"):
            lite.bodies(**ways)
    with pytest.raises(ConfigurationError):
        lite.bodies(recovery_code=lite.code, authenticated=True)


def test_a_locked_owner_gets_no_code(lite: Forgetful) -> None:
    """Whoever has not opened the owner cannot add a way to its keys."""
    with Session(lite.engine) as session, pytest.raises(LockedError):
        lite.envelope.add_recovery_code(session, session.get_one(User, lite.user))


# ---------------------------------------------------------------- events, and what the owner sees


def test_events(lite: Forgetful) -> None:
    """A code that is made, used, or refused is an event, with the owner and the kind of slot."""
    lite.new_code()
    lite.bodies(recovery_code=lite.code)
    lite.reset(lite.code)
    with pytest.raises(UnlockError):
        lite.reset(lite.code)
    told = [
        (event.name, event.owner_class, event.owner_id, event.slot_kind)
        for event in lite.events
        if event.slot_kind == "recovery" or event.name == "secret_set"
    ]

    owner = "User", (lite.user,)
    assert [
        ("slot_added", *owner, "recovery"),
        ("unlocked", *owner, "recovery"),
        ("recovery_code_used", *owner, "recovery"),
        ("recovery_code_used", *owner, "recovery"),
        ("secret_set", *owner, "secret"),
        ("slot_added", *owner, "recovery"),
        ("unlock_failed", *owner, "recovery"),
    ] == told
    assert not any(part in str(lite.events) for part in str(lite.code).split("-")[:3])


def test_the_owner_sees_a_new_code_until_it_is_acknowledged(lite: Forgetful) -> None:
    """The next unlocks, in any way, show the slot of a new code; acknowledged, they do not."""
    made = lite.reset(lite.code)
    with Session(lite.engine) as session:
        owner = session.get_one(User, lite.user)
        for way in ({"secret": NEW}, {"recovery_code": made}):
            with lite.envelope.unlock(session, owner, **way) as unlocked:
                assert [slot.kind for slot in unlocked.unacknowledged_slots] == ["recovery"]
                unlocked.settle()
        with lite.envelope.unlock(session, owner, secret=NEW) as unlocked:
            unlocked.acknowledge_slots(owner)
            session.commit()
        with lite.envelope.unlock(session, owner, secret=NEW) as unlocked:
            assert unlocked.unacknowledged_slots == ()


# ---------------------------------------------------------------- asyncio


async def test_the_asynchronous_face(async_engine: AsyncEngine) -> None:
    """Adding, unlocking and resetting are the same with `await`, and `unlocked.` says which line to write."""
    aio = AsyncEnvelope(envelope)
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(async_engine, expire_on_commit=False) as session:
        owner = User(email="cid")
        async with aio.enroll(session, owner, secret=SECRET) as unlocked:
            session.add(Note(user=owner, body="of cid"))
            code = await aio.add_recovery_code(session, owner, label="in the safe")
            with pytest.raises(ConfigurationError, match=r"await AsyncEnvelope\(envelope\)\.add_recovery"):
                unlocked.add_recovery_code(owner)
            await session.commit()
        made = await aio.reset_secret(session, owner, recovery_code=str(code), new=NEW)
        await session.commit()
        with pytest.raises(UnlockError):
            await aio.unlock(session, owner, recovery_code=code)
        async with aio.unlock(session, owner, recovery_code=made):
            note = (await session.scalars(sa.select(Note))).one()

            assert note.body == "of cid"
            assert isinstance(made, RecoveryCode)
            note.body = "changed"
            await session.commit()
        async with aio.unlock(session, owner, secret=NEW):
            await session.refresh(note)
            assert note.body == "changed"


# ---------------------------------------------------------------- rows that were altered


def alter(lite: Forgetful, **values: Any) -> None:
    slots = Base.metadata.tables["users_keyslot"]
    with lite.engine.begin() as connection:
        connection.execute(sa.update(slots).where(slots.c.kind == "recovery").values(**values))


def test_an_altered_slot_is_told(lite: Forgetful) -> None:
    """A changed byte in the wrap is found by the row seal."""
    alter(lite, wrapped=b"\x11" * 105)

    with pytest.raises(TamperedKeyError):
        lite.bodies(recovery_code=lite.code)


def test_there_is_an_end_of_codes(lite: Forgetful) -> None:
    """An owner has at most 32 codes; planted beyond that, they are told and not tried."""
    slots = Base.metadata.tables["users_keyslot"]
    with lite.engine.begin() as connection:
        row = connection.execute(slots.select().where(slots.c.kind == "recovery")).one()._mapping
        copies = [{**row, "slot_id": uuid.uuid4(), "recipient_public_key": bytes(32)} for _ in range(31)]
        connection.execute(slots.insert(), copies)
    with Session(lite.engine) as session:
        owner = session.get_one(User, lite.user)
        lite.envelope.seal_rows(session, User)
        with (
            lite.envelope.unlock(session, owner, secret=SECRET) as unlocked,
            pytest.raises(EnrollmentError, match="has 32 recovery codes"),
        ):
            unlocked.add_recovery_code(owner)
        session.commit()
    assert lite.bodies(recovery_code=lite.code) == ["of ada"]
    with lite.engine.begin() as connection:
        connection.execute(slots.insert(), {**copies[0], "slot_id": uuid.uuid4()})
    with Session(lite.engine) as session:
        lite.envelope.seal_rows(session, User)
        session.commit()

    with pytest.raises(KeyNotFoundError, match="more than 32 recovery slots"):
        lite.bodies(recovery_code=lite.code)


def test_an_unlock_with_a_code_reads(lite: Forgetful) -> None:
    """It sends SELECTs and locks nothing, so that a replica serves it."""
    with Session(lite.engine) as session:
        owner = session.get_one(User, lite.user)
        session.commit()
        with statements_sent(lite.engine) as sent:
            lite.envelope.unlock(session, owner, recovery_code=lite.code).lock()

    assert all(one.startswith("SELECT") and "FOR UPDATE" not in one for one in sent)
