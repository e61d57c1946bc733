"""What a plan finds on SQLite, on PostgreSQL and on MariaDB alone."""

import os
from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine, String, create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqlalchemy_envelope import EncryptedType, KeyOwner
from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.migration.database.columns import encrypted_columns, migrating_columns
from sqlalchemy_envelope.migration.inspection.obstacles import find_obstacles
from sqlalchemy_envelope.orm.columns.previous import PreviousColumn
from tests.migration.plan_models import CONTACTS, Base, codes, contact_phone, found_in, harmless, table

USERS = "CREATE TABLE users (id varchar(40) NOT NULL PRIMARY KEY)"
KEY = "id integer NOT NULL PRIMARY KEY"
OWNER = "user_id varchar(40) NOT NULL REFERENCES users (id)"
PHONE = "phone varchar(20)"


# A second table, for obstacles that are not in the first.
OTHER = "CREATE TABLE others (id integer NOT NULL PRIMARY KEY, phone varchar(20))"


ON_SQLITE: list[tuple[str, list[str], set[tuple[str, str, str]]]] = [
    (
        "a trigger that reads the column",
        [
            CONTACTS,
            OTHER,
            (
                "CREATE TRIGGER audit AFTER UPDATE ON contacts BEGIN INSERT INTO others (phone) VALUES "
                "(OLD.phone); END"
            ),
        ],
        {("trigger-reads-column", "breaks", "audit")},
    ),
    (
        "triggers on every update, and on updates of another column",
        [
            CONTACTS,
            OTHER,
            "CREATE TRIGGER every_update AFTER UPDATE ON contacts BEGIN DELETE FROM others WHERE id = 1; END",
            "CREATE TRIGGER of_owner AFTER UPDATE OF user_id ON contacts BEGIN DELETE FROM others; END",
            "CREATE TRIGGER on_insert AFTER INSERT ON contacts BEGIN DELETE FROM others; END",
        ],
        {("trigger-on-update", "note", "every_update")},
    ),
    (
        "a trigger of another table",
        [
            CONTACTS,
            OTHER,
            "CREATE TRIGGER copied AFTER INSERT ON others BEGIN UPDATE contacts SET phone = NEW.phone; END",
        ],
        {("trigger-reads-column", "breaks", "copied")},
    ),
    (
        "a full-text index",
        [CONTACTS, "CREATE VIRTUAL TABLE words USING fts5 (phone, content='contacts', content_rowid='id')"],
        {("full-text-index", "breaks", "words")},
    ),
    (
        "a key that may be NULL, and is nowhere",
        [table("id integer", "user_id varchar(40) NOT NULL", PHONE, "PRIMARY KEY (id, user_id)")],
        {("nullable-primary-key", "note", "id"), ("primary-key-differs", "stops", "contacts")},
    ),
    (
        "a key that is NULL",
        [table("id varchar(5) PRIMARY KEY", OWNER, PHONE), "INSERT INTO contacts VALUES (NULL, 'a', NULL)"],
        {("nullable-primary-key", "stops", "id")},
    ),
    (
        "a check that forbids NULL",
        [table(KEY, OWNER, "phone varchar(20) CHECK (phone IS NOT NULL AND phone <> ')')")],
        {("check-constraint", "breaks", "CHECK (phone IS NOT NULL AND phone <> ')')")},
    ),
    (
        "a virtual generated column",
        [table(KEY, OWNER, PHONE, "prefix AS (substr(phone, 1, 3)) VIRTUAL")],
        {("generated-column", "breaks", "prefix")},
    ),
    (
        "owners spelt differently",
        [
            CONTACTS,
            "DROP TABLE users",
            "CREATE TABLE users (id varchar(40) NOT NULL COLLATE NOCASE PRIMARY KEY)",
            "INSERT INTO users VALUES ('ada')",
            "INSERT INTO contacts VALUES (1, 'ADA', '1')",
        ],
        {("owner-spelt-differently", "stops", "user_id")},
    ),
]


@pytest.mark.parametrize(
    ("statements", "expected"), [one[1:] for one in ON_SQLITE], ids=[one[0] for one in ON_SQLITE]
)
def test_on_sqlite(sqlite_url: str, statements: list[str], expected: set[tuple[str, str, str]]) -> None:
    """What SQLite alone has is found, and nothing else."""
    engine = create_engine(sqlite_url)
    try:
        assert expected | harmless("sqlite") == codes(found_in(engine, *statements))
    finally:
        engine.dispose()


def test_sqlite_in_wal_mode(sqlite_engine: Engine) -> None:
    """In WAL mode there is nothing to say of the journal."""
    with sqlite_engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")

    assert {("rows", "note", "contacts")} == codes(found_in(sqlite_engine, CONTACTS))


FUNCTION = "CREATE FUNCTION {} () RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {}; RETURN NEW; END $$"
ON_POSTGRES: list[tuple[str, list[str], set[tuple[str, str, str]]]] = [
    (
        "a trigger whose function reads the column",
        [
            CONTACTS,
            FUNCTION.format("note_change", "PERFORM length(OLD.phone)"),
            "CREATE TRIGGER audit AFTER UPDATE ON contacts FOR EACH ROW EXECUTE FUNCTION note_change()",
        ],
        {("trigger-reads-column", "breaks", "audit")},
    ),
    (
        "triggers on every update, on another column, and a disabled one",
        [
            CONTACTS,
            FUNCTION.format("touch", "PERFORM 1"),
            "CREATE TRIGGER every_update BEFORE UPDATE ON contacts FOR EACH ROW EXECUTE FUNCTION touch()",
            (
                "CREATE TRIGGER of_owner BEFORE UPDATE OF user_id ON contacts FOR EACH ROW EXECUTE FUNCTION "
                "touch()"
            ),
            "CREATE TRIGGER disabled BEFORE UPDATE ON contacts FOR EACH ROW EXECUTE FUNCTION touch()",
            "ALTER TABLE contacts DISABLE TRIGGER disabled",
        ],
        {("trigger-on-update", "note", "every_update")},
    ),
    (
        "a full-text index",
        [CONTACTS, "CREATE INDEX words ON contacts USING gin (to_tsvector('simple', phone))"],
        {("full-text-index", "breaks", "words")},
    ),
    (
        "a unique index of an expression",
        [CONTACTS, "CREATE UNIQUE INDEX one_phone ON contacts (lower(phone))"],
        {("unique-index", "breaks", "one_phone")},
    ),
    (
        "an exclusion constraint",
        [table(KEY, OWNER, PHONE, "CONSTRAINT apart EXCLUDE USING hash (phone WITH =)")],
        {("exclusion-constraint", "breaks", "apart")},
    ),
    (
        "a materialised view",
        [CONTACTS, "CREATE MATERIALIZED VIEW kept AS SELECT phone FROM contacts"],
        {("materialized-view", "breaks", "kept")},
    ),
    (
        "a rule",
        [
            CONTACTS,
            OTHER,
            (
                "CREATE RULE copied AS ON UPDATE TO contacts DO ALSO INSERT INTO others VALUES (OLD.id, "
                "OLD.phone)"
            ),
        ],
        {("rule", "breaks", "copied")},
    ),
    (
        "a virtual generated column",
        [table(KEY, OWNER, PHONE, "prefix varchar(3) GENERATED ALWAYS AS (substr(phone, 1, 3)) VIRTUAL")],
        {("generated-column", "breaks", "prefix")},
    ),
    (
        "a row security policy",
        [CONTACTS, "CREATE POLICY listed ON contacts USING (phone IS NOT NULL)"],
        {("row-security-policy", "breaks", "listed")},
    ),
    (
        "publications",
        [
            CONTACTS,
            "CREATE PUBLICATION with_phone FOR TABLE contacts (id, phone)",
            "CREATE PUBLICATION without FOR TABLE contacts (id, user_id)",
            "CREATE PUBLICATION whole FOR TABLE contacts",
            "CREATE PUBLICATION all_of_them FOR TABLES IN SCHEMA public",
            "CREATE PUBLICATION filtered FOR TABLE contacts WHERE (phone <> '')",
        ],
        {
            ("publication-column-list", "breaks", "with_phone"),
            ("publication-column-list", "breaks", "filtered"),
            ("publication", "note", "without"),
            ("publication", "breaks", "whole"),
            ("publication", "breaks", "all_of_them"),
        },
    ),
    (
        "a published table that nothing identifies",
        [
            CONTACTS,
            "ALTER TABLE contacts REPLICA IDENTITY NOTHING",
            "CREATE PUBLICATION whole FOR TABLE contacts",
        ],
        {("replica-identity", "stops", "contacts"), ("publication", "breaks", "whole")},
    ),
    (
        "rows identified by all their values",
        [CONTACTS, "ALTER TABLE contacts REPLICA IDENTITY FULL"],
        {("replica-identity", "note", "contacts")},
    ),
    (
        "rows identified by the column",
        [
            table(KEY, OWNER, "phone varchar(20) NOT NULL"),
            "CREATE UNIQUE INDEX one_phone ON contacts (phone)",
            "ALTER TABLE contacts REPLICA IDENTITY USING INDEX one_phone",
        ],
        {
            ("replica-identity", "stops", "contacts"),
            ("unique-index", "breaks", "one_phone"),
            ("previous-not-null", "note", "phone"),
        },
    ),
    (
        "partitions",
        [
            table(KEY, "user_id varchar(40) NOT NULL", PHONE, after="PARTITION BY HASH (id)"),
            "CREATE TABLE contacts_0 PARTITION OF contacts FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
        ],
        {("partitioned", "note", "contacts")},
    ),
    (
        "heirs",
        [CONTACTS, "CREATE TABLE private_contacts () INHERITS (contacts)"],
        {("inheritance", "breaks", "contacts")},
    ),
    (
        "an heir",
        [
            f"CREATE TABLE parents ({PHONE})",
            table(KEY, OWNER, after="INHERITS (parents)"),
        ],
        {("inheritance", "stops", "contacts")},
    ),
    (
        "extended statistics",
        [CONTACTS, "CREATE STATISTICS both_of_them (mcv) ON user_id, phone FROM contacts"],
        {("extended-statistics", "note", "both_of_them")},
    ),
    (
        "privileges on the column",
        [CONTACTS, "GRANT SELECT (phone) ON contacts TO PUBLIC"],
        {("column-privileges", "breaks", "phone")},
    ),
    (
        "a domain that forbids NULL",
        ["CREATE DOMAIN number AS varchar(20) NOT NULL", table(KEY, OWNER, "phone number")],
        {("previous-not-null", "breaks", "phone")},
    ),
    (
        "a function",
        [
            CONTACTS,
            (
                "CREATE FUNCTION call (int) RETURNS text LANGUAGE sql "
                "AS 'SELECT phone FROM contacts WHERE id = $1'"
            ),
        ],
        {("routine", "note", "call")},
    ),
]


@pytest.mark.parametrize(
    ("statements", "expected"), [one[1:] for one in ON_POSTGRES], ids=[one[0] for one in ON_POSTGRES]
)
def test_on_postgres(
    postgres_engine: Engine, statements: list[str], expected: set[tuple[str, str, str]]
) -> None:
    """What PostgreSQL alone has is found, and nothing else."""
    foreign = {("owner-unknown", "stops", "user_id")}
    try:
        found = codes(found_in(postgres_engine, *statements))
    finally:
        with postgres_engine.begin() as connection:
            for (name,) in connection.execute(text("SELECT pubname FROM pg_publication")).all():
                connection.exec_driver_sql(f"DROP PUBLICATION {name}")

    assert expected | harmless("postgresql") == found - foreign


def test_partition_key(postgres_engine: Engine) -> None:
    """A table that is divided by the column stops the migration."""
    findings = found_in(
        postgres_engine,
        table("id integer NOT NULL", "user_id varchar(40)", PHONE, after="PARTITION BY LIST (lower(phone))"),
    )

    assert ("partition-key", "stops", "contacts") in codes(findings)


def test_reference_from_another_schema(postgres_engine: Engine) -> None:
    """A foreign key of a table in another schema, which the inspector does not list, is found too."""
    findings = found_in(
        postgres_engine,
        table(KEY, OWNER, PHONE, "UNIQUE (phone)"),
        "CREATE SCHEMA elsewhere",
        "CREATE TABLE elsewhere.calls (phone varchar(20) CONSTRAINT called REFERENCES contacts (phone))",
    )

    assert ("referenced-by-foreign-key", "stops", "called") in codes(findings)


def test_table_in_a_schema(postgres_engine: Engine) -> None:
    """The table of the mapped schema is looked at, and not one of the same name on the search path."""

    class Elsewhere(DeclarativeBase):
        pass

    class Account(KeyOwner, Elsewhere):
        __tablename__ = "Accounts"
        __table_args__ = {"schema": "else where"}  # noqa: RUF012 - SQLAlchemy's own way

        id: Mapped[int] = mapped_column(primary_key=True)
        phone: Mapped[str | None] = mapped_column(
            "phone_encrypted", EncryptedType(String, previous=PreviousColumn("Phone No", String(20)))
        )

    with postgres_engine.begin() as connection:
        for statement in (
            'CREATE TABLE "Accounts" (id int)',
            'CREATE SCHEMA "else where"',
            'CREATE TABLE "else where"."Accounts" (id int PRIMARY KEY, "Phone No" varchar(20))',
            'CREATE INDEX "by phone" ON "else where"."Accounts" (lower("Phone No"))',
        ):
            connection.exec_driver_sql(statement)
        (column,) = migrating_columns(Elsewhere)
        findings = find_obstacles(connection, column)

    assert codes(findings) == {
        ("expression-index", "breaks", "by phone"),
        ("rows", "note", "Accounts"),
        ("no-key-table", "stops", "Accounts_key"),
        ("no-key-table", "stops", "Accounts_keyslot"),
    }


def test_no_previous_column(sqlite_engine: Engine) -> None:
    """A column that is only encrypted anew has nothing to be planned."""

    class Plain(DeclarativeBase):
        pass

    class Account(KeyOwner, Plain):
        __tablename__ = "accounts"

        id: Mapped[int] = mapped_column(primary_key=True)
        phone: Mapped[str | None] = mapped_column(EncryptedType(String))

    Plain.metadata.create_all(sqlite_engine, tables=[Plain.metadata.tables["accounts"]])
    (column,) = encrypted_columns(Plain)

    with sqlite_engine.connect() as connection, pytest.raises(ConfigurationError, match="no previous column"):
        find_obstacles(connection, column)


def test_replication_slot_that_nobody_reads(postgres_engine: Engine) -> None:
    """A replication slot without a reader, which keeps all of the backfill's WAL, is found."""
    with postgres_engine.connect() as connection:
        connection.exec_driver_sql("SELECT pg_create_physical_replication_slot('forgotten')")
        connection.commit()
    try:
        findings = found_in(postgres_engine, CONTACTS)
    finally:
        with postgres_engine.connect() as connection:
            connection.exec_driver_sql("SELECT pg_drop_replication_slot('forgotten')")
            connection.commit()

    assert ("replication-slot", "breaks", "forgotten") in codes(findings)


def test_rows_from_the_statistics(engine: Engine) -> None:
    """After ANALYZE the number of rows comes from the statistics."""
    with engine.begin() as connection:
        for statement in (
            USERS,
            "INSERT INTO users VALUES ('ada')",
            CONTACTS,
            "CREATE INDEX by_owner ON contacts (user_id)",
            (
                "INSERT INTO contacts WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n "
                "WHERE i < 3000) SELECT i, 'ada', NULL FROM n"
            ),
            "ANALYZE",
        ):
            connection.exec_driver_sql(statement)
        findings = find_obstacles(connection, contact_phone())

    (size,) = [one for one in findings if one.code == "rows"]
    assert (size.message, size.count) == ("About 3,000 rows.", 3000)


MARIADB_URL = os.environ.get("ENVELOPE_MARIADB_URL")
needs_mariadb = pytest.mark.skipif(not MARIADB_URL, reason="ENVELOPE_MARIADB_URL names no server")


@pytest.fixture
def mariadb() -> Iterator[Connection]:
    """A connection to the empty database, which is emptied again."""
    assert MARIADB_URL is not None
    engine = create_engine(MARIADB_URL)
    with engine.connect() as connection:
        yield connection
        connection.rollback()
        connection.exec_driver_sql("SET foreign_key_checks = 0")
        listed = (
            "SELECT table_type, table_name FROM information_schema.tables WHERE table_schema = database()"
        )
        for kind, name in connection.exec_driver_sql(listed).all():
            connection.exec_driver_sql(f"DROP {'VIEW' if kind == 'VIEW' else 'TABLE'} `{name}`")
    engine.dispose()


MY_KEY = "id integer NOT NULL PRIMARY KEY"
MY_OWNER = "user_id varchar(40) NOT NULL, FOREIGN KEY (user_id) REFERENCES users (id)"
MY_CONTACTS = table(MY_KEY, MY_OWNER, PHONE)
MY_HARMLESS = {("rows", "note", "contacts"), ("isolation-level", "note", "this engine")}
ON_MARIADB: list[tuple[str, list[str], set[tuple[str, str, str]]]] = [
    ("nothing", [MY_CONTACTS], set()),
    (
        "an index and a unique one",
        [MY_CONTACTS, "CREATE INDEX i ON contacts (phone(5))", "CREATE UNIQUE INDEX u ON contacts (phone)"],
        {("index", "breaks", "i"), ("unique-index", "breaks", "u")},
    ),
    (
        "a full-text index",
        [MY_CONTACTS, "CREATE FULLTEXT INDEX words ON contacts (phone)"],
        {("full-text-index", "breaks", "words")},
    ),
    (
        "checks of the column and of the table",
        [
            table(
                MY_KEY, MY_OWNER, "phone varchar(20) CHECK (phone <> '')", "CONSTRAINT c CHECK (phone <> 'x')"
            )
        ],
        {("check-constraint", "breaks", "phone"), ("check-constraint", "breaks", "c")},
    ),
    (
        "triggers",
        [
            MY_CONTACTS,
            "CREATE TRIGGER touch BEFORE UPDATE ON contacts FOR EACH ROW SET @touched = 1",
            "CREATE TRIGGER audit BEFORE UPDATE ON contacts FOR EACH ROW SET @previous = OLD.phone",
            "CREATE TRIGGER inserted BEFORE INSERT ON contacts FOR EACH ROW SET @touched = 1",
        ],
        {("trigger-on-update", "note", "touch"), ("trigger-reads-column", "breaks", "audit")},
    ),
    (
        "a time of change",
        [table(MY_KEY, MY_OWNER, PHONE, "changed timestamp DEFAULT now() ON UPDATE current_timestamp")],
        {("on-update-timestamp", "breaks", "changed")},
    ),
    (
        "a view",
        [MY_CONTACTS, "CREATE VIEW phone_book AS SELECT phone FROM contacts"],
        {("view", "breaks", "phone_book")},
    ),
    (
        "a generated column",
        [table(MY_KEY, MY_OWNER, PHONE, "prefix varchar(3) AS (left(phone, 3)) STORED")],
        {("generated-column", "breaks", "prefix")},
    ),
    (
        "columns that are too small",
        [
            table(
                MY_KEY, MY_OWNER, "phone varchar(20) CHARACTER SET utf8mb4", "phone_encrypted varbinary(124)"
            )
        ],
        {("column-too-small", "stops", "phone_encrypted")},
    ),
    (
        "a column that is large enough",
        [
            table(
                MY_KEY, MY_OWNER, "phone varchar(20) CHARACTER SET utf8mb4", "phone_encrypted varbinary(125)"
            )
        ],
        set(),
    ),
    (
        "a column that is too small for a single-byte letter's UTF-8",
        [table(MY_KEY, MY_OWNER, "phone varchar(71) CHARACTER SET latin1", "phone_encrypted tinyblob")],
        {("column-too-small", "stops", "phone_encrypted")},
    ),
    (
        "long texts",
        [table(MY_KEY, MY_OWNER, "phone mediumtext")],
        {("column-too-small", "breaks", "phone_encrypted")},
    ),
    (
        "no strict mode",
        [MY_CONTACTS, "SET SESSION sql_mode = ''"],
        {("non-strict-sql-mode", "stops", "sql_mode is empty")},
    ),
    (
        "no transactions",
        [table(MY_KEY, "user_id varchar(40) NOT NULL", PHONE, after="ENGINE=MyISAM")],
        {("storage-engine", "stops", "contacts")},
    ),
    (
        "owners spelt differently",
        [
            MY_CONTACTS,
            "INSERT INTO users VALUES ('ada')",
            "INSERT INTO contacts VALUES (1, 'ADA', '1'), (2, 'ada', '2')",
        ],
        {("owner-spelt-differently", "stops", "user_id")},
    ),
    (
        "NOT NULL, and partitions",
        [
            table(
                MY_KEY,
                "user_id varchar(40) NOT NULL",
                "phone varchar(20) NOT NULL",
                after="PARTITION BY HASH (id)",
            ),
        ],
        {("previous-not-null", "note", "phone"), ("partitioned", "note", "contacts")},
    ),
]


@needs_mariadb
@pytest.mark.parametrize(
    ("statements", "expected"), [one[1:] for one in ON_MARIADB], ids=[one[0] for one in ON_MARIADB]
)
def test_on_mariadb(mariadb: Connection, statements: list[str], expected: set[tuple[str, str, str]]) -> None:
    """What is in the way on MariaDB is found, and nothing else."""
    for statement in (USERS, *statements):
        mariadb.exec_driver_sql(statement)
    for name in ("users_key", "users_keyslot"):
        Base.metadata.tables[name].create(mariadb)

    assert expected | MY_HARMLESS == codes(find_obstacles(mariadb, contact_phone()))
