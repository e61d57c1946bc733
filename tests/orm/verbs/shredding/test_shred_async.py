"""Shredding through the asynchronous face, on aiosqlite and asyncpg."""

import datetime as dt

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from sqlalchemy_envelope import (
    AsyncEnvelope,
    ConfigurationError,
    KeyShreddedError,
    NotEnrolledError,
    ReceiptError,
    check_receipt,
)
from tests.orm.verbs.shredding.erasable_models import (
    Base,
    Group,
    Letter,
    Membership,
    Person,
    Post,
    eraser,
    receipt_key,
    secret_of,
)

aio = AsyncEnvelope(eraser)


async def _person(session: AsyncSession, name: str) -> Person:
    return (await session.scalars(select(Person).where(Person.name == name))).one()


async def _start(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(engine, expire_on_commit=False) as session:
        for name in ("ada", "ben"):
            new = Person(name=name, diary="dear diary")
            async with aio.enroll(session, new, secret=secret_of(name)):
                session.add(Letter(author_id=new.id, text="dear", note="a note"))
                await session.commit()
        async with aio.unlock(session, await _person(session, "ada"), secret=secret_of("ada")):
            group = Group(title="choir")
            await aio.enroll(session, group)
            session.add_all([Membership(group_id=group.id, person_id=key) for key in (1, 2)])
            session.add(Post(group_id=group.id, text="hello"))
            await session.commit()


async def test_a_report_a_shredding_and_what_is_read(async_engine: AsyncEngine) -> None:
    """The whole flow: report, shredding, receipt; the member who stays reads the group."""
    await _start(async_engine)
    async with AsyncSession(async_engine, expire_on_commit=False) as session:
        ada = await _person(session, "ada")
        report = await aio.erasure_report(session, ada, backups_kept=dt.timedelta(days=7))
        receipt = await aio.shred(session, ada, reason="asked")
        with pytest.raises(ReceiptError):
            receipt.to_json()
        await session.commit()
        with pytest.raises(NotEnrolledError):
            await aio.unlock(session, ada, secret=secret_of("ada"))
    async with AsyncSession(async_engine) as session:
        ben = await _person(session, "ben")
        async with aio.unlock(session, ben, secret=secret_of("ben")):
            letters = (await session.scalars(select(Letter).order_by(Letter.author_id))).all()
            notes = (await session.scalars(select(Letter.note).order_by(Letter.author_id))).all()
            with pytest.raises(KeyShreddedError):
                _ = letters[0].text
            session.add(Post(group_id=1, text="after"))
            await session.commit()
            posts = (await session.scalars(select(Post).order_by(Post.id))).all()

            assert [one.text for one in posts] == ["hello", "after"]
        assert notes == ["[erased]", "a note"]
    assert (report.value_count, [str(one) for one in report.groups]) == (3, ["Group 1"])
    assert len(check_receipt(receipt.to_json(), receipt_key.public_text).keys) == 2


async def test_an_unlocked_session_says_how(async_engine: AsyncEngine) -> None:
    """The verb of the unlocked session names the line to write."""
    await _start(async_engine)
    async with AsyncSession(async_engine) as session:
        ada = await _person(session, "ada")
        async with aio.unlock(session, ada, secret=secret_of("ada")) as unlocked:
            with pytest.raises(ConfigurationError, match=r"await AsyncEnvelope\(envelope\).shred"):
                unlocked.shred(ada, reason="asked")


async def test_the_owners_own_old_values(async_engine: AsyncEngine) -> None:
    """Whoever was enrolled again reads the own old values as shredded, with no query and no greenlet."""
    await _start(async_engine)
    async with AsyncSession(async_engine, expire_on_commit=False) as session:
        ada = await _person(session, "ada")
        await aio.shred(session, ada, reason="asked")
        await session.commit()
        await aio.enroll(session, ada, secret="a new secret")
        await session.commit()
    async with AsyncSession(async_engine) as session:
        ada = await _person(session, "ada")
        async with aio.unlock(session, ada, secret="a new secret"):
            letter = (await session.scalars(select(Letter).where(Letter.author_id == 1))).one()

            assert letter.note == "[erased]"
            with pytest.raises(KeyShreddedError):
                _ = letter.text
