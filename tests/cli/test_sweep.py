"""`sqlalchemy-envelope keys sweep` counts, notes and deletes shares, and tells which slots lack theirs."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine, create_engine, delete
from sqlalchemy.orm import sessionmaker

from sqlalchemy_envelope.cli.group import commands
from tests.orm.two_databases.split_models import (
    NEW,
    SECRET,
    Base,
    Share,
    User,
    envelope,
    new_user,
    second,
    sessions_on,
)


@pytest.fixture
def app(sqlite_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """An application with two databases, and an owner whose secret was changed."""
    other = create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    Base.metadata.create_all(sqlite_engine)
    second.create_all(other)
    app = ModuleType("app_of_two")
    app.sessions = sessions_on(sqlite_engine, other)  # type: ignore[attr-defined]
    app.plain = sessionmaker(sqlite_engine)  # type: ignore[attr-defined]
    app.User = User  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "app_of_two", app)
    with app.sessions() as session:
        ada = new_user(session)
        envelope.change_secret(session, ada, old=SECRET, new=NEW)
        session.commit()
    return app


def sweep(*arguments: str) -> Result:
    return CliRunner().invoke(commands, ["keys", "sweep", *arguments])


def test_it_counts_until_it_may_delete(app: ModuleType) -> None:
    """Without --delete nothing is noted, and the exit code is 0 while every slot has its share."""
    for arguments in ([], ["--delete"]):
        ran = sweep("--app", "app_of_two:sessions", *arguments)

        assert ran.exit_code == 0
        assert ran.output.splitlines() == [
            "User: 2 shares: 0 deleted, 1 kept without a slot",
            "User: 1 secret slot: 0 from before, without any share",
            "User: 0 slots whose share is missing: 0 owners, 0 without another slot",
        ]


def test_a_slot_without_its_share_is_told(app: ModuleType) -> None:
    """The exit code is 1, the report is JSON for programs, and owners of other binds are named with
    --class."""
    with app.sessions() as session:
        session.execute(delete(Share))
        session.commit()
    ran = sweep("--app", "app_of_two:sessions", "--class", "app_of_two:User", "--json")

    assert ran.exit_code == 1
    assert json.loads(ran.output)["User"] == {
        "shares": 0,
        "deleted": 0,
        "unused": 0,
        "slots": 1,
        "slots_to_move": 0,
        "slots_without_share": 1,
        "owners_affected": 1,
        "owners_locked_out": 1,
        "locked_out": [[1]],
        "elsewhere": 0,
    }


def test_what_it_cannot_sweep(app: ModuleType) -> None:
    """A sessionmaker without shares, and a session that leads to one database, are errors of usage."""
    none = sweep("--app", "app_of_two:plain")
    one = sweep("--app", "app_of_two:plain", "--class", "app_of_two:User")

    assert (none.exit_code, one.exit_code) == (2, 2)
    assert "--class" in none.output
    assert "User.__share_class__: second_engine" in one.output
