"""What goes wrong around a migration, or is done to it, comes to light before anything is lost: owners and
tables that change under it, triggers that vanish, releases that overlap, damaged state, planted plaintext."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sqlalchemy_envelope import enforce_foreign_keys, exceptions
from sqlalchemy_envelope.exceptions import MigrationRefusedError, MigrationStoppedError, PlaintextRefusedError
from sqlalchemy_envelope.keys.providers import CampaignKeyFile
from sqlalchemy_envelope.migration.database import schema
from sqlalchemy_envelope.migration.jobs.verify import Verify
from sqlalchemy_envelope.migration.running.runner import Pace
from sqlalchemy_envelope.migration.running.whole_job import WholeJob
from tests.conftest import LogCapture
from tests.migration.engine_models import Trial, new_envelope, notes, on_statement

NOTES = "notes.body"
CANARY = "canary-5d1f"
SMALL = Pace(patience=5.0, largest=5, smallest=5, range_rows=10)


def trial_of(engine: Engine, count: int = 12, **options: Any) -> Trial:
    trial = Trial(engine, **options).create("notes")
    trial.insert("notes", notes(count))
    return trial


def once(call: Callable[[], Any], at: int = 2) -> Callable[[], bool]:
    """A `stop` that never stops, and does something the so-manyth time it is asked."""
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        if asked == at:
            call()
        return False

    return stop


def rebuild(trial: Trial) -> None:
    """What Alembic's batch mode does to a table of SQLite."""
    trial.sql(
        "CREATE TABLE new (id INTEGER PRIMARY KEY, user_id INTEGER REFERENCES users ON DELETE CASCADE, "
        "title VARCHAR, body TEXT, body_encrypted BLOB)"
    )
    trial.sql("INSERT INTO new SELECT id, user_id, title, body, body_encrypted FROM notes")
    trial.sql("DROP TABLE notes")
    trial.sql("ALTER TABLE new RENAME TO notes")


# ---------------------------------------------------------------- owners


def test_a_row_that_changes_hands_between_read_and_write(postgres_engine: Engine) -> None:
    """A row that an old program gives to another owner while it is encrypted, is encrypted for that one."""
    trial = trial_of(postgres_engine)
    migrator = trial.migrator()
    migrator.expand(NOTES)
    moved: list[Any] = []

    def move(statement: str) -> None:
        if statement.startswith("UPDATE notes SET body_encrypted") and not moved:
            moved.append(1)
            trial.sql("UPDATE notes SET user_id = user_id % 3 + 1 WHERE id = 5")

    with on_statement(postgres_engine, move):
        report = migrator.run(NOTES)
    assert moved
    assert report.finished
    assert report.late == 1
    assert migrator.verify(NOTES).is_clean
    assert trial.read("Note", "body")[(5,)] == "note body 0000000005"


def test_keys_that_are_gone_are_not_locked_ones(engine: Engine) -> None:
    """What nobody opens any more, since its owner was deleted and made again, is no "locked" value that could
    be accepted and lost; the previous value is encrypted anew."""
    trial = trial_of(engine)
    migrator = trial.migrator()
    assert migrator.run(NOTES).finished
    trial.sql("DELETE FROM users_keyslot WHERE key_id IN (SELECT key_id FROM users_key WHERE owner_id = 1)")
    trial.sql("DELETE FROM users_key WHERE owner_id = 1")
    report = trial.migrator(provider=None).verify(NOTES)
    assert (report.mismatches, report.locked) == (4, 8)
    with pytest.raises(MigrationRefusedError, match="4 values"):
        migrator.cutover(NOTES, accept_locked=12)
    assert migrator.repair(NOTES).rows == 4
    assert migrator.run(NOTES).finished
    assert migrator.verify(NOTES).is_clean
    assert set(trial.read("Note", "body").values()) == {one["body"] for one in notes(12)}


def test_an_owner_who_claims_and_hardens_in_mid_run(engine: Engine, tmp_path: Path) -> None:
    """From the next chunk on a claimed owner's rows are under keys that the campaign never opened."""
    key = CampaignKeyFile.generate(tmp_path / "campaign.key")
    trial = trial_of(engine, 60, provider="campaign", pace=SMALL)
    trial.envelope = new_envelope(providers={"campaign": key})
    migrator, models = trial.migrator(), trial.make("both")
    migrator.expand("users.phone")

    def claim() -> None:
        with Session(engine) as session:
            owner = session.get_one(models.User, 1)
            trial.envelope.enroll(session, owner, secret="secret")
            session.commit()

    assert migrator.run(NOTES, stop=once(claim, 6)).finished
    rows = trial.sql("SELECT body_encrypted FROM notes WHERE user_id = 1 ORDER BY id")
    headers = [bytes(stored)[:17] for (stored,) in rows]
    before, after = headers[0], headers[-1]
    assert before != after
    assert headers == [before] * headers.count(before) + [after] * headers.count(after)
    assert trial.migrator().verify(NOTES).locked == 20
    with pytest.raises(MigrationRefusedError, match="accept_locked=20"):
        migrator.cutover(NOTES)
    with Session(engine) as session:
        owner = session.get_one(models.User, 1)
        with trial.envelope.unlock(session, owner, secret="secret"):
            read = session.scalars(sa.select(models.Note).where(models.Note.user_id == 1))
            assert all(one.body == f"note body {one.id:010d}" for one in read)


def test_two_owners_encrypt_anew_at_once(engine: Engine, tmp_path: Path) -> None:
    """Each owner's rows are done by their own request, and none is taken for done by the other's."""
    key = CampaignKeyFile.generate(tmp_path / "campaign.key")
    trial = trial_of(engine, 60, provider="campaign", pace=SMALL)
    trial.envelope = new_envelope(providers={"campaign": key})
    migrator, models = trial.migrator(), trial.make("both")
    migrator.expand("users.phone")
    assert migrator.run(NOTES).finished
    for number in (1, 2):
        with Session(engine) as session:
            trial.envelope.enroll(session, session.get_one(models.User, number), secret="secret")
            session.commit()
    done = []

    def anew(number: int, stop: Callable[[], bool] = lambda: False) -> None:
        with Session(engine) as session:
            owner = session.get_one(models.User, number)
            session.commit()
            with trial.envelope.unlock(session, owner, secret="secret"):
                session.commit()
                done.append(trial.migrator(provider=None).reencrypt(NOTES, owner=owner, stop=stop))

    anew(1, once(lambda: anew(2)))
    assert [(one.rows, one.locked, one.finished) for one in done] == [(20, 0, True)] * 2
    assert trial.sql("SELECT count(*) FROM envelope_migration_range WHERE job LIKE 'reencrypt%'") == [(0,)]


# ---------------------------------------------------------------- triggers that are gone


def test_a_table_that_was_built_anew(sqlite_engine: Engine) -> None:
    """SQLite's tables lose their triggers when they are rebuilt: the next step puts them back and wants a new
    verification, which finds what was written meanwhile."""
    trial = trial_of(sqlite_engine)
    migrator = trial.migrator()
    assert migrator.run(NOTES).finished
    assert migrator.verify(NOTES).is_clean
    rebuild(trial)
    trial.sql("UPDATE notes SET body = 'by an old program' WHERE id = 3")
    with pytest.raises(MigrationRefusedError, match="not verified"):
        migrator.cutover(NOTES)
    assert migrator.verify(NOTES).mismatches == 1
    assert migrator.repair(NOTES).rows == 1
    assert migrator.run(NOTES).finished
    assert migrator.verify(NOTES).is_clean
    migrator.cutover(NOTES)
    assert trial.read("Note", "body")[(3,)] == "by an old program"


def test_a_trigger_that_was_disabled(postgres_engine: Engine) -> None:
    """A trigger that was switched off is switched on by the next step, which wants a new verification."""
    trial = trial_of(postgres_engine)
    migrator = trial.migrator()
    assert migrator.run(NOTES).finished
    assert migrator.verify(NOTES).is_clean
    trial.sql("ALTER TABLE notes DISABLE TRIGGER ALL")
    trial.sql("UPDATE notes SET body = 'by an old program' WHERE id = 3")
    with pytest.raises(MigrationRefusedError, match="not verified"):
        migrator.cutover(NOTES)
    trial.sql("UPDATE notes SET body = 'once more' WHERE id = 4")
    assert migrator.verify(NOTES).mismatches == 1
    assert trial.states("notes", "body")[4] == ("once more", None)


def test_a_guard_that_is_gone_before_the_contract(sqlite_engine: Engine) -> None:
    """Plaintext that came after the guard was lost keeps the column from being dropped."""
    trial = trial_of(sqlite_engine)
    trial.to_cutover(NOTES)
    migrator = trial.migrator("refuse")
    migrator.guard(NOTES)
    rebuild(trial)
    trial.sql("UPDATE notes SET body = 'late', body_encrypted = NULL WHERE id = 3")
    for _ in range(2):
        with pytest.raises(MigrationRefusedError, match="1 row "):
            migrator.contract(NOTES, stopped=True)
    with pytest.raises(DBAPIError):
        trial.sql("UPDATE notes SET body = 'refused again', body_encrypted = NULL WHERE id = 4")
    assert migrator.run(NOTES).finished
    assert migrator.verify(NOTES).is_clean
    migrator.contract(NOTES, stopped=True)


# ---------------------------------------------------------------- releases that overlap


def test_a_release_that_writes_encrypted_alone_while_the_column_is_dropped(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a "read" process writes at the last moment before `reverse(drop=True)` drops is moved back too."""
    trial = trial_of(engine)
    migrator, guard, written = trial.to_cutover(NOTES), schema.guard, []

    def late(*arguments: Any, **options: Any) -> list[str]:
        if not written:
            with trial.server() as session:
                session.get_one(trial.make("read").Note, 1).body = "at the last moment"
                session.commit()
            written.append(1)
        return guard(*arguments, **options)

    monkeypatch.setattr(schema, "guard", late)
    with pytest.raises(MigrationRefusedError, match="1 value "):
        migrator.reverse(NOTES, drop=True)
    assert migrator.reverse(NOTES, drop=True).finished
    assert trial.sql("SELECT body FROM notes WHERE id = 1") == [("at the last moment",)]


def test_back_to_both_after_the_cutover(engine: Engine) -> None:
    """A "both" process whose owner is locked writes the very value that is there: it is pending, not gone."""
    trial = trial_of(engine)
    trial.to_cutover(NOTES)
    note = trial.make("both").Note
    with Session(engine) as session:
        session.execute(sa.update(note).where(note.id == 1).values(body="note body 0000000001", user_id=2))
        session.commit()
    assert trial.states("notes", "body")[1] == ("note body 0000000001", None)
    assert trial.read("Note", "body", "read")[(1,)] == "note body 0000000001"


# ---------------------------------------------------------------- state, and two at once


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM envelope_migration_range WHERE number = 1",
        "UPDATE envelope_migration_range SET position = 'nothing', finished = true",
        "UPDATE envelope_migration_range SET lower = upper",
        "DROP TABLE envelope_migration_range",
        "DELETE FROM envelope_migration",
    ],
)
def test_damaged_state(sqlite_engine: Engine, damage: str) -> None:
    """Positions serve for speed alone: damaged or lost, the ranges are made anew and every row is reached."""
    trial = trial_of(sqlite_engine, 40, pace=SMALL)
    migrator, chunks = trial.migrator(), iter([False, False, True])
    assert not migrator.run(NOTES, stop=lambda: next(chunks, True)).finished
    trial.sql(damage)
    assert migrator.run(NOTES).finished
    assert migrator.verify(NOTES).is_clean


def test_a_sample_is_not_taken_for_the_whole(engine: Engine) -> None:
    """Whoever verifies all while somebody begins to verify a sample says that it is not finished."""
    trial = trial_of(engine, 40, pace=SMALL)
    migrator, other = trial.migrator(), trial.migrator()
    assert migrator.run(NOTES).finished
    trial.sql(
        "UPDATE notes SET body_encrypted = (SELECT body_encrypted FROM notes WHERE id = 1) WHERE id = 39"
    )

    def begin() -> None:
        job = WholeJob(other.setting, other.column(NOTES), Verify(0.01))
        job.begin(again=True, sample=0.01)

    report = migrator.verify(NOTES, stop=once(begin, 3))
    assert not report.finished
    assert not report.is_clean
    with pytest.raises(MigrationRefusedError, match="not verified"):
        migrator.cutover(NOTES)
    assert migrator.verify(NOTES).mismatches == 1


# ---------------------------------------------------------------- values, logs and errors


def test_a_value_that_is_too_large(sqlite_engine: Engine) -> None:
    """A value over 16 MiB stops the run and is told by its row and size."""
    trial = trial_of(sqlite_engine)
    trial.sql("UPDATE notes SET body = :body WHERE id = 3", body=CANARY + "x" * 2**24)
    with pytest.raises(MigrationStoppedError, match=r"row \(3,\) has 16,777,227 bytes") as caught:
        trial.migrator().run(NOTES)
    assert CANARY not in str(caught.value)
    assert caught.value.__context__ is None


def test_nothing_shows_in_logs_and_state(engine: Engine, capture_logs: LogCapture) -> None:
    """With `echo="debug"` too neither SQLAlchemy's logs nor the state tables hold a previous value."""
    trial = Trial(engine).create("notes")
    loud = create_engine(engine.url, echo="debug")
    if engine.dialect.name == "sqlite":
        enforce_foreign_keys(loud)
    with engine.begin() as connection:
        connection.execution_options(logging_token="seed")
        connection.exec_driver_sql(f"INSERT INTO notes (id, user_id, body) VALUES (1, 1, '{CANARY}')")
    before = capture_logs.text.count(CANARY)
    migrator = trial.migrator(engine=loud)
    assert migrator.run(NOTES).finished
    assert migrator.verify(NOTES).is_clean
    migrator.cutover(NOTES)
    assert migrator.reverse(NOTES).finished
    assert "SELECT" in capture_logs.text
    assert capture_logs.text.count(CANARY) == before
    for table in ("envelope_migration", "envelope_migration_job", "envelope_migration_range"):
        assert CANARY not in repr(trial.sql(f"SELECT * FROM {table}"))
    loud.dispose()


def test_errors_cross_processes() -> None:
    """What a worker raises reaches whoever started it, as the same error with the same words."""
    kinds = [one for one in vars(exceptions).values() if isinstance(one, type) and issubclass(one, Exception)]
    for kind in kinds:
        error = kind("words")
        again = pickle.loads(pickle.dumps(error))  # noqa: S301 - of our own making
        assert type(again) is kind
        assert str(again) == str(error)


# ---------------------------------------------------------------- who writes to the database


def test_what_refuse_changes(engine: Engine) -> None:
    """A planted plaintext is believed while values are moved; "refuse" takes none, the guard lets none in."""
    trial = trial_of(engine)
    trial.to_cutover(NOTES)
    trial.sql("UPDATE notes SET body = 'planted', body_encrypted = NULL WHERE id = 1")
    assert trial.read("Note", "body", "both")[(1,)] == "planted"
    assert trial.read("Note", "body", "read")[(1,)] == "planted"
    with trial.server() as session:
        note = session.get_one(trial.make("refuse").Note, 1)
        with pytest.raises(PlaintextRefusedError):
            _ = note.body
    trial.sql("UPDATE notes SET body = NULL WHERE id = 1")
    migrator = trial.migrator("refuse")
    assert migrator.verify(NOTES).is_clean
    migrator.guard(NOTES)
    with pytest.raises(DBAPIError, match="writes plaintext"):
        trial.sql("UPDATE notes SET body = 'planted', body_encrypted = NULL WHERE id = 2")
    with pytest.raises(DBAPIError, match="writes plaintext"):
        trial.sql("INSERT INTO notes (id, user_id, body) VALUES (99, 1, 'planted')")
    with trial.server() as session:
        session.get_one(trial.make("both").Note, 2).body = "written by a forgotten release"
        with pytest.raises(DBAPIError, match="writes plaintext"):
            session.commit()
