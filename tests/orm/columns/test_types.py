"""Every type of column comes back as it was given, on both databases; what does not fit is refused without
showing it; and each column keeps its own label, however its type was declared."""

import datetime as dt
import enum
import math
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated, Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, Engine, ForeignKey, Integer, MetaData, String, Table, Text, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.mutable import MutableDict, MutableList
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, declared_attr, mapped_column, relationship

from sqlalchemy_envelope import (
    ConfigurationError,
    DecryptionError,
    EncryptedType,
    EnvelopeError,
    KeyOwner,
    LockedError,
    ValueEncodingError,
)
from tests.orm.conftest import Started
from tests.orm.models import SECRET, Note, envelope, unlock
from tests.prepared import tables_of

pytestmark = [pytest.mark.both_lines, pytest.mark.any_database]


class Base(DeclarativeBase):
    pass


class Owner(KeyOwner, Base):
    __tablename__ = "type_owners"
    id: Mapped[int] = mapped_column(primary_key=True)
    values: Mapped["Values"] = relationship()


class Colour(enum.Enum):
    RED = "r"
    BLUE = "b"


class Point:
    """A value of the application's own."""

    def __init__(self, x: int, y: int) -> None:
        self.x, self.y = x, y

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and (self.x, self.y) == (other.x, other.y)

    __hash__ = None  # type: ignore[assignment]


class PointType(sa.TypeDecorator[Point]):
    """Stored as text, through another decorator's eyes as a point."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Point | None, dialect: Any) -> str | None:
        return None if value is None else f"{value.x},{value.y}"

    def process_result_value(self, value: str | None, dialect: Any) -> Point | None:
        return None if value is None else Point(*map(int, value.split(",")))


class Points(sa.TypeDecorator[list[Point]]):
    """A decorator over a decorator."""

    impl = PointType
    cache_ok = True

    def process_bind_param(self, value: list[Point] | None, dialect: Any) -> Point | None:
        return None if value is None else Point(sum(p.x for p in value), sum(p.y for p in value))

    def process_result_value(self, value: Point | None, dialect: Any) -> list[Point] | None:
        return None if value is None else [value]


BERLIN = dt.timezone(dt.timedelta(hours=2))
TYPES: dict[str, tuple[Any, list[Any]]] = {
    "string": (String(5), ["", "a", "longer than five", "ä\u0301\U0001f600", "\x00", "'; --", " " * 3]),
    "text": (Text, ["x" * 100_000]),
    "unicode": (sa.Unicode, ["é"]),
    "integer": (Integer, [0, -1, 1, 127, 128, -128, -129, 2**31, -(2**63), 2**200, -(2**200)]),
    "biginteger": (sa.BigInteger, [2**63]),
    "smallinteger": (sa.SmallInteger, [5]),
    "boolean": (sa.Boolean, [True, False]),
    "numeric": (sa.Numeric(10, 2), [Decimal("12.340"), Decimal("-0"), Decimal("1E+20"), Decimal("0.1")]),
    "float": (sa.Float, [0.1, -0.0, 1e308, 5e-324, math.inf, -math.inf]),
    "double": (sa.Double, [1 / 3]),
    "numeric as float": (sa.Numeric(asdecimal=False), [0.5]),
    "float as decimal": (sa.Float(asdecimal=True), [Decimal("0.1")]),
    "date": (sa.Date, [dt.date(1, 1, 1), dt.date(2026, 2, 28), dt.date(9999, 12, 31)]),
    "time": (sa.Time, [dt.time(0), dt.time(23, 59, 59, 999999)]),
    "time with zone": (sa.Time(timezone=True), [dt.time(12, tzinfo=BERLIN)]),
    "datetime": (sa.DateTime, [dt.datetime(1, 1, 1), dt.datetime(2026, 1, 1, 1, 2, 3, 4)]),
    "datetime with zone": (
        sa.DateTime(timezone=True),
        [dt.datetime(2026, 1, 1, tzinfo=dt.UTC), dt.datetime(2026, 1, 1, 1, tzinfo=BERLIN)],
    ),
    "interval": (sa.Interval, [dt.timedelta(0), dt.timedelta(days=-1, microseconds=1), dt.timedelta.max]),
    "uuid": (sa.Uuid, [uuid.UUID(int=0), uuid.UUID(int=2**128 - 1)]),
    "uuid as text": (sa.Uuid(as_uuid=False), ["00000000-0000-0000-0000-000000000001"]),
    "postgresql uuid": (postgresql.UUID, [uuid.UUID(int=7)]),
    "enum of a class": (sa.Enum(Colour), [Colour.RED, Colour.BLUE]),
    "enum of strings": (sa.Enum("a", "b"), ["a", "b"]),
    "enum of values": (
        sa.Enum(Colour, values_callable=lambda cls: [one.value for one in cls]),
        [Colour.BLUE],
    ),
    "json": (sa.JSON, [{}, [], "", 0, False, {"a": [1, None, {"b": "ä"}]}, 1.5, ["\u2028"], {"k": 2**70}]),
    "jsonb": (postgresql.JSONB, [{"a": 1}]),
    "sqlite json": (sqlite.JSON, [[1]]),
    "bytes": (sa.LargeBinary, [b"", b"\x00\xff", bytes(range(256))]),
    "varbinary": (sa.VARBINARY(3), [b"abc"]),
    "list": (sa.ARRAY(Integer), [[], [1], [1, None, -3]]),
    "list of lists": (sa.ARRAY(String, dimensions=2), [[["a", "b"], ["c", None]], [[]], []]),
    "nested list": (sa.ARRAY(String), [[["a"], ["b", None]], ["flat"]]),
    "list of dates": (sa.ARRAY(sa.Date), [[dt.date(2026, 1, 1), None]]),
    "postgresql list": (postgresql.ARRAY(sa.Uuid), [[uuid.UUID(int=1)]]),
    "decorated": (PointType, [Point(1, -2)]),
    "decorated twice": (Points, [[Point(3, 4)]]),
    "mutable json": (MutableDict.as_mutable(sa.JSON()), [{"k": "v"}]),
}


class Values(Base):
    __tablename__ = "type_values"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner_id: Mapped[int] = mapped_column(ForeignKey("type_owners.id"))


def _attribute(name: str) -> str:
    return "c_" + name.replace(" ", "_")


for _name, (_type, _) in TYPES.items():
    setattr(Values, _attribute(_name), mapped_column(EncryptedType(_type)))


@pytest.fixture
def owner(engine: Engine) -> Iterator[Owner]:
    """An unlocked owner of values, on SQLite and on PostgreSQL."""
    tables_of(Base.metadata, engine)
    with Session(engine) as session:
        owner = Owner()
        with envelope.enroll(session, owner, secret=SECRET):
            session.commit()
            yield owner
            session.rollback()


def there_and_back(owner: Owner, name: str, values: list[Any]) -> list[Any]:
    """Write each value, and read it with nothing left in the session."""
    session = Session.object_session(owner)
    assert session is not None
    rows = [Values(owner_id=owner.id, **{_attribute(name): value}) for value in values]
    session.add_all(rows)
    session.flush()
    ids = [row.id for row in rows]
    session.expire_all()
    found = [getattr(session.get_one(Values, one), _attribute(name)) for one in ids]
    session.rollback()
    return found


def test_every_type_round_trips(owner: Owner) -> None:
    """Each value comes back equal and of the same Python type, edge values included."""
    for name, (_, values) in TYPES.items():
        found = there_and_back(owner, name, values)

        assert found == values, name
        assert [type(one) for one in found if not isinstance(one, dict)] == [
            type(one) for one in values if not isinstance(one, dict)
        ], name


def test_what_equality_does_not_show(owner: Owner) -> None:
    """Signs of zero, trailing zeros, NaN and the moment of a zoned time are kept."""
    negative, not_a_number = there_and_back(owner, "float", [-0.0, math.nan])
    money, infinite = there_and_back(owner, "numeric", [Decimal("12.340"), Decimal("Infinity")])
    (moment,) = there_and_back(owner, "datetime with zone", [dt.datetime(2026, 1, 1, 1, tzinfo=BERLIN)])
    (clock,) = there_and_back(owner, "time with zone", [dt.time(12, tzinfo=BERLIN)])

    assert math.copysign(1, negative) == -1
    assert math.isnan(not_a_number)
    assert (str(money), str(infinite)) == ("12.340", "Infinity")
    assert moment.utcoffset() == dt.timedelta(0)
    assert clock.utcoffset() == dt.timedelta(hours=2)


def test_json_null(owner: Owner) -> None:
    """`None` in a JSON column is SQL NULL; `JSON.NULL` is an encrypted null. Both read as `None`."""
    session = Session.object_session(owner)
    assert session is not None
    rows = [Values(owner_id=owner.id, c_json=None), Values(owner_id=owner.id, c_json=sa.JSON.NULL)]
    session.add_all(rows)
    session.flush()
    session.expire_all()

    assert [row.c_json for row in rows] == [None, None]  # type: ignore[attr-defined]
    assert session.scalar(select(sa.func.count(Values.c_json))) == 1  # type: ignore[attr-defined]


TEXTS = st.text(st.characters(exclude_categories=("Cs",)))
JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=10,
)


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("string", TEXTS),
        ("integer", st.integers()),
        ("numeric", st.decimals(allow_nan=False)),
        ("float", st.floats(allow_nan=False)),
        ("json", JSONS.filter(lambda one: one is not None)),
        ("bytes", st.binary()),
        ("datetime", st.datetimes()),
        (
            "datetime with zone",
            st.datetimes(dt.datetime(2, 1, 1), dt.datetime(9999, 1, 1), timezones=st.just(BERLIN)),
        ),
        ("interval", st.timedeltas()),
        ("list", st.lists(st.none() | st.integers())),
    ],
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_arbitrary_values_round_trip(
    sqlite_owner: Owner, name: str, strategy: Any, data: st.DataObject
) -> None:
    """Whatever the type holds comes back."""
    values = data.draw(st.lists(strategy, min_size=1, max_size=8))

    assert there_and_back(sqlite_owner, name, values) == values


@pytest.fixture
def sqlite_owner(sqlite_engine: Engine) -> Iterator[Owner]:
    """An unlocked owner of values, on SQLite."""
    tables_of(Base.metadata, sqlite_engine)
    with Session(sqlite_engine) as session:
        owner = Owner()
        with envelope.enroll(session, owner, secret=SECRET):
            session.commit()
            yield owner
            session.rollback()


SHOWN = "p1aintext"
WRONG: dict[str, list[Any]] = {
    "string": [1, SHOWN.encode(), [SHOWN], "\ud800" + SHOWN],
    "text": [None.__class__, object()],
    "integer": [SHOWN, 1.5, True, Decimal(1)],
    "boolean": [1, 0, "true"],
    "numeric": [SHOWN, 0.5, True, Decimal("sNaN")],
    "float": [SHOWN, True, Decimal(1), 10**400],
    "date": [dt.datetime(2026, 1, 1), SHOWN],
    "time": [dt.time(1, tzinfo=dt.UTC), SHOWN],
    "time with zone": [dt.time(1)],
    "datetime": [dt.date(2026, 1, 1), dt.datetime(2026, 1, 1, tzinfo=dt.UTC), SHOWN],
    "datetime with zone": [dt.datetime(2026, 1, 1)],
    "interval": [1, SHOWN],
    "uuid": [SHOWN, 7, str(uuid.UUID(int=1))],
    "uuid as text": [SHOWN, 7],
    "enum of a class": [SHOWN, 1],
    "enum of strings": [SHOWN, Colour.RED],
    "enum of values": ["unknown " + SHOWN],
    "json": [{1, 2}, object(), {"k": dt.date(2026, 1, 1)}, math.nan, {("tuple",): SHOWN}, "\ud800" + SHOWN],
    "bytes": [SHOWN, 5, [1, 2]],
    "list": [SHOWN, [SHOWN], 7, {1: 2}, [1.5]],
    "list of lists": [[1]],
    "decorated": [SHOWN, 5],
}


@pytest.mark.parametrize("name", WRONG)
def test_values_that_do_not_fit(sqlite_owner: Owner, name: str) -> None:
    """A value of a wrong type is refused by an error that names the column and the type, and not the
    value."""
    session = Session.object_session(sqlite_owner)
    assert session is not None
    owner_id = sqlite_owner.id
    for value in WRONG[name]:
        session.add(Values(owner_id=owner_id, **{_attribute(name): value}))
        with pytest.raises(ValueEncodingError) as caught:
            session.flush()
        session.rollback()
        error: BaseException | None = caught.value
        while error is not None:
            assert SHOWN not in str(error)
            error = error.__cause__ or error.__context__

        assert f"type_values.{_attribute(name)}" in str(caught.value)
    assert session.scalar(select(sa.func.count()).select_from(Values)) == 0


@pytest.mark.parametrize(
    "inner", [sa.PickleType, sa.types.NullType, sa.types.TupleType, postgresql.TSVECTOR, postgresql.INT4RANGE]
)
def test_types_that_cannot_be_encrypted(inner: Any) -> None:
    """An inner type without an encoding of its own is refused where it is declared."""
    with pytest.raises(ConfigurationError):
        EncryptedType(inner)


def test_a_subclass_of_pickle_type() -> None:
    """Nor does a subclass or a decorator let pickles in."""

    class Mine(sa.PickleType):
        cache_ok = True

    class Wrapped(sa.TypeDecorator[Any]):
        impl = sa.PickleType
        cache_ok = True

    for inner in (Mine, Wrapped, sa.ARRAY(sa.PickleType)):
        with pytest.raises(ConfigurationError):
            EncryptedType(inner)


def test_encrypting_twice_is_refused() -> None:
    """An encrypted type inside an encrypted type is a mistake."""
    with pytest.raises(ConfigurationError):
        EncryptedType(EncryptedType(String))


# Tracking of changes in place


def test_changes_in_place_are_stored(started: Started) -> None:
    """A change inside a tracked dict or list is flushed, after a load, a refresh and a commit alike."""
    session = started.session
    with unlock(session, started.ada):
        note = Note(user=started.ada, tags=["a"], extra={"k": [1]})
        session.add(note)
        session.commit()
        note.tags.append("b")
        note.extra["l"] = 2
        session.commit()
        assert (note.tags, note.extra) == (["a", "b"], {"k": [1], "l": 2})
        session.refresh(note)
        note.extra.pop("k")
        session.commit()
        session.expunge_all()
        note = session.scalars(select(Note)).one()
        note.tags[:] = ["c"]
        session.commit()

        assert (note.tags, note.extra) == (["c"], {"l": 2})
        assert isinstance(note.tags, MutableList)
        assert isinstance(note.extra, MutableDict)


def test_changes_in_place_while_unflushed(started: Started) -> None:
    """A change in place that waits when the block is left is kept like any other."""
    session = started.session
    with unlock(session, started.ada):
        note = Note(user=started.ada, tags=["a"])
        session.add(note)
        session.commit()
    with pytest.raises(EnvelopeError, match=r"Note\.tags"), unlock(session, started.ada):
        note.tags.append("b")
    with unlock(session, started.ada):
        session.commit()

        assert note.tags == ["a", "b"]


def test_a_tracked_value_that_is_locked(started: Started) -> None:
    """A tracked attribute that is locked loads without meeting its tracker, and raises when touched."""
    with unlock(started.session, started.ada):
        started.session.add(Note(user=started.ada, tags=["a"], extra={"k": 1}))
        started.session.commit()
    started.session.expunge_all()
    note = started.session.scalars(select(Note)).one()
    for name in ("tags", "extra"):
        with pytest.raises(LockedError):
            getattr(note, name)


# Labels


def test_one_instance_for_two_columns() -> None:
    """One type object given to two columns gets the label of each."""
    shared = EncryptedType(String)
    table = Table("t", MetaData(), Column("a", shared), Column("b", shared))

    assert (table.c.a.type.label, table.c.b.type.label) == ("t.a", "t.b")
    assert shared.label is None
    assert table.c.a.type.bind_processor is not table.c.b.type.bind_processor


def test_columns_of_two_labels_share_no_processor() -> None:
    """Labels are part of SQLAlchemy's cache key, so that no compiled statement serves two columns."""
    one, two = EncryptedType(String, label="a.b"), EncryptedType(String, label="a.c")
    dialect = sqlite.dialect()

    assert one._static_cache_key != two._static_cache_key
    assert (
        EncryptedType(String, label="x", bind="row")._static_cache_key
        != EncryptedType(String, label="x")._static_cache_key
    )
    assert (
        EncryptedType(String, label="x")._static_cache_key != EncryptedType(Text, label="x")._static_cache_key
    )
    assert (
        EncryptedType(String, None, "x")._static_cache_key
        == EncryptedType(String, label="x")._static_cache_key
    )
    assert one._cached_result_processor(dialect, None) is not two._cached_result_processor(dialect, None)
    assert EncryptedType(String, label="x").cache_ok


def test_two_columns_swapped_by_an_attacker(started: Started) -> None:
    """A value copied into another column of its own row and owner does not open there."""
    with unlock(started.session, started.ada):
        note = Note(user=started.ada, tags=["a"], extra={"k": 1})
        started.session.add(note)
        started.session.commit()
    with started.engine.begin() as connection:
        connection.execute(sa.text("update notes set tags = extra, extra = tags"))
    started.session.expunge_all()
    with unlock(started.session, started.session.get_one(type(started.ada), 1)):
        note = started.session.scalars(select(Note)).one()
        for name in ("tags", "extra"):
            with pytest.raises(DecryptionError, match=rf"notes\.{name} of the row with id="):
                getattr(note, name)


def test_to_metadata_keeps_the_label() -> None:
    """A copy of a table, under another name too, keeps its labels: its values are the original's."""
    original = Table("t", MetaData(), Column("a", EncryptedType(String)))
    plain = original.to_metadata(MetaData())
    history = original.to_metadata(MetaData(), name="t_history")

    assert (plain.c.a.type.label, history.c.a.type.label) == ("t.a", "t.a")


def test_reprs_and_copies() -> None:
    """The type's own repr rebuilds it; copies are equal in every option."""
    for one in (
        EncryptedType(),
        EncryptedType(sa.Numeric(10, 2), owner="user_id", label="t.a", bind="row"),
        EncryptedType(sa.ARRAY(Integer), owner=("a", "b")),
    ):
        again = eval(repr(one), {**vars(sa), "EncryptedType": EncryptedType})  # noqa: S307 - our own text

        assert repr(again) == repr(one) == repr(one.copy())
    with pytest.raises(ConfigurationError):
        EncryptedType(String, bind="rows")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError):
        _ = EncryptedType(String).field


class Mixed(DeclarativeBase):
    type_annotation_map = {"secret": EncryptedType(String)}  # noqa: RUF012


Secret = Annotated[str, mapped_column(EncryptedType(String))]
OtherSecret = Annotated[str, "secret"]
Mixed.registry.update_type_annotation_map({OtherSecret: EncryptedType(String)})


class Member(KeyOwner, Mixed):
    __tablename__ = "members"
    id: Mapped[int] = mapped_column(primary_key=True)


class Private:
    """A mixin with an encrypted column, an owner and a declared one."""

    id: Mapped[int] = mapped_column(primary_key=True)
    member_id: Mapped[int] = mapped_column(ForeignKey("members.id"))
    remark: Mapped[str | None] = mapped_column(EncryptedType(String))

    @declared_attr
    def declared(cls) -> Mapped[str | None]:  # noqa: N805 - SQLAlchemy's own form
        return mapped_column(EncryptedType(String))


class First(Private, Mixed):
    __tablename__ = "firsts"
    own: Mapped[Secret | None]
    mapped: Mapped[OtherSecret | None]


class Second(Private, Mixed):
    __tablename__ = "seconds"
    own: Mapped[Secret | None]


def test_mixins_and_annotations(engine: Engine) -> None:
    """Columns that come by a mixin, an alias or the annotation map are columns of the class they end in."""
    labels = {
        column.type.label
        for model in (First, Second)
        for column in model.__table__.c
        if isinstance(column.type, EncryptedType)
    }
    assert labels == {f"{t}.{c}" for t in ("firsts", "seconds") for c in ("remark", "declared", "own")} | {
        "firsts.mapped"
    }
    Mixed.metadata.create_all(engine)
    with Session(engine) as session:
        member = Member()
        with envelope.enroll(session, member, secret=SECRET):
            session.add(First(member_id=member.id, remark="1", declared="2", own="3", mapped="4"))
            session.add(Second(member_id=member.id, remark="1"))
            session.commit()
            first = session.scalars(select(First)).one()

            assert (first.remark, first.declared, first.own, first.mapped) == ("1", "2", "3", "4")


def test_python_type_and_comparison() -> None:
    """What SQLAlchemy asks of a type is answered by the inner one."""
    assert EncryptedType(Integer).python_type is int
    assert EncryptedType(sa.JSON).compare_values({"a": 1}, {"a": 1})
    assert not EncryptedType(PointType).compare_values(Point(1, 1), Point(1, 2))


def test_literals_are_not_rendered(started: Started) -> None:
    """A value is never rendered into a statement's text; what stands in its place, no database takes for
    SQL."""
    insert = Note.__table__.insert().values(user_id=1, body="p1aintext")  # type: ignore[attr-defined]
    rendered = str(insert.compile(started.engine, compile_kwargs={"literal_binds": True}))

    assert "p1aintext" not in rendered
    assert "<encrypted notes.body>" in rendered
    with started.engine.connect() as connection, pytest.raises(sa.exc.DBAPIError) as caught:
        connection.execute(sa.text(rendered))
    assert "p1aintext" not in str(caught.value)


def test_ddl_is_the_binary_type(engine: Engine) -> None:
    """The column is created as the database's binary type, whatever is inside."""
    Base.metadata.create_all(engine)
    columns = {one["name"]: one["type"] for one in sa.inspect(engine).get_columns("type_values")}

    assert {type(columns[_attribute(name)]).__name__ for name in TYPES} <= {"BLOB", "BYTEA"}
