"""A migration from its start to its end and back, over every kind of key, value and owner: nothing is lost,
what cannot be done is told, and no step is taken that would lose something."""

import datetime as dt
import math
import threading
import traceback
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    EncryptedType,
    KeyOwner,
    MigrationError,
    MigrationRefusedError,
    MigrationStoppedError,
    PreviousColumn,
    enforce_foreign_keys,
)
from sqlalchemy_envelope.migration.database import schema
from sqlalchemy_envelope.migration.database.state import Phase
from sqlalchemy_envelope.migration.running.runner import Pace
from tests.conftest import LogCapture
from tests.migration.checksums import checksum, interrupt_after, without_triggers
from tests.migration.engine_models import INNER_TYPES, SECRET, Color, Deployment, Trial, notes

pytestmark = pytest.mark.both_lines
SMALL = Pace(smallest=3, largest=7, range_rows=20, patience=5.0)
NOTES = "notes.body"

KEYS: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "cells": ("Cell", lambda n: {"user_id": n % 3 + 1, "number": n * n - 900}),
    "docs": ("Doc", lambda n: {"id": uuid.UUID(int=n * 2**120 + 1), "user_id": n % 3 + 1}),
    "hexdocs": ("HexDoc", lambda n: {"id": uuid.UUID(int=n * 2**120 + 1), "user_id": n % 3 + 1}),
    "words": ("Word", lambda n: {"id": f'{"Aa!ß漢"[n % 5]}-Wörd\'s "{n}"%', "user_id": n % 3 + 1}),
    "days": ("Day", lambda n: {"id": dt.date(1999, 12, 1) + dt.timedelta(n), "user_id": n % 3 + 1}),
    "moments": (
        "Moment",
        lambda n: {
            "id": dt.datetime(1999, 12, 1, 2, 3, 4, n // 2),
            "color": list(Color)[n % 2],
            "user_id": n % 3 + 1,
        },
    ),
    "bigs": ("Big", lambda n: {"id": (-1) ** n * (2**62 - n), "user_id": n % 3 + 1}),
    "blobs": ("Blob", lambda n: {"id": bytes([n * 7 % 256, 0, n]), "user_id": n % 3 + 1}),
    "padded": ("Padded", lambda n: {"id": n + 1, "user_id": n % 3 + 1}),
}
"""For each kind of primary key a class, and the rows of it."""


SELDOM = {"bigs", "blobs", "days", "docs"}


@pytest.mark.parametrize(
    "table", [pytest.param(one, marks=[pytest.mark.any_database] * (one in SELDOM)) for one in KEYS]
)
def test_every_kind_of_key_from_start_to_contract(engine: Engine, table: str) -> None:
    """Composite, UUID, hexadecimal, text, date, time with enum, large, bytes: in chunks of a few rows."""
    trial = Trial(engine, pace=SMALL).create(table)
    _, make = KEYS[table]
    rows = [make(number) | {"body": None if number % 9 == 8 else f"body {number}"} for number in range(60)]
    trial.insert(table, rows)
    filled = sum(row["body"] is not None for row in rows)
    migrator = trial.migrator()
    report = migrator.run(f"{table}.body")
    assert (report.rows, report.late, report.pending, report.finished) == (filled, 0, 0, True)
    verified = migrator.verify(f"{table}.body")
    assert (verified.rows, verified.is_clean) == (filled, True)
    migrator.cutover(f"{table}.body")
    read = trial.migrator("refuse")
    assert read.status(f"{table}.body").phase is Phase.CUT_OVER
    read.contract(f"{table}.body", stopped=True)
    assert trial.sql("SELECT phase FROM envelope_migration") == [("contracted",)]
    names = [one["name"] for one in sa.inspect(engine).get_columns(table)]
    assert "body" not in names
    assert "body_encrypted" in names
    stored = trial.sql(f"SELECT count(*) FROM {table} WHERE body_encrypted IS NOT NULL")
    assert stored == [(filled,)]


def test_every_type_is_the_same_there_and_back(engine: Engine) -> None:
    """Each type's edge values read type-exactly when encrypted, and stand in the previous column as they
    stood when the migration is reversed."""
    trial = Trial(engine).create("kinds")
    for place, (kind, (_, _, values)) in enumerate(INNER_TYPES.items()):
        if kind == "datetimetz" and engine.dialect.name == "sqlite":
            continue  # SQLite drops zones: told apart below
        column, first = f"a_{kind}", 100 * place
        rows = [{"id": first + number, "user_id": 1, column: value} for number, value in enumerate(values)]
        trial.insert("kinds", rows)
        before = checksum(trial, "kinds", column)
        wanted = old_values(trial, "kinds", column)
        migrator = trial.to_cutover(f"kinds.{column}")
        # What stands encrypted alone, as the policies after "both" leave it, is read, and moved back.
        with engine.begin() as connection:
            columns = schema.tracked(migrator.column(f"kinds.{column}"))
            schema.change_on(connection, schema.untrack(engine.dialect, columns))
            connection.exec_driver_sql(f"UPDATE kinds SET {column} = NULL")
        read = trial.read("Kind", column, "read")
        for key, value in wanted.items():
            assert same(read[(key,)], value), (kind, read[(key,)], value)
        assert migrator.reverse(f"kinds.{column}").finished
        assert checksum(trial, "kinds", column) == before, kind


def old_values(trial: Trial, table: str, column: str) -> dict[Any, Any]:
    """What the old program reads."""
    old = trial.table(table)
    with trial.engine.connect() as connection:
        return dict(connection.execute(sa.select(old.c.id, old.c[column])).all())  # type: ignore[arg-type]


def same(one: Any, other: Any) -> bool:
    """Equal in type and value, NaN and -0.0 included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return math.isnan(one) == math.isnan(other) and repr(one) == repr(other)
    return bool(one == other)


def test_a_value_that_does_not_fit_the_type_stops_with_its_row_and_no_value(sqlite_engine: Engine) -> None:
    """SQLite drops the zone of a date and time: told with the row's key, and nothing is changed."""
    trial = Trial(sqlite_engine).create("kinds")
    trial.insert("kinds", [{"id": 7, "user_id": 1, "a_datetimetz": dt.datetime(2020, 1, 2, tzinfo=dt.UTC)}])
    with pytest.raises(MigrationStoppedError, match=r"row \(7,\)") as caught:
        trial.migrator().run("kinds.a_datetimetz")
    assert "2020" not in everything(caught.value)


def everything(error: BaseException) -> str:
    """All that an error shows: its texts, arguments, causes, and what a traceback prints of it."""
    parts, one = ["".join(traceback.format_exception(error))], error
    seen: set[int] = set()
    todo: list[BaseException | None] = [one]
    while todo:
        current = todo.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        parts += [str(current), repr(current), repr(current.args), repr(vars(current))]
        todo += [current.__cause__, current.__context__]
    return "\n".join(parts)


def test_rows_without_an_owner_are_counted_left_and_told(engine: Engine) -> None:
    """An owner that is NULL: the value stays where it is, and the cut-over says how many there are."""
    trial = Trial(engine).create("notes")
    trial.insert("notes", notes(10))
    trial.insert("notes", [{"id": 100 + n, "user_id": None, "body": "whose?"} for n in range(4)])
    migrator = trial.migrator()
    report = migrator.run(NOTES)
    assert (report.rows, report.pending, report.unowned, report.finished) == (10, 4, 4, False)
    assert not migrator.verify(NOTES).is_clean
    with pytest.raises(MigrationRefusedError, match=r"4 rows .* 4 of these have no owner"):
        migrator.cutover(NOTES)
    assert trial.states("notes", "body")[100] == ("whose?", None)
    trial.sql("UPDATE notes SET user_id = 2 WHERE user_id IS NULL")
    again = migrator.run(NOTES)
    assert (again.rows, again.finished) == (14, True)


def test_rows_whose_owner_does_not_exist_are_left(engine: Engine) -> None:
    """A database that never had the foreign key: the same."""
    trial = Trial(engine).create()
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE notes")
        connection.exec_driver_sql(
            "CREATE TABLE notes (id INTEGER PRIMARY KEY, user_id INTEGER, title TEXT, body TEXT)"
        )
    trial.insert("notes", [*notes(6), {"id": 50, "user_id": 999, "body": "gone"}])
    migrator = trial.migrator()
    report = migrator.run(NOTES)
    assert (report.rows, report.pending, report.unowned) == (6, 1, 1)
    assert trial.states("notes", "body")[50] == ("gone", None)
    with pytest.raises(MigrationRefusedError, match="no owner"):
        migrator.cutover(NOTES)


def test_owners_who_hold_their_keys_alone_are_written_to(engine: Engine) -> None:
    """Sealed write epochs for who has keys; who has none is left, until there are some."""
    trial = Trial(engine, provider=None).create("notes")
    trial.insert("notes", notes(12))
    user = trial.make("both").User
    migrator = trial.migrator()
    migrator.expand("users.phone")
    with Session(engine) as session:
        for number in (1, 2):
            trial.envelope.enroll(session, session.get_one(user, number), secret=SECRET)
        session.commit()
    report = migrator.run(NOTES)
    assert (report.rows, report.pending, report.unowned, report.finished) == (8, 4, 0, False)
    verified = migrator.verify(NOTES)
    assert (verified.rows, verified.locked, verified.mismatches) == (8, 8, 0)
    with Session(engine) as session:
        trial.envelope.enroll(session, session.get_one(user, 3), secret=SECRET)
        session.commit()
    assert migrator.run(NOTES).finished
    assert migrator.verify(NOTES).locked == 12
    with pytest.raises(MigrationRefusedError, match="accept_locked=12"):
        migrator.cutover(NOTES)
    migrator.cutover(NOTES, accept_locked=12)
    note = trial.make("read").Note
    owner_class = trial.make("read").User
    for number in (1, 2, 3):
        with Session(engine) as session:
            owner = session.get_one(owner_class, number)
            with trial.envelope.unlock(session, owner, secret=SECRET):
                found = session.scalars(sa.select(note).where(note.user_id == number)).all()
                assert {one.body for one in found} == {
                    row["body"] for row in notes(12) if row["user_id"] == number
                }


def test_an_owner_column_in_the_parents_table(engine: Engine) -> None:
    """Joined inheritance: the values in one table, who owns them in another."""
    trial = Trial(engine, pace=SMALL).create("people", "staff")
    trial.insert("people", [{"id": n, "kind": "staff", "user_id": n % 3 + 1} for n in range(1, 31)])
    trial.insert("staff", [{"id": n, "salary": str(n)} for n in range(1, 31)])
    trial.to_cutover("staff.salary")
    assert trial.read("Staff", "salary", "read") == {(n,): str(n) for n in range(1, 31)}


def test_the_owners_own_column(engine: Engine) -> None:
    """A row that is its owner itself."""
    trial = Trial(engine).create()
    trial.sql("UPDATE users SET phone = '+1 ' || email")
    trial.to_cutover("users.phone")
    assert trial.read("User", "phone", "read")[(2,)] == "+1 2@example.org"


def test_names_that_need_quoting(engine: Engine) -> None:
    """Reserved words, blanks, quotes, colons and percent signs, in the table, its key and both columns."""
    trial = Trial(engine).create("order")
    trial.insert("order", [{"key : id": n, "select": 1, "user name%": f"n{n}"} for n in range(1, 31)])
    migrator = trial.migrator()
    assert migrator.status("order.body").pending == 30
    trial.to_cutover("order.body")
    with engine.begin() as connection:
        connection.execute(trial.table("order").update().values({"user name%": "old"}))
    assert migrator.status("order.body").pending == 30
    assert migrator.run("order.body").late == 30
    assert migrator.verify("order.body").is_clean
    reader = trial.migrator("refuse")
    reader.contract("order.body", stopped=True)
    assert len(sa.inspect(engine).get_columns("order")) == 3


def shop(policy: str) -> Deployment:
    """Tables in a schema."""

    class Base(sa.orm.DeclarativeBase):
        pass

    class Customer(KeyOwner, Base):
        __tablename__ = "customers"
        __table_args__ = {"schema": "Shop 1"}  # noqa: RUF012 - as SQLAlchemy wants it

        id = sa.orm.mapped_column(sa.Integer, primary_key=True)
        name = sa.orm.mapped_column(
            "name_encrypted",
            EncryptedType(sa.Text, previous=PreviousColumn("name", sa.Text, policy)),  # type: ignore[arg-type]
        )

    sa.orm.configure_mappers()
    return Deployment(Base, {"Customer": Customer})


def test_tables_in_a_schema(postgres_engine: Engine) -> None:
    """Triggers, functions and columns are made where the table is."""
    made = {policy: shop(policy) for policy in ("both", "refuse")}
    with postgres_engine.begin() as connection:
        connection.exec_driver_sql('CREATE SCHEMA "Shop 1"')
    trial = Trial(postgres_engine, make=lambda policy: made[policy])
    trial.before.create_all(postgres_engine)
    trial.insert("Shop 1.customers", [{"id": n, "name": f"c{n}"} for n in range(10)])
    trial.to_cutover("customers.name")
    trial.sql("""UPDATE "Shop 1".customers SET name = 'old' WHERE id = 3""")
    migrator = trial.migrator()
    assert migrator.run("customers.name").rows == 11
    assert migrator.verify("customers.name").is_clean
    trial.migrator("refuse").contract("customers.name", stopped=True)
    left = trial.sql("SELECT count(*) FROM pg_proc WHERE proname LIKE 'zz_envelope%'")
    assert left == [(0,)]


def test_running_twice_changes_nothing(engine: Engine) -> None:
    """No ciphertext is made anew by a second run."""
    trial = Trial(engine, pace=SMALL).create("notes")
    trial.insert("notes", notes(50))
    migrator = trial.migrator()
    migrator.run(NOTES)
    before = trial.states("notes", "body")
    assert migrator.run(NOTES).rows == 50
    assert trial.states("notes", "body") == before


def test_a_second_run_finds_exactly_what_old_writers_wrote(engine: Engine) -> None:
    """Changed, new and emptied rows, again and again; nothing else is encrypted anew."""
    trial = Trial(engine, pace=SMALL).create("notes")
    trial.insert("notes", notes(50))
    migrator = trial.migrator()
    migrator.run(NOTES)
    for turn in range(1, 4):
        before = trial.states("notes", "body")
        trial.sql("UPDATE notes SET body = 'changed ' || :turn WHERE id IN (5, 6)", turn=str(turn))
        trial.sql("UPDATE notes SET body = NULL WHERE id = :gone", gone=20 + turn)
        trial.insert("notes", notes(3, first=100 * turn))
        report = migrator.run(NOTES)
        assert (report.rows, report.late) == (50 + 5 * turn, 5 * turn)
        after = trial.states("notes", "body")
        changed = {key for key, state in after.items() if before.get(key) != state}
        assert changed == {5, 6, 20 + turn, 100 * turn, 100 * turn + 1, 100 * turn + 2}
        assert after[20 + turn] == (None, None)
        assert migrator.verify(NOTES).is_clean


def test_verify_finds_every_kind_of_difference(engine: Engine) -> None:
    """A flipped byte, a ciphertext of another row or owner, a value changed behind the trigger, bytes that
    are none of ours: each is counted, once."""
    trial = Trial(engine).create("notes", "docs")
    trial.insert("notes", notes(30))
    trial.insert("docs", [KEYS["docs"][1](n) | {"body": "the same"} for n in range(6)])
    migrator = trial.migrator()
    for name in (NOTES, "docs.body"):
        migrator.run(name)
        assert migrator.verify(name).is_clean
    without_triggers(trial, NOTES)
    stored = {key: state[1] for key, state in trial.states("notes", "body").items()}
    assert stored[1] is not None
    flipped = stored[1][:-1] + bytes([stored[1][-1] ^ 1])
    with engine.begin() as connection:
        change = sa.text("UPDATE notes SET body_encrypted = :blob WHERE id = :id")
        connection.execute(change, {"id": 1, "blob": flipped})
        connection.execute(change, {"id": 2, "blob": stored[3]})
        connection.execute(change, {"id": 3, "blob": stored[2]})
        connection.execute(change, {"id": 4, "blob": b"\1 looks like a ciphertext, and is none of ours"})
        connection.execute(change, {"id": 5, "blob": b"\1" + bytes(44)})
        connection.execute(sa.text("UPDATE notes SET body = 'behind' WHERE id = 6"))
        # Another owner's value, where nothing is left to compare it with.
        connection.execute(sa.text("UPDATE notes SET body = NULL WHERE id IN (10, 11)"))
        connection.execute(change, {"id": 10, "blob": stored[11]})
    report = migrator.verify(NOTES)
    assert (report.rows, report.mismatches, report.is_clean) == (30, 7, False)
    with pytest.raises(MigrationRefusedError, match="7 values that differ from the previous value"):
        migrator.cutover(NOTES)
    # Bound to their rows, equal values of one owner do not stand for each other either.
    blobs = [row[0] for row in trial.sql("SELECT body_encrypted FROM docs ORDER BY id")]
    table = trial.make("both").Doc.__table__
    with engine.begin() as connection:
        raw = sa.table("docs", sa.column("id", sa.Uuid), sa.column("body_encrypted", sa.LargeBinary))
        first = KEYS["docs"][1](0)["id"]
        connection.execute(raw.update().where(raw.c.id == first).values(body_encrypted=bytes(blobs[3])))
    assert table is not None
    assert migrator.verify("docs.body").mismatches == 1


def test_a_scale_that_the_database_fills_up_is_no_difference(engine: Engine) -> None:
    """Written to both by the application, 1.5 stands as 1.5000000000 in the previous column."""
    trial = Trial(engine).create("kinds")
    migrator = trial.migrator()
    for kind in INNER_TYPES:
        migrator.expand(f"kinds.a_{kind}")
    with trial.server() as session:
        session.add(trial.make("both").Kind(id=1, user_id=1, a_decimal=Decimal("1.5")))
        session.commit()
    migrator.run("kinds.a_decimal")
    assert migrator.verify("kinds.a_decimal").is_clean


def test_contract_refuses_until_everything_is_as_it_must_be(engine: Engine) -> None:
    """Not cut over, the policy "both", pending rows, no verification or an old one, a sample, mismatches."""
    trial = Trial(engine).create("notes")
    trial.insert("notes", notes(40))
    migrator, refusing = trial.migrator(), trial.migrator("refuse")
    with pytest.raises(MigrationRefusedError, match="phase 'new'"):
        migrator.cutover(NOTES)
    with pytest.raises(MigrationRefusedError, match="phase 'new'"):
        migrator.verify(NOTES)
    migrator.expand(NOTES)
    with pytest.raises(MigrationRefusedError, match="40 rows"):
        migrator.cutover(NOTES)
    migrator.run(NOTES)
    with pytest.raises(MigrationRefusedError, match="not verified"):
        migrator.cutover(NOTES)
    with pytest.raises(MigrationRefusedError, match="phase 'backfilled'"):
        refusing.contract(NOTES, stopped=True)
    assert migrator.verify(NOTES, sample=0.5).is_clean
    with pytest.raises(MigrationRefusedError, match=r"a sample of 50.00%"):
        migrator.cutover(NOTES)
    migrator.cutover(NOTES, accept_sample=True)
    with pytest.raises(MigrationRefusedError, match="policy 'both'"):
        migrator.contract(NOTES, stopped=True)
    with pytest.raises(MigrationRefusedError, match="still declares"):
        refusing.contract(NOTES)
    with pytest.raises(MigrationRefusedError, match="sample"):
        refusing.contract(NOTES, stopped=True)
    trial.sql("UPDATE notes SET body = 'late' WHERE id = 1")
    with pytest.raises(MigrationRefusedError, match="1 row "):
        refusing.guard(NOTES, accept_sample=True)
    migrator.run(NOTES)
    with pytest.raises(MigrationRefusedError, match="not verified since"):
        refusing.guard(NOTES, accept_sample=True)
    assert refusing.verify(NOTES).is_clean
    refusing.contract(NOTES, stopped=True)
    with pytest.raises(MigrationRefusedError, match="contracted"):
        migrator.run(NOTES)
    with pytest.raises(MigrationRefusedError, match="contracted"):
        migrator.reverse(NOTES)
    with pytest.raises(MigrationRefusedError, match="contracted"):
        migrator.expand(NOTES)


def test_what_was_verified_before_rows_were_encrypted_counts_no_more(engine: Engine) -> None:
    """The chunk that encrypts forgets the verification in its own transaction: also if the run is killed
    right after it."""
    trial = Trial(engine, pace=SMALL).create("notes")
    trial.insert("notes", notes(30))
    migrator = trial.migrator()
    migrator.run(NOTES)
    migrator.verify(NOTES)
    trial.sql("UPDATE notes SET body = 'late'")
    with pytest.raises(KeyboardInterrupt):
        migrator.run(NOTES, stop=interrupt_after(3))
    trial.sql("UPDATE notes SET body = NULL WHERE body_encrypted IS NULL")
    with pytest.raises(MigrationRefusedError, match="not verified since"):
        migrator.cutover(NOTES)


def test_two_runs_at_once_do_no_harm(engine: Engine) -> None:
    """From an untouched database on, each in a thread: every row is encrypted once, and both end well."""
    trial = Trial(engine, pace=Pace(smallest=5, largest=50, range_rows=100, patience=20.0)).create("notes")
    trial.insert("notes", notes(600))
    reports, failed = [], []
    start = threading.Barrier(2)

    def run() -> None:
        migrator = trial.migrator()
        start.wait()
        try:
            reports.append(migrator.run(NOTES))
        except BaseException as error:  # noqa: BLE001 - told in the test's own thread
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert failed == []
    assert [one.finished for one in reports] == [True, True]
    migrator = trial.migrator()
    assert trial.sql("SELECT sum(rows) FROM envelope_migration_range WHERE job = 'backfill'") == [(600,)]
    verified = migrator.verify(NOTES)
    assert (verified.rows, verified.is_clean) == (600, True)
    assert migrator.status(NOTES).both == 600


def test_no_plaintext_in_logs_errors_or_state(engine: Engine, capture_logs: LogCapture) -> None:
    """With SQLAlchemy's echo of everything: not in a log, not in an error, not in the tables of the state."""
    url = engine.url.render_as_string(hide_password=False)
    loud = create_engine(url, echo="debug")
    if loud.dialect.name == "sqlite":
        enforce_foreign_keys(loud)
    quiet = Trial(engine).create("notes", "kinds")
    canary = "CANARY-5f1d"
    quiet.insert("notes", [{"id": n, "user_id": n % 3 + 1, "body": f"{canary} {n}"} for n in range(1, 21)])
    begin = len(capture_logs.text)
    trial = Trial(loud)
    migrator = trial.to_cutover(NOTES)
    migrator.status(NOTES)
    with loud.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE refusing (x INTEGER)"
            if loud.dialect.name == "postgresql"
            else "CREATE TRIGGER refusing BEFORE UPDATE ON notes BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
        if loud.dialect.name == "postgresql":
            connection.exec_driver_sql(
                "ALTER TABLE notes ADD CONSTRAINT refusing CHECK (body_encrypted IS NULL) NOT VALID"
            )
    shown = capture_logs.text[begin:]
    quiet.insert("notes", [{"id": 77, "user_id": 1, "body": f"{canary} 77"}])
    begin = len(capture_logs.text)
    with pytest.raises(MigrationError) as caught:
        migrator.run(NOTES)
    assert canary not in everything(caught.value)
    with loud.begin() as connection:
        if loud.dialect.name == "postgresql":
            connection.exec_driver_sql("ALTER TABLE notes DROP CONSTRAINT refusing")
        else:
            connection.exec_driver_sql("DROP TRIGGER refusing")
    migrator.run(NOTES)
    migrator.verify(NOTES)
    migrator.reverse(NOTES)
    assert canary not in shown + capture_logs.text[begin:]
    assert "UPDATE notes" in shown
    for table in ("envelope_migration", "envelope_migration_job", "envelope_migration_range"):
        assert canary not in repr(quiet.sql(f"SELECT * FROM {table}"))
    loud.dispose()


def test_what_an_unreadable_value_shows(sqlite_engine: Engine) -> None:
    """A value that its type cannot read: the error names the row, and shows nothing of it."""
    trial = Trial(sqlite_engine).create("kinds")
    trial.insert("kinds", [{"id": n, "user_id": 1, "a_date": dt.date(2020, 1, n)} for n in (1, 2, 3)])
    trial.sql("UPDATE kinds SET a_date = 'CANARY-5f1d' WHERE id = 2")
    with pytest.raises(MigrationError) as caught:
        trial.migrator().run("kinds.a_date")
    assert "CANARY" not in everything(caught.value)
    assert trial.sql("SELECT a_date FROM kinds WHERE id = 2") == [("CANARY-5f1d",)]


def collated(policy: str) -> Deployment:
    """Keys and values under a collation that ignores case."""

    class Base(sa.orm.DeclarativeBase):
        pass

    name = "NOCASE" if collated_on == ["sqlite"] else "envelope_nocase"

    class Word(KeyOwner, Base):
        __tablename__ = "folded"

        id = sa.orm.mapped_column(sa.String(40, collation=name), primary_key=True)
        body = sa.orm.mapped_column(
            "body_encrypted",
            EncryptedType(
                sa.String(40),
                previous=PreviousColumn("body", sa.String(40, collation=name), policy),  # type: ignore[arg-type]
            ),
        )

    sa.orm.configure_mappers()
    return Deployment(Base, {"Word": Word})


collated_on: list[str] = []


def test_a_collation_that_ignores_case(engine: Engine) -> None:
    """In the key the order is the database's own; in the value a change of case is a change."""
    collated_on[:] = [engine.dialect.name]
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            try:
                connection.exec_driver_sql(
                    "CREATE COLLATION envelope_nocase (provider = icu, locale = 'und-u-ks-level2', "
                    "deterministic = false)"
                )
            except sa.exc.NotSupportedError:
                pytest.skip("this build of PostgreSQL has no ICU")
    made = collated("both")
    trial = Trial(engine, make=lambda policy: made, pace=SMALL)
    trial.before.create_all(engine)
    keys = [f"{'aAbB'[n % 4]}{chr(97 + n // 2)}{n}" for n in range(40)]
    trial.insert("folded", [{"id": key, "body": key} for key in keys])
    migrator = trial.migrator()
    report = migrator.run("folded.body")
    assert (report.rows, report.late, report.finished) == (40, 0, True)
    trial.sql("UPDATE folded SET body = upper(body)")
    upper = sum(key.upper() != key for key in keys)
    assert migrator.status("folded.body").pending == upper
    assert migrator.run("folded.body").rows == 40 + upper
    assert migrator.verify("folded.body").is_clean
