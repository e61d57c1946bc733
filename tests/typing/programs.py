"""The programs of the front page, for the type checkers: checked by `nox -s types`, never run."""

# pyright: strict

import datetime as dt
import uuid
from typing import Annotated, assert_type

from sqlalchemy import JSON, Engine, ForeignKey, String, Text, Uuid, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, scoped_session

from sqlalchemy_envelope import (
    AsyncEnvelope,
    EncryptedType,
    Envelope,
    EnvelopeError,
    KdfProfile,
    KeyOwner,
    KeySlotTable,
    KeyTable,
    LockedError,
    TransactionConflictError,
    UnlockedSession,
    UnlockError,
    enforce_foreign_keys,
    should_retry,
)


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    phone: Mapped[str | None] = mapped_column(EncryptedType(String))


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    user: Mapped[User] = relationship()
    body: Mapped[str] = mapped_column(EncryptedType(Text, owner="user_id"))
    tags: Mapped[list[str]] = mapped_column(EncryptedType(JSON, owner="user_id"))


Secret = Annotated[str, mapped_column(EncryptedType(String, owner="user_id"))]


class Diary(Base):
    __tablename__ = "diaries"
    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, default=uuid.uuid4)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    morning: Mapped[Secret]
    evening: Mapped[Secret | None]
    born: Mapped[dt.date] = mapped_column(EncryptedType(String(10), "user_id", "diaries.born", "row"))


class Member(KeyOwner, Base, key_tables=False):
    __tablename__ = "members"
    __owner_label__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)


class MemberKey(KeyTable[Member], Base):
    __tablename__ = "member_keys"
    reviewed_at: Mapped[dt.datetime | None]


class MemberKeySlot(KeySlotTable[Member], Base):
    __tablename__ = "member_slots"


envelope = Envelope()
cheap = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), concurrent_derivations=2, derivation_wait=1)


def first_program(engine: Engine) -> None:
    enforce_foreign_keys(engine)
    with Session(engine) as session:
        user = User(email="ada@example.org", phone="+44 20 7946 0000")
        with envelope.enroll(session, user, secret="correct horse battery staple") as unlocked:
            assert_type(unlocked, UnlockedSession)
            session.add(Note(user=user, body="hello", tags=["a"]))
            session.commit()


def second_program(engine: Engine) -> None:
    with Session(engine) as session:
        user = session.scalars(select(User).where(User.email == "ada@example.org")).one()
        assert_type(user.phone, str | None)
        with envelope.unlock(session, user, secret=b"correct horse battery staple") as unlocked:
            assert_type(unlocked, UnlockedSession)
            note = session.scalars(select(Note)).all()[0]
            assert_type(note.body, str)
            assert_type(note.tags, list[str])
            assert_type(note.user, User)
            with unlocked.using(user) as nothing:
                assert_type(nothing, None)
            unlocked.lock()
        assert_type(
            envelope.change_secret(session, user, old="correct horse battery staple", new="other words"), None
        )


async def asynchronous_program(engine: AsyncEngine) -> None:
    enforce_foreign_keys(engine)
    asynchronous = AsyncEnvelope(envelope)
    async with AsyncSession(engine) as session:
        user = User(email="ada@example.org", phone=None)
        async with asynchronous.enroll(session, user, secret="correct horse battery staple") as unlocked:
            assert_type(unlocked, UnlockedSession)
        assert_type(await asynchronous.enroll(session, user, secret="other words"), UnlockedSession)
        async with asynchronous.unlock(session, user, secret="correct horse battery staple"):
            diary = (await session.scalars(select(Diary))).one()
            assert_type(diary.morning, str)
            assert_type(diary.evening, str | None)
            assert_type(diary.born, dt.date)
        await asynchronous.change_secret(session, user, old="correct horse battery staple", new="other words")


async def scoped_programs(
    sessions: scoped_session[Session], asynchronous: async_scoped_session[AsyncSession], user: User
) -> None:
    with envelope.unlock(sessions, user, secret="other words") as unlocked:
        assert_type(unlocked, UnlockedSession)
    async with AsyncEnvelope().unlock(asynchronous, user, secret="other words") as unlocked:
        assert_type(unlocked, UnlockedSession)


def key_tables_of_ones_own(session: Session) -> None:
    key = session.scalars(select(MemberKey)).one()
    assert_type(key, MemberKey)
    assert_type(key.key_id, uuid.UUID)
    assert_type(key.epoch, int)
    assert_type(key.wrapped, bytes | None)
    assert_type(key.wrapping_key_id, uuid.UUID | None)
    assert_type(key.reviewed_at, dt.datetime | None)
    slot = session.scalars(select(MemberKeySlot)).one()
    assert_type(slot.key_id, uuid.UUID)
    assert_type(slot.kdf, str | None)


def one_parent_for_all_errors(session: Session, user: User) -> str:
    try:
        envelope.unlock(session, user, secret="wrong")
    except UnlockError as error:
        return error.code
    except (LockedError, EnvelopeError) as error:
        return str(error)
    return ""


def what_to_run_again(error: BaseException) -> bool:
    if isinstance(error, TransactionConflictError):
        assert_type(error.sqlstate, str)
        assert_type(error.orig, TransactionConflictError)
    return assert_type(should_retry(error), bool)
