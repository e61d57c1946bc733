"""Groups in groups, owners of other primary keys, and groups that were enrolled with nobody present."""

from itertools import pairwise

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from sqlalchemy_envelope import EnrollmentError, GrantError, NotEnrolledError
from sqlalchemy_envelope.orm.sharing import grant_flushes
from sqlalchemy_envelope.orm.sharing.beyond import MAX_LEVELS
from tests.orm.sharing.groups.steps import id_of, leave_group, unlocked_user
from tests.orm.sharing_models import (
    Affiliation,
    Group,
    KeysBase,
    Membership,
    Nesting,
    Organisation,
    Post,
    ProfileShare,
    Team,
    TeamNote,
    TeamPlace,
    Tenant,
    User,
    count,
    envelope,
    epochs,
    found_group,
    is_readable,
    read,
    secret_of,
    unlock,
)

pytestmark = pytest.mark.both_lines
FIRST = "the first post"


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
        leave_group(shared, group_id, "member", by=by)
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
            session.add(ProfileShare(user_id=id_of(session, name), group_id=group_id))
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
    with Session(shared) as session, unlocked_user(session, by):
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
        session.add(Membership(group_id=inner, user_id=id_of(session, "member")))
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
        session.add(Membership(group_id=chain[0], user_id=id_of(session, "member")))
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
            session.add(Membership(group_id=group.id, user_id=id_of(session, recipient)))
        with pytest.raises(EnrollmentError):
            session.commit()
        session.rollback()

        assert group.name == "expedition"
        envelope.enroll(session, group)
        session.add(Membership(group=group, user_id=id_of(session, "founder")))
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
        session.add(Membership(group=group, user_id=id_of(session, "founder")))
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
        membership = Membership(group_id=group.id, user_id=id_of(session, "founder"))
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
