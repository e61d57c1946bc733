"""An object whose value is locked becomes another row: the value goes along, or the flush is refused. It is
never NULL without a word."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import ForeignKey, String, Text, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, make_transient, mapped_column

from sqlalchemy_envelope import EncryptedType, KeyOwner, LockedError, PreviousColumn, StatementRefusedError
from tests.orm.conftest import Started
from tests.orm.models import SECRET, Base, Note, Page, User, envelope, unlock

pytestmark = pytest.mark.both_lines

PLAIN = "p1aintext"


def a_note(lite: Started) -> Note:
    """A note of Ada's, as it is loaded by somebody who has no key."""
    with unlock(lite.session, lite.ada):
        lite.session.add(Note(id=1, user_id=lite.ada.id, title="t", body=PLAIN, tags=["a"]))
        lite.session.commit()
    lite.session.expunge_all()
    return lite.session.get_one(Note, 1)


def _transient(session: Session, note: Any) -> None:
    session.expunge(note)
    make_transient(note)
    note.id = 2
    session.add(note)


def _pickled(session: Session, note: Any) -> None:
    with unlock(session, session.get_one(User, note.user_id)):
        assert note.body == PLAIN
    again = pickle.loads(pickle.dumps(note))  # noqa: S301 - pickled right here
    make_transient(again)
    again.id = 2
    session.add(again)


def _merged(session: Session, note: Any) -> None:
    session.expunge(note)
    session.execute(sa.delete(Note))
    session.merge(note)


def _merged_as_new(session: Session, note: Any) -> None:
    session.expunge(note)
    make_transient(note)
    note.id = 2
    session.merge(note)


@pytest.mark.parametrize("become", [_transient, _pickled, _merged, _merged_as_new])
def test_a_locked_value_keeps_its_object_from_becoming_another_row(
    lite: Started, become: Callable[[Session, Any], None]
) -> None:
    """Without the key nothing is stored, and the error says what would have been lost."""
    note = a_note(lite)
    with lite.session.no_autoflush:
        become(lite.session, note)
    with pytest.raises(LockedError, match=r"Note\.body .*becomes another row.*without this value"):
        lite.session.flush()
    lite.session.rollback()

    assert lite.session.scalars(select(Note.id)).all() == [1]


@pytest.mark.parametrize("become", [_transient, _merged, _merged_as_new])
def test_with_its_key_the_value_goes_along(lite: Started, become: Callable[[Session, Any], None]) -> None:
    """A value that was locked when its object was loaded is opened for the new row, and encrypted for it."""
    note = a_note(lite)
    with unlock(lite.session, lite.session.get_one(User, note.user_id)):
        become(lite.session, note)
        lite.session.commit()
        lite.session.expunge_all()
        copy = lite.session.scalars(select(Note).order_by(Note.id.desc())).first()

        assert copy is not None
        assert (copy.title, copy.body, copy.tags) == ("t", PLAIN, ["a"])


def test_a_value_that_is_set_needs_no_key_of_the_former(lite: Started) -> None:
    """Who says what the new row holds, NULL too, is not asked for what the object held."""
    note = a_note(lite)
    _transient(lite.session, note)
    note.body, note.tags = None, None
    lite.session.commit()

    assert lite.session.get_one(Note, 2).body is None


def test_another_database(lite: Started, tmp_path: Any) -> None:
    """`merge` into a database without the row, and without the key, is refused."""
    note = a_note(lite)
    lite.session.expunge(note)
    engine = sa.create_engine(f"sqlite:///{tmp_path}/other.db")
    Base.metadata.create_all(engine)
    with Session(engine) as other:
        other.merge(note)
        with pytest.raises(LockedError, match="becomes another row"):
            other.flush()


def test_a_value_that_is_bound_to_its_row(lite: Started) -> None:
    """It opens for a row of the same primary key, which may have been deleted, and for no other."""
    with unlock(lite.session, lite.ada):
        page = Page(user_id=lite.ada.id, title="t", text=PLAIN)
        lite.session.add(page)
        lite.session.commit()
    lite.session.expunge_all()
    page = lite.session.scalars(select(Page)).one()
    user = lite.session.get_one(User, page.user_id)
    lite.session.expunge(page)
    lite.session.execute(sa.delete(Page))
    lite.session.commit()
    make_transient(page)
    lite.session.add(page)
    with unlock(lite.session, user):
        lite.session.commit()
        assert page.text == PLAIN
    lite.session.refresh(page)
    lite.session.expunge(page)
    make_transient(page)
    page.id = None  # type: ignore[assignment]  # for a new one
    lite.session.add(page)
    with (
        unlock(lite.session, user),
        pytest.raises(StatementRefusedError, match=r"Page\.text is bound to the row that it was read from"),
    ):
        lite.session.flush()
    lite.session.rollback()


class Own(DeclarativeBase):
    pass


class Person(KeyOwner, Own):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str | None]


class WithDefault(Own):
    __tablename__ = "with_default"
    id: Mapped[int] = mapped_column(primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("people.id"))
    text: Mapped[str | None] = mapped_column(EncryptedType(Text), default="by default")


class Moving(Own):
    __tablename__ = "moving"
    id: Mapped[int] = mapped_column(primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("people.id"))
    text: Mapped[str | None] = mapped_column(
        EncryptedType(Text, previous=PreviousColumn("old", String, "both"))
    )


@pytest.mark.parametrize("model", [WithDefault, Moving])
def test_nothing_takes_the_place_of_a_locked_value(sqlite_engine: sa.Engine, model: Any) -> None:
    """A default is for a value that nobody gave; and a column that is being moved is no exception."""
    Own.metadata.create_all(sqlite_engine)
    with Session(sqlite_engine) as session:
        person = Person()
        envelope.enroll(session, person, secret=SECRET)
        session.commit()
        with unlock(session, person):
            row = model(person_id=person.id, text=PLAIN)
            session.add(row)
            session.commit()
            assert row.text == PLAIN
        session.expunge(row)
        make_transient(row)
        row.id = None
        session.add(row)
        with pytest.raises(LockedError, match=rf"{model.__name__}\.text .*without this value"):
            session.flush()
