"""New owners get keys of their own as they are flushed, and a failure leaves nothing of them."""

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, ForeignKey, ForeignKeyConstraint, String, Uuid, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, mapped_column, relationship

from sqlalchemy_envelope import EncryptedType, KeyOwner, LockedError, ServerSession
from sqlalchemy_envelope.orm.current.context import NOTHING
from tests.orm.models import SECRET, Base, Note, User
from tests.orm.sessions.server_mode.devices import OWNERS, Serving

KEY = b"\x07" * 32


WAIT = 30
"""Seconds after which a thread that does not come is given up."""


class Device(KeyOwner, Base):
    """An owner whose primary key is made by the client."""

    __tablename__ = "server_devices"

    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, default=uuid.uuid4)
    name: Mapped[str | None] = mapped_column(EncryptedType(String))
    readings: Mapped[list["Reading"]] = relationship(back_populates="device", passive_deletes=True)


class Reading(Base):
    """A row-bound column of a device."""

    __tablename__ = "server_readings"

    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, default=uuid.uuid4)
    device_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("server_devices.id", ondelete="CASCADE"))
    value: Mapped[str | None] = mapped_column(EncryptedType(String, owner="device_id", bind="row"))
    device: Mapped[Device] = relationship(back_populates="readings")


class Room(KeyOwner, Base):
    """An owner with a composite primary key."""

    __tablename__ = "server_rooms"

    house: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str | None] = mapped_column(EncryptedType(String))
    chairs: Mapped[list["Chair"]] = relationship(back_populates="room", passive_deletes=True)


class Chair(Base):
    __tablename__ = "server_chairs"
    __table_args__ = (
        ForeignKeyConstraint(
            ["house", "number"], ["server_rooms.house", "server_rooms.number"], ondelete="CASCADE"
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    house: Mapped[str]
    number: Mapped[int]
    colour: Mapped[str | None] = mapped_column(EncryptedType(String, owner=("house", "number")))
    room: Mapped[Room] = relationship(back_populates="chairs")


class Party(KeyOwner, Base):
    """Owners in joined-table inheritance."""

    __tablename__ = "server_parties"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str | None] = mapped_column(EncryptedType(String))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "party"}  # noqa: RUF012 - as SQLAlchemy wants it


class Person(Party):
    __tablename__ = "server_people"

    id: Mapped[int] = mapped_column(ForeignKey("server_parties.id", ondelete="CASCADE"), primary_key=True)
    diary: Mapped[str | None] = mapped_column(EncryptedType(String))
    __mapper_args__ = {"polymorphic_identity": "person"}  # noqa: RUF012 - as SQLAlchemy wants it


class Company(Party):
    __tablename__ = "server_companies"

    id: Mapped[int] = mapped_column(ForeignKey("server_parties.id", ondelete="CASCADE"), primary_key=True)
    plan: Mapped[str | None] = mapped_column(EncryptedType(String))
    __mapper_args__ = {"polymorphic_identity": "company"}  # noqa: RUF012 - as SQLAlchemy wants it


def count_of(engine: Engine, table: Any) -> int:
    """How many rows a table has."""
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(table)) or 0


# New owners


def test_many_new_owners_get_keys_of_their_own(serving: Serving) -> None:
    """Many new users with the very same values, in one flush, have as many root keys and read their own."""
    count = OWNERS // 10
    with serving.mode(), Session(serving.engine) as session:
        session.add_all(
            [
                User(email=str(number), phone="the same", notes=[Note(body=f"note {number}")])
                for number in range(count)
            ]
        )
        session.commit()

    keys = Base.metadata.tables["users_key"]
    with serving.engine.connect() as connection:
        rows = connection.execute(select(keys.c.key_id, keys.c.purpose, keys.c.owner_id)).all()
    roots = {row.owner_id for row in rows if row.purpose == "root"}
    data = {row.key_id: row.owner_id for row in rows if row.purpose == "data"}
    assert len(roots) == count
    assert len(data) == count
    with serving.mode(), Session(serving.engine) as session:
        rows = session.execute(select(User, Note.body).join(User.notes)).all()
        assert {(f"note {n}", "the same", str(n)) for n in range(count)} == {
            (body, user.phone, user.email) for user, body in rows
        }
    raw = sa.table("users", sa.column("id"), sa.column("phone", sa.LargeBinary))
    with serving.engine.connect() as connection:
        phones = connection.execute(select(raw.c.id, raw.c.phone)).all()
    assert all(data[uuid.UUID(bytes=bytes(phone)[1:17])] == owner for owner, phone in phones)


@pytest.mark.any_database
def test_equal_new_owners_of_one_flush_keep_their_children_apart(serving: Serving) -> None:
    """New owners that differ in nothing, with children in the same flush, each hold their children's keys."""
    with serving.mode(), Session(serving.engine) as session:
        rooms = [
            Device(name="same", readings=[Reading(value=f"{n} {i}") for i in range(3)]) for n in range(20)
        ]
        session.add_all(rooms)
        session.commit()
    with serving.mode(), Session(serving.engine) as session:
        devices = session.scalars(select(Device)).all()

        assert [device.name for device in devices] == ["same"] * 20
        values = [sorted(one.value or "" for one in device.readings) for device in devices]
        assert sorted(values) == sorted([f"{n} {i}" for i in range(3)] for n in range(20))


@pytest.mark.any_database
def test_composite_keys_and_relationships(serving: Serving) -> None:
    """Owners with composite keys are enrolled with their children, and a child moves from one to another."""
    with serving.mode(), Session(serving.engine) as session:
        one = Room(house="a", number=1, name="kitchen", chairs=[Chair(colour="red"), Chair(colour="blue")])
        two = Room(house="a", number=2, name="cellar")
        session.add_all([one, two])
        session.commit()
        moving = one.chairs[0]
        moving.room = two
        session.commit()
    with serving.mode(), Session(serving.engine) as session:
        rooms = session.scalars(select(Room).order_by(Room.number)).all()

        assert [(room.name, [chair.colour for chair in room.chairs]) for room in rooms] == [
            ("kitchen", ["blue"]),
            ("cellar", ["red"]),
        ]


@pytest.mark.any_database
def test_joined_table_inheritance_of_owners(serving: Serving) -> None:
    """Owners of several joined classes in one flush: columns of base and subclass are under the same keys."""
    with serving.mode(), Session(serving.engine) as session:
        session.add_all(
            [
                Person(name="same", diary="same"),
                Company(name="same", plan="same"),
                Person(name="same", diary="other"),
                Party(name="same"),
            ]
        )
        session.commit()
    with serving.mode(), Session(serving.engine) as session:
        parties = session.scalars(select(Party).order_by(Party.id)).all()
        found = {
            (type(p).__name__, p.name, getattr(p, "diary", None), getattr(p, "plan", None)) for p in parties
        }

        assert found == {
            ("Person", "same", "same", None),
            ("Company", "same", None, "same"),
            ("Person", "same", "other", None),
            ("Party", "same", None, None),
        }
    assert count_of(serving.engine, Base.metadata.tables["server_parties_keyslot"]) == 4


@pytest.mark.any_database
def test_an_owner_without_values_gets_keys_too(serving: Serving) -> None:
    """A new owner that writes nothing of its own can be written for at once, in the same flush and later."""
    with serving.mode(), Session(serving.engine) as session:
        user = User(email="empty@example.org")
        session.add(user)
        session.flush()
        session.add(Note(user_id=user.id, body="one"))
        session.commit()
        session.add(Note(user_id=user.id, body="two"))
        session.commit()
        ada = user.id

    assert serving.bodies(ada) == ["one", "two"]


@pytest.mark.any_database
def test_enroll_inside_server_mode_is_not_doubled(serving: Serving) -> None:
    """Who is enrolled by a call, with a secret alone, gets no slot of the server's beside it."""
    envelope = serving.envelope()
    with serving.mode(), Session(serving.engine) as session:
        user = User(email="own@example.org", phone="123")
        envelope.enroll(session, user, secret=SECRET)
        session.commit()
        own = user.id
    assert count_of(serving.engine, Base.metadata.tables["users_keyslot"]) == 1
    with serving.mode(), Session(serving.engine) as session, pytest.raises(LockedError):
        _ = session.get_one(User, own).phone


@pytest.mark.any_database
def test_existing_owners_get_keys_at_their_first_write(serving: Serving) -> None:
    """Users who were there before the library get keys when something is first encrypted for them."""
    old = [serving.bare_user(str(number)) for number in range(3)]
    with serving.mode(), Session(serving.engine) as session:
        session.add_all([Note(user_id=owner, body=f"for {owner}") for owner in old[:2]])
        session.get_one(User, old[2]).phone = "123"
        session.commit()

    assert [f"for {owner}" for owner in old[:2]] == serving.bodies(*old)
    with serving.mode(), Session(serving.engine) as session:
        assert session.get_one(User, old[2]).phone == "123"
    assert count_of(serving.engine, Base.metadata.tables["users_keyslot"]) == 3


# Failing


def test_a_failing_flush_leaves_nothing_and_can_be_tried_again(serving: Serving) -> None:
    """A flush that fails half-way leaves no keys; after the rollback the same objects are written."""
    serving.users(1)
    with serving.mode(), Session(serving.engine) as session:
        before = count_of(serving.engine, Base.metadata.tables["users_key"])
        good = User(email="new@example.org", phone="123", notes=[Note(body="hello")])
        session.add_all([good, User(email="0@example.org", phone="taken")])
        with pytest.raises(IntegrityError):
            session.flush()
        session.rollback()
        assert before == count_of(serving.engine, Base.metadata.tables["users_key"])
        again = User(email="new@example.org", phone="123", notes=[Note(body="hello")])
        session.add(again)
        session.commit()
        ada = again.id

    assert serving.bodies(ada) == ["hello"]


def test_a_rolled_back_enrolment_is_made_again(serving: Serving) -> None:
    """Keys whose rows were rolled back are used for nothing that comes after."""
    bare = serving.bare_user("bare")
    with serving.mode(), Session(serving.engine) as session:
        for number in range(3):
            session.add(Note(user_id=bare, body=f"lost {number}"))
            session.flush()
            session.rollback()
        session.add(Note(user_id=bare, body="kept"))
        session.commit()

    assert serving.bodies(bare) == ["kept"]


def test_savepoints(serving: Serving) -> None:
    """An owner enrolled in a savepoint goes with it, and is enrolled again outside."""
    bare = serving.bare_user("bare")
    with serving.mode(), Session(serving.engine) as session:
        session.add(User(email="outer@example.org", phone="outer"))
        session.flush()
        with session.begin_nested() as savepoint:
            session.add_all([User(email="inner@example.org", phone="inner"), Note(user_id=bare, body="lost")])
            session.flush()
            savepoint.rollback()
        session.add_all([User(email="inner@example.org", phone="again"), Note(user_id=bare, body="kept")])
        session.commit()
    with serving.mode(), Session(serving.engine) as session:
        phones = session.execute(select(User.email, User.phone).where(User.phone.is_not(None))).all()

        assert {("outer@example.org", "outer"), ("inner@example.org", "again")} == {tuple(p) for p in phones}
    assert serving.bodies(bare) == ["kept"]


def test_keys_of_a_transaction_that_is_rolled_back_are_used_by_nobody_else(
    postgres_engine: Engine, everywhere: Callable[[ServerSession], ServerSession]
) -> None:
    """Two requests write the first row of the same owner at once, and one rolls back: the other's is read."""
    Base.metadata.create_all(postgres_engine)
    serving = Serving(postgres_engine)
    bare = serving.bare_user("bare")
    everywhere(serving.mode())
    done = threading.Event()

    def other() -> str:
        for _ in range(3):
            with Session(serving.engine) as session:
                try:
                    session.add(Note(user_id=bare, body="kept"))
                    session.commit()
                except (IntegrityError, LockedError):
                    continue  # told, and to be tried again
                return "kept"
        return "failed"

    with Session(serving.engine) as session, ThreadPoolExecutor(1) as pool:
        session.add(Note(user_id=bare, body="lost"))
        session.flush()
        waiting = pool.submit(other)
        done.wait(0.2)  # it writes now, or waits for this transaction; either will do
        session.rollback()
        assert waiting.result(WAIT) == "kept"
    assert NOTHING.server is not None
    NOTHING.server.stop()  # type: ignore[attr-defined]

    assert serving.bodies(bare) == ["kept"]


def test_an_owner_that_was_deleted_and_made_again_elsewhere_gets_new_keys(
    serving: Serving, everywhere: Callable[[ServerSession], ServerSession]
) -> None:
    """Keys that were deleted with their owner write nothing for one that has the same id later."""
    bare = serving.bare_user("bare")
    everywhere(serving.mode())
    users = User.__table__
    with Session(serving.engine) as session:
        session.add(Note(user_id=bare, body="before"))
        session.commit()
        with serving.engine.begin() as elsewhere:
            elsewhere.execute(sa.delete(users).where(User.id == bare))  # type: ignore[arg-type]
            elsewhere.execute(sa.insert(users).values(id=bare, email="again"))  # type: ignore[arg-type]
        session.add(Note(user_id=bare, body="after"))
        session.commit()
    assert NOTHING.server is not None
    NOTHING.server.stop()  # type: ignore[attr-defined]

    assert serving.bodies(bare) == ["after"]


def test_two_requests_enroll_the_same_owner_at_once(
    serving: Serving, everywhere: Callable[[ServerSession], ServerSession]
) -> None:
    """Of many threads that write the first row of one owner at once, each ends with a row that is read."""
    bare = serving.bare_user("bare")
    everywhere(serving.mode())
    barrier = threading.Barrier(4)

    def write(number: int) -> int:
        barrier.wait(WAIT)
        for tried in range(20):
            with Session(serving.engine) as session:
                try:
                    session.add(Note(user_id=bare, body=f"note {number}"))
                    session.commit()
                except (sa.exc.DBAPIError, LockedError):
                    continue
                return tried
        raise AssertionError(f"thread {number} never wrote")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert NOTHING.server is not None
    NOTHING.server.stop()  # type: ignore[attr-defined]

    assert sorted(serving.bodies(bare), key=str) == [f"note {n}" for n in range(4)]
