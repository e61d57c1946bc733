"""The leakage of a blind index, measured on the live column."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.exceptions import ConfigurationError, EnvelopeError
from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn, indexes_of_table
from sqlalchemy_envelope.orm.indexes.leakage.attack import (
    Attack,
    Histogram,
    points,
    rows_by_exact_counts,
    rows_in,
    simulate,
    some_points,
)
from sqlalchemy_envelope.orm.indexes.leakage.column_tags import ColumnTags
from sqlalchemy_envelope.orm.indexes.leakage.indexed_values import IndexedValues, indexed_values
from sqlalchemy_envelope.orm.indexes.leakage.report import Leakage, beyond, percent
from sqlalchemy_envelope.orm.indexes.server_keys import server_hashers
from sqlalchemy_envelope.orm.indexes.tokens.tokenized import TokenizedColumn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.crypto.blind_index import IndexHasher
    from sqlalchemy_envelope.orm.indexes.leakage.public_values import PublicValues

THRESHOLD = 0.1
"""How much of what nobody could guess an index may give away, unless another limit is given."""
_TRIALS = 20
"""Rounds of a simulation of a change that is proposed."""


def measure_leakage(
    session: Session,
    index: Any,
    public: PublicValues | None = None,
    *,
    threshold: float = THRESHOLD,
    seed: int = 0,
) -> Leakage:
    """What a blind index tells somebody who has the database. It counts the live column's tags, and reads no
    value.

    Args:
        index: the attribute or column of the index, `User.email_index`.
        public: how often values occur among people at large. Left out: nothing is attacked; the report has
            what is known without such figures.
        threshold: how much of what nobody could guess without the index it may give away.
        seed: the same seed gives the same report.

    Raises:
        ConfigurationError: it is no blind index.
    """
    found = indexed_column(index)
    tags = ColumnTags(session, found)
    histograms = tags.histograms()
    rows = sum(map(rows_in, histograms))
    facts: dict[str, Any] = {**_facts(found, tags, histograms, rows), "threshold": threshold}
    if not rows or public is None:
        advised = ["Give public figures, and measure again: this is the worst case."] if rows else []
        return Leakage(**facts, advice=[*advised, *_general(found)])
    values = indexed_values(found, public)
    if not values.shares:
        raise ConfigurationError(f"Of the public values, {found.label!r} can hold none.")
    attacks = _Attacks(values, found.bits, seed)
    hashers = _hashers(session, found) if values.datas else ()
    measured = _Measured(tags, values, hashers, histograms[0]) if hashers else None
    leakage = Leakage(
        **facts,
        guessed=values.shares[0] * values.named[0],
        recovered=attacks.rows_of(histograms) / rows,
        measured=None if measured is None else measured.attacked() / rows,
        with_key=None if measured is None else measured.by_key() / rows,
        distance=attacks.of(rows).distance(histograms[0]) if len(histograms) == 1 else None,
        expected=tuple(some_points(attacks.of(rows).shares)) if len(histograms) == 1 else (),
        unfit=values.unfit,
        advice=_general(found),
    )
    if not leakage.is_above:
        return leakage
    fewer = _fewer_bits(found, values, rows, threshold, seed)
    return replace(leakage, advice=[*fewer, *leakage.advice])


def indexed_column(index: Any) -> IndexedColumn:
    """The blind index that an attribute or a column is.

    Raises:
        ConfigurationError: it is no blind index.
    """
    column = index.__clause_element__() if hasattr(index, "__clause_element__") else index
    for base in getattr(column, "base_columns", ()):
        for one in indexes_of_table(base.table) if getattr(base, "table", None) is not None else ():
            if one.column is base:
                return one
    if isinstance(index, TokenizedColumn):
        raise ConfigurationError(
            f"{index.label!r} is a token index: the leakage of a BlindIndex is measured, and not of that."
        )
    raise ConfigurationError(f"{index} is no blind index. Give its attribute: User.email_index.")


def _facts(
    index: IndexedColumn, tags: ColumnTags, histograms: Sequence[Histogram], rows: int
) -> dict[str, Any]:
    whole = sum(map(Counter, histograms), Counter[int]())
    return {
        "index": index.label,
        "scope": index.scope,
        "bits": index.bits,
        "form": index.kind.form,
        "rows": rows,
        "pending": tags.pending(),
        "tags": sum(whole.values()),
        "keys": len(histograms),
        "alone": whole[1] / rows if rows else 0.0,
        "most": max(whole) / rows if rows else 0.0,
        "exact": sum(map(rows_by_exact_counts, histograms)) / rows if rows else 0.0,
        "found": tuple(points(dict(whole))),
    }


class _Attacks:
    """Simulated attacks, one for each number of rows under a key."""

    def __init__(self, values: IndexedValues, bits: int, seed: int) -> None:
        self._values = values
        self._bits = bits
        self._seed = seed
        self._known: dict[int, Attack] = {}

    def of(self, rows: int) -> Attack:
        """The attack on so many rows."""
        if rows not in self._known:
            values = self._values
            self._known[rows] = simulate(values.shares, rows, self._bits, named=values.named, seed=self._seed)
        return self._known[rows]

    def rows_of(self, histograms: Sequence[Histogram]) -> float:
        """The rows of which the attacker names the right value, over all keys."""
        if len(histograms) == 1:
            return self.of(rows_in(histograms[0])).rows_of(histograms[0])
        return sum(self.of(_rounded(rows_in(one))).rows_of(one) for one in histograms)


def _rounded(rows: int) -> int:
    """About this number: owners with about as many rows share a simulation."""
    step: int = 1 << max(0, rows.bit_length() - 3)
    return max(1, round(rows / step) * step)


def _hashers(session: Session, index: IndexedColumn) -> Sequence[IndexHasher]:
    """What makes the tags, if the key is at hand here."""
    if index.scope != "server":
        return ()
    connection = session.connection(bind_arguments={"clause": index.column.table})
    try:
        return server_hashers(connection, index).seeks
    except EnvelopeError:
        return ()


class _Measured:
    """The real attacks on one column, checked with its key."""

    def __init__(
        self,
        tags: ColumnTags,
        values: IndexedValues,
        hashers: Sequence[IndexHasher],
        histogram: Histogram,
    ) -> None:
        self._values = values
        self._of_tag: defaultdict[bytes, list[int]] = defaultdict(list)
        for hasher in hashers:
            for number, data in enumerate(values.datas):
                self._of_tag[hasher.tag(data)].append(number)
        self._counts = tags.counts_of(self._of_tag)
        self._ranks = _ranks(histogram)

    def attacked(self) -> float:
        """The rows of which a frequency attack names the right value. Tags with one count are in any order,
        and each order is as likely."""
        rows = 0.0
        for tag, count in self._counts.items():
            first, size = self._ranks[count]
            for number in self._of_tag[tag]:
                if first <= number < first + size:
                    rows += count * self._certain(tag, number) / size
        return rows

    def by_key(self) -> float:
        """The rows of which somebody with the key names the value: the likeliest of those with the tag."""
        return sum(
            count * max(self._certain(tag, number) for number in self._of_tag[tag])
            for tag, count in self._counts.items()
        )

    def _certain(self, tag: bytes, number: int) -> float:
        """How likely a row with this tag has this value, of the public values with the tag."""
        shares, named = self._values.shares, self._values.named
        return shares[number] * named[number] / math.fsum(shares[one] for one in self._of_tag[tag])


def _ranks(histogram: Histogram) -> dict[int, tuple[int, int]]:
    """By the rows of a tag, the first rank of such tags, and how many there are."""
    ranks, first = {}, 0
    for count in sorted(histogram, reverse=True):
        ranks[count] = (first, histogram[count])
        first += histogram[count]
    return ranks


def _fewer_bits(
    index: IndexedColumn, values: IndexedValues, rows: int, threshold: float, seed: int
) -> list[str]:
    """The advice to truncate the tags, where a simulation says that it helps."""
    if index.column.unique or index.scope != "server":
        return []
    most = math.floor(math.log2(max(rows, 4))) - 1  # on average two rows for each tag
    fewer = range(min(most, index.bits - 1), most // 2, -1)
    for bits in fewer:
        told = simulate(values.shares, rows, bits, named=values.named, seed=seed, rounds=_TRIALS).recovered
        given = beyond(told, values.shares[0] * values.named[0])
        if given <= threshold:
            advice = (
                f"Store fewer bits, BlindIndex(..., bits={bits}): it then gives away {percent(given)}. A "
                f"look-up fetches about {rows / 2**bits:,.0f} rows more than it looks for, which are dropped "
                "after they are decrypted."
            )
            return [advice]
    if not fewer:
        return []
    return [f"Fewer bits do not help, down to {fewer[-1]}: the commonest values are too common."]


def _general(index: IndexedColumn) -> list[str]:
    advice = []
    if index.scope == "server":
        advice.append(
            "Search under the owner's key, BlindIndex(..., scope='owner'), if whoever searches has the owner "
            "open: rows of two owners then have nothing in common."
        )
    if len(index.sources) == 1 and index.type.bucket is None and index.type.prefix is None:
        advice.append(
            "Index it together with a column of many values, if both are looked for together: "
            f"BlindIndex(({index.sources[0].key!r}, '...'))."
        )
    return [*advice, "Leave the index out, and compare decrypted values."]
