"""How the two steps for large tables are run, and undone: a column and triggers, and never a row lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alembic.operations import Operations
from sqlalchemy import Column

from sqlalchemy_envelope.alembic import ops
from sqlalchemy_envelope.alembic.impl import script
from sqlalchemy_envelope.alembic.impl.losses import record_of, refuse_alone, refuse_contract
from sqlalchemy_envelope.alembic.impl.rebuilds import drop_column, require_droppable
from sqlalchemy_envelope.alembic.impl.shared import (
    after_batch,
    execute,
    hold,
    online,
    refuse_indexes,
    tracked,
)
from sqlalchemy_envelope.exceptions import ConfigurationError, MigrationRefusedError
from sqlalchemy_envelope.migration.database import schema
from sqlalchemy_envelope.migration.database.state import Phase

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from sqlalchemy_envelope.migration.database.triggers import Tracked


@Operations.implementation_for(ops.ExpandEncryptedColumnOp)
def _expand(operations: Operations, op: ops.ExpandEncryptedColumnOp) -> None:
    def run(operations: Operations) -> None:
        columns, dialect = tracked(operations, op), operations.impl.dialect
        connection = online(operations)
        if connection is None or not schema.has_column(connection, columns, columns.encrypted):
            execute(operations, schema.add_column(dialect, columns))
        execute(operations, schema.track(dialect, columns))

    after_batch(operations, run)


@Operations.implementation_for(ops.UndoExpandEncryptedColumnOp)
def _undo_expand(operations: Operations, op: ops.UndoExpandEncryptedColumnOp) -> None:
    def run(operations: Operations) -> None:
        columns, dialect = tracked(operations, op), operations.impl.dialect
        connection = online(operations)
        if connection is not None and not schema.has_column(connection, columns, columns.encrypted):
            return
        if connection is None:
            script.check_alone(operations, columns)
            execute(operations, schema.untrack(dialect, columns))
        else:
            hold(connection, columns.table, columns.schema)
            require_droppable(connection, columns, columns.encrypted)
            refuse_alone(connection, columns)
            execute(operations, schema.untrack(dialect, columns))
            record = record_of(connection, columns)
            if record is not None:
                record.forget()  # the next migration of this column begins anew
        drop_column(operations, columns, columns.encrypted)

    after_batch(operations, run)


@Operations.implementation_for(ops.ContractEncryptedColumnOp)
def _contract(operations: Operations, op: ops.ContractEncryptedColumnOp) -> None:
    def run(operations: Operations) -> None:
        columns, dialect = tracked(operations, op), operations.impl.dialect
        connection = online(operations)
        if connection is not None and not schema.has_column(connection, columns, columns.previous):
            execute(operations, schema.untrack(dialect, columns))
            return
        if connection is not None and dialect.name != "postgresql":
            refuse_indexes(connection, columns.table, columns.previous, columns.schema)
            require_droppable(connection, columns, columns.previous)
        # From here on nobody can make a row pending: what is looked at below stays so.
        execute(operations, schema.guard(dialect, columns))
        if connection is None:
            script.check_contract(operations, columns, op)
        else:
            try:
                refuse_contract(connection, columns, op)
            except BaseException as error:
                # After an error of its own PostgreSQL takes no statement, and undoes what was done.
                if isinstance(error, MigrationRefusedError) or dialect.name != "postgresql":
                    execute(operations, schema.unguard(dialect, columns))
                raise
        execute(operations, schema.untrack(dialect, columns))
        drop_column(operations, columns, columns.previous)
        if connection is not None:
            _note_phase(connection, columns, op.name, Phase.CONTRACTED)

    after_batch(operations, run)


@Operations.implementation_for(ops.UndoContractEncryptedColumnOp)
def _undo_contract(operations: Operations, op: ops.UndoContractEncryptedColumnOp) -> None:
    if op.existing_type is None:
        raise ConfigurationError(
            f"The column {op.table_name}.{op.previous} cannot be made again without its type: "
            "op.undo_contract_encrypted_column(..., existing_type=sa.String(20))."
        )

    def run(operations: Operations) -> None:
        columns, dialect = tracked(operations, op), operations.impl.dialect
        connection = online(operations)
        if connection is None or not schema.has_column(connection, columns, columns.previous):
            added: Column[Any] = Column(columns.previous, op.existing_type, nullable=True)
            operations.add_column(columns.table, added, schema=columns.schema)
        execute(operations, schema.keep(dialect, columns))
        if connection is not None:
            _note_phase(connection, columns, op.name, Phase.CUT_OVER)

    after_batch(operations, run)


def _note_phase(connection: Connection, columns: Tracked, name: str | None, phase: Phase) -> None:
    record = record_of(connection, columns, name)
    if record is not None:
        record.set_phase(phase, columns.previous)
