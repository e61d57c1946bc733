"""The kind of index that finds the values of a range: it hashes the bucket of a value."""

from __future__ import annotations

import datetime as dt
import math
from decimal import ROUND_FLOOR, Context, Decimal
from typing import TYPE_CHECKING, Any

from sqlalchemy.sql import operators

from sqlalchemy_envelope.exceptions import ConfigurationError, StatementRefusedError
from sqlalchemy_envelope.orm.indexes.buckets import Buckets
from sqlalchemy_envelope.orm.indexes.kinds.kind import Wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy_envelope.orm.columns.plans import EncryptedColumn

MAX_BUCKETS = 1000
"""The number of buckets for which a comparison asks at most: each is a parameter of the statement."""

_UPWARDS = frozenset({operators.gt, operators.ge})
_DOWNWARDS = frozenset({operators.lt, operators.le})
_FLOOR = Context(prec=50, rounding=ROUND_FLOOR)
_FAR = 45
"""From this power of ten on, a Decimal is farther away than any bucket is counted."""
_MICROSECOND, _DAY = dt.timedelta(microseconds=1), dt.timedelta(days=1)
_WIDTHS = {"day": _DAY, "week": 7 * _DAY}
_MONTHS = {"month": 1, "year": 12}
_MONDAY = dt.datetime(1970, 1, 5)  # noqa: DTZ001 - of values without a zone
_MONDAY_UTC = dt.datetime(1970, 1, 5, tzinfo=dt.UTC)


class Range:
    """Finds the values of a range.

    The tags are those of buckets. A comparison asks for all buckets in which a value of the range may be, and
    the values themselves are compared after they are decrypted.

    Args:
        sources: the encrypted column.
        buckets: how its values are cut.

    Raises:
        ConfigurationError: the column's values cannot be cut so.
    """

    rank = 1_500_000
    """Its place among the indexes of a column: after those that answer `==` for certain."""
    answers = "for `between()`, and for `<`, `<=`, `>` and `>=` where its buckets end"

    def __init__(
        self, sources: Sequence[EncryptedColumn], buckets: Buckets, normalize: object = None
    ) -> None:
        if len(sources) != 1:
            names = ", ".join(one.key for one in sources)
            raise ConfigurationError(
                f"BlindIndex(bucket=...) indexes a single attribute, and not {names} together. Give each an "
                "index of its own."
            )
        if normalize is not None:
            raise ConfigurationError(
                "BlindIndex(bucket=...) indexes values as they are: leave out `normalize=`."
            )
        (self._source,) = sources
        self._buckets = buckets
        self._name = str(self._source.column)
        self._count, width = _counter(self._source, buckets.width)
        self._low, self._high = self._end("low"), self._end("high")
        if self._low is not None and self._high is not None and self._low >= self._high:
            raise ConfigurationError(f"Buckets(low, high) of {self._name!r}: `low` is below `high`.")
        low, high = ("" if one is None else str(one) for one in (self._low, self._high))
        self.form = f"range {self._source.type.codec.tag} {width} [{low}..{high}]"

    def _end(self, name: str) -> Any:
        value = getattr(self._buckets, name)
        if value is None:
            return None
        try:
            found = self._count(self._canonical(value))
            assert isinstance(found, int)  # noqa: S101 - neither infinite nor NaN
        except Exception:  # noqa: BLE001 - of a type of the application's own, too
            raise ConfigurationError(
                f"Buckets({name}=...) of {self._name!r}: no value of the column."
            ) from None
        return found

    def data(self, values: Sequence[Any]) -> bytes | None:
        """The bucket of a value; None of None."""
        (value,) = values
        return None if value is None else _encoded(self._bucket(self._checked(value)))

    def _checked(self, value: Any) -> Any:
        """A value that has been converted, if it is of the column's type.

        Raises:
            Exception: any exception; it is not.
        """
        self._source.encode_converted(value)
        return value

    def _canonical(self, value: Any) -> Any:
        """An operand as the column stores it.

        Raises:
            Exception: any exception; it is no value of the column.
        """
        convert = self._source.convert
        return self._checked(value if convert is None else convert(value))

    def _bucket(self, value: Any) -> int | float:
        """The number of a value's bucket: infinite if it is too far away to be counted, NaN of NaN."""
        found = self._count(value)
        if self._low is not None and found < self._low:
            return int(self._low)
        if self._high is not None and found > self._high:
            return int(self._high)
        return found

    def answer(self, op: Any, operand: Any, options: dict[str, Any]) -> Wanted | None:
        """Answer `<`, `<=`, `>`, `>=`, `between`, and `==` and `in_` among candidates."""
        if op is operators.between_op:
            low, high = operand
            if options.get("symmetric"):
                low, high = sorted((low, high), key=self._canonical)
            return self._between(low, high)
        if op in _UPWARDS or op in _DOWNWARDS:
            return self._beyond(op, operand)
        if op is operators.eq:
            return self._equal([operand])
        if op is operators.in_op:
            return self._equal(list(operand))
        return None

    def _between(self, low: Any, high: Any) -> Wanted:
        if low is None or high is None:
            return Wanted(())
        first, last = self._canonical(low), self._canonical(high)
        return Wanted(
            self._datas("between()", self._bucket(first), self._bucket(last)),
            check=self._check(lambda value: first <= value <= last),
        )

    def _beyond(self, op: Any, operand: Any) -> Wanted:
        if operand is None:
            return Wanted(())
        bound = self._canonical(operand)
        upwards = op in _UPWARDS
        end = self._high if upwards else self._low
        if end is None:
            missing, symbol = ("high", "`>` and `>=`") if upwards else ("low", "`<` and `<=`")
            raise StatementRefusedError(
                f"{symbol} on {self._name!r} would ask for buckets without end. Use `between()`, or declare "
                f"where they end: BlindIndex(..., bucket=Buckets(..., {missing}=...))."
            )
        here = self._bucket(bound)
        first, last = (here, end) if upwards else (end, here)
        return Wanted(
            self._datas("A comparison", first, last), check=self._check(lambda value: op(value, bound))
        )

    def _equal(self, operands: Sequence[Any]) -> Wanted:
        values = [self._canonical(one) for one in operands if one is not None]
        datas = tuple(_encoded(self._bucket(one)) for one in values)
        return Wanted(datas, check=self._check(lambda value: value in values))

    def _check(self, compare: Callable[[Any], bool]) -> Callable[[Any], bool]:
        convert = self._source.convert

        def check(value: Any) -> bool:
            value = value if convert is None else convert(value)
            return value is not None and not _is_nan(value) and compare(value)

        return check

    def _datas(self, what: str, first: int | float, last: int | float) -> tuple[bytes, ...]:
        if not first <= last:  # of NaN, too
            return ()
        if last - first >= MAX_BUCKETS or not isinstance(first, int) or not isinstance(last, int):
            raise StatementRefusedError(
                f"{what} on {self._name!r} would ask for more than {MAX_BUCKETS:,} buckets. Take a narrower "
                "range, or declare wider buckets."
            )
        return tuple(map(_encoded, range(first, last + 1)))


def _counter(source: EncryptedColumn, width: Any) -> tuple[Callable[[Any], int | float], str]:
    """What gives the number of a value's bucket, by the type of the column; and the width, spelt as in every
    process.

    Raises:
        ConfigurationError: the column's values have no such width.
    """
    tag = source.type.codec.tag
    found = _of_numbers(tag, width)
    if isinstance(width, (str, dt.timedelta)):
        found = _of_times(tag, _WIDTHS.get(width, dt.timedelta()) if isinstance(width, str) else width)
    if isinstance(width, str) and width in _MONTHS and tag in ("date", "datetime", "datetimetz"):
        months = _MONTHS[width]
        found = lambda value: _month(value) // months, f"{months} months"
    if found is None:
        raise ConfigurationError(
            f"BlindIndex(bucket=...) of {str(source.column)!r}, whose values are stored as {tag!r}, does not "
            f"take the width {width!r}. Numbers take a number (an int takes an int), dates whole days, other "
            "times a timedelta; dates and datetimes also 'day', 'week', 'month' and 'year'."
        )
    return found


def _of_numbers(tag: str, width: Any) -> tuple[Callable[[Any], int | float], str] | None:
    if not isinstance(width, (int, float, Decimal)):
        return None
    if tag == "int" and isinstance(width, int):
        return lambda value: int(value // width), str(width)
    if tag == "float":
        by = float(width)
        return lambda value: _whole(float(value) / by), repr(by)
    if tag == "decimal":
        exact = Decimal(str(width))
        return lambda value: _whole_decimal(Decimal(value), exact), format(exact.normalize(), "f")
    return None


def _of_times(tag: str, width: dt.timedelta) -> tuple[Callable[[Any], int | float], str] | None:
    if not width:
        return None
    shown = f"{width // _MICROSECOND}us"
    if tag == "timedelta":
        return lambda value: int(value // width), shown
    if tag == "time":
        return lambda value: (dt.datetime.combine(_MONDAY, value) - _MONDAY) // width, shown
    if tag == "date" and not width % _DAY:
        days = width // _DAY
        return lambda value: int((value.toordinal() - _MONDAY.toordinal()) // days), shown
    if tag in ("datetime", "datetimetz"):
        start = _MONDAY if tag == "datetime" else _MONDAY_UTC
        return lambda value: int((value - start) // width), shown
    return None


def _month(value: dt.date) -> int:
    if isinstance(value, dt.datetime) and value.tzinfo is not None:
        value = value.astimezone(dt.UTC)
    return 12 * value.year + value.month - 1


def _whole(quotient: float) -> int | float:
    return math.floor(quotient) if math.isfinite(quotient) else quotient


def _whole_decimal(value: Decimal, width: Decimal) -> int | float:
    if not value.is_finite():
        return math.nan if value.is_nan() else math.copysign(math.inf, value)
    if value and value.adjusted() - width.adjusted() > _FAR:  # the context has 50 digits
        return math.copysign(math.inf, value)
    quotient = _FLOOR.divide(value, width)
    return int(quotient.to_integral_value(ROUND_FLOOR, _FLOOR))


def _is_nan(value: Any) -> bool:
    return isinstance(value, (float, Decimal)) and math.isnan(value)


def _encoded(bucket: int | float) -> bytes:
    """The bytes of a bucket, which are hashed: "#" and its number, big-endian in two's complement, in as few
    bytes as hold it; or "inf", "-inf" or "nan"."""
    if isinstance(bucket, int):
        bits = (bucket if bucket >= 0 else ~bucket).bit_length()
        return b"#" + bucket.to_bytes(bits // 8 + 1, "big", signed=True)
    return repr(bucket).encode("ascii")  # inf, -inf, nan
