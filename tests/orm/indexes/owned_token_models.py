"""Entries whose words each user finds again alone, and minutes that a group finds again."""

from typing import Any

from sqlalchemy import Engine, ForeignKey, Text, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import (
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyGrant,
    KeyOwner,
    ReceiptKey,
    enforce_foreign_keys,
    token_index,
)
from tests.prepared import prepared

SECRET = "correct horse battery staple"
envelope = Envelope(
    kdf_profile=KdfProfile.unsafe_for_tests(), receipt_key=ReceiptKey.from_text(ReceiptKey.generate_key())
)


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    about: Mapped[str | None] = mapped_column(EncryptedType(Text))
    about_words = token_index("about")


class Entry(Base):
    __tablename__ = "entries"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    text: Mapped[str | None] = mapped_column(EncryptedType(Text))
    text_words = token_index("text")


class Group(KeyOwner, Base):
    __tablename__ = "groups"
    id: Mapped[int] = mapped_column(primary_key=True)


class Membership(KeyGrant, Base, of="group_id", to="user_id"):
    __tablename__ = "memberships"
    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)


class Minute(Base):
    __tablename__ = "minutes"
    id: Mapped[int] = mapped_column(primary_key=True)
    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"))
    text: Mapped[str | None] = mapped_column(EncryptedType(Text))
    text_words = token_index("text", scope="group")


def two_users(engine: Engine) -> tuple[int, int]:
    """Two users with keys, both locked; their ids."""
    enforce_foreign_keys(engine)

    def make() -> tuple[int, int]:
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            users = [User(), User()]
            envelope.enroll(session, users, secret=dict.fromkeys(users, SECRET))
            session.commit()
            return users[0].id, users[1].id

    return prepared(engine, "owned tokens", make)


def unlock(session: Session, user_id: int) -> Any:
    """An unlock of a user with the secret."""
    return envelope.unlock(session, session.get_one(User, user_id), secret=SECRET)


def found(session: Session, condition: Any, column: Any = Entry.id) -> list[int]:
    """The ids of the rows that fulfil a condition."""
    return sorted(session.scalars(select(column).where(condition)))
