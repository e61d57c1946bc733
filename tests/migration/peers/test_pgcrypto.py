"""Values that pgcrypto encrypted come over, and go back."""

import shutil
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import URL, create_engine

from sqlalchemy_envelope.migration.foreign_types import PgCryptoText

with warnings.catch_warnings():
    # It uses what SQLAlchemy 2.1 deprecates.
    warnings.simplefilter("ignore", DeprecationWarning)
    from advanced_alchemy.types.encrypted_string import (
        EncryptedString,
        EncryptedText,
        PGCryptoBackend,
    )
from tests.migration.peers.other_libraries import TEXTS, Database, refusal, stopped_in_the_middle

CANARY = "canary 5d1e73"
KEY, WRONG = "the application's old key", "some other key"


def system_binaries() -> Path | None:
    """The folder of an installed PostgreSQL that has pgcrypto."""
    named = shutil.which("pg_config")
    folders = [Path(named)] if named else []
    for config in [*folders, *sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_config"), reverse=True)]:
        shown = subprocess.run([config, "--sharedir"], capture_output=True, text=True, check=True)
        share = Path(shown.stdout.strip())
        if (config.parent / "initdb").exists() and (share / "extension" / "pgcrypto.control").exists():
            return config.parent
    return None


@pytest.fixture(scope="module")
def pgcrypto_server(request: pytest.FixtureRequest) -> Iterator[URL]:
    with ExitStack() as stack:
        if request.config.getoption("postgresql_host"):
            yield request.getfixturevalue("postgres_database")
            return
        from tests.throwaway_postgres import throwaway_postgres

        binaries = system_binaries()
        if binaries is None:
            pytest.skip("no PostgreSQL with pgcrypto is installed")
        folder = stack.enter_context(throwaway_postgres(binaries))
        yield URL.create(
            "postgresql", "postgres", database="postgres", query={"host": str(folder), "port": "5432"}
        )


@pytest.fixture
def pgcrypto(pgcrypto_server: URL) -> Iterator[Database]:
    """An empty PostgreSQL database with pgcrypto."""
    engine = create_engine(pgcrypto_server.set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
        connection.exec_driver_sql("CREATE EXTENSION pgcrypto")
    yield Database(engine)
    engine.dispose()


def by_hand(database: Database, values: list[str | None], *, armored: bool = False) -> None:
    """Rows that an application encrypted in SQL of its own."""
    made = "armor(pgp_sym_encrypt(:value, :key))" if armored else "pgp_sym_encrypt(:value, :key)"
    database.sql("CREATE TABLE users (id integer PRIMARY KEY)")
    database.sql("INSERT INTO users VALUES (1), (2)")
    kind = "text" if armored else "bytea"
    database.sql(
        f"CREATE TABLE notes (id integer PRIMARY KEY, user_id integer REFERENCES users (id), body {kind})"
    )
    for number, value in enumerate(values, start=1):
        database.sql(
            f"INSERT INTO notes VALUES (:id, :owner, {made})",
            id=number,
            owner=number % 2 + 1,
            value=value,
            key=KEY,
        )


@pytest.mark.backend
@pytest.mark.parametrize("armored", [False, True])
@pytest.mark.parametrize("options", [None, "cipher-algo=aes256"])
def test_pgcrypto_comes_over(pgcrypto: Database, armored: bool, options: str | None) -> None:
    """What pgp_sym_encrypt made in SQL is read through the type and comes over."""
    by_hand(pgcrypto, [*TEXTS, None], armored=armored)

    pgcrypto.models(PgCryptoText(KEY, options, armored)).comes_over([*TEXTS, None])


@pytest.mark.backend
def test_pgcrypto_is_still_written(pgcrypto: Database) -> None:
    """While both columns are written, the application's own SQL reads what this one wrote; the key may be
    fetched when it is needed."""
    by_hand(pgcrypto, ["one", "two"])
    pgcrypto.models(PgCryptoText(lambda: KEY))
    pgcrypto.migrator.expand("notes.body")
    with pgcrypto.serving() as session:
        session.get_one(pgcrypto.Note, 1).body = "ours"
        session.add_all([pgcrypto.Note(id=one, user_id=1, body=f"new {one}") for one in (3, 4)])
        session.commit()

    read = pgcrypto.sql("SELECT pgp_sym_decrypt(body, :key) FROM notes ORDER BY id", key=KEY)

    assert [row[0] for row in read] == ["ours", "two", "new 3", "new 4"]


@pytest.mark.backend
def test_pgcrypto_wrong_key(pgcrypto: Database) -> None:
    """The server refuses a wrong key itself, and so do we, with the row's key."""
    by_hand(pgcrypto, [None, CANARY, "two"])

    assert "(2,)" in str(refusal(pgcrypto.models(PgCryptoText(WRONG))))
    assert pgcrypto.is_untouched()


@pytest.mark.backend
def test_pgcrypto_corrupted_in_the_middle(pgcrypto: Database) -> None:
    """A value that was altered behind the sample stops the run with its row's key."""
    by_hand(pgcrypto, [CANARY] * 9)
    pgcrypto.models(PgCryptoText(KEY))
    pgcrypto.migrator.run("notes.body")
    pgcrypto.sql("UPDATE notes SET body = set_byte(body, length(body) - 5, 0) WHERE id = 7")

    assert "(7,)" in str(stopped_in_the_middle(pgcrypto))


@pytest.mark.backend
@pytest.mark.parametrize("type_", [EncryptedString, EncryptedText])
def test_advanced_alchemy_by_pgcrypto(pgcrypto: Database, type_: Any) -> None:
    """advanced-alchemy's pgcrypto backend: its values come over, and its wrong key is refused."""
    pgcrypto.before(type_(key=KEY, backend=PGCryptoBackend), [*TEXTS, None])
    error = refusal(pgcrypto.models(type_(key=WRONG, backend=PGCryptoBackend)))
    assert "(1,)" in str(error)

    pgcrypto.models(type_(key=KEY, backend=PGCryptoBackend)).comes_over([*TEXTS, None])


@pytest.mark.backend
def test_pgcrypto_key_is_shown_nowhere(pgcrypto: Database, capture_logs: Any) -> None:
    """The passphrase is in no log, no `repr`, no text of a statement and no error of ours."""
    by_hand(pgcrypto, ["one"])
    capture_logs_from_here = len(capture_logs.text)
    type_ = PgCryptoText(KEY)
    pgcrypto.models(type_)
    echoing = create_engine(pgcrypto.engine.url, echo="debug")
    notes = sa.table("notes", sa.column("id"), sa.column("body", type_))
    query = sa.select(notes.c.body)
    with echoing.connect() as connection:
        assert connection.execute(query).scalar_one() == "one"
        # Of a name that no other test's models have encrypted: this would be taken for a table of theirs.
        connection.exec_driver_sql("CREATE TABLE scraps (id INTEGER, body BYTEA)")
        scraps = sa.table("scraps", sa.column("id"), sa.column("body", type_))
        connection.execute(scraps.insert(), {"id": 5, "body": "five"})
        broken = sa.select(notes.c.body, sa.literal_column("nowhere"))
        with pytest.raises(sa.exc.ProgrammingError) as raised:
            connection.execute(broken)
    echoing.dispose()
    pgcrypto.migrator.run("notes.body")

    dialect = pgcrypto.engine.dialect
    literal = query.compile(dialect=dialect, compile_kwargs={"literal_binds": True})
    compiled = query.compile(dialect=dialect)
    shown = [
        str(raised.value),
        str(literal),
        str(compiled),
        repr(compiled.params),
        repr(type_),
        repr(vars(type_)),
    ]
    assert KEY not in "".join(shown)
    assert KEY not in capture_logs.text[capture_logs_from_here:]
    assert "<hidden>" in capture_logs.text
