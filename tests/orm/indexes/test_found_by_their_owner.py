"""Indexes under the owners' keys: each owner finds the rows that it has open, and no others."""

import pytest
from sqlalchemy import Engine, and_, case, exists, insert, not_, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from sqlalchemy_envelope import (
    Envelope,
    KdfProfile,
    LockedError,
    ServerKeyring,
    StatementRefusedError,
    TransactionConflictError,
    enforce_foreign_keys,
)
from tests.orm.indexes.owner_models import Note, User, apart, envelope, found, tags, two_users, unlock


def add_notes(session: Session, user_id: int, *titles: str | None) -> list[int]:
    """Notes of a user who is unlocked for it; their ids."""
    notes = [Note(user_id=user_id, title=title) for title in titles]
    with unlock(session, user_id):
        for note in notes:
            session.add(note)
            session.flush()
        session.commit()
        return [note.id for note in notes]


def test_rows_of_open_owners_are_found(engine: Engine) -> None:
    """Each comparison finds the rows of the owners who are open here, one or several, and of nobody else."""
    ada, ben = two_users(engine)
    with Session(engine) as session:
        a1, a2, a3 = add_notes(session, ada, "x", "y", None)
        b1, b2 = add_notes(session, ben, "x", "z")
        with unlock(session, ada):
            assert [a1] == found(session, Note.title == "x")
            assert found(session, Note.title == "z") == []
            assert [a1, a2] == found(session, Note.title.in_(["x", "y", "z"]))
            assert [a2] == found(session, Note.title != "x")
            assert [a2] == found(session, ~(Note.title == "x"))
            assert [a2] == found(session, Note.title.not_in(["x"]))
            assert [a1, a2, a3] == found(session, Note.title.not_in([]))
            assert [a3] == found(session, and_(Note.title.is_(None), Note.user_id == ada))
            assert [a1, a2] == found(session, or_(Note.title == "x", Note.title == "y"))
            other = aliased(Note)
            has_x = exists().where(other.user_id == User.id, other.title == "x")
            assert [ada] == found(session, has_x, User.id)
            with unlock(session, ben):
                assert [a1, b1] == found(session, Note.title == "x")
                assert [a2, b2] == found(session, Note.title != "x")
                assert [a2, b2] == found(session, aliased_other(session, "x"))


def aliased_other(session: Session, title: str) -> object:
    other = aliased(Note)
    return Note.id.in_(select(other.id).where(other.title != title))


def test_nobody_open_is_an_error(engine: Engine) -> None:
    """A search while nobody is open is a LockedError, and not an empty result."""
    ada, _ = two_users(engine)
    with Session(engine) as session:
        add_notes(session, ada, "x")
    for condition in (Note.title == "x", Note.title != "x", Note.title.in_([])):
        with Session(engine) as session, pytest.raises(LockedError, match=r"notes\.title_index"):
            found(session, condition)


def test_tags_of_two_owners_have_nothing_in_common(engine: Engine) -> None:
    """Equal values of two owners have different tags; of one owner and one index, the same tag."""
    ada, ben = two_users(engine)
    with Session(engine) as session:
        (mine,), (its,) = add_notes(session, ada, "x"), add_notes(session, ben, "x")
        with unlock(session, ada):
            session.get_one(Note, mine).place = "x"
            session.commit()
        titles, places = tags(session, Note.title_index), tags(session, Note.place_index)

        assert len({titles[mine], titles[its], places[mine]}) == 3
        assert places[its] is None


def test_one_owner_has_no_value_twice(engine: Engine) -> None:
    """Unique with the owner's column: an equal value of the same owner is refused, one of another is not."""
    ada, ben = two_users(engine)
    with Session(engine) as session:
        add_notes(session, ada, "x")
        add_notes(session, ben, "x")
        with unlock(session, ada):
            session.add(Note(user_id=ada, title="x"))
            with pytest.raises(IntegrityError) as raised:
                session.flush()
            session.rollback()

    assert "'x'" not in str(raised.value)


def test_what_would_count_locked_rows_is_refused(sqlite_engine: Engine) -> None:
    """NOT, CASE and a column of it would take the rows of locked owners for rows with other values."""
    ada, _ = two_users(sqlite_engine)
    with Session(sqlite_engine) as session:
        add_notes(session, ada, "x")
        is_x = Note.title == "x"
        with unlock(session, ada):
            for statement in (
                select(Note.id).where(not_(and_(is_x, Note.id > 0))),
                select(Note.id).where(~(Note.title != "x")),
                select(Note.id).where(case((is_x, 1), else_=0) == 0),
                select(Note.id).where(is_x.is_(False)),
                select(Note.id, is_x),
                select(Note.id).order_by(is_x),
            ):
                with pytest.raises(StatementRefusedError, match="locked owners"):
                    session.execute(statement)
            with pytest.raises(StatementRefusedError, match="two owners"):
                session.execute(
                    select(Note.id).join(aliased(Note, name="n"), Note.title == aliased(Note).title)
                )


def test_the_index_follows_each_write(engine: Engine) -> None:
    """A changed value is found, the value before it is not; None has no tag; a move brings the new owner's
    tag."""
    ada, ben = two_users(engine)
    with Session(engine) as session:
        (note_id,) = add_notes(session, ada, "x")
        with unlock(session, ada) as unlocked:
            note = session.get_one(Note, note_id)
            note.title = "y"
            session.commit()
            assert found(session, Note.title == "x") == []
            assert [note_id] == found(session, Note.title == "y")
            with unlocked.using(session.get_one(User, ada)):
                session.execute(update(Note).where(Note.id == note_id).values(title="core"))
                assert [note_id] == found(session, Note.title == "core")
                session.execute(update(Note), [{"id": note_id, "title": "bulk"}])
            assert [note_id] == found(session, Note.title == "bulk")
            session.execute(update(Note).where(Note.id == note_id).values(place=None))
            assert [note_id] == found(session, Note.title == "bulk")
            with unlock(session, ben):
                note.user_id = ben
                session.commit()
        with unlock(session, ben):
            assert [note_id] == found(session, Note.title == "bulk")
            note.title = None
            session.commit()
            assert tags(session, Note.title_index) == {note_id: None}


def test_an_owners_own_column_is_found_from_its_first_flush_on(engine: Engine) -> None:
    """An owner's own value has its tag from the flush that enrolls it."""
    two_users(engine)
    with Session(engine) as session:
        user = User(nickname="Ada")
        with envelope.enroll(session, user, secret="correct horse battery staple"):
            session.commit()
            assert [user.id] == found(session, User.nickname == "Ada", User.id)
            assert found(session, User.nickname != "Ada", User.id) == []


def test_a_rotation_leaves_the_rows_to_be_found(engine: Engine) -> None:
    """A new data key leaves each tag. A new root key brings a new index key: each row is found, and a unique
    index has all of its tags under the new key."""
    ada, _ = two_users(engine)
    with Session(engine) as session:
        (note_id,) = add_notes(session, ada, "x")
        with unlock(session, ada):
            session.get_one(Note, note_id).place = "here"
            session.commit()
            before = tags(session, Note.title_index), tags(session, Note.place_index)
            user = session.get_one(User, ada)
            envelope.rotate(session, user)
            session.commit()
            assert before == (tags(session, Note.title_index), tags(session, Note.place_index))
            envelope.rotate(session, user, root=True)
            session.commit()
            after = tags(session, Note.title_index), tags(session, Note.place_index)
            assert after[0][note_id] not in (None, before[0][note_id])
            assert after[1] == before[1]
            with pytest.raises(IntegrityError):
                session.execute(insert(Note), [{"user_id": ada, "title": "x"}])
            session.rollback()
        with unlock(session, ada):
            assert [note_id] == found(session, Note.title == "x")
            assert [note_id] == found(session, Note.place == "here")
            session.add(Note(user_id=ada, place="here"))
            session.commit()
            assert len(found(session, Note.place == "here")) == 2


def test_keys_that_another_session_replaced_are_told(sqlite_engine: Engine) -> None:
    """A search does not miss rows under an index key that another session made, and a unique index no equal
    value: the transaction is to be run again."""
    ada, _ = two_users(sqlite_engine)
    with Session(sqlite_engine) as session, Session(sqlite_engine) as other:
        add_notes(session, ada, "x")
        unlocked = unlock(session, ada)
        with apart(unlocked):
            assert len(found(session, Note.title == "x")) == 1
            session.commit()
            with unlock(other, ada):
                envelope.rotate(other, other.get_one(User, ada), root=True)
                other.commit()
            with pytest.raises(TransactionConflictError):
                found(session, Note.title == "x")
            session.rollback()
            session.add(Note(user_id=ada, title="x"))
            with pytest.raises(TransactionConflictError):
                session.flush()


def test_a_ticket_carries_the_index_key(sqlite_engine: Engine) -> None:
    """Who is open by a ticket finds and writes rows."""
    with_server = Envelope(
        kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([bytes(range(32))])
    )
    enforce_foreign_keys(sqlite_engine)
    User.metadata.create_all(sqlite_engine)
    with Session(sqlite_engine) as session:
        user = User()
        with with_server.enroll(session, user, secret="correct horse battery staple"):
            session.add(Note(user_id=user.id, title="x"))
            ticket = with_server.issue_ticket(session, user, lifetime=60)
            session.commit()
        with with_server.unlock(session, user, ticket=ticket):
            assert len(found(session, Note.title == "x")) == 1
            session.add(Note(user_id=user.id, title="y"))
            session.commit()
            assert len(found(session, Note.title == "y")) == 1
