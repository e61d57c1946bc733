"""An index over several attributes, of which a flush changes one: the others are those of the row, whatever
the object holds in memory."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, ForeignKey, String, event, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import (
    AsyncEnvelope,
    BlindIndex,
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyOwner,
    LockedError,
    ServerKeyring,
    matches,
)
from tests.orm.indexes.agreement import out_of_step

SECRET = "correct horse battery staple"


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)


class Poet(Base):
    __tablename__ = "poets"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    last: Mapped[str | None] = mapped_column(EncryptedType(String, owner="user_id"))
    born: Mapped[str | None] = mapped_column(EncryptedType(String, owner="user_id"))
    name_index: Mapped[bytes | None] = mapped_column(
        BlindIndex(("last", "born"), scope="server"), unique=True
    )
    own_index: Mapped[bytes | None] = mapped_column(BlindIndex(("last", "born")))


class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(10))
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "item"}  # noqa: RUF012


class Book(Item):
    __tablename__ = "books"
    id: Mapped[int] = mapped_column(ForeignKey("items.id"), primary_key=True)
    title: Mapped[str] = mapped_column(EncryptedType(String, owner="user_id"))
    shelf: Mapped[str] = mapped_column(EncryptedType(String, owner="user_id"))
    place_index: Mapped[bytes | None] = mapped_column(BlindIndex(("title", "shelf"), scope="server"))
    __mapper_args__ = {"polymorphic_identity": "book"}  # noqa: RUF012


def new_envelope() -> Envelope:
    keys = ServerKeyring([bytes(range(32))])
    return Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=keys)


@contextmanager
def poets(engine: Engine) -> Iterator[Envelope]:
    """Byron and Keats, and a book, of a user who is unlocked everywhere."""
    Base.metadata.create_all(engine)
    envelope = new_envelope()
    with Session(engine) as session:
        user = User()
        envelope.enroll(session, user, secret=SECRET)
        session.commit()
        with envelope.unlock(session, user, secret=SECRET):
            session.add(Poet(user_id=user.id, last="Byron", born="1788"))
            session.add(Poet(user_id=user.id, last="Keats", born="1795"))
            session.add(Book(user_id=user.id, title="Lamia", shelf="A"))
            session.commit()
            yield envelope


def found(session: Session, last: str, born: str) -> list[int]:
    return list(session.scalars(select(Poet.id).where(matches(Poet.name_index, last=last, born=born))))


def test_two_sessions_change_two_parts(engine: Engine) -> None:
    """The tag is of the values that the row has after both, and a unique index refuses them a second time."""
    with poets(engine):
        with Session(engine, expire_on_commit=False) as first, Session(engine) as second:
            mine = first.get_one(Poet, 1)
            assert mine.last == "Byron"
            first.commit()
            second.get_one(Poet, 1).last = "Shelley"
            second.commit()
            mine.born = "1792"
            first.commit()
        with Session(engine) as session:
            assert found(session, "Shelley", "1792") == [1]
            assert found(session, "Byron", "1792") == []
            assert out_of_step(session, Poet) == []
            own = matches(Poet.own_index, last="Shelley", born="1792")
            assert session.scalars(select(Poet.id).where(own)).all() == [1]
            session.get_one(Poet, 2).last = "Shelley"
            session.get_one(Poet, 2).born = "1792"
            with pytest.raises(IntegrityError):
                session.flush()


def _unsynchronized(session: Session) -> None:
    changed = update(Poet).where(Poet.id == 1).values(user_id=1, last="Blake", born="1757")
    session.execute(changed, execution_options={"synchronize_session": False})


def _by_core(session: Session) -> None:
    session.connection().execute(
        update(sa.inspect(Poet).local_table), {"user_id": 1, "last": None, "born": "1"}
    )


def _by_mappings(session: Session) -> None:
    rows = [{"id": 1, "user_id": 1, "last": "Blake", "born": "1757"}]
    session.bulk_update_mappings(sa.inspect(Poet), rows)


def _locked_only(session: Session) -> None:
    _unsynchronized(session)
    session.get(Poet, 1, with_for_update=True)


@pytest.mark.parametrize("change", [_unsynchronized, _by_core, _by_mappings, _locked_only])
def test_what_an_object_was_not_told(sqlite_engine: Engine, change: Callable[[Session], None]) -> None:
    """A statement changes the row, and the object keeps what it had: the next flush of another part."""
    with poets(sqlite_engine), Session(sqlite_engine) as session:
        poet = session.get_one(Poet, 1)
        assert poet.last == "Byron"
        change(session)
        poet.born = "1800"
        session.commit()

        assert out_of_step(session, Poet) == []


def test_a_listener_changes_a_part_during_the_flush(sqlite_engine: Engine) -> None:
    """What was read for the flush is read again."""
    with poets(sqlite_engine), Session(sqlite_engine) as session:
        one, two = session.get_one(Poet, 1), session.get_one(Poet, 2)
        one.born, two.last = "1800", "Clare"

        def change(mapper: Any, connection: Any, target: Any) -> None:
            table: Any = Poet.__table__
            for at in (1, 2):
                values = {"user_id": 1, "last": f"Hunt{at}", "born": "1784"}
                connection.execute(update(table).where(table.c.id == at).values(values))

        event.listen(Poet, "after_update", change)
        try:
            session.commit()
        finally:
            event.remove(Poet, "after_update", change)

        assert out_of_step(session, Poet) == []


def test_a_part_beside_an_owner_in_the_base_table(engine: Engine) -> None:
    """A joined subclass: the part is opened although another table names its owner."""
    with poets(engine), Session(engine) as session:
        session.get_one(Book, 1).shelf = "B"
        session.commit()

        assert out_of_step(session, Book) == []
        both = matches(Book.place_index, title="Lamia", shelf="B")
        assert session.scalars(select(Book.id).where(both)).all() == [1]


def test_one_query_for_all_rows_of_a_flush(engine: Engine) -> None:
    """Many rows cost one SELECT, and on SQLite a statement that takes the write lock; a flush that changes no
    part, or all of them, costs none."""
    sent: list[str] = []
    with poets(engine), Session(engine) as session:
        session.add_all([Poet(user_id=1, last=f"Poet{at}", born="1800") for at in range(20)])
        session.commit()
        everyone = session.scalars(select(Poet)).all()

        def counts() -> int:
            sent.clear()
            session.flush()
            return sum(text.startswith("SELECT") and "poets.last" in text for text in sent)

        session.connection()
        event.listen(engine, "before_cursor_execute", lambda *given: sent.append(given[2]))
        for at, poet in enumerate(everyone):
            poet.born = f"18{at}"
        assert counts() == 1
        for at, poet in enumerate(everyone):
            poet.last, poet.born = f"Of{at}", f"17{at}"
        assert counts() == 0
        session.commit()

        assert out_of_step(session, Poet) == []


def test_a_part_that_is_locked_stops_the_flush(sqlite_engine: Engine) -> None:
    """The tag of a changed row is never made from half of its values."""
    with poets(sqlite_engine):
        pass
    with Session(sqlite_engine) as session, new_envelope().write_only(session):
        session.get_one(Poet, 1).born = "1800"
        with pytest.raises(LockedError):
            session.flush()


@pytest.mark.backend
def test_an_older_snapshot_ends_with_a_conflict(postgres_engine: Engine) -> None:
    """At REPEATABLE READ a part that another transaction has changed since is not seen: the flush fails."""
    with poets(postgres_engine):
        snapshot = postgres_engine.execution_options(isolation_level="REPEATABLE READ")
        with Session(snapshot) as first, Session(postgres_engine) as second:
            first.get_one(Poet, 1).born = "1792"
            second.get_one(Poet, 1).last = "Shelley"
            second.commit()
            with pytest.raises(DBAPIError) as caught:
                first.flush()

        assert getattr(caught.value.orig, "sqlstate", None) == "40001"


def test_a_database_file_is_locked_before_the_part_is_read(sqlite_engine: Engine) -> None:
    """On SQLite nobody changes the row between the SELECT and the UPDATE."""
    with poets(sqlite_engine), Session(sqlite_engine) as session:
        session.get_one(Poet, 1).born = "1792"
        refused: list[str] = []

        def write_in_between(*given: Any) -> None:
            if given[2].startswith("SELECT") and "poets.last" in given[2]:
                with sqlite_engine.connect() as other:
                    driver: Any = other.connection.driver_connection
                    driver.execute("PRAGMA busy_timeout = 0")
                    try:
                        driver.execute("UPDATE poets SET last = NULL")
                        driver.commit()
                    except sqlite3.OperationalError as error:
                        refused.append(str(error))

        event.listen(sqlite_engine, "before_cursor_execute", write_in_between)
        session.flush()

        assert refused == ["database is locked"]


async def test_an_asynchronous_flush_reads_the_row(async_engine: AsyncEngine) -> None:
    """The same through asynchronous drivers."""
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    envelope = AsyncEnvelope(new_envelope())
    async with AsyncSession(async_engine, expire_on_commit=False) as session:
        user = User()
        await envelope.enroll(session, user, secret=SECRET)
        await session.commit()
        async with envelope.unlock(session, user, secret=SECRET):
            poet = Poet(user_id=user.id, last="Byron", born="1788")
            session.add(poet)
            await session.flush()
            changed = update(Poet).values(user_id=user.id, last="Blake", born="1757")
            await session.execute(changed, execution_options={"synchronize_session": False})
            poet.born = "1800"
            await session.commit()
            both = matches(Poet.name_index, last="Blake", born="1800")

            assert (await session.scalars(select(Poet.id).where(both))).all() == [1]
