"""Ranges of encrypted numbers and dates are found by buckets, and are exactly those of a plain column."""

import datetime as dt
import operator
from collections.abc import Callable, Iterator
from decimal import Decimal
from random import Random
from typing import Any

import pytest
from sqlalchemy import (
    Date,
    DateTime,
    Engine,
    Float,
    Integer,
    Interval,
    Numeric,
    String,
    Time,
    TypeDecorator,
    select,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import (
    BlindIndex,
    Buckets,
    ConfigurationError,
    EncryptedType,
    KeyOwner,
    StatementRefusedError,
)
from sqlalchemy_envelope.orm.indexes.indexed import indexes_of_table
from tests.orm.indexes.range_models import Visit, new_envelope, opened, visits
from tests.prepared import prepared

_DAY = dt.timedelta(days=1)
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "__lt__": operator.lt,
    "__le__": operator.le,
    "__gt__": operator.gt,
    "__ge__": operator.ge,
    "__eq__": operator.eq,
}


def _row(random: Random) -> dict[str, Any]:
    """A row of random values, some of them None, some at or beyond the ends of the buckets."""
    row: dict[str, Any] = {
        "city": random.choice(["Rome", "Oslo", "Bern", "Lima", "Riga", "Bonn"]),
        "score": random.choice([random.randrange(-30, 150), random.randrange(0, 120, 10)]),
        "born": dt.date(1990, 1, 1) + random.randrange(-3000, 3000) * _DAY,
        "fee": Decimal(random.randrange(-50_000, 50_000)) / 100,
        "weight": random.choice([random.uniform(-12, 12), 0.5 * random.randrange(-22, 22), float("inf")]),
        "at": dt.datetime(2026, 1, 31, tzinfo=dt.timezone(dt.timedelta(hours=random.randrange(-11, 12))))
        + dt.timedelta(hours=random.randrange(-900, 900)),
    }
    row[random.choice(list(row))] = None
    return row


ROWS = [_row(Random(f"row {number}")) for number in range(80)]


@pytest.fixture
def twin(engine: Engine) -> Iterator[Session]:
    """A session of a patient with these visits."""
    envelope = new_envelope()
    patient = prepared(engine, "visits of a twin", lambda: visits(engine, envelope, *ROWS))
    with opened(engine, envelope, patient) as session:
        yield session


def _asked(random: Random) -> tuple[Any, Callable[[dict[str, Any]], bool]]:
    """A condition, and the same on the plain values."""
    one_sided = ["score", "weight", "at"]
    key = random.choice([*one_sided, "born", "fee", "city"])
    attribute = getattr(Visit, key)
    values = [row[key] for row in ROWS if row[key] is not None]
    if key == "weight":
        values = [value for value in values if value != float("inf")]
    if random.random() < 0.3:
        among = random.sample(values, 3)
        return attribute.in_(among), lambda row: row[key] in among
    if key in one_sided and random.random() < 0.6:
        name, bound = random.choice(list(_OPERATORS)), random.choice(values)
        compare = _OPERATORS[name]
        return getattr(attribute, name)(bound), lambda row: row[key] is not None and compare(row[key], bound)
    if key == "city":
        value = random.choice(values)
        return attribute == value, lambda row: row[key] == value
    low, high = sorted(random.sample(values, 2))
    return attribute.between(low, high), lambda row: row[key] is not None and low <= row[key] <= high


def _check(session: Session, count: int) -> None:
    random = Random("queries")
    for _ in range(count):
        asked = [_asked(random) for _ in range(random.choice([1, 1, 2, 3]))]
        wanted = select(Visit).where(*(condition for condition, _ in asked)).order_by(Visit.id)
        expected = [at + 1 for at, row in enumerate(ROWS) if all(one(row) for _, one in asked)]

        assert expected == [visit.id for visit in session.scalars(wanted)]


def test_ranges_give_the_rows_of_a_plain_column(twin: Session) -> None:
    """Each of these queries, made at random, gives exactly the rows that the same query of plain values
    gives."""
    _check(twin, 60)


@pytest.mark.thorough
def test_a_thousand_ranges_give_the_rows_of_a_plain_column(twin: Session) -> None:
    """The same, a thousand times."""
    _check(twin, 1000)


def test_a_range_with_none_or_nothing_in_it_is_empty(sqlite_engine: Engine) -> None:
    """As on a plain column: a comparison with None is true of no row, and neither is a range whose ends are
    the wrong way round, unless it is symmetric."""
    envelope = new_envelope()
    patient = visits(sqlite_engine, envelope, {"score": 30, "weight": float("nan")})
    with opened(sqlite_engine, envelope, patient) as session:
        for condition in (
            Visit.score < None,
            Visit.score.between(None, 40),
            Visit.score.between(40, 20),
            Visit.score.in_([]),
            Visit.score.in_([None]),
            Visit.weight > -10,
            Visit.weight.between(float("nan"), 5),
        ):
            assert session.scalars(select(Visit).where(condition)).all() == []
        for condition in (
            Visit.score.between(40, 20, symmetric=True),
            Visit.score > -1000,
            Visit.score <= 10**30,
            Visit.score < 40,
        ):
            assert len(session.scalars(select(Visit).where(condition)).all()) == 1


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "without end": (lambda: Visit.born < dt.date(2000, 1, 1), r"low=\.\.\."),
    "without beginning": (lambda: Visit.fee >= Decimal(5), r"high=\.\.\."),
    "too many": (lambda: Visit.fee.between(Decimal(0), Decimal(2500)), "more than 1,000 buckets"),
    "far away": (lambda: Visit.fee.between(Decimal(0), Decimal("1E+5000000")), "more than 1,000 buckets"),
    "infinite": (lambda: Visit.fee.between(Decimal(0), Decimal("Infinity")), "more than 1,000 buckets"),
    "another type": (lambda: Visit.score > "30 points", r"on Visit\.score, .* of the type str, is no"),
    "no zone": (lambda: Visit.at > dt.datetime(2026, 1, 1), "of the type datetime"),
    "an expression": (lambda: Visit.score > select(Visit.id).scalar_subquery(), "compare it with values"),
    "an expression among": (lambda: Visit.score.between(1, Visit.id), "not with an SQL expression"),
    "not equal": (lambda: Visit.score != 3, "answered by no blind index"),
    "not between": (lambda: ~Visit.score.between(1, 3), "a NOT"),
    "sorted": (lambda: Visit.score.desc(), "answered by no blind index"),
    "text": (lambda: Visit.score.like("3%"), "answered by no blind index"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_buckets_do_not_answer_is_refused(sqlite_engine: Engine, what: str) -> None:
    """What would ask for too many buckets, or for none, is refused with the line to write."""
    make, match = REFUSED[what]
    envelope = new_envelope()
    patient = prepared(sqlite_engine, "no visits", lambda: visits(sqlite_engine, envelope))
    with (
        opened(sqlite_engine, envelope, patient) as session,
        pytest.raises(StatementRefusedError, match=match) as raised,
    ):
        session.scalars(select(Visit).where(make())).all()

    assert "30 points" not in str(raised.value)


class _Cents(TypeDecorator[Decimal]):
    """An amount that is stored as a number of cents."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else int(value * 100)

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value is None else Decimal(value) / 100


class _Base(DeclarativeBase):
    pass


class _Mixed(KeyOwner, _Base):
    """A column of each type that has buckets."""

    __tablename__ = "mixed"
    id: Mapped[int] = mapped_column(primary_key=True)
    whole: Mapped[int] = mapped_column(EncryptedType(Integer))
    whole_index: Mapped[bytes] = mapped_column(BlindIndex("whole", "server", bucket=3))
    part: Mapped[float] = mapped_column(EncryptedType(Float))
    part_index: Mapped[bytes] = mapped_column(BlindIndex("part", "server", bucket=0.1))
    exact: Mapped[Decimal] = mapped_column(EncryptedType(Numeric(30, 3)))
    exact_index: Mapped[bytes] = mapped_column(BlindIndex("exact", "server", bucket=0.1))
    day: Mapped[dt.date] = mapped_column(EncryptedType(Date))
    day_index: Mapped[bytes] = mapped_column(BlindIndex("day", "server", bucket="week"))
    year: Mapped[dt.date] = mapped_column(EncryptedType(Date))
    year_index: Mapped[bytes] = mapped_column(BlindIndex("year", "server", bucket="year"))
    naive: Mapped[dt.datetime] = mapped_column(EncryptedType(DateTime))
    naive_index: Mapped[bytes] = mapped_column(BlindIndex("naive", "server", bucket="day"))
    aware: Mapped[dt.datetime] = mapped_column(EncryptedType(DateTime(timezone=True)))
    aware_index: Mapped[bytes] = mapped_column(BlindIndex("aware", "server", bucket="month"))
    clock: Mapped[dt.time] = mapped_column(EncryptedType(Time))
    clock_index: Mapped[bytes] = mapped_column(BlindIndex("clock", "server", bucket=dt.timedelta(minutes=15)))
    span: Mapped[dt.timedelta] = mapped_column(EncryptedType(Interval))
    span_index: Mapped[bytes] = mapped_column(BlindIndex("span", "server", bucket=dt.timedelta(hours=1)))
    cents: Mapped[Decimal] = mapped_column(EncryptedType(_Cents))
    cents_index: Mapped[bytes] = mapped_column(BlindIndex("cents", "server", bucket=50))


EDGES: dict[str, list[Any]] = {
    "whole": [-(10**5000), -4, -3, -1, 0, 2, 3, 10**5000],
    "part": [float("-inf"), -1e308, -0.1, -0.0, 0.0, 0.05, 0.1, 0.3, 1e308, float("inf")],
    "exact": [Decimal("-Infinity"), Decimal("-1E+9999999"), Decimal("-0.1"), Decimal("-1E-9999999"),
              Decimal(0), Decimal("1E-9999999"), Decimal("0.1"), Decimal("0.3"), Decimal("1E+9999999"),
              Decimal("Infinity")],
    "day": [dt.date.min, dt.date(1969, 12, 28), dt.date(1970, 1, 4), dt.date(1970, 1, 5), dt.date.max],
    "year": [dt.date.min, dt.date(1999, 12, 31), dt.date(2000, 1, 1), dt.date(2000, 12, 31), dt.date.max],
    "naive": [dt.datetime.min, dt.datetime(1970, 1, 1), dt.datetime(1970, 1, 2), dt.datetime.max],
    "aware": [dt.datetime(1, 1, 1, tzinfo=dt.UTC),
              dt.datetime(2026, 3, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=2))),
              dt.datetime(2026, 3, 1, tzinfo=dt.UTC),
              dt.datetime(2026, 2, 28, 23, tzinfo=dt.timezone(-dt.timedelta(hours=2))),
              dt.datetime(9999, 12, 31, tzinfo=dt.UTC)],
    "clock": [dt.time(0), dt.time(0, 14, 59, 999_999), dt.time(0, 15), dt.time(23, 59, 59, 999_999)],
    "span": [dt.timedelta.min, -dt.timedelta(hours=1), dt.timedelta(0), dt.timedelta(minutes=59),
             dt.timedelta.max],
}  # fmt: skip


@pytest.mark.parametrize("key", EDGES)
def test_buckets_follow_the_order_of_values(key: str) -> None:
    """A value that is not smaller than another is in the same bucket or in a later one, at the ends of what a
    type holds, too. So all values between two bounds are in the buckets between theirs."""
    (kind,) = [one.kind for one in indexes_of_table(_Mixed.__table__) if one.sources[0].key == key]  # type: ignore[arg-type]
    buckets = [kind._bucket(value) for value in EDGES[key]]  # type: ignore[attr-defined]

    assert sorted(buckets) == buckets
    assert len(set(buckets)) > 2
    assert all(kind.data([value]) for value in EDGES[key])


def test_a_type_that_converts_its_values_is_cut_as_it_stores_them(sqlite_engine: Engine) -> None:
    """The buckets are those of the stored values, and operands are converted as values are."""
    _Base.metadata.create_all(sqlite_engine)
    envelope = new_envelope()
    with Session(sqlite_engine) as session:
        mixed = [
            _Mixed(
                whole=number, part=number / 3, exact=Decimal(number), day=dt.date(2026, 1, 1) + number * _DAY,
                year=dt.date(2000 + number, 1, 1), naive=dt.datetime(2026, 1, 1, number),
                aware=dt.datetime(2026, 1, 1 + number, tzinfo=dt.UTC), clock=dt.time(number),
                span=dt.timedelta(hours=number), cents=Decimal(number) / 4,
            )
            for number in range(4)
        ]  # fmt: skip
        with envelope.enroll(session, mixed[0], secret="a long secret"):
            session.commit()
            found = [
                select(_Mixed).where(_Mixed.cents.between(Decimal(-1), Decimal(0))),
                select(_Mixed).where(_Mixed.span.between(dt.timedelta(0), dt.timedelta(minutes=30))),
                select(_Mixed).where(_Mixed.clock == dt.time(0)),
                select(_Mixed).where(_Mixed.naive.between(dt.datetime(2026, 1, 1), dt.datetime(2026, 1, 2))),
            ]
            for statement in found:
                assert [mixed[0].id] == [one.id for one in session.scalars(statement)]
            assert session.scalars(select(_Mixed).where(_Mixed.cents == Decimal("0.49"))).all() == []


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "a width of nothing": (lambda: BlindIndex("a", bucket=0), "above 0"),
    "a width below nothing": (lambda: Buckets(dt.timedelta(-1)), "above 0"),
    "an unknown width": (lambda: Buckets("fortnight"), "'week'"),
    "no number": (lambda: Buckets(float("nan")), "above 0"),
    "a bool": (lambda: Buckets(True), "above 0"),
    "text": (lambda: _table(String, bucket=3), "does not take the width 3"),
    "hours of a date": (lambda: _table(Date, bucket=dt.timedelta(hours=5)), "does not take"),
    "a part of an int": (lambda: _table(Integer, bucket=0.5), "an int takes an int"),
    "a month of a number": (lambda: _table(Integer, bucket="month"), "does not take"),
    "a low end of another type": (
        lambda: _table(Integer, bucket=Buckets(3, low="zero")),
        r"Buckets\(low=\.\.\.\) of 'things\.a': no value",
    ),
    "ends the wrong way round": (lambda: _table(Integer, bucket=Buckets(3, 9, 1)), "`low` is below `high`"),
    "two attributes": (
        lambda: _table(Integer, of=("a", "b"), bucket=3),
        "not a, b together. Give each an index of its own",
    ),
    "a normaliser": (lambda: _table(Integer, bucket=3, normalize="case-v1"), "(?i)leave (it )?out"),
    "unique": (lambda: _table(Integer, unique=True, bucket=3), "Leave out `unique=True`"),
    "unique and truncated": (lambda: _table(Integer, unique=True, bits=20), "of 20 bits, and unique"),
}


def _table(inner: Any, *, of: Any = "a", unique: bool | None = None, **options: Any) -> None:
    class Base(DeclarativeBase):
        pass

    class Thing(KeyOwner, Base):
        __tablename__ = "things"
        id: Mapped[int] = mapped_column(primary_key=True)
        a: Mapped[Any] = mapped_column(EncryptedType(inner))
        b: Mapped[Any] = mapped_column(EncryptedType(inner))
        a_index: Mapped[bytes] = mapped_column(BlindIndex(of, "server", **options), unique=unique)

    indexes_of_table(Thing.__table__)  # type: ignore[arg-type]


@pytest.mark.parametrize("what", WRONG)
def test_a_declaration_that_cannot_be_meant_is_refused(what: str) -> None:
    """Widths, ends and options that do not fit the column are errors where they are declared."""
    make, match = WRONG[what]
    with pytest.raises(ConfigurationError, match=match):
        make()


def test_the_declaration_is_a_part_of_the_tags() -> None:
    """Buckets of another width or with other ends have other tags, so that they are never taken for these.
    The same buckets, spelt in another way, have the same."""
    kinds = {one.key: one.kind for one in indexes_of_table(Visit.__table__)}  # type: ignore[arg-type]
    others = {one.sources[0].key: one.kind.form for one in indexes_of_table(_Mixed.__table__)}  # type: ignore[arg-type]

    assert kinds["score_index"].form == "range int 10 [0..12]"
    assert kinds["born_index"].form == "range date 1 months [..]"
    assert kinds["weight_index"].form == "range float 0.5 [-20..20]"
    assert kinds["fee_index"].form == "range decimal 2.5 [..]"
    assert kinds["at_index"].form == "range datetimetz 21600000000us [81800..82036]"
    assert others["day"] == "range date 604800000000us [..]"
    assert others["clock"] == "range time 900000000us [..]"
    shown = repr(Visit.__table__.c.score_index.type)
    assert shown.startswith("BlindIndex('score', scope='server', ")
    assert "Buckets(width=10, low=0" in shown
