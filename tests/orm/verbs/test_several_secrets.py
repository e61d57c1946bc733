"""An owner has several slots: secrets with labels, which are added, set anew, removed and acknowledged."""

import datetime as dt
import logging
import uuid
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from sqlalchemy_envelope import (
    AlreadyEnrolledError,
    AsyncEnvelope,
    AuditEvent,
    ConfigurationError,
    EnrollmentError,
    Envelope,
    EnvelopeError,
    KdfProfile,
    KeyNotFoundError,
    LockedError,
    SecretError,
    ServerKeyring,
    UnlockError,
)
from sqlalchemy_envelope.crypto.argon2id import KdfLimit
from tests.orm.conftest import Started
from tests.orm.models import SECRET, Base, Note, User, envelope, statements_sent, unlock

CHEAP = KdfProfile.unsafe_for_tests()
PHONE, NEW = "of the phone", "another secret altogether"


@pytest.fixture
def derivations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each key derivation."""
    derive, made = KdfLimit.derive, []

    def counted(limit: KdfLimit, *arguments: Any, **options: Any) -> Any:
        made.append(1)
        return derive(limit, *arguments, **options)

    monkeypatch.setattr(KdfLimit, "derive", counted)
    return made


def add_phone(started: Started) -> None:
    """Give ada a second secret, and a value."""
    with unlock(started.session, started.ada) as unlocked:
        unlocked.add_secret(started.ada, PHONE, label="phone")
        started.ada.phone = "1234"
        started.session.commit()


def opens(started: Started, secret: str) -> bool:
    """Whether a secret opens ada's value."""
    with started.fresh() as session:
        ada = session.get_one(User, started.ada.id)
        try:
            with envelope.unlock(session, ada, secret=secret):
                return ada.phone == "1234"
        except UnlockError:
            return False


def test_each_secret_opens_with_one_derivation(started: Started, derivations: list[int]) -> None:
    """The secrets of an owner share a salt, so that an unlock costs one derivation, whichever it is given."""
    add_phone(started)
    derivations.clear()

    assert [opens(started, SECRET), opens(started, PHONE), opens(started, "wrong")] == [True, True, False]
    assert len(derivations) == 3


def test_slots_are_listed_with_label_kind_and_times(started: Started) -> None:
    """`slots` tells each slot's kind, label, and when it was made and last used, in UTC."""
    before = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=2)
    add_phone(started)
    first, phone = sorted(envelope.slots(started.session, started.ada), key=lambda slot: slot.label or "")

    assert [(first.kind, first.label), (phone.kind, phone.label)] == [("secret", None), ("secret", "phone")]
    assert before < (phone.created_at or before)
    assert [slot.used_at is not None for slot in (first, phone)] == [True, False]

    with envelope.unlock(started.session, started.ada, secret=PHONE):
        started.ada.phone = "the first write notes the use"
        started.session.commit()
    used = {slot.label: slot.used_at for slot in envelope.slots(started.session, started.ada)}

    assert before < (used["phone"] or before)


def test_a_use_is_noted_once_a_day(lite: Started) -> None:
    """The first write after an unlock notes the use of its slot; the next ones of that day send nothing."""
    add_phone(lite)

    def sent() -> int:
        with lite.fresh() as session:
            ada = session.get_one(User, lite.ada.id)
            with (
                envelope.unlock(session, ada, secret=PHONE) as unlocked,
                statements_sent(lite.engine) as statements,
            ):
                unlocked.settle()
                session.commit()
            return len(statements)

    assert [sent(), sent()] == [1, 0]


def test_an_added_slot_is_shown_until_it_is_acknowledged(started: Started) -> None:
    """The next unlocks show what was added, to whoever unlocks with a secret, until it is acknowledged."""
    add_phone(started)
    shown = []
    for acknowledges in (False, True, False):
        with unlock(started.session, started.ada) as unlocked:
            shown.append([slot.label for slot in unlocked.unacknowledged_slots])
            if acknowledges:
                unlocked.acknowledge_slots(started.ada, *unlocked.unacknowledged_slots)
            started.session.commit()

    assert shown == [["phone"], ["phone"], []]


def test_a_forgotten_secret_is_set_anew_by_another_way(started: Started) -> None:
    """Whoever has the owner open sets a new secret; the old ones open nothing any more."""
    add_phone(started)
    with envelope.unlock(started.session, started.ada, secret=PHONE) as unlocked:
        unlocked.set_secret(started.ada, NEW)
        started.session.commit()

    assert [opens(started, one) for one in (SECRET, PHONE, NEW)] == [False, False, True]


def test_one_secret_of_several_is_set_anew(started: Started) -> None:
    """With a label, only the secret of that label is replaced."""
    add_phone(started)
    with unlock(started.session, started.ada) as unlocked:
        unlocked.set_secret(started.ada, NEW, label="phone")
        started.session.commit()

    assert [opens(started, one) for one in (SECRET, PHONE, NEW)] == [True, False, True]
    assert [slot.label for slot in envelope.slots(started.session, started.ada) if slot.label] == ["phone"]


def test_a_provider_helps_who_forgot_the_secret(started: Started) -> None:
    """An owner with a slot of a provider gets a new secret through it, for the values of every epoch."""
    keeping = Envelope(kdf_profile=CHEAP, providers={"support": ServerKeyring([bytes(32)])})
    with keeping.unlock(started.session, started.ada, secret=SECRET) as unlocked:
        started.ada.phone = "1234"
        unlocked.add_provider(started.ada, "support")
        started.session.commit()
    with keeping.unlock(started.session, started.ada, provider="support", reason="forgot") as unlocked:
        unlocked.set_secret(started.ada, NEW)
        started.session.commit()

    assert [opens(started, one) for one in (SECRET, NEW)] == [False, True]


def test_a_removed_secret_opens_nothing_that_is_written_later(started: Started) -> None:
    """Removing a slot starts a new epoch; values of both epochs open with what is left."""
    add_phone(started)
    with unlock(started.session, started.ada) as unlocked:
        (phone,) = (slot for slot in envelope.slots(started.session, started.ada) if slot.label)
        before = {key.key_id for key in started.session.scalars(select(User.__key_class__))}
        unlocked.remove_slot(started.ada, phone)
        started.session.add(Note(user=started.ada, body="later"))
        started.session.commit()
    with unlock(started.session, started.ada):
        assert (started.ada.phone, started.ada.notes[0].body) == ("1234", "later")
    stored = started.session.scalars(select(User.__key_class__).filter_by(state="active")).all()

    assert not opens(started, PHONE)
    assert len([key for key in stored if key.key_id not in before]) == 2


def test_a_slot_that_is_added_opens_what_earlier_epochs_hold(started: Started) -> None:
    """A new slot is made for every root key that is open: a later secret opens values of every epoch."""
    add_phone(started)
    with unlock(started.session, started.ada) as unlocked:
        (phone,) = (slot for slot in envelope.slots(started.session, started.ada) if slot.label)
        unlocked.remove_slot(started.ada, phone)
        started.session.commit()
        unlocked.add_secret(started.ada, NEW, label="tablet")
        started.session.commit()

    assert opens(started, NEW)


def refusals(started: Started) -> dict[str, Any]:
    """What may not be done to ada's slots."""
    session, ada = started.session, started.ada
    (only,) = envelope.slots(session, ada)
    return {
        "last way": lambda unlocked: unlocked.remove_slot(ada, only),
        "same label": lambda unlocked: unlocked.add_secret(ada, "x"),
        "same secret": lambda unlocked: unlocked.add_secret(ada, SECRET, label="again"),
        "no such label": lambda unlocked: unlocked.set_secret(ada, "x", label="tablet"),
        "no such slot": lambda unlocked: unlocked.remove_slot(ada, uuid.uuid4()),
        "another's": lambda unlocked: unlocked.add_secret(started.ben, "x", label="mine"),
        "empty": lambda unlocked: unlocked.set_secret(ada, ""),
    }


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("last way", EnrollmentError),
        ("same label", AlreadyEnrolledError),
        ("same secret", SecretError),
        ("no such label", KeyNotFoundError),
        ("no such slot", KeyNotFoundError),
        ("another's", LockedError),
        ("empty", SecretError),
    ],
)
def test_what_may_not_be_done_is_refused_and_changes_nothing(
    lite: Started, what: str, error: type[EnvelopeError]
) -> None:
    """Each refusal is an error of ours, and every slot is as before."""
    refused = refusals(lite)[what]
    before = lite.session.execute(select(User.__slot_class__.__table__)).all()
    with unlock(lite.session, lite.ada) as unlocked, pytest.raises(error):
        refused(unlocked)
    lite.session.commit()

    assert before == lite.session.execute(select(User.__slot_class__.__table__)).all()


def test_changing_a_secret_costs_the_same_after_many_epochs_and_slots(
    lite: Started, derivations: list[int]
) -> None:
    """After 50 epochs and with 20 slots, a change of secret is 2 derivations and 4 statements, and touches no
    data."""
    with unlock(lite.session, lite.ada) as unlocked:
        lite.ada.phone = "1234"
        for number in range(18):
            unlocked.add_secret(lite.ada, f"secret {number}", label=str(number))
        for _ in range(50):
            unlocked.add_secret(lite.ada, "short-lived", label="gone")
            (gone,) = (slot for slot in envelope.slots(lite.session, lite.ada) if slot.label == "gone")
            unlocked.remove_slot(lite.ada, gone)
        unlocked.add_secret(lite.ada, PHONE, label="phone")
        lite.session.commit()
    ada = lite.ada
    with unlock(lite.session, ada) as unlocked:
        unlocked.settle()  # as the first write after an epoch does
        lite.session.commit()
    assert len(envelope.slots(lite.session, ada)) == 20
    derivations.clear()
    with statements_sent(lite.engine) as sent:
        envelope.change_secret(lite.session, ada, old=SECRET, new=NEW)
    lite.session.commit()

    assert (len(derivations), len(sent)) == (2, 4)
    assert not [statement for statement in sent if "users " in statement or "notes" in statement]
    assert [opens(lite, one) for one in (SECRET, NEW, PHONE, "secret 7")] == [False, True, True, True]


def test_what_was_done_with_slots_is_told(lite: Started) -> None:
    """Each change of a slot is an event with the owner, the kind of the slot and the actor, and no secret."""
    told: list[AuditEvent] = []
    telling = Envelope(kdf_profile=CHEAP, audit=told.append, actor=lambda: "support:jane")
    with telling.unlock(lite.session, lite.ada, secret=SECRET) as unlocked:
        told.clear()
        unlocked.add_secret(lite.ada, PHONE, label="phone")
        unlocked.acknowledge_slots(lite.ada)
        unlocked.set_secret(lite.ada, NEW, label="phone")
        (phone,) = (slot for slot in telling.slots(lite.session, lite.ada) if slot.label)
        unlocked.remove_slot(lite.ada, phone)
        lite.session.commit()
    telling.change_secret(lite.session, lite.ada, old=SECRET, new=NEW)
    mine = [event for event in told if event.name != "epoch_started"]

    assert [
        event.name for event in mine if event.owner_id == (lite.ada.id,) and event.slot_kind == "secret"
    ] == ["secret_added", "slot_acknowledged", "secret_set", "slot_removed", "secret_changed"]
    assert {"support:jane"} == {event.actor for event in told}
    assert not any(secret in f"{event} {event!r}" for event in told for secret in (SECRET, PHONE, NEW))


async def test_the_asynchronous_envelope_has_the_same_verbs(async_engine: AsyncEngine) -> None:
    """Add, set, remove, acknowledge and list, awaited; the unlocked session itself says what to await."""
    awaited = AsyncEnvelope(envelope)
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(async_engine) as session:
        ada = User(email="ada@example.org", phone="1234")
        async with awaited.enroll(session, ada, secret=SECRET) as unlocked:
            await session.commit()
            await session.refresh(ada)
            with pytest.raises(ConfigurationError, match=r"await AsyncEnvelope\(envelope\)\.add_secret"):
                unlocked.add_secret(ada, PHONE, label="phone")
            await awaited.add_secret(session, ada, secret=PHONE, label="phone")
            await awaited.acknowledge_slots(session, ada)
            await awaited.set_secret(session, ada, new=NEW, label="phone")
            (phone,) = (slot for slot in await awaited.slots(session, ada) if slot.label)
            await awaited.remove_slot(session, ada, phone)
            await session.commit()
            await session.refresh(ada)
        async with awaited.unlock(session, ada, secret=SECRET) as unlocked:
            assert (ada.phone, unlocked.unacknowledged_slots) == ("1234", ())


def test_a_secret_shows_in_no_log_and_no_error(lite: Started, caplog: pytest.LogCaptureFixture) -> None:
    """With every statement logged, neither secret is in a log or in an error."""
    lite.engine.echo = "debug"
    caplog.set_level(logging.DEBUG)
    with unlock(lite.session, lite.ada) as unlocked:
        unlocked.add_secret(lite.ada, PHONE, label="phone")
        with pytest.raises(SecretError) as caught:
            unlocked.set_secret(lite.ada, PHONE + "\n")
        lite.session.rollback()

    assert PHONE not in caplog.text
    assert PHONE not in f"{caught.value!r} {caught.value}"


def test_two_sessions_that_change_one_secret_at_once(lite: Started) -> None:
    """The second of two changes is a conflict: one new secret opens the owner, never neither."""
    with lite.fresh() as first, lite.fresh() as second:
        steps = []
        for session, new in ((first, "first"), (second, "second")):
            ada = session.get_one(User, lite.ada.id)
            steps.append((session, envelope.change_secret_steps(session, ada, SECRET, new)))
        results = []
        for session, change in steps:
            session.commit()
            try:
                envelope.run(change)
                session.commit()
                results.append("changed")
            except EnvelopeError as error:
                session.rollback()
                results.append(error.code)

    assert results == ["changed", "unlock"]
