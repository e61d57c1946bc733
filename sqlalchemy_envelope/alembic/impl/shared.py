"""Helpers of the implementations: the connection, statements, the end of a batch, and a table's columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alembic.operations.batch import BatchOperationsImpl
from sqlalchemy import column as bare_column
from sqlalchemy import inspect, text, update
from sqlalchemy import table as bare_table

from sqlalchemy_envelope.exceptions import MigrationRefusedError
from sqlalchemy_envelope.migration.database.triggers import Tracked
from sqlalchemy_envelope.orm.columns.stored_value import check_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from alembic.operations import Operations
    from sqlalchemy import Connection

    from sqlalchemy_envelope.alembic import ops


def online(operations: Operations) -> Connection | None:
    """The connection; None if SQL is only written to a script."""
    return None if operations.migration_context.as_sql else operations.get_bind()


def execute(operations: Operations, statements: Sequence[str]) -> None:
    """Run statements, or write them to the script."""
    for statement in statements:
        operations.execute(text(statement.replace(":", "\\:")))


def after_batch(operations: Operations, run: Callable[[Operations], None]) -> None:
    """Run now, or at the end of a batch: a table that is rebuilt loses its triggers."""
    batch: Any = operations.impl
    if not isinstance(batch, BatchOperationsImpl):
        run(operations)
        return
    flush, plain = batch.flush, batch.operations

    def flush_and_run() -> None:
        flush()
        run(plain)

    batch.flush = flush_and_run  # type: ignore[method-assign]  # there is no hook for the end of a batch


def hold(connection: Connection, table: str, schema: str | None) -> None:
    """Let nobody else write to the table until the end of the transaction, if the database can."""
    if connection.dialect.name == "postgresql":
        name = connection.dialect.identifier_preparer.format_table(bare_table(table, schema=schema))
        connection.exec_driver_sql(f"LOCK TABLE {name} IN SHARE ROW EXCLUSIVE MODE")
    elif connection.dialect.name == "sqlite":
        # The driver begins a transaction with the first writing statement, even if it changes nothing.
        keys = inspect(connection).get_columns(table, schema)
        name = keys[0]["name"]
        rows = bare_table(table, bare_column(name), schema=schema)
        connection.execute(update(rows).where(text("0 = 1")).values({name: rows.c[name]}))


def refuse_indexes(connection: Connection, table: str, column: str, schema: str | None) -> None:
    """Refuse a column with an index. Drop the index first, where a downgrade can create it again.

    Raises:
        MigrationRefusedError: the column has an index.
    """
    inspector = inspect(connection)
    for index in inspector.get_indexes(table, schema):
        if column in (index.get("column_names") or ()) and not index.get("duplicates_constraint"):
            raise MigrationRefusedError(
                f"{table}.{column} is in the index {index['name']!r}, which can find nothing in ciphertext. "
                f"Drop it before, in this revision: op.drop_index({index['name']!r}, table_name={table!r})."
            )
    for unique in inspector.get_unique_constraints(table, schema):
        if column in unique["column_names"]:
            raise MigrationRefusedError(
                f"{table}.{column} is in the unique constraint {unique['name']!r}, and equal values are "
                "encrypted to different bytes. Drop it before, in this revision, with op.drop_constraint(); "
                "on SQLite in a batch (an unnamed one needs a batch with `naming_convention=`)."
            )


def tracked(operations: Operations, op: ops.PairOp) -> Tracked:
    """The two columns, by name."""
    connection, keys = online(operations), []
    if connection is not None:
        keys = inspect(connection).get_pk_constraint(op.table_name, op.schema)["constrained_columns"]
    check = name_of_check(operations, op.table_name, op.encrypted, op.schema) if op.check else None
    return Tracked(op.table_name, op.previous, op.encrypted, op.schema, keys, check=check)


def name_of_check(operations: Operations, table: str, column: str, schema: str | None) -> str:
    """The models' name for the CHECK of a column, by the naming convention of `target_metadata`."""
    known: Any = operations.migration_context.opts.get("target_metadata")
    of_models = known if isinstance(known, (list, tuple)) else [known]
    name = f"{schema}.{table}" if schema else table
    own = [one for one in of_models if name in getattr(one, "tables", ())] or of_models
    return check_name(table, column, getattr(own[0], "naming_convention", None))


def checked(operations: Operations, table: str, column: str, schema_: str | None) -> Tracked:
    """An encrypted column alone, with the name of its CHECK."""
    name = name_of_check(operations, table, column, schema_)
    return Tracked(table, "", column, schema_, check=name)
