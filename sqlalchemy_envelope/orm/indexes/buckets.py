"""`Buckets`: how the values of an index of ranges are cut into buckets."""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy_envelope.exceptions import ConfigurationError

CALENDAR = ("day", "week", "month", "year")
"""Widths of dates and times that have a name."""


@dataclass(frozen=True)
class Buckets:
    """Cuts numbers or dates into buckets of one width: values of one bucket share a tag::

        born: Mapped[date] = mapped_column(EncryptedType(Date))
        born_index: Mapped[bytes] = mapped_column(
            BlindIndex("born", bucket=Buckets("month", date(1920, 1, 1), date(2030, 1, 1)))
        )

    A comparison with one end, `User.born < x`, asks for all buckets up to the last one, and so there has to
    be a last one: give `low` for `<` and `<=`, and `high` for `>` and `>=`. `between()` needs neither.

    Wide buckets tell little to somebody who has the database, and more rows are decrypted for nothing.

    Args:
        width: the width of a bucket: a number; for dates and times a `timedelta`, or "day", "week", "month"
            or "year".
        low: values below it share the lowest bucket.
        high: values above it share the highest bucket.

    Raises:
        ConfigurationError: an argument is out of range.
    """

    width: Any
    low: Any = None
    high: Any = None

    def __post_init__(self) -> None:
        width = self.width
        if not _is_width(width):
            raise ConfigurationError(
                "Buckets(width): a number above 0; for dates and times a timedelta above 0, or one of "
                f"{', '.join(map(repr, CALENDAR))}."
            )


def _is_width(width: Any) -> bool:
    if isinstance(width, str):
        return width in CALENDAR
    if isinstance(width, dt.timedelta):
        return width > dt.timedelta(0)
    number = isinstance(width, (int, float, Decimal)) and not isinstance(width, bool)
    return number and math.isfinite(width) and width > 0


def buckets_of(bucket: Any) -> Buckets | None:
    """The argument `bucket` of an index, which may be a width alone.

    Raises:
        ConfigurationError: it is no width.
    """
    return bucket if bucket is None or isinstance(bucket, Buckets) else Buckets(bucket)
