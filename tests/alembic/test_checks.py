"""The CHECK of encrypted columns in migrations: written with a new table or column, added and dropped where
the model says so, and never a difference that nobody asked for.
"""

from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, ForeignKey, MetaData, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqlalchemy_envelope import EncryptedType, KeyOwner, MigrationRefusedError, PreviousColumn
from sqlalchemy_envelope.migration import Migrator
from tests.alembic.environments import Environment, body_of, by_hand, migration, script
from tests.alembic.moving_models import envelope

CIPHERTEXT = b"\x01" + bytes(44)
BODY = "ck_notes_body_ciphertext"


def models(body: Any = None, name: str = "body", **options: Any) -> MetaData:
    """The tables of an owner and of notes; these have a body if its type is given."""

    class Base(DeclarativeBase):
        metadata = MetaData(**options)

    class User(KeyOwner, Base):
        __tablename__ = "users"

        id: Mapped[int] = mapped_column(primary_key=True)

    columns = {} if body is None else {"body": mapped_column(name, body, nullable=True)}
    schema = Base.metadata.schema
    owner = ForeignKey(f"{schema}.users.id" if schema else "users.id")
    type(
        "Note",
        (Base,),
        {
            "__tablename__": "notes",
            "id": mapped_column(sa.Integer, primary_key=True),
            "user_id": mapped_column(owner),
            **columns,
        },
    )
    Base.metadata.info["base"] = Base
    Base.metadata.info["classes"] = list(Base.__subclasses__())  # else they are gone with this function
    return Base.metadata


def on_sqlite(engine: Engine) -> bool:
    """Whether foreign keys are to be turned off, as a batch on SQLite needs."""
    return engine.dialect.name == "sqlite"


def checks(engine: Engine, table: str = "notes") -> set[str | None]:
    """The names of a table's CHECKs in the database."""
    return {one["name"] for one in sa.inspect(engine).get_check_constraints(table)}


def write(engine: Engine, body: object, number: int = 1) -> None:
    """As a program does that knows nothing of the library."""
    statement = sa.text("INSERT INTO notes (id, body) VALUES (:id, :body)")
    with engine.begin() as connection:
        connection.execute(statement, {"id": number, "body": body})


def refuses_plaintext(engine: Engine) -> bool:
    """Whether plaintext bytes are refused, and ciphertext and NULL are not."""
    write(engine, CIPHERTEXT, 101)
    write(engine, None, 102)
    try:
        write(engine, b"plaintext that is longer than any ciphertext must be", 103)
    except sa.exc.IntegrityError:
        return True
    return False


def switched(config: Config, metadata: MetaData) -> Config:
    """The same environment with the models as they are later."""
    config.attributes["options"]["target_metadata"] = metadata
    return config


def test_a_new_table(environment: Environment, engine: Engine) -> None:
    """It is written with its CHECK, in plain SQLAlchemy for every database; a second look finds nothing."""
    config = environment(engine, models(EncryptedType(Text)))
    text = migration(config)

    assert "envelope" not in text
    assert [text.count(f"name=op.f('{BODY}')"), text.count(".ddl_if(dialect=")] == [3, 3]

    command.upgrade(config, "head")

    assert refuses_plaintext(engine)

    command.check(config)
    command.downgrade(config, "base")
    command.upgrade(config, "head")


def test_a_new_table_without_it(environment: Environment, engine: Engine) -> None:
    """`check=False` leaves it out."""
    config = environment(engine, models(EncryptedType(Text, check=False)))
    assert "CheckConstraint" not in migration(config)
    command.upgrade(config, "head")

    assert not refuses_plaintext(engine)

    command.check(config)


@pytest.mark.parametrize(
    ("dialect", "condition"),
    [
        (
            "sqlite",
            "body IS NULL OR (body >= x'01' AND body < x'02' AND length(body) >= 45)",
        ),
        ("postgresql", "octet_length(body) >= 45 AND substr(body, 1, 1) = decode('01', 'hex')"),
        ("mysql", "length(body) >= 45 AND left(body, 1) = x'01'"),
    ],
)
def test_a_script_of_a_new_table(
    environment: Environment, sqlite_engine: Engine, dialect: str, condition: str
) -> None:
    """A migration written on SQLite has the CHECK of the database that it is run on, and no other."""
    config = environment(sqlite_engine, models(EncryptedType(Text)))
    migration(config)
    config.attributes["engine"] = _Named(dialect)
    written = script(config, "head")

    assert f"CONSTRAINT {BODY} CHECK ({condition})" in written
    assert written.count("CHECK") == 1


class _Named:
    """What `env.py` asks of an engine before a script."""

    def __init__(self, name: str) -> None:
        self.dialect = self
        self.name = name


def test_a_new_column(environment: Environment, engine: Engine) -> None:
    """A column that is added to an existing table has its CHECK too, and goes with it."""
    config = environment(engine, models())
    migration(config)
    command.upgrade(config, "head")
    switched(config, models(EncryptedType(Text)))
    text = migration(config)

    assert body_of(text, "upgrade") == [
        "op.add_encrypted_column('notes', sa.Column('body', sa.LargeBinary(), nullable=True))"
    ]
    assert body_of(text, "downgrade") == ["op.drop_encrypted_column('notes', 'body')"]

    command.upgrade(config, "head")

    assert refuses_plaintext(engine)

    command.check(config)
    command.downgrade(config, "-1")

    assert checks(engine) == set()


@pytest.mark.parametrize(("batch", "added"), [(False, False), (True, False), (True, True)])
def test_a_column_that_is_gone(environment: Environment, engine: Engine, batch: bool, added: bool) -> None:
    """It is dropped with its CHECK, whether that is the column's or the table's, and comes back with it."""
    options = {"foreign_keys_off": on_sqlite(engine), "render_as_batch": batch}
    config = environment(engine, models(None if added else EncryptedType(Text)), **options)
    migration(config)
    command.upgrade(config, "head")
    if added:
        switched(config, models(EncryptedType(Text)))
        migration(config)
        command.upgrade(config, "head")
    switched(config, models())
    text = migration(config)

    assert body_of(text, "upgrade") == ["op.drop_encrypted_column('notes', 'body')"]

    command.upgrade(config, "head")
    command.check(config)

    assert checks(engine) == set()

    command.downgrade(config, "-1")

    assert refuses_plaintext(engine)

    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM notes")
    command.downgrade(config, "base")


@pytest.mark.parametrize("check", [None, True, False])
def test_an_old_database(environment: Environment, engine: Engine, check: bool | None) -> None:
    """A table that was made before has no CHECK, and stays as it is unless the model asks for one."""
    config = environment(engine, models(EncryptedType(Text, check=False)), foreign_keys_off=on_sqlite(engine))
    migration(config)
    command.upgrade(config, "head")
    write(engine, CIPHERTEXT)
    switched(config, models(EncryptedType(Text, check=check)))
    text = migration(config)
    expected = ["op.create_encrypted_check('notes', 'body')"] if check else ["pass"]

    assert expected == body_of(text, "upgrade")

    command.upgrade(config, "head")
    command.check(config)

    assert refuses_plaintext(engine) is bool(check)
    if check:
        command.downgrade(config, "-1")

        assert checks(engine) == set()


def test_the_model_gives_it_up(environment: Environment, engine: Engine) -> None:
    """`check=False` drops the CHECK of a table that has one, and the downgrade makes it again."""
    config = environment(engine, models(EncryptedType(Text)), foreign_keys_off=on_sqlite(engine))
    migration(config)
    command.upgrade(config, "head")
    switched(config, models(EncryptedType(Text, check=False)))

    assert body_of(migration(config), "upgrade") == ["op.drop_encrypted_check('notes', 'body')"]

    command.upgrade(config, "head")
    command.check(config)

    assert checks(engine) == set()

    command.downgrade(config, "-1")

    assert refuses_plaintext(engine)


def test_a_table_that_holds_plaintext(environment: Environment, engine: Engine) -> None:
    """It is refused in our words, with how many values are none of ours and what to do; nothing changed."""
    config = environment(engine, models(EncryptedType(Text, check=False)), foreign_keys_off=on_sqlite(engine))
    migration(config)
    command.upgrade(config, "head")
    write(engine, b"plaintext", 1)
    write(engine, b"", 2)
    write(engine, CIPHERTEXT, 3)
    write(engine, None, 4)
    switched(config, models(EncryptedType(Text, check=True)))
    migration(config)
    with pytest.raises(
        MigrationRefusedError, match=r"2 values of notes\.body cannot be ciphertext"
    ) as caught:
        command.upgrade(config, "head")

    assert "plaintext'" not in str(caught.value)
    assert checks(engine) == set()


@pytest.mark.backend
def test_new_writes_alone_on_postgresql(environment: Environment, postgres_engine: Engine) -> None:
    """With validate=False old rows stay as they are, and what is written from then on is checked."""
    engine = postgres_engine
    config = environment(engine, models(EncryptedType(Text, check=False)))
    migration(config)
    command.upgrade(config, "head")
    write(engine, b"plaintext", 1)
    by_hand(
        config,
        "op.create_encrypted_check('notes', 'body', validate=False)",
        "op.drop_encrypted_check('notes', 'body')",
        "import sqlalchemy_envelope.alembic",
    )
    command.upgrade(config, "head")

    assert refuses_plaintext(engine)

    validate = f"ALTER TABLE notes VALIDATE CONSTRAINT {BODY}"
    with engine.begin() as connection, pytest.raises(sa.exc.IntegrityError):
        connection.exec_driver_sql(validate)
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM notes WHERE id = 1")
        connection.exec_driver_sql(validate)
    command.downgrade(config, "-1")

    assert checks(engine) == set()


def test_foreign_keys_that_are_enforced_on_sqlite(environment: Environment, sqlite_engine: Engine) -> None:
    """SQLite's table is not built anew where dropping the old one would delete the rows that refer to it."""
    config = environment(sqlite_engine, models(EncryptedType(Text, check=False)))
    migration(config)
    command.upgrade(config, "head")
    switched(config, models(EncryptedType(Text, check=True)))
    migration(config)
    with pytest.raises(MigrationRefusedError, match="foreign_keys=OFF"):
        command.upgrade(config, "head")


def test_a_naming_convention(environment: Environment, engine: Engine) -> None:
    """The name follows the convention, of a new column as of a model."""
    rules = {"ix": "ix_%(column_0_label)s", "ck": "check_%(table_name)s_%(constraint_name)s"}
    convention = {"naming_convention": rules}
    config = environment(engine, models(**convention), foreign_keys_off=on_sqlite(engine))
    migration(config)
    command.upgrade(config, "head")
    switched(config, models(EncryptedType(Text, check=True), **convention))
    migration(config)
    command.upgrade(config, "head")

    assert checks(engine) == {"check_notes_body_ciphertext"}

    command.check(config)
    command.downgrade(config, "base")


@pytest.mark.backend
def test_a_schema(environment: Environment, postgres_engine: Engine) -> None:
    """A table in a schema has its CHECK, added later too."""
    with postgres_engine.begin() as connection:
        connection.execute(sa.schema.CreateSchema("vault"))
    config = environment(
        postgres_engine,
        models(EncryptedType(Text, check=False), schema="vault"),
        include_schemas=True,
        include_name=lambda name, kind, _: kind != "schema" or name == "vault",
        version_table_schema="vault",
    )
    migration(config)
    command.upgrade(config, "head")
    switched(config, models(EncryptedType(Text, check=True), schema="vault"))

    assert body_of(migration(config), "upgrade") == [
        "op.create_encrypted_check('notes', 'body', schema='vault')"
    ]

    command.upgrade(config, "head")
    command.check(config)
    found = sa.inspect(postgres_engine).get_check_constraints("notes", "vault")

    assert [one["name"] for one in found] == [BODY]


def test_alembics_own_comparison_by_name(environment: Environment, engine: Engine) -> None:
    """Alembic's extension that compares CHECKs by name finds nothing of ours to add to an old table."""
    plugins = pytest.importorskip("alembic.ext.checkconstraint_byname")
    config = environment(
        engine,
        models(EncryptedType(Text, check=False)),
        autogenerate_plugins=["alembic.autogenerate.*", plugins.__name__],
    )
    migration(config)
    command.upgrade(config, "head")
    switched(config, models(EncryptedType(Text)))
    command.check(config)

    assert checks(engine) == set()


def test_expand(environment: Environment, engine: Engine) -> None:
    """The column of a move has its CHECK before a value is moved, and the downgrade takes both away."""
    config = environment(engine, models(String(20)))
    migration(config)
    command.upgrade(config, "head")
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO notes (id, body) VALUES (1, 'plaintext')")

    moving = EncryptedType(String, previous=PreviousColumn("body", String(20)))
    metadata = models(moving, "sealed")
    switched(config, metadata)

    assert body_of(migration(config), "upgrade") == ["op.expand_encrypted_column('notes', 'body', 'sealed')"]

    command.upgrade(config, "head")

    migrator = Migrator(engine, envelope, metadata.info["base"], provider="server")
    migrator.expand("notes.body")

    assert checks(engine) == {"ck_notes_sealed_ciphertext"}
    with engine.begin() as connection, pytest.raises(sa.exc.IntegrityError):
        connection.exec_driver_sql("UPDATE notes SET sealed = 'plaintext' WHERE id = 1")

    command.downgrade(config, "-1")

    assert checks(engine) == set()
