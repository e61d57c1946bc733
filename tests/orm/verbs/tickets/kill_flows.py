"""Flows of tickets, to be killed at any moment."""

import datetime as dt
from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqlalchemy_envelope import Envelope, KdfProfile, ServerKeyring, TicketError
from tests.orm.models import SECRET, Base, User
from tests.orm.verbs.kill_points import Flow, Material

envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([b"k" * 32]))
TICKETS: sa.Table = Base.metadata.tables["users_keyticket"]
NEW = "another secret altogether"
DAY, HOUR = dt.timedelta(days=1), dt.timedelta(hours=1)


def logged_in(session: Session) -> tuple[int, Material]:
    """A user with a ticket that was used half an hour ago, and one that has ended."""
    number = session.query(User).count()
    user = User(email=f"{number}@example.org", phone="the phone")
    with envelope.enroll(session, user, secret=SECRET) as unlocked:
        ended = unlocked.issue_ticket(user, lifetime=DAY, idle=HOUR)
        ticket = unlocked.issue_ticket(user, lifetime=DAY, idle=HOUR)
        now = dt.datetime.now(dt.UTC).replace(microsecond=0)
        for one, ago in ((ended, 2 * HOUR), (ticket, HOUR / 2)):
            used = TICKETS.update().where(TICKETS.c.ticket_id == one.ticket_id).values(used_at=now - ago)
            session.execute(used)
        session.commit()
    return user.id, {"secret": SECRET, "ticket": str(ticket)}


def opens(session: Session, key: int, **ways: str) -> None:
    user = session.get_one(User, key)
    with envelope.unlock(session, user, **ways):
        assert user.phone == "the phone"


def opens_as_before(session: Session, key: int, known: Mapping[str, str]) -> None:
    opens(session, key, secret=known["secret"])
    opens(session, key, ticket=known["ticket"])


def issue(session: Session, key: int, known: Mapping[str, str]) -> None:
    user = session.get_one(User, key)
    with envelope.unlock(session, user, secret=known["secret"]) as unlocked:
        unlocked.issue_ticket(user, lifetime=DAY, label="new")
        session.commit()


def has_both(session: Session, key: int, known: Mapping[str, str]) -> None:
    opens_as_before(session, key, known)
    assert {None, "new"} == {one.label for one in envelope.tickets(session, session.get_one(User, key))}


def use(session: Session, key: int, known: Mapping[str, str]) -> None:
    opens(session, key, ticket=known["ticket"])


def revoke(session: Session, key: int, known: Mapping[str, str]) -> None:
    envelope.revoke_ticket(session, session.get_one(User, key), known["ticket"])
    session.commit()


def logged_out(session: Session, key: int, known: Mapping[str, str]) -> None:
    opens(session, key, secret=known["secret"])
    _require_refused(session, key, known["ticket"])


def change(session: Session, key: int, known: Mapping[str, str]) -> None:
    envelope.change_secret(session, session.get_one(User, key), old=known["secret"], new=NEW)
    session.commit()


def changed(session: Session, key: int, known: Mapping[str, str]) -> None:
    opens(session, key, secret=NEW)
    _require_refused(session, key, known["ticket"])


def _require_refused(session: Session, key: int, ticket: str) -> None:
    try:
        opens(session, key, ticket=ticket)
    except TicketError:
        return
    raise AssertionError("the ticket opens")


FLOWS = [
    Flow("a ticket issued", logged_in, issue, opens_as_before, has_both),
    Flow("a ticket used", logged_in, use, opens_as_before, opens_as_before),
    Flow("a ticket revoked", logged_in, revoke, opens_as_before, logged_out),
    Flow("a secret changed while logged in", logged_in, change, opens_as_before, changed),
]
