"""The place of reading: it opens the encrypted values of a row while the row is whole.

This module is over 400 lines long, because each further object would have to be made for every result.

The statement's plan says where the encrypted values are, and where their owner and primary key are. Each
value is opened for that owner and that row, whether one owner is unlocked, several owners are, or a server
fetches keys as they are needed.

A value that cannot be opened is passed on as a `Sealed`, which gives the reason when the value is used. So no
row is lost for a value that nobody uses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from types import CellType
from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.crypto.aead import (
    HEADER_SIZE,
    MAX_STORED_SIZE,
    NO_ROW,
    any_too_large,
    check_value,
    row_tail,
    row_tails,
)
from sqlalchemy_envelope.crypto.context import encode_reference
from sqlalchemy_envelope.crypto.frames import emptying
from sqlalchemy_envelope.exceptions import ConfigurationError, DecryptionError, FormatError
from sqlalchemy_envelope.orm.columns.sealed import Sealed
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.reading import destroyed
from sqlalchemy_envelope.orm.reading.fetched_cursor import StreamedCursor
from sqlalchemy_envelope.orm.reading.opener import LOCKED, moved, open_stored
from sqlalchemy_envelope.orm.reading.row_owners import RowOwners
from sqlalchemy_envelope.orm.tables.connections import lent_session, session_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.orm.current.open_keys import OpenKeys
    from sqlalchemy_envelope.orm.reading.candidates import RowFilter
    from sqlalchemy_envelope.orm.reading.statement_plan import PlannedRow, PlannedValue, StatementPlan
    from sqlalchemy_envelope.orm.tables.owners import Location, OwnerClass

_HEADER, _NONCE, _BODY = slice(HEADER_SIZE), slice(HEADER_SIZE, 29), slice(29, None)
_BYTES = (bytes, bytearray, memoryview)
CHUNK = 256
"""The number of rows that are opened at a time: so few fit into the processor's cache."""
_NOTHING: Any = object()
_NO_READERS: Mapping[object, Mapping[bytes, Any]] = {}
_FEW = 8
"""Up to this many rows are opened value by value: a loop over columns would cost more than it saves."""
_NO_OWNER = (
    "its row came without its owner, so that nobody can tell whether it was moved there. Select the row's "
    "owner beside it, or the entity"
)
_NO_KEY = "it is bound to its row, which came without its primary key. Select that beside it, or the entity"


class RowOpener:
    """Opens the rows of one result.

    Attributes:
        plan: where the encrypted values are.
        filters: they drop rows of which a comparison is not true.
        bare: the positions of values that are passed on as they are. Every other value is passed on in a
            cell, and the result processor of its column takes the value out.
        fetched: the number of rows opened so far.
        met_sealed: whether any value could not be opened.
    """

    __slots__ = (
        "_asked",
        "_connection",
        "_cursor",
        "_execution",
        "_here",
        "_looked",
        "_owners",
        "_processors",
        "_row_owners",
        "_session",
        "_unasked",
        "bare",
        "fetched",
        "filters",
        "met_sealed",
        "plan",
    )  # fmt: skip

    def __init__(
        self,
        connection: Any,
        cursor: Any,
        execution: Any,
        plan: StatementPlan,
        filters: tuple[RowFilter, ...] = (),
    ) -> None:
        self.plan = plan
        self.filters = filters
        self.bare: frozenset[int] = frozenset()
        self.met_sealed = False
        self.fetched = 0
        self._session = session_of(connection)
        self._connection = execution.root_connection
        self._execution = execution
        self._cursor = cursor
        # Made on first use: most results have a row or two, of an owner who is known.
        self._row_owners: RowOwners | None = None
        self._processors: dict[tuple[int, ...], list[Any]] = {}
        self._owners: dict[tuple[int, Any], OwnerId | None] = {}

    @emptying
    def open_all(self) -> Sequence[Any]:
        """Return all remaining rows, opened.

        The rows are fetched and opened piece by piece, so that stored values are opened and freed while they
        are still in the processor's cache.
        """
        here = context.unlocked_sessions(self._session)
        rows = self._cursor.fetchmany(CHUNK)
        if len(rows) < CHUNK:
            return self._open(rows, here)
        if self._may_demand(here):
            return self._open([*rows, *self._cursor.fetchall()], here)
        opened: list[Any] = []
        while rows:
            opened += self._open(rows, here)
            rows = self._cursor.fetchmany(CHUNK)
        return opened

    def fetches_more(self) -> bool:
        """Tell whether keys or other rows may have to be fetched before the rows can be opened."""
        return self._may_demand(context.unlocked_sessions(self._session))

    @emptying
    def open(self, rows: Sequence[Any]) -> Sequence[Any]:
        """Return the rows with every encrypted value opened that can be opened."""
        # Looked up at each fetch: a result may be read after its unlocked session was left.
        return self._open(rows, context.unlocked_sessions(self._session))

    def _open(self, rows: Sequence[Any], here: tuple[OpenKeys, ...]) -> Sequence[Any]:
        opened = self._opened_rows(rows, here)
        for one in self.filters:
            opened = one.kept(opened, self.bare)
        return opened

    def _opened_rows(self, rows: Sequence[Any], here: tuple[OpenKeys, ...]) -> Sequence[Any]:
        count = len(rows)
        if not count:
            return rows
        self._here = here
        if self._owners:
            self._owners.clear()
        if here and self._demands(here):
            self._demand(rows)
        self.fetched += count
        if count <= _FEW:
            if self.fetched > _FEW:
                self.plan.gave_many = True
            return self._few(rows)
        self.plan.gave_many = True
        self._unasked = rows
        if count <= CHUNK:
            return self._chunk(rows)
        opened: list[Any] = []
        for start in range(0, count, CHUNK):
            opened += self._chunk(rows[start : start + CHUNK])
        return opened

    def _demands(self, here: tuple[OpenKeys, ...]) -> bool:
        """Tell whether something is fetched for all rows of a result together."""
        if not here:
            return False
        return self.plan.linked or here[0].on_demand or (len(here) > 1 and here[1].on_demand)

    def _may_demand(self, here: tuple[OpenKeys, ...]) -> bool:
        """Like `_demands`, and also true if a value's key may need further grants to be followed."""
        return self._demands(here) or any(one.follows for one in here)

    def _demand(self, rows: Sequence[Any]) -> None:
        """Fetch the keys, and the rows that lead to an owner, for all these rows together."""
        self._make_way()
        for row in self.plan.rows if self.plan.linked else ():
            if row.path is not None and not row.path.is_direct:
                self._names.load(row.path, {self._values(row.owners, row.owner_types, one) for one in rows})
        demanding = [one for one in self._here if one.on_demand or one.follows]
        if not demanding:
            return
        if any(row.path is None for row in self.plan.rows):
            # Rows that do not tell their owner open only if a single owner can be meant. So look for all
            # other owners first.
            for one in demanding:
                one.find_others(self._session)
        by_class = self._headers(rows)
        session = self._session
        with lent_session(self._connection) if session is None else nullcontext(session) as session:
            for owner_class, headers in by_class.items():
                for one in demanding:
                    one.prepare_read(session, owner_class, headers)

    def _ask(self) -> bool:
        """Follow the grants to the owners of these rows, for all rows of the fetch together.

        Called at the first locked value: most fetches need no grant.

        Returns:
            Whether any grants were followed.
        """
        rows = self._unasked
        if getattr(self, "_asked", None) is rows or not any(one.follows for one in self._here):
            return False
        self._asked = rows
        self._demand(rows)
        self._owners.clear()
        return True

    def _make_way(self) -> None:
        """Fetch the remaining rows of a streamed cursor, because another statement follows."""
        if type(self._cursor) is StreamedCursor:
            self._cursor.fetch_ahead()

    def _few(self, rows: Sequence[Any]) -> Sequence[Any]:
        """Open a few rows, most often of an owner whose keys have opened values before."""
        opened = [list(row) for row in rows]
        readers, bare = self._here[0].readers if self._here else _NO_READERS, self.bare
        for row in self.plan.rows:
            where = self._where(row)
            for found, values in zip(rows, opened, strict=True):
                raw = None if row.path is None else _cut_row(found, row.owners)
                tail = self._tails(row, [_cut_row(found, row.keys)])[0] if row.keys else None
                for value, at, slot, decode, row_bound in row.few:
                    stored = found[at]
                    try:
                        open_, aad, owner, there = readers[slot][stored[_HEADER]]
                        if owner != raw or there != where or len(stored) > MAX_STORED_SIZE:
                            raise ValueError
                        plain = decode(open_(stored[_NONCE], stored[_BODY], aad + tail if row_bound else aad))
                    except Exception:  # noqa: BLE001 - NULL, the first under its key, locked or wrong
                        self._unasked = rows
                        plain = self._one(row, value, stored, raw, tail)
                    values[at] = plain if bare and at in bare else CellType(plain)
        return list(map(tuple, opened))

    def _chunk(self, rows: Sequence[Any]) -> list[Any]:
        columns: list[Any] = list(zip(*rows, strict=True))
        for row in self.plan.rows:
            owners = [None] * len(rows) if row.path is None else _cut(columns, row.owners, len(rows))
            tails = self._tails(row, _cut(columns, row.keys, len(rows))) if row.keys else [None] * len(rows)
            where = self._where(row)
            for value in row.values:
                at = value.position
                opened = self._column(row, value, columns[at], owners, tails, where)
                columns[at] = opened if at in self.bare else list(map(CellType, opened))
        return list(zip(*columns, strict=True))

    def _column(
        self,
        row: PlannedRow,
        value: PlannedValue,
        stored: Sequence[Any],
        owners: Sequence[Any],
        tails: Sequence[Any],
        where: Location | None,
    ) -> Sequence[Any]:
        """Open one column of some rows.

        Try first to open all values under one key, which is the usual case. Then try each value's own key.
        Then open value by value, which tells the locked and the wrong values apart.
        """
        readers: Mapping[bytes, Any] = {}
        if where is not None and value.slot is not None:
            readers = self._here[0].readers.setdefault(value.slot, {})
            first = stored[0]
            if isinstance(first, _BYTES) and bytes(first[_HEADER]) not in readers:
                # The first value under its key. Once it is opened, its key is known.
                self._one(row, value, first, owners[0], tails[0])
            for open_all in (_under_one_key, _under_several):
                try:
                    return open_all(value, stored, owners, tails, where, readers)
                except Exception:  # noqa: BLE001, S110 - told below, for each value by itself
                    pass
        if None in stored:
            return self._column_with_nulls(row, value, stored, owners, tails, where)
        opened = []
        for one, raw, tail in zip(stored, owners, tails, strict=True):
            try:
                opened += _under_one_key(value, [one], [raw], [tail], where, readers)
            except Exception:  # noqa: BLE001 - the first under its key, locked or wrong
                opened.append(self._one(row, value, one, raw, tail))
        return opened

    def _column_with_nulls(
        self,
        row: PlannedRow,
        value: PlannedValue,
        stored: Sequence[Any],
        owners: Sequence[Any],
        tails: Sequence[Any],
        where: Location | None,
    ) -> Sequence[Any]:
        there = [at for at, one in enumerate(stored) if one is not None]
        opened = [value.null() if one is None else one for one in stored]
        if there:
            stored, owners, tails = ([one[at] for at in there] for one in (stored, owners, tails))
            found = self._column(row, value, stored, owners, tails, where)
            for at, one in zip(there, found, strict=True):
                opened[at] = one
        return opened

    def _where(self, row: PlannedRow) -> Location | None:
        """Return where the owners of these rows are stored; None if no path is known or nothing unlocked."""
        if row.location is None or not self._here:
            return None
        realm = self._here[0].policy.seals.realm
        return row.location.on(self._connection, realm, self._execution.execution_options)

    @property
    def _names(self) -> RowOwners:
        if self._row_owners is None:
            options = self._execution.execution_options
            self._row_owners = RowOwners(self._session, self._connection, options, self._make_way)
        return self._row_owners

    def _one(self, row: PlannedRow, value: PlannedValue, stored: Any, raw: Any, tail: bytes | None) -> Any:
        """Open any single value: NULL, the first value under its key, or a locked, moved or wrong value."""
        if stored is None:
            return value.null()
        opened = self._opened_or_sealed(row, value, stored, raw, tail)
        self.met_sealed |= type(opened) is Sealed
        return opened

    def _opened_or_sealed(
        self,
        row: PlannedRow,
        value: PlannedValue,
        stored: Any,
        raw: Any,
        tail: bytes | None,
        *,
        asked: bool = False,
    ) -> Any:
        form = value.formats[0]
        blob = bytes(stored) if isinstance(stored, _BYTES) else b""
        try:
            check_value(stored, form.field.label)  # raised for a locked owner, too
            if not self._here:
                return Sealed(blob, form)
            owner = None if row.path is None else self._owner(row, raw)
            if owner is None and not value.for_entity:
                owner = context.only_owner(self._here)
            if owner is None and self._ask():
                return self._opened_or_sealed(row, value, stored, raw, tail)
            if owner is None:
                return Sealed(blob, form, note=None if value.for_entity else _NO_OWNER)
            if value.row_bound and tail is None:
                return Sealed(blob, form, note=None if value.for_entity else _NO_KEY)
            opened = self._opened(value, stored, owner, b"" if tail is None else tail[4:])
        except (DecryptionError, FormatError) as error:
            if not asked and self._was_stale(row, raw):
                return self._opened_or_sealed(row, value, stored, raw, tail, asked=True)
            return Sealed(blob, form).unreadable(error)
        except ConfigurationError:
            return Sealed(blob, form)  # the type is in no table
        if opened is LOCKED and self._ask():
            return self._opened_or_sealed(row, value, stored, raw, tail)
        if opened is LOCKED:
            return self._locked(value, Sealed(blob, form), None if row.path is None else owner)
        if value.slot is not None and row.path is not None:
            self._remember(row, value, blob, raw)
        return opened

    def _locked(self, value: PlannedValue, sealed: Sealed, owner: OwnerId | None) -> Any:
        """Return a locked value as it is passed on; a shredded value, if its key is destroyed.

        The keys of all locked values of the fetch are looked up together, at the first of them.

        Args:
            owner: the owner of the value's row; None if the row does not tell.
        """
        header = bytes(sealed.blob[:HEADER_SIZE])
        holder = destroyed.owner_of(self._session, header)
        if holder is None and self._session is not None:
            rows = self._unasked
            if getattr(self, "_looked", None) is not rows and destroyed.may_look(self._connection):
                self._looked = rows
                self._make_way()
                destroyed.look(self._session, self._headers(rows))
                holder = destroyed.owner_of(self._session, header)
        if holder is None:
            return sealed
        if owner not in (None, holder):
            return sealed.unreadable(moved(sealed.format.field))
        shredded = sealed.shredded()
        # An object keeps the stored value, so that its flush leaves it alone.
        return sealed.format.replacement() if shredded.is_replaced and not value.for_entity else shredded

    def _headers(self, rows: Sequence[Any]) -> dict[OwnerClass, Counter[bytes]]:
        """Return how many of these rows' values are under each key, by the classes of the key's owner."""
        by_class: dict[OwnerClass, Counter[bytes]] = {}
        for row in self.plan.rows:
            for value in row.values:
                counts = Counter(
                    bytes(one[value.position][_HEADER])
                    for one in rows
                    if isinstance(one[value.position], _BYTES)
                )
                for owner_class in value.owner_classes:
                    by_class.setdefault(owner_class, Counter()).update(counts)
        return by_class

    def _was_stale(self, row: PlannedRow, raw: Any) -> bool:
        """Tell whether the owner came from a loaded object that another transaction has changed since."""
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
        """Keep the reader that opens the next value of this owner under this key."""
        assert row.path is not None  # noqa: S101 - it was compared
        field, header = value.formats[0].field, blob[:HEADER_SIZE]
        cipher = context.find_reader(self._session, header, field)
        if cipher is not None and raw is not None:
            where = self._names.where(row.path.owner_class)
            aad = cipher.row_aad if value.row_bound else cipher.aad
            self._here[0].remember(value.slot, header, cipher, (cipher.open, aad, raw, where))

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
        """Convert values from the driver to the application's Python values."""
        processors = self._processors.get(positions)
        if processors is None:
            dialect, described = self._execution.dialect, self._cursor.description
            processors = self._processors[positions] = [
                type_.dialect_impl(dialect).result_processor(dialect, described[at][1])
                for at, type_ in zip(positions, types, strict=True)
            ]
        return tuple(
            value if process is None or value is None else process(value)
            for value, process in zip(values, processors, strict=True)
        )

    def _tails(self, row: PlannedRow, found: Sequence[Any]) -> list[bytes]:
        """Return the end of each row's AAD, which identifies the row."""
        if len(row.keys) == 1:
            if type(found[0]) is int and set(map(type, found)) == {int}:
                return row_tails(found)
            found = [(one,) for one in found]
        keys = [self._processed(row.keys, row.key_types, one) for one in found]
        return [NO_ROW if None in key else row_tail(encode_reference(key)) for key in keys]


def _under_one_key(
    value: PlannedValue,
    stored: Sequence[Any],
    owners: Sequence[Any],
    tails: Sequence[Any],
    where: Any,
    readers: Mapping[bytes, Any],
) -> list[Any]:
    """Open values of one owner under one key. The hot path of every load.

    Raises:
        Exception: any exception; a value is under another key, or does not open.
    """
    header = stored[0][_HEADER]
    open_, aad, owner, there = readers[header]
    if owners.count(owner) != len(owners) or there != where or any_too_large(stored):
        raise ValueError
    # If the smallest and the largest value begin with the same header, all values between begin with it.
    if min(stored)[_HEADER] != header or max(stored)[_HEADER] != header:
        raise ValueError
    if value.row_bound:
        plain = [open_(one[_NONCE], one[_BODY], aad + tail) for one, tail in zip(stored, tails, strict=True)]
    else:
        plain = [open_(one[_NONCE], one[_BODY], aad) for one in stored]
    return list(map(value.decode, plain))


def _under_several(
    value: PlannedValue,
    stored: Sequence[Any],
    owners: Sequence[Any],
    tails: Sequence[Any],
    where: Any,
    readers: Mapping[bytes, Any],
) -> list[Any]:
    """Open values of several owners or under several keys, if each key has opened a value before.

    Raises:
        Exception: any exception; a key has opened no value before, or a value does not open.
    """
    if any_too_large(stored):
        raise ValueError
    opens, aads, whose, places = zip(*[readers[one[_HEADER]] for one in stored], strict=True)
    if whose != tuple(owners) or set(places) != {where}:
        raise ValueError
    if value.row_bound:
        aads = tuple(aad + tail for aad, tail in zip(aads, tails, strict=True))
    plain = [open_(one[_NONCE], one[_BODY], aad) for one, open_, aad in zip(stored, opens, aads, strict=True)]
    return list(map(value.decode, plain))


def _cut(columns: Sequence[Any], positions: tuple[int, ...], count: int) -> Sequence[Any]:
    if len(positions) == 1:
        found: Sequence[Any] = columns[positions[0]]
        return found
    return list(zip(*[columns[one] for one in positions], strict=True)) or [()] * count


def _cut_row(row: Sequence[Any], positions: tuple[int, ...]) -> Any:
    return row[positions[0]] if len(positions) == 1 else tuple([row[at] for at in positions])
