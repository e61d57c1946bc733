"""Rebuild SQLite's tables for changes that SQLite cannot make in place, if the rebuild loses nothing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from sqlalchemy import inspect
from sqlalchemy.sql.elements import conv

from sqlalchemy_envelope.alembic.impl.shared import checked, execute, online
from sqlalchemy_envelope.exceptions import MigrationRefusedError
from sqlalchemy_envelope.migration.database import schema
from sqlalchemy_envelope.migration.database.triggers import quoter
from sqlalchemy_envelope.orm.columns.stored_value import check_condition

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alembic.operations import Operations
    from sqlalchemy import Connection

    from sqlalchemy_envelope.migration.database.triggers import Tracked


def require_droppable(connection: Connection, columns: Tracked, name: str, *, moving: bool = True) -> None:
    """Refuse to drop a column if SQLite has to rebuild the table for it and the rebuild loses something."""
    if not schema.is_droppable(connection, columns, name):
        why = f"SQLite drops {columns.table}.{name}, which has a CHECK, by building the table anew"
        require_rebuildable(connection, columns.table, columns.schema, why, moving=moving)


def drop_column(operations: Operations, columns: Tracked, name: str) -> None:
    connection, dialect = online(operations), operations.impl.dialect
    if connection is None or schema.is_droppable(connection, columns, name):
        execute(operations, schema.drop_column(dialect, columns, name))
        return
    one = checked(operations, columns.table, name, columns.schema)
    with operations.batch_alter_table(columns.table, schema=columns.schema, recreate="always") as batch:
        batch.drop_constraint(conv(one.check or ""), type_="check")
        batch.drop_column(name)


def rebuild(operations: Operations, columns: Tracked) -> Any:
    """A batch that rebuilds SQLite's table, if the rebuild loses nothing."""
    connection = online(operations)
    why = f"SQLite changes the CHECK of {columns.table}.{columns.encrypted} by building the table anew"
    if connection is None:
        raise MigrationRefusedError(f"{why}, which a SQL script cannot: run this without --sql.")
    require_rebuildable(connection, columns.table, columns.schema, why)
    return operations.batch_alter_table(columns.table, schema=columns.schema, recreate="always")


def require_rebuildable(
    connection: Connection, table: str, schema: str | None, why: str, *, moving: bool = False
) -> None:
    """Refuse to rebuild SQLite's table if the rebuild would lose something.

    Args:
        moving: the triggers of the migration are to be dropped in any case.

    Raises:
        MigrationRefusedError: foreign keys are enforced; or the table has triggers, CHECKs that are not ours,
            or parts that SQLAlchemy does not reflect.
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
    # Alembic keeps a CHECK that has a name. A CHECK that is not ours may have any condition on the values
    # that change here.
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
    """The parts of a table of SQLite that SQLAlchemy does not see when it reflects the table."""
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
    # SQLAlchemy sees the actions of a separate foreign key clause, but not those of a clause in a column.
    reflected = inspect(connection).get_foreign_keys(table, schema)
    seen = {column: one.get("options", {}) for one in reflected for column in one["constrained_columns"]}
    for one in ask("foreign_key_list", table):
        for when, does in (("DELETE", one.on_delete), ("UPDATE", one.on_update)):
            if does != "NO ACTION" and f"on{when.lower()}" not in seen.get(one[3], {}):
                yield f"ON {when} {does} of {one[3]}"
