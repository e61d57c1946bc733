"""The changes of a migration to the schema. Each change is short: nobody waits for it over half a second."""

from __future__ import annotations

import random
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import LargeBinary, inspect, text

from sqlalchemy_envelope.exceptions import EnvelopeError, MigrationRefusedError, MigrationStoppedError
from sqlalchemy_envelope.migration.database.faults import advice, is_lost
from sqlalchemy_envelope.migration.database.state import Phase
from sqlalchemy_envelope.migration.database.triggers import (
    Tracked,
    quoter,
    triggers_for,
)
from sqlalchemy_envelope.orm.columns.stored_value import check_clause, check_name_of, looks_encrypted
from sqlalchemy_envelope.orm.tables.collisions import collided, may_pass

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection, Engine, Table
    from sqlalchemy.engine import Dialect

    from sqlalchemy_envelope.migration.database.columns import MigratingColumn


def tracked(column: MigratingColumn) -> Tracked:
    """The two columns of a migration, by name."""
    table = column.table
    keys = [one.name for one in column.keys]
    bound = [] if column.path.is_self else [one.name for one in column.path.columns if one.table is table]
    bound += keys if column.plan.row_bound else []
    check = check_name_of(column.encrypted, table) if column.plan.type.check is not False else None
    return Tracked(
        table.name, column.from_column.name, column.encrypted.name, table.schema, keys, bound, check
    )


def add_column(dialect: Dialect, columns: Tracked) -> list[str]:
    """Add the encrypted column; on SQLite with its CHECK, which SQLite takes at no other time.

    With a CHECK, PostgreSQL would read every row under its lock to see that the new column holds NULL, and
    MySQL would copy the table.
    """
    added = f"ADD COLUMN {_quoted(dialect, columns.encrypted)} {LargeBinary().compile(dialect=dialect)}"
    if columns.check is not None and dialect.name == "sqlite":
        added += f" {check_clause(dialect.name, columns.check, columns.encrypted, quoter(dialect))}"
    return [f"ALTER TABLE {_table(dialect, columns)} {added}"]


def drop_column(dialect: Dialect, columns: Tracked, name: str) -> list[str]:
    """Drop either of the two columns. The CHECK of a column is dropped with the column."""
    return [f"ALTER TABLE {_table(dialect, columns)} DROP COLUMN {_quoted(dialect, name)}"]


def add_check(dialect: Dialect, columns: Tracked, *, validate: bool = True) -> list[str]:
    """Add the CHECK to an existing column. Without `validate`, PostgreSQL checks new writes alone."""
    clause = check_clause(dialect.name, columns.check or "", columns.encrypted, quoter(dialect))
    later = " NOT VALID" if dialect.name == "postgresql" and not validate else ""
    return [f"ALTER TABLE {_table(dialect, columns)} ADD {clause}{later}"]


def add_missing_check(connection: Connection, columns: Tracked) -> list[str]:
    """PostgreSQL: add the CHECK to the column of a migration, for new writes. Nobody waits for that."""
    dialect = connection.dialect
    if dialect.name != "postgresql" or columns.check is None or has_check(connection, columns):
        return []
    return add_check(dialect, columns, validate=False)


def validate_check(connection: Connection, columns: Tracked) -> list[str]:
    """PostgreSQL: validate the CHECK for the rows that are older than it, while others write. When SQLAlchemy
    reflects a table, it warns of a CHECK that is not validated."""
    dialect = connection.dialect
    if dialect.name != "postgresql" or columns.check is None:
        return []
    query = text(
        "SELECT 1 FROM pg_catalog.pg_constraint WHERE conname = :name AND NOT convalidated "
        "AND conrelid = pg_catalog.to_regclass(:whole)"
    )
    names = {"name": columns.check, "whole": _table(dialect, columns)}
    if connection.execute(query, names).first() is None:
        return []
    name = _quoted(dialect, columns.check)
    return [f"ALTER TABLE {_table(dialect, columns)} VALIDATE CONSTRAINT {name}"]


def drop_check(dialect: Dialect, columns: Tracked) -> list[str]:
    """Drop the CHECK; the column stays."""
    name = _quoted(dialect, columns.check or "")
    return [f"ALTER TABLE {_table(dialect, columns)} DROP CONSTRAINT {name}"]


def has_check(connection: Connection, columns: Tracked) -> bool:
    """Whether the CHECK is in the database."""
    found = inspect(connection).get_check_constraints(columns.table, columns.schema)
    return any(one["name"] == columns.check for one in found)


def count_foreign(connection: Connection, columns: Tracked) -> int:
    """Count the values of the encrypted column that are not ciphertext."""
    dialect = connection.dialect
    name = _quoted(dialect, columns.encrypted)
    query = (
        f"SELECT count(*) FROM {_table(dialect, columns)} WHERE {name} IS NOT NULL AND NOT "  # noqa: S608 - quoted
        f"({looks_encrypted(dialect.name, name)})"
    )
    result = connection.exec_driver_sql(query, execution_options={"no_parameters": True})
    return int(result.scalar_one())


def is_droppable(connection: Connection, columns: Tracked, name: str) -> bool:
    """Whether the database can drop a column in place: SQLite cannot if a CHECK of the table names it."""
    if connection.dialect.name != "sqlite":
        return True
    of_schema = f"{_quoted(connection.dialect, columns.schema)}." if columns.schema else ""
    query = text(f"SELECT sql FROM {of_schema}sqlite_master WHERE type = 'table' AND name = :name")  # noqa: S608 - quoted
    created = connection.execute(query, {"name": columns.table}).scalar_one()
    # Try it on an empty table with the same definition: SQLite itself says whether it can.
    with closing(sqlite3.connect(":memory:")) as trial:
        try:
            trial.execute(created)
        except sqlite3.OperationalError:
            return True  # the table needs something that the connection has, such as a function
        try:
            for statement in drop_column(connection.dialect, replace(columns, schema=None), name):
                trial.execute(statement)
        except sqlite3.OperationalError:
            return False
    return True


def require_droppable(connection: Connection, columns: Tracked, name: str) -> None:
    """Refuse a column that SQLite cannot drop.

    Raises:
        MigrationRefusedError: a CHECK of the table names the column, as in a table that Alembic made.
    """
    if is_droppable(connection, columns, name):
        return
    raise MigrationRefusedError(
        f"SQLite cannot drop {columns.table}.{name} in place: a constraint of the table names it, such as "
        "the CHECK of an encrypted column. Rebuild the table in an Alembic revision, with foreign keys off: "
        f"`with op.batch_alter_table({columns.table!r}) as batch: batch.drop_constraint('...', "
        f"type_='check'); batch.drop_column({name!r})`."
    )


def make_nullable(connection: Connection, columns: Tracked) -> list[str]:
    """Let the previous column be NULL; no statement if it may be NULL already.

    Raises:
        MigrationRefusedError: on SQLite, which cannot change that of an existing column.
    """
    found = inspect(connection).get_columns(columns.table, columns.schema)
    previous = next(one for one in found if one["name"] == columns.previous)
    if previous["nullable"]:
        return []
    dialect = connection.dialect
    table, name = _table(dialect, columns), _quoted(dialect, columns.previous)
    if dialect.name == "postgresql":
        return [f"ALTER TABLE {table} ALTER COLUMN {name} DROP NOT NULL"]
    if dialect.name == "sqlite":
        raise MigrationRefusedError(
            f"{columns.table}.{columns.previous} is NOT NULL, and SQLite cannot change that in place. "
            "Rebuild the table "
            "in an Alembic revision, with foreign keys off: `with op.batch_alter_table(...) as batch: "
            "batch.alter_column(..., nullable=True)`, and cut over again."
        )
    return [f"ALTER TABLE {table} MODIFY {name} {previous['type'].compile(dialect=dialect)} NULL"]


def has_column(connection: Connection, columns: Tracked, name: str) -> bool:
    """Whether the table has this column in the database."""
    found = inspect(connection).get_columns(columns.table, columns.schema)
    return any(one["name"] == name for one in found)


_TRIGGERS = {
    "sqlite": "SELECT 1 FROM sqlite_master WHERE type = 'trigger' AND name = :name AND tbl_name = :table",
    # A disabled trigger is as good as no trigger.
    "postgresql": (
        "SELECT 1 FROM pg_catalog.pg_trigger WHERE tgname = :name AND tgenabled IN ('O', 'A') "
        "AND tgrelid = pg_catalog.to_regclass(:whole)"
    ),
    "mysql": (
        "SELECT 1 FROM information_schema.triggers WHERE trigger_name = :name AND "
        "event_object_table = :table AND trigger_schema = COALESCE(:schema, DATABASE())"
    ),
}


def is_tracked(connection: Connection, columns: Tracked, *, kept: bool, guarded: bool = False) -> bool:
    """Whether the triggers exist and are enabled. A table that is rebuilt, as on SQLite for every change,
    loses its triggers, and nothing says so.

    Args:
        kept, guarded: whether the triggers for after the cut-over, and for the contract, have to exist too.
    """
    dialect = connection.dialect
    name = "mysql" if dialect.name == "mariadb" else dialect.name
    kinds = ["track", *(["keep"] if kept and name != "mysql" else []), *(["guard", "guardi"] * guarded)]
    names = {"table": columns.table, "schema": columns.schema, "whole": _table(dialect, columns)}
    query = text(_TRIGGERS[name])
    asked = set(query.compile().params)
    found = [
        connection.execute(query, {key: value for key, value in all_.items() if key in asked}).first()
        for all_ in ({**names, "name": columns.trigger(kind)} for kind in kinds)
    ]
    return None not in found


def require_trackable(connection: Connection, columns: Tracked) -> None:
    """Refuse a table if its triggers do not see all of its rows.

    Raises:
        MigrationRefusedError: other tables inherit from it. PostgreSQL hands triggers down to partitions
            alone.
    """
    if connection.dialect.name != "postgresql":
        return
    query = text(
        "SELECT child.relname FROM pg_inherits JOIN pg_class AS child ON child.oid = inhrelid "
        "JOIN pg_class AS parent ON parent.oid = inhparent "
        "WHERE parent.oid = to_regclass(:name) AND parent.relkind = 'r'"
    )
    children = connection.execute(query, {"name": _table(connection.dialect, columns)}).scalars().all()
    if children:
        raise MigrationRefusedError(
            f"{columns.table} is inherited by {', '.join(children)}: a program that writes to those directly "
            "would not be noticed. Make partitions of them, or tables of their own, before the migration."
        )


def checks_owners(connection: Connection, column: MigratingColumn) -> bool:
    """Whether the database itself ensures that each row's owner exists."""
    if connection.dialect.name == "sqlite":
        return False  # SQLite enforces foreign keys only if a connection asks, and rows may be older
    if not column.path.is_direct:
        return True  # reading a row finds out whether it leads to an owner
    names = [one.name for one in column.path.columns]
    table = column.path.columns[0].table
    keys = inspect(connection).get_foreign_keys(table.name, table.schema)
    return any(sorted(one["constrained_columns"]) == sorted(names) for one in keys)


def self_updating(connection: Connection, table: Table) -> list[str]:
    """MySQL's columns that set themselves on every UPDATE."""
    if connection.dialect.name not in ("mysql", "mariadb"):
        return []
    query = text(
        "SELECT column_name FROM information_schema.columns WHERE table_name = :name AND "
        "table_schema = COALESCE(:schema, DATABASE()) AND LOWER(extra) LIKE '%on update%'"
    )
    return [row[0] for row in connection.execute(query, {"name": table.name, "schema": table.schema})]


def change(
    engine: Engine,
    statements: Sequence[str] | Callable[[Connection], Sequence[str]],
    *,
    patience: float = 30.0,
) -> None:
    """Change the schema in a short transaction, and try again until the locks are free.

    Args:
        statements: the statements, or a function that makes them in that transaction.

    Raises:
        MigrationStoppedError: the locks did not come free in time, or the database refused.
    """
    until, collisions = time.monotonic() + patience, 0
    while True:
        try:
            with engine.begin() as connection:
                change_on(connection, statements(connection) if callable(statements) else statements)
            return
        except EnvelopeError:
            raise
        except Exception as error:  # noqa: BLE001 - told apart here, and chained to nothing
            again, what = may_pass(error) or is_lost(error), advice(error)
            collisions += collided(error)
            again = again or (collided(error) and collisions < 8)
        if not again or time.monotonic() >= until:
            raise MigrationStoppedError(f"The schema could not be changed: {what}.")
        time.sleep(random.uniform(0.02, 0.2))  # noqa: S311 - a delay


def change_on(connection: Connection, statements: Sequence[str]) -> None:
    """Change the schema in the transaction of this connection."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET LOCAL lock_timeout = '500ms'")
    elif connection.dialect.name in ("mysql", "mariadb"):
        connection.exec_driver_sql("SET SESSION lock_wait_timeout = 1")
    for statement in statements:
        # Say that there are no parameters: a driver would otherwise look for placeholders in names.
        connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def missing_key_tables(connection: Connection, column: MigratingColumn) -> list[str]:
    """The tables for the keys of a column's owners that the database does not have."""
    inspector = inspect(connection)
    tables = [
        one.__table__
        for owner_class in column.path.owner_classes
        for one in (owner_class.key_class, owner_class.slot_class)
    ]
    return [one.name for one in tables if not inspector.has_table(one.name, schema=one.schema)]


def track(dialect: Dialect, columns: Tracked) -> list[str]:
    """Begin to notice writes to the previous column alone."""
    return triggers_for(dialect, columns).track()


def keep(dialect: Dialect, columns: Tracked) -> list[str]:
    """After the cut-over: refuse a write that empties the previous column alone."""
    return triggers_for(dialect, columns).keep()


def unkeep(dialect: Dialect, columns: Tracked) -> list[str]:
    """Return to the rules of before the cut-over: emptying the previous column means NULL. The guard is
    dropped too, since a contract that was killed in the middle has left it."""
    triggers = triggers_for(dialect, columns)
    return [*triggers.drop("keep", "guard"), *triggers.track()]


def guard(dialect: Dialect, columns: Tracked, *, back: bool = False) -> list[str]:
    """Refuse plaintext in the previous column; on the way back, a value in the encrypted column alone."""
    triggers = triggers_for(dialect, columns)
    kept = [] if back else triggers.keep(guarded=True)
    return [*kept, *triggers.guard(back=back)]


def untrack(dialect: Dialect, columns: Tracked) -> list[str]:
    """Drop every trigger of a migration."""
    return triggers_for(dialect, columns).drop("track", "keep", "guard")


def unguard(dialect: Dialect, columns: Tracked) -> list[str]:
    """Allow writes to the previous column alone again."""
    return triggers_for(dialect, columns).drop("guard")


def triggers_of(dialect: Dialect, columns: Tracked, phase: Phase) -> list[str]:
    """Statements that leave the triggers of this phase, whatever triggers existed before."""
    if phase is Phase.GUARDED:
        return guard(dialect, columns)
    if phase is Phase.CUT_OVER:
        return [*unguard(dialect, columns), *keep(dialect, columns)]
    return unkeep(dialect, columns)


def _quoted(dialect: Dialect, name: str) -> str:
    return quoter(dialect)(name)


def _table(dialect: Dialect, columns: Tracked) -> Any:
    table = _quoted(dialect, columns.table)
    return f"{_quoted(dialect, columns.schema)}.{table}" if columns.schema else table
