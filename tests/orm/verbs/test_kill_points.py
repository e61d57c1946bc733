"""Killed at any moment: an owner opens all that it could before, or all that it can after."""

import sys
from collections.abc import Mapping
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from sqlalchemy_envelope import Envelope, KdfProfile, ServerKeyring
from tests.orm.models import SECRET, Base, Note, User, envelope
from tests.orm.verbs import emergency_flows, escrow_flows
from tests.orm.verbs.kill_points import Flow, Material, kill_everywhere
from tests.orm.verbs.recovering.flows import RECOVERY_FLOWS
from tests.orm.verbs.rotating import kill_flows as rotating
from tests.orm.verbs.shredding import killed
from tests.orm.verbs.tickets import kill_flows as tickets
from tests.prepared import tables_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9 on Windows")

NEW = "another secret altogether"
PEPPER, NEW_PEPPER = b"\x0a" * 32, b"\x0b" * 32


def enrolled(session: Session) -> tuple[int, Material]:
    """An owner with values under the keys of two epochs, and a second secret."""
    number = session.query(User).count()
    user = User(email=f"{number}@example.org", phone="first epoch")
    with envelope.enroll(session, user, secret=SECRET) as unlocked:
        session.commit()
        unlocked.add_secret(user, "to be removed", label="old phone")
        session.commit()
        (slot,) = (slot for slot in envelope.slots(session, user) if slot.label)
        unlocked.remove_slot(user, slot)
        unlocked.add_secret(user, "of the phone", label="phone")
        session.add(Note(user=user, body="second epoch"))
        session.commit()
        return user.id, {"secret": SECRET, "phone": "of the phone"}


def opens_with(session: Session, key: int, by: Envelope = envelope, **ways: Any) -> None:
    """Require that an owner opens in this way, with its values of every epoch."""
    user = session.get_one(User, key)
    with by.unlock(session, user, **ways):
        assert user.phone == "first epoch"
        assert [note.body for note in session.scalars(select(Note).filter_by(user_id=key))] == [
            "second epoch"
        ]


def opens_as_before(session: Session, key: int, known: Mapping[str, str]) -> None:
    opens_with(session, key, secret=known["secret"])
    opens_with(session, key, secret=known["phone"])


def opens_with_new(session: Session, key: int, known: Mapping[str, str]) -> None:
    opens_with(session, key, secret=NEW)


def change(session: Session, key: int, known: Mapping[str, str]) -> None:
    user = session.get_one(User, key)
    envelope.change_secret(session, user, old=known["secret"], new=NEW)
    session.commit()


def set_new(session: Session, key: int, known: Mapping[str, str]) -> None:
    user = session.get_one(User, key)
    with envelope.unlock(session, user, secret=known["phone"]) as unlocked:
        unlocked.set_secret(user, NEW)
        session.commit()


def add(session: Session, key: int, known: Mapping[str, str]) -> None:
    user = session.get_one(User, key)
    with envelope.unlock(session, user, secret=known["phone"]) as unlocked:
        unlocked.add_secret(user, NEW, label="tablet")
        session.commit()


def remove(session: Session, key: int, known: Mapping[str, str]) -> None:
    user = session.get_one(User, key)
    with envelope.unlock(session, user, secret=known["secret"]) as unlocked:
        (slot,) = (slot for slot in envelope.slots(session, user) if slot.label == "phone")
        unlocked.remove_slot(user, slot)
        session.commit()


def under_pepper(*peppers: bytes) -> Envelope:
    return Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), pepper=ServerKeyring(list(peppers)))


def enrolled_under_a_pepper(session: Session) -> tuple[int, Material]:
    key, known = enrolled(session)
    for _ in under_pepper(PEPPER).rotate_pepper(session, User):
        session.commit()
    return key, known


def rotate_the_pepper(session: Session, key: int, known: Mapping[str, str]) -> None:
    for _ in under_pepper(NEW_PEPPER, PEPPER).rotate_pepper(session, User, batch=2):
        session.commit()


def opens_under_either_pepper(session: Session, key: int, known: Mapping[str, str]) -> None:
    opens_with(session, key, under_pepper(NEW_PEPPER, PEPPER), secret=known["secret"])
    opens_with(session, key, under_pepper(NEW_PEPPER, PEPPER), secret=known["phone"])


def opens_under_the_new_pepper(session: Session, key: int, known: Mapping[str, str]) -> None:
    opens_with(session, key, under_pepper(NEW_PEPPER), secret=known["secret"])
    opens_with(session, key, under_pepper(NEW_PEPPER), secret=known["phone"])


def opens_with_secret(session: Session, key: int, known: Mapping[str, str]) -> None:
    opens_with(session, key, secret=known["secret"])


def rotate(session: Session, key: int, known: Mapping[str, str]) -> None:
    user = session.get_one(User, key)
    with envelope.unlock(session, user, secret=known["secret"]) as unlocked:
        unlocked.rotate(user, root=True)
        session.commit()


FLOWS = [
    Flow("a root key rotated", enrolled, rotate, opens_as_before, opens_as_before),
    Flow("change of a secret", enrolled, change, opens_as_before, opens_with_new),
    Flow("a secret set anew", enrolled, set_new, opens_as_before, opens_with_new),
    Flow("a secret added", enrolled, add, opens_as_before, opens_with_new),
    Flow("a slot removed", enrolled, remove, opens_as_before, opens_with_secret),
    *RECOVERY_FLOWS,
    Flow(
        "a pepper rotated",
        enrolled_under_a_pepper,
        rotate_the_pepper,
        opens_under_either_pepper,
        opens_under_the_new_pepper,
    ),
    *escrow_flows.FLOWS,
    *emergency_flows.FLOWS,
    Flow("a shredding", enrolled, killed.shred, opens_as_before, killed.is_shredded),
    *tickets.FLOWS,
    *rotating.FLOWS,
]


IN_CI = {
    "change of a secret",
    "a secret set anew",
    "a secret reset with a recovery code",
    "a ticket issued",
}
"""The flows that are killed in each run of the tests; all of them with `--all`."""


@pytest.mark.any_database
@pytest.mark.parametrize(
    "flow",
    [
        pytest.param(flow, id=flow.name, marks=() if flow.name in IN_CI else pytest.mark.thorough)
        for flow in FLOWS
    ],
)
def test_killed_anywhere_an_owner_opens_as_before_or_as_after(
    flow: Flow, engine: Engine, record_property: Any
) -> None:
    """Killed after each statement and each commit, in turn, a change is whole or did not happen."""
    tables_of(Base.metadata, engine)
    url = engine.url.render_as_string(hide_password=False)
    engine.dispose()

    points = kill_everywhere(flow, url)
    record_property("points", points)
    print(f"{flow.name}, {engine.dialect.name}: {points} points")

    assert points >= 4
