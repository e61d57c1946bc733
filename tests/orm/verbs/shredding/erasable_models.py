"""People, their letters and their groups, for the tests of shredding."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import JSON, Engine, ForeignKey, String, Text, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import (
    AuditEvent,
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyGrant,
    KeyOwner,
    OwnerColumn,
    ReceiptKey,
)
from sqlalchemy_envelope.orm.sessions.unlocked import UnlockedSession

told: list[AuditEvent] = []
receipt_key = ReceiptKey(bytes(range(32)))
eraser = Envelope(
    kdf_profile=KdfProfile.unsafe_for_tests(),
    receipt_key=receipt_key,
    audit=told.append,
    actor=lambda: "desk",
)


class Base(DeclarativeBase):
    pass


class Person(KeyOwner, Base):
    __tablename__ = "persons"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(40), unique=True)
    diary: Mapped[str | None] = mapped_column(EncryptedType(Text))


_AUTHOR = OwnerColumn("author_id", of=Person)


class Letter(Base):
    """Letters stay when their author's row is deleted: nothing refers to it."""

    __tablename__ = "letters"

    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int]
    subject: Mapped[str | None]
    text: Mapped[str | None] = mapped_column(EncryptedType(Text, owner=_AUTHOR))
    note: Mapped[str | None] = mapped_column(EncryptedType(Text, owner=_AUTHOR, shredded="[erased]"))
    tags: Mapped[list[str] | None] = mapped_column(EncryptedType(JSON, owner=_AUTHOR, shredded=["erased"]))


class Group(KeyOwner, Base):
    __tablename__ = "groups"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]


class Membership(KeyGrant, Base, of="group_id", to="person_id"):
    __tablename__ = "memberships"

    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("persons.id", ondelete="CASCADE"), primary_key=True)


class Nesting(KeyGrant, Base, of="outer_id", to="inner_id"):
    __tablename__ = "nestings"

    outer_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)
    inner_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)


class Post(Base):
    __tablename__ = "posts"

    id: Mapped[int] = mapped_column(primary_key=True)
    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"))
    text: Mapped[str | None] = mapped_column(EncryptedType(Text))


def secret_of(name: str) -> str:
    return f"the secret of {name}"


def person(session: Session, name: str) -> Person:
    return session.scalars(select(Person).where(Person.name == name)).one()


def unlock(session: Session, name: str, **how: Any) -> UnlockedSession:
    return eraser.unlock(session, person(session, name), secret=secret_of(name), **how)


def start(engine: Engine) -> None:
    """Ada and Ben, each with a diary and a letter; nothing is open."""
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        for name in ("ada", "ben"):
            new = Person(name=name, diary=f"the diary of {name}")
            with eraser.enroll(session, new, secret=secret_of(name)):
                session.add(
                    Letter(author_id=new.id, subject=name, text="dear", note="a note", tags=["a", "b"])
                )
                session.commit()
    told.clear()


def found_group(
    session: Session, title: str, founder: str, *others: str, inner: Group | None = None
) -> Group:
    """A group with a post, committed; an inner group is a member, too."""
    with unlock(session, founder):
        group = Group(title=title)
        eraser.enroll(session, group)
        for name in (founder, *others) if inner is None else ():
            session.add(Membership(group_id=group.id, person_id=person(session, name).id))
        if inner is not None:
            session.add(Nesting(outer_id=group.id, inner_id=inner.id))
        session.add(Post(group_id=group.id, text=f"the first post of {title}"))
        session.commit()
    return group


def shred(engine: Engine, name: str, **how: Any) -> Any:
    """Shred a person in a session of its own, and return the receipt."""
    with Session(engine) as session:
        receipt = eraser.shred(session, person(session, name), reason="asked", **how)
        session.commit()
    return receipt


@contextmanager
def opened(engine: Engine, name: str) -> Iterator[Session]:
    """A session in which a person is unlocked."""
    with Session(engine) as session, unlock(session, name):
        yield session
