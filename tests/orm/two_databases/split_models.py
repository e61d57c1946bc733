"""Models whose owners' secrets need a second database, and the same models from before they did."""

from typing import Any

from sqlalchemy import Engine, ForeignKey, MetaData, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

from sqlalchemy_envelope import EncryptedType, Envelope, KdfProfile, KeyOwner, ServerKeyring

SECRET, NEW = "correct horse battery staple", "another secret altogether"
CHEAP = KdfProfile.unsafe_for_tests()

envelope = Envelope(kdf_profile=CHEAP)
serving = Envelope(kdf_profile=CHEAP, server_keys=ServerKeyring([b"\x07" * 32]))

second = MetaData()
"""The tables of the second database."""


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base, key_shares=second):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    phone: Mapped[str | None] = mapped_column(EncryptedType(String))


class Note(Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    body: Mapped[str | None] = mapped_column(EncryptedType(Text, owner="user_id"))
    user: Mapped[User] = relationship()


Share: Any = User.__share_class__
Slot: Any = User.__slot_class__
Key: Any = User.__key_class__


class Before(DeclarativeBase):
    """The application before it had a second database."""


class UserBefore(KeyOwner, Before):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    phone: Mapped[str | None] = mapped_column(EncryptedType(String))


def sessions_on(first: Engine, other: Engine) -> sessionmaker[Session]:
    """Makes sessions that lead to both databases."""
    return sessionmaker(first, binds={Share: other})


def new_user(session: Session, name: str = "ada", secret: str | None = SECRET, **options: Any) -> User:
    """An enrolled owner with a value, committed and locked."""
    user = User(email=f"{name}@example.org", phone=f"of {name}")
    (serving if options else envelope).enroll(session, user, secret=secret, **options)
    session.commit()
    return user
