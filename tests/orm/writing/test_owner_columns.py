"""What a statement says of its rows' owner: columns with defaults, expressions, `using`, values of another
type. A value is stored under the key of its row's owner, or it is refused and nothing is sent."""

import datetime as dt
import enum
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from sqlalchemy import (
    Engine,
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
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from sqlalchemy_envelope import (
    ConfigurationError,
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyOwner,
    OneOf,
    OwnerColumn,
    ServerKeyring,
    StatementRefusedError,
    enforce_foreign_keys,
)
from tests.orm.models import statements_sent

pytestmark = pytest.mark.both_lines

TENANT = [1]
CALLS: list[int] = []


def current_tenant() -> int:
    CALLS.append(TENANT[0])
    return TENANT[0]


def by_context(context: Any) -> int:
    return int(context.get_current_parameters()["id"])


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)


class Team(KeyOwner, Base):
    __tablename__ = "teams"
    id: Mapped[int] = mapped_column(primary_key=True)


class Device(KeyOwner, Base):
    __tablename__ = "devices"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)


def text(owner: Any = None) -> Any:
    return mapped_column(EncryptedType(Text, owner))


class Plain(Base):
    __tablename__ = "plains"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    text: Mapped[str | None] = text()


class Called(Base):
    __tablename__ = "called"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), default=current_tenant)
    user: Mapped[User] = relationship()
    text: Mapped[str | None] = text()


class Constant(Base):
    __tablename__ = "constants"
    id: Mapped[int] = mapped_column(primary_key=True)
    whose: Mapped[int] = mapped_column("user_id", ForeignKey("users.id"), default=1)
    text: Mapped[str | None] = text()


class ByContext(Base):
    __tablename__ = "by_context"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), default=by_context)
    text: Mapped[str | None] = text()


class ByDatabase(Base):
    __tablename__ = "by_database"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), server_default="1")
    text: Mapped[str | None] = text()


class ByExpression(Base):
    __tablename__ = "by_expression"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), default=sa.text("1"))
    text: Mapped[str | None] = text()


class Either(Base):
    __tablename__ = "either"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    team_id: Mapped[int | None] = mapped_column(ForeignKey("teams.id"))
    text: Mapped[str | None] = text(OneOf("user_id", "team_id"))


class EitherDefault(Base):
    __tablename__ = "either_default"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"), default=current_tenant)
    team_id: Mapped[int | None] = mapped_column(ForeignKey("teams.id"))
    text: Mapped[str | None] = text(OneOf("user_id", "team_id"))


class EitherDatabase(Base):
    __tablename__ = "either_database"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"), server_default="1")
    team_id: Mapped[int | None] = mapped_column(ForeignKey("teams.id"))
    text: Mapped[str | None] = text(OneOf("user_id", "team_id"))


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    user: Mapped[User] = relationship()


class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int | None] = mapped_column(ForeignKey("orders.id"), default=current_tenant)
    order: Mapped[Order | None] = relationship()
    text: Mapped[str | None] = text("order.user")


class Setting(Base):
    __tablename__ = "settings"
    id: Mapped[int] = mapped_column(primary_key=True)
    account: Mapped[int]
    text: Mapped[str | None] = text(OwnerColumn("account", of=User))


class Reading(Base):
    __tablename__ = "readings"
    id: Mapped[int] = mapped_column(primary_key=True)
    device_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("devices.id"))
    text: Mapped[str | None] = text()


DEVICE = uuid.UUID(int=7)
DAY = dt.date(2026, 1, 2)


@dataclass
class Application:
    engine: Engine
    envelope: Envelope
    server: Any

    def stored(self, model: Any) -> list[tuple[Any, ...]]:
        """What each row names as its user and team, and whose key its value names, read past the library."""
        owners = {}
        with self.engine.connect() as connection:
            for owner in (User, Team):
                keys: Any = owner.__key_class__
                for key_id, owner_id in connection.execute(select(keys.key_id, keys.owner_id)):
                    owners[key_id.bytes] = (owner.__name__, owner_id)
            columns = [name for name in ("user_id", "team_id", "order_id") if name in model.__table__.c]
            raw = sa.table(model.__tablename__, *map(sa.column, columns), sa.column("text", sa.LargeBinary))
            found = connection.execute(select(*raw.c)).all()
        return [(*row[:-1], owners.get(bytes(row[-1])[1:17])) for row in found]


@pytest.fixture
def app(engine: Engine) -> Iterator[Application]:
    yield from _start(engine)


@pytest.fixture
def lite(sqlite_engine: Engine) -> Iterator[Application]:
    yield from _start(sqlite_engine)


def _start(engine: Engine) -> Iterator[Application]:
    Base.metadata.create_all(engine)
    envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([b"k" * 32]))
    server = envelope.server_mode(reason="test").everywhere()
    with Session(engine) as session:
        session.add_all([model(id=number) for model in (User, Team) for number in (1, 2)])
        session.add(Device(id=DEVICE))
        session.flush()
        session.add_all([Order(id=1, user_id=2), Order(id=2, user_id=1)])
        session.commit()
    TENANT[0] = 1
    CALLS.clear()
    yield Application(engine, envelope, server)
    server.stop()


Write = Callable[[Session, Any, dict[str, Any]], Any]


def by_flush(session: Session, model: Any, values: dict[str, Any]) -> None:
    session.add(model(**values))
    session.flush()


def by_values(session: Session, model: Any, values: dict[str, Any]) -> None:
    session.execute(insert(model).values(**values))


def by_parameters(session: Session, model: Any, values: dict[str, Any]) -> None:
    session.connection().execute(insert(model.__table__), {_column(model, k): v for k, v in values.items()})


def by_rows(session: Session, model: Any, values: dict[str, Any]) -> None:
    session.execute(insert(model), [values, values])


def by_core_rows(session: Session, model: Any, values: dict[str, Any]) -> None:
    row = {_column(model, key): value for key, value in values.items()}
    session.connection().execute(insert(model.__table__), [row, row])


def by_multiple_values(session: Session, model: Any, values: dict[str, Any]) -> None:
    session.execute(insert(model).values([values, values]))


def by_mappings(session: Session, model: Any, values: dict[str, Any]) -> None:
    session.bulk_insert_mappings(model, [values, values])


def by_bulk_objects(session: Session, model: Any, values: dict[str, Any]) -> None:
    session.bulk_save_objects([model(**values), model(**values)])


def _column(model: Any, key: str) -> str:
    return str(sa.inspect(model).columns[key].key)


EVERY_WAY = [
    by_flush, by_values, by_parameters, by_rows, by_core_rows, by_multiple_values, by_mappings,
    by_bulk_objects,
]  # fmt: skip


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


def refused(app: Application, written: Any, match: str, model: Any) -> None:
    """What is written, values in every way or what a function writes, raises our error, and no row is
    there."""
    ways = [written] if callable(written) else [partial(_by, way, model, written) for way in EVERY_WAY]
    for write in ways:
        with Session(app.engine) as session:
            with pytest.raises((StatementRefusedError, ConfigurationError), match=match) as error:
                write(session)
            session.rollback()
            assert session.scalar(select(sa.func.count()).select_from(model.__table__)) == 0
        assert "needle" not in str(error.value)


def _by(way: Write, model: Any, values: dict[str, Any], session: Session) -> None:
    way(session, model, values)


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


# Columns that an UPDATE changes without naming them

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
