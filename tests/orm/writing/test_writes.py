"""Every way to write an encrypted column stores it under the key of its row's owner, or is refused before
anything is sent: nothing is ever stored in the clear, and nothing under a key that cannot open it again."""

import uuid
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import (
    Column,
    Engine,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    String,
    Table,
    Text,
    Uuid,
    bindparam,
    delete,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    make_transient,
    mapped_column,
    registry,
    relationship,
    scoped_session,
    sessionmaker,
)

from sqlalchemy_envelope import (
    DecryptionError,
    EncryptedType,
    EnvelopeError,
    KeyOwner,
    LockedError,
    NotEnrolledError,
    StatementRefusedError,
    UnflushedError,
    ValueEncodingError,
)
from tests.orm.conftest import Started
from tests.orm.models import (
    SECRET,
    Base,
    Note,
    Page,
    User,
    envelope,
    new_user,
    statements_sent,
    stored,
    unlock,
)

pytestmark = pytest.mark.both_lines

NOTES: Any = Note.__table__
PAGES: Any = Page.__table__
BODY = NOTES.c.body
PLAIN = "p1aintext"


def opens_for(started: Started, owner: User, note_id: Any, model: Any = Note, name: str = "body") -> str:
    """What the stored value says to its owner alone, read in a session of its own."""
    with started.fresh() as session:
        alone = session.get_one(type(owner), inspect(owner).identity)
        with unlock(session, alone):
            value: str = getattr(session.get_one(model, note_id), name)
            return value


def both(started: Started) -> Any:
    """Ada's and Ben's keys, unlocked together."""
    return _Both(started)


class _Both:
    def __init__(self, started: Started) -> None:
        self._parts = [unlock(started.session, started.ada), unlock(started.session, started.ben)]

    def __enter__(self) -> Any:
        for part in self._parts:
            part.__enter__()
        return self._parts[1]

    def __exit__(self, *failure: Any) -> None:
        for part in reversed(self._parts):
            part.__exit__(*failure)


def everything(excluded: Any) -> dict[str, Any]:
    """An upsert's SET of the owner with every encrypted column: one left out would stay under the old
    owner's key."""
    return {name: excluded[name] for name in ("user_id", "body", "size", "tags", "extra")}


def upsert_for(engine: Engine) -> Any:
    """The dialect's own insert()."""
    return sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert


# Flushes


def test_one_flush_writes_for_many_owners(started: Started) -> None:
    """Each row of one flush is under the key of its own owner."""
    with both(started):
        notes = [
            Note(user=owner, body=f"{PLAIN} {n}") for n in range(3) for owner in (started.ada, started.ben)
        ]
        started.session.add_all(notes)
        started.session.commit()
        ids = [(note.id, note.user, f"{PLAIN} {n // 2}") for n, note in enumerate(notes)]

    assert [opens_for(started, owner, note_id) for note_id, owner, _ in ids] == [body for *_, body in ids]


def test_an_owner_enrolled_in_the_same_transaction(started: Started) -> None:
    """The owner's key comes from the relationship, before the foreign key is copied."""
    session = started.session
    eve = User(email="eve@example.org", phone="555")
    note = Note(user=eve, body=PLAIN)
    with envelope.enroll(session, eve, secret=SECRET):
        session.add(note)
        session.commit()
        note_id = note.id

    assert opens_for(started, eve, note_id) == PLAIN
    assert opens_for(started, eve, eve.id, User, "phone") == "555"


def test_rows_that_hang_on_a_new_owner_are_written_by_its_enrolment(lite: Started) -> None:
    """`enroll` flushes the owner; notes that hang on it by a relationship are written after its keys exist,
    or the enrolment is refused and leaves no row."""
    session = lite.session
    eve = User(email="eve@example.org")
    eve.notes.append(Note(body=PLAIN))
    with envelope.enroll(session, eve, secret=SECRET):
        session.commit()
        note_id = eve.notes[0].id

    assert opens_for(lite, eve, note_id) == PLAIN


def test_flush_updates_many_owners(started: Started) -> None:
    """An UPDATE that does not name the owner finds it in the object."""
    with both(started):
        a, b = Note(user=started.ada, body="old"), Note(user=started.ben, body="old")
        started.session.add_all([a, b])
        started.session.commit()
        a.body = b.body = PLAIN
        started.session.commit()
        a_id, b_id = a.id, b.id

    assert opens_for(started, started.ada, a_id) == opens_for(started, started.ben, b_id) == PLAIN


def test_update_with_the_owner_column_deferred(lite: Started) -> None:
    """An owner column that was not loaded is loaded before the statement."""
    with unlock(lite.session, lite.ada):
        note_id = _note(lite)
        note = lite.session.scalars(
            select(Note).options(sa.orm.load_only(Note.body)).where(Note.id == note_id)
        ).one()
        lite.session.expire(note, ["user_id"])
        note.body = PLAIN
        lite.session.commit()

    assert opens_for(lite, lite.ada, note_id) == PLAIN


def _note(started: Started, **values: Any) -> int:
    """A committed note of Ada's, who must be unlocked."""
    note = Note(**{"user_id": started.ada.id, "body": "before"} | values)
    started.session.add(note)
    started.session.commit()
    note_id = note.id
    started.session.expunge(note)
    return note_id


def test_nothing_is_stored_while_locked(started: Started) -> None:
    """A flush without the owner's key is refused before anything is written, and the session works on. All
    that is sent is the question whether the owner has keys, which the error tells."""
    new_user(started.session, "eve")  # PostgreSQL has said in which schema this connection works
    user_id = started.ada.id
    note = Note(user_id=user_id, body=PLAIN)
    started.session.add(note)
    with statements_sent(started.engine) as sent, pytest.raises(LockedError) as caught:
        started.session.flush()
    started.session.rollback()

    assert [one.split()[:2] for one in sent] == [["SELECT", "users_key.key_id"]]
    assert PLAIN not in str(caught.value)
    assert started.session.scalar(select(sa.func.count()).select_from(Note)) == 0


def test_row_bound_values(started: Started) -> None:
    """A row-bound value opens in its row and, copied to another row of the same owner, nowhere."""
    with unlock(started.session, started.ada):
        one, two = Page(user=started.ada, text=PLAIN), Page(user=started.ada, text="other")
        started.session.add_all([one, two])
        started.session.commit()
        one_id, two_id = one.id, two.id
    raw = sa.table("pages", sa.column("id", Uuid), sa.column("text", sa.LargeBinary))
    value = stored(started.engine, PAGES.c.text, one_id)
    with started.engine.begin() as connection:
        connection.execute(raw.update().where(raw.c.id == two_id).values(text=value))

    assert opens_for(started, started.ada, one_id, Page, "text") == PLAIN
    with pytest.raises(DecryptionError):
        opens_for(started, started.ada, two_id, Page, "text")


def test_the_key_of_a_row_bound_row_changes(lite: Started) -> None:
    """A new primary key encrypts the value anew for it."""
    with unlock(lite.session, lite.ada):
        page = Page(user=lite.ada, text=PLAIN)
        lite.session.add(page)
        lite.session.commit()
        page.id = new_id = uuid.uuid4()
        lite.session.commit()

    assert opens_for(lite, lite.ada, new_id, Page, "text") == PLAIN


# Bulk and Core inserts


def _bulk_save(session: Session, rows: list[dict[str, Any]]) -> None:
    session.bulk_save_objects([Note(**row) for row in rows])


def _bulk_save_returning(session: Session, rows: list[dict[str, Any]]) -> None:
    session.bulk_save_objects([Note(**row) for row in rows], return_defaults=True)


def _bulk_mappings(session: Session, rows: list[dict[str, Any]]) -> None:
    session.bulk_insert_mappings(inspect(Note), rows)


def _execute_rows(session: Session, rows: list[dict[str, Any]]) -> None:
    session.execute(insert(Note), rows)


def _execute_returning(session: Session, rows: list[dict[str, Any]]) -> None:
    made = session.scalars(insert(Note).returning(Note), rows).all()
    assert sorted(note.body or "" for note in made) == sorted(row["body"] for row in rows)


def _execute_returning_sorted(session: Session, rows: list[dict[str, Any]]) -> None:
    made = session.scalars(insert(Note).returning(Note, sort_by_parameter_order=True), rows).all()
    assert [note.body for note in made] == [row["body"] for row in rows]


def _execute_returning_columns(session: Session, rows: list[dict[str, Any]]) -> None:
    made = session.execute(insert(Note).returning(Note.user_id, Note.body), rows).all()
    assert sorted(body for _, body in made) == sorted(row["body"] for row in rows)


def _values_single(session: Session, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        session.execute(insert(Note).values(**row))


def _values_multiple(session: Session, rows: list[dict[str, Any]]) -> None:
    session.execute(insert(Note).values(rows))


def _values_multiple_returning(session: Session, rows: list[dict[str, Any]]) -> None:
    made = session.scalars(insert(Note).values(rows).returning(Note)).all()
    assert sorted(note.body or "" for note in made) == sorted(row["body"] for row in rows)


def _values_by_attribute(session: Session, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        session.execute(insert(Note).values({getattr(Note, name): value for name, value in row.items()}))


def _core_rows(session: Session, rows: list[dict[str, Any]]) -> None:
    session.connection().execute(NOTES.insert(), rows)


def _core_one_row(session: Session, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        session.connection().execute(NOTES.insert(), row)


def _core_values(session: Session, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        session.connection().execute(NOTES.insert().values(row))


def _core_values_tuples(session: Session, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        session.connection().execute(
            NOTES.insert().values((None, row["user_id"], None, row["body"], None, None, None))
            if session.get_bind().dialect.name == "sqlite"
            else NOTES.insert().values(row)
        )


def _core_other_names(session: Session, rows: list[dict[str, Any]]) -> None:
    statement = NOTES.insert().values(user_id=bindparam("whose"), body=bindparam("said"))
    session.connection().execute(statement, [{"whose": row["user_id"], "said": row["body"]} for row in rows])


def _core_one_other_name(session: Session, rows: list[dict[str, Any]]) -> None:
    statement = NOTES.insert().values(body=bindparam("said"))
    session.connection().execute(
        statement, [{"user_id": row["user_id"], "said": row["body"]} for row in rows]
    )


def _core_returning(session: Session, rows: list[dict[str, Any]]) -> None:
    made = (
        session.connection()
        .execute(NOTES.insert().returning(NOTES.c.body, NOTES.c.user_id), rows)
        .scalars()
        .all()
    )
    assert sorted(made) == sorted(row["body"] for row in rows)


@pytest.mark.parametrize(
    "write",
    [
        _bulk_save,
        _bulk_save_returning,
        _bulk_mappings,
        _execute_rows,
        _execute_returning,
        _execute_returning_sorted,
        _execute_returning_columns,
        _values_single,
        _values_multiple,
        _values_multiple_returning,
        _values_by_attribute,
        _core_rows,
        _core_one_row,
        _core_values,
        _core_values_tuples,
        _core_other_names,
        _core_one_other_name,
        _core_returning,
    ],
)
def test_inserts_that_name_the_owner(started: Started, write: Any) -> None:
    """Each row is encrypted for the owner its parameters name."""
    a, b = started.ada.id, started.ben.id
    rows = [{"user_id": owner, "body": f"{PLAIN} {n} {owner}"} for n in range(3) for owner in (a, b)]
    with both(started):
        write(started.session, rows)
        started.session.commit()
        ids = started.session.execute(select(Note.id, Note.user_id).order_by(Note.id)).all()

    assert len(ids) == len(rows)
    for owner in (started.ada, started.ben):
        bodies = {opens_for(started, owner, note_id) for note_id, of in ids if of == owner.id}
        assert bodies == {row["body"] for row in rows if row["user_id"] == owner.id}
    for note_id, _ in ids:
        assert PLAIN.encode() not in (stored(started.engine, BODY, note_id) or b"")


def test_row_bound_inserts(started: Started) -> None:
    """Bulk and Core inserts make the client-side key first and bind to it."""
    user_id = started.ada.id
    given = uuid.uuid4()
    with unlock(started.session, started.ada):
        started.session.execute(
            insert(Page), [{"user_id": user_id, "text": "one"}, {"user_id": user_id, "text": "two"}]
        )
        started.session.execute(insert(Page).values(user_id=user_id, text="three"))
        started.session.execute(
            insert(Page).values([{"user_id": user_id, "text": "four"}, {"user_id": user_id, "text": "five"}])
        )
        started.session.connection().execute(PAGES.insert(), {"id": given, "user_id": user_id, "text": "six"})
        started.session.bulk_save_objects([Page(user_id=user_id, text="seven")])
        started.session.commit()
        texts = {page.text for page in started.session.scalars(select(Page))}

    assert texts == {"one", "two", "three", "four", "five", "six", "seven"}
    assert opens_for(started, started.ada, given, Page, "text") == "six"


def test_inserts_without_an_owner(lite: Started) -> None:
    """A row that does not say whose it is is refused, also under `using`: it would be stored without that
    owner."""
    with unlock(lite.session, lite.ada) as unlocked:
        with statements_sent(lite.engine) as sent:
            with pytest.raises(StatementRefusedError, match=r"Name it in the values \(`user_id=`\)"):
                lite.session.execute(insert(Note), [{"body": PLAIN}])
            with unlocked.using(lite.ada), pytest.raises(StatementRefusedError, match="`using` gives no row"):
                lite.session.execute(insert(Note), [{"body": PLAIN}])

        assert sent == []


@pytest.mark.parametrize("several", [False, True], ids=["one row", "several rows"])
def test_a_literal_beside_rows_is_refused(lite: Started, several: bool) -> None:
    """`values(body=...)` with a list of rows cannot be encrypted for each row. SQLAlchemy's error over
    several rows in `values()` would print the list."""
    values: Any = [{"user_id": 1, "body": PLAIN}] * 2 if several else {"body": PLAIN}
    statement = NOTES.insert().values(values).returning(NOTES.c.id)
    with unlock(lite.session, lite.ada):
        with statements_sent(lite.engine) as sent, pytest.raises(StatementRefusedError) as caught:
            lite.session.connection().execute(statement, [{"user_id": 1, "words": PLAIN}] * 2)

        assert sent == []
        assert PLAIN not in str(caught.value)


# Updates


def test_bulk_updates_by_primary_key(started: Started) -> None:
    """Under `using(owner)` each form of bulk update is encrypted for that owner; without it, it is
    refused."""
    with unlock(started.session, started.ada) as unlocked:
        ids = [_note(started) for _ in range(3)]
        session = started.session
        rows = [{"id": note_id, "body": f"{PLAIN} {note_id}"} for note_id in ids]
        with statements_sent(started.engine) as sent, pytest.raises(StatementRefusedError, match="using"):
            session.execute(update(Note), rows)
        assert sent == []
        with unlocked.using(started.ada):
            session.execute(update(Note), rows)
        session.commit()
        assert [opens_for(started, started.ada, n) for n in ids] == [row["body"] for row in rows]

        with unlocked.using(started.ada):
            session.bulk_update_mappings(inspect(Note), [{"id": ids[0], "body": "mapping"}])
            note = session.get_one(Note, ids[1])
            session.expunge(note)
            note.body = "object"
            session.bulk_save_objects([note])
        session.commit()

    assert opens_for(started, started.ada, ids[0]) == "mapping"
    assert opens_for(started, started.ada, ids[1]) == "object"


@pytest.mark.parametrize("synchronize", ["auto", "evaluate", "fetch", False])
def test_update_where(started: Started, synchronize: Any) -> None:
    """`update().where().values()` needs `using`, and objects in the session show plaintext after it, never
    ciphertext."""
    with unlock(started.session, started.ada) as unlocked:
        note_id = _note(started)
        session = started.session
        note = session.get_one(Note, note_id)
        assert note.body == "before"
        statement = update(Note).where(Note.id == note_id).values(body=PLAIN, title="t")
        options = {"synchronize_session": synchronize}
        with statements_sent(started.engine) as sent, pytest.raises(StatementRefusedError, match="using"):
            session.execute(
                statement.where(Note.title.is_(None)), execution_options={"synchronize_session": False}
            )
        assert sent == []
        with unlocked.using(started.ada):
            session.execute(statement, execution_options=options)
        if synchronize:
            assert note.body == PLAIN
            assert not session.is_modified(note)
        session.commit()

        assert note.body == PLAIN

    assert opens_for(started, started.ada, note_id) == PLAIN


def test_update_where_names_the_owner(started: Started) -> None:
    """An UPDATE that moves rows and rewrites every value of theirs is encrypted for the new owner."""
    with both(started):
        note_id = _note(started)
        values = {"user_id": started.ben.id, "body": PLAIN, "size": None, "tags": None, "extra": None}
        started.session.execute(update(Note).where(Note.id == note_id).values(**values))
        started.session.commit()

    assert opens_for(started, started.ben, note_id) == PLAIN


def test_update_returning_gives_plaintext(started: Started) -> None:
    """`update().returning(Note)` gives objects whose values are open."""
    with unlock(started.session, started.ada) as unlocked:
        note_id = _note(started)
        with unlocked.using(started.ada):
            note = started.session.scalars(
                update(Note).where(Note.id == note_id).values(body=PLAIN).returning(Note)
            ).one()

        assert note.body == PLAIN


def test_core_updates(lite: Started) -> None:
    """Core updates under `using`, with values, with parameters, and with parameters of another name."""
    with unlock(lite.session, lite.ada) as unlocked:
        ids = [_note(lite) for _ in range(4)]
        connection = lite.session.connection()
        where = NOTES.update().where(NOTES.c.id == bindparam("which"))
        with unlocked.using(lite.ada):
            connection.execute(NOTES.update().where(NOTES.c.id == ids[0]).values(body="one"))
            connection.execute(where.values(body=bindparam("said")), {"which": ids[1], "said": "two"})
            connection.execute(
                where.values(body=bindparam("said")), [{"which": i, "said": "more"} for i in ids[2:]]
            )
        lite.session.commit()

    assert [opens_for(lite, lite.ada, n) for n in ids] == ["one", "two", "more", "more"]


def test_setting_null_needs_no_key(lite: Started) -> None:
    """NULL is not encrypted, so no owner has to be named or unlocked for it."""
    with unlock(lite.session, lite.ada):
        ids = [_note(lite) for _ in range(3)]
    session = lite.session
    session.execute(update(Note).where(Note.id == ids[0]).values(body=None))
    session.execute(update(Note).where(Note.id == ids[1]).values(body=sa.null()))
    session.connection().execute(NOTES.update().where(NOTES.c.id == ids[2]), {"body": None})
    session.commit()

    assert [stored(lite.engine, BODY, note_id) for note_id in ids] == [None] * 3


@pytest.mark.parametrize(
    "statement",
    [
        update(Note).values(body=Note.title),
        update(Note).values(body=Note.body),
        update(Note).values(body=sa.func.upper("x")),
        update(Note).values(body=sa.literal("x") + "y"),
        update(Note).values(body=text("'x'")),
        update(Note).values(body=sa.case((Note.id == 1, "a"), else_="b")),
        update(Note).values(body=select(Note.title).limit(1).scalar_subquery()),
        update(Note).values(title=Note.body),
        update(Note).values(title=sa.func.upper(Note.body)),
        update(Note).values(title=sa.case((Note.body.is_(None), "none"), else_=Note.body)),
        update(Note).values(title=select(Note.body).limit(1).scalar_subquery()),
        insert(Note).values(user_id=1, body=sa.func.upper("x")),
        insert(Note).values(user_id=1, body=text("'x'")),
        insert(Note).values([{"user_id": 1, "body": sa.func.upper("x")}, {"user_id": 1, "body": "x"}]),
        insert(Note).from_select(["user_id", "body"], select(Note.user_id, Note.title)),
        insert(Note).from_select(["user_id", "title"], select(Note.user_id, Note.body)),
        insert(Note).from_select(["user_id", "body"], select(sa.literal(1), sa.literal(PLAIN))),
    ],
    ids=lambda one: " ".join(str(one).split())[:70],
)
def test_expressions_are_refused(lite: Started, statement: Any) -> None:
    """What the database would have to compute on ciphertext, or copy past its owner, is refused and not
    sent."""
    with both(lite) as unlocked, unlocked.using(lite.ada):
        _note(lite)
        lite.session.connection()
        with statements_sent(lite.engine) as sent, pytest.raises(StatementRefusedError):
            lite.session.execute(statement, execution_options={"synchronize_session": False})

        assert sent == []


def test_expression_on_an_object_is_refused(lite: Started) -> None:
    """`note.body = func.upper(...)` fails its flush, and the note keeps working."""
    with unlock(lite.session, lite.ada):
        note_id = _note(lite)
        note = lite.session.get_one(Note, note_id)
        note.body = sa.func.upper(PLAIN)  # type: ignore[assignment]
        with pytest.raises(EnvelopeError):
            lite.session.flush()
        lite.session.rollback()

        assert note.body == "before"


@pytest.mark.any_database
def test_moving_the_owner_alone_is_refused(started: Started) -> None:
    """An UPDATE of the owner column alone would leave a value under the old owner's key."""
    with both(started):
        note_id = _note(started)
        session = started.session
        for statement, rows in (
            (update(Note).where(Note.id == note_id).values(user_id=2), None),
            (update(Note), [{"id": note_id, "user_id": 2}]),
            (NOTES.update().where(NOTES.c.id == note_id).values(user_id=bindparam("to")), [{"to": 2}]),
            (NOTES.update().values(user_id=NOTES.c.user_id + 1), None),
        ):
            with statements_sent(started.engine) as sent, pytest.raises(StatementRefusedError):
                session.execute(statement, rows)
            assert sent == []
        session.rollback()

    assert opens_for(started, started.ada, note_id) == "before"


def test_rows_without_a_value_may_move(lite: Started) -> None:
    """There is nothing to encrypt anew where every value is NULL."""
    with unlock(lite.session, lite.ada):
        note_id = _note(lite, body=None)
    lite.session.get_one(Note, note_id).user = lite.ben
    lite.session.commit()

    assert lite.session.get_one(Note, note_id).user_id == lite.ben.id


@pytest.mark.parametrize("how", ["column", "relationship", "backref"])
@pytest.mark.parametrize("was", ["loaded", "expired"])
def test_moving_to_another_owner(lite: Started, how: str, was: str) -> None:
    """A row that moves is encrypted anew for its new owner, every column of it."""
    with both(lite):
        note_id = _note(lite, size=7, tags=["a"])
        note = lite.session.get_one(Note, note_id)
        assert note.body == "before"
        if was == "expired":
            lite.session.expire(note)
        if how == "column":
            note.user_id = lite.ben.id
        elif how == "relationship":
            note.user = lite.ben
        else:
            lite.ben.notes.append(note)
        lite.session.commit()

    assert opens_for(lite, lite.ben, note_id) == "before"
    assert opens_for(lite, lite.ben, note_id, Note, "size") == 7
    assert opens_for(lite, lite.ben, note_id, Note, "tags") == ["a"]


@pytest.mark.parametrize("open_owner", ["ada", "ben", None])
def test_moving_while_one_side_is_locked(lite: Started, open_owner: str | None) -> None:
    """A move needs both owners' keys; with one missing it is refused and nothing changes."""
    with unlock(lite.session, lite.ada):
        note_id = _note(lite)
    before = stored(lite.engine, BODY, note_id)

    def move() -> None:
        note = lite.session.get_one(Note, note_id)
        note.user_id = 2
        with pytest.raises(LockedError):
            lite.session.flush()
        lite.session.rollback()

    if open_owner is None:
        move()
    else:
        with unlock(lite.session, getattr(lite, open_owner)):
            move()

    assert stored(lite.engine, BODY, note_id) == before
    assert opens_for(lite, lite.ada, note_id) == "before"


def test_deleting_rows_needs_no_key(lite: Started) -> None:
    """Locked rows can be deleted, by the session and by statement."""
    with unlock(lite.session, lite.ada):
        ids = [_note(lite) for _ in range(2)]
    lite.session.delete(lite.session.get_one(Note, ids[0]))
    lite.session.commit()
    lite.session.execute(delete(Note))
    lite.session.commit()

    assert lite.session.scalar(select(sa.func.count()).select_from(Note)) == 0


# Upserts


def test_upsert_from_the_proposed_row(started: Started) -> None:
    """`excluded.body` with the owner beside it is the value that was encrypted for that owner."""
    make = upsert_for(started.engine)
    with both(started):
        note_id = _note(started)
        proposed = make(Note).values(id=note_id, user_id=started.ben.id, body=PLAIN)
        started.session.execute(
            proposed.on_conflict_do_update(index_elements=["id"], set_=everything(proposed.excluded))
        )
        started.session.commit()

    assert opens_for(started, started.ben, note_id) == PLAIN


def test_upsert_of_many_rows(started: Started) -> None:
    """The same for a list of rows, and `do_nothing` leaves the old value."""
    make = upsert_for(started.engine)
    with unlock(started.session, started.ada):
        note_id = _note(started)
        owner = started.ada.id
        proposed = make(Note)
        proposed = proposed.on_conflict_do_update(
            index_elements=[Note.id], set_=everything(proposed.excluded)
        )
        rows = [{"id": note_id, "user_id": owner, "body": PLAIN}, {"id": 77, "user_id": owner, "body": "new"}]
        started.session.execute(proposed, rows)
        started.session.execute(make(Note).on_conflict_do_nothing(), [rows[0] | {"body": "ignored"}])
        started.session.commit()

    assert [opens_for(started, started.ada, n) for n in (note_id, 77)] == [PLAIN, "new"]


def _refused_upserts(make: Any) -> list[Any]:
    proposed = make(Note).values(id=1, user_id=2, body=PLAIN)
    excluded = proposed.excluded
    on_key = {"index_elements": ["id"]}
    return [
        proposed.on_conflict_do_update(**on_key, set_={"body": "literal " + PLAIN}),
        proposed.on_conflict_do_update(**on_key, set_={"body": excluded.body}),
        proposed.on_conflict_do_update(**on_key, set_={"user_id": excluded.user_id}),
        proposed.on_conflict_do_update(**on_key, set_={"body": excluded.body, "user_id": excluded.user_id}),
        proposed.on_conflict_do_update(**on_key, set_=everything(excluded) | {"body": excluded.title}),
        proposed.on_conflict_do_update(**on_key, set_=everything(excluded) | {"body": sa.func.upper("x")}),
        proposed.on_conflict_do_update(**on_key, set_=everything(excluded) | {"user_id": 1}),
        proposed.on_conflict_do_update(**on_key, set_=everything(excluded) | {"user_id": Note.user_id}),
        proposed.on_conflict_do_update(**on_key, set_={"title": excluded.body}),
        proposed.on_conflict_do_update(
            **on_key, set_=everything(excluded), where=sa.func.length(excluded.body) > 3
        ),
    ]


@pytest.mark.parametrize("which", range(10))
def test_refused_upserts(started: Started, which: int) -> None:
    """An upsert that could leave a value under another owner's key, or in the clear, is refused and not
    sent."""
    with both(started):
        _note(started, id=1)
        started.session.connection()
        statement = _refused_upserts(upsert_for(started.engine))[which]
        with statements_sent(started.engine) as sent, pytest.raises(StatementRefusedError):
            started.session.execute(statement)

        assert not any("INSERT" in one for one in sent)


def test_upsert_of_a_row_bound_column(started: Started) -> None:
    """Allowed on the primary key alone; on another key the value would lie in a row it is not bound to."""
    make = upsert_for(started.engine)
    with unlock(started.session, started.ada):
        page = Page(user=started.ada, text="before")
        started.session.add(page)
        started.session.commit()
        page_id, owner = page.id, started.ada.id
        proposed = make(Page).values(id=page_id, user_id=owner, text=PLAIN)
        sets = {"text": proposed.excluded.text, "user_id": proposed.excluded.user_id}
        started.session.execute(proposed.on_conflict_do_update(index_elements=["id"], set_=sets))
        started.session.commit()
        with pytest.raises(StatementRefusedError):
            started.session.execute(proposed.on_conflict_do_update(index_elements=["title"], set_=sets))

    assert opens_for(started, started.ada, page_id, Page, "text") == PLAIN


# Objects


@pytest.mark.any_database
def test_merge_new_and_existing(started: Started) -> None:
    """`merge` writes a new row and changes an old one, and a merge without change writes nothing."""
    with unlock(started.session, started.ada):
        note_id = _note(started)
        session, owner = started.session, started.ada.id
        session.merge(Note(id=note_id, user_id=owner, body=PLAIN))
        session.merge(Note(id=99, user_id=owner, body="new"))
        session.commit()
        value = stored(started.engine, BODY, note_id)
        session.merge(Note(id=note_id, user_id=owner, body=PLAIN))
        session.commit()

        assert stored(started.engine, BODY, note_id) == value
    assert [opens_for(started, started.ada, n) for n in (note_id, 99)] == [PLAIN, "new"]


def test_row_switch(lite: Started) -> None:
    """Delete and add under one primary key becomes an UPDATE, encrypted for the new owner."""
    with both(lite):
        note_id = _note(lite)
        lite.session.delete(lite.session.get_one(Note, note_id))
        lite.session.add(Note(id=note_id, user=lite.ben, body=PLAIN))
        lite.session.commit()

    assert opens_for(lite, lite.ben, note_id) == PLAIN


def test_a_copy_made_transient(lite: Started) -> None:
    """An object made transient and added again is a new row with a value of its own."""
    with unlock(lite.session, lite.ada):
        note_id = _note(lite)
        note = lite.session.get_one(Note, note_id)
        _ = note.body, note.user_id
        make_transient(note)
        note.id = None  # type: ignore[assignment]
        lite.session.add(note)
        lite.session.commit()
        copy_id = note.id

    assert opens_for(lite, lite.ada, copy_id) == "before"
    assert stored(lite.engine, BODY, copy_id) != stored(lite.engine, BODY, note_id)


def test_null_and_empty_are_kept_apart(started: Started) -> None:
    """NULL stays NULL; the empty string is encrypted and comes back empty."""
    with unlock(started.session, started.ada):
        null_id, empty_id = _note(started, body=None), _note(started, body="")

    assert stored(started.engine, BODY, null_id) is None
    assert opens_for(started, started.ada, null_id) is None
    assert opens_for(started, started.ada, empty_id) == ""


def test_no_spurious_update(lite: Started) -> None:
    """Setting an equal value, or only reading, sends no UPDATE."""
    with unlock(lite.session, lite.ada):
        note_id = _note(lite, tags=["a"], extra={"k": 1})
        note = lite.session.get_one(Note, note_id)
        body = note.body
        note.body = "other"
        note.body = body
        note.tags = ["a"]
        _ = note.extra
        with statements_sent(lite.engine) as sent:
            lite.session.flush()

        assert sent == []


def test_a_failed_flush_then_retry(started: Started) -> None:
    """After a constraint failure the objects hold their plaintext and a second flush stores it."""
    session = started.session
    with unlock(session, started.ada):
        note_id = _note(started)
        note = session.get_one(Note, note_id)
        fresh = Note(user_id=started.ada.id, body="fresh")
        session.add(fresh)
        note.body = PLAIN
        session.add(User(email="ada@example.org"))
        with pytest.raises(IntegrityError) as caught:
            session.flush()
        assert fresh.body == "fresh"
        session.rollback()
        assert PLAIN not in str(caught.value)
        note.body = PLAIN
        fresh.user_id = started.ada.id
        session.add(fresh)
        session.commit()
        fresh_id = fresh.id

    assert [opens_for(started, started.ada, n) for n in (note_id, fresh_id)] == [PLAIN, "fresh"]


def test_a_failed_flush_inside_a_savepoint(lite: Started) -> None:
    """Rolling back to a savepoint keeps what was written before it and forgets what came after."""
    session = lite.session
    with unlock(session, lite.ada):
        note_id = _note(lite)
        note = session.get_one(Note, note_id)
        note.body = "kept"
        session.flush()
        with pytest.raises(IntegrityError), session.begin_nested():  # noqa: PT012 - leaving the block raises
            note.body = "lost"
            session.add(User(email="ada@example.org"))
        assert note.body == "kept"
        session.commit()

    assert opens_for(lite, lite.ada, note_id) == "kept"


@pytest.mark.parametrize("savepoint", [False, True])
def test_keys_of_a_rolled_back_enrolment_are_never_used(started: Started, savepoint: bool) -> None:
    """Keys whose rows are gone would write what nobody could ever read: they are dropped with the
    rollback."""
    session = started.session
    eve = User(email="eve@example.org", phone="1")
    if savepoint:
        session.flush()
        nested = session.begin_nested()
    with envelope.enroll(session, eve, secret=SECRET):
        session.flush()
        if savepoint:
            nested.rollback()
        else:
            session.rollback()
        for values in ({"user_id": 3, "body": PLAIN}, {"user_id": 1, "body": PLAIN}):
            with pytest.raises(LockedError):
                session.execute(insert(Note), [values])
        session.rollback()
    again = User(email="eve@example.org", phone="2")
    with envelope.enroll(session, again, secret=SECRET):
        session.commit()

    assert opens_for(started, again, again.id, User, "phone") == "2"


def test_keys_of_a_committed_savepoint_go_with_the_outer_rollback(lite: Started) -> None:
    """An enrolment inside a released savepoint is real only when the outermost transaction commits."""
    session = lite.session
    eve = User(email="eve@example.org")
    session.flush()
    nested = session.begin_nested()
    with envelope.enroll(session, eve, secret=SECRET):
        nested.commit()
        session.add(Note(user=eve, body=PLAIN))
        session.flush()
        session.rollback()
        with pytest.raises(LockedError):
            session.execute(insert(Note), [{"user_id": 3, "body": PLAIN}])


# The owner's own columns, and other shapes of owner


def test_an_owner_that_nobody_enrolled_cannot_have_values(lite: Started) -> None:
    """Adding an owner with encrypted values without `enroll` says to enroll it."""
    lite.session.add(User(email="eve@example.org", phone=PLAIN))
    with pytest.raises(NotEnrolledError) as caught:
        lite.session.flush()
    lite.session.rollback()

    assert PLAIN not in str(caught.value)


@pytest.mark.any_database
def test_an_owners_own_column_is_changed(started: Started) -> None:
    """An owner's own value is updated under its key, and while locked it is refused."""
    session = started.session
    with unlock(session, started.ada):
        started.ada.phone = PLAIN
        session.commit()
        assert opens_for(started, started.ada, 1, User, "phone") == PLAIN
    started.ada.phone = "other"
    with pytest.raises(LockedError):
        session.flush()
    session.rollback()

    assert opens_for(started, started.ada, 1, User, "phone") == PLAIN


class Shapes(DeclarativeBase):
    pass


class UuidOwner(KeyOwner, Shapes):
    __tablename__ = "uuid_owners"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    own: Mapped[str | None] = mapped_column(EncryptedType(String))
    bound: Mapped[str | None] = mapped_column(EncryptedType(String, bind="row"))


class StringOwner(KeyOwner, Shapes):
    __tablename__ = "string_owners"
    name: Mapped[str] = mapped_column(primary_key=True)
    own: Mapped[str | None] = mapped_column(EncryptedType(String))


class PairOwner(KeyOwner, Shapes):
    __tablename__ = "pair_owners"
    realm: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    own: Mapped[str | None] = mapped_column(EncryptedType(String))


class PairItem(Shapes):
    __tablename__ = "pair_items"
    id: Mapped[int] = mapped_column(primary_key=True)
    # The other way round than in the owner's key, on purpose.
    owner_number: Mapped[int]
    owner_realm: Mapped[str]
    owner: Mapped[PairOwner] = relationship()
    text: Mapped[str] = mapped_column(EncryptedType(String))
    more: Mapped[str | None] = mapped_column(EncryptedType(String, owner=("owner_number", "owner_realm")))
    through: Mapped[str | None] = mapped_column(EncryptedType(String, owner="owner"))
    __table_args__ = (
        ForeignKeyConstraint(["owner_number", "owner_realm"], ["pair_owners.number", "pair_owners.realm"]),
    )


class Company(KeyOwner, Shapes):
    __tablename__ = "companies"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    own: Mapped[str | None] = mapped_column(EncryptedType(String))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "company"}  # noqa: RUF012


class Bank(Company):
    __tablename__ = "banks"
    id: Mapped[int] = mapped_column(ForeignKey("companies.id"), primary_key=True)
    vault: Mapped[str | None] = mapped_column(EncryptedType(String))
    __mapper_args__ = {"polymorphic_identity": "bank"}  # noqa: RUF012


class Shop(Company):
    shelf: Mapped[str | None] = mapped_column(EncryptedType(String))
    __mapper_args__ = {"polymorphic_identity": "shop"}  # noqa: RUF012


class Document(Shapes):
    __tablename__ = "documents"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    company_id: Mapped[int] = mapped_column(ForeignKey("companies.id"))
    subject: Mapped[str | None] = mapped_column(EncryptedType(String))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "document"}  # noqa: RUF012


class Letter(Document):
    """Joined: its owner column is in the base table."""

    __tablename__ = "letters"
    id: Mapped[int] = mapped_column(ForeignKey("documents.id"), primary_key=True)
    text: Mapped[str | None] = mapped_column(EncryptedType(String))
    __mapper_args__ = {"polymorphic_identity": "letter"}  # noqa: RUF012


class Memo(Document):
    """Single table."""

    remark: Mapped[str | None] = mapped_column(EncryptedType(String))
    __mapper_args__ = {"polymorphic_identity": "memo"}  # noqa: RUF012


class Renamed(Shapes):
    __tablename__ = "renamed"
    id: Mapped[int] = mapped_column(primary_key=True)
    whose: Mapped[int] = mapped_column("company", ForeignKey("companies.id"))
    said: Mapped[str | None] = mapped_column("text", EncryptedType(String, owner="whose"))


class Defaulted(Shapes):
    __tablename__ = "defaulted"
    id: Mapped[int] = mapped_column(primary_key=True)
    company_id: Mapped[int] = mapped_column(ForeignKey("companies.id"))
    fixed: Mapped[str] = mapped_column(EncryptedType(String), default="fixed")
    made: Mapped[str] = mapped_column(EncryptedType(String), default=lambda: "made")


class Data(MappedAsDataclass, DeclarativeBase):
    metadata = Shapes.metadata


class Record(Data):
    __tablename__ = "records"
    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    company_id: Mapped[int] = mapped_column(ForeignKey("companies.id"))
    text: Mapped[str] = mapped_column(EncryptedType(String), default="default")
    many: Mapped[list[int]] = mapped_column(EncryptedType(sa.JSON), default_factory=list)


class Keeper(KeyOwner, Data):
    """A key owner that is a dataclass: its key tables are none."""

    __tablename__ = "keepers"
    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    own: Mapped[str | None] = mapped_column(EncryptedType(String), default=None)


imperative = registry(metadata=Shapes.metadata)
plain_table = Table(
    "plain",
    Shapes.metadata,
    Column("id", Integer, primary_key=True),
    Column("company_id", ForeignKey("companies.id")),
    Column("text", EncryptedType(Text)),
)


class Plain:
    id: int
    company_id: int
    words: str


imperative.map_imperatively(Plain, plain_table, properties={"words": plain_table.c.text})


@pytest.fixture
def shapes(engine: Engine) -> Session:
    """A session on the tables of this file."""
    Shapes.metadata.create_all(engine)
    with Session(engine) as session:
        yield session


@pytest.fixture
def company(shapes: Session) -> Company:
    """An enrolled owner of the other shapes."""
    company = Company()
    envelope.enroll(shapes, company, secret=SECRET)
    shapes.commit()
    return company


@pytest.mark.parametrize(
    "make",
    [
        lambda: UuidOwner(own=PLAIN),
        lambda: StringOwner(name="ä", own=PLAIN),
        lambda: PairOwner(realm="r", number=2, own=PLAIN),
        lambda: Company(own=PLAIN),
        lambda: Bank(own=PLAIN, vault="v"),
        lambda: Shop(own=PLAIN, shelf="s"),
        lambda: Keeper(own=PLAIN),
    ],
    ids=["uuid", "string", "pair", "integer", "joined subclass", "single-table subclass", "dataclass"],
)
def test_owners_of_every_shape(shapes: Session, make: Any) -> None:
    """An owner's own values are written by the flush that makes its key, and open and change after that."""
    owner = make()
    with envelope.enroll(shapes, owner, secret=SECRET):
        shapes.commit()
        identity = inspect(owner).identity
    shapes.expunge_all()
    again = shapes.get_one(type(owner), identity)
    with unlock(shapes, again):
        assert again.own == PLAIN
        again.own = "changed"
        shapes.commit()
        assert again.own == "changed"
    with pytest.raises(LockedError):
        _ = again.own


@pytest.mark.any_database
def test_a_subclass_owner_has_its_own_values(shapes: Session) -> None:
    """Columns of a joined or single-table subclass of an owner are under the same owner's key."""
    bank, shop = Bank(vault="gold"), Shop(shelf="tea")
    with envelope.enroll(shapes, bank, secret=SECRET), envelope.enroll(shapes, shop, secret=SECRET):
        shapes.commit()
        assert (bank.vault, shop.shelf) == ("gold", "tea")
        bank.vault = "silver"
        shapes.commit()
    shapes.expunge_all()
    loaded = {type(one): one for one in shapes.scalars(select(Company))}
    with unlock(shapes, loaded[Bank]):
        assert loaded[Bank].vault == "silver"  # type: ignore[attr-defined]
        with pytest.raises(LockedError):
            _ = loaded[Shop].shelf  # type: ignore[attr-defined]


@pytest.mark.any_database
def test_row_bound_own_column(shapes: Session) -> None:
    """An owner's own row-bound value is bound to the key made by the client in the same flush."""
    owner = UuidOwner(bound=PLAIN)
    with envelope.enroll(shapes, owner, secret=SECRET):
        shapes.commit()
        shapes.expire_all()

        assert owner.bound == PLAIN


def test_composite_owners(shapes: Session) -> None:
    """A composite key is read in the owner's order, however the row names it; two halves swapped are
    another owner."""
    one, two = PairOwner(realm="1", number=2), PairOwner(realm="2", number=1)
    with envelope.enroll(shapes, one, secret=SECRET) as unlocked:
        envelope.enroll(shapes, two, secret=SECRET)
        item = PairItem(owner=one, text="a", more="b", through="c")
        shapes.add(item)
        shapes.commit()
        assert (item.text, item.more, item.through) == ("a", "b", "c")
        item.text = "d"
        shapes.commit()
        shapes.execute(insert(PairItem), [{"owner_realm": "1", "owner_number": 2, "text": "core"}])
        with unlocked.using(one):
            shapes.execute(update(PairItem), [{"id": item.id, "more": "e"}])
        with pytest.raises(LockedError):
            shapes.execute(insert(PairItem), [{"owner_realm": "2", "owner_number": 1, "text": "core"}])
        shapes.rollback()
        assert item.text == "d"


@pytest.mark.any_database
def test_inheritance(shapes: Session, company: Company) -> None:
    """Joined and single-table subclasses find the owner in the base table, on insert and on update."""
    with unlock(shapes, company):
        letter = Letter(company_id=company.id, subject="s", text=PLAIN)
        memo = Memo(company_id=company.id, subject="m", remark=PLAIN)
        shapes.add_all([letter, memo, Letter(company_id=company.id, text="second")])
        shapes.commit()
        assert (letter.subject, letter.text, memo.remark) == ("s", PLAIN, PLAIN)
        letter.text = memo.remark = "changed"
        shapes.commit()
        shapes.expunge_all()
        texts = {
            getattr(one, "text", None) or getattr(one, "remark", None)
            for one in shapes.scalars(select(Document))
        }

        assert texts == {"changed", "second"}


@pytest.mark.any_database
def test_inheritance_moves(shapes: Session, company: Company) -> None:
    """A moved row of a joined subclass is encrypted anew in both tables."""
    other = Company()
    with unlock(shapes, company), envelope.enroll(shapes, other, secret=SECRET):
        letter = Letter(company_id=company.id, subject="s", text=PLAIN)
        shapes.add(letter)
        shapes.commit()
        letter.company_id = other.id
        shapes.commit()
    with unlock(shapes, other):
        assert (letter.subject, letter.text) == ("s", PLAIN)


@pytest.mark.any_database
def test_inheritance_bulk(shapes: Session, company: Company) -> None:
    """A bulk insert into a joined subclass either finds the owner, or is refused with nothing in the
    clear."""
    with unlock(shapes, company) as unlocked, unlocked.using(company):
        shapes.execute(insert(Letter), [{"company_id": company.id, "subject": "s", "text": PLAIN}])
        shapes.commit()
        letter = shapes.scalars(select(Letter)).one()

        assert (letter.subject, letter.text) == ("s", PLAIN)


@pytest.mark.any_database
def test_renamed_attributes(shapes: Session, company: Company) -> None:
    """Attribute names that differ from their columns work in every form."""
    with unlock(shapes, company) as unlocked:
        one = Renamed(whose=company.id, said=PLAIN)
        shapes.add(one)
        shapes.commit()
        one.said = "changed"
        shapes.commit()
        shapes.execute(insert(Renamed), [{"whose": company.id, "said": "rows"}])
        shapes.execute(insert(Renamed).values(whose=company.id, said="values"))
        shapes.execute(insert(Renamed).values([{"whose": company.id, "said": "multiple"}]))
        shapes.bulk_insert_mappings(inspect(Renamed), [{"whose": company.id, "said": "mappings"}])
        shapes.execute(Renamed.__table__.insert(), [{"company": company.id, "text": "core"}])  # type: ignore[attr-defined]
        with unlocked.using(company):
            shapes.execute(update(Renamed).where(Renamed.said.is_(None)).values(said="x"))
            shapes.execute(update(Renamed), [{"id": one.id, "said": "bulk"}])
        shapes.commit()

        assert {each.said for each in shapes.scalars(select(Renamed))} == {
            "rows", "values", "multiple", "mappings", "core", "bulk",
        }  # fmt: skip


@pytest.mark.any_database
def test_dataclasses(shapes: Session, company: Company) -> None:
    """Dataclass defaults are encrypted, whether or not they are in the object before the flush."""
    with unlock(shapes, company):
        record = Record(company_id=company.id)
        shapes.add_all([record, Record(company_id=company.id, text=PLAIN, many=[1])])
        shapes.commit()
        assert (record.text, record.many) == ("default", [])
        record.text = "changed"
        shapes.commit()

        assert {one.text for one in shapes.scalars(select(Record))} == {"changed", PLAIN}


@pytest.mark.any_database
def test_imperative_mapping(shapes: Session, company: Company) -> None:
    """A table mapped by hand, with a renamed attribute."""
    with unlock(shapes, company):
        plain = Plain()
        plain.company_id, plain.words = company.id, PLAIN
        shapes.add(plain)
        shapes.commit()
        shapes.execute(insert(Plain), [{"company_id": company.id, "words": "rows"}])

        assert {one.words for one in shapes.scalars(select(Plain))} == {PLAIN, "rows"}


@pytest.mark.any_database
def test_defaults(shapes: Session, company: Company) -> None:
    """Python-side defaults of encrypted columns are evaluated before the value is encrypted."""
    with unlock(shapes, company):
        shapes.add(Defaulted(company_id=company.id))
        shapes.execute(insert(Defaulted), [{"company_id": company.id}])
        shapes.execute(insert(Defaulted).values(company_id=company.id))
        shapes.execute(insert(Defaulted).values([{"company_id": company.id}, {"company_id": company.id}]))
        shapes.bulk_save_objects([Defaulted(company_id=company.id)])
        shapes.execute(Defaulted.__table__.insert(), {"company_id": company.id, "fixed": "given"})  # type: ignore[attr-defined]
        shapes.commit()
        found = [(one.fixed, one.made) for one in shapes.scalars(select(Defaulted))]

    assert len(found) == 7
    assert set(found) == {("fixed", "made"), ("given", "made")}


def test_two_sessions_on_one_unlock(lite: Started) -> None:
    """A second session in the same context writes under the same keys, and leaving notices what waits in
    it."""
    with lite.fresh() as other:
        with pytest.raises(UnflushedError, match=r"Note\.body"), unlock(lite.session, lite.ada):  # noqa: PT012 - leaving the block raises
            other.add(Note(user_id=1, body="flushed"))
            other.commit()
            other.add(Note(user_id=1, body=PLAIN))
        other.rollback()
        (note_id,) = other.scalars(select(Note.id)).all()

    assert opens_for(lite, lite.ada, note_id) == "flushed"


@pytest.mark.any_database
def test_an_update_in_order(started: Started) -> None:
    """`ordered_values()` is encrypted, and checked for moves, like `values()`."""
    with unlock(started.session, started.ada) as unlocked:
        note_id = _note(started)
        where = update(Note).where(Note.id == note_id)
        plain = {"synchronize_session": False}
        with unlocked.using(started.ada):
            started.session.execute(
                where.ordered_values((Note.title, "t"), (Note.body, PLAIN)), execution_options=plain
            )
        started.session.commit()
        with pytest.raises(StatementRefusedError):
            started.session.execute(where.ordered_values((Note.user_id, 2)), execution_options=plain)

    assert opens_for(started, started.ada, note_id) == PLAIN


@pytest.mark.parametrize("parameter", [bindparam("said", "default"), bindparam("said", type_=String)])
def test_a_parameter_of_another_type(lite: Started, parameter: Any) -> None:
    """A `bindparam` with a type or default of its own would be bound past the check for plaintext: it is
    refused."""
    with unlock(lite.session, lite.ada) as unlocked, unlocked.using(lite.ada):
        connection = lite.session.connection()
        for statement in (
            NOTES.insert().values(user_id=1, body=parameter),
            NOTES.update().values(body=parameter),
        ):
            for given in ({"said": PLAIN}, {}):
                with statements_sent(lite.engine) as sent, pytest.raises(StatementRefusedError):
                    connection.execute(statement, given)

                assert sent == []


def test_literals_and_parameters(lite: Started) -> None:
    """`literal()` of any type is encrypted; a named parameter among several rows of `values()` is refused."""
    with unlock(lite.session, lite.ada):
        connection = lite.session.connection()
        connection.execute(NOTES.insert().values(user_id=1, body=sa.literal(PLAIN, String)))
        rows = [{"user_id": 1, "body": bindparam("said")}, {"user_id": 1, "body": PLAIN}]
        with pytest.raises(StatementRefusedError):
            connection.execute(NOTES.insert().values(rows), {"said": PLAIN})
        lite.session.commit()
        (note_id,) = lite.session.scalars(select(Note.id)).all()

    assert opens_for(lite, lite.ada, note_id) == PLAIN


def test_row_switch_keeps_what_stays(lite: Started) -> None:
    """Delete and add for the same owner: what the new object does not set stays, and still opens."""
    with both(lite):
        note_id = _note(lite, size=7)
        lite.session.delete(lite.session.get_one(Note, note_id))
        lite.session.add(Note(id=note_id, user=lite.ada, body=PLAIN))
        lite.session.commit()
        assert opens_for(lite, lite.ada, note_id) == PLAIN
        assert opens_for(lite, lite.ada, note_id, Note, "size") == 7

        lite.session.delete(lite.session.get_one(Note, note_id))
        lite.session.add(Note(id=note_id, user=lite.ben, body=PLAIN))
        with pytest.raises(StatementRefusedError, match="size"):
            lite.session.flush()
        lite.session.rollback()


def test_many_rows_of_many_owners_at_once(lite: Started) -> None:
    """A thousand rows of two owners in one `insertmanyvalues`, each under its own key."""
    with both(lite):
        rows = [{"user_id": 1 + n % 2, "body": f"{n}"} for n in range(1000)]
        made = lite.session.scalars(insert(Note).returning(Note), rows).all()

        assert {(note.user_id, note.body) for note in made} == {(row["user_id"], row["body"]) for row in rows}


def test_many_rows_of_each_kind_at_once(lite: Started) -> None:
    """Rows of two owners, in runs and in turn, with and without a value, more than are encrypted at a time:
    each value opens in its own row, for its owner, whether it was inserted or updated."""
    with both(lite):
        ids = [uuid.UUID(int=n) for n in range(300)]
        rows = [
            {"id": one, "user_id": 1 + (n // 100 if n < 200 else n) % 2, "text": f"{n}" if n % 7 else None}
            for n, one in enumerate(ids)
        ]
        lite.session.bulk_insert_mappings(Page.__mapper__, rows)
        inserted = {page.id: page.text for page in lite.session.scalars(select(Page))}
        lite.session.expire_all()
        changes = [{**row, "text": f"new {row['text']}"} for row in rows]
        lite.session.execute(update(Page), changes)

        assert {row["id"]: row["text"] for row in rows} == inserted
        assert {row["id"]: row["text"] for row in changes} == {
            page.id: page.text for page in lite.session.scalars(select(Page))
        }


def test_the_first_of_many_rows_that_cannot_be_written(lite: Started) -> None:
    """One value among many that its column cannot hold refuses them all and names the column."""
    rows: list[dict[str, Any]] = [{"user_id": 1 + n % 2, "body": f"{n}", "size": n} for n in range(300)]
    rows[270]["size"] = "many"
    with both(lite), pytest.raises(ValueEncodingError, match=r"notes\.size holds 'int' values; this str "):
        lite.session.execute(insert(Note), rows)

    assert not lite.session.scalars(select(Note)).all()


def test_a_hook_that_changes_the_owner(lite: Started) -> None:
    """A `before_insert` hook of the application that changes the owner decides whose key it is; a
    `before_update` one that moves the row after ours ran is refused, or moves it rightly, never half."""

    def give_to_ben(mapper: object, connection: object, note: Note) -> None:
        note.user_id = 2

    with both(lite):
        sa.event.listen(Note, "before_insert", give_to_ben)
        try:
            note_id = _note(lite)
        finally:
            sa.event.remove(Note, "before_insert", give_to_ben)
        assert opens_for(lite, lite.ben, note_id) == "before"
        other_id = _note(lite)
        sa.event.listen(Note, "before_update", give_to_ben)
        note = lite.session.get_one(Note, other_id)
        try:
            note.title = "t"
            lite.session.commit()
        except StatementRefusedError:
            lite.session.rollback()
        finally:
            sa.event.remove(Note, "before_update", give_to_ben)
        owner = lite.ada if note.user_id == 1 else lite.ben

    assert opens_for(lite, owner, other_id) == "before"


@pytest.mark.any_database
def test_core_without_a_session(started: Started) -> None:
    """A connection of the engine's own writes and reads under the keys of the context."""
    with unlock(started.session, started.ada) as unlocked, started.engine.connect() as connection:
        started.session.commit()
        connection.execute(NOTES.insert(), [{"user_id": 1, "body": PLAIN}, {"user_id": 1, "body": "more"}])
        with unlocked.using(started.session.get_one(User, 1)):
            connection.execute(NOTES.update().where(NOTES.c.body.is_(None)).values(body="never"))
        found = connection.execute(select(NOTES.c.body).order_by(NOTES.c.id)).scalars().all()

        assert found == [PLAIN, "more"]
        with pytest.raises(LockedError):
            connection.execute(NOTES.insert(), [{"user_id": 2, "body": PLAIN}])


@pytest.mark.any_database
def test_a_session_on_a_connection(postgres_engine: Engine) -> None:
    """A session that joins a transaction from outside finds its keys, and its savepoints work."""
    Base.metadata.create_all(postgres_engine)
    with Session(postgres_engine) as session:
        new_user(session)
    with postgres_engine.connect() as connection, connection.begin() as outer:
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            ada = session.get_one(User, 1)
            with unlock(session, ada):
                session.add(Note(user_id=1, body=PLAIN))
                session.commit()
                assert session.scalars(select(Note)).one().body == PLAIN
                session.add(Note(user_id=1, body="lost"))
                session.flush()
                session.rollback()
                assert session.scalars(select(Note)).one().body == PLAIN
        outer.rollback()
    with Session(postgres_engine) as session:
        assert session.scalars(select(Note)).all() == []


def test_scoped_sessions(lite: Started) -> None:
    """A `scoped_session` is taken for the session behind it."""
    scoped = scoped_session(sessionmaker(lite.engine))
    with unlock(scoped, scoped.get_one(User, 1)):
        scoped.add(Note(user_id=1, body=PLAIN))
        scoped.commit()
        assert scoped.scalars(select(Note)).one().body == PLAIN
    with pytest.raises(LockedError):
        _ = scoped.scalars(select(Note)).one().body
    scoped.remove()


def test_legacy_updates(lite: Started) -> None:
    """`Query.update()` follows the rules of `update()`."""
    with unlock(lite.session, lite.ada) as unlocked:
        note_id = _note(lite)
        query = lite.session.query(Note).filter(Note.id == note_id)
        for values in ({"body": PLAIN}, {Note.body: PLAIN}, {"user_id": 2}, {Note.body: Note.title}):
            with pytest.raises(StatementRefusedError):
                query.update(values)  # type: ignore[arg-type]
        with unlocked.using(lite.ada):
            query.update({Note.body: PLAIN})
        lite.session.commit()

    assert opens_for(lite, lite.ada, note_id) == PLAIN


class Versioned(Shapes):
    __tablename__ = "versioned"
    id: Mapped[int] = mapped_column(primary_key=True)
    company_id: Mapped[int] = mapped_column(ForeignKey("companies.id"))
    text: Mapped[str | None] = mapped_column(EncryptedType(String))
    version: Mapped[int] = mapped_column()
    stamp: Mapped[str] = mapped_column(server_default="s")
    __mapper_args__ = {"version_id_col": version, "eager_defaults": True}  # noqa: RUF012


@pytest.mark.any_database
def test_versioned_rows(shapes: Session, company: Company) -> None:
    """Version counters and eagerly fetched defaults stand beside encrypted values, through a move as well."""
    other = Company()
    with unlock(shapes, company), envelope.enroll(shapes, other, secret=SECRET):
        row = Versioned(company_id=company.id, text=PLAIN)
        shapes.add(row)
        shapes.commit()
        row.text = "changed"
        shapes.commit()
        row.company_id = other.id
        shapes.commit()

        assert (row.text, row.version, row.stamp) == ("changed", 3, "s")
        row.company_id = None  # type: ignore[assignment]
        with pytest.raises(EnvelopeError):
            shapes.commit()
        shapes.rollback()
        assert row.text == "changed"


@pytest.mark.any_database
def test_a_copy_inside_the_database(shapes: Session, company: Company) -> None:
    """INSERT .. FROM SELECT between columns of one label, a row's owner beside it, is the one copy that SQL
    may make."""
    table: Any = Renamed.__table__
    with unlock(shapes, company):
        shapes.add(Renamed(whose=company.id, said=PLAIN))
        shapes.commit()
        shapes.execute(insert(table).from_select(["company", "text"], select(table.c.company, table.c.text)))
        shapes.commit()

        assert [one.said for one in shapes.scalars(select(Renamed))] == [PLAIN, PLAIN]


@pytest.mark.any_database
def test_a_copy_that_changes_the_owner(shapes: Session, company: Company) -> None:
    """The same copy under another owner would leave a value under a key that goes with the first: refused."""
    table: Any = Renamed.__table__
    other = Company()
    with unlock(shapes, company), envelope.enroll(shapes, other, secret=SECRET):
        shapes.add(Renamed(whose=company.id, said=PLAIN))
        shapes.commit()
        copies = select(sa.literal(other.id), table.c.text)
        with pytest.raises(StatementRefusedError):
            shapes.execute(insert(table).from_select(["company", "text"], copies))


@pytest.mark.any_database
def test_a_default_that_reads_the_statement(shapes: Session, company: Company) -> None:
    """A context-sensitive default cannot be evaluated before the statement: an error of ours, and nothing
    stored."""
    with unlock(shapes, company):
        shapes.add(Contextual(company_id=company.id))
        with pytest.raises(EnvelopeError, match="default"):
            shapes.flush()
        shapes.rollback()
        with pytest.raises(EnvelopeError, match="default"):
            shapes.execute(insert(Contextual), [{"company_id": company.id}])


class Contextual(Shapes):
    __tablename__ = "contextual"
    id: Mapped[int] = mapped_column(primary_key=True)
    company_id: Mapped[int] = mapped_column(ForeignKey("companies.id"))
    text: Mapped[str | None] = mapped_column(
        EncryptedType(String), default=lambda context: f"{context.get_current_parameters()}"
    )
