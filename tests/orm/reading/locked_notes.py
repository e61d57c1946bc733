"""A note and its body, as the tests of locked rows write and look at them."""

from typing import Any

import pytest

from sqlalchemy_envelope import LockedError
from tests.orm.conftest import Started
from tests.orm.models import Note, User, unlock

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
