"""A removal and a value in one transaction, or in one flush; and two grants that would close a circle."""

import threading
from collections.abc import Callable, Iterator
from contextvars import Context
from typing import Any

import pytest
from sqlalchemy import Engine, ForeignKey, String, bindparam, create_engine, delete, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import (
    EncryptedType,
    Envelope,
    GrantError,
    KdfProfile,
    KeyGrant,
    KeyOwner,
    LockedError,
    ServerKeyring,
    TransactionConflictError,
    should_retry,
)
from tests.prepared import prepared

pytestmark = pytest.mark.both_lines


class Base(DeclarativeBase):
    pass


class Person(KeyOwner, Base):
    __tablename__ = "persons"
    id: Mapped[int] = mapped_column(primary_key=True)


class Contract(Base):
    """No owner and no grant: the database deletes seats with it."""

    __tablename__ = "contracts"
    id: Mapped[int] = mapped_column(primary_key=True)


class Group(KeyOwner, Base):
    __tablename__ = "groups"
    id: Mapped[int] = mapped_column(primary_key=True)
    motto: Mapped[str | None] = mapped_column(EncryptedType(String))


class Seat(KeyGrant, Base, of="group_id", to="person_id"):
    __tablename__ = "seats"
    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("persons.id", ondelete="CASCADE"), primary_key=True)
    contract_id: Mapped[int | None] = mapped_column(ForeignKey("contracts.id", ondelete="CASCADE"))


class Nest(KeyGrant, Base, of="outer_id", to="inner_id"):
    __tablename__ = "nests"
    outer_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)
    inner_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"))
    text: Mapped[str] = mapped_column(EncryptedType(String))


envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([b"\x09" * 32]))
ADA, BOB, CAT = 1, 2, 3
SMALL, LARGE = 1, 2


def unlock(session: Session, person: int) -> Any:
    return envelope.unlock(session, session.get_one(Person, person), secret=f"secret of {person}")


def _make(engine: Engine) -> None:
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        for person in (ADA, BOB, CAT):
            envelope.enroll(session, Person(id=person), secret=f"secret of {person}")
        session.add(Contract(id=1))
        session.commit()
        with unlock(session, ADA):
            envelope.enroll(session, [Group(id=SMALL), Group(id=LARGE)])
            session.flush()
            session.add_all([Seat(group_id=one, person_id=ADA) for one in (SMALL, LARGE)])
            session.add(Seat(group_id=SMALL, person_id=BOB, contract_id=1))
            session.add_all([Seat(group_id=SMALL, person_id=CAT), Nest(outer_id=LARGE, inner_id=SMALL)])
            session.add_all([Note(group_id=one, text="first") for one in (SMALL, LARGE)])
            session.commit()


@pytest.fixture
def groups(sqlite_engine: Engine) -> Iterator[Engine]:
    """Ada, Bob and Cat in a small group, which is in a large group; Bob has a contract."""
    prepared(sqlite_engine, "one transaction", lambda: _make(sqlite_engine))
    return sqlite_engine


def keys_of_values(engine: Engine, group: int) -> list[bytes]:
    """The keys that the notes of a group are under, oldest first."""
    query = text("SELECT text FROM notes WHERE group_id = :group ORDER BY id")
    with engine.connect() as connection:
        return [bytes(blob)[1:17] for blob in connection.execute(query, {"group": group}).scalars()]


def readable(engine: Engine, person: int) -> list[str]:
    found = []
    with Session(engine) as session, unlock(session, person):
        for note in session.scalars(select(Note).order_by(Note.id)):
            try:
                found.append(note.text)
            except LockedError:
                continue
    return found


@pytest.mark.parametrize("group", [SMALL, LARGE])
def test_a_value_in_the_flush_of_a_removal(groups: Engine, group: int) -> None:
    """The unit of work writes before it deletes. The value is under a new key all the same, of the group and
    of the group around it; one epoch starts, and the others read."""
    with Session(groups) as session, unlock(session, ADA):
        seat = session.get_one(Seat, (SMALL, BOB))
        session.delete(seat)
        session.add(Note(group_id=group, text="later"))
        session.commit()
        epochs = session.execute(text("SELECT count(*) FROM groups_key WHERE purpose = 'root'")).scalar_one()

    first, later = keys_of_values(groups, group)
    assert first != later
    assert epochs == 2 + group  # the large group has a new key only if a value was written for it
    assert readable(groups, BOB) == []
    assert readable(groups, CAT) == ["first", "first", "later"]


def test_a_farewell(groups: Engine) -> None:
    """A member who leaves and writes in one flush writes under the key that they have; the next value of
    somebody else is under a new one."""
    with Session(groups) as session, unlock(session, BOB):
        session.delete(session.get_one(Seat, (SMALL, BOB)))
        session.add(Note(group_id=SMALL, text="farewell"))
        session.commit()
    with Session(groups) as session, unlock(session, ADA):
        session.add(Note(group_id=SMALL, text="later"))
        session.commit()

    first, farewell, later = keys_of_values(groups, SMALL)
    assert first == farewell != later
    assert readable(groups, CAT) == ["first", "first", "farewell", "later"]


def test_a_flush_that_fails_removes_nobody(groups: Engine) -> None:
    """The removal and the value are rolled back together: Bob reads what he read, and what comes then."""
    with Session(groups) as session, unlock(session, ADA):
        session.delete(session.get_one(Seat, (SMALL, BOB)))
        session.add(Note(id=1, group_id=SMALL, text="there is such a note"))
        with pytest.raises(Exception, match="UNIQUE"):
            session.commit()
        session.rollback()
        session.add(Note(group_id=SMALL, text="later"))
        session.commit()

    assert readable(groups, BOB) == ["first", "first", "later"]


WAYS: dict[str, Callable[[Session], object]] = {
    "unit of work": lambda session: session.delete(session.get_one(Seat, (SMALL, BOB))),
    "cascade of the unit of work": lambda session: session.delete(session.get_one(Contract, 1)),
    "cascade of a statement": lambda session: session.execute(delete(Contract)),
    "text": lambda session: session.execute(text("DELETE FROM seats WHERE person_id = 2")),
    "text with columns": lambda session: session.execute(
        text("DELETE FROM seats WHERE person_id = 2 RETURNING group_id").columns(Seat.group_id)
    ).all(),
    "text of the driver": lambda session: session.connection().exec_driver_sql(
        "DELETE FROM seats WHERE person_id = 2"
    ),
    "statement that answers objects": lambda session: session.scalars(
        select(Seat).from_statement(delete(Seat).where(Seat.person_id == BOB).returning(Seat))
    ).all(),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_value_after_a_removal_in_one_transaction(groups: Engine, way: str) -> None:
    """The transaction has written for the group before, and looked who is there: it looks again."""
    with Session(groups) as session, unlock(session, ADA):
        session.add(Note(group_id=SMALL, text="before"))
        session.flush()
        WAYS[way](session)
        session.flush()
        session.add(Note(group_id=SMALL, text="later"))
        session.commit()

    first, before, later = keys_of_values(groups, SMALL)
    assert first == before != later


@pytest.mark.backend
def test_a_value_after_a_removal_by_a_cte(postgres_engine: Engine) -> None:
    """PostgreSQL deletes in a CTE of a query; the statement is compiled once and run twice."""
    _make(postgres_engine)
    gone = delete(Seat).where(Seat.person_id == bindparam("person")).returning(Seat.group_id).cte("gone")
    with Session(postgres_engine) as session, unlock(session, ADA):
        for person in (BOB, CAT):
            session.add(Note(group_id=SMALL, text="before"))
            session.flush()
            assert session.execute(select(gone.c.group_id), {"person": person}).scalars().all() == [SMALL]
        session.add(Note(group_id=SMALL, text="later"))
        session.commit()

    assert len(set(keys_of_values(postgres_engine, SMALL))) == 3


def test_a_write_only_session_writes_what_server_mode_only_reads(groups: Engine) -> None:
    """A group that the server reached through a member is written for in `write_only`, as a locked one is."""
    with Session(groups) as session, unlock(session, CAT):
        envelope.add_provider(session, session.get_one(Person, CAT), provider="server")
        session.commit()
    with Session(groups) as session, envelope.server_mode(reason="a test"):
        assert session.scalars(select(Note.text).where(Note.group_id == SMALL)).all() == ["first"]
        with envelope.write_only(session):
            session.add(Note(group_id=SMALL, text="by the server"))
            session.commit()

    assert readable(groups, BOB) == ["first", "first", "by the server"]


def test_keys_that_are_replaced_after_the_unlock(groups: Engine) -> None:
    """Another request takes the provider away from Bob, who is unlocked here and so has new keys: the
    transaction is to be run again, and then it goes through."""
    with Session(groups) as session, unlock(session, BOB):
        envelope.add_provider(session, session.get_one(Person, BOB), provider="server")
        session.commit()

    def take_away() -> None:
        with Session(groups) as session:
            envelope.attach(session)
            envelope.remove_provider(session, session.get_one(Person, BOB), provider="server")
            session.commit()

    def work(between: Callable[[], None]) -> None:
        with Session(groups) as session, unlock(session, BOB):
            bob = session.get_one(Person, BOB)
            session.commit()
            Context().run(between)
            envelope.add_provider(session, bob, provider="server")
            session.commit()

    with pytest.raises(TransactionConflictError, match="were replaced since it was unlocked here") as caught:
        work(take_away)
    work(lambda: None)

    assert should_retry(caught.value)


@pytest.mark.backend
@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ"])
def test_two_that_would_close_a_circle(postgres_engine: Engine, level: str) -> None:
    """Two transactions put two groups into each other at the same moment: the second one waits for the first,
    and is refused, or told to run again and then refused."""
    _make(postgres_engine)
    with Session(postgres_engine) as session:
        session.execute(delete(Nest))
        session.commit()
    engine = create_engine(postgres_engine.url, isolation_level=level)
    told: list[Exception] = []

    def close() -> None:
        with Session(engine) as session, unlock(session, ADA):
            session.add(Nest(outer_id=LARGE, inner_id=SMALL))
            try:
                session.commit()
            except (GrantError, DBAPIError) as error:
                told.append(error)

    with Session(engine) as session, unlock(session, ADA):
        session.add(Nest(outer_id=SMALL, inner_id=LARGE))
        session.flush()
        second = threading.Thread(target=close)
        second.start()
        second.join(1)
        waits = second.is_alive()
        session.commit()
    second.join(20)
    if should_retry(told[0]):
        close()
    engine.dispose()

    assert waits
    assert isinstance(told[-1], GrantError)
    assert len(told) == (1 if level == "READ COMMITTED" else 2)
