"""The models that the migrations of these tests are made from, in any schema."""

import datetime as dt
from types import SimpleNamespace
from typing import Annotated, Any

from sqlalchemy import JSON, ForeignKey, MetaData, Numeric, String, Text
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from sqlalchemy_envelope import EncryptedType, KeyOwner, KeySlotTable, KeyTable

Secret = Annotated[str, mapped_column(EncryptedType(String(40)))]


def declare(schema: str | None = None) -> SimpleNamespace:
    """Two key owners, one with key tables of its own making, and every form of encrypted column."""

    class Base(DeclarativeBase):
        metadata = MetaData(schema=schema)

    class User(KeyOwner, Base):
        __tablename__ = "users"

        id: Mapped[int] = mapped_column(primary_key=True)
        email: Mapped[str] = mapped_column(String(80), unique=True)
        phone: Mapped[str | None] = mapped_column(EncryptedType(String))

    users = f"{schema}.users" if schema else "users"

    class Note(Base):
        __tablename__ = "notes"

        id: Mapped[int] = mapped_column(primary_key=True)
        user_id: Mapped[int] = mapped_column(ForeignKey(f"{users}.id", ondelete="CASCADE"))
        body: Mapped[str] = mapped_column(EncryptedType(Text))
        title: Mapped[Secret]
        price: Mapped[Any] = mapped_column(EncryptedType(Numeric(10, 2), label="notes.cost"), nullable=True)
        extra: Mapped[dict[str, Any] | None] = mapped_column(MutableDict.as_mutable(EncryptedType(JSON)))
        user: Mapped[User] = relationship()

    class Member(KeyOwner, Base, key_tables=False):
        __tablename__ = "members"

        org: Mapped[str] = mapped_column(String(20), primary_key=True)
        number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        name: Mapped[str | None] = mapped_column(EncryptedType(String))

    class MemberKey(KeyTable[Member], Base):
        __tablename__ = "vault_keys"

        reviewed_at: Mapped[dt.datetime | None]

    class MemberKeySlot(KeySlotTable[Member], Base):
        __tablename__ = "vault_slots"

    return SimpleNamespace(Base=Base, User=User, Note=Note, Member=Member, MemberKey=MemberKey)


plain = declare()
in_schema = declare("vault")
