"""`sqlalchemy-envelope migrate` takes an old application from plaintext to ciphertext, and each outcome
has its exit code; nothing that it prints holds plaintext or a key."""

import ast
import os
import re
import select
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from sqlalchemy import URL

from sqlalchemy_envelope import MigrationRefusedError, ServerKeyring, campaign, migration
from sqlalchemy_envelope.cli.discovery import discover
from sqlalchemy_envelope.cli.group import commands
from sqlalchemy_envelope.cli.migrate.options import complain, in_shell_words
from tests.cli.migrating import APP, USERS, Old, make_old, make_old_postgres

ROWS = 3000
BODY = "notes.body"


@pytest.fixture
def old(template: Old, tmp_path: Path) -> Old:
    """The old application."""
    return make_old(template, tmp_path / "app", ROWS)


@pytest.fixture(scope="module")
def verified(template: Old, tmp_path_factory: pytest.TempPathFactory) -> Old:
    """An old application that was migrated up to a clean verification; copied by who changes it."""
    made = make_old(template, tmp_path_factory.mktemp("verified"), ROWS)
    assert made.steps("run", "verify") == [0, 0]
    return made


@pytest.fixture
def copied(verified: Old, tmp_path: Path) -> Old:
    """The same, to be changed."""
    folder = tmp_path / "app"
    folder.mkdir()
    copy = Old(folder, f"sqlite:///{folder / 'notes.db'}", verified.key, ROWS)
    copy.file.write_bytes(verified.file.read_bytes())
    return copy


def on_terminal(old: Old, *arguments: str, answer: str = "", **more: str) -> tuple[int, str]:
    """The command line on a terminal of its own: its exit code, and what it showed."""
    ours, theirs = pytest.importorskip("pty").openpty()
    command = [sys.executable, "-m", "sqlalchemy_envelope.cli", "migrate", *arguments, "--app", APP]
    settings = old.environment(TERM="xterm", **more)
    process = subprocess.Popen(
        command, cwd=old.folder, env=settings, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True
    )
    os.close(theirs)
    shown, answered = b"", False
    for _ in range(10_000):
        if select.select([ours], [], [], 60)[0]:
            try:
                got = os.read(ours, 4096)
            except OSError:  # its last user has closed it
                break
            shown += got
            if answer and not answered and b"Go on?" in shown:
                os.write(ours, answer.encode())
                answered = True
            if not got:
                break
    os.close(ours)
    output = shown.decode()
    old.check_output(output)
    return process.wait(60), output


# ------------------------------------------------------------------ the whole way


def test_whole_way(old: Old) -> None:
    """From plan to contract on SQLite, with an old writer in between whose row is found."""
    assert f"{BODY}: {ROWS:,} rows encrypted; none left" in old.migrate("run").out
    assert "Next: migrate cutover" in old.migrate("verify").out
    sampled = (f"verify {BODY} --sample 0.5", f"cutover {BODY}", f"cutover {BODY} --accept-sample")
    assert old.steps("plan", *sampled) == [0, 0, 3, 0]
    old.execute("UPDATE notes SET body = 'canary of an old writer' WHERE id = 7")
    old.execute("UPDATE notes SET body = 'canary body 7' WHERE id = 7")
    late = old.migrate("status", BODY, "--json", code=1).json["columns"][0]
    assert (late["pending"], late["both"]) == (1, ROWS - 1)

    again = old.migrate("run", "--json").events
    assert {one["event"] for one in again} == {"started", "progress", "finished"}
    assert [one["late"] for one in again if one["event"] == "finished"] == [1, 0]
    assert old.steps("verify", "cutover", "guard", "contract --yes") == [0, 0, 3, 3]
    assert "Next: migrate guard" in old.migrate("verify").out
    old.migrate("guard", NOTES_POLICY="refuse")
    assert "Next: migrate contract" in old.migrate("verify", NOTES_POLICY="refuse").out
    assert "There is no terminal to ask at" in old.migrate("contract", NOTES_POLICY="none", code=3).err
    done = old.migrate("contract", "--yes", "--json", NOTES_POLICY="none")

    assert done.json == {"done": [BODY, "users.phone"]}
    assert [row[1] for row in old.execute("PRAGMA table_info(notes)")] == ["id", "user_id", "body_encrypted"]
    for policy in ("refuse", "none"):  # with the models of the release before, and with those of the last
        status = old.migrate("status", "--residue", NOTES_POLICY=policy).out
        assert f"{BODY}: contracted" in status
        assert "The column is dropped" in status
        assert "VACUUM" in status
    assert old.migrate("status", "--json", NOTES_POLICY="none").json["columns"][0]["column"] == BODY


def test_whole_way_on_postgresql(postgres_url: URL, tmp_path: Path) -> None:
    """The same with two workers on PostgreSQL, and back again with nothing lost that was written since."""
    address = postgres_url.render_as_string(hide_password=False)
    old = make_old_postgres(address, tmp_path, ROWS)

    finished = old.migrate("run", BODY, "--workers", "2", "--json").events[-1]
    pace = "--patience 5 --chunk-seconds 0.05"
    assert old.steps("plan", f"run users.phone {pace}", "verify", "cutover") == [0, 0, 0, 0]

    assert (finished["rows"], finished["finished"], finished["pending"]) == (ROWS, True, 0)
    assert old.read(NOTES_POLICY="refuse") == (ROWS, ROWS, USERS, USERS)
    assert "none left, and the encrypted column is dropped" in old.migrate("reverse", BODY, "--drop").out


def test_status_in_five_lines(verified: Old) -> None:
    """Phase, rows to encrypt, encrypted rows, verification and plaintext: a line each, and no list."""
    lines = verified.migrate("status", BODY).out.splitlines()

    assert [line.split()[0] for line in lines] == [f"{BODY}:", "to", "encrypted", "verified", "plaintext"]
    assert lines[0] == f"{BODY}: verified, policy 'both'"
    assert lines[2].split(None, 1)[1] == f"{ROWS:,} rows in both columns, 0 in the encrypted column alone"
    assert lines[4].split(",")[0].split(None, 1) == ["plaintext", "in 1 place"]
    assert lines[4].endswith("more: migrate status --residue")
    assert lines[4] == verified.migrate("status", NOTES_POLICY="none").out.splitlines()[1]


# ------------------------------------------------------------------ exit codes


def test_left_over_is_one(old: Old) -> None:
    """A row without an owner is left, and the exit code says that something is."""
    old.execute("INSERT INTO notes VALUES (?, ?, ?)", ROWS + 1, 999, "canary of nobody")

    events = old.migrate("run", BODY, "--json", code=1).events

    assert events[0] == {"event": "started", "column": BODY, "job": "backfill", "workers": 1}
    assert {"done", "total", "left", "rate", "left_seconds", "late"} <= events[1].keys()
    assert (events[-1]["event"], events[-1]["pending"], events[-1]["unowned"]) == ("finished", 1, 1)
    assert not events[-1]["finished"]
    assert not events[-1]["interrupted"]


def test_mismatch_is_one(copied: Old) -> None:
    """A verification that finds an altered value exits with 1, and cut-over is refused with 3."""
    copied.execute("UPDATE notes SET body_encrypted = zeroblob(60) WHERE id = 5")

    assert copied.migrate("verify", BODY, "--json", code=1).events[-1]["mismatches"] == 1
    assert copied.steps(f"status {BODY}", f"cutover {BODY}") == [1, 3]


def test_obstacle_is_one(old: Old) -> None:
    """What stops a migration is found by the plan, under its severity, and the exit code says so."""
    old.execute("ALTER TABLE notes RENAME TO before")
    old.execute(
        "CREATE TABLE notes (id INTEGER PRIMARY KEY, user_id INTEGER, body TEXT AS (upper('x')) VIRTUAL)"
    )

    plan = old.migrate("plan", BODY, code=1).out

    assert plan.index("stops:") < plan.index("body (previous-is-generated)") < plan.index("note:")


def test_refused_is_three(old: Old) -> None:
    """A step out of turn is refused in one line for each column."""
    ran = old.migrate("cutover", code=3)

    assert ran.out == ""
    assert len(ran.err.splitlines()) == 2
    assert "is in the phase 'new'" in ran.err


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"DATABASE_URL": "sqlite:////nowhere/at/all.db"}, id="no-database"),
        pytest.param({"ENVELOPE_SERVER_KEYS": ServerKeyring.generate_key()}, id="wrong-key"),
    ],
)
def test_stopped_is_four(copied: Old, more: dict[str, str]) -> None:
    """Without its database, or with another server key, it stops with one line and no traceback."""
    copied.execute("UPDATE notes SET body_encrypted = NULL")

    ran = copied.migrate("run", BODY, "--patience", "0.1", code=4, **more)

    assert ran.err.startswith("Error: ")
    assert len(ran.err.splitlines()) == 1


def test_missing_key_tables_are_three(old: Old) -> None:
    """Refused by name, and nothing is told to run it again."""
    old.execute("DROP TABLE users_keyslot")

    assert "users_keyslot (no-key-table)" in old.migrate("plan", BODY, code=1).out
    ran = old.migrate("run", BODY, code=3)
    assert "missing: users_keyslot. Create them first" in ran.err
    assert "again" not in ran.err


def test_no_column_is_two(old: Old) -> None:
    """Where nothing is moved and nothing was, the status says so."""
    assert "No column is being moved" in old.migrate("status", NOTES_POLICY="none", code=2).err


@pytest.mark.parametrize("column", ["", BODY])
def test_previous_removed_too_early_is_two(copied: Old, column: str) -> None:
    """Where the models forgot the previous column before the cut-over, the error says how far it is."""
    ran = copied.migrate("contract", *filter(None, [column]), "--yes", code=2, NOTES_POLICY="none")

    assert f"{BODY} is in the phase 'verified'" in ran.err
    assert "and the models have no `previous=` any more: put `previous=` back" in ran.err


ADVICE = {
    "accept_locked=2624.": "--accept-locked 2624.",
    "accept the sample: accept_sample=True.": "accept the sample: --accept-sample.",
    "say that nothing runs: stopped=True.": "say that nothing runs: --stopped.",
    'meant, close("shred", confirm=4377).': "meant, `campaign close --unclaimed shred --confirm 4377`.",
    'close("keep"), close("provider:NAME"), or close("shred", ...),': (
        "--unclaimed keep, --unclaimed provider:NAME, or --unclaimed shred,"
    ),
}


@pytest.mark.parametrize("python", ADVICE)
def test_advice_is_in_the_words_of_the_shell(python: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What an error says in Python is told as options of the command line."""
    complain(MigrationRefusedError(python))

    assert ADVICE[python] in capsys.readouterr().err


def test_every_advice_is_translated() -> None:
    """Whatever a step of a migration is refused with has no Python argument left in it at the shell."""
    words = re.compile(r"\b(?:accept_\w+|stopped|confirm)=|\bclose\(")
    rooms = [Path(str(one.__file__)).parent for one in (migration, campaign)]
    advised = [
        text
        for path in (path for room in rooms for path in room.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "MigrationRefusedError"
        for text in [_text(node.args[0])]
        if words.search(text)
    ]

    assert len(advised) == 6
    assert [text for text in advised if words.search(in_shell_words(text))] == []


def _text(message: ast.expr) -> str:
    parts = message.values if isinstance(message, ast.JoinedStr) else [message]
    return "".join(str(one.value) if isinstance(one, ast.Constant) else "7" for one in parts)


# ------------------------------------------------------------------ the terminal


def test_contract_asks(copied: Old) -> None:
    """On a terminal it asks: after a no the column is there, after a yes it is gone."""
    copied.migrate("cutover", BODY)

    declined, _ = on_terminal(copied, "contract", BODY, "--stopped", answer="n\n", NOTES_POLICY="refuse")
    before = [row[1] for row in copied.execute("PRAGMA table_info(notes)")]
    agreed, shown = on_terminal(copied, "contract", BODY, "--stopped", answer="y\n", NOTES_POLICY="refuse")
    after = [row[1] for row in copied.execute("PRAGMA table_info(notes)")]

    assert (declined, agreed) == (1, 0), shown
    assert set(before) - set(after) == {"body"}


def test_bar_on_terminal(old: Old) -> None:
    """On a terminal a bar says how many rows are left and how many are done in a second."""
    code, shown = on_terminal(old, "run", "--load", "0.1")

    assert code == 0
    assert re.search(r"\d left, [\d,]+ rows/s", shown)
    assert f"{BODY}: {ROWS:,} rows encrypted; none left. Next: migrate verify" in shown


# ------------------------------------------------------------------ finding the application


def test_app_from_environment(old: Old) -> None:
    """`ENVELOPE_APP` names the application, and the current folder is looked in for it."""
    (old.folder / "mine.py").write_text(f"from {APP} import migrator as found\n")

    ran = old.python("-m", "sqlalchemy_envelope.cli", "migrate", "expand", ENVELOPE_APP="mine:found")

    assert (ran.returncode, ran.stderr) == (0, "")
    assert "body_encrypted" in [row[1] for row in old.execute("PRAGMA table_info(notes)")]


@pytest.mark.parametrize(
    ("app", "words"),
    [
        ("{name}", "has to have one int in it, and has one, two"),
        ("{name}:", "names no object"),
        ("{name}:three", "has no 'three'"),
        ("{name}:text", "is a str. Name an int, or a function that makes it"),
        ("{name}:Class", "is a type. Name an int"),
        ("{name}:make_text", "gave a str, and not an int"),
        ("{name}:broken", r"broken\(\) failed: ZeroDivisionError \(.*, line 9\)"),
        ("{name}_not", "there is no module"),
        ("broken_{name}", "ZeroDivisionError .*, line 1"),
        ("lacking_{name}", "No module named 'no_such_thing'"),
        ("secret_{name}", r"ValueError \(.*, line 1\)"),
    ],
)
def test_app_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, app: str, words: str, request: pytest.FixtureRequest
) -> None:
    """What is wrong with `--app` is said in a line, without the words of errors that may quote a setting."""
    name = f"found_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(
        "one, two, text = 1000, 2000, 'a'\nclass Class: ...\n\ndef make_one(): return 3000\n"
        "def make_text(): return text\n\ndef broken():\n    # fails\n    return 1 / 0\n"
    )
    (tmp_path / f"broken_{name}.py").write_text("1 / 0\n")
    (tmp_path / f"lacking_{name}.py").write_text("import no_such_thing\n")
    (tmp_path / f"secret_{name}.py").write_text("int('canary')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    with pytest.raises(click.BadParameter, match=words) as caught:
        discover(app.format(name=name), int)

    assert "canary" not in str(caught.value)


def test_app_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object, what makes one, and the only one of a module are found, each with its reference."""
    (tmp_path / "found_well.py").write_text("class Box:\n    migrator = 1000\nbox = Box()\nlist = [1]\n")
    (tmp_path / "found_alone.py").write_text("only = 1000\ndef make(): return 3000\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    found = [discover(app, int) for app in ("found_alone", "found_alone:make", "found_well:box")]

    assert [(one.value, one.reference) for one in found] == [
        (1000, "found_alone:only"),
        (3000, "found_alone:make"),
        (1000, "found_well:box.migrator"),
    ]


@pytest.mark.parametrize(
    "arguments", [["run"], ["run", "--workers", "0"], ["run", "--load", "2"], ["nothing"]]
)
def test_wrong_usage_is_two(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """No application, and numbers out of range, are usage errors."""
    monkeypatch.delenv("ENVELOPE_APP", raising=False)

    assert CliRunner().invoke(commands, ["migrate", *arguments]).exit_code == 2


def test_unknown_column_is_two(verified: Old) -> None:
    """A column that is not being moved is a usage error that names those that are."""
    assert "notes.body, users.phone" in verified.migrate("run", "notes.title", code=2).err
