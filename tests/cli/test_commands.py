"""What all commands have in common: help, version, whole sentences in every list, silence when nobody reads
on, a line when the output cannot be written; and the commands that make keys."""

import math
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

from sqlalchemy_envelope import CampaignKeyFile, ConfigurationError, ServerKeyring
from sqlalchemy_envelope.cli.group import commands
from sqlalchemy_envelope.cli.migrate.options import carry_out
from sqlalchemy_envelope.cli.migrate.progress import Lines
from sqlalchemy_envelope.cli.migrate.report import run_text
from sqlalchemy_envelope.cli.migrate.signals import StopSignals
from sqlalchemy_envelope.cli.output import OutputError
from sqlalchemy_envelope.migration import Pace
from sqlalchemy_envelope.migration.running.reports import RunReport
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
        re.findall(r"^\$ sqlalchemy-envelope ([a-z -]*?) ?--help\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(
    "arguments", ["keys generate server", "keys --help", "--version", "demo --no-keep --records 10"]
)
def test_full_disk_is_a_line(tmp_path: Path, arguments: str) -> None:
    """When the output cannot be written there is one line on standard error, and the exit code of a stop."""
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [sys.executable, "-c", COMMAND_LINE, *arguments.split()],
            check=False,
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
            text=True,
        )

    assert ran.stderr == "Error: The output cannot be written: No space left on device.\n"
    assert ran.returncode == 4


def test_full_disk_stops_a_job(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A job whose output cannot be written is told to stop, and the command then ends with the error."""

    def fail(text: str) -> None:
        raise OutputError("The output cannot be written: No space left on device.")

    monkeypatch.setattr("sqlalchemy_envelope.cli.migrate.progress.say", fail)
    with StopSignals() as stop:
        Lines(stop).started("notes.body", "backfill", 1)

        assert stop()
        with pytest.raises(OutputError, match="No space left"):
            carry_out(stop, lambda: 1)


@pytest.mark.parametrize("option", ["run --load", "run --chunk-seconds", "run --patience", "verify --sample"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "many"])
def test_numbers_are_finite(option: str, value: str) -> None:
    """Each option for a number refuses what is no number in its range, and names itself."""
    ran = run("migrate", *option.split(), value, "--app", "never.imported")

    assert (ran.exit_code, f"Invalid value for '{option.split()[1]}'" in ran.output) == (2, True)


@pytest.mark.parametrize("value", [math.nan, -1.0])
@pytest.mark.parametrize("name", ["load", "chunk_seconds", "patience"])
def test_pace_is_a_number(name: str, value: float) -> None:
    """A `Pace` written in Python refuses what no job could keep to."""
    with pytest.raises(ConfigurationError, match=name):
        Pace(**{name: value})


@pytest.mark.parametrize(
    ("rows", "earlier", "late", "text"),
    [
        (1, 0, 0, "1 row encrypted; none left"),
        (450, 0, 2, "450 rows encrypted, 2 of them late; none left"),
        (450, 450, 0, "0 rows encrypted now, 450 by earlier runs; none left"),
        (1450, 1000, 0, "450 rows encrypted now, 1,000 by earlier runs; none left"),
    ],
)
def test_run_tells_its_own_rows(rows: int, earlier: int, late: int, text: str) -> None:
    """A run tells the rows that it encrypted from those of earlier runs."""
    report = RunReport("notes.body", rows, late, 0, 0, True, 1.0, earlier)

    assert f"notes.body: {text}. Next: migrate verify" == run_text(report, interrupted=False)
