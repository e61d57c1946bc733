"""`op.encrypt_column` and `op.decrypt_column`: all values moved in one revision, or nothing changed."""

import uuid
from collections.abc import Callable
from contextlib import nullcontext
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import (
    ConfigurationError,
    EncryptedType,
    KeyOwner,
    MigrationRefusedError,
    MigrationStoppedError,
    OwnerColumn,
)
from sqlalchemy_envelope.alembic import KeySource
from tests.alembic.environments import Environment, by_hand, migration, revisions, script
from tests.alembic.moving_models import SERVER_KEY, declare, envelope, fill, values
from tests.alembic.values.letters import phones, stored

ENCRYPT = """
op.encrypt_column("users", "phone", sa.String(20))
op.encrypt_column("notes", "body", sa.Text())
op.encrypt_column("notes", "size", sa.Integer())
""".strip()
DECRYPT = """
op.decrypt_column("notes", "size", sa.Integer())
op.decrypt_column("notes", "body", sa.Text())
op.decrypt_column("users", "phone", sa.String(20))
""".strip()
PHONE = 'op.encrypt_column("users", "phone", sa.String(20))'
PHONE_BACK = 'op.decrypt_column("users", "phone", sa.String(20))'
Made = Callable[..., Config]


def columns(engine: Engine, table: str) -> dict[str, Any]:
    """The columns of a table in the database."""
    return {one["name"]: one for one in sa.inspect(engine).get_columns(table)}


def shown(engine: Engine) -> list[tuple[Any, ...]]:
    """Every value that the application reads once all these columns are encrypted in place."""
    Note = declare("in place").Note  # noqa: N806
    with envelope.server_mode(reason="test"), Session(engine) as session:
        notes = session.query(Note.user_id, Note.number, Note.body, Note.size)
        found = [tuple(one) for one in notes.order_by(Note.user_id, Note.number)]
    return phones(engine) + found


def without_token(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The values of the columns that are moved here."""
    return [row[:4] for row in rows]


def test_up_and_down_and_up(made: Made, engine: Engine) -> None:
    """Every value is encrypted, read by the application, and back in plaintext after a downgrade."""
    config = made(ENCRYPT, DECRYPT)
    before = fill(engine)
    command.upgrade(config, "head")

    assert shown(engine) == without_token(before)
    assert all(isinstance(one, bytes) or one is None for one in stored(engine, "users", "phone"))
    assert b"note" not in b"".join(stored(engine, "notes", "body"))
    assert set(columns(engine, "users")) == {"id", "email", "phone"}

    command.downgrade(config, "-1")
    assert values(engine, "plaintext") == before

    command.upgrade(config, "head")
    assert shown(engine) == without_token(before)


@pytest.mark.parametrize("output", ["hex", "escape"])
def test_what_was_encrypted_before_the_revision(made: Made, engine: Engine, output: str) -> None:
    """A release that is started before its revision stores ciphertext in the old column, which PostgreSQL
    turns into text: that is not taken for plaintext and encrypted once more."""
    config = made(ENCRYPT, DECRYPT)
    fill(engine)
    early = declare("in place")
    early.Base.metadata.create_all(engine)
    with envelope.server_mode(reason="test"), Session(engine) as session:
        if engine.dialect.name == "postgresql":
            session.execute(sa.text(f"SET bytea_output = '{output}'"))
        first = sa.update(early.Note).filter_by(user_id=1, number=1)
        session.execute(first.values(user_id=1, body="early"))
        session.commit()
    before = stored(engine, "notes", "body")
    with pytest.raises(MigrationStoppedError, match="is ciphertext already") as caught:
        command.upgrade(config, "head")

    assert stored(engine, "notes", "body") == before
    assert "by hand" not in str(caught.value).partition("Or write op.expand_encrypted_column()")[0]


def test_autogenerate_finds_nothing_afterwards(made: Made, environment: Environment, engine: Engine) -> None:
    """The tables are then those of the models."""
    config = made(ENCRYPT + '\nop.encrypt_column("notes", "token", sa.String(200))', DECRYPT)
    fill(engine)
    command.upgrade(config, "head")

    command.check(environment(engine, declare("in place").Base.metadata))


def test_a_fresh_database_needs_no_keys(made: Made, engine: Engine) -> None:
    """Where there are no values the revision runs without a KeySource: an old migration asks for nothing."""
    config = made(ENCRYPT, DECRYPT, envelope=None)
    command.upgrade(config, "head")
    assert isinstance(columns(engine, "users")["phone"]["type"], sa.LargeBinary)
    command.downgrade(config, "-1")
    assert isinstance(columns(engine, "users")["phone"]["type"], sa.String)


def test_without_a_key_source(made: Made, engine: Engine) -> None:
    """The error has the line to write; nothing is changed."""
    config = made(PHONE, envelope=None)
    before = fill(engine)
    with pytest.raises(ConfigurationError, match=r"envelope=KeySource\(envelope, Base"):
        command.upgrade(config, "head")

    assert values(engine, "plaintext") == before


def test_a_failed_attempt_is_no_obstacle(made: Made, engine: Engine) -> None:
    """What a failed attempt left behind, where DDL is not undone, does not disturb the next one."""
    config = made(PHONE, PHONE_BACK, envelope=None)
    before = fill(engine)
    with pytest.raises(ConfigurationError):
        command.upgrade(config, "head")
    config.attributes["options"]["envelope"] = KeySource(envelope, declare("in place").Base)
    command.upgrade(config, "head")
    command.downgrade(config, "-1")

    assert values(engine, "plaintext") == before


def test_rows_of_more_than_one_chunk(made: Made, engine: Engine) -> None:
    """More rows than are read at once, under a composite key."""
    config = made(
        'op.encrypt_column("notes", "body", sa.Text())', 'op.decrypt_column("notes", "body", sa.Text())'
    )
    before = fill(engine, users=700)
    command.upgrade(config, "head")
    assert all(isinstance(one, bytes) for one in stored(engine, "notes", "body"))
    command.downgrade(config, "-1")

    assert values(engine, "plaintext") == before


def test_bound_to_the_row_with_a_label_and_a_scope(made: Made, engine: Engine) -> None:
    """The arguments of the model's EncryptedType stand in the revision."""
    arguments = '"notes", "body", sa.Text(), owner="user_id", label="old.name", bind="row", scope="diary"'
    config = made(f"op.encrypt_column({arguments})", f"op.decrypt_column({arguments})")
    before = fill(engine)
    command.upgrade(config, "head")
    blobs = stored(engine, "notes", "body")
    command.downgrade(config, "-1")

    assert all(isinstance(one, bytes) for one in blobs)
    assert values(engine, "plaintext") == before


@pytest.fixture
def batch() -> tuple[str, str]:
    """A column that is NOT NULL, in a batch."""
    into = (
        'with op.batch_alter_table("notes") as batch:\n    batch.{}_column("body", sa.Text(), nullable=False)'
    )
    return into.format("encrypt"), into.format("decrypt")


def test_a_batch_with_not_null(made: Made, batch: tuple[str, str], engine: Engine) -> None:
    """On SQLite the table is built anew, on PostgreSQL it is altered; the column is NOT NULL afterwards."""
    config = made(*batch, foreign_keys_off=engine.dialect.name == "sqlite")
    before = fill(engine)
    command.upgrade(config, "head")

    assert columns(engine, "notes")["body"]["nullable"] is False
    assert set(columns(engine, "notes")) == {"user_id", "number", "body", "size", "token"}
    assert all(isinstance(one, bytes) for one in stored(engine, "notes", "body"))
    command.downgrade(config, "-1")
    assert values(engine, "plaintext") == before
    assert columns(engine, "notes")["body"]["nullable"] is False


def test_a_batch_that_does_more(made: Made, engine: Engine) -> None:
    """What the batch did before is done before, and what it does after comes after."""
    config = made(
        'with op.batch_alter_table("users") as batch:\n'
        '    batch.add_column(sa.Column("nick", sa.String(9)))\n'
        '    batch.encrypt_column("phone", sa.String(20))\n'
        '    batch.add_column(sa.Column("more", sa.String(9)))\n',
    )
    before = fill(engine)
    command.upgrade(config, "head")

    assert set(columns(engine, "users")) == {"id", "email", "phone", "nick", "more"}
    assert phones(engine) == before[:4]


def test_sqlite_is_not_rebuilt_with_foreign_keys(
    environment: Environment, sqlite_engine: Engine, batch: tuple[str, str]
) -> None:
    """With foreign keys enforced a rebuild would delete what refers to the table: refused, with the line."""
    source = KeySource(envelope, declare("in place").Base)
    config = environment(sqlite_engine, declare("plaintext").Base.metadata, envelope=source)
    declare("plaintext").Base.metadata.create_all(config.attributes["engine"])
    before = fill(sqlite_engine)
    by_hand(config, batch[0].replace("notes", "users").replace("body", "phone"))
    with pytest.raises(MigrationRefusedError, match="PRAGMA foreign_keys=OFF"):
        command.upgrade(config, "head")

    assert values(sqlite_engine, "plaintext") == before


def test_a_batch_beside_server_mode_for_the_process(
    environment: Environment, sqlite_engine: Engine, batch: tuple[str, str]
) -> None:
    """An `env.py` imports the application, which may have started server mode: keys that a migration makes
    need no foreign keys, whoever makes them."""
    source = KeySource(envelope, declare("in place").Base)
    config = environment(sqlite_engine, declare("plaintext").Base.metadata, envelope=source)
    config.attributes["engine"] = sa.create_engine(sqlite_engine.url)
    declare("plaintext").Base.metadata.create_all(sqlite_engine)
    fill(sqlite_engine)
    by_hand(config, *batch)
    server = envelope.server_mode(reason="application").everywhere()
    try:
        command.upgrade(config, "head")
    finally:
        server.stop()

    assert all(isinstance(one, bytes) or one is None for one in stored(sqlite_engine, "notes", "body"))


def declare_letters(*, encrypted: bool) -> Any:
    """The base of persons and their letters; in plaintext nobody owns keys."""

    def moved(inner: Any, **options: Any) -> Any:
        return mapped_column(EncryptedType(inner) if encrypted else inner, **options)

    class Base(DeclarativeBase):
        pass

    bases = (KeyOwner, Base) if encrypted else (Base,)
    columns = {
        "id": mapped_column(sa.Integer, primary_key=True),
        "phone": moved(sa.String(20), nullable=False),
    }
    person = type("Person", bases, {"__tablename__": "persons", **columns})
    letter = type(
        "Letter",
        (Base,),
        {
            "__tablename__": "letters",
            "id": mapped_column(sa.Integer, primary_key=True),
            "person_id": mapped_column(sa.ForeignKey("persons.id", ondelete="CASCADE"), nullable=False),
            "body": moved(sa.Text(), nullable=False),
            "remark": moved(sa.Text(), nullable=True),
        },
    )
    Base.registry._kept = (person, letter)  # type: ignore[attr-defined]  # else they go with this function
    return Base


LETTERS = [(1, 1, "Dear Ada", "first"), (2, 1, "", None), (3, 2, "Dear Ben", "")]


def letters(engine: Engine, base: Any) -> list[tuple[Any, ...]]:
    """The letters as the application reads them."""
    Letter = base.registry._kept[1]  # noqa: N806
    with envelope.server_mode(reason="test"), Session(engine) as session:
        found = session.query(Letter.id, Letter.person_id, Letter.body, Letter.remark).order_by(Letter.id)
        return [tuple(one) for one in found]


@pytest.mark.parametrize("batch", [False, True])
def test_what_autogenerate_writes_runs_as_it_is(
    environment: Environment, engine: Engine, batch: bool
) -> None:
    """NOT NULL columns are encrypted and decrypted by the revision as it was written, on SQLite too, where
    their table is built anew: every row is the same, up, down and up again."""
    plain, after = declare_letters(encrypted=False), declare_letters(encrypted=True)
    sqlite = engine.dialect.name == "sqlite"
    config = environment(engine, plain.metadata, foreign_keys_off=sqlite, render_as_batch=batch)
    migration(config, "plaintext")
    command.upgrade(config, "head")
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO persons (id, phone) VALUES (1, '+44'), (2, '')"))
        table = plain.metadata.tables["letters"]
        connection.execute(table.insert().values(LETTERS))
    config.attributes["options"] |= {
        "target_metadata": after.metadata,
        "envelope": KeySource(envelope, after),
    }
    migration(config, "encrypted")
    for _ in range(2):
        command.upgrade(config, "head")

        assert letters(engine, after) == LETTERS
        assert all(isinstance(one, bytes) for one in stored(engine, "letters", "body"))
        assert all(isinstance(one, bytes) for one in stored(engine, "persons", "phone"))
        assert columns(engine, "letters")["body"]["nullable"] is False

        command.check(config)
        command.downgrade(config, "-1")

        assert letters(engine, plain) == LETTERS
        assert set(stored(engine, "persons", "phone")) == {"+44", ""}
        assert columns(engine, "letters")["body"]["nullable"] is False

    first, second = revisions(config)
    for down, way in ((False, (first, second)), (True, (second, first))):
        with pytest.raises(MigrationRefusedError, match="none in a SQL script"):
            script(config, *way, down=down)


def test_sqlite_is_not_rebuilt_where_a_trigger_would_go(
    environment: Environment, sqlite_engine: Engine, batch: tuple[str, str]
) -> None:
    """A rebuilt table has lost its triggers: refused, by name."""
    config = environment(sqlite_engine, declare("plaintext").Base.metadata, foreign_keys_off=True)
    declare("plaintext").Base.metadata.create_all(config.attributes["engine"])
    with sqlite_engine.begin() as connection:
        connection.execute(
            sa.text("CREATE TRIGGER audit AFTER UPDATE ON notes BEGIN SELECT RAISE(IGNORE); END")
        )
    by_hand(config, batch[0])
    with pytest.raises(MigrationRefusedError, match="audit"):
        command.upgrade(config, "head")


CARRIED_OVER = (
    "t (id INTEGER PRIMARY KEY, \"collate x\" TEXT DEFAULT 'AUTOINCREMENT', u INT, body TEXT, "
    "FOREIGN KEY (u) REFERENCES users (id) ON DELETE CASCADE); CREATE INDEX i ON t (u) WHERE u > 1"
)


@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
@pytest.mark.parametrize(
    ("created", "lost"),
    [
        ("t (id INTEGER PRIMARY KEY AUTOINCREMENT, body TEXT)", "AUTOINCREMENT"),
        ("t (id INTEGER PRIMARY KEY, name TEXT COLLATE NOCASE, body TEXT)", "COLLATE NOCASE"),
        ("t (id INTEGER PRIMARY KEY, name TEXT UNIQUE ON CONFLICT IGNORE, body TEXT)", "ON CONFLICT IGNORE"),
        (
            "t (id INTEGER PRIMARY KEY, u INT REFERENCES users ON DELETE CASCADE, body TEXT)",
            "ON DELETE CASCADE",
        ),
        ("t (id INTEGER PRIMARY KEY, n TEXT, body TEXT); CREATE INDEX i ON t (lower(n))", "the index i"),
        ("t (id INTEGER PRIMARY KEY, n TEXT, body TEXT); CREATE INDEX i ON t (n DESC)", "the index i"),
        (CARRIED_OVER, ""),
    ],
)
def test_sqlite_is_not_rebuilt_where_alembic_loses_something(
    environment: Environment, sqlite_engine: Engine, created: str, lost: str
) -> None:
    """What the new table would be without is named; where there is nothing of it, the table is built."""
    config = environment(sqlite_engine, declare("plaintext").Base.metadata, foreign_keys_off=True)
    declare("plaintext").Base.metadata.create_all(config.attributes["engine"])
    with sqlite_engine.begin() as connection:
        for statement in f"CREATE TABLE {created}".split("; "):
            connection.exec_driver_sql(statement)
    by_hand(config, 'op.encrypt_column("t", "body", sa.Text(), owner="u", nullable=False)')
    with (
        pytest.raises(MigrationRefusedError, match=f"does not carry over, or may not: {lost}")
        if lost
        else nullcontext()
    ):
        command.upgrade(config, "head")


def test_no_file_shows_a_key(made: Made, engine: Engine, capture_logs: Any) -> None:
    """Neither files nor logs of a revision that encrypts show the server's key, or a value."""
    config = made(PHONE, PHONE_BACK)
    fill(engine)
    command.upgrade(config, "head")

    assert SERVER_KEY.hex() not in capture_logs.text
    assert repr(SERVER_KEY) not in capture_logs.text


def test_registries_serve_as_a_base(made: Made, engine: Engine) -> None:
    """A registry is as good as a base."""
    config = made(PHONE, envelope=KeySource(envelope, declare("in place").Base.registry))
    before = fill(engine)
    command.upgrade(config, "head")

    assert phones(engine) == before[:4]


def declare_keys(*, encrypted: bool) -> tuple[Any, Any, Any, Any]:
    """Owners under a UUID and under a composite key, and rows of both."""

    def moved(inner: Any, **options: Any) -> Any:
        return EncryptedType(inner, **options) if encrypted else inner

    class Base(DeclarativeBase):
        pass

    class Author(KeyOwner, Base):
        __tablename__ = "authors"

        id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
        name: Mapped[str | None] = mapped_column(moved(sa.String(9), bind="row"))

    class Member(KeyOwner, Base):
        __tablename__ = "members"

        org: Mapped[str] = mapped_column(sa.String(9), primary_key=True)
        number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)

    class Page(Base):
        __tablename__ = "pages"
        __table_args__ = (sa.ForeignKeyConstraint(["number", "org"], ["members.number", "members.org"]),)

        id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
        author_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("authors.id"))
        number: Mapped[int]
        org: Mapped[str] = mapped_column(sa.String(9))
        body: Mapped[str | None] = mapped_column(moved(sa.Text(), owner="author_id", bind="row"))
        price: Mapped[Any] = mapped_column(moved(sa.Numeric(10, 2), owner=("number", "org")), nullable=False)
        extra: Mapped[Any] = mapped_column(moved(sa.JSON(), owner="author_id", scope="x"), nullable=True)
        editor_id: Mapped[uuid.UUID]  # without a foreign key
        remark: Mapped[str | None] = mapped_column(
            moved(sa.String(9), owner=OwnerColumn("editor_id", of="Author"))
        )
        note: Mapped[str | None] = mapped_column(
            moved(sa.String(9), owner=OwnerColumn("editor_id", of="Author"))
        )

    return Base, Author, Member, Page


def test_every_kind_of_key_and_value(environment: Environment, engine: Engine) -> None:
    """UUIDs and composite keys, bound to rows or not, and JSON with its `null`: the application reads all."""
    before, Author, Member, Page = declare_keys(encrypted=False)  # noqa: N806
    after, *_, Moved = declare_keys(encrypted=True)  # noqa: N806
    before.metadata.create_all(engine)
    with Session(engine) as session:
        author = Author(id=uuid.uuid4(), name="Ada")
        session.add_all([author, Member(org="acm", number=1)])
        session.flush()
        same = {"author_id": author.id, "org": "acm", "number": 1, "editor_id": author.id}
        same |= {"remark": "r", "note": "n"}
        session.add(Page(**same, body="b", price=Decimal("12.50"), extra={"a": [1]}))
        session.add(Page(**same, body="c", price=Decimal(3), extra=None))
        session.commit()
    config = environment(
        engine,
        after.metadata,
        envelope=KeySource(envelope, after),
        foreign_keys_off=engine.dialect.name == "sqlite",
    )
    by_hand(
        config,
        'op.encrypt_column("authors", "name", sa.String(9), bind="row")\n'
        'op.encrypt_column("pages", "body", sa.Text(), owner="author_id", bind="row")\n'
        'op.encrypt_column("pages", "extra", sa.JSON(), owner="author_id", scope="x")\n'
        'op.encrypt_column("pages", "remark", sa.String(9))\n'
        'op.encrypt_column("pages", "note", sa.String(9), owner="editor_id")\n'
        'with op.batch_alter_table("pages") as batch:\n'
        '    batch.encrypt_column("price", sa.Numeric(10, 2), owner=("number", "org"), nullable=False)',
    )
    command.upgrade(config, "head")
    with envelope.server_mode(reason="test"), Session(engine) as session:
        read = [(page.body, page.price, page.extra, page.remark + page.note) for page in session.query(Moved)]

    assert sorted(read) == [("b", Decimal("12.50"), {"a": [1]}, "rn"), ("c", Decimal(3), None, "rn")]
    command.check(config)
