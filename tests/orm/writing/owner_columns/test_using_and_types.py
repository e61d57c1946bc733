"""`using`, owners that the database computes, and owners' keys in values of another type."""

import datetime as dt
import enum
import uuid
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import (
    ForeignKey,
    StaticPool,
    Text,
    bindparam,
    create_engine,
    insert,
    literal,
    null,
    select,
    update,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import (
    ConfigurationError,
    EncryptedType,
    Envelope,
    KeyOwner,
    ServerKeyring,
    StatementRefusedError,
    enforce_foreign_keys,
)
from tests.orm.writing.owner_columns.settings import (
    EVERY_WAY,
    Application,
    ByDatabase,
    Called,
    Either,
    Item,
    Plain,
    Reading,
    Setting,
    User,
    by_flush,
    refused,
)

pytestmark = pytest.mark.both_lines
DEVICE = uuid.UUID(int=7)
DAY = dt.date(2026, 1, 2)
Write = Callable[[Session, Any, dict[str, Any]], Any]


# `using`


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (Plain, {}),
        (Plain, {"user_id": None}),
        (ByDatabase, {}),
        (Either, {}),
        (Either, {"user_id": 1, "team_id": 1}),
        (Item, {"order_id": 99}),
    ],
    ids=lambda one: getattr(one, "__name__", str(one)),
)
def test_using_gives_an_insert_no_owner(lite: Application, model: Any, values: dict[str, Any]) -> None:
    """A row that an INSERT gives no owner is not encrypted for the one that `using` names."""
    with Session(lite.engine) as session, lite.server.using(session.get_one(User, 2)):
        refused(lite, {**values, "text": "needle"}, ".", model)


def test_using_is_not_asked_where_a_default_answers(lite: Application) -> None:
    """The row is the default's, and so is the key."""
    with Session(lite.engine) as session, lite.server.using(session.get_one(User, 2)):
        session.execute(insert(Called).values(text="t"))
        session.commit()

    assert lite.stored(Called) == [(1, ("User", 1))]


OTHER = select(literal(2)).scalar_subquery()


@pytest.mark.parametrize(
    ("model", "statement"),
    [
        (Plain, insert(Plain).values(user_id=OTHER, text="needle")),
        (Plain, insert(Plain).values([{"user_id": OTHER, "text": "needle"}])),
        (Either, insert(Either).values(user_id=OTHER, team_id=1, text="needle")),
        (Setting, insert(Setting).values(account=OTHER, text="needle")),
        (Item, insert(Item).values(order_id=OTHER, text="needle")),
    ],
    ids=str,
)
def test_an_owner_that_the_database_computes(lite: Application, model: Any, statement: Any) -> None:
    """An SQL expression is known too late, also under `using`, which may name another."""
    with Session(lite.engine) as session, lite.server.using(session.get_one(User, 1)):
        refused(lite, lambda other: other.execute(statement), "is an SQL expression", model)
        values = {"order_id": OTHER} if model is Item else {"account": OTHER}
        values = {"user_id": OTHER} if model in (Plain, Either) else values
        refused(lite, lambda other: by_flush(other, model, {**values, "text": "needle"}), ".", model)


@pytest.mark.parametrize(
    "statement",
    [
        insert(Plain).values(user_id=bindparam("who"), text="needle"),
        insert(Plain).values([{"user_id": bindparam("who"), "text": "needle"}]),
        insert(Either).values(user_id=bindparam("who"), team_id=1, text="needle"),
        update(Plain).where(Plain.id == 1).values(user_id=bindparam("who"), text="needle"),
    ],
    ids=str,
)
def test_an_owner_in_a_parameter_that_is_not_given(lite: Application, statement: Any) -> None:
    """A `bindparam()` without a value names no owner, and none is taken from elsewhere."""
    with Session(lite.engine) as session, lite.server.using(session.get_one(User, 1)):
        model = Either if "either" in str(statement).lower() else Plain
        refused(lite, lambda other: other.execute(statement), "the parameter 'who'", model)


@pytest.mark.parametrize(
    "values",
    [
        {"user_id": OTHER},
        {"user_id": None},
        {"team_id": 1},
        {"user_id": 1, "team_id": 1},
        {"user_id": null(), "team_id": OTHER},
    ],
    ids=["other", "none", "team", "both", "team alone"],
)
def test_using_gives_an_update_that_moves_no_owner(lite: Application, values: dict[str, Any]) -> None:
    """An UPDATE that writes an owner's column says itself whose the rows are; if not all of it, it is
    refused. One that writes the value alone takes `using`."""
    with Session(lite.engine) as session:
        session.add(Either(id=1, user_id=2, text="first"))
        session.commit()
        with lite.server.using(session.get_one(User, 2)):
            for statement in (update(Either).where(Either.id == 1).values(**values, text="x"),):
                with pytest.raises(StatementRefusedError):
                    session.execute(statement, execution_options={"synchronize_session": False})
            session.execute(update(Either).where(Either.id == 1).values(text="second"))
        session.execute(
            update(Either).where(Either.id == 1).values(user_id=null(), team_id=1, text="third"),
            execution_options={"synchronize_session": False},
        )
        session.commit()

    assert lite.stored(Either) == [(None, 1, ("Team", 1))]


def test_rows_that_do_not_all_name_their_owner(lite: Application) -> None:
    """SQLAlchemy takes the columns from the first row: what later rows say beyond it would not be stored."""
    rows: Any = [{"text": None}, {"user_id": 2, "text": "needle"}]

    def write(session: Session, model: Any = Plain) -> None:
        session.connection().execute(insert(model.__table__), rows)

    refused(lite, write, "do not all name user_id", Plain)
    with Session(lite.engine) as session:
        write(session, Called)
        session.commit()
    with lite.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM called WHERE text IS NULL")

    assert lite.stored(Called) == [(2, ("User", 2))]


# Values of another type


@pytest.mark.parametrize(
    ("model", "values", "expected", "given"),
    [
        (Plain, {"user_id": "1"}, "int", "str"),
        (Setting, {"account": "1"}, "int", "str"),
        (Setting, {"account": DEVICE}, "int", "UUID"),
        (Item, {"order_id": "1"}, "int", "str"),
        (Either, {"team_id": "1"}, "int", "str"),
        (Reading, {"device_id": str(DEVICE)}, "UUID", "str"),
        (Reading, {"device_id": 7}, "UUID", "int"),
    ],
    ids=lambda one: getattr(one, "__name__", str(one)),
)
def test_an_owner_of_another_type(
    app: Application, model: Any, values: dict[str, Any], expected: str, given: str
) -> None:
    """An owner named by a value of another type is refused before anything is sent, and the error says the
    column and the types, never the value."""
    (name,) = values
    match = rf"\.{name} takes {expected} values, and was given a value of the type {given}\."
    refused(app, {**values, "text": "needle"}, match, model)


def test_a_new_owner_of_another_type(app: Application) -> None:
    """Keys are not bound to a primary key that the database stores as another."""
    with (
        Session(app.engine) as session,
        pytest.raises(ConfigurationError, match=r"users\.id takes int values"),
    ):
        app.envelope.enroll(session, User(id="9"), secret="correct horse battery")
    with Session(app.engine) as session:
        session.add(User(id="9"))
        with pytest.raises(ConfigurationError, match=r"users\.id takes int values, .* of the type str"):
            session.flush()


class Guid(sa.TypeDecorator[uuid.UUID]):
    """As SQLAlchemy's documentation has it: it takes a UUID and its text, and gives a UUID back."""

    impl = sa.CHAR(32)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str | None:
        return None if value is None else (value if isinstance(value, uuid.UUID) else uuid.UUID(value)).hex

    def process_result_value(self, value: str | None, dialect: Any) -> uuid.UUID | None:
        return None if value is None else uuid.UUID(value)


class Lower(sa.TypeDecorator[str]):
    impl = sa.String(40)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return value.lower()


def keyed(type_: Any) -> tuple[Any, Any, Any]:
    """A person whose key is of this type, a page of that person, and a leaf that is bound to its own key."""

    class Local(DeclarativeBase):
        pass

    class Person(KeyOwner, Local):
        __tablename__ = "people"
        id: Mapped[Any] = mapped_column(type_, primary_key=True)

    class Page(Local):
        __tablename__ = "pages"
        id: Mapped[int] = mapped_column(primary_key=True)
        person_id: Mapped[Any] = mapped_column(type_, ForeignKey("people.id"))
        text: Mapped[str | None] = mapped_column(EncryptedType(Text))

    class Leaf(Local):
        __tablename__ = "leaves"
        id: Mapped[Any] = mapped_column(type_, primary_key=True, autoincrement=False)
        person_id: Mapped[Any] = mapped_column(type_, ForeignKey("people.id"))
        text: Mapped[str | None] = mapped_column(EncryptedType(Text, bind="row"))

    return Person, Page, Leaf


@pytest.mark.parametrize(
    ("type_", "read", "other", "match"),
    [
        (Guid(), DEVICE, str(DEVICE), "reads UUID values, and was given a value of the type str"),
        (Lower(), "ada", "Ada", "reads another value than it was given"),
        (sa.Integer(), 7, "7", "takes int values, and was given a value of the type str"),
        (sa.Date(), DAY, dt.datetime(2026, 1, 2, 3), "takes date values, .* of the type datetime"),
    ],
    ids=["decorator", "decorator that changes", "int", "date"],
)
def test_a_key_in_another_form_than_it_is_read_in(type_: Any, read: Any, other: Any, match: str) -> None:
    """What is encrypted for a key, or bound to it, is found by the form that is read: any other is refused by
    every way of writing, and the one that is read goes on as before."""
    person, page, leaf = keyed(type_)
    engine = create_engine("sqlite://", poolclass=StaticPool)
    enforce_foreign_keys(engine)
    person.metadata.create_all(engine)
    envelope = Envelope(server_keys=ServerKeyring.from_text(ServerKeyring.generate_key()))
    wrong = [(page, {"person_id": other}), (leaf, {"id": other, "person_id": read})]

    def store(write: Any, model: Any, values: dict[str, Any]) -> None:
        write(session, model, {**values, "text": "needle"})
        session.flush()

    with Session(engine) as session, envelope.server_mode(session, reason="test"):
        session.add(person(id=other))
        with pytest.raises(ConfigurationError, match=match):
            session.flush()
        session.rollback()
        session.add(person(id=read))
        session.commit()
        for write, (model, values) in product(EVERY_WAY, wrong):
            with pytest.raises(StatementRefusedError, match=match):
                store(write, model, values)
            session.rollback()
        session.add_all([page(person_id=read, text="page"), leaf(id=read, person_id=read, text="leaf")])
        session.commit()
        session.expunge_all()

        assert [session.scalars(select(one)).one().text for one in (page, leaf)] == ["page", "leaf"]


class Number(enum.IntEnum):
    TWO = 2


class Whole(int):
    pass


def test_subclasses_of_the_type_pass(lite: Application) -> None:
    """An `int` by another name is an `int`."""
    for value in (Number.TWO, Whole(2)):
        with Session(lite.engine) as session:
            for write in EVERY_WAY:
                write(session, Plain, {"user_id": value, "text": "t"})
            session.commit()

    assert set(lite.stored(Plain)) == {(2, ("User", 2))}
