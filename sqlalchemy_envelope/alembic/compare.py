"""The findings of autogenerate. It finds the CHECK of encrypted columns. While values are moved, it finds the
steps of the move in place of bare columns, and ignores the tables and columns of the move itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from alembic import util
from alembic.autogenerate import comparators
from alembic.autogenerate.api import AutogenContext
from alembic.operations.ops import (
    AddColumnOp,
    AlterColumnOp,
    CreateCheckConstraintOp,
    CreateIndexOp,
    CreateTableOp,
    DropColumnOp,
    DropConstraintOp,
    DropIndexOp,
    DropTableOp,
    MigrateOperation,
    ModifyTableOps,
    UpgradeOps,
)
from alembic.util import sqla_compat
from sqlalchemy import Column, Connection, LargeBinary, Table, text

from sqlalchemy_envelope.alembic.ops import (
    AddEncryptedColumnOp,
    ContractEncryptedColumnOp,
    CreateEncryptedCheckOp,
    DropEncryptedCheckOp,
    DropEncryptedColumnOp,
    EncryptColumnOp,
    ExpandEncryptedColumnOp,
)
from sqlalchemy_envelope.alembic.render import AfterTheirs
from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.migration.database.state import STATE_TABLES
from sqlalchemy_envelope.migration.database.triggers import Tracked
from sqlalchemy_envelope.orm.columns.column_notes import note, notes_of
from sqlalchemy_envelope.orm.columns.encrypted_type import EncryptedType
from sqlalchemy_envelope.orm.columns.stored_value import check_condition, check_name, check_name_of
from sqlalchemy_envelope.orm.tables.python_types import python_type_of

_LAST: dict[str, Any] = (
    {"priority": priorities.LAST} if (priorities := getattr(util, "DispatchPriority", None)) else {}
)


# Alembic asks `render_item` of the options alone, and the options are first at hand when it compares schemas.
# Alembic has priorities for comparators since 1.18. Before, comparators ran in the order of registration.
@comparators.dispatch_for("schema", **_LAST)
def _install(autogen_context: AutogenContext, upgrade_ops: UpgradeOps, *_: Any) -> None:
    _refuse_to_drop_keys(upgrade_ops)
    _refuse_to_drop_index_keys(autogen_context, upgrade_ops)
    upgrade_ops.ops[:] = [*_steps(autogen_context, upgrade_ops.ops), *_checks(autogen_context)]
    _let_run_again(autogen_context, upgrade_ops)
    theirs = autogen_context.opts.get("render_item")
    if not isinstance(theirs, AfterTheirs):
        autogen_context.opts["render_item"] = AfterTheirs(theirs)


_KEY_COLUMNS = {"owner_reference", "commitment", "wrapping_key_id", "wrapped"}
_GRANT_COLUMNS = {"grant_id", "key_id", "recipient_key_id", "wrapped"}


def _refuse_to_drop_keys(upgrade_ops: UpgradeOps) -> None:
    """Refuse to drop key tables: autogenerate takes the rename of an owner's table for key tables to drop."""
    for operation in upgrade_ops.ops:
        if not isinstance(operation, DropTableOp):
            continue
        columns = set(operation.to_table().columns.keys())
        if columns >= _KEY_COLUMNS or columns >= _GRANT_COLUMNS:
            raise ConfigurationError(
                f"This migration would drop {operation.table_name!r}, and with it the keys of everything "
                "encrypted for its owners. If their table was renamed, keep the names of the key tables: see "
                "'Rename a table' in docs/how-to/alembic.md. If it is to go, write op.drop_table() by hand."
            )


_INDEX_KEY_COLUMNS = {"label", "epoch", "state", "commitment", "provider_ref", "wrapped"}


def _refuse_to_drop_index_keys(autogen_context: AutogenContext, upgrade_ops: UpgradeOps) -> None:
    """Refuse to drop index keys with their table: autogenerate takes a rename for a table to drop. Those of a
    table that stays go with the last index that the models gave up."""
    for operation in upgrade_ops.ops:
        if not isinstance(operation, DropTableOp):
            continue
        name, schema = operation.table_name, operation.schema
        columns, beside = set(operation.to_table().columns.keys()), name.removesuffix("_indexkey")
        is_gone = _key(beside, schema) not in autogen_context.table_key_to_table
        if columns >= _INDEX_KEY_COLUMNS and is_gone:
            raise ConfigurationError(
                f"This migration would drop {name!r}, the keys of the blind indexes of {beside!r}: no row "
                f"would be found by them again. If {beside!r} was renamed, rename {name!r} too, with "
                "op.rename_table(), and pin the labels: BlindIndex(..., label='table.column'). If both are "
                "to go, write op.drop_table() by hand."
            )


def _let_run_again(autogen_context: AutogenContext, upgrade_ops: UpgradeOps) -> None:
    """PostgreSQL: let a revision run again after a step that did not get its lock. The step has committed the
    operations before it, such as the tables for keys, so the second run has to accept them as done."""
    if autogen_context.migration_context.dialect.name != "postgresql":
        return
    if not any(
        isinstance(one, (ExpandEncryptedColumnOp, ContractEncryptedColumnOp)) for one in upgrade_ops.ops
    ):
        return
    for operation in upgrade_ops.ops:
        for one in operation.ops if isinstance(operation, ModifyTableOps) else (operation,):
            if isinstance(one, (CreateTableOp, CreateIndexOp)):
                one.if_not_exists = True
            elif isinstance(one, (DropIndexOp, DropConstraintOp)):
                one.if_exists = True


def _steps(autogen_context: AutogenContext, operations: list[MigrateOperation]) -> Iterator[MigrateOperation]:
    """The operations without changes to the state tables, and with the steps of a move.

    A step comes after its table's other changes, outside of a batch: SQLite's table loses its triggers
    when it is rebuilt.
    """
    for operation in operations:
        if isinstance(operation, DropTableOp) and operation.table_name in STATE_TABLES:
            continue
        if isinstance(operation, CreateTableOp):
            operation.columns = [_as_of_new_table(one) for one in operation.columns]
        if not isinstance(operation, ModifyTableOps):
            yield operation
            continue
        if operation.table_name in STATE_TABLES:
            continue
        table = autogen_context.table_key_to_table.get(_key(operation.table_name, operation.schema))
        steps: list[MigrateOperation] = []
        if table is not None:
            dialect = autogen_context.migration_context.dialect.name
            operation.ops[:] = [
                one
                for one in operation.ops
                if not _is_of_previous(one, table)
                and not _is_of_check(one, table)
                and not (dialect in ("mysql", "mariadb") and _is_made_otherwise_by_mysql(one, table))
                and not _becomes_step(autogen_context, one, table, steps)
            ]
            gone = {one.column_name for one in steps if isinstance(one, DropEncryptedColumnOp)}
            names = {check_name(table.name, one, table.metadata.naming_convention) for one in gone}
            operation.ops[:] = [
                one
                for one in operation.ops
                if not (isinstance(one, DropConstraintOp) and one.constraint_name in names)
            ]
        if not operation.is_empty():
            yield operation
        yield from steps


def _as_of_new_table(item: Any) -> Any:
    """The column of a CREATE TABLE; an encrypted column is marked to be written with its CHECK."""
    if not isinstance(item, Column) or not isinstance(item.type, EncryptedType) or item.type.check is False:
        return item
    marked = sqla_compat._copy(item)
    note(marked, check_name=check_name_of(item, item.table))
    return marked


def _encrypted(table: Table) -> Iterator[tuple[Column[Any], EncryptedType]]:
    return ((column, column.type) for column in table.columns if isinstance(column.type, EncryptedType))


def _is_of_check(operation: MigrateOperation, table: Table) -> bool:
    """Whether an operation creates or drops a CHECK of ours. An extension of Alembic compares CHECKs by name,
    and does not know `check=None`, under which a table keeps the CHECK that it has or lacks."""
    if not isinstance(operation, (CreateCheckConstraintOp, DropConstraintOp)):
        return False
    return operation.constraint_name in {check_name_of(column, table) for column, _ in _encrypted(table)}


def _checks(autogen_context: AutogenContext) -> Iterator[MigrateOperation]:
    """Operations for each CHECK that a model asks for or declines, if the database differs."""
    if autogen_context.connection is None or autogen_context.dialect is None:
        return
    if check_condition(autogen_context.dialect.name, "") is None:
        return
    inspector = autogen_context.inspector
    for table in autogen_context.sorted_tables:
        asked = [(one, type_.check) for one, type_ in _encrypted(table) if type_.check is not None]
        if not asked or not inspector.has_table(table.name, table.schema):
            continue
        if not autogen_context.run_object_filters(table, table.name, "table", False, None):
            continue
        there = {one["name"] for one in inspector.get_columns(table.name, table.schema)}
        checks = {one["name"] for one in inspector.get_check_constraints(table.name, table.schema)}
        for column, wanted in asked:
            has = check_name_of(column, table) in checks
            if column.name in there and has != wanted:
                kind = DropEncryptedCheckOp if has else CreateEncryptedCheckOp
                yield kind(table.name, column.name, schema=table.schema)


def _key(name: str, schema: str | None) -> str:
    return f"{schema}.{name}" if schema else name


def _is_of_previous(operation: MigrateOperation, table: Table) -> bool:
    """Whether an operation changes the previous column or its index. Both stay as they are until dropped."""
    previous = {column.name for column in table.columns if notes_of(column).replaced_by is not None}
    if not previous:
        return False
    if isinstance(operation, AlterColumnOp):
        return operation.column_name in previous
    if isinstance(operation, DropIndexOp):
        return bool(previous & {column.name for column in operation.to_index().columns})
    if isinstance(operation, DropConstraintOp):
        constraint: Any = operation.to_constraint()
        return bool(previous & {column.name for column in getattr(constraint, "columns", ())})
    return False


_BLOBS = {"TINYBLOB": 2**8, "BLOB": 2**16, "MEDIUMBLOB": 2**24}


def _is_made_otherwise_by_mysql(operation: MigrateOperation, table: Table) -> bool:
    """Whether a difference comes from MySQL alone: it has no partial index, and a TINYBLOB for BLOB(32).

    MySQL has no WHERE for an index. Without it the index for active keys would forbid rotation, so the model
    leaves the index out there; Alembic does not heed that.
    """
    if isinstance(operation, CreateIndexOp):
        return set(table.columns.keys()) >= _KEY_COLUMNS and operation.index_name == f"uq_{table.name}_active"
    if not isinstance(operation, AlterColumnOp) or not isinstance(operation.modify_type, LargeBinary):
        return False
    other = (operation.modify_nullable, operation.modify_name)
    size = _BLOBS.get(type(operation.existing_type).__name__)
    length = operation.modify_type.length
    return (
        size is not None
        and length is not None
        and length < size
        and other == (None, None)
        and operation.modify_server_default is False
        and operation.modify_comment is False
    )


def _becomes_step(
    autogen_context: AutogenContext, operation: MigrateOperation, table: Table, steps: list[MigrateOperation]
) -> bool:
    step: MigrateOperation | None = None
    if isinstance(operation, AddColumnOp):
        step = _expand(autogen_context, operation.column, table) or _add(operation.column, table)
    elif isinstance(operation, DropColumnOp):
        step = _contract(autogen_context, operation, table) or _drop(autogen_context, operation, table)
    elif isinstance(operation, AlterColumnOp):
        step = _encrypt(operation, table)
    if step is None:
        return False
    steps.append(step)
    return True


def _expand(
    autogen_context: AutogenContext, column: Column[Any], table: Table
) -> ExpandEncryptedColumnOp | None:
    """The operation that adds the encrypted column, if the previous column exists in the database."""
    if not isinstance(column.type, EncryptedType) or column.type.previous is None:
        return None
    declared = column.type.previous
    there = {one["name"] for one in autogen_context.inspector.get_columns(table.name, table.schema)}
    if declared.name not in there:
        return None
    check = column.type.check is not False
    return ExpandEncryptedColumnOp(table.name, declared.name, column.name, check=check, schema=table.schema)


def _encrypt(operation: AlterColumnOp, table: Table) -> EncryptColumnOp | None:
    """The operation for a plaintext column that the model encrypts. A bare change of type keeps plaintext."""
    column = table.columns.get(operation.column_name)
    there, type_ = operation.existing_type, getattr(column, "type", None)
    if column is None or not isinstance(type_, EncryptedType) or type_.previous is not None:
        return None
    if there is None or operation.modify_type is None or python_type_of(there) is bytes:
        return None
    named = type_.owner if isinstance(type_.owner, (str, tuple)) else None
    columns = [named] if isinstance(named, str) else named or ()
    own = all(one in table.columns for one in columns)  # a path is taken from the models
    label = type_.label if type_.label != f"{table.name}.{column.name}" else None
    return EncryptColumnOp(
        table.name,
        column.name,
        there,
        owner=named if own else None,
        label=label,
        bind=type_.bind,
        scope=type_.scope,
        nullable=bool(column.nullable),
        check=type_.check is not False,
        schema=table.schema,
    )


def _add(column: Column[Any], table: Table) -> AddEncryptedColumnOp | None:
    """The operation that adds a new column together with its CHECK."""
    if not isinstance(column.type, EncryptedType) or column.type.check is False:
        return None
    return AddEncryptedColumnOp(table.name, column, schema=table.schema)


def _drop(
    autogen_context: AutogenContext, operation: DropColumnOp, table: Table
) -> DropEncryptedColumnOp | None:
    """The operation that drops an encrypted column that left the model, known by the name of its CHECK."""
    name = operation.column_name
    if autogen_context.connection is None:
        return None
    checks = autogen_context.inspector.get_check_constraints(table.name, table.schema)
    if check_name(table.name, name, table.metadata.naming_convention) not in {one["name"] for one in checks}:
        return None
    column: Column[Any] = Column(name, LargeBinary(), nullable=operation.to_column().nullable)
    return DropEncryptedColumnOp(table.name, name, column=column, schema=table.schema)


def _contract(
    autogen_context: AutogenContext, operation: DropColumnOp, table: Table
) -> ContractEncryptedColumnOp | None:
    """The operation that drops a previous column. The name of its trigger shows the move it belongs to."""
    if autogen_context.connection is None:
        return None
    triggers = _triggers(autogen_context.connection, table)
    for column in table.columns:
        if not isinstance(column.type, EncryptedType) or column.type.previous is not None:
            continue
        if Tracked(table.name, operation.column_name, column.name).trigger("track") in triggers:
            return ContractEncryptedColumnOp(
                table.name,
                operation.column_name,
                column.name,
                existing_type=operation.to_column().type,
                schema=table.schema,
            )
    return None


def _triggers(connection: Connection, table: Table) -> set[str]:
    """The names of a table's triggers."""
    if connection.dialect.name == "sqlite":
        query = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = :name"
    elif connection.dialect.name == "postgresql":
        query = (
            "SELECT t.tgname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n "
            "ON n.oid = c.relnamespace WHERE c.relname = :name AND "
            "n.nspname = COALESCE(CAST(:schema AS text), current_schema())"
        )
    elif connection.dialect.name in ("mysql", "mariadb"):
        query = (
            "SELECT trigger_name FROM information_schema.triggers WHERE event_object_table = :name AND "
            "event_object_schema = COALESCE(:schema, DATABASE())"
        )
    else:
        return set()
    parameters = {"name": table.name, "schema": table.schema}
    if ":schema" not in query:
        del parameters["schema"]
    return {str(row[0]) for row in connection.execute(text(query), parameters)}
