"""A stored value that is not what was written there breaks nothing but itself: its row loads and so do all
others, a flush leaves its bytes alone, and whoever touches it is told which column of which row it is."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, ForeignKey, Text, inspect, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, defer, mapped_column

from sqlalchemy_envelope import (
    AsyncEnvelope,
    DecryptionError,
    EncryptedType,
    EnvelopeError,
    FormatError,
    KeyOwner,
    LockedError,
    Sealed,
    TruncatedError,
)
from tests.orm.conftest import Started
from tests.orm.models import SECRET, Note, Page, User, envelope, stored, unchecked, unlock
from tests.plain_sql import update_of

pytestmark = [pytest.mark.both_lines, pytest.mark.any_database]

BODY: Any = Note.__table__.c.body  # type: ignore[attr-defined]
ADA, BEN = 1, 2
MANY, BAD = 12, 5
FAULTS: dict[str, tuple[Any, type[EnvelopeError], bool]] = {
    "foreign": (lambda before: b"by an old script", FormatError, True),
    "empty": (lambda before: b"", FormatError, True),
    "cut short": (lambda before: before[:20], TruncatedError, True),
    "altered": (lambda before: before[:-1] + bytes([before[-1] ^ 1]), DecryptionError, False),
}
"""What became of a value, the error, and whether who has no key is told it too."""
faults = pytest.mark.parametrize("fault", FAULTS)


def plant(engine: Engine, key: int, value: Any, table: str = "notes", column: str = "body") -> None:
    """Write into an encrypted column past the library."""
    with engine.begin() as connection:
        unchecked(connection)
        connection.execute(update_of(engine.dialect, table, {column: value}, {"id": key}))


def spoil(started: Started, fault: str) -> tuple[bytes, type[EnvelopeError], bool]:
    """Twelve notes of one owner, one of which is no longer what was written there."""
    with unlock(started.session, started.ada):
        notes = [Note(id=n, user_id=ADA, title=f"{n}", body=f"note {n}") for n in range(1, MANY + 1)]
        started.session.add_all(notes)
        started.session.commit()
    started.session.expunge_all()
    change, error, always = FAULTS[fault]
    before = stored(started.engine, BODY, BAD)
    assert before is not None
    value = change(before)
    plant(started.engine, BAD, value)
    return value, error, always


def assert_told(
    read: Any, error: type[EnvelopeError], where: str = f"notes.body of the row with id={BAD}."
) -> None:
    """Touching it is this error, with the column and the row in it, as often as it is touched."""
    for _ in range(2):
        with pytest.raises(error) as caught:
            read()
        assert caught.type is error
        assert where in str(caught.value)


@faults
def test_a_locked_list(started: Started, fault: str) -> None:
    """Who has no key reads every other row, and is told of the bad value where it is touched."""
    value, error, always = spoil(started, fault)
    with started.fresh() as session:
        notes = session.scalars(select(Note).order_by(Note.id)).all()
        bad = notes[BAD - 1]

        assert [f"{n}" for n in range(1, MANY + 1)] == [note.title for note in notes]
        if always:
            assert_told(lambda: bad.body, error)
        else:
            with pytest.raises(LockedError):
                bad.body  # noqa: B018 - reading it is the point
        with pytest.raises(LockedError):
            notes[0].body  # noqa: B018 - as above
        bad.title = "changed"
        session.commit()
        session.refresh(bad)

        assert bad.title == "changed"
        assert value == stored(started.engine, BODY, BAD)


@faults
@pytest.mark.parametrize("owners", [1, 2])
def test_an_unlocked_list(started: Started, fault: str, owners: int) -> None:
    """Its owner reads every other value, with one owner unlocked or several."""
    value, error, _ = spoil(started, fault)
    with (
        started.fresh() as session,
        unlock(session, session.get_one(User, BEN)) if owners == 2 else nullcontext(),
        unlock(session, session.get_one(User, ADA)),
    ):
        notes = session.scalars(select(Note).order_by(Note.id)).all()
        bad = notes.pop(BAD - 1)

        assert [f"note {n}" for n in range(1, MANY + 1) if n != BAD] == [note.body for note in notes]
        assert_told(lambda: bad.body, error)
        bad.title = "changed"
        session.commit()

        assert_told(lambda: bad.body, error)
        assert value == stored(started.engine, BODY, BAD)


@faults
def test_it_can_be_written_anew(started: Started, fault: str) -> None:
    """A value that is set takes the place of the bad one, for its owner and for who only writes."""
    spoil(started, fault)
    for how in ("unlock", "write_only"):
        with started.fresh() as session:
            note = session.get_one(Note, BAD)
            ada = session.get_one(User, ADA)
            with unlock(session, ada) if how == "unlock" else envelope.write_only(session):
                note.body = how
                session.commit()
        with started.fresh() as session, unlock(session, session.get_one(User, ADA)):
            assert how == session.get_one(Note, BAD).body
        plant(started.engine, BAD, b"again")


@faults
def test_a_select_of_columns(started: Started, fault: str) -> None:
    """The value comes out sealed, and whatever is done with it raises the error of its column."""
    _, error, always = spoil(started, fault)
    statement = select(Note.body).order_by(Note.id)
    with started.fresh() as session:
        locked = session.scalars(statement).all()
        with unlock(session, session.get_one(User, ADA)) as unlocked:
            values = session.scalars(statement).all()
            bad = values.pop(BAD - 1)

            assert [f"note {n}" for n in range(1, MANY + 1) if n != BAD] == values
            assert isinstance(bad, Sealed)
            for use in (len, bool, unlocked.decrypt, lambda value: pickle.loads(pickle.dumps(value)) + "x"):  # noqa: S301 - made here
                with pytest.raises(error, match=r"notes\.body") as caught:
                    use(bad)
                assert caught.type is error
    assert [Sealed] * MANY == [type(value) for value in locked]
    with pytest.raises(error if always else LockedError, match=r"notes\.body"):
        bool(locked[BAD - 1])
    assert "by an old script" not in repr(locked[BAD - 1])


@faults
def test_a_value_bound_to_its_row(started: Started, fault: str) -> None:
    """A row-bound value is told in the same way."""
    change, error, _ = FAULTS[fault]
    with started.fresh() as session, unlock(session, session.get_one(User, ADA)):
        pages = [Page(user_id=ADA, title="t", text="page") for _ in range(3)]
        session.add_all(pages)
        session.commit()
        key = pages[0].id
    stored_key = key if started.engine.dialect.name == "postgresql" else key.hex
    before = stored(started.engine, Page.__table__.c.text, key)  # type: ignore[attr-defined]
    plant(started.engine, stored_key, change(before), "pages", "text")
    with started.fresh() as session, unlock(session, session.get_one(User, ADA)):
        found = {page.id: page for page in session.scalars(select(Page))}

        assert_told(lambda: found[key].text, error, f"id={key!r}")
        assert [page.text for page in found.values() if page.id != key] == ["page", "page"]


def test_a_value_of_another_type(lite: Started) -> None:
    """SQLite stores anything anywhere: text and numbers are told by their type, and never shown."""
    spoil(lite, "foreign")
    with lite.engine.begin() as connection:
        unchecked(connection)
        connection.execute(sa.text("UPDATE notes SET body = 'by an old script' WHERE id = 5"))
    with lite.fresh() as session:
        note = session.get_one(Note, BAD)
        with pytest.raises(FormatError, match="stored as str") as caught:
            note.body  # noqa: B018 - reading it is the point

        assert "it looks like plaintext from before the column was encrypted" in str(caught.value)
        assert "/how-to/alembic.html" in str(caught.value)
        assert "script" not in str(caught.value)
        assert "script" not in repr(session.scalars(select(Note.body).where(Note.id == BAD)).one())


@contextmanager
def spoilt(started: Started) -> Iterator[Session]:
    spoil(started, "altered")
    with started.fresh() as session, unlock(session, session.get_one(User, ADA)):
        yield session


def test_a_deferred_attribute(lite: Started) -> None:
    """An attribute that is loaded by itself is told in the same way."""
    with spoilt(lite) as session:
        note = session.scalars(select(Note).options(defer(Note.body)).where(Note.id == BAD)).one()

        assert_told(lambda: note.body, DecryptionError)


def test_a_row_that_is_repaired(lite: Started) -> None:
    """Read again after its bytes were put right, the value is there."""
    with spoilt(lite) as session:
        note = session.get_one(Note, BAD)
        assert_told(lambda: note.body, DecryptionError)
        altered = stored(lite.engine, BODY, BAD)
        assert altered is not None
        session.rollback()
        plant(lite.engine, BAD, altered[:-1] + bytes([altered[-1] ^ 1]))
        session.refresh(note)

        assert f"note {BAD}" == note.body


def test_it_survives_pickling_and_merging(lite: Started) -> None:
    """An object with such a value goes through a cache and another session, and never with a value."""
    with spoilt(lite) as session:
        note = session.get_one(Note, BAD)
        session.expunge(note)
        for other in (pickle.loads(pickle.dumps(note)), session.merge(note)):  # noqa: S301 - made here
            assert_told(lambda: other.body, DecryptionError)  # noqa: B023 - called at once
    assert stored(lite.engine, BODY, BAD) is not None


def test_passive_looks_raise_nothing(lite: Started) -> None:
    """The history of a bad value is empty, and going over all objects asks nothing of it."""
    with spoilt(lite) as session:
        note = session.get_one(Note, BAD)
        note.title = "changed"

        assert not inspect(note).attrs.body.history.has_changes()
        assert session.is_modified(note)
        assert "NO_VALUE" in repr(inspect(note).attrs.body.loaded_value)
        session.commit()


class Base(DeclarativeBase):
    pass


class Customer(KeyOwner, Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)


class Line(Base):
    __tablename__ = "order_lines"
    order_id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column("line_number", primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("customers.id", ondelete="CASCADE"))
    text: Mapped[str] = mapped_column("line_text", EncryptedType(Text, label="lines.text_of_2019"))


def test_names_are_those_of_the_database(engine: Engine) -> None:
    """With a pinned label, renamed columns and a composite key the row can be found with what is told."""
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        customer = Customer(id=1)
        with envelope.enroll(session, customer, secret=SECRET):
            session.add(Line(order_id=7, number=2, customer_id=1, text="x"))
            session.commit()
        unchecked(session.connection())
        session.execute(update_of(engine.dialect, "order_lines", {"line_text": b"old"}, {}))
        session.commit()
        line = session.get_one(Line, (7, 2))

        where = "order_lines.line_text of the row with order_id=7, line_number=2."
        assert_told(lambda: line.text, FormatError, where)
        assert_told(lambda: line.text, FormatError, "'lines.text_of_2019'")


@pytest.mark.asyncio
async def test_under_asyncio(async_engine: AsyncEngine) -> None:
    """No SQL is sent, and no greenlet needed, to tell of it."""
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(async_engine, expire_on_commit=False) as session:
        customer = Customer(id=1)
        async with AsyncEnvelope(envelope).enroll(session, customer, secret=SECRET):
            session.add_all(Line(order_id=n, number=1, customer_id=1, text="x") for n in range(3))
            await session.commit()
        await (await session.connection()).run_sync(unchecked)
        planted = update_of(async_engine.dialect, "order_lines", {"line_text": b"old"}, {"order_id": 1})
        await session.execute(planted)
        await session.commit()
        session.expunge_all()
        lines = (await session.scalars(select(Line).order_by(Line.order_id))).all()

        assert len(lines) == 3
        assert_told(lambda: lines[1].text, FormatError, "of the row with order_id=1, line_number=1.")
