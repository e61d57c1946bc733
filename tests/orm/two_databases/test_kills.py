"""Killed at any moment between two databases: an owner opens all that it could before, or all it can
after."""

import datetime as dt
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from tests.orm.two_databases.conftest import Two
from tests.orm.two_databases.split_models import (
    NEW,
    SECRET,
    Note,
    Share,
    User,
    UserBefore,
    envelope,
    serving,
    sessions_on,
)
from tests.orm.verbs.kill_points import Flow, Material, fresh_engine, kill_everywhere

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9 on Windows")

PHONE = "of the phone"


def connect(urls: str) -> Session:
    """A session on fresh engines of both databases."""
    first, second = urls.split(" ")
    return sessions_on(fresh_engine(first), fresh_engine(second))()


def email(session: Session) -> str:
    return f"{session.query(User).count()}@example.org"


def enrolled(session: Session) -> tuple[int, Material]:
    """An owner with values under the keys of two epochs, and two secrets."""
    user = User(email=email(session), phone="first epoch")
    serving.enroll(session, user, secret=SECRET, provider="server")
    session.commit()
    with serving.unlock(session, user, secret=SECRET) as unlocked:
        unlocked.add_secret(user, PHONE, label="phone")
        serving.remove_provider(session, user, provider="server")
        session.add(Note(user=user, body="second epoch"))
        session.commit()
        return user.id, {}


def with_one_secret(session: Session) -> tuple[int, Material]:
    """As `enrolled`, without the second secret: a new secret has a salt and a share of its own."""
    key, _ = enrolled(session)
    user = session.get_one(User, key)
    (phone,) = (slot for slot in serving.slots(session, user) if slot.label == "phone")
    with serving.unlock(session, user, secret=SECRET) as unlocked:
        unlocked.remove_slot(user, phone)
        session.commit()
    return key, {}


def opens_with_old(session: Session, key: int, _: Mapping[str, str]) -> None:
    opens_with(session, key, SECRET)


def opens_with(session: Session, key: int, *secrets: str) -> None:
    """Require that an owner opens with each secret, with its values of every epoch."""
    user = session.get_one(User, key)
    for secret in secrets:
        with serving.unlock(session, user, secret=secret):
            bodies = session.scalars(select(Note).filter_by(user_id=key)).all()
            assert (user.phone, [note.body for note in bodies]) == ("first epoch", ["second epoch"])


def opens_with_both(session: Session, key: int, _: Mapping[str, str]) -> None:
    opens_with(session, key, SECRET, PHONE)


def opens_with_new(session: Session, key: int, _: Mapping[str, str]) -> None:
    opens_with(session, key, NEW)


def change(session: Session, key: int, _: Mapping[str, str]) -> None:
    serving.change_secret(session, session.get_one(User, key), old=SECRET, new=NEW)
    session.commit()


def set_new(session: Session, key: int, _: Mapping[str, str]) -> None:
    user = session.get_one(User, key)
    with serving.unlock(session, user, secret=PHONE) as unlocked:
        unlocked.set_secret(user, NEW)
        session.commit()


def added(session: Session) -> tuple[int, Material]:
    """An owner who is not enrolled yet."""
    user = User(email=email(session))
    session.add(user)
    session.commit()
    return user.id, {}


def enroll(session: Session, key: int, _: Mapping[str, str]) -> None:
    user = session.get_one(User, key)
    with serving.enroll(session, user, secret=NEW):
        user.phone = "first epoch"
        session.add(Note(user=user, body="second epoch"))
        session.commit()


def can_be_enrolled(session: Session, key: int, _: Mapping[str, str]) -> None:
    enroll(session, key, {})  # refused if the owner is enrolled


def from_before(session: Session) -> tuple[int, Material]:
    """An owner whose slot has no share."""
    with Session(session.get_bind(User)) as old:
        user = UserBefore(email=email(session), phone="first epoch")
        envelope.enroll(old, user, secret=SECRET)
        old.commit()
        return user.id, {}


def move(session: Session, key: int, _: Mapping[str, str]) -> None:
    with envelope.unlock(session, session.get_one(User, key), secret=SECRET) as unlocked:
        unlocked.settle()
        session.commit()


def opens_moved(session: Session, key: int, _: Mapping[str, str]) -> None:
    user = session.get_one(User, key)
    with envelope.unlock(session, user, secret=SECRET):
        assert user.phone == "first epoch"


def with_code(session: Session) -> tuple[int, Material]:
    """An owner who forgot the secret, and has a recovery code."""
    key, _ = enrolled(session)
    user = session.get_one(User, key)
    with serving.unlock(session, user, secret=SECRET) as unlocked:
        code = unlocked.add_recovery_code(user)
        session.commit()
    return key, {"code": str(code)}


def reset(session: Session, key: int, known: Mapping[str, str]) -> None:
    user = session.get_one(User, key)
    serving.reset_secret(session, user, recovery_code=known["code"], new=NEW)
    session.commit()


def opens_with_code(session: Session, key: int, known: Mapping[str, str]) -> None:
    user = session.get_one(User, key)
    with serving.unlock(session, user, recovery_code=known["code"]):
        assert user.phone == "first epoch"
    opens_with(session, key, SECRET, PHONE)


def with_orphans(session: Session) -> tuple[int, Material]:
    """An owner whose secret was changed, and whose old share was found a day ago."""
    key, _ = enrolled(session)
    set_new(session, key, {})
    serving.sweep_shares(session, User)
    noted = update(Share).where(Share.unused_since.is_not(None))
    session.execute(noted.values(unused_since=dt.datetime(2020, 1, 1, tzinfo=dt.UTC)))
    session.commit()
    return key, {}


def sweep(session: Session, _key: int, _: Mapping[str, str]) -> None:
    assert serving.sweep_shares(session, User).deleted


FLOWS = [
    Flow("change of the only secret", with_one_secret, change, opens_with_old, opens_with_new, connect),
    Flow("a secret set anew", enrolled, set_new, opens_with_both, opens_with_new, connect),
    Flow("a reset with a recovery code", with_code, reset, opens_with_code, opens_with_new, connect),
    Flow("enrolment", added, enroll, can_be_enrolled, opens_with_new, connect),
    Flow("the first share of a slot", from_before, move, opens_moved, opens_moved, connect),
    Flow("sweep", with_orphans, sweep, opens_with_new, opens_with_new, connect),
]


each_flow = pytest.mark.parametrize("flow", FLOWS, ids=[flow.name for flow in FLOWS])


IN_CI = {"change of the only secret", "enrolment"}
"""The flows that are killed in each run of the tests; all of them with `--all`."""


@pytest.mark.parametrize(
    "flow",
    [
        pytest.param(flow, id=flow.name, marks=() if flow.name in IN_CI else pytest.mark.thorough)
        for flow in FLOWS
    ],
)
def test_killed_anywhere_between_two_databases(flow: Flow, lite_two: Two, record_property: Any) -> None:
    """Killed after each statement and each commit of either database, a change is whole or did not happen."""
    record_property("points", kill_between(flow, lite_two))


@pytest.mark.thorough
@each_flow
def test_killed_anywhere_between_postgresql_and_another(flow: Flow, two: Two, record_property: Any) -> None:
    """The same with PostgreSQL as the first database, and as the second."""
    record_property("points", kill_between(flow, two))


def kill_between(flow: Flow, two: Two) -> int:
    urls = [one.url.render_as_string(hide_password=False) for one in (two.first, two.second)]
    two.first.dispose()
    two.second.dispose()

    points = kill_everywhere(flow, " ".join(urls))
    print(f"{flow.name}, {two.first.dialect.name} and {two.second.dialect.name}: {points} points")

    assert points >= 4
    return points
