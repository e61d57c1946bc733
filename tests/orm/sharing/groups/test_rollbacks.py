"""What is rolled back, to the start or to a savepoint, leaves neither keys nor grants."""

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, insert
from sqlalchemy.orm import Session

from sqlalchemy_envelope import LockedError, NotEnrolledError
from tests.orm.sharing.groups.steps import id_of, leave_group
from tests.orm.sharing_models import (
    Base,
    Group,
    Membership,
    Post,
    User,
    count,
    envelope,
    epochs,
    found_group,
    read,
    read_here,
    unlock,
)

pytestmark = pytest.mark.both_lines
FIRST = "the first post"
MEMBERSHIP_GRANTS = Base.metadata.tables["memberships_keygrant"]


def test_a_rolled_back_enrolment_leaves_nothing(shared: Engine) -> None:
    """Neither rows nor keys: what is written for that owner then is refused, and the next group works."""
    with Session(shared) as session, unlock(session, "founder") as unlocked:
        session.commit()
        group = Group(id=77, name="never")
        envelope.enroll(session, group)
        session.add(Membership(group=group, user_id=id_of(session, "founder")))
        session.flush()
        known = set(unlocked.keyring)
        session.rollback()

        assert len(known) == 2
        assert len(list(unlocked.keyring)) == 1
        assert count(shared, Base.metadata.tables["groups_key"]) == count(shared, MEMBERSHIP_GRANTS) == 0
        session.execute(insert(Group.__table__), [{"id": 77}])
        session.add(Post(group_id=77, text="for a group without keys"))
        with pytest.raises((LockedError, NotEnrolledError)):
            session.flush()
        session.rollback()
    with Session(shared) as session:
        found_group(session, "founder")
    assert read(shared, "founder") == [FIRST]


@pytest.mark.parametrize("savepoint", [False, True], ids=["transaction", "savepoint"])
@pytest.mark.parametrize("change", ["joining", "leaving", "moving"])
def test_a_rolled_back_change_leaves_nothing(shared: Engine, change: str, savepoint: bool) -> None:
    """Joining, leaving or moving that is rolled back starts no epoch, and what is written afterwards, in the
    same unlocked session, is read by the same people as before."""
    with Session(shared) as session:
        group_id = found_group(session, "founder", "member")
    read(shared, "member")
    with Session(shared) as session, unlock(session, "founder"):
        session.commit()
        members = {name: id_of(session, name) for name in ("member", "newcomer")}
        transaction: Any = session.begin_nested() if savepoint else session
        if change == "joining":
            session.add(Membership(group_id=group_id, user_id=members["newcomer"]))
        else:
            membership = session.get_one(Membership, (group_id, members["member"]))
            if change == "leaving":
                session.delete(membership)
            else:
                membership.user_id = members["newcomer"]
        session.flush()
        session.add(Post(group_id=group_id, text="never"))
        session.flush()
        transaction.rollback()
        session.add(Post(group_id=group_id, text="afterwards"))
        session.commit()

        assert read_here(session) == [FIRST, "afterwards"]
    assert read(shared, "member") == read(shared, "founder") == [FIRST, "afterwards"]
    assert read(shared, "newcomer") == []
    assert epochs(shared, Group, group_id) == 1


@pytest.mark.parametrize("ending", ["commit", "savepoint", "rollback"])
def test_a_group_in_place_of_one_that_was_deleted(shared: Engine, ending: str) -> None:
    """It has the same primary key, in one transaction: members of the new one read it, those of the old one
    nothing, and whoever made it goes on with it. Rolled back, the old one is there as it was."""
    with Session(shared) as session:
        group_id = found_group(session, "founder", "member")
    with Session(shared) as session, unlock(session, "founder"):
        read_here(session)
        nested = session.begin_nested() if ending == "savepoint" else None
        session.delete(session.get_one(Group, group_id))
        session.flush()
        envelope.enroll(session, Group(id=group_id, name="the new one"))
        session.add_all(
            Membership(group_id=group_id, user_id=id_of(session, name)) for name in ("founder", "newcomer")
        )
        session.add(Post(group_id=group_id, text="new"))
        session.flush()
        if nested is not None:
            nested.rollback()
        elif ending == "rollback":
            session.rollback()
        session.commit()
        session.add(Post(group_id=group_id, text="more"))
        session.commit()
        seen = read_here(session)

    texts = ["new" if ending == "commit" else FIRST, "more"]
    assert seen == texts == read(shared, "founder")
    assert read(shared, "newcomer") == (texts if ending == "commit" else [])
    assert read(shared, "member") == ([] if ending == "commit" else texts)


def test_two_rotations_rolled_back_together(shared: Engine) -> None:
    """Each rolled-back epoch gives way to the one before it, and the first to what is stored."""
    with Session(shared) as session:
        group_id = found_group(session, "founder", "member", "newcomer")
    with Session(shared) as session, unlock(session, "founder"):
        session.commit()
        with session.begin_nested() as savepoint:
            for name in ("member", "newcomer"):
                session.delete(session.get_one(Membership, (group_id, id_of(session, name))))
                session.flush()
            savepoint.rollback()
        session.add(Post(group_id=group_id, text="all are here"))
        session.commit()

    assert read(shared, "member") == read(shared, "newcomer") == [FIRST, "all are here"]


def test_an_epoch_of_a_savepoint_that_is_kept(shared: Engine) -> None:
    """A released savepoint keeps its epoch when a later one is rolled back."""
    with Session(shared) as session:
        group_id = found_group(session, "founder", "member", "newcomer")
    with Session(shared) as session, unlock(session, "founder"):
        session.commit()
        with session.begin_nested():
            session.delete(session.get_one(Membership, (group_id, id_of(session, "member"))))
        with session.begin_nested() as savepoint:
            session.delete(session.get_one(Membership, (group_id, id_of(session, "newcomer"))))
            session.flush()
            savepoint.rollback()
        session.add(Post(group_id=group_id, text="new"))
        session.commit()

    assert epochs(shared, Group, group_id) == 2
    assert read(shared, "newcomer") == [FIRST, "new"]
    assert read(shared, "member") == []


def test_a_failed_flush_leaves_objects_usable(shared: Engine) -> None:
    """A flush that the database refuses rolls back; the objects and the unlocked session serve on."""
    with Session(shared) as session:
        group_id = found_group(session, "founder", "member")
    with Session(shared) as session, unlock(session, "founder"):
        session.commit()
        membership = Membership(group_id=group_id, user_id=id_of(session, "newcomer"))
        leaver = session.get_one(Membership, (group_id, id_of(session, "member")))
        session.add_all([membership, User(email="founder")])  # the address is taken
        session.delete(leaver)
        with pytest.raises(sa.exc.IntegrityError):
            session.flush()
        session.rollback()
        session.add(membership)
        session.delete(leaver)
        session.commit()
        session.add(Post(group_id=group_id, text="after all"))
        session.commit()

    assert read(shared, "newcomer") == read(shared, "founder") == [FIRST, "after all"]
    assert read(shared, "member") == []
    assert epochs(shared, Group, group_id) == 2


def test_an_unlock_that_is_rolled_back_adopts_next_time(shared: Engine) -> None:
    """What an unlock put in order is undone with its transaction; the session reads and writes all the same,
    and so does the next."""
    with Session(shared) as session:
        group_id = found_group(session, "founder", "member", "newcomer")
    read(shared, "founder")
    leave_group(shared, group_id, "newcomer")
    with Session(shared) as session, unlock(session, "founder"):
        session.rollback()
        session.add(Post(group_id=group_id, text="after the rollback"))
        session.commit()

        assert read_here(session) == [FIRST, "after the rollback"]
    assert read(shared, "founder") == read(shared, "member") == [FIRST, "after the rollback"]
