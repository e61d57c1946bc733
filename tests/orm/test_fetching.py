"""Rows are compared with their owners as they are fetched; where that cannot be, they are refused."""

from typing import Any

import pytest
from sqlalchemy import event, select
from sqlalchemy.orm import Session

from sqlalchemy_envelope import ConfigurationError
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.reading import rows
from tests.orm.conftest import Started
from tests.orm.models import SECRET, Note, envelope


def test_rows_that_are_fetched_unseen_are_refused(
    lite: Started, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """On a SQLAlchemy that takes no other cursor from its event, entities of several unlocked owners do not
    load; with one owner unlocked, which is compared in the row itself, they do."""
    session = lite.session
    with envelope.unlock(session, lite.ada, secret=SECRET):
        session.add(Note(user_id=lite.ada.id, body="hello"))
        session.commit()
    session.expunge_all()
    monkeypatch.setattr(rows._Watch, "look", lambda self, rows: rows)
    before, context.WATCHED[0] = context.WATCHED[0], False
    request.addfinalizer(lambda: context.WATCHED.__setitem__(0, before))

    with Session(lite.engine) as other, envelope.unlock(other, lite.ada, secret=SECRET):
        with envelope.unlock(other, lite.ben, secret=SECRET), pytest.raises(ConfigurationError):
            other.scalars(select(Note)).all()
        assert list(other.scalars(select(Note.body))) == ["hello"]


def test_a_statement_without_encrypted_columns_keeps_its_cursor(lite: Started) -> None:
    """With several owners unlocked, only results with encrypted columns are looked at."""
    kinds = []

    def note(*of: Any) -> None:
        kinds.append(type(of[4].cursor))

    with (
        Session(lite.engine) as session,
        envelope.unlock(session, lite.ada, secret=SECRET),
        envelope.unlock(session, lite.ben, secret=SECRET),
    ):
        event.listen(lite.engine, "after_cursor_execute", note)
        session.execute(select(Note.id)).all()
        session.execute(select(Note.id, Note.body)).all()

    assert [kind is rows.WatchedCursor for kind in kinds] == [False, True]
