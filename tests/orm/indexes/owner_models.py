"""Notes that each user finds again alone, and posts that a group finds again."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any

from sqlalchemy import Engine, ForeignKey, String, UniqueConstraint, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import (
    BlindIndex,
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyGrant,
    KeyOwner,
    UnlockedSession,
)
from tests.prepared import prepared

SECRET = "correct horse battery staple"
envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests())


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    nickname: Mapped[str | None] = mapped_column(EncryptedType(String))
    nickname_index: Mapped[bytes | None] = mapped_column(BlindIndex("nickname"))


class Note(Base):
    __tablename__ = "notes"
    __table_args__ = (UniqueConstraint("user_id", "title_index"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    title: Mapped[str | None] = mapped_column(EncryptedType(String))
    title_index: Mapped[bytes | None] = mapped_column(BlindIndex("title"))
    place: Mapped[str | None] = mapped_column(EncryptedType(String))
    place_index: Mapped[bytes | None] = mapped_column(BlindIndex("place"), index=True)


class Group(KeyOwner, Base):
    __tablename__ = "groups"
    id: Mapped[int] = mapped_column(primary_key=True)


class Membership(KeyGrant, Base, of="group_id", to="user_id"):
    __tablename__ = "memberships"
    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)


class Post(Base):
    __tablename__ = "posts"
    id: Mapped[int] = mapped_column(primary_key=True)
    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"))
    text: Mapped[str | None] = mapped_column(EncryptedType(String))
    text_index: Mapped[bytes | None] = mapped_column(BlindIndex("text", scope="group"), index=True)


def two_users(engine: Engine) -> tuple[int, int]:
    """Two users with keys, both locked; their ids."""

    def make() -> tuple[int, int]:
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            users = [User(), User()]
            envelope.enroll(session, users, secret=dict.fromkeys(users, SECRET))
            session.commit()
            return users[0].id, users[1].id

    return prepared(engine, "owned indexes", make)


def unlock(session: Session, user_id: int) -> Any:
    """An unlock of a user with the secret."""
    return envelope.unlock(session, session.get_one(User, user_id), secret=SECRET)


@contextmanager
def apart(unlocked: UnlockedSession) -> Iterator[None]:
    """An unlock that serves its own session alone, as in another request."""
    context = copy_context()
    context.run(unlocked.__enter__)
    try:
        yield
    finally:
        context.run(unlocked.__exit__, None, None, None)


def found(session: Session, condition: Any, column: Any = Note.id) -> list[int]:
    """The ids of the rows that fulfil a condition."""
    return sorted(session.scalars(select(column).where(condition)))


def tags(session: Session, index: Any) -> dict[int, bytes | None]:
    """The stored tags of an index, by the ids of the rows."""
    return {row[0]: row[1] for row in session.execute(select(index.class_.id, index))}
