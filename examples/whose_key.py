"""Whose key encrypts a row: the ways that need no foreign key to a user, in one shop.

    python -m examples.whose_key                    on SQLite, in memory
    python -m examples.whose_key postgresql+psycopg://localhost/shop

An item belongs to the customer of its order. A setting names its user in a column without a foreign key. A
document belongs to a user or to a company. A document's history is a copy of the table. The shop's own
credentials belong to the sole `Vault`, which the first flush in server mode makes.
"""

import sys
from typing import Any

from sqlalchemy import Engine, ForeignKey, Text, create_engine, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from sqlalchemy_envelope import (
    EncryptedType,
    Envelope,
    KeyOwner,
    OneOf,
    OwnerColumn,
    ServerKeyring,
    enforce_foreign_keys,
)


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)


class Company(KeyOwner, Base):
    __tablename__ = "companies"
    id: Mapped[int] = mapped_column(primary_key=True)


class Vault(KeyOwner, Base, sole=True):  # one row, whose key encrypts what belongs to nobody else
    __tablename__ = "vaults"
    id: Mapped[int] = mapped_column(primary_key=True)


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    customer: Mapped[User] = relationship()


class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id", ondelete="CASCADE"))
    order: Mapped[Order] = relationship()
    engraving: Mapped[str] = mapped_column(EncryptedType(Text, owner="order.customer"))


class Setting(Base):
    __tablename__ = "settings"
    id: Mapped[int] = mapped_column(primary_key=True)
    account: Mapped[int]  # a user's id, and no foreign key
    value: Mapped[str] = mapped_column(EncryptedType(Text, owner=OwnerColumn("account", of=User)))


class Document(Base):
    __tablename__ = "documents"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    company_id: Mapped[int | None] = mapped_column(ForeignKey("companies.id", ondelete="CASCADE"))
    text: Mapped[str] = mapped_column(EncryptedType(Text, owner=OneOf("user_id", "company_id")))


class DocumentHistory(Base):  # its label says which column it is a copy of, and so whose key it is under
    __tablename__ = "documents_history"
    id: Mapped[int] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None]
    company_id: Mapped[int | None]
    text: Mapped[str] = mapped_column(EncryptedType(Text, label="documents.text"))


class Credential(Base):
    __tablename__ = "credentials"
    id: Mapped[int] = mapped_column(primary_key=True)
    token: Mapped[str] = mapped_column(EncryptedType(Text, owner=Vault))


def fill(session: Session) -> None:
    """Write a row of each kind: objects in one flush, and rows in bulk."""
    ada, company = User(), Company()
    session.add_all([ada, company, Item(order=Order(customer=ada), engraving="for Charles")])
    session.add(Credential(token="of the payment service"))
    session.flush()
    session.add_all(
        [
            Setting(account=ada.id, value="dark"),
            Document(id=1, user_id=ada.id, text="Ada's letter"),
            Document(id=2, company_id=company.id, text="the company's contract"),
        ]
    )
    session.flush()
    # Inside the database, ciphertext is copied between columns of one label, with the columns that name the
    # owner.
    columns = [Document.id, Document.user_id, Document.company_id, Document.text]
    history = insert(DocumentHistory).from_select(
        ["version", "id", "user_id", "company_id", "text"], select(Document.id, *columns)
    )
    session.execute(history)
    order = session.scalars(select(Order.id)).one()
    session.execute(insert(Item), [{"order_id": order, "engraving": f"number {n}"} for n in range(3)])
    session.commit()


def read(session: Session) -> dict[str, list[str]]:
    """Everything, by table."""
    columns: list[Any] = [
        Item.engraving,
        Setting.value,
        Document.text,
        DocumentHistory.text,
        Credential.token,
    ]
    found = {}
    for column in columns:
        objects = session.scalars(select(column.class_)).all()
        found[column.class_.__tablename__] = [getattr(one, column.key) for one in objects]
    return found


def shop(engine: Engine, envelope: Envelope) -> dict[str, list[str]]:
    """Fill the shop and read it again, with nothing in the handlers that speaks of keys."""
    Base.metadata.create_all(engine)
    with envelope.server_mode(reason="the shop"):
        with Session(engine) as session:
            fill(session)
        with Session(engine) as session:
            return read(session)


def main() -> None:
    engine = create_engine(sys.argv[1] if sys.argv[1:] else "sqlite://")
    enforce_foreign_keys(engine)
    envelope = Envelope(server_keys=ServerKeyring.from_text(ServerKeyring.generate_key()))
    for table, values in shop(engine, envelope).items():
        print(f"{table:20}{', '.join(values)}")


if __name__ == "__main__":
    main()
