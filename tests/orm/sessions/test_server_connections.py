"""Server mode reaches a `Connection` that belongs to no `Session`: keys are looked for, and made, on the
connection itself and in its transaction."""

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, Engine, insert, literal, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session

from sqlalchemy_envelope import Envelope, LockedError, ServerKeyring, ServerSession
from sqlalchemy_envelope.orm.current.context import NOTHING
from sqlalchemy_envelope.orm.tables.connections import session_of
from tests.orm.models import Base, Note, User, statements_sent

KEY = bytes(32)
BODIES = select(Note.user_id, Note.body).order_by(Note.id)


def started() -> ServerSession:
    """Server mode as in a process that has just begun: no key is here."""
    return Envelope(server_keys=ServerKeyring([KEY])).server_mode(reason="tests")


def stop() -> None:
    """Server mode ends for the process, if it is on."""
    server: Any = NOTHING.server
    if server is not None:
        server.stop()


def restart() -> None:
    """Serve as a process does that has just begun."""
    stop()
    started().everywhere()


def serve(engine: Engine) -> Iterator[Engine]:
    """Two owners with keys and one without, and server mode for the process."""
    Base.metadata.create_all(engine)
    with started(), Session(engine) as session:
        session.add_all([User(id=1, email="ada"), User(id=2, email="ben")])
        session.commit()
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO users (id, email) VALUES (3, 'cyd')"))
    restart()
    yield engine
    stop()


@pytest.fixture
def served(engine: Engine) -> Iterator[Engine]:
    """The same, on SQLite and on PostgreSQL."""
    yield from serve(engine)


def read_by_a_session(engine: Engine) -> list[Any]:
    """What a process that has just begun reads."""
    restart()
    with Session(engine) as session:
        return [(note.user_id, note.body) for note in session.scalars(select(Note).order_by(Note.id))]


WRITES: dict[str, Any] = {
    "a row": (insert(Note).values(user_id=1, body="a"), None, [(1, "a")]),
    "rows": (
        insert(Note),
        [{"user_id": one, "body": "b"} for one in (1, 2, 3)],
        [(1, "b"), (2, "b"), (3, "b")],
    ),
    "multi-values": (
        insert(Note).values([{"user_id": one, "body": "c"} for one in (2, 1)]),
        None,
        [(2, "c"), (1, "c")],
    ),
    "for an owner without keys": (insert(Note).values(user_id=3, body="d"), None, [(3, "d")]),
}


@pytest.mark.parametrize("form", WRITES)
def test_writing(served: Engine, form: str) -> None:
    """What a Connection writes, it reads, and so does a Session in another process."""
    statement, parameters, expected = WRITES[form]
    with served.begin() as connection:
        connection.execute(statement, parameters)

        assert expected == connection.execute(BODIES).all()
    assert expected == read_by_a_session(served)


def test_updating(served: Engine) -> None:
    """An UPDATE as well, and inside of a savepoint."""
    with served.begin() as connection:
        connection.execute(insert(Note).values(user_id=2, body="a"))
        with connection.begin_nested():
            connection.execute(update(Note).where(Note.user_id == 2).values(user_id=2, body="b"))

    assert read_by_a_session(served) == [(2, "b")]


@pytest.mark.parametrize("warm", [False, True])
def test_reading(served: Engine, warm: bool) -> None:
    """A Connection reads the same, whether a Session has opened the owner before or not."""
    with Session(served) as session:
        session.add(Note(user_id=1, body="a"))
        session.commit()
    restart()
    if warm:
        with Session(served) as session:
            assert session.scalars(select(Note.body)).all() == ["a"]
    with served.connect() as connection:
        assert connection.execute(BODIES).all() == [(1, "a")]
        connection.commit()
        assert connection.execute(BODIES).all() == [(1, "a")]


def test_rows_are_fetched_at_once(served: Engine) -> None:
    """A fetch of many rows costs one query for the keys of a class, as in a Session."""
    with Session(served) as session:
        session.add_all([Note(user_id=one, body=f"{one}") for one in (1, 2) for _ in range(10)])
        session.commit()
    restart()
    with statements_sent(served) as sent, served.connect() as connection:
        connection.execute(BODIES).all()

    assert sum("users_key" in one for one in sent) == 1


@pytest.mark.parametrize("whole", [False, True])
def test_a_rollback_takes_the_keys_with_it(served: Engine, whole: bool) -> None:
    """Keys that were made on the connection are in its transaction, or savepoint, and after it others are
    made."""
    with served.connect() as connection:
        within = connection.begin() if whole else connection.begin_nested()
        connection.execute(insert(Note).values(user_id=3, body="a"))
        connection.execute(insert(Note).values(user_id=3, body="b"))
        assert connection.execute(BODIES).all() == [(3, "a"), (3, "b")]
        within.rollback()
        connection.execute(insert(Note).values(user_id=3, body="c"))
        connection.commit()

    assert read_by_a_session(served) == [(3, "c")]


def test_the_transaction_stays_the_connections(served: Engine) -> None:
    """Nothing is committed or rolled back, nor left behind on the connection."""
    with served.connect() as connection:
        connection.execute(insert(Note).values(user_id=1, body="a"))
        assert connection.in_transaction()
        assert session_of(connection) is None
        connection.rollback()
        assert not connection.in_transaction()

    assert read_by_a_session(served) == []


def test_a_session_on_the_connection_stays_its_session(served: Engine) -> None:
    """A result that was begun before the Session came is read to its end, and the Session goes on."""
    with Session(served) as session:
        session.add_all([Note(user_id=1, body="a"), Note(user_id=2, body="b")])
        session.commit()
    restart()
    with served.connect() as connection:
        result = connection.execute(BODIES)
        with Session(connection) as session:
            session.add(Note(user_id=1, body="c"))
            session.flush()
            assert result.all()[:2] == [(1, "a"), (2, "b")]
            assert session is session_of(connection)
            session.add(Note(user_id=2, body="d"))
            session.commit()
        connection.commit()

    assert read_by_a_session(served) == [(1, "a"), (2, "b"), (1, "c"), (2, "d")]


def test_autocommit(served: Engine) -> None:
    """Without transactions too."""
    with served.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(insert(Note).values(user_id=3, body="a"))

    assert read_by_a_session(served) == [(3, "a")]


def test_without_server_mode(served: Engine) -> None:
    """A Connection opens nothing by itself, and no transaction is begun for what is refused."""
    stop()
    with served.connect() as connection:
        for _ in range(2):  # models of other tests have tables of these names: the first asks the database
            connection.rollback()
            with pytest.raises(LockedError):
                connection.execute(insert(Note).values(user_id=1, body="a"))

        assert not connection.in_transaction()


@pytest.mark.backend
def test_in_a_cte(postgres_engine: Engine) -> None:
    """An INSERT in a CTE, which PostgreSQL takes."""
    for engine in serve(postgres_engine):
        made = insert(Note).values(user_id=1, body="a").returning(Note.id).cte("i")
        with engine.begin() as connection:
            connection.execute(select(literal(1)).add_cte(made))

        assert read_by_a_session(engine) == [(1, "a")]


async def test_an_async_connection(async_engine: AsyncEngine) -> None:
    """An AsyncConnection reads and writes the same."""
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(text("INSERT INTO users (id, email) VALUES (1, 'ada')"))
    with started():
        async with async_engine.begin() as connection:
            await connection.execute(insert(Note).values(user_id=1, body="a"))
    with started():
        async with async_engine.connect() as connection:
            assert (await connection.execute(BODIES)).all() == [(1, "a")]
            result = await connection.execute(BODIES)
            assert (result.fetchmany(5), result.fetchone()) == ([(1, "a")], None)
    with started():
        async with async_engine.connect() as connection:
            streamed = await connection.stream(BODIES)
            assert await streamed.all() == [(1, "a")]


def test_a_table_of_nobodys(served: Engine) -> None:
    """A statement with nothing encrypted in it is sent as it is, without a session."""
    tags = sa.Table("tags", sa.MetaData(), sa.Column("name", sa.String))
    seen: list[object] = []

    def note(connection: Connection, *_: object) -> None:
        seen.append(session_of(connection))

    tags.create(served)
    sa.event.listen(served, "before_cursor_execute", note)
    with served.begin() as connection:
        connection.execute(insert(tags).values(name="a"))
        connection.execute(update(tags).values(name="b"))

    assert seen == [None, None]
