"""`python -m benchmarks`: measure, print, and write what was asked for."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from benchmarks.databases import DATABASES, database, unlocked_owner
from benchmarks.measure import Series, measure
from benchmarks.report import Results, as_json, machine, markdown, print_tables
from benchmarks.unlock import UnlockFigures, measure_unlock
from benchmarks.variants import variants
from sqlalchemy_envelope import Envelope


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000, help="rows per table (default: 20,000)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds per database (default: 9)")
    parser.add_argument("--databases", default="sqlite,postgresql", help="any of sqlite, postgresql")
    parser.add_argument(
        "--quick", action="store_true", help="2,000 rows, 3 rounds, SQLite: does it run at all"
    )
    parser.add_argument(
        "--without-peers", action="store_true", help="only ours, plaintext and the bare cipher"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all timings")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write docs/reference/benchmarks.md")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write docs/_static/benchmarks.svg")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.rounds, options.databases = 2_000, 3, "sqlite"
    options.databases = options.databases.split(",")
    if unknown := set(options.databases) - set(DATABASES):
        parser.error(f"no such database: {', '.join(sorted(unknown))}")
    return options


def run(options: argparse.Namespace, progress: Callable[[str], None]) -> Results:
    envelope, measured = Envelope(), variants(peers=not options.without_peers)
    series: list[Series] = []
    unlock: UnlockFigures | None = None
    started_on = machine()
    for name in options.databases:
        with database(name) as engine:
            if unlock is None:
                progress("unlocking")
                unlock = measure_unlock(engine, envelope, options.rounds)
            with unlocked_owner(engine, envelope) as user_id:
                series.append(measure(engine, measured, options.rows, options.rounds, user_id, progress))
    assert unlock is not None
    return Results(measured, series, unlock, options.rounds, started_on)


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
        results = run(options, status.update)
    print_tables(results, console)
    write(options, results)


if __name__ == "__main__":
    main()
