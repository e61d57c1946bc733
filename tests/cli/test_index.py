"""`sqlalchemy-envelope index`: filled, checked, taken away; with text for people and JSON for programs."""

import json
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine

from sqlalchemy_envelope.cli.group import commands
from tests.migration.index_models import add_indexes, old_rows


@pytest.fixture
def run(sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command on a database with two users, whose addresses have no tags yet."""
    old_rows(sqlite_engine, "ada@example.org", "ben@example.org")
    add_indexes(sqlite_engine)
    monkeypatch.setenv("INDEX_APP_URL", sqlite_engine.url.render_as_string(hide_password=False))

    def command(*arguments: str) -> tuple[int, str]:
        given = ["index", arguments[0], "--app", "tests.cli.index_app:migrator", *arguments[1:]]
        result = CliRunner().invoke(commands, given)
        return result.exit_code, result.output

    return command


def test_the_steps_in_order(run: Any) -> None:
    """A check finds values without tags, a fill gives them, and the check is content."""
    code, text = run("verify", "users.email_index")
    assert (code, "2 values without a tag: index fill" in text) == (1, True)
    code, text = run("fill")
    assert (code, "users.email_index: 2 rows filled" in text) == (0, True)
    assert run("verify")[0] == 0
    assert "example.org" not in text


def test_events_for_programs(run: Any) -> None:
    """With --json each line is an event, and the last has the outcome."""
    code, text = run("fill", "users.email_index", "--json")
    events = [json.loads(line) for line in text.splitlines()]

    assert code == 0
    assert [events[0]["event"], events[1]["event"]] == ["started", "progress"]
    assert events[-1] | {"seconds": 0} == {
        "event": "finished",
        "column": "users.email_index",
        "job": "index fill",
        "rows": 2,
        "bad": 0,
        "locked": 0,
        "pending": None,
        "examples": [],
        "finished": True,
        "seconds": 0,
        "is_clean": True,
    }


def test_what_is_refused(run: Any) -> None:
    """A declared index is not taken away while programs run, and nothing is done without a yes."""
    run("fill")

    assert run("drop", "users.email_index")[0] == 3
    code, text = run("drop", "users.email_index", "--yes")
    assert (code, "--stopped" in text) == (3, True)
    assert run("fill", "users.mail_index")[0] == 2
    code, text = run("drop", "users.email_index", "--yes", "--stopped")
    assert (code, "2 rows emptied" in text) == (0, True)
