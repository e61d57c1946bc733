"""Expand and contract by revisions: what autogenerate writes at each step of a move, and that nothing is lost
on any way through it."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine
from sqlalchemy.dialects import mysql

from sqlalchemy_envelope import MigrationRefusedError
from sqlalchemy_envelope.alembic import ContractEncryptedColumnOp, DecryptColumnOp, ExpandEncryptedColumnOp
from sqlalchemy_envelope.migration.migrator import Migrator
from tests.alembic.environments import Environment, body_of, by_hand, migration, revisions, script
from tests.alembic.moving_models import (
    FOREIGN_KEY,
    SERVER_KEY,
    Stage,
    declare,
    envelope,
    fill,
    values,
)

MOVES = ("users.phone", "notes.body", "notes.size", "notes.token")
EXPAND = 'op.expand_encrypted_column("users", "phone", "phone_encrypted")'
UNDO_EXPAND = 'op.undo_expand_encrypted_column("users", "phone", "phone_encrypted")'
CONTRACT = 'op.contract_encrypted_column("users", "phone", "phone_encrypted", existing_type=sa.String(20))'
UNDO_CONTRACT = (
    'op.undo_contract_encrypted_column("users", "phone", "phone_encrypted", existing_type=sa.String(20))'
)


def differences(engine: Engine, metadata: sa.MetaData, **options: Any) -> list[Any]:
    """What autogenerate finds."""
    with engine.connect() as connection:
        options["compare_server_default"] = True
        context = MigrationContext.configure(connection, opts=options)
        return list(compare_metadata(context, metadata))


class App:
    """A database with plaintext in it, and the environment that changes it."""

    def __init__(self, environment: Environment, engine: Engine) -> None:
        self.environment, self.engine = environment, engine
        declare("plaintext").Base.metadata.create_all(engine)
        self.before = fill(engine)

    def config(self, stage: Stage, **options: Any) -> Config:
        """The environment with this step deployed."""
        return self.environment(self.engine, declare(stage).Base.metadata, **options)

    def autogenerate(self, stage: Stage, **options: Any) -> str:
        """What autogenerate writes for this step, run as well."""
        config = self.config(stage, **options)
        text = migration(config)
        command.upgrade(config, "head")
        return text

    def migrator(self, stage: Stage) -> Migrator:
        """What `sqlalchemy-envelope migrate` does at this step."""
        return Migrator(self.engine, envelope, declare(stage).Base, provider="server")

    def move(self, *, cutover: bool = True) -> None:
        """Encrypt and verify everything, and cut over."""
        migrator = self.migrator("both")
        for name in MOVES:
            assert migrator.run(name).finished
            assert migrator.verify(name).is_clean
            if cutover:
                migrator.cutover(name)

    def check(self, stage: Stage) -> None:
        """Autogenerate finds nothing to do."""
        assert differences(self.engine, declare(stage).Base.metadata) == []

    def sql(self, statement: str, **parameters: Any) -> Any:
        """What a program does that knows nothing of all this."""
        with self.engine.begin() as connection:
            result = connection.execute(sa.text(statement), parameters)
            return result.all() if result.returns_rows else None

    def columns(self, table: str) -> set[str]:
        """The columns of a table in the database."""
        return {one["name"] for one in sa.inspect(self.engine).get_columns(table)}


@pytest.fixture
def app(environment: Environment, engine: Engine) -> App:
    """The plaintext application."""
    return App(environment, engine)


def test_expand_is_written_and_run(app: App) -> None:
    """One operation for each column, undone in reverse, and the one import; a second look finds nothing."""
    text = app.autogenerate("both")
    up, down = body_of(text, "upgrade"), body_of(text, "downgrade")

    assert "op.expand_encrypted_column('users', 'phone', 'phone_encrypted')" in up
    assert len(up) == 4
    assert down[-1] == up[0].replace("op.", "op.undo_")
    assert "\nimport sqlalchemy_envelope.alembic\n" in text
    assert "add_column" not in text
    app.check("both")
    assert values(app.engine, "both") == app.before


def test_the_trigger_sees_who_knows_nothing(app: App) -> None:
    """After the revision, an old program's change of a moved value makes it pending again."""
    app.autogenerate("both")
    app.move(cutover=False)
    app.sql("UPDATE users SET phone = '0' WHERE id = 1")

    assert app.sql("SELECT phone_encrypted FROM users WHERE id = 1") == [(None,)]
    assert app.sql("SELECT count(*) FROM users WHERE phone_encrypted IS NOT NULL") == [(2,)]


def test_no_noise_at_any_step(app: App) -> None:
    """Nothing is found after expand, during the move, after the cut-over, nor after the contract."""
    app.autogenerate("both")
    app.check("both")
    app.move()
    app.check("both")
    app.check("read")
    app.check("refuse")
    app.autogenerate("moved")
    app.check("moved")

    assert {"envelope_migration", "users_key"} <= set(sa.inspect(app.engine).get_table_names())


def test_contract_is_written_and_run(app: App) -> None:
    """It takes the place of a dropped column; its undoing makes the column again, and values come back."""
    app.autogenerate("both")
    app.move()
    text = app.autogenerate("moved")
    up, down = body_of(text, "upgrade"), body_of(text, "downgrade")

    assert any(
        line.startswith("op.contract_encrypted_column('users', 'phone', 'phone_encrypted', existing_type=sa.")
        for line in up
    )
    assert len(up) == len(down) == 4
    assert "drop_column" not in text
    assert app.columns("users") == {"id", "email", "phone_encrypted"}
    assert values(app.engine, "moved") == app.before

    command.downgrade(app.config("moved"), "-1")
    app.check("both")
    assert values(app.engine, "read") == app.before
    for name in MOVES:
        assert app.migrator("both").reverse(name).finished
    command.downgrade(app.config("moved"), "-1")
    assert values(app.engine, "plaintext") == app.before
    app.check("plaintext")


def test_a_second_move_begins_anew(app: App) -> None:
    """After expand was undone, nothing of the first move counts for the second: it is verified again."""
    app.autogenerate("both")
    app.move(cutover=False)
    command.downgrade(app.config("both"), "-1")
    assert app.sql("SELECT count(*) FROM envelope_migration") == [(0,)]
    command.upgrade(app.config("both"), "head")
    config = app.config("moved")
    by_hand(config, CONTRACT)
    with pytest.raises(MigrationRefusedError, match="3 rows of users"):
        command.upgrade(config, "head")
    app.move()
    command.upgrade(config, "head")

    assert app.columns("users") == {"id", "email", "phone_encrypted"}


def test_undo_of_expand_loses_nothing(app: App) -> None:
    """Refused while a value is encrypted alone; both columns are as they were."""
    app.autogenerate("both")
    app.move()
    app.sql("UPDATE users SET phone = NULL, phone_encrypted = :blob WHERE id = 1", blob=b"\x01" + bytes(44))
    with pytest.raises(MigrationRefusedError, match="1 row of users would lose the value, which is in"):
        command.downgrade(app.config("both"), "-1")

    assert "phone_encrypted" in app.columns("users")


def test_contract_loses_nothing(app: App) -> None:
    """Refused while a row is pending, also where it is not to be verified; old programs write as before."""
    app.autogenerate("both")
    app.move()
    app.sql("UPDATE users SET phone = '0' WHERE id = 1")
    config = app.config("moved")
    by_hand(config, CONTRACT.replace("))", "), unverified=True)"))
    with pytest.raises(MigrationRefusedError, match="1 row of users would lose the value in phone"):
        command.upgrade(config, "head")
    app.sql("UPDATE users SET phone = '1' WHERE id = 1")

    assert app.sql("SELECT phone FROM users WHERE id = 1") == [("1",)]


def test_contract_wants_a_verification(app: App) -> None:
    """Refused before verification and cut-over, unless told that there was none."""
    app.autogenerate("both")
    for name in MOVES:
        app.migrator("both").run(name)
    config = app.config("moved")
    by_hand(config, CONTRACT, UNDO_CONTRACT)
    with pytest.raises(MigrationRefusedError, match=r"users\.phone was not verified"):
        command.upgrade(config, "head")
    app.migrator("both").verify("users.phone")
    with pytest.raises(MigrationRefusedError, match="cut over"):
        command.upgrade(config, "head")
    app.migrator("both").cutover("users.phone")
    command.upgrade(config, "head")

    assert app.sql("SELECT phase FROM envelope_migration WHERE name = 'users.phone'") == [("contracted",)]


def test_what_was_not_verified_is_accepted_by_number(app: App) -> None:
    """A sampled verification, and values that no key here opens, are refused with what to write; that is
    taken, and no smaller number."""
    app.autogenerate("both")
    app.move(cutover=False)
    app.migrator("both").verify("users.phone", sample=0.9)
    app.migrator("both").cutover("users.phone", accept_sample=True)
    app.sql("UPDATE envelope_migration SET locked = 3 WHERE name = 'users.phone'")
    config = app.config("moved")
    by_hand(config, CONTRACT, UNDO_CONTRACT)
    file = Path(ScriptDirectory.from_config(config).get_revision("head").path)
    text = file.read_text()
    for accepted, refusal in (
        ("", "accept_sample=True"),
        (", accept_sample=True", "accept_locked=3"),
        (", accept_sample=True, accept_locked=2", "accept_locked=3"),
    ):
        file.write_text(text.replace("String(20))", f"String(20){accepted})", 1))
        with pytest.raises(MigrationRefusedError, match=refusal):
            command.upgrade(config, "head")
    # One line longer: of a file of the same size and second, Python takes the bytecode that it has.
    file.write_text(text.replace("String(20))", "String(20), accept_sample=True, accept_locked=3)", 1) + "\n")
    command.upgrade(config, "head")

    assert "phone" not in app.columns("users")


def test_a_name_that_is_neither_columns(app: App) -> None:
    """Where the attribute has another name, the error lists the table's migrations, and `name=` is taken."""
    app.autogenerate("both")
    app.move()
    app.sql("UPDATE envelope_migration SET name = 'users.telephone' WHERE name = 'users.phone'")
    config = app.config("moved")
    by_hand(config, CONTRACT)
    with pytest.raises(MigrationRefusedError, match=r"'users\.telephone', say so: name="):
        command.upgrade(config, "head")
    file = Path(ScriptDirectory.from_config(config).get_revision("head").path)
    file.write_text(file.read_text().replace("String(20))", "String(20), name='users.telephone')"))
    command.upgrade(config, "head")

    assert "phone" not in app.columns("users")


def test_operations_are_repeatable(app: App) -> None:
    """What `migrate` has done already is left alone: expand, and contract."""
    for name in MOVES:
        app.migrator("both").expand(name)
    config = app.config("both")
    by_hand(config, EXPAND)
    command.upgrade(config, "head")
    app.move()
    app.migrator("refuse").contract("users.phone", stopped=True)
    by_hand(config, CONTRACT)
    command.upgrade(config, "head")

    assert app.columns("users") == {"id", "email", "phone_encrypted"}


def test_in_a_batch(app: App) -> None:
    """They come at the end of a batch, so that SQLite's triggers outlive a table that is built anew."""
    anew = app.engine.dialect.name == "sqlite"
    config = app.config("both", foreign_keys_off=anew)
    by_hand(
        config,
        f'with op.batch_alter_table("users", recreate="{"always" if anew else "auto"}") as batch:\n'
        '    batch.expand_encrypted_column("phone", "phone_encrypted")\n'
        '    batch.add_column(sa.Column("nick", sa.String(9)))',
        'with op.batch_alter_table("users") as batch:\n'
        '    batch.drop_column("nick")\n'
        '    batch.undo_expand_encrypted_column("phone", "phone_encrypted")',
    )
    command.upgrade(config, "head")
    migrator = app.migrator("both")
    migrator.run("users.phone")
    app.sql("UPDATE users SET phone = '0' WHERE id = 1")
    assert app.sql("SELECT phone_encrypted FROM users WHERE id = 1") == [(None,)]
    migrator.run("users.phone")
    migrator.verify("users.phone")
    migrator.cutover("users.phone")
    by_hand(
        config,
        'with op.batch_alter_table("users") as batch:\n'
        '    batch.contract_encrypted_column("phone", "phone_encrypted", existing_type=sa.String(20))',
        'with op.batch_alter_table("users") as batch:\n'
        '    batch.undo_contract_encrypted_column("phone", "phone_encrypted", existing_type=sa.String(20))',
    )
    command.upgrade(config, "head")
    assert app.columns("users") == {"id", "email", "phone_encrypted", "nick"}
    command.downgrade(config, "-1")
    app.migrator("both").reverse("users.phone")
    command.downgrade(config, "-1")

    assert app.columns("users") == {"id", "email", "phone"}


def test_autogenerate_as_batch(app: App) -> None:
    """With `render_as_batch` the steps stand after the table's batch, and run."""
    text = app.autogenerate("both", render_as_batch=True)

    assert "    op.expand_encrypted_column('users', 'phone', 'phone_encrypted')" in text
    app.check("both")


def test_indexes_on_the_previous_column_stay(app: App) -> None:
    """What keeps plaintext fast, and unique, is dropped with it and not before, and comes back."""
    app.sql("CREATE UNIQUE INDEX ix_phone ON users (phone)")
    assert "drop_index" not in app.autogenerate("both")
    app.move()
    text = app.autogenerate("moved")

    assert "op.drop_index" in text
    assert app.columns("users") == {"id", "email", "phone_encrypted"}
    command.downgrade(app.config("moved"), "-1")
    assert "ix_phone" in {one["name"] for one in sa.inspect(app.engine).get_indexes("users")}


def test_an_index_that_was_left(environment: Environment, sqlite_engine: Engine) -> None:
    """SQLite drops no indexed column: the error has the line."""
    app = App(environment, sqlite_engine)
    app.sql("CREATE INDEX ix_phone ON users (phone)")
    app.autogenerate("both")
    app.move()
    config = app.config("moved")
    by_hand(config, CONTRACT)
    with pytest.raises(MigrationRefusedError, match=r"op\.drop_index\('ix_phone'"):
        command.upgrade(config, "head")


def test_what_changed_of_the_previous_column_is_not_noticed(app: App) -> None:
    """Its NOT NULL, default and length stay as the database has them until it goes."""
    if app.engine.dialect.name == "postgresql":
        app.sql("ALTER TABLE notes ALTER COLUMN body SET DEFAULT 'x'")
        app.sql("ALTER TABLE notes ALTER COLUMN body SET NOT NULL")
        app.sql("ALTER TABLE users ALTER COLUMN phone TYPE VARCHAR(30)")
    else:
        app.sql("ALTER TABLE users ADD COLUMN extra TEXT NOT NULL DEFAULT 'x'")
        app.sql("ALTER TABLE users DROP COLUMN phone")
        app.sql("ALTER TABLE users RENAME COLUMN extra TO phone")
    text = app.autogenerate("both")

    assert "alter_column" not in text
    app.check("both")


def test_a_dropped_column_without_a_move_stays_a_dropped_column(app: App) -> None:
    """Where no trigger tells of a move, nothing is taken for one."""
    app.sql("ALTER TABLE users ADD COLUMN phone_encrypted BYTEA")
    app.sql("ALTER TABLE notes ADD COLUMN body_encrypted BYTEA")
    text = migration(app.config("moved"))

    assert "op.drop_column('users', 'phone')" in text
    assert "contract_encrypted_column" not in text


def test_new_tables_get_both_columns(environment: Environment, engine: Engine) -> None:
    """On an empty database the tables are made as they are at that step; no library's type or key shows."""
    config = environment(engine, declare("both").Base.metadata)
    text = migration(config)
    command.upgrade(config, "head")

    assert "sa.Column('token', sa.String(length=200), nullable=True)" in text
    assert "sa.Column('token_encrypted', sa.LargeBinary(), nullable=True)" in text
    assert "expand_encrypted_column" not in text
    assert "sqlalchemy_envelope" not in text
    command.check(config)


def test_tables_in_a_schema(environment: Environment, postgres_engine: Engine) -> None:
    """Every step with the tables in a schema of PostgreSQL."""
    engine = postgres_engine
    with engine.begin() as connection:
        connection.execute(sa.schema.CreateSchema("vault"))
    declare("plaintext", "vault").Base.metadata.create_all(engine)
    before = fill(engine, "vault")
    options = {
        "include_schemas": True,
        "include_name": lambda name, kind, _: kind != "schema" or name == "vault",
        "version_table_schema": "vault",
    }

    def config(stage: Stage) -> Config:
        return environment(engine, declare(stage, "vault").Base.metadata, **options)

    text = migration(config("both"))
    assert "op.expand_encrypted_column('users', 'phone', 'phone_encrypted', schema='vault')" in text
    command.upgrade(config("both"), "head")
    command.check(config("both"))
    migrator = Migrator(engine, envelope, declare("both", "vault").Base, provider="server")
    for name in MOVES:
        migrator.run(name)
        migrator.verify(name)
        migrator.cutover(name)
    text = migration(config("moved"))
    assert "op.contract_encrypted_column('users', 'phone'" in text
    command.upgrade(config("moved"), "head")
    assert values(engine, "moved", "vault") == before
    command.downgrade(config("moved"), "-1")
    options["target_metadata"] = metadata = declare("both", "vault").Base.metadata
    assert differences(engine, metadata, **options) == []


def test_a_script_of_expand_and_contract(app: App) -> None:
    """On PostgreSQL the checks are part of the script; elsewhere it says what was not checked."""
    config = app.config("moved")
    by_hand(config, EXPAND, UNDO_EXPAND)
    by_hand(config, CONTRACT, UNDO_CONTRACT)
    first, second = revisions(config)
    expand = script(config, "base", first)

    assert "ADD COLUMN phone_encrypted" in expand
    assert "zz_envelope_track_users_" in expand
    if app.engine.dialect.name == "postgresql":
        contract = script(config, first, second)
        assert "zz_envelope_guard_users_" in contract
        assert "verified_at IS NOT NULL" in contract
        assert "DROP COLUMN phone;" in contract
        assert "EXISTS" in script(config, first, "base", down=True)
    else:
        with pytest.raises(MigrationRefusedError, match="unverified=True"):
            script(config, first, second)
        with pytest.raises(MigrationRefusedError, match="without --sql"):
            script(config, first, "base", down=True)
    back = script(config, second, first, down=True)
    assert "ADD COLUMN phone VARCHAR(20)" in back
    assert "zz_envelope_track_users_" in back


def test_a_script_that_is_run(app: App) -> None:
    """What was written is run as it is, and does the same: expand, contract with its guard, and back."""
    config = app.config("moved")
    by_hand(config, EXPAND, UNDO_EXPAND)
    by_hand(config, CONTRACT.replace("))", "), unverified=True)"), UNDO_CONTRACT)
    first, second = revisions(config)

    def run(text: str) -> None:
        with app.engine.connect() as connection:
            raw: Any = connection.connection.dbapi_connection
            if app.engine.dialect.name == "sqlite":
                raw.executescript(text)
            else:
                raw.autocommit = True
                raw.execute(text)

    run(script(config, "base", first))
    app.sql("UPDATE users SET phone_encrypted = :blob WHERE phone IS NOT NULL", blob=b"\x01" + bytes(44))
    app.sql("UPDATE users SET phone = '0' WHERE id = 1")
    assert app.sql("SELECT phone_encrypted FROM users WHERE id = 1") == [(None,)]
    contract = script(config, first, second)
    if app.engine.dialect.name == "postgresql":
        with pytest.raises(Exception, match="Some rows of users would lose the value in phone"):
            run(contract)
    else:
        assert "-- Not checked: this must find no row: SELECT 1 FROM users" in contract
    app.sql("UPDATE users SET phone_encrypted = :blob WHERE phone IS NOT NULL", blob=b"\x01" + bytes(44))
    run(contract)

    assert app.columns("users") == {"id", "email", "phone_encrypted"}
    run(script(config, second, first, down=True))
    assert app.columns("users") == {"id", "email", "phone", "phone_encrypted"}


def test_scripts_for_mysql(environment: Environment) -> None:
    """The same operations are written for MySQL, each trigger one statement."""
    engine: Any = SimpleNamespace(dialect=mysql.dialect())
    config = environment(engine, declare("moved").Base.metadata)
    by_hand(config, EXPAND, UNDO_EXPAND)
    by_hand(config, CONTRACT.replace("))", "), unverified=True)"), UNDO_CONTRACT)
    text = script(config, "head")

    assert "ADD COLUMN phone_encrypted BLOB" in text
    assert "CREATE TRIGGER zz_envelope_track_users_" in text
    assert "SIGNAL SQLSTATE '45000'" in text


def test_no_file_and_no_script_shows_a_key(app: App) -> None:
    """Not the server's key, and not the key of another library's type, which its `repr` shows."""
    seen = [app.autogenerate("both")]
    app.move()
    seen.append(app.autogenerate("moved"))
    config = app.config("both")
    if app.engine.dialect.name == "postgresql":
        seen.append(script(config, "head"))
        seen.append(script(config, "head", "base", down=True))
    for text in seen:
        assert FOREIGN_KEY not in text
        assert SERVER_KEY.hex() not in text
        assert repr(SERVER_KEY)[2:-1] not in text


def test_operations_reverse_each_other() -> None:
    """Each is the reverse of its reverse, and says in a diff what it is."""
    expand = ExpandEncryptedColumnOp("t", "a", "b", schema="s")
    contract = ContractEncryptedColumnOp(
        "t", "a", "b", existing_type=sa.String(), unverified=True, name="t.c"
    )
    decrypt = DecryptColumnOp("t", "a", sa.String(), owner="user_id", bind="row", nullable=False)
    same: Callable[[Any], dict[str, Any]] = vars

    for operation in (expand, contract, decrypt):
        back: Any = operation.reverse()
        assert type(back) is not type(operation)
        assert same(back.reverse()) == same(operation)
        assert back.to_diff_tuple()[0] != operation.to_diff_tuple()[0]
        assert operation.to_diff_tuple()[2] == "t"
