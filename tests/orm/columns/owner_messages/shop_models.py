"""A shop whose columns belong to customers, in every way of saying so."""

from typing import Any

import pytest
from sqlalchemy import Engine, ForeignKey, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from sqlalchemy_envelope import (
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyOwner,
    OneOf,
    OwnerColumn,
    ServerKeyring,
    StatementRefusedError,
)

envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([b"k" * 32]))


class Base(DeclarativeBase):
    pass


class Customer(KeyOwner, Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    phone: Mapped[str | None] = mapped_column(EncryptedType(Text))


class Company(KeyOwner, Base):
    __tablename__ = "companies"
    id: Mapped[int] = mapped_column(primary_key=True)


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("customers.id", ondelete="CASCADE"))
    customer: Mapped[Customer] = relationship()
    address: Mapped[str | None] = mapped_column(EncryptedType(Text))
    note: Mapped[str | None]


class Document(Base):
    __tablename__ = "documents"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int | None] = mapped_column(ForeignKey("customers.id"))
    company_id: Mapped[int | None] = mapped_column(ForeignKey("companies.id"))
    body: Mapped[str | None] = mapped_column(EncryptedType(Text, owner=OneOf("customer_id", "company_id")))


class Line(Base):
    __tablename__ = "lines"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"))
    order: Mapped[Order] = relationship(lazy="raise")
    text: Mapped[str] = mapped_column(EncryptedType(Text, owner="order.customer"))


class Remark(Base):
    __tablename__ = "remarks"
    id: Mapped[int] = mapped_column(primary_key=True)
    line_id: Mapped[int] = mapped_column(ForeignKey("lines.id"))
    line: Mapped[Line] = relationship()
    text: Mapped[str] = mapped_column(EncryptedType(Text, owner="line.order.customer"))


class Vault(KeyOwner, Base, sole=True):
    __tablename__ = "vaults"
    id: Mapped[int] = mapped_column(primary_key=True)


class Token(Base):
    __tablename__ = "tokens"
    name: Mapped[str] = mapped_column(primary_key=True)
    token: Mapped[str] = mapped_column(EncryptedType(Text, owner=Vault))


class Setting(Base):
    __tablename__ = "settings"
    customer_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    theme: Mapped[str] = mapped_column(EncryptedType(Text, owner=OwnerColumn("customer_id", of=Customer)))


def refused(shop: Engine, write: Any, kind: type[Exception] = StatementRefusedError) -> str:
    """What the error about a write in server mode says; its cure is for the caller to try."""
    with Session(shop) as session, envelope.server_mode(reason="test"):
        with pytest.raises(kind) as caught:
            write(session)
        session.rollback()
    return str(caught.value)
