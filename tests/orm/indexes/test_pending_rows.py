"""Rows with a value and no tag: they are counted, and get their tag when their owner settles."""

import pytest
from sqlalchemy import Engine, delete, text, update
from sqlalchemy.orm import Session

from sqlalchemy_envelope import LockedError
from sqlalchemy_envelope.keys.model import Purpose
from tests.orm.indexes import server_models
from tests.orm.indexes.owner_models import Note, User, envelope, found, tags, two_users, unlock

KEYS = User.metadata.tables["users_key"]


def write_while_locked(session: Session, user_id: int, *titles: str) -> list[int]:
    """Notes that are written for a locked user; their ids."""
    notes = [Note(user_id=user_id, title=title) for title in titles]
    with envelope.write_only(session):
        session.add_all(notes)
        session.commit()
    return [note.id for note in notes]


def pending(session: Session, user_id: int) -> list[tuple[str, int]]:
    return list(map(tuple, envelope.pending_index_rows(session, session.get_one(User, user_id))))


@pytest.mark.parametrize("by_settle", [True, False])
def test_what_was_written_while_locked_is_found_after_the_owner_settled(
    engine: Engine, by_settle: bool
) -> None:
    """`settle` and the first write give a locked owner's rows their tags; a rollback takes them back."""
    ada, ben = two_users(engine)
    with Session(engine) as session:
        (note_id,) = write_while_locked(session, ada, "sent")
        write_while_locked(session, ben, "sent")
        assert pending(session, ada) == [("Note.title_index", 1)]
        for keeps in (False, True):
            with unlock(session, ada) as unlocked:
                assert found(session, Note.title == "sent") == []
                if by_settle:
                    unlocked.settle()
                else:
                    session.add(Note(user_id=ada, place="here"))
                    session.flush()
                assert [note_id] == found(session, Note.title == "sent")
                session.commit() if keeps else session.rollback()
                assert ([] if keeps else [("Note.title_index", 1)]) == pending(session, ada)
        assert pending(session, ben) == [("Note.title_index", 1)]


def test_a_value_changed_while_locked_loses_its_tag(engine: Engine) -> None:
    """A locked write takes the tag of the value before it away, and the owner gives the row the new tag."""
    ada, _ = two_users(engine)
    with Session(engine) as session:
        with unlock(session, ada):
            note = Note(user_id=ada, title="old")
            session.add(note)
            session.commit()
            note_id = note.id
        with envelope.write_only(session) as writing, writing.using(session.get_one(User, ada)):
            session.execute(update(Note).where(Note.id == note_id).values(title="new"))
            session.commit()
        assert {note_id: None} == tags(session, Note.title_index)
        with unlock(session, ada):
            assert found(session, Note.title == "old") == []
            envelope.settle(session)
            assert [note_id] == found(session, Note.title == "new")


def test_owners_from_before_their_index_get_a_key_and_tags(engine: Engine) -> None:
    """An index added to a table with rows and owners: each owner gets an index key with its first write, and
    its rows their tags."""
    ada, _ = two_users(engine)
    with Session(engine) as session:
        with unlock(session, ada):
            session.add_all(Note(user_id=ada, title=str(one)) for one in range(3))
            session.commit()
        session.connection().execute(delete(KEYS).where(KEYS.c.purpose == Purpose.INDEX))
        session.connection().execute(text("UPDATE notes SET title_index = NULL"))
        session.commit()
        assert pending(session, ada) == [("Note.title_index", 3)]
        with unlock(session, ada):
            with pytest.raises(LockedError, match="no key yet"):
                found(session, Note.title == "1")
            session.add(Note(user_id=ada, title="3"))
            session.commit()
            assert len(found(session, Note.title == "1")) == 1
            assert len(found(session, Note.title == "3")) == 1
        assert pending(session, ada) == []


def test_a_value_that_stands_twice_stays_pending(engine: Engine) -> None:
    """A locked writer cannot know that a unique value is there already: the row stays pending, and nothing
    else is in its way."""
    ada, _ = two_users(engine)
    with Session(engine) as session:
        with unlock(session, ada):
            session.add(Note(user_id=ada, title="x"))
            session.commit()
        _, other = write_while_locked(session, ada, "x", "y")
        with unlock(session, ada):
            envelope.settle(session)
            session.commit()
            assert [other] == found(session, Note.title == "y")
        assert pending(session, ada) == [("Note.title_index", 1)]


def test_an_index_of_the_server_is_filled_when_its_owners_settle(engine: Engine) -> None:
    """Rows from before a server's index get their tags when their owner settles; then they are found while
    everybody is locked. A process without the server's key leaves them pending."""
    served = server_models.new_envelope()
    (ada_id,) = server_models.enroll(engine, served, "ada@example.org")
    with Session(engine) as session:
        session.connection().execute(text("UPDATE users SET email_index = NULL"))
        session.commit()
        ada = session.get_one(server_models.User, ada_id)
        for this, left in ((envelope, 1), (served, 0)):
            with this.unlock(session, ada, secret=server_models.SECRET) as unlocked:
                unlocked.settle()
                session.commit()
            assert len(this.pending_index_rows(session, ada)) == left
    with Session(engine) as session:
        served.attach(session)
        condition = server_models.User.email == "ada@example.org"
        assert [ada_id] == found(session, condition, server_models.User.id)
