"""Token indexes through asynchronous drivers, which count changed rows in their own ways."""

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from sqlalchemy_envelope import AsyncEnvelope
from tests.orm.indexes.token_models import SECRET, Base, Note, User, new_envelope


async def test_the_tags_follow_asynchronous_writes(async_engine: AsyncEngine) -> None:
    """Objects, bulk statements and updates by key or by WHERE, on aiosqlite and asyncpg."""
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    envelope = AsyncEnvelope(new_envelope())
    async with AsyncSession(async_engine, expire_on_commit=False) as session:

        async def found(word: str) -> list[int]:
            return sorted(await session.scalars(select(Note.id).where(Note.body.has_word(word))))

        user = User()
        await envelope.enroll(session, user, secret=SECRET)
        await session.commit()
        async with envelope.unlock(session, user, secret=SECRET) as unlocked:
            with unlocked.using(user):
                rows = [{"user_id": user.id, "body": f"word{at} all"} for at in range(5)]
                await session.execute(insert(Note), rows)
                first, second, *_ = await found("all")
                await session.execute(
                    update(Note), [{"id": first, "body": "one"}, {"id": second, "body": "two"}]
                )
                await session.execute(update(Note).where(Note.id > second).values(body="rest"))
                session.add(Note(id=100, user_id=user.id, body="object"))
                await session.commit()

            assert await found("all") == []
            assert await found("one") == [first]
            assert await found("two") == [second]
            assert len(await found("rest")) == 3
            assert await found("object") == [100]
