"""The rows that the tests of the gate write, and what is stored of them."""

from typing import Any

from sqlalchemy import Engine, select, text

from tests.orm.conftest import Started
from tests.orm.models import Note


def bodies(engine: Engine) -> list[Any]:
    """What is stored, read past the library."""
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT body FROM notes WHERE body IS NOT NULL ORDER BY id"))
        return [bytes(one) if not isinstance(one, str) else one for (one,) in rows]


def read(started: Started) -> list[str | None]:
    """What its owner reads."""
    started.session.expire_all()
    return list(started.session.scalars(select(Note.body).order_by(Note.id)))
