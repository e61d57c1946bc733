"""The figures as tables for the terminal, as a Markdown page for the documentation, and as JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cryptography.hazmat.backends.openssl import backend
from rich.console import Console
from rich.table import Table

from benchmarks.goals import GOALS, LIMITS
from benchmarks.measure import Figure, Series
from benchmarks.operations import OPERATIONS
from benchmarks.sheets import DATABASE_NAMES, Finding, Sheet
from benchmarks.unlock import UnlockFigures
from benchmarks.variants import PLAINTEXT, Variant


@dataclass
class Results:
    """Everything that one run measured."""

    variants: list[Variant]
    series: list[Series]
    unlock: UnlockFigures | None
    findings: list[Finding]
    round_count: int
    machine: str


def machine() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("SQLAlchemy", "cryptography", "argon2-cffi"))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    software = f"Python {platform.python_version()}, {packages}, {backend.openssl_version_text()}"
    return f"{processor()}, {os.cpu_count()} cores, load {load:.1f}; {software}"


def processor() -> str:
    """The name that the processor gives itself; `platform.processor()` is empty on most Linux machines."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def sheets(results: Results) -> Iterator[Sheet]:
    for series in results.series:
        for count in sorted({variant.column_count for variant in results.variants}):
            yield cost_sheet(results, series, count)
            yield wall_sheet(results, series, count)
    yield goals_sheet(results)
    if results.series:
        yield bare_sheet(results)
    if results.unlock is not None:
        yield unlock_sheet(results.unlock)
    for finding in results.findings:
        yield from finding.sheets


def cost_sheet(results: Results, series: Series, count: int) -> Sheet:
    lines = []
    for variant in (variant for variant in results.variants if variant.column_count == count):
        figures = [series.figure(variant, operation) for operation in OPERATIONS]
        size = str(series.stored_sizes[variant.name])
        if variant.name == PLAINTEXT:
            totals = [f"{series.plaintext_total(count, operation):.0f} ms" for operation in OPERATIONS]
            lines.append([f"{variant.name}, in all", *totals, size])
        else:
            lines.append([variant.name, *map(cost, figures), size])
    return Sheet(
        f"{title(series, count)}: processor time, µs per value over plaintext (ratio to bare AES-GCM)",
        ["", *OPERATIONS, "bytes for 20"],
        lines,
    )


def wall_sheet(results: Results, series: Series, count: int) -> Sheet:
    lines = []
    for variant in (variant for variant in results.variants if variant.column_count == count):
        if variant.name != PLAINTEXT:
            figures = [series.figure(variant, operation) for operation in OPERATIONS]
            lines.append(
                [variant.name, *("–" if figure is None else f"{figure.wall:.2f}" for figure in figures)]
            )
    return Sheet(f"{title(series, count)}: wall clock, µs per value over plaintext", ["", *OPERATIONS], lines)


def title(series: Series, count: int) -> str:
    columns = "1 column" if count == 1 else f"{count} columns"
    return f"{DATABASE_NAMES[series.database]}, {series.row_count:,} rows, {columns}"


def cost(figure: Figure | None) -> str:
    return "–" if figure is None else f"{figure.cpu:.2f} ({figure.ratio:.1f}×)"


def goals_sheet(results: Results) -> Sheet:
    """The limits of `benchmarks/goals.py` beside the measured figures, on every database."""
    lines = [
        [
            f"{goal.name}, {DATABASE_NAMES[series.database]}",
            f"{found:.2f}",
            f"{goal.limit(series.database):g}",
            goal.verdict(series.database, found),
        ]
        for series in results.series
        for goal in GOALS
        if (found := goal.found(results.variants, series)) is not None
    ]
    lines += [
        [
            f"{limit.name}, {DATABASE_NAMES[finding.database]}",
            f"{found:,.2f}",
            str(limit),
            limit.verdict(found),
        ]
        for finding in results.findings
        for limit in LIMITS
        if limit.limits(finding.benchmark, finding.database, finding.figures)
        for found in [finding.figures[limit.figure]]
    ]
    return Sheet("What is held", ["", "found", "at most", ""], lines)


def bare_sheet(results: Results) -> Sheet:
    lines = [
        [f"AESGCM.{loop}, during {DATABASE_NAMES[series.database]}", f"{series.bare_cost(loop):.2f}"]
        for series in results.series
        for loop in ("encrypt", "decrypt")
    ]
    return Sheet("Bare AES-GCM, the unit of the ratios: µs per call", ["", "µs"], lines)


def unlock_sheet(figures: UnlockFigures) -> Sheet:
    times = {
        "Argon2id alone": figures.argon2id,
        "unlock": figures.unlock,
        "everything but Argon2id": figures.rest,
    }
    lines = [[name, f"{timing.wall:.1f}", f"{timing.cpu:.1f}", ""] for name, timing in times.items()]
    lines += [[name, "", "", str(count)] for name, count in figures.statements.items()]
    return Sheet("Unlocking", ["", "wall ms", "processor ms", "statements"], lines)


def print_tables(results: Results, console: Console) -> None:
    console.print(results.machine)
    for sheet in sheets(results):
        table = Table(title=sheet.title, title_justify="left")
        for number, head in enumerate(sheet.heads):
            table.add_column(head, justify="right" if number else "left", no_wrap=True)
        for line in sheet.lines:
            table.add_row(*line)
        console.print(table)


PAGE = """\
# Benchmarks

<!-- Written by `python -m benchmarks --markdown`; do not edit by hand. -->

What encryption costs on top of a plain `String` column, measured together with the other packages that
encrypt SQLAlchemy columns, in one run and round by round in random order. The ratio compares that cost with
one bare `AESGCM.encrypt` (for inserts) or `AESGCM.decrypt` (for loads) on the same machine in the same
round; it travels better between machines than microseconds do. `plaintext again` is a second plaintext
table: what it shows is the noise of the run. `python -m benchmarks` repeats all of it, and
`benchmarks/README.md` says how to read it. What sharing, server mode and writing for somebody who is locked
cost comes last, in tables of their own. Which limits the library sets itself, and where it misses them, is
under [What is held](#what-is-held).

![Ratio to bare AES-GCM per variant](../_static/benchmarks.svg)

Machine: {machine}.
Medians of {round_count} rounds.
"""


def markdown(results: Results) -> str:
    parts = [PAGE.format(machine=results.machine, round_count=results.round_count)]
    for sheet in sheets(results):
        rows = [sheet.heads, ["---", *["---:"] * (len(sheet.heads) - 1)], *sheet.lines]
        parts.append(
            f"## {sheet.title}\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
        )
    return "\n".join(parts)


def as_json(results: Results) -> dict[str, Any]:
    """Every timing of every round, so that the same run can answer other questions."""
    return {
        "machine": results.machine,
        "rounds": results.round_count,
        "unlock": None if results.unlock is None else asdict(results.unlock),
        "sharing": [asdict(finding) for finding in results.findings],
        "databases": [
            {
                "database": series.database,
                "rows": series.row_count,
                "stored_sizes": series.stored_sizes,
                "bare": series.bare,
                "figures": list(figures(results.variants, series)),
            }
            for series in results.series
        ],
    }


def figures(variants: list[Variant], series: Series) -> Iterator[dict[str, Any]]:
    for variant in variants:
        for operation in OPERATIONS:
            figure = series.figure(variant, operation)
            if figure is not None:
                runs = series.timings[variant.name, variant.column_count, operation]
                yield {
                    "variant": variant.name,
                    "columns": variant.column_count,
                    "operation": operation,
                    "microseconds_per_value": asdict(figure),
                    "seconds": [asdict(run) for run in runs],
                }
