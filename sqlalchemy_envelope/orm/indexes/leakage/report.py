"""What was found about a blind index, in figures and in plain words."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.words import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

Point = tuple[int, float]
LOOKS_ALIKE = 0.2
"""Up to this distance, a column looks as public figures say."""


@dataclass(frozen=True)
class Leakage:
    """What a blind index tells somebody who has the database. All shares are of `rows`.

    Attributes:
        index: the label of the index.
        scope: whose key makes its tags.
        rows: rows with a tag.
        pending: rows that have a value and no tag yet.
        tags: different tags; of an index that is not the server's, summed over owners.
        keys: owners whose keys made them; 1 for the server's key.
        alone: the share of rows whose tag no other row has.
        most: the share of rows of the commonest tag.
        exact: the share of rows of which somebody names the value who knows how often each value is in this
            very column.
        guessed: the share of rows that have the commonest public value: without the index, always to name
            it is right so often. None without public figures.
        recovered: the share of rows of which a frequency attack names the right value, as a simulation has
            it. None without public figures.
        measured: the same, attacked and checked with the index key. None if the key is not at hand.
        with_key: the share of rows of which somebody with the index key names the value, by trying every
            public value. None if the key is not at hand.
        distance: how far the counts are from what the public figures let expect, from 0 to 1.
        unfit: public values that the index cannot hold; they were left out.
        threshold: how much of what nobody could guess without the index it may give away.
        advice: what to change.
        found: points of the column's curve: a rank of its tags, and the share of rows of the tag there.
        expected: points of the curve that public figures let expect.
    """

    index: str
    scope: str
    bits: int
    form: str
    rows: int
    pending: int
    tags: int
    keys: int
    alone: float
    most: float
    exact: float
    threshold: float
    guessed: float | None = None
    recovered: float | None = None
    measured: float | None = None
    with_key: float | None = None
    distance: float | None = None
    unfit: int = 0
    advice: list[str] = field(default_factory=list)
    found: tuple[Point, ...] = field(default=(), repr=False)
    expected: tuple[Point, ...] = field(default=(), repr=False)

    @property
    def given_away(self) -> float:
        """The share that the index gives away of the rows that nobody could guess without it. The threshold
        is compared with it. The attack counts, simulated or on this very column, whichever gives more;
        without public figures, exact knowledge."""
        found = [one for one in (self.measured, self.recovered) if one is not None]
        told = max(found) if found else self.exact
        return beyond(told, self.most if self.guessed is None else self.guessed)

    @property
    def is_above(self) -> bool:
        """Whether the index gives away more than it may."""
        return self.given_away > self.threshold

    def values(self) -> dict[str, Any]:
        """The figures, for a program."""
        figures = {one.name: getattr(self, one.name) for one in fields(self)}
        curves = {name: figures.pop(name) for name in ("found", "expected")}
        return {**figures, "given_away": self.given_away, "is_above": self.is_above, **curves}

    def lines(self) -> list[str]:
        """The report in plain words."""
        if not self.rows:
            return [f"{self._title()}: no row has a tag yet. There is nothing to tell."]
        return [self._title(), *self._equality(), *self._attacks(), *self._verdict()]

    def _title(self) -> str:
        return f"{self.index} ({self.form}, {self.bits} bits, scope {self.scope!r})"

    def _equality(self) -> list[str]:
        keys = "" if self.scope == "server" else f", under the keys of {counted(self.keys, 'owner')}"
        seen = (
            f"  {counted(self.rows, 'row')} with {counted(self.tags, 'tag')}{keys}. Whoever has the database "
            f"sees which of them are equal: {percent(1 - self.alone)} have an equal, and "
            f"{percent(self.most)} have the commonest tag."
        )
        lines = [seen]
        if self.scope != "server":
            lines.append("  Rows of two owners cannot be compared.")
        if self.pending:
            lines.append(f"  {counted(self.pending, 'row')} with a value and no tag yet: they are not found.")
        return lines

    def _attacks(self) -> list[str]:
        if self.recovered is None or self.guessed is None:
            worst = (
                "  No public figures were given (--public). At worst, somebody who knows how often each "
                f"value is in this very column names the value of {percent(self.exact)} of the rows, without "
                "a key."
            )
            return [worst]
        attack = (
            "  Without a key, somebody who takes the commonest tag for the commonest public value names the "
            f"right value of {percent(self.recovered)} of the rows. Without the index, to name the commonest "
            f"value for every row is right for {percent(self.guessed)}."
        )
        return [attack, *self._with_the_key(), *self._doubts()]

    def _with_the_key(self) -> Iterator[str]:
        if self.measured is not None:
            yield f"  The attack on this very column, checked with the key: {percent(self.measured)}."
        if self.with_key is not None:
            yield (
                "  With the key, somebody who tries all public values names the right value of "
                f"{percent(self.with_key)} of the rows."
            )

    def _doubts(self) -> Iterator[str]:
        if self.distance is not None and self.distance > LOOKS_ALIKE:
            yield (
                "  The column does not look as the public figures say: "
                f"{percent(self.distance)} of the rows differ. An attacker may have better figures."
            )
        if self.unfit:
            yield f"  {counted(self.unfit, 'public value')} left out: the column cannot hold them."

    def _verdict(self) -> list[str]:
        given = (
            f"  So the index gives away {percent(self.given_away)} of what nobody could guess without it. "
            f"The threshold is {percent(self.threshold)}: "
        )
        if not self.is_above:
            return [f"{given}nothing has to change."]
        return [f"{given}change something.", *(f"  - {one}" for one in self.advice)]


def beyond(told: float, guessed: float) -> float:
    """Of the share that a guess gets wrong, the part that somebody gets right who is right about `told`."""
    return max(0.0, told - guessed) / (1 - guessed) if guessed < 1 else 0.0


def percent(share: float) -> str:
    """A share in words: 12.3 %, or less than 0.1 %."""
    if 0 < share < 0.001:
        return "less than 0.1 %"
    return f"{share * 100:.1f} %"
