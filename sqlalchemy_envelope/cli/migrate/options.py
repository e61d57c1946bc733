"""The common parts of the commands of `migrate`: options, errors in a line, exit codes."""

import functools
import json
import math
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import click
from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from sqlalchemy_envelope import ConfigurationError, EnvelopeError, MigrationRefusedError
from sqlalchemy_envelope.cli.discovery import discover
from sqlalchemy_envelope.cli.migrate.signals import StopSignals
from sqlalchemy_envelope.cli.output import (
    DONE,
    LEFT,
    REFUSED,
    STOPPED,
    OutputError,
    PipeConsole,
    ReaderGoneError,
    say,
)
from sqlalchemy_envelope.migration.database.faults import advice
from sqlalchemy_envelope.migration.database.greenlets import run_apart
from sqlalchemy_envelope.migration.migrator import Migrator


class CutOffError(Exception):
    """A signal ended the work before all of it was done."""


@dataclass
class Job:
    """The task of a command, and the objects that it works with.

    Attributes:
        columns: the names of the columns to work on; `named` if the user gave them.
        stop: whether a signal asked for the end.
    """

    migrator: Migrator
    columns: list[str]
    named: bool
    as_json: bool
    stop: StopSignals
    console: Console

    def print_json(self, value: Any) -> None:
        """Print a JSON document."""
        say(json.dumps(value, indent=2, default=str))

    def each(self, step: Callable[[str], bool]) -> int:
        """Run the step for each column, even after a refused column. A signal ends it before the next column.

        Raises:
            CutOffError: a signal ended the loop, and work is left.
        """
        refused = left = 0
        for name in self.columns:
            if self.stop():
                raise CutOffError
            try:
                done = step(name)
            except MigrationRefusedError as error:
                complain(error)
                refused += 1
                continue
            if self.stop() and not done:
                raise CutOffError
            left += not done
        return REFUSED if refused else LEFT if left else DONE

    def for_each(self, step: Callable[[str], None], text: str) -> int:
        """Run a short step for each column, and print `text` for it."""
        done: list[str] = []

        def one(name: str) -> bool:
            step(name)
            done.append(name)
            if not self.as_json:
                say(f"{name}: {text}")
            return True

        code = self.each(one)
        if self.as_json:
            self.print_json({"done": done})
        return code


class Number(click.FloatRange):
    """A number in a range. Python reads "nan" and "inf" as numbers too, and no comparison refuses "nan"."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number that was given."""
        found = float(super().convert(value, param, ctx))
        if not math.isfinite(found):
            self.fail(f"{value} is no finite number.", param, ctx)
        return found


def pace_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options for how hard the migration works; they override the migrator's `pace`."""
    for option in (
        click.option(
            "--chunk-seconds",
            type=Number(0, min_open=True),
            help="How long a chunk, and with it a row lock, should last. [default: the migrator's, 0.1]",
        ),
        click.option(
            "--load",
            type=Number(0, 1, min_open=True),
            help="The share of time in which it works; it rests in between. [default: the migrator's, 1]",
        ),
        click.option(
            "--workers",
            type=click.IntRange(1),
            default=1,
            show_default=True,
            help="Processes that work side by side.",
        ),
    ):
        command = option(command)
    return command


def in_app(
    *, patience: bool = False, long: bool = False, forgotten: bool = False, none: bool = False
) -> Callable[[Callable[..., int]], Callable[..., None]]:
    """A command that works in the user's application, on some of its columns.

    Args:
        patience: whether the command waits for locks.
        long: whether the command can be stopped after a chunk; other commands are interrupted at once.
        forgotten: whether the command includes columns that lost `previous=` in the models too early.
        none: whether the command has a report even if no column is being moved.
    """

    def decorate(body: Callable[..., int]) -> Callable[..., None]:
        @functools.wraps(body)
        def command(app: str, columns: tuple[str, ...], as_json: bool, **options: Any) -> None:
            pace = {key: options.pop(key, None) for key in ("load", "chunk_seconds", "patience")}
            found = discover(app, Migrator)
            migrator = with_pace(found.value, pace)
            migrator.reference = found.reference
            with StopSignals(at_once=not long) as stop:

                def work() -> int:
                    names = _names(migrator, columns, forgotten=forgotten, none=none)
                    return body(Job(migrator, names, bool(columns), as_json, stop, _console()), **options)

                sys.exit(carry_out(stop, lambda: run_apart(migrator.given_engine, work)))

        wrapped: Callable[..., None] = command
        if patience:
            wrapped = click.option(
                "--patience",
                type=Number(0),
                help="Seconds to wait for locks and a lost connection. [default: the migrator's, 30]",
            )(wrapped)
        wrapped = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(wrapped)
        wrapped = app_option("Where the Migrator is, or a function that makes it.")(wrapped)
        return click.argument("columns", nargs=-1, metavar="[COLUMN]...")(wrapped)

    return decorate


def with_pace(migrator: Migrator, pace: Mapping[str, Any]) -> Migrator:
    """The migrator, with these options in place of its own pace."""
    given = {key: value for key, value in pace.items() if value is not None}
    migrator.pace = replace(migrator.pace, **given)
    return migrator


def app_option(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--app`."""
    return click.option(
        "--app", required=True, envvar="ENVELOPE_APP", show_envvar=True, metavar="MODULE:OBJECT", help=text
    )


def carry_out(stop: StopSignals, work: Callable[[], int]) -> int:
    """Do the work, and return the exit code. Any error becomes a line on standard error."""
    try:
        return _written(stop, work())
    except CutOffError:
        return _written(stop, stop.exit_code)
    except KeyboardInterrupt:
        if not stop():
            raise
        return stop.exit_code
    except (click.ClickException, click.Abort, ReaderGoneError):
        raise
    except ConfigurationError as error:
        raise click.UsageError(in_shell_words(str(error))) from None
    except MigrationRefusedError as error:
        complain(error)
        return REFUSED
    except EnvelopeError as error:
        complain(error)
    except SQLAlchemyError as error:
        complain(f"{advice(error)}.")
    except Exception as error:  # noqa: BLE001 - the error's own words might quote a value
        frame = traceback.extract_tb(error.__traceback__)[-1]
        complain(f"{advice(error)} ({frame.filename}, line {frame.lineno}).")
    return stop.exit_code if stop() else STOPPED


def _written(stop: StopSignals, code: int) -> int:
    """The exit code of work that came to its end, if all of its output was written."""
    if isinstance(stop.unwritten, OutputError):
        raise stop.unwritten
    return code


def confirm(question: str) -> None:
    """Ask on the terminal.

    Raises:
        MigrationRefusedError: there is no terminal.
        click.Abort: the answer is no.
    """
    if not sys.stdin.isatty():
        raise MigrationRefusedError(f"{question} There is no terminal to ask at: say --yes.")
    click.confirm(question, abort=True, err=True)


_SHELL_WORDS = (
    (r"\baccept_locked=(\d+)", r"--accept-locked \1"),
    (r"\baccept_sample=True", "--accept-sample"),
    (r"\bstopped=True", "--stopped"),
    (r'\bclose\("shred", confirm=(\d+)\)', r"`campaign close --unclaimed shred --confirm \1`"),
    (r'\bclose\("([\w:]+)"(?:, \.\.\.)?\)', r"--unclaimed \1"),
)
"""Advice in Python from error messages, and the same advice as options of the shell."""


def in_shell_words(advice: str) -> str:
    """The same advice with the options of the command line."""
    for python, shell in _SHELL_WORDS:
        advice = re.sub(python, shell, advice)
    return advice


def complain(what: object) -> None:
    """Print a line on standard error, as long as somebody reads it."""
    try:
        click.echo(f"Error: {in_shell_words(str(what))}", err=True)
    except OSError:
        pass


def _names(migrator: Migrator, given: tuple[str, ...], *, forgotten: bool, none: bool) -> list[str]:
    try:
        names = [migrator.column(name).name for name in given]
        if not names:
            columns = [*migrator.columns, *(migrator.leftovers() if forgotten else ())]
            names = sorted(one.name for one in columns)
    except ConfigurationError as error:
        raise click.BadParameter(str(error), param_hint="COLUMN") from None
    early = [] if names or none else migrator.forgotten()
    if early:
        raise click.UsageError(migrator.put_back(early))
    if not names and not none:
        nothing()
    return names


def nothing() -> NoReturn:
    """Report that no column is being moved.

    Raises:
        click.UsageError: always.
    """
    raise click.UsageError("No column is being moved: no EncryptedType of these models has `previous=`.")


def _console() -> Console:
    return PipeConsole(highlight=False, markup=False)
