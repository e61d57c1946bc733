"""A blind index is added to a table that holds rows, compared with its values, mended, and taken away."""

import asyncio
import sqlite3
import time
from contextlib import closing
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    ConfigurationError,
    MigrationRefusedError,
    MigrationStoppedError,
    StatementRefusedError,
    enforce_foreign_keys,
)
from sqlalchemy_envelope.migration import AsyncMigrator, Migrator, Pace
from sqlalchemy_envelope.migration.database.faults import advice
from tests.migration.index_models import (
    SECRET,
    add_indexes,
    found,
    migrator,
    models,
    models_of_names,
    moving,
    new_envelope,
    old_rows,
)
from tests.orm.indexes.token_models import Base as TokenBase
from tests.prepared import tables_of

EMAILS = ("ada@example.org", "ben@example.org", None)
SMALL = Pace(smallest=1, largest=2, range_rows=2)


def sql(engine: Engine, statement: str) -> list[tuple[object, ...]]:
    """What a tool does that knows neither the library nor its CHECK constraints."""
    with engine.begin() as connection:
        if engine.name == "sqlite":
            connection.exec_driver_sql("PRAGMA ignore_check_constraints = ON")
        result = connection.exec_driver_sql(statement)
        return [tuple(row) for row in result] if result.returns_rows else []


def test_an_index_added_to_a_table_with_rows_is_filled(engine: Engine) -> None:
    """Rows of before the index are pending, and visible; a fill gives them tags, while everybody is away."""
    envelope = old_rows(engine, *EMAILS)
    add_indexes(engine)
    moving = migrator(engine, envelope, pace=SMALL)
    assert moving.indexes == ["notes.title_index", "users.email_index"]
    assert found(engine, envelope, "ada@example.org") == []
    before = moving.verify_index("users.email_index")
    assert (before.pending, before.bad, before.is_clean) == (2, 0, False)

    filled = moving.fill_index("users.email_index")
    titles = moving.fill_index("notes.title_index")

    assert (filled.rows, filled.bad, filled.locked, filled.is_clean) == (2, 0, 0, True)
    assert (titles.rows, titles.is_clean) == (9, True)
    assert found(engine, envelope, "ada@example.org") == [1]
    assert moving.fill_index("users.email_index").rows == 0
    for name in moving.indexes:
        after = moving.verify_index(name)
        assert (after.pending, after.bad, after.is_clean) == (0, 0, True)


def test_raw_sql_that_changed_a_value_is_found_and_mended(engine: Engine) -> None:
    """The check names the rows whose tag is not that of their value, and a second fill mends them."""
    envelope = old_rows(engine, *EMAILS)
    add_indexes(engine)
    moving = migrator(engine, envelope)
    moving.fill_index("notes.title_index")
    swap = "UPDATE notes SET title_index = (SELECT title_index FROM notes WHERE number = 1 LIMIT 1)"
    sql(engine, f"{swap} WHERE number = 2 AND user_id = 1")
    sql(engine, "UPDATE notes SET title = NULL WHERE number = 0 AND user_id = 2")
    sql(engine, "UPDATE notes SET title_index = NULL WHERE number = 0 AND user_id = 3")

    report = moving.verify_index("notes.title_index")

    assert (report.rows, report.bad, report.pending, report.is_clean) == (9, 2, 1, False)
    assert report.examples == ("(1, 2), (2, 0)",)
    assert moving.fill_index("notes.title_index", again=True).rows == 3
    assert moving.verify_index("notes.title_index").is_clean
    assert sql(engine, "SELECT title_index FROM notes WHERE number = 0 AND user_id = 2") == [(None,)]


def test_two_rows_with_one_value_are_told_and_the_rest_is_done(engine: Engine) -> None:
    """A unique index takes one of them; the other is named, and no value is shown."""
    envelope = old_rows(engine, "ada@example.org", "ada@example.org", "ben@example.org")
    add_indexes(engine)
    moving = migrator(engine, envelope)

    report = moving.fill_index("users.email_index")

    assert (report.rows, report.bad, report.examples) == (2, 1, ("(2,)",))
    assert found(engine, envelope, "ben@example.org") == [3]


def test_a_fill_that_was_stopped_goes_on(sqlite_engine: Engine) -> None:
    """It stops after a chunk, and the next run does the rest."""
    envelope = old_rows(sqlite_engine, *(f"{n}@example.org" for n in range(8)))
    add_indexes(sqlite_engine)
    moving = migrator(sqlite_engine, envelope, pace=SMALL)
    asked = iter([False, False, False, True])
    seen = []

    first = moving.fill_index("users.email_index", stop=lambda: next(asked, True), progress=seen.append)
    second = moving.fill_index("users.email_index")

    assert not first.finished
    assert 0 < first.rows < 8
    assert (second.rows, second.is_clean) == (8, True)
    assert seen[-1].job == "index fill"


def test_rows_of_locked_owners_stay_pending(sqlite_engine: Engine) -> None:
    """Tags are made of plaintext: a row that only its owner opens is counted, and left."""
    envelope = old_rows(sqlite_engine, "ada@example.org", provider=False)
    add_indexes(sqlite_engine)

    report = migrator(sqlite_engine, envelope).fill_index("users.email_index")

    assert (report.rows, report.locked, report.pending, report.is_clean) == (0, 1, 1, False)


def test_a_value_without_a_tag_is_told_whether_or_not_it_opens(engine: Engine) -> None:
    """NULL beside a value is seen without a key: of a locked value, of one that was moved here, of plaintext.
    A locked value with a tag is no fault, and a row without a value has none."""
    envelope = old_rows(engine, "ada@example.org", "ben@example.org", "cy@example.org", None)
    add_indexes(engine)
    moving = migrator(engine, envelope)
    moving.fill_index("users.email_index")
    alone = migrator(engine, envelope, provider=None)
    there = alone.verify_index("users.email_index")
    sql(
        engine,
        "UPDATE users SET email_index = NULL, email = (SELECT email FROM users WHERE id = 3) WHERE id = 2",
    )
    if engine.name == "postgresql":
        sql(engine, "ALTER TABLE users DROP CONSTRAINT ck_users_email_ciphertext")
    binary = "'ada'::bytea" if engine.name == "postgresql" else "CAST('ada' AS BLOB)"
    sql(engine, f"UPDATE users SET email_index = NULL, email = {binary} WHERE id = 1")
    moved = moving.verify_index("users.email_index")
    sql(engine, "UPDATE users SET email_index = NULL")
    locked = alone.verify_index("users.email_index")

    assert (there.rows, there.locked, there.pending, there.is_clean) == (0, 3, 0, True)
    assert (moved.rows, moved.bad, moved.pending, moved.examples) == (3, 2, 0, ("(1,), (2,)",))
    assert (locked.rows, locked.bad, locked.locked, locked.pending) == (1, 1, 2, 2)


def test_a_tag_beside_no_value_is_told_without_keys(sqlite_engine: Engine) -> None:
    """Raw SQL that took the value away left its tag behind."""
    envelope = old_rows(sqlite_engine, "ada@example.org")
    add_indexes(sqlite_engine)
    migrator(sqlite_engine, envelope).fill_index("users.email_index")
    sql(sqlite_engine, "UPDATE users SET email = NULL")

    report = migrator(sqlite_engine, envelope, provider=None).verify_index("users.email_index")

    assert (report.rows, report.bad, report.is_clean) == (1, 1, False)


def test_text_in_place_of_bytes_is_a_bad_row(sqlite_engine: Engine) -> None:
    """SQLite stores text in a column of bytes, and its driver cannot read text that is no UTF-8."""
    envelope = old_rows(sqlite_engine, *EMAILS)
    add_indexes(sqlite_engine)
    moving = migrator(sqlite_engine, envelope)
    moving.fill_index("users.email_index")
    sql(sqlite_engine, "UPDATE users SET email = CAST(email AS TEXT) WHERE id = 1")
    sql(sqlite_engine, "UPDATE users SET email_index = CAST(email_index AS TEXT) WHERE id = 2")

    checked, again = (
        moving.verify_index("users.email_index"),
        moving.fill_index("users.email_index", again=True),
    )

    assert (checked.rows, checked.bad, checked.examples) == (2, 2, ("(1,), (2,)",))
    assert (again.rows, again.bad, again.examples) == (1, 1, ("(1,)",))


def test_the_values_of_a_shredded_owner_have_no_tag(sqlite_engine: Engine) -> None:
    """Their tags went with their keys: nothing is left to do, and nobody is told to do it."""
    envelope = old_rows(sqlite_engine, "ada@example.org", "ben@example.org")
    add_indexes(sqlite_engine)
    moving = migrator(sqlite_engine, envelope)
    moving.fill_index("users.email_index")
    with Session(sqlite_engine) as session:
        envelope.shred(session, session.get_one(models(indexed=True).user, 1), reason="she asked")
        session.commit()
    assert sql(
        sqlite_engine, "SELECT count(*) FROM users WHERE email IS NOT NULL AND email_index IS NULL"
    ) == [(1,)]

    checked, filled = moving.verify_index("users.email_index"), moving.fill_index("users.email_index")

    assert (checked.rows, checked.locked, checked.pending, checked.is_clean) == (1, 0, 0, True)
    assert (filled.locked, filled.pending, filled.is_clean) == (0, 0, True)


def test_an_index_is_taken_away_with_its_key(engine: Engine) -> None:
    """After it no tag and no key is left; a declared index is refused, since programs go on writing it."""
    envelope = old_rows(engine, *EMAILS)
    add_indexes(engine)
    moving = migrator(engine, envelope)
    moving.fill_index("notes.title_index")
    with pytest.raises(MigrationRefusedError, match="stopped=True"):
        moving.drop_index("notes.title_index")
    without = type(moving)(engine, envelope, models(indexed=False), provider="server")

    report = without.drop_index("notes.title_index")

    assert (report.rows, report.finished) == (9, True)
    assert sql(engine, "SELECT count(*) FROM notes WHERE title_index IS NOT NULL") == [(0,)]
    assert sql(engine, "SELECT count(*) FROM notes_indexkey") == [(0,)]
    for name in ("notes.title", "notes.nothing", "nobody.title_index"):
        with pytest.raises(ConfigurationError):
            without.drop_index(name)
    assert moving.drop_index("users.email_index", stopped=True).rows == 0


def test_the_asynchronous_face(engine: Engine) -> None:
    """The same steps over an asynchronous engine."""
    envelope = old_rows(engine, *EMAILS)
    add_indexes(engine)
    driver = "postgresql+asyncpg" if engine.name == "postgresql" else "sqlite+aiosqlite"
    beside = create_async_engine(engine.url.set(drivername=driver))

    async def work() -> tuple[bool, bool, int]:
        try:
            return await steps()
        finally:
            await beside.dispose()

    async def steps() -> tuple[bool, bool, int]:
        moving = AsyncMigrator(Migrator(beside, envelope, models(indexed=True), provider="server"))
        assert moving.indexes == ["notes.title_index", "users.email_index"]
        filled = await moving.fill_index("users.email_index")
        checked = await moving.verify_index("users.email_index")
        dropped = await moving.drop_index("users.email_index", stopped=True)
        return filled.is_clean, checked.is_clean, dropped.rows

    assert asyncio.run(work()) == (True, True, 2)


def test_an_index_that_is_not_there_is_named(sqlite_engine: Engine) -> None:
    """A wrong name is answered with the names that there are."""
    moving = migrator(sqlite_engine, new_envelope())
    with pytest.raises(ConfigurationError, match=r"users\.email_index"):
        moving.fill_index("users.mail_index")


def test_an_index_that_the_database_lacks_is_named(engine: Engine) -> None:
    """A column that no revision has added yet, and a table of index keys that was dropped."""
    envelope = old_rows(engine, *EMAILS)
    moving = migrator(engine, envelope)
    lacks = r"The database lacks users\.email_index, users\.email_index_guard, users_indexkey, for a blind"
    for step in (moving.fill_index, moving.verify_index):
        with pytest.raises(MigrationRefusedError, match=lacks):
            step("users.email_index")
    with pytest.raises(sa.exc.DBAPIError) as raised:
        sql(engine, "SELECT users.email_index FROM users")
    assert advice(raised.value).startswith("The database has no column users.email_index: create it")

    add_indexes(engine)
    sql(engine, "DROP TABLE users_indexkey")
    with pytest.raises(ConfigurationError, match="no table users_indexkey, which holds keys"):
        found(engine, envelope, "ada@example.org")


def test_a_tag_of_several_values_goes_alone(sqlite_engine: Engine) -> None:
    """A row that lost one of the values has no tag of them all; the other value keeps its own."""
    base = models_of_names()
    tables_of(base.metadata, sqlite_engine)
    envelope = new_envelope()
    with Session(sqlite_engine) as session:
        envelope.enroll(session, base.user(first="Ada", last="Byron"), secret=SECRET, provider="server")
        session.commit()
    moving = Migrator(sqlite_engine, envelope, base, provider="server")
    for column in ("first", "last"):
        sql(sqlite_engine, f"UPDATE users SET {column} = NULL")
        assert moving.verify_index("users.both_index").bad == 1

        assert moving.fill_index("users.both_index", again=True).is_clean
        tags = "SELECT both_index IS NULL, last_index IS NULL FROM users"
        assert sql(sqlite_engine, tags) == [(1, 0)]
        assert moving.verify_index("users.both_index").is_clean
        assert moving.fill_index("users.both_index").rows == 0
        sql(sqlite_engine, f"UPDATE users SET both_index = last_index, {column} = 'x'")


def test_token_indexes_are_kept_by_other_calls(sqlite_engine: Engine) -> None:
    """The steps know no token index, and say which call does their work."""
    TokenBase.metadata.create_all(sqlite_engine)
    moving = Migrator(sqlite_engine, new_envelope(), TokenBase, provider="server")

    assert (moving.indexes, moving.token_indexes) == (
        [],
        ["notes.body_words", "notes.part_grams", "notes.part_starts"],
    )
    for step in (moving.fill_index, moving.verify_index):
        with pytest.raises(
            ConfigurationError, match=r"`fill_tokens\(session, Note\.body_words, objects\)` gives"
        ):
            step("notes.body_words")
    with pytest.raises(ConfigurationError, match="Its tags are in the table notes_body_words: remove"):
        moving.drop_index("notes.body_words")


def plaintext(engine: Engine) -> Migrator:
    """A table with plaintext addresses, and the migrator of the release that encrypts and indexes them."""
    sql(engine, "CREATE TABLE users (id INTEGER PRIMARY KEY, email VARCHAR(80))")
    moving("both").metadata.create_all(engine)
    sql(engine, "INSERT INTO users VALUES (1, 'ada@example.org'), (2, 'ben@example.org'), (3, NULL)")
    return Migrator(engine, new_envelope(), moving("both"), provider="server")


def add_index(engine: Engine) -> None:
    add_indexes(engine, moving("both"))


def test_plaintext_that_is_encrypted_gets_its_tag(engine: Engine) -> None:
    """A log-in finds its user before, during and after the migration; every encrypted row has its tag."""
    both = plaintext(engine)
    envelope = both.setting.envelope

    def find(policy: str, email: str) -> list[int]:
        user = moving(policy).user
        with Session(engine) as session:
            envelope.attach(session)
            return list(session.scalars(sa.select(user.id).where(user.email == email)))

    with pytest.raises(MigrationRefusedError, match="email_index"):
        both.run("users.email")
    with pytest.raises(StatementRefusedError, match=r"users\.email in SQL"):
        _ = moving("both").user.email == sa.orm.aliased(moving("both").user).email
    add_index(engine)
    both.expand("users.email")
    assert find("both", "ada@example.org") == [1]
    assert both.run("users.email").finished
    assert both.verify_index("users.email_index").is_clean
    sql(engine, "UPDATE users SET email = 'new@example.org' WHERE id = 1")  # by a program of before
    assert find("both", "ada@example.org") == []
    assert find("both", "new@example.org") == [1]
    assert both.run("users.email").finished
    assert both.verify("users.email").is_clean
    both.cutover("users.email")
    read = Migrator(engine, envelope, moving("read"), provider="server")

    assert read.verify_index("users.email_index").is_clean
    assert find("read", "new@example.org") == [1]
    assert find("read", "ada@example.org") == []


def test_a_repaired_value_gets_its_tag(engine: Engine) -> None:
    """A row that a repair empties loses its tag, and the run after it makes both anew."""
    both = plaintext(engine)
    add_index(engine)
    both.run("users.email")
    second = "(SELECT email_encrypted FROM users WHERE id = 2)"
    sql(engine, f"UPDATE users SET email_encrypted = {second} WHERE id = 1")
    assert both.verify_index("users.email_index").bad == 1

    assert both.repair("users.email").rows == 1
    assert sql(engine, "SELECT count(*) FROM users WHERE email_index IS NOT NULL") == [(1,)]
    assert both.run("users.email").finished
    assert both.verify_index("users.email_index").is_clean


def test_a_row_that_changes_meanwhile_gets_no_tag_of_its_value_before(engine: Engine) -> None:
    """A value that is written between the read and the write of a chunk keeps the tag that came with it."""
    envelope = old_rows(engine, *EMAILS)
    add_indexes(engine)
    user = models(indexed=True).user
    done = []

    def write(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if done or "email_index" not in statement or not statement.startswith("UPDATE users"):
            return
        done.append(statement)
        with Session(connection) as session, envelope.server_mode(session, reason="test"):
            envelope.attach(session)
            session.get_one(user, 1).email = "new@example.org"
            session.commit()

    sa.event.listen(engine, "before_cursor_execute", write)
    migrator(engine, envelope).fill_index("users.email_index")
    sa.event.remove(engine, "before_cursor_execute", write)

    assert len(done) == 1
    assert found(engine, envelope, "new@example.org") == [1]
    assert found(engine, envelope, "ada@example.org") == []
    assert migrator(engine, envelope).verify_index("users.email_index").is_clean


def test_values_that_wait_for_their_migration_have_no_tag(engine: Engine) -> None:
    """Under the policy "both" a value of a locked owner stays in the previous column; the run brings both."""
    both = plaintext(engine)
    add_index(engine)
    both.run("users.email")
    user = moving("both").user
    with Session(engine) as session:
        both.setting.envelope.attach(session)
        session.get_one(user, 1).email = "later@example.org"
        session.commit()
    assert sql(engine, "SELECT email_encrypted, email_index FROM users WHERE id = 1") == [(None, None)]

    assert both.run("users.email").finished
    assert both.verify_index("users.email_index").is_clean


def test_a_database_that_stays_locked_ends_the_fill(sqlite_engine: Engine) -> None:
    """The driver waits for longer than the patience at each try: that is no reason to begin to wait anew."""
    envelope = old_rows(sqlite_engine, *EMAILS)
    add_indexes(sqlite_engine)
    waiting = create_engine(sqlite_engine.url, connect_args={"timeout": 0.3})
    enforce_foreign_keys(waiting)
    moving, began = migrator(waiting, envelope, pace=Pace(patience=0.1)), time.monotonic()
    with closing(sqlite3.connect(sqlite_engine.url.database or "")) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(MigrationStoppedError, match="Locks or conflicts did not clear"):
            moving.fill_index("users.email_index", stop=lambda: time.monotonic() - began > 3.0)

    assert time.monotonic() - began < 2.0


@pytest.mark.thorough
def test_workers_side_by_side(sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes find the index by its name and share the ranges."""
    old_rows(sqlite_engine, *(f"{n}@example.org" for n in range(20)))
    add_indexes(sqlite_engine)
    monkeypatch.setenv("INDEX_APP_URL", sqlite_engine.url.render_as_string(hide_password=False))
    app = migrator(
        sqlite_engine, new_envelope(), pace=Pace(range_rows=4), reference="tests.cli.index_app:migrator"
    )

    assert app.fill_index("users.email_index", workers=2).rows == 20
    assert app.verify_index("users.email_index", workers=2).is_clean
