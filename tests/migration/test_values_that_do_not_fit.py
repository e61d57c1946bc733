"""The way back names the row whose value does not fit; tables that are missing; and the faults of MariaDB."""

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, event
from sqlalchemy.ext.asyncio import create_async_engine

from sqlalchemy_envelope import MigrationRefusedError, MigrationStoppedError
from sqlalchemy_envelope.migration.aio import AsyncMigrator
from sqlalchemy_envelope.migration.database.faults import advice
from sqlalchemy_envelope.migration.running.runner import Pace
from tests.migration.engine_models import Trial, notes
from tests.migration.faulty import goes_on, shows_nothing

NOTES = "notes.body"
ROWS = 120
CHUNKED = Pace(smallest=10, largest=20, range_rows=50, patience=10.0)
HASTY = Pace(smallest=10, largest=20, range_rows=50, patience=0.3)


# ---------------------------------------------------------------- values that do not fit


def since_the_cut_over(engine: Engine, value: str) -> Trial:
    """A migration under the policy "read", with one value that only the encrypted column could take."""
    trial = Trial(engine, pace=HASTY).create("notes")
    if engine.dialect.name == "sqlite":
        trial.sql("DROP TABLE notes")
        trial.sql(
            "CREATE TABLE notes (id INTEGER PRIMARY KEY, user_id INTEGER REFERENCES users (id), title TEXT, "
            "body TEXT CHECK (length(body) <= 20))"
        )
    else:
        trial.sql("ALTER TABLE notes ALTER body TYPE VARCHAR(20)")
    trial.insert("notes", notes(ROWS))
    trial.to_cutover(NOTES)
    with trial.server("read") as session:
        session.get_one(trial.make("read").Note, 57).body = value
        session.commit()
    return trial


def test_the_way_back_names_the_row_that_does_not_fit(engine: Engine) -> None:
    """A value that is too long for the previous column stops the reversal with that column and its row, and
    after the column was made larger it goes on."""
    trial = since_the_cut_over(engine, "note body " + "x" * 40)
    with pytest.raises(MigrationStoppedError) as caught:
        trial.migrator().reverse(NOTES)
    told = str(caught.value)

    shows_nothing(caught.value)
    assert "notes.body, which is" in told
    assert "does not take the value of the row (57,)" in told
    assert ("too long" if engine.dialect.name == "postgresql" else "a constraint forbids it") in told
    assert "LONGBLOB" not in told
    if engine.dialect.name == "postgresql":
        assert "drop the triggers zz_envelope_" in told
        (trigger,) = trial.sql("SELECT tgname FROM pg_trigger WHERE tgname LIKE 'zz_envelope_%'")
        trial.sql(f"DROP TRIGGER {trigger[0]} ON notes")
        trial.sql("ALTER TABLE notes ALTER body TYPE TEXT")
    else:
        with trial.server("both") as session:
            session.get_one(trial.make("both").Note, 57).body = "shorter"
            session.commit()
    assert trial.migrator().reverse(NOTES).finished
    assert None not in {state[0] for state in trial.states("notes", "body").values()}


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_the_way_back_names_the_row_with_a_nul(postgres_engine: Engine, driver: str) -> None:
    """PostgreSQL stores no NUL in text: told with the row, by each driver's own error."""
    trial = since_the_cut_over(postgres_engine, "note body \0")
    reverse = reverse_on_asyncpg if driver == "asyncpg" else reverse_on_psycopg
    with pytest.raises(MigrationStoppedError, match=r"the row \(57,\): it holds the character NUL") as caught:
        reverse(trial)
    shows_nothing(caught.value)


def reverse_on_psycopg(trial: Trial) -> None:
    trial.migrator().reverse(NOTES)


def reverse_on_asyncpg(trial: Trial) -> None:
    async def reverse() -> None:
        engine = create_async_engine(trial.engine.url.set(drivername="postgresql+asyncpg"))
        try:
            await AsyncMigrator(trial.migrator(engine=engine)).reverse(NOTES)
        finally:
            await engine.dispose()

    asyncio.run(reverse())


@pytest.mark.parametrize("missing", [["users_keyslot"], ["users_keyslot", "users_key"]])
def test_key_tables_that_are_missing(engine: Engine, missing: list[str]) -> None:
    """Told by name, by the plan and by the run, before anything is changed; once they are there it runs."""
    trial = Trial(engine, pace=HASTY).create("notes")
    trial.insert("notes", notes(ROWS))
    trial.table("users_keyticket").drop(engine)  # it refers to the keys, and no migration needs it
    for name in missing:
        trial.table(name).drop(engine)
    found = [one for one in trial.migrator().plan(NOTES) if one.code == "no-key-table"]
    with pytest.raises(MigrationRefusedError, match="Create them first") as caught:
        trial.migrator().run(NOTES)

    assert sorted(missing) == sorted(one.object for one in found)
    assert all(name in str(caught.value) for name in missing)
    assert "body_encrypted" not in {one["name"] for one in sa.inspect(engine).get_columns("notes")}
    for name in reversed(missing):
        trial.table(name).create(engine)
    assert trial.migrator().run(NOTES).finished


def test_a_table_that_is_missing_is_named(engine: Engine) -> None:
    """Whatever table it is that the database does not have, the advice has its name and what to do."""
    for statement in ("SELECT * FROM no_such_notes", 'SELECT * FROM "no_such_notes"'):
        with engine.connect() as connection, pytest.raises(sa.exc.DBAPIError) as caught:
            connection.exec_driver_sql(statement)

        assert "The database has no table no_such_notes: create it first" in advice(caught.value)
    mariadb = sa.exc.ProgrammingError("", {}, Exception(1146, "Table 'app.no_such_notes' doesn't exist"))
    assert "no table app.no_such_notes: create it" in advice(mariadb)
    assert "no table no_such_notes: create it" in advice(sa.exc.NoSuchTableError("no_such_notes"))


# ---------------------------------------------------------------- MariaDB


def make_on_mariadb(engine: Engine) -> Trial:
    trial = Trial(engine, pace=CHUNKED)
    users = trial.table("users")
    users.c.email.type = sa.String(100)
    for one in trial.before.tables.values():
        one.dialect_options["mariadb"]["engine"] = "InnoDB"
    trial.table("notes").c.title.type = sa.String(100)
    trial.create("notes")
    trial.insert("notes", notes(ROWS))
    return trial


@pytest.mark.parametrize("mode", ["STRICT_TRANS_TABLES", ""])
def test_a_column_that_is_too_short_on_mariadb(mariadb_engine: Engine, mode: str) -> None:
    """Strict or not, a ciphertext is never cut off: it stops with what to do, and goes on when the column is
    large enough."""

    def loosen(connection: Any, _: object) -> None:
        connection.cursor().execute(f"SET SESSION sql_mode = '{mode}'")

    event.listen(mariadb_engine, "connect", loosen)
    trial = make_on_mariadb(mariadb_engine)
    trial.sql("ALTER TABLE notes ADD COLUMN body_encrypted VARBINARY(40)")
    with pytest.raises(MigrationStoppedError, match=r"too short.*larger") as caught:
        trial.migrator().run(NOTES)
    shows_nothing(caught.value)
    assert trial.sql("SELECT count(*) FROM notes WHERE body_encrypted IS NOT NULL") == [(0,)]
    trial.sql("ALTER TABLE notes MODIFY body_encrypted LONGBLOB")
    goes_on(trial)


def test_the_whole_way_on_mariadb(mariadb_engine: Engine) -> None:
    """Start, an old writer, cut-over, a write of the application, and back."""
    trial = make_on_mariadb(mariadb_engine)
    migrator = trial.to_cutover(NOTES)
    trial.sql("UPDATE notes SET body = 'late' WHERE id = 1")
    assert migrator.run(NOTES).rows == ROWS + 1
    assert migrator.verify(NOTES).is_clean
    with pytest.raises(sa.exc.DBAPIError, match="since the cut-over"):
        trial.sql("UPDATE notes SET body = NULL")
    with trial.server("read") as session:
        session.get_one(trial.make("read").Note, 2).body = "since"
        session.commit()
    assert migrator.reverse(NOTES).finished
    states = trial.states("notes", "body")
    assert (states[1][0], states[2][0], states[3][0]) == ("late", "since", notes(3)[2]["body"])
