"""The programs of the front page run as they are printed, and what they promise about their cost holds."""

import datetime as dt
from typing import Annotated, Any

import pytest
from sqlalchemy import JSON, Engine, ForeignKey, String, Text, func, insert, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from sqlalchemy_envelope import (
    AsyncEnvelope,
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyOwner,
    LockedError,
    UnlockError,
)
from sqlalchemy_envelope.crypto import argon2id
from tests.orm.conftest import Started
from tests.orm.models import (
    OVERHEAD,
    SECRET,
    statements_sent,
    stored,
    unlock,
)
from tests.orm.models import (
    Note as SharedNote,
)
from tests.orm.models import (
    envelope as cheap,
)

pytestmark = [pytest.mark.both_lines, pytest.mark.any_database]


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    phone: Mapped[str | None] = mapped_column(EncryptedType(String))


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    user: Mapped[User] = relationship()
    body: Mapped[str] = mapped_column(EncryptedType(Text, owner="user_id"))
    tags: Mapped[list[str]] = mapped_column(EncryptedType(JSON, owner="user_id"))


Secret = Annotated[str, mapped_column(EncryptedType(String))]


class Diary(Base):
    __tablename__ = "diaries"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    morning: Mapped[Secret]
    evening: Mapped[Secret | None]


def test_the_two_programs_run_as_printed(engine: Engine) -> None:
    """Enroll and write, then find, unlock, read and change the secret, with the real key derivation."""
    Base.metadata.create_all(engine)
    envelope = Envelope()

    with Session(engine) as session:
        user = User(email="ada@example.org", phone="+44 20 7946 0000")
        with envelope.enroll(session, user, secret="correct horse battery staple"):
            session.add(Note(user=user, body="hello", tags=["a"]))
            session.commit()

    with Session(engine) as session:
        user = session.scalars(select(User).where(User.email == "ada@example.org")).one()
        with envelope.unlock(session, user, secret="correct horse battery staple"):
            assert session.scalars(select(Note)).all()[0].body == "hello"
            assert session.scalars(select(Note)).one().tags == ["a"]
            assert user.phone == "+44 20 7946 0000"
        envelope.change_secret(session, user, old="correct horse battery staple", new="other words entirely")
        session.commit()

    with Session(engine) as session:
        user = session.scalars(select(User)).one()
        with pytest.raises(UnlockError):
            envelope.unlock(session, user, secret="correct horse battery staple")
        with envelope.unlock(session, user, secret="other words entirely"):
            assert session.scalars(select(Note)).one().body == "hello"


async def test_the_two_programs_run_asynchronously(async_engine: AsyncEngine) -> None:
    """The same with `await`, on both asyncio drivers."""
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    envelope = AsyncEnvelope(cheap)

    async with AsyncSession(async_engine) as session:
        user = User(email="ada@example.org", phone="+44 20 7946 0000")
        async with envelope.enroll(session, user, secret="correct horse battery staple"):
            session.add(Note(user=user, body="hello", tags=["a"]))
            await session.commit()

    async with AsyncSession(async_engine) as session:
        user = (await session.scalars(select(User).where(User.email == "ada@example.org"))).one()
        async with envelope.unlock(session, user, secret="correct horse battery staple"):
            assert (await session.scalars(select(Note))).all()[0].body == "hello"
            await session.refresh(user)
            assert user.phone == "+44 20 7946 0000"
        with pytest.raises(LockedError):
            _ = user.phone  # no SQL, so no missing greenlet
        await envelope.change_secret(
            session, user, old="correct horse battery staple", new="other words entirely"
        )
        await session.commit()

    async with AsyncSession(async_engine) as session:
        user = (await session.scalars(select(User))).one()
        with pytest.raises(UnlockError):
            await envelope.unlock(session, user, secret="correct horse battery staple")
        async with envelope.unlock(session, user, secret="other words entirely"):
            assert (await session.scalars(select(Note))).one().body == "hello"


def test_a_typed_alias_serves_annotations(engine: Engine) -> None:
    """Two columns declared by one `Annotated` alias are two columns: own labels, own nullability."""
    Base.metadata.create_all(engine)
    columns = Diary.__table__.c
    with Session(engine) as session:
        user = User(email="ada@example.org")
        with cheap.enroll(session, user, secret=SECRET):
            session.add(Diary(user_id=user.id, morning="sun"))
            session.commit()
            diary = session.scalars(select(Diary)).one()

            assert (diary.morning, diary.evening) == ("sun", None)
    assert (columns.morning.type.label, columns.evening.type.label) == ("diaries.morning", "diaries.evening")
    assert (columns.morning.nullable, columns.evening.nullable) == (False, True)


def test_unlocking_costs_three_queries_and_one_derivation(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unlock sends at most three statements and derives exactly one key."""
    derived = []
    real = argon2id.hash_secret_raw

    def counting(*args: Any, **options: Any) -> bytes:
        derived.append(1)
        return real(*args, **options)

    monkeypatch.setattr(argon2id, "hash_secret_raw", counting)
    with started.fresh() as session:
        user = session.get_one(type(started.ada), 1)
        session.connection()
        with statements_sent(started.engine) as sent:
            cheap.unlock(session, user, secret=SECRET)

    assert len(derived) == 1
    assert 1 <= len(sent) <= 3


def test_loading_20_000_rows_runs_one_query(lite: Started) -> None:
    """Opening values costs no statement: twenty thousand rows, one SELECT."""
    count = 20_000
    with unlock(lite.session, lite.ada):
        user_id = lite.ada.id
        lite.session.execute(insert(SharedNote), [{"user_id": user_id, "body": f"{n}"} for n in range(count)])
        lite.session.commit()
    with (
        lite.fresh() as session,
        unlock(session, session.get_one(type(lite.ada), user_id)),
        statements_sent(lite.engine) as sent,
    ):
        bodies = {note.body for note in session.scalars(select(SharedNote))}

    assert len(sent) == 1
    assert bodies == {f"{n}" for n in range(count)}


@pytest.mark.parametrize("text", ["", "a", "ä" * 7, "x" * 1000])
def test_overhead_is_45_bytes(started: Started, text: str) -> None:
    """A stored value has 45 bytes more than its plaintext, the empty string's included."""
    with unlock(started.session, started.ada):
        note = SharedNote(user=started.ada, body=text)
        started.session.add(note)
        started.session.commit()
        note_id = note.id
    value = stored(started.engine, SharedNote.__table__.c.body, note_id)

    assert value is not None
    assert len(value) == len(text.encode()) + OVERHEAD
    assert value[0] == 0x01


def test_the_default_profile_is_the_real_one(sqlite_engine: Engine) -> None:
    """Who asks for nothing gets RFC 9106's low-memory profile, in the stored slot too."""
    Base.metadata.create_all(sqlite_engine)
    with Session(sqlite_engine) as session:
        user = User(email="ada@example.org")
        Envelope().enroll(session, user, secret=SECRET)
        (kdf,) = session.execute(select(Base.metadata.tables["users_keyslot"].c.kdf)).scalars()

    assert Envelope().kdf_profile == KdfProfile.RFC9106_LOW_MEMORY
    assert kdf.startswith("$argon2id$v=19$m=65536,t=3,p=4$")


def test_deleting_the_owner_deletes_every_key(started: Started) -> None:
    """A plain DELETE of the owner leaves no key and no slot of theirs."""
    tables = type(started.ada).metadata.tables
    with started.engine.begin() as connection:
        before = connection.scalar(select(func.count()).select_from(tables["users_keyslot"]))
        connection.execute(tables["users"].delete().where(tables["users"].c.id == 1))
        slots = connection.scalar(select(func.count()).select_from(tables["users_keyslot"]))
        keys = connection.scalar(
            select(func.count()).select_from(tables["users_key"]).where(tables["users_key"].c.owner_id == 1)
        )

    assert (before, slots, keys) == (2, 1, 0)


def test_key_rows_are_mapped_and_dated(lite: Started) -> None:
    """The generated key table can be queried like any other."""
    keys = type(lite.ada).metadata.tables["users_key"]
    rows = lite.session.execute(select(keys.c.purpose, keys.c.created_at).where(keys.c.owner_id == 1)).all()

    assert {purpose for purpose, _ in rows} == {"root", "data"}
    assert all(isinstance(created_at, dt.datetime) for _, created_at in rows)
