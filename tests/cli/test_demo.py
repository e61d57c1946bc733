"""The demo runs as a person would run it, and what it says is true of the file it leaves behind."""

import inspect
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from io import StringIO
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.cells import cell_len
from rich.console import Console

import sqlalchemy_envelope
from sqlalchemy_envelope import Envelope, KdfProfile
from sqlalchemy_envelope.cli.demo import attacks, clinic, command, models, reading
from sqlalchemy_envelope.cli.demo.clinic import GRACE, Clinic
from sqlalchemy_envelope.cli.demo.report import Report

Step = Callable[[Clinic], Report]

PROJECT = Path(sqlalchemy_envelope.__file__).parents[1]
CLAIMS = [
    "300 entries of 12 encrypted columns each are in envelope-demo.db",
    "a guess costs what it should: Argon2id, 64 MiB, 3 passes",
    "known plaintexts of 6 bytes or more searched for: 0 found",
    "the same search does find Ada Lovelace and Grace Hopper",
    "1,800 values read, equal to what was written, types and all",
    "Ada Lovelace's rows load, and 1,800 of 1,800 values in them stay locked",
    "her own open: 1,800 of 1,800 values",
    "2 of 2 guesses refused",
    "3 of 3 alterations refused, no wrong value handed out",
    "put back as they were, the same values open again",
    "bytes of data touched",
    "bytes written in 1 key row",
    "the old secret gets UnlockError, the new one opens",
    "0 key rows of hers are left",
    "2 wrapped keys of hers were in the file, 0 are",
    "0 of 1,800 values open (LockedError)",
    "Grace Hopper's 150 entries open as before",
]


def run_demo(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder, in a process of its own."""
    arguments = [sys.executable, "-m", "sqlalchemy_envelope.cli", "demo", *options]
    settings = {
        **os.environ,
        "PYTHONPATH": str(PROJECT),
        "PYTHONIOENCODING": "utf-8",
        "NO_COLOR": "1",
        **environment,
    }
    return subprocess.run(
        arguments,
        check=False,
        cwd=folder,
        env=settings,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )


def words(output: str) -> str:
    """What was printed, without frames and line breaks."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", output).split())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """One run with nothing but the defaults: its file, and how it went."""
    folder = tmp_path_factory.mktemp("demo")
    return folder / command.FILE_NAME, run_demo(folder, COLUMNS="80")


@pytest.mark.parametrize("claim", CLAIMS)
def test_claim_is_made_and_held(finished: tuple[Path, subprocess.CompletedProcess[str]], claim: str) -> None:
    """Every claim is on the screen of a run that ended well."""
    _, result = finished

    assert result.returncode == 0, result.stdout + result.stderr
    assert claim in words(result.stdout)
    assert "FAILED" not in result.stdout


def test_fits_eighty_columns(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """No line is wider than the terminal, and without colour there are no escape sequences."""
    _, result = finished

    assert max(cell_len(line) for line in result.stdout.splitlines()) == 80
    assert "\x1b" not in result.stdout


def test_file_holds_no_plaintext(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """Nothing that was written is in the file that is left; looked for by this test and not by the demo."""
    path, _ = finished
    raw = path.read_bytes()
    records = [*models.journal(150, seed=1815), *models.journal(150, seed=1906)]
    written = {
        text.encode(encoding)
        for record in records
        for text in (
            record["note"],
            record["plan"],
            record["dose"],
            str(record["fee"]),
            str(record["insurance"]),
        )
        for encoding in ("utf-8", "utf-16-le")
    }
    written |= {record["ecg"] for record in records} | {record["sample"].bytes for record in records}
    written |= {json.dumps(record["vitals"]).encode() for record in records}
    written |= {
        b"alpitations",
        b"Migraine",
        b"melatonin",
        b"CHECKUP",
        b"pressure",
        b"+44 20",
        b"analytical engine",
    }

    assert len(written) > 2_000
    assert [one for one in written if one in raw] == []
    assert GRACE.encode() in raw


def test_file_that_is_left_has_one_person(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """After the run one person, her keys and her entries are in the file, and it says what made it."""
    path, _ = finished
    with closing(sqlite3.connect(path)) as connection:
        counts = [
            connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("people", "people_key", "people_keyslot", "journal")
        ]
        orphans = connection.execute("PRAGMA foreign_key_check").fetchall()

    assert counts == [1, 2, 1, 150]
    assert orphans == []
    assert clinic.is_demo_file(path)


def test_replaces_its_own_file_and_can_remove_it(tmp_path: Path) -> None:
    """A file of an earlier run is replaced, and with --no-keep none is left."""
    path = tmp_path / command.FILE_NAME
    command.run(path, _silent(), (reading.enrolment,), _cheap(), 10)
    assert path.exists()

    result = run_demo(tmp_path, "--no-keep", "--records", "20")

    assert result.returncode == 0, result.stdout + result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"my thesis", b"SQLite format 3\0" + bytes(4080)])
def test_refuses_a_file_of_somebody_else(tmp_path: Path, content: bytes) -> None:
    """A file of that name that the demo did not make is left as it is, a database too."""
    path = tmp_path / command.FILE_NAME
    path.write_bytes(content)

    result = CliRunner().invoke(command.demo, ["--folder", str(tmp_path), "--no-keep"])

    assert result.exit_code == 1
    assert "no file of this demo; it was left alone" in result.output
    assert path.read_bytes() == content


def test_refuses_a_link(tmp_path: Path) -> None:
    """A link is not followed, not even to a file of the demo."""
    elsewhere = tmp_path / "elsewhere.db"
    command.run(elsewhere, _silent(), (reading.enrolment,), _cheap(), 10)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / command.FILE_NAME).symlink_to(elsewhere)

    result = CliRunner().invoke(command.demo, ["--folder", str(folder)])

    assert result.exit_code == 1
    assert clinic.is_demo_file(elsewhere)


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_says_what_to_install(tmp_path: Path, missing: str) -> None:
    """Without click or rich the command ends with one line, and that line is the cure."""
    program = (
        "import sys\n"
        f"sys.modules[{missing!r}] = None\n"  # Python's own way to make an import fail
        "from sqlalchemy_envelope.cli import main\n"
        "main()\n"
    )
    settings = {**os.environ, "PYTHONPATH": str(PROJECT)}

    result = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        cwd=tmp_path,
        env=settings,
        capture_output=True,
        text=True,
    )

    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.endswith("pip install 'sqlalchemy-envelope[cli]'")


def test_library_needs_neither_click_nor_rich() -> None:
    """Importing the library imports no part of the command line."""
    program = "import sys, sqlalchemy_envelope; sys.exit(bool({'click', 'rich'} & set(sys.modules)))"
    settings = {**os.environ, "PYTHONPATH": str(PROJECT)}

    result = subprocess.run([sys.executable, "-c", program], check=False, env=settings)

    assert result.returncode == 0


def _leak(clinic: Clinic) -> Report:
    """Write one note into a column that is not encrypted."""
    report = reading.enrolment(clinic)
    clinic.execute("UPDATE people SET name = ? WHERE name = ?", clinic.records(GRACE)[7]["note"], GRACE)
    return report


def _without_cascade(clinic: Clinic) -> Report:
    """Let the file be written as by a tool that does not enforce foreign keys."""
    clinic.execute("PRAGMA foreign_keys=OFF")
    return Report("prepared", claims=[(True, "prepared")])


def _touch_data(clinic: Clinic) -> Report:
    """Let a change of secret rewrite two values."""
    clinic.execute(
        "CREATE TRIGGER touch AFTER UPDATE ON people_keyslot"
        f" BEGIN UPDATE people SET phone = x'01{'00' * 59}'; END"
    )
    return Report("prepared", claims=[(True, "prepared")])


BROKEN: dict[str, tuple[tuple[Step, ...], str]] = {
    "plaintext in the file": ((_leak, reading.file_contents), "searched for: 1 found"),
    "data touched by a new secret": (
        (reading.enrolment, _touch_data, attacks.new_secret),
        "120 of",
    ),
    "keys that outlive their owner": (
        (reading.enrolment, _without_cascade, attacks.deletion),
        "2 key rows of hers are left",
    ),
    "unfinished step": (
        (reading.enrolment, reading.enrolment),
        "enrolment could not be finished: IntegrityError",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_claim_is_shown_and_fails(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a promise is broken on purpose, the demo sees it, says which one, and exits with 1."""
    steps, expected = BROKEN[case]
    monkeypatch.setattr(command, "STEPS", steps)

    result = CliRunner().invoke(command.demo, ["--folder", str(tmp_path)], env={"COLUMNS": "120"})

    assert result.exit_code == 1, result.output
    failed = words(result.output).split("✗ FAILED:", 1)[1]
    assert expected in failed
    assert "The three lines" not in result.output


def test_failed_claim_is_red() -> None:
    """A claim that did not hold is red where there is colour, and only that one."""
    console = Console(file=StringIO(), force_terminal=True, color_system="standard", width=80, _environ={})
    report = Report("Two claims", claims=[(True, "water is wet"), (False, "water is dry")])

    console.print(report.panel(1, console))

    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[32mwater is wet" in printed
    assert "\x1b[1;31mwater is dry" in printed


def test_step_without_claims_has_not_held() -> None:
    """A step that shows something and claims nothing counts as failed: it would prove nothing."""
    assert not Report("empty").held


def test_lines_shown_are_lines_of_the_source() -> None:
    """The three lines at the end stand in the demo's own source, word for word."""
    source = "".join(inspect.getsource(module) for module in (models, clinic, reading))
    lines = {line.strip().rstrip(":") for line in source.splitlines()}

    assert [line for line in command.LINES if line.rstrip(":") not in lines] == []


def test_picture_fetches_nothing(tmp_path: Path) -> None:
    """The exported picture is one SVG, complete in itself."""
    picture = tmp_path / "demo.svg"

    result = CliRunner().invoke(
        command.demo, ["--folder", str(tmp_path), "--no-keep", "--export-svg", str(picture)]
    )

    svg = picture.read_text(encoding="utf-8")
    assert result.exit_code == 0, result.output
    assert svg.startswith("<svg")
    assert "url(http" not in svg
    assert "@font-face" not in svg
    assert "FAILED" not in svg


def _silent() -> Console:
    return Console(file=StringIO())


def _cheap() -> Envelope:
    return Envelope(kdf_profile=KdfProfile.unsafe_for_tests())
