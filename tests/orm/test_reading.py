"""One place of reading: whatever way a value is read, it is of its row's owner, sealed, or refused."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import ForeignKey, String, create_engine, func, insert, select, text, union_all, update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    attribute_keyed_dict,
    column_property,
    defer,
    deferred,
    joinedload,
    load_only,
    mapped_column,
    query_expression,
    relationship,
    selectinload,
    subqueryload,
    undefer,
    with_expression,
)

from sqlalchemy_envelope import (
    AsyncEnvelope,
    DecryptionError,
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyOwner,
    LockedError,
    Sealed,
    ServerKeyring,
    enforce_foreign_keys,
)
from sqlalchemy_envelope.crypto.aead import Batch
from sqlalchemy_envelope.orm.sessions.unlocked import UnlockedSession

envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([bytes(32)]))


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    notes: Mapped[list["Note"]] = relationship(back_populates="user", order_by="Note.id")
    by_body: Mapped[dict[str, "Note"]] = relationship(
        collection_class=attribute_keyed_dict("body"), viewonly=True
    )
    by_id: Mapped[dict[int, "Note"]] = relationship(
        collection_class=attribute_keyed_dict("id"), viewonly=True
    )
    chosen: Mapped[str | None] = query_expression()


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    user: Mapped[User] = relationship(back_populates="notes")
    body: Mapped[str] = mapped_column(EncryptedType(String))
    later: Mapped[str | None] = deferred(mapped_column(EncryptedType(String)))


class Page(Base):
    __tablename__ = "pages"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    body: Mapped[str] = mapped_column(EncryptedType(String, bind="row"))


class Memo(Base):
    __tablename__ = "memos"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    body: Mapped[str] = mapped_column(EncryptedType(String, label="notes.body"))


class Team(KeyOwner, Base):
    __tablename__ = "teams"
    id: Mapped[int] = mapped_column(primary_key=True)
    motto: Mapped[str] = mapped_column(EncryptedType(String, label="notes.body"))


User.latest = column_property(  # type: ignore[attr-defined]
    select(Note.body).where(Note.user_id == User.id).limit(1).correlate_except(Note).scalar_subquery(),
    deferred=True,
)

NOTES: Any = Note.__table__
PAGES: Any = Page.__table__
Read = tuple[int, Callable[[], Any]]


def _rows(found: Any) -> list[Read]:
    return [(row[0], lambda row=row: row[1]) for row in found]


def _objects(found: Any, key: str = "body") -> list[Read]:
    return [(one.id, lambda one=one: getattr(one, key)) for one in found]


def _execute(make: Callable[[], Any]) -> Callable[[Session], list[Read]]:
    return lambda session: _rows(session.execute(make()).all())


def _core(make: Callable[[], Any]) -> Callable[[Session], list[Read]]:
    return lambda session: _rows(session.connection().execute(make()).all())


def _load(make: Callable[[], Any], key: str = "body") -> Callable[[Session], list[Read]]:
    return lambda session: _objects(session.scalars(make()).unique().all(), key)


def _pairs(session: Session) -> list[Read]:
    one, other = aliased(Note), aliased(Note)
    found = session.execute(select(one, other).join(other, one.user_id != other.user_id)).all()
    return [read for row in found for read in _objects(row)]


def _pair_columns(session: Session) -> list[Read]:
    one, other = aliased(Note), aliased(Note)
    pairs = select(one.id, one.body, other.id, other.body, one.user_id, other.user_id).join(
        other, one.user_id != other.user_id
    )
    return [read for row in session.execute(pairs) for read in (*_rows([row[:2]]), *_rows([row[2:4]]))]


def _crossed(session: Session) -> list[Read]:
    """A subquery with the value of one note and the owner of another."""
    one, other = aliased(Note), aliased(Note)
    inner = select(one.id, one.body, other.user_id).join(other, one.user_id != other.user_id).subquery()
    return _rows(session.execute(select(inner.c.id, inner.c.body, inner.c.user_id)).all())


def _refreshed(session: Session) -> list[Read]:
    found = session.scalars(select(Note)).all()
    for one in found:
        session.refresh(one, ["body"])
    return _objects(found)


def _expired(session: Session) -> list[Read]:
    found = session.scalars(select(Note)).all()
    session.expire_all()
    return _objects(found)


def _frozen(session: Session) -> list[Read]:
    frozen = session.execute(select(Note.id, Note.body, Note.user_id)).freeze()
    return _rows(frozen().all())


def _again(session: Session) -> list[Read]:
    session.scalars(select(Note)).all()
    return _objects(session.scalars(select(Note)).all())


def _updated(session: Session) -> list[Read]:
    return _rows(session.execute(update(Note).values(id=Note.id).returning(Note.id, Note.body, Note.user_id)))


def _deleted(session: Session) -> list[Read]:
    return _rows(session.execute(sa.delete(Note).returning(Note.id, Note.body, Note.user_id)).all())


def _query(session: Session) -> list[Read]:
    return _rows(session.query(Note.id, Note.body, Note.user_id).all())


def _chosen(session: Session) -> list[Read]:
    body = select(Note.body).where(Note.user_id == User.id).limit(1).scalar_subquery()
    found = session.scalars(select(User).options(with_expression(User.chosen, body)))
    return _objects(found.all(), "chosen")


def _partitions(session: Session) -> list[Read]:
    found = session.execute(select(Note.id, Note.body, Note.user_id).execution_options(yield_per=1))
    return [read for part in found.partitions() for read in _rows(part)]


def _numbered() -> Any:
    return func.row_number().over(order_by=Note.id)


_SUB = select(Note.id, Note.body, Note.user_id)
_STYLED = (
    "SELECT id AS notes_id, body AS notes_body, user_id AS notes_user_id, NULL AS notes_later FROM notes"
)

WAYS: dict[str, Callable[[Session], list[Read]]] = {
    "entity": _load(lambda: select(Note)),
    "alias": _load(lambda: select(aliased(Note))),
    "two of one table": _pairs,
    "columns of two of one table": _pair_columns,
    "joined eager": lambda session: _objects(
        note
        for user in session.scalars(select(User).options(joinedload(User.notes))).unique()
        for note in user.notes
    ),
    "select-in eager": lambda session: _objects(
        note
        for user in session.scalars(select(User).options(selectinload(User.notes)))
        for note in user.notes
    ),
    "subquery eager": lambda session: _objects(
        note
        for user in session.scalars(select(User).options(subqueryload(User.notes)))
        for note in user.notes
    ),
    "lazy": lambda session: _objects(note for user in session.scalars(select(User)) for note in user.notes),
    "get": lambda session: _objects(session.get_one(Note, key) for key in (1, 2)),
    "again": _again,
    "deferred": _load(lambda: select(Note).options(defer(Note.body))),
    "deferred column": _load(lambda: select(Note), "later"),
    "undeferred": _load(lambda: select(Note).options(undefer(Note.later)), "later"),
    "load only the value": _load(lambda: select(Note).options(load_only(Note.body))),
    "load only another": _load(lambda: select(Note).options(load_only(Note.user_id))),
    "refresh": _refreshed,
    "expire and touch": _expired,
    "entity of a subquery": _load(lambda: select(aliased(Note, select(Note).subquery()))),
    "entity of a union": _load(
        lambda: select(aliased(Note, union_all(select(Note), select(Note).where(sa.false())).subquery()))
    ),
    "columns with the owner": _execute(lambda: select(Note.id, Note.body, Note.user_id)),
    "columns without it": _execute(lambda: select(Note.id, Note.body)),
    "distinct without it": _execute(lambda: select(Note.id, Note.body).distinct()),
    "labelled": _execute(lambda: select(Note.id, Note.body.label("x"), Note.user_id.label("y"))),
    "labelled without it": _execute(lambda: select(Note.id, Note.body.label("x"))),
    "entity beside": lambda session: [
        (row[0].id, lambda row=row: row[1]) for row in session.execute(select(Note, Note.body))
    ],
    "subquery": lambda session: _rows(
        session.execute(select((s := _SUB.subquery()).c.id, s.c.body, s.c.user_id)).all()
    ),
    "subquery without it": lambda session: _rows(
        session.execute(select((s := _SUB.subquery()).c.id, s.c.body)).all()
    ),
    "crossed subquery": _crossed,
    "cte": lambda session: _rows(
        session.execute(select((s := _SUB.cte()).c.id, s.c.body, s.c.user_id)).all()
    ),
    "union": _execute(lambda: union_all(_SUB, _SUB.where(sa.false()))),
    "union in a subquery": lambda session: _rows(
        session.execute(
            select((s := union_all(_SUB, _SUB.where(sa.false())).subquery()).c.id, s.c.body, s.c.user_id)
        ).all()
    ),
    "union of two tables": _execute(lambda: union_all(_SUB, select(Memo.id + 100, Memo.body, Memo.user_id))),
    "union of two classes of owners": _execute(
        lambda: union_all(_SUB, select(Team.id + 300, Team.motto, Team.id))
    ),
    "window": _execute(lambda: select(Note.id, Note.body, Note.user_id, _numbered())),
    "scalar subquery": _execute(
        lambda: select(
            (one := aliased(Note)).id,
            select(Note.body).where(Note.id == one.id).scalar_subquery(),
            one.user_id,
        )
    ),
    "column_property": _load(lambda: select(User), "latest"),
    "query_expression": _chosen,
    "text for entities": _load(lambda: select(Note).from_statement(text("SELECT * FROM notes"))),
    "text in label style": _load(lambda: select(Note).from_statement(text(_STYLED))),
    "text with columns": _execute(
        lambda: text("SELECT id, body, user_id FROM notes").columns(Note.id, Note.body, Note.user_id)
    ),
    "text with types": _execute(
        lambda: text("SELECT id, body, user_id FROM notes").columns(body=NOTES.c.body.type)
    ),
    "update returning": _updated,
    "delete returning": _deleted,
    "yield_per": _execute(lambda: select(Note.id, Note.body, Note.user_id).execution_options(yield_per=1)),
    "entities by yield_per": lambda session: _objects(
        session.scalars(select(Note).execution_options(yield_per=1)).all()
    ),
    "stream_results": _execute(
        lambda: select(Note.id, Note.body, Note.user_id).execution_options(stream_results=True)
    ),
    "partitions": _partitions,
    "freeze": _frozen,
    "query": _query,
    "core": _core(lambda: select(NOTES.c.id, NOTES.c.body, NOTES.c.user_id)),
    "core without the owner": _core(lambda: select(NOTES.c.id, NOTES.c.body)),
    "core alias": lambda session: _rows(
        session.connection().execute(select((n := NOTES.alias()).c.id, n.c.body, n.c.user_id)).all()
    ),
    "bound to the row": _load(lambda: select(Page)),
    "bound, columns": _execute(lambda: select(Page.id, Page.body, Page.user_id)),
    "bound, without its owner": _execute(lambda: select(Page.id, Page.body)),
    "bound, without its key": _execute(lambda: select(Page.user_id, Page.body)),
    "bound, core": _core(lambda: select(PAGES.c.id, PAGES.c.body, PAGES.c.user_id)),
    "bound, subquery": lambda session: _rows(
        session.execute(select((s := select(Page).subquery()).c.id, s.c.body, s.c.user_id)).all()
    ),
}
UNPLACED = {
    "distinct without it",
    "subquery without it",
    "crossed subquery",
    "scalar subquery",
    "column_property",
    "query_expression",
    "text with types",
    "core without the owner",
    "columns without it",
    "labelled without it",
    "bound, without its owner",
    "union of two classes of owners",
}
"""Where the row does not say whose it is: opened for the only one who is unlocked, and for nobody else."""
ALONE = {"bound, without its key", "union of two classes of owners"}
"""What is sealed whatever is unlocked, or whose row nobody can tell."""
MODES = ("one", "both", "server", "nobody", "loaded before", "server, loaded before")


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
                session.add(Memo(id=key, user_id=key, body=word))
            session.commit()
        engine.dispose()
        files[kind] = Path(path).read_bytes()
    return files


@pytest.fixture(params=[False, True], ids=["genuine", "moved"])
def moved(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=MODES)
def opened(
    request: pytest.FixtureRequest, made: dict[str, bytes], moved: bool, tmp_path: Path
) -> Iterator[tuple[str, Session]]:
    """A session in which nobody, one owner, both or a server can read; with the values of the second owner's
    rows exchanged for the first one's, if they are moved."""
    mode: str = request.param
    path = tmp_path / "test.db"
    path.write_bytes(made["server" if "server" in mode else "secrets"])
    engine = create_engine(f"sqlite:///{path}")
    enforce_foreign_keys(engine)
    if moved:
        with engine.begin() as connection:
            for table, column in (("notes", "body"), ("notes", "later"), ("pages", "body")):
                connection.execute(
                    text(f"UPDATE {table} SET {column} = (SELECT {column} FROM {table} WHERE id = 1)")
                )
    with Session(engine) as session, ExitStack() as stack:
        held = session.scalars(select(Note)).all() if "loaded before" in mode else []
        if "server" in mode:
            stack.enter_context(envelope.server_mode(session, reason="test"))
        elif mode != "nobody":
            for key in (1, 2) if mode != "one" else (1,):
                stack.enter_context(envelope.unlock(session, session.get_one(User, key), secret=f"s{key}"))
        yield mode, session
        held.clear()
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


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_reading(opened: tuple[str, Session], moved: bool, way: str) -> None:
    """No way of reading gives a value of one owner in a row of another where anybody else's could be read,
    and none calls a genuine value moved."""
    mode, session = opened
    several = mode not in ("one", "nobody")
    for key, read in WAYS[way](session):
        number = key % 100
        seen, genuine = verdict(read), not moved or number == 1 or key >= 100
        if mode == "nobody" or (mode == "one" and number == 2 and genuine):
            expected = {"sealed"}
        elif genuine:
            expected = {f"word {number}"}
            if several and way in UNPLACED:
                expected.add("sealed")
        elif several:
            expected = {"refused", "sealed"}
        else:
            # It opens under the only key that is here, in a row that does not say whose it is.
            expected = {"refused", *(["word 1"] if way in UNPLACED else [])}
        if way in ALONE or key >= 100:
            expected |= {"sealed", "None"}

        assert seen in expected, (mode, key)


# RETURNING of many rows


@pytest.mark.parametrize("opened", ["both", "server"], indirect=True)
@pytest.mark.parametrize("moved", [False], indirect=True)
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
@pytest.mark.parametrize("moved", [False], indirect=True)
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
@pytest.mark.parametrize("moved", [False], indirect=True)
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
@pytest.mark.parametrize("moved", [False], indirect=True)
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
@pytest.mark.parametrize("moved", [False], indirect=True)
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
@pytest.mark.parametrize("moved", [False], indirect=True)
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
@pytest.mark.parametrize("moved", [False], indirect=True)
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
@pytest.mark.parametrize("moved", [False], indirect=True)
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
@pytest.mark.parametrize("moved", [False], indirect=True)
def test_a_decorator_around_the_type(opened: tuple[str, Session]) -> None:
    """What it is given is what was opened, where that can only be the owner's who is unlocked."""
    mode, session = opened
    typed = text("SELECT body FROM notes WHERE id = 1").columns(body=Shouting(String, label="notes.body"))
    (found,) = session.execute(typed).scalars()

    assert (found == "WORD 1") if mode == "one" else isinstance(found, Sealed)
