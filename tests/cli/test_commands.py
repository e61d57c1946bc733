"""What all commands have in common: help, version, whole sentences in every list, and silence when nobody
reads on; and the commands that make keys."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from sqlalchemy_envelope import CampaignKeyFile, ServerKeyring
from sqlalchemy_envelope.cli.group import commands
from tests.cli.migrating import PROJECT, Old

COMMAND_LINE = "from sqlalchemy_envelope.cli import main; main()"


def run(*arguments: str) -> Result:
    """The command line in this process, on a terminal of 80 columns."""
    return CliRunner().invoke(commands, [*arguments], prog_name="sqlalchemy-envelope", terminal_width=80)


def every_command(command: click.Command = commands, path: str = "") -> Iterator[tuple[str, click.Command]]:
    """Each group and command under its name, itself first."""
    yield path, command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from every_command(inner, f"{path} {name}".strip())


def test_version() -> None:
    """The version of the installed distribution."""
    assert run("--version").output == f"sqlalchemy-envelope {version('sqlalchemy-envelope')}\n"


def test_short_help_everywhere() -> None:
    """`-h` is `--help`, for every command."""
    for path, _ in every_command():
        assert run(*path.split(), "-h").output == run(*path.split(), "--help").output != ""


def test_lists_show_whole_sentences() -> None:
    """No description in a list of commands is cut off."""
    groups = [(path, one) for path, one in every_command() if isinstance(one, click.Group)]
    for path, group in groups:
        shown = " ".join(run(*path.split(), "-h").output.split())
        for name, inner in group.commands.items():
            sentence = " ".join((inner.help or "").split("\n\n")[0].split()).split(". ")[0].rstrip(".")
            assert f" {name} {sentence}." in shown


def test_page_shows_help() -> None:
    """Every help text on the page is the one that the command prints."""
    page = (PROJECT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    shown = dict(
        re.findall(r"^\$ sqlalchemy-envelope ([a-z ]*?) ?--help\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    )

    assert shown.keys() == dict(every_command()).keys()
    for path, text in shown.items():
        assert text.split() == run(*path.split(), "--help").output.split(), path


def test_keys_are_made(tmp_path: Path) -> None:
    """A server key is a line that a keyring takes; a campaign's is a file, and is never written over."""
    key, path = run("keys", "generate", "server").output, tmp_path / "campaign.key"
    made = run("keys", "generate", "campaign", str(path))
    stored = path.read_bytes()
    again = run("keys", "generate", "campaign", str(path))

    assert len(ServerKeyring.from_text(key).keys_by_id) == 1
    assert CampaignKeyFile(path).reference.startswith("file:")
    assert stored.decode().strip() not in made.output
    assert (made.exit_code, again.exit_code) == (0, 2)
    assert stored == path.read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGPIPE")
@pytest.mark.parametrize(
    "arguments", ["keys generate server", "demo --no-keep --records 10", "migrate status"]
)
def test_closed_pipe_is_silence(template: Old, tmp_path: Path, arguments: str) -> None:
    """When nobody reads the output there is no word on standard error, and the exit code of SIGPIPE."""
    reader, writer = os.pipe()
    os.close(reader)
    more = {"ENVELOPE_APP": "examples.migrate_app"}
    ran = subprocess.run(
        [sys.executable, "-c", COMMAND_LINE, *arguments.split()],
        check=False,
        cwd=tmp_path,
        env=template.environment(**more),
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=60,
    )
    os.close(writer)

    assert (ran.returncode, ran.stderr) == (141, b"")
