"""Recovery codes in a process that is killed: see `tests.orm.verbs.kill_points`."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from tests.orm.models import SECRET, Note, User, envelope
from tests.orm.verbs.kill_points import Flow, Material

NEW = "another secret altogether"


def enrolled(session: Session) -> tuple[int, Material]:
    """An owner with values under the keys of two epochs, and two recovery codes."""
    number = session.query(User).count()
    user = User(email=f"{number}@example.org", phone="first epoch")
    with envelope.enroll(session, user, secret=SECRET) as unlocked:
        code = unlocked.add_recovery_code(user, label="in the safe")
        unlocked.add_recovery_code(user, label="lost")
        session.commit()
        (lost,) = (slot for slot in envelope.slots(session, user) if slot.label == "lost")
        unlocked.remove_slot(user, lost)
        other = unlocked.add_recovery_code(user, label="with the notary")
        session.add(Note(user=user, body="second epoch"))
        session.commit()
        return user.id, {"secret": SECRET, "code": str(code), "other": str(other)}


def opens_with(session: Session, key: int, **way: Any) -> None:
    user = session.get_one(User, key)
    with envelope.unlock(session, user, **way):
        assert user.phone == "first epoch"
        assert [note.body for note in session.scalars(select(Note).filter_by(user_id=key))] == [
            "second epoch"
        ]


def opens_as_before(session: Session, key: int, known: Mapping[str, str]) -> None:
    for way in ({"secret": known["secret"]}, {"recovery_code": known["code"]}):
        opens_with(session, key, **way)
    opens_with(session, key, recovery_code=known["other"])


def opens_with_new(session: Session, key: int, known: Mapping[str, str]) -> None:
    """The new code died with the process: the other code stays, beside the new secret."""
    opens_with(session, key, secret=NEW)
    opens_with(session, key, recovery_code=known["other"])


def reset(session: Session, key: int, known: Mapping[str, str]) -> None:
    envelope.reset_secret(session, session.get_one(User, key), recovery_code=known["code"], new=NEW)
    session.commit()


def set_with_code(session: Session, key: int, known: Mapping[str, str]) -> None:
    user = session.get_one(User, key)
    with envelope.unlock(session, user, recovery_code=known["code"]) as unlocked:
        unlocked.set_secret(user, NEW)
        session.commit()


def add(session: Session, key: int, known: Mapping[str, str]) -> None:
    user = session.get_one(User, key)
    with envelope.unlock(session, user, recovery_code=known["code"]) as unlocked:
        unlocked.add_recovery_code(user)
        session.commit()


RECOVERY_FLOWS = [
    Flow("a secret reset with a recovery code", enrolled, reset, opens_as_before, opens_with_new),
    Flow("a secret set after a recovery code", enrolled, set_with_code, opens_as_before, opens_with_new),
    Flow("a recovery code added", enrolled, add, opens_as_before, opens_as_before),
]
