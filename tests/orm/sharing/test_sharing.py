"""Sharing through `KeyGrant`: who joins reads with the next unlock, who leaves reads nothing that is written
after, however they left, and who stays reads everything. With what it costs, counted at the driver. The state
machine that compares who can read with who may is in `test_sharing_machine.py`.
"""

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, StaticPool, create_engine, delete, insert, select, text
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    EnrollmentError,
    Envelope,
    GrantError,
    KdfProfile,
    LockedError,
    NotEnrolledError,
    UnlockedSession,
    enforce_foreign_keys,
)
from sqlalchemy_envelope.crypto.context import owner_reference
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.keys.grants import sealed_grant
from sqlalchemy_envelope.keys.hierarchy import describe, link_to_newer_root, proof_of_epoch, wrap_under_root
from sqlalchemy_envelope.keys.model import KeyState, OpenedKey, Purpose
from sqlalchemy_envelope.keys.providers import ServerKeyring
from sqlalchemy_envelope.orm.sharing import grant_flushes
from sqlalchemy_envelope.orm.sharing.beyond import MAX_LEVELS
from sqlalchemy_envelope.orm.tables.grant_rows import GrantStore
from sqlalchemy_envelope.orm.tables.key_grant import grant_class_of
from sqlalchemy_envelope.orm.tables.key_rows import KeyStore
from sqlalchemy_envelope.orm.tables.owners import owner_class_of
from tests.orm import lone_models as lone
from tests.orm.sharing_models import (
    Affiliation,
    Base,
    Circle,
    Club,
    ClubMembership,
    Group,
    KeysBase,
    Letter,
    Membership,
    Minute,
    Nesting,
    Organisation,
    PlainBase,
    Post,
    ProfileShare,
    Reader,
    Seat,
    Team,
    TeamNote,
    TeamPlace,
    Tenant,
    User,
    add_user,
    calls_sent,
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
from tests.prepared import prepared

pytestmark = pytest.mark.both_lines

MEMBERS = int(os.environ.get("ENVELOPE_MEMBERS", "200"))
"""How many members a group has where it has many; with 1,000 there are fifty groups of twenty epochs."""
FIRST = "the first post"
MEMBERSHIP_GRANTS = Base.metadata.tables["memberships_keygrant"]


@pytest.fixture
def shared(engine: Engine) -> Engine:
    """A database with three enrolled users, on SQLite and on PostgreSQL."""
    return _with_users(engine, "founder", "member", "newcomer")


@pytest.fixture
def lite(sqlite_engine: Engine) -> Engine:
    """The same, on SQLite."""
    return _with_users(sqlite_engine, "founder", "member", "newcomer")


def _with_users(engine: Engine, *names: str) -> Engine:
    def make() -> None:
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            for name in names:
                add_user(session, name)

    prepared(engine, ("users of sharing", *names), make)
    return engine


def _id_of(session: Session, name: str) -> int:
    return session.scalars(select(User.id).where(User.email == name)).one()


def _join(engine: Engine, group_id: int, name: str, by: str | None) -> None:
    """Somebody is added, by a session that is locked or that somebody has unlocked."""
    with Session(engine) as session, _unlocked(session, by):
        session.add(Membership(group_id=group_id, user_id=_id_of(session, name)))
        session.commit()


def _leave(engine: Engine, group_id: int, name: str, by: str | None = None) -> None:
    with Session(engine) as session, _unlocked(session, by):
        session.delete(session.get_one(Membership, (group_id, _id_of(session, name))))
        session.commit()


@contextmanager
def _unlocked(session: Session, name: str | None) -> Iterator[None]:
    if name is None:
        envelope.attach(session)
        yield
    else:
        with unlock(session, name):
            yield


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
    other = _id_of(session, "newcomer")
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
        member_id = _id_of(session, "member")
    with Session(shared) as away, Session(shared) as present:
        keys_of_member = unlock(away, "member", follow="all")
        away.commit()
        keys_of_founder = unlock(present, "founder")
        with keys_of_founder:
            present.add(Post(group_id=group_id, text="while both were there"))
            present.commit()
            with Session(shared) as session, _unlocked(session, by):
                if leave is _by_moving:
                    session.delete(session.get_one(Membership, (group_id, _id_of(session, "newcomer"))))
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
        member_id = _id_of(session, "member")
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
    _leave(shared, group_id, "member")
    with Session(shared) as session, unlock(session, "member") as unlocked:
        assert read_here(session) == []
        assert session.get_one(User, _id_of(session, "member")).diary == "the diary of member"
        assert len(unlocked.places) == 1


@pytest.mark.any_database
def test_who_left_cannot_write_any_more(shared: Engine) -> None:
    """A session that was unlocked before its owner was removed is refused when it writes for the group."""
    with Session(shared) as session:
        group_id = found_group(session, "founder", "member")
    with Session(shared) as away, unlock(away, "member"):
        away.commit()
        _leave(shared, group_id, "member", by="founder")
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
    _leave(shared, group_id, "founder")

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
        session.delete(session.get_one(Membership, (group_id, _id_of(session, "member"))))
        session.add(Membership(group_id=group_id, user_id=_id_of(session, "newcomer")))
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
        key = (group_id, _id_of(session, "member"))
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
        session.get_one(Membership, (group_id, _id_of(session, "member"))).role = "admin"
        session.commit()

    assert epochs(shared, Group, group_id) == 1
    assert read(shared, "member") == [FIRST]


@pytest.mark.any_database
def test_a_membership_moved_to_another_group(shared: Engine) -> None:
    """Who is moved reads the group they are in now, and nothing new of the other."""
    with Session(shared) as session:
        one, other = found_group(session, "founder", "member"), found_group(session, "founder")
    with Session(shared) as session, unlock(session, "founder"):
        session.get_one(Membership, (one, _id_of(session, "member"))).group_id = other
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
            session.add(ProfileShare(user_id=_id_of(session, "member"), group_id=one))
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
        session.get_one(User, _id_of(session, "member")).display_name = "New Name"
        session.commit()

    assert (_name_for(lite, "founder"), _name_for(lite, "newcomer")) == (None, "New Name")


@pytest.mark.parametrize("expired", [False, True])
def test_a_share_that_is_deleted(lite: Engine, expired: bool) -> None:
    """A share that is taken back shows no later name, whether the object was loaded or expired."""
    with Session(lite) as session:
        group_id = found_group(session, "founder")
        with unlock(session, "member"):
            session.add(ProfileShare(user_id=_id_of(session, "member"), group_id=group_id))
            session.commit()
    with Session(lite) as away, Session(lite) as session, _unlocked(session, None):
        keys_of_founder = unlock(away, "founder")
        away.commit()
        share = session.scalars(select(ProfileShare)).one()
        if expired:
            session.expire(share)
        session.delete(share)
        session.commit()
        with unlock(session, "member"):
            member = session.get_one(User, _id_of(session, "member"))
            member.display_name = "New Name"
            session.commit()
        with keys_of_founder:
            seen = is_readable(away.get_one(User, member.id), "display_name")

    assert not seen


def _name_for(engine: Engine, reader: str, of: str = "member") -> str | None:
    """The display name of one user as another one sees it."""
    with Session(engine) as session, unlock(session, reader):
        user = session.get_one(User, _id_of(session, of))
        session.expire(user)
        return user.display_name if is_readable(user, "display_name") else None


# Joining


def test_a_joining_that_nobody_present_can_grant_waits_for_a_holder(shared: Engine) -> None:
    """Added by a locked session the newcomer reads nothing, until a member unlocks; then everything."""
    with Session(shared) as session:
        group_id = found_group(session, "founder", "member")
    _join(shared, group_id, "newcomer", by=None)

    assert read(shared, "newcomer") == []
    assert read(shared, "member") == [FIRST]
    assert read(shared, "newcomer") == [FIRST]
    assert count(shared, MEMBERSHIP_GRANTS, MEMBERSHIP_GRANTS.c.state == "pending") == 0


def test_a_joining_waits_for_a_holder_among_other_unlocked(shared: Engine) -> None:
    """An unlocked session of somebody who is no member grants nothing either."""
    with Session(shared) as session:
        group_id = found_group(session, "founder")
    _join(shared, group_id, "newcomer", by="member")

    assert (read(shared, "newcomer"), read(shared, "member")) == ([], [])
    assert read(shared, "founder") == [FIRST]
    assert read(shared, "newcomer") == [FIRST]


def test_a_joining_is_granted_by_a_provider() -> None:
    """Where the group has a provider slot, the backend grants what waits, with no member there."""
    served = Envelope(
        kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([secrets.token_bytes(32)])
    )
    engine = create_engine("sqlite://", poolclass=StaticPool)
    enforce_foreign_keys(engine)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        users = [User(email=name, display_name=name) for name in ("founder", "newcomer")]
        for user in users:
            served.enroll(session, user, secret=secret_of(user.email))
        with served.unlock(session, users[0], secret=secret_of("founder")):
            group = Group(name="served")
            served.enroll(session, group, provider="server")
            session.add(Membership(group=group, user=users[0]))
            session.commit()
        session.add(Membership(group=group, user=users[1]))
        session.commit()
        with served.unlock(session, users[1], secret=secret_of("newcomer")):
            before = is_readable(group, "name")
        with served.unlock(session, group, provider="server", reason="let newcomers in") as holder:
            holder.settle()
            session.commit()
        with served.unlock(session, users[1], secret=secret_of("newcomer")):
            session.expire(group)

            assert not before
            assert group.name == "served"
    engine.dispose()


@pytest.mark.parametrize("by", [None, "founder"], ids=["locked", "unlocked"])
@pytest.mark.any_database
def test_a_recipient_who_is_not_enrolled_yet(shared: Engine, by: str | None) -> None:
    """Somebody who has no keys can be added; they read after a holder's next unlock."""
    with Session(shared) as session:
        group_id = found_group(session, "founder")
        invited = User(email="invited")
        session.add(invited)
        session.commit()
    _join(shared, group_id, "invited", by)
    read(shared, "founder")
    with Session(shared) as session:
        invited = session.scalars(select(User).where(User.email == "invited")).one()
        envelope.enroll(session, invited, secret=secret_of("invited"))
        session.commit()

    assert read(shared, "invited") == []
    assert read(shared, "founder") == [FIRST]
    assert read(shared, "invited") == [FIRST]


@pytest.mark.any_database
def test_a_newcomer_reads_all_earlier_epochs(shared: Engine) -> None:
    """With `history="shared"` a newcomer reads every epoch, those that a locked session started included, and
    no unlock adds epochs of its own."""
    with Session(shared) as session:
        group_id = found_group(session, "founder")
    written = [FIRST]
    for turn, by in enumerate(["founder", None, "founder", None, None]):
        _join(shared, group_id, "member", by="founder")
        _leave(shared, group_id, "member", by=by)
        write(shared, "founder", group_id, f"after turn {turn}")
        written.append(f"after turn {turn}")
    _join(shared, group_id, "newcomer", by="founder")
    before = epochs(shared, Group, group_id)

    assert read(shared, "newcomer") == read(shared, "founder") == written
    assert read(shared, "member") == []
    assert epochs(shared, Group, group_id) == before


def test_a_newcomer_reads_more_epochs_than_a_path_may_be_long(lite: Engine) -> None:
    """Forty epochs are no forty steps: a newcomer reads the oldest row, first of all."""
    with Session(lite) as session:
        group_id = found_group(session, "founder")
    with Session(lite) as session, unlock(session, "founder"):
        member_id = _id_of(session, "member")
        for _ in range(40):
            session.add(Membership(group_id=group_id, user_id=member_id))
            session.flush()
            session.delete(session.get_one(Membership, (group_id, member_id)))
            session.flush()
        session.commit()
    _join(lite, group_id, "newcomer", by="founder")

    assert epochs(lite, Group, group_id) == 41
    assert read(lite, "newcomer") == [FIRST]


def test_a_locked_removal_ends_in_one_more_epoch(shared: Engine) -> None:
    """An epoch that was started without a holder is replaced by one that a holder vouches for, once: nobody's
    later unlock starts another."""
    with Session(shared) as session:
        group_id = found_group(session, "founder", "member", "newcomer")
    for name in ("founder", "member"):
        read(shared, name)
    _leave(shared, group_id, "newcomer")
    seen = []
    for name in ["founder", "member"] * 3:
        assert read(shared, name) == [FIRST]
        seen.append(epochs(shared, Group, group_id))

    assert seen == [3] * 6


def test_a_holder_of_the_locked_epoch_alone_and_the_others_agree(shared: Engine) -> None:
    """A member who was let in while a locked session removed another knows that epoch alone; they and the
    older members come to trust the same one."""
    with Session(shared) as session:
        group_id = found_group(session, "founder", "member")
    read(shared, "founder")
    _join(shared, group_id, "newcomer", by=None)
    _leave(shared, group_id, "member")
    write(shared, "newcomer", group_id, "hello")
    seen = []
    for name in ["founder", "newcomer"] * 3:
        read(shared, name)
        seen.append(epochs(shared, Group, group_id))

    assert read(shared, "newcomer") == read(shared, "founder") == [FIRST, "hello"]
    assert seen == [3] * 6


def test_keys_that_were_open_all_the_time_put_a_locked_epoch_in_order(shared: Engine) -> None:
    """Who was unlocked before a session without keys added two and removed one writes for who is left, with
    the first statement after it."""
    with Session(shared) as session:
        group_id = found_group(session, "founder")
    with Session(shared) as present, unlock(present, "founder"):
        present.commit()
        for name in ("member", "newcomer"):
            _join(shared, group_id, name, by=None)
        _leave(shared, group_id, "newcomer")
        present.add(Post(group_id=group_id, text="for who is left"))
        present.commit()

    assert read(shared, "founder") == read(shared, "member") == [FIRST, "for who is left"]
    assert read(shared, "newcomer") == []


@pytest.mark.any_database
def test_an_epoch_that_nobody_vouches_for_gets_no_older_key(shared: Engine) -> None:
    """Who made an epoch without being a member, and so knows its key, gets none of the older ones linked to
    it by the members' next unlocks."""
    with Session(shared) as session:
        group_id = found_group(session, "founder", "member", "newcomer")
    read(shared, "founder")
    _leave(shared, group_id, "newcomer")  # what a database writer can do as well: no key is needed for it
    keys = Base.metadata.tables["groups_key"]
    mine = (keys.c.owner_id == group_id, keys.c.purpose == "root")
    with shared.connect() as connection:
        planted = connection.scalar(select(keys.c.key_id).where(*mine, keys.c.epoch == 2))
    for name in ("founder", "member"):
        read(shared, name)
    with shared.connect() as connection:
        links = dict(connection.execute(select(keys.c.epoch, keys.c.wrapping_key_id).where(*mine)).all())
        newest = connection.scalar(select(keys.c.key_id).where(*mine, keys.c.state == "active"))

    assert planted not in links.values()
    assert links == {1: newest, 2: newest, 3: None}


# Histories


def _club(session: Session, founder: str) -> int:
    with unlock(session, founder):
        club = Club(motto="onwards")
        envelope.enroll(session, club)
        session.add(ClubMembership(club_id=club.id, user_id=_id_of(session, founder)))
        session.add(Minute(club_id=club.id, text="at the founding"))
        session.commit()
        return club.id


def _minutes(engine: Engine, name: str) -> list[str]:
    with Session(engine) as session, unlock(session, name):
        minutes = session.scalars(select(Minute).order_by(Minute.id)).all()
        session.commit()
        return [one.text or "" for one in minutes if is_readable(one, "text")]


@pytest.mark.parametrize("by", [None, "founder"], ids=["locked", "unlocked"])
@pytest.mark.any_database
def test_from_join_begins_with_the_joining(shared: Engine, by: str | None) -> None:
    """With `history="from_join"` a newcomer reads what is written after they joined; who was there before
    reads both, what was written with the enrolment included."""
    with Session(shared) as session:
        club_id = _club(session, "founder")
    with Session(shared) as session, _unlocked(session, by):
        session.add(ClubMembership(club_id=club_id, user_id=_id_of(session, "newcomer")))
        session.commit()
    with Session(shared) as session, unlock(session, "founder"):
        session.add(Minute(club_id=club_id, text="after the joining"))
        session.commit()

        assert session.get_one(Club, club_id).motto == "onwards"
    assert _minutes(shared, "newcomer") == ["after the joining"]
    assert _minutes(shared, "founder") == ["at the founding", "after the joining"]


@pytest.mark.any_database
def test_from_join_after_somebody_left(shared: Engine) -> None:
    """A retired epoch is linked for nobody: who joins later does not read what was written between."""
    with Session(shared) as session:
        club_id = _club(session, "founder")
    for name in ("member", "newcomer"):
        with Session(shared) as session, unlock(session, "founder"):
            session.add(ClubMembership(club_id=club_id, user_id=_id_of(session, name)))
            session.flush()
            session.add(Minute(club_id=club_id, text=f"with {name}"))
            session.commit()
        if name == "member":
            with Session(shared) as session, _unlocked(session, None):
                session.delete(session.get_one(ClubMembership, (club_id, _id_of(session, name))))
                session.commit()

    assert _minutes(shared, "member") == []
    assert _minutes(shared, "newcomer") == ["with newcomer"]
    assert _minutes(shared, "founder") == ["at the founding", "with member", "with newcomer"]


# Nested grants


def _affiliate(engine: Engine, by: str, *group_ids: int) -> int:
    with Session(engine) as session, unlock(session, by):
        organisation = Organisation(name="the organisation")
        envelope.enroll(session, organisation)
        for group_id in group_ids:
            session.add(Affiliation(organisation_id=organisation.id, group_id=group_id))
        session.commit()
        return organisation.id


def _organisation_name(engine: Engine, name: str, organisation_id: int) -> str | None:
    with Session(engine) as session, unlock(session, name):
        organisation = session.get_one(Organisation, organisation_id)
        session.commit()
        return organisation.name if is_readable(organisation, "name") else None


@pytest.mark.any_database
def test_members_of_a_group_read_its_organisation(shared: Engine) -> None:
    """User to group to organisation: every member of the group reads it, and nobody else."""
    with Session(shared) as session:
        group_id = found_group(session, "founder", "member")
    organisation_id = _affiliate(shared, "founder", group_id)
    names = [_organisation_name(shared, name, organisation_id) for name in ("founder", "member", "newcomer")]

    assert names == ["the organisation", "the organisation", None]


@pytest.mark.parametrize("by", [None, "founder"], ids=["locked", "unlocked"])
@pytest.mark.any_database
def test_who_leaves_a_group_leaves_its_organisation(shared: Engine, by: str | None) -> None:
    """What is written for the organisation after somebody left one of its groups is closed to them, by
    sessions that were unlocked before as well."""
    with Session(shared) as session:
        group_id = found_group(session, "founder", "member")
    organisation_id = _affiliate(shared, "founder", group_id)
    assert _organisation_name(shared, "member", organisation_id) is not None
    with Session(shared) as away, Session(shared) as present:
        keys_of_member = unlock(away, "member", follow="all")
        away.commit()
        keys_of_founder = unlock(present, "founder")
        present.commit()
        _leave(shared, group_id, "member", by=by)
        with keys_of_founder:
            present.get_one(Organisation, organisation_id).name = "new name"
            present.commit()
        with keys_of_member:
            seen = is_readable(away.get_one(Organisation, organisation_id), "name")

    assert not seen
    assert _organisation_name(shared, "founder", organisation_id) == "new name"


@pytest.mark.any_database
def test_an_owner_reached_in_two_ways_keeps_its_epoch(shared: Engine) -> None:
    """Two groups of one organisation grant one key twice; that is no reason for a new epoch."""
    with Session(shared) as session:
        groups = [found_group(session, "founder", "member") for _ in range(2)]
    organisation_id = _affiliate(shared, "founder", *groups)
    seen = []
    for name in ["founder", "member"] * 2:
        assert _organisation_name(shared, name, organisation_id) == "the organisation"
        seen.append(epochs(shared, Organisation, organisation_id))

    assert seen == [1] * 4


@pytest.mark.any_database
def test_what_members_share_with_their_group(shared: Engine) -> None:
    """A group holds what its members share with it: each member reads the others' names, and no diary."""
    with Session(shared) as session:
        group_id = found_group(session, "founder", "member", "newcomer")
    for name in ("founder", "member"):
        with Session(shared) as session, unlock(session, name):
            session.add(ProfileShare(user_id=_id_of(session, name), group_id=group_id))
            session.commit()
    with Session(shared) as session, unlock(session, "newcomer"):
        users = session.scalars(select(User).order_by(User.email)).all()

        assert [user.display_name for user in users] == ["Founder", "Member", "Newcomer"]
        assert [is_readable(user, "diary") for user in users] == [False, False, True]


@pytest.mark.parametrize("by", [None, "founder"], ids=["locked", "unlocked"])
@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.any_database
def test_circles_are_refused(shared: Engine, length: int, by: str | None) -> None:
    """A in B and B in A, or longer, is an error where it would close; the objects are as they were, and what
    was there before works."""
    with Session(shared) as session:
        ring = [found_group(session, "founder") for _ in range(length)]
    with Session(shared) as session, _unlocked(session, by):
        session.add_all([Nesting(outer_id=outer, inner_id=inner) for inner, outer in pairwise(ring)])
        session.commit()
        last = Nesting(outer_id=ring[0], inner_id=ring[-1])
        session.add(last)
        with pytest.raises(GrantError, match=f"Group {ring[0]}.*Group {ring[-1]}"):
            session.flush()
        session.rollback()

        assert sa.inspect(last).transient
    assert read(shared, "founder") == [FIRST] * length


@pytest.mark.any_database
def test_a_circle_in_one_flush_is_refused(shared: Engine) -> None:
    """Both halves of a circle in one flush are refused as well."""
    with Session(shared) as session:
        one, other = found_group(session, "founder"), found_group(session, "founder")
    with Session(shared) as session, unlock(session, "founder"):
        session.add_all([Nesting(outer_id=one, inner_id=other), Nesting(outer_id=other, inner_id=one)])
        with pytest.raises(GrantError):
            session.flush()
        session.rollback()

    assert count(shared, Nesting) == 0


@pytest.mark.any_database
def test_what_is_reached_twice_is_no_circle(shared: Engine) -> None:
    """Two ways from one group to another, without a way back, are accepted."""
    with Session(shared) as session:
        inner, one, other, outer = (found_group(session, "founder") for _ in range(4))
    with Session(shared) as session, unlock(session, "founder"):
        session.add(Membership(group_id=inner, user_id=_id_of(session, "member")))
        pairs = [(one, inner), (other, inner), (outer, one), (outer, other), (outer, inner)]
        session.add_all([Nesting(outer_id=a, inner_id=b) for a, b in pairs])
        session.commit()
    for _ in range(2):
        assert read(shared, "member") == [FIRST] * 4
    assert [epochs(shared, Group, one) for one in (inner, outer)] == [1, 1]


@pytest.mark.any_database
def test_circles_that_exist_all_the_same_end(shared: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a circle got past the check, members of either group open both, and unlocking changes nothing."""
    with Session(shared) as session:
        one, other = found_group(session, "founder"), found_group(session, "founder", "member")
    monkeypatch.setattr(grant_flushes, "refuse_circles", lambda *_: None)
    with Session(shared) as session, unlock(session, "founder"):
        session.add_all([Nesting(outer_id=one, inner_id=other), Nesting(outer_id=other, inner_id=one)])
        session.commit()
    seen = []
    for name in ["founder", "member"] * 2:
        assert read(shared, name) == [FIRST, FIRST]
        seen.append((epochs(shared, Group, one), epochs(shared, Group, other)))

    assert seen == [(1, 1)] * 4


def test_what_is_nested_too_deep_stays_locked(lite: Engine) -> None:
    """Groups beyond the deepest level are locked, and everything else opens without an error."""
    with Session(lite) as session:
        chain = [found_group(session, "founder") for _ in range(MAX_LEVELS + 3)]
    with Session(lite) as session, unlock(session, "founder"):
        session.add(Membership(group_id=chain[0], user_id=_id_of(session, "member")))
        for inner, outer in pairwise(chain):
            session.add(Nesting(outer_id=outer, inner_id=inner))
        session.commit()
    for _ in range(2):
        assert [len(read(lite, "member", group_id)) for group_id in chain] == [1] * MAX_LEVELS + [0] * 3
    assert len(read(lite, "founder")) == len(chain)


# Other primary keys


def test_composite_and_uuid_primary_keys(shared: Engine) -> None:
    """Owners of two columns, granting rows and owners of UUIDs: joining, and leaving a one-way collection."""
    KeysBase.metadata.create_all(shared)
    with Session(shared) as session:
        tenants = [Tenant(region="eu", number=number, note=f"tenant {number}") for number in (1, 2)]
        for tenant in tenants:
            envelope.enroll(session, tenant, secret=secret_of(str(tenant.number)))
        with envelope.unlock(session, tenants[0], secret=secret_of("1")):
            team = Team(name="the team")
            envelope.enroll(session, team)
            for tenant in tenants:
                team.places.append(TeamPlace(tenant_region=tenant.region, tenant_number=tenant.number))
            session.commit()
            session.add(TeamNote(team_id=team.id, text="before"))
            session.commit()
    with Session(shared) as away, Session(shared) as session:
        keys = envelope.unlock(away, away.get_one(Tenant, ("eu", 2)), secret=secret_of("2"), follow="all")
        away.commit()
        first = session.get_one(Tenant, ("eu", 1))
        with envelope.unlock(session, first, secret=secret_of("1")):
            team = session.scalars(select(Team)).one()
            team.places.remove(next(place for place in team.places if place.tenant_number == 2))
            session.flush()
            session.add(TeamNote(team_id=team.id, text="after"))
            session.commit()
            here = [note.text for note in session.scalars(select(TeamNote).order_by(TeamNote.id))]
        with keys:
            notes = away.scalars(select(TeamNote).order_by(TeamNote.id)).all()
            readable = [note.text for note in notes if is_readable(note, "text")]

    assert here == ["before", "after"]
    assert readable == ["before"]


# Enrolment of what has no secret


@pytest.mark.any_database
def test_enrolling_a_group_with_nobody_unlocked(shared: Engine) -> None:
    """Nobody would open its keys: an error at once, and the object is as it was."""
    with Session(shared) as session:
        group = Group(name="nobody's")
        with pytest.raises(EnrollmentError):
            envelope.enroll(session, group)

        assert sa.inspect(group).transient
        assert group.name == "nobody's"


@pytest.mark.parametrize("recipient", [None, "invited"])
@pytest.mark.any_database
def test_a_group_that_nobody_could_open_is_not_committed(shared: Engine, recipient: str | None) -> None:
    """Without a grant to somebody who has keys the commit fails; after the rollback the object enrolls."""
    with Session(shared) as session:
        session.add(User(email="invited"))
        session.commit()
    with Session(shared) as session, unlock(session, "founder"):
        session.commit()
        group = Group(name="expedition")
        envelope.enroll(session, group)
        if recipient is not None:
            session.add(Membership(group_id=group.id, user_id=_id_of(session, recipient)))
        with pytest.raises(EnrollmentError):
            session.commit()
        session.rollback()

        assert group.name == "expedition"
        envelope.enroll(session, group)
        session.add(Membership(group=group, user_id=_id_of(session, "founder")))
        session.commit()
        session.add(Post(group=group, text="at last"))
        session.commit()

    assert read(shared, "founder") == ["at last"]


@pytest.mark.any_database
def test_a_group_that_nobody_could_open_is_saved_by_a_grant(shared: Engine) -> None:
    """The refused commit can be followed by the grant that was missing, without a rollback."""
    with Session(shared) as session, unlock(session, "founder"):
        session.commit()
        group = Group(name="expedition")
        envelope.enroll(session, group)
        with pytest.raises(EnrollmentError):
            session.commit()
        session.add(Membership(group=group, user_id=_id_of(session, "founder")))
        session.commit()

        assert group.name == "expedition"


@pytest.mark.any_database
def test_a_grant_of_an_owner_without_keys(shared: Engine) -> None:
    """What has no key cannot be granted: the flush fails, and the session goes on after the rollback."""
    with Session(shared) as session:
        envelope.attach(session)
        group = Group()
        session.add(group)
        session.commit()
        membership = Membership(group_id=group.id, user_id=_id_of(session, "founder"))
        session.add(membership)
        with pytest.raises(NotEnrolledError):
            session.flush()
        session.rollback()

        assert sa.inspect(membership).transient
        with unlock(session, "founder"):
            envelope.enroll(session, group)
            session.add(membership)
            session.add(Post(group=group, text="in the end"))
            session.commit()

    assert read(shared, "founder") == ["in the end"]


# Rollbacks


def test_a_rolled_back_enrolment_leaves_nothing(shared: Engine) -> None:
    """Neither rows nor keys: what is written for that owner then is refused, and the next group works."""
    with Session(shared) as session, unlock(session, "founder") as unlocked:
        session.commit()
        group = Group(id=77, name="never")
        envelope.enroll(session, group)
        session.add(Membership(group=group, user_id=_id_of(session, "founder")))
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
        members = {name: _id_of(session, name) for name in ("member", "newcomer")}
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
            Membership(group_id=group_id, user_id=_id_of(session, name)) for name in ("founder", "newcomer")
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
                session.delete(session.get_one(Membership, (group_id, _id_of(session, name))))
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
            session.delete(session.get_one(Membership, (group_id, _id_of(session, "member"))))
        with session.begin_nested() as savepoint:
            session.delete(session.get_one(Membership, (group_id, _id_of(session, "newcomer"))))
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
        membership = Membership(group_id=group_id, user_id=_id_of(session, "newcomer"))
        leaver = session.get_one(Membership, (group_id, _id_of(session, "member")))
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
    _leave(shared, group_id, "newcomer")
    with Session(shared) as session, unlock(session, "founder"):
        session.rollback()
        session.add(Post(group_id=group_id, text="after the rollback"))
        session.commit()

        assert read_here(session) == [FIRST, "after the rollback"]
    assert read(shared, "founder") == read(shared, "member") == [FIRST, "after the rollback"]


# Costs, counted at the driver


def _circle(engine: Engine, readers: int, letters: int = 0) -> tuple[int, int]:
    """A founder's circle with so many members and rows; the founder's and the circle's primary key."""
    PlainBase.metadata.create_all(engine)
    with Session(engine) as session:
        founder = Reader(name="founder")
        envelope.enroll(session, founder, secret=secret_of("founder"))
        with envelope.unlock(session, founder, secret=secret_of("founder")):
            for _ in range(readers - 1):
                envelope.enroll(session, Reader(), secret=secret_of("reader"))
            circle = Circle(name="circle")
            envelope.enroll(session, circle)
            ids = session.scalars(select(Reader.id)).all()
            session.add_all([Seat(circle_id=circle.id, reader_id=one) for one in ids])
            session.flush()
            if letters:
                rows = [{"circle_id": circle.id, "text": f"letter {n}"} for n in range(letters)]
                session.execute(insert(Letter), rows)
            session.commit()
            return founder.id, circle.id


@pytest.mark.any_database
def test_adding_a_member_touches_no_data(engine: Engine) -> None:
    """Joining a group with many rows writes three small rows, and no statement so much as names the data."""
    founder_id, circle_id = _circle(engine, readers=1, letters=1_000)
    with Session(engine) as session:
        newcomer = Reader()
        envelope.enroll(session, newcomer, secret=secret_of("newcomer"))
        session.commit()
        newcomer_id = newcomer.id
    with Session(engine) as session:
        founder = session.get_one(Reader, founder_id)
        with envelope.unlock(session, founder, secret=secret_of("founder")) as unlocked:
            unlocked.settle()
            session.commit()
            with calls_sent(engine) as sent:
                session.add(Seat(circle_id=circle_id, reader_id=newcomer_id))
                session.commit()
            session.scalars(select(Letter)).first()
    with Session(engine) as session:
        newcomer = session.get_one(Reader, newcomer_id)
        with envelope.unlock(session, newcomer, secret=secret_of("newcomer")):
            assert len({letter.text for letter in session.scalars(select(Letter))}) == 1_000

    assert not [statement for statement, _ in sent if "letters" in statement]
    assert len(sent) <= 6
    assert sum(rows for _, rows in sent) <= 6


@pytest.mark.parametrize("unlocked", [False, True], ids=["locked", "unlocked"])
def test_rotating_a_thousand_members_is_one_batch(engine: Engine, unlocked: bool) -> None:
    """A removal from a group of many seals a grant to each of the others and writes them in one batch, with a
    handful of statements around it, whoever removes."""
    members = MEMBERS
    PlainBase.metadata.create_all(engine)
    founder_id, circle_id = _circle(engine, readers=2)
    # The same key pair for all: what is counted is the sealing to each and the writing, not their enrolment.
    with engine.begin() as connection:
        keys = PlainBase.metadata.tables["readers_key"]
        ids = range(10, members + 9)
        connection.execute(insert(Reader.__table__), [{"id": one} for one in ids])
        root = connection.execute(
            select(keys).where(keys.c.owner_id == founder_id, keys.c.purpose == "root")
        ).one()
        made = [
            describe(KeyBytes.generate(), owner_reference("readers", (one,)), Purpose.ROOT) for one in ids
        ]
        connection.execute(
            insert(keys),
            [
                {
                    **root._mapping,
                    "owner_id": one,
                    "key_id": key.stored.key_id,
                    "owner_reference": key.stored.owner_reference,
                    "commitment": key.stored.commitment,
                    "public_key": key.stored.public_key,
                }
                for one, key in zip(ids, made, strict=True)
            ],
        )
    with Session(engine) as session:
        founder = session.get_one(Reader, founder_id)
        with envelope.unlock(session, founder, secret=secret_of("founder")):
            session.add_all([Seat(circle_id=circle_id, reader_id=one) for one in ids])
            session.commit()
    grants = PlainBase.metadata.tables["seats_keygrant"]
    before = count(engine, grants)
    leaver = next(one for one in _seats(engine) if one != founder_id and one < 10)
    with Session(engine) as session, _unlocked(session, None):
        founder = session.get_one(Reader, founder_id)
        keys_of_founder = envelope.unlock(session, founder, secret=secret_of("founder")) if unlocked else None
        session.commit()
        with _entered(keys_of_founder):
            seat = session.get_one(Seat, (circle_id, leaver))
            with calls_sent(engine) as sent:
                session.delete(seat)
                session.commit()

    batches = [rows for statement, rows in sent if statement.startswith("INSERT INTO seats_keygrant")]
    assert sum(batches) in (members, len(batches))
    assert count(engine, grants) == before - 1 + members
    assert len(batches) == 1
    assert len(sent) <= 16


@contextmanager
def _entered(unlocked: UnlockedSession | None) -> Iterator[None]:
    if unlocked is None:
        yield
    else:
        with unlocked:
            yield


def _seats(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        return list(connection.scalars(select(Seat.__table__.c.reader_id)))


@pytest.mark.any_database
def test_unlocking_a_user_of_many_groups_takes_six_queries(engine: Engine) -> None:
    """Many groups of many epochs: six queries and no more, and rows of the first and the last epoch are
    readable after it."""
    circles, generations = MEMBERS // 20, MEMBERS // 50
    PlainBase.metadata.create_all(engine)
    with Session(engine) as session:
        reader = Reader()
        envelope.enroll(session, reader, secret=secret_of("reader"))
        session.execute(insert(Circle.__table__), [{"id": 1 + n} for n in range(circles)])
        session.execute(
            insert(Seat.__table__), [{"circle_id": 1 + n, "reader_id": reader.id} for n in range(circles)]
        )
        _insert_epochs(session, reader, circles, generations)
        session.commit()
        reader_id = reader.id
    for turn in range(2):  # the first adopts what was sealed
        with Session(engine) as session:
            reader = session.get_one(Reader, reader_id)
            with calls_sent(engine) as sent:
                unlocked = envelope.unlock(session, reader, secret=secret_of("reader"))
            session.commit()
            with unlocked:
                session.add_all([Letter(circle_id=1 + n, text=f"letter {turn}") for n in range(circles)])
                session.commit()
                texts = [letter.text for letter in session.scalars(select(Letter))]
                opened = [
                    unlocked.keyring.open(key.key_id)
                    for owner in unlocked.places
                    for key in unlocked.keyring.keys_of(owner)
                ]

    queries = [statement for statement, _ in sent if not statement.startswith("PRAGMA")]
    assert len(queries) <= 6
    assert all(statement.startswith("SELECT") for statement in queries)
    assert sorted(texts) == ["letter 0"] * circles + ["letter 1"] * circles
    assert len(opened) == circles * generations * 2 + 2
    assert None not in opened


def _insert_epochs(session: Session, reader: Reader, circles: int, generations: int) -> None:
    """Circles as so many rotations leave them, in three statements: each epoch's root key granted to the
    reader, and linked to the next one."""
    seals = envelope.policy.seals
    circle_class, grant_class = owner_class_of(Circle.__table__), grant_class_of(Seat.__mapper__)
    readers = KeyStore(session, owner_class_of(Reader.__table__), seals)  # type: ignore[arg-type]
    (recipient,) = readers.load_active_roots([(reader.id,)]).values()
    keys, grants = [], []
    for number in range(1, circles + 1):
        reference, made, previous = owner_reference("circles", (number,)), [], None
        for epoch in range(1, generations + 1):
            root = describe(KeyBytes.generate(), reference, Purpose.ROOT, epoch=epoch)
            data = describe(KeyBytes.generate(), reference, Purpose.DATA, epoch=epoch)
            state = KeyState.ACTIVE if epoch == generations else KeyState.RETIRED
            proof = None if previous is None else proof_of_epoch(previous, root.stored.key_id.bytes)
            stored = replace(root.stored, state=state, proof=proof, granted=1)
            if previous is not None:
                made[-1] = link_to_newer_root(previous, root)
            made += [replace(wrap_under_root(data, root), state=state), stored]
            previous = OpenedKey(stored, root.key)
            row = (number, reader.id)
            grants.append((row, sealed_grant(previous, grant_class.granting_row(row), recipient.stored)))  # type: ignore[union-attr]
        keys += [((number,), key) for key in reversed(made)]
    KeyStore(session, circle_class, seals).insert_keys(keys)  # type: ignore[arg-type]
    GrantStore(session, grant_class, seals).insert(grants)  # type: ignore[arg-type]


@pytest.mark.any_database
def test_without_grants_nothing_is_asked_for_them(engine: Engine) -> None:
    """An application without a KeyGrant unlocks with two queries, and writes with its own INSERT alone."""
    lone.Base.metadata.create_all(engine)
    with Session(engine) as session:
        hermit_id = lone.new_hermit(session).id
    with Session(engine) as session:
        hermit = session.get_one(lone.Hermit, hermit_id)
        with calls_sent(engine) as unlocking:
            unlocked = lone.unlock(session, hermit)
        with unlocked, calls_sent(engine) as writing:
            session.add(lone.Saying(hermit_id=hermit_id, body="text"))
            session.flush()
            session.add(lone.Saying(hermit_id=hermit_id, body="more"))
            session.commit()

    assert len([statement for statement, _ in unlocking if not statement.startswith("PRAGMA")]) == 2
    assert [statement[:19] for statement, _ in writing] == ["INSERT INTO sayings"] * 2


@pytest.mark.any_database
def test_a_transaction_looks_once_before_it_writes(engine: Engine) -> None:
    """Whether somebody left is asked once in each transaction, with one small query."""
    founder_id, circle_id = _circle(engine, readers=1)
    with Session(engine) as session:
        founder = session.get_one(Reader, founder_id)
        with envelope.unlock(session, founder, secret=secret_of("founder")) as unlocked:
            unlocked.settle()
            session.commit()
            sizes = []
            for _ in range(2):
                with calls_sent(engine) as sent:
                    for n in range(5):
                        session.add(Letter(circle_id=circle_id, text=f"letter {n}"))
                        session.flush()
                    session.commit()
                sizes.append(len([one for one, _ in sent if one.startswith("SELECT")]))

    assert sizes == [1, 1]


# ---------------------------------------------------------------- what a locked value is told as


def test_what_a_locked_value_of_a_group_is_told_as(lite: Engine) -> None:
    """A group has no secret: the error names the classes whose rows give its key, and whom they give it to; a
    value that nobody shares is its owner's to unlock, as ever."""
    with Session(lite) as session:
        group_id = found_group(session, "founder")
    write(lite, "founder", group_id, "hello")
    with Session(lite) as session:
        told = {}
        for name, read in {
            "read": lambda: session.scalars(select(Post)).all()[0].text,
            "write": lambda: session.execute(sa.insert(Post).values(group_id=group_id, text="x")),
            "own": lambda: session.scalars(select(User).where(User.email == "founder")).one().diary,
        }.items():
            with pytest.raises(LockedError) as caught:
                read()
            told[name] = str(caught.value)

    for name in ("read", "write"):
        assert "unlock a Group or User who has the key by a Membership or Nesting around this" in told[name]
        assert "or its Group if that has a secret" in told[name]
        assert "secret=" not in told[name]
    assert "User.diary is locked: unlock its owner around this" in told["own"]


def test_what_a_group_that_was_not_enrolled_is_told(lite: Engine) -> None:
    """A group has no secret: who forgot to enroll it is told of a member and a grant instead; of a class
    without grants, nothing is told of members."""
    with Session(lite) as session:
        session.add(Group(name="g"))
        with pytest.raises(NotEnrolledError) as adding:
            session.flush()
        session.rollback()
        told = []
        for owner in (Group(name="g"), User(email="eve")):
            with pytest.raises(EnrollmentError) as enrolling:
                envelope.enroll(session, owner)
            told.append(str(enrolling.value))

    assert "While a member-to-be is unlocked, call envelope.enroll(session, owner) in" in str(adding.value)
    assert "add the Membership or Nesting that gives" in str(adding.value)
    assert "secret=" not in str(adding.value)
    assert ["members-to-be" in one for one in told] == [True, False]
