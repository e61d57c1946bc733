"""A shop whose items belong to the customer of their order."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from sqlalchemy import Engine, ForeignKey, Text, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, synonym

from sqlalchemy_envelope import EncryptedType, Envelope, KeyOwner


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    total: Mapped[int | None]
    customer: Mapped[User | None] = relationship()
    buyer: Mapped[int | None] = synonym("customer_id")


class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int | None] = mapped_column(ForeignKey("orders.id"))
    order: Mapped[Order | None] = relationship()
    text: Mapped[str | None] = mapped_column(EncryptedType(Text, owner="order.customer"))


class Label(Base):
    __tablename__ = "labels"
    id: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[int | None] = mapped_column(ForeignKey("items.id"))
    item: Mapped[Item | None] = relationship()
    text: Mapped[str | None] = mapped_column(EncryptedType(Text, owner="item.order.customer"))


class Node(Base):
    __tablename__ = "nodes"
    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("nodes.id"))
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    parent: Mapped["Node | None"] = relationship(remote_side="Node.id")
    user: Mapped[User | None] = relationship()
    text: Mapped[str | None] = mapped_column(EncryptedType(Text, owner="parent.user"))


class Doc(Base):
    __tablename__ = "docs"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    user: Mapped[User] = relationship(post_update=True)
    __mapper_args__: ClassVar[Any] = {"polymorphic_on": "kind", "polymorphic_identity": "doc"}


class Letter(Doc):
    __tablename__ = "letters"
    id: Mapped[int] = mapped_column(ForeignKey("docs.id"), primary_key=True)
    text: Mapped[str | None] = mapped_column(EncryptedType(Text, owner="user_id"))
    __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "letter"}


OWNERS = {
    "items": "SELECT i.id, o.customer_id, i.text FROM items i LEFT JOIN orders o ON o.id = i.order_id",
    "labels": "SELECT l.id, o.customer_id, l.text FROM labels l JOIN items i ON i.id = l.item_id "
    "LEFT JOIN orders o ON o.id = i.order_id",
    "nodes": "SELECT n.id, p.user_id, n.text FROM nodes n JOIN nodes p ON p.id = n.parent_id",
    "letters": "SELECT l.id, d.user_id, l.text FROM letters l JOIN docs d ON d.id = l.id",
}


@dataclass
class Shop:
    """Users 1 and 2; order 1 of user 1 with an item, order 2 of user 2 without, letter 1 of user 1; node 2
    of user 1, with a value behind it in the nodes 1 and 3."""

    engine: Engine
    envelope: Envelope

    @contextmanager
    def session(self, **options: Any) -> Iterator[Session]:
        with Session(self.engine, **options) as session, self.envelope.server_mode(session, reason="test"):
            yield session

    def stored(self, table_name: str) -> dict[int, tuple[Any, Any]]:
        """By primary key, the owner of a row and the owner of the key that its value names, read past the
        library."""
        keys = Base.metadata.tables["users_key"]
        with self.engine.connect() as connection:
            named = {
                one.bytes: owner for one, owner in connection.execute(select(keys.c.key_id, keys.c.owner_id))
            }
            rows = connection.exec_driver_sql(OWNERS[table_name]).all()
        return {key: (owner, named[bytes(blob)[1:17]]) for key, owner, blob in rows if blob is not None}

    def is_sound(self) -> bool:
        """Whether each value is under the key of its row's owner."""
        return all(owner == key for name in OWNERS for owner, key in self.stored(name).values())
