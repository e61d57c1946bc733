"""People in groups: the models of the benchmarks of sharing, of server mode and of writing while locked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, TypeVar

from sqlalchemy import Engine, ForeignKey, Integer, String, event, func, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from benchmarks.databases import SECRET
from sqlalchemy_envelope import EncryptedType, Envelope, KdfProfile, KeyGrant, KeyOwner, ServerKeyring

T = TypeVar("T")


class Base(DeclarativeBase):
    """A separate MetaData: grants make a class of owners slower to write for, and the hot path has none."""


class Person(KeyOwner, Base):
    """An owner with a secret."""

    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)


class Group(KeyOwner, Base):
    """An owner without a secret."""

    __tablename__ = "groups"
    id: Mapped[int] = mapped_column(primary_key=True)


class Membership(KeyGrant, Base, of="group_id", to="person_id"):
    """The grant of the group's key to a member."""

    __tablename__ = "memberships"
    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("people.id", ondelete="CASCADE"), primary_key=True)


class Post(Base):
    """A row of a group, with as many columns as in the benchmarks of the hot path."""

    __tablename__ = "posts"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), index=True)
    c1: Mapped[str] = mapped_column(EncryptedType(String))
    c2: Mapped[str] = mapped_column(EncryptedType(String))
    c3: Mapped[str] = mapped_column(EncryptedType(String))
    c4: Mapped[str] = mapped_column(EncryptedType(String))
    c5: Mapped[str] = mapped_column(EncryptedType(String))


class PlainPost(Base):
    """The same row without encryption."""

    __tablename__ = "plain_posts"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), index=True)
    c1: Mapped[str]
    c2: Mapped[str]
    c3: Mapped[str]
    c4: Mapped[str]
    c5: Mapped[str]


class Event(Base):
    """A row of a single person, such as a webhook brings."""

    __tablename__ = "events"
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    person_id: Mapped[int] = mapped_column(ForeignKey("people.id", ondelete="CASCADE"), index=True)
    body: Mapped[str] = mapped_column(EncryptedType(String))


def cheap_envelope(*, sealed_rows: bool = False, **options: Any) -> Envelope:
    """An envelope whose key derivation takes no time. With `sealed_rows` it has server keys."""
    keys = ServerKeyring([os.urandom(32)]) if sealed_rows else None
    return Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=keys, **options)


def create_tables(engine: Engine) -> None:
    """Make empty tables."""
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)


def enroll_people(session: Session, envelope: Envelope, count: int) -> list[Person]:
    people = [Person() for _ in range(count)]
    for person in people:
        envelope.enroll(session, person, secret=SECRET)
    session.commit()
    return people


def found_group(session: Session, envelope: Envelope, members: list[Person]) -> Group:
    """Make a group of these people. One of them must be unlocked."""
    group = Group()
    envelope.enroll(session, group)
    session.add_all([Membership(group_id=group.id, person_id=person.id) for person in members])
    session.commit()
    return group


def make_posts(first: int, count: int, group_id: int) -> list[dict[str, Any]]:
    """Rows of 20-character ASCII strings, all different."""
    columns = [f"c{number}" for number in range(1, 6)]
    return [
        {
            "id": number,
            "group_id": group_id,
            **{column: f"{column}-value-{number:011d}" for column in columns},
        }
        for number in range(first, first + count)
    ]


def insert_posts(session: Session, count: int, group_id: int, first: int = 1) -> None:
    for start in range(first, first + count, 5_000):
        rows = make_posts(start, min(5_000, first + count - start), group_id)
        session.execute(insert(Post), rows)
    session.commit()


@contextmanager
def apart(entered: Any) -> Iterator[Callable[[Callable[[], T]], T]]:
    """Enter a context manager in a context of its own; calls through the result run inside it.

    So two unlocked sessions stand side by side, and the compared operations run in them by turns.
    """
    context = copy_context()
    context.run(entered.__enter__)
    try:
        yield lambda action: context.run(action)
    finally:
        context.run(entered.__exit__, None, None, None)


@contextmanager
def traffic(engine: Engine) -> Iterator[list[tuple[str, int]]]:
    """Collect each statement that reaches the driver, with the number of rows that it writes."""
    seen: list[tuple[str, int]] = []

    def listen(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
        seen.append((statement, len(parameters) if many else 1))

    event.listen(engine, "before_cursor_execute", listen)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", listen)


def count_keys(session: Session, owner_class: type[Any], **where: Any) -> int:
    """The number of rows of a key table, counted by the database."""
    table = owner_class.__mapper__.registry.metadata.tables[f"{owner_class.__tablename__}_key"]
    query = select(func.count()).select_from(table)
    return session.scalar(query.where(*(table.c[name] == value for name, value in where.items()))) or 0
