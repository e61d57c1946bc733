"""The function of docs/how-to/concurrency.md runs a transaction again where another one was faster, and
nowhere else: by what the databases say and what the library says itself, and through asyncio too.
"""

import inspect
import re
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import URL, Engine, create_engine, event, func, select
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from examples import groups_app
from sqlalchemy_envelope import (
    AlreadyEnrolledError,
    AsyncEnvelope,
    LockedError,
    TransactionConflictError,
    UnlockBusyError,
    UnlockError,
    enforce_foreign_keys,
    should_retry,
)
from tests.orm.sharing_models import (
    Base,
    Membership,
    Post,
    User,
    add_user,
    envelope,
    found_group,
    read,
    secret_of,
    unlock,
    write,
)
from tests.prepared import prepared

ROOT = Path(__file__).parents[3]
GROUP, BEN, CLEO = 1, 2, 3


def documented() -> dict[str, Any]:
    """What the page defines to run a transaction again."""
    page = (ROOT / "docs" / "how-to" / "concurrency.md").read_text("utf-8")
    found: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        if "def run_again" in block:
            exec(block, found)  # noqa: S102 - a page of this repository
    return found


run_again: Callable[[Callable[[], Any]], Any] = documented()["run_again"]
run_again_async: Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]] = documented()["run_again_async"]


def build(engine: Engine) -> None:
    """A founder in a group of her own with one post, and two users who are in none."""
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        for name in ("ada", "ben", "cleo"):
            add_user(session, name)
        found_group(session, "ada")


@contextmanager
def beside(engine: Engine, **options: Any) -> Iterator[Engine]:
    """The same database through connections of another process."""
    other = create_engine(engine.url, **options)
    if engine.dialect.name == "sqlite":
        enforce_foreign_keys(other)
    yield other
    other.dispose()


def begin_at_once(engine: Engine) -> None:
    """Let a transaction on SQLite begin with its first SELECT, as SQLAlchemy's documentation shows it."""

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def on_begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")


class Tries:
    """A transaction that is told which try this is; what each try raised is kept."""

    def __init__(self, work: Callable[[int], Any]) -> None:
        self._work, self.count, self.errors = work, 0, []  # type: ignore[var-annotated]

    def __call__(self) -> Any:
        self.count += 1
        try:
            return self._work(self.count)
        except Exception as error:
            self.errors.append(error)
            raise


def add_member(engine: Engine, user_id: int, before: Callable[[], None] = lambda: None) -> None:
    """Ada reads her group, and adds somebody to it."""
    with Session(engine) as session, unlock(session, "ada"):
        assert session.scalars(select(Post.text)).all() == ["the first post"]
        before()
        session.add(Membership(group_id=GROUP, user_id=user_id))
        session.commit()


def everybody_reads(engine: Engine) -> bool:
    """Whether all three read what is there, and what is written now."""
    write(engine, "ada", GROUP, "later")
    return all(read(engine, name) == ["the first post", "later"] for name in ("ada", "ben", "cleo"))


# ---------------------------------------------------------------- what the databases say


@pytest.mark.backend
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_group_that_changed_after_the_snapshot(postgres_engine: Engine, level: Any) -> None:
    """PostgreSQL's own error reaches the caller as it is; the second try adds the member."""
    prepared(postgres_engine, "run again", lambda: build(postgres_engine))
    strict = postgres_engine.execution_options(isolation_level=level)

    def join(turn: int) -> None:
        add_member(strict, CLEO, lambda: add_member(postgres_engine, BEN) if turn == 1 else None)

    tries = Tries(join)
    run_again(tries)

    assert tries.count == 2
    assert type(tries.errors[0]) is OperationalError
    assert tries.errors[0].orig.sqlstate == "40001"
    assert everybody_reads(postgres_engine)


@pytest.mark.backend
def test_two_that_read_what_the_other_writes(postgres_engine: Engine) -> None:
    """What SERIALIZABLE finds when values are written or committed is run again too."""
    prepared(postgres_engine, "run again", lambda: build(postgres_engine))
    strict = postgres_engine.execution_options(isolation_level="SERIALIZABLE")

    def number(turn: int) -> None:
        with Session(strict) as session, unlock(session, "ada"):
            count = session.scalar(select(func.count(Post.id)))
            if turn == 1:
                number(0)
            session.add(Post(group_id=GROUP, text=f"after {count}"))
            session.commit()

    tries = Tries(number)
    run_again(tries)

    assert [error.orig.sqlstate for error in tries.errors] == ["40001"]
    assert read(postgres_engine, "ada") == ["the first post", "after 1", "after 2"]


@pytest.mark.backend
def test_two_that_wait_for_each_other(postgres_engine: Engine) -> None:
    """Of two that lock a row of the application and a group in two orders, one is run again."""
    prepared(postgres_engine, "run again", lambda: build(postgres_engine))
    both_hold = threading.Barrier(2, timeout=20)

    def add_and_greet(turn: int) -> None:
        with Session(quick) as session, unlock(session, "ada"):
            session.add(Membership(group_id=GROUP, user_id=CLEO))
            session.flush()
            if turn == 1:
                both_hold.wait()
            session.execute(sa.update(User).where(User.id == BEN).values(email="greeted"))
            session.commit()

    def greet_and_add(turn: int) -> None:
        with Session(quick) as session, unlock(session, "ada"):
            session.execute(sa.update(User).where(User.id == BEN).values(email="ben"))
            if turn == 1:
                both_hold.wait()
            session.add(Membership(group_id=GROUP, user_id=BEN))
            session.commit()

    tries = [Tries(add_and_greet), Tries(greet_and_add)]
    with (
        beside(postgres_engine, connect_args={"options": "-c deadlock_timeout=20ms"}) as quick,
        ThreadPoolExecutor(2) as threads,
    ):
        for done in [threads.submit(run_again, one) for one in tries]:
            done.result(30)
    with postgres_engine.begin() as connection:
        connection.execute(sa.update(User.__table__).where(User.id == BEN).values(email="ben"))  # type: ignore[arg-type]

    assert [error.orig.sqlstate for one in tries for error in one.errors] == ["40P01"]
    assert everybody_reads(postgres_engine)


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_somebody_else_writes_in_the_file(sqlite_engine: Engine, journal: str) -> None:
    """A transaction that read before somebody else wrote, in WAL mode; and, in a rollback journal, one that
    comes while somebody else writes."""
    prepared(sqlite_engine, "run again", lambda: build(sqlite_engine))
    with beside(sqlite_engine, connect_args={"timeout": 0}) as quick, Session(sqlite_engine) as other:
        mode = other.connection().exec_driver_sql(f"PRAGMA journal_mode={journal}").scalar()
        if journal == "wal":
            begin_at_once(quick)

        def write_elsewhere() -> None:
            with unlock(other, "ada"):
                other.add(Membership(group_id=GROUP, user_id=BEN))
                other.flush()
                if journal == "wal":
                    other.commit()

        def join(turn: int) -> None:
            if turn == 2:
                other.commit()
            add_member(quick, CLEO, write_elsewhere if turn == 1 else lambda: None)

        tries = Tries(join)
        run_again(tries)

    assert mode == journal
    assert [str(error.orig) for error in tries.errors] == ["database is locked"]
    assert everybody_reads(sqlite_engine)


def test_an_unlock_that_is_kept(sqlite_engine: Engine) -> None:
    """What is run again inside of an unlock goes on with its keys, and sees what changed meanwhile."""
    prepared(sqlite_engine, "run again", lambda: build(sqlite_engine))
    with beside(sqlite_engine, connect_args={"timeout": 0}) as quick, Session(quick) as session:
        session.connection().exec_driver_sql("PRAGMA journal_mode=wal")
        session.close()
        begin_at_once(quick)
        quick.dispose()
        with unlock(session, "ada"):
            session.commit()

            def join(turn: int) -> None:
                with session.begin():
                    assert session.scalar(select(func.count(Membership.user_id))) == turn
                    if turn == 1:
                        add_member(sqlite_engine, BEN)
                    session.add(Membership(group_id=GROUP, user_id=CLEO))

            tries = Tries(join)
            run_again(tries)

    assert [str(error.orig) for error in tries.errors] == ["database is locked"]
    assert everybody_reads(sqlite_engine)


async def test_through_asyncio(async_url: URL) -> None:
    """The asynchronous function, with what asyncpg and aiosqlite raise."""
    is_postgres = async_url.get_backend_name() == "postgresql"
    sync_engine = create_engine(async_url.set(drivername="postgresql+psycopg" if is_postgres else "sqlite"))
    options: dict[str, Any] = (
        {"isolation_level": "REPEATABLE READ"} if is_postgres else {"connect_args": {"timeout": 0}}
    )
    strict, aio = create_async_engine(async_url, **options), AsyncEnvelope(envelope)
    if not is_postgres:
        enforce_foreign_keys(sync_engine)
        enforce_foreign_keys(strict.sync_engine)
    prepared(sync_engine, "run again", lambda: build(sync_engine))
    errors: list[Exception] = []

    async def join() -> None:
        async with AsyncSession(strict) as session:
            ada = (await session.scalars(select(User).where(User.email == "ada"))).one()
            async with aio.unlock(session, ada, secret=secret_of("ada")):
                if not errors:
                    other.add(Membership(group_id=GROUP, user_id=BEN))
                    other.flush()
                if errors or is_postgres:
                    other.commit()
                session.add(Membership(group_id=GROUP, user_id=CLEO))
                try:
                    await session.commit()
                except DBAPIError as error:
                    errors.append(error)
                    raise

    with Session(sync_engine) as other, unlock(other, "ada"):
        await run_again_async(join)
    await strict.dispose()

    assert [should_retry(error) for error in errors] == [True]
    assert everybody_reads(sync_engine)
    sync_engine.dispose()


# ---------------------------------------------------------------- what the library says


@contextmanager
def before_update(engine: Engine, table: str, call: Callable[[], None]) -> Iterator[None]:
    """Once, when this engine is about to update a table, something else is done first."""
    waiting = [call]

    def before(_: object, __: object, statement: str, *___: object) -> None:
        if statement.startswith(f"UPDATE {table} ") and waiting:
            waiting.pop()()

    event.listen(engine, "before_cursor_execute", before)
    yield
    event.remove(engine, "before_cursor_execute", before)


@pytest.mark.parametrize("other_secret", ["the secret of ada", "another secret"])
def test_two_change_one_secret(engine: Engine, other_secret: str) -> None:
    """A slot that was only renewed meanwhile takes the new secret at the second try; one that has another
    secret says that the old one is wrong."""
    prepared(engine, "run again", lambda: build(engine))

    def change(on: Engine, new: str) -> None:
        with Session(on) as session:
            ada = session.scalars(select(User).where(User.email == "ada")).one()
            envelope.change_secret(session, ada, old="the secret of ada", new=new)
            session.commit()

    tries = Tries(lambda _: change(engine, "a new secret"))
    with ExitStack() as stack:
        elsewhere = stack.enter_context(beside(engine))
        stack.enter_context(before_update(engine, "users_key", lambda: change(elsewhere, other_secret)))
        if other_secret != "the secret of ada":
            stack.enter_context(pytest.raises(UnlockError))
        run_again(tries)

    assert type(tries.errors[0]) is TransactionConflictError
    assert tries.count == 2
    with Session(engine) as session:
        ada = session.scalars(select(User).where(User.email == "ada")).one()
        last = "a new secret" if other_secret == "the secret of ada" else other_secret
        assert envelope.unlock(session, ada, secret=last) is not None


def test_middleware_finds_a_sqlstate() -> None:
    """Where a driver's error has one, the library's has it too."""
    error = TransactionConflictError("What happened.")

    assert [error.sqlstate, error.pgcode, error.orig.sqlstate, error.orig.pgcode] == ["40001"] * 4


# ---------------------------------------------------------------- what is told apart


def said(arguments: tuple[object, ...] = (), **attributes: object) -> DBAPIError:
    """What SQLAlchemy makes of a driver's error, for drivers that are not installed here."""
    original = Exception(*arguments)
    vars(original).update(attributes)
    return OperationalError("UPDATE t SET a = 1", {}, original)


@pytest.mark.parametrize(
    "error",
    [
        said(pgcode="40P01"),  # psycopg2
        said(sqlstate="55P03"),
        said((1213, "Deadlock found")),  # PyMySQL, mysqlclient, aiomysql, asyncmy
        said((1020, "Record has changed since last read")),
        said(("1205 (HY000): Lock wait timeout exceeded",), errno=1205, sqlstate="HY000"),  # Connector/Python
        TransactionConflictError("What happened."),
    ],
    ids=repr,
)
def test_another_one_was_faster(error: Exception) -> None:
    """What each driver's error has its code in."""
    assert should_retry(error)


@pytest.mark.parametrize(
    "error",
    [
        said((1062, "Duplicate entry")),
        said((2013, "Lost connection")),
        said(sqlstate="08006"),
        said(sqlstate="57014"),
        said(("database is locked is a title",)),
        IntegrityError("INSERT", {}, Exception("UNIQUE constraint failed: users.email")),
        AlreadyEnrolledError("What happened."),
        LockedError("What happened."),
        UnlockBusyError("What happened."),
        Exception(1213, "Deadlock found"),
    ],
    ids=repr,
)
def test_nobody_was_faster(error: Exception) -> None:
    """To run it again changes nothing, or is not safe."""
    tries = Tries(lambda _: raise_(error))
    with pytest.raises(type(error)) as raised:
        run_again(tries)

    assert raised.value is error
    assert tries.count == 1


def raise_(error: Exception) -> None:
    raise error


def test_a_table_of_a_telling_name(sqlite_engine: Engine) -> None:
    """An SQLite error is known by its code, and not by a word that is in its text."""
    with sqlite_engine.connect() as connection, pytest.raises(OperationalError, match="is locked") as raised:
        connection.exec_driver_sql('SELECT * FROM "database is locked"')

    assert not should_retry(raised.value)


def test_it_ends() -> None:
    """What is in the way for ever is raised by the last attempt."""
    tries = Tries(lambda _: raise_(TransactionConflictError("What happened.")))
    with pytest.raises(TransactionConflictError):
        run_again(tries)

    assert tries.count == 5


def test_the_example_has_the_same_function() -> None:
    """The application of the examples runs its requests by the very text of the page."""
    page = (ROOT / "docs/how-to/concurrency.md").read_text("utf-8")

    assert inspect.getsource(groups_app.run_again) in page
