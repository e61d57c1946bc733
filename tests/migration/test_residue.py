"""What is left of plaintext: canaries, searched as bytes in the files of PostgreSQL and SQLite.

Each run writes 400 random strings as plaintext, takes them away step by step, and counts after each step how
many of them the files still hold. The tables in docs/explanation/plaintext-that-remains.md are read here and
must say what was counted. Plain SQL does the steps: what is left is the databases' doing, not the library's.
"""

import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine, ForeignKey, String, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqlalchemy_envelope import EncryptedType, KeyOwner
from sqlalchemy_envelope.migration.database.columns import MigratingColumn, column_named, migrating_columns
from sqlalchemy_envelope.migration.inspection.residue import Residue, where_plaintext_remains
from sqlalchemy_envelope.orm.columns.previous import PreviousColumn
from tests.throwaway_postgres import throwaway_postgres

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "plaintext-that-remains.md"
COUNT = 400
CANARY = re.compile(rb"[0-9a-f]{24,}")


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)


class Contact(Base):
    __tablename__ = "contacts"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    phone: Mapped[str | None] = mapped_column(
        "phone_encrypted", EncryptedType(String, previous=PreviousColumn("phone", String(40)))
    )


def contact_phone() -> MigratingColumn:
    return column_named(migrating_columns(Base), "contacts.phone")


@pytest.fixture
def canaries() -> list[str]:
    return [secrets.token_hex(12) for _ in range(COUNT)]


def count_in(files: Iterable[Path], canaries: list[str]) -> int:
    """How many of the canaries these files hold."""
    # Only the runs of letters that canaries are made of: the rest is slow to search 400 times.
    runs = [run for file in files if file.is_file() for run in CANARY.findall(file.read_bytes())]
    content = b"\n".join(runs)
    return sum(canary.encode() in content for canary in canaries)


def told(heading: str) -> list[tuple[str, list[str]]]:
    """The rows of the table under a heading of the page: the step, and a cell for each place."""
    section = PAGE.read_text(encoding="utf-8").split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [(step.replace("`", ""), places) for step, *places in cells]


def says(cell: str, count: int) -> bool:
    """Whether a cell of the page tells this count: 0, all, "some", or "0 to 5"."""
    if cell == "some":
        return 0 < count < COUNT
    low, _, high = cell.partition(" to ")
    return int(low) <= count <= int(high or low)


def clean_up(heading: str) -> list[str]:
    """The statements of the first SQL block under a heading of the page."""
    section = PAGE.read_text(encoding="utf-8").split(f"## {heading}\n", 1)[1]
    block = section.split("```sql\n", 1)[1].split("```", 1)[0]
    return [line.split("--")[0].strip() for line in block.splitlines()]


def states(residues: list[Residue]) -> dict[str, str]:
    return {one.place: one.state for one in residues}


# --- PostgreSQL


POSTGRES_STEPS: list[tuple[str, list[str]]] = [
    ("as written", ["ANALYZE contacts"]),
    ("UPDATE: encrypted beside it", ["UPDATE contacts SET phone_encrypted = decode(md5(phone), 'hex')"]),
    ("UPDATE: set to NULL", ["UPDATE contacts SET phone = NULL"]),
    ("VACUUM", ["VACUUM contacts"]),
    ("ANALYZE", ["ANALYZE contacts"]),
    ("DROP COLUMN", ["ALTER TABLE contacts DROP COLUMN phone"]),
    ("VACUUM again", ["VACUUM contacts"]),
    ("VACUUM (FULL, ANALYZE) contacts", ["VACUUM (FULL, ANALYZE) contacts"]),
    ("VACUUM FULL pg_catalog.pg_statistic", ["VACUUM FULL pg_catalog.pg_statistic"]),
    ("WAL switched twice", ["SELECT pg_switch_wal()", "CHECKPOINT"] * 2),
    (
        "the same with wal_recycle = off",
        [
            "ALTER SYSTEM SET wal_recycle = off",
            "SELECT pg_reload_conf()",
            "SELECT pg_sleep(1)",
            *["SELECT pg_switch_wal()", "CHECKPOINT"] * 2,
        ],
    ),
]


@pytest.fixture
def own_server() -> Iterator[Path]:
    """A server of this test's own; the settings that decide what is written where are the default ones."""
    # Autovacuum would do some of the steps at a moment of its own.
    with throwaway_postgres(
        full_page_writes="on", synchronous_commit="on", autovacuum="off", max_prepared_transactions="2"
    ) as folder:
        yield folder


def postgres_counts(connection: psycopg.Connection, folder: Path, canaries: list[str]) -> list[int]:
    """In the table's files, its index, those of pg_statistic, the WAL, and all others of the server."""
    connection.execute("CHECKPOINT")
    data = folder / "data"

    def files_of(*relations: str) -> list[Path]:
        named = "SELECT pg_relation_filepath(to_regclass(name)) FROM unnest(%s::text[]) AS name"
        found = connection.execute(named, [list(relations)]).fetchall()
        return [data / path for (path,) in found if path is not None]

    places = [
        files_of("contacts"),
        files_of("by_phone"),
        files_of("pg_statistic", "pg_toast.pg_toast_2619"),
        list((data / "pg_wal").iterdir()),
    ]
    known = {file for place in places for file in place}
    places.append([file for file in folder.rglob("*") if file not in known and "wheel" not in file.parts])
    return [count_in(place, canaries) for place in places]


@pytest.mark.backend
def test_postgres_files(own_server: Path, canaries: list[str]) -> None:
    """The files of PostgreSQL hold after each step what the page says, and nothing after all of them."""
    with psycopg.connect(
        host=str(own_server), user="postgres", dbname="postgres", autocommit=True
    ) as connection:
        connection.execute("CREATE TABLE contacts (id int PRIMARY KEY, phone text, phone_encrypted bytea)")
        connection.execute("CREATE INDEX by_phone ON contacts (phone)")
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO contacts VALUES (%s, %s)", list(enumerate(canaries)))
        counted = []
        for step, statements in POSTGRES_STEPS:
            for statement in statements:
                connection.execute(statement)
            counted.append((step, postgres_counts(connection, own_server, canaries)))

    _compare(counted, told("What was found: PostgreSQL"))
    assert counted[-1][1] == [0, 0, 0, 0, 0]


@pytest.mark.backend
def test_clean_up_of_postgres(own_server: Path, canaries: list[str]) -> None:
    """The clean-up of the page, as it stands there, leaves nothing in PostgreSQL's files."""
    engine = create_engine(f"postgresql+psycopg://postgres@/postgres?host={own_server}")
    table_of(engine, canaries)
    run(engine, "CREATE STATISTICS pairs (mcv) ON user_id, phone FROM contacts", "ANALYZE contacts")
    run(engine, "UPDATE contacts SET phone = NULL", "ALTER TABLE contacts DROP COLUMN phone")
    run(engine, *clean_up("What was found: PostgreSQL"))
    engine.dispose()

    assert count_in(own_server.rglob("*"), canaries) == 0


@pytest.mark.parametrize("mode", ["DELETE", "WAL", "PERSIST"])
def test_clean_up_of_sqlite(tmp_path: Path, canaries: list[str], mode: str) -> None:
    """The clean-up of the page, as it stands there, leaves nothing in SQLite's files."""
    engine = create_engine(f"sqlite:///{tmp_path / 'test.db'}")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"PRAGMA journal_mode={mode}")
        connection.exec_driver_sql("PRAGMA secure_delete=OFF")
    table_of(engine, canaries)
    run(engine, "UPDATE contacts SET phone = NULL")

    assert count_in(tmp_path.iterdir(), canaries) > 0

    run(engine, "DROP INDEX by_phone", "ALTER TABLE contacts DROP COLUMN phone")
    run(engine, *clean_up("What was found: SQLite"))
    engine.dispose()

    assert count_in(tmp_path.iterdir(), canaries) == 0


@pytest.mark.backend
def test_dropped_postgres_column(own_server: Path, canaries: list[str]) -> None:
    """A column that is dropped without being set to NULL stays in each row until the table is rewritten."""
    with psycopg.connect(
        host=str(own_server), user="postgres", dbname="postgres", autocommit=True
    ) as connection:
        connection.execute("CREATE TABLE contacts (id int PRIMARY KEY, phone text, phone_encrypted bytea)")
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO contacts VALUES (%s, %s)", list(enumerate(canaries)))
        connection.execute("ALTER TABLE contacts DROP COLUMN phone")
        connection.execute("VACUUM contacts")
        kept = postgres_counts(connection, own_server, canaries)[0]
        connection.execute("VACUUM FULL contacts")

        assert kept == COUNT
        assert postgres_counts(connection, own_server, canaries)[0] == 0


@pytest.mark.backend
def test_postgres_log(own_server: Path, canaries: list[str]) -> None:
    """With default settings, an INSERT that breaks a constraint leaves its value in the server's log,
    although it was a parameter."""
    with psycopg.connect(
        host=str(own_server), user="postgres", dbname="postgres", autocommit=True
    ) as connection:
        connection.execute("CREATE TABLE contacts (id int PRIMARY KEY, phone text NOT NULL UNIQUE)")
        connection.execute("INSERT INTO contacts VALUES (1, %s)", [canaries[0]])

        assert count_in([own_server / "log"], canaries) == 0

        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute("INSERT INTO contacts VALUES (2, %s)", [canaries[0]])

        assert count_in([own_server / "log"], canaries) == 1


def _compare(counted: list[tuple[str, list[int]]], page: list[tuple[str, list[str]]]) -> None:
    for step, counts in counted:
        print(f"{step:45}", *(f"{count:5}" for count in counts))
    assert [step for step, _ in counted] == [step for step, _ in page]
    for (step, counts), (_, cells) in zip(counted, page, strict=True):
        agree = [says(cell, count) for cell, count in zip(cells, counts, strict=True)]
        assert all(agree), f"{step}: counted {counts}, the page says {cells}"


# --- SQLite


SQLITE_STEPS: list[tuple[str, list[str]]] = [
    ("as written", ["ANALYZE", "PRAGMA wal_checkpoint(TRUNCATE)"]),
    ("UPDATE: encrypted beside it", ["UPDATE contacts SET phone_encrypted = randomblob(69)"]),
    ("UPDATE: set to NULL", ["UPDATE contacts SET phone = NULL"]),
    ("DROP INDEX, DROP COLUMN", ["DROP INDEX by_phone", "ALTER TABLE contacts DROP COLUMN phone"]),
    ("PRAGMA wal_checkpoint(TRUNCATE)", ["PRAGMA wal_checkpoint(TRUNCATE)"]),
    ("VACUUM", ["VACUUM"]),
    ("PRAGMA wal_checkpoint(TRUNCATE) again", ["PRAGMA wal_checkpoint(TRUNCATE)"]),
]


def sqlite_counts(folder: Path, mode: str, secure: str, canaries: list[str]) -> list[tuple[str, list[int]]]:
    """After each step: how many are in the database file, and in what lies beside it."""
    file = folder / f"{mode}-{secure}.db"
    engine = create_engine(f"sqlite:///{file}", isolation_level="AUTOCOMMIT")
    counted = []
    with engine.connect() as connection:
        connection.exec_driver_sql(f"PRAGMA journal_mode={mode}")
        connection.exec_driver_sql(f"PRAGMA secure_delete={secure}")
        connection.exec_driver_sql(
            "CREATE TABLE contacts (id integer PRIMARY KEY, phone text, phone_encrypted blob)"
        )
        connection.exec_driver_sql("CREATE INDEX by_phone ON contacts (phone)")
        connection.exec_driver_sql(
            "INSERT INTO contacts (id, phone) VALUES (?, ?)", list(enumerate(canaries))
        )
        for step, statements in SQLITE_STEPS:
            for statement in statements:
                connection.exec_driver_sql(statement)
            beside = [Path(f"{file}-wal"), Path(f"{file}-journal")]
            counted.append((step, [count_in([file], canaries), count_in(beside, canaries)]))
    engine.dispose()
    return counted


def test_sqlite_files(tmp_path: Path, canaries: list[str]) -> None:
    """SQLite's files hold after each step what the page says, and nothing after all of them."""
    runs = [
        sqlite_counts(tmp_path, mode, secure, canaries)
        for mode in ("DELETE", "WAL")
        for secure in ("OFF", "ON")
    ]
    counted = [
        (rows[0][0], [count for _, counts in rows for count in counts]) for rows in zip(*runs, strict=True)
    ]

    _compare(counted, told("What was found: SQLite"))
    assert counted[-1][1] == [0] * 8


def test_kept_sqlite_journal(tmp_path: Path, canaries: list[str]) -> None:
    """With journal_mode=PERSIST the journal keeps plaintext even after VACUUM, until the mode changes; a new
    connection is in the mode DELETE already, and must be put into the other one first."""
    counted = sqlite_counts(tmp_path, "PERSIST", "ON", canaries)

    assert counted[-1][1][0] == 0
    assert counted[-1][1][1] > 0

    engine = create_engine(f"sqlite:///{tmp_path / 'PERSIST-ON.db'}", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode=DELETE")

        assert count_in(tmp_path.iterdir(), canaries) > 0

        connection.exec_driver_sql("PRAGMA journal_mode=PERSIST")
        connection.exec_driver_sql("PRAGMA journal_mode=DELETE")
    engine.dispose()

    assert count_in(tmp_path.iterdir(), canaries) == 0


# --- What the catalogs tell


def remains(engine: Engine, *, dropped: bool = False) -> list[Residue]:
    with engine.connect() as connection:
        return where_plaintext_remains(
            connection, Contact.metadata.tables["contacts"] if dropped else contact_phone()
        )


def run(engine: Engine, *statements: str) -> None:
    """Each statement by itself, outside a transaction, as VACUUM wants it."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def table_of(engine: Engine, canaries: list[str]) -> None:
    binary = "bytea" if engine.dialect.name == "postgresql" else "BLOB"
    run(
        engine,
        f"CREATE TABLE contacts (id integer PRIMARY KEY, user_id integer, phone varchar(40), "
        f"phone_encrypted {binary})",
        "CREATE INDEX by_phone ON contacts (phone)",
        "INSERT INTO contacts (id, phone) VALUES "
        + ", ".join(f"({number}, '{canary}')" for number, canary in enumerate(canaries)),
        "ANALYZE TABLE contacts" if engine.dialect.name in ("mysql", "mariadb") else "ANALYZE",
    )


def test_told_of_postgres(postgres_engine: Engine, canaries: list[str]) -> None:
    """Before, during and after the migration the catalogs tell where plaintext is, and no value is shown."""
    table_of(postgres_engine, canaries)
    run(postgres_engine, "CREATE STATISTICS pairs (mcv) ON user_id, phone FROM contacts")
    run(postgres_engine, "CREATE MATERIALIZED VIEW kept AS SELECT phone FROM contacts")
    before = remains(postgres_engine)
    run(
        postgres_engine, "DROP MATERIALIZED VIEW kept", "UPDATE contacts SET phone = NULL", "ANALYZE contacts"
    )
    cut_over = remains(postgres_engine)
    run(postgres_engine, "ALTER TABLE contacts DROP COLUMN phone")
    dropped = remains(postgres_engine, dropped=True)

    assert states(before) == {
        "rows": "holds plaintext",
        "the table's files": "may hold plaintext",
        "planner statistics": "holds plaintext",
        "extended statistics": "may hold plaintext",
        "indexes and materialised views": "may hold plaintext",
        "write-ahead log": "may hold plaintext",
        "replicas": "unknown",
        "server log": "unknown",
        "backups": "unknown",
        "freed blocks of the disc": "unknown",
    }
    assert {"rows": "clean", "planner statistics": "may hold plaintext"}.items() <= states(cut_over).items()
    assert {"rows": "clean", "the table's files": "may hold plaintext"}.items() <= states(dropped).items()
    assert "index by_phone, materialised view kept" in _known(before, "indexes and materialised views")
    assert "400 rows" in _known(before, "rows")
    assert "1 dropped column:" in _known(dropped, "the table's files")
    assert remains(postgres_engine) == remains(postgres_engine, dropped=True)
    _assert_shows_no_value([before, cut_over, dropped], canaries)


def test_told_of_sqlite(sqlite_engine: Engine, canaries: list[str]) -> None:
    """The same on SQLite, in WAL mode."""
    run(sqlite_engine, "PRAGMA journal_mode=WAL")
    table_of(sqlite_engine, canaries)
    before = remains(sqlite_engine)
    run(sqlite_engine, "UPDATE contacts SET phone = NULL", "DROP INDEX by_phone")
    run(sqlite_engine, "ALTER TABLE contacts DROP COLUMN phone")
    dropped = remains(sqlite_engine, dropped=True)
    run(sqlite_engine, "VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)")
    cleaned = remains(sqlite_engine, dropped=True)

    assert states(before) == {
        "rows": "holds plaintext",
        "freed places of the database file": "may hold plaintext",
        "journal": "may hold plaintext",
        "planner statistics": "clean",
        "backups": "unknown",
        "freed blocks of the disc": "unknown",
    }
    assert {"rows": "clean", "journal": "may hold plaintext"}.items() <= states(dropped).items()
    assert {"rows": "clean", "journal": "clean"}.items() <= states(cleaned).items()
    _assert_shows_no_value([before, dropped, cleaned], canaries)


def test_full_text_index_of_sqlite(sqlite_engine: Engine, canaries: list[str]) -> None:
    """A full-text index, which may hold the column's words, is told of."""
    table_of(sqlite_engine, canaries)
    run(sqlite_engine, "CREATE VIRTUAL TABLE words USING fts5 (phone)")

    assert "words" in _known(remains(sqlite_engine), "full-text indexes")


@pytest.mark.backend
def test_settings_of_postgres(own_server: Path, canaries: list[str]) -> None:
    """A log of all statements, a transaction that holds VACUUM back, and a replication slot are told of."""
    engine = create_engine(f"postgresql+psycopg://postgres@/postgres?host={own_server}")
    table_of(engine, canaries)
    before = states(remains(engine))
    run(
        engine,
        "BEGIN",
        "UPDATE contacts SET phone = NULL",
        "PREPARE TRANSACTION 'forgotten'",
        "SELECT pg_create_physical_replication_slot('forgotten')",
        "ALTER SYSTEM SET log_statement = 'all'",
        "SELECT pg_reload_conf()",
    )
    engine.dispose()
    after = states(remains(engine))
    engine.dispose()

    changed = {"server log", "open transactions", "replicas"}
    assert changed == {place for place in after if after[place] != before.get(place)}
    assert {after[place] for place in changed} == {"may hold plaintext"}


def _known(residues: list[Residue], place: str) -> str:
    return next(one.known for one in residues if one.place == place)


def _assert_shows_no_value(reports: list[list[Residue]], canaries: list[str]) -> None:
    shown = repr(reports)
    assert not [canary for canary in canaries if canary in shown]


# --- MariaDB


MARIADB_URL = os.environ.get("ENVELOPE_MARIADB_URL")


@pytest.fixture
def mariadb() -> Iterator[Engine]:
    engine = create_engine(MARIADB_URL or "")
    run(engine, "DROP TABLE IF EXISTS contacts")
    yield engine
    run(engine, "DROP TABLE IF EXISTS contacts")
    engine.dispose()


@pytest.mark.skipif(not MARIADB_URL, reason="ENVELOPE_MARIADB_URL names no server")
def test_told_of_mariadb(mariadb: Engine, canaries: list[str]) -> None:
    """On MariaDB: rows, file, logs, and statistics that were gathered for the column."""
    table_of(mariadb, canaries)
    before = remains(mariadb)
    run(mariadb, "ANALYZE TABLE contacts PERSISTENT FOR ALL")
    gathered = remains(mariadb)
    run(mariadb, "ALTER TABLE contacts DROP COLUMN phone")
    dropped = remains(mariadb, dropped=True)

    assert states(before) == {
        "rows": "holds plaintext",
        "the table's file": "may hold plaintext",
        "undo and redo log": "may hold plaintext",
        "planner statistics": "clean",
        "binary log": "unknown",
        "server logs": "unknown",
        "replicas": "unknown",
        "backups": "unknown",
        "freed blocks of the disc": "unknown",
    }
    assert states(gathered)["planner statistics"] == "may hold plaintext"
    assert states(dropped)["rows"] == "clean"
    _assert_shows_no_value([before, gathered, dropped], canaries)
