"""A flush stores each encrypted column under the key of its row's owner, whatever else it does: new owners,
copies, row switches, failures, versions."""

import uuid
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Uuid, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import make_transient

from sqlalchemy_envelope import DecryptionError, LockedError, StatementRefusedError, UnflushedError
from tests.orm.conftest import Started
from tests.orm.models import SECRET, Note, Page, User, envelope, new_user, statements_sent, stored, unlock
from tests.orm.writing.reading_back import BODY, add_note, both, opens_for

pytestmark = pytest.mark.both_lines
NOTES: Any = Note.__table__
PAGES: Any = Page.__table__
PLAIN = "p1aintext"


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
        note_id = add_note(lite)
        note = lite.session.scalars(
            select(Note).options(sa.orm.load_only(Note.body)).where(Note.id == note_id)
        ).one()
        lite.session.expire(note, ["user_id"])
        note.body = PLAIN
        lite.session.commit()

    assert opens_for(lite, lite.ada, note_id) == PLAIN


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

    assert [one.split()[:2] for one in sent] == [["SELECT", "DISTINCT"]]
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


# Objects


@pytest.mark.any_database
def test_merge_new_and_existing(started: Started) -> None:
    """`merge` writes a new row and changes an old one, and a merge without change writes nothing."""
    with unlock(started.session, started.ada):
        note_id = add_note(started)
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
        note_id = add_note(lite)
        lite.session.delete(lite.session.get_one(Note, note_id))
        lite.session.add(Note(id=note_id, user=lite.ben, body=PLAIN))
        lite.session.commit()

    assert opens_for(lite, lite.ben, note_id) == PLAIN


def test_a_copy_made_transient(lite: Started) -> None:
    """An object made transient and added again is a new row with a value of its own."""
    with unlock(lite.session, lite.ada):
        note_id = add_note(lite)
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
        null_id, empty_id = add_note(started, body=None), add_note(started, body="")

    assert stored(started.engine, BODY, null_id) is None
    assert opens_for(started, started.ada, null_id) is None
    assert opens_for(started, started.ada, empty_id) == ""


def test_no_spurious_update(lite: Started) -> None:
    """Setting an equal value, or only reading, sends no UPDATE."""
    with unlock(lite.session, lite.ada):
        note_id = add_note(lite, tags=["a"], extra={"k": 1})
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
        note_id = add_note(started)
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
        note_id = add_note(lite)
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


def test_row_switch_keeps_what_stays(lite: Started) -> None:
    """Delete and add for the same owner: what the new object does not set stays, and still opens."""
    with both(lite):
        note_id = add_note(lite, size=7)
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


def test_a_hook_that_changes_the_owner(lite: Started) -> None:
    """A `before_insert` hook of the application that changes the owner decides whose key it is; a
    `before_update` one that moves the row after ours ran is refused, or moves it rightly, never half."""

    def give_to_ben(mapper: object, connection: object, note: Note) -> None:
        note.user_id = 2

    with both(lite):
        sa.event.listen(Note, "before_insert", give_to_ben)
        try:
            note_id = add_note(lite)
        finally:
            sa.event.remove(Note, "before_insert", give_to_ben)
        assert opens_for(lite, lite.ben, note_id) == "before"
        other_id = add_note(lite)
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
