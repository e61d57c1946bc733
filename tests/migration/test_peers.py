"""Other libraries' ciphertext, written by the real packages, becomes ours without a plaintext step.

For each package: every value comes over type-exactly, a wrong key is refused before anything is written, and
what cannot be opened is never taken for plaintext, whatever the package itself does with it.

pgcrypto is no part of the wheel that the other tests take PostgreSQL from. Its tests use the server that the
command line names, or an installed one (Debian: postgresql and postgresql-contrib), and are skipped without.
"""

import base64
import datetime as dt
import shutil
import subprocess
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import sqlalchemy_encrypted_field as encrypted_field
from cryptography.fernet import Fernet, MultiFernet
from sqlalchemy import (
    JSON,
    URL,
    Date,
    DateTime,
    Engine,
    ForeignKey,
    Integer,
    Text,
    create_engine,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy_utils import EncryptedType as UtilsEncryptedType
from sqlalchemy_utils import JSONType, StringEncryptedType
from sqlalchemy_utils.types.encrypted.encrypted_type import AesEngine, AesGcmEngine, FernetEngine

from sqlalchemy_envelope import EncryptedType, Envelope, KeyOwner, PreviousColumn, ServerKeyring
from sqlalchemy_envelope.exceptions import ConfigurationError, PreviousValueError
from sqlalchemy_envelope.migration.foreign_types import (
    FernetText,
    PartlyPlaintext,
    PgCryptoText,
    Revealed,
    check_of,
)
from sqlalchemy_envelope.migration.jobs import preflight
from sqlalchemy_envelope.migration.migrator import Migrator
from sqlalchemy_envelope.migration.running.runner import Pace

with warnings.catch_warnings():
    # It uses what SQLAlchemy 2.1 deprecates.
    warnings.simplefilter("ignore", DeprecationWarning)
    from advanced_alchemy.types.encrypted_string import (
        EncryptedString,
        EncryptedText,
        FernetBackend,
        PGCryptoBackend,
    )

TEXTS = ["", "a", "+49 30 901820", "Grüße, 世界 🌍", "x" * 15, "y" * 16, "z" * 17, "long " * 4000, "  ", "0"]
CANARY = "canary 5d1e73"
KEY, WRONG = "the application's old key", "some other key"


def envelope() -> Envelope:
    return Envelope(providers={"server": ServerKeyring([b"\x07" * 32])})


@dataclass
class Database:
    """The tables before the migration, as the other library's application has them, and after."""

    engine: Engine
    envelope: Envelope = field(default_factory=envelope)
    Base: Any = None
    Note: Any = None
    inner: Any = Text
    options: dict[str, Any] = field(default_factory=dict)

    def before(self, type_: Any, values: list[Any]) -> None:
        """Write these values through the other library's own type, its own way."""
        metadata = sa.MetaData()
        users = sa.Table("users", metadata, sa.Column("id", Integer, primary_key=True))
        notes = sa.Table(
            "notes",
            metadata,
            sa.Column("id", Integer, primary_key=True),
            sa.Column("user_id", ForeignKey("users.id", ondelete="CASCADE")),
            sa.Column("body", type_),
        )
        metadata.create_all(self.engine)
        with self.engine.begin() as connection:
            connection.execute(users.insert(), [{"id": 1}, {"id": 2}])
            for number, value in enumerate(values, start=1):
                connection.execute(notes.insert(), {"id": number, "user_id": number % 2 + 1, "body": value})

    def models(self, previous: Any, inner: Any = Text, policy: Any = "both", **options: Any) -> "Database":
        """The models of the application once it declares its previous column with this type; or none."""
        self.inner, self.options = inner, options
        moved = None if previous is None else PreviousColumn("body", previous, policy)

        class Base(DeclarativeBase):
            pass

        class User(KeyOwner, Base):
            __tablename__ = "users"

            id: Mapped[int] = mapped_column(primary_key=True)

        class Note(Base):
            __tablename__ = "notes"

            id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
            user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
            body: Mapped[Any] = mapped_column(
                "body_encrypted",
                EncryptedType(inner, owner="user_id", previous=moved, **options),
                nullable=True,
            )

        Base.metadata.create_all(self.engine)  # the key tables: the others are there
        self.Base, self.Note = Base, Note
        return self

    def our_own(self, options: dict[str, Any], values: list[Any], scope: str = "medical") -> None:
        """Write these values through a column of ours, into the column that will be the previous one."""

        class Base(DeclarativeBase):
            pass

        class User(KeyOwner, Base):
            __tablename__ = "users"

            id: Mapped[int] = mapped_column(primary_key=True)

        class Note(Base):
            __tablename__ = "notes"

            id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
            user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
            body: Mapped[str | None] = mapped_column(EncryptedType(Text, owner="user_id", **options))
            # For the sake of its scope: server mode makes no key of a new scope for owners who have keys.
            unused: Mapped[str | None] = mapped_column(EncryptedType(Text, owner="user_id", scope=scope))

        Base.metadata.create_all(self.engine)
        with self.serving() as session:
            session.add_all([User(id=1), User(id=2)])
            session.flush()
            for number, value in enumerate(values, start=1):
                session.add(Note(id=number, user_id=number % 2 + 1, body=value))
            session.commit()

    @contextmanager
    def serving(self) -> Iterator[Session]:
        """A session in which every owner's keys are at hand."""
        with (
            Session(self.engine) as session,
            self.envelope.server_mode(None, provider="server", reason="test"),
        ):
            yield session

    @property
    def migrator(self) -> Migrator:
        pace = Pace(smallest=2, largest=4, range_rows=5)
        return Migrator(self.engine, self.envelope, self.Base, provider="server", pace=pace)

    def sql(self, statement: str, **values: Any) -> list[Any]:
        with self.engine.begin() as connection:
            result = connection.execute(text(statement), values)
            return list(result.all()) if result.returns_rows else []

    def comes_over(self, expected: list[Any]) -> None:
        """The migration to its end; the values are read through the models at each of its steps."""
        migrator = self.migrator
        migrator.expand("notes.body")
        assert self.read() == expected
        report = migrator.run("notes.body")
        assert (report.finished, report.pending) == (True, 0)
        assert report.rows == sum(value is not None for value in expected)
        verified = migrator.verify("notes.body")
        assert (verified.is_clean, verified.mismatches, verified.locked) == (True, 0, 0)
        assert self.read() == expected
        migrator.cutover("notes.body")
        self.models(self.Note.__table__.c.body_encrypted__previous.type, self.inner, "refuse", **self.options)
        self.migrator.contract("notes.body", stopped=True)
        self.models(None, self.inner, **self.options)
        assert self.read() == expected
        assert [type(one) for one in self.read()] == [type(one) for one in expected]
        owners = {row[0] for row in self.sql("SELECT owner_id FROM users_key WHERE state = 'active'")}
        assert owners == {number % 2 + 1 for number, one in enumerate(expected, start=1) if one is not None}

    def read(self) -> list[Any]:
        """The values as the application reads them."""
        with (
            Session(self.engine) as session,
            self.envelope.server_mode(session, provider="server", reason="test"),
        ):
            return [note.body for note in session.scalars(sa.select(self.Note).order_by(self.Note.id))]

    def is_untouched(self) -> bool:
        """Whether nothing was encrypted: no column for it, or nothing in it."""
        names = {one["name"] for one in sa.inspect(self.engine).get_columns("notes")}
        if "body_encrypted" not in names:
            return True
        return self.sql("SELECT count(*) FROM notes WHERE body_encrypted IS NOT NULL")[0][0] == 0


@pytest.fixture
def database(engine: Engine) -> Database:
    return Database(engine)


def refusal(database: Database) -> PreviousValueError:
    """The error with which a run is refused; nothing in its traceback shows a value or a key."""
    with pytest.raises(PreviousValueError) as raised:
        database.migrator.run("notes.body")
    shown = "".join(traceback.format_exception(raised.value))
    assert CANARY not in shown
    assert KEY not in shown
    assert WRONG not in shown
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None
    return raised.value


def utils(engine: Any, padding: str | None = None) -> Callable[[str], Any]:
    return lambda key: StringEncryptedType(Text, key, engine, padding)


class BinaryUtils(UtilsEncryptedType):
    """Its own class does not say that statements with it may be cached, of which SQLAlchemy warns."""

    cache_ok = True


def old_utils(key: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return BinaryUtils(Text, key, AesEngine, "pkcs5")


def fernet_of(key: str) -> Fernet:
    return Fernet(base64.urlsafe_b64encode(key.encode().ljust(32, b"-")[:32]))


PEERS: dict[str, Callable[[str], Any]] = {
    "utils-cbc-naive": utils(AesEngine),
    "utils-cbc-pkcs5": utils(AesEngine, "pkcs5"),
    "utils-cbc-oneandzeroes": utils(AesEngine, "oneandzeroes"),
    "utils-cbc-zeroes": utils(AesEngine, "zeroes"),
    "utils-cbc-binary": old_utils,
    "utils-gcm": utils(AesGcmEngine),
    "utils-fernet": utils(FernetEngine),
    "fernet-text": lambda key: FernetText(fernet_of(key)),
    "fernet-binary": lambda key: FernetText(fernet_of(key), binary=True),
    "multifernet": lambda key: FernetText(MultiFernet([fernet_of(key), fernet_of("an older key")])),
    "advanced-string": lambda key: EncryptedString(key=key, backend=FernetBackend),
    "advanced-text": lambda key: EncryptedText(key=key, backend=FernetBackend),
}
every_peer = pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)


@every_peer
def test_texts_come_over(database: Database, peer: Callable[[str], Any]) -> None:
    """Every text that the package wrote is read before, during and after the migration as it was."""
    values = [*TEXTS, None, *(f"{number}" for number in range(5))]
    database.before(peer(KEY), values)

    database.models(peer(KEY)).comes_over(values)


@every_peer
def test_wrong_key_is_refused(database: Database, peer: Callable[[str], Any]) -> None:
    """With another key nothing is written, and the error names the row and shows no value."""
    database.before(peer(KEY), [None, CANARY, *TEXTS[1:]])

    error = refusal(database.models(peer(WRONG)))

    assert "(2,)" in str(error)
    assert database.is_untouched()
    assert database.sql("SELECT count(*) FROM notes WHERE body IS NULL")[0][0] == 1


def test_writes_of_both_steps(database: Database) -> None:
    """While both columns are written, the other library's application reads what this one wrote, and this one
    what the other wrote."""
    type_ = utils(AesGcmEngine)(KEY)
    database.before(type_, ["one", "two"])
    database.models(utils(AesGcmEngine)(KEY))
    database.migrator.run("notes.body")
    theirs = sa.Table(
        "notes", sa.MetaData(), sa.Column("id", Integer, primary_key=True), sa.Column("body", type_)
    )

    with database.serving() as session:
        session.get_one(database.Note, 1).body = "ours"
        session.commit()
    with database.engine.begin() as connection:
        connection.execute(theirs.update().where(theirs.c.id == 2).values(body="theirs"))
        read = connection.execute(sa.select(theirs.c.body).order_by(theirs.c.id)).scalars().all()

    assert read == ["ours", "theirs"]
    assert database.read() == ["ours", "theirs"]
    assert database.migrator.status("notes.body").pending == 1
    assert database.migrator.run("notes.body").rows == 3
    assert database.migrator.verify("notes.body").is_clean


def test_goes_back(database: Database) -> None:
    """Reversed, what was written encrypted alone is in the other library's ciphertext again."""
    type_ = utils(AesGcmEngine)(KEY)
    database.before(type_, ["one", "two"])
    database.models(type_)
    database.migrator.run("notes.body")
    database.models(type_, policy="read")
    with database.serving() as session:
        session.add(database.Note(id=3, user_id=1, body="three"))
        session.commit()

    database.models(type_)
    assert database.migrator.reverse("notes.body").finished
    with database.engine.connect() as connection:
        read = connection.execute(sa.select(sa.column("body", type_)).select_from(text("notes ORDER BY id")))
        assert read.scalars().all() == ["one", "two", "three"]


INTEGERS = [0, 1, -1, 2**31, -(2**70), None]
MOMENTS = [dt.datetime(2026, 11, 22, 3, 4, 5, 678901), dt.datetime(1, 1, 1), dt.datetime.max, None]
DATES = [dt.date(1815, 12, 10), dt.date.min, None]
DOCUMENTS = [{"a": [1, 2.5, None, "Grüße"]}, {}, [], [{"b": True}], None]
BOOLEANS = [True, False, None]
TYPED: dict[str, tuple[Any, Any, list[Any]]] = {
    "int": (Integer, Integer, INTEGERS),
    "datetime": (DateTime, DateTime, MOMENTS),
    "date": (Date, Date, DATES),
    "bool": (sa.Boolean, sa.Boolean, BOOLEANS),
}


@pytest.mark.parametrize("engine_class", [AesEngine, AesGcmEngine, FernetEngine])
@pytest.mark.parametrize(("theirs", "ours", "values"), TYPED.values(), ids=TYPED)
def test_typed_values_come_over(
    database: Database, engine_class: Any, theirs: Any, ours: Any, values: list[Any]
) -> None:
    """sqlalchemy-utils' typed values come over as values of the same type."""
    type_ = StringEncryptedType(theirs, KEY, engine_class, "pkcs5" if engine_class is AesEngine else None)
    database.before(type_, values)

    database.models(type_, ours).comes_over(values)


def test_json_of_utils(sqlite_engine: Engine) -> None:
    """JSON of sqlalchemy-utils comes over as JSON."""
    database = Database(sqlite_engine)
    database.before(StringEncryptedType(JSONType, KEY, AesGcmEngine), DOCUMENTS)

    database.models(StringEncryptedType(JSONType, KEY, AesGcmEngine), JSON).comes_over(DOCUMENTS)


def test_json_of_utils_on_postgres(postgres_engine: Engine) -> None:
    """On PostgreSQL sqlalchemy-utils stores the `repr` of a document, and reads a text: that comes over."""
    database = Database(postgres_engine)
    database.before(StringEncryptedType(JSONType, KEY, AesGcmEngine), [{"a": [True]}])

    database.models(StringEncryptedType(JSONType, KEY, AesGcmEngine), JSON).comes_over(["{'a': [True]}"])


FIELD_KEY, OTHER_FIELD_KEY = (base64.b64encode(bytes([one]) * 32).decode() for one in (1, 2))
FIELDS = [
    (encrypted_field.EncryptedText, Text, TEXTS),
    (encrypted_field.EncryptedBytes, sa.LargeBinary, [b"", b"\x00\xff", b"x" * 5000]),
    (encrypted_field.EncryptedJson, JSON, [one for one in DOCUMENTS if isinstance(one, dict)]),
]


@pytest.mark.parametrize(("theirs", "ours", "values"), FIELDS)
def test_encrypted_field_comes_over(database: Database, theirs: Any, ours: Any, values: list[Any]) -> None:
    """sqlalchemy-encrypted-field's values, which it hands out wrapped, come over unwrapped."""
    encrypted_field.configure(FIELD_KEY)
    database.before(theirs(), values)
    database.sql("INSERT INTO notes (id, user_id) VALUES (100, 1)")

    database.models(Revealed(theirs), ours).comes_over([*values, None])


def test_encrypted_field_wrong_key(database: Database) -> None:
    """It says so itself when the key is wrong, but only once a value is asked for: refused before."""
    encrypted_field.configure(FIELD_KEY)
    database.before(encrypted_field.EncryptedText(), [CANARY])
    encrypted_field.configure(OTHER_FIELD_KEY)

    assert "(1,)" in str(refusal(database.models(Revealed(encrypted_field.EncryptedText))))
    assert database.is_untouched()


def test_encrypted_field_without_unwrapping(database: Database) -> None:
    """Its type named bare is refused, and not what it shows of itself encrypted."""
    encrypted_field.configure(FIELD_KEY)
    database.before(encrypted_field.EncryptedText(), [CANARY])

    assert "a Secret where 'str' is wanted" in str(refusal(database.models(encrypted_field.EncryptedText())))


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


def stopped_in_the_middle(database: Database) -> PreviousValueError:
    """Let every row be pending again but the last ones, let the sample not see the bad one, and run."""
    database.sql("UPDATE notes SET body_encrypted = NULL")
    with pytest.MonkeyPatch.context() as patch:
        # The sample is of a thousand rows: without this the test would need a table of many thousands.
        patch.setattr(preflight, "FIRST_ROWS", 2)
        patch.setattr(preflight, "RANDOM_ROWS", 0)
        error = refusal(database)
    done = [
        row[0] for row in database.sql("SELECT id FROM notes WHERE body_encrypted IS NOT NULL ORDER BY id")
    ]
    assert done
    assert max(done) < 7
    assert database.sql("SELECT count(*) FROM notes WHERE body IS NOT NULL")[0][0] == 9
    return error


@every_peer
def test_corrupted_in_the_middle(database: Database, peer: Callable[[str], Any]) -> None:
    """A value in the middle that its package cannot open stops the run cleanly, with the row's key."""
    database.before(peer(KEY), [CANARY] * 9)
    database.models(peer(KEY))
    database.migrator.run("notes.body")
    stored = database.sql("SELECT body FROM notes WHERE id = 7")[0][0]
    cut = stored[:-8]
    database.sql("UPDATE notes SET body = :cut WHERE id = 7", cut=cut)

    assert "(7,)" in str(stopped_in_the_middle(database))


def is_read_as_something(type_: Any, stored: str, engine: Engine) -> bool:
    try:
        type_.process_result_value(stored, engine.dialect)
    except Exception:  # noqa: BLE001 - the usual case; each padding raises something else
        return False
    return True


@pytest.mark.parametrize("padding", ["naive", "zeroes", "oneandzeroes", "pkcs5"])
def test_cbc_under_another_key(sqlite_engine: Engine, padding: str) -> None:
    """AES-CBC makes something of a ciphertext under every key; of 500 keys none passes for the right one.

    With the padding "zeroes" it reads nearly every short value as the empty string.
    """
    type_ = utils(AesEngine, padding)(KEY)
    foreign = [
        utils(AesEngine, padding)(f"key {number}").process_bind_param("a name", sqlite_engine.dialect)
        for number in range(500)
    ]
    silent = [stored for stored in foreign if is_read_as_something(type_, stored, sqlite_engine)]
    check = check_of(type_)
    assert check is not None

    assert not any(check(stored) for stored in silent)
    assert len(silent) > 400 if padding == "zeroes" else len(silent) < 30


@pytest.mark.parametrize("padding", ["naive", "zeroes", "oneandzeroes", "pkcs5"])
def test_cbc_under_another_key_in_the_middle(database: Database, padding: str) -> None:
    """One row under another key, behind the sample, stops the run, whatever it can be read as."""
    type_ = utils(AesEngine, padding)
    database.before(type_(KEY), [CANARY[:9]] * 9)
    database.models(type_(KEY))
    database.migrator.run("notes.body")
    foreign = type_(WRONG).process_bind_param("a name", database.engine.dialect)
    database.sql("UPDATE notes SET body = :foreign WHERE id = 7", foreign=foreign)

    assert "(7,)" in str(stopped_in_the_middle(database))


def test_stars_that_naive_padding_ate(database: Database) -> None:
    """Values of which sqlalchemy-utils itself lost the last characters come over as it reads them."""
    type_ = utils(AesEngine)(KEY)
    values = ["p@ss**", "x" * 12 + "****", "*" * 40, "y" * 16 + "*" * 16]
    database.before(type_, values)

    database.models(type_).comes_over(["p@ss", "x" * 12, "", "y" * 16])


@pytest.mark.parametrize("peer", [*PEERS.values()], ids=PEERS)
def test_plaintext_among_ciphertext(database: Database, peer: Callable[[str], Any]) -> None:
    """A column that was half encrypted is refused: what does not open is not taken for plaintext."""
    database.before(peer(KEY), ["one", None, "two"])
    database.models(peer(KEY))
    plaintext: Any = (
        CANARY.encode() if isinstance(database.sql("SELECT body FROM notes")[0][0], bytes) else CANARY
    )
    database.sql("UPDATE notes SET body = :plaintext WHERE id = 3", plaintext=plaintext)

    assert "(3,)" in str(refusal(database))
    assert database.is_untouched()


@pytest.mark.parametrize("type_", [utils(FernetEngine), lambda key: FernetText(fernet_of(key))])
def test_plaintext_among_ciphertext_on_request(database: Database, type_: Callable[[str], Any]) -> None:
    """Half encrypted columns come over where a function says which is which; a wrong key is refused."""
    database.before(type_(KEY), ["one", None, "two"])
    database.sql("UPDATE notes SET body = :plaintext WHERE id = 3", plaintext=CANARY)

    def is_token(stored: str) -> bool:
        return stored.startswith("gAAAA")

    refusal(database.models(PartlyPlaintext(type_(WRONG), is_token)))
    assert database.is_untouched()
    database.models(PartlyPlaintext(type_(KEY), is_token)).comes_over(["one", None, CANARY])


def test_plaintext_among_cbc_on_request(database: Database) -> None:
    """The same with a cipher that is checked by encrypting again: plaintext is not."""
    database.before(utils(AesEngine, "pkcs5")(KEY), ["one", "two"])
    database.sql("UPDATE notes SET body = 'plain' WHERE id = 2")

    mixed = PartlyPlaintext(utils(AesEngine, "pkcs5")(KEY), lambda stored: stored != "plain")
    database.models(mixed).comes_over(["one", "plain"])


def test_what_types_refuse() -> None:
    """Types that could not do what they say are refused where they are declared."""
    with pytest.raises(ConfigurationError):
        PartlyPlaintext(PgCryptoText(KEY), bool)
    with pytest.raises(ConfigurationError):
        Revealed(Text())
    with pytest.raises(ConfigurationError):
        FernetText(KEY)  # type: ignore[arg-type]
    assert KEY not in repr(FernetText(fernet_of(KEY)))


OURS = {
    "row": ({"label": "notes.body"}, {"bind": "row", "label": "notes.body"}),
    "column": ({"label": "notes.body", "bind": "row"}, {"label": "notes.text"}),
    "label": ({"label": "an old name"}, {}),
    "scope": ({"label": "notes.body"}, {"label": "notes.body", "scope": "medical"}),
}


@pytest.mark.parametrize(("before", "after"), OURS.values(), ids=OURS)
def test_our_own_ciphertext(database: Database, before: dict[str, Any], after: dict[str, Any]) -> None:
    """From column-bound to row-bound and back, to another label, to another scope: through the same steps."""
    database.our_own(before, TEXTS)
    previous = EncryptedType(Text, owner="user_id", **before)

    database.models(previous, Text, **after).comes_over(TEXTS)


@pytest.mark.parametrize(("before", "after"), OURS.values(), ids=OURS)
def test_our_own_ciphertext_goes_back(
    database: Database, before: dict[str, Any], after: dict[str, Any]
) -> None:
    """What was written encrypted alone goes back to the previous column, encrypted as that one wants it."""
    database.our_own(before, ["one", "two"])
    previous = EncryptedType(Text, owner="user_id", **before)
    database.models(previous, Text, **after)
    database.migrator.run("notes.body")
    database.models(previous, Text, "read", **after)
    with database.serving() as session:
        session.add(database.Note(id=3, user_id=1, body="three"))
        session.commit()
    assert database.sql("SELECT count(*) FROM notes WHERE body IS NULL")[0][0] == 1

    database.models(previous, Text, **after)
    report = database.migrator.reverse("notes.body")

    assert (report.finished, report.rows) == (True, 1)
    database.sql("ALTER TABLE notes RENAME COLUMN body_encrypted TO left_over")
    database.sql("ALTER TABLE notes RENAME COLUMN body TO body_encrypted")
    database.models(None, Text, **before)
    assert database.read() == ["one", "two", "three"]


def test_our_own_ciphertext_altered(database: Database) -> None:
    """A value of ours that was moved to another row's column stops the run with that row's key."""
    before = {"label": "notes.body", "bind": "row"}
    database.our_own(before, [CANARY, "two", "three"])
    database.sql("UPDATE notes SET body = (SELECT body FROM notes WHERE id = 1) WHERE id = 3")

    assert "(3,)" in str(refusal(database.models(EncryptedType(Text, owner="user_id", **before))))


def test_our_own_ciphertext_that_is_locked(database: Database) -> None:
    """Values whose keys nobody here holds stay as they are, and are counted as left."""
    database.our_own({"label": "notes.body"}, ["one", "two"])
    previous = EncryptedType(Text, owner="user_id", label="notes.body")
    database.models(previous, Text, bind="row", label="notes.body")

    report = Migrator(database.engine, database.envelope, database.Base).run("notes.body")

    assert (report.finished, report.rows, report.pending) == (False, 0, 2)


def test_our_own_new_scope(database: Database) -> None:
    """Owners who have no key of the new scope yet are left as they are until they have."""
    database.our_own({"label": "notes.body"}, ["one", "two"], scope="")
    previous = EncryptedType(Text, owner="user_id", label="notes.body")
    database.models(previous, Text, label="notes.body", scope="medical")

    report = database.migrator.run("notes.body")

    assert (report.finished, report.rows, report.pending) == (False, 0, 2)
    assert database.read() == ["one", "two"]
