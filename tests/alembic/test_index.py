"""Autogenerate over models that declare a blind index, and the operation that fills it."""

import re

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine

from sqlalchemy_envelope import ConfigurationError, MigrationRefusedError
from sqlalchemy_envelope.alembic import KeySource
from tests.alembic.environments import Environment, by_hand, migration, script
from tests.migration.index_models import found, migrator, models, new_envelope, old_rows

pytestmark = pytest.mark.both_lines


@pytest.fixture
def config(environment: Environment, engine: Engine) -> Config:
    """The environment of a release with the index, on the database of one without it, with rows."""
    envelope = old_rows(engine, "ada@example.org", "ben@example.org", "ben@example.org")
    base = models(indexed=True)
    return environment(engine, base.metadata, envelope=KeySource(envelope, base))


def test_an_index_is_added_as_plain_sqlalchemy(config: Config, engine: Engine) -> None:
    """The columns, their indexes and the table of index keys: after it nothing differs any more."""
    text = migration(config)
    command.upgrade(config, "head")

    assert "sqlalchemy_envelope" not in text
    assert "sa.LargeBinary(16).with_variant(sa.VARBINARY(16), 'mysql', 'mariadb')" in text
    assert set(re.findall(r"create_table\('(\w+)'", text)) == {"users_indexkey", "notes_indexkey"}
    assert "unique=True" in text
    command.check(config)


def test_a_small_table_is_filled_in_the_revision(config: Config, engine: Engine) -> None:
    """The operation gives tags, and refuses two equal values under a unique index."""
    migration(config)
    by_hand(
        config, "op.fill_blind_index('users', 'email_index')", "op.empty_blind_index('users', 'email_index')"
    )
    with pytest.raises(MigrationRefusedError, match=r"1 value of users .* \(3,\)"):
        command.upgrade(config, "head")
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM users WHERE id = 3")
    command.upgrade(config, "head")
    assert found(engine, new_envelope(), "ben@example.org") == [2]
    assert migrator(engine, new_envelope()).verify_index("users.email_index").is_clean
    command.downgrade(config, "-1")

    with engine.connect() as connection:
        tags = connection.execute(sa.text("SELECT email_index FROM users")).scalars().all()
    assert tags == [None, None]


def test_a_script_cannot_fill(config: Config) -> None:
    """SQL for a script has no keys: the command line is named."""
    by_hand(config, "op.fill_blind_index('users', 'email_index')")

    with pytest.raises(MigrationRefusedError, match=r"index fill users\.email_index"):
        script(config, "head")


def test_index_keys_are_not_dropped_with_a_rename(environment: Environment, sqlite_engine: Engine) -> None:
    """A table that is gone may have been renamed, and its index keys with it. An index that is given up lets
    its key go."""
    models(indexed=True).metadata.create_all(sqlite_engine)
    without = environment(sqlite_engine, models(indexed=False).metadata)
    text = migration(without)
    assert "op.drop_table('users_indexkey')" in text
    command.upgrade(without, "head")
    models(indexed=True).metadata.create_all(sqlite_engine)
    renamed = sa.MetaData()
    for table in models(indexed=False).metadata.sorted_tables:
        if table.name != "notes":
            table.to_metadata(renamed)

    with pytest.raises(ConfigurationError, match=r"op\.rename_table"):
        migration(environment(sqlite_engine, renamed))
