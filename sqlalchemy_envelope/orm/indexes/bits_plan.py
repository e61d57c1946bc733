"""`plan_bits`: how many bits the tags of an index should have.

Fewer bits tell less to somebody who has the database, since more rows share each tag, and more rows are
decrypted for nothing. CipherSweet and the AWS Database Encryption SDK have published the same rule: of R rows
with different values, R / 2^bits share a tag on average, and that number should be at least 2 and less than
the square root of R. Several indexes on a column narrow the rows down together: their bits add up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy_envelope.exceptions import ConfigurationError

_FEWEST_ROWS = 16
"""The rule is about larger numbers of rows: with fewer, 2 is more than the square root."""


@dataclass(frozen=True)
class BitsPlan:
    """The bits that an index should have.

    Attributes:
        low: with fewer bits, more rows share a tag than the square root of their number.
        high: with more bits, fewer than two rows share a tag on average.
        rows: the number of rows it was planned for.
        taken: the bits of the other indexes on the column.
    """

    low: int
    high: int
    rows: int
    taken: int = 0

    def sharing(self, bits: int) -> float:
        """How many rows share a tag on average, if the index has this number of bits."""
        return float(self.rows / 2 ** (self.taken + bits))


def plan_bits(
    rows: int, *, values: int | None = None, beside: Iterable[int | tuple[int, int]] = ()
) -> BitsPlan:
    """The bits that a new blind index should have, by the published rule of CipherSweet.

    `BlindIndex(..., bits=plan.low)` tells least, and `plan.high` decrypts least for nothing. The rule takes
    the values for evenly distributed. Where a few values make up most rows, `sqlalchemy-envelope leakage`
    says what is learnt of them.

    Args:
        rows: the number of rows to expect; if values are often repeated, the number of different values.
        values: the number of possible values, if that is limited: 10,000 for a year of four digits.
        beside: the bits of each other index on the same column, or the bits with the number of possible
            values.

    Raises:
        ConfigurationError: there are fewer than 16 rows, or the other indexes have told too much already.
    """
    if rows < _FEWEST_ROWS:
        raise ConfigurationError(
            f"plan_bits(rows={rows!r}): with fewer than {_FEWEST_ROWS} rows every number of bits tells too "
            "much. Load the rows and compare the decrypted values."
        )
    pairs = [(one, None) if isinstance(one, int) else one for one in beside]
    taken = sum(min(bits, _bits_of(possible)) for bits, possible in pairs)
    most = _bits_of(values)
    high = min((rows - 1).bit_length() - 1 - taken, most)  # the first at which at most 2 rows share a tag
    if high < 1:
        raise ConfigurationError(
            f"plan_bits(): the other indexes on the column have {taken} bits already, and {rows:,} rows "
            "leave room for no further index. Give them fewer bits, or remove one."
        )
    low = max(1, -(-(rows - 1).bit_length() // 2) - taken)
    return BitsPlan(low if low <= high else 1, high, rows, taken)


def _bits_of(values: int | None) -> int:
    """The bits that tell this number of values apart."""
    if values is None:
        return 1 << 30
    if values < 2:
        raise ConfigurationError(f"plan_bits(): {values!r} possible values tell nothing apart.")
    return (values - 1).bit_length()
