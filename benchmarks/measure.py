"""Timing: every variant runs once a round, in an order drawn anew for each round.

A shared machine changes its speed during a measurement. So variants are compared within the same round: a
figure is the median over rounds of (variant - plaintext), and never the difference of two distant runs.
"""

from __future__ import annotations

import gc
import random
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median

from sqlalchemy import Engine

from benchmarks.operations import (
    BARE_LOOP,
    BULK_INSERT,
    FLUSH,
    OPERATIONS,
    BareCipher,
    Rows,
    check,
    empty,
    make_rows,
    stored_size,
)
from benchmarks.variants import OURS_BY_COLUMN, PLAINTEXT, Variant


@dataclass(frozen=True)
class Timing:
    """Seconds: of this process on the processor, and by the wall clock."""

    cpu: float
    wall: float


@dataclass(frozen=True)
class Figure:
    """The cost of an operation for each value, beyond the plaintext column: microseconds, median round."""

    cpu: float
    wall: float
    best: float
    ratio: float


@dataclass
class Series:
    """All timings of one database, by round, variant and operation."""

    database: str
    row_count: int
    timings: dict[tuple[str, int, str], list[Timing]] = field(default_factory=lambda: defaultdict(list))
    bare: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    stored_sizes: dict[str, int] = field(default_factory=dict)

    def figure(self, variant: Variant, operation: str) -> Figure | None:
        runs = self.timings.get((variant.name, variant.column_count, operation))
        if not runs:
            return None
        plain = self.timings[PLAINTEXT, variant.column_count, operation]
        value_count = self.row_count * variant.column_count
        pairs = list(zip(runs, plain, self.bare[BARE_LOOP[operation]], strict=True))
        cpu = [(run.cpu - base.cpu) / value_count for run, base, _ in pairs]
        wall = [(run.wall - base.wall) / value_count for run, base, _ in pairs]
        best = (min(run.cpu for run in runs) - min(base.cpu for base in plain)) / value_count
        ratio = median(cost / unit for cost, (_, _, unit) in zip(cpu, pairs, strict=True))
        return Figure(median(cpu) * 1e6, median(wall) * 1e6, best * 1e6, ratio)

    def plaintext_total(self, column_count: int, operation: str) -> float:
        """The processor time of the plaintext table, in milliseconds, for scale."""
        return median(run.cpu for run in self.timings[PLAINTEXT, column_count, operation]) * 1e3

    def bare_cost(self, loop: str) -> float:
        """The microseconds of one bare call."""
        return median(self.bare[loop]) * 1e6


def timed(action: Callable[[], object]) -> Timing:
    """Run an operation once without the garbage collector, whose pauses could fall into any operation."""
    gc.collect()
    gc.disable()
    try:
        wall, cpu = time.perf_counter(), time.process_time()
        kept = action()
        timing = Timing(time.process_time() - cpu, time.perf_counter() - wall)
    finally:
        gc.enable()
    del kept
    return timing


def measure(
    database: str,
    engine: Engine,
    variants: list[Variant],
    row_count: int,
    round_count: int,
    user_id: int,
    progress: Callable[[str], None],
) -> Series:
    """Measure every variant on one database."""
    series = Series(database, row_count)
    bare = BareCipher(5 * row_count, next(f"{v.table.name}.c1" for v in variants if v.name == OURS_BY_COLUMN))
    rows = {count: make_rows(row_count, [f"c{n}" for n in range(1, count + 1)], user_id) for count in (1, 5)}
    for variant in variants:
        progress(f"{series.database}: warming up {variant.name}")
        warm_up(engine, variant, rows[variant.column_count][:1000], series)
    order: list[Variant | None] = [*variants, None]
    for number in range(round_count):
        progress(f"{series.database}: round {number + 1} of {round_count}")
        random.shuffle(order)
        for contestant in order:
            if contestant is None:
                measure_bare(bare, series)
            else:
                measure_variant(engine, contestant, rows[contestant.column_count], series)
    return series


def warm_up(engine: Engine, variant: Variant, rows: Rows, series: Series) -> None:
    for name in (FLUSH, BULK_INSERT):
        empty(engine, variant)
        OPERATIONS[name](engine, variant, rows)
        check(engine, variant, rows)
    series.stored_sizes[variant.name] = stored_size(engine, variant)


def measure_variant(engine: Engine, variant: Variant, rows: Rows, series: Series) -> None:
    for name, operation in OPERATIONS.items():
        if name in (FLUSH, BULK_INSERT):
            empty(engine, variant)
        timing = timed(partial(operation, engine, variant, rows))
        series.timings[variant.name, variant.column_count, name].append(timing)


def measure_bare(bare: BareCipher, series: Series) -> None:
    count = len(bare.plaintexts)
    series.bare["encrypt"].append(timed(bare.encrypt).cpu / count)
    series.bare["decrypt"].append(timed(bare.decrypt).cpu / count)
