"""Obstacles to replacing a column by ciphertext, looked up before anything is changed.

SQLAlchemy's inspector answers what it can; each database's catalog answers the rest. Rows are counted, never
read, and counting ends at a thousand. No value of the column is looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    String,
    and_,
    exists,
    func,
    inspect,
    literal,
    not_,
    or_,
    select,
)
from sqlalchemy.types import Float, LargeBinary, NullType, Numeric, TypeDecorator, _Binary

from sqlalchemy_envelope.migration.database.schema import missing_key_tables
from sqlalchemy_envelope.migration.inspection.findings import SEVERITIES, Finding, Severity, referenced_by
from sqlalchemy_envelope.migration.inspection.obstacles import mysql, postgresql, sqlite
from sqlalchemy_envelope.words import counted

if TYPE_CHECKING:
    from sqlalchemy import Column, Inspector
    from sqlalchemy.engine.interfaces import ReflectedColumn

    from sqlalchemy_envelope.migration.database.columns import MigratingColumn

__all__ = ["Finding", "Severity", "find_obstacles"]

COUNTED = 1_000
"""The most rows to count as an obstacle; a higher number would change nothing."""


def find_obstacles(connection: Connection, column: MigratingColumn) -> list[Finding]:
    """Find everything that will hurt when ciphertext replaces the previous column; the worst comes first.

    Raises:
        ConfigurationError: there is no previous column.
    """
    inspector = inspect(connection)
    table = column.table
    if not inspector.has_table(table.name, schema=table.schema):
        return [Finding("no-table", "stops", table.name, "The database has no such table.")]
    columns = {one["name"]: one for one in inspector.get_columns(table.name, schema=table.schema)}
    if column.from_column.name not in columns:
        missing = "The table has no such column: there is nothing to move. Is the migration done already?"
        return [Finding("no-previous-column", "stops", column.from_column.name, missing)]
    found = [
        *_columns(column, columns, connection.dialect.name),
        *_keys(column, inspector, columns),
        *_references(column, inspector),
        *_owners(connection, column, inspector, columns),
        *(_no_key_table(column, name) for name in missing_key_tables(connection, column)),
        *_of_the_database(connection, column, columns),
    ]
    worst: dict[tuple[str, str], Finding] = {}
    for one in sorted(found, key=lambda one: (SEVERITIES.index(one.severity), one.code, one.object)):
        worst.setdefault((one.code, one.object), one)
    return list(worst.values())


def _no_key_table(column: MigratingColumn, name: str) -> Finding:
    message = (
        f"This table for the keys of {column.path.owner_class.name} is missing. Create it before `run`, with "
        "an Alembic revision or `metadata.create_all()`."
    )
    return Finding("no-key-table", "stops", name, message)


def _of_the_database(
    connection: Connection, column: MigratingColumn, columns: dict[str, ReflectedColumn]
) -> list[Finding]:
    if connection.dialect.name == "postgresql":
        return postgresql.find(connection, column)
    if connection.dialect.name == "sqlite":
        return sqlite.find(connection, column, columns[column.from_column.name])
    if connection.dialect.name in ("mysql", "mariadb"):
        return mysql.find(connection, column)
    unknown = (
        f"Columns cannot be moved on {connection.dialect.name}: PostgreSQL, SQLite, MySQL and MariaDB can."
    )
    return [Finding("unknown-database", "stops", connection.dialect.name, unknown)]


def _columns(column: MigratingColumn, columns: dict[str, ReflectedColumn], dialect: str) -> list[Finding]:
    found = []
    name = column.from_column.name
    previous, encrypted = columns[name], columns.get(column.encrypted.name)
    if previous.get("computed") is not None:
        message = (
            "The database computes this column and it cannot be set to NULL. Encrypt what it is computed "
            "from."
        )
        found.append(Finding("previous-is-generated", "stops", name, message))
    elif previous.get("default") is not None:
        message = (
            "It has a server default: a row that is inserted without a value gets the default as plaintext, "
            "and from the policy 'refuse' on cannot be read. Drop it before the policy 'read' is deployed, "
            "and give the mapped attribute a Python-side `default=`."
        )
        found.append(Finding("server-default", "breaks", name, message))
    if not previous["nullable"]:
        found.append(_not_null(name, dialect))
    if encrypted is not None and not encrypted["nullable"]:
        message = "It is NOT NULL, and a row that is still to be encrypted has NULL in it. Make it nullable."
        found.append(Finding("encrypted-column-not-null", "stops", column.encrypted.name, message))
    if encrypted is not None and not isinstance(encrypted["type"], (LargeBinary, _Binary)):
        kind = f"{encrypted['type']!r} in the database"
        if dialect == "postgresql" and "BYTEA" in kind:
            return found
        message = f"It is {kind}; ciphertext needs a binary type."
        found.append(Finding("encrypted-column-type", "stops", column.encrypted.name, message))
    return found


def _not_null(name: str, dialect: str) -> Finding:
    if dialect == "sqlite":
        message = (
            "It is NOT NULL, and from the policy 'read' on it is left NULL. SQLite cannot change that in "
            "place: copy the table with Alembic's `batch_alter_table(...).alter_column(..., nullable=True)` "
            "before `cutover`."
        )
        return Finding("previous-not-null", "breaks", name, message)
    message = (
        "It is NOT NULL: until `cutover` makes it nullable, the policy has to be 'both' "
        "(`PreviousColumn(..., nullable=False)`)."
    )
    return Finding("previous-not-null", "note", name, message)


def _keys(
    column: MigratingColumn, inspector: Inspector, columns: dict[str, ReflectedColumn]
) -> list[Finding]:
    table = column.table
    names = inspector.get_pk_constraint(table.name, schema=table.schema)["constrained_columns"]
    if not names:
        message = (
            "The table has no primary key in the database. Rows are taken in its order and found again by "
            "it: add one first."
        )
        return [Finding("no-primary-key", "stops", table.name, message)]
    found = []
    if column.from_column.name in names:
        message = (
            "The column is part of the primary key, and a key can be neither NULL nor ciphertext. Give the "
            "table another key first."
        )
        found.append(Finding("primary-key-member", "stops", column.from_column.name, message))
    if set(names) != {key.name for key in column.keys}:
        mapped = ", ".join(key.name for key in column.keys)
        message = (
            f"The database's primary key is ({', '.join(names)}), the mapped one ({mapped}): rows are taken "
            "in the order of the mapped key, without an index and perhaps not one by one. Make them the "
            "same."
        )
        found.append(Finding("primary-key-differs", "stops", table.name, message))
    for name in names:
        type_ = columns[name]["type"]
        if isinstance(type_, NullType):
            message = (
                "SQLAlchemy does not know the type of this key: its values may not come back as they were."
            )
        elif isinstance(type_, Float) or (isinstance(type_, Numeric) and not type_.asdecimal):
            message = (
                "A key of floating-point numbers is not found again by its value. Add an exact key first."
            )
        else:
            continue
        found.append(Finding("primary-key-type", "stops", name, message))
    return found


def _references(column: MigratingColumn, inspector: Inspector) -> list[Finding]:
    table, name = column.table, column.from_column.name
    found = []
    for key in inspector.get_foreign_keys(table.name, schema=table.schema):
        if name in key["constrained_columns"]:
            message = (
                f"The column refers to {key['referred_table']}, and ciphertext cannot. Keep the reference in "
                "a column of its own, or check it in the application; drop the constraint before `contract`."
            )
            found.append(Finding("foreign-key", "breaks", str(key["name"] or name), message))
    here = table.schema or inspector.default_schema_name
    for other in inspector.get_table_names(schema=table.schema):
        for key in inspector.get_foreign_keys(other, schema=table.schema):
            at = (
                key["referred_schema"] or table.schema or inspector.default_schema_name,
                key["referred_table"],
            )
            if at == (here, table.name) and name in key["referred_columns"]:
                found.append(referenced_by(str(key["name"] or other), other))
    return found


def _owners(
    connection: Connection, column: MigratingColumn, inspector: Inspector, columns: dict[str, ReflectedColumn]
) -> list[Finding]:
    path = column.path
    if path.is_self or not path.is_direct:
        return []
    here = path.columns[0].table is column.table
    nullable = not here or any(columns.get(one.name, {"nullable": True})["nullable"] for one in path.columns)
    owner = path.owner_class.primary_key[0].table.alias("owner_of_row")
    keys = [owner.c[key.key] for key in path.owner_class.primary_key]
    same = and_(*(key == one for key, one in zip(keys, path.columns, strict=True)))
    absent = or_(*(one.is_(None) for one in path.columns))
    name = ", ".join(one.name for one in path.columns)
    found = []
    if nullable and (count := _count(connection, column, absent)):
        found.append(
            Finding("owner-missing", "stops", name, _OWNERLESS.format(count=_shown(count), what="NULL"))
        )
    if not (here and _enforced(connection, inspector, column)):
        unknown = and_(not_(absent), ~exists(select(literal(1)).select_from(owner).where(same)))
        if count := _count(connection, column, unknown):
            message = _OWNERLESS.format(count=_shown(count), what="a key that no owner has")
            found.append(Finding("owner-unknown", "stops", name, message))
    texts = [(key, one) for key, one in zip(keys, path.columns, strict=True) if _is_text(one)]
    if texts:
        differs = or_(*(_bytes(connection, key) != _bytes(connection, one) for key, one in texts))
        spelt = exists(select(literal(1)).select_from(owner).where(same, differs))
        if count := _count(connection, column, spelt):
            message = (
                f"In {_shown(count)} the owner's key is spelt another way than at the owner (capitals, "
                "accents, spaces at the end): the database's collation takes them for equal, and keys are "
                "kept for the one at the owner. Copy that spelling first."
            )
            found.append(Finding("owner-spelt-differently", "stops", name, message))
    return found


_OWNERLESS = (
    "{count} with a value in the previous column have {what} for their owner: nobody's key can encrypt "
    "them. Give them an owner or remove them; until then they stay pending, and `cutover` refuses."
)


def _count(connection: Connection, column: MigratingColumn, condition: ColumnElement[bool]) -> int:
    """Count the rows with a previous value for which the condition holds, up to a limit."""
    rows = (
        select(literal(1).label("one"))
        .select_from(column.mapper.persist_selectable)
        .where(column.from_column.is_not(None), condition)
        .limit(COUNTED)
    )
    return connection.scalar(select(func.count()).select_from(rows.subquery())) or 0


def _shown(count: int) -> str:
    if count >= COUNTED:
        return f"{COUNTED:,} rows or more"
    return counted(count, "row")


def _enforced(connection: Connection, inspector: Inspector, column: MigratingColumn) -> bool:
    """Whether the database enforces that the owner exists. SQLite does so only if each connection asks."""
    if connection.dialect.name == "sqlite":
        return False
    names = {one.name for one in column.path.columns}
    return any(
        names == set(key["constrained_columns"]) and not key.get("options", {}).get("not_valid")
        for key in inspector.get_foreign_keys(column.table.name, schema=column.table.schema)
    )


def _is_text(column: Column[Any]) -> bool:
    type_ = column.type.impl_instance if isinstance(column.type, TypeDecorator) else column.type
    return isinstance(type_, String)


def _bytes(connection: Connection, column: Any) -> Any:
    """The bytes of a text: no collation takes two different byte strings for equal."""
    if connection.dialect.name == "postgresql":
        return func.convert_to(column, "UTF8")
    return func.hex(column)
