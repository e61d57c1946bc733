"""While values are moved, every way to write the encrypted column keeps the previous one true: the same value
beside it, or nothing; and where the first step has no key, what was stored before is stored still.
"""

# ruff: noqa: N803, N806 - the classes are those of a step, and are found in it

import uuid
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, bindparam, insert, inspect, null, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    Envelope,
    KdfProfile,
    LockedError,
    NotEnrolledError,
    ServerKeyring,
    StatementRefusedError,
    ValueEncodingError,
)
from tests.orm.models import statements_sent
from tests.orm.previous_models import SECRET, Moving, envelope, start

pytestmark = [pytest.mark.both_lines, pytest.mark.any_database]

POLICIES = ["both", "read", "refuse"]


@pytest.fixture(params=POLICIES)
def anywhere(request: pytest.FixtureRequest, engine: Engine) -> Moving:
    """Each step, on SQLite and on PostgreSQL."""
    return start(engine, request.param)


@pytest.fixture(params=POLICIES)
def moving(request: pytest.FixtureRequest, sqlite_engine: Engine) -> Moving:
    """Each step, on SQLite."""
    return start(sqlite_engine, request.param)


@pytest.fixture
def step_one(sqlite_engine: Engine) -> Moving:
    """The step that writes both."""
    return start(sqlite_engine, "both")


def flush(session: Session, Note: Any, rows: list[dict[str, Any]]) -> None:
    session.add_all([Note(**row) for row in rows])


def bulk_mappings(session: Session, Note: Any, rows: list[dict[str, Any]]) -> None:
    session.bulk_insert_mappings(inspect(Note), rows)


def bulk_objects(session: Session, Note: Any, rows: list[dict[str, Any]]) -> None:
    session.bulk_save_objects([Note(**row) for row in rows])


def orm_rows(session: Session, Note: Any, rows: list[dict[str, Any]]) -> None:
    session.execute(insert(Note), rows)


def orm_returning(session: Session, Note: Any, rows: list[dict[str, Any]]) -> None:
    made = session.scalars(insert(Note).returning(Note), rows).all()
    assert {one.body for one in made} == {row["body"] for row in rows}


def orm_values(session: Session, Note: Any, rows: list[dict[str, Any]]) -> None:
    session.execute(insert(Note).values(rows))


def orm_each(session: Session, Note: Any, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        session.execute(insert(Note).values(**row))


def core_rows(session: Session, Note: Any, rows: list[dict[str, Any]]) -> None:
    named = [{"body_encrypted": row["body"], "user_id": row["user_id"]} for row in rows]
    session.execute(insert(Note.__table__), named)


def core_parameters(session: Session, Note: Any, rows: list[dict[str, Any]]) -> None:
    statement = insert(Note.__table__).values(user_id=bindparam("who"), body_encrypted=bindparam("what"))
    session.execute(statement, [{"who": row["user_id"], "what": row["body"]} for row in rows])


@pytest.mark.parametrize(
    "write",
    [
        flush,
        bulk_mappings,
        bulk_objects,
        orm_rows,
        orm_returning,
        orm_values,
        orm_each,
        core_rows,
        core_parameters,
    ],
)
def test_inserts(anywhere: Moving, write: Any) -> None:
    """Each form of INSERT writes the previous column of each row as the policy says, and NULL for NULL."""
    values = ["one", None, "three", ""]
    with anywhere.unlocked() as session:
        write(session, anywhere.m.Note, [{"user_id": anywhere.user_id, "body": one} for one in values])
        session.commit()
        ids = session.scalars(select(anywhere.m.Note.id).order_by(anywhere.m.Note.id)).all()
        read = [session.get_one(anywhere.m.Note, one, populate_existing=True).body for one in ids]

    stored = [anywhere.row("notes", one, "body") for one in ids]
    kept = values if anywhere.policy == "both" else [None] * 4
    assert read == values
    assert stored == [(kept[n], one is not None) for n, one in enumerate(values)]


def object_update(session: Session, note: Any, value: Any) -> None:
    note.body = value


def update_where(session: Session, note: Any, value: Any) -> None:
    Note = type(note)
    session.execute(update(Note).where(Note.id == note.id).values(body=value))


def update_by_key(session: Session, note: Any, value: Any) -> None:
    session.execute(update(type(note)), [{"id": note.id, "body": value}])


def update_mappings(session: Session, note: Any, value: Any) -> None:
    session.bulk_update_mappings(inspect(type(note)), [{"id": note.id, "body": value}])


def core_update(session: Session, note: Any, value: Any) -> None:
    table = type(note).__table__
    session.execute(update(table).where(table.c.id == note.id).values(body_encrypted=value))


def ordered_update(session: Session, note: Any, value: Any) -> None:
    table = type(note).__table__
    session.execute(
        update(table)
        .where(table.c.id == note.id)
        .ordered_values((table.c.title, "t"), (table.c.body_encrypted, value))
    )


def core_parameters_update(session: Session, note: Any, value: Any) -> None:
    table = type(note).__table__
    statement = update(table).where(table.c.id == bindparam("which")).values(body_encrypted=bindparam("what"))
    rows = [{"which": one, "what": value} for one in (note.id, -1)]
    session.connection().execute(statement, rows)


@pytest.mark.parametrize(
    "write",
    [
        object_update,
        update_where,
        update_by_key,
        update_mappings,
        core_update,
        ordered_update,
        core_parameters_update,
    ],
)
@pytest.mark.parametrize("value", ["new", None])
def test_updates(anywhere: Moving, write: Any, value: str | None) -> None:
    """Each form of UPDATE writes the previous column as the policy says, whatever it held before."""
    anywhere.old("INSERT INTO notes (id, user_id, body) VALUES (7, :user, 'old')", user=anywhere.user_id)
    if anywhere.policy == "refuse":
        anywhere.old("UPDATE notes SET body = NULL")
    with anywhere.unlocked() as session:
        note = session.get_one(anywhere.m.Note, 7)
        with session.info["unlocked"].using(session.get_one(anywhere.m.User, anywhere.user_id)):
            write(session, note, value)
        session.commit()
        read = session.get_one(anywhere.m.Note, 7, populate_existing=True).body

    kept = value if anywhere.policy == "both" else None
    assert read == value
    assert anywhere.row("notes", 7, "body") == (kept, value is not None)


def test_null_in_the_statement(moving: Moving) -> None:
    """An SQL NULL assigned to the encrypted column empties the previous one too."""
    moving.old("INSERT INTO notes (id, user_id, body) VALUES (7, :user, 'old')", user=moving.user_id)
    Note = moving.m.Note
    with moving.locked() as session:
        session.execute(update(Note).where(Note.id == 7).values(body=null(), title="t"))
        session.commit()

    assert moving.row("notes", 7, "body") == (None, False)


def test_another_column_alone(moving: Moving) -> None:
    """An UPDATE of something else leaves both columns alone, and the row pending."""
    moving.old("INSERT INTO notes (id, user_id, body) VALUES (7, :user, 'old')", user=moving.user_id)
    with moving.locked() as session:
        session.get_one(moving.m.Note, 7).title = "t"
        session.commit()

    assert moving.row("notes", 7, "body") == ("old", False)


def test_json(anywhere: Moving) -> None:
    """A JSON value and its absence: SQL NULL in both columns, not the text `null` in one."""
    with anywhere.unlocked() as session:
        full = anywhere.note(session, extra={"a": [1]}).id
        none = anywhere.note(session, extra=None).id
        changed = session.get_one(anywhere.m.Note, full)
        changed.extra["b"] = 2
        session.commit()
        session.expire_all()
        assert changed.extra == {"a": [1], "b": 2}

    before, encrypted = anywhere.row("notes", full, "extra")
    assert encrypted
    assert (before is None) is (anywhere.policy != "both")
    assert anywhere.row("notes", none, "extra") == (None, False)


def upsert(engine: Engine) -> Any:
    return (sqlite if engine.dialect.name == "sqlite" else postgresql).insert


@pytest.mark.parametrize("many", [False, True])
def test_upserts(anywhere: Moving, many: bool) -> None:
    """An upsert that sets the encrypted column from the proposed row sets the previous one from it too."""
    Note, user = anywhere.m.Note, anywhere.user_id
    anywhere.old("INSERT INTO notes (id, user_id, body) VALUES (7, :user, 'old')", user=user)
    rows = [{"id": 7, "user_id": user, "body": "new"}, {"id": 8, "user_id": user, "body": "other"}]
    proposed: Any = upsert(anywhere.engine)(Note)
    with anywhere.unlocked() as session:
        statement = proposed.on_conflict_do_update(
            index_elements=["id"],
            set_={
                "user_id": proposed.excluded.user_id,
                "body_encrypted": proposed.excluded.body_encrypted,
                "size_encrypted": proposed.excluded.size_encrypted,
                "extra_encrypted": proposed.excluded.extra_encrypted,
            },
        )
        if many:
            session.execute(statement, rows)
        else:
            session.execute(statement.values(rows))
        session.commit()
        assert session.get_one(Note, 7).body == "new"

    kept = "new" if anywhere.policy == "both" else None
    assert anywhere.row("notes", 7, "body") == (kept, True)


# The owner's key is not here


def test_locked_inserts_are_left_for_the_migration(step_one: Moving) -> None:
    """Where nothing is unlocked, the first step stores what was stored before: the row is pending."""
    with step_one.locked() as session:
        note = step_one.note(session, body="plain", size=3)
        session.execute(
            insert(step_one.m.Note),
            [{"user_id": step_one.user_id, "body": f"row {n}", "size": None} for n in range(3)],
        )
        session.commit()
        assert (note.body, note.size) == ("plain", 3)
        bodies = session.scalars(select(step_one.m.Note.body).order_by(step_one.m.Note.id)).all()

    assert bodies == ["plain", "row 0", "row 1", "row 2"]
    assert step_one.row("notes", note.id, "body") == ("plain", False)
    assert step_one.row("notes", note.id, "size") == (3, False)


@pytest.mark.parametrize(
    "write", [object_update, update_where, update_by_key, core_update, core_parameters_update]
)
def test_locked_updates_make_rows_pending(step_one: Moving, write: Any) -> None:
    """A locked UPDATE of an encrypted row takes out what is old now, so that the migration comes again."""
    with step_one.unlocked() as session:
        key = step_one.note(session, body="first").id
    with step_one.locked() as session:
        note = session.get_one(step_one.m.Note, key)
        write(session, note, "second")
        session.commit()
        assert session.get_one(step_one.m.Note, key, populate_existing=True).body == "second"

    assert step_one.row("notes", key, "body") == ("second", False)


def test_rows_without_an_owner(step_one: Moving) -> None:
    """A row whose owner is NULL, or not named by the statement, is stored as before."""
    Note = step_one.m.Note
    with step_one.unlocked() as session:
        session.add(Note(id=1, body="nobody's"))
        session.flush()
        key = step_one.note(session, body="first").id
        session.execute(update(Note).where(Note.id == key).values(body="second"))
        session.commit()

    assert step_one.row("notes", 1, "body") == ("nobody's", False)
    assert step_one.row("notes", key, "body") == ("second", False)


@pytest.mark.parametrize("policy", ["read", "refuse"])
def test_locked_is_an_error_from_the_second_step_on(sqlite_engine: Engine, policy: Any) -> None:
    """No plaintext is written once the policy is another; nothing is sent."""
    moving = start(sqlite_engine, policy)
    with moving.locked() as session:
        session.add(moving.m.Note(user_id=moving.user_id, body="plain"))
        with statements_sent(sqlite_engine) as sent, pytest.raises(LockedError):
            session.flush()

    assert sent == []


def test_new_owners_nobody_enrolled(sqlite_engine: Engine) -> None:
    """`session.add` of an owner works on in the first step; from the second on it has to be enrolled."""
    first = start(sqlite_engine, "both")
    with first.locked() as session:
        eve = first.m.User(email="eve@example.org", phone="555")
        session.add(eve)
        session.commit()
        assert eve.phone == "555"
        assert first.row("users", eve.id, "phone") == ("555", False)
        eve.phone = "556"
        session.commit()
        assert first.row("users", eve.id, "phone") == ("556", False)
        with envelope.enroll(session, eve, secret=SECRET):
            eve.phone = "557"
            session.commit()
        assert first.row("users", eve.id, "phone") == ("557", True)

    second = first.at("read")
    with second.locked() as session:
        session.add(second.m.User(email="may@example.org", phone="555"))
        with pytest.raises(NotEnrolledError):
            session.flush()


def test_enrolled_in_the_same_flush(moving: Moving) -> None:
    """A new owner that is enrolled has its own value encrypted at once."""
    with moving.locked() as session:
        eve = moving.m.User(email="eve@example.org", phone="555")
        envelope.enroll(session, eve, secret=SECRET)
        session.commit()
        key = eve.id

    assert moving.row("users", key, "phone") == ("555" if moving.policy == "both" else None, True)


def test_what_cannot_be_encrypted_is_refused_while_locked(step_one: Moving) -> None:
    """A value that the new type cannot hold is refused at once, not left for the migration to stumble on."""
    with step_one.locked() as session:
        session.add(step_one.m.Note(user_id=step_one.user_id, size="seven"))
        with pytest.raises(ValueEncodingError) as caught:
            session.flush()
        session.rollback()
        with pytest.raises(StatementRefusedError):
            session.execute(update(step_one.m.Note).values(body=sa.func.upper("x")))

    assert "seven" not in str(caught.value)


# Moves


@pytest.mark.parametrize("locked", [False, True])
def test_moving_to_another_owner(sqlite_engine: Engine, locked: bool) -> None:
    """A row that is moved is encrypted for its new owner, or pending if that one is locked."""
    moving = start(sqlite_engine, "both")
    with moving.unlocked() as session:
        key = moving.note(session, body="mine").id
        ben = moving.m.User(email="ben@example.org")
        unlocked = envelope.enroll(session, ben, secret=SECRET)
        session.commit()
        ben_id = ben.id
        note = session.get_one(moving.m.Note, key)
        if locked:
            note.user_id = ben_id
            session.commit()
        else:
            with unlocked:
                note.user_id = ben_id
                session.commit()

    assert moving.row("notes", key, "body") == ("mine", not locked)
    if not locked:
        with Moving(sqlite_engine, "read", ben_id).unlocked() as session:
            assert session.get_one(moving.at("read").m.Note, key).body == "mine"


def test_moving_while_all_is_locked(step_one: Moving) -> None:
    """With no key at all, a moved row keeps its previous value and loses the ciphertext of its old owner."""
    with step_one.unlocked() as session:
        key = step_one.note(session, body="mine").id
    with step_one.locked() as session:
        ben = step_one.m.User(email="ben@example.org")
        session.add(ben)
        session.flush()
        session.get_one(step_one.m.Note, key).user = ben
        session.commit()

    assert step_one.row("notes", key, "body") == ("mine", False)


# The previous values are encrypted too


def test_from_column_bound_to_row_bound(moving: Moving) -> None:
    """Both columns are encrypted, each in its own way, and the one that is left opens alone."""
    Page = moving.m.Page
    with moving.unlocked() as session:
        page = Page(user_id=moving.user_id, text="words")
        session.add(page)
        session.execute(
            insert(Page), [{"id": uuid.uuid4(), "user_id": moving.user_id, "text": f"w{n}"} for n in range(2)]
        )
        session.commit()
        session.expire_all()
        assert page.text == "words"
        texts = {one.text for one in session.scalars(select(Page))}

    rows = moving.old("SELECT text, text_by_row FROM pages")
    assert texts == {"words", "w0", "w1"}
    assert all(bytes(row[1])[:1] == b"\x01" for row in rows)
    assert all((row[0] is None) is (moving.policy != "both") for row in rows)
    assert not any(bytes(row[0] or b"")[:1] == b"w" for row in rows)


def test_locked_while_both_are_encrypted(step_one: Moving) -> None:
    """Encrypted before, a value needs its key in the first step as it did without the second column."""
    with step_one.locked() as session:
        session.add(step_one.m.Page(user_id=step_one.user_id, text="words"))
        with pytest.raises(LockedError):
            session.flush()


# Shapes


def test_subclasses(anywhere: Moving) -> None:
    """A column that a subclass adds to its parent's table, and one in a table of its own."""
    Guest, Staff = anywhere.m.Guest, anywhere.m.Staff
    with anywhere.unlocked() as session:
        guest = Guest(user_id=anywhere.user_id, wish="tea")
        staff = Staff(user_id=anywhere.user_id, salary=5)
        session.add_all([guest, staff])
        session.commit()
        guest.wish, staff.salary = "milk", 6
        session.commit()
        keys = guest.id, staff.id
        with session.info["unlocked"].using(session.get_one(anywhere.m.User, anywhere.user_id)):
            session.execute(insert(Staff), [{"user_id": anywhere.user_id, "salary": 8}])
        session.commit()
        session.expire_all()
        assert (guest.wish, staff.salary) == ("milk", 6)

    kept = anywhere.policy == "both"
    assert anywhere.row("people", keys[0], "wish") == ("milk" if kept else None, True)
    assert anywhere.row("staff", keys[1], "salary") == (6 if kept else None, True)


def test_no_spurious_update(moving: Moving) -> None:
    """Reading a pending value, and setting it to what it is, writes nothing."""
    moving.old("INSERT INTO notes (id, user_id, body) VALUES (7, :user, 'old')", user=moving.user_id)
    with moving.at("read").unlocked() as session, statements_sent(moving.engine) as sent:
        note = session.get_one(moving.at("read").m.Note, 7)
        assert note.body == "old"
        note.body = "old"
        session.commit()

    assert not any("UPDATE" in one for one in sent)


def test_merge(anywhere: Moving) -> None:
    """Merging an object brings no old previous value back into the database."""
    user = anywhere.user_id
    anywhere.old("INSERT INTO notes (id, user_id, title, body) VALUES (7, :user, 'a', 'old')", user=user)
    first = anywhere.at("read") if anywhere.policy == "refuse" else anywhere
    with first.unlocked() as session:
        note = session.get_one(first.m.Note, 7)
        assert note.body == "old"
        session.expunge(note)
    with first.unlocked() as session:
        session.get_one(first.m.Note, 7).body = "new"
        session.commit()
    with first.unlocked() as session:
        note.title = "b"
        session.merge(note)
        session.commit()

    assert first.row("notes", 7, "body") == ("old" if first.policy == "both" else None, True)


def test_old_programs_write_on(step_one: Moving) -> None:
    """Written by itself, through its own column, the previous value is kept and the row pending."""
    Note = step_one.m.Note
    with step_one.locked() as session:
        session.execute(insert(Note.__table__), [{"user_id": 1, "body_encrypted__previous": "old"}])
        session.add(Note(user_id=step_one.user_id, body_encrypted__previous="older"))
        session.commit()
        assert session.scalars(select(Note.body).order_by(Note.id)).all() == ["old", "older"]


# A server that holds keys


@pytest.fixture
def server() -> Envelope:
    """An envelope whose server opens the owners that have a slot for it."""
    profile = KdfProfile.unsafe_for_tests()
    return Envelope(kdf_profile=profile, server_keys=ServerKeyring([b"\x07" * 32]))


def test_a_server(anywhere: Moving, server: Envelope) -> None:
    """A server encrypts for those whose keys it has and for new owners, and keeps a stranger's rows as the
    first step would."""
    m = anywhere.m
    with Session(anywhere.engine) as session:
        owner = m.User(email="bob@example.org")
        server.enroll(session, owner, secret=SECRET)
        session.commit()
        owner_id = owner.id
    with server.server_mode(reason="test"), Session(anywhere.engine) as session:
        eve = m.User(email="eve@example.org", phone="555")
        session.add(eve)
        session.add_all([m.Note(user=eve, body=f"{n}") for n in range(3)])
        session.commit()
        session.expire_all()
        assert [one.body for one in eve.notes] == ["0", "1", "2"]
        assert anywhere.row("users", eve.id, "phone")[1]
        assert all(anywhere.row("notes", one.id, "body")[1] for one in eve.notes)
        stranger = m.Note(user_id=owner_id, body="plain")
        session.add_all([stranger, m.Note(user=eve, body="3")])
        if anywhere.policy != "both":
            with pytest.raises(LockedError):
                session.flush()
        else:
            session.commit()
            assert anywhere.row("notes", stranger.id, "body") == ("plain", False)
            assert [one.body for one in eve.notes] == ["0", "1", "2", "3"]
