"""The output of the commands, and their end when the reader is gone, as `head` is after its last line.

The command then prints nothing more, not even on standard error, and exits with 141, like a program that
SIGPIPE ended. If the output cannot be written for another reason, such as a full disk, the command says so in
a line on standard error, and exits with 4. A job that moves rows stops after the chunk at hand, as after any
signal.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import click
from rich.console import Console

PIPE_SIGNAL = 13
"""SIGPIPE, which Windows does not have."""
DONE, LEFT, REFUSED, STOPPED = 0, 1, 3, 4
"""Exit codes. Click itself exits with 2 for wrong usage."""


class ReaderGoneError(Exception):
    """Nobody reads standard output any more."""


class OutputError(click.ClickException):
    """Standard output cannot be written, or a file cannot be used."""

    exit_code = STOPPED

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the error in a line."""
        silence()
        super().show(file)


class PipeConsole(Console):
    """A console that raises `ReaderGoneError` when its reader is gone. Rich itself would end the process with
    1, which means that something is left to do."""

    def on_broken_pipe(self) -> None:
        raise ReaderGoneError

    def print(self, *objects: Any, **options: Any) -> None:
        """Print.

        Raises:
            ReaderGoneError: nobody reads the output.
            OutputError: the output cannot be written.
        """
        with _writing():
            super().print(*objects, **options)


class Group(click.Group):
    """A group that lists its commands with whole sentences. Click cuts them off at the edge of the screen."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self._described()))

    def _described(self) -> Iterable[tuple[str, str]]:
        for name, command in sorted(self.commands.items()):
            if not command.hidden:
                yield name, command.get_short_help_str(limit=1_000)


class RootGroup(Group):
    """The group of all commands. If the output cannot be written, it ends the program without a traceback."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        """Read the arguments; print the version or the help of the group, if that is asked for."""
        with _without_traceback():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        with _without_traceback():
            return super().invoke(ctx)


def require_output() -> None:
    """Require that there is a standard output, before something is made that is shown once.

    Raises:
        OutputError: it is closed. Click would print nothing, and say nothing.
    """
    if sys.stdout is None:
        raise OutputError("The output cannot be written: standard output is closed.")


def say(text: str) -> None:
    """Print a line.

    Raises:
        ReaderGoneError: nobody reads the output.
        OutputError: the output cannot be written.
    """
    require_output()
    with _writing():
        click.echo(text)


@contextmanager
def _writing() -> Iterator[None]:
    """Tell errors of standard output from all other errors of the work around it."""
    try:
        yield
    except BrokenPipeError:
        raise ReaderGoneError from None
    except OSError as error:
        raise OutputError(_said(error)) from None


@contextmanager
def _without_traceback() -> Iterator[None]:
    """End the program in a line, or in silence if the reader is gone. Click itself prints the help."""
    try:
        yield
    except (ReaderGoneError, BrokenPipeError):
        silence()
        sys.exit(128 + PIPE_SIGNAL)
    except OSError as error:
        raise OutputError(_said(error)) from None


def _said(error: OSError) -> str:
    why = error.strerror or type(error).__name__
    return f"{error.filename}: {why}." if error.filename else f"The output cannot be written: {why}."


def silence() -> None:
    """Send standard output nowhere. Python would otherwise complain at exit about unprinted output."""
    try:
        number = sys.stdout.fileno()
    except (AttributeError, OSError):  # there is no standard output, or it is no file, as in a test
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
