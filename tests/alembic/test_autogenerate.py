"""`alembic revision --autogenerate` over encrypted models: what it writes, that it runs, and that it then
finds nothing.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations.ops import AlterColumnOp, CreateIndexOp
from sqlalchemy import JSON, Engine, LargeBinary, String, select
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import sqlalchemy_envelope.alembic as envelope_alembic
from sqlalchemy_envelope import (
    ConfigurationError,
    DecryptionError,
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyOwner,
    KeySlotTable,
    KeyTable,
    OwnerMismatchError,
)
from sqlalchemy_envelope.alembic.compare import _is_made_otherwise_by_mysql
from tests.alembic.environments import Environment, migration
from tests.alembic.models import in_schema, plain

pytestmark = pytest.mark.both_lines

SECRET = "correct horse battery staple"
PROJECT = Path(__file__).parents[2]

envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests())


def write_and_read(engine: Engine, models: SimpleNamespace) -> None:
    """Enroll owners of both kinds, write, and read in another session."""
    with Session(engine) as session:
        ada = models.User(email="ada@example.org", phone="+44 20 7946 0000")
        with envelope.enroll(session, ada, secret=SECRET):
            session.add(models.Note(user=ada, body="hello", title="a title", price=12, extra={"a": [1]}))
            session.commit()
        member = models.Member(org="acm", number=7, name="Grace")
        envelope.enroll(session, member, secret=SECRET)
        session.commit()
    with Session(engine) as session:
        ada = session.scalars(select(models.User)).one()
        with envelope.unlock(session, ada, secret=SECRET):
            note = session.scalars(select(models.Note)).one()
            read = (ada.phone, note.body, note.title, note.price, note.extra)
        member = session.scalars(select(models.Member)).one()
        with envelope.unlock(session, member, secret=SECRET):
            name = member.name

    assert read == ("+44 20 7946 0000", "hello", "a title", 12, {"a": [1]})
    assert name == "Grace"


def column_types(text: str) -> dict[str, str]:
    """Column names and rendered types of a migration."""
    return dict(re.findall(r"sa\.Column\('(\w+)', (sa\.\w+\([^)]*\))", text))


def test_a_migration_is_made_runs_and_leaves_nothing_to_do(environment: Environment, engine: Engine) -> None:
    """Columns are plain binary, this library is not named, a second look finds nothing, and back it goes."""
    config = environment(engine, plain.Base.metadata)
    text = migration(config)
    types = column_types(text)

    assert {"sa.LargeBinary()"} == {
        types[name] for name in ("phone", "body", "title", "price", "extra", "name")
    }
    assert "envelope" not in text.lower()
    assert {"users_key", "users_keyslot", "vault_keys", "vault_slots"} <= set(re.findall(r"'(\w+)',\n", text))

    command.upgrade(config, "head")
    command.check(config)
    write_and_read(engine, plain)
    command.check(config)
    command.downgrade(config, "base")

    assert sa.inspect(engine).get_table_names() == ["alembic_version"]


def test_a_second_migration_is_empty(environment: Environment, engine: Engine) -> None:
    """Autogenerating again after the upgrade writes two functions that do nothing."""
    config = environment(engine, plain.Base.metadata)
    migration(config)
    command.upgrade(config, "head")

    assert migration(config, "again").count("    pass\n") == 2


@pytest.mark.backend
def test_tables_in_a_schema(environment: Environment, postgres_engine: Engine) -> None:
    """The same with every table in a schema of PostgreSQL."""
    engine = postgres_engine
    with engine.begin() as connection:
        connection.execute(sa.schema.CreateSchema("vault"))
    config = environment(
        engine,
        in_schema.Base.metadata,
        include_schemas=True,
        include_name=lambda name, kind, _: kind != "schema" or name == "vault",
        version_table_schema="vault",
    )
    text = migration(config)

    assert column_types(text)["body"] == "sa.LargeBinary()"
    assert "sqlalchemy_envelope" not in text

    command.upgrade(config, "head")
    command.check(config)
    write_and_read(engine, in_schema)
    command.downgrade(config, "base")

    assert sa.inspect(engine).get_table_names("vault") == ["alembic_version"]


def test_the_constraints_reach_the_database(environment: Environment, engine: Engine) -> None:
    """One active key per owner, purpose and scope: a partial unique index; and keys refer to their root."""
    config = environment(engine, plain.Base.metadata)
    text = migration(config)
    command.upgrade(config, "head")
    inspector = sa.inspect(engine)
    active = {
        index["name"]: index
        for table in ("users_key", "vault_keys")
        for index in inspector.get_indexes(table)
    }
    targets = {key["referred_table"]: key for key in inspector.get_foreign_keys("users_key")}

    assert "'uq_users_key_active'" in text
    assert active["uq_users_key_active"]["unique"]
    assert "active" in "".join(map(str, active["uq_users_key_active"]["dialect_options"].values()))
    assert active["uq_vault_keys_active"]["column_names"] == ["owner_org", "owner_number", "purpose", "scope"]
    assert targets["users_key"]["constrained_columns"] == ["wrapping_key_id"]
    assert targets["users"]["options"]["ondelete"] == "CASCADE"


def test_render_item_of_the_application_still_counts(environment: Environment, engine: Engine) -> None:
    """It is asked first, for our types too; what it leaves alone is rendered as binary."""
    asked: list[str] = []

    def render_item(kind: str, item: Any, autogen_context: Any) -> str | bool:
        asked.append(kind)
        if isinstance(item, EncryptedType) and item.label == "users.phone":
            return "sa.BLOB()"
        return "sa.Unicode(80)" if isinstance(item, String) and item.length == 80 else False

    types = column_types(migration(environment(engine, plain.Base.metadata, render_item=render_item)))

    assert types["phone"] == "sa.BLOB()"
    assert types["body"] == "sa.LargeBinary()"
    assert types["email"] == "sa.Unicode(80)"
    assert {"type", "column"} <= set(asked)


def test_the_prefix_of_sqlalchemy_is_that_of_the_application(
    environment: Environment, engine: Engine
) -> None:
    """`sqlalchemy_module_prefix` is obeyed."""
    text = migration(environment(engine, plain.Base.metadata, sqlalchemy_module_prefix="sqlalchemy."))

    assert "sa.Column('body', sqlalchemy.LargeBinary()" in text.replace("sqlalchemy.Column", "sa.Column")


def test_a_column_added_later_and_one_that_was_text(environment: Environment, engine: Engine) -> None:
    """Adding an encrypted column is plain; a text column that becomes one is noticed, and is encrypted."""
    with engine.begin() as connection:
        plain.Base.metadata.create_all(connection)
        connection.execute(sa.text("ALTER TABLE notes DROP COLUMN body"))
        connection.execute(sa.text("ALTER TABLE notes DROP COLUMN title"))
        connection.execute(sa.text("ALTER TABLE notes ADD COLUMN title VARCHAR(40)"))
    text = migration(environment(engine, plain.Base.metadata))

    column = "sa.Column('body', sa.LargeBinary(), nullable=False)"
    assert f"op.add_encrypted_column('notes', {column})" in text
    assert re.search(r"op\.encrypt_column\('notes', 'title', sa\.VARCHAR\(length=40\)", text)
    assert "type_=sa.LargeBinary()" not in text


def test_what_mysql_makes_of_the_key_tables_is_no_difference() -> None:
    """It gets no index without its WHERE, which would forbid rotation; a TINYBLOB is what BLOB(32) became."""
    table = plain.Base.metadata.tables["users_key"]
    (active,) = [one for one in table.indexes if one.name == "uq_users_key_active"]
    same = AlterColumnOp("users_key", "seal", existing_type=mysql.TINYBLOB(), modify_type=LargeBinary(48))
    longer = AlterColumnOp("users_key", "seal", existing_type=mysql.TINYBLOB(), modify_type=LargeBinary(480))
    to_null = AlterColumnOp(
        "users_key",
        "seal",
        existing_type=mysql.TINYBLOB(),
        modify_type=LargeBinary(48),
        modify_nullable=True,
    )

    assert _is_made_otherwise_by_mysql(CreateIndexOp.from_index(active), table)
    assert _is_made_otherwise_by_mysql(same, table)
    assert not _is_made_otherwise_by_mysql(longer, table)
    assert not _is_made_otherwise_by_mysql(to_null, table)


def test_a_migration_that_drops_keys_is_refused(environment: Environment, engine: Engine) -> None:
    """Autogenerate takes an owner's renamed table for key tables to drop; that would shred every key."""
    with engine.begin() as connection:
        plain.Base.metadata.create_all(connection)

    with pytest.raises(ConfigurationError, match="would drop"):
        migration(environment(engine, sa.MetaData()))


def test_render_item_without_a_comparison(engine: Engine) -> None:
    """`render_python_code` asks the function it is given; ours can be that function."""
    with engine.connect() as connection:
        migrations = produce_migrations(MigrationContext.configure(connection), plain.Base.metadata)
    assert migrations.upgrade_ops is not None
    text = render_python_code(migrations.upgrade_ops, render_item=envelope_alembic.render_item)

    assert column_types(text)["body"] == "sa.LargeBinary()"
    assert "sqlalchemy_envelope" not in text


def test_a_variant_of_an_encrypted_type_is_refused() -> None:
    """A variant would take the type's place on one database, where nothing would encrypt: no such column."""
    metadata = sa.MetaData()
    for type_ in (
        EncryptedType(JSON).with_variant(LargeBinary(), "sqlite"),
        String().with_variant(EncryptedType(String), "postgresql"),
        JSON().with_variant(postgresql.JSONB(), "postgresql").with_variant(EncryptedType(JSON), "sqlite"),
    ):
        with pytest.raises(ConfigurationError):
            sa.Table(f"t{id(type_)}", metadata, sa.Column("c", type_))


def declare_renamed(owner_label: str | None, column_label: str | None) -> SimpleNamespace:
    """`users.phone` after the table became `accounts` and the column `telephone`, as in the how-to."""

    class Base(DeclarativeBase):
        pass

    class Account(KeyOwner, Base, key_tables=False):
        __tablename__ = "accounts"
        __owner_label__ = owner_label

        id: Mapped[int] = mapped_column(primary_key=True)
        email: Mapped[str] = mapped_column(String(80), unique=True)
        telephone: Mapped[str | None] = mapped_column(EncryptedType(String, label=column_label))

    class AccountKey(KeyTable[Account], Base):
        __tablename__ = "users_key"

    class AccountKeySlot(KeySlotTable[Account], Base):
        __tablename__ = "users_keyslot"

    return SimpleNamespace(Base=Base, Account=Account)


@pytest.fixture
def renamed(environment: Environment, engine: Engine) -> Config:
    """A database with values in it, whose `users.phone` was renamed by a migration written by hand."""
    config = environment(engine, plain.Base.metadata)
    migration(config)
    command.upgrade(config, "head")
    write_and_read(engine, plain)
    script: Any = command.revision(config, message="rename")
    path = Path(script.path)
    by_hand = (
        "    op.alter_column('users', 'phone', new_column_name='telephone')\n"
        "    op.rename_table('users', 'accounts')\n"
    )
    path.write_text(path.read_text().replace("    pass\n", by_hand, 1))
    command.upgrade(config, "head")
    return config


@pytest.mark.usefixtures("renamed")
def test_renamed_with_both_labels_pinned_everything_opens(environment: Environment, engine: Engine) -> None:
    """With the old names pinned in the models the values open, and autogenerate finds the rename complete."""
    models = declare_renamed("users", "users.phone")
    tables = {*models.Base.metadata.tables}
    with Session(engine) as session:
        account = session.scalars(select(models.Account)).one()
        with envelope.unlock(session, account, secret=SECRET):
            assert account.telephone == "+44 20 7946 0000"

    command.check(
        environment(
            engine, models.Base.metadata, include_name=lambda name, kind, _: kind != "table" or name in tables
        )
    )


@pytest.mark.usefixtures("renamed")
def test_renamed_without_its_label_a_column_does_not_open(engine: Engine) -> None:
    """The error names the rename as one cause, and the line to write."""
    models = declare_renamed("users", None)
    with Session(engine) as session:
        account = session.scalars(select(models.Account)).one()
        with (
            envelope.unlock(session, account, secret=SECRET),
            pytest.raises(DecryptionError, match=r"label='old\.name'"),
        ):
            account.telephone  # noqa: B018


@pytest.mark.usefixtures("renamed")
def test_renamed_without_its_label_an_owner_does_not_open(engine: Engine) -> None:
    """Keys are bound to the table's label, too."""
    models = declare_renamed(None, "users.phone")
    with Session(engine) as session:
        account = session.scalars(select(models.Account)).one()
        with pytest.raises(OwnerMismatchError):
            envelope.unlock(session, account, secret=SECRET)


def run(folder: Path, *arguments: str) -> str:
    """The `alembic` command in a process of its own."""
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-m", "alembic", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.parametrize("template", ["generic", pytest.param("pyproject", marks=pytest.mark.thorough)])
def test_the_command_line_with_one_import(tmp_path: Path, template: str) -> None:
    """`alembic init`, the one import, a revision, an upgrade, a check: all by the command line."""
    run(tmp_path, "init", "--template", template, "migrations")
    settings = tmp_path / "alembic.ini"
    settings.write_text(
        re.sub(
            r"(?m)^sqlalchemy.url = .*$",
            f"sqlalchemy.url = sqlite:///{tmp_path / 'cli.db'}",
            settings.read_text(),
        )
    )
    env = tmp_path / "migrations" / "env.py"
    env.write_text(
        env.read_text().replace(
            "target_metadata = None",
            "import sqlalchemy_envelope.alembic\n"
            "from tests.alembic.models import plain\n"
            "target_metadata = plain.Base.metadata",
        )
    )
    run(tmp_path, "revision", "--autogenerate", "-m", "first")
    run(tmp_path, "upgrade", "head")
    run(tmp_path, "check")
    (version,) = (tmp_path / "migrations" / "versions").glob("*.py")
    text = version.read_text()

    assert "sa.Column('body', sa.LargeBinary(), nullable=False)" in text
    assert "sqlalchemy_envelope" not in text
    assert SECRET not in text


@pytest.mark.parametrize("batch", [False, True])
def test_plaintext_becomes_a_step_that_encrypts_it(sqlite_engine: Engine, batch: bool) -> None:
    """Where a column of text is encrypted in the model, autogenerate writes `op.encrypt_column`, in a batch
    too: a change of type alone would leave plaintext where ciphertext is expected."""

    class Base(DeclarativeBase):
        pass

    class Person(KeyOwner, Base):
        __tablename__ = "persons"
        id: Mapped[int] = mapped_column(primary_key=True)
        phone: Mapped[str | None] = mapped_column(EncryptedType(String))

    class Letter(Base):
        __tablename__ = "letters"
        id: Mapped[int] = mapped_column(primary_key=True)
        person_id: Mapped[int] = mapped_column(sa.ForeignKey("persons.id", ondelete="CASCADE"))
        body: Mapped[str] = mapped_column(EncryptedType(String, owner="person_id", label="x.y"))

    sa.orm.configure_mappers()
    with sqlite_engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE persons (id INTEGER PRIMARY KEY, phone VARCHAR(20))"))
        connection.execute(
            sa.text(
                "CREATE TABLE letters (id INTEGER PRIMARY KEY, person_id INTEGER NOT NULL, "
                "body TEXT NOT NULL)"
            )
        )
        context = MigrationContext.configure(
            connection,
            opts={"target_metadata": Base.metadata, "compare_type": True, "render_as_batch": batch},
        )
        written = render_python_code(
            produce_migrations(context, Base.metadata).upgrade_ops,
            render_as_batch=batch,
            migration_context=context,
        )

    assert "op.encrypt_column('persons', 'phone', sa.VARCHAR(length=20))" in written
    assert (
        "op.encrypt_column('letters', 'body', sa.TEXT(), owner='person_id', label='x.y', nullable=False)"
        in written
    )
    assert "type_=" not in written
