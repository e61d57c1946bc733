"""Writing for an owner who is locked, beside writing for the same owner unlocked.

The two ways take turns, batch by batch. Each pair of batches is one comparison, and the figure is the median
of the pairs. On a machine that others use, no other comparison is sound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from sqlalchemy import Engine, insert, text
from sqlalchemy.orm import Session

from benchmarks.databases import SECRET
from benchmarks.measure import Timing, timed
from benchmarks.sharing_models import (
    Event,
    Person,
    apart,
    cheap_envelope,
    count_keys,
    create_tables,
    enroll_people,
)
from benchmarks.sheets import DATABASE_NAMES, Finding, Sheet

NAME = "locked-writes"
BATCH = 1_000
Write = Callable[[Session, list[dict[str, Any]]], None]


def bulk(session: Session, rows: list[dict[str, Any]]) -> None:
    session.execute(insert(Event), rows)
    session.commit()


def flush(session: Session, rows: list[dict[str, Any]]) -> None:
    session.add_all([Event(**row) for row in rows])
    session.commit()
    session.expunge_all()


def one_by_one(session: Session, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        session.add(Event(**row))
        session.commit()
        session.expunge_all()


WAYS: dict[str, tuple[Write, int]] = {
    "bulk insert": (bulk, 1),
    "unit-of-work insert": (flush, 1),
    "a transaction for each row": (one_by_one, 20),
}
"""The ways to write rows, by name, and by how much fewer rows each of them writes."""


@dataclass
class Pairs:
    """The timings of one way to write, batch by batch, and the bytes of the rows."""

    row_count: int
    locked: list[Timing]
    unlocked: list[Timing]
    extra: float
    seals: int

    def ratio(self, clock: str) -> float:
        pairs = zip(self.locked, self.unlocked, strict=True)
        ratios: list[float] = [getattr(one, clock) / getattr(other, clock) for one, other in pairs]
        return median(ratios)


def measure_locked_writes(engine: Engine, row_count: int) -> Finding:
    found = {name: write_pairs(engine, write, row_count // fewer) for name, (write, fewer) in WAYS.items()}
    batch_count = row_count // BATCH + 1  # with one batch for warming up
    quarter = write_pairs(engine, bulk, row_count, write_epoch_values=-(-batch_count // 4) * BATCH)
    lines = [
        [
            name,
            f"{pairs.row_count:,}",
            f"{per_row(pairs.locked, pairs.row_count):.1f}",
            f"{per_row(pairs.unlocked, pairs.row_count):.1f}",
            f"{pairs.ratio('cpu'):.3f}",
            f"{pairs.ratio('wall'):.3f}",
            f"{pairs.extra:g}",
            str(pairs.seals),
        ]
        for name, pairs in {**found, "bulk insert, four epochs": quarter}.items()
    ]
    first = found["bulk insert"]
    figures = {
        **{f"ratio, {name}": pairs.ratio("cpu") for name, pairs in found.items()},
        "extra bytes": max(pairs.extra for pairs in found.values()),
        "seals": float(first.seals),
        "seals, four epochs": float(quarter.seals),
    }
    sheet = Sheet(
        f"{DATABASE_NAMES[engine.dialect.name]}: rows for one person who is locked (`write_only`), and "
        "for the same one unlocked",
        ["", "rows", "µs locked", "µs unlocked", "ratio", "ratio by the wall clock", "extra bytes", "seals"],
        lines,
    )
    return Finding(NAME, engine.dialect.name, [sheet], figures)


def per_row(timings: list[Timing], row_count: int) -> float:
    return sum(timing.cpu for timing in timings) / row_count * 1e6


def write_pairs(engine: Engine, write: Write, row_count: int, **options: Any) -> Pairs:
    create_tables(engine)
    envelope = cheap_envelope(**options)
    found = Pairs(row_count, [], [], 0.0, 0)
    with Session(engine) as away, Session(engine) as here:
        (person,) = enroll_people(here, envelope, 1)
        person_id = person.id
        locked = envelope.write_only(away, away.get_one(Person, person_id))
        with (
            apart(locked) as inside_locked,
            apart(envelope.unlock(here, person, secret=SECRET)) as inside_open,
        ):
            for number in range(-1, row_count // BATCH or 1):
                size = min(BATCH, row_count)
                odd, even = (make_events(2 * number + side, size, person_id) for side in (0, 1))
                actions = [
                    (found.locked, lambda rows=odd: inside_locked(lambda: write(away, rows))),
                    (found.unlocked, lambda rows=even: inside_open(lambda: write(here, rows))),
                ]
                # The second way finds what the first has warmed, so they take turns.
                for timings, action in actions if number % 2 else actions[::-1]:
                    timing = timed(action)
                    if number >= 0:  # the round before is for warming up
                        timings.append(timing)
        found.extra = extra_bytes(engine, min(BATCH, row_count))
        found.seals = count_keys(here, Person, purpose="write")
    return found


def make_events(number: int, size: int, person_id: int) -> list[dict[str, Any]]:
    first = (number + 2) * size
    return [
        {"id": one, "person_id": person_id, "body": f"event {one:014d}"} for one in range(first, first + size)
    ]


def extra_bytes(engine: Engine, size: int) -> float:
    """The bytes that a row for a locked owner has more than a row for the same owner unlocked."""
    query = text("SELECT avg(length(body)) FROM events WHERE (id / :size) % 2 = :side")
    with engine.connect() as connection:
        sizes = [
            float(connection.execute(query, {"size": size, "side": side}).scalar_one()) for side in (0, 1)
        ]
    return sizes[0] - sizes[1]
