"""A database that the one line of SQLAlchemy wrote opens on the other."""

from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine
from sqlalchemy.orm import Session

import sqlalchemy_envelope.alembic  # noqa: F401   which autogenerate then asks
from sqlalchemy_envelope import Envelope
from tests.golden.application import (
    SECRET,
    VALUES,
    Base,
    Membership,
    Team,
    User,
    make_engine,
    make_envelope,
)

pytestmark = pytest.mark.both_lines


@pytest.fixture(params=["2.0", "2.1"])
def written(request: pytest.FixtureRequest) -> Engine:
    """The database as the line wrote it."""
    engine = make_engine()
    script = (Path(__file__).parent / f"sqlalchemy-{request.param}.sql").read_text("utf-8")
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        driver.executescript(f"PRAGMA foreign_keys=OFF; {script} PRAGMA foreign_keys=ON;")
    return engine


def test_every_value_is_read(written: Engine) -> None:
    """A member reads each value, of its type. So does the server where it has a slot."""
    envelope = make_envelope()
    told = {name: value for name, (_, value) in VALUES.items()}
    with Session(written) as session:
        with envelope.unlock(session, session.get_one(User, 1), secret=SECRET):
            by_member = [_values(session.get_one(Team, number)) for number in (1, 2)]
            session.commit()
        with envelope.server_mode(session, reason="test"):
            by_server = _values(session.get_one(Team, 1))

    assert [_typed(told)] * 3 == [_typed(one) for one in (*by_member, by_server)]


def test_what_is_written_next_is_read(written: Engine) -> None:
    """A member is added, a value is written, and the new member reads it."""
    envelope = make_envelope()
    with Session(written) as session, envelope.unlock(session, session.get_one(User, 1), secret=SECRET):
        session.add(Membership(team_id=2, user_id=2))
        session.get_one(Team, 2).text = "written by the other line"
        session.commit()

    assert _read_by_ben(written, envelope) == "written by the other line"


def test_autogenerate_finds_nothing(written: Engine) -> None:
    """The models of this line have the tables that the other line made."""
    with written.connect() as connection:
        context = MigrationContext.configure(connection)

        assert compare_metadata(context, Base.metadata) == []


def _read_by_ben(engine: Engine, envelope: Envelope) -> Any:
    with Session(engine) as session, envelope.unlock(session, session.get_one(User, 2), secret=SECRET + "s"):
        return session.get_one(Team, 2).text  # type: ignore[attr-defined]


def _values(team: Team) -> dict[str, Any]:
    return {name: getattr(team, name) for name in VALUES}


def _typed(values: dict[str, Any]) -> dict[str, tuple[type, Any]]:
    return {name: (type(value), value) for name, value in values.items()}
