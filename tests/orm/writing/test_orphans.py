"""A row that SQLAlchemy takes from its owner is refused with the relationship that does it, and with the line
to write; with that line, deleting works and nobody has to be unlocked."""

from contextlib import nullcontext

import pytest
from sqlalchemy import Engine, ForeignKey, Text, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from sqlalchemy_envelope import EncryptedType, KeyOwner, StatementRefusedError
from tests.orm.models import SECRET, envelope, unlock
from tests.prepared import tables_of

LINE = 'relationship(..., cascade="all, delete-orphan", passive_deletes=True)'


class Base(DeclarativeBase):
    pass


class Person(KeyOwner, Base):
    __tablename__ = "persons"
    id: Mapped[int] = mapped_column(primary_key=True)
    letters: Mapped[list["Letter"]] = relationship(back_populates="writer")
    drafts: Mapped[list["Draft"]] = relationship(passive_deletes=True)
    pages: Mapped[list["DiaryPage"]] = relationship(cascade="all, delete-orphan", passive_deletes=True)


class Letter(Base):
    __tablename__ = "letters"
    id: Mapped[int] = mapped_column(primary_key=True)
    writer_id: Mapped[int | None] = mapped_column(ForeignKey("persons.id", ondelete="CASCADE"))
    writer: Mapped[Person | None] = relationship(back_populates="letters")
    text: Mapped[str | None] = mapped_column(EncryptedType(Text))


class Draft(Base):
    __tablename__ = "drafts"
    id: Mapped[int] = mapped_column(primary_key=True)
    person_id: Mapped[int | None] = mapped_column(ForeignKey("persons.id", ondelete="CASCADE"))
    text: Mapped[str | None] = mapped_column(EncryptedType(Text))


class DiaryPage(Base):
    __tablename__ = "diary_pages"
    id: Mapped[int] = mapped_column(primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("persons.id", ondelete="CASCADE"))
    text: Mapped[str | None] = mapped_column(EncryptedType(Text))


@pytest.fixture
def persons(engine: Engine) -> Engine:
    """One owner with one row of each kind."""
    tables_of(Base.metadata, engine)
    with Session(engine) as session, envelope.enroll(session, Person(id=1), secret=SECRET):
        session.add(Letter(id=1, writer_id=1, text="x"))
        session.add(Draft(id=1, person_id=1, text="x"))
        session.add(DiaryPage(id=1, person_id=1, text="x"))
        session.commit()
    return engine


@pytest.mark.parametrize("deleted", [True, False])
@pytest.mark.parametrize("unlocked", [False, True])
@pytest.mark.parametrize(
    ("name", "child", "key"), [("letters", "Letter", "writer_id"), ("drafts", "Draft", "person_id")]
)
@pytest.mark.any_database
def test_a_relationship_without_cascade(
    persons: Engine, name: str, child: str, key: str, unlocked: bool, deleted: bool
) -> None:
    """The error has the user's names and the cause; nothing is changed."""
    with Session(persons) as session:
        person = session.get_one(Person, 1)
        if name == "drafts":  # the other one would be told first
            session.delete(session.get_one(Letter, 1))
            session.flush()
        with unlock(session, person) if unlocked else nullcontext():
            collection = getattr(person, name)  # loaded, so that `passive_deletes` does not leave it alone
            assert len(collection) == 1
            if deleted:
                session.delete(person)
            else:
                collection.pop()
            with pytest.raises(StatementRefusedError) as caught:
                session.flush()
            session.rollback()

        told = str(caught.value)
        assert f"{child}.{key} is set to NULL" in told
        assert f"because Person.{name} has no cascade" in told
        assert f"`{name} = {LINE}`" in told
        assert session.scalar(select(func.count()).select_from(Letter)) == 1


@pytest.mark.any_database
def test_the_line_that_is_advised(persons: Engine) -> None:
    """With the cascade a row is removed and a person deleted, while everything is locked."""
    with Session(persons) as session:
        person = session.get_one(Person, 1)
        person.pages.pop()
        session.commit()

        assert session.scalar(select(func.count()).select_from(DiaryPage)) == 0
        session.delete(session.get_one(Letter, 1))
        session.commit()
        session.delete(person)
        session.commit()

        assert session.scalar(select(func.count()).select_from(Draft)) == 0
        assert session.scalar(select(func.count()).select_from(Person)) == 0


@pytest.mark.any_database
def test_a_key_set_to_none_by_hand(persons: Engine) -> None:
    """Where no relationship is to blame, the error says what can be done with the row."""
    with Session(persons) as session:
        session.get_one(DiaryPage, 1).person_id = None  # type: ignore[assignment]
        with pytest.raises(
            StatementRefusedError, match=r"another Person, delete it, or set DiaryPage\.text to None"
        ):
            session.flush()


@pytest.mark.any_database
def test_a_row_that_holds_nothing(persons: Engine) -> None:
    """A row without a value is nobody's secret: SQLAlchemy may take it from its owner."""
    with Session(persons) as session:
        person = session.get_one(Person, 1)
        person.letters[0].text = None
        session.commit()
        person.letters.pop()
        session.commit()

        assert session.get_one(Letter, 1).writer_id is None
