"""Values become bytes and come back the same, in one spelling; bytes that no codec writes are refused.

The bytes themselves are fixed by tests/vectors/value.json; here is what holds for all values.
"""

import datetime as dt
import decimal
import enum
import json
import math
import traceback
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import mysql, postgresql

from sqlalchemy_envelope import ConfigurationError, EncryptedType, FormatError
from sqlalchemy_envelope.orm.columns.codecs import Codec, codec_for


class Colour(enum.Enum):
    RED = "#f00"
    GREEN = "#0f0"
    ROT = "#f00"  # noqa: PIE796 - another name of RED


class Upper(sa.TypeDecorator[str]):
    """Stores small letters, reads capitals: both conversions are the user's."""

    impl = sa.String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return value and value.lower()

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return value and value.upper()


class Plain(sa.TypeDecorator[int]):
    """Converts nothing."""

    impl = sa.Integer
    cache_ok = True


ZONES = st.integers(-1439, 1439).map(lambda minutes: dt.timezone(dt.timedelta(minutes=minutes)))


def unfolded(value: Any) -> Any:
    """Without `fold`, which is not stored, here as in every database, and which `==` does not see."""
    return value.replace(fold=0)


TEXT = st.text(st.characters(codec="utf-8"))
DECIMALS = st.decimals().filter(lambda number: not number.is_snan())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=15,
)
# Two days in from each end, so that every zone's moment is within the years of UTC too.
MOMENTS = st.datetimes(dt.datetime(1, 1, 3), dt.datetime(9999, 12, 29), timezones=ZONES)


@dataclass(frozen=True)
class Kind:
    """A type, its tag, and values that it takes."""

    type: Any
    tag: str
    values: st.SearchStrategy[Any]


def nested(items: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(
        st.none() | items | st.lists(st.none() | items | st.lists(items, max_size=2), max_size=3), max_size=4
    )


KINDS = {
    "String": Kind(sa.String(), "str", TEXT),
    "Text": Kind(sa.Text(), "str", TEXT),
    "LargeBinary": Kind(sa.LargeBinary(), "bytes", st.binary()),
    "VARBINARY": Kind(sa.VARBINARY(9), "bytes", st.binary()),
    "Integer": Kind(sa.Integer(), "int", st.integers()),
    "BigInteger": Kind(sa.BigInteger(), "int", st.integers(-(2**63), 2**63 - 1)),
    "Float": Kind(sa.Float(), "float", st.floats()),
    "Numeric": Kind(sa.Numeric(10, 2), "decimal", DECIMALS),
    "Numeric without Decimal": Kind(sa.Numeric(asdecimal=False), "float", st.floats()),
    "Float as Decimal": Kind(sa.Float(asdecimal=True), "decimal", DECIMALS),
    "Boolean": Kind(sa.Boolean(), "bool", st.booleans()),
    "Date": Kind(sa.Date(), "date", st.dates()),
    "Time": Kind(sa.Time(), "time", st.times().map(unfolded)),
    "Time with zone": Kind(sa.Time(timezone=True), "timetz", st.times(timezones=ZONES).map(unfolded)),
    "DateTime": Kind(sa.DateTime(), "datetime", st.datetimes().map(unfolded)),
    "DateTime with zone": Kind(sa.DateTime(timezone=True), "datetimetz", MOMENTS),
    "Interval": Kind(sa.Interval(), "timedelta", st.timedeltas()),
    "Uuid": Kind(sa.Uuid(), "uuid", st.uuids()),
    "Uuid as text": Kind(sa.Uuid(as_uuid=False), "uuid", st.uuids().map(str)),
    "Enum": Kind(sa.Enum(Colour), "enum", st.sampled_from(Colour)),
    "Enum by value": Kind(
        sa.Enum(Colour, values_callable=lambda of: [one.value for one in of]), "enum", st.sampled_from(Colour)
    ),
    "Enum with every name": Kind(sa.Enum(Colour, omit_aliases=False), "enum", st.sampled_from(Colour)),
    "Enum of text": Kind(sa.Enum("small", "größer"), "enum", st.sampled_from(["small", "größer"])),
    "JSON": Kind(sa.JSON(), "json", JSON),
    "JSONB": Kind(postgresql.JSONB(), "json", JSON),
    "ARRAY": Kind(sa.ARRAY(sa.Integer), "list:int", nested(st.integers())),
    "ARRAY of one dimension": Kind(
        sa.ARRAY(sa.JSON(), dimensions=1),
        "list:json",
        st.lists(st.none() | JSON.filter(lambda v: v is not None)),
    ),
    "ARRAY of tuples": Kind(
        sa.ARRAY(sa.Integer, as_tuple=True),
        "list:int",
        st.lists(st.none() | st.integers() | st.lists(st.integers()).map(tuple)).map(tuple),
    ),
    "ARRAY of Enum": Kind(sa.ARRAY(sa.Enum(Colour)), "list:enum", nested(st.sampled_from(Colour))),
    "ARRAY of Date": Kind(sa.ARRAY(sa.Date), "list:date", nested(st.dates())),
    "TypeDecorator": Kind(Upper(), "str", st.text("ABCÄ1 ")),
    "TypeDecorator of nothing": Kind(Plain(), "int", st.integers()),
    "ARRAY of TypeDecorator": Kind(sa.ARRAY(Upper), "list:str", nested(st.text("ABC"))),
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
# Not JSON: to write each value again would cost what it costs to read it, to refuse what only a holder of the
# key can have written. A user's conversion need not be reversible.
ONE_SPELLING = {
    name: kind for name, kind in KINDS.items() if "json" not in kind.tag and "TypeDecorator" not in name
}


def same(one: Any, other: Any) -> bool:
    """Equal, of one type, and printed alike: NaN equals no NaN, and 1.10 equals 1.1."""
    if isinstance(one, dt.datetime) and one.tzinfo is not None:
        return bool(one == other) and other.utcoffset() == dt.timedelta(
            0
        )  # the moment; its offset is not kept
    return type(one) is type(other) and repr(one) == repr(other)


# ---------------------------------------------------------------- values


@kinds
@settings(max_examples=40)
@given(st.data())
def test_a_value_comes_back(kind: Kind, data: st.DataObject) -> None:
    """Every value comes back equal, of the same type, and its bytes are written the same again."""
    codec = codec_for(kind.type)
    value = data.draw(kind.values)
    encoded = codec.encode(value)
    found = codec.decode(encoded)

    assert kind.tag == codec.tag
    assert type(encoded) is bytes
    assert same(value, found)
    assert encoded == codec.encode(found)


@kinds
@settings(max_examples=40)
@given(st.data())
def test_no_two_values_share_their_bytes(kind: Kind, data: st.DataObject) -> None:
    """Values that differ encode differently: the bytes hold everything there is to know."""
    codec = codec_for(kind.type)
    one, other = data.draw(kind.values), data.draw(kind.values)
    if not same(one, other) and not (kind.tag == "datetimetz" and one == other):
        assert codec.encode(one) != codec.encode(other)


@pytest.mark.parametrize("kind", ONE_SPELLING.values(), ids=ONE_SPELLING)
@settings(max_examples=40)
@given(st.data(), st.binary(max_size=40))
def test_what_is_read_is_written_the_same(kind: Kind, data: st.DataObject, noise: bytes) -> None:
    """Bytes are refused or are exactly what their value is written as, random ones and almost real ones."""
    codec = codec_for(kind.type)
    real = bytearray(codec.encode(data.draw(kind.values)))
    if real:
        real[data.draw(st.integers(0, len(real) - 1))] = data.draw(st.integers(0, 255))
    for candidate in (noise, bytes(real), bytes(real) + noise, bytes(real[: len(noise)])):
        try:
            value = codec.decode(candidate)
        except Exception:  # noqa: BLE001, S112 - refused, by whatever the codec raises
            continue

        assert candidate == codec.encode(value)


EQUAL: list[tuple[Any, Any, Any]] = [
    (sa.LargeBinary(), b"abc", bytearray(b"abc")),
    (sa.LargeBinary(), b"ac", memoryview(b"abc")[::2]),
    (sa.Integer(), 7, enum.IntEnum("Seven", {"SEVEN": 7}).SEVEN),  # type: ignore[attr-defined]
    (sa.Float(), 7.0, 7),
    (sa.Float(), math.nan, -math.nan),
    (sa.Numeric(), Decimal(7), 7),
    (
        sa.DateTime(timezone=True),
        dt.datetime(2024, 1, 1, tzinfo=dt.UTC),
        dt.datetime(2024, 1, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=2))),
    ),
    (sa.Enum(Colour), Colour.RED, Colour.ROT),
    (sa.Enum(Colour), Colour.RED, "RED"),
    (sa.Enum(Colour, omit_aliases=False), Colour.RED, "ROT"),
    (sa.ARRAY(sa.JSON), [None], [sa.JSON.NULL]),
    (sa.Uuid(as_uuid=False), "00000000-0000-0000-0000-00000000000a", "{0000000000000000000000000000000A}"),
    (sa.JSON(), None, sa.JSON.NULL),
    (sa.JSON(), [1, 2], (1, 2)),
    (sa.ARRAY(sa.Integer), [1, [2]], (1, (2,))),
]


@pytest.mark.parametrize(("type_", "one", "other"), EQUAL)
def test_equal_values_encode_alike(type_: Any, one: Any, other: Any) -> None:
    """Values that a column holds to be the same have the same bytes, however they were given."""
    codec = codec_for(type_)

    assert codec.encode(one) == codec.encode(other)


@pytest.mark.parametrize(
    "number", ["1E+5", "1e-7", "-0E+2", "Infinity", "-NaN123", "0.1000000000000000055511151231257827021"]
)
def test_a_decimal_does_not_depend_on_its_context(number: str) -> None:
    """Neither precision, capitals nor traps of the thread's decimal context alter what is written or read."""
    codec, value = codec_for(sa.Numeric()), Decimal(number)
    written = codec.encode(value)
    with decimal.localcontext() as context:
        context.prec, context.capitals = 3, 0
        context.traps[decimal.InvalidOperation] = False

        assert written == codec.encode(value)
        assert str(value).lower() == str(codec.decode(written)).lower()
        with pytest.raises(ValueError):
            codec.decode(b"junk")
    assert repr(value) == repr(codec.decode(written))


def test_an_array_s_items_are_told_from_its_lists() -> None:
    """A list in an array of one dimension is an item; elsewhere it is nested, and None is neither."""
    flat, deep = codec_for(sa.ARRAY(sa.JSON(), dimensions=1)), codec_for(sa.ARRAY(sa.Integer))
    values: list[Any] = [[1, [2]], [], None]

    assert values == flat.decode(flat.encode(values))
    assert values == deep.decode(deep.encode(values))
    assert deep.encode([None]) == b"\0\0\0\1\0"
    assert flat.encode([[1]]) != deep.encode([[1]])


@pytest.mark.parametrize("depth", range(1, 11))
def test_lists_have_a_depth(depth: int) -> None:
    """Eight lists inside each other are written and read; the ninth is refused both ways."""
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    codec = codec_for(sa.ARRAY(sa.Integer))
    if depth <= 8:
        assert deep_list(depth) == codec.encode(value)
        assert value == codec.decode(deep_list(depth))
    else:
        with pytest.raises(ValueError, match="too many lists"):
            codec.encode(value)
        with pytest.raises(ValueError, match="too many lists"):
            codec.decode(deep_list(depth))


def test_a_list_that_holds_itself_is_refused() -> None:
    """It has no end, and no error of Python's own."""
    value: list[Any] = [1]
    value.append(value)
    with pytest.raises(ValueError, match="too many lists"):
        codec_for(sa.ARRAY(sa.Integer)).encode(value)


def test_reading_a_list_takes_the_memory_of_its_items() -> None:
    """Whatever the depth, what is read at once is the items and no copies of the lists around them."""
    item, value = "x" * 4_000_000, ["x" * 4_000_000]
    for _ in range(7):
        value = [value]  # type: ignore[list-item]
    codec = codec_for(sa.ARRAY(sa.Text))
    data = codec.encode(value)
    tracemalloc.start()
    found = codec.decode(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert found == value
    assert peak < 2.5 * len(item)  # one item as bytes and as text


# ---------------------------------------------------------------- what is refused

NO_VALUES: dict[str, tuple[Any, list[Any]]] = {
    "str": (sa.String(), [1, b"x", None, "\ud800", ["x"]]),
    "bytes": (sa.LargeBinary(), ["x", 1, None, [1]]),
    "int": (sa.Integer(), ["1", 1.0, True, None, Decimal(1)]),
    "float": (sa.Float(), ["1", True, None, Decimal(1), 10**400]),
    "decimal": (sa.Numeric(), ["1", 1.0, True, None, Decimal("sNaN")]),
    "bool": (sa.Boolean(), [0, 1, "true", None]),
    "date": (sa.Date(), ["2024-01-01", dt.datetime(2024, 1, 1), 0, None]),
    "time": (sa.Time(), ["00:00", dt.time(tzinfo=dt.UTC), dt.datetime(2024, 1, 1), None]),
    "timetz": (sa.Time(timezone=True), ["00:00", dt.time(), None]),
    "datetime": (sa.DateTime(), [dt.date(2024, 1, 1), dt.datetime(2024, 1, 1, tzinfo=dt.UTC), "x", None]),
    "datetimetz": (
        sa.DateTime(timezone=True),
        [
            dt.date(2024, 1, 1),
            dt.datetime(2024, 1, 1),
            None,
            dt.datetime(1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1))),
        ],
    ),
    "timedelta": (sa.Interval(), [1, "1", dt.datetime(2024, 1, 1), None]),
    "uuid": (sa.Uuid(), ["00000000-0000-0000-0000-000000000000", bytes(16), 1, None]),
    "uuid as text": (sa.Uuid(as_uuid=False), ["x", 1, bytes(16), None]),
    "enum": (sa.Enum(Colour), ["BLUE", "ROT", "#f00", 1, b"RED"]),
    "enum of text": (sa.Enum("small", "large"), ["medium", "", 1]),
    "json": (sa.JSON(), [math.nan, math.inf, {1j}, b"x", Decimal(1), "\ud800", {"a": dt.date(2024, 1, 1)}]),
    "list": (sa.ARRAY(sa.Integer), ["12", b"12", 1, None, {1}, ["1"], [[True]]]),
    "flat list": (sa.ARRAY(sa.Integer, dimensions=1), [[[1]], [1, "2"]]),
}


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        pytest.param(type_, value, id=f"{name}-{value!r}"[:40].encode("ascii", "replace").decode())
        for name, (type_, values) in NO_VALUES.items()
        for value in values
    ],
)
def test_a_value_of_another_type_is_refused(type_: Any, value: Any) -> None:
    """What would not come back as it went in is refused on the way in."""
    with pytest.raises((TypeError, ValueError, LookupError, AttributeError, OverflowError)):
        codec_for(type_).encode(value)


def deep_list(depth: int) -> bytes:
    """The bytes of so many lists inside each other."""
    sizes = range(9 * (depth - 1), 0, -9)
    return b"".join(b"\0\0\0\1\2" + (size - 5).to_bytes(4, "big") for size in sizes) + bytes(4)


NO_BYTES: dict[str, tuple[Any, list[bytes]]] = {
    "str": (sa.String(), [b"\xff", b"\xed\xa0\x80"]),
    "int": (sa.Integer(), [b"", b"\0\0", b"\0\x7f", b"\xff\xff", b"\xff\x80"]),
    "float": (
        sa.Float(),
        [b"", bytes(7), bytes(9), bytes.fromhex("7ff8000000000001"), bytes.fromhex("fff8000000000000")],
    ),
    "decimal": (
        sa.Numeric(),
        [b"", b"x", b" 1", b"1\n", b"1_000", b"+1", b"1e5", b"01", b"inf", b"sNaN", "٣".encode()],
    ),
    "bool": (sa.Boolean(), [b"", b"\2", b"\0\0", b"1"]),
    "date": (
        sa.Date(),
        [b"", b"20240101", b"2024-W01-1", b"2024-1-1", b"2024-01-32", b"2024-01-01T00:00:00"],
    ),
    "time": (
        sa.Time(),
        [b"", b"12:00", b"12:00:00", b"12:00:00,000000", b"12:00:00.000000Z", b"12:00:00.000000+00:00"],
    ),
    "timetz": (sa.Time(timezone=True), [b"12:00:00.000000", b"12:00:00.000000Z", b"12:00:00.000000+0000"]),
    "datetime": (
        sa.DateTime(),
        [
            b"2024-01-01",
            b"2024-01-01 00:00:00.000000",
            b"2024-01-01T00:00:00",
            b"2024-01-01T00:00:00.000000+00:00",
        ],
    ),
    "datetimetz": (
        sa.DateTime(timezone=True),
        [b"2024-01-01T00:00:00.000000", b"2024-01-01T00:00:00.000000Z", b"2024-01-01T02:00:00.000000+02:00"],
    ),
    "timedelta": (sa.Interval(), [b"", b"\0\0", b"\x7f" * 20]),
    "uuid": (sa.Uuid(), [b"", bytes(15), bytes(17)]),
    "uuid as text": (sa.Uuid(as_uuid=False), [b"", bytes(15), bytes(17)]),
    "enum with every name": (sa.Enum(Colour, omit_aliases=False), [b"ROT"]),
    "enum": (sa.Enum(Colour), [b"", b"BLUE", b"red", b"ROT", b"\xff"]),
    "json": (
        sa.JSON(),
        [
            b"",
            b"{",
            b"NaN",
            b"[-Infinity]",
            b"1 2",
            b"\xff",
            '"x"'.encode("utf-16"),
            '"x"'.encode("utf-32-be"),
        ],
    ),
    "list": (
        sa.ARRAY(sa.Integer),
        [
            b"",
            b"\0\0\0",
            b"\0\0\0\1",
            b"\0\0\0\0\0",
            b"\0\0\0\1\1",
            b"\0\0\0\1\1\0\0\0\2\7",
            b"\0\0\0\1\1\0\0\0\1\7\0",
            b"\0\0\0\1\3\0\0\0\1\7",
            b"\0\0\0\2\1\0\0\0\1\7",
            b"\0\0\0\1\2\0\0\0\1\7",
            b"\xff\xff\xff\xff",
            b"\0\0\0\1\2\0\0\0\4\0\0\0\1\0",
            deep_list(9),
            deep_list(100_000),
        ],
    ),
    "flat list": (sa.ARRAY(sa.Integer, dimensions=1), [b"\0\0\0\1\2\0\0\0\4\0\0\0\0"]),
    "list of json": (
        sa.ARRAY(sa.JSON),
        [b"\0\0\0\1\1\0\0\0\2[]", b"\0\0\0\1\1\0\0\0\4null"],
    ),
    "flat list of json": (sa.ARRAY(sa.JSON, dimensions=1), [b"\0\0\0\1\1\0\0\0\4null"]),
}


@pytest.mark.parametrize(
    ("type_", "data"),
    [
        pytest.param(type_, data, id=f"{name}-{data.hex()[:40]}")
        for name, (type_, every) in NO_BYTES.items()
        for data in every
    ],
)
def test_bytes_that_no_codec_writes_are_refused(type_: Any, data: bytes) -> None:
    """Malformed bytes and other spellings raise one of our errors, which shows nothing of them."""
    encrypted = EncryptedType(type_, label="t.c")
    with pytest.raises(FormatError, match=r"'t\.c' authenticates but cannot be read as") as caught:
        encrypted.format.decode(data)

    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@given(st.text("abcdefghij", min_size=12))
@example("a plaintext with a secret in it")
def test_errors_show_nothing_of_the_plaintext(secret: str) -> None:
    """The message, arguments and printed traceback of a value that cannot be read have no part of it."""
    for type_, data in [
        (sa.Integer(), b""),
        (sa.Enum(Colour), secret.encode()),
        (sa.JSON(), secret.encode()),
        (sa.Numeric(), secret.encode()),
        (sa.DateTime(), secret.encode()),
        (sa.String(), secret.encode() + b"\xff"),
        (sa.ARRAY(sa.Date), b"\0\0\0\1\1\0\0\0" + bytes([min(len(secret), 255)]) + secret.encode()),
    ]:
        with pytest.raises(FormatError) as caught:
            EncryptedType(type_, label="t.c").format.decode(data)
        printed = "".join(traceback.format_exception(caught.value))

        assert secret not in printed + repr(caught.value) + repr(caught.value.__dict__)


# ---------------------------------------------------------------- which type has which codec


@pytest.mark.parametrize(
    ("type_", "tag"),
    [
        (sa.Unicode(), "str"),
        (sa.CHAR(3), "str"),
        (sa.SmallInteger(), "int"),
        (sa.Double(), "float"),
        (sa.REAL(), "float"),
        (sa.DECIMAL(), "decimal"),
        (sa.BINARY(3), "bytes"),
        (sa.TIMESTAMP(timezone=True), "datetimetz"),
        (sa.UUID(), "uuid"),
        (postgresql.UUID(), "uuid"),
        (postgresql.ARRAY(sa.Text), "list:str"),
        (postgresql.ENUM("a", name="letters"), "enum"),
        (mysql.LONGTEXT(), "str"),
        (mysql.TINYINT(), "int"),
    ],
    ids=repr,
)
def test_a_dialect_s_own_type_is_encoded_as_the_general_one(type_: Any, tag: str) -> None:
    """Stored bytes do not depend on the dialect a type came from."""
    assert tag == codec_for(type_).tag


@pytest.mark.parametrize(
    "make", [sa.PickleType, lambda: sa.ARRAY(sa.PickleType), sa.types.NullType, postgresql.INT4RANGE]
)
def test_a_type_without_a_codec_is_a_configuration_error(make: Callable[[], Any]) -> None:
    """A type that cannot be encrypted is named when the column is declared, not when a value is lost."""
    with pytest.raises(ConfigurationError):
        EncryptedType(make())


def test_a_user_s_conversion_runs_once_each_way() -> None:
    """A TypeDecorator's own conversion is applied, without a dialect of any database."""
    seen = []

    class Spy(Upper):
        def process_bind_param(self, value: Any, dialect: Any) -> Any:
            seen.append(dialect.name)
            return super().process_bind_param(value, dialect)

    codec: Codec = codec_for(Spy())

    assert codec.encode("ABC") == b"abc"
    assert codec.decode(b"abc") == "ABC"
    assert seen == ["default"]


def test_json_has_no_white_space_and_no_needless_escapes() -> None:
    """JSON is written as compactly as it can be, members in the order given."""
    value = {"b": [1, 2.5, True, None], "a": 'é"\\\n\x01'}
    written = codec_for(sa.JSON()).encode(value)

    assert '{"b":[1,2.5,true,null],"a":"é\\"\\\\\\n\\u0001"}'.encode() == written
    assert value == json.loads(written)
