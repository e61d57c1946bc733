"""A granting row that is deleted and added again in one flush, which SQLAlchemy makes one UPDATE of: it is
the same right as before, and where it was void it is one now."""

import uuid
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
from sqlalchemy import Engine, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_envelope import AlreadyEnrolledError, AsyncEnvelope, GrantStanding
from sqlalchemy_envelope.orm.sharing.invariants import violations
from tests.orm.interleavings import OWNERS
from tests.orm.sharing import test_follows as following
from tests.orm.sharing_models import (
    Base,
    Club,
    ClubMembership,
    Group,
    KeysBase,
    Membership,
    Post,
    Team,
    TeamNote,
    TeamPlace,
    Tenant,
    User,
    add_user,
    envelope,
    epochs,
    found_group,
    is_readable,
    read,
    secret_of,
    unlock,
    write,
)
from tests.prepared import prepared

ADA, BOB, CLEO, DAN = 1, 2, 3, 4
NAMES = {ADA: "ada", BOB: "bob", CLEO: "cleo", DAN: "dan"}
FIRST = "the first post"


def _scene(engine: Engine) -> Engine:
    """Four users, of whom Ada, Bob and Cleo are in a group."""

    def make() -> None:
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            for name in NAMES.values():
                add_user(session, name)
            found_group(session, "ada", "bob", "cleo")

    prepared(engine, "row switches", make)
    return engine


@pytest.fixture
def scene(engine: Engine) -> Engine:
    return _scene(engine)


@pytest.fixture
def lite(sqlite_engine: Engine) -> Engine:
    return _scene(sqlite_engine)


def _standings(engine: Engine) -> dict[int, GrantStanding]:
    with Session(engine) as session:
        return {one.row[1]: one.standing for one in envelope.grant_states(session, Membership)}


def _broken(engine: Engine) -> list[str]:
    with Session(engine) as session:
        return violations(session, OWNERS)


def _assign(session: Session, *users: int, **values: Any) -> None:
    """As a request that puts the whole list of members."""
    group = session.get_one(Group, 1)
    group.memberships = [Membership(user_id=one, **values) for one in users]


@pytest.mark.parametrize("by", ["ada", None])
@pytest.mark.parametrize("users", [(ADA, BOB, CLEO), (ADA, CLEO), (ADA, BOB, CLEO, DAN), (ADA, CLEO, DAN)])
@pytest.mark.any_database
def test_a_list_of_members_assigned_anew(scene: Engine, users: tuple[int, ...], by: str | None) -> None:
    """Who stays keeps their grants, who comes is granted, and who is dropped reads nothing new. An epoch
    starts where somebody was dropped, and not else."""
    with Session(scene) as session, unlock(session, by) if by else nullcontext():
        envelope.attach(session)
        _assign(session, *users, role="new")
        session.commit()
    stood = _standings(scene)
    write(scene, "ada", 1, "later")

    assert {one: GrantStanding.GRANTED for one in users if one != DAN} == {
        one: where for one, where in stood.items() if one != DAN
    }
    assert epochs(scene, Group, 1) == (1 if BOB in users else 2 if by else 3)  # a locked one is not proven
    assert {one: read(scene, NAMES[one]) for one in NAMES} == {
        one: [FIRST, "later"] if one in users else [] for one in NAMES
    }
    assert _broken(scene) == []


def _put_back(session: Session) -> None:
    group = session.get_one(Group, 1)
    membership = next(one for one in group.memberships if one.user_id == BOB)
    group.memberships.remove(membership)
    group.memberships.append(Membership(user_id=BOB))


def _one_by_one(session: Session) -> None:
    for membership in session.scalars(select(Membership)):
        session.delete(membership)
    session.add_all([Membership(group_id=1, user_id=one) for one in (ADA, BOB, CLEO)])


def _expired(session: Session) -> None:
    group = session.get_one(Group, 1)
    memberships = list(group.memberships)
    session.expire_all()
    group.memberships = [Membership(user_id=one) for one in (ADA, BOB, CLEO)]
    assert len(memberships) == len(group.memberships)


@pytest.mark.parametrize("switch", [_put_back, _one_by_one, _expired])
def test_nothing_changed(lite: Engine, switch: Callable[[Session], None]) -> None:
    """A member who is taken out and put back, all of them deleted and added, objects that are expired: no
    grant is made or lost, and no epoch starts."""
    grants = select(Base.metadata.tables["memberships_keygrant"].c.grant_id)
    with Session(lite) as session:
        before = set(session.scalars(grants))
        envelope.attach(session)
        switch(session)
        session.commit()
        after = set(session.scalars(grants))

    assert before == after
    assert epochs(lite, Group, 1) == 1
    assert [read(lite, name) for name in ("bob", "cleo")] == [[FIRST]] * 2


def test_what_is_pending_stays_pending(lite: Engine) -> None:
    """A right that waits for a holder is one still, and is fulfilled once."""
    for users in ((ADA, BOB, CLEO, DAN), (ADA, BOB, CLEO, DAN)):
        with Session(lite) as session:
            envelope.attach(session)
            _assign(session, *users)
            session.commit()
    stood = _standings(lite)
    read(lite, "ada")

    assert GrantStanding.PENDING is stood[DAN]
    assert read(lite, "dan") == [FIRST]
    assert _broken(lite) == []


def test_a_row_that_sql_deleted_is_new(lite: Engine) -> None:
    """The session still has its object, and the row is gone: the new one is granted as any."""
    with Session(lite) as session, unlock(session, "ada"):
        session.get_one(Membership, (1, BOB))
        session.execute(text("DELETE FROM memberships WHERE user_id = 2"))
        session.expire_all()
        session.add(Membership(group_id=1, user_id=BOB))
        session.commit()
    write(lite, "ada", 1, "later")

    assert read(lite, "bob") == [FIRST, "later"]
    assert _broken(lite) == []


def test_a_switch_that_is_rolled_back(lite: Engine) -> None:
    """A savepoint takes the new list back, and the next flush begins anew."""
    with Session(lite) as session, unlock(session, "ada"):
        with session.begin_nested() as savepoint:
            _assign(session, ADA, DAN)
            session.flush()
            savepoint.rollback()
        _assign(session, ADA, BOB)
        session.commit()
    write(lite, "ada", 1, "later")

    assert _standings(lite) == {ADA: GrantStanding.GRANTED, BOB: GrantStanding.GRANTED}
    assert (read(lite, "bob"), read(lite, "cleo"), read(lite, "dan")) == ([FIRST, "later"], [], [])


def test_from_join_counts_no_switch_as_a_join(lite: Engine) -> None:
    """Where each join starts an epoch, a row that is written anew starts none."""
    with Session(lite) as session, unlock(session, "ada"):
        envelope.enroll(session, Club(id=1))
        session.add_all([ClubMembership(club_id=1, user_id=one) for one in (ADA, BOB)])
        session.commit()
        session.delete(session.get_one(ClubMembership, (1, BOB)))
        session.add(ClubMembership(club_id=1, user_id=BOB))
        session.commit()

    assert epochs(lite, Club, 1) == 1
    assert _broken(lite) == []


def test_an_owner_that_is_written_anew(lite: Engine) -> None:
    """A user who is deleted and added with the same primary key in one flush stays in the group, and no epoch
    starts; to enroll them needs a flush between, which is told."""
    with Session(lite) as session, unlock(session, "ada"):
        session.delete(session.get_one(User, BOB))
        session.add(User(id=BOB, email="robert"))
        session.commit()
        session.delete(session.get_one(User, BOB))
        with pytest.raises(AlreadyEnrolledError, match=r"delete that one in a flush of its own"):
            envelope.enroll(session, User(id=BOB, email="robert"), secret=secret_of("robert"))

    assert epochs(lite, Group, 1) == 1
    assert GrantStanding.GRANTED is _standings(lite)[BOB]


# ---------------------------------------------------------------- a row that says something else


FIRST_TEAM, OTHER_TEAM, PLACE = uuid.UUID(int=1), uuid.UUID(int=2), uuid.UUID(int=3)


def _teams(engine: Engine) -> None:
    """Two teams of the tenant 1, and in the first the tenant 2 too, with the place 3."""
    KeysBase.metadata.create_all(engine)
    with Session(engine) as session:
        tenants = [Tenant(region="eu", number=number) for number in (1, 2, 3)]
        envelope.enroll(session, tenants, secret={one: secret_of(str(one.number)) for one in tenants})
        session.commit()
        with _tenant(session, 1):
            for team_id in (FIRST_TEAM, OTHER_TEAM):
                envelope.enroll(session, Team(id=team_id))
                session.add(TeamPlace(team_id=team_id, tenant_region="eu", tenant_number=1))
                session.add(TeamNote(team_id=team_id, text="before"))
            session.add(_place(FIRST_TEAM, 2))
            session.commit()


def _tenant(session: Session, number: int) -> Any:
    return envelope.unlock(session, session.get_one(Tenant, ("eu", number)), secret=secret_of(str(number)))


def _place(team_id: uuid.UUID, number: int) -> TeamPlace:
    return TeamPlace(id=PLACE, team_id=team_id, tenant_region="eu", tenant_number=number)


def _notes(engine: Engine, number: int, team_id: uuid.UUID) -> list[str | None]:
    with Session(engine) as session, _tenant(session, number):
        notes = session.scalars(select(TeamNote).where(TeamNote.team_id == team_id).order_by(TeamNote.id))
        return [one.text for one in notes if is_readable(one, "text")]


@pytest.mark.parametrize("by", [1, None])
@pytest.mark.parametrize("as_orphan", [False, True])
@pytest.mark.parametrize(("team_id", "number"), [(FIRST_TEAM, 3), (OTHER_TEAM, 2), (OTHER_TEAM, 3)])
def test_the_new_row_says_something_else(
    sqlite_engine: Engine, team_id: uuid.UUID, number: int, as_orphan: bool, by: int | None
) -> None:
    """The primary key is the same, and the group or the member another: who was in is out, and who is named
    now is in."""
    prepared(sqlite_engine, "teams of places", lambda: _teams(sqlite_engine))
    with Session(sqlite_engine) as session, _tenant(session, by) if by else nullcontext():
        envelope.attach(session)
        team, place = session.get_one(Team, FIRST_TEAM), session.get_one(TeamPlace, PLACE)
        if as_orphan and team_id == FIRST_TEAM:
            team.places = [*(one for one in team.places if one is not place), _place(team_id, number)]
        elif as_orphan:
            team.places.remove(place)
            other = session.get_one(Team, team_id)
            other.places.append(_place(team_id, number))
        else:
            session.delete(place)
            session.add(_place(team_id, number))
        session.commit()
    with Session(sqlite_engine) as session, _tenant(session, 1):
        envelope.settle(session)
        session.add_all([TeamNote(team_id=one, text="after") for one in (FIRST_TEAM, OTHER_TEAM)])
        session.commit()

    assert _notes(sqlite_engine, number, team_id) == ["before", "after"]
    assert _notes(sqlite_engine, 2, FIRST_TEAM) == []
    assert _notes(sqlite_engine, 1, FIRST_TEAM) == ["before", "after"]


# ---------------------------------------------------------------- what was void


def _inserted(session: Session) -> None:
    session.execute(text("INSERT INTO memberships (group_id, user_id) VALUES (1, 4)"))


def _pointed(session: Session) -> None:
    session.execute(update(Membership.__table__).values(user_id=DAN).where(text("user_id = 2")))  # type: ignore[arg-type]


def _with_delete(session: Session) -> None:
    session.delete(session.get_one(Membership, (1, DAN)))
    session.add(Membership(group_id=1, user_id=DAN))


def _with_a_list(session: Session) -> None:
    _assign(session, ADA, CLEO, DAN)


@pytest.mark.parametrize("by", ["ada", None])
@pytest.mark.parametrize("cure", [_with_delete, _with_a_list])
@pytest.mark.parametrize("void", [_inserted, _pointed])
@pytest.mark.any_database
def test_a_void_row_is_cured(
    scene: Engine, void: Callable[[Session], None], cure: Callable[[Session], None], by: str | None
) -> None:
    """Deleted and added as an object, be it in one flush, it is a right; whom it named before is out."""
    with Session(scene) as session:
        void(session)
        session.commit()
    stood = _standings(scene)
    with Session(scene) as session, unlock(session, by) if by else nullcontext():
        envelope.attach(session)
        cure(session)
        session.commit()
    write(scene, "ada", 1, "later")

    assert GrantStanding.VOID is stood[DAN]
    assert read(scene, "dan") == [FIRST, "later"]
    assert GrantStanding.GRANTED is _standings(scene)[DAN]
    if void is _pointed:
        assert read(scene, "bob") == []
    assert _broken(scene) == []


def _without_share(session: Session) -> None:
    session.execute(text("DELETE FROM profile_shares WHERE user_id = 2"))


def _share_by_sql(session: Session) -> None:
    _without_share(session)
    session.execute(text("INSERT INTO profile_shares (user_id, group_id) VALUES (2, 1)"))


def _member_by_sql(session: Session) -> None:
    session.execute(text("UPDATE memberships SET user_id = 3 WHERE user_id = 2"))


@pytest.mark.parametrize(("harm", "member"), [(_without_share, 2), (_share_by_sql, 2), (_member_by_sql, 3)])
def test_what_follows_a_row_is_cured_with_it(
    sqlite_engine: Engine, harm: Callable[[Session], None], member: int
) -> None:
    """A share that follows a membership, missing or void, comes back with it."""
    prepared(sqlite_engine, "follows", lambda: following._scene(sqlite_engine))
    following._log_in(sqlite_engine, 2)
    with Session(sqlite_engine) as session:
        harm(session)
        session.commit()
    with Session(sqlite_engine) as session, following._unlock(session, 1):
        group = session.get_one(following.Group, 1)
        group.memberships = [following.Membership(user_id=one) for one in (1, member)]
        session.commit()
    for user_id in (member, 1):
        following._log_in(sqlite_engine, user_id)
    names = ["user 1", f"user {member}"]

    assert following._names(sqlite_engine, 1) == following._names(sqlite_engine, member) == names
    with Session(sqlite_engine) as session:
        shares = following.envelope.grant_states(session, following.ProfileShare)

        assert {GrantStanding.GRANTED} == {one.standing for one in shares}


async def test_asynchronously(async_engine: AsyncEngine) -> None:
    """The same through an AsyncSession: a list with one who stays, one who goes and one who comes."""
    aio = AsyncEnvelope(envelope)
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(async_engine) as session:
        for name in ("ada", "bob", "cleo"):
            await aio.enroll(session, User(email=name), secret=secret_of(name))
        await session.commit()
        ada = (await session.scalars(select(User).where(User.email == "ada"))).one()
        ids = {one.email: one.id for one in await session.scalars(select(User))}
        async with aio.unlock(session, ada, secret=secret_of("ada")):
            await aio.enroll(session, group := Group())
            session.add_all([Membership(group_id=group.id, user_id=ids[one]) for one in ("ada", "bob")])
            await session.commit()
            await session.refresh(group, ["memberships"])
            group.memberships = [Membership(user_id=ids[one]) for one in ("ada", "cleo")]
            await session.flush()
            session.add(Post(group_id=group.id, text="later"))
            await session.commit()
            states = await aio.grant_states(session, Membership)

    assert {ids["ada"], ids["cleo"]} == {one.row[1] for one in states}
    assert {GrantStanding.GRANTED} == {one.standing for one in states}
