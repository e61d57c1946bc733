"""How the two steps for large tables are run, and undone: a column and triggers, and never a row lost."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from alembic.operations import Operations
from alembic.operations.batch import BatchOperationsImpl
from sqlalchemy import Column, ColumnClause, delete, func, inspect, select, text, update
from sqlalchemy import column as bare_column
from sqlalchemy import table as bare_table
from sqlalchemy.sql.elements import conv

from sqlalchemy_envelope.alembic import ops
from sqlalchemy_envelope.exceptions import ConfigurationError, MigrationRefusedError
from sqlalchemy_envelope.migration.database import schema
from sqlalchemy_envelope.migration.database.state import JobState, MigrationState, Phase, RangeState
from sqlalchemy_envelope.migration.database.triggers import Tracked, quoter
from sqlalchemy_envelope.orm.columns.stored_value import check_condition, check_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Connection


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
            _check_in_script(operations, columns, "encrypted", "previous", _ALONE)
            execute(operations, schema.untrack(dialect, columns))
        else:
            hold(connection, columns.table, columns.schema)
            _require_droppable(connection, columns, columns.encrypted)
            alone = _count(connection, columns, "encrypted", "previous")
            if alone:
                raise MigrationRefusedError(f"{alone} {_ALONE.format(**_names(columns))}")
            execute(operations, schema.untrack(dialect, columns))
            _forget(connection, columns)
        _drop_column(operations, columns, columns.encrypted)

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
            _require_droppable(connection, columns, columns.previous)
        # From here on nobody can make a row pending: what is looked at below stays so.
        execute(operations, schema.guard(dialect, columns))
        if connection is None:
            _check_contract_in_script(operations, columns, op)
        else:
            try:
                _check_contract(connection, columns, op)
            except BaseException as error:
                # After an error of its own PostgreSQL takes no statement, and undoes what was done.
                if isinstance(error, MigrationRefusedError) or dialect.name != "postgresql":
                    execute(operations, schema.unguard(dialect, columns))
                raise
        execute(operations, schema.untrack(dialect, columns))
        _drop_column(operations, columns, columns.previous)
        if connection is not None:
            _set_phase(connection, columns, op.name, Phase.CONTRACTED)

    after_batch(operations, run)


@Operations.implementation_for(ops.AddEncryptedColumnOp)
def _add(operations: Operations, op: ops.AddEncryptedColumnOp) -> None:
    def run(operations: Operations) -> None:
        dialect, column = operations.impl.dialect, op.column
        columns = checked(operations, op.table_name, column.name, op.schema)
        if dialect.name == "sqlite":
            # The one moment at which it takes a CHECK without building the table anew.
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
            _require_droppable(connection, columns, columns.encrypted, moving=False)
        _drop_column(operations, columns, columns.encrypted)

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
        with _rebuild(operations, columns) as batch:
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
        with _rebuild(operations, columns) as batch:
            batch.drop_constraint(conv(columns.check or ""), type_="check")
    elif dialect.name in ("postgresql", "mysql", "mariadb"):
        execute(operations, schema.drop_check(dialect, columns))


def checked(operations: Operations, table: str, column: str, schema_: str | None) -> Tracked:
    """An encrypted column alone, with the name of its CHECK."""
    name = name_of_check(operations, table, column, schema_)
    return Tracked(table, "", column, schema_, check=name)


def _refuse_foreign(connection: Connection, columns: Tracked) -> None:
    foreign = schema.count_foreign(connection, columns)
    if foreign:
        where = f"{columns.table}.{columns.encrypted}"
        raise MigrationRefusedError(
            f"{foreign} values of {where} are no ciphertext, and its CHECK would not hold. Plaintext is "
            "moved by op.encrypt_column() or `sqlalchemy-envelope migrate run`; anything else must go first. "
            "On PostgreSQL, validate=False adds the CHECK for new writes alone."
        )


def _require_droppable(connection: Connection, columns: Tracked, name: str, *, moving: bool = True) -> None:
    """Refuse a column that SQLite could only drop by building the table anew, where that loses something."""
    if not schema.is_droppable(connection, columns, name):
        why = f"SQLite drops {columns.table}.{name}, which has a CHECK, by building the table anew"
        require_rebuildable(connection, columns.table, columns.schema, why, moving=moving)


def _drop_column(operations: Operations, columns: Tracked, name: str) -> None:
    connection, dialect = online(operations), operations.impl.dialect
    if connection is None or schema.is_droppable(connection, columns, name):
        execute(operations, schema.drop_column(dialect, columns, name))
        return
    one = checked(operations, columns.table, name, columns.schema)
    with operations.batch_alter_table(columns.table, schema=columns.schema, recreate="always") as batch:
        batch.drop_constraint(conv(one.check or ""), type_="check")
        batch.drop_column(name)


def _rebuild(operations: Operations, columns: Tracked) -> Any:
    """SQLite's table built anew in a batch, where that loses nothing."""
    connection = online(operations)
    why = f"SQLite changes the CHECK of {columns.table}.{columns.encrypted} by building the table anew"
    if connection is None:
        raise MigrationRefusedError(f"{why}, which a SQL script cannot: run this without --sql.")
    require_rebuildable(connection, columns.table, columns.schema, why)
    return operations.batch_alter_table(columns.table, schema=columns.schema, recreate="always")


def require_rebuildable(
    connection: Connection, table: str, schema: str | None, why: str, *, moving: bool = False
) -> None:
    """Refuse to build SQLite's table anew where that would lose something.

    Args:
        moving: the triggers of the migration are to go in any case.

    Raises:
        MigrationRefusedError: foreign keys are enforced; or there are triggers, CHECKs that are not ours, or
            what SQLAlchemy does not reflect.
    """
    if connection.exec_driver_sql("PRAGMA foreign_keys").scalar():
        raise MigrationRefusedError(
            f"{why}. With foreign keys enforced, dropping the old table deletes all rows that refer to "
            "it, the keys of every owner among them. In env.py, right after connect(), write "
            "`connection.exec_driver_sql('PRAGMA foreign_keys=OFF'); connection.commit()`."
        )
    inspector = inspect(connection)
    query = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ?"
    triggers = [str(row[0]) for row in connection.exec_driver_sql(query, (table,))]
    lost = [one for one in triggers if not (moving and one.startswith("zz_envelope_"))]
    # Alembic carries a CHECK over that has a name. Of one that is not ours nobody knows what it says of the
    # values that change here.
    names = [one["name"] for one in inspector.get_columns(table, schema)]
    ours = {check_condition("sqlite", quoter(connection.dialect)(name)) for name in names}
    checks = inspector.get_check_constraints(table, schema)
    lost += [str(one["name"]) for one in checks if one["name"] is None or one["sqltext"] not in ours]
    lost += _not_reflected(connection, table, schema)
    if lost:
        raise MigrationRefusedError(
            f"{why}, and the new table would be without what Alembic does not carry over, or may not: "
            f"{', '.join(lost)}. Drop triggers, CHECK constraints and indexes before, and make them again "
            "after; what belongs to the table or its columns needs a batch of your own, which says it again."
        )


_QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/", re.DOTALL)
_UNSEEN = re.compile(r"\b(AUTOINCREMENT|COLLATE\s+\w+|ON\s+CONFLICT\s+\w+)", re.IGNORECASE)


def _not_reflected(connection: Connection, table: str, schema: str | None) -> Iterator[str]:
    """What a table of SQLite has that SQLAlchemy does not see when it reflects the table."""
    quote = connection.dialect.identifier_preparer.quote
    of_schema = f"{quote(schema)}." if schema else ""

    def ask(pragma: str, name: str) -> Any:
        return connection.exec_driver_sql(f"PRAGMA {of_schema}{pragma}({quote(name)})").all()

    query = f"SELECT sql FROM {of_schema}sqlite_master WHERE type = 'table' AND name = ?"  # noqa: S608 - quoted
    created = _QUOTED.sub("''", str(connection.exec_driver_sql(query, (table,)).scalar_one()))
    yield from _UNSEEN.findall(created)
    for _, name, _, origin, *_ in ask("index_list", table):
        keys = [part for part in ask("index_xinfo", name) if part.key]
        if origin == "c" and any(one.cid < 0 or one.desc or one.coll != "BINARY" for one in keys):
            yield f"the index {name}"
    # It sees the actions of a foreign key that stands by itself, and none of one within its column.
    reflected = inspect(connection).get_foreign_keys(table, schema)
    seen = {column: one.get("options", {}) for one in reflected for column in one["constrained_columns"]}
    for one in ask("foreign_key_list", table):
        for when, does in (("DELETE", one.on_delete), ("UPDATE", one.on_update)):
            if does != "NO ACTION" and f"on{when.lower()}" not in seen.get(one[3], {}):
                yield f"ON {when} {does} of {one[3]}"


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
            _set_phase(connection, columns, op.name, Phase.CUT_OVER)

    after_batch(operations, run)


# ---------------------------------------------------------------------- shared with the operations on values


def online(operations: Operations) -> Connection | None:
    """The connection; None where SQL is only written."""
    return None if operations.migration_context.as_sql else operations.get_bind()


def execute(operations: Operations, statements: Sequence[str]) -> None:
    """Run statements, or write them to the script."""
    for statement in statements:
        operations.execute(text(statement.replace(":", "\\:")))


def after_batch(operations: Operations, run: Callable[[Operations], None]) -> None:
    """Run it now, or at the end of the batch: where a table is built anew, its triggers go."""
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
    """Let nobody else write to the table until the end of the transaction, where a database can."""
    if connection.dialect.name == "postgresql":
        name = connection.dialect.identifier_preparer.format_table(bare_table(table, schema=schema))
        connection.exec_driver_sql(f"LOCK TABLE {name} IN SHARE ROW EXCLUSIVE MODE")
    elif connection.dialect.name == "sqlite":
        # Its driver begins a transaction with the first statement that writes, if only in name.
        keys = inspect(connection).get_columns(table, schema)
        name = keys[0]["name"]
        rows = bare_table(table, bare_column(name), schema=schema)
        connection.execute(update(rows).where(text("0 = 1")).values({name: rows.c[name]}))


def refuse_indexes(connection: Connection, table: str, column: str, schema: str | None) -> None:
    """An index on a column that goes: to be dropped first, where a downgrade can make it again.

    Raises:
        MigrationRefusedError: there is one.
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
    """What the models call the CHECK of a column, by the naming convention of `target_metadata`."""
    known: Any = operations.migration_context.opts.get("target_metadata")
    of_models = known if isinstance(known, (list, tuple)) else [known]
    name = f"{schema}.{table}" if schema else table
    own = [one for one in of_models if name in getattr(one, "tables", ())] or of_models
    return check_name(table, column, getattr(own[0], "naming_convention", None))


# ---------------------------------------------------------------------- checks

_ALONE = (
    "rows of {table} have nothing but their encrypted value, and would lose it: move the values back with "
    "`sqlalchemy-envelope migrate reverse` before."
)
_PENDING = (
    "rows of {table} have a value in {previous} alone, and would lose it: `sqlalchemy-envelope migrate run` "
    "and `migrate verify` before."
)
_UNVERIFIED = (
    "{table}.{previous} was not verified and cut over, or not to the end: `sqlalchemy-envelope migrate "
    "verify` and `migrate cutover` before, or unverified=True."
)


def _names(columns: Tracked) -> dict[str, str]:
    return {"table": columns.table, "previous": columns.previous}


def _count(connection: Connection, columns: Tracked, there: str, not_there: str) -> int:
    """How many rows have the one column and not the other."""
    names = {"previous": columns.previous, "encrypted": columns.encrypted}
    one: ColumnClause[Any] = bare_column(names[there])
    other: ColumnClause[Any] = bare_column(names[not_there])
    rows = bare_table(columns.table, one, other, schema=columns.schema)
    query = select(func.count()).select_from(rows).where(one.is_not(None), other.is_(None))
    return int(connection.execute(query).scalar_one())


def _check_contract(connection: Connection, columns: Tracked, op: ops.ContractOp) -> None:
    pending = _count(connection, columns, "previous", "encrypted")
    if pending:
        raise MigrationRefusedError(f"{pending} {_PENDING.format(**_names(columns))}")
    if op.unverified:
        return
    name = _state_name(connection, columns, op.name)
    state = MigrationState.__table__.c
    query = select(
        state.phase, state.verified_at, state.verified_sample, state.mismatches, state.locked
    ).where(state.name == name)
    found = connection.execute(query).first() if name is not None else None
    clean = found is not None and found.verified_at is not None and not found.mismatches
    if found is None or not clean or found.phase not in (Phase.CUT_OVER, Phase.GUARDED):
        raise MigrationRefusedError(_UNVERIFIED.format(**_names(columns)) + _other_names(connection, columns))
    if found.verified_sample is not None or found.locked:
        raise MigrationRefusedError(
            f"Of {name} a sample was verified, or its owners hold the keys of some values alone "
            f"({found.locked or 0}). If that is as it should be, write unverified=True."
        )


def _names_in_state(columns: Tracked, name: str | None = None) -> list[str]:
    if name is not None:
        return [name]
    return [f"{columns.table}.{columns.previous}", f"{columns.table}.{columns.encrypted}"]


def _has_state(connection: Connection) -> bool:
    return inspect(connection).has_table(MigrationState.__tablename__)


def _state_name(connection: Connection, columns: Tracked, name: str | None) -> str | None:
    """What the migration is called in the state table: after the attribute, which mostly has the previous
    column's name."""
    if not _has_state(connection):
        return None
    known = MigrationState.__table__.c.name
    for one in _names_in_state(columns, name):
        if connection.execute(select(known).where(known == one)).first() is not None:
            return one
    return None


def _other_names(connection: Connection, columns: Tracked) -> str:
    if not _has_state(connection) or _state_name(connection, columns, None) is not None:
        return ""
    known = MigrationState.__table__.c.name
    query = select(known).where(known.startswith(f"{columns.table}.", autoescape=True)).order_by(known)
    names = ", ".join(repr(row[0]) for row in connection.execute(query))
    return f" If it is one of {names}, say so: name=..." if names else ""


def _set_phase(connection: Connection, columns: Tracked, name: str | None, phase: Phase) -> None:
    found = _state_name(connection, columns, name)
    if found is not None:
        table: Any = MigrationState.__table__
        connection.execute(update(table).where(table.c.name == found).values(phase=phase.value))


def _forget(connection: Connection, columns: Tracked) -> None:
    """The next migration of this column begins anew."""
    name = _state_name(connection, columns, None)
    if name is None:
        return
    for model in (MigrationState, JobState, RangeState):
        table: Any = model.__table__
        if inspect(connection).has_table(table.name):
            connection.execute(delete(table).where(table.c.name == name))


def _check_contract_in_script(operations: Operations, columns: Tracked, op: ops.ContractOp) -> None:
    if operations.impl.dialect.name != "postgresql" and not op.unverified:
        raise MigrationRefusedError(
            f"Whether all of {columns.table}.{columns.previous} is encrypted can only be checked with a "
            "connection; a script for this database needs unverified=True, and is to be run after the check."
        )
    _check_in_script(operations, columns, "previous", "encrypted", _PENDING)
    if op.unverified:
        return
    quoted = ", ".join(_literal(one) for one in _names_in_state(columns, op.name))
    phases = ", ".join(_literal(one.value) for one in (Phase.CUT_OVER, Phase.GUARDED))
    clean = (
        f"SELECT 1 FROM {MigrationState.__tablename__} WHERE name IN ({quoted}) AND "  # noqa: S608 - quoted
        f"phase IN ({phases}) AND verified_at IS NOT NULL AND COALESCE(mismatches, 0) = 0 AND "
        "verified_sample IS NULL AND COALESCE(locked, 0) = 0"
    )
    text_ = _UNVERIFIED.format(**_names(columns))
    execute(operations, [_raise_if(f"NOT EXISTS ({clean})", text_)])


def _check_in_script(operations: Operations, columns: Tracked, there: str, not_there: str, why: str) -> None:
    """The check as part of the script, on PostgreSQL; elsewhere a comment says that it was not made."""
    names = {"previous": columns.previous, "encrypted": columns.encrypted}
    dialect = operations.impl.dialect
    quote = dialect.identifier_preparer.quote
    table = f"{quote(columns.schema)}.{quote(columns.table)}" if columns.schema else quote(columns.table)
    rows = (
        f"SELECT 1 FROM {table} WHERE {quote(names[there])} IS NOT NULL "  # noqa: S608 - names, quoted
        f"AND {quote(names[not_there])} IS NULL"
    )
    reason = why.format(**_names(columns))
    if dialect.name == "postgresql":
        execute(operations, [_raise_if(f"EXISTS ({rows})", f"Some {reason}")])
    elif not_there == "previous":
        raise MigrationRefusedError(
            f"Whether {columns.table}.{columns.encrypted} can go can only be checked with a connection: "
            "run this downgrade without --sql."
        )
    else:
        impl: Any = operations.impl
        impl.static_output(f"-- Not checked: this must find no row: {rows}\n")


def _raise_if(condition: str, text_: str) -> str:
    return (
        f"DO $$ BEGIN IF {condition} THEN RAISE EXCEPTION USING MESSAGE = {_literal(text_)}; END IF; END $$"
    )


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
