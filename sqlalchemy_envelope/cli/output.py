"""The output of the commands, and their end when the reader is gone, as `head` is after its last line.

The command then prints nothing more, not even on standard error, and exits with 141, like a program that
SIGPIPE ended. A job that moves rows stops after the chunk at hand, as after any signal.
"""

import os
import sys
from collections.abc import Iterable

import click
from rich.console import Console

PIPE_SIGNAL = 13
"""SIGPIPE, which Windows does not have."""


class ReaderGoneError(Exception):
    """Nobody reads standard output any more."""


class PipeConsole(Console):
    """A console that raises `ReaderGoneError` when its reader is gone. Rich itself would end the process with
    1, which means that something is left to do."""

    def on_broken_pipe(self) -> None:
        raise ReaderGoneError


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
    """The group of all commands. If the reader of the output is gone, it ends the program."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except ReaderGoneError:
            silence()
            sys.exit(128 + PIPE_SIGNAL)


def say(text: str) -> None:
    """Print a line.

    Raises:
        ReaderGoneError: nobody reads the output.
    """
    try:
        click.echo(text)
    except BrokenPipeError:
        raise ReaderGoneError from None


def silence() -> None:
    """Send standard output nowhere. Python would otherwise complain at exit about unprinted output."""
    try:
        number = sys.stdout.fileno()
    except OSError:  # standard output is no file, as in a test
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
