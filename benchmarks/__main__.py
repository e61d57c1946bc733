"""`python -m benchmarks`: measure, print, and write the files that the arguments name."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from sqlalchemy import Engine
from sqlalchemy.util import greenlet_spawn

from benchmarks import (
    bench_migration,
    blind_indexes,
    groups,
    key_rotation,
    locked_writes,
    plain_statements,
    rotation,
    serving,
    several,
    tickets,
)
from benchmarks.databases import DATABASES, SAME_DATABASE, database, unlocked_owner
from benchmarks.measure import Series, measure
from benchmarks.report import Results, as_json, machine, markdown, print_tables
from benchmarks.sheets import Finding
from benchmarks.unlock import UnlockFigures, measure_unlock
from benchmarks.variants import variants
from sqlalchemy_envelope import Envelope

HOT, UNLOCK = "values", "unlock"
SHARING = [
    module.NAME
    for module in (
        groups,
        locked_writes,
        serving,
        several,
        rotation,
        key_rotation,
        plain_statements,
        tickets,
        blind_indexes,
    )
]
PARTS = [HOT, UNLOCK, *SHARING, bench_migration.NAME]
ROWS, MIGRATION_ROWS = 20_000, 1_000_000


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--rows", type=int, help=f"rows per table (default: {ROWS:,}; to migrate {MIGRATION_ROWS:,})"
    )
    parser.add_argument("--rounds", type=int, default=9, help="rounds per database (default: 9)")
    parser.add_argument("--databases", default=",".join(DATABASES), help=f"any of {', '.join(DATABASES)}")
    parser.add_argument("--only", default=",".join(PARTS), help=f"any of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="few rows, 3 rounds, SQLite: does it run at all")
    parser.add_argument(
        "--without-peers", action="store_true", help="only ours, plaintext and the bare cipher"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all timings")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write docs/reference/benchmarks.md")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write docs/_static/benchmarks.svg")
    options = parser.parse_args()
    if options.quick:
        options.rounds = 3
        if options.only != bench_migration.NAME:
            options.databases = "sqlite"
    options.databases, options.only = options.databases.split(","), options.only.split(",")
    if unknown := set(options.databases) - set(DATABASES):
        parser.error(f"no such database: {', '.join(sorted(unknown))}")
    if unknown := set(options.only) - set(PARTS):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    if options.plot and HOT not in options.only:
        parser.error(f"--plot draws what --only={HOT} measures")
    options.migration_rows = options.rows or (50_000 if options.quick else MIGRATION_ROWS)
    options.rows = options.rows or (2_000 if options.quick else ROWS)
    return options


def run(options: argparse.Namespace, progress: Callable[[str], None]) -> Results:
    envelope, measured = Envelope(), variants(peers=not options.without_peers)
    series: list[Series] = []
    unlock: UnlockFigures | None = None
    findings: list[Finding] = []
    started_on = machine()
    for name in options.databases:
        with database(name) as engine:
            if unlock is None and UNLOCK in options.only:
                progress("unlocking")
                unlock = measure_unlock(engine, envelope, options.rounds)
            if HOT in options.only:
                with unlocked_owner(engine, envelope) as user_id:
                    series.append(
                        measure(name, engine, measured, options.rows, options.rounds, user_id, progress)
                    )
            if name in SAME_DATABASE:
                continue
            for part in SHARING:
                if part in options.only:
                    progress(f"{name}: {part}")
                    findings.append(measure_sharing(part, engine, options))
            if bench_migration.NAME in options.only:
                progress(f"{name}: {bench_migration.NAME}")
                rounds = 1 if options.quick else min(options.rounds, 3)
                findings.append(bench_migration.measure_migration(engine, options.migration_rows, rounds))
    return Results(measured, series, unlock, findings, options.rounds, started_on)


def measure_sharing(part: str, engine: Engine, options: argparse.Namespace) -> Finding:
    """Run one benchmark of sharing or of plain statements, at the size of its goal or, with `--quick`, at a
    small size."""
    rounds, quick = options.rounds, options.quick
    if part == groups.NAME:
        sizes = groups.Sizes(5, 3, rounds) if quick else groups.Sizes(50, 20, rounds)
        return groups.measure_groups(engine, sizes)
    if part == locked_writes.NAME:
        return locked_writes.measure_locked_writes(engine, 4_000 if quick else 100_000)
    if part == serving.NAME:
        return serving.measure_serving(engine, 500 if quick else 10_000, rounds)
    if part == several.NAME:
        return several.measure_several(engine, options.rows, rounds)
    if part == plain_statements.NAME:
        return plain_statements.measure_plain_statements(engine, 400 if quick else 4_000, rounds)
    if part == tickets.NAME:
        return tickets.measure_tickets(engine, rounds, 0.2 if quick else 2.0)
    if part == blind_indexes.NAME:
        return blind_indexes.measure_blind_indexes(
            engine, 5_000 if quick else 1_000_000, options.rows, rounds
        )
    if part == key_rotation.NAME:
        return key_rotation.measure_key_rotation(engine, 2_000 if quick else 100_000)
    members, rows = (20, 1_000) if quick else (1_000, 100_000)
    return rotation.measure_rotation(engine, members, rows, rounds)


def write(options: argparse.Namespace, results: Results) -> None:
    if options.json:
        options.json.write_text(json.dumps(as_json(results), indent=1))
    if options.markdown:
        options.markdown.write_text(markdown(results), encoding="utf-8")
    if options.plot:
        from benchmarks.plot import plot

        plot(results, options.plot)


def main() -> None:
    options = arguments()
    console = Console(width=None if Console().is_terminal else 150)
    with console.status("starting") as status:
        # In a greenlet: asyncpg needs it, and the other drivers do not notice it.
        results = asyncio.run(greenlet_spawn(run, options, status.update))
    print_tables(results, console)
    write(options, results)


if __name__ == "__main__":
    main()
