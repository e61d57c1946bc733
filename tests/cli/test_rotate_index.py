"""`sqlalchemy-envelope rotate index`: the key of a blind index is replaced, and the result told."""

import json

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqlalchemy_envelope.cli.group import commands
from tests.orm.indexes.rotation_models import Contact, Desk, new_process, one_desk, working

INDEX = "contacts.email_index"


def run(line: str) -> tuple[int, str]:
    ran = CliRunner().invoke(commands, ["rotate", "index", *line.split(), "--reason", "test"])
    return ran.exit_code, ran.output


def test_an_index_from_first_to_last(sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is done, it has nothing to do where no key was made, and rows that no key opens are left."""
    monkeypatch.setenv("ENVELOPE_APP", "tests.cli.rotating_app:migrator")
    monkeypatch.setenv("ROTATING_APP_URL", str(sqlite_engine.url))
    desk = one_desk(sqlite_engine)

    assert run(f"{INDEX} --alone") == (0, f"{INDEX}: it has no key yet\n")

    with working(sqlite_engine, new_process()) as session:
        session.add(Contact(desk_id=desk, email="ada@example.org"))
        session.commit()

    assert run(f"{INDEX} --alone") == (0, f"{INDEX}: 1 row moved, the old key is destroyed\n")

    code, output = run(f"{INDEX} --alone --json")
    events = [json.loads(line) for line in output.splitlines()]

    assert code == 0
    told = {"filled": 1, "moved": 1, "pending": 0, "waits": 0.0}
    assert events[-1] == {"event": "finished", "index": INDEX, "step": "done", **told}

    process = new_process()
    with Session(sqlite_engine) as session:
        own = Desk()
        with process.enroll(session, own, secret="correct horse battery staple"):
            session.add(Contact(desk_id=own.id, email="ben@example.org"))
            session.commit()

    assert run(f"{INDEX} --alone") == (1, f"{INDEX}: 1 row that no key here opens; both keys stay\n")
    code, output = run("contacts.email --alone")
    assert code == 2
    assert "contacts.email_index, contacts.town_index" in " ".join(output.replace("│", " ").split())
