"""`sqlalchemy-envelope index`: filled, checked, taken away; with text for people and JSON for programs."""

import json
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from sqlalchemy_envelope.cli.group import commands
from tests.migration.index_models import SECRET, add_indexes, models, new_envelope, old_rows


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
        "pending": 0,
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


def test_values_that_no_key_opens_are_told(run: Any, sqlite_engine: Engine) -> None:
    """Locked rows were not compared, and a fill that leaves them without a tag ends with 1."""
    run("fill")
    with Session(sqlite_engine) as session:
        with new_envelope().enroll(session, models(indexed=True).user(email="cy@x.org"), secret=SECRET):
            session.flush()
        session.execute(text("UPDATE users SET email_index = NULL"))
        session.commit()

    code, told = run("fill", "users.email_index")
    assert (code, told.strip().splitlines()[-1]) == (
        1,
        "users.email_index: 2 rows filled, 1 that no key here opens, 1 value without a tag",
    )
    code, told = run("verify", "users.email_index")
    assert (code, told.strip().splitlines()[-1]) == (
        1,
        (
            "users.email_index: 2 rows compared, 1 that no key here opens, 1 value without a tag: "
            "index fill, with their keys at hand"
        ),
    )
