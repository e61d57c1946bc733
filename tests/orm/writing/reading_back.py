"""What the tests of writing read back past the library, and the statements that they share."""

from typing import Any

from sqlalchemy import inspect

from tests.orm.conftest import Started
from tests.orm.models import Note, User, unlock

NOTES: Any = Note.__table__
BODY = NOTES.c.body


def opens_for(started: Started, owner: User, note_id: Any, model: Any = Note, name: str = "body") -> str:
    """What the stored value says to its owner alone, read in a session of its own."""
    with started.fresh() as session:
        alone = session.get_one(type(owner), inspect(owner).identity)
        with unlock(session, alone):
            value: str = getattr(session.get_one(model, note_id), name)
            return value


def both(started: Started) -> Any:
    """Ada's and Ben's keys, unlocked together."""
    return Both(started)


class Both:
    def __init__(self, started: Started) -> None:
        self._parts = [unlock(started.session, started.ada), unlock(started.session, started.ben)]

    def __enter__(self) -> Any:
        for part in self._parts:
            part.__enter__()
        return self._parts[1]

    def __exit__(self, *failure: Any) -> None:
        for part in reversed(self._parts):
            part.__exit__(*failure)


def add_note(started: Started, **values: Any) -> int:
    """A committed note of Ada's, who must be unlocked."""
    note = Note(**{"user_id": started.ada.id, "body": "before"} | values)
    started.session.add(note)
    started.session.commit()
    note_id = note.id
    started.session.expunge(note)
    return note_id
