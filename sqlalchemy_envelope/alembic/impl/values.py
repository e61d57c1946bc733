"""Move every value of a small table in a single revision: into a second column, where it is compared, and
then into the first column's place.

The work is done in the same chunks as in a migration under load, but nobody else writes meanwhile.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from alembic.operations import Operations
from alembic.operations.batch import BatchOperationsImpl
from sqlalchemy import Column, ColumnClause, LargeBinary, func, inspect, select, text
from sqlalchemy import column as bare_column
from sqlalchemy import table as bare_table
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import conv

from sqlalchemy_envelope.alembic import ops
from sqlalchemy_envelope.alembic.impl.described import DescribedColumn
from sqlalchemy_envelope.alembic.impl.rebuilds import require_rebuildable
from sqlalchemy_envelope.alembic.impl.shared import checked, execute, hold, online, refuse_indexes
from sqlalchemy_envelope.alembic.source import KeySource, key_source
from sqlalchemy_envelope.crypto.frames import emptying
from sqlalchemy_envelope.exceptions import ConfigurationError, MigrationRefusedError
from sqlalchemy_envelope.migration.database import schema
from sqlalchemy_envelope.migration.database.rows import Rows
from sqlalchemy_envelope.migration.database.triggers import quoter
from sqlalchemy_envelope.migration.jobs.backfill import Backfill
from sqlalchemy_envelope.migration.jobs.early_ciphertext import IN_PLACE
from sqlalchemy_envelope.migration.jobs.owner_ciphers import keys_at_hand
from sqlalchemy_envelope.migration.jobs.reverse import Reverse
from sqlalchemy_envelope.migration.jobs.verify import Verify
from sqlalchemy_envelope.migration.jobs.work import Step
from sqlalchemy_envelope.orm.columns.stored_value import check_condition
from sqlalchemy_envelope.words import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy_envelope.migration.database.columns import MigratingColumn
    from sqlalchemy_envelope.migration.jobs.work import Work

_CHUNK = 1000
_NOT_OPENED = "reaches the keys of their owners neither by a slot nor by a grant"


@Operations.implementation_for(ops.EncryptColumnOp)
def _encrypt(operations: Operations, op: ops.EncryptColumnOp) -> None:
    move = _Move(operations, op, beside=LargeBinary())
    with move.beside_the_column():
        if not move.is_empty():
            _fill_encrypted(move)
    move.replace()


def _fill_encrypted(move: _Move) -> None:
    column = move.migrating(encrypted=move.beside, previous=move.op.column_name)
    rows = move.rows(column)
    unowned = rows.count(move.connection, rows.pending) - rows.count(
        move.connection, rows.pending & rows.owned
    )
    if unowned:
        raise MigrationRefusedError(
            f"{counted(unowned, 'value')} of {column.name} cannot be encrypted, for want of an owner: give "
            "those rows an owner, or delete them, before."
        )
    move.sweep(rows, Backfill(IN_PLACE))
    pending = move.count_pending(rows)
    if pending:
        raise MigrationRefusedError(
            f"{counted(pending, 'value')} of {column.name} could not be encrypted: the provider "
            f"{move.source.provider!r} has no slot of their owners, and does not write through grants. Use "
            "op.expand_encrypted_column() and `sqlalchemy-envelope migrate run`, which writes to such owners "
            "too; or let the provider in first, with `envelope.add_provider(session, owner, provider=...)` "
            "while the owner is unlocked."
        )
    move.verify(rows)


@Operations.implementation_for(ops.DecryptColumnOp)
def _decrypt(operations: Operations, op: ops.DecryptColumnOp) -> None:
    move = _Move(operations, op, beside=op.type_)
    with move.beside_the_column():
        if not move.is_empty():
            _fill_decrypted(move)
    move.replace()


def _fill_decrypted(move: _Move) -> None:
    column = move.migrating(encrypted=move.op.column_name, previous=move.beside)
    rows = move.rows(column)
    move.sweep(rows, Reverse())
    left = rows.count(move.connection, rows.encrypted_alone)
    if left:
        raise MigrationRefusedError(
            f"{counted(left, 'value')} of {column.name} could not be decrypted: the provider "
            f"{move.source.provider!r} {_NOT_OPENED}. Let the provider in first, with "
            "`envelope.add_provider(session, owner, provider=...)` while the owner is unlocked."
        )
    move.verify(rows)


class _Move:
    """A column, the column beside it, and their table.

    Attributes:
        beside: the name of the column that is filled, and then takes the first column's place.
    """

    def __init__(self, operations: Operations, op: ops.ValuesOp, beside: Any) -> None:
        batch: Any = operations.impl
        in_batch = isinstance(batch, BatchOperationsImpl)
        if in_batch:
            operations = batch.operations
        connection = online(operations)
        if connection is None:
            raise MigrationRefusedError(
                f"op.{op.tag}({op.table_name!r}, {op.column_name!r}) needs keys and values, and there are "
                "none in a SQL script. Use op.expand_encrypted_column(), whose SQL can be written, and "
                "`sqlalchemy-envelope migrate run`."
            )
        self.operations, self.op, self.connection = operations, op, connection
        self.beside = f"{op.column_name[:40]}__{op.tag.split('_')[0]}ing"
        self._beside_type = beside
        if in_batch:
            _settle(batch)
        self._check_column()
        self._check = checked(operations, op.table_name, op.column_name, op.schema)
        self._rebuilds = connection.dialect.name == "sqlite" and (
            not op.nullable or not schema.is_droppable(connection, self._check, op.column_name)
        )
        if self._rebuilds:
            self._check_rebuild()

    @contextmanager
    def beside_the_column(self) -> Iterator[None]:
        """Add the column that is filled, and remove it again if the work inside the block is refused.

        The caller may go on in the same transaction, and MySQL commits before each change of a table. On
        SQLite the table is held first, since the driver begins its transaction there, and not with ALTER.
        """
        if self.connection.dialect.name == "sqlite":
            hold(self.connection, self.op.table_name, self.op.schema)
        self._drop_beside()  # of an attempt that was killed, on a database that keeps it
        self._add_beside()
        hold(self.connection, self.op.table_name, self.op.schema)
        savepoint = self.connection.begin_nested()
        try:
            yield
        except BaseException:
            if savepoint.is_active:
                savepoint.rollback()
            self._drop_beside()
            raise
        savepoint.commit()

    def _drop_beside(self) -> None:
        if self._has(self.beside):
            self.operations.drop_column(self.op.table_name, self.beside, schema=self.op.schema)

    @property
    def _is_checked(self) -> bool:
        """Whether the column that is filled gets a CHECK."""
        return isinstance(self.op, ops.EncryptColumnOp) and self.op.check

    def _add_beside(self) -> None:
        if self._is_checked and self.connection.dialect.name == "sqlite" and not self._rebuilds:
            beside = replace(self._check, encrypted=self.beside)
            execute(self.operations, schema.add_column(self.connection.dialect, beside))
            return
        added: Column[Any] = Column(self.beside, self._beside_type, nullable=True)
        self.operations.add_column(self.op.table_name, added, schema=self.op.schema)

    @property
    def source(self) -> KeySource:
        """The source of the keys."""
        return key_source(self.operations)

    # ------------------------------------------------------------------ checks

    def _columns(self) -> list[Any]:
        return list(inspect(self.connection).get_columns(self.op.table_name, self.op.schema))

    def _has(self, name: str) -> bool:
        return any(one["name"] == name for one in self._columns())

    def _check_column(self) -> None:
        op, where = self.op, f"{self.op.table_name}.{self.op.column_name}"
        found = next((one for one in self._columns() if one["name"] == op.column_name), None)
        if found is None:
            raise MigrationRefusedError(f"There is no column {where}.")
        is_binary = _is_binary(found["type"])
        if isinstance(op, ops.EncryptColumnOp) and is_binary and not _is_binary(op.type_):
            raise MigrationRefusedError(f"{where} is binary, as if it were encrypted already.")
        if isinstance(op, ops.DecryptColumnOp) and not is_binary:
            raise MigrationRefusedError(f"{where} is not binary: there is nothing encrypted in it.")
        refuse_indexes(self.connection, op.table_name, op.column_name, op.schema)

    def _check_rebuild(self) -> None:
        """Check that a rebuild would lose nothing. SQLite rebuilds a table to make a column NOT NULL, or to
        drop a column with a CHECK."""
        op = self.op
        what = "has a CHECK that goes" if op.nullable else "is to be NOT NULL"
        why = f"{op.table_name}.{op.column_name} {what}, for which SQLite's table is built anew"
        require_rebuildable(self.connection, op.table_name, op.schema, why)

    def is_empty(self) -> bool:
        """Whether there is no value to move. On a fresh database a migration needs no keys."""
        old: ColumnClause[Any] = bare_column(self.op.column_name)
        table = bare_table(self.op.table_name, old, schema=self.op.schema)
        query = select(func.count()).select_from(table).where(old.is_not(None))
        return not self.connection.execute(query).scalar_one()

    # ------------------------------------------------------------------ the work

    def migrating(self, *, encrypted: str, previous: str) -> MigratingColumn:
        """The column as a migration sees it, with these names of its two columns."""
        described = DescribedColumn(self.connection, self.source, self.op)
        return described.migrating(encrypted=encrypted, previous=previous)

    def rows(self, column: MigratingColumn) -> Rows:
        """The statements for the table."""
        rows = Rows(column, self.connection.dialect)
        rows.self_updating = schema.self_updating(self.connection, column.table)
        return rows

    @emptying
    def sweep(self, rows: Rows, work: Work) -> Step:
        """Go over all rows once, in the migration's own transaction, and return the totals."""
        total = Step(None, full=False)
        with (
            keys_at_hand(self.source.envelope, self.source.provider, f"migration: {self.op.tag}"),
            # Commit and rollback act on savepoints here: the migration goes on, or fails as a whole.
            Session(self.connection, join_transaction_mode="create_savepoint") as session,
        ):
            step = work.step(session, rows, None, None, _CHUNK)
            while step.position is not None:
                session.commit()
                total.rows, total.bad = total.rows + step.rows, total.bad + step.bad
                total.locked += step.locked
                if not step.full:
                    break
                step = work.step(session, rows, step.position, None, _CHUNK)
        return total

    @emptying
    def count_pending(self, rows: Rows) -> int:
        """Count the values that are not encrypted. JSON `null` and others that read as None do not count."""
        count, after = 0, None
        while found := rows.read(self.connection, rows.pending, after, None, _CHUNK):
            parts = [rows.split(row) for row in found]
            count += sum(typed is not None for _, _, typed, *_ in parts)
            after = parts[-1][0]
        return count

    @emptying
    def verify(self, rows: Rows) -> None:
        """Decrypt every value and compare it with the other column's.

        Raises:
            MigrationRefusedError: a value differs, or could not be decrypted; both columns stay as they were.
        """
        step = self.sweep(rows, Verify())
        left = self.count_pending(rows) + rows.count(self.connection, rows.encrypted_alone)
        if step.bad or step.locked or left:
            raise MigrationRefusedError(
                f"{self.op.table_name}.{self.op.column_name}: {counted(step.rows, 'value')} moved, of which "
                f"{step.bad:,} differ and {step.locked:,} cannot be opened; {left:,} not moved. Nothing was "
                "changed."
            )

    def replace(self) -> None:
        """Drop the old column and give its name to the new one."""
        op, operations = self.op, self.operations
        if self._rebuilds:
            with operations.batch_alter_table(op.table_name, schema=op.schema, recreate="always") as batch:
                if isinstance(op, ops.DecryptColumnOp) and schema.has_check(self.connection, self._check):
                    batch.drop_constraint(conv(self._check.check or ""), type_="check")
                batch.drop_column(op.column_name)
                batch.alter_column(
                    self.beside,
                    new_column_name=op.column_name,
                    existing_type=self._beside_type,
                    nullable=op.nullable,
                )
                if self._is_checked:
                    condition = check_condition("sqlite", quoter(self.connection.dialect)(op.column_name))
                    batch.create_check_constraint(conv(self._check.check or ""), text(condition or ""))
            return
        operations.drop_column(op.table_name, op.column_name, schema=op.schema)
        operations.alter_column(
            op.table_name,
            self.beside,
            new_column_name=op.column_name,
            existing_type=self._beside_type,
            existing_nullable=True,
            schema=op.schema,
        )
        if not op.nullable:
            operations.alter_column(
                op.table_name,
                op.column_name,
                nullable=False,
                existing_type=self._beside_type,
                schema=op.schema,
            )
        if self._is_checked and self.connection.dialect.name != "sqlite":
            execute(operations, schema.add_check(self.connection.dialect, self._check))


def _is_binary(type_: Any) -> bool:
    """Whether the database stores bytes."""
    return bool(type_._type_affinity is LargeBinary()._type_affinity)


def _settle(batch: Any) -> None:
    """Carry out the changes that the batch has collected, so that later code sees the changed column."""
    if batch.copy_from is not None:
        raise ConfigurationError(
            "A batch with `copy_from=` cannot change a column that is encrypted in it: leave that out, or "
            "use a batch of its own."
        )
    if batch.batch:
        batch.flush()
        batch.batch = []
