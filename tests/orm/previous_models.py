"""The same tables at each step of a migration: one set of classes for each policy."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import sqlalchemy as sa
from sqlalchemy import JSON, Engine, ForeignKey, Integer, String, Text, Uuid
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, configure_mappers, mapped_column, relationship

from sqlalchemy_envelope import EncryptedType, Envelope, KdfProfile, KeyOwner, PreviousColumn
from tests.prepared import prepared

SECRET = "correct horse battery staple"
Policy = Literal["both", "read", "refuse"]

envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests())


@cache
def models(policy: Policy) -> Any:
    """The classes of one deployment; the tables' names are the same in all."""

    class Base(DeclarativeBase):
        pass

    def moved(name: str, inner: Any, previous: Any, **options: Any) -> Any:
        return EncryptedType(inner, previous=PreviousColumn(name, previous, policy), **options)

    class User(KeyOwner, Base):
        __tablename__ = "users"

        id: Mapped[int] = mapped_column(primary_key=True)
        email: Mapped[str] = mapped_column(unique=True)
        phone: Mapped[str | None] = mapped_column("phone_encrypted", moved("phone", String, String(20)))
        nick: Mapped[str | None]
        notes: Mapped[list["Note"]] = relationship(back_populates="user", order_by="Note.id")

    class Note(Base):
        __tablename__ = "notes"

        id: Mapped[int] = mapped_column(primary_key=True)
        user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
        title: Mapped[str | None]
        body: Mapped[str | None] = mapped_column("body_encrypted", moved("body", Text, Text, owner="user_id"))
        size: Mapped[int | None] = mapped_column(
            "size_encrypted", moved("size", Integer, Integer, owner="user_id")
        )
        extra: Mapped[dict[str, Any] | None] = mapped_column(
            "extra_encrypted", MutableDict.as_mutable(moved("extra", JSON, JSON, owner="user_id"))
        )
        user: Mapped[User | None] = relationship(back_populates="notes")

    class Page(Base):
        """From bound to its column to bound to its row: the previous values are encrypted as well."""

        __tablename__ = "pages"

        id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, default=uuid.uuid4)
        user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
        text: Mapped[str | None] = mapped_column(
            "text_by_row",
            moved(
                "text",
                Text,
                EncryptedType(Text, owner="user_id", label="pages.text"),
                owner="user_id",
                bind="row",
            ),
        )
        user: Mapped[User] = relationship()

    class Person(Base):
        __tablename__ = "people"

        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
        __mapper_args__: ClassVar[dict[str, str]] = {
            "polymorphic_on": "kind",
            "polymorphic_identity": "person",
        }

    class Guest(Person):
        """Its column is one that its class adds to its parent's table."""

        wish: Mapped[str | None] = mapped_column("wish_encrypted", moved("wish", Text, Text, owner="user_id"))
        __mapper_args__: ClassVar[dict[str, str]] = {"polymorphic_identity": "guest"}

    class Staff(Person):
        """Its column is in a table of its own."""

        __tablename__ = "staff"

        id: Mapped[int] = mapped_column(ForeignKey("people.id"), primary_key=True)
        salary: Mapped[int | None] = mapped_column(
            "salary_encrypted", moved("salary", Integer, Integer, owner="user_id")
        )
        __mapper_args__: ClassVar[dict[str, str]] = {"polymorphic_identity": "staff"}

    @dataclass
    class Models:
        Base: Any
        User: Any
        Note: Any
        Page: Any
        Guest: Any
        Staff: Any
        Person: Any

    configure_mappers()
    return Models(Base, User, Note, Page, Guest, Staff, Person)


@dataclass
class Moving:
    """A database in the middle of a migration, at one of its steps, with one enrolled owner."""

    engine: Engine
    policy: Policy
    user_id: int

    @property
    def m(self) -> Any:
        """The classes of this step."""
        return models(self.policy)

    def at(self, policy: Policy) -> "Moving":
        """The same database with another step deployed."""
        return Moving(self.engine, policy, self.user_id)

    @contextmanager
    def unlocked(self) -> Iterator[Session]:
        """A session with the owner's keys."""
        with Session(self.engine) as session:
            owner = session.get_one(self.m.User, self.user_id)
            with envelope.unlock(session, owner, secret=SECRET) as unlocked:
                session.info["unlocked"] = unlocked
                yield session

    @contextmanager
    def locked(self) -> Iterator[Session]:
        """A session without keys."""
        with Session(self.engine) as session:
            yield session

    def old(self, statement: str, **values: Any) -> Any:
        """What a program does that knows nothing of the encrypted column; gives the rows it asks for."""
        with self.engine.begin() as connection:
            result = connection.execute(sa.text(statement), values)
            return result.all() if result.returns_rows else None

    def row(self, table: str, key: Any, name: str, encrypted: str | None = None) -> tuple[Any, bool]:
        """The previous value of a row, and whether it has an encrypted one."""
        encrypted = encrypted or f"{name}_encrypted"
        found = self.old(f"SELECT {name}, {encrypted} FROM {table} WHERE id = :id", id=key)
        return found[0][0], found[0][1] is not None

    def note(self, session: Session, **values: Any) -> Any:
        """A note of the owner, committed."""
        note = self.m.Note(user_id=self.user_id, **values)
        session.add(note)
        session.commit()
        return note


def start(engine: Engine, policy: Policy) -> Moving:
    """The tables, with one owner."""

    def make() -> int:
        models(policy).Base.metadata.create_all(engine)
        with Session(engine) as session:
            user = models(policy).User(email="ada@example.org")
            envelope.enroll(session, user, secret=SECRET)
            session.commit()
            return int(user.id)

    return Moving(engine, policy, prepared(engine, ("previous", policy), make))
