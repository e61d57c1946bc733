"""Columns with defaults that name a row's owner, and columns that an UPDATE changes without naming them."""

import uuid
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from sqlalchemy import ForeignKey, Text, insert, null, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from sqlalchemy_envelope import ConfigurationError, EncryptedType, KeyOwner, OneOf, OwnerColumn
from tests.orm.models import statements_sent
from tests.orm.writing.owner_columns.settings import (
    CALLS,
    EVERY_WAY,
    Application,
    ByContext,
    ByDatabase,
    ByExpression,
    Called,
    Constant,
    EitherDatabase,
    EitherDefault,
    Item,
    User,
    by_flush,
    by_values,
    current_tenant,
    refused,
    text,
)

pytestmark = pytest.mark.both_lines
DEVICE = uuid.UUID(int=7)
Write = Callable[[Session, Any, dict[str, Any]], Any]


@pytest.mark.parametrize("model", [Called, Constant, Item], ids=lambda one: one.__name__)
@pytest.mark.any_database
def test_a_default_names_the_owner(app: Application, model: Any) -> None:
    """A default of the owner's column is evaluated once for each row, and is both what is stored and whose
    key encrypts; in every way of writing."""
    rows = 0
    for write in EVERY_WAY:
        with Session(app.engine) as session:
            write(session, model, {"text": write.__name__})
            session.commit()
            written = list(session.scalars(select(model.text).order_by(model.id)))[rows:]
        rows += len(written)

        assert set(written) == {write.__name__}
        # The order 1 is user 2's.
        assert set(app.stored(model)) == {(1, ("User", 2 if model is Item else 1))}, write.__name__
        assert len(CALLS) == (0 if model is Constant else rows), write.__name__


@pytest.mark.any_database
def test_a_default_that_changes_between_rows(app: Application) -> None:
    """Each row is under the key of the tenant that the default gave it."""
    numbers = iter([2, 1, 2])
    column: Any = Called.__table__.c.user_id
    before, column.default = column.default, sa.ColumnDefault(lambda: next(numbers))
    column.default._set_parent(column)
    try:
        with Session(app.engine) as session:
            rows: Any = [{"text": None}, {"text": "b"}, {"text": "c"}]
            session.connection().execute(insert(column.table), rows)
            session.commit()
    finally:
        column.default = before
        before._set_parent(column)
    with app.engine.connect() as connection:
        users = list(connection.exec_driver_sql("SELECT user_id FROM called ORDER BY id").scalars())
    with app.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM called WHERE text IS NULL")

    assert users == [2, 1, 2]
    assert {(1, ("User", 1)), (2, ("User", 2))} == set(app.stored(Called))


@pytest.mark.any_database
def test_a_flushed_default_is_on_the_object(app: Application) -> None:
    """The object knows its owner after the flush, without a query; a relationship goes before the default."""
    with Session(app.engine) as session:
        called, other = Called(text="t"), Called(user=session.get_one(User, 2), text="u")
        session.add_all([called, other])
        session.flush()
        with statements_sent(app.engine) as sent:
            assert (called.user_id, other.user_id) == (1, 2)
        session.commit()

    assert sent == []
    assert {(1, ("User", 1)), (2, ("User", 2))} == set(app.stored(Called))


def test_rows_without_values_take_any_default(lite: Application) -> None:
    """Where nothing is encrypted, defaults are the database's and the context's, as without the library."""
    with Session(lite.engine) as session:
        for model in (ByContext, ByDatabase, ByExpression, EitherDatabase, EitherDefault):
            session.add(model(id=1))
            session.flush()
            session.execute(insert(model), [{"id": 2}])
        session.commit()
        assert session.scalars(select(ByContext.user_id)).all() == [1, 2]


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (ByContext, r"its owner's column.*reads the statement's context"),
        (ByDatabase, r"by_database\.text: .* the database makes user_id\. Give it a value"),
        (ByExpression, r"by_expression\.text: .* the database makes user_id\. Give it a value"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_a_default_that_is_not_known_in_time(lite: Application, model: Any, match: str) -> None:
    """What the database or the statement's context makes is known too late: refused, with the cure."""
    refused(lite, {"text": "needle"}, match, model)
    for write in EVERY_WAY:
        with Session(lite.engine) as session:
            write(session, model, {"user_id": 2, "text": "given"})
            session.commit()

    assert set(lite.stored(model)) == {(2, ("User", 2))}


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (EitherDefault, r"exactly one of user_id or team_id must be set, and 2 of them are \(user_id has a "),
        (EitherDatabase, r"the database makes user_id\. .* for none, give `sqlalchemy\.null\(\)`"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_one_of_two_and_a_default_for_the_other(lite: Application, model: Any, match: str) -> None:
    """A default does not set a second owner unseen; `null()` leaves the column empty."""
    refused(lite, {"team_id": 1, "text": "needle"}, match, model)
    for write in (by_flush, by_values):
        with Session(lite.engine) as session:
            write(session, model, {"user_id": null(), "team_id": 1, "text": "given"})
            session.commit()

    assert lite.stored(model) == [(None, 1, ("Team", 1))] * 2


BY_ITSELF: dict[str, dict[str, Any]] = {
    "a function": {"onupdate": current_tenant},
    "a constant": {"onupdate": 2},
    "SQL": {"onupdate": sa.text("2")},
    "a trigger": {"server_onupdate": sa.FetchedValue()},
}


def declare(where: str, options: dict[str, Any], owner: Any, bind: Any = "column") -> Any:
    """A page of a book of a person, with these options for one column."""

    class Local(DeclarativeBase):
        pass

    def column(name: str, *arguments: Any, **named: Any) -> Any:
        return mapped_column(*arguments, **named, **(options if name == where else {}))

    class Person(KeyOwner, Local):
        __tablename__ = "people"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Book(Local):
        __tablename__ = "books"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        person_id: Mapped[int] = column("books.person_id", ForeignKey("people.id"))
        person: Mapped[Person] = relationship()
        __mapper_args__: ClassVar[Any] = {"polymorphic_on": "kind", "polymorphic_identity": "book"}

    class Atlas(Book):
        __tablename__ = "atlases"
        id: Mapped[int] = mapped_column(ForeignKey("books.id"), primary_key=True)
        map: Mapped[str | None] = text("person_id")
        __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "atlas"}

    class Page(Local):
        __tablename__ = "pages"
        id: Mapped[int] = column("pages.id", primary_key=True, default=1)
        account: Mapped[int] = column("pages.account")
        person_id: Mapped[int | None] = column("pages.person_id", ForeignKey("people.id"))
        book_id: Mapped[int | None] = column("pages.book_id", ForeignKey("books.id"))
        book: Mapped[Book | None] = relationship()
        text: Mapped[str | None] = mapped_column(EncryptedType(Text, owner, bind=bind))

    # A base holds its classes weakly: without this the garbage collector may take them before `configure`.
    Local.metadata.info["classes"] = [Person, Book, Atlas, Page]
    return Local


@pytest.mark.parametrize("options", BY_ITSELF.values(), ids=BY_ITSELF)
@pytest.mark.parametrize(
    ("where", "owner", "bind"),
    [
        ("pages.person_id", "person_id", "column"),
        ("pages.person_id", OneOf("person_id", "book.person"), "column"),
        ("pages.account", lambda: OwnerColumn("account", of="Person"), "column"),
        ("pages.book_id", "book.person", "column"),
        ("books.person_id", "book.person", "column"),
        ("books.person_id", "person_id", "column"),
        ("pages.id", "person_id", "row"),
    ],
    ids=["own", "one of two", "without a foreign key", "the first step", "on the way", "base", "row"],
)
def test_a_column_that_an_update_changes_unnamed(
    where: str, owner: Any, bind: str, options: dict[str, Any]
) -> None:
    """It would give a row to another owner, or another primary key, and leave its value behind: refused where
    mappers are configured, wherever it stands between the row and its owner."""
    base = declare(where, options, owner() if callable(owner) else owner, bind)
    with pytest.raises(ConfigurationError, match=rf"{where}.* has `(server_)?onupdate=`.*Remove it"):
        base.registry.configure()
    base.registry.dispose()


def test_other_columns_may_change_unnamed() -> None:
    """`onupdate=` is refused only where it changes a row's owner."""
    base = declare("pages.account", {"onupdate": 2}, "book.person")
    base.registry.configure()

    assert base.metadata.tables["pages"].c.account.onupdate.arg == 2


@pytest.mark.parametrize(
    ("made", "how"),
    [((), "onupdate="), ((sa.Computed("2"),), r"Computed\(\.\.\.\)")],
    ids=["Python", "database"],
)
def test_a_table_without_a_class(lite: Application, made: Any, how: str) -> None:
    """A table that Core alone writes is refused with its first statement."""
    options = {} if made else {"onupdate": 2}
    owner = sa.Column("user_id", ForeignKey(User.__table__.c.id), *made, **options)
    notes = sa.Table("core_notes", sa.MetaData(), owner, sa.Column("text", EncryptedType(Text)))
    with lite.engine.begin() as connection, pytest.raises(ConfigurationError, match=f"has `{how}`"):
        connection.execute(update(notes).values(text="t", user_id=1))
