"""How a private spot is hidden from the library."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy import Engine

from tests.orm.conftest import Started
from tests.orm.models import Note, User, unlock


class Hidden:
    """Another object without some of its attributes."""

    def __init__(self, target: Any, *names: str, **instead: Any) -> None:
        self.__dict__.update(target=target, names=names, instead=instead)

    @property
    def __class__(self) -> Any:
        return type(self.target)

    def __getattr__(self, name: str) -> Any:
        if name in self.names:
            raise AttributeError(name)
        return self.instead[name] if name in self.instead else getattr(self.target, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.target, name, value)


def rows(engine: Engine) -> list[Any]:
    """Every note as it is stored, read past the library."""
    with engine.connect() as connection:
        return list(connection.execute(sa.text("SELECT id, user_id, body FROM notes ORDER BY id")))


def a_note(started: Started, owner: User, body: str = "hello") -> int:
    """A stored note of somebody."""
    with unlock(started.session, owner):
        note = Note(user_id=owner.id, body=body)
        started.session.add(note)
        started.session.commit()
        return note.id
