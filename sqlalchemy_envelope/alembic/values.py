"""How every value of a small table is moved in one revision: into a column beside it, compared, and then
in its place.

The same chunks of work as of a migration under load do it; only that nobody else writes meanwhile.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from alembic.operations import Operations
from alembic.operations.batch import BatchOperationsImpl
from sqlalchemy import Column, ColumnClause, LargeBinary, MetaData, Table, func, inspect, select, text
from sqlalchemy import column as bare_column
from sqlalchemy import table as bare_table
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import conv

from sqlalchemy_envelope.alembic import ops
from sqlalchemy_envelope.alembic.impl import (
    checked,
    execute,
    hold,
    online,
    refuse_indexes,
    require_rebuildable,
)
from sqlalchemy_envelope.alembic.source import KeySource, key_source
from sqlalchemy_envelope.crypto.frames import emptying
from sqlalchemy_envelope.exceptions import ConfigurationError, MigrationRefusedError
from sqlalchemy_envelope.migration.database import schema
from sqlalchemy_envelope.migration.database.columns import MigratingColumn
from sqlalchemy_envelope.migration.database.rows import Rows
from sqlalchemy_envelope.migration.database.triggers import quoter
from sqlalchemy_envelope.migration.jobs.backfill import Backfill
from sqlalchemy_envelope.migration.jobs.early_ciphertext import IN_PLACE
from sqlalchemy_envelope.migration.jobs.owner_ciphers import keys_at_hand
from sqlalchemy_envelope.migration.jobs.reverse import Reverse
from sqlalchemy_envelope.migration.jobs.verify import Verify
from sqlalchemy_envelope.migration.jobs.work import Step
from sqlalchemy_envelope.orm.columns.encrypted_type import EncryptedType
from sqlalchemy_envelope.orm.columns.plans import EncryptedColumn, plan_of_table
from sqlalchemy_envelope.orm.columns.previous import PreviousColumn, previous_of
from sqlalchemy_envelope.orm.columns.stored_value import check_condition
from sqlalchemy_envelope.orm.tables.owner_paths import OwnerPath, path_through

if TYPE_CHECKING:
    from sqlalchemy_envelope.migration.jobs.work import Work

_CHUNK = 1000


@Operations.implementation_for(ops.EncryptColumnOp)
def _encrypt(operations: Operations, op: ops.EncryptColumnOp) -> None:
    move = _Move(operations, op, beside=LargeBinary())
    if move.is_empty():
        move.replace()
        return
    column = move.migrating(encrypted=move.beside, previous=op.column_name)
    rows = move.rows(column)
    unowned = rows.count(move.connection, rows.pending) - rows.count(
        move.connection, rows.pending & rows.owned
    )
    if unowned:
        raise MigrationRefusedError(
            f"{unowned} values of {column.name} have no owner whose key could encrypt them: give those rows "
            "an owner, or delete them, before."
        )
    move.sweep(rows, Backfill(IN_PLACE))
    pending = move.count_pending(rows)
    if pending:
        raise MigrationRefusedError(
            f"{pending} values of {column.name} could not be encrypted: the provider "
            f"{move.source.provider!r} does not hold the keys of their owners, who hold them alone. Use "
            "op.expand_encrypted_column() and `sqlalchemy-envelope migrate run`, which writes to such "
            "owners too."
        )
    move.verify(rows)
    move.replace()


@Operations.implementation_for(ops.DecryptColumnOp)
def _decrypt(operations: Operations, op: ops.DecryptColumnOp) -> None:
    move = _Move(operations, op, beside=op.type_)
    if move.is_empty():
        move.replace()
        return
    column = move.migrating(encrypted=op.column_name, previous=move.beside)
    rows = move.rows(column)
    move.sweep(rows, Reverse())
    left = rows.count(move.connection, rows.encrypted_alone)
    if left:
        raise MigrationRefusedError(
            f"{left} values of {column.name} could not be decrypted: the provider {move.source.provider!r} "
            "does not hold the keys of their owners, who hold them alone."
        )
    move.verify(rows)
    move.replace()


class _Move:
    """One column, the one beside it, and the table they are in.

    Attributes:
        beside: the name of the column that is filled, and then takes the other's place.
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
        if self._has(self.beside):  # of an attempt that failed, on a database that keeps it
            operations.drop_column(op.table_name, self.beside, schema=op.schema)
        self._add_beside()
        hold(connection, op.table_name, op.schema)

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
        """Whose keys they are."""
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
        """SQLite makes a column NOT NULL, or drops one with a CHECK, by building its table anew: that has to
        lose nothing."""
        op = self.op
        what = "has a CHECK that goes" if op.nullable else "is to be NOT NULL"
        why = f"{op.table_name}.{op.column_name} {what}, for which SQLite's table is built anew"
        require_rebuildable(self.connection, op.table_name, op.schema, why)

    def is_empty(self) -> bool:
        """Whether there is no value to move: on a fresh database a migration needs no keys."""
        old: ColumnClause[Any] = bare_column(self.op.column_name)
        table = bare_table(self.op.table_name, old, schema=self.op.schema)
        query = select(func.count()).select_from(table).where(old.is_not(None))
        return not self.connection.execute(query).scalar_one()

    # ------------------------------------------------------------------ the work

    def migrating(self, *, encrypted: str, previous: str) -> MigratingColumn:
        """The column as a migration sees it, made of what stands in the operation and in the database.

        Raises:
            ConfigurationError: the table has no primary key, or its owners are not found.
        """
        op, inspector = self.op, inspect(self.connection)
        keys = inspector.get_pk_constraint(op.table_name, op.schema)["constrained_columns"]
        if not keys:
            raise ConfigurationError(f"{op.table_name} has no primary key, by which its rows could be found.")
        modelled = self.source.table(op.table_name, op.schema)
        declared_path = self._declared_path(modelled)
        if declared_path is None:
            owner_class, names, is_self = self._owner(keys)
        else:
            owner_class, is_self = self._with_keys(declared_path.owner_class), False
            names = [one.name for one in declared_path.columns]
        declared = {} if modelled is None else {one.name: one.type for one in modelled.columns}
        if op.bind == "row" and not set(keys) <= set(declared):
            raise ConfigurationError(
                f"Values of {op.table_name}.{op.column_name} are bound to their rows, and the types of the "
                "primary key are not known: the models of the KeySource have no such table."
            )
        types = {one["name"]: one["type"] for one in self._columns()} | declared
        if declared_path is None:
            remote = zip(names, owner_class.primary_key, strict=True)
            types |= {name: one.type for name, one in remote}
        type_ = EncryptedType(
            op.type_,
            op.owner,
            op.label or f"{op.table_name}.{op.column_name}",
            op.bind,
            op.scope,
            PreviousColumn(previous, op.type_),
        )
        table = Table(
            op.table_name,
            MetaData(),
            *(
                Column(name, types[name], primary_key=name in keys, autoincrement=False)
                for name in dict.fromkeys([*keys, *names])
            ),
            Column(encrypted, type_),
            schema=op.schema,
        )
        column = table.c[encrypted]
        before = previous_of(column)
        assert before is not None  # noqa: S101 - the type names it
        columns = tuple(table.c[name] for name in names)
        path = declared_path.along(columns) if declared_path is not None else None
        path = path or OwnerPath(owner_class, columns, is_self=is_self)
        for one in path.owner_classes:
            one.scopes.add(op.scope)
        plan = EncryptedColumn(column, type_, path)
        key_columns = tuple(table.c[name] for name in keys)
        return MigratingColumn(owner_class.mapper, op.column_name, table, key_columns, column, before, plan)

    def _declared_path(self, modelled: Any) -> OwnerPath | None:
        """How the models lead a row to its owner, where no foreign key of the table itself does."""
        found = self._path_of_model(modelled) if self.op.owner is None else None
        return None if found is None or found.is_direct else found

    def _path_of_model(self, modelled: Any) -> OwnerPath | None:
        plan = None if modelled is None else plan_of_table(modelled)
        columns = () if plan is None else plan.columns
        return next((one.path for one in columns if one.column.name == self.op.column_name), None)

    def _named_by_model(self, wanted: list[str]) -> OwnerPath | None:
        """The columns that name the owners by what the models say: without a foreign key in the database."""
        modelled = self.source.table(self.op.table_name, self.op.schema)
        path = self._path_of_model(modelled)
        if path is not None and path.is_direct and (not wanted or set(path.keys) == set(wanted)):
            return path
        columns = [] if modelled is None else [one for one in modelled.columns if one.name in wanted]
        return path_through(tuple(columns)) if columns else None

    def _owner(self, keys: list[str]) -> tuple[Any, list[str], bool]:
        """The class of the rows' owners, the columns that name them in the order of its key, and whether they
        are the rows themselves."""
        op, classes = self.op, self.source.owner_classes()
        wanted = [op.owner] if isinstance(op.owner, str) else list(op.owner or ())
        own = classes.get((op.schema, op.table_name))
        if own is not None and set(wanted) in (set(), set(keys)):
            return self._with_keys(own), [one.name for one in own.primary_key], True
        found: list[tuple[Any, list[str]]] = []
        for key in inspect(self.connection).get_foreign_keys(op.table_name, op.schema):
            owner_class = classes.get((key["referred_schema"], key["referred_table"]))
            local = key["constrained_columns"]
            if owner_class is None or (wanted and set(wanted) != set(local)):
                continue
            primary = [one.name for one in owner_class.primary_key]
            remote = dict(zip(key["referred_columns"] or primary, local, strict=True))
            if set(remote) == set(primary):
                found.append((owner_class, [remote[name] for name in primary]))
        if len(found) != 1 and (path := self._named_by_model(wanted)) is not None:
            found = [(path.owner_class, [one.name for one in path.columns])]
        if len(found) != 1:
            raise ConfigurationError(
                f"Whose keys encrypt {op.table_name}.{op.column_name} is not clear: {len(found)} foreign "
                f"keys lead to a KeyOwner of the KeySource. Name the column that does: op.{op.tag}(..., "
                "owner='user_id')."
            )
        return self._with_keys(found[0][0]), found[0][1], False

    def _with_keys(self, owner_class: Any) -> Any:
        """Check that the key tables are there."""
        for model in (owner_class.key_class, owner_class.slot_class):
            table = None if model is None else model.__table__
            if table is None or not inspect(self.connection).has_table(table.name, table.schema):
                name = "A key table" if table is None else f"The key table {table.name!r}"
                raise ConfigurationError(
                    f"{name} of {owner_class.name} is not in the database: create it in an earlier revision, "
                    "or earlier in this one. `alembic revision --autogenerate` writes it."
                )
        return owner_class

    def rows(self, column: MigratingColumn) -> Rows:
        """The statements for the table."""
        rows = Rows(column, self.connection.dialect)
        rows.self_updating = schema.self_updating(self.connection, schema.tracked(column))
        return rows

    @emptying
    def sweep(self, rows: Rows, work: Work) -> Step:
        """Go over all rows once, in the migration's own transaction; what it came to."""
        total = Step(None, full=False)
        with (
            keys_at_hand(self.source.envelope, self.source.provider, f"migration: {self.op.tag}"),
            # Its commits and rollbacks are those of savepoints: the migration goes on, or fails as a whole.
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
        """How many values are not encrypted; what reads as None, as the JSON text `null` does, is none."""
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
            MigrationRefusedError: one differs, or could not be decrypted; both columns are as they were.
        """
        step = self.sweep(rows, Verify())
        left = self.count_pending(rows) + rows.count(self.connection, rows.encrypted_alone)
        if step.bad or step.locked or left:
            raise MigrationRefusedError(
                f"{self.op.table_name}.{self.op.column_name}: of {step.rows} values {step.bad} differ after "
                f"the move, {step.locked} cannot be opened and {left} were not moved. Nothing was dropped."
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
    """Do what the batch has noted so far, so that the column is looked at as it is then."""
    if batch.copy_from is not None:
        raise ConfigurationError(
            "A batch with `copy_from=` cannot change a column that is encrypted in it: leave that out, or "
            "use a batch of its own."
        )
    if batch.batch:
        batch.flush()
        batch.batch = []
