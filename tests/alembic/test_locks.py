"""Revisions that change tables of a running application: no request waits long or meets a deadlock, and a
revision that did not get its lock is run again."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Engine

from sqlalchemy_envelope import MigrationStoppedError
from sqlalchemy_envelope.alembic.impl import locks
from sqlalchemy_envelope.migration.migrator import Migrator
from tests.alembic.environments import Environment, by_hand, migration
from tests.alembic.moving_models import declare, envelope, fill

EXPAND = """op.expand_encrypted_column("notes", "body", "body_encrypted")
op.expand_encrypted_column("users", "phone", "phone_encrypted")"""
UNDO_EXPAND = """op.undo_expand_encrypted_column("notes", "body", "body_encrypted")
op.undo_expand_encrypted_column("users", "phone", "phone_encrypted")"""
CONTRACT = """op.contract_encrypted_column("notes", "body", "body_encrypted", existing_type=sa.Text())
op.contract_encrypted_column("users", "phone", "phone_encrypted", existing_type=sa.String(20))"""
UNDO_CONTRACT = CONTRACT.replace("op.", "op.undo_")


@contextmanager
def requests(engine: Engine, failed: list[str]) -> Iterator[None]:
    """An application that locks users, and then notes: in the other order than the revisions."""
    over = threading.Event()

    def serve(user: int) -> None:
        while not over.is_set():
            try:
                with engine.begin() as connection:
                    connection.execute(sa.text(f"UPDATE users SET email = email WHERE id = {user}"))
                    time.sleep(0.02)
                    connection.execute(sa.text(f"UPDATE notes SET number = number WHERE user_id = {user}"))
            except sa.exc.DBAPIError as error:
                failed.append(str(error.orig))

    threads = [threading.Thread(target=serve, args=(user,)) for user in (1, 2)]
    for one in threads:
        one.start()
    try:
        yield
    finally:
        over.set()
        for one in threads:
            one.join()


def columns_of_users(engine: Engine) -> set[str]:
    """The columns of a table in the database."""
    return {one["name"] for one in sa.inspect(engine).get_columns("users")}


def test_no_deadlock_with_an_application_that_locks_both(
    environment: Environment, postgres_engine: Engine
) -> None:
    """Two tables are expanded, contracted and brought back while requests lock them in the other order."""
    engine = postgres_engine
    declare("plaintext").Base.metadata.create_all(engine)
    fill(engine)
    config = environment(engine, declare("both").Base.metadata)
    by_hand(config, EXPAND, UNDO_EXPAND)
    migrator = Migrator(engine, envelope, declare("both").Base, provider="server")
    failed: list[str] = []
    with requests(engine, failed):
        command.upgrade(config, "head")
    for name in ("users.phone", "notes.body"):
        migrator.run(name)
        migrator.verify(name)
        migrator.cutover(name)
    by_hand(config, CONTRACT, UNDO_CONTRACT)
    with requests(engine, failed):
        command.upgrade(config, "head")
        command.downgrade(config, "-1")
    for name in ("users.phone", "notes.body"):
        migrator.reverse(name)
    with requests(engine, failed):
        command.downgrade(config, "-1")

    assert failed == []
    assert "phone_encrypted" not in columns_of_users(engine)


def test_a_lock_that_does_not_come(
    environment: Environment, postgres_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the table that a long transaction holds. The revision is run again as it is, although
    it has made the key tables before."""
    engine = postgres_engine
    with engine.begin() as connection:
        for name in ("users", "notes"):
            declare("plaintext").Base.metadata.tables[name].create(connection)
    config = environment(engine, declare("both").Base.metadata)
    migration(config)
    monkeypatch.setattr(locks, "PATIENCE", 0.7)
    with engine.begin() as holder:
        holder.execute(sa.text("LOCK TABLE notes IN ACCESS SHARE MODE"))
        with pytest.raises(MigrationStoppedError, match="The table notes could not be changed"):
            command.upgrade(config, "head")
    assert sa.inspect(engine).has_table("users_key")
    command.upgrade(config, "head")

    assert "body_encrypted" in {one["name"] for one in sa.inspect(engine).get_columns("notes")}


def test_in_a_transaction_that_is_not_its_own(postgres_engine: Engine) -> None:
    """Where `env.py` has begun the transaction it stays one, and what fails later undoes all of it; in an
    `autocommit_block()` there is none."""
    declare("plaintext").Base.metadata.create_all(postgres_engine)

    with postgres_engine.connect() as connection, connection.begin() as transaction:
        with Operations.context(MigrationContext.configure(connection)) as op:
            op.expand_encrypted_column("users", "phone", "phone_encrypted")
        transaction.rollback()
    assert "phone_encrypted" not in columns_of_users(postgres_engine)
    with postgres_engine.connect() as connection:
        context = MigrationContext.configure(connection)
        with context.begin_transaction(), context.autocommit_block(), Operations.context(context) as op:
            op.expand_encrypted_column("users", "phone", "phone_encrypted")

    assert "phone_encrypted" in columns_of_users(postgres_engine)
