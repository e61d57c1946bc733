"""The triggers of a migration, against every way in which a program that knows nothing of it writes: what it
changed is pending, what it left is left, and what writes both columns is not disturbed."""

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from sqlalchemy_envelope import MigrationRefusedError, enforce_foreign_keys
from sqlalchemy_envelope.migration.database import schema
from sqlalchemy_envelope.migration.database.triggers import Tracked
from tests.migration.engine_models import Trial, notes
from tests.orm.models import without_checks

NOTES = "notes.body"
BLOB = b"a ciphertext"


class Table:
    """One row of a bare table with a tracking trigger: which of its changes make the row pending."""

    def __init__(self, engine: Engine, type_: str = "TEXT", suffix: str = "", name: str = "bare") -> None:
        self.engine, self.name = engine, name
        binary = "BYTEA" if engine.dialect.name == "postgresql" else "BLOB"
        self.sql(f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, v {type_}, other TEXT, e {binary}){suffix}")
        self.columns = Tracked(name, "v", "e", None, ["id"])
        with engine.begin() as connection:
            schema.change_on(connection, schema.track(engine.dialect, self.columns))

    def sql(self, statement: str, **values: object) -> list[sa.Row[tuple[object, ...]]]:
        with self.engine.begin() as connection:
            # Values of JSON hold colons.
            result = (
                connection.execute(sa.text(statement), values)
                if values
                else connection.exec_driver_sql(statement)
            )
            return list(result.all()) if result.returns_rows else []

    def start(self, value: str) -> None:
        """One row that is in both columns; the value as SQL."""
        self.sql(f"DELETE FROM {self.name}")
        value = value.replace(":", r"\:")
        self.sql(f"INSERT INTO {self.name} (id, v, other, e) VALUES (1, {value}, 'o', :blob)", blob=BLOB)

    def becomes_pending(self, statement: str, **values: object) -> bool:
        self.sql(statement, **values)
        (row,) = self.sql(f"SELECT e FROM {self.name} WHERE id = 1")
        assert row[0] is None or bytes(row[0]) == BLOB
        return row[0] is None


CHANGES = [
    ("UPDATE bare SET v = 'b'", True),
    ("UPDATE bare SET v = 'A'", True),
    ("UPDATE bare SET v = 'a '", True),
    ("UPDATE bare SET v = ''", True),
    ("UPDATE bare SET v = NULL", True),
    ("UPDATE bare SET v = 'b', other = 'p'", True),
    ("UPDATE bare SET v = 'b', e = e", True),
    ("UPDATE bare SET v = v", False),
    ("UPDATE bare SET v = 'a'", False),
    ("UPDATE bare SET other = 'p'", False),
    ("UPDATE bare SET other = 'p', v = v", False),
    ("INSERT INTO bare (id, v) VALUES (1, 'b') ON CONFLICT (id) DO UPDATE SET v = excluded.v", True),
    ("INSERT INTO bare (id, v) VALUES (1, 'a') ON CONFLICT (id) DO UPDATE SET v = excluded.v", False),
    ("INSERT INTO bare (id, v) VALUES (1, 'b') ON CONFLICT DO NOTHING", False),
]


@pytest.mark.parametrize(("statement", "pending"), CHANGES)
def test_an_old_writers_statement(engine: Engine, statement: str, pending: bool) -> None:
    """Whatever changes the value makes the row pending, and nothing else does."""
    table = Table(engine)
    table.start("'a'")
    assert table.becomes_pending(statement) is pending


def test_a_row_that_moves_its_key(engine: Engine) -> None:
    """A value changed together with the primary key of its row."""
    table = Table(engine)
    table.start("'a'")
    table.sql("UPDATE bare SET id = 2, v = 'b'")
    assert table.sql("SELECT id, v, e FROM bare") == [(2, "b", None)]


def test_replace_on_sqlite(sqlite_engine: Engine) -> None:
    """REPLACE is a new row: pending by nature."""
    table = Table(sqlite_engine)
    table.start("'a'")
    assert table.becomes_pending("REPLACE INTO bare (id, v) VALUES (1, 'a')")


def test_types_that_compare_equal_and_differ_on_sqlite(sqlite_engine: Engine) -> None:
    """In a column without a type 1, 1.0, '1' and a blob of it are four values."""
    table = Table(sqlite_engine, "")
    for before, after in [("1", "'1'"), ("1", "1.0"), ("'1'", "x'31'"), ("'a'", "'a' || char(0)")]:
        table.start(before)
        assert table.becomes_pending(f"UPDATE bare SET v = {after}"), (before, after)


def test_a_change_of_case_under_nocase(sqlite_engine: Engine) -> None:
    """A collation that takes both for one does not hide the change."""
    table = Table(sqlite_engine, "TEXT COLLATE NOCASE")
    table.start("'ada'")
    assert table.becomes_pending("UPDATE bare SET v = 'ADA'")


def test_a_table_without_rowid(sqlite_engine: Engine) -> None:
    """The row is found by its key, of however many columns, under whatever name."""
    with sqlite_engine.begin() as connection:
        connection.exec_driver_sql(
            'CREATE TABLE w (a TEXT COLLATE NOCASE, "b c" INTEGER, v TEXT, e BLOB, PRIMARY KEY (a, "b c")) '
            "WITHOUT ROWID"
        )
        columns = Tracked("w", "v", "e", None, ["a", "b c"])
        schema.change_on(connection, schema.track(sqlite_engine.dialect, columns))
        for key in (1, 2):
            connection.exec_driver_sql("INSERT INTO w VALUES ('k', ?, 'x', x'00')", (key,))
        connection.exec_driver_sql("""UPDATE w SET v = 'y' WHERE "b c" = 2""")
        assert connection.exec_driver_sql('SELECT "b c", e FROM w ORDER BY 1').all() == [
            (1, b"\0"),
            (2, None),
        ]


def test_recursive_triggers_on_sqlite(sqlite_engine: Engine) -> None:
    """Our trigger's own UPDATE does not set it off again, also where triggers may recurse."""
    table = Table(sqlite_engine)
    table.start("'a'")
    with sqlite_engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA recursive_triggers = ON")
        connection.exec_driver_sql("UPDATE bare SET v = 'b'")
        assert connection.exec_driver_sql("SELECT e FROM bare").scalar() is None


def test_copy_on_postgresql(postgres_engine: Engine) -> None:
    """COPY makes new rows: pending by nature, and found."""
    trial = Trial(postgres_engine).create("notes")
    trial.insert("notes", notes(3))
    migrator = trial.migrator()
    migrator.run(NOTES)
    with postgres_engine.begin() as connection:
        cursor = connection.connection.cursor()
        with cursor.copy("COPY notes (id, user_id, body) FROM STDIN") as copy:
            copy.write("100\t1\tcopied\n101\t2\t\\N\n")
    assert migrator.status(NOTES).pending == 1
    assert migrator.run(NOTES).late == 1
    assert migrator.verify(NOTES).is_clean


POSTGRES_TYPES = [
    ("JSONB", "'{\"a\": 1}'", "'{\"a\": 1.0}'", "'{\"a\":1}'"),
    ("JSON", "'{\"a\": 1}'", "'{\"a\":1}'", "'{\"a\": 1}'"),
    ("NUMERIC", "1.5", "1.50", "1.5"),
    ("NUMERIC(10, 2)", "1.5", "1.51", "1.500"),
    ("DOUBLE PRECISION", "0.1", "'0.10000000000000002'", "0.10"),
    ("DOUBLE PRECISION", "0.0", "'-0.0'", "0"),
    ("DOUBLE PRECISION", "'NaN'", "0", "'NaN'"),
    ("TIMESTAMPTZ", "'2020-01-01 00:00+00'", "'2020-01-01 00:00:00.000001+00'", "'2020-01-01 01:00+01'"),
    ("INTERVAL", "'1 day'", "'24 hours'", "'1 day'"),
    ("CHAR(5)", "'a'", "'b'", "'a  '"),
    ("BYTEA", "'\\x00'", "'\\x0000'", "'\\x00'"),
    ("TEXT[]", "'{a,b}'", "'{\"a,b\"}'", "'{a,b}'"),
    ("INET", "'10.0.0.1'", "'10.0.0.1/24'", "'10.0.0.1/32'"),
    ('TEXT COLLATE "C"', "'a'", "'A'", "'a'"),
]


@pytest.mark.parametrize(("type_", "before", "change", "none"), POSTGRES_TYPES)
def test_types_of_postgresql(
    postgres_engine: Engine, type_: str, before: str, change: str, none: str
) -> None:
    """A change that shows in the stored bytes is one, whatever the type's own equality and the settings of
    the session say."""
    table = Table(postgres_engine, type_)
    table.start(before)
    assert not table.becomes_pending(f"UPDATE bare SET v = {none}")
    with postgres_engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL extra_float_digits = -15")
        connection.exec_driver_sql(f"UPDATE bare SET v = {change}")
    assert table.sql("SELECT e FROM bare") == [(None,)]


@pytest.fixture
def insensitive(postgres_engine: Engine) -> str:
    """A type of PostgreSQL that ignores case; skipped where the build has none."""
    with postgres_engine.begin() as connection:
        names = connection.exec_driver_sql("SELECT name FROM pg_available_extensions").scalars().all()
        if "citext" in names:
            connection.exec_driver_sql("CREATE EXTENSION citext")
            return "citext"
    pytest.skip("this build of PostgreSQL has no citext")


def test_a_change_of_case_on_postgresql(postgres_engine: Engine, insensitive: str) -> None:
    """As on SQLite."""
    table = Table(postgres_engine, insensitive)
    table.start("'ada'")
    assert not table.becomes_pending("UPDATE bare SET v = 'ada'")
    assert table.becomes_pending("UPDATE bare SET v = 'ADA'")


def test_who_writes_both_is_left_alone(engine: Engine) -> None:
    """The application with the policy "both": what it writes counts, at once and after the cut-over."""
    trial = Trial(engine).create("notes")
    trial.insert("notes", notes(5))
    migrator = trial.migrator()
    migrator.run(NOTES)
    before = trial.states("notes", "body")
    with trial.server() as session:
        note = session.get_one(trial.make("both").Note, 1)
        note.body = "from both"
        session.get_one(trial.make("both").Note, 2).title = "another column"
        session.commit()
    after = trial.states("notes", "body")
    assert after[1][0] == "from both"
    assert after[1][1] not in (None, before[1][1])
    assert after[2] == before[2]
    assert migrator.status(NOTES).pending == 0
    assert migrator.verify(NOTES).is_clean
    migrator.cutover(NOTES)
    with trial.server("read") as session:
        session.get_one(trial.make("read").Note, 3).body = "encrypted alone"
        session.commit()
    state = trial.states("notes", "body")[3]
    assert state[0] is None
    assert state[1] is not None


def test_emptying_the_previous_column_alone_is_refused_after_the_cut_over(engine: Engine) -> None:
    """Before it, that means NULL; after it, somebody is cleaning up, and would lose every value."""
    trial = Trial(engine).create("notes")
    trial.insert("notes", notes(5))
    migrator = trial.migrator()
    migrator.run(NOTES)
    trial.sql("UPDATE notes SET body = NULL WHERE id = 5")
    assert trial.states("notes", "body")[5] == (None, None)
    migrator.verify(NOTES)
    migrator.cutover(NOTES)
    before = trial.states("notes", "body")
    with pytest.raises(DBAPIError, match="since the cut-over"):
        trial.sql("UPDATE notes SET body = NULL")
    assert trial.states("notes", "body") == before
    trial.sql("UPDATE notes SET body = 'still tracked' WHERE id = 1")
    assert trial.states("notes", "body")[1] == ("still tracked", None)
    trial.sql("UPDATE notes SET body = NULL, body_encrypted = NULL WHERE id = 2")
    assert trial.states("notes", "body")[2] == (None, None)


@pytest.mark.parametrize(
    ("statement", "refused"),
    [
        ("INSERT INTO notes (id, user_id, body) VALUES (50, 1, 'old')", True),
        ("UPDATE notes SET body = 'old' WHERE id = 1", True),
        ("UPDATE notes SET body_encrypted = NULL WHERE id = 1", False),
        ("UPDATE notes SET body = 'old', body_encrypted = NULL WHERE id = 1", True),
        # As a program with the policy "both" writes: plaintext beside its ciphertext.
        ("UPDATE notes SET body = 'both', body_encrypted = ({other}) WHERE id = 1", True),
        ("INSERT INTO notes (id, user_id, body, body_encrypted) SELECT 50, 1, 'both', ({other})", True),
        ("INSERT INTO notes (id, user_id, body_encrypted) VALUES (50, 1, CAST('old' AS {binary}))", True),
        ("UPDATE notes SET body_encrypted = CAST('old' AS {binary}) WHERE id = 1", True),
        ("UPDATE notes SET body_encrypted = (SELECT body_encrypted FROM notes WHERE id = 2)", False),
        ("INSERT INTO notes (id, user_id) VALUES (50, 1)", False),
        ("UPDATE notes SET title = 't'", False),
        ("UPDATE notes SET body = NULL, body_encrypted = NULL WHERE id = 1", False),
        ("DELETE FROM notes WHERE id = 1", False),
    ],
)
def test_the_guard_of_a_contract(engine: Engine, statement: str, refused: bool) -> None:
    """While the previous column is dropped, whoever writes plaintext fails, beside a ciphertext too, and what
    is no ciphertext, without a CHECK too. The rest goes on."""
    trial = Trial(engine).create("notes")
    without_checks(engine)
    binary = "BLOB" if engine.dialect.name == "sqlite" else "bytea"
    statement = statement.format(
        binary=binary, other="SELECT body_encrypted FROM notes AS other WHERE id = 2"
    )
    trial.insert("notes", notes(5))
    migrator = trial.to_cutover(NOTES)
    columns = schema.tracked(migrator.column(NOTES))
    schema.change(engine, schema.guard(engine.dialect, columns))
    if refused:
        with pytest.raises(DBAPIError, match="this program writes plaintext"):
            trial.sql(statement)
    else:
        trial.sql(statement)
    assert migrator.status(NOTES).pending == 0
    schema.change(engine, schema.unguard(engine.dialect, columns))
    trial.sql("UPDATE notes SET body = 'old' WHERE id = 2")
    assert migrator.status(NOTES).pending == 1


def test_another_before_trigger_that_changes_the_value(postgres_engine: Engine) -> None:
    """Ours comes last, and sees what the others have made of the row."""
    table = Table(postgres_engine)
    table.sql(
        "CREATE FUNCTION trimmed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "NEW.v := upper(trim(NEW.v)); RETURN NEW; END $$"
    )
    table.sql("CREATE TRIGGER mm_trimmed BEFORE UPDATE ON bare FOR EACH ROW EXECUTE FUNCTION trimmed()")
    table.start("'A'")
    assert not table.becomes_pending("UPDATE bare SET v = ' a '")
    assert table.becomes_pending("UPDATE bare SET other = 'x', v = 'b'")
    table.start("'a'")
    assert table.becomes_pending("UPDATE bare SET other = 'x'"), "the other trigger has changed the value"


def test_a_before_trigger_on_sqlite_that_writes_the_row(sqlite_engine: Engine) -> None:
    """A trigger of the application's own that changes the value by another UPDATE sets ours off."""
    table = Table(sqlite_engine)
    table.sql(
        "CREATE TRIGGER own AFTER UPDATE OF other ON bare BEGIN "
        "UPDATE bare SET v = upper(v) WHERE id = NEW.id; END"
    )
    table.start("'a'")
    assert table.becomes_pending("UPDATE bare SET other = 'x'")


def test_a_partitioned_table(postgres_engine: Engine) -> None:
    """The trigger stands on every partition, later ones too, for who writes to the partition itself, and for
    rows that move to another."""
    sql = [
        "CREATE TABLE bare (id INTEGER PRIMARY KEY, v TEXT, other TEXT, e BYTEA) PARTITION BY RANGE (id)",
        "CREATE TABLE low PARTITION OF bare FOR VALUES FROM (0) TO (100)",
    ]
    with postgres_engine.begin() as connection:
        for one in sql:
            connection.exec_driver_sql(one)
        schema.change_on(connection, schema.track(postgres_engine.dialect, Tracked("bare", "v", "e")))
        connection.exec_driver_sql("CREATE TABLE high PARTITION OF bare FOR VALUES FROM (100) TO (200)")
        connection.exec_driver_sql(
            "INSERT INTO bare SELECT n, 'a', 'o', '\\x00' FROM generate_series(1, 3) n"
        )
        connection.exec_driver_sql("INSERT INTO bare VALUES (150, 'a', 'o', '\\x00')")
        connection.exec_driver_sql("UPDATE bare SET v = 'b' WHERE id = 1")
        connection.exec_driver_sql("UPDATE low SET v = 'b' WHERE id = 2")
        connection.exec_driver_sql("UPDATE bare SET id = 151, v = 'b' WHERE id = 3")
        connection.exec_driver_sql("UPDATE high SET v = 'b' WHERE id = 150")
        assert set(connection.exec_driver_sql("SELECT id, e FROM bare").all()) == {
            (1, None),
            (2, None),
            (151, None),
            (150, None),
        }


def test_a_partitioned_table_is_migrated(postgres_engine: Engine) -> None:
    """From start to contract, with an old writer that writes to a partition."""
    trial = Trial(postgres_engine).create("cells")
    trial.sql("DROP TABLE cells")
    trial.sql(
        "CREATE TABLE cells (user_id INTEGER REFERENCES users ON DELETE CASCADE, number INTEGER, body TEXT, "
        "PRIMARY KEY (user_id, number)) PARTITION BY LIST (user_id)"
    )
    for number in (1, 2, 3):
        trial.sql(f"CREATE TABLE cells_{number} PARTITION OF cells FOR VALUES IN ({number})")
    trial.insert("cells", [{"user_id": n % 3 + 1, "number": n, "body": f"b{n}"} for n in range(30)])
    trial.to_cutover("cells.body")
    trial.sql("UPDATE cells_2 SET body = 'old' WHERE number = 1")
    migrator = trial.migrator()
    assert migrator.status("cells.body").pending == 1
    assert migrator.run("cells.body").rows == 31
    assert migrator.verify("cells.body").is_clean
    trial.migrator("refuse").contract("cells.body", stopped=True)
    assert "body" not in [one["name"] for one in sa.inspect(postgres_engine).get_columns("cells_2")]


def test_a_table_that_others_inherit_from_is_refused(postgres_engine: Engine) -> None:
    """PostgreSQL's INHERITS does not hand triggers down: who writes to a child would not be found."""
    trial = Trial(postgres_engine).create("notes")
    trial.insert("notes", notes(3))
    trial.sql("CREATE TABLE old_notes () INHERITS (notes)")
    migrator = trial.migrator()
    with pytest.raises(MigrationRefusedError, match="old_notes"):
        migrator.expand(NOTES)
    assert "body_encrypted" not in [one["name"] for one in sa.inspect(postgres_engine).get_columns("notes")]


def test_triggers_are_found_dropped(engine: Engine) -> None:
    """A run puts back what somebody has dropped: `expand` may be called again while the migration lasts."""
    trial = Trial(engine).create("notes")
    trial.insert("notes", notes(3))
    migrator = trial.migrator()
    migrator.run(NOTES)
    columns = schema.tracked(migrator.column(NOTES))
    schema.change(engine, schema.untrack(engine.dialect, columns))
    migrator.expand(NOTES)
    trial.sql("UPDATE notes SET body = 'old' WHERE id = 1")
    assert migrator.status(NOTES).pending == 1


def test_two_columns_of_one_table(engine: Engine) -> None:
    """Each has triggers of its own; long names and such that are no ASCII do not make them one."""
    long = "tabelle_für_notizen_mit_überlangem_namen"
    binary = "BYTEA" if engine.dialect.name == "postgresql" else "BLOB"
    with engine.begin() as connection:
        connection.exec_driver_sql(
            f'CREATE TABLE "{long}" (id INTEGER PRIMARY KEY, a TEXT, ae {binary}, b TEXT, be {binary})'
        )
        for name in "ab":
            columns = Tracked(long, name, f"{name}e", None, ["id"])
            schema.change_on(connection, schema.track(engine.dialect, columns))
            assert len(columns.trigger("guardi").encode()) < 63
        table = sa.table(long, *(sa.column(name) for name in ("id", "a", "ae", "b", "be")))
        connection.execute(table.insert().values(id=1, a="x", ae=b"1", b="x", be=b"2"))
        connection.execute(table.update().values(a="y"))
        assert connection.execute(sa.select(table.c.ae, table.c.be.is_(None))).all() == [(None, False)]
        connection.execute(table.update().values(b="y"))
        assert connection.execute(sa.select(table.c.be)).all() == [(None,)]


def test_foreign_keys_do_not_matter_to_triggers(sqlite_engine: Engine) -> None:
    """An old program that does not enforce them sets the triggers off as well."""
    trial = Trial(sqlite_engine).create("notes")
    trial.insert("notes", notes(3))
    trial.migrator().run(NOTES)
    other = sa.create_engine(sqlite_engine.url)
    with other.begin() as connection:
        connection.exec_driver_sql("UPDATE notes SET body = 'old' WHERE id = 1")
    other.dispose()
    enforce_foreign_keys(sqlite_engine)
    assert trial.migrator().status(NOTES).pending == 1
