"""Who leaves a group reads nothing that is written afterwards, however the row went."""

from collections.abc import Callable

import pytest
from sqlalchemy import Engine, delete, select, text
from sqlalchemy.orm import Session

from sqlalchemy_envelope import LockedError
from tests.orm.sharing.groups.steps import id_of, leave_group, unlocked_user
from tests.orm.sharing_models import (
    Base,
    Group,
    Membership,
    Post,
    ProfileShare,
    User,
    add_user,
    count,
    envelope,
    epochs,
    found_group,
    is_readable,
    read,
    read_here,
    secret_of,
    unlock,
    write,
)

pytestmark = pytest.mark.both_lines
FIRST = "the first post"
MEMBERSHIP_GRANTS = Base.metadata.tables["memberships_keygrant"]


# The program


def test_the_program(engine: Engine) -> None:
    """The program of the first page on sharing: a member who is away reads the group, its rows and the names
    with the next unlock, and nobody's diary."""
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        founder, member = add_user(session, "founder"), add_user(session, "member")
        with envelope.unlock(session, founder, secret=secret_of("founder")):
            group = Group(name="expedition")
            envelope.enroll(session, group)  # a group has no secret of its own
            session.add_all([Membership(group=group, user=founder), Membership(group=group, user=member)])
            session.commit()
            session.add_all([Post(group=group, text="hello"), ProfileShare(user=founder, group=group)])
            session.commit()

    with Session(engine) as session:
        member = session.scalars(select(User).where(User.email == "member")).one()
        founder = session.scalars(select(User).where(User.email == "founder")).one()
        with envelope.unlock(session, member, secret=secret_of("member")):
            session.expire_all()

            assert session.scalars(select(Post)).one().text == "hello"
            assert session.scalars(select(Group)).one().name == "expedition"
            assert founder.display_name == "Founder"
            assert (member.display_name, member.diary) == ("Member", "the diary of member")
            with pytest.raises(LockedError):
                _ = founder.diary
            session.commit()
            # and the member writes there as well
            session.add(Post(group=session.scalars(select(Group)).one(), text="hello yourself"))
            session.commit()

    assert read(engine, "founder") == ["hello", "hello yourself"]


# Leaving


def _by_session_delete(session: Session, group_id: int, user_id: int) -> None:
    session.delete(session.get_one(Membership, (group_id, user_id)))


def _by_collection(session: Session, group_id: int, user_id: int) -> None:
    group = session.get_one(Group, group_id)
    group.memberships.remove(next(one for one in group.memberships if one.user_id == user_id))


def _by_deleting_the_user(session: Session, group_id: int, user_id: int) -> None:
    session.delete(session.get_one(User, user_id))


def _by_raw_sql(session: Session, group_id: int, user_id: int) -> None:
    session.execute(text("DELETE FROM memberships WHERE user_id = :user"), {"user": user_id})


def _by_bulk_delete(session: Session, group_id: int, user_id: int) -> None:
    session.execute(delete(Membership).where(Membership.user_id == user_id))


def _by_bulk_delete_of_the_user(session: Session, group_id: int, user_id: int) -> None:
    session.execute(delete(User).where(User.id == user_id))


def _by_moving(session: Session, group_id: int, user_id: int) -> None:
    other = id_of(session, "newcomer")
    session.get_one(Membership, (group_id, user_id)).user_id = other


WAYS_TO_LEAVE = [
    _by_session_delete,
    _by_collection,
    _by_deleting_the_user,
    _by_raw_sql,
    _by_bulk_delete,
    _by_bulk_delete_of_the_user,
    _by_moving,
]


@pytest.mark.parametrize("by", [None, "founder"], ids=["locked", "unlocked"])
@pytest.mark.parametrize("leave", WAYS_TO_LEAVE)
def test_who_left_reads_what_was_before_and_nothing_after(
    shared: Engine, leave: Callable[[Session, int, int], None], by: str | None
) -> None:
    """A keyring from before opens nothing of what founders write later, whether they unlock anew or were
    unlocked all the time; what it could read it still can, and who stays reads all."""
    with Session(shared) as session:
        group_id = found_group(session, "founder", "member", "newcomer")
        member_id = id_of(session, "member")
    with Session(shared) as away, Session(shared) as present:
        keys_of_member = unlock(away, "member", follow="all")
        away.commit()
        keys_of_founder = unlock(present, "founder")
        with keys_of_founder:
            present.add(Post(group_id=group_id, text="while both were there"))
            present.commit()
            with Session(shared) as session, unlocked_user(session, by):
                if leave is _by_moving:
                    session.delete(session.get_one(Membership, (group_id, id_of(session, "newcomer"))))
                    session.flush()
                leave(session, group_id, member_id)
                session.commit()
            present.add(Post(group_id=group_id, text="by who was there all the time"))
            present.commit()
            write(shared, "founder", group_id, "by who unlocked later")
            here = read_here(present)
            present.commit()
        with keys_of_member:
            readable = read_here(away)

    assert readable == [FIRST, "while both were there"]
    assert here[:3] == [*readable, "by who was there all the time"]
    assert read(shared, "founder") == [*here[:3], "by who unlocked later"]
    assert read(shared, "newcomer") == [*here[:3], "by who unlocked later"]


@pytest.mark.parametrize("leave", WAYS_TO_LEAVE[:6])
def test_what_is_written_later_in_the_same_transaction_is_after(
    lite: Engine, leave: Callable[[Session, int, int], None]
) -> None:
    """After the removal nothing is written under the old key, in the same transaction neither."""
    with Session(lite) as session:
        group_id = found_group(session, "founder", "member")
        member_id = id_of(session, "member")
    with Session(lite) as away:
        keys_of_member = unlock(away, "member", follow="all")
        away.commit()
        with Session(lite) as session, unlock(session, "founder"):
            session.add(Post(group_id=group_id, text="before"))
            session.flush()
            leave(session, group_id, member_id)
            session.flush()
            session.add(Post(group_id=group_id, text="after"))
            session.commit()
        with keys_of_member:
            readable = read_here(away)

    assert readable == [FIRST, "before"]
    assert read(lite, "founder") == [FIRST, "before", "after"]


@pytest.mark.any_database
def test_who_left_unlocks_without_the_group(shared: Engine) -> None:
    """A new unlock of who left opens their own values, and nothing of the group's."""
    with Session(shared) as session:
        group_id = found_group(session, "founder", "member")
    assert read(shared, "member") == [FIRST]
    leave_group(shared, group_id, "member")
    with Session(shared) as session, unlock(session, "member") as unlocked:
        assert read_here(session) == []
        assert session.get_one(User, id_of(session, "member")).diary == "the diary of member"
        assert len(unlocked.places) == 1


@pytest.mark.any_database
def test_who_left_cannot_write_any_more(shared: Engine) -> None:
    """A session that was unlocked before its owner was removed is refused when it writes for the group."""
    with Session(shared) as session:
        group_id = found_group(session, "founder", "member")
    with Session(shared) as away, unlock(away, "member"):
        away.commit()
        leave_group(shared, group_id, "member", by="founder")
        away.add(Post(group_id=group_id, text="still here?"))
        with pytest.raises(LockedError):
            away.commit()
        away.rollback()

    assert read(shared, "founder") == [FIRST]


@pytest.mark.any_database
def test_the_last_member_leaves(shared: Engine) -> None:
    """Without anybody left to grant a key to there is no new epoch, and no error."""
    with Session(shared) as session:
        group_id = found_group(session, "founder")
    leave_group(shared, group_id, "founder")

    assert epochs(shared, Group, group_id) == 1
    assert count(shared, MEMBERSHIP_GRANTS) == 0


@pytest.mark.any_database
def test_two_who_leave_together_make_one_epoch(shared: Engine) -> None:
    """One flush that removes two members starts one new epoch."""
    with Session(shared) as session:
        group_id = found_group(session, "founder", "member", "newcomer")
    with Session(shared) as session, unlock(session, "founder"):
        leavers = session.scalars(select(Membership).join(User).where(User.email != "founder")).all()
        for leaver in leavers:
            session.delete(leaver)
        session.commit()

    assert len(leavers) == 2
    assert epochs(shared, Group, group_id) == 2
    assert [read(shared, name) for name in ("founder", "member", "newcomer")] == [[FIRST], [], []]


@pytest.mark.any_database
def test_one_leaves_and_one_joins_in_one_flush(shared: Engine) -> None:
    """Who joins in the flush in which another leaves reads all; who left reads nothing new."""
    with Session(shared) as session:
        group_id = found_group(session, "founder", "member")
    with Session(shared) as session, unlock(session, "founder"):
        session.delete(session.get_one(Membership, (group_id, id_of(session, "member"))))
        session.add(Membership(group_id=group_id, user_id=id_of(session, "newcomer")))
        session.commit()
    write(shared, "newcomer", group_id, "new")

    assert epochs(shared, Group, group_id) == 2
    assert read(shared, "newcomer") == read(shared, "founder") == [FIRST, "new"]
    assert read(shared, "member") == []


@pytest.mark.any_database
def test_the_same_row_deleted_and_added_in_one_flush_is_no_change(shared: Engine) -> None:
    """SQLAlchemy makes one UPDATE of it: the member stays, with the keys they had."""
    with Session(shared) as session:
        group_id = found_group(session, "founder", "member")
    with Session(shared) as session, unlock(session, "founder"):
        key = (group_id, id_of(session, "member"))
        session.delete(session.get_one(Membership, key))
        session.add(Membership(group_id=key[0], user_id=key[1], role="guest"))
        session.commit()

    assert epochs(shared, Group, group_id) == 1
    assert read(shared, "member") == [FIRST]


@pytest.mark.any_database
def test_a_change_of_something_else_is_no_move(shared: Engine) -> None:
    """Another column of the granting row may change; no epoch starts."""
    with Session(shared) as session:
        group_id = found_group(session, "founder", "member")
    with Session(shared) as session:
        session.get_one(Membership, (group_id, id_of(session, "member"))).role = "admin"
        session.commit()

    assert epochs(shared, Group, group_id) == 1
    assert read(shared, "member") == [FIRST]


@pytest.mark.any_database
def test_a_membership_moved_to_another_group(shared: Engine) -> None:
    """Who is moved reads the group they are in now, and nothing new of the other."""
    with Session(shared) as session:
        one, other = found_group(session, "founder", "member"), found_group(session, "founder")
    with Session(shared) as session, unlock(session, "founder"):
        session.get_one(Membership, (one, id_of(session, "member"))).group_id = other
        session.commit()
    write(shared, "founder", one, "new here")
    write(shared, "founder", other, "new there")

    assert read(shared, "member") == [FIRST, "new there"]
    assert read(shared, "founder", one) == [FIRST, "new here"]


@pytest.mark.parametrize("expired", [False, True])
@pytest.mark.parametrize("move", ["attribute", "relationship"])
def test_a_share_moved_to_another_group(lite: Engine, expired: bool, move: str) -> None:
    """The same where the primary key says nothing of either end, by attribute or relationship, loaded or
    expired."""
    with Session(lite) as session:
        one, other = found_group(session, "founder"), found_group(session, "newcomer")
        with unlock(session, "member"):
            session.add(ProfileShare(user_id=id_of(session, "member"), group_id=one))
            session.commit()
    with Session(lite) as session, unlock(session, "member"):
        share, group = session.scalars(select(ProfileShare)).one(), session.get_one(Group, other)
        if expired:
            session.expire(share)
        if move == "attribute":
            share.group_id = other
        else:
            share.group = group
        session.flush()
        session.get_one(User, id_of(session, "member")).display_name = "New Name"
        session.commit()

    assert (_name_for(lite, "founder"), _name_for(lite, "newcomer")) == (None, "New Name")


@pytest.mark.parametrize("expired", [False, True])
def test_a_share_that_is_deleted(lite: Engine, expired: bool) -> None:
    """A share that is taken back shows no later name, whether the object was loaded or expired."""
    with Session(lite) as session:
        group_id = found_group(session, "founder")
        with unlock(session, "member"):
            session.add(ProfileShare(user_id=id_of(session, "member"), group_id=group_id))
            session.commit()
    with Session(lite) as away, Session(lite) as session, unlocked_user(session, None):
        keys_of_founder = unlock(away, "founder")
        away.commit()
        share = session.scalars(select(ProfileShare)).one()
        if expired:
            session.expire(share)
        session.delete(share)
        session.commit()
        with unlock(session, "member"):
            member = session.get_one(User, id_of(session, "member"))
            member.display_name = "New Name"
            session.commit()
        with keys_of_founder:
            seen = is_readable(away.get_one(User, member.id), "display_name")

    assert not seen


def _name_for(engine: Engine, reader: str, of: str = "member") -> str | None:
    """The display name of one user as another one sees it."""
    with Session(engine) as session, unlock(session, reader):
        user = session.get_one(User, id_of(session, of))
        session.expire(user)
        return user.display_name if is_readable(user, "display_name") else None
