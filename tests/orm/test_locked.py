"""Rows whose owner is locked load, are changed around and saved without harm to the stored bytes; touching a locked
value raises; leaving an unlocked session takes the plaintext with it."""

import copy
import pickle
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import inspect, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, attributes, defer, undefer

from sqlalchemy_envelope import (
    DecryptionError,
    FormatError,
    LockedError,
    Sealed,
    SessionLeftError,
    StatementRefusedError,
    TruncatedError,
    UnflushedError,
)
from tests.orm.conftest import Started
from tests.orm.models import Note, Page, User, envelope, new_user, statements_sent, stored, unlock

BODY: Any = Note.__table__.c.body  # type: ignore[attr-defined]
PLAIN = "p1aintext"


def note_of(started: Started, owner: User, **values: Any) -> int:
    """A committed note, in no session."""
    with started.fresh() as session:
        alone = session.get_one(User, owner.id)
        with unlock(session, alone):
            note = Note(**{"user_id": alone.id, "body": PLAIN, "title": "t"} | values)
            session.add(note)
            session.commit()
            return note.id


def body_of(started: Started, owner: User, note_id: int) -> Any:
    """What the note says to its owner, read in a session of its own."""
    with started.fresh() as session, unlock(session, session.get_one(User, owner.id)):
        return session.get_one(Note, note_id).body


def assert_locked(instance: Any, name: str = "body") -> None:
    with pytest.raises(LockedError):
        getattr(instance, name)


# Ways in which a locked object goes through a session


def _flushed(session: Session, note: Note) -> None:
    session.flush()


def _refreshed(session: Session, note: Note) -> None:
    session.flush()
    session.refresh(note)
    assert note.title == "changed"


def _refreshed_attribute(session: Session, note: Note) -> None:
    session.flush()
    session.refresh(note, ["body"])


def _expired(session: Session, note: Note) -> None:
    session.flush()
    session.expire(note)
    assert note.title == "changed"


def _expired_attribute(session: Session, note: Note) -> None:
    session.expire(note, ["body"])
    assert_locked(note)


def _committed(session: Session, note: Note) -> None:
    session.commit()
    assert note.title == "changed"
    note.title = "changed again"


def _touched(session: Session, note: Note) -> None:
    assert_locked(note)
    assert not session.is_modified(note) or note.title


def _history_asked(session: Session, note: Note) -> None:
    state = inspect(note)
    try:
        assert not state.attrs.body.history.has_changes()
        attributes.get_history(note, "body", attributes.PASSIVE_NO_INITIALIZE)
    except LockedError:
        pass
    assert session.is_modified(note)


def _merged(session: Session, note: Note) -> None:
    session.flush()
    session.expunge(note)
    merged = session.merge(note)
    assert_locked(merged)


def _merged_pickled(session: Session, note: Note) -> None:
    session.flush()
    copied = pickle.loads(pickle.dumps(note))  # noqa: S301 - pickled right here
    assert_locked(copied)
    merged = session.merge(copied)
    assert merged is note


def _merged_into_an_empty_session(session: Session, note: Note) -> None:
    session.flush()
    copied = pickle.loads(pickle.dumps(note))  # noqa: S301 - as above
    session.commit()
    session.expunge_all()
    merged = session.merge(copied, load=False)
    assert_locked(merged)
    merged.title = "again"


def _readded(session: Session, note: Note) -> None:
    session.flush()
    copied = pickle.loads(pickle.dumps(note))  # noqa: S301 - as above
    session.commit()
    session.expunge_all()
    session.add(copied)
    copied.title = "after pickling"


def _failed_then_retried(session: Session, note: Note) -> None:
    session.add(User(email="ada@example.org"))
    with pytest.raises(IntegrityError):
        session.flush()
    session.rollback()
    assert_locked(note)
    note.title = "changed"


def _rolled_back_savepoint(session: Session, note: Note) -> None:
    session.flush()
    nested = session.begin_nested()
    note.title = "lost"
    session.flush()
    nested.rollback()
    assert note.title == "changed"


def _populated_again(session: Session, note: Note) -> None:
    session.flush()
    session.scalars(select(Note).execution_options(populate_existing=True)).all()
    assert_locked(note)


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
    if model is Page:
        _alias_body(happen)
    column = model.__table__.c[name]
    before = stored(lite.engine, column, key)
    with lite.fresh() as session:
        one = session.get_one(model, key)
        one.title = "changed"
        happen(session, one if model is Note else _BodyView.of(one))
        session.commit()

    assert stored(lite.engine, column, key) == before
    with lite.fresh() as session, unlock(session, session.get_one(User, 1)):
        assert getattr(session.get_one(model, key), name) == PLAIN
