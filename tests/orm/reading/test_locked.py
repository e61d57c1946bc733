"""Rows whose owner is locked load, are changed around and saved without harm to the stored bytes; touching
a locked value raises; leaving an unlocked session takes the plaintext with it."""

import pickle
from typing import Any

import pytest
from sqlalchemy import inspect, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, attributes, base, defer, undefer

from sqlalchemy_envelope import LockedError, Sealed, StatementRefusedError
from tests.orm.conftest import Started
from tests.orm.models import Note, Page, User, statements_sent, stored, unlock
from tests.orm.reading.locked_notes import assert_locked, body_of, note_of

pytestmark = [pytest.mark.both_lines, pytest.mark.any_database]
BODY: Any = Note.__table__.c.body  # type: ignore[attr-defined]
PLAIN = "p1aintext"


NO_LOADING = [
    value
    for name, value in sorted(vars(base).items())
    if name.startswith("PASSIVE_")
    and isinstance(value, type(base.PASSIVE_OFF))
    and not (value & base.SQL_OK and value & base.CALLABLES_OK)
]
"""Every way in which SQLAlchemy asks for an attribute without loading it."""


def _flushed(session: Session, note: Any, name: str) -> None:
    session.flush()


def _refreshed(session: Session, note: Any, name: str) -> None:
    session.flush()
    session.refresh(note)
    assert note.title == "changed"


def _refreshed_attribute(session: Session, note: Any, name: str) -> None:
    session.flush()
    session.refresh(note, [name])


def _expired(session: Session, note: Any, name: str) -> None:
    session.flush()
    session.expire(note)
    assert note.title == "changed"


def _expired_attribute(session: Session, note: Any, name: str) -> None:
    session.expire(note, [name])
    assert_locked(note, name)


def _committed(session: Session, note: Any, name: str) -> None:
    session.commit()
    assert note.title == "changed"
    note.title = "changed again"


def _touched(session: Session, note: Any, name: str) -> None:
    assert_locked(note, name)
    assert not session.is_modified(note) or note.title


def _history_asked(session: Session, note: Any, name: str) -> None:
    state = inspect(note)
    assert state.attrs[name].history == attributes.HISTORY_BLANK
    for look in NO_LOADING:
        assert attributes.get_history(note, name, look) == attributes.HISTORY_BLANK
    assert session.is_modified(note)


def _merged(session: Session, note: Any, name: str) -> None:
    session.flush()
    session.expunge(note)
    merged = session.merge(note)
    assert_locked(merged, name)


def _merged_pickled(session: Session, note: Any, name: str) -> None:
    session.flush()
    copied = pickle.loads(pickle.dumps(note))  # noqa: S301 - pickled right here
    assert_locked(copied, name)
    merged = session.merge(copied)
    assert merged is note


def _merged_into_an_empty_session(session: Session, note: Any, name: str) -> None:
    session.flush()
    copied = pickle.loads(pickle.dumps(note))  # noqa: S301 - as above
    session.commit()
    session.expunge_all()
    merged = session.merge(copied, load=False)
    assert_locked(merged, name)
    merged.title = "again"


def _readded(session: Session, note: Any, name: str) -> None:
    session.flush()
    copied = pickle.loads(pickle.dumps(note))  # noqa: S301 - as above
    session.commit()
    session.expunge_all()
    session.add(copied)
    copied.title = "after pickling"


def _failed_then_retried(session: Session, note: Any, name: str) -> None:
    session.add(User(email="ada@example.org"))
    with pytest.raises(IntegrityError):
        session.flush()
    session.rollback()
    assert_locked(note, name)
    note.title = "changed"


def _rolled_back_savepoint(session: Session, note: Any, name: str) -> None:
    session.flush()
    nested = session.begin_nested()
    note.title = "lost"
    session.flush()
    nested.rollback()
    assert note.title == "changed"


def _populated_again(session: Session, note: Any, name: str) -> None:
    session.flush()
    session.scalars(select(type(note)).execution_options(populate_existing=True)).all()
    assert_locked(note, name)


@pytest.mark.parametrize(
    "happen",
    [
        _flushed,
        _refreshed,
        _refreshed_attribute,
        _expired,
        _expired_attribute,
        _committed,
        _touched,
        _history_asked,
        _merged,
        _merged_pickled,
        _merged_into_an_empty_session,
        _readded,
        _failed_then_retried,
        _rolled_back_savepoint,
        _populated_again,
    ],
)
@pytest.mark.parametrize("model", [Note, Page], ids=["column-bound", "row-bound"])
def test_stored_bytes_survive(lite: Started, happen: Any, model: Any) -> None:
    """Whatever a locked object goes through, its stored bytes stay the same, and open later."""
    name = "body" if model is Note else "text"
    with lite.fresh() as session, unlock(session, session.get_one(User, 1)):
        made = model(user_id=1, title="t", **{name: PLAIN})
        session.add(made)
        session.commit()
        key = made.id
    column = model.__table__.c[name]
    before = stored(lite.engine, column, key)
    with lite.fresh() as session:
        one = session.get_one(model, key)
        one.title = "changed"
        happen(session, one, name)
        session.commit()

    assert stored(lite.engine, column, key) == before
    with lite.fresh() as session, unlock(session, session.get_one(User, 1)):
        assert getattr(session.get_one(model, key), name) == PLAIN


def test_one_of_two_owners(started: Started) -> None:
    """A list of two owners' rows loads; only the locked values raise, and only when they are touched."""
    a_id, b_id = note_of(started, started.ada), note_of(started, started.ben)
    with unlock(started.session, started.ada):
        notes = {note.id: note for note in started.session.scalars(select(Note).order_by(Note.id))}

        assert notes[a_id].body == PLAIN
        assert notes[b_id].title == "t"
        with pytest.raises(LockedError) as caught:
            _ = notes[b_id].body
    assert "Note.body" in str(caught.value)
    assert PLAIN not in str(caught.value)


def test_touching_sends_nothing(started: Started) -> None:
    """The error for a locked value costs no SQL: under asyncio there would be nowhere to run it."""
    note = started.session.get_one(Note, note_of(started, started.ada))
    with statements_sent(started.engine) as sent:
        assert_locked(note)
        assert_locked(note, "body")
        assert not hasattr(note, "__missing__")

    assert sent == []
    assert "body" not in note.__dict__
    assert PLAIN not in repr(vars(note))


def test_unlocking_later_opens_the_same_instance(started: Started) -> None:
    """Once unlocked, an object that was loaded locked opens without SQL and without looking changed."""
    note_id = note_of(started, started.ada, tags=["a"], extra={"k": 1}, size=7)
    note = started.session.get_one(Note, note_id)
    assert_locked(note)
    with unlock(started.session, started.ada), statements_sent(started.engine) as sent:
        assert (note.body, note.size, note.tags, note.extra) == (PLAIN, 7, ["a"], {"k": 1})
        assert not started.session.is_modified(note)
        started.session.flush()

        assert sent == []


def test_a_late_open_is_tracked(started: Started) -> None:
    """A mutable value that was opened late is tracked: a change in place is stored."""
    note_id = note_of(started, started.ada, tags=["a"], extra={"k": 1})
    note = started.session.get_one(Note, note_id)
    with unlock(started.session, started.ada):
        note.tags.append("b")
        note.extra["l"] = 2
        started.session.commit()
        started.session.expire_all()

        assert (note.tags, note.extra) == (["a", "b"], {"k": 1, "l": 2})


def test_row_bound_values_open_late(lite: Started) -> None:
    """The same for a value bound to its row."""
    with unlock(lite.session, lite.ada):
        page = Page(user_id=1, text=PLAIN)
        lite.session.add(page)
        lite.session.commit()
        page_id = page.id
    lite.session.expunge_all()
    page = lite.session.get_one(Page, page_id)
    assert_locked(page, "text")
    with unlock(lite.session, lite.session.get_one(User, 1)), statements_sent(lite.engine) as sent:
        assert page.text == PLAIN
        assert sent == []


def test_overwriting_a_locked_value(started: Started) -> None:
    """A new value for a locked attribute cannot be flushed while locked; unlocked, it takes the old one's
    place."""
    note_id = note_of(started, started.ada)
    before = stored(started.engine, BODY, note_id)
    note = started.session.get_one(Note, note_id)
    note.body = "new"
    assert note.body == "new"
    with pytest.raises(LockedError):
        started.session.flush()
    started.session.rollback()
    assert stored(started.engine, BODY, note_id) == before
    assert_locked(note)
    note.body = "new"
    with unlock(started.session, started.ada):
        started.session.commit()

    assert body_of(started, started.ada, note_id) == "new"


def test_setting_a_locked_value_to_null(started: Started) -> None:
    """Deleting needs no key: NULL may take a locked value's place."""
    note_id = note_of(started, started.ada)
    note = started.session.get_one(Note, note_id)
    note.body = None
    started.session.commit()

    assert stored(started.engine, BODY, note_id) is None
    assert note.body is None


def test_deleting_a_locked_attribute(lite: Started) -> None:
    """`del note.body` on a locked attribute does not lose the stored bytes by accident."""
    note_id = note_of(lite, lite.ada)
    before = stored(lite.engine, BODY, note_id)
    note = lite.session.get_one(Note, note_id)
    with pytest.raises((LockedError, AttributeError)):
        del note.body
    lite.session.commit()

    assert stored(lite.engine, BODY, note_id) == before


def test_rolling_back_an_overwrite(lite: Started) -> None:
    """After a rollback the locked value is back, and opens."""
    note_id = note_of(lite, lite.ada)
    note = lite.session.get_one(Note, note_id)
    note.body = "new"
    lite.session.rollback()
    assert_locked(note)
    with unlock(lite.session, lite.ada):
        assert note.body == PLAIN


def test_a_sealed_value_cannot_be_carried_elsewhere(lite: Started) -> None:
    """A `Sealed` handle assigned to another row is refused: nobody could read it there."""
    note_id = note_of(lite, lite.ada)
    sealed = lite.session.scalar(select(Note.body).where(Note.id == note_id))
    assert isinstance(sealed, Sealed)
    lite.session.add(Note(user_id=2, body=sealed))
    with unlock(lite.session, lite.ben):
        with pytest.raises(StatementRefusedError):
            lite.session.flush()
        lite.session.rollback()


def test_deferred_attributes(started: Started) -> None:
    """A deferred encrypted column loads on access, open or locked."""
    note_id = note_of(started, started.ada)
    query = select(Note).options(defer(Note.body)).where(Note.id == note_id)
    note = started.session.scalars(query).one()
    assert_locked(note)
    with unlock(started.session, started.ada):
        assert note.body == PLAIN
    started.session.expunge_all()
    with unlock(started.session, started.session.get_one(User, 1)):
        assert started.session.scalars(query).one().body == PLAIN
        started.session.expunge_all()
        note = started.session.scalars(select(Note).options(defer("*"), undefer(Note.body))).one()
        assert note.body == PLAIN
