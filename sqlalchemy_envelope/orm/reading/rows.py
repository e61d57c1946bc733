"""The one place of reading: a result's rows are opened as they come from the driver.

Here a row is whole. The statement's plan says where its encrypted values are, and beside them its owner and
primary key; each value is opened for that owner and that row, whether one owner is unlocked, several, or a
server fetches keys as they are needed. What was opened is handed on in a cell, which the result processor of
its column takes it out of: bytes that came by another way are never taken for a value.

A value that cannot be opened is handed on as a `Sealed`, which tells why where it is used. So no row is lost
for a value that nobody looks at.
"""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from itertools import islice
from types import CellType
from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.crypto.aead import HEADER_SIZE, MAX_STORED_SIZE, check_value, row_tail
from sqlalchemy_envelope.crypto.context import encode_reference
from sqlalchemy_envelope.crypto.frames import emptying
from sqlalchemy_envelope.exceptions import ConfigurationError, DecryptionError, FormatError
from sqlalchemy_envelope.orm.columns.sealed import Sealed
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.reading.opener import LOCKED, open_stored
from sqlalchemy_envelope.orm.reading.row_owners import RowOwners
from sqlalchemy_envelope.orm.reading.statement_plan import plan_of_statement
from sqlalchemy_envelope.orm.tables.connections import lent_session, session_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection

    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.orm.reading.statement_plan import PlannedRow, PlannedValue, StatementPlan
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass

_HEADER, _NONCE, _BODY = slice(HEADER_SIZE), slice(HEADER_SIZE, 29), slice(29, None)
_BYTES = (bytes, bytearray, memoryview)
_COLUMN_TAIL = row_tail(b"")
_INT_TAILS = [(5 + size).to_bytes(4, "big") + b"i" + size.to_bytes(4, "big") for size in range(24)]
_CHUNK = 256
"""Rows that are opened at a time: what they take fits into the processor's cache."""
_FEW = 8
"""So few rows are opened value by value: a column's tight loop would cost more than it saves."""
_NO_OWNER = (
    "its row came without its owner, so that nobody can tell whether it was moved there. Select the row's "
    "owner beside it, or the entity"
)
_NO_KEY = "it is bound to its row, which came without its primary key. Select that beside it, or the entity"


def after_cursor_execute(
    connection: Any, cursor: Any, statement: str, parameters: object, execution: Any, executemany: bool
) -> None:
    """Put the place of reading between the driver's cursor and SQLAlchemy, if the rows have encrypted
    values."""
    if execution.compiled is None:
        return
    plan = plan_of_statement(execution, cursor.description or ())
    if not plan:
        return
    if executemany:
        _read_batches(connection, cursor, execution, plan)
    elif execution.cursor is cursor:
        opening = _Opening(connection, cursor, execution, plan)
        opened = OpeningCursor(cursor, opening.open)
        out_of_reach = opening.fetches_keys() and _is_read_out_of_reach(connection, cursor)
        execution.cursor = _FetchedCursor(cursor, opened.fetchall()) if out_of_reach else opened


def _is_read_out_of_reach(connection: Connection, cursor: Any) -> bool:
    """Whether rows are read where no key can be fetched: an `AsyncConnection` hands on what the driver has
    buffered, and its reader cannot wait for the database. An `AsyncSession` reads by itself."""
    return (
        connection.dialect.is_async
        and cursor.description is not None
        and not getattr(cursor, "server_side", False)
    )


def _read_batches(connection: Any, cursor: Any, execution: Any, plan: StatementPlan) -> None:
    """The rows of `INSERT .. RETURNING` for many rows are fetched batch by batch, past the execution's
    cursor."""
    if "fetchall_for_returning" in vars(execution):
        return
    opening = _Opening(connection, cursor, execution, plan)
    fetch = execution.fetchall_for_returning

    def fetchall_for_returning(of: Any) -> Any:
        return opening.open(fetch(of))

    execution.fetchall_for_returning = fetchall_for_returning


class OpeningCursor:
    """A driver's cursor whose rows are opened as they are fetched."""

    __slots__ = ("_cursor", "_open")

    def __init__(self, cursor: Any, open_: Callable[[Sequence[Any]], Sequence[Any]]) -> None:
        self._cursor = cursor
        self._open = open_

    def fetchone(self) -> Any:
        """One row, or None."""
        row = self._cursor.fetchone()
        return None if row is None else self._open([row])[0]

    def fetchmany(self, *size: int) -> Any:
        """Some rows."""
        return self._open(self._cursor.fetchmany(*size))

    def fetchall(self) -> Any:
        """All rows that are left."""
        return self._open(self._cursor.fetchall())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)


class _Opening:
    """Opens the rows of one result."""

    def __init__(self, connection: Any, cursor: Any, execution: Any, plan: StatementPlan) -> None:
        self._session = session_of(connection)
        self._connection = execution.root_connection
        self._plan = plan
        self._dialect = execution.dialect
        self._described = cursor.description or ()
        self._names = RowOwners(self._session, execution.root_connection, execution.execution_options)
        self._processors: dict[tuple[int, ...], list[Any]] = {}
        self._here: tuple[context.OpenKeys, ...] = ()
        self._owners: dict[tuple[int, Any], OwnerId | None] = {}

    def fetches_keys(self) -> bool:
        """Whether keys are fetched for a connection that belongs to no session."""
        return self._session is None and any(one.on_demand for one in context.unlocked_sessions(None))

    @emptying
    def open(self, rows: Sequence[Any]) -> Sequence[Any]:
        """The rows, with each encrypted value opened as far as it can be."""
        if not rows:
            return rows
        # Asked for each fetch: a result may be read when its unlocked session was left.
        self._here = context.unlocked_sessions(self._session)
        self._owners.clear()
        if self._here:
            self._demand(rows)
        if len(rows) <= _FEW:
            return [self._row(row) for row in rows]
        if len(rows) <= _CHUNK:
            return self._chunk(rows)
        opened: list[Any] = []
        for start in range(0, len(rows), _CHUNK):
            opened += self._chunk(rows[start : start + _CHUNK])
        return opened

    def _demand(self, rows: Sequence[Any]) -> None:
        """Have what these rows need fetched for all of them together: keys, and the rows that lead to an
        owner."""
        for row in self._plan:
            if row.path is not None and not row.path.is_direct:
                self._names.load(row.path, {self._values(row.owners, row.owner_types, one) for one in rows})
        demanding = [one for one in self._here if one.on_demand]
        if not demanding:
            return
        by_class: dict[OwnerClass, Counter[bytes]] = {}
        for row in self._plan:
            for value in row.values:
                counts = Counter(
                    bytes(one[value.position][_HEADER])
                    for one in rows
                    if isinstance(one[value.position], _BYTES)
                )
                for owner_class in value.owner_classes:
                    by_class.setdefault(owner_class, Counter()).update(counts)
        session = self._session
        with lent_session(self._connection) if session is None else nullcontext(session) as session:
            for owner_class, headers in by_class.items():
                for one in demanding:
                    one.prepare_read(session, owner_class, headers)

    def _row(self, found: Any) -> tuple[Any, ...]:
        """One of a few rows."""
        readers = self._here[0].readers if self._here else {}
        values = list(found)
        for row in self._plan:
            raw = where = tail = None
            if row.path is not None:
                raw = (
                    found[row.owners[0]] if len(row.owners) == 1 else tuple([found[at] for at in row.owners])
                )
                where = self._names.where(row.path.owner_class) if self._here else None
            if row.keys:
                (tail,) = self._tails(row, [(one,) for one in found])
            for value in row.values:
                stored = found[value.position]
                if stored is None:
                    continue
                end = tail if value.row_bound else _COLUMN_TAIL
                try:
                    open_, aad, owner, there = readers[value.slot][stored[_HEADER]]
                    if owner == raw and there == where and end and len(stored) <= MAX_STORED_SIZE:
                        plain = open_(stored[_NONCE], stored[_BODY], aad + end)
                        values[value.position] = CellType(value.decode(plain))
                        continue
                except Exception:  # noqa: BLE001, S110 - the first of its key, locked or wrong
                    pass
                values[value.position] = CellType(self._one(row, value, stored, raw, tail))
        return tuple(values)

    def _chunk(self, rows: Sequence[Any]) -> list[Any]:
        columns: list[Any] = list(zip(*rows, strict=True))
        for row in self._plan:
            owners = None if row.path is None else _cut(columns, row.owners, len(rows))
            tails = self._tails(row, columns) if row.keys else None
            for value in row.values:
                stored = columns[value.position]
                columns[value.position] = self._column(row, value, stored, owners, tails)
        return list(zip(*columns, strict=True))

    def _column(
        self,
        row: PlannedRow,
        value: PlannedValue,
        stored: Sequence[Any],
        owners: Sequence[Any] | None,
        tails: Sequence[bytes] | None,
    ) -> list[Any]:
        """One column of some rows. First as if all were of one owner and under one key, as they are most
        often; what is not falls to `_one`."""
        one_by_one = self._one

        def slowly(index: int, found: Any) -> Any:
            whose = None if owners is None else owners[index]
            return CellType(one_by_one(row, value, found, whose, None if tails is None else tails[index]))

        ready = self._ready(row, value, stored, owners, slowly) if owners and value.slot else None
        if ready is None or (value.row_bound and tails is None):
            return [None if found is None else slowly(at, found) for at, found in enumerate(stored)]
        header, open_, aad, owner = ready
        assert owners is not None  # noqa: S101 - without them nothing is ready
        ends = tails if value.row_bound and tails is not None else None
        try:
            if owners.count(owner) == len(owners) and max(map(_size, stored)) <= MAX_STORED_SIZE:
                return _all(stored, header, open_, aad, ends, value.decode)
        except Exception:  # noqa: BLE001, S110 - told for each by itself
            pass
        return self._mixed(value, stored, owners, ends or [_COLUMN_TAIL] * len(stored), slowly)

    def _mixed(
        self,
        value: PlannedValue,
        stored: Sequence[Any],
        owners: Sequence[Any],
        tails: Sequence[bytes],
        slowly: Callable[[int, Any], Any],
    ) -> list[Any]:
        """Values of several owners, or one among them that does not open."""
        readers = self._here[0].readers.get(value.slot, {})
        opened: list[Any] = []
        for index, found in enumerate(stored):
            if found is None:
                opened.append(None)
                continue
            try:
                open_, aad, owner, where = readers[found[_HEADER]]
                if owner == owners[index] and where == self._where and len(found) <= MAX_STORED_SIZE:
                    plain = open_(found[_NONCE], found[_BODY], aad + tails[index])
                    opened.append(CellType(value.decode(plain)))
                    continue
            except Exception:  # noqa: BLE001, S110 - the first of its key, locked or wrong
                pass
            opened.append(slowly(index, found))
        return opened

    def _ready(
        self,
        row: PlannedRow,
        value: PlannedValue,
        stored: Sequence[Any],
        owners: Sequence[Any],
        slowly: Callable[[int, Any], Any],
    ) -> tuple[bytes, Any, bytes, Any] | None:
        """Header, cipher, AAD and owner of the first value, once it was compared with its row."""
        if not self._here or row.path is None:
            return None
        self._where = self._names.where(row.path.owner_class)
        for index, found in enumerate(stored):
            if found is None:
                continue
            if not isinstance(found, _BYTES):
                return None
            header = bytes(found[_HEADER])
            for again in (False, True):
                entry = self._here[0].readers.get(value.slot, {}).get(header)
                if entry is not None and entry[2] == owners[index] and entry[3] == self._where:
                    return header, entry[0], entry[1], entry[2]
                if not again:
                    slowly(index, found)
            return None
        return None

    def _one(
        self,
        row: PlannedRow,
        value: PlannedValue,
        stored: Any,
        raw: Any,
        tail: bytes | None,
        *,
        asked: bool = False,
    ) -> Any:
        """Any one value: the first under its key, or one that is locked, moved or wrong."""
        form = value.formats[0]
        blob = bytes(stored) if isinstance(stored, _BYTES) else b""
        try:
            check_value(stored, form.field.label)  # told to whoever is locked, too
            if not self._here:
                return Sealed(blob, form)
            owner = None if row.path is None else self._owner(row, raw)
            if owner is None and not value.for_entity:
                owner = context.only_owner(self._here)
            if owner is None:
                return Sealed(blob, form, note=None if value.for_entity else _NO_OWNER)
            if value.row_bound and tail is None:
                return Sealed(blob, form, note=None if value.for_entity else _NO_KEY)
            opened = self._opened(value, stored, owner, b"" if tail is None else tail[4:])
        except (DecryptionError, FormatError) as error:
            if not asked and self._was_stale(row, raw):
                return self._one(row, value, stored, raw, tail, asked=True)
            return Sealed(blob, form).unreadable(error)
        except ConfigurationError:
            return Sealed(blob, form)  # of a type that is in no table
        if opened is LOCKED:
            return Sealed(blob, form)
        if value.slot is not None and row.path is not None:
            self._remember(row, value, blob, raw)
        return opened

    def _was_stale(self, row: PlannedRow, raw: Any) -> bool:
        """Whether the owner was told by an object that another transaction has changed since."""
        if row.path is None or row.path.is_direct:
            return False
        values = raw if len(row.owners) != 1 else (raw,)
        if not self._names.ask_again(row.path, self._processed(row.owners, row.owner_types, values)):
            return False
        self._owners.pop((id(row), raw), None)
        return True

    def _opened(self, value: PlannedValue, stored: Any, owner: Any, reference: bytes) -> Any:
        failed: DecryptionError | FormatError | None = None
        for form in value.formats:
            try:
                return open_stored(self._session, form, stored, owner, reference)
            except (DecryptionError, FormatError) as error:
                failed = failed or error
        assert failed is not None  # noqa: S101 - there is a format
        raise failed

    def _remember(self, row: PlannedRow, value: PlannedValue, blob: bytes, raw: Any) -> None:
        """Keep what opens the next one of this owner under this key."""
        assert row.path is not None  # noqa: S101 - it was compared
        field, header = value.formats[0].field, blob[:HEADER_SIZE]
        cipher = context.find_reader(self._session, header, field)
        if cipher is not None and raw is not None:
            where = self._names.where(row.path.owner_class)
            self._here[0].remember(value.slot, header, cipher, (cipher.open, cipher.row_aad, raw, where))

    def _owner(self, row: PlannedRow, raw: Any) -> OwnerId | None:
        assert row.path is not None  # noqa: S101 - asked before
        known = (id(row), raw)
        if known not in self._owners:
            values = raw if len(row.owners) != 1 else (raw,)
            self._owners[known] = self._names.of(
                row.path, self._processed(row.owners, row.owner_types, values)
            )
        return self._owners[known]

    def _values(self, positions: tuple[int, ...], types: tuple[Any, ...], row: Any) -> tuple[Any, ...]:
        return self._processed(positions, types, [row[one] for one in positions])

    def _processed(
        self, positions: tuple[int, ...], types: tuple[Any, ...], values: Sequence[Any]
    ) -> tuple[Any, ...]:
        """What the driver gave, as the application has it."""
        processors = self._processors.get(positions)
        if processors is None:
            processors = self._processors[positions] = [
                type_.dialect_impl(self._dialect).result_processor(self._dialect, self._described[at][1])
                for at, type_ in zip(positions, types, strict=True)
            ]
        return tuple(
            value if process is None or value is None else process(value)
            for value, process in zip(values, processors, strict=True)
        )

    def _tails(self, row: PlannedRow, columns: Sequence[Any]) -> list[bytes]:
        """The end of each row's AAD, which says which row it is."""
        if len(row.keys) == 1:
            values = columns[row.keys[0]]
            if set(map(type, values)) == {int}:
                return [_INT_TAILS[len(digits)] + digits for digits in [b"%d" % one for one in values]]
        cut = zip(*[columns[one] for one in row.keys], strict=True)
        keys = [self._processed(row.keys, row.key_types, one) for one in cut]
        return [_COLUMN_TAIL if None in key else row_tail(encode_reference(key)) for key in keys]


def _all(
    stored: Sequence[Any],
    header: bytes,
    open_: Callable[[bytes, bytes, bytes], bytes],
    aad: bytes,
    tails: Sequence[bytes] | None,
    decode: Callable[[bytes], Any],
) -> list[Any]:
    """Values of one owner under one key. The hot path of every load.

    Raises:
        Exception: of any kind; one of them is of another key, or does not open.
    """
    if None in stored:
        ends = [_COLUMN_TAIL] * len(stored) if tails is None else tails
        return [
            None
            if one is None
            else CellType(
                decode(open_(one[_NONCE], one[_BODY], aad + end if one[_HEADER] == header else b""))
            )
            for one, end in zip(stored, ends, strict=True)
        ]
    if tails is None:
        aad += _COLUMN_TAIL
        plain = [open_(one[_NONCE], one[_BODY], aad if one[_HEADER] == header else b"") for one in stored]
    else:
        plain = [
            open_(one[_NONCE], one[_BODY], aad + end if one[_HEADER] == header else b"")
            for one, end in zip(stored, tails, strict=True)
        ]
    return list(map(CellType, map(decode, plain)))


def _size(stored: Any) -> int:
    return 0 if stored is None else len(stored)


def _cut(columns: Sequence[Any], positions: tuple[int, ...], count: int) -> Sequence[Any]:
    if len(positions) == 1:
        found: Sequence[Any] = columns[positions[0]]
        return found
    return list(zip(*[columns[one] for one in positions], strict=True)) or [()] * count


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
