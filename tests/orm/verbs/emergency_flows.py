"""The flows of emergency access, to be killed after any statement."""

import datetime as dt
from collections.abc import Mapping

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import (
    EmergencyAccess,
    EmergencyError,
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyOwner,
    ServerKeyring,
)
from tests.orm.verbs.kill_points import Flow, Material

SECRET = "correct horse battery staple"
envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([b"\x51" * 32]))


class Base(DeclarativeBase):
    pass


class Friend(KeyOwner, Base):
    __tablename__ = "friends"

    id: Mapped[int] = mapped_column(primary_key=True)
    diary: Mapped[str | None] = mapped_column(EncryptedType(String))


class FriendHelper(EmergencyAccess, Base, of="owner_id", to="person_id"):
    __tablename__ = "friend_helpers"

    owner_id: Mapped[int] = mapped_column(ForeignKey("friends.id", ondelete="CASCADE"), primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("friends.id", ondelete="CASCADE"), primary_key=True)


def enrolled(session: Session) -> tuple[int, Material]:
    """An owner, and a friend."""
    Base.metadata.create_all(session.connection())
    both = [Friend(diary="mine") for _ in range(2)]
    envelope.enroll(session, both, secret=dict.fromkeys(both, SECRET))
    session.commit()
    return both[0].id, {"person": str(both[1].id)}


def requested(session: Session) -> tuple[int, Material]:
    """The same; the friend is allowed to help, and has asked."""
    key, known = enrolled(session)
    allow(session, key, known)
    ask(session, key, known)
    return key, known


def both_of(session: Session, key: int, known: Mapping[str, str]) -> tuple[Friend, Friend]:
    return session.get_one(Friend, key), session.get_one(Friend, int(known["person"]))


def allow(session: Session, key: int, known: Mapping[str, str]) -> None:
    owner, person = both_of(session, key, known)
    with envelope.unlock(session, owner, secret=SECRET) as unlocked:
        unlocked.allow_emergency(owner, person, wait=dt.timedelta(seconds=1))
        session.commit()


def ask(session: Session, key: int, known: Mapping[str, str]) -> None:
    owner, person = both_of(session, key, known)
    with envelope.unlock(session, person, secret=SECRET) as unlocked:
        unlocked.request_emergency(owner, person)
        session.commit()


def refuse(session: Session, key: int, known: Mapping[str, str]) -> None:
    owner, person = both_of(session, key, known)
    with envelope.unlock(session, owner, secret=SECRET) as unlocked:
        unlocked.refuse_emergency(owner, person)
        session.commit()


def opens_alone(session: Session, key: int, known: Mapping[str, str]) -> None:
    """The owner opens, and the friend is not allowed to help."""
    opens(session, key)
    try:
        ask(session, key, known)
    except EmergencyError:
        return
    raise AssertionError("The friend is allowed to help.")


def opens_allowed(session: Session, key: int, known: Mapping[str, str]) -> None:
    """The owner opens, and the friend may ask."""
    opens(session, key)
    ask(session, key, known)


def opens(session: Session, key: int) -> None:
    owner = session.get_one(Friend, key)
    with envelope.unlock(session, owner, secret=SECRET):
        assert owner.diary == "mine"


FLOWS = [
    Flow("emergency access allowed", enrolled, allow, opens_alone, opens_allowed),
    Flow("emergency access refused", requested, refuse, opens_allowed, opens_alone),
]
