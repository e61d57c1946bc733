"""Tickets of owners of every kind: by what their primary key is, and how their class is mapped."""

import uuid
from typing import Any

import pytest
from sqlalchemy import ForeignKey, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from sqlalchemy_envelope import (
    ConfigurationError,
    EncryptedType,
    Envelope,
    KeyOwner,
    KeySlotTable,
    KeyTable,
    KeyTicketTable,
    ServerKeyring,
)
from tests.orm.verbs.tickets.application import HOUR, KEY, PROFILE

SECRET = "correct horse battery staple"
envelope = Envelope(kdf_profile=PROFILE, server_keys=ServerKeyring([KEY]))


class Base(DeclarativeBase):
    pass


class Composite(KeyOwner, Base):
    __tablename__ = "composites"
    region: Mapped[str] = mapped_column(String(8), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    note: Mapped[str | None] = mapped_column(EncryptedType(Text))


class ByUuid(KeyOwner, Base):
    __tablename__ = "by_uuid"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    note: Mapped[str | None] = mapped_column(EncryptedType(Text))


class ByName(KeyOwner, Base):
    """Its keys are bound to a name, and not to the primary key."""

    __tablename__ = "by_name"
    __owner_reference__ = "name"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(40), unique=True)
    note: Mapped[str | None] = mapped_column(EncryptedType(Text))


class Eager(KeyOwner, Base):
    """Other rows come with each row of this class."""

    __tablename__ = "eager"
    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str | None] = mapped_column(EncryptedType(Text))
    pets: Mapped[list["Pet"]] = relationship(lazy="joined")


class Pet(Base):
    __tablename__ = "pets"
    id: Mapped[int] = mapped_column(primary_key=True)
    eager_id: Mapped[int] = mapped_column(ForeignKey("eager.id"))


class Person(KeyOwner, Base):
    __tablename__ = "persons"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(10))
    note: Mapped[str | None] = mapped_column(EncryptedType(Text))
    __mapper_args__: Any = {"polymorphic_on": "kind", "polymorphic_identity": "person"}  # noqa: RUF012


class Doctor(Person):
    """In a table of its own, joined to that of persons."""

    __tablename__ = "doctors"
    id: Mapped[int] = mapped_column(ForeignKey("persons.id"), primary_key=True)
    ward: Mapped[str]
    __mapper_args__: Any = {"polymorphic_identity": "doctor"}  # noqa: RUF012


class Declared(KeyOwner, Base, key_tables=False):
    __tablename__ = "declared"
    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str | None] = mapped_column(EncryptedType(Text))


class DeclaredKey(KeyTable[Declared], Base):
    __tablename__ = "declared_key"


class DeclaredSlot(KeySlotTable[Declared], Base):
    __tablename__ = "declared_slot"


class DeclaredTicket(KeyTicketTable[Declared], Base):
    __tablename__ = "declared_ticket"
    country: Mapped[str | None]


class Bare(KeyOwner, Base, key_tables=False):
    """Without a table of tickets."""

    __tablename__ = "bare"
    id: Mapped[int] = mapped_column(primary_key=True)


class BareKey(KeyTable[Bare], Base):
    __tablename__ = "bare_key"


class BareSlot(KeySlotTable[Bare], Base):
    __tablename__ = "bare_slot"


OWNERS: list[Any] = [
    (Composite, {"region": "eu", "number": 7}),
    (ByUuid, {}),
    (ByName, {"name": "ada"}),
    (Eager, {}),
    (Person, {}),
    (Doctor, {"ward": "7"}),
    (Declared, {}),
]


@pytest.mark.parametrize(("cls", "values"), OWNERS, ids=[cls.__name__ for cls, _ in OWNERS])
def test_a_ticket_of_each_kind_of_owner(engine: Any, cls: Any, values: dict[str, Any]) -> None:
    """Issued, and used by the owner and by the class; another owner of the class is refused."""
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        owner = cls(note="a note", **values)
        if cls is Eager:
            owner.pets = [Pet(), Pet()]
        with envelope.enroll(session, owner, secret=SECRET) as unlocked:
            ticket = unlocked.issue_ticket(owner, lifetime=HOUR)
            session.commit()
    with Session(engine) as session:
        with envelope.unlock(session, cls, ticket=ticket) as unlocked:
            owner = unlocked.owner
            assert (type(owner), owner.note) == (cls, "a note")
        with envelope.unlock(session, owner, ticket=ticket):
            owner.note = "another note"
            session.commit()
        assert [one.ticket_id for one in envelope.tickets(session, owner)] == [ticket.ticket_id]
        assert envelope.sweep_tickets(session, cls) == 0
        assert envelope.revoke_ticket(session, owner, str(ticket))
        session.commit()


def test_an_owner_without_a_table_of_tickets(sqlite_engine: Any) -> None:
    """The error shows the class to add; a change of the secret needs no such table."""
    Base.metadata.create_all(sqlite_engine)
    with Session(sqlite_engine) as session:
        owner = Bare()
        with envelope.enroll(session, owner, secret=SECRET) as unlocked:
            session.commit()
            with pytest.raises(ConfigurationError, match=r"class BareKeyTicket\(KeyTicketTable\[Bare\]"):
                unlocked.issue_ticket(owner, lifetime=HOUR)
        envelope.change_secret(session, owner, old=SECRET, new="other words")
        session.commit()
