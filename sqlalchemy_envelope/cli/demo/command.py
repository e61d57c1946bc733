"""`sqlalchemy-envelope demo`: the library's claims, computed before your eyes on a file of your own.

The report goes to standard output. The exit code is 0 if every claim held and else 1, so a build may run it.
"""

import io
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter

import click
from rich.console import Console
from rich.panel import Panel
from rich.syntax import Syntax
from rich.text import Text
from sqlalchemy.exc import SQLAlchemyError

from sqlalchemy_envelope import Envelope, EnvelopeError
from sqlalchemy_envelope.cli.demo.attacks import deletion, new_secret, tampering
from sqlalchemy_envelope.cli.demo.clinic import Clinic, is_demo_file
from sqlalchemy_envelope.cli.demo.reading import (
    enrolment,
    file_contents,
    other_owner_reads,
    owner_reads,
    wrong_secret,
)
from sqlalchemy_envelope.cli.demo.report import Report
from sqlalchemy_envelope.cli.output import PipeConsole

FILE_NAME = "envelope-demo.db"
WIDEST = 120
STEPS: tuple[Callable[[Clinic], Report], ...] = (
    enrolment,
    file_contents,
    owner_reads,
    other_owner_reads,
    wrong_secret,
    tampering,
    new_secret,
    deletion,
)
PICTURED = (1, 3, 7)
LINES = (
    "note: Mapped[str] = mapped_column(EncryptedType(Text))",
    "with envelope.unlock(session, person, secret=secret) as unlocked:",
    "entries = session.scalars(select(Entry).filter_by(person=person)).all()",
)
"""The lines that do the work, as they stand in the demo's own source. A test compares them."""


@click.command()
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=".",
    help=f"Where to make {FILE_NAME}; the current folder if not given.",
)
@click.option(
    "--keep/--no-keep", default=True, show_default=True, help="Leave the file for you to look into."
)
@click.option("--pause", is_flag=True, help="Wait for a key after each step.")
@click.option(
    "--records", type=click.IntRange(10, 20_000), default=300, show_default=True, help="Entries to write."
)
@click.option("--export-svg", type=click.Path(dir_okay=False, path_type=Path), hidden=True)
def demo(folder: Path, keep: bool, pause: bool, records: int, export_svg: Path | None) -> None:
    """Show on a throwaway SQLite file what the library promises.

    Two people, a few hundred journal entries, step by step. Every claim is computed as you watch; the exit
    code is 1 if one does not hold.
    """
    path = folder / FILE_NAME
    if path.exists() or path.is_symlink():
        if not is_demo_file(path):
            raise click.ClickException(
                f"{path} is there already and is no file of this demo; it was left alone."
            )
        path.unlink()
    console = _console()
    try:
        reports = run(path, console, STEPS, Envelope(), records, pause=pause)
    finally:
        if not keep:
            path.unlink(missing_ok=True)
    if keep:
        console.print(Text(f"{path} is yours to look into; the next run replaces it."), style="dim")
    if export_svg is not None:
        _export(reports, export_svg)
    sys.exit(0 if all(report.held for report in reports) else 1)


def run(
    path: Path,
    console: Console,
    steps: Iterable[Callable[[Clinic], Report]],
    envelope: Envelope,
    records: int,
    *,
    pause: bool = False,
) -> list[Report]:
    """Run the steps on a new file. A step that cannot finish ends the demo, and counts as a failed claim."""
    started = perf_counter()
    clinic = Clinic(path, envelope, records)
    reports: list[Report] = []
    try:
        for step in steps:
            reports.append(_report(step, clinic))
            console.print(reports[-1].panel(len(reports) - 1, console))
            console.print()
            if reports[-1].unfinished:
                break
            if pause:
                click.pause()
    finally:
        clinic.engine.dispose()
    claims = [held for report in reports for held, _ in report.claims]
    verdict = f"{sum(claims)} of {len(claims)} claims held, in {perf_counter() - started:.1f} s."
    if all(claims):
        console.print(_ending(len(reports)))
        console.print()
    console.print(Text(verdict, style="bold green" if all(claims) else "bold red"))
    return reports


def _report(step: Callable[[Clinic], Report], clinic: Clinic) -> Report:
    try:
        return step(clinic)
    except (EnvelopeError, SQLAlchemyError) as error:
        what = f"{step.__name__} could not be finished: {type(error).__name__}: {error}"
        return Report("The demo ends here", claims=[(False, what)], unfinished=True)


def _ending(number: int) -> Panel:
    declaration, unlock, read = LINES
    code = Syntax(
        f"{declaration}\n{unlock}\n    {read}",
        "python",
        theme="ansi_dark",
        background_color="default",
        word_wrap=True,
    )
    title = Text(f" {number}  The three lines that did it ", style="bold")
    return Panel(code, title=title, title_align="left", border_style="cyan")


def _console() -> Console:
    # A pipe may have an encoding without characters beyond ASCII: write question marks, do not fail.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    console = PipeConsole(highlight=False)
    console.width = min(console.width, WIDEST)
    return console


def _export(reports: list[Report], path: Path) -> None:
    """Save some of the panels as a picture. It uses the reader's own font, so that it fetches nothing."""
    console = Console(record=True, file=io.StringIO(), width=84, highlight=False)
    console.print(Text("$ sqlalchemy-envelope demo", style="bold"))
    for number in PICTURED:
        console.print()
        console.print(reports[number].panel(number, console))
    svg = console.export_svg(title="sqlalchemy-envelope demo", unique_id="demo")
    path.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL), encoding="utf-8")
