"""Rows as the driver gives them, looked at before their values are opened.

A result processor sees one value and no row. While several owners are unlocked, each value's key is compared
with its row's owner here: somebody could put a value of one owner into a row of another, to be read, saved
and so encrypted for the wrong one. And keys that a server fetches when they are needed are fetched here, for
all rows at once.
"""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy import Column
from sqlalchemy.sql.compiler import SQLCompiler

from sqlalchemy_envelope.crypto.aead import HEADER_SIZE
from sqlalchemy_envelope.crypto.frames import emptying
from sqlalchemy_envelope.exceptions import DecryptionError
from sqlalchemy_envelope.orm.columns.encrypted_type import EncryptedType
from sqlalchemy_envelope.orm.columns.plans import encrypted_column_of
from sqlalchemy_envelope.orm.columns.sealed import Unplaced
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.tables.connections import lent_session, session_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.orm.columns.plans import EncryptedColumn
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass

_HEADER = slice(HEADER_SIZE)


class _FetchedColumn:
    """Where an encrypted column is in the rows of a statement, and where its row's owner is."""

    __slots__ = ("encrypted", "owners", "position", "types")

    def __init__(
        self, position: int, encrypted: EncryptedColumn, owners: tuple[int, ...], types: tuple[Any, ...]
    ) -> None:
        self.position = position
        self.encrypted = encrypted
        self.owners = owners
        self.types = types


_plans: WeakKeyDictionary[Any, tuple[_FetchedColumn, ...]] = WeakKeyDictionary()


def after_cursor_execute(
    connection: Any, cursor: Any, statement: str, parameters: object, execution: Any, executemany: bool
) -> None:
    """Put a look at the rows between the driver's cursor and SQLAlchemy, where it is needed."""
    session = session_of(connection)
    here = context.unlocked_sessions(session)
    if not here or all(one.only_class is not None for one in here):
        return
    compiled = execution.compiled
    if compiled is None:
        return
    plan = _plans.get(compiled)
    if plan is None:
        plan = _make_plan(compiled, cursor.description or ())
        if not isinstance(compiled, SQLCompiler) or compiled._ordered_columns:
            _plans[compiled] = plan
    if plan and execution.cursor is cursor:
        watched = WatchedCursor(cursor, _Watch(session, here, plan, execution, cursor).look)
        fetches = session is None and any(one.on_demand for one in here)
        if fetches and _is_read_out_of_reach(connection, cursor):
            watched.fetch()
        execution.cursor = watched


def _is_read_out_of_reach(connection: Connection, cursor: Any) -> bool:
    """Whether rows are read where no key can be fetched: an `AsyncConnection` hands on what the driver has
    buffered, and its reader cannot wait for the database. An `AsyncSession` reads by itself."""
    return (
        connection.dialect.is_async
        and cursor.description is not None
        and not getattr(cursor, "server_side", False)
    )


def _make_plan(compiled: Any, description: Sequence[Any] = ()) -> tuple[_FetchedColumn, ...]:
    if not isinstance(compiled, SQLCompiler):
        return ()
    entries: Sequence[Any] = compiled._result_columns
    if not compiled._ordered_columns:
        # SQL in text: its columns are known by the names that the database gives them.
        named = {entry.keyname: entry for entry in entries}
        entries = [named.get(one[0]) or named.get(one[0].rpartition(".")[2]) for one in description]
    found = []
    for position, entry in enumerate(entries):
        if entry is None or not isinstance(entry.type, EncryptedType):
            continue
        column = _column_in(entry)
        encrypted = None if column is None else encrypted_column_of(column)
        if encrypted is not None:
            owners = _owner_positions(column, encrypted, entries)
            types = tuple(entries[one].type for one in owners)
            found.append(_FetchedColumn(position, encrypted, owners, types))
    return tuple(found)


def _column_in(entry: Any) -> Any:
    return next((one for one in entry.objects if isinstance(one, Column)), None)


def _owner_positions(column: Any, encrypted: EncryptedColumn, entries: Sequence[Any]) -> tuple[int, ...]:
    """Where the owner's primary key is, in the same row of the same table or entity; empty if it is not."""
    positions = []
    for wanted in encrypted.path.columns:
        for position, entry in enumerate(entries):
            other = None if entry is None else _column_in(entry)
            if other is not None and wanted in other.base_columns and _same_row(column, other):
                positions.append(position)
                break
        else:
            return ()
    return tuple(positions)


def _same_row(one: Any, other: Any) -> bool:
    if one.table is other.table:
        return True
    entity = one._annotations.get("parententity")
    return entity is not None and entity is other._annotations.get("parententity")


class _Watch:
    """What is done with the rows of one result."""

    def __init__(
        self,
        session: Session | None,
        here: tuple[context.OpenKeys, ...],
        plan: tuple[_FetchedColumn, ...],
        execution: Any,
        cursor: Any,
    ) -> None:
        self._session = session
        self._connection = execution.root_connection
        self._names = Names(session, execution.root_connection, execution.execution_options)
        self._demanding = [one for one in here if one.on_demand]
        self._owners: dict[bytes, OwnerId | None] = {}
        self._columns = [(one, *self._reading(one, execution.dialect, cursor)) for one in plan]

    def _reading(
        self, column: _FetchedColumn, dialect: Any, cursor: Any
    ) -> tuple[dict[Any, OwnerId | None], Callable[[Any], OwnerId | None]]:
        path, names = column.encrypted.path, self._names
        described = cursor.description or ()
        processors = [
            type_.dialect_impl(dialect).result_processor(dialect, described[position][1])
            for position, type_ in zip(column.owners, column.types, strict=True)
        ]

        def owner_of(raw: Any) -> OwnerId | None:
            values = raw if len(processors) != 1 else (raw,)
            return names.of(
                path,
                [
                    value if process is None else process(value)
                    for value, process in zip(values, processors, strict=True)
                ],
            )

        return {}, owner_of

    def look(self, rows: Sequence[Any]) -> Sequence[Any]:
        """Fetch the keys of these rows, and compare each value's with its row's owner.

        Raises:
            DecryptionError: a value is under another owner's key.
        """
        context.WATCHED[0] = True
        if self._demanding:
            self._demand(rows)
        for column, seen, owner_of in self._columns:
            if column.encrypted.row_bound:
                continue  # opened and compared where the row is an object
            if column.owners or not column.encrypted.path.columns:
                self._compare(rows, column, seen, owner_of)
            else:
                position = column.position
                rows = [_unplaced(row, position) for row in rows]
        return rows

    def _demand(self, rows: Sequence[Any]) -> None:
        """Have the keys of all these rows fetched, those of one class of owners together."""
        by_class: dict[OwnerClass, dict[bytes, int]] = {}
        for column, _, _ in self._columns:
            position = column.position
            counts = Counter(bytes(row[position][_HEADER]) for row in _of_bytes(rows, position))
            for owner_class in column.encrypted.path.owner_classes:
                headers = by_class.setdefault(owner_class, {})
                for header, count in counts.items():
                    headers[header] = headers.get(header, 0) + count
        session = self._session
        with lent_session(self._connection) if session is None else nullcontext(session) as session:
            for owner_class, headers in by_class.items():
                for demanding in self._demanding:
                    demanding.prepare_read(session, owner_class, headers)
        self._owners.clear()

    def _compare(
        self,
        rows: Sequence[Any],
        column: _FetchedColumn,
        seen: dict[Any, OwnerId | None],
        owner_of: Callable[[Any], OwnerId | None],
    ) -> None:
        position, places, owners = column.position, column.owners, self._owners
        cut = itemgetter(*places) if places else lambda row: ()
        # Each key and owner once: rows are many, and few of them are of others than the row before.
        for header, raw in {(bytes(row[position][_HEADER]), cut(row)) for row in _of_bytes(rows, position)}:
            if header not in owners:
                owners[header] = context.owner_of(self._session, header)
            holder = owners[header]
            if holder is None:
                continue  # locked, or not ours: told where it is opened
            if raw not in seen:
                seen[raw] = owner_of(raw)
            owner = seen[raw]
            if owner is not None and owner != holder:
                raise DecryptionError(
                    f"A value of {column.encrypted.type.label!r} is under the key of another owner than its "
                    "row's: it was moved here."
                )


def _of_bytes(rows: Sequence[Any], position: int) -> list[Any]:
    """The rows that hold bytes there. SQLite holds anything anywhere: what is none of ours is told where it
    is opened."""
    return [row for row in rows if isinstance(row[position], (bytes, bytearray, memoryview))]


def _unplaced(row: Any, position: int) -> Any:
    value = row[position]
    if value is None:
        return row
    return (*row[:position], Unplaced(value), *row[position + 1 :])


class WatchedCursor:
    """A driver's cursor whose rows are looked at as they are fetched."""

    __slots__ = ("_cursor", "_look")

    def __init__(self, cursor: Any, look: Callable[[Sequence[Any]], Sequence[Any]]) -> None:
        self._cursor = cursor
        self._look = look

    def fetch(self) -> None:
        """Fetch all rows now, and look at them."""
        self._cursor = _FetchedCursor(self._cursor, self.fetchall())
        self._look = _seen

    def fetchone(self) -> Any:
        """One row, or None."""
        row = self._cursor.fetchone()
        return None if row is None else self._looked_at([row])[0]

    def fetchmany(self, *size: int) -> Any:
        """Some rows."""
        return self._looked_at(self._cursor.fetchmany(*size))

    def fetchall(self) -> Any:
        """All rows that are left."""
        return self._looked_at(self._cursor.fetchall())

    @emptying
    def _looked_at(self, rows: Sequence[Any]) -> Sequence[Any]:
        return self._look(rows) if rows else rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)


class _FetchedCursor:
    """A cursor whose rows are here already."""

    __slots__ = ("_cursor", "_rows")

    def __init__(self, cursor: Any, rows: Sequence[Any]) -> None:
        self._cursor = cursor
        self._rows = iter(rows)

    def fetchone(self) -> Any:
        return next(self._rows, None)

    def fetchmany(self, size: int | None = None) -> list[Any]:
        return list(islice(self._rows, self._cursor.arraysize if size is None else size))

    def fetchall(self) -> list[Any]:
        return list(self._rows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)


def _seen(rows: Sequence[Any]) -> Sequence[Any]:
    return rows
