"""One place of reading: what RETURNING, leaving, late unlocks and decorators make of a value. Every way of
reading is gone through in `test_reading_table.py`."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import String, create_engine, insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, with_expression

from sqlalchemy_envelope import (
    AsyncEnvelope,
    DecryptionError,
    EncryptedType,
    LockedError,
    Sealed,
    enforce_foreign_keys,
)
from sqlalchemy_envelope.crypto.aead import Batch
from sqlalchemy_envelope.orm.sessions.unlocked import UnlockedSession
from tests.orm.reading.reading_models import Base, Note, Page, User, envelope

pytestmark = pytest.mark.both_lines

NOTES = Note.__table__


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of a database for secrets and of one for a server; in each, genuine rows."""
    files = {}
    for kind in ("secrets", "server"):
        path = tmp_path_factory.mktemp("reading") / f"{kind}.db"
        engine = create_engine(f"sqlite:///{path}")
        enforce_foreign_keys(engine)
        Base.metadata.create_all(engine)
        with Session(engine) as session, ExitStack() as stack:
            users = [User(id=1), User(id=2)]
            if kind == "server":
                stack.enter_context(envelope.server_mode(session, reason="test"))
                session.add_all(users)
                session.flush()
            else:
                for user in users:
                    stack.enter_context(envelope.enroll(session, user, secret=f"s{user.id}"))
            for key in (1, 2):
                word = f"word {key}"
                session.add(Note(id=key, user_id=key, body=word, later=word))
                session.add(Page(id=key, user_id=key, body=word))
            session.commit()
        engine.dispose()
        files[kind] = Path(path).read_bytes()
    return files


@pytest.fixture
def opened(
    request: pytest.FixtureRequest, made: dict[str, bytes], tmp_path: Path
) -> Iterator[tuple[str, Session]]:
    """A session in which nobody, one owner, both or a server can read."""
    mode: str = request.param
    path = tmp_path / "test.db"
    path.write_bytes(made["server" if mode == "server" else "secrets"])
    engine = create_engine(f"sqlite:///{path}")
    enforce_foreign_keys(engine)
    with Session(engine) as session, ExitStack() as stack:
        if mode == "server":
            stack.enter_context(envelope.server_mode(session, reason="test"))
        for key in {"one": (1,), "both": (1, 2)}.get(mode, ()):
            stack.enter_context(envelope.unlock(session, session.get_one(User, key), secret=f"s{key}"))
        yield mode, session
    engine.dispose()


def verdict(read: Callable[[], Any]) -> str:
    """What a reader gets: a value, or the word for what there is instead."""
    try:
        found = read()
    except LockedError:
        return "sealed"
    except DecryptionError:
        return "refused"
    if isinstance(found, Sealed):
        return "refused" if found.why is not None else "sealed"
    assert found is None or isinstance(found, str)
    return str(found)


# RETURNING of many rows


@pytest.mark.parametrize("opened", ["both", "server"], indirect=True)
@pytest.mark.parametrize("many", [2, 5])
def test_many_rows_that_an_insert_returns(opened: tuple[str, Session], many: int) -> None:
    """The first statement of a process may be an INSERT of many rows that returns them; each row is opened
    for its owner, as an object, as columns, and in the order of its parameters."""
    _, session = opened
    rows = [{"user_id": 1 + number % 2, "body": f"text {number}"} for number in range(many)]

    made = session.scalars(insert(Note).returning(Note, sort_by_parameter_order=True), rows).all()
    again = session.execute(insert(Note).returning(Note.user_id, Note.body), rows).all()
    core = session.connection().execute(insert(NOTES).returning(NOTES.c.user_id, NOTES.c.body), rows).all()

    assert [tuple(row.values()) for row in rows] == [(note.user_id, note.body) for note in made]
    assert (
        sorted(tuple(row.values()) for row in rows) == sorted(map(tuple, again)) == sorted(map(tuple, core))
    )


@pytest.mark.parametrize("opened", ["both"], indirect=True)
def test_a_moved_value_that_an_insert_returns(opened: tuple[str, Session]) -> None:
    """What a trigger puts into the rows that are returned is compared with their owners too."""
    _, session = opened
    session.execute(
        text(
            "CREATE TRIGGER swap AFTER INSERT ON notes WHEN NEW.user_id = 2 BEGIN UPDATE notes SET body ="
            " (SELECT body FROM notes WHERE id = 1) WHERE id = NEW.id; END"
        )
    )
    rows = [{"user_id": 2, "body": "mine"}, {"user_id": 2, "body": "mine"}]
    ids = [note.id for note in session.scalars(insert(Note).returning(Note), rows)]
    session.expire_all()

    assert [verdict(lambda n=n: session.get_one(Note, n).body) for n in ids] == ["refused", "refused"]


# Leaving


@pytest.mark.parametrize("opened", ["nobody"], indirect=True)
def test_what_is_left_of_expressions_and_dictionaries(opened: tuple[str, Session]) -> None:
    """After leaving, nothing that a Session holds shows what came out of an encrypted column, by an
    expression or as the key of a dictionary; a dictionary with other keys stays."""
    _, session = opened
    user = session.get_one(User, 1)
    body = select(Note.body).where(Note.user_id == User.id).limit(1).scalar_subquery()
    with envelope.unlock(session, user, secret="s1"):
        query = select(User).where(User.id == 1).options(with_expression(User.chosen, body))
        session.scalars(query.execution_options(populate_existing=True)).one()
        seen = (user.latest, user.chosen, list(user.by_body), list(user.by_id), user.notes[0].body)  # type: ignore[attr-defined]
        assert seen == ("word 1", "word 1", ["word 1"], [1], "word 1")
        held = user.by_id

    assert "word 1" not in repr([one.__dict__ for one in session.identity_map.values()])
    assert "by_body" not in sa.inspect(user).dict
    assert held is user.by_id
    assert [verdict(lambda: user.latest), verdict(lambda: user.chosen)] == ["sealed", "None"]  # type: ignore[attr-defined]
    with pytest.raises(LockedError):
        _ = user.notes[0].body


@pytest.mark.parametrize("opened", ["nobody"], indirect=True)
@pytest.mark.parametrize("model", [Note, Page])
def test_a_second_unlock_sends_no_sql_for_what_was_read(opened: tuple[str, Session], model: Any) -> None:
    """What was open waits for its key as what never was: bytes that the next unlock opens in their row."""
    _, session = opened
    user = session.get_one(User, 1)
    with envelope.unlock(session, user, secret="s1"):
        one = session.get_one(model, 1)
        assert one.body == "word 1"
    with pytest.raises(LockedError):
        _ = one.body
    sent: list[str] = []
    with envelope.unlock(session, user, secret="s1"):
        sa.event.listen(session.get_bind(), "before_cursor_execute", lambda *of: sent.append(of[2]))

        assert one.body == "word 1"
        assert not session.is_modified(one)
        session.flush()
    assert sent == []


@pytest.mark.parametrize("opened", ["nobody"], indirect=True)
def test_a_row_that_was_moved_while_its_value_waited(opened: tuple[str, Session]) -> None:
    """A value that waits since its owner was left opens for that owner alone."""
    _, session = opened
    user = session.get_one(User, 1)
    with envelope.unlock(session, user, secret="s1"):
        note = session.get_one(Note, 1)
        assert note.body == "word 1"
    with envelope.unlock(session, session.get_one(User, 2), secret="s2"):
        session.execute(text("UPDATE notes SET user_id = 2 WHERE id = 1"))
        session.refresh(note, ["user_id"])

        assert verdict(lambda: note.body) == "sealed"
        with envelope.unlock(session, user, secret="s1"):
            assert verdict(lambda: note.body) == "refused"


@pytest.mark.parametrize("opened", ["nobody"], indirect=True)
@pytest.mark.parametrize("where", ["encrypt", "expire"])
def test_leaving_is_finished_when_it_is_interrupted(
    opened: tuple[str, Session], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A `KeyboardInterrupt` in the middle of leaving, while values are encrypted or when one is closed,
    goes on to the caller, and leaves no value."""
    _, session = opened
    notes = session.scalars(select(Note).where(Note.user_id == 1)).all()
    pages = session.scalars(select(Page).where(Page.user_id == 1)).all()

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    unlocked = envelope.unlock(session, session.get_one(User, 1), secret="s1")
    unlocked.__enter__()
    seen = [one.body for one in (*notes, *pages)]
    if where == "expire":
        sa.event.listen(Note, "expire", interrupt, once=True)
    else:
        monkeypatch.setattr(Batch, "encrypt_column", interrupt)
    with pytest.raises(KeyboardInterrupt):
        unlocked.__exit__(None, None, None)

    assert seen == ["word 1", "word 1"]
    assert "word 1" not in repr([one.__dict__ for one in session.identity_map.values()])


@pytest.mark.parametrize("opened", ["nobody"], indirect=True)
@pytest.mark.parametrize("model", [Note, Page])
def test_many_objects_are_closed_together(
    opened: tuple[str, Session], monkeypatch: pytest.MonkeyPatch, model: Any
) -> None:
    """However many objects of an owner are closed, their key is looked up once for hundreds of them and each
    value is encrypted once; an application's listener hears of each; the next unlock opens them all."""
    _, session = opened
    user, heard, asked, sealed = session.get_one(User, 1), [], [], []
    writer, encrypt = UnlockedSession._cipher, Batch.encrypt_column
    monkeypatch.setattr(UnlockedSession, "_cipher", lambda *of: asked.append(of) or writer(*of))
    monkeypatch.setattr(Batch, "encrypt_column", lambda *of: sealed.extend(of[1]) or encrypt(*of))
    with envelope.unlock(session, user, secret="s1"):
        rows = [{"id": n, "user_id": 1, "body": f"text {n}"} for n in range(2000, 2300)]
        session.execute(insert(model), rows)
        held = session.scalars(select(model).where(model.id >= 2000)).all()
        sealed.clear()
        hears = lambda one, keys: heard.append((one.id, *keys))  # noqa: E731 - an event's listener
        sa.event.listen(model, "expire", hears)
    sa.event.remove(model, "expire", hears)

    assert 300 == len(sealed) == len(set(sealed)) == len(heard)
    assert len(asked) <= 4
    assert {"body"} == {key for _, key in heard}
    with envelope.unlock(session, user, secret="s1"):
        assert [row["body"] for row in rows] == [one.body for one in held]


def test_a_second_unlock_under_asyncio(made: dict[str, bytes], tmp_path: Path) -> None:
    """Touching what an earlier unlock had read needs no SQL, and so no greenlet."""
    (tmp_path / "test.db").write_bytes(made["secrets"])

    async def main() -> list[str]:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'test.db'}")
        enforce_foreign_keys(engine)
        both = AsyncEnvelope(envelope)
        async with AsyncSession(engine, expire_on_commit=False) as session:
            user = await session.get_one(User, 1)
            note, page = await session.get_one(Note, 1), await session.get_one(Page, 1)
            seen = []
            for _ in range(3):
                async with both.unlock(session, user, secret="s1"):
                    seen += [note.body, page.body]
                seen.append(verdict(lambda: note.body))
        await engine.dispose()
        return seen

    assert asyncio.run(main()) == ["word 1", "word 1", "sealed"] * 3


@pytest.mark.parametrize("opened", ["nobody"], indirect=True)
def test_a_result_that_is_read_after_leaving(opened: tuple[str, Session]) -> None:
    """Rows are opened when they are fetched, for whoever is unlocked then."""
    _, session = opened
    with Session(session.get_bind()) as other:
        with envelope.unlock(other, other.get_one(User, 1), secret="s1") as unlocked:
            found = other.execute(select(Note.id, Note.body, Note.user_id).where(Note.user_id == 1))
            unlocked.lock()

        assert [Sealed] == [type(row.body) for row in found]


class Shouting(sa.TypeDecorator[str]):
    """An application's decorator around ours."""

    impl = EncryptedType
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return value if value is None or isinstance(value, Sealed) else value.upper()


@pytest.mark.parametrize("opened", ["one", "both"], indirect=True)
def test_a_decorator_around_the_type(opened: tuple[str, Session]) -> None:
    """What it is given is what was opened, where that can only be the owner's who is unlocked."""
    mode, session = opened
    typed = text("SELECT body FROM notes WHERE id = 1").columns(body=Shouting(String, label="notes.body"))
    (found,) = session.execute(typed).scalars()

    assert (found == "WORD 1") if mode == "one" else isinstance(found, Sealed)
