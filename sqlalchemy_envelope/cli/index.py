"""`sqlalchemy-envelope index`: blind indexes filled, compared with their values, and taken away.

Each command can be repeated, and goes on where it was interrupted. Exit codes are those of `migrate`.
"""

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from sqlalchemy_envelope import ConfigurationError, MigrationRefusedError
from sqlalchemy_envelope.cli.discovery import discover
from sqlalchemy_envelope.cli.migrate.options import (
    CutOffError,
    Number,
    app_option,
    carry_out,
    complain,
    confirm,
    pace_options,
    with_pace,
)
from sqlalchemy_envelope.cli.migrate.progress import Display, display_for
from sqlalchemy_envelope.cli.migrate.signals import StopSignals
from sqlalchemy_envelope.cli.output import DONE, LEFT, REFUSED, Group, PipeConsole
from sqlalchemy_envelope.migration.database.greenlets import run_apart
from sqlalchemy_envelope.migration.migrator import Migrator
from sqlalchemy_envelope.migration.running.reports import IndexReport
from sqlalchemy_envelope.words import counted

_TOKENS = "Token indexes are left out; fill_tokens() and stale_tokens() keep them"


@dataclass
class _Job:
    """The task of a command.

    Attributes:
        names: the indexes to work on.
        stop: whether a signal asked for the end.
    """

    migrator: Migrator
    names: list[str]
    as_json: bool
    stop: StopSignals

    def each(self, name: str, step: Callable[[str, Display], IndexReport], told: str) -> int:
        """Do a step for each index, and tell its result. A refused index does not end the loop.

        Args:
            name: the name of the step.
            told: what is done to a row, for the text.

        Raises:
            CutOffError: a signal ended the loop, and work is left.
        """
        refused = left = 0
        console = PipeConsole(highlight=False, markup=False)
        with display_for(console, self.stop, as_json=self.as_json) as display:
            for index in self.names:
                if self.stop():
                    raise CutOffError
                display.started(index, name, 1)
                try:
                    report = step(index, display)
                except MigrationRefusedError as error:
                    complain(error)
                    refused += 1
                    continue
                values = {key: value for key, value in vars(report).items() if key != "index"}
                values["seconds"] = round(report.seconds, 3)
                display.finished(index, name, {**values, "is_clean": report.is_clean}, _text(report, told))
                if self.stop() and not report.finished:
                    raise CutOffError
                left += not report.is_clean
        return REFUSED if refused else LEFT if left else DONE


def _text(report: IndexReport, told: str) -> str:
    parts = [f"{report.index}: {counted(report.rows, 'row')} {told}"]
    if report.bad:
        parts.append(f"{report.bad:,} bad, {'; '.join(report.examples)} among them")
    if report.locked:
        parts.append(f"{report.locked:,} that no key here opens")
    if report.pending:
        with_keys = ", with their keys at hand" if report.locked else ""
        cure = "" if told == "filled" else f": index fill{with_keys}"
        parts.append(f"{counted(report.pending, 'value')} without a tag{cure}")
    if not report.finished:
        parts.append("stopped before the end: run it again to go on")
    return ", ".join(parts)


@click.group(cls=Group)
def index() -> None:
    """Fill, check and take away blind indexes while the application runs.

    An INDEX is written table.index; without any, every blind index of the models is meant.

    Exit codes: 0 done, 1 something is left or differs, 2 wrong usage, 3 refused, 4 stopped by the database or
    the machine, 130, 141 or 143 interrupted.
    """


def _in_app(*, declared: bool) -> Callable[[Callable[..., int]], Callable[..., None]]:
    """A command that works on some indexes of the user's application.

    Args:
        declared: whether the models declare them.
    """

    def decorate(body: Callable[..., int]) -> Callable[..., None]:
        @functools.wraps(body)
        def command(app: str, names: tuple[str, ...], as_json: bool, **options: Any) -> None:
            pace = {key: options.pop(key, None) for key in ("load", "chunk_seconds", "patience")}
            found = discover(app, Migrator)
            migrator = with_pace(found.value, pace)
            migrator.reference = found.reference
            with StopSignals() as stop:

                def work() -> int:
                    chosen = _chosen(migrator, names) if declared else list(names)
                    return body(_Job(migrator, chosen, as_json, stop), **options)

                sys.exit(carry_out(stop, lambda: run_apart(migrator.given_engine, work)))

        wrapped: Callable[..., None] = click.option(
            "--patience",
            type=Number(0),
            help="Seconds to wait for locks and a lost connection. [default: the migrator's, 30]",
        )(command)
        wrapped = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(wrapped)
        wrapped = app_option("Where the Migrator is, or a function that makes it.")(wrapped)
        metavar = "[INDEX]..." if declared else "INDEX..."
        return click.argument("names", nargs=-1, metavar=metavar, required=not declared)(wrapped)

    return decorate


def _chosen(migrator: Migrator, names: tuple[str, ...]) -> list[str]:
    try:
        chosen = [migrator.index(name).name for name in names] or migrator.indexes
    except ConfigurationError as error:
        raise click.BadParameter(str(error), param_hint="INDEX") from None
    tokens = "" if names or not migrator.token_indexes else f"{_TOKENS}: {', '.join(migrator.token_indexes)}."
    if not chosen:
        raise click.UsageError(f"The models declare no BlindIndex. {tokens}".strip())
    if tokens:
        click.echo(tokens, err=True)
    return chosen


@index.command()
@click.option("--again", is_flag=True, help="Make every tag anew, and mend those that are wrong.")
@pace_options
@_in_app(declared=True)
def fill(job: _Job, again: bool, workers: int) -> int:
    """Give tags to the values that have none.

    Deploy the release that declares the index before: it writes the tags of new values. Ctrl-C and SIGTERM
    stop it after the chunk at hand, and the next run goes on. Exits with 1 if rows got no tag: no key here
    opens the value, it does not authenticate, the index does not take it, or a unique index has an equal
    value.
    """
    return job.each(
        "index fill",
        lambda name, display: job.migrator.fill_index(
            name, again=again, workers=workers, stop=job.stop, progress=display.progress
        ),
        "filled",
    )


@index.command()
@pace_options
@_in_app(declared=True)
def verify(job: _Job, workers: int) -> int:
    """Decrypt every value, and compare its tag with the stored one.

    Exits with 1 if one differs, as after raw SQL that changed a value, or if a value has no tag, whether or
    not a key here opens it.
    """
    return job.each(
        "index verify",
        lambda name, display: job.migrator.verify_index(
            name, workers=workers, stop=job.stop, progress=display.progress
        ),
        "compared",
    )


@index.command()
@click.option("--label", help="The label that the index was declared with. [default: table.index]")
@click.option(
    "--stopped", is_flag=True, help="Nothing runs that writes the index: the models may declare it."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@_in_app(declared=False)
def drop(job: _Job, label: str | None, stopped: bool, yes: bool) -> int:
    """Take every tag out of an index, and delete its key.

    Backups still have both. Remove the BlindIndex from the models and deploy that before; drop the column
    after it. Asks first. Without a terminal, say --yes.
    """
    if not yes:
        confirm(f"This empties {', '.join(job.names)} and deletes the index key. Go on?")
    return job.each(
        "index drop",
        lambda name, display: job.migrator.drop_index(
            name, label=label, stopped=stopped, stop=job.stop, progress=display.progress
        ),
        "emptied",
    )
