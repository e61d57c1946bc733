"""What an earlier transaction left undone is done by whoever holds the key next, and settles or writes."""

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from sqlalchemy_envelope.orm.sharing.invariants import violations
from tests.orm.interleavings import OWNERS
from tests.orm.sharing_models import (
    Base,
    Membership,
    Post,
    ProfileShare,
    User,
    add_user,
    envelope,
    found_group,
    is_readable,
    read,
    unlock,
    write,
)
from tests.prepared import prepared

ADA, BOB, CLEO = 1, 2, 3
GRANTS, KEYS = Base.metadata.tables["memberships_keygrant"], Base.metadata.tables["groups_key"]


@pytest.fixture
def scene(sqlite_engine: Engine) -> Engine:
    """Three users in a group, of whom one has left it: it has two epochs."""

    def make() -> None:
        Base.metadata.create_all(sqlite_engine)
        with Session(sqlite_engine) as session:
            for name in ("ada", "bob", "cleo"):
                add_user(session, name)
            group = found_group(session, "ada", "bob", "cleo")
            with unlock(session, "ada"):
                session.add(ProfileShare(user_id=ADA, group_id=group))
                session.commit()
        for name in ("ada", "bob", "cleo"):
            read(sqlite_engine, name)
        with Session(sqlite_engine) as session, unlock(session, "ada"):
            session.delete(session.get_one(Membership, (group, CLEO)))
            session.commit()
        read(sqlite_engine, "ada")

    prepared(sqlite_engine, "repair", make)
    return sqlite_engine


def broken(engine: Engine) -> list[str]:
    """The rules that do not hold."""
    with Session(engine) as session:
        return violations(session, OWNERS)


@pytest.mark.parametrize("by", ["settling", "leaving", "joining"])
def test_a_member_who_was_left_out_of_an_epoch(scene: Engine, by: str) -> None:
    """As older releases left them: there is a row, a grant of the epoch before, and none of this one. Who
    settles next puts them in, and the next epoch has them too."""
    newest = select(KEYS.c.key_id).where(KEYS.c.purpose == "root", KEYS.c.state == "active")
    with scene.begin() as connection:
        connection.execute(GRANTS.delete().where(GRANTS.c.row_user_id == BOB, GRANTS.c.key_id.in_(newest)))
        connection.execute(sa.update(KEYS).where(KEYS.c.key_id.in_(newest)).values(granted=1))
    before = broken(scene)
    if by == "settling":
        read(scene, "ada")
    else:
        with Session(scene) as session:
            envelope.attach(session)  # nobody is unlocked
            if by == "leaving":
                session.add(Membership(group_id=1, user_id=CLEO))
                session.flush()
                session.delete(session.get_one(Membership, (1, CLEO)))
            else:
                session.add(Membership(group_id=1, user_id=CLEO))
            session.commit()
    write(scene, "ada", 1, "for all")

    assert before == ["(a) the root key 2 of Group 1 is not granted through row (1, 2) of memberships"]
    assert read(scene, "bob") == ["the first post", "for all"]
    read(scene, "ada")  # what she shares with the group follows
    assert broken(scene) == []


def test_a_share_that_is_fulfilled_late(scene: Engine) -> None:
    """A scope has an older generation when somebody who does not hold it shares it: its owner's next settling
    grants that one too, and the group reads what is under it."""
    with Session(scene) as session:
        add_user(session, "dan")
        other = found_group(session, "dan")
        envelope.attach(session)
        session.add(ProfileShare(user_id=ADA, group_id=other))
        session.commit()
    waits = broken(scene)
    read(scene, "ada")
    with Session(scene) as session, unlock(session, "dan"):
        is_read = is_readable(session.get_one(User, ADA), "display_name")

    assert [one for one in waits if one.startswith("(b)")]
    assert is_read
    assert broken(scene) == []


def test_a_row_that_no_flush_added(scene: Engine) -> None:
    """It grants nothing, now or later, breaks no rule, and makes nobody wait for a lock."""
    with scene.begin() as connection:
        connection.execute(sa.text("INSERT INTO memberships (group_id, user_id) VALUES (1, 3)"))
    read(scene, "ada")
    with Session(scene) as session:
        write(scene, "ada", 1, "not for all")
        session.scalars(select(Post.id)).all()

    assert read(scene, "cleo") == []
    assert broken(scene) == []
