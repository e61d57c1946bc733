"""Values to bytes and back: canonical, typed, the same on every database (wire format, section 6).

SQLAlchemy's own bind processors are not used: they depend on the dialect (SQLite makes a float of a `Numeric`
and drops time zones), and a value must open wherever its bytes are copied to.
"""

import datetime as dt
import json
import math
import struct
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Any, NoReturn, Protocol

from sqlalchemy import types as sa
from sqlalchemy.engine.default import DefaultDialect

from sqlalchemy_envelope.exceptions import ConfigurationError

_NEUTRAL = DefaultDialect()
_DOUBLE = struct.Struct(">d")
_COUNT = struct.Struct(">I")
_MICROSECOND = dt.timedelta(microseconds=1)
_CANONICAL_NAN = bytes.fromhex("7ff8000000000000")
_SPELLING = Context(capitals=1)
"""How a Decimal is written: `str` would ask the context of the thread, which may want small letters."""


@dataclass(frozen=True)
class Codec:
    """How one type's values become bytes. What `encode` and `decode` raise may hold the value
    and never leaves `orm`."""

    tag: str
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


class _Converts(Protocol):
    def process_bind_param(self, value: Any, dialect: Any) -> Any: ...
    def process_result_value(self, value: Any, dialect: Any) -> Any: ...


def codec_for(inner: sa.TypeEngine[Any]) -> Codec:
    """The codec of a SQLAlchemy type.

    Raises:
        ConfigurationError: a type that cannot be encrypted.
    """
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
        if isinstance(inner, matches):
            return make(inner)
    raise ConfigurationError(
        f"EncryptedType({type(inner).__name__}) is not supported; wrap it in a TypeDecorator over a type "
        "that is."
    )


def _decorated(inner: sa.TypeDecorator[Any]) -> Codec:
    # The user's conversion stays; only what it hands to its impl is encoded.
    codec = codec_for(inner.impl_instance)
    convert: _Converts = inner
    overrides = type(inner).process_bind_param is not sa.TypeDecorator.process_bind_param
    reads = type(inner).process_result_value is not sa.TypeDecorator.process_result_value

    def encode(value: Any) -> bytes:
        return codec.encode(convert.process_bind_param(value, _NEUTRAL) if overrides else value)

    def decode(data: bytes) -> Any:
        value = codec.decode(data)
        return convert.process_result_value(value, _NEUTRAL) if reads else value

    return Codec(codec.tag, encode, decode)


def _refuse(value: object, wanted: str) -> TypeError:
    return TypeError(f"expected {wanted}, not {type(value).__name__}")


def _canonical(encode: Callable[[Any], bytes], decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """`decode`, for bytes that `encode` makes: Python's parsers read many spellings of one value."""

    def strict(data: bytes) -> Any:
        value = decode(data)
        if encode(value) != data:
            raise ValueError("not the canonical bytes of this value")
        return value

    return strict


def _encode_bytes(value: Any) -> bytes:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise _refuse(value, "bytes")
    return bytes(value)


def _encode_int(value: Any) -> bytes:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _refuse(value, "int")
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
        raise _refuse(value, "float")
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
        raise _refuse(value, "Decimal")
    return _SPELLING.to_sci_string(value).encode("ascii")


def _decode_decimal(data: bytes) -> Decimal:
    return Decimal(data.decode("ascii"))


def _encode_bool(value: Any) -> bytes:
    if not isinstance(value, bool):
        raise _refuse(value, "bool")
    return b"\1" if value else b"\0"


def _decode_bool(data: bytes) -> bool:
    return {b"\0": False, b"\1": True}[data]


def _encode_date(value: Any) -> bytes:
    if not isinstance(value, dt.date) or isinstance(value, dt.datetime):
        raise _refuse(value, "date")
    return value.isoformat().encode("ascii")


def _decode_date(data: bytes) -> dt.date:
    return dt.date.fromisoformat(data.decode("ascii"))


def _encode_timedelta(value: Any) -> bytes:
    if not isinstance(value, dt.timedelta):
        raise _refuse(value, "timedelta")
    return _encode_int(value // _MICROSECOND)


def _decode_timedelta(data: bytes) -> dt.timedelta:
    return _decode_int(data) * _MICROSECOND


def _time(inner: sa.Time) -> Codec:
    aware = bool(inner.timezone)

    def encode(value: Any) -> bytes:
        if not isinstance(value, dt.time) or (value.utcoffset() is not None) is not aware:
            raise _refuse(value, "time with a zone" if aware else "time without a zone")
        return value.isoformat(timespec="microseconds").encode("ascii")

    def decode(data: bytes) -> dt.time:
        return dt.time.fromisoformat(data.decode("ascii"))

    return Codec("timetz" if aware else "time", encode, _canonical(encode, decode))


def _datetime(inner: sa.DateTime) -> Codec:
    aware = bool(inner.timezone)

    def encode(value: Any) -> bytes:
        if not isinstance(value, dt.datetime) or (value.utcoffset() is not None) is not aware:
            raise _refuse(value, "datetime with a zone" if aware else "datetime without a zone")
        moment = value.astimezone(dt.UTC) if aware else value
        return moment.isoformat(timespec="microseconds").encode("ascii")

    def decode(data: bytes) -> dt.datetime:
        return dt.datetime.fromisoformat(data.decode("ascii"))

    return Codec("datetimetz" if aware else "datetime", encode, _canonical(encode, decode))


def _uuid(inner: sa.Uuid[Any]) -> Codec:
    if not inner.as_uuid:
        return Codec("uuid", lambda value: uuid.UUID(value).bytes, lambda data: str(uuid.UUID(bytes=data)))

    def encode(value: Any) -> bytes:
        if not isinstance(value, uuid.UUID):
            raise _refuse(value, "UUID")
        return value.bytes

    return Codec("uuid", encode, lambda data: uuid.UUID(bytes=data))


def _enum(inner: sa.Enum) -> Codec:
    # The processors of Enum itself hold the look-up by name, by value or by `values_callable`.
    untyped: Any = inner
    bind, result = untyped.bind_processor(_NEUTRAL), untyped.result_processor(_NEUTRAL, None)
    assert bind is not None and result is not None  # noqa: S101 - true of Enum on every dialect

    def encode(value: Any) -> bytes:
        name: str = bind(value)
        if name not in inner.enums:  # which lets any text pass, and would not read it back
            raise LookupError("not a name of this Enum")
        return name.encode("utf-8")

    return Codec("enum", encode, lambda data: result(data.decode("utf-8")))


def _encode_json(value: Any) -> bytes:
    value = None if value is sa.JSON.NULL else value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8")


def _decode_json(data: bytes) -> Any:
    # As text: from bytes `json.loads` guesses among encodings.
    return json.loads(data.decode("utf-8"), parse_constant=_no_constant)


def _no_constant(name: str) -> NoReturn:
    raise ValueError("JSON has no NaN and no infinity")


def _array(inner: sa.ARRAY[Any]) -> Codec:
    item = codec_for(inner.item_type)
    flat = inner.dimensions == 1

    def encode(value: Any) -> bytes:
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            raise _refuse(value, "list")
        parts = [_COUNT.pack(len(value))]
        for one in value:
            if one is None:
                parts.append(b"\0")
                continue
            nested = not flat and isinstance(one, (list, tuple))
            data = encode(one) if nested else item.encode(one)
            parts += (b"\2" if nested else b"\1", _COUNT.pack(len(data)), data)
        return b"".join(parts)

    def decode(data: bytes) -> list[Any]:
        (count,) = _COUNT.unpack_from(data)
        values: list[Any] = []
        position = 4
        for _ in range(count):
            kind = data[position]
            position += 1
            if kind > 2:
                raise ValueError("no such kind of list item")
            if kind == 0:
                values.append(None)
                continue
            (size,) = _COUNT.unpack_from(data, position)
            position += 4
            one = data[position : position + size]
            if len(one) != size:
                raise ValueError("a list item is cut short")
            values.append(decode(one) if kind == 2 else item.decode(one))
            position += size
        if position != len(data):
            raise ValueError("bytes follow the last item")
        return values

    return Codec(f"list:{item.tag}", encode, decode)


def _numeric(inner: sa.Numeric[Any]) -> Codec:
    if inner.asdecimal:
        return Codec("decimal", _encode_decimal, _canonical(_encode_decimal, _decode_decimal))
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
    (sa.Date, _fixed("date", _encode_date, _canonical(_encode_date, _decode_date))),
    (sa.Time, _time),
    (sa.Uuid, _uuid),
    ((sa.LargeBinary, sa.BINARY, sa.VARBINARY), _fixed("bytes", _encode_bytes, bytes)),
    (sa.ARRAY, _array),
    (sa.String, _fixed("str", str.encode, bytes.decode)),
]
