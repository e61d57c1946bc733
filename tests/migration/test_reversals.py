"""A migration that is reversed at any phase, or killed at its end, loses nothing."""

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqlalchemy_envelope import MigrationRefusedError
from sqlalchemy_envelope.migration.database import schema
from sqlalchemy_envelope.migration.database.state import Phase
from sqlalchemy_envelope.migration.running.runner import Pace
from tests.migration.checksums import checksum, interrupt_after, without_triggers
from tests.migration.engine_models import SECRET, Trial, notes

pytestmark = pytest.mark.both_lines
SMALL = Pace(smallest=3, largest=7, range_rows=20, patience=5.0)
NOTES = "notes.body"


@pytest.mark.parametrize(
    "phase",
    [
        pytest.param("tracking", marks=pytest.mark.any_database),
        "half",
        pytest.param("backfilled", marks=pytest.mark.any_database),
        pytest.param("verified", marks=pytest.mark.any_database),
        "cut over",
        "read",
    ],
)
def test_a_reversal_at_any_phase_loses_nothing(engine: Engine, phase: str) -> None:
    """The column is as it was, with what was written since; also by the policy that leaves it empty."""
    trial = Trial(engine, pace=SMALL).create("notes")
    trial.insert("notes", notes(40))
    wanted = {row["id"]: row["body"] for row in notes(40)}
    original = checksum(trial, "notes", "body")
    migrator = trial.migrator()
    migrator.expand(NOTES)
    if phase == "half":
        with pytest.raises(KeyboardInterrupt):
            migrator.run(NOTES, stop=interrupt_after(3))
        assert 0 < migrator.status(NOTES).both < 40
    if phase not in ("tracking", "half"):
        migrator.run(NOTES)
    if phase not in ("tracking", "half", "backfilled"):
        migrator.verify(NOTES)
    if phase in ("cut over", "read"):
        migrator.cutover(NOTES)
    policy = "read" if phase == "read" else "both"
    classes = trial.make(policy)
    with trial.server(policy) as session:
        session.get_one(classes.Note, 5).body = "written since, Zürich"
        session.add(classes.Note(id=900, user_id=2, body="new since"))
        session.delete(session.get_one(classes.Note, 7))
        session.get_one(classes.Note, 8).body = None
        session.commit()
    wanted |= {5: "written since, Zürich", 900: "new since", 8: None}
    del wanted[7]
    report = migrator.reverse(NOTES)
    assert (report.finished, report.pending) == (True, 0)
    assert {key: state[0] for key, state in trial.states("notes", "body").items()} == wanted
    # With those rows put back, nothing tells the column from the original.
    trial.sql("DELETE FROM notes WHERE id IN (5, 8, 900)")
    trial.insert("notes", [row for row in notes(40) if row["id"] in (5, 7, 8)])
    assert checksum(trial, "notes", "body") == original
    assert migrator.reverse(NOTES, drop=True).finished
    assert "body_encrypted" not in [one["name"] for one in sa.inspect(engine).get_columns("notes")]


def test_a_reversal_can_be_followed_by_another_migration(engine: Engine) -> None:
    """There, back, and there again."""
    trial = Trial(engine).create("notes")
    trial.insert("notes", notes(20))
    migrator = trial.to_cutover(NOTES)
    migrator.reverse(NOTES)
    assert migrator.status(NOTES).phase is Phase.REVERSED
    trial.sql("UPDATE notes SET body = 'between' WHERE id = 4")
    assert migrator.run(NOTES).finished
    assert migrator.verify(NOTES).is_clean
    migrator.cutover(NOTES)
    assert trial.read("Note", "body", "read")[(4,)] == "between"


def test_a_reversal_keeps_what_no_key_opens_and_says_so(engine: Engine) -> None:
    """Values of an owner who holds the keys alone, and one that was altered: they stay encrypted."""
    trial = Trial(engine, provider=None).create("notes")
    trial.insert("notes", notes(6))
    migrator = trial.migrator()
    migrator.expand("users.phone")
    user = trial.make("both").User
    with Session(engine) as session:
        for number in (1, 2, 3):
            trial.envelope.enroll(session, session.get_one(user, number), secret=SECRET)
        session.commit()
    migrator.run(NOTES)
    migrator.verify(NOTES)
    migrator.cutover(NOTES, accept_locked=6)
    without_triggers(trial, NOTES)
    trial.sql("UPDATE notes SET body = NULL WHERE id <= 4")
    before = trial.states("notes", "body")
    report = migrator.reverse(NOTES)
    assert (report.finished, report.pending) == (False, 4)
    with pytest.raises(MigrationRefusedError, match="4 values"):
        migrator.reverse(NOTES, drop=True)
    assert trial.states("notes", "body") == before


def test_a_reversal_leaves_what_does_not_authenticate_and_goes_on(engine: Engine) -> None:
    """One altered value does not keep the others from coming back."""
    trial = Trial(engine).create("notes")
    trial.insert("notes", notes(6))
    migrator = trial.to_cutover(NOTES)
    without_triggers(trial, NOTES)
    stored = trial.states("notes", "body")[1][1]
    assert stored is not None
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE notes SET body = NULL")
        connection.execute(
            sa.text("UPDATE notes SET body_encrypted = :blob WHERE id = 1"),
            {"blob": stored[:-1] + bytes([stored[-1] ^ 1])},
        )
    report = migrator.reverse(NOTES)
    assert (report.rows, report.pending, report.finished) == (5, 1, False)


def test_a_contract_that_was_killed_is_finished_or_reversed(engine: Engine) -> None:
    """With its guard in place, or with the column gone and no note of it."""
    trial = Trial(engine).create("notes")
    trial.insert("notes", notes(20))
    trial.to_cutover(NOTES)
    refusing, columns = trial.migrator("refuse"), schema.tracked(trial.migrator().column(NOTES))
    schema.change(engine, schema.guard(engine.dialect, columns))
    with pytest.raises(sa.exc.DBAPIError, match="this program writes plaintext"):
        trial.sql("UPDATE notes SET body = 'old' WHERE id = 3")
    assert trial.migrator().reverse(NOTES).finished
    trial.sql("UPDATE notes SET body = 'old' WHERE id = 3")
    trial.to_cutover(NOTES)
    schema.change(engine, schema.guard(engine.dialect, columns))
    dropping = [
        *schema.untrack(engine.dialect, columns),
        *schema.drop_column(engine.dialect, columns, "body"),
    ]
    schema.change(engine, dropping)
    refusing.contract(NOTES, stopped=True)
    assert trial.sql("SELECT phase FROM envelope_migration") == [("contracted",)]
