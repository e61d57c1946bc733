"""Codecs by type: canonical, typed, the same on every database (wire format, section 6).

SQLAlchemy's own bind processors are not used: they depend on the dialect. SQLite's makes a float of a
`Numeric` and drops time zones, and a value must open on every database to which its bytes are copied.
"""

import datetime as dt
import json
import math
import struct
import uuid
from collections.abc import Callable
from contextlib import suppress
from decimal import Context, Decimal
from typing import Any, NoReturn, Protocol

from sqlalchemy import types as sa
from sqlalchemy.engine.default import DefaultDialect

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.columns.codec import Codec, canonical, refused
from sqlalchemy_envelope.orm.columns.list_codec import list_codec
from sqlalchemy_envelope.orm.tables.python_types import python_type_of

_NEUTRAL = DefaultDialect()
"""The dialect that is given to a `TypeDecorator`, whatever the database, because its answers decide the
bytes."""
_DOUBLE = struct.Struct(">d")
_MICROSECOND = dt.timedelta(microseconds=1)
_CANONICAL_NAN = bytes.fromhex("7ff8000000000000")
_SPELLING = Context(capitals=1)
"""How a Decimal is written. `str` would ask the context of the thread, which may want small letters."""


class _Converts(Protocol):
    def process_bind_param(self, value: Any, dialect: Any) -> Any: ...
    def process_result_value(self, value: Any, dialect: Any) -> Any: ...


def codec_for(inner: sa.TypeEngine[Any]) -> Codec:
    """The codec of a SQLAlchemy type.

    Raises:
        ConfigurationError: a type that cannot be encrypted.
    """
    _check_methods(inner)
    codec = _codec_for(inner)
    for dialect, variant in inner._variant_mapping.items():
        _check_variant(inner, codec, variant, dialect)
    return codec


def key_codec(type_: sa.TypeEngine[Any]) -> Codec:
    """The codec of a primary key's values in a plain column. How the type brings them to the database does
    not matter.

    Raises:
        ConfigurationError: values of this type have no codec.
    """
    return _codec_for(type_)


def _codec_for(inner: sa.TypeEngine[Any]) -> Codec:
    # Interval and PickleType are TypeDecorators themselves: they come before the general case.
    if isinstance(inner, sa.PickleType):
        raise ConfigurationError(
            "PickleType runs code from the database when it loads; use EncryptedType(JSON)."
        )
    if isinstance(inner, sa.Interval):
        return Codec("timedelta", _encode_timedelta, _decode_timedelta)
    if isinstance(inner, sa.TypeDecorator):
        return _decorated(inner)
    for matches, make in _CODECS:
        if isinstance(inner, matches) and inner.__visit_name__ != "SET":  # MySQL's: a set, by a type of text
            return make(inner)
    raise ConfigurationError(
        f"EncryptedType({type(inner).__name__}) is not supported; wrap it in a TypeDecorator over a type "
        "that is."
    )


_IN_SQL = ("bind_expression", "column_expression")
_BY_DIALECT = ("bind_processor", "result_processor")


def _check_methods(inner: sa.TypeEngine[Any]) -> None:
    """Refuse a type with code of its own that is not run here: a plain column would give other values."""
    name = type(inner).__name__
    for method in (*_IN_SQL, *_BY_DIALECT):
        defined = next((one for one in type(inner).__mro__ if method in vars(one)), None)
        if defined is None or defined.__module__.partition(".")[0] == "sqlalchemy":
            continue
        if method in _IN_SQL:
            raise ConfigurationError(
                f"EncryptedType({name}): {name}.{method}() has the database compute with the value, of which "
                "it sees the ciphertext alone. Compute in process_bind_param() and process_result_value() of "
                "a TypeDecorator."
            )
        raise ConfigurationError(
            f"EncryptedType({name}): {name}.{method}() is not called for an encrypted column. Convert in "
            "process_bind_param() and process_result_value() of a TypeDecorator."
        )


def _check_variant(inner: Any, codec: Codec, variant: Any, dialect: str) -> None:
    """Refuse a variant that takes or gives other values than the type itself."""
    other = codec_for(variant)
    converts = [one.convert or one.read_null for one in (codec, other)]
    if (other.tag, python_type_of(variant)) == (codec.tag, python_type_of(inner)) and not any(converts):
        return
    raise ConfigurationError(
        f"EncryptedType({type(inner).__name__}().with_variant({type(variant).__name__}(), {dialect!r})): an "
        "encrypted value is the same on every database. Leave the variant out."
    )


def _decorated(inner: sa.TypeDecorator[Any]) -> Codec:
    # The user's conversion stays; only what it hands to its impl is encoded.
    codec = codec_for(_impl_of(inner))
    user: _Converts = inner
    converts = type(inner).process_bind_param is not sa.TypeDecorator.process_bind_param
    restores = type(inner).process_result_value is not sa.TypeDecorator.process_result_value
    inner_convert, inner_null = codec.convert, codec.read_null
    encode_converted = codec.encode_converted or codec.encode
    inner_decode = codec.decode

    def convert(value: Any) -> Any:
        value = user.process_bind_param(value, _NEUTRAL) if converts else value
        return value if inner_convert is None else inner_convert(value)

    def encode(value: Any) -> bytes:
        return encode_converted(convert(value))

    def decode(data: bytes) -> Any:
        return user.process_result_value(inner_decode(data), _NEUTRAL)

    def read_null() -> Any:
        return user.process_result_value(None if inner_null is None else inner_null(), _NEUTRAL)

    return Codec(
        codec.tag,
        encode if converts else codec.encode,
        decode if restores else codec.decode,
        convert if converts else codec.convert,
        encode_converted if converts else codec.encode_converted,
        read_null if restores else codec.read_null,
    )


def _impl_of(inner: sa.TypeDecorator[Any]) -> sa.TypeEngine[Any]:
    """The type to which a decorator hands its values. A value opens on every database, so the decorator
    may not choose another type for some of them."""
    with suppress(Exception):
        return sa.to_instance(inner.load_dialect_impl(_NEUTRAL))
    name = type(inner).__name__
    raise ConfigurationError(
        f"EncryptedType({name}): {name}.load_dialect_impl() gives no type for the dialect 'default'. An "
        "encrypted value is the same on every database, and its TypeDecorator is asked with SQLAlchemy's "
        "DefaultDialect: return a type for it."
    )


def check_null(inner: sa.TypeEngine[Any]) -> None:
    """Refuse a conversion that makes a value of NULL, for a column in which NULL says that the value is still
    in its previous column.

    Raises:
        ConfigurationError: the conversion does so.
    """
    codec = codec_for(inner)
    made = []
    with suppress(Exception):  # it does not take None
        made.append(None if codec.convert is None else codec.convert(None))
    with suppress(Exception):
        made.append(None if codec.read_null is None else codec.read_null())
    if any(one is not None for one in made):
        name = type(inner).__name__
        raise ConfigurationError(
            f"EncryptedType({name}, previous=...): {name} converts None, and while values are moved NULL "
            "says that a value is still in the previous column. Let process_bind_param() and "
            "process_result_value() return None for None until the move is done."
        )


def _encode_bytes(value: Any) -> bytes:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise refused(value, "bytes")
    return bytes(value)


def _encode_int(value: Any) -> bytes:
    if not isinstance(value, int) or isinstance(value, bool):
        raise refused(value, "int")
    # For a negative number the bits of ~value are those that must fit beside the sign.
    bits = (value if value >= 0 else ~value).bit_length()
    return value.to_bytes(bits // 8 + 1, "big", signed=True)


def _decode_int(data: bytes) -> int:
    if not data:
        raise ValueError("an int has at least one byte")
    # A first byte that only repeats the sign of the second is one too many.
    if len(data) > 1 and data[0] in (0x00, 0xFF) and (data[0] ^ data[1]) < 0x80:
        raise ValueError("an int has no more bytes than it needs")
    return int.from_bytes(data, "big", signed=True)


def _encode_float(value: Any) -> bytes:
    if not isinstance(value, (float, int)) or isinstance(value, bool):
        raise refused(value, "float")
    return _CANONICAL_NAN if math.isnan(value) else _DOUBLE.pack(value)


def _decode_float(data: bytes) -> float:
    number: float = _DOUBLE.unpack(data)[0]
    if math.isnan(number) and data != _CANONICAL_NAN:
        raise ValueError("there is one NaN")
    return number


def _encode_decimal(value: Any) -> bytes:
    if isinstance(value, int) and not isinstance(value, bool):
        value = Decimal(value)
    if not isinstance(value, Decimal) or value.is_snan():
        raise refused(value, "Decimal")
    return _SPELLING.to_sci_string(value).encode("ascii")


def _decode_decimal(data: bytes) -> Decimal:
    return Decimal(data.decode("ascii"))


def _encode_bool(value: Any) -> bytes:
    if not isinstance(value, bool):
        raise refused(value, "bool")
    return b"\1" if value else b"\0"


def _decode_bool(data: bytes) -> bool:
    return {b"\0": False, b"\1": True}[data]


def _encode_date(value: Any) -> bytes:
    if not isinstance(value, dt.date) or isinstance(value, dt.datetime):
        raise refused(value, "date")
    return value.isoformat().encode("ascii")


def _decode_date(data: bytes) -> dt.date:
    return dt.date.fromisoformat(data.decode("ascii"))


def _encode_timedelta(value: Any) -> bytes:
    if not isinstance(value, dt.timedelta):
        raise refused(value, "timedelta")
    return _encode_int(value // _MICROSECOND)


def _decode_timedelta(data: bytes) -> dt.timedelta:
    return _decode_int(data) * _MICROSECOND


def _time(inner: sa.Time) -> Codec:
    aware = bool(inner.timezone)

    def encode(value: Any) -> bytes:
        if not isinstance(value, dt.time) or (value.utcoffset() is not None) is not aware:
            raise refused(value, "time with a zone" if aware else "time without a zone")
        return value.isoformat(timespec="microseconds").encode("ascii")

    def decode(data: bytes) -> dt.time:
        return dt.time.fromisoformat(data.decode("ascii"))

    return Codec("timetz" if aware else "time", encode, canonical(encode, decode))


def _datetime(inner: sa.DateTime) -> Codec:
    aware = bool(inner.timezone)

    def encode(value: Any) -> bytes:
        if not isinstance(value, dt.datetime) or (value.utcoffset() is not None) is not aware:
            raise refused(value, "datetime with a zone" if aware else "datetime without a zone")
        moment = value.astimezone(dt.UTC) if aware else value
        return moment.isoformat(timespec="microseconds").encode("ascii")

    def decode(data: bytes) -> dt.datetime:
        return dt.datetime.fromisoformat(data.decode("ascii"))

    return Codec("datetimetz" if aware else "datetime", encode, canonical(encode, decode))


def _uuid(inner: sa.Uuid[Any]) -> Codec:
    if not inner.as_uuid:
        return Codec("uuid", lambda value: uuid.UUID(value).bytes, lambda data: str(uuid.UUID(bytes=data)))

    def encode(value: Any) -> bytes:
        if not isinstance(value, uuid.UUID):
            raise refused(value, "UUID")
        return value.bytes

    return Codec("uuid", encode, lambda data: uuid.UUID(bytes=data))


def _enum(inner: sa.Enum) -> Codec:
    # The processors of Enum itself hold the look-up by name, by value or by `values_callable`.
    untyped: Any = inner
    bind, result = untyped.bind_processor(_NEUTRAL), untyped.result_processor(_NEUTRAL, None)
    assert bind is not None and result is not None  # noqa: S101 - true of Enum on every dialect

    def encode(value: Any) -> bytes:
        name: str = bind(value)
        if name not in inner.enums:  # Enum lets any text pass, and could not read it back
            raise LookupError("not a name of this Enum")
        # A member may have several names, and any of them may be given: it is stored under one.
        name = bind(result(name))
        return name.encode("utf-8")

    return Codec("enum", encode, canonical(encode, lambda data: result(data.decode("utf-8"))))


def _encode_json(value: Any) -> bytes:
    value = None if value is sa.JSON.NULL else value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8")


def _decode_json(data: bytes) -> Any:
    # As text: from bytes `json.loads` guesses among encodings.
    return json.loads(data.decode("utf-8"), parse_constant=_no_constant)


def _no_constant(name: str) -> NoReturn:
    raise ValueError("JSON has no NaN and no infinity")


def _numeric(inner: sa.Numeric[Any]) -> Codec:
    if inner.asdecimal:
        return Codec("decimal", _encode_decimal, canonical(_encode_decimal, _decode_decimal))
    return Codec("float", _encode_float, _decode_float)


def _fixed(
    tag: str, encode: Callable[[Any], bytes], decode: Callable[[bytes], Any]
) -> Callable[[Any], Codec]:
    return lambda inner: Codec(tag, encode, decode)


# A class stands before the classes it derives from: Enum is a String, Float a Numeric (in 2.0).
_CODECS: list[tuple[Any, Callable[[Any], Codec]]] = [
    (sa.Enum, _enum),
    (sa.JSON, _fixed("json", _encode_json, _decode_json)),
    (sa.Boolean, _fixed("bool", _encode_bool, _decode_bool)),
    (sa.Integer, _fixed("int", _encode_int, _decode_int)),
    ((sa.Numeric, sa.Float), _numeric),
    (sa.DateTime, _datetime),
    (sa.Date, _fixed("date", _encode_date, canonical(_encode_date, _decode_date))),
    (sa.Time, _time),
    (sa.Uuid, _uuid),
    ((sa.LargeBinary, sa.BINARY, sa.VARBINARY), _fixed("bytes", _encode_bytes, bytes)),
    (sa.ARRAY, lambda inner: list_codec(inner, codec_for(inner.item_type))),
    (sa.String, _fixed("str", str.encode, bytes.decode)),
]
