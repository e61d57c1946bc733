"""Sharing through the asynchronous face: the program of the first page, joining and leaving, on aiosqlite and
asyncpg.
"""

from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import delete, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from sqlalchemy_envelope import AsyncEnvelope, EnrollmentError, LockedError
from tests.orm.sharing_models import (
    Base,
    Group,
    Membership,
    Post,
    ProfileShare,
    User,
    envelope,
    is_readable,
    secret_of,
)

aio = AsyncEnvelope(envelope)


async def _add_user(session: AsyncSession, name: str) -> User:
    user = User(email=name, display_name=name.title(), diary=f"the diary of {name}")
    await aio.enroll(session, user, secret=secret_of(name))
    await session.commit()
    return user


async def _user(session: AsyncSession, name: str) -> User:
    return (await session.scalars(select(User).where(User.email == name))).one()


async def _start(engine: AsyncEngine) -> int:
    """A founder and a member, the founder's group of both with one post and the founder's profile; its id."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(engine, expire_on_commit=False) as session:
        founder, member = await _add_user(session, "founder"), await _add_user(session, "member")
        async with aio.unlock(session, founder, secret=secret_of("founder")):
            group = Group(name="expedition")
            await aio.enroll(session, group)
            session.add_all([Membership(group=group, user=founder), Membership(group=group, user=member)])
            await session.commit()
            session.add_all([Post(group=group, text="hello"), ProfileShare(user=founder, group=group)])
            await session.commit()
        return group.id


async def _posts(session: AsyncSession) -> list[str | None]:
    session.expire_all()
    posts = (await session.scalars(select(Post).order_by(Post.id))).all()
    return [post.text for post in posts if is_readable(post, "text")]


async def _read(engine: AsyncEngine, name: str) -> list[str | None]:
    async with AsyncSession(engine) as session:
        user = await _user(session, name)
        with await aio.unlock(session, user, secret=secret_of(name)):
            await aio.settle(session)
            await session.commit()
            return await _posts(session)


async def test_the_program(async_engine: AsyncEngine) -> None:
    """A member who is away reads the group, its rows and the names with the next unlock, and no diary."""
    await _start(async_engine)
    async with AsyncSession(async_engine, expire_on_commit=False) as session:
        member = await _user(session, "member")
        async with aio.unlock(session, member, secret=secret_of("member")):
            founder = await _user(session, "founder")
            group = (await session.scalars(select(Group))).one()

            assert await _posts(session) == ["hello"]
            await session.refresh(group)
            await session.refresh(founder)
            assert group.name == "expedition"
            assert founder.display_name == "Founder"
            with pytest.raises(LockedError):
                _ = founder.diary  # no SQL, so no missing greenlet
            session.add(Post(group_id=group.id, text="hello yourself"))
            await session.commit()

    assert await _read(async_engine, "founder") == ["hello", "hello yourself"]


async def _by_session_delete(session: AsyncSession, group_id: int, user_id: int) -> None:
    await session.delete(await session.get_one(Membership, (group_id, user_id)))


async def _by_collection(session: AsyncSession, group_id: int, user_id: int) -> None:
    group = await session.get_one(Group, group_id)
    await session.refresh(group, ["memberships"])
    group.memberships.remove(next(one for one in group.memberships if one.user_id == user_id))


async def _by_deleting_the_user(session: AsyncSession, group_id: int, user_id: int) -> None:
    await session.delete(await session.get_one(User, user_id))


async def _by_raw_sql(session: AsyncSession, group_id: int, user_id: int) -> None:
    await session.execute(text("DELETE FROM memberships WHERE user_id = :user"), {"user": user_id})


async def _by_bulk_delete(session: AsyncSession, group_id: int, user_id: int) -> None:
    await session.execute(delete(Membership).where(Membership.user_id == user_id))


@pytest.mark.parametrize(
    "leave", [_by_session_delete, _by_collection, _by_deleting_the_user, _by_raw_sql, _by_bulk_delete]
)
async def test_who_left_reads_what_was_before_and_nothing_after(
    async_engine: AsyncEngine, leave: Callable[[AsyncSession, int, int], Awaitable[None]]
) -> None:
    """A keyring from before opens nothing of what founders write later, unlocked anew or all the time."""
    group_id = await _start(async_engine)
    async with AsyncSession(async_engine) as away, AsyncSession(async_engine) as present:
        member = await _user(away, "member")
        keys_of_member = await aio.unlock(away, member, secret=secret_of("member"), follow="all")
        member_id = member.id
        await away.commit()
        async with aio.unlock(present, await _user(present, "founder"), secret=secret_of("founder")):
            present.add(Post(group_id=group_id, text="while both were there"))
            await present.commit()
            async with AsyncSession(async_engine) as session:
                envelope.attach(session.sync_session)
                await leave(session, group_id, member_id)
                await session.commit()
            present.add(Post(group_id=group_id, text="by who was there all the time"))
            await present.commit()
        with keys_of_member:
            readable = await _posts(away)

    assert readable == ["hello", "while both were there"]
    assert await _read(async_engine, "founder") == [*readable, "by who was there all the time"]


async def test_a_joining_waits_for_a_holder(async_engine: AsyncEngine) -> None:
    """Added while nobody holds the key, a newcomer reads after the next holder has settled."""
    group_id = await _start(async_engine)
    async with AsyncSession(async_engine) as session:
        newcomer = await _add_user(session, "newcomer")
        await session.refresh(newcomer)
        newcomer_id = newcomer.id
    async with AsyncSession(async_engine) as session:
        envelope.attach(session.sync_session)
        session.add(Membership(group_id=group_id, user_id=newcomer_id))
        await session.commit()

    assert await _read(async_engine, "newcomer") == []
    assert await _read(async_engine, "member") == ["hello"]
    assert await _read(async_engine, "newcomer") == ["hello"]


async def test_a_group_that_nobody_could_open_is_not_committed(async_engine: AsyncEngine) -> None:
    """Without a grant the commit fails; after the rollback the same object enrolls with one."""
    await _start(async_engine)
    async with AsyncSession(async_engine) as session:
        founder = await _user(session, "founder")
        founder_id = founder.id
        async with aio.unlock(session, founder, secret=secret_of("founder")):
            await session.commit()
            group = Group(name="second")
            await aio.enroll(session, group)
            with pytest.raises(EnrollmentError):
                await session.commit()
            await session.rollback()
            await aio.enroll(session, group)
            session.add(Membership(group_id=group.id, user_id=founder_id))
            await session.commit()
            await session.refresh(group)

            assert group.name == "second"
