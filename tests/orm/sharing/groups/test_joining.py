"""Who joins a group reads with the next unlock: at once, or when somebody with the key is there; all of the
past, or what was written since."""

import secrets

import pytest
from sqlalchemy import Engine, StaticPool, create_engine, select
from sqlalchemy.orm import Session

from sqlalchemy_envelope import Envelope, KdfProfile, enforce_foreign_keys
from sqlalchemy_envelope.keys.providers import ServerKeyring
from tests.orm.sharing.groups.steps import id_of, leave_group, unlocked_user
from tests.orm.sharing_models import (
    Base,
    Club,
    ClubMembership,
    Group,
    Membership,
    Minute,
    Post,
    User,
    count,
    envelope,
    epochs,
    found_group,
    is_readable,
    read,
    secret_of,
    unlock,
    write,
)

pytestmark = pytest.mark.both_lines
FIRST = "the first post"
MEMBERSHIP_GRANTS = Base.metadata.tables["memberships_keygrant"]


def _join(engine: Engine, group_id: int, name: str, by: str | None) -> None:
    """Somebody is added, by a session that is locked or that somebody has unlocked."""
    with Session(engine) as session, unlocked_user(session, by):
        session.add(Membership(group_id=group_id, user_id=id_of(session, name)))
        session.commit()


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
        leave_group(shared, group_id, "member", by=by)
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
        member_id = id_of(session, "member")
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
    leave_group(shared, group_id, "newcomer")
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
    leave_group(shared, group_id, "member")
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
        leave_group(shared, group_id, "newcomer")
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
    leave_group(
        shared, group_id, "newcomer"
    )  # what a database writer can do as well: no key is needed for it
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
        session.add(ClubMembership(club_id=club.id, user_id=id_of(session, founder)))
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
    with Session(shared) as session, unlocked_user(session, by):
        session.add(ClubMembership(club_id=club_id, user_id=id_of(session, "newcomer")))
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
            session.add(ClubMembership(club_id=club_id, user_id=id_of(session, name)))
            session.flush()
            session.add(Minute(club_id=club_id, text=f"with {name}"))
            session.commit()
        if name == "member":
            with Session(shared) as session, unlocked_user(session, None):
                session.delete(session.get_one(ClubMembership, (club_id, id_of(session, name))))
                session.commit()

    assert _minutes(shared, "member") == []
    assert _minutes(shared, "newcomer") == ["with newcomer"]
    assert _minutes(shared, "founder") == ["at the founding", "with member", "with newcomer"]
