"""`sqlalchemy-envelope migrate`: the steps of a migration, from the plan to the last previous column dropped.

Exit codes: 0 done; 1 something is left to do; 2 wrong usage; 3 refused, since something would be lost;
4 stopped by the database or the machine; 130, 141 and 143 interrupted, after a clean stop.
"""

from collections.abc import Callable, Iterator
from typing import Any

import click

from sqlalchemy_envelope.cli.migrate.options import (
    Job,
    Number,
    confirm,
    in_app,
    nothing,
    pace_options,
)
from sqlalchemy_envelope.cli.migrate.progress import Display, display_for
from sqlalchemy_envelope.cli.migrate.report import (
    reverse_text,
    run_text,
    show_findings,
    show_status,
    show_undeclared,
    status_values,
    verify_text,
)
from sqlalchemy_envelope.cli.output import DONE, LEFT, Group
from sqlalchemy_envelope.migration.database.record import standings
from sqlalchemy_envelope.migration.inspection.residue import Residue, where_plaintext_remains
from sqlalchemy_envelope.migration.migrator import Migrator
from sqlalchemy_envelope.migration.running.reports import RunReport
from sqlalchemy_envelope.words import counted


@click.group(cls=Group)
def migrate() -> None:
    """Move plaintext into encrypted columns while the application runs.

    A COLUMN is written table.attribute; without any, every column with a PreviousColumn is meant. In order:
    plan, run, verify, cutover, guard, contract; each can be repeated, and goes on where it was interrupted.

    Exit codes: 0 done, 1 something is left to do, 2 wrong usage, 3 refused, 4 stopped by the database or the
    machine, 130, 141 or 143 interrupted.
    """


@migrate.command()
@in_app()
def plan(job: Job) -> int:
    """Find what will hurt, and change nothing.

    Server defaults, indexes, constraints, triggers, views, generated columns, missing keys. Exits with
    1 if something has to be dealt with first.
    """
    found = [(name, job.migrator.plan(name)) for name in job.columns]
    if job.as_json:
        job.print_json({"columns": [{"column": n, "findings": [vars(one) for one in f]} for n, f in found]})
    else:
        for name, findings in found:
            show_findings(job.console, name, findings)
    stops = any(one.severity == "stops" for _, findings in found for one in findings)
    return LEFT if stops else DONE


@migrate.command()
@in_app(patience=True)
def expand(job: Job) -> int:
    """Add the encrypted column, and watch for old writers.

    run does this too. Use expand to do it beforehand.
    """
    return job.for_each(
        lambda name: job.migrator.expand(name), "the encrypted column is there, and old writers are noticed"
    )


@migrate.command()
@pace_options
@in_app(patience=True, long=True, forgotten=True)
def run(job: Job, workers: int) -> int:
    """Encrypt every row that is not encrypted yet.

    Rows that old writers write meanwhile are found and encrypted too. Ctrl-C and SIGTERM stop it after the
    chunk at hand, and the next run goes on from there; a second one ends it at once, and that chunk is
    rolled back. With --json: one event a line.
    """

    def one(name: str, display: Display) -> bool:
        display.started(name, "backfill", workers)
        report = job.migrator.run(name, workers=workers, stop=job.stop, progress=display.progress)
        text = run_text(report, interrupted=job.stop())
        display.finished(name, "backfill", _outcome(report, job), text)
        return report.finished

    return _long(job, one)


@migrate.command()
@click.option(
    "--sample",
    type=Number(0, 1, min_open=True),
    help="Look at this share of the rows, chosen at random, and not at all of them.",
)
@pace_options
@in_app(patience=True, long=True, forgotten=True)
def verify(job: Job, workers: int, sample: float | None) -> int:
    """Decrypt every value, and compare it with the previous one.

    Exits with 1 if one differs, or rows are not encrypted yet.
    """

    def one(name: str, display: Display) -> bool:
        display.started(name, "verify", workers)
        report = job.migrator.verify(
            name, sample=sample, workers=workers, stop=job.stop, progress=display.progress
        )
        cut_off = job.stop() and not report.finished
        outcome = {**_outcome(report, job), "is_clean": report.is_clean}
        text = verify_text(report, job.migrator.phase(name), interrupted=cut_off)
        display.finished(name, "verify", outcome, text)
        return report.is_clean

    return _long(job, one)


@migrate.command()
@click.option("--residue", is_flag=True, help="List every place where plaintext lies, with its cure.")
@in_app(forgotten=True, none=True)
def status(job: Job, residue: bool) -> int:
    """Show how far each column is, in five lines.

    Also of columns that are done, whose models declare no previous column any more. Exits with 1 while rows
    are to be encrypted, or a verification found differences. Counts the rows. With --json the places where
    plaintext lies are always in it.
    """
    values, is_left = [], False
    for name in job.columns:
        now, residues = job.migrator.status(name), _residues(job.migrator, name)
        is_left = is_left or bool(now.pending or now.mismatches)
        values.append(status_values(now, residues))
        if not job.as_json:
            show_status(job.console, now, residues, listed=residue)
    if not job.named:
        for name, phase, residues in _undeclared(job.migrator):
            values.append({"column": name, "phase": phase, "plaintext": [vars(one) for one in residues]})
            if not job.as_json:
                show_undeclared(job.console, name, phase, residues, listed=residue)
    if not values:
        nothing()
    if job.as_json:
        job.print_json({"columns": values})
    return LEFT if is_left else DONE


def _acceptance(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option(
        "--accept-locked",
        type=click.IntRange(0),
        default=0,
        metavar="N",
        help="Go on although N values could not be verified: only their owners hold the keys.",
    )(command)
    return click.option("--accept-sample", is_flag=True, help="Go on although only a sample was verified.")(
        command
    )


@migrate.command()
@_acceptance
@in_app(patience=True)
def cutover(job: Job, accept_sample: bool, accept_locked: int) -> int:
    """Make the encrypted column the only one that counts.

    The previous column may be empty from here on. Refused while rows are left, or without a clean
    verification. Deploy the policy "read" after it.
    """
    return job.for_each(
        lambda name: job.migrator.cutover(name, accept_sample=accept_sample, accept_locked=accept_locked),
        "cut over. Deploy the policy 'read', then 'refuse'; then migrate guard",
    )


@migrate.command()
@_acceptance
@in_app(patience=True)
def guard(job: Job, accept_sample: bool, accept_locked: int) -> int:
    """Let the database refuse plaintext.

    Refused while rows are left, or without a clean verification. After it, remove `previous=` from the
    models, deploy that, and contract.
    """
    return job.for_each(
        lambda name: job.migrator.guard(name, accept_sample=accept_sample, accept_locked=accept_locked),
        "plaintext is refused. Remove `previous=` from the model and deploy that; then migrate contract",
    )


@migrate.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--stopped", is_flag=True, help="No program of the application runs, so the models may be old.")
@_acceptance
@in_app(patience=True, forgotten=True)
def contract(job: Job, yes: bool, stopped: bool, accept_sample: bool, accept_locked: int) -> int:
    """Drop the previous column. There is no way back after it.

    Refused while the models declare it: programs that run with them would fail. Asks first. Without a
    terminal, say --yes.
    """
    if not yes:
        confirm(f"This drops the previous column of {', '.join(job.columns)}, and cannot be undone. Go on?")
    return job.for_each(
        lambda name: job.migrator.contract(
            name, accept_sample=accept_sample, accept_locked=accept_locked, stopped=stopped
        ),
        "the previous column is dropped. Where plaintext still lies: migrate status --residue",
    )


@migrate.command()
@in_app(long=True)
def repair(job: Job) -> int:
    """Repair the rows that a verification found.

    Before the cut-over the previous value counts, and the next run encrypts it. After the cut-over the
    encrypted value counts, where it authenticates. Find out first who wrote those rows.
    """

    def one(name: str) -> bool:
        report = job.migrator.repair(name, stop=job.stop)
        if not job.as_json:
            done = counted(report.rows, "row")
            job.console.print(f"{name}: {done} put right, {report.locked:,} without a key here")
        return report.finished and not report.locked

    left = job.each(one)
    if job.as_json:
        job.print_json({"done": job.columns} if left == DONE else {"done": []})
    return left


@migrate.command()
@click.option("--drop", is_flag=True, help="Drop the encrypted column too, when every value is back.")
@pace_options
@in_app(patience=True, long=True)
def reverse(job: Job, workers: int, drop: bool) -> int:
    """Move every value back to the previous column.

    Nothing that was written since is lost. Deploy the policy "both" before it. Possible until contract.
    """

    def one(name: str, display: Display) -> bool:
        display.started(name, "reverse", workers)
        report = job.migrator.reverse(
            name, workers=workers, stop=job.stop, progress=display.progress, drop=drop
        )
        text = reverse_text(report, interrupted=job.stop(), dropped=drop)
        display.finished(name, "reverse", _outcome(report, job), text)
        return report.finished

    return _long(job, one)


def _long(job: Job, one: Callable[[str, Display], bool]) -> int:
    with display_for(job.console, job.stop, as_json=job.as_json) as display:
        return job.each(lambda name: one(name, display))


def _outcome(report: Any, job: Job) -> dict[str, Any]:
    values = {key: value for key, value in vars(report).items() if key != "column"}
    if isinstance(report, RunReport):
        values["seconds"] = round(report.seconds, 3)
    return {**values, "interrupted": job.stop() and not report.finished}


def _residues(migrator: Migrator, name: str) -> list[Residue]:
    with migrator.engine.connect() as connection:
        return where_plaintext_remains(connection, migrator.column(name))


def _undeclared(migrator: Migrator) -> Iterator[tuple[str, str, list[Residue]]]:
    """Migrations of columns without `previous=` in the models, as is right after the last step."""
    known = {one.name for one in migrator.columns}
    tables = {table.name: table for table in migrator.base.metadata.tables.values()}
    with migrator.engine.connect() as connection:
        for name, standing in sorted(standings(connection).items()):
            table = tables.get(name.rpartition(".")[0])
            if name not in known and table is not None:
                residues = where_plaintext_remains(connection, table, standing.previous)
                yield name, standing.phase.value, residues
