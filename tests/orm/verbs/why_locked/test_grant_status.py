"""Where each granting row stands is told in one answer, whoever asks, by SELECTs alone."""

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, delete, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    AsyncEnvelope,
    ConfigurationError,
    Envelope,
    GrantStanding,
    KdfProfile,
    LockReason,
    OwnerName,
)
from sqlalchemy_envelope.keys.providers import ServerKeyring
from sqlalchemy_envelope.orm.sharing.invariants import violations
from sqlalchemy_envelope.orm.tables.owners import owner_class_of
from tests.orm.sharing_models import (
    Base,
    Group,
    KeysBase,
    Membership,
    Post,
    ProfileShare,
    Team,
    TeamPlace,
    Tenant,
    User,
    add_user,
    calls_sent,
    envelope,
    found_group,
    secret_of,
)
from tests.orm.verbs.why_locked.scene import add_pending, as_user

FOUNDER, MEMBER, OUTSIDER = 1, 2, 3
GROUP = 1
GRANTS: sa.Table = Base.metadata.tables["memberships_keygrant"]
KEYS: sa.Table = Base.metadata.tables["groups_key"]
SCOPES: sa.Table = Base.metadata.tables["users_key"]
SHARE_GRANTS: sa.Table = Base.metadata.tables["profile_shares_keygrant"]


def standings(engine: Engine, grants: Any = Membership) -> dict[tuple[Any, ...], GrantStanding]:
    """By granting row, without anybody unlocked."""
    with Session(engine) as session:
        return {one.row: one.standing for one in envelope.grant_states(session, grants)}


def test_each_row_says_where_it_stands(both: Engine) -> None:
    """Granted, pending and void, of a whole class."""
    with Session(both) as session:
        session.add(User(id=7, email="no keys", diary=None, display_name=None))
        add_user(session, "typed")
        session.commit()
        typed = session.scalars(select(User.id).where(User.email == "typed")).one()
    add_pending(both)
    add_pending(both, 7)
    with both.begin() as connection:
        connection.execute(insert(Membership.__table__).values(group_id=GROUP, user_id=typed))

    assert {
        (GROUP, FOUNDER): GrantStanding.GRANTED,
        (GROUP, MEMBER): GrantStanding.GRANTED,
        (GROUP, OUTSIDER): GrantStanding.PENDING,
        (GROUP, 7): GrantStanding.PENDING,
        (GROUP, typed): GrantStanding.VOID,
    } == standings(both)
    with Session(both) as session:
        found = {one.row[1]: one for one in envelope.grant_states(session, Membership)}

        assert (found[OUTSIDER].is_enrolled, found[7].is_enrolled) == (True, False)
        assert "for User 1, User 2 to fulfil" in str(found[OUTSIDER])
        assert "User 7 has no keys yet" in str(found[7])


def test_a_row_that_was_pointed_at_somebody_else_is_void(scene: Engine) -> None:
    """The wrap is the former member's, and the row says another one now."""
    with scene.begin() as connection:
        table = Membership.__table__
        connection.execute(update(table).where(table.c.user_id == MEMBER).values(user_id=OUTSIDER))

    assert GrantStanding.VOID is standings(scene)[GROUP, OUTSIDER]


def _of_by_sql(session: Session) -> None:
    session.execute(text("UPDATE memberships SET group_id = 2 WHERE group_id = 1 AND user_id = 2"))


def _to_by_sql(session: Session) -> None:
    session.execute(text("UPDATE memberships SET user_id = 3 WHERE group_id = 1 AND user_id = 2"))


def _insert_by_sql(session: Session) -> None:
    session.execute(text("INSERT INTO memberships (group_id, user_id) VALUES (1, 3)"))


def _share_by_sql(session: Session) -> None:
    session.execute(text("UPDATE profile_shares SET user_id = 1 WHERE user_id = 2"))


def _without_older(session: Session) -> None:
    """The share has no wrap of the epoch before, as older releases left it."""
    older = select(SCOPES.c.key_id).where(SCOPES.c.scope == "profile", SCOPES.c.state == "retired")
    session.execute(delete(SHARE_GRANTS).where(SHARE_GRANTS.c.key_id.in_(older)))


VOID, PENDING, GRANTED = GrantStanding.VOID, GrantStanding.PENDING, GrantStanding.GRANTED


@pytest.mark.parametrize(
    ("change", "kind", "row", "before", "after"),
    [
        (_of_by_sql, Membership, (2, MEMBER), VOID, VOID),
        (_to_by_sql, Membership, (GROUP, OUTSIDER), VOID, VOID),
        (_insert_by_sql, Membership, (GROUP, OUTSIDER), VOID, VOID),
        (_share_by_sql, ProfileShare, (1,), VOID, VOID),
        (_without_older, ProfileShare, (1,), PENDING, GRANTED),
        (lambda one: one.add(Membership(group_id=1, user_id=3)), Membership, (1, 3), PENDING, GRANTED),
    ],
)
def test_whoever_asks_gets_one_answer(
    scene: Engine,
    change: Callable[[Session], None],
    kind: type[Any],
    row: tuple[int, ...],
    before: GrantStanding,
    after: GrantStanding,
) -> None:
    """A status, `why_locked` and the invariants agree. What is void stays void when everybody has settled,
    breaks no rule and waits for nobody; what is pending is granted then."""
    with as_user(scene, "member") as session:
        envelope.enroll(session, Group(id=2, name="another"))
        session.add(Membership(group_id=2, user_id=FOUNDER))
        session.add(ProfileShare(id=2, user_id=MEMBER, group_id=2))
        session.add(ProfileShare(id=1, user_id=MEMBER, group_id=GROUP))
        session.commit()
        session.execute(delete(ProfileShare).where(ProfileShare.group_id == 2))
        session.get_one(User, MEMBER).display_name = "under the second epoch"
        session.commit()
    with Session(scene) as session:
        envelope.attach(session)
        change(session)
        session.commit()
    stood, waits = standings(scene, kind)[row], _broken(scene)
    for name in ("founder", "member"):
        with as_user(scene, name) as session:
            envelope.settle(session)
            session.commit()
    with Session(scene) as session:
        (told,) = [one for one in envelope.grant_states(session, kind) if one.row == row]
        of, to = (
            session.get_one({"User": User, "Group": Group}[one.class_name], one.primary_key)
            for one in (told.of, told.to)
        )
        attribute = "name" if kind is Membership else "display_name"
        why_not = envelope.why_locked(session, of, attribute, reader=to)

    assert (before, after) == (stood, told.standing)
    assert (before is PENDING) == any(one[:3] in ("(a)", "(b)") for one in waits)
    assert ((LockReason.VOID, str(told)) if after is VOID else None) == (
        why_not and (why_not.reason, str(why_not.grant))
    )
    assert _broken(scene) == []


def _broken(engine: Engine) -> list[str]:
    with Session(engine) as session:
        return violations(session, [owner_class_of(one.__table__) for one in (User, Group)])  # type: ignore[misc]


def test_with_server_keys_an_older_grant_alone_is_void(sqlite_engine: Engine) -> None:
    """It may have been put back with its row, so that no holder ever grants the present epoch through it, and
    nobody is told to wait for that."""
    sealed = Envelope(
        kdf_profile=KdfProfile.unsafe_for_tests(),
        server_keys=ServerKeyring.from_text(ServerKeyring.generate_key()),
    )
    Base.metadata.create_all(sqlite_engine)
    with Session(sqlite_engine) as session:
        users, group = [User(id=one, email=str(one)) for one in (1, 2)], Group(id=1)
        sealed.enroll(session, users, secret={one: secret_of(one.email) for one in users})
        session.commit()
        with sealed.unlock(session, users[0], secret=secret_of("1")):
            sealed.enroll(session, group)
            session.add_all([Membership(group_id=1, user_id=one) for one in (1, 2)])
            session.commit()
            taken = session.execute(select(GRANTS).where(GRANTS.c.row_user_id == 2)).mappings().one()
            session.delete(session.get_one(Membership, (1, 2)))
            session.commit()
        session.execute(text("INSERT INTO memberships (group_id, user_id) VALUES (1, 2)"))
        session.execute(insert(GRANTS).values(dict(taken)))
        session.commit()
        with sealed.unlock(session, users[0], secret=secret_of("1")):
            sealed.settle(session)
            session.commit()
        states = {one.row[1]: one.standing for one in sealed.grant_states(session, Membership)}

    assert states == {1: GrantStanding.GRANTED, 2: GrantStanding.VOID}


def test_a_provider_can_fulfil(sqlite_engine: Engine) -> None:
    """A provider that holds a slot of the group is named beside its members."""
    staffed = Envelope(
        kdf_profile=KdfProfile.unsafe_for_tests(),
        providers={"staff": ServerKeyring.from_text(ServerKeyring.generate_key())},
    )
    Base.metadata.create_all(sqlite_engine)
    with Session(sqlite_engine) as session:
        user, group = add_user(session, "newcomer"), Group(name="a group")
        staffed.enroll(session, group, provider="staff")
        session.commit()
        session.add(Membership(group=group, user=user))
        session.commit()
        (found,) = staffed.grant_states(session, Membership)

    assert (found.standing, found.holders, found.providers) == (GrantStanding.PENDING, (), ("staff",))
    assert "for provider 'staff' to fulfil" in str(found)


def test_a_row_that_an_epoch_left_out_is_pending(scene: Engine) -> None:
    """Who has earlier epochs and not the present one waits for a holder."""
    with as_user(scene, "founder") as session:
        session.add(Membership(group_id=GROUP, user_id=OUTSIDER))
        session.commit()
        session.delete(session.get_one(Membership, (GROUP, MEMBER)))
        session.commit()
    newest = select(KEYS.c.key_id).where(KEYS.c.purpose == "root", KEYS.c.state == "active")
    with scene.begin() as connection:
        mine = GRANTS.c.key_id.in_(newest), GRANTS.c.row_user_id == OUTSIDER
        connection.execute(delete(GRANTS).where(*mine))

    assert GrantStanding.PENDING is standings(scene)[GROUP, OUTSIDER]


def test_objects_of_several_classes(scene: Engine) -> None:
    """Objects are answered in their order."""
    with as_user(scene, "founder") as session:
        session.add(ProfileShare(user_id=FOUNDER, group_id=GROUP))
        session.commit()
        rows = [session.get_one(Membership, (GROUP, MEMBER)), session.scalars(select(ProfileShare)).one()]
        found = envelope.grant_states(session, [*rows, session.get_one(Membership, (GROUP, FOUNDER))])

    assert [(one.grant, one.scope) for one in found] == [
        ("Membership", None),
        ("ProfileShare", "profile"),
        ("Membership", None),
    ]
    assert {GrantStanding.GRANTED} == {one.standing for one in found}


@pytest.mark.parametrize("grants", [User, [User()], [Membership(group_id=1, user_id=1)], [None]])
def test_what_is_no_granting_row(scene: Engine, grants: Any) -> None:
    """Only rows of a KeyGrant that are in the database stand anywhere."""
    with Session(scene) as session, pytest.raises(ConfigurationError):
        envelope.grant_states(session, grants)


def test_a_row_without_its_seal_is_void(sqlite_engine: Engine) -> None:
    """Where server keys are configured, a grant that somebody planted counts for nothing."""
    sealed = Envelope(
        kdf_profile=KdfProfile.unsafe_for_tests(),
        server_keys=ServerKeyring.from_text(ServerKeyring.generate_key()),
    )
    Base.metadata.create_all(sqlite_engine)
    with Session(sqlite_engine) as session:
        user, group = User(email="one"), Group(name="a group")
        with sealed.enroll(session, user, secret=secret_of("one")):
            sealed.enroll(session, group)
            session.add(Membership(group=group, user=user))
            session.commit()
        before = sealed.grant_states(session, Membership)
        session.execute(update(GRANTS).values(wrapped=b"planted"))
        after = sealed.grant_states(session, Membership)

    assert [one.standing for one in before] == [GrantStanding.GRANTED]
    assert [one.standing for one in after] == [GrantStanding.VOID]


def test_keys_of_several_columns(sqlite_engine: Engine) -> None:
    """Owners and rows with composite primary keys and UUIDs are found and named."""
    KeysBase.metadata.create_all(sqlite_engine)
    secret = secret_of("tenants")
    with Session(sqlite_engine) as session:
        one, two = (Tenant(region="eu", number=number) for number in (1, 2))
        envelope.enroll(session, two, secret=secret)
        with envelope.enroll(session, one, secret=secret):
            team = Team(name="a team")
            envelope.enroll(session, team)
            session.add(TeamPlace(team_id=team.id, tenant_region="eu", tenant_number=1))
            session.commit()
        session.add(TeamPlace(team_id=team.id, tenant_region="eu", tenant_number=2))
        session.commit()
        with envelope.unlock(session, two, secret=secret):
            found = envelope.why_locked(session, team)
        states = envelope.grant_states(session, session.scalars(select(TeamPlace)).all())
        named = OwnerName("Team", (team.id,))

    assert found is not None
    assert (found.reason, found.owner) == (LockReason.PENDING, named)
    assert found.grant is not None
    assert found.grant.holders == (OwnerName("Tenant", ("eu", 1)),)
    assert {(one.to.primary_key, one.standing) for one in states} == {
        (("eu", 1), GrantStanding.GRANTED),
        (("eu", 2), GrantStanding.PENDING),
    }


def test_a_thousand_rows_cost_as_many_statements_as_one(scene: Engine) -> None:
    """The number of statements depends on the classes alone."""
    counts = []
    for extra in (0, 30):
        with Session(scene) as session:
            envelope.attach(session)
            session.add_all([User(id=100 + at, email=f"user {at}") for at in range(extra)])
            session.flush()
            session.add_all([Membership(group_id=GROUP, user_id=100 + at) for at in range(extra)])
            if not extra:
                session.add(Membership(group_id=GROUP, user_id=OUTSIDER))
            session.commit()
        with Session(scene) as session, calls_sent(scene) as sent:
            found = envelope.grant_states(session, Membership)
        counts.append((len(found), len(sent)))

    assert counts == [(3, 6), (33, 6)]


async def test_async(async_engine: AsyncEngine) -> None:
    """The asynchronous face answers the same."""
    aio = AsyncEnvelope(envelope)

    def make(connection: Any) -> None:
        Base.metadata.create_all(connection)

    async with async_engine.begin() as connection:
        await connection.run_sync(make)
    async with AsyncSession(async_engine) as session:
        await session.run_sync(lambda plain: (add_user(plain, "founder"), add_user(plain, "outsider")))
        await session.run_sync(lambda plain: found_group(plain, "founder"))
        await session.commit()
        outsider = (await session.scalars(select(User).where(User.email == "outsider"))).one()
        session.add(Membership(group_id=GROUP, user_id=outsider.id))
        await session.commit()
        outsider = (await session.scalars(select(User).where(User.email == "outsider"))).one()
        async with aio.unlock(session, outsider, secret=secret_of("outsider")):
            post = (await session.scalars(select(Post))).one()
            found = await aio.why_locked(session, post)
            states = await aio.grant_states(session, Membership)

    assert found is not None
    assert LockReason.PENDING is found.reason
    assert [one.standing for one in states] == [GrantStanding.GRANTED, GrantStanding.PENDING]
