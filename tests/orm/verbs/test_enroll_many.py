"""Many owners are enrolled at once: an album of assets, an import of groups. They cost the statements of one
owner, and are enrolled all or not at all."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    AlreadyEnrolledError,
    AsyncEnvelope,
    ConfigurationError,
    EnrollmentError,
    Envelope,
    KdfProfile,
    LockedError,
    SecretError,
    ServerKeyring,
)
from tests.orm.sharing_models import (
    Affiliation,
    Base,
    Circle,
    Club,
    ClubMembership,
    Group,
    Membership,
    Organisation,
    PlainBase,
    Post,
    Reader,
    Seat,
    User,
    add_user,
    calls_sent,
    count,
    envelope,
    found_group,
    is_readable,
    secret_of,
    unlock,
)
from tests.prepared import prepared

GROUP_KEYS = Base.metadata.tables["groups_key"]
SLOTS = Base.metadata.tables["groups_keyslot"]
GRANTS = Base.metadata.tables["memberships_keygrant"]


class Calls:
    """A provider beside the process that counts its calls, and does something when it is asked to wrap."""

    local = False
    reference = "calls"

    def __init__(self, on_wrap: Callable[[], object] = lambda: None) -> None:
        self.keys = ServerKeyring.from_text(ServerKeyring.generate_key())
        self.on_wrap, self.wraps = on_wrap, 0

    def wrap(self, key: bytes, context: Mapping[str, str]) -> bytes:
        self.wraps += 1
        self.on_wrap()
        return self.keys.wrap(key, context)

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        return self.keys.unwrap(wrapped, context)


def _people(engine: Engine) -> None:
    """A founder, a member and an outsider."""
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        for name in ("founder", "member", "outsider"):
            add_user(session, name)


@pytest.fixture
def people(engine: Engine) -> Engine:
    prepared(engine, "enroll many", lambda: _people(engine))
    return engine


@pytest.fixture
def people_lite(sqlite_engine: Engine) -> Engine:
    prepared(sqlite_engine, "enroll many", lambda: _people(sqlite_engine))
    return sqlite_engine


def _with(provider: Any) -> Envelope:
    return Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), providers={"calls": provider})


def _import(engine: Engine, many: int) -> list[str]:
    """The statements of an import of so many circles by a reader who is unlocked, with the commit. Their
    primary keys are given: else SQLAlchemy inserts one row at a time on SQLite."""
    PlainBase.metadata.create_all(engine)
    with Session(engine) as session:
        founder = Reader(name="founder")
        envelope.enroll(session, founder, secret=secret_of("founder"))
        session.commit()
        with envelope.unlock(session, founder, secret=secret_of("founder")), calls_sent(engine) as sent:
            circles = [Circle(id=number, name=f"circle {number}") for number in range(many)]
            envelope.enroll(session, circles)
            session.add_all([Seat(circle_id=one.id, reader_id=founder.id) for one in circles])
            session.commit()
    return [statement for statement, _ in sent]


def test_an_import_costs_the_statements_of_one_owner(sqlite_engine: Engine) -> None:
    """Groups with own encrypted columns, their keys and the grants to their founder: 500 of them take as many
    statements as 10 and as one, the check before the commit and what the founder was granted included."""
    costs = {}
    for many in (1, 10, 500):
        PlainBase.metadata.drop_all(sqlite_engine)
        costs[many] = len(_import(sqlite_engine, many))

    assert costs[1] == costs[10] == costs[500] == 11


def test_what_was_imported_is_read_by_whom_it_was_granted_to(people: Engine) -> None:
    """Who imported groups reads and writes them at once, a member of some of them those, and later."""
    with Session(people) as session, unlock(session, "founder"):
        groups = [Group(name=f"group {number}") for number in range(12)]
        envelope.enroll(session, groups)
        session.add_all([Membership(group=one, user_id=1) for one in groups])
        session.add_all([Membership(group=one, user_id=2) for one in groups[:5]])
        session.add_all([Post(group=one, text="hello") for one in groups])
        session.commit()
        session.expire_all()
        at_once = [post.text for post in session.scalars(select(Post))]

    def readable(name: str) -> int:
        with Session(people) as session, unlock(session, name) as unlocked:
            unlocked.settle()
            found = sum(is_readable(one, "text") for one in session.scalars(select(Post)))
            session.commit()
            return found

    assert at_once == ["hello"] * 12
    assert (readable("founder"), readable("member"), readable("outsider")) == (12, 5, 0)
    assert (readable("founder"), readable("member"), readable("outsider")) == (12, 5, 0)


def test_an_album_is_granted_to_a_group(people_lite: Engine) -> None:
    """Assets that own keys are granted to a group that has members, in the statements of one asset, and each
    member reads them."""
    with Session(people_lite) as session:
        group_id = found_group(session, "founder", "member")
    costs = []
    for first, many in ((0, 1), (1, 40)):
        with Session(people_lite) as session, unlock(session, "founder") as unlocked:
            unlocked.settle()
            with calls_sent(people_lite) as sent:
                numbers = range(first, first + many)
                assets = [Organisation(id=number, name=f"asset {number}") for number in numbers]
                envelope.enroll(session, assets)
                session.add_all([Affiliation(organisation_id=one.id, group_id=group_id) for one in assets])
                session.commit()
            costs.append(len(sent))
    with Session(people_lite) as session, unlock(session, "member"):
        names = [one.name for one in session.scalars(select(Organisation))]

    assert costs[0] == costs[1]
    assert len(names) == 41
    assert names[-1] == "asset 40"


def test_whoever_has_no_keys_yet_is_granted_later(people_lite: Engine) -> None:
    """A member-to-be without keys stays pending for each group of an import, beside members who have some."""
    with Session(people_lite) as session, unlock(session, "founder"):
        newcomer = User(email="newcomer")
        session.add(newcomer)
        groups = [Group() for _ in range(3)]
        envelope.enroll(session, groups)
        session.add_all(
            [Membership(group=g, user=u) for g in groups for u in (newcomer, session.get(User, 1))]
        )
        session.commit()

    assert tuple(count(people_lite, GRANTS, GRANTS.c.state == state) for state in ("pending", "sealed")) == (
        3,
        3,
    )


def test_clubs_whose_members_read_from_their_joining_on(people_lite: Engine) -> None:
    """The first members of clubs with history="from_join" read what was written with the enrolment."""
    with Session(people_lite) as session, unlock(session, "founder"):
        clubs = [Club(motto=f"motto {number}") for number in range(3)]
        envelope.enroll(session, clubs)
        session.add_all([ClubMembership(club_id=one.id, user_id=1) for one in clubs])
        session.commit()
    with Session(people_lite) as session, unlock(session, "founder"):
        assert [one.motto for one in session.scalars(select(Club))] == ["motto 0", "motto 1", "motto 2"]


def test_with_a_provider(people: Engine) -> None:
    """The provider wraps one key for all, its slots open each of them, and they are open inside the result's
    `with` and nowhere else."""
    calls = Calls()
    app = _with(calls)
    with Session(people) as session:
        groups = [Group(name=f"group {number}") for number in range(5)]
        with app.enroll(session, groups, provider="calls"):
            assert [groups[0].name, groups[4].name] == ["group 0", "group 4"]
        session.commit()
        with pytest.raises(LockedError):
            groups[0].name  # noqa: B018
        session.commit()
        for one in groups:
            with app.unlock(session, one, provider="calls", reason="test"):
                assert "group" in (one.name or "")
            session.commit()

    assert calls.wraps == 1
    assert count(people, SLOTS) == 5


@pytest.mark.parametrize("many", [False, True], ids=["one", "a list"])
def test_a_founder_holds_what_was_enrolled_with_a_provider(people_lite: Engine, many: bool) -> None:
    """Who is unlocked around an enrolment with a provider holds the new key, as without one: the own grant is
    not pending, and what is written next is written."""
    app = _with(Calls())
    with Session(people_lite) as session, unlock(session, "founder"):
        group = Group(name="group")
        app.enroll(session, [group] if many else group, provider="calls")
        session.add(Membership(group=group, user_id=1))
        session.add(Post(group=group, text="first"))
        session.commit()
    with Session(people_lite) as session, unlock(session, "founder"):
        assert session.scalars(select(Post)).one().text == "first"

    assert count(people_lite, GRANTS, GRANTS.c.state == "pending") == 0


def test_a_secret_for_each(people_lite: Engine) -> None:
    """A mapping gives each owner of a list its own secret, which opens that one alone."""
    with Session(people_lite) as session:
        users = [User(email=f"user {number}", diary=f"diary {number}") for number in range(3)]
        envelope.enroll(session, users, secret={one: secret_of(one.email) for one in users})
        session.commit()
        for one in users:
            with envelope.unlock(session, one, secret=secret_of(one.email)):
                assert f"diary {one.email[-1]}" == one.diary
            session.commit()


def test_one_secret_for_a_list_is_refused(people_lite: Engine) -> None:
    """One secret would open them all: refused before a statement, as is a mapping with others in it."""
    users = [User(email="a"), User(email="b")]
    with Session(people_lite) as session, calls_sent(people_lite) as sent:
        with pytest.raises(SecretError, match=r"secret=\{owner: its secret\}"):
            envelope.enroll(session, users, secret="one secret for all")
        for wrong in ({users[0]: "only one"}, {**dict.fromkeys(users, "each"), User(email="c"): "more"}):
            with pytest.raises(SecretError, match="each owner of the list, and nobody else"):
                envelope.enroll(session, users, secret=wrong)
        with pytest.raises(SecretError, match="str or bytes, not dict"):
            envelope.enroll(session, users[0], secret={users[0]: "no list"})

    assert sent == []


def test_nothing_is_made_where_one_has_keys(people: Engine) -> None:
    """One owner of the list has keys already: the error names it and how it is opened, and nobody else got
    any, though the caller commits."""
    app = _with(Calls())
    with Session(people) as session:
        old = Group()
        app.enroll(session, old, provider="calls")
        session.commit()
        with pytest.raises(AlreadyEnrolledError, match=rf"Group {old.id} has keys already.*'calls'"):
            app.enroll(session, [Group(), old, Group()], provider="calls")
        session.commit()

    assert 1 == count(people, Group) == count(people, SLOTS)


def test_nothing_is_made_where_one_is_lost_to_another_transaction(people: Engine) -> None:
    """Another transaction enrolls one of them at the same moment: this one is rolled back as a whole."""

    def elsewhere() -> None:
        if calls.wraps == 2:
            with Session(people) as other, unlock(other, "founder"):
                envelope.enroll(other, other.get_one(Group, 2))
                other.add(Membership(group_id=2, user_id=1))
                other.commit()

    calls = Calls(elsewhere)
    app = _with(calls)
    with Session(people) as session:
        session.add_all([Group(id=number) for number in (1, 2, 3)])
        session.commit()
        groups = [session.get_one(Group, number) for number in (1, 2, 3)]
        session.commit()
        calls.wraps = 1
        with pytest.raises(AlreadyEnrolledError, match="Group 2 was enrolled by somebody else"):
            app.enroll(session, [*groups, Group(id=4, name="new")], provider="calls")
        session.commit()

    assert count(people, SLOTS) == 0
    assert count(people, GROUP_KEYS) == 2
    assert count(people, Group) == 3


@pytest.mark.parametrize(
    ("owners", "error", "match"),
    [
        (lambda: [Group(), Post()], ConfigurationError, "Post has no keys"),
        (lambda: [Group(), None], EnrollmentError, "No owner was given"),
        (lambda: [Group(), Group()], EnrollmentError, "Nothing would open the keys of this Group"),
    ],
    ids=["no owner class", "None", "nobody unlocked"],
)
def test_the_errors_of_one(
    people_lite: Engine, owners: Callable[[], list[Any]], error: type[Exception], match: str
) -> None:
    """What is refused for one owner is refused for a list with such a one, in the same words."""
    with Session(people_lite) as session:
        with pytest.raises(error, match=match):
            envelope.enroll(session, owners())
        session.commit()

    assert count(people_lite, Group) == 0


def test_a_commit_that_leaves_one_of_them_to_nobody_is_refused(people_lite: Engine) -> None:
    """Of several groups one is granted to nobody: no commit before it is, and a rollback forgets them all."""
    with Session(people_lite) as session, unlock(session, "founder"):
        groups = [Group(), Group(), Group()]
        envelope.enroll(session, groups)
        session.add_all([Membership(group=one, user_id=1) for one in groups[:2]])
        for _ in range(2):
            with pytest.raises(EnrollmentError, match="Nobody could open the keys of a new Group"):
                session.commit()
        session.add(Membership(group=groups[2], user_id=1))
        session.commit()
        envelope.enroll(session, [Group(), Group()])
        session.rollback()
        session.add(Post(group_id=groups[0].id, text="goes on"))
        session.commit()

    assert count(people_lite, Group) == 3


def test_a_rollback_takes_the_keys_of_all(people_lite: Engine) -> None:
    """After a rollback to a savepoint nothing is written under keys that are not stored."""
    with Session(people_lite) as session, unlock(session, "founder"):
        session.execute(select(User))
        session.add(Group(id=7))
        session.flush()
        nested = session.begin_nested()
        groups = [session.get_one(Group, 7), Group(id=8)]
        envelope.enroll(session, groups)
        nested.rollback()
        session.add(Post(group_id=7, text="under no key"))
        with pytest.raises(LockedError):
            session.flush()


def test_the_same_owner_twice_and_nobody(people_lite: Engine) -> None:
    """An owner that a list names twice gets one set of keys; an empty list sends nothing."""
    with Session(people_lite) as session, unlock(session, "founder"):
        group = Group()
        envelope.enroll(session, [group, group])
        session.add(Membership(group=group, user_id=1))
        session.commit()
        with calls_sent(people_lite) as sent:
            envelope.enroll(session, [])

    assert sent == []
    assert count(people_lite, GROUP_KEYS) == 2


async def test_the_asynchronous_face(async_engine: AsyncEngine) -> None:
    """The same with `await` and `async with`, on both drivers."""
    aio = AsyncEnvelope(_with(Calls()))
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(async_engine, expire_on_commit=False) as session:
        groups = [Group(name=f"group {number}") for number in range(3)]
        async with aio.enroll(session, groups, provider="calls"):
            await session.commit()
        users = [User(email=f"user {number}") for number in range(2)]
        await aio.enroll(session, users, secret={one: secret_of(one.email) for one in users})
        await session.commit()
        with pytest.raises(SecretError):
            await aio.enroll(session, [User(), User()], secret="one for all")
    async with (
        AsyncSession(async_engine) as session,
        aio.unlock(session, await session.get_one(Group, 3), provider="calls", reason="test"),
    ):
        assert (await session.get_one(Group, 3)).name == "group 2"
