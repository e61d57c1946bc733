"""Run and undo the two steps for large tables: a column and its triggers, without the loss of a row."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from alembic.operations import Operations
from sqlalchemy import Column

from sqlalchemy_envelope.alembic import ops
from sqlalchemy_envelope.alembic.impl import script
from sqlalchemy_envelope.alembic.impl.locks import change_alone
from sqlalchemy_envelope.alembic.impl.losses import record_of, refuse_alone, refuse_contract
from sqlalchemy_envelope.alembic.impl.rebuilds import drop_column, require_droppable
from sqlalchemy_envelope.alembic.impl.shared import (
    after_batch,
    execute,
    online,
    refuse_indexes,
    tracked,
)
from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.migration.database import schema
from sqlalchemy_envelope.migration.database.state import Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection

    from sqlalchemy_envelope.migration.database.record import Record
    from sqlalchemy_envelope.migration.database.triggers import Tracked


@Operations.implementation_for(ops.ExpandEncryptedColumnOp)
def _expand(operations: Operations, op: ops.ExpandEncryptedColumnOp) -> None:
    def run(operations: Operations) -> None:
        columns, dialect = tracked(operations, op), operations.impl.dialect

        def add() -> None:
            connection = online(operations)
            if connection is None or not schema.has_column(connection, columns, columns.encrypted):
                execute(operations, schema.add_column(dialect, columns))
            execute(operations, schema.track(dialect, columns))

        change_alone(operations, columns.table, add)

    after_batch(operations, run)


@Operations.implementation_for(ops.UndoExpandEncryptedColumnOp)
def _undo_expand(operations: Operations, op: ops.UndoExpandEncryptedColumnOp) -> None:
    def run(operations: Operations) -> None:
        columns, dialect = tracked(operations, op), operations.impl.dialect
        connection = online(operations)
        if connection is None:
            script.check_alone(operations, columns)
            _drop(operations, columns, columns.encrypted)
            return
        if not schema.has_column(connection, columns, columns.encrypted):
            return
        require_droppable(connection, columns, columns.encrypted)
        guards, record = schema.guard(dialect, columns, back=True), record_of(connection, columns)
        _check_behind(operations, columns, guards, record, lambda: refuse_alone(connection, columns))
        _drop(operations, columns, columns.encrypted)
        if record is not None:
            record.forget()  # the next migration of this column begins anew

    after_batch(operations, run)


@Operations.implementation_for(ops.ContractEncryptedColumnOp)
def _contract(operations: Operations, op: ops.ContractEncryptedColumnOp) -> None:
    def run(operations: Operations) -> None:
        columns, dialect = tracked(operations, op), operations.impl.dialect
        connection = online(operations)
        if connection is None:
            execute(operations, schema.guard(dialect, columns))
            script.check_contract(operations, columns, op)
            _drop(operations, columns, columns.previous)
            return
        if schema.has_column(connection, columns, columns.previous):
            if dialect.name != "postgresql":
                refuse_indexes(connection, columns.table, columns.previous, columns.schema)
                require_droppable(connection, columns, columns.previous)
            guards, record = schema.guard(dialect, columns), record_of(connection, columns, op.name)

            def check() -> None:
                refuse_contract(connection, columns, op)

            _check_behind(operations, columns, guards, record, check)
        _drop(operations, columns, columns.previous)
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

        def add() -> None:
            if connection is None or not schema.has_column(connection, columns, columns.previous):
                added: Column[Any] = Column(columns.previous, op.existing_type, nullable=True)
                operations.add_column(columns.table, added, schema=columns.schema)
            execute(operations, schema.keep(dialect, columns))

        change_alone(operations, columns.table, add)
        if connection is not None:
            _note_phase(connection, columns, op.name, Phase.CUT_OVER)

    after_batch(operations, run)


def _check_behind(
    operations: Operations,
    columns: Tracked,
    guards: Sequence[str],
    record: Record | None,
    check: Callable[[], None],
) -> None:
    """Check, let the database refuse writes that would fail the check, and check again while others write.
    The result of the second check stays true. If it fails, restore the triggers of the migration's phase."""
    connection = operations.get_bind()
    check()
    change_alone(operations, columns.table, lambda: execute(operations, guards))
    # After an error of its own, PostgreSQL takes no statement except a rollback.
    savepoint: Any = connection.begin_nested if connection.dialect.name == "postgresql" else nullcontext
    try:
        with savepoint():
            check()
    except BaseException:
        phase = Phase.TRACKING if record is None else record.read().phase
        back = schema.triggers_of(connection.dialect, columns, phase)
        change_alone(operations, columns.table, lambda: execute(operations, back))
        raise


def _drop(operations: Operations, columns: Tracked, name: str) -> None:
    """Drop either column, and in the same moment the triggers, which name both columns."""

    def drop() -> None:
        connection = online(operations)
        execute(operations, schema.untrack(operations.impl.dialect, columns))
        if connection is None or schema.has_column(connection, columns, name):
            drop_column(operations, columns, name)

    change_alone(operations, columns.table, drop)


def _note_phase(connection: Connection, columns: Tracked, name: str | None, phase: Phase) -> None:
    record = record_of(connection, columns, name)
    if record is not None:
        record.set_phase(phase, columns.previous)
