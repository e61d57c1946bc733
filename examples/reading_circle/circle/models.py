"""The tables, and whose key each encrypted column is under."""

from sqlalchemy import ForeignKey, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqlalchemy_envelope import EncryptedType, KeyGrant, KeyOwner


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(String(200), unique=True)
    diary: Mapped[str | None] = mapped_column(EncryptedType(Text))  # under the user's own key


class Circle(KeyOwner, Base):
    __tablename__ = "circles"
    id: Mapped[int] = mapped_column(primary_key=True)
    book: Mapped[str] = mapped_column(EncryptedType(String(200)))  # under the circle's key


class Membership(KeyGrant, Base, of="circle_id", to="user_id"):  # a row gives the user the circle's key
    __tablename__ = "memberships"
    circle_id: Mapped[int] = mapped_column(ForeignKey("circles.id", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)


class Comment(Base):
    __tablename__ = "comments"
    id: Mapped[int] = mapped_column(primary_key=True)
    circle_id: Mapped[int] = mapped_column(ForeignKey("circles.id", ondelete="CASCADE"), index=True)
    text: Mapped[str] = mapped_column(EncryptedType(Text))  # under the key of the row's circle
    quote: Mapped[str | None] = mapped_column(EncryptedType(Text))
