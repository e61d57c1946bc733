"""Where a token index may be declared, and what its table looks like."""

import asyncio
import uuid
from typing import Any

import pytest
from sqlalchemy import Date, Engine, ForeignKey, ForeignKeyConstraint, String, create_engine, select, update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, mapped_column, with_loader_criteria

from sqlalchemy_envelope import (
    ConfigurationError,
    EncryptedType,
    KeyOwner,
    StatementRefusedError,
    Words,
    enforce_foreign_keys,
    token_index,
)
from sqlalchemy_envelope.orm.indexes.tokens.tokenized import TokenizedColumn
from tests.orm.indexes.token_models import SECRET, new_envelope


class Base(DeclarativeBase):
    pass


class WithText:
    text: Mapped[str | None] = mapped_column(EncryptedType(String))
    text_words = token_index("text", scope="server")


class Person(WithText, KeyOwner, Base):
    __tablename__ = "persons"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)


class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    person_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("persons.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(String(10), default="item")
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "item"}  # noqa: RUF012


class Letter(WithText, Item):
    __tablename__ = "letters"
    id: Mapped[int] = mapped_column(ForeignKey("items.id", ondelete="CASCADE"), primary_key=True)
    __mapper_args__ = {"polymorphic_identity": "letter"}  # noqa: RUF012


class Line(Base):
    __tablename__ = "lines"
    number: Mapped[int] = mapped_column("no", primary_key=True)
    letter: Mapped[str] = mapped_column(String(5), primary_key=True)
    person_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("persons.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(String(10), default="line")
    stored: Mapped[str | None] = mapped_column("st", EncryptedType(String))
    stored_words = token_index("stored", scope="server", table="line_tags", label="line")
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "line"}  # noqa: RUF012


class ShortLine(Line):
    __mapper_args__ = {"polymorphic_identity": "short"}  # noqa: RUF012


def test_each_mapped_class_has_a_table_of_its_own() -> None:
    """A mixin's index has a table for each class, a subclass in the same table shares that of its base."""
    person, letter, line = Person.text_words, Letter.text_words, Line.stored_words

    assert all(isinstance(one, TokenizedColumn) for one in (person, letter, line))
    assert [one.table.name for one in (person, letter, line)] == [
        "persons_text_words",
        "letters_text_words",
        "line_tags",
    ]
    assert line is ShortLine.stored_words
    assert list(line.table.columns.keys()) == ["tag", "row_no", "row_letter"]
    assert line.label == "line"
    (foreign,) = (one for one in line.table.constraints if isinstance(one, ForeignKeyConstraint))
    assert (foreign.ondelete, foreign.onupdate) == ("CASCADE", "CASCADE")


def test_rows_of_every_shape_are_found(engine: Engine) -> None:
    """Owners themselves, rows of joined and single-table subclasses, composite keys, aliases and joins."""
    enforce_foreign_keys(engine)
    Base.metadata.create_all(engine)
    envelope = new_envelope()
    with Session(engine) as session:
        person = Person(text="Ada Lovelace")
        envelope.enroll(session, person, secret=SECRET)
        with envelope.unlock(session, person, secret=SECRET) as unlocked:
            session.add_all(
                [
                    Letter(person_id=person.id, text="dear ben"),
                    Letter(person_id=person.id, text="dear ada"),
                    Line(number=1, letter="a", person_id=person.id, stored="one two"),
                    ShortLine(number=1, letter="b", person_id=person.id, stored="one"),
                ]
            )
            session.commit()
            with unlocked.using(person):
                renumbered = session.get_one(Line, (1, "a"))
                renumbered.number = 2
                session.commit()
        person_id = person.id
    with Session(engine) as session:
        envelope.attach(session)
        other = aliased(Line)
        two = select(Line.number).where(Line.stored.has_word("two"))

        assert [person_id] == list(session.scalars(select(Person.id).where(Person.text.has_word("ada"))))
        assert list(session.scalars(select(Letter.id).where(Letter.text.has_words("dear ben")))) == [1]
        assert list(session.scalars(two)) == [2]
        assert sorted(
            tuple(row)
            for row in session.execute(
                select(Line.number, other.number)
                .join(other, other.person_id == Line.person_id)
                .where(Line.stored.has_word("one"), other.stored.has_word("two"))
            )
        ) == [(1, 2), (2, 2)]
        assert list(session.scalars(select(ShortLine.letter).where(ShortLine.stored.has_word("one")))) == [
            "b"
        ]
        assert session.query(Line).filter(Line.stored.has_word("one")).count() == 2
        only = with_loader_criteria(Line, Line.stored.has_word("two"))
        assert list(session.scalars(select(Line.number).options(only))) == [2]


def test_an_update_with_conditions_of_its_class_writes_the_tags_of_its_rows_alone(
    sqlite_engine: Engine,
) -> None:
    """An UPDATE of a subclass, or one with loader criteria, leaves the tags of other rows as they are."""
    enforce_foreign_keys(sqlite_engine)
    Base.metadata.create_all(sqlite_engine)
    envelope = new_envelope()
    with Session(sqlite_engine) as session:
        person = Person()
        envelope.enroll(session, person, secret=SECRET)
        with envelope.unlock(session, person, secret=SECRET) as unlocked, unlocked.using(person):
            lines = [Line(number=at, letter="a", person_id=person.id, stored="old") for at in (1, 2)]
            session.add_all([*lines, ShortLine(number=3, letter="a", person_id=person.id, stored="old")])
            session.commit()
            session.execute(update(ShortLine).values(stored="short"))
            only = with_loader_criteria(Line, Line.number == 2)
            session.execute(update(Line).where(Line.number < 3).values(stored="second").options(only))
            for word, numbers in (("old", [1]), ("second", [2]), ("short", [3])):
                assert numbers == list(session.scalars(select(Line.number).where(Line.stored.has_word(word))))


async def _finds(path: str) -> list[uuid.UUID]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    enforce_foreign_keys(engine)
    async with AsyncSession(engine) as session:
        await session.run_sync(new_envelope().attach)
        found = list(await session.scalars(select(Person.id).where(Person.text.has_word("ada"))))
    await engine.dispose()
    return found


def test_an_asynchronous_session_finds_texts(sqlite_engine: Engine) -> None:
    """The tags are made for the connection that an AsyncSession sends the statement on."""
    enforce_foreign_keys(sqlite_engine)
    Base.metadata.create_all(sqlite_engine)
    with Session(sqlite_engine) as session:
        person = Person(text="ada")
        new_envelope().enroll(session, person, secret=SECRET)
        session.commit()
        person_id = person.id

    assert [person_id] == asyncio.run(_finds(str(sqlite_engine.url.database)))


def test_without_foreign_keys_nothing_is_written() -> None:
    """SQLite that does not enforce foreign keys would leave tags behind, and a row is refused there."""
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session, pytest.raises(ConfigurationError, match="enforce_foreign_keys"):
        new_envelope().enroll(session, Person(text="ada"), secret=SECRET)


def _declare(**attributes: Any) -> Any:
    class Fresh(DeclarativeBase):
        pass

    columns = {
        "id": mapped_column(String(9), primary_key=True),
        "text": mapped_column(EncryptedType(String)),
        "born": mapped_column(EncryptedType(Date)),
        "name": mapped_column(String),
    }
    return type("User", (KeyOwner, Fresh), {"__tablename__": "users", **columns, **attributes})


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: _declare(words=token_index("nothing", scope="server")), "'nothing', which is no encrypted"),
        (lambda: _declare(words=token_index("name", scope="server")), "Its encrypted attributes: born, text"),
        (lambda: _declare(words=token_index("born", scope="server")).words.source, "column of texts"),
        (lambda: _declare(words=token_index("text", scope="server", table="x" * 64)), "63 bytes"),
        (lambda: _declare(words=token_index("text", scope="server", table="users")), "is not ours"),
        (lambda: token_index("text", scope="all"), "scope='all'"),  # type: ignore[arg-type]
        (lambda: token_index(""), "one attribute"),
        (lambda: token_index("text", most=0), "most=0"),
    ],
)
def test_a_declaration_that_cannot_work_is_refused(make: Any, why: str) -> None:
    """Each error names the class, and what to write."""
    with pytest.raises(ConfigurationError, match=why):
        make()


def test_a_class_that_is_declared_again_has_its_new_index() -> None:
    """The table of an earlier class of the same name gives way."""
    first = _declare(words=token_index("text", scope="server", tokens=Words()))

    assert "words-v1" in repr(first.words.options.tokens)
    assert "token_index('text'" in repr(first.__dict__["words"])
    with pytest.raises(StatementRefusedError):
        first.text.has_word("")
