"""The values that an index over several attributes is made of and a flush leaves as they are.

They are read from the row itself, in the flush's transaction, and the row is locked: what an object holds in
memory may be older than its row, and others may change the row until the transaction ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import false, select, update
from sqlalchemy.orm.exc import StaleDataError

from sqlalchemy_envelope.orm.columns.plans import key_in_base
from sqlalchemy_envelope.orm.tables.owner_paths import among
from sqlalchemy_envelope.orm.tables.raw_tables import raw_table
from sqlalchemy_envelope.orm.tables.records import records_of_table
from sqlalchemy_envelope.orm.tables.rows import chunks
from sqlalchemy_envelope.orm.writing.marks import mark

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Column, Connection, Table

    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn

    Key = tuple[Any, ...]
    Parts = Mapping[Column[Any], Any]


_LOCK = "takes the write lock"


class UnwrittenParts:
    """The parts of indexes that a flush reads on one connection: with one query for all rows of a table."""

    __slots__ = ("_found", "_indexes", "_wanted")

    def __init__(self) -> None:
        self._indexes: dict[Table, dict[IndexedColumn, None]] = {}
        self._wanted: dict[Table, set[Key]] = {}
        self._found: dict[tuple[Table, Key], Parts] = {}

    def wanted(self, index: IndexedColumn, key: Key) -> None:
        """Note a row, by primary key: the flush changes parts of this index there."""
        table = index.column.table
        self._indexes.setdefault(table, {})[index] = None
        self._wanted.setdefault(table, set()).add(key)

    def forget(self, table: Table) -> None:
        """Read the parts of a table again: a listener of the flush wrote some by a statement of its own."""
        self._found = {at: parts for at, parts in self._found.items() if at[0] is not table}

    def of(self, connection: Connection, index: IndexedColumn, key: Key) -> Parts:
        """All parts of an index, as the row of this primary key has them: a value, or what is sealed.

        Raises:
            StaleDataError: the row is gone.
        """
        table = index.column.table
        at = table, key
        found = self._found.get(at, {})
        if any(one.column not in found for one in index.sources):
            self.wanted(index, key)
            keys = sorted(self._wanted.pop(table), key=repr)
            _lock_database(connection, table)
            for some in chunks(keys):
                self._read(connection, table, some)
        try:
            return self._found[at]
        except KeyError:
            raise StaleDataError(
                f"UPDATE statement on table {table.name!r}: a row that a flush changes is gone."
            ) from None

    def _read(self, connection: Connection, table: Table, keys: Sequence[Key]) -> None:
        own = tuple(table.primary_key.columns)
        parts = [source for index in self._indexes[table] for source in index.sources]
        columns = list(dict.fromkeys(one.column for one in parts))
        paths = {one.path.identity: one.path for one in parts}.values()
        owners = {column: None for path in paths for column in path.columns}
        query: Any = select(*own, *columns, *(one for one in owners if one not in {*own, *columns}))
        query = query.where(among(own, keys))
        for path in paths:
            base = key_in_base(table, path)
            if base and base[0].table is not table:  # of a joined subclass: another table names the owner
                query = query.where(*(mine == its for mine, its in zip(own, base, strict=True)))
        # In the order of the keys, and as an UPDATE locks that leaves the key alone.
        query = query.order_by(*own).with_for_update(of=table, key_share=True)
        for row in connection.execute(query):
            values = row[len(own) : len(own) + len(columns)]
            self._found[table, tuple(row[: len(own)])] = dict(zip(columns, values, strict=True))


def _lock_database(connection: Connection, table: Table) -> None:
    """Take the write lock of SQLite, which has no other: an UPDATE takes it, also one of no row."""
    if connection.dialect.name != "sqlite":
        return
    records = records_of_table(table)
    if _LOCK not in records:
        raw = raw_table(table, [], table.primary_key.columns)
        key = next(iter(raw.c))
        records[_LOCK] = mark(update(raw).where(false()).values({key: key}))
    connection.execute(records[_LOCK])
