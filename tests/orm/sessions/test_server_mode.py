"""Server mode: owners whose keys a server holds open as their rows appear, new ones get keys of their own,
and everybody else stays locked. Sync and async, on SQLite and PostgreSQL, in threads, tasks and forks.
"""

import asyncio
import os
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import (
    URL,
    Engine,
    ForeignKey,
    ForeignKeyConstraint,
    String,
    Uuid,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Mapped, Session, mapped_column, relationship

from sqlalchemy_envelope import (
    AuditEvent,
    CachePolicy,
    ConfigurationError,
    DecryptionError,
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyOwner,
    LockedError,
    ServerKeyring,
    ServerSession,
    SessionLeftError,
    enforce_foreign_keys,
)
from sqlalchemy_envelope.orm.current.context import NOTHING
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.tables.owners import require_owner_class
from tests.orm import models
from tests.orm.models import SECRET, Base, Note, Page, User, statements_sent, stored
from tests.prepared import tables_of

KEY = b"\x07" * 32
OWNERS = int(os.environ.get("ENVELOPE_OWNERS", "1100"))
"""How many owners have a row each where there are many; 10,000 take a minute."""
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


@dataclass
class Serving:
    """An application with a server key, on one database."""

    engine: Engine
    events: list[AuditEvent] = field(default_factory=list)

    def envelope(self, **options: Any) -> Envelope:
        """One of its processes, as it were: nothing is cached yet."""
        return Envelope(
            kdf_profile=KdfProfile.unsafe_for_tests(),
            server_keys=ServerKeyring([KEY]),
            audit=self.events.append,
            **options,
        )

    def mode(self, **options: Any) -> ServerSession:
        """Server mode of a process that has just started."""
        return self.envelope(**options).server_mode(reason="test")

    def users(self, count: int, body: str | None = None) -> list[int]:
        """So many users with keys of their own, each with one note; their ids."""
        with self.mode(), Session(self.engine) as session:
            some = [
                User(email=f"{number}@example.org", notes=[Note(body=body or f"note {number}")])
                for number in range(count)
            ]
            session.add_all(some)
            session.commit()
            return [user.id for user in some]

    def bare_user(self, name: str) -> int:
        """A user who is in the database and has no keys."""
        with self.engine.begin() as connection:
            row = connection.execute(
                sa.insert(User.__table__).values(email=name).returning(User.__table__.c.id)  # type: ignore[arg-type]
            )
            return int(row.scalar_one())

    def bodies(self, *owners: int) -> list[str | None]:
        """What a process that has just started reads of these owners' notes."""
        with self.mode(), Session(self.engine) as session:
            query = select(Note).order_by(Note.id)
            return [note.body for note in session.scalars(query.where(Note.user_id.in_(owners)))]


@pytest.fixture
def serving(engine: Engine) -> Serving:
    """The application, on SQLite and on PostgreSQL."""
    tables_of(Base.metadata, engine)
    return Serving(engine)


@pytest.fixture
def lite(sqlite_engine: Engine) -> Serving:
    """The application, on SQLite."""
    tables_of(Base.metadata, sqlite_engine)
    return Serving(sqlite_engine)


@pytest.fixture
def everywhere() -> Iterator[Callable[[ServerSession], ServerSession]]:
    """Turns server mode on for the process, and off when the test ends."""
    yield lambda server: server.everywhere()
    serving = NOTHING.server
    if isinstance(serving, ServerSession):
        serving.stop()


def count_of(engine: Engine, table: Any) -> int:
    """How many rows a table has."""
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(table)) or 0


def key_queries(sent: Sequence[str]) -> list[str]:
    """The statements that ask key tables."""
    return [one for one in sent if one.lstrip().startswith("SELECT") and "_key" in one]


# Entering and leaving


def test_what_was_written_is_read_by_a_later_process(serving: Serving) -> None:
    """Values come back in another process of a plain application, and are encrypted at rest."""
    (ada,) = serving.users(1, "hello")

    assert serving.bodies(ada) == ["hello"]
    assert b"hello" not in (stored(serving.engine, Note.body, 1) or b"")


@pytest.mark.any_database
def test_outside_of_the_block_everything_is_locked(serving: Serving) -> None:
    """Leaving wipes the keys and expires what was decrypted; loading goes on, and touching does not."""
    (ada,) = serving.users(1, "hello")
    with Session(serving.engine) as session:
        with serving.mode() as server:
            note = session.scalars(select(Note)).one()
            assert note.body == "hello"
        again = session.scalars(select(Note).execution_options(populate_existing=True)).one()

        assert not server.is_open
        with pytest.raises(LockedError):
            _ = again.body
        assert again.user_id == ada


def test_a_block_is_entered_once(lite: Serving) -> None:
    """A server session that was left is of no use, and one that is open is not entered again."""
    with lite.mode() as server, pytest.raises(ConfigurationError):
        server.__enter__()

    with pytest.raises(SessionLeftError):
        server.__enter__()
    with pytest.raises(SessionLeftError):
        server.everywhere()


@pytest.mark.parametrize("reason", ["", "   ", None])
def test_a_reason_is_asked_for(lite: Serving, reason: Any) -> None:
    """Opening without the owner says why, or does not begin."""
    with pytest.raises(ConfigurationError, match="reason"):
        lite.envelope().server_mode(reason=reason)


def test_an_unknown_provider_is_told_at_once(lite: Serving) -> None:
    """A name that was not given to the envelope is a mistake of configuration, told before any row."""
    with pytest.raises(ConfigurationError, match="'kms'"):
        lite.envelope().server_mode(provider="kms", reason="test")
    with pytest.raises(ConfigurationError, match="'server'"):
        Envelope(kdf_profile=KdfProfile.unsafe_for_tests()).server_mode(reason="test")


def test_audit_events_carry_the_reason(lite: Serving) -> None:
    """What was started, made and opened is told, with the reason and the provider, and never a value."""
    lite.users(3)
    lite.bodies(1, 2, 3)

    names = [(event.name, event.count) for event in lite.events]
    assert ("server_mode_started", 1) in names
    assert ("server_enrolled", 3) in names
    assert ("server_opened", 3) in names
    assert {("test", "server")} == {
        (event.reason, event.provider) for event in lite.events if event.name.startswith("server_")
    }
    assert "note" not in " ".join(map(str, lite.events))


@pytest.mark.any_database
def test_bound_to_a_session_it_serves_other_contexts(serving: Serving) -> None:
    """A dependency that runs in another context finds the keys through the session."""
    serving.users(1, "hello")
    with Session(serving.engine) as session:
        with serving.envelope().server_mode(session, reason="job"):
            read = Context().run(lambda: session.scalars(select(Note)).one().body)
        assert read == "hello"


# The whole process


def test_everywhere_serves_threads_and_tasks_from_before_and_after(
    serving: Serving, everywhere: Callable[[ServerSession], ServerSession]
) -> None:
    """Threads and tasks that were started before server mode came on read as those that are started later."""
    serving.users(1, "hello")
    started, on = threading.Event(), threading.Event()

    def read() -> str | None:
        with Session(serving.engine) as session:
            return session.scalars(select(Note)).one().body

    def wait_and_read() -> str | None:
        started.set()
        assert on.wait(WAIT)
        return read()

    async def in_tasks() -> list[str | None]:
        gate = asyncio.Event()

        async def earlier() -> str | None:
            await gate.wait()
            return read()

        task = asyncio.create_task(earlier())
        await asyncio.sleep(0)
        everywhere(serving.mode())
        on.set()
        gate.set()
        later = asyncio.create_task(asyncio.to_thread(read))
        loop = asyncio.get_running_loop()
        return [await task, await later, await loop.run_in_executor(None, read), read()]

    with ThreadPoolExecutor(1) as before:
        earlier = before.submit(wait_and_read)
        assert started.wait(WAIT)
        in_loop = asyncio.run(in_tasks())
        with ThreadPoolExecutor(1) as after:
            later = after.submit(read).result(WAIT)

        assert [earlier.result(WAIT), later, *in_loop] == ["hello"] * 6


def test_one_server_mode_serves_the_process(
    lite: Serving, everywhere: Callable[[ServerSession], ServerSession]
) -> None:
    """A second one is refused until the first is stopped."""
    first = everywhere(lite.mode())
    with pytest.raises(ConfigurationError, match="stop"):
        lite.mode().everywhere()
    with pytest.raises(ConfigurationError):
        first.everywhere()
    first.stop()

    lite.mode().everywhere().stop()


@pytest.mark.any_database
def test_stop_locks_the_process(
    serving: Serving, everywhere: Callable[[ServerSession], ServerSession]
) -> None:
    """After `stop` no key is left and what is loaded later stays locked; a new one serves again."""
    (ada,) = serving.users(1, "hello")
    server = everywhere(serving.mode())
    with Session(serving.engine) as session:
        assert session.scalars(select(Note)).one().body == "hello"
    server.stop()

    assert NOTHING.server is None
    assert len(server.keyring) == 0
    with Session(serving.engine) as session:
        note = session.scalars(select(Note)).one()
        with pytest.raises(LockedError):
            _ = note.body
    with Session(serving.engine) as session:
        session.add(Note(user_id=ada, body="lost"))
        with pytest.raises(LockedError):
            session.flush()
    everywhere(serving.mode())
    assert serving.bodies(ada) == ["hello"]


@pytest.mark.any_database
def test_a_user_unlocks_inside(
    serving: Serving, everywhere: Callable[[ServerSession], ServerSession]
) -> None:
    """Who unlocks inside server mode sees both, and takes only their own keys along when leaving."""
    served = serving.users(1, "the server's")
    envelope = serving.envelope()
    with Session(serving.engine) as session:
        user = User(email="own@example.org")
        envelope.enroll(session, user, secret=SECRET)
        session.commit()
        own = user.id
    everywhere(serving.mode())
    with Session(serving.engine) as session:
        user = session.get_one(User, own)
        with envelope.unlock(session, user, secret=SECRET):
            session.add_all([Note(user_id=own, body="mine"), Note(user_id=served[0], body="more")])
            session.commit()
            inside = session.scalars(select(Note).order_by(Note.id)).all()

            assert {"the server's", "mine", "more"} == {note.body for note in inside}
        outside = session.scalars(select(Note).where(Note.user_id == served[0])).all()

        assert {"the server's", "more"} == {note.body for note in outside}
        (mine,) = session.scalars(select(Note).where(Note.user_id == own)).all()
        with pytest.raises(LockedError):
            _ = mine.body


def test_a_block_inside_the_process_wide_one_leaves_it_as_it_was(
    lite: Serving, everywhere: Callable[[ServerSession], ServerSession]
) -> None:
    """A job's own server mode inside the process's ends with the job; the process goes on."""
    (ada,) = lite.users(1, "hello")
    everywhere(lite.mode())
    with Session(lite.engine) as session:
        with lite.mode():
            session.add(Note(user_id=ada, body="job"))
            session.commit()
        session.add(Note(user_id=ada, body="after"))
        session.commit()

        assert [n.body for n in session.scalars(select(Note).order_by(Note.id))] == ["hello", "job", "after"]


# Who stays locked


@pytest.mark.any_database
def test_owners_without_a_slot_stay_locked(serving: Serving) -> None:
    """Rows of an owner whose keys only a secret opens load, and do not open; nor can they be written."""
    served = serving.users(1, "the server's")
    envelope = serving.envelope()
    with Session(serving.engine) as session:
        user = User(email="own@example.org", phone="123")
        with envelope.enroll(session, user, secret=SECRET):
            note = Note(user=user, body="secret")
            session.add(note)
            session.commit()
            own = user.id
    with serving.mode(), Session(serving.engine) as session:
        notes = session.scalars(select(Note).order_by(Note.id)).all()

        assert [served[0], own] == [note.user_id for note in notes]
        assert notes[0].body == "the server's"
        with pytest.raises(LockedError):
            _ = notes[1].body
        with pytest.raises(LockedError):
            _ = session.get_one(User, own).phone
        notes[1].title = "seen"
        session.commit()
    with serving.mode(), Session(serving.engine) as session:
        session.add(Note(user_id=own, body="planted"))
        with pytest.raises(LockedError):
            session.flush()
        session.rollback()
    with Session(serving.engine) as session:
        user = session.get_one(User, own)
        with envelope.unlock(session, user, secret=SECRET):
            assert [(note.title, note.body) for note in user.notes] == [("seen", "secret")]


@pytest.mark.any_database
def test_slots_of_another_provider_stay_locked(serving: Serving) -> None:
    """Server mode of one provider opens nothing that another one holds."""
    envelope = serving.envelope(providers={"other": ServerKeyring([b"\x08" * 32])})
    with Session(serving.engine) as session:
        user = User(email="other@example.org")
        with envelope.enroll(session, user, provider="other"):
            session.add(Note(user=user, body="hello"))
            session.commit()
    with envelope.server_mode(reason="test"), Session(serving.engine) as session:
        note = session.scalars(select(Note)).one()
        with pytest.raises(LockedError):
            _ = note.body
    with envelope.server_mode(provider="other", reason="test"), Session(serving.engine) as session:
        assert session.scalars(select(Note)).one().body == "hello"


@pytest.mark.any_database
def test_a_value_moved_to_another_owners_row_is_found(serving: Serving) -> None:
    """With everybody's keys within reach a value is still compared with its row's owner."""
    serving.users(2)
    notes = sa.table("notes", sa.column("id"), sa.column("body"))
    with serving.engine.begin() as connection:
        one = select(notes.c.body).where(notes.c.id == 1).scalar_subquery()
        connection.execute(update(notes).where(notes.c.id == 2).values(body=one))

    with serving.mode(), Session(serving.engine) as session, pytest.raises(DecryptionError):
        _ = session.scalars(select(Note).where(Note.id == 2)).one().body


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


# Statements


def test_bulk_inserts_for_many_owners(serving: Serving) -> None:
    """ORM bulk and Core inserts of children for many owners at once, half of them without keys before."""
    owners = serving.users(20) + [serving.bare_user(f"bare {n}") for n in range(20)]
    with serving.mode(), Session(serving.engine) as session:
        session.execute(insert(Note), [{"user_id": owner, "body": f"bulk {owner}"} for owner in owners])
        session.execute(
            insert(Note.__table__),
            [{"user_id": owner, "body": f"core {owner}"} for owner in owners],  # type: ignore[arg-type]
        )
        session.execute(insert(Note).values([{"user_id": o, "body": f"values {o}"} for o in owners]))
        session.execute(insert(Page), [{"user_id": owner, "text": f"page {owner}"} for owner in owners])
        session.commit()
    with serving.mode(), Session(serving.engine) as session:
        notes = session.scalars(select(Note)).all()

        for kind in ("bulk", "core", "values"):
            mine = [note for note in notes if (note.body or "").startswith(kind)]
            assert {(owner, f"{kind} {owner}") for owner in owners} == {(n.user_id, n.body) for n in mine}
        pages = session.scalars(select(Page)).all()
        assert {(owner, f"page {owner}") for owner in owners} == {(p.user_id, p.text) for p in pages}


def test_updates(serving: Serving) -> None:
    """Objects are changed by a flush, by bulk update with keys, and by an UPDATE that names the owner."""
    owners = serving.users(3)
    with serving.mode(), Session(serving.engine) as session:
        notes = session.scalars(select(Note).order_by(Note.id)).all()
        notes[0].body = "by flush"
        session.commit()
        rest = {"size": None, "tags": None, "extra": None}
        named = {"id": notes[1].id, "user_id": notes[1].user_id}
        session.execute(update(Note), [{**named, "body": "by bulk update", **rest}])
        session.execute(
            update(Note.__table__)  # type: ignore[arg-type]
            .where(Note.id == notes[2].id)
            .values(user_id=notes[2].user_id, body="by core", **rest)
        )
        session.commit()

    assert serving.bodies(*owners) == ["by flush", "by bulk update", "by core"]


@pytest.mark.any_database
def test_a_row_moves_to_another_owner(serving: Serving) -> None:
    """A child is encrypted anew for another owner, one without keys included, row-bound columns too."""
    (ada,) = serving.users(1, "moving")
    ben = serving.bare_user("ben")
    with serving.mode(), Session(serving.engine) as session:
        page = Page(user_id=ada, text="page")
        session.add(page)
        session.commit()
        page_id = page.id
    with serving.mode(), Session(serving.engine) as session:
        session.scalars(select(Note)).one().user_id = ben
        session.get_one(Page, page_id).user_id = ben
        session.commit()
    with serving.engine.begin() as connection:
        connection.execute(sa.delete(User.__table__).where(User.id == ada))  # type: ignore[arg-type]

    assert serving.bodies(ben) == ["moving"]
    with serving.mode(), Session(serving.engine) as session:
        assert session.get_one(Page, page_id).text == "page"


@pytest.mark.any_database
def test_using_an_owner(serving: Serving) -> None:
    """A statement that does not name its rows' owner is written for the one that `using` says."""
    owners = serving.users(2)
    with serving.mode() as server, Session(serving.engine) as session:
        with server.using(session.get_one(User, owners[1])):
            session.execute(
                update(Note.__table__).where(Note.user_id == owners[1]).values(body="using")  # type: ignore[arg-type]
            )
        session.commit()

    assert serving.bodies(*owners) == ["note 0", "using"]


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


# Many owners


@pytest.fixture(scope="module")
def many_owners(tmp_path_factory: pytest.TempPathFactory) -> URL:
    """An SQLite database of many owners with a row each; nobody writes in it."""
    url = sa.make_url(f"sqlite:///{tmp_path_factory.mktemp('many') / 'many.db'}")
    engine = sa.create_engine(url)
    enforce_foreign_keys(engine)
    Base.metadata.create_all(engine)
    many(Serving(engine), OWNERS)
    engine.dispose()
    return url


def test_loading_many_rows_of_many_owners_costs_few_queries(many_owners: URL) -> None:
    """Rows of as many owners: a query for the keys of each thousand, none for a row."""
    engine = sa.create_engine(many_owners)
    with Serving(engine).mode(), Session(engine) as session, statements_sent(engine) as sent:
        notes = session.scalars(select(Note)).all()

        assert all(note.body == f"note {note.user_id}" for note in notes)
        assert len(notes) == OWNERS
        assert 1 <= len(key_queries(sent)) <= 2 + OWNERS // 1000
        assert len(sent) <= 4 + OWNERS // 1000  # and the rows' own, and SQLite's PRAGMA
    engine.dispose()


@pytest.mark.parametrize("streamed", [False, True], ids=["all", "stream"])
@pytest.mark.thorough
async def test_the_same_with_an_asynchronous_session(many_owners: URL, streamed: bool) -> None:
    """The same with `AsyncSession`; or a query for each partition."""
    engine = create_async_engine(many_owners.set(drivername="sqlite+aiosqlite"))
    async with AsyncSession(engine) as session:
        with Serving(engine.sync_engine).mode(), statements_sent(engine.sync_engine) as sent:
            if streamed:
                rows = await session.stream_scalars(select(Note).execution_options(yield_per=OWNERS // 4))
                right = [note.body == f"note {note.user_id}" async for note in rows]
            else:
                right = [n.body == f"note {n.user_id}" for n in await session.scalars(select(Note))]

            assert len(right) == OWNERS
            assert all(right)
            assert 1 <= len(key_queries(sent)) <= 2 + max(OWNERS // 1000, 4 if streamed else 0)
    await engine.dispose()


def test_partitions_cost_a_query_each(serving: Serving) -> None:
    """Rows that come in partitions have their keys fetched by partition, on both databases."""
    many(serving, 300)
    for options, most in (({}, 2), ({"yield_per": 75}, 6), ({"stream_results": True}, 12)):
        with serving.mode(), Session(serving.engine) as session, statements_sent(serving.engine) as sent:
            notes = session.scalars(select(Note).execution_options(**options))

            assert sum(note.body == f"note {note.user_id}" for note in notes) == 300
            assert 1 <= len(key_queries(sent)) <= most


@pytest.mark.parametrize("streamed", [False, True], ids=["all", "stream"])
async def test_joins_of_many_owners_async(async_engine: AsyncEngine, streamed: bool) -> None:
    """Rows of several entities through asyncio drivers: keys come in batches, whole or streamed."""
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    serving = Serving(async_engine.sync_engine)
    async with AsyncSession(async_engine) as session:
        with serving.mode():
            session.add_all([User(email=str(n), notes=[Note(body=f"note {n}")]) for n in range(300)])
            await session.commit()
    async with AsyncSession(async_engine) as session:
        with serving.mode(), statements_sent(async_engine.sync_engine) as sent:
            query = select(Note, User.email).join(Note.user)
            if streamed:
                rows = await session.stream(query.execution_options(yield_per=100))
                found = [(note.body, email) async for note, email in rows]
            else:
                found = [(note.body, email) for note, email in (await session.execute(query)).all()]

            assert len(found) == 300
            assert all(body == f"note {email}" for body, email in found)
            assert 1 <= len(key_queries(sent)) <= 6


async def test_tasks_interleave(
    async_engine: AsyncEngine, everywhere: Callable[[ServerSession], ServerSession]
) -> None:
    """Tasks that read and write for different owners at once in one process each get their own."""
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    serving = Serving(async_engine.sync_engine)
    everywhere(serving.mode())
    writing = asyncio.Lock()  # SQLite takes one writer

    async def one(number: int) -> list[str | None]:
        async with AsyncSession(async_engine) as session, writing:
            user = User(email=str(number), phone=f"phone {number}")
            session.add(user)
            await session.flush()
            user_id = user.id
            session.add(Note(user_id=user_id, body=f"note {number}"))
            await session.commit()
        async with AsyncSession(async_engine) as session:
            user = await session.get_one(User, user_id)
            notes = (await session.scalars(select(Note).where(Note.user_id == user_id))).all()
            return [user.phone, *(note.body for note in notes)]

    found = await asyncio.gather(*(one(number) for number in range(30)))

    assert [[f"phone {number}", f"note {number}"] for number in range(30)] == found


def many(serving: Serving, count: int) -> None:
    """So many users with one note each, which says its owner's id."""
    with serving.mode(), Session(serving.engine) as session:
        users = [User(email=str(number)) for number in range(count)]
        session.add_all(users)
        session.flush()
        session.execute(insert(Note), [{"user_id": user.id, "body": f"note {user.id}"} for user in users])
        session.commit()


# The cache


def test_a_small_cache_serves_many_owners_from_many_threads(
    serving: Serving,
    everywhere: Callable[[ServerSession], ServerSession],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With room for 10 owners and 100 in the database, 8 threads at once read and write everything right."""
    owners = serving.users(100)
    monkeypatch.setattr("sqlalchemy_envelope.orm.sessions.kept_owners._IN_USE", 0.3)
    server = everywhere(serving.mode(cache=CachePolicy(keys=10)))
    barrier = threading.Barrier(8)
    writing = threading.Lock()

    def work(number: int) -> list[str]:
        wrong = []
        barrier.wait(WAIT)
        for turn in range(6):
            with Session(serving.engine) as session:
                some = owners[(number * 12 + turn * 7) % 100 :][:9]
                notes = session.scalars(
                    select(Note).where(Note.user_id.in_(some), Note.title.is_(None))
                ).all()
                wrong += [str(n.body) for n in notes if n.body != f"note {owners.index(n.user_id)}"]
                with writing:
                    session.add(Note(user_id=some[0], title="more", body=f"{number} {turn} {some[0]}"))
                    session.commit()
        return wrong

    with ThreadPoolExecutor(8) as pool:
        wrong = [one for found in pool.map(work, range(8)) for one in found]
    later = time.monotonic() + 100
    monkeypatch.setattr("sqlalchemy_envelope.orm.sessions.kept_owners.time.monotonic", lambda: later)
    with Session(serving.engine) as session:
        session.execute(select(1))
    assert len(server.keyring) <= 10
    server.stop()

    assert wrong == []
    with serving.mode(), Session(serving.engine) as session:
        more = session.scalars(select(Note).where(Note.title == "more")).all()
        assert len(more) == 48
        assert all((note.body or "").endswith(f" {note.user_id}") for note in more)


@pytest.mark.parametrize("limit", ["seconds", "uses"])
def test_an_owner_over_a_limit_is_opened_anew(
    lite: Serving, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """After so many seconds or uses an owner's keys leave the memory, and come back when asked for."""
    now = [1000.0]
    monkeypatch.setattr("sqlalchemy_envelope.orm.sessions.kept_owners.time.monotonic", lambda: now[0])
    lite.users(1, "hello")
    cache = CachePolicy(seconds=60) if limit == "seconds" else CachePolicy(uses=3)
    with lite.mode(cache=cache) as server:
        for _ in range(5):
            with Session(lite.engine) as session:
                assert session.scalars(select(Note)).one().body == "hello"
        opened = [event.name for event in lite.events].count("server_opened")
        now[0] += 10 if limit == "uses" else 61
        with Session(lite.engine) as session:
            session.execute(select(1))
            assert len(server.keyring) == 0
            assert session.scalars(select(Note)).one().body == "hello"

        assert [event.name for event in lite.events].count("server_opened") == opened + 1


def test_a_busy_owner_is_opened_anew_too(lite: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner that is read every second still has its keys opened again after the cache's seconds."""
    now = [1000.0]
    monkeypatch.setattr("sqlalchemy_envelope.orm.sessions.kept_owners.time.monotonic", lambda: now[0])
    lite.users(1, "hello")
    with lite.mode(cache=CachePolicy(seconds=60)):
        lite.events.clear()
        for _ in range(200):
            now[0] += 1
            with Session(lite.engine) as session:
                assert session.scalars(select(Note)).one().body == "hello"

        assert 3 <= [event.name for event in lite.events].count("server_opened") <= 6


def test_a_slot_that_was_taken_away_ends_access(lite: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the cache's seconds nothing opens without the provider's slot, in use or not, read or written."""
    now = [1000.0]
    monkeypatch.setattr("sqlalchemy_envelope.orm.sessions.kept_owners.time.monotonic", lambda: now[0])
    ada, ben = lite.users(2)
    slots = Base.metadata.tables["users_keyslot"]
    with lite.mode(cache=CachePolicy(seconds=60)), Session(lite.engine) as session:
        assert len([note.body for note in session.scalars(select(Note))]) == 2
        session.commit()
        with lite.engine.begin() as connection:
            connection.execute(sa.delete(slots))
        for _ in range(70):
            now[0] += 1
            session.execute(select(1))
            session.get_one(Note, 1, populate_existing=True)
        session.commit()
        with pytest.raises(LockedError):
            _ = session.scalars(select(Note).where(Note.user_id == ada)).one().body
        session.add(Note(user_id=ben, body="lost"))
        with pytest.raises(LockedError):
            session.flush()
        session.rollback()


# Forks


def in_child(work: Callable[[], None]) -> str:
    """Run something in a forked child; what it says went wrong, or nothing."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = ""
        try:
            work()
        except BaseException:  # noqa: BLE001 - the child must not go on into pytest
            said = traceback.format_exc()
        finally:
            os.write(write, said.encode()[:60_000])
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(pid, 0)
    return said


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_serves_with_keys_of_its_own(
    serving: Serving, everywhere: Callable[[ServerSession], ServerSession]
) -> None:
    """A worker forked after server mode came on has none of its parent's keys, and goes on serving."""
    (ada,) = serving.users(1, "hello")
    server = everywhere(serving.mode())
    with Session(serving.engine) as session:
        assert session.scalars(select(Note)).one().body == "hello"

    def work() -> None:
        serving.engine.dispose(close=False)
        assert len(server.keyring) == 0
        with Session(serving.engine) as session:
            assert session.scalars(select(Note)).one().body == "hello"
            session.add(Note(user_id=ada, body="child"))
            session.add(User(email="child@example.org", phone="123", notes=[Note(body="new")]))
            session.commit()

    assert in_child(work) == ""
    assert len(server.keyring) == 1
    with Session(serving.engine) as session:
        assert [n.body for n in session.scalars(select(Note).order_by(Note.id))] == ["hello", "child", "new"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_wipes_its_parents_keys(
    lite: Serving, everywhere: Callable[[ServerSession], ServerSession]
) -> None:
    """In the child the parent's keys are zeros, of owners not committed yet too; stop wipes both."""
    server = everywhere(lite.mode())
    with Session(lite.engine) as session:
        session.add(User(email="committed@example.org", phone="123"))
        session.commit()
        user = User(email="waiting@example.org", phone="123")
        session.add(user)
        session.flush()
        owners = [Names(session).owner(require_owner_class(user), (number,)) for number in (1, user.id)]
        rings = [server.keyring_for(owner, session) for owner in owners]
        roots = [ring.root(owner) for ring, owner in zip(rings, owners, strict=True) if ring is not None]
        buffers = [root.key.buffer for root in roots if root is not None]
        assert [any(buffer) for buffer in buffers] == [True, True]

        def work() -> None:
            assert not any(any(buffer) for buffer in buffers)

        assert in_child(work) == ""
        assert all(any(buffer) for buffer in buffers)
        server.stop()
        assert not any(any(buffer) for buffer in buffers)
        session.rollback()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_block_does_not_cross_a_fork(lite: Serving) -> None:
    """A job's server mode, unlike the process's, ends in a forked child."""
    lite.users(1, "hello")
    with lite.mode() as server:

        def work() -> None:
            lite.engine.dispose(close=False)
            assert not server.is_open
            with Session(lite.engine) as session, pytest.raises(LockedError):
                _ = session.scalars(select(Note)).one().body

        assert in_child(work) == ""
        with Session(lite.engine) as session:
            assert session.scalars(select(Note)).one().body == "hello"


# Together with what the other modules bring


@pytest.mark.any_database
def test_columns_alone_and_joins(serving: Serving) -> None:
    """Selects of columns, joins and relationship loading open what belongs to several owners."""
    owners = serving.users(5)
    with serving.mode(), Session(serving.engine) as session:
        pairs = session.execute(select(Note.user_id, Note.body).order_by(Note.id)).all()
        joined = session.execute(
            select(User, Note.user_id, Note.body).join(User.notes).order_by(Note.id)
        ).all()

        assert [(owner, f"note {n}") for n, owner in enumerate(owners)] == [tuple(pair) for pair in pairs]
        assert [f"note {n}" for n in range(5)] == [row.body for row in joined]


@pytest.mark.any_database
def test_an_expired_and_a_refreshed_object(serving: Serving) -> None:
    """Values come back after expire, refresh, merge and a deferred load."""
    serving.users(1, "hello")
    with serving.mode(), Session(serving.engine) as session:
        note = session.scalars(select(Note).options(sa.orm.defer(Note.body))).one()
        assert note.body == "hello"
        session.expire(note)
        assert note.body == "hello"
        session.refresh(note)
        assert note.body == "hello"
        session.expunge(note)
        assert session.merge(note).body == "hello"
        session.commit()
        assert session.merge(note, load=False).body == "hello"


@pytest.mark.any_database
def test_a_secret_and_a_provider_open_the_same_owner(serving: Serving) -> None:
    """An owner with both slots is read by the server, and by itself without it."""
    envelope = serving.envelope()
    with Session(serving.engine) as session:
        user = User(email="both@example.org")
        envelope.enroll(session, user, secret=SECRET, provider="server")
        session.commit()
        both = user.id
    with serving.mode(), Session(serving.engine) as session:
        session.add(Note(user_id=both, body="from the server"))
        session.commit()
    with Session(serving.engine) as session:
        user = session.get_one(User, both)
        with envelope.unlock(session, user, secret=SECRET):
            assert [note.body for note in user.notes] == ["from the server"]
            session.add(Note(user_id=both, body="from the user"))
            session.commit()

    assert serving.bodies(both) == ["from the server", "from the user"]


@pytest.mark.any_database
def test_a_server_key_is_rotated_by_putting_a_new_one_first(serving: Serving) -> None:
    """With a new server key before the old one, old owners open and new ones come under the new key."""
    (ada,) = serving.users(1, "old")
    rotated = Envelope(
        kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([b"\x09" * 32, KEY])
    )
    with rotated.server_mode(reason="test"), Session(serving.engine) as session:
        session.add(User(email="new@example.org", notes=[Note(body="new")]))
        session.add(Note(user_id=ada, body="more"))
        session.commit()
        assert {"old", "more", "new"} == {note.body for note in session.scalars(select(Note))}


def test_no_secret_of_the_shared_models_is_weakened() -> None:
    """The envelope of the shared models has no server key: what it enrolls stays with its owner."""
    with pytest.raises(ConfigurationError):
        models.envelope.server_mode(reason="test")


@pytest.mark.backend
def test_two_processes_enrol_one_owner(postgres_engine: Engine) -> None:
    """Whoever comes second to make keys for an owner goes on with those of the first, and no write fails."""
    Base.metadata.create_all(postgres_engine)
    with Session(postgres_engine) as session:
        session.execute(insert(User.__table__).values(id=1, email="ada@example.org"))
        session.commit()
    second: list[str] = []

    def other() -> None:
        envelope = Envelope(server_keys=ServerKeyring([KEY]))
        with envelope.server_mode(reason="test"), Session(postgres_engine) as session:
            session.add(Note(user_id=1, body="second", tags=[]))
            session.commit()
            second.append(session.scalars(select(Note.body).where(Note.body.is_not(None))).all()[-1])

    envelope = Envelope(server_keys=ServerKeyring([KEY]))
    with envelope.server_mode(reason="test"), Session(postgres_engine) as session:
        session.add(Note(user_id=1, body="first", tags=[]))
        session.flush()
        thread = threading.Thread(target=other)
        thread.start()
        with postgres_engine.connect() as connection:
            waits = sa.text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            until = time.monotonic() + WAIT
            while not connection.execute(waits).scalar() and time.monotonic() < until:
                connection.rollback()
        session.commit()
        thread.join(WAIT)
        assert sorted(session.scalars(select(Note.body))) == ["first", "second"]
    assert len(second) == 1
