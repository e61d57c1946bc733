"""A `TypeDecorator` inside `EncryptedType` takes and gives what it takes and gives in a plain column, None
included; what cannot be so is refused where it is declared."""

import datetime as dt
import uuid
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, ForeignKey, String, insert, select, update
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.exc import InvalidRequestError, StatementError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import (
    ConfigurationError,
    EncryptedType,
    KeyOwner,
    LockedError,
    PreviousColumn,
    StatementRefusedError,
    ValueEncodingError,
)
from tests.orm.models import SECRET, envelope, unlock
from tests.prepared import tables_of

pytestmark = [pytest.mark.both_lines, pytest.mark.any_database]


class Decorator(sa.TypeDecorator[Any]):
    """What the decorators below have in common."""

    impl: Any = String

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.cache_ok = True


class EmptyIsNull(Decorator):
    """Stores nothing for the empty text, and reads nothing as the empty text."""

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return value or None

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return value or ""


class NoneIsText(Decorator):
    """Stores something for None, and reads it back as None."""

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return "unknown" if value is None else value

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value == "unknown" else value


class OnlyReads(Decorator):
    """Converts what is read alone."""

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return f"<{value}>"


class OnlyWrites(Decorator):
    """Converts what is written alone, to nothing at times."""

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value == "forget" else value


class Over(Decorator):
    """A decorator over one that converts None both ways."""

    impl = EmptyIsNull

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return "" if value == "nothing" else value

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return "nothing" if value == "" else value


class Strict(Decorator):
    """Takes no None."""

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        if value is None:
            raise ValueError("a value is needed")
        return value


class Tags(Decorator):
    """A set, as a list of JSON; no set is an empty one."""

    impl = sa.JSON(none_as_null=True)

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return sorted(value) if value else None

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return set(value or ())


class Guid(Decorator):
    """Chooses its type by the database, and its conversion with it: the recipe of SQLAlchemy's own pages."""

    impl = postgresql.UUID

    def load_dialect_impl(self, dialect: Any) -> Any:
        return dialect.type_descriptor(postgresql.UUID() if dialect.name == "postgresql" else sa.CHAR(32))

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return value if value is None or dialect.name == "postgresql" else value.hex

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return value if value is None or isinstance(value, uuid.UUID) else uuid.UUID(value)


class Moment(Decorator):
    """Gives zones back to databases that drop them."""

    impl = sa.DateTime(timezone=True)

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return value and value.astimezone(dt.UTC)

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return value and (value if value.tzinfo else value.replace(tzinfo=dt.UTC))


JSON = sa.JSON(none_as_null=True)
DECORATORS: dict[str, tuple[Any, list[Any]]] = {
    "empty_is_null": (EmptyIsNull, ["", "x", None]),
    "none_is_text": (NoneIsText, [None, "x", "unknown"]),
    "only_reads": (OnlyReads, ["x", None, ""]),
    "only_writes": (OnlyWrites, ["forget", "x", None]),
    "over": (Over, ["nothing", "", "x", None]),
    "strict": (Strict, ["x", ""]),
    "tags": (Tags, [{"b", "a"}, set(), None]),
    "guid": (Guid, [uuid.UUID(int=7), None]),
    "moment": (Moment, [dt.datetime(2026, 1, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=2))), None]),
    "json_variant": (JSON.with_variant(postgresql.JSONB(none_as_null=True), "postgresql"), [{"a": 1}, None]),
}


class Base(DeclarativeBase):
    pass


class Owner(KeyOwner, Base):
    __tablename__ = "decorator_owners"
    id: Mapped[int] = mapped_column(primary_key=True)


MODELS: dict[str, Any] = {
    name: type(
        name,
        (Base,),
        {
            "__tablename__": f"decorated_{name}",
            "id": mapped_column(sa.Integer, primary_key=True),
            "owner_id": mapped_column(ForeignKey("decorator_owners.id")),
            "plain": mapped_column(inner),
            "column": mapped_column(EncryptedType(inner)),
            "row": mapped_column(EncryptedType(inner, bind="row")),
        },
    )
    for name, (inner, _) in DECORATORS.items()
}
for _model in MODELS.values():
    _model.__table__.c.id.autoincrement = False
COLUMNS = ("plain", "column", "row")


class Defaulted(Base):
    """Its default is converted, too."""

    __tablename__ = "decorated_default"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    owner_id: Mapped[int] = mapped_column(ForeignKey("decorator_owners.id"))
    plain: Mapped[str] = mapped_column(EmptyIsNull, default="", nullable=True)
    column: Mapped[str] = mapped_column(EncryptedType(EmptyIsNull), default="", nullable=True)


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """An unlocked owner, on SQLite and on PostgreSQL."""
    tables_of(Base.metadata, engine)
    with Session(engine) as session:
        owner = Owner(id=1)
        session.add(owner)
        with envelope.enroll(session, owner, secret=SECRET):
            session.commit()
        with unlock(session, owner):
            yield session


def _flushed(session: Session, model: Any, rows: list[dict[str, Any]]) -> None:
    session.add_all(model(**row) for row in rows)
    session.flush()


def _changed(session: Session, model: Any, rows: list[dict[str, Any]]) -> None:
    other = next(v for row in reversed(rows) for v in row.values() if v is not None)
    for row in rows:
        session.add(model(**row | dict.fromkeys(COLUMNS, rows[0]["plain"])))
    session.flush()
    for row in rows:
        one = session.get_one(model, row["id"])
        for key in COLUMNS:
            setattr(one, key, row[key])
    session.flush()
    assert other is not None


def _core(session: Session, model: Any, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        session.execute(insert(model.__table__).values(**row))


def _updated(session: Session, model: Any, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        session.execute(insert(model), [row | dict.fromkeys(COLUMNS, rows[0]["plain"])])
        values = {key: row[key] for key in COLUMNS}
        session.execute(
            update(model.__table__)
            .where(model.__table__.c.id == row["id"], model.__table__.c.owner_id == 1)
            .values(owner_id=1, id=row["id"], **values)
        )


WRITES = {
    "flushed": _flushed,
    "changed": _changed,
    "bulk": lambda s, model, rows: s.execute(insert(model), rows),
    "one row": _core,
    "several VALUES": lambda s, model, rows: s.execute(insert(model.__table__).values(rows)),
    "updated": _updated,
    "bulk update": lambda s, model, rows: (
        s.execute(insert(model), [row | dict.fromkeys(COLUMNS, rows[0]["plain"]) for row in rows]),
        s.execute(update(model), rows),
    ),
}


@pytest.mark.parametrize("name", DECORATORS)
@pytest.mark.parametrize("way", WRITES)
def test_a_decorator_does_what_it_does_in_a_plain_column(session: Session, name: str, way: str) -> None:
    """In each row the plain column and the encrypted ones hold NULL alike and give the same value, however it
    was written and is read."""
    model, (_, values) = MODELS[name], DECORATORS[name]
    rows = [{"id": n, "owner_id": 1} | dict.fromkeys(COLUMNS, value) for n, value in enumerate(values, 1)]
    WRITES[way](session, model, rows)
    session.expire_all()
    table = model.__table__
    raw = select(*(sa.type_coerce(table.c[key], sa.LargeBinary).is_(None) for key in COLUMNS))
    loaded = session.scalars(select(model).order_by(model.id)).all()
    selected = session.execute(select(model.plain, model.column).order_by(model.id)).all()

    assert len(values) == len(loaded)
    for one in loaded:
        assert one.plain == one.column == one.row
    assert [row.plain for row in selected] == [row.column for row in selected]
    assert all(len(set(row)) == 1 for row in session.execute(raw).all())


def test_a_default_is_converted(session: Session) -> None:
    """A Python-side default goes through the decorator, in a flush and in a statement."""
    session.add(Defaulted(id=1, owner_id=1))
    session.flush()
    session.execute(insert(Defaulted), [{"id": 2, "owner_id": 1}, {"id": 3, "owner_id": 1}])
    session.expire_all()

    for one in session.scalars(select(Defaulted)).all():
        assert (one.plain, one.column) == ("", "")


@pytest.mark.parametrize("key", ["plain", "column", "row"])
def test_a_decorator_that_takes_no_none_is_asked(session: Session, key: str) -> None:
    """What a decorator refuses is refused, None as well."""
    values = {"id": 1, "owner_id": 1, "plain": "x", "column": "x", "row": "x", key: None}
    with pytest.raises((StatementError, ValueEncodingError)):
        session.execute(insert(MODELS["strict"].__table__), [values])


def test_what_a_decorator_makes_of_none_is_encrypted(engine: Engine) -> None:
    """It needs a key, as any value does."""
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        owner = Owner(id=1)
        session.add(owner)
        with envelope.enroll(session, owner, secret=SECRET):
            session.commit()
        with pytest.raises(LockedError):
            session.execute(
                insert(MODELS["none_is_text"].__table__), [{"id": 1, "owner_id": 1, "column": None}]
            )


def test_what_null_reads_as_is_no_moved_value(session: Session) -> None:
    """A row of an owner who is locked, and a deferred column while several owners are unlocked: NULL reads as
    it does in a plain column, and is not taken for a value of another owner."""
    model = MODELS["empty_is_null"]
    with Session(session.get_bind()) as other:
        ben = Owner(id=2)
        other.add(ben)
        with envelope.enroll(other, ben, secret=SECRET):
            other.add(model(id=9, owner_id=2, column=""))
            other.commit()
    session.expire_all()

    assert session.get_one(model, 9).column == ""
    session.expunge_all()
    with unlock(session, session.get_one(Owner, 2)):
        one = session.scalars(select(model).options(sa.orm.defer(model.column))).one()

        assert one.column == ""


@pytest.mark.parametrize("name", ["none_is_text", "empty_is_null"])
def test_a_row_with_none_moves_to_another_owner(session: Session, name: str) -> None:
    """None in the object may be something in the row, and something be NULL: moved with its row, it opens for
    the new owner, and is forgotten with its key."""
    model, value = MODELS[name], {"none_is_text": None, "empty_is_null": ""}[name]
    ben = Owner(id=2)
    session.add(ben)
    with envelope.enroll(session, ben, secret=SECRET):
        session.add(model(id=1, owner_id=1, column=value, row=value))
        session.commit()
        one = session.get_one(model, 1)
        one.owner_id = 2
        session.commit()

        assert (one.column, one.row) == (value, value)
    for locked in (one, session.scalars(select(model).execution_options(populate_existing=True)).one()):
        with pytest.raises(LockedError) if name == "none_is_text" else nullcontext():
            assert locked.column == value
    session.expunge_all()
    with unlock(session, session.get_one(Owner, 2)):
        one = session.get_one(model, 1)

        assert (one.column, one.row) == (value, value)


def test_items_of_a_list_are_converted() -> None:
    """A decorator that is the type of an array's items is asked for each of them, None included."""
    codec = EncryptedType(sa.ARRAY(EmptyIsNull)).codec

    assert codec.encode(["", "x", None]) == b"\0\0\0\3\0\1\0\0\0\1x\0"
    assert codec.decode(codec.encode(["", "x", None])) == ["", "x", ""]


# ---------------------------------------------------------------- what is refused where it is declared


class InSql(Decorator):
    """Has the database convert."""

    def bind_expression(self, bindparam: Any) -> Any:
        return sa.func.lower(bindparam)


class OutOfSql(Decorator):
    """Has the database convert what is read."""

    def column_expression(self, column: Any) -> Any:
        return sa.func.upper(column)


class PlainInSql(String):
    """No decorator, and the same."""

    def bind_expression(self, bindvalue: Any) -> Any:
        return sa.func.lower(bindvalue)


class Mixin:
    """What is mixed in counts as well."""

    def column_expression(self, column: Any) -> Any:
        return sa.func.upper(column)


class Mixed(Mixin, String):  # type: ignore[misc]
    """No decorator, and mixed."""


class OwnProcessor(Decorator):
    """Converts past `process_bind_param`."""

    def bind_processor(self, dialect: Any) -> Any:
        return lambda value: value[::-1]


class PlainProcessor(String):
    """No decorator, and converts."""

    def result_processor(self, dialect: Any, coltype: Any) -> Any:
        return lambda value: value[::-1]


class Choosy(Decorator):
    """Knows two databases."""

    def load_dialect_impl(self, dialect: Any) -> Any:
        return {"sqlite": sa.Text(), "postgresql": postgresql.JSONB()}[dialect.name]


class OwnType(sa.types.UserDefinedType[Any]):
    """No type that is known here."""


REFUSED = {
    "bind_expression": (InSql, "InSql.bind_expression"),
    "column_expression": (OutOfSql, "OutOfSql.column_expression"),
    "bind_expression of a type": (PlainInSql, "PlainInSql.bind_expression"),
    "column_expression mixed in": (Mixed, "Mixed.column_expression"),
    "bind_processor": (OwnProcessor, "OwnProcessor.bind_processor"),
    "result_processor of a type": (PlainProcessor, "PlainProcessor.result_processor"),
    "inside another": (type("Outer", (Decorator,), {"impl": InSql}), "InSql.bind_expression"),
    "inside a list": (sa.ARRAY(OwnProcessor), "OwnProcessor.bind_processor"),
    "no answer for the default dialect": (Choosy, "Choosy.load_dialect_impl"),
    "a user's own type": (OwnType, "OwnType"),
    "a variant of another kind": (String().with_variant(sa.JSON(), "postgresql"), "Leave the variant out"),
    "a variant of other values": (
        sa.Uuid().with_variant(sa.Uuid(as_uuid=False), "sqlite"),
        "Leave the variant out",
    ),
    "a variant with a conversion": (String().with_variant(EmptyIsNull(), "sqlite"), "Leave the variant out"),
    "a variant without zones": (
        sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql"),
        "Leave the variant out",
    ),
    "a variant inside a list": (
        sa.ARRAY(String().with_variant(sa.Integer(), "sqlite")),
        "Leave the variant out",
    ),
    "a set of MySQL": (mysql.SET("a", "b"), "SET"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_type_that_would_give_other_values_is_refused(name: str) -> None:
    """Where an encrypted column could not do what a plain one does, its declaration says so."""
    inner, told = REFUSED[name]
    with pytest.raises(ConfigurationError, match=told):
        EncryptedType(inner)


@pytest.mark.parametrize(
    "inner",
    [
        sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
        sa.Text().with_variant(mysql.LONGTEXT(), "mysql"),
        sa.JSON().with_variant(postgresql.JSONB(), "postgresql"),
        postgresql.JSONB(),
    ],
    ids=repr,
)
def test_a_variant_of_the_same_values_is_taken(inner: Any) -> None:
    """A variant that only names another type of the database is as good as none."""
    assert EncryptedType(inner).codec.tag in ("int", "str", "json")


@pytest.mark.parametrize("inner", [EmptyIsNull, NoneIsText, Over, OnlyReads])
def test_a_conversion_of_none_is_refused_while_values_are_moved(inner: Any) -> None:
    """NULL in an encrypted column says there that the value is still in the previous one."""
    with pytest.raises(ConfigurationError, match="converts None"):
        EncryptedType(inner, previous=PreviousColumn("before", String))


@pytest.mark.parametrize("inner", [Strict, Guid, OnlyWrites])
def test_a_conversion_that_leaves_none_is_taken_while_values_are_moved(inner: Any) -> None:
    """None that stays None, or that is not taken at all, tells nothing wrong."""
    assert EncryptedType(inner, previous=PreviousColumn("before", String)).previous is not None


def test_the_inner_type_says_what_can_be_hashed_and_compared() -> None:
    """SQLAlchemy asks a column's type whether its values can be hashed and when they are equal."""

    class Loose(Decorator):
        def compare_values(self, x: Any, y: Any) -> bool:
            return bool(x.lower() == y.lower())

    assert not EncryptedType(sa.JSON).hashable
    assert not EncryptedType(sa.ARRAY(String)).hashable
    assert EncryptedType(sa.ARRAY(String, as_tuple=True)).hashable
    assert EncryptedType(String).hashable
    assert EncryptedType(Loose).compare_values("A", "a")
    assert EncryptedType(sa.Integer).python_type is int


@pytest.mark.parametrize("key", ["plain", "column"])
def test_unique_rows_of_values_that_cannot_be_hashed(session: Session, key: str) -> None:
    """`unique()` over a column of JSON says what it says of a plain one, and not that a dict has no hash."""
    session.add(MODELS["json_variant"](id=1, owner_id=1, **{key: {"a": 1}}))
    session.flush()
    with pytest.raises(InvalidRequestError, match="non-hashable"):
        session.scalars(select(getattr(MODELS["json_variant"], key))).unique().all()


def test_a_type_around_the_encrypted_one(sqlite_engine: Engine) -> None:
    """A decorator around `EncryptedType` writes nothing, and its error says to put it inside."""

    class Around(sa.TypeDecorator[str]):
        impl = EncryptedType
        cache_ok = True

    table = sa.Table("around", sa.MetaData(), sa.Column("value", Around(sa.String)))
    table.create(sqlite_engine)
    refused = pytest.raises(StatementRefusedError, match=r"EncryptedType\(YourType\)")
    with sqlite_engine.connect() as connection, refused:
        connection.execute(table.insert().values(value="x"))
