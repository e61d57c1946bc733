"""psycopg's binary results: the same values in fewer bytes, where psycopg reads both forms alike."""

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, create_engine, event, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sqlalchemy_envelope import AsyncEnvelope, ConfigurationError, binary_results
from tests.orm.conftest import Started
from tests.orm.models import SECRET, Note, User, envelope, new_user, unlock

pytestmark = pytest.mark.both_lines

BODIES = [f"text {number}" for number in range(12)]


def formats(engine: Engine) -> list[int]:
    """The form of each result on this engine from here on: 0 is text, 1 binary."""
    seen: list[int] = []

    def note(connection: Any, cursor: Any, *rest: Any) -> None:
        raw = getattr(cursor, "_cursor", cursor)
        if raw.description:
            seen.append(int(raw.format))

    event.listen(engine, "after_cursor_execute", note)
    return seen


def notes_of(session: Session) -> User:
    """Somebody with notes."""
    user = new_user(session, "ada")
    with unlock(session, user):
        session.add_all(Note(user_id=user.id, body=body) for body in BODIES)
        session.commit()
    return user


@pytest.mark.backend
def test_the_second_execution_is_binary(postgres_engine: Engine) -> None:
    """Both forms give the same objects and columns; a statement without encrypted columns stays as it is."""
    Note.metadata.create_all(postgres_engine)
    with Session(postgres_engine) as session:
        user_id = notes_of(session).id
    engine = create_engine(postgres_engine.url)
    binary_results(engine)
    binary_results(engine)
    with Session(engine) as session, unlock(session, session.get_one(User, user_id)):
        columns = select(Note.id, Note.user_id, Note.body).order_by(Note.id)
        for _ in range(2):
            session.execute(select(User.email)).all()
        seen = formats(engine)
        read = []
        for _ in range(3):
            session.expunge_all()
            read.append([note.body for note in session.scalars(select(Note).order_by(Note.id))])
            read.append([row.body for row in session.execute(columns)])
        session.execute(select(User.email)).all()
    engine.dispose()

    assert read == [BODIES] * 6
    assert seen == [0, 0, 1, 1, 1, 1, 0]


@pytest.mark.backend
async def test_of_an_asynchronous_engine(postgres_engine: Engine) -> None:
    """The same through an `AsyncEngine`, streams included."""
    Note.metadata.create_all(postgres_engine)
    with Session(postgres_engine) as session:
        user_id = notes_of(session).id
    engine = create_async_engine(postgres_engine.url.set(drivername="postgresql+psycopg_async"))
    binary_results(engine)
    seen = formats(engine.sync_engine)
    statement = select(Note.body, Note.user_id).order_by(Note.id)
    async with AsyncSession(engine) as session:
        user = await session.get_one(User, user_id)
        seen.clear()
        async with AsyncEnvelope(envelope).unlock(session, user, secret=SECRET):
            first = (await session.scalars(statement)).all()
            second = (await session.scalars(statement)).all()
            third = [body async for body in await session.stream_scalars(statement)]
    await engine.dispose()

    assert [list(first), list(second), third] == [BODIES] * 3
    assert seen[-3:] == [0, 1, 1]


@pytest.mark.backend
def test_another_type_keeps_text(postgres_engine: Engine) -> None:
    """A column of a type that binary gives otherwise, citext or an enum, is read as ever."""
    Note.metadata.create_all(postgres_engine)
    with Session(postgres_engine) as session:
        user_id = notes_of(session).id
        session.execute(sa.text("CREATE TYPE mood AS ENUM ('glad')"))
        session.commit()
    engine = create_engine(postgres_engine.url)
    binary_results(engine)
    seen = formats(engine)
    mood = sa.literal_column("'glad'::mood", sa.String)
    with Session(engine) as session, unlock(session, session.get_one(User, user_id)):
        seen.clear()
        read = [session.execute(select(Note.body, Note.user_id, mood)).first() for _ in range(2)]
    engine.dispose()

    assert [tuple(row) for row in read if row] == [("text 0", user_id, "glad")] * 2
    assert seen == [0, 0]


def test_other_drivers_are_refused(lite: Started) -> None:
    """There is nothing to change for them, and the application learns that."""
    with pytest.raises(ConfigurationError, match="this engine's driver is pysqlite"):
        binary_results(lite.engine)
