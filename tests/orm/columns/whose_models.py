"""One encrypted column for each way of naming its owner, with and without a column that it takes the place
of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ForeignKey, ForeignKeyConstraint, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, configure_mappers, mapped_column, relationship

from sqlalchemy_envelope import EncryptedType, KeyOwner, OneOf, OwnerColumn, PreviousColumn


@dataclass(frozen=True)
class Kind:
    """One row of the table in docs/how-to/declare.md.

    Attributes:
        model: the name of the class with the encrypted column `text`.
        names: what a row of this owner's has in its own columns.
        owner: the class of the owner.
        others: that a row can also be another owner's.
    """

    model: str
    names: Callable[[int], dict[str, Any]]
    owner: str = "User"
    others: bool = True


KINDS = {
    "the class itself": Kind("User", lambda n: {"id": 10 + n}, others=False),
    "the only foreign key": Kind("Note", lambda n: {"user_id": n}),
    "a named foreign key": Kind("Message", lambda n: {"sender_id": 3, "receiver_id": n}),
    "a relationship": Kind("Letter", lambda n: {"sender_id": 3, "receiver_id": n}),
    "a composite key": Kind("Invoice", lambda n: {"region": "eu", "number": n}, owner="Branch"),
    "two relationships": Kind("Item", lambda n: {"order_id": n}),
    "a relationship and a column": Kind("Parcel", lambda n: {"order_id": n}),
    "three steps": Kind("Label", lambda n: {"item_id": n}),
    "a column without a foreign key": Kind("Setting", lambda n: {"of_user": n}),
    "columns without a foreign key": Kind(
        "Limit", lambda n: {"in_region": "eu", "in_number": n}, owner="Branch"
    ),
    "one of two: the user": Kind("Document", lambda n: {"user_id": n, "team_id": None}),
    "one of two: the team": Kind("Document", lambda n: {"user_id": None, "team_id": n}, owner="Team"),
    "one of two: through another row": Kind("Memo", lambda n: {"order_id": n, "team_id": None}),
    "one of two of another row: the user": Kind("Draft", lambda n: {"document_id": n}),
    "one of two of another row: the team": Kind("Draft", lambda n: {"document_id": 10 + n}, owner="Team"),
    "one of two of another row, or of this one": Kind(
        "Sketch", lambda n: {"document_id": None, "branch_region": "eu", "branch_number": n}, owner="Branch"
    ),
    "the sole owner": Kind("Credential", lambda n: {}, owner="Vault", others=False),
    "a copy of another table's column": Kind("NoteHistory", lambda n: {"user_id": n, "version": n}),
}


def models(*, previous: bool = False) -> Any:
    """The classes, by name; with `previous`, each encrypted column takes the place of a plain one."""

    def encrypted(owner: Any = None, label: str | None = None) -> Any:
        if previous:
            moved = PreviousColumn("text", Text())
            return mapped_column("text_encrypted", EncryptedType(Text, owner, label, previous=moved))
        return mapped_column(EncryptedType(Text, owner, label))

    class Base(DeclarativeBase):
        pass

    class User(KeyOwner, Base):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)
        text: Mapped[str | None] = encrypted()

    class Team(KeyOwner, Base):
        __tablename__ = "teams"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Branch(KeyOwner, Base):
        __tablename__ = "branches"
        region: Mapped[str] = mapped_column(Text, primary_key=True)
        number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)

    class Vault(KeyOwner, Base, sole=True):
        __tablename__ = "vaults"
        id: Mapped[int] = mapped_column(primary_key=True)

    def user(nullable: bool = False) -> Any:
        return mapped_column(ForeignKey("users.id", ondelete="CASCADE"), nullable=nullable)

    class Note(Base):
        __tablename__ = "notes"
        id: Mapped[int] = mapped_column(primary_key=True)
        user_id: Mapped[int] = user()
        text: Mapped[str | None] = encrypted()

    class Message(Base):
        __tablename__ = "messages"
        id: Mapped[int] = mapped_column(primary_key=True)
        sender_id: Mapped[int] = user()
        receiver_id: Mapped[int] = user()
        text: Mapped[str | None] = encrypted("receiver_id")

    class Letter(Base):
        __tablename__ = "letters"
        id: Mapped[int] = mapped_column(primary_key=True)
        sender_id: Mapped[int] = user()
        receiver_id: Mapped[int] = user()
        receiver: Mapped[User] = relationship(foreign_keys=receiver_id)
        text: Mapped[str | None] = encrypted("receiver")

    class Invoice(Base):
        __tablename__ = "invoices"
        __table_args__ = (ForeignKeyConstraint(["region", "number"], ["branches.region", "branches.number"]),)
        id: Mapped[int] = mapped_column(primary_key=True)
        region: Mapped[str] = mapped_column(Text)
        number: Mapped[int]
        text: Mapped[str | None] = encrypted(("region", "number"))

    class Order(Base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)
        customer_id: Mapped[int] = user()
        customer: Mapped[User] = relationship()

    class Item(Base):
        __tablename__ = "items"
        id: Mapped[int] = mapped_column(primary_key=True)
        order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"))
        order: Mapped[Order] = relationship()
        text: Mapped[str | None] = encrypted("order.customer")

    class Parcel(Base):
        __tablename__ = "parcels"
        id: Mapped[int] = mapped_column(primary_key=True)
        order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"))
        order: Mapped[Order] = relationship()
        text: Mapped[str | None] = encrypted("order.customer_id")

    class Label(Base):
        __tablename__ = "labels"
        id: Mapped[int] = mapped_column(primary_key=True)
        item_id: Mapped[int] = mapped_column(ForeignKey("items.id"))
        item: Mapped[Item] = relationship()
        text: Mapped[str | None] = encrypted("item.order.customer")

    class Setting(Base):
        __tablename__ = "settings"
        id: Mapped[int] = mapped_column(primary_key=True)
        of_user: Mapped[int]
        text: Mapped[str | None] = encrypted(OwnerColumn("of_user", of=User))

    class Limit(Base):
        __tablename__ = "limits"
        id: Mapped[int] = mapped_column(primary_key=True)
        in_region: Mapped[str] = mapped_column(Text)
        in_number: Mapped[int]
        text: Mapped[str | None] = encrypted(OwnerColumn("in_region", "in_number", of="Branch"))

    class Document(Base):
        __tablename__ = "documents"
        id: Mapped[int] = mapped_column(primary_key=True)
        user_id: Mapped[int | None] = user(nullable=True)
        team_id: Mapped[int | None] = mapped_column(ForeignKey("teams.id", ondelete="CASCADE"))
        author: Mapped[User | None] = relationship()
        text: Mapped[str | None] = encrypted(OneOf("user_id", "team_id"))

    class Memo(Base):
        __tablename__ = "memos"
        id: Mapped[int] = mapped_column(primary_key=True)
        order_id: Mapped[int | None] = mapped_column(ForeignKey("orders.id"))
        team_id: Mapped[int | None] = mapped_column(ForeignKey("teams.id", ondelete="CASCADE"))
        order: Mapped[Order | None] = relationship()
        text: Mapped[str | None] = encrypted(OneOf("order.customer", "team_id"))

    class Draft(Base):
        __tablename__ = "drafts"
        id: Mapped[int] = mapped_column(primary_key=True)
        document_id: Mapped[int] = mapped_column(ForeignKey("documents.id"))
        document: Mapped[Document] = relationship()
        text: Mapped[str | None] = encrypted(OneOf("document.author", "document.team_id"))

    class Sketch(Base):
        __tablename__ = "sketches"
        __table_args__ = (
            ForeignKeyConstraint(["branch_region", "branch_number"], ["branches.region", "branches.number"]),
        )
        id: Mapped[int] = mapped_column(primary_key=True)
        document_id: Mapped[int | None] = mapped_column(ForeignKey("documents.id"))
        branch_region: Mapped[str | None] = mapped_column(Text)
        branch_number: Mapped[int | None]
        document: Mapped[Document | None] = relationship()
        text: Mapped[str | None] = encrypted(
            OneOf("document.user_id", "document.team_id", ("branch_region", "branch_number"))
        )

    class Credential(Base):
        __tablename__ = "credentials"
        id: Mapped[int] = mapped_column(primary_key=True)
        text: Mapped[str | None] = encrypted(Vault)

    class NoteHistory(Base):
        __tablename__ = "notes_history"
        id: Mapped[int] = mapped_column(primary_key=True)
        version: Mapped[int]
        user_id: Mapped[int]
        text: Mapped[str | None] = encrypted(label="notes.text_encrypted" if previous else "notes.text")

    configure_mappers()
    classes = [User, Team, Branch, Vault, Note, Message, Letter, Invoice, Order, Item, Parcel, Label, Setting]
    classes += [Limit, Document, Memo, Draft, Sketch, Credential, NoteHistory]
    return type("Models", (), {"Base": Base, **{one.__name__: one for one in classes}})
