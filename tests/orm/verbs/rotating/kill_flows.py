"""Rotations in a process that is killed after any statement or commit."""

import datetime as dt
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from sqlalchemy_envelope import Envelope, KdfProfile, ServerKeyring
from tests.orm.models import SECRET, Base, Note, User
from tests.orm.verbs.kill_points import Flow, Material

OLD, NEW = b"o" * 32, b"n" * 32


def application(*keys: bytes) -> Envelope:
    """The application, with these server keys."""
    return Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring(keys))


def held(session: Session) -> tuple[int, Material]:
    """An owner with a secret and a slot of the server, with values under the keys of two epochs."""
    envelope, number = application(OLD), session.query(User).count()
    user = User(email=f"{number}@example.org", phone="first epoch")
    with envelope.enroll(session, user, secret=SECRET, provider="server") as unlocked:
        session.commit()
        unlocked.rotate(user)
        session.add(Note(user=user, body="second epoch"))
        session.commit()
        return user.id, {}


def idle(session: Session) -> tuple[int, Material]:
    """The same owner, with a key that nothing needs since long ago."""
    key, _ = held(session)
    user = session.get_one(User, key)
    with application(OLD).unlock(session, user, secret=SECRET) as unlocked:
        (retired,) = unlocked.rotate(user).retired
        (note,) = session.scalars(select(Note).filter_by(user_id=key))
        note.body = "to be replaced"
        session.flush()
        note.body = "second epoch"
        keys = User.__key_class__.__table__
        long_ago = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
        session.execute(update(keys).where(keys.c.retired_at.is_not(None)).values(retired_at=long_ago))
        session.commit()
    return key, {"retired": str(retired)}


def _opens(session: Session, key: int, *server_keys: bytes) -> None:
    envelope, user = application(*server_keys), session.get_one(User, key)
    ways: list[dict[str, Any]] = [{"secret": SECRET}, {"provider": "server", "reason": "test"}]
    for way in ways:
        with envelope.unlock(session, user, **way):
            assert user.phone == "first epoch"
            notes = session.scalars(select(Note).filter_by(user_id=key))
            assert [note.body for note in notes] == ["second epoch"]


def opens_with_both(session: Session, key: int, known: Mapping[str, str]) -> None:
    _opens(session, key, NEW, OLD)


def opens_with_new(session: Session, key: int, known: Mapping[str, str]) -> None:
    _opens(session, key, NEW)


def opens_with_old(session: Session, key: int, known: Mapping[str, str]) -> None:
    _opens(session, key, OLD)


def rotate_provider(session: Session, key: int, known: Mapping[str, str]) -> None:
    for _ in application(NEW, OLD).rotate_provider(session, User):
        session.commit()


def destroy(session: Session, key: int, known: Mapping[str, str]) -> None:
    application(OLD).destroy_key(session, Base, known["retired"], horizon=dt.timedelta(days=30))
    session.commit()


FLOWS = [
    Flow("a server key rotated", held, rotate_provider, opens_with_both, opens_with_new),
    Flow("a key destroyed", idle, destroy, opens_with_old, opens_with_old),
]
