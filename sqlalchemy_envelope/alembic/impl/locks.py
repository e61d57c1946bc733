"""Change a table in a revision while the application runs: lock each table by itself, and briefly.

Alembic runs all revisions in a single transaction. The lock that an operation takes is held until the last
operation has run. A request that has locked a table and waits for another table then waits for the revision,
and the revision waits for the request: a deadlock. So an operation here

1. commits what the revision did before, and with it lets every lock go;
2. waits for the lock of its table for half a second at most, since everybody else queues behind it;
3. lets go, and tries again, until its patience ends;
4. commits, before the next operation takes the next table.
"""

from __future__ import annotations

import random
import time
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError

from sqlalchemy_envelope.exceptions import MigrationStoppedError
from sqlalchemy_envelope.migration.database.greenlets import sleep
from sqlalchemy_envelope.orm.tables.collisions import may_pass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext
    from sqlalchemy import Connection

PATIENCE = 30.0
"""The seconds for which an operation tries to get its lock."""


def change_alone(operations: Operations, table: str, work: Callable[[], None]) -> None:
    """Change a table with nothing else locked. SQLite has a single lock, and its driver waits for it.

    Args:
        work: the change. It may be tried again, so each try finds out what is left to do.

    Raises:
        MigrationStoppedError: the lock did not come free in time.
    """
    dialect = operations.impl.dialect.name
    if operations.migration_context.as_sql or dialect not in ("postgresql", "mysql", "mariadb"):
        work()
        return
    connection = operations.get_bind()
    if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
        work()  # the revision holds nothing: it is in an `autocommit_block()` of its own
        return
    commit(operations.migration_context)
    with _short_waits(connection):
        _try(connection, table, work)
    commit(operations.migration_context)


def commit(context: MigrationContext) -> None:
    """Commit what the revision has done so far, and let its locks go.

    Do not commit a transaction that `env.py` has begun itself. Its locks are held until it ends.
    """
    if context._transaction is not None:
        with context.autocommit_block():
            pass  # entering it commits, leaving it begins the next transaction


def _try(connection: Connection, table: str, work: Callable[[], None]) -> None:
    until = time.monotonic() + PATIENCE
    savepoint: Any = connection.begin_nested if connection.dialect.name == "postgresql" else nullcontext
    while True:
        try:
            with savepoint():
                work()
            return
        except DBAPIError as error:
            if not may_pass(error):
                raise
        if time.monotonic() >= until:
            raise MigrationStoppedError(
                f"The table {table} could not be changed: another transaction has held it for {PATIENCE:.0f} "
                "seconds. Find that transaction, wait for it or end it, and run the revision again."
            )
        sleep(random.uniform(0.02, 0.2))  # noqa: S311 - a delay


@contextmanager
def _short_waits(connection: Connection) -> Iterator[None]:
    """Wait for a lock for half a second at most, on MySQL for its shortest time, a second."""
    if connection.dialect.name == "postgresql":
        asked = "SELECT pg_catalog.current_setting('lock_timeout')"
        shorter = "SELECT pg_catalog.set_config('lock_timeout', '500ms', true)"
        back = "SELECT pg_catalog.set_config('lock_timeout', '{}', true)"
    else:
        asked = "SELECT @@SESSION.lock_wait_timeout"
        shorter = "SET SESSION lock_wait_timeout = 1"
        back = "SET SESSION lock_wait_timeout = {}"
    before = connection.exec_driver_sql(asked).scalar_one()
    connection.exec_driver_sql(shorter)
    yield
    connection.exec_driver_sql(back.format(before))
