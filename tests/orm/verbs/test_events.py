"""Audit events: what they hold, which owner they name, when they are sent, and what a function that raises
stops."""

import datetime as dt
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    AuditEvent,
    Envelope,
    KdfProfile,
    LockedError,
    NotEnrolledError,
    ServerKeyring,
    UnlockedSession,
)
from tests.orm.models import SECRET, Base, User

NEW = "other words entirely"
KEY, NEXT_KEY = b"\x05" * 32, b"\x06" * 32
DAY = dt.timedelta(days=1)


class Told:
    """A database with Ada, and the events that an application is told; `full_at` is the event that its
    function does not record."""

    def __init__(self, engine: Engine) -> None:
        Base.metadata.create_all(engine)
        self.engine = engine
        self.events: list[AuditEvent] = []
        self.full_at: str | None = None
        self.envelope = self.envelope_with(KEY)
        with Session(engine) as session:
            ada = User(email="ada")
            with self.envelope.enroll(session, ada, secret=SECRET) as unlocked:
                self.code = unlocked.add_recovery_code(ada)
                self.ticket = unlocked.issue_ticket(ada, lifetime=DAY)
                session.commit()
        self.events.clear()

    def envelope_with(self, *keys: bytes) -> Envelope:
        return Envelope(
            kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring(keys), audit=self.record
        )

    def record(self, event: AuditEvent) -> None:
        if event.name == self.full_at:
            raise OSError("no space left")
        self.events.append(event)

    def named(self, name: str) -> list[AuditEvent]:
        return [event for event in self.events if event.name == name]


@pytest.fixture
def told(sqlite_engine: Engine) -> Told:
    return Told(sqlite_engine)


def test_an_event_has_a_time_and_cannot_be_changed() -> None:
    """The time is in UTC and between those before and after; an event is a key of a dictionary."""
    before = dt.datetime.now(dt.UTC)
    event = AuditEvent("unlocked", "User")
    after = dt.datetime.now(dt.UTC)

    assert before <= event.at <= after
    assert event.at.utcoffset() == dt.timedelta(0)
    assert {event: 1}[event] == 1
    with pytest.raises(FrozenInstanceError):
        event.at = before  # type: ignore[misc]


def test_first_keys_are_an_event(told: Told) -> None:
    """One event for one owner, with its primary key, and one for a list, with the number."""
    with Session(told.engine) as session:
        ben = User(email="ben")
        told.envelope.enroll(session, ben, secret=SECRET)
        told.envelope.enroll(session, [User(email=f"user {one}") for one in range(3)], provider="server")
        session.commit()
        first, others = told.named("enrolled")

        assert (first.owner_class, first.count, first.owner_id) == ("User", 1, (ben.id,))
        assert (others.count, others.owner_id, others.provider) == (3, None, "server")


def test_rows_that_are_sealed_are_an_event(told: Told) -> None:
    """`seal_rows` tells the number that it returns; a rotation, the number of its seals, also where no slot
    of the provider moves. A second run writes nothing, and tells nothing."""
    with Session(told.engine) as session:
        sealed = told.envelope.seal_rows(session, User)
        session.commit()
        moved = told.envelope_with(NEXT_KEY, KEY)
        seals = 0
        for _ in range(2):
            for so_far in moved.rotate_provider(session, User, provider="server"):
                seals = max(seals, so_far.seals)
                session.commit()

    assert [sealed, seals] == [event.count for event in told.named("rows_sealed")]
    assert seals > 0
    assert told.named("provider_rotated") == []


def test_a_log_out_names_the_user(told: Told) -> None:
    """Also where the ticket alone is known; a ticket that is not there is no event."""
    with Session(told.engine) as session:
        assert told.envelope.revoke_ticket(session, User, told.ticket)
        assert not told.envelope.revoke_ticket(session, User, told.ticket)
        session.commit()

    assert [(event.owner_id, event.count) for event in told.named("ticket_revoked")] == [((1,), 1)]


def test_new_keys_name_the_owner(told: Told) -> None:
    """The events of a rotation: the epoch, and the tickets that it ends."""
    with Session(told.engine) as session:
        ada = session.get_one(User, 1)
        with told.envelope.unlock(session, ada, secret=SECRET) as unlocked:
            unlocked.rotate(ada, root=True)
            session.commit()

    assert {"epoch_started", "ticket_revoked", "rotated"} <= {event.name for event in told.events}
    assert {(1,)} == {event.owner_id for event in told.events}


def test_events_are_sent_before_the_transaction_ends_but_for_an_erasure(told: Told) -> None:
    """A change is told at once, also if it is rolled back then; an erasure when it is committed."""
    with Session(told.engine) as session:
        ada = session.get_one(User, 1)
        told.envelope.change_secret(session, ada, old=SECRET, new=NEW)
        session.rollback()
        (changed,) = told.named("secret_changed")
        told.envelope.shred(session, ada, reason="a test")
        session.rollback()
        before = told.named("shredded")
        told.envelope.shred(session, ada, reason="a test")
        session.commit()
        (shredded,) = told.named("shredded")

    assert before == []
    assert not changed.survives_rollback
    assert shredded.survives_rollback


def _enroll(told: Told, session: Session) -> None:
    told.envelope.enroll(session, User(email="ben"), secret=SECRET)


def _seal(told: Told, session: Session) -> None:
    told.envelope.seal_rows(session, User)


def _reset(told: Told, session: Session) -> None:
    told.envelope.reset_secret(session, session.get_one(User, 1), recovery_code=told.code, new=NEW)


def _rotate(told: Told, session: Session) -> None:
    for _ in told.envelope_with(NEXT_KEY, KEY).rotate_seals(session, User):
        pass


@pytest.mark.parametrize(
    ("event", "work"),
    [("enrolled", _enroll), ("rows_sealed", _seal), ("slot_added", _reset), ("rows_sealed", _rotate)],
)
def test_what_cannot_be_recorded_is_not_done(
    told: Told, event: str, work: Callable[[Told, Session], None]
) -> None:
    """The verb raises what the function raised; after the rollback all is as before."""
    told.full_at = event
    with Session(told.engine) as session:
        with pytest.raises(OSError, match="no space"):
            work(told, session)
        session.rollback()
    told.full_at = None

    with Session(told.engine) as session:
        ada = session.get_one(User, 1)
        assert session.query(User).count() == 1
        with told.envelope.unlock(session, ada, secret=SECRET) as unlocked:
            assert unlocked.is_open
        with told.envelope.unlock(session, ada, recovery_code=str(told.code)) as unlocked:
            assert unlocked.is_open


@pytest.mark.parametrize(
    ("way", "event"), [("ticket", "ticket_used"), ("recovery_code", "recovery_code_used")]
)
def test_an_unlock_that_cannot_be_recorded_stays_locked(
    told: Told, way: str, event: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By ticket and with a code: the keys that were opened are locked before the error is raised."""
    locked: list[UnlockedSession] = []
    lock = UnlockedSession.lock

    def noted(unlocked: UnlockedSession) -> None:
        lock(unlocked)
        locked.append(unlocked)

    monkeypatch.setattr(UnlockedSession, "lock", noted)
    told.full_at = event
    given: dict[str, Any] = {way: told.ticket if way == "ticket" else str(told.code)}
    with Session(told.engine) as session, pytest.raises(OSError, match="no space"):
        told.envelope.unlock(session, session.get_one(User, 1), **given)

    assert [unlocked.is_open for unlocked in locked] == [False]


def test_an_erasure_that_cannot_be_recorded_is_done(told: Told) -> None:
    """It is told after the commit: the error leaves the commit, and the keys are gone."""
    told.full_at = "shredded"
    with Session(told.engine) as session:
        told.envelope.shred(session, session.get_one(User, 1), reason="a test", keep_row=True)
        with pytest.raises(OSError, match="no space"):
            session.commit()
    with Session(told.engine) as session, pytest.raises((NotEnrolledError, LockedError)):
        told.envelope.unlock(session, session.get_one(User, 1), secret=SECRET)
