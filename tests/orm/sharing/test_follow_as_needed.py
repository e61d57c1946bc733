"""Grants are followed when rows of an owner appear: what an unlock and a page cost does not grow with the
groups that somebody is in, and whatever was reached at once before is reached still."""

from contextvars import Context
from typing import Any

import pytest
from sqlalchemy import Engine, delete, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_envelope import AsyncEnvelope, ConfigurationError, LockedError, UnlockedSession
from sqlalchemy_envelope.orm.reading import results
from tests.orm.sharing_models import (
    Affiliation,
    Base,
    Group,
    Membership,
    Organisation,
    Post,
    ProfileShare,
    User,
    add_user,
    calls_sent,
    envelope,
    found_group,
    is_readable,
    secret_of,
    unlock,
)
from tests.prepared import prepared

GROUPS = 6
FIRST = "the first post"
SECRET = "a secret of hers"


@pytest.fixture(params=["sqlite", "postgres"])
def scene(request: pytest.FixtureRequest) -> Engine:
    """The scene on both databases."""
    return make_scene(request.getfixturevalue(f"{request.param}_engine"))


@pytest.fixture
def lite(sqlite_engine: Engine) -> Engine:
    """The scene on SQLite."""
    return make_scene(sqlite_engine)


def make_scene(engine: Engine) -> Engine:
    """A founder with some groups, of which the last has no other member; the first is in an organisation, and
    shows its members the founder's profile."""

    def make() -> None:
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            for name in ("founder", "member"):
                add_user(session, name)
            for _ in range(GROUPS - 1):
                found_group(session, "founder", "member")
            found_group(session, "founder")
            with unlock(session, "founder"):
                organisation = Organisation(name="the organisation")
                envelope.enroll(session, organisation)
                session.flush()
                session.add(Affiliation(organisation_id=organisation.id, group_id=1))
                session.add(ProfileShare(user_id=1, group_id=1))
                session.commit()

    prepared(engine, "as needed", make)
    return engine


def posts(session: Session, *groups: int) -> list[Post]:
    """Posts, loaded anew."""
    return list(session.scalars(select(Post).where(Post.group_id.in_(groups)).order_by(Post.id)))


def test_an_unlock_and_a_page_of_one_group(scene: Engine) -> None:
    """An unlock is two queries, and a page of one group, or of several, two more than without encryption; the
    same page again adds none."""
    with Session(scene) as session:
        user = session.scalars(select(User).where(User.email == "member")).one()
        with calls_sent(scene) as unlocking:
            unlocked = envelope.unlock(session, user, secret=secret_of("member"))
        with unlocked:
            pages = []
            for groups in ([1], [2, 3, 4], [1, 2]):
                with calls_sent(scene) as sent:
                    texts = [post.text for post in posts(session, *groups)]
                pages.append((len(sent), texts))

    assert len(unlocking) == 2
    assert pages == [(3, [FIRST]), (3, [FIRST] * 3), (1, [FIRST] * 2)]


def test_longer_ways_are_followed(scene: Engine) -> None:
    """An organisation behind a group, and a profile that is shown to one, open without their group's rows."""
    with Session(scene) as session, unlock(session, "member"):
        name = session.scalars(select(Organisation)).one().name
        shown = session.get_one(User, 1)

        assert name == "the organisation"
        assert shown.display_name == "Founder"
        assert not is_readable(shown, "diary")


def test_a_longer_way_costs_no_other_group(scene: Engine) -> None:
    """From user to group to organisation the groups that lead there are followed, and no others."""
    with Session(scene) as session, unlock(session, "member") as unlocked:
        with calls_sent(scene) as sent:
            name = session.scalars(select(Organisation)).one().name
        reached = names_of(unlocked)

    assert name == "the organisation"
    assert reached == {("User", 2), ("Group", 1), ("Organisation", 1)}
    assert len(sent) == 9


def test_a_locked_page_asks_once(lite: Engine) -> None:
    """For rows of a group that nobody gave a way is looked for once; the next page of them asks nothing."""
    with Session(lite) as session, unlock(session, "member"):
        asked = []
        for _ in range(2):
            session.expire_all()
            with calls_sent(lite) as sent:
                readable = [is_readable(post, "text") for post in posts(session, GROUPS)]
            asked.append(len(sent))

    assert readable == [False]
    assert asked[0] > asked[1]
    assert asked[1] == 1


def test_a_result_that_is_iterated(lite: Engine) -> None:
    """A Core result that is read row by row asks for some rows together, and more and more of them: with
    their groups one after the other it sends fewer statements than there are rows, and every value opens."""
    with Session(lite) as session:
        for _ in range(6):  # each group again and again
            with unlock(session, "founder"):
                session.add_all([Post(group_id=number, text=FIRST) for number in range(1, GROUPS + 1)])
                session.commit()
    with Session(lite) as session, unlock(session, "founder"), calls_sent(lite) as sent:
        rows = session.connection().execute(select(Post.group_id, Post.text).order_by(Post.id))
        first = rows.fetchone()
        some, rest = rows.fetchmany(2), [row.text for row in rows]

    assert first is not None
    assert {FIRST} == {first.text, *(row.text for row in some), *rest}
    assert len(sent) == 7


def test_a_removal_that_is_rolled_back(lite: Engine) -> None:
    """A value that was locked in a transaction, or until a savepoint was rolled back, opens after it."""
    mine = delete(Membership).where(Membership.group_id == 1, Membership.user_id == 2)
    with Session(lite) as session, unlock(session, "member"):
        with session.begin_nested() as savepoint:
            session.execute(mine)
            before = is_readable(posts(session, 1)[0], "text")
            savepoint.rollback()
        between = is_readable(posts(session, 1)[0], "text")
        session.execute(mine)
        removed = is_readable(posts(session, 2)[0], "text")
        session.rollback()
        after = is_readable(posts(session, 1)[0], "text")

    assert [before, between, removed, after] == [False, True, True, True]


def test_what_is_locked_at_the_unlock_opens_without_sql(lite: Engine) -> None:
    """Objects that a session holds, locked, are touched without a statement; their owners were followed at
    the unlock."""
    with Session(lite) as session:
        held = posts(session, 1, 2)
        unlocked = unlock(session, "member")
        with unlocked, calls_sent(lite) as sent:
            texts = [post.text for post in held]
        again = unlock(session, "member")
        with again, calls_sent(lite) as sent_again:
            texts_again = [post.text for post in held]

    assert texts == texts_again == [FIRST] * 2
    assert sent == sent_again == []


def test_an_object_of_another_session_is_followed_when_it_is_touched(lite: Engine) -> None:
    """One that another session holds locked is asked for then."""
    with Session(lite) as other, Session(lite) as session:
        (held,) = posts(other, 2)
        with unlock(session, "member"):
            opened = held.text

    assert opened == FIRST


def test_everything_is_followed_on_request(lite: Engine) -> None:
    """With `follow="all"` no page costs a query more, and another word is refused."""
    with Session(lite) as session:
        with unlock(session, "member", follow="all"), calls_sent(lite) as sent:
            texts = [post.text for post in posts(session, 1)]
        with pytest.raises(ConfigurationError, match="follow='some'"):
            unlock(session, "member", follow="some")  # type: ignore[arg-type]

    assert texts == [FIRST]
    assert len(sent) == 1


def test_who_is_added_after_the_unlock_reads(lite: Engine) -> None:
    """What was not read before is followed as it is now."""
    with Session(lite) as session, unlock(session, "member"):
        session.rollback()
        Context().run(add_member, lite)
        texts = [post.text for post in posts(session, GROUPS)]

    assert texts == [FIRST]


def add_member(engine: Engine) -> None:
    """The founder adds the member to the last group."""
    with Session(engine) as present, unlock(present, "founder"):
        present.add(Membership(group_id=GROUPS, user_id=2))
        present.commit()


def test_an_epoch_that_started_after_the_group_was_read(lite: Engine) -> None:
    """What was written since, in a new epoch of the group and of the organisation behind it, opens."""
    with Session(lite) as session, unlock(session, "member"):
        before = session.get_one(Organisation, 1).name, len(posts(session, 1))
        session.rollback()
        Context().run(add_and_remove, lite)
        after = session.get_one(Organisation, 1).name, [post.text for post in posts(session, 1)]

    assert before == ("the organisation", 1)
    assert after == ("renamed", [FIRST, "later"])


def add_and_remove(engine: Engine) -> None:
    """Somebody comes and goes, and the founder writes."""
    with Session(engine) as present:
        add_user(present, "guest")
        with unlock(present, "founder"):
            guest = Membership(group_id=1, user_id=3)
            present.add(guest)
            present.commit()
            present.delete(guest)
            present.commit()
            present.add(Post(group_id=1, text="later"))
            present.get_one(Organisation, 1).name = "renamed"
            present.commit()


def remove_member(engine: Engine) -> None:
    """The founder removes the member from the first group, and writes."""
    with Session(engine) as present, unlock(present, "founder"):
        present.execute(delete(Membership).where(Membership.group_id == 1, Membership.user_id == 2))
        present.add(Post(group_id=1, text="later"))
        present.commit()


@pytest.mark.parametrize("seen", [True, False], ids=["page seen", "page not seen"])
def test_who_was_removed_after_the_unlock(lite: Engine, seen: bool) -> None:
    """A page that was followed before is read still; what was not is locked, and so is all that is written
    later."""
    with Session(lite) as session, unlock(session, "member"):
        if seen:
            assert posts(session, 1)[0].text == FIRST
        session.commit()
        Context().run(remove_member, lite)  # in another request: nothing is unlocked around it
        session.expire_all()
        found = [is_readable(post, "text") for post in posts(session, 1)]
        session.rollback()
        session.add(Post(group_id=1, text="still here?"))
        with pytest.raises(LockedError):
            session.commit()
        session.rollback()

    assert found == [seen, False]


def names_of(unlocked: UnlockedSession) -> set[tuple[str, int]]:
    """The owners that were followed, by class and primary key."""
    return {(place.owner_class.name, place.primary_key[0]) for place in unlocked.places.values()}


def settled(engine: Engine, name: str) -> None:
    """Somebody has adopted what was sealed to them."""
    with Session(engine) as session, unlock(session, name) as unlocked:
        unlocked.settle()
        session.commit()


def test_a_write_follows_what_it_is_for(lite: Engine) -> None:
    """What is written for a group whose rows were never read is encrypted under its key; other groups are
    not followed."""
    settled(lite, "member")
    with Session(lite) as session, unlock(session, "member") as unlocked:
        session.add(Post(group_id=3, text="unseen"))
        session.commit()
        reached = names_of(unlocked)
    with Session(lite) as session, unlock(session, "founder"):
        texts = [post.text for post in posts(session, 3)]

    assert texts == [FIRST, "unseen"]
    assert reached == {("User", 2), ("Group", 3)}


@pytest.mark.parametrize("read", [False, True], ids=["not read", "read before"])
def test_a_write_settles_what_waits(scene: Engine, read: bool) -> None:
    """A grant that is pending in another group is fulfilled by the first write of any of its members, be it
    plain, and whether the group was read from or not; no third group is followed."""
    settled(scene, "member")
    with Session(scene) as session:
        add_user(session, "newcomer")
        session.add(Membership(group_id=2, user_id=3))
        session.commit()
    with Session(scene) as session, unlock(session, "member") as unlocked:
        if read:
            assert posts(session, 2)[0].text == FIRST
        session.get_one(User, 2).email = "another"
        session.commit()
        reached = names_of(unlocked)
    with Session(scene) as session, unlock(session, "newcomer"):
        texts = [post.text for post in posts(session, 2)]

    assert texts == [FIRST]
    assert reached == {("User", 2), ("Group", 2)}


@pytest.mark.parametrize("pages", [[], [1, 3]], ids=["nothing read", "read"])
def test_each_removal_is_owed_an_epoch(scene: Engine, pages: list[int]) -> None:
    """Removed by SQL from the group that leads to the organisation: the first write, of whatever, starts the
    epochs of both, and a keyring that was kept opens nothing that is written then."""
    settled(scene, "member")
    with Session(scene) as session, Session(scene) as away:
        kept = unlock(away, "founder", "all")
        away.commit()
        with unlock(session, "member"):
            posts(session, *pages)
            session.execute(text("DELETE FROM memberships WHERE group_id = 1 AND user_id = 1"))
            session.get_one(User, 2).email = "another"
            session.commit()
            session.get_one(Organisation, 1).name = "later"
            session.add(Post(group_id=1, text="later"))
            session.commit()
            mine = session.get_one(Organisation, 1).name, [one.text for one in posts(session, 1)]
        with kept:
            found = (
                is_readable(away.get_one(Organisation, 1), "name"),
                [is_readable(one, "text") for one in posts(away, 1)],
            )

    assert mine == ("later", [FIRST, "later"])
    assert found == (False, [True, False])


def test_a_handle_is_decrypted(lite: Engine) -> None:
    """A stored value that was selected while nothing was unlocked opens later, by itself."""
    with Session(lite) as session:
        handle = session.scalars(select(Post.text).where(Post.group_id == 4)).one()
        with unlock(session, "member") as unlocked:
            opened = unlocked.decrypt(handle)

    assert opened == FIRST


def test_an_inner_unlock_leaves_what_the_outer_one_reaches(lite: Engine) -> None:
    """A value that waits for a group of the outer user is not lost when an inner unlock is left."""
    with Session(lite) as session, unlock(session, "founder"):
        with unlock(session, "member"):
            session.add(Post(group_id=GROUPS, text="by the founder"))
        session.commit()
        texts = [post.text for post in posts(session, GROUPS)]

    assert texts == [FIRST, "by the founder"]


def test_an_object_without_a_session_is_followed(lite: Engine) -> None:
    """One that was detached, locked, is asked for in the session of the unlock."""
    with Session(lite) as other, Session(lite) as session:
        (held,) = posts(other, 2)
        other.expunge(held)
        with unlock(session, "member"):
            opened = held.text

    assert opened == FIRST


@pytest.mark.parametrize(("name", "readable"), [("member", False), ("nobody", True)])
def test_rows_that_do_not_say_whose_they_are(lite: Engine, name: str, readable: bool) -> None:
    """They open for whom no key was granted, who alone can be meant; a member of groups is found to be none
    without following these."""
    with Session(lite) as session:
        add_user(session, "nobody", display_name="Nobody")
        with unlock(session, name) as unlocked:
            user = User.__table__
            query = select(user.c.display_name).where(user.c.email == name)
            found = session.connection().execute(query).scalar_one()
            reached = names_of(unlocked)

    assert isinstance(found, str) is readable
    assert len(reached) == 1


STREAMS = {"yield_per": {"yield_per": 1}, "stream_results": {"stream_results": True, "max_row_buffer": 2}}


@pytest.mark.parametrize("options", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("one_at_a_time", [False, True], ids=["several statements", "one at a time"])
def test_groups_that_appear_in_the_middle_of_a_stream(
    scene: Engine, options: dict[str, Any], one_at_a_time: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is followed while rows are on their way; where the database takes no other statement then, the
    rows that are left are fetched before."""
    if one_at_a_time:
        monkeypatch.setattr(results, "_ONE_AT_A_TIME", {scene.dialect.name})
    with Session(scene) as session, unlock(session, "member"):
        query = select(Post).order_by(Post.id).execution_options(**options)
        found = [is_readable(post, "text") for post in session.scalars(query)]

    assert found == [True] * (GROUPS - 1) + [False]


async def make_two_groups(async_engine: AsyncEngine, secure: AsyncEnvelope) -> list[int]:
    """Two groups of one user, with a post each; their ids."""
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(async_engine, expire_on_commit=False) as session:
        user = User(id=1, email="ada")
        async with secure.enroll(session, user, secret=SECRET):
            groups = [Group(name="one"), Group(name="two")]
            await secure.enroll(session, groups)
            session.add_all([Membership(group=group, user=user) for group in groups])
            session.add_all([Post(group=group, text=FIRST) for group in groups])
            await session.commit()
            return [group.id for group in groups]


async def test_asyncio_streams(async_engine: AsyncEngine) -> None:
    """What appears in the middle of a stream is followed there."""
    secure = AsyncEnvelope(envelope)
    await make_two_groups(async_engine, secure)
    query = select(Post).order_by(Post.id).execution_options(yield_per=1)
    async with (
        AsyncSession(async_engine) as session,
        secure.unlock(session, await session.get_one(User, 1), secret=SECRET),
    ):
        texts = [post.text async for post in await session.stream_scalars(query)]

    assert texts == [FIRST] * 2


async def test_asyncio_says_what_cannot_wait(async_engine: AsyncEngine) -> None:
    """An attribute and a handle whose grants nothing looked for say so, and what to do; that does it."""
    secure = AsyncEnvelope(envelope)
    first, second = await make_two_groups(async_engine, secure)
    async with AsyncSession(async_engine) as other, AsyncSession(async_engine) as session:
        held = (await other.scalars(select(Post).where(Post.group_id == first))).one()
        handle = (await session.scalars(select(Post.text).where(Post.group_id == second))).one()
        async with secure.unlock(session, await session.get_one(User, 1), secret=SECRET) as unlocked:
            with pytest.raises(LockedError, match=r"cannot wait for that. `await session.refresh"):
                held.text  # noqa: B018 - it raises
            await other.refresh(held, ["text"])
            with pytest.raises(LockedError, match="`decrypt` cannot wait for that"):
                unlocked.decrypt(handle)
            opened = await session.run_sync(lambda _: unlocked.decrypt(handle))
            texts = held.text, opened

    assert texts == (FIRST, FIRST)


async def test_asyncio_follows_pages_and_held_objects(async_engine: AsyncEngine) -> None:
    """A page is followed as it is fetched; an object that was held locked needs no statement."""
    secure = AsyncEnvelope(envelope)
    ids = await make_two_groups(async_engine, secure)
    async with AsyncSession(async_engine) as session:
        user = await session.get_one(User, 1)
        query = select(Post).where(Post.group_id == ids[0])
        held = (await session.scalars(query)).one()
        async with secure.unlock(session, user, secret=SECRET):
            with calls_sent(async_engine.sync_engine) as sent:
                touched = held.text
            other = (await session.scalars(select(Post).where(Post.group_id == ids[1]))).one().text

    assert touched == other == FIRST
    assert sent == []
