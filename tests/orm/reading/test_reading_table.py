"""The table of docs/reference/reading.md: each cell is read in a database in which values were moved."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine, select, text
from sqlalchemy.exc import MissingGreenlet, StatementError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sqlalchemy_envelope import DecryptionError, LockedError, Sealed, enforce_foreign_keys
from tests.orm.reading.reading_models import (
    ADDED,
    COLUMN,
    KINDS,
    LINKED,
    MOVED_PLACE,
    OWN,
    REFUSED,
    ROW,
    SEALED,
    VALUE,
    AsyncWay,
    Base,
    Kind,
    Note,
    Read,
    Sheet,
    Team,
    User,
    Way,
    envelope,
)
from tests.orm.reading.reading_table import ASYNC, COLUMNS, LATE, OBJECTS, RETURNED, TRACED_TWICE, WAYS, page

pytestmark = pytest.mark.both_lines

ADA, BEN = 1, 2
GENUINE, FROM_AN_OWNER, FROM_A_ROW = 0, 1, 2
MOVED = {4: (2, 1), 5: (1, 2), 6: (1, 3)}
"""Whose rows have a value that was moved there, and from which row."""
OWNERS = {1: ADA, 2: BEN, 3: ADA} | {number: owner for number, (owner, _) in MOVED.items()}
TEAM = 201
"""The number of the row of another class of owners."""
FEW, MANY = len(OWNERS), 12
"""As many rows as are opened one by one, and as column by column."""


def owner_of(number: int) -> int:
    """Whose a row is."""
    return OWNERS.get(number, ADA if number % 2 else BEN)


def make(engine: Engine, count: int) -> None:
    """Two users whose rows have genuine values, and some that were moved there."""
    Base.metadata.create_all(engine)
    with Session(engine) as session, ExitStack() as stack:
        for key in (ADA, BEN):
            stack.enter_context(envelope.enroll(session, User(id=key), secret=f"s{key}", provider="server"))
        team = Team(id=TEAM, motto=f"word {TEAM}", crest=f"word {TEAM}", song=f"word {TEAM}")
        stack.enter_context(envelope.enroll(session, team, provider="server"))
        session.add_all(Sheet(id=key, user_id=key) for key in (ADA, BEN))
        session.flush()
        for kind in KINDS:
            for number in range(1, count + 1):
                owner, word = owner_of(number), f"word {number}"
                place = MOVED_PLACE if number in MOVED else 0
                session.add(kind.model(id=number, user_id=owner, place=place, body=word, later=word))
                if number < 3:
                    session.add(kind.other(id=number + 100, user_id=owner, body=f"word {number + 100}"))
        session.commit()
        for kind in KINDS:
            for number, (_, source) in MOVED.items():
                for column in ("body", "later"):
                    old = f"(SELECT {column} FROM {kind.table.name} WHERE id = {source})"
                    session.execute(
                        text(f"UPDATE {kind.table.name} SET {column} = {old} WHERE id = {number}")
                    )
        session.commit()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Engine]]:
    """The databases, and engines whose compiled statements serve all tests here."""
    engines = {}
    for count in (FEW, MANY):
        path = tmp_path_factory.mktemp("reading") / f"{count}.db"
        engines[count] = create_engine(f"sqlite:///{path}", query_cache_size=2000)
        enforce_foreign_keys(engines[count])
        make(engines[count], count)
    yield engines
    for engine in engines.values():
        engine.dispose()


def expected(way: Way, kind: Kind, mode: str, number: int) -> str:
    """What the table says of a row."""
    owner, source = owner_of(number), MOVED.get(number, (0, number))[1]
    of_key = TEAM if number == TEAM else owner_of(source)
    open_ = {"nobody": (), "one": (ADA,), "several": (ADA, BEN), "server": (ADA, BEN, TEAM)}[mode]
    if of_key not in open_:
        return SEALED
    category = GENUINE if number not in MOVED else FROM_A_ROW if owner == of_key else FROM_AN_OWNER
    return way.outcome(kind).of(mode)[category]


def seen(read: Callable[[], Any], mode: str, number: int) -> str:
    """What a reader gets; in words that are in no table, what nobody may get."""
    try:
        found = read()
    except LockedError:
        return SEALED
    except DecryptionError:
        found = REFUSED
    if isinstance(found, Sealed):
        found = REFUSED if found.why is not None else SEALED
    if found == REFUSED and number not in MOVED:
        return "a false alarm"
    if found in (REFUSED, SEALED):
        return str(found)
    source = MOVED.get(number, (0, number))[1]
    if found != f"word {source}":
        return f"what is in no row: {found!r}"
    if owner_of(source) == owner_of(number):
        return VALUE
    return OWN if mode == "one" else "a foreign value"


def compare(way: Way, kind: Kind, mode: str, reads: Iterable[Read]) -> Iterator[tuple[Any, ...]]:
    """The rows that are not read as the table says."""
    for number, read in reads:
        wanted, got = expected(way, kind, mode, number), seen(read, mode, number)
        if wanted != got:
            yield way.name, kind.name, number, "expected:", wanted, "got:", got


def unlock(session: Session, mode: str, stack: ExitStack) -> None:
    """Open what can be read in a mode."""
    session.info["writers"] = {"nobody": [], "one": [ADA]}.get(mode, [ADA, BEN])
    if mode == "server":
        stack.enter_context(envelope.server_mode(session, reason="test"))
    else:
        for key in session.info["writers"]:
            stack.enter_context(envelope.unlock(session, session.get_one(User, key), secret=f"s{key}"))


ON_SQLITE = [way for name in ("Objects", "Columns", "RETURNING", "A Core connection") for way in WAYS[name]]
PAST_A_TRIGGER = WAYS["PostgreSQL"][-1]
ON_POSTGRES = [*WAYS["PostgreSQL"], OBJECTS[0], COLUMNS[0], *RETURNED[:4], *RETURNED[5:]]
BUFFERED = next(way for way in ASYNC if way.name == "`AsyncConnection.execute`")
IN_SESSIONS = [way for way in ASYNC if way is not BUFFERED]
NOT_AWAITED = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine"
)
"""Of what a statement that was sent in the wrong place leaves behind."""
MODES = ("one", "several", "server", "nobody")


def read_all(engine: Engine, mode: str, ways: Iterable[Way], kinds: Iterable[Kind] = KINDS) -> list[Any]:
    """What is not read as the table says, in one session."""
    wrong: list[Any] = []
    with Session(engine) as session, ExitStack() as stack:
        unlock(session, mode, stack)
        for way, kind in product(ways, kinds):
            if mode == "one" and kind is LINKED and way.name in LATE:
                continue  # `test_a_value_that_is_loaded_by_itself`
            session.expunge_all()
            try:
                reads = list(way.read(session, kind))
                wrong += compare(way, kind, mode, reads)
                if mode == "several" and way.outcome(kind) is not ADDED and way is not PAST_A_TRIGGER:
                    wrong += [(way.name, "row not read", one) for one in OWNERS if one not in dict(reads)]
            except Exception as error:  # noqa: BLE001 - the other ways are compared as well
                wrong.append((way.name, kind.name, error))
            session.rollback()
    return wrong


async def read_all_async(
    url: URL, mode: str, ways: Iterable[AsyncWay], kinds: Iterable[Kind] = KINDS
) -> list[Any]:
    """The same in an `AsyncSession`."""
    wrong: list[Any] = []
    engine = create_async_engine(url)
    if url.get_backend_name() == "sqlite":
        enforce_foreign_keys(engine.sync_engine)
    try:
        with ExitStack() as stack:
            async with AsyncSession(engine) as session:
                await session.run_sync(unlock, mode, stack)
                for way, kind in product(ways, kinds):
                    session.expunge_all()
                    try:
                        wrong += compare(way, kind, mode, await way.read(session, kind))
                    except (MissingGreenlet, StatementError) as error:
                        wrong.append((way.name, kind.name, str(error)))
                await session.run_sync(lambda _: stack.close())
    finally:
        await engine.dispose()
    return wrong


@pytest.mark.parametrize(("count", "mode"), [*product([FEW], MODES), *product([MANY], MODES[:3])])
def test_the_table(made: dict[int, Engine], mode: str, count: int) -> None:
    """Every way of reading gives what the table says: no value of another owner, and no false alarm."""
    assert read_all(made[count], mode, ON_SQLITE, KINDS if count == FEW else (COLUMN, ROW)) == []


@pytest.mark.parametrize("mode", MODES)
async def test_asyncio(made: dict[int, Engine], mode: str) -> None:
    """So it does through an asyncio driver."""
    url = made[FEW].url.set(drivername="sqlite+aiosqlite")

    assert await read_all_async(url, mode, ASYNC, (COLUMN, ROW)) == []
    assert await read_all_async(url, mode, IN_SESSIONS, [LINKED]) == []


@pytest.mark.backend
async def test_on_postgresql(postgres_engine: Engine) -> None:
    """So it does through psycopg and asyncpg, by server-side cursors, and where a trigger has moved a value
    into a row that is returned."""
    make(postgres_engine, MANY)
    url = postgres_engine.url.set(drivername="postgresql+asyncpg")

    for mode in MODES:
        assert read_all(postgres_engine, mode, ON_POSTGRES) == []
        assert await read_all_async(url, mode, ASYNC, (COLUMN, ROW)) == []


@pytest.mark.parametrize("mode", ["several", "server"])
def test_what_was_loaded_before(made: dict[int, Engine], mode: str) -> None:
    """So it does for rows that the session had loaded while nobody was unlocked: an object that waits for its
    key is not taken for one that was moved."""
    wrong: list[Any] = []
    for way in (*OBJECTS, *COLUMNS[::3], *RETURNED[4:]):
        with Session(made[FEW]) as session, ExitStack() as stack:
            held = session.scalars(select(COLUMN.model)).all()
            unlock(session, mode, stack)
            wrong += compare(way, COLUMN, mode, way.read(session, COLUMN))
            held.clear()  # they stay in the session until here

    assert wrong == []


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_label_in_a_subquery(made: dict[int, Engine], kind: Kind) -> None:
    """The value is compared with the owner beside it, as without the label."""
    with Session(made[FEW]) as session, ExitStack() as stack:
        unlock(session, "several", stack)

        assert list(compare(TRACED_TWICE, kind, "several", TRACED_TWICE.read(session, kind))) == []


@pytest.mark.parametrize("way", [one for one in OBJECTS if one.name in LATE], ids=lambda way: way.name)
def test_a_value_that_is_loaded_by_itself(made: dict[int, Engine], way: Way) -> None:
    """Where other rows lead to the owner, it is compared as one that is loaded with its object."""
    with Session(made[FEW]) as session, ExitStack() as stack:
        unlock(session, "one", stack)

        assert list(compare(way, LINKED, "one", way.read(session, LINKED))) == []


@NOT_AWAITED
@pytest.mark.parametrize(("mode", "kind"), [("server", COLUMN), ("several", LINKED)])
async def test_an_async_connection_of_a_session(made: dict[int, Engine], mode: str, kind: Kind) -> None:
    """`(await session.connection()).execute(...)` gives what `session.execute` gives."""
    url = made[FEW].url.set(drivername="sqlite+aiosqlite")
    wrong = await read_all_async(url, mode, [BUFFERED], [kind])
    gc.collect()

    assert wrong == []


@NOT_AWAITED
async def test_a_touch_under_asyncio(made: dict[int, Engine]) -> None:
    """An object that was loaded before the unlock opens, or says in an error of this library what to do."""
    engine = create_async_engine(made[FEW].url.set(drivername="sqlite+aiosqlite"))
    enforce_foreign_keys(engine.sync_engine)
    with ExitStack() as stack:
        async with AsyncSession(engine) as session:
            line = await session.get_one(LINKED.model, 1)
            await session.run_sync(unlock, "several", stack)
            try:
                found = seen(lambda: line.body, "several", 1)
            except (MissingGreenlet, StatementError) as error:
                found = type(error).__name__
            await session.run_sync(lambda _: stack.close())
    await engine.dispose()
    gc.collect()

    assert found in (VALUE, SEALED)


async def test_a_second_unlock_under_asyncio(made: dict[int, Engine]) -> None:
    """A value that was read and closed, and whose owner other rows lead to, is not read by an attribute: the
    error says what to load, and that opens it."""
    engine = create_async_engine(made[FEW].url.set(drivername="sqlite+aiosqlite"))
    enforce_foreign_keys(engine.sync_engine)
    async with AsyncSession(engine) as session:
        with ExitStack() as stack:
            await session.run_sync(unlock, "one", stack)
            line = await session.get_one(LINKED.model, 1)
            first = line.body
        with ExitStack() as stack:
            await session.run_sync(unlock, "one", stack)
            with pytest.raises(LockedError, match="selectinload") as caught:
                line.body  # noqa: B018 - reading it is what raises
            await session.refresh(line, [*re.findall(r"'(\w+)'", str(caught.value))])
            second = line.body
    await engine.dispose()

    assert first == second


BY_COLUMN = {
    "row": lambda found: found.one()._mapping[Note.body],
    "mappings": lambda found: found.mappings().one()[Note.body],
    "columns": lambda found: found.columns(Note.body).scalar_one(),
    "scalars": lambda found: found.scalars(Note.body).one(),
}


@pytest.mark.parametrize("mode", ["one", "several", "server"])
@pytest.mark.parametrize("form", BY_COLUMN)
def test_a_value_by_its_column(made: dict[int, Engine], mode: str, form: str) -> None:
    """A column is found in its row by the attribute that was selected, whoever is unlocked."""
    with Session(made[FEW]) as session, ExitStack() as stack:
        unlock(session, mode, stack)
        found = session.execute(select(Note.id, Note.body).where(Note.id == 1))

        assert BY_COLUMN[form](found) == "word 1"


def test_the_page() -> None:
    """docs/reference/reading.md is what `python -m tests.orm.reading.reading_table` prints: sixty ways."""
    page_ = Path(__file__).parents[3] / "docs" / "reference" / "reading.md"

    assert page() == page_.read_text()
    assert sum(map(len, WAYS.values())) > 60
