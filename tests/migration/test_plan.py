"""What `plan` finds: each obstacle made in a real table, and found with its code, its severity and its name.

MariaDB's are looked for on the server that the environment variable ENVELOPE_MARIADB_URL names, in an empty
database (`mysql+pymysql://root@127.0.0.1/test`); without it those tests are skipped.
"""

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from sqlalchemy_envelope import Envelope, KdfProfile, ServerKeyring
from sqlalchemy_envelope.migration.inspection.obstacles import find_obstacles
from sqlalchemy_envelope.migration.migrator import Migrator
from tests.migration.plan_models import CONTACTS, Base, User, codes, contact_phone, found_in, harmless, table

USERS = "CREATE TABLE users (id varchar(40) NOT NULL PRIMARY KEY)"
CONTACT = "contacts.phone"
KEY = "id integer NOT NULL PRIMARY KEY"
OWNER = "user_id varchar(40) NOT NULL REFERENCES users (id)"
PHONE = "phone varchar(20)"


# A second table, for obstacles that are not in the first.
OTHER = "CREATE TABLE others (id integer NOT NULL PRIMARY KEY, phone varchar(20))"


def test_plain_table(engine: Engine) -> None:
    """A table without obstacles has none: only its size, and SQLite's journal mode, are told."""
    findings = found_in(engine, CONTACTS, OTHER)

    assert harmless(engine.dialect.name) == codes(findings)


def test_our_own_triggers(engine: Engine) -> None:
    """The tracking trigger of the migration itself is no obstacle to it."""
    from sqlalchemy_envelope.migration.database import schema
    from sqlalchemy_envelope.migration.database.triggers import Tracked

    encrypted = "bytea" if engine.dialect.name == "postgresql" else "BLOB"
    tracked = Tracked("contacts", "phone", "phone_encrypted", keys=("id",))

    findings = found_in(
        engine,
        table(KEY, OWNER, PHONE, f"phone_encrypted {encrypted}"),
        *schema.track(engine.dialect, tracked),
    )

    assert harmless(engine.dialect.name) == codes(findings)


def test_missing_table_and_column(engine: Engine) -> None:
    """A table or a previous column that the database has not is said to be missing, without an error."""
    assert {("no-table", "stops", "contacts")} == codes(found_in(engine))

    with engine.begin() as connection:
        connection.exec_driver_sql(table(KEY, OWNER))
        findings = find_obstacles(connection, contact_phone())

    assert {("no-previous-column", "stops", "phone")} == codes(findings)


BOTH: list[tuple[str, list[str], tuple[str, str, str]]] = [
    (
        "a server default",
        [table(KEY, OWNER, "phone varchar(20) DEFAULT 'none'")],
        ("server-default", "breaks", "phone"),
    ),
    (
        "a unique index",
        [CONTACTS, "CREATE UNIQUE INDEX one_phone ON contacts (phone)"],
        ("unique-index", "breaks", "one_phone"),
    ),
    (
        "an index of several columns",
        [CONTACTS, "CREATE INDEX by_phone ON contacts (user_id, phone)"],
        ("index", "breaks", "by_phone"),
    ),
    (
        "an index of an expression",
        [CONTACTS, "CREATE INDEX by_lower ON contacts (lower(phone))"],
        ("expression-index", "breaks", "by_lower"),
    ),
    (
        "the predicate of a partial index",
        [CONTACTS, "CREATE INDEX with_phone ON contacts (user_id) WHERE phone IS NOT NULL"],
        ("partial-index", "breaks", "with_phone"),
    ),
    (
        "a check constraint",
        [table(KEY, OWNER, PHONE, "CONSTRAINT long_enough CHECK (length(phone) > (2 + 1))")],
        ("check-constraint", "breaks", "long_enough"),
    ),
    (
        "a foreign key from the column",
        [
            "CREATE TABLE lines (phone varchar(20) PRIMARY KEY)",
            table(KEY, OWNER, PHONE, "CONSTRAINT line FOREIGN KEY (phone) REFERENCES lines (phone)"),
        ],
        ("foreign-key", "breaks", "line"),
    ),
    (
        "a foreign key to the column",
        [
            table(KEY, OWNER, PHONE, "UNIQUE (phone)"),
            (
                "CREATE TABLE calls (id integer PRIMARY KEY, phone varchar(20), CONSTRAINT called "
                "FOREIGN KEY (phone) REFERENCES contacts (phone))"
            ),
        ],
        ("referenced-by-foreign-key", "stops", "called"),
    ),
    (
        "a part of the primary key",
        [table("id integer NOT NULL", OWNER, "phone varchar(20) NOT NULL", "PRIMARY KEY (id, phone)")],
        ("primary-key-member", "stops", "phone"),
    ),
    (
        "another primary key than the mapped one",
        [table("id integer NOT NULL", "user_id varchar(40) NOT NULL PRIMARY KEY", PHONE)],
        ("primary-key-differs", "stops", "contacts"),
    ),
    (
        "no primary key",
        [table("id integer NOT NULL", OWNER, PHONE)],
        ("no-primary-key", "stops", "contacts"),
    ),
    (
        "a view",
        [CONTACTS, "CREATE VIEW phone_book AS SELECT user_id, phone FROM contacts"],
        ("view", "breaks", "phone_book"),
    ),
    (
        "a generated column that reads it",
        [table(KEY, OWNER, PHONE, "prefix varchar(3) GENERATED ALWAYS AS (substr(phone, 1, 3)) STORED")],
        ("generated-column", "breaks", "prefix"),
    ),
    (
        "a generated previous column",
        [table(KEY, OWNER, "phone varchar(20) GENERATED ALWAYS AS (lower(user_id)) STORED")],
        ("previous-is-generated", "stops", "phone"),
    ),
    (
        "rows without an owner",
        [
            table(KEY, "user_id varchar(40)", PHONE),
            "INSERT INTO contacts VALUES (1, NULL, '1'), (2, NULL, NULL)",
        ],
        ("owner-missing", "stops", "user_id"),
    ),
    (
        "rows of an owner that is not there",
        [table(KEY, "user_id varchar(40)", PHONE), "INSERT INTO contacts VALUES (1, 'nobody', '1')"],
        ("owner-unknown", "stops", "user_id"),
    ),
]


@pytest.mark.parametrize(("statements", "expected"), [one[1:] for one in BOTH], ids=[one[0] for one in BOTH])
def test_on_both(engine: Engine, statements: list[str], expected: tuple[str, str, str]) -> None:
    """Each obstacle is found, on SQLite and on PostgreSQL, under its name, and stands in the right place."""
    findings = found_in(engine, *statements)

    assert expected in codes(findings)
    severities = [one.severity for one in findings]
    assert sorted(severities, key=["stops", "breaks", "note"].index) == severities


def test_unique_constraint_and_not_null(engine: Engine) -> None:
    """A unique constraint is told apart from an index; NOT NULL takes more on SQLite."""
    findings = found_in(
        engine, table(KEY, OWNER, "phone varchar(20) NOT NULL", "CONSTRAINT one_phone UNIQUE (phone)")
    )

    name, severity = {
        "sqlite": ("UNIQUE (phone)", "breaks"),
        "postgresql": ("one_phone", "note"),
    }[engine.dialect.name]
    expected = {("unique-constraint", "breaks", name), ("previous-not-null", severity, "phone")}
    assert expected | harmless(engine.dialect.name) == codes(findings)


def test_encrypted_column_not_null_and_of_another_type(engine: Engine) -> None:
    """An encrypted column that is there already must take NULL, and bytes."""
    findings = found_in(engine, table(KEY, OWNER, PHONE, "phone_encrypted varchar(90) NOT NULL"))

    assert {
        ("encrypted-column-not-null", "stops", "phone_encrypted"),
        ("encrypted-column-type", "stops", "phone_encrypted"),
    } <= codes(findings)


def test_floating_point_key(engine: Engine) -> None:
    """A key of floating-point numbers, whose rows might not be found again, stops the migration."""
    findings = found_in(engine, table("id real NOT NULL PRIMARY KEY", OWNER, PHONE))

    assert ("primary-key-type", "stops", "id") in codes(findings)


def test_counting_ends(sqlite_engine: Engine) -> None:
    """Rows without an owner are counted up to a thousand, and what a value is is not said."""
    numbers = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)"
    findings = found_in(
        sqlite_engine,
        table(KEY, "user_id varchar(40)", PHONE),
        f"INSERT INTO contacts {numbers} SELECT i, NULL, 'secret' || i FROM n",
    )

    (missing,) = [one for one in findings if one.code == "owner-missing"]
    assert missing.message.startswith("1,000 rows or more ")
    assert "secret" not in "".join(one.message for one in findings)
    (size,) = [one for one in findings if one.code == "rows"]
    assert (size.message, size.count) == ("5,000 rows.", 5000)


def test_owners_without_keys_and_speed(engine: Engine) -> None:
    """The plan counts the owners of rows who have no keys, and says what becomes of them; the speed is
    measured here, and changes no row."""
    found_in(engine, CONTACTS)
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO users VALUES ('ada'), ('ben'), ('without rows')")
        rows = [{"id": n, "owner": ("ada", "ben")[n % 2], "phone": str(n)} for n in range(300)]
        connection.execute(text("INSERT INTO contacts VALUES (:id, :owner, :phone)"), rows)
        connection.exec_driver_sql("ANALYZE")
    envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([bytes(32)]))
    with Session(engine) as session:
        ada = session.get_one(User, "ada")
        envelope.enroll(session, ada, secret="a secret of hers")
        session.commit()
    with engine.connect() as connection:
        before = connection.execute(text("SELECT * FROM contacts ORDER BY id")).all()
    found = {
        provider: {one.code: one for one in Migrator(engine, envelope, Base, provider=provider).plan(CONTACT)}
        for provider in ("server", None)
    }

    assert [
        (one["owners-without-keys"].severity, one["owners-without-keys"].count) for one in found.values()
    ] == [("note", 1), ("stops", 1)]
    assert found["server"]["speed"].message.startswith("Measured here, now: ")
    assert "less than a minute" in found["server"]["speed"].message
    with engine.connect() as connection:
        assert connection.execute(text("SELECT * FROM contacts ORDER BY id")).all() == before
