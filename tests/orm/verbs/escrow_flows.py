"""The flows of escrow, to be killed after any statement."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from sqlalchemy_envelope import Envelope, KdfProfile, OpenedEscrowKey
from tests.orm.models import SECRET, Note, User
from tests.orm.verbs.kill_points import Flow, Material

NEW = "given after the rescue"
KEY = b"\x2a" * 32
pinned = OpenedEscrowKey(KEY).public
envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), escrow=pinned)


def enrolled(session: Session) -> tuple[int, Material]:
    """An owner with values under the keys of two epochs, the second of which is not in escrow."""
    number = session.query(User).count()
    user = User(email=f"{number}@example.org", phone="first epoch")
    with envelope.enroll(session, user, secret=SECRET) as unlocked:
        session.commit()
        unlocked.add_secret(user, "to be removed", label="old phone")
        session.commit()
        (slot,) = (slot for slot in envelope.slots(session, user) if slot.label)
        unlocked.remove_slot(user, slot)
        session.add(Note(user=user, body="second epoch"))
        session.commit()
        return user.id, {"secret": SECRET}


def in_escrow(session: Session) -> tuple[int, Material]:
    """The same in escrow."""
    key, known = enrolled(session)
    add(session, key, known)
    return key, known


def opens_with(session: Session, key: int, **ways: Any) -> None:
    """Require that an owner opens in this way, with its values of every epoch."""
    user = session.get_one(User, key)
    with envelope.unlock(session, user, **ways):
        assert user.phone == "first epoch"
        (note,) = session.scalars(select(Note).filter_by(user_id=key))
        assert note.body == "second epoch"


def opens_with_secret(session: Session, key: int, known: Mapping[str, str]) -> None:
    opens_with(session, key, secret=known["secret"])


def opens_in_escrow(session: Session, key: int, known: Mapping[str, str]) -> None:
    opens_with(session, key, secret=known["secret"])
    session.expunge_all()
    opens_with(session, key, escrow_key=OpenedEscrowKey(KEY), reason="test")


def opens_rescued(session: Session, key: int, known: Mapping[str, str]) -> None:
    opens_with(session, key, secret=NEW)
    session.expunge_all()
    opens_with(session, key, escrow_key=OpenedEscrowKey(KEY), reason="test")


def add(session: Session, key: int, known: Mapping[str, str]) -> None:
    user = session.get_one(User, key)
    with envelope.unlock(session, user, secret=known["secret"]) as unlocked:
        unlocked.add_escrow(user)
        session.commit()


def rescue(session: Session, key: int, known: Mapping[str, str]) -> None:
    user = session.get_one(User, key)
    with envelope.unlock(session, user, escrow_key=OpenedEscrowKey(KEY), reason="test") as unlocked:
        unlocked.set_secret(user, NEW)
        session.commit()


FLOWS = [
    Flow("escrow added", enrolled, add, opens_with_secret, opens_in_escrow),
    Flow("rescue by custodians", in_escrow, rescue, opens_in_escrow, opens_rescued),
]
