"""Two make the keys of the same owners at one moment: the second goes on with those of the first, or is told
by the database to run its transaction again. Stepped by hand: one goes on where the other is about to insert.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, Engine, create_engine, event, insert, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    AlreadyEnrolledError,
    EnrollmentError,
    Envelope,
    KdfProfile,
    ServerKeyring,
    ServerSession,
    TransactionConflictError,
    enforce_foreign_keys,
)
from tests.conftest import LogCapture
from tests.orm import sharing_models
from tests.orm.models import SECRET, Base, Note, User

KEY = b"\x07" * 32
ISOLATED = ["REPEATABLE READ", "SERIALIZABLE"]
KEYS = Base.metadata.tables["users_key"]


def process() -> Envelope:
    """What a process that has just started has."""
    return Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([KEY]))


@pytest.fixture
def bare(engine: Engine) -> Engine:
    """Three users without keys, on SQLite and on PostgreSQL."""
    return filled(engine)


def filled(engine: Engine) -> Engine:
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        rows = [{"id": number, "email": f"{number}@example.org"} for number in (1, 2, 3)]
        connection.execute(insert(User.__table__), rows)  # type: ignore[arg-type]
    return engine


@pytest.fixture
def serving() -> Iterator[ServerSession]:
    """Server mode for this process."""
    server = process().server_mode(reason="test").everywhere()
    yield server
    if server.is_open:
        server.stop()


@contextmanager
def another(engine: Engine, **options: Any) -> Iterator[Engine]:
    """The same database through connections of another process."""
    other = create_engine(engine.url, **options)
    if engine.dialect.name == "sqlite":
        enforce_foreign_keys(other)
    yield other
    other.dispose()


@contextmanager
def before_insert(engine: Engine, table: str, call: Callable[[], None]) -> Iterator[list[str]]:
    """Once, when this engine is about to insert into a table, something else is done first."""
    done: list[str] = []

    def before(_: Connection, __: Any, statement: str, *___: Any) -> None:
        if statement.startswith(f"INSERT INTO {table} ") and not done:
            done.append(statement)
            call()

    event.listen(engine, "before_cursor_execute", before)
    yield done
    event.remove(engine, "before_cursor_execute", before)


def write(engine: Engine, *users: int, body: str, envelope: Envelope | None = None) -> None:
    """What a request does: a note for each of these users."""
    with (envelope or process()).server_mode(reason="test"), Session(engine) as session:
        session.add_all(Note(user_id=number, body=f"{body} {number}") for number in users)
        session.commit()


def bodies(engine: Engine) -> list[str | None]:
    """What a process that has just started reads."""
    with process().server_mode(reason="test"), Session(engine) as session:
        return sorted((note.body for note in session.scalars(select(Note))), key=str)


def active_roots(engine: Engine) -> list[int]:
    """How many active root keys each owner has."""
    query = select(sa.func.count()).where(KEYS.c.purpose == "root", KEYS.c.state == "active")
    with engine.connect() as connection:
        return list(connection.scalars(query.group_by(KEYS.c.owner_id).order_by(KEYS.c.owner_id)))


def state_of(error: DBAPIError) -> str | None:
    """The SQLSTATE, as retry middleware reads it."""
    return getattr(error.orig, "sqlstate", None)


# One after the other


@pytest.mark.parametrize("first", [(2,), (1, 2, 3), (3, 1)], ids=str)
def test_the_second_goes_on_with_the_keys_of_the_first(bare: Engine, first: tuple[int, ...]) -> None:
    """Of a batch of owners, some get keys elsewhere between the look and the write: every row is stored, each
    under the one root key that its owner has."""
    with (
        another(bare) as elsewhere,
        before_insert(bare, "users_key", lambda: write(elsewhere, *first, body="first")) as done,
    ):
        write(bare, 3, 1, 2, body="second")

    assert len(done) == 1
    assert active_roots(bare) == [1, 1, 1]
    assert bodies(bare) == [f"first {n}" for n in sorted(first)] + [f"second {n}" for n in (1, 2, 3)]


@pytest.mark.backend
@pytest.mark.parametrize("commits", [True, False], ids=["commit", "rollback"])
def test_the_second_waits_for_the_first(postgres_engine: Engine, commits: bool) -> None:
    """An insert waits for the transaction that inserted the same key: committed, its key serves both; rolled
    back, the second one's does."""
    filled(postgres_engine)
    with (
        another(postgres_engine) as elsewhere,
        process().server_mode(reason="test"),
        Session(elsewhere) as one,
    ):
        one.add(Note(user_id=2, body="first 2"))
        one.flush()
        thread = threading.Thread(target=write, args=(postgres_engine, 1, 2, 3), kwargs={"body": "second"})
        thread.start()
        waits = sa.text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        with elsewhere.connect().execution_options(isolation_level="AUTOCOMMIT") as watching:
            while not watching.scalar(waits):
                assert thread.is_alive()
        one.commit() if commits else one.rollback()
        thread.join()

    assert active_roots(postgres_engine) == [1, 1, 1]
    assert bodies(postgres_engine) == ["first 2"] * commits + [f"second {n}" for n in (1, 2, 3)]


@pytest.mark.backend
@pytest.mark.parametrize("level", ISOLATED)
def test_a_snapshot_that_cannot_see_them_is_told_so_by_the_database(
    postgres_engine: Engine, level: str, capture_logs: LogCapture
) -> None:
    """Keys that were committed after the snapshot was taken: SQLSTATE 40001, and the next run is right."""
    filled(postgres_engine)
    with (
        another(postgres_engine, isolation_level=level) as isolated,
        process().server_mode(reason="test"),
        Session(isolated) as session,
    ):
        session.scalars(select(User.id)).all()
        write(postgres_engine, 2, body="first")
        session.add_all(Note(user_id=number, body=f"second {number}") for number in (1, 2, 3))
        with pytest.raises(DBAPIError) as caught:
            session.commit()
        session.rollback()
        session.add_all(Note(user_id=number, body=f"second {number}") for number in (1, 2, 3))
        session.commit()

    assert state_of(caught.value) == "40001"
    assert "error ignored" not in capture_logs.text
    assert active_roots(postgres_engine) == [1, 1, 1]
    assert bodies(postgres_engine) == ["first 2", "second 1", "second 2", "second 3"]


@pytest.mark.backend
async def test_the_same_through_asyncpg(postgres_engine: Engine) -> None:
    """The SQLSTATE is there for retry middleware of asynchronous applications too."""
    filled(postgres_engine)
    isolated = create_async_engine(
        postgres_engine.url.set(drivername="postgresql+asyncpg"), isolation_level="REPEATABLE READ"
    )
    with process().server_mode(reason="test"):
        async with AsyncSession(isolated) as session:
            (await session.scalars(select(User.id))).all()
            write(postgres_engine, 2, body="first")
            session.add(Note(user_id=2, body="second 2"))
            with pytest.raises(DBAPIError) as caught:
                await session.commit()
            await session.rollback()
            session.add(Note(user_id=2, body="second 2"))
            await session.commit()
    await isolated.dispose()

    assert state_of(caught.value) == "40001"
    assert bodies(postgres_engine) == ["first 2", "second 2"]


# Errors of other causes


def test_an_owner_who_is_not_there_is_no_lost_race(bare: Engine) -> None:
    """What no key can be made for is told so, after the database's own constraint, and not called a race."""
    with pytest.raises(EnrollmentError, match="no User has the key 99") as caught:
        write(bare, 99, body="nobody")

    assert isinstance(caught.value.__cause__, IntegrityError)


# Enrolment with a secret


def test_two_requests_enroll_the_same_user(bare: Engine) -> None:
    """The second is told, and what it wanted to write is not written, though its transaction is committed."""

    def first() -> None:
        with another(bare) as elsewhere, Session(elsewhere) as other:
            user = other.get_one(User, 2)
            user.phone = "first"
            process_of_first.enroll(other, user, secret=SECRET)
            other.commit()

    process_of_first, second = process(), process()
    with Session(bare) as session, before_insert(bare, "users_key", first):
        user = session.get_one(User, 2)
        user.phone = "second"
        with pytest.raises(AlreadyEnrolledError):
            second.enroll(session, user, secret="another secret")
        session.expire(user)
        session.commit()
        with process().unlock(session, user, secret=SECRET):
            assert user.phone == "first"


def test_two_first_logins_of_the_same_user(bare: Engine) -> None:
    """The second is told to run its transaction again, and then it unlocks."""

    def login(engine: Engine) -> None:
        with Session(engine) as session:
            process().unlock(session, session.get_one(User, 2), secret=SECRET, authenticated=True)
            session.commit()

    def first() -> None:
        with another(bare) as elsewhere:
            login(elsewhere)

    with before_insert(bare, "users_key", first), pytest.raises(TransactionConflictError):
        login(bare)
    login(bare)

    assert active_roots(bare) == [1]


def test_an_enrolment_that_fails_for_another_cause_says_so(bare: Engine) -> None:
    """A user who is deleted meanwhile is not called enrolled."""

    def delete() -> None:
        with another(bare) as elsewhere, elsewhere.begin() as connection:
            connection.execute(sa.delete(User.__table__).where(User.id == 2))  # type: ignore[arg-type]

    with Session(bare) as session, before_insert(bare, "users_key", delete):
        user = session.get_one(User, 2)
        with pytest.raises(IntegrityError, match=r"(?i)foreign key"):
            process().enroll(session, user, secret=SECRET)


def test_a_new_owner_in_the_place_of_a_deleted_one(bare: Engine) -> None:
    """SQLAlchemy makes one UPDATE of the two rows, and the keys of the deleted owner stay: nothing is written
    under keys that are not stored."""
    envelope = process()
    write(bare, 2, body="kept", envelope=envelope)
    with envelope.server_mode(reason="test"), Session(bare) as session:
        session.delete(session.get_one(User, 2))
        session.add(User(id=2, email="new@example.org", phone="new"))
        with pytest.raises(AlreadyEnrolledError):
            session.flush()
        session.rollback()
    with Session(bare) as session:
        session.delete(session.get_one(User, 2))
        with pytest.raises(AlreadyEnrolledError):
            envelope.enroll(session, User(id=2, email="new@example.org", phone="new"), secret=SECRET)
        session.commit()

    assert bodies(bare) == ["kept 2"]


# Later keys of an owner


def test_two_unlocks_make_the_key_of_a_new_scope(engine: Engine) -> None:
    """The second goes on with the key that the first made, and both values are read."""
    users, keys = sharing_models.User, sharing_models.Base.metadata.tables["users_key"]
    sharing_models.Base.metadata.create_all(engine)
    with Session(engine) as session:
        sharing_models.add_user(session, "ada")
    with engine.begin() as connection:
        connection.execute(keys.delete().where(keys.c.scope == "profile"))
        connection.execute(update(users.__table__).values(display_name=None))

    def first() -> None:
        with (
            another(engine) as elsewhere,
            Session(elsewhere) as other,
            sharing_models.unlock(other, "ada"),
        ):
            other.commit()

    with (
        Session(engine) as session,
        before_insert(engine, "users_key", first) as done,
        sharing_models.unlock(session, "ada"),
    ):
        session.get_one(users, 1).display_name = "second"
        session.commit()
    with Session(engine) as session, sharing_models.unlock(session, "ada"):
        assert session.get_one(users, 1).display_name == "second"

    assert len(done) == 1
    with engine.connect() as connection:
        assert list(connection.scalars(select(keys.c.epoch).where(keys.c.scope == "profile"))) == [1]


# Keys that are cached


def test_cached_keys_that_are_another_owners_by_now(bare: Engine, serving: ServerSession) -> None:
    """An owner was renumbered and took its keys along; its number has a new owner, whose values are under
    keys of its own."""
    with Session(bare) as session:
        session.add(Note(user_id=1, body="old"))
        session.commit()
        with another(bare) as elsewhere, elsewhere.begin() as connection:
            connection.execute(sa.delete(Note.__table__))  # type: ignore[arg-type]
            connection.execute(update(User.__table__).where(User.id == 1).values(id=100))  # type: ignore[arg-type]
            connection.execute(insert(User.__table__).values(id=1, email="new@example.org"))  # type: ignore[arg-type]
        session.add(Note(user_id=1, body="new"))
        session.commit()
    serving.stop()

    with process().server_mode(reason="test"), Session(bare) as session:
        assert [note.body for note in session.scalars(select(Note).where(Note.user_id == 1))] == ["new"]
