"""Add and drop an encrypted column without a previous column, and its CHECK."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic.operations import Operations
from sqlalchemy import text
from sqlalchemy.sql.elements import conv

from sqlalchemy_envelope.alembic import ops
from sqlalchemy_envelope.alembic.impl.rebuilds import drop_column, rebuild, require_droppable
from sqlalchemy_envelope.alembic.impl.shared import after_batch, checked, execute, online
from sqlalchemy_envelope.exceptions import MigrationRefusedError
from sqlalchemy_envelope.migration.database import schema
from sqlalchemy_envelope.migration.database.triggers import quoter
from sqlalchemy_envelope.orm.columns.stored_value import check_condition
from sqlalchemy_envelope.words import counted

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from sqlalchemy_envelope.migration.database.triggers import Tracked


@Operations.implementation_for(ops.AddEncryptedColumnOp)
def _add(operations: Operations, op: ops.AddEncryptedColumnOp) -> None:
    def run(operations: Operations) -> None:
        dialect, column = operations.impl.dialect, op.column
        columns = checked(operations, op.table_name, column.name, op.schema)
        if dialect.name == "sqlite":
            # SQLite takes a CHECK only at this moment, unless the table is rebuilt.
            suffix = "" if column.nullable else " NOT NULL"
            execute(operations, [one + suffix for one in schema.add_column(dialect, columns)])
            return
        operations.add_column(op.table_name, column, schema=op.schema)
        if dialect.name in ("postgresql", "mysql", "mariadb"):
            execute(operations, schema.add_check(dialect, columns))

    after_batch(operations, run)


@Operations.implementation_for(ops.DropEncryptedColumnOp)
def _drop(operations: Operations, op: ops.DropEncryptedColumnOp) -> None:
    def run(operations: Operations) -> None:
        columns = checked(operations, op.table_name, op.column_name, op.schema)
        connection = online(operations)
        if connection is not None:
            require_droppable(connection, columns, columns.encrypted, moving=False)
        drop_column(operations, columns, columns.encrypted)

    after_batch(operations, run)


@Operations.implementation_for(ops.CreateEncryptedCheckOp)
def _create_check(operations: Operations, op: ops.CreateEncryptedCheckOp) -> None:
    dialect, connection = operations.impl.dialect, online(operations)
    columns = checked(operations, op.table_name, op.column_name, op.schema)
    if dialect.name not in ("sqlite", "postgresql", "mysql", "mariadb"):
        return
    if connection is not None:
        if schema.has_check(connection, columns):
            return
        if op.validate or dialect.name != "postgresql":
            _refuse_foreign(connection, columns)
    if dialect.name == "sqlite":
        condition = check_condition(dialect.name, quoter(dialect)(columns.encrypted))
        with rebuild(operations, columns) as batch:
            batch.create_check_constraint(conv(columns.check or ""), text(condition or ""))
        return
    execute(operations, schema.add_check(dialect, columns, validate=op.validate))


@Operations.implementation_for(ops.DropEncryptedCheckOp)
def _drop_check(operations: Operations, op: ops.DropEncryptedCheckOp) -> None:
    dialect, connection = operations.impl.dialect, online(operations)
    columns = checked(operations, op.table_name, op.column_name, op.schema)
    if connection is not None and not schema.has_check(connection, columns):
        return
    if dialect.name == "sqlite":
        with rebuild(operations, columns) as batch:
            batch.drop_constraint(conv(columns.check or ""), type_="check")
    elif dialect.name in ("postgresql", "mysql", "mariadb"):
        execute(operations, schema.drop_check(dialect, columns))


def _refuse_foreign(connection: Connection, columns: Tracked) -> None:
    foreign = schema.count_foreign(connection, columns)
    if foreign:
        found = f"{counted(foreign, 'value')} of {columns.table}.{columns.encrypted}"
        raise MigrationRefusedError(
            f"{found} cannot be ciphertext, and its CHECK would not hold. Move "
            "plaintext by op.encrypt_column() or `sqlalchemy-envelope migrate run`; remove the rest. "
            "On PostgreSQL, validate=False adds the CHECK for new writes alone."
        )
