"""The cost of a migration on this database: the owners that get keys first, and the speed of writing.

The speed is measured, because it depends on the machine, indexes, triggers and other load. The measurement
writes some rows unchanged, in a transaction that is rolled back. No value leaves the database.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, exists, func, select, tuple_, update
from sqlalchemy.exc import DBAPIError

from sqlalchemy_envelope.migration.database.rows import Rows
from sqlalchemy_envelope.migration.database.schema import change_on, missing_key_tables
from sqlalchemy_envelope.migration.inspection.findings import Finding, speed
from sqlalchemy_envelope.words import counted

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from sqlalchemy_envelope.migration.database.columns import MigratingColumn

SAMPLE = 500
"""Rows that are written to measure the speed, about as many as in a chunk."""
_FEWEST = 100


def find_owners_without_keys(
    connection: Connection, column: MigratingColumn, provider: str | None
) -> list[Finding]:
    """Count the owners of pending rows that have no keys; nothing while the key tables are missing."""
    if missing_key_tables(connection, column):
        return []
    count = _owners_without_keys(connection, column)
    if not count:
        return []
    name = ", ".join(sorted(one.name for one in column.path.owner_classes))
    owners = counted(count, "owner of these rows has no keys", "owners of these rows have no keys")
    if provider is not None:
        message = (
            f"{owners}. `run` makes keys under the provider {provider!r} before it encrypts the rows. The "
            "keys of an owner take longer than a row."
        )
        return [Finding("owners-without-keys", "note", name, message, count)]
    message = (
        f"{owners}, and this migrator has no provider to make some: their rows stay pending, and `cutover` "
        "refuses. Enroll them, start a campaign, or write `Migrator(..., provider=...)`."
    )
    return [Finding("owners-without-keys", "stops", name, message, count)]


def _owners_without_keys(connection: Connection, column: MigratingColumn) -> int:
    path = column.path
    if not path.is_direct or not path.columns or len(path.owner_classes) > 1:
        # Rows that lead to their owners through other rows: count every owner of these classes.
        return sum(_all_without_keys(connection, one) for one in path.owner_classes)
    there = [one.is_not(None) for one in path.columns]
    query = (
        select(*path.columns)
        .select_from(column.mapper.persist_selectable)
        .where(column.from_column.is_not(None), *there, ~_has_keys(path.owner_class, path.columns))
        .distinct()
    )
    return _counted(connection, query)


def _all_without_keys(connection: Connection, owner_class: Any) -> int:
    query = select(*owner_class.primary_key).where(~_has_keys(owner_class, owner_class.primary_key))
    return _counted(connection, query)


def _has_keys(owner_class: Any, key: Any) -> Any:
    keys = owner_class.key_class.__table__.alias("envelope_keys")
    mine = zip(owner_class.owner_columns, key, strict=True)
    return exists(select(1).select_from(keys).where(and_(*(keys.c[one.name] == part for one, part in mine))))


def _counted(connection: Connection, query: Any) -> int:
    return int(connection.execute(select(func.count()).select_from(query.subquery())).scalar_one())


def find_speed(engine: Engine, column: MigratingColumn, count: int | None) -> list[Finding]:
    """Measure how many rows a second this database writes; nothing without enough rows or the right to write.

    Args:
        count: the number of rows, if it is known.
    """
    try:
        with engine.connect() as connection:
            rate = _rows_a_second(connection, column)
    except DBAPIError:
        return []
    return [] if rate is None else [speed(column.table.name, rate, count)]


def _rows_a_second(connection: Connection, column: MigratingColumn) -> float | None:
    rows = Rows(column, connection.dialect)
    change_on(connection, [])  # so that its waits for locks are as short as a chunk's
    began = time.perf_counter()
    some = select(*rows.keys).where(rows.previous.is_not(None)).order_by(*rows.keys).limit(SAMPLE)
    if connection.dialect.name == "postgresql":
        some = some.with_for_update(skip_locked=True, key_share=True)
    found = [tuple(row) for row in connection.execute(some)]
    if len(found) < _FEWEST:
        return None
    key: Any = tuple_(*rows.keys)
    as_they_are = update(rows.table).where(key.in_(found)).values({rows.previous.name: rows.previous})
    connection.execute(as_they_are)
    seconds = time.perf_counter() - began
    connection.rollback()
    return len(found) / seconds
