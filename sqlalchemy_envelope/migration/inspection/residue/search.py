"""Plaintext of a column that remains, as far as the database tells, and what to do about each place.

A value that was set to NULL or dropped is gone from every query at once, and from the disc much later. This
module asks the catalogs. docs/explanation/plaintext-that-remains.md tells what was found in the bytes
themselves. The module counts rows and asks for sizes. It never reads a value, neither from the table nor
from statistics, which hold some values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Connection, Table, inspect

from sqlalchemy_envelope.migration.database.columns import MigratingColumn
from sqlalchemy_envelope.migration.inspection.residue import mysql, postgresql, sqlite
from sqlalchemy_envelope.migration.inspection.residue.places import Place, Residue
from sqlalchemy_envelope.words import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

_SEARCHES = {
    "postgresql": postgresql.find,
    "sqlite": sqlite.find,
    "mysql": mysql.find,
    "mariadb": mysql.find,
}
_COUNTED = 100_000
"""The most rows to count that still have a value."""


def where_plaintext_remains(
    connection: Connection, column: MigratingColumn | Table, previous: str | None = None
) -> list[Residue]:
    """Find every place where plaintext of a column's previous values lies or may lie.

    Args:
        column: the column; or its table, if no model declares the previous column any more.
        previous: with a table, the name of the previous column, as the migration has noted it.

    Raises:
        sqlalchemy.exc.NoSuchTableError: the database has no such table.
    """
    if isinstance(column, Table):
        table, name = column, previous
    else:
        table, name = column.table, None if column.previous is None else column.previous.name
    columns = inspect(connection).get_columns(table.name, schema=table.schema)
    if name not in {one["name"] for one in columns}:
        name = None
    place = Place(connection, table, name)
    search = _SEARCHES.get(connection.dialect.name)
    found = [_rows(place), *(search(place) if search is not None else ()), *_outside()]
    return [one for one in found if one is not None]


def _rows(place: Place) -> Residue:
    if place.name is None:
        return Residue("rows", "clean", "The column is dropped: no query gives its values.", "")
    count = place.one(
        f"SELECT count(*) FROM (SELECT 1 AS one FROM {place.sql_table} "  # noqa: S608 - quoted
        f"WHERE {place.sql_name} IS NOT NULL LIMIT {_COUNTED}) AS counted"
    )[0]
    if not count:
        return Residue("rows", "clean", f"{place.name} is NULL in every row.", "")
    shown = counted(count, "row") if count < _COUNTED else f"{_COUNTED:,} rows or more"
    return Residue(
        "rows",
        "holds plaintext",
        f"{shown} with a value in {place.name}.",
        "`sqlalchemy-envelope migrate cutover`, then `contract`.",
    )


def _outside() -> Iterator[Residue]:
    yield Residue(
        "backups",
        "unknown",
        "Every backup, snapshot and dump made before the contract holds the whole column.",
        "Make a new backup after the clean-up, then delete the older ones; until then your retention time is "
        "how long the plaintext lives.",
    )
    yield Residue(
        "freed blocks of the disc",
        "unknown",
        "Files that a database deletes or rewrites leave their bytes on the disc until they are overwritten.",
        "Encrypt the volume. To be sure at once: move the database to a new volume and discard the old one's "
        "key.",
    )
