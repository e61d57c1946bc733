"""A frequency attack, simulated: the commonest tag is taken for the commonest public value, and so on.

It needs no key. The simulation draws the values of a column from public figures, makes tags of them, attacks
the tags, and counts how often the attacker is right at each rank. So what it says of a column is a mean, and
needs no value of the column itself.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import accumulate, chain, islice, repeat
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_DRAWS = 400_000
"""About how many numbers a simulation draws, over all rounds."""
_FEWEST, _MOST = 4, 1_000
"""Rounds of a simulation."""
_NORMAL_FROM = 20
"""From this mean on, a normal distribution stands for Poisson's."""

Histogram = dict[int, int]
"""How many tags have how many rows."""


@dataclass(frozen=True)
class Attack:
    """The mean of many simulated attacks on a column of so many rows.

    Attributes:
        recovered: the share of rows of which the attacker names the right value.
        right: by the rank of a tag, the share of its rows of which the attacker names the right value.
        shares: by the rank of a tag, its share of all rows.
    """

    recovered: float
    right: tuple[float, ...]
    shares: tuple[float, ...]

    def rows_of(self, histogram: Histogram) -> float:
        """The rows of which the attacker names the right value in a column whose tags have these counts, if
        its values are as the public figures say."""
        return sum(count * right for count, right in zip(ranked(histogram), self.right, strict=False))

    def distance(self, histogram: Histogram) -> float:
        """How far the counts of a column are from what the public figures let expect: 0 is not at all, 1 is
        altogether (the total variation of the shares by rank)."""
        rows = rows_in(histogram)
        found = [count / rows for count in islice(ranked(histogram), len(self.shares))]
        beyond = 1 - math.fsum(found)
        found += [0.0] * (len(self.shares) - len(found))
        apart = math.fsum(abs(a - b) for a, b in zip(found, self.shares, strict=True))
        return (apart + max(0.0, beyond)) / 2


def simulate(
    shares: Sequence[float],
    rows: int,
    bits: int,
    *,
    named: Sequence[float] | None = None,
    seed: int = 0,
    rounds: int = _MOST,
) -> Attack:
    """Attack columns of this many rows, whose values are drawn from public figures.

    Args:
        shares: how often each value occurs, the commonest first.
        bits: the bits of a tag: values share a tag by chance.
        named: of rows with a value that the attacker has found, the share of which that is all there is to
            know. Of an index over beginnings, a tag stands for several values. Left out: 1 for each.
        seed: the same seed gives the same answer.
        rounds: at most so many attacks.
    """
    random = Random(seed)  # noqa: S311 - a simulation, which a seed repeats
    drawing = list(accumulate(shares)) if rows < len(shares) else None
    rounds = max(_FEWEST, min(rounds, _DRAWS // max(1, min(rows, len(shares)))))
    right: defaultdict[int, float] = defaultdict(float)
    seen: defaultdict[int, float] = defaultdict(float)
    of_rank: defaultdict[int, float] = defaultdict(float)
    recovered = 0.0
    for _ in range(rounds):
        drawn = _drawn(random, drawing, rows) if drawing else _poisson_counts(random, shares, rows)
        tags = _tags(random, drawn, bits, len(shares))
        whole = sum(drawn.values()) or 1
        for rank, (count, correct) in enumerate(_guessed(random, tags)):
            known = correct if named is None else correct * named[rank] if correct else 0.0
            right[rank] += known
            seen[rank] += count
            of_rank[rank] += count / whole
            recovered += known / whole
    ranks = range(len(seen))
    return Attack(
        recovered / rounds,
        tuple(right[rank] / seen[rank] for rank in ranks),
        tuple(of_rank[rank] / rounds for rank in ranks),
    )


def rows_in(histogram: Histogram) -> int:
    """The rows of a column whose tags have these counts."""
    return sum(count * tags for count, tags in histogram.items())


def ranked(histogram: Histogram) -> Iterator[int]:
    """The count of each tag, the highest first."""
    return chain.from_iterable(repeat(count, histogram[count]) for count in sorted(histogram, reverse=True))


def points(histogram: Histogram) -> Iterator[tuple[int, float]]:
    """The first and the last rank of the tags with each count, from 1 on, and the share of rows of such a
    tag."""
    rows, rank = rows_in(histogram), 1
    for count in sorted(histogram, reverse=True):
        last = rank + histogram[count] - 1
        yield from ((one, count / rows) for one in dict.fromkeys((rank, last)))
        rank = last + 1


def some_points(shares: Sequence[float]) -> Iterator[tuple[int, float]]:
    """Points of a curve, ever further apart."""
    rank = 1
    while rank <= len(shares):
        yield rank, shares[rank - 1]
        rank = max(rank + 1, rank * 21 // 20)


def rows_by_exact_counts(histogram: Histogram) -> int:
    """The rows of which somebody names the value who knows how often each value is in this very column, from
    an older copy in plaintext for example. Of the tags that have a count in common, one guess is right."""
    return sum(histogram)


def _drawn(random: Random, cumulated: list[float], rows: int) -> Counter[int]:
    return Counter(random.choices(range(len(cumulated)), cum_weights=cumulated, k=rows))


def _poisson_counts(random: Random, shares: Iterable[float], rows: int) -> dict[int, int]:
    counts = ((value, _poisson(random, rows * share)) for value, share in enumerate(shares))
    return {value: count for value, count in counts if count}


def _poisson(random: Random, mean: float) -> int:
    if mean > _NORMAL_FROM:
        return max(0, round(random.gauss(mean, math.sqrt(mean))))
    limit, count, product = math.exp(-mean), 0, random.random()
    while product > limit:
        count += 1
        product *= random.random()
    return count


def _tags(
    random: Random, drawn: Mapping[int, int], bits: int, value_count: int
) -> list[tuple[int, dict[int, int]]]:
    """The tags of drawn values: the rows of each, and how many of them have which value."""
    if 2**bits >= value_count**2:  # hardly two values share a tag
        return [(count, {value: count}) for value, count in drawn.items()]
    tags: defaultdict[int, dict[int, int]] = defaultdict(dict)
    for value, count in drawn.items():
        tags[random.getrandbits(bits)][value] = count
    return [(sum(values.values()), values) for values in tags.values()]


def _guessed(random: Random, tags: list[tuple[int, dict[int, int]]]) -> Iterator[tuple[int, int]]:
    """By rank, the rows of a tag, and those of them that have the value of this rank."""
    random.shuffle(tags)  # which of two tags with one count is which, the attacker does not know
    tags.sort(key=lambda tag: -tag[0])
    return ((count, values.get(rank, 0)) for rank, (count, values) in enumerate(tags))
