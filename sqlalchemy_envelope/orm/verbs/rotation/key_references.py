"""What refers to a key: the one place where every reference is counted, over every registered table.

A reference is *needed* if something becomes unreadable without the key: a value, a key or a grant that is
wrapped under it, an emergency access; of a server key, also a row seal or a ticket. What leads to the key,
such as a slot, is no reason to keep it: it goes with the key.

Values are counted by their header, in every encrypted column of every table, whoever owns the rows: a full
scan of each table. Nothing is opened.
"""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import LargeBinary, case, func, or_, select

from sqlalchemy_envelope.crypto.aead import FORMAT_VALUE
from sqlalchemy_envelope.exceptions import ConfigurationError, KeyInUseError, KeyNotFoundError
from sqlalchemy_envelope.keys.index_keys import IndexKeyState
from sqlalchemy_envelope.keys.model import KeyState, Purpose, SlotKind
from sqlalchemy_envelope.keys.providers.calls import FORMAT_PROVIDER
from sqlalchemy_envelope.orm.indexes.pending import indexes_of, is_of
from sqlalchemy_envelope.orm.tables.bases import mappers_of, metadata_of
from sqlalchemy_envelope.orm.tables.binds import bind_for
from sqlalchemy_envelope.orm.tables.owners import Place, owner_class_of
from sqlalchemy_envelope.orm.tables.raw_tables import UNCACHED, is_there, raw_table
from sqlalchemy_envelope.orm.tables.slot_rows import in_utc
from sqlalchemy_envelope.orm.verbs.rotation.index_keys import key_tables
from sqlalchemy_envelope.orm.writing.namesakes import encrypted_tables
from sqlalchemy_envelope.words import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Column, Table
    from sqlalchemy.orm import Mapper, Session

    from sqlalchemy_envelope.keys.model import KeyId
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass

LAST_WRITES = dt.timedelta(minutes=10)
"""How long after its retirement a key may still get values: an unlocked session looks once a minute whether
its keys are active, and a transaction may take a while."""
_CLOCKS_DIFFER = dt.timedelta(minutes=1)
_ID_SIZE = 16


@dataclass(frozen=True)
class KeyReference:
    """How often a place refers to a key.

    Attributes:
        place: the column, as `table.column`.
        what: "value", "tag", "wrap", "grant", "slot", "row seal", "ticket", "emergency access" or "index
            key".
        count: the number of rows.
        needed: whether these rows become useless without the key. Otherwise they lead to the key, and are
            destroyed with it.
    """

    place: str
    what: str
    count: int
    needed: bool


@dataclass(frozen=True)
class KeyReferences:
    """Every reference to a key.

    Attributes:
        key: the id of the key: a UUID, or `server:` and 32 hexadecimal digits.
        kind: "root", "data", "index", "write" or "server".
        state: "active", "retired" or "destroyed"; of a server key "active", "configured" or "unknown".
        references: one for each place that was looked at, also where there is none.
        owner_class, scope, epoch: of an owner's key.
        retired_at: when an owner's key was replaced.
        free_from: when the last backup that needs the key is gone, as far as it was told.
    """

    key: str
    kind: str
    state: str
    references: tuple[KeyReference, ...]
    owner_class: str | None = None
    scope: str = ""
    epoch: int | None = None
    retired_at: dt.datetime | None = None
    free_from: dt.datetime | None = None

    @property
    def needed(self) -> tuple[KeyReference, ...]:
        """The references that stop a destruction."""
        return tuple(one for one in self.references if one.needed and one.count)

    def reasons(self, now: dt.datetime) -> list[str]:
        """Why the key must not be destroyed yet; empty if it may be.

        Args:
            now: the time, with a time zone.
        """
        found = []
        if self.state == "active":
            found.append("it is active: rotate first")
        found += [f"{one.place} has {counted(one.count, *_SHOWN[one.what])}" for one in self.needed]
        if self.kind == "write" and self.retired_at is not None and now < self.retired_at:
            until = _shown(self.retired_at + LAST_WRITES)
            found.append(f"its write epoch goes on, and it may get values until {until}")
        elif self.retired_at is not None and self.retired_at > now + _CLOCKS_DIFFER:
            found.append(f"it was retired in the future, {_shown(self.retired_at)}: a clock went back")
        elif self.kind != "server" and self.retired_at is not None and now < self.retired_at + LAST_WRITES:
            until = _shown(self.retired_at + LAST_WRITES)
            found.append(f"it was retired a moment ago, and may still get values until {until}")
        if self.free_from is not None and now < self.free_from:
            found.append(f"backups need it until {_shown(self.free_from)}")
        return found

    def require_unused(self, now: dt.datetime | None = None) -> None:
        """Require that nothing needs the key.

        Raises:
            KeyInUseError: something does, or a backup may.
        """
        reasons = self.reasons(now or dt.datetime.now(dt.UTC))
        if reasons:
            raise KeyInUseError(f"Key {self.key} is in use: {'; '.join(reasons)}.")


_SHOWN = {
    what: (f"{what} under it", f"{what}s under it")
    for what in ("value", "tag", "grant", "slot", "row seal", "ticket", "index key")
} | {
    "wrap": ("key under it", "keys under it"),
    "emergency access": ("emergency access under it", "emergency accesses under it"),
}


def _shown(time: dt.datetime) -> str:
    return f"{time.astimezone(dt.UTC):%Y-%m-%d %H:%M} UTC"


def key_references(
    desk: Desk,
    base: Any,
    key: str | uuid.UUID,
    *,
    horizon: dt.timedelta | None = None,
    backups_until: dt.datetime | None = None,
    locking: bool = False,
) -> KeyReferences:
    """The work of `Envelope.key_references`.

    Args:
        locking: on MySQL, read the rows with a lock, which waits for transactions in flight.
    """
    _check_horizon(horizon, backups_until)
    server_key = _server_key_id(desk, key)
    if server_key is not None:
        if horizon is not None:
            raise ConfigurationError(
                "The database does not note when a server key was last used: give the time until which "
                "backups from before its rotation are kept, backups_until=... (--backups-until)."
            )
        found = _of_server_key(desk, base, server_key)
    else:
        owner_class, row = find_key(desk, base, key)
        found = _of_owner_key(desk, base, owner_class, row, locking=locking)
        if horizon is not None and found.retired_at is not None:
            backups_until = found.retired_at + horizon
    return replace(found, free_from=backups_until)


def _check_horizon(horizon: dt.timedelta | None, backups_until: dt.datetime | None) -> None:
    if horizon is not None and backups_until is not None:
        raise ConfigurationError("Give horizon= or backups_until=, and not both.")
    if horizon is not None and horizon < dt.timedelta(0):
        raise ConfigurationError("horizon= is how long backups are kept: it is not negative.")
    if backups_until is not None and backups_until.tzinfo is None:
        raise ConfigurationError("backups_until= takes a time with a time zone.")


def owner_classes_of(base: Any) -> list[OwnerClass]:
    """The classes of key owners of a declarative base or a registry.

    Raises:
        ConfigurationError: it is neither.
    """
    found = [owner_class_of(mapper.local_table) for mapper in mappers_of(base)]
    complete = [one for one in found if one is not None and one.slot_class is not None]
    return sorted(dict.fromkeys(complete), key=lambda one: one.label)


def find_key(desk: Desk, base: Any, key: str | uuid.UUID) -> tuple[OwnerClass, Any]:
    """The class of a key's owner, and the key's row, by its id or the first eight or more digits of it.

    Raises:
        KeyNotFoundError: there is no such key.
        ConfigurationError: this is no id, or there are several such keys.
    """
    first, last = _id_range(key)
    found = []
    for owner_class in owner_classes_of(base):
        c = owner_class.key_class.__table__.c
        query = select(owner_class.key_class.__table__).where(c.key_id.between(first, last)).limit(2)
        bind = bind_for(desk.session, owner_class.mapper, query)
        found += [(owner_class, row) for row in desk.session.execute(query, bind_arguments=bind)]
    if not found:
        raise KeyNotFoundError(f"No owner's key of these models has the id {key}.")
    if len(found) > 1:
        raise ConfigurationError(f"Several keys begin with {key}: give the whole id.")
    return found[0]


def _id_range(key: str | uuid.UUID) -> tuple[KeyId, KeyId]:
    digits = str(key).replace("-", "").lower()
    if not 8 <= len(digits) <= 32 or set(digits) - set("0123456789abcdef"):
        raise ConfigurationError(
            f"{str(key)!r} names no key: give the id of a key, at least its first eight digits, or "
            "server:<id> for a server key."
        )
    return uuid.UUID(digits.ljust(32, "0")), uuid.UUID(digits.ljust(32, "f"))


def _server_key_id(desk: Desk, key: str | uuid.UUID) -> bytes | None:
    """The id of a server key, if one is meant.

    Raises:
        ConfigurationError: it is no id, or begins no configured server key's id, or several.
    """
    if not isinstance(key, str) or not key.startswith("server:"):
        return None
    digits = key.removeprefix("server:").lower()
    known = [one for one in desk.policy.seals.server_key_ids if one.hex().startswith(digits)]
    if len(known) == 1 and len(digits) >= 8:
        return known[0]
    try:
        whole = bytes.fromhex(digits)
    except ValueError:
        whole = b""
    if len(whole) != _ID_SIZE:
        raise ConfigurationError(
            f"{key!r} names no server key here: give all 32 digits of its id, or the first eight of a key "
            "that is configured."
        )
    return whole


def _of_owner_key(
    desk: Desk, base: Any, owner_class: OwnerClass, row: Any, *, locking: bool
) -> KeyReferences:
    purpose, scan = Purpose(row.purpose), _Scan(desk.session, owner_class.mapper, locking)
    references: list[KeyReference] = []
    if purpose is Purpose.ROOT:
        references += _of_root(scan, owner_class, row.key_id)
        for emergency in owner_class.emergencies_to:
            there = _Scan(desk.session, emergency.of.owner_class.mapper, locking)
            person_key = emergency.table.c.person_key_id
            references.append(there.rows(person_key, row.key_id, "emergency access", needed=True))
    elif purpose is Purpose.INDEX:
        references += _tags(scan, owner_class, row)
        references += _tickets_of(scan, owner_class, row)
    else:
        references += _values(scan, base, owner_class, row.key_id)
        references += _tickets_of(scan, owner_class, row)
    for grants in owner_class.grants_of:
        references.append(scan.rows(grants.companion.c.key_id, row.key_id, "grant", needed=False))
    return KeyReferences(
        str(row.key_id),
        purpose.value,
        row.state,
        tuple(references),
        owner_class.name,
        row.scope,
        row.epoch,
        _retired_at(desk, row),
    )


def _retired_at(desk: Desk, row: Any) -> dt.datetime | None:
    """When a key was last written under, at the latest."""
    if row.state == KeyState.ACTIVE:
        return None
    if row.purpose == Purpose.WRITE:
        # Retired from birth: its maker writes under it until the write epoch ends.
        made = in_utc(row.created_at)
        return None if made is None else made + dt.timedelta(seconds=desk.policy.write_epoch_seconds)
    return in_utc(row.retired_at or row.created_at)


class _Scan:
    """Counts rows, past the hooks on encrypted columns.

    Args:
        mapper: of the class in whose database the tables are.
        locking: see `key_references`.
    """

    def __init__(self, session: Session, mapper: Mapper[Any], locking: bool = False) -> None:
        self._session, self._mapper = session, mapper
        self._connection = session.connection(bind_arguments=bind_for(session, mapper))
        self._locks = locking and self._connection.dialect.name in ("mysql", "mariadb")

    def rows(self, column: Any, key_id: object, what: str, *, needed: bool) -> KeyReference:
        """The rows in which a column names a key."""
        return self.where(column, column == key_id, what, needed=needed)

    def where(self, column: Any, condition: Any, what: str, *, needed: bool) -> KeyReference:
        """The rows that fulfil a condition, as references in a column."""
        count = 0
        if is_there(self._connection, column.table):
            count = self._read(select(func.count()).select_from(column.table).where(condition))[0]
        return KeyReference(_place(column), what, count, needed)

    def begins(self, table: Table, columns: Sequence[Column[Any]], start: bytes) -> list[int]:
        """The number of values in each of these columns that begin with these bytes."""
        if not is_there(self._connection, table):
            return [0] * len(columns)
        here = raw_table(table, columns)
        tests = [func.substr(one, 1, len(start), type_=LargeBinary) == start for one in here.c]
        query = select(*(func.sum(case((one, 1), else_=0)) for one in tests)).select_from(here)
        return [int(count or 0) for count in self._read(query.where(or_(*tests)))]

    def _read(self, query: Any) -> Any:
        query = query.with_for_update(read=True) if self._locks else query
        with self._session.no_autoflush:
            bind = bind_for(self._session, self._mapper, query)
            return self._session.execute(query, execution_options=UNCACHED, bind_arguments=bind).one()


def _of_root(scan: _Scan, owner_class: OwnerClass, key_id: KeyId) -> list[KeyReference]:
    keys, slots = owner_class.key_class.__table__, owner_class.slot_class.__table__
    found = [
        scan.rows(keys.c.wrapping_key_id, key_id, "wrap", needed=True),
        scan.rows(slots.c.key_id, key_id, "slot", needed=False),
    ]
    found += [
        scan.rows(grants.companion.c.recipient_key_id, key_id, "grant", needed=True)
        for grants in owner_class.grants_to
    ]
    if owner_class.ticket_class is not None:
        found.append(scan.rows(owner_class.ticket_class.__table__.c.key_id, key_id, "ticket", needed=False))
    return found


def _tags(scan: _Scan, owner_class: OwnerClass, row: Any) -> list[KeyReference]:
    """The tags of an index key's owner. A tag does not tell its key: each may be under this one."""
    place = Place(owner_class, tuple(row._mapping[one] for one in owner_class.owner_columns), b"")
    return [
        scan.where(index.column, index.column.is_not(None) & is_of(index, place), "tag", needed=True)
        for index in indexes_of(owner_class)
        if index.scope != "server" and index.data_scope == row.scope
    ]


def _tickets_of(scan: _Scan, owner_class: OwnerClass, row: Any) -> list[KeyReference]:
    """The tickets of a key's owner: each carries a copy of the key."""
    if owner_class.ticket_class is None:
        return []
    keys, column = owner_class.key_class.__table__, owner_class.ticket_class.__table__.c.key_id
    mine = [one == row._mapping[one] for one in owner_class.owner_columns]
    of_owner = column.in_(select(keys.c.key_id).where(*mine))
    return [scan.where(column, of_owner, "ticket", needed=False)]


def _values(scan: _Scan, base: Any, owner_class: OwnerClass, key_id: KeyId) -> list[KeyReference]:
    """The number of values under a key, for each encrypted column of each table."""
    header = bytes([FORMAT_VALUE]) + key_id.bytes
    return [
        KeyReference(_place(column), "value", count, needed=True)
        for table, columns in tables_with_values(base, owner_class)
        for column, count in zip(columns, scan.begins(table, columns, header), strict=True)
    ]


def tables_with_values(base: Any, owner_class: OwnerClass) -> list[tuple[Table, list[Column[Any]]]]:
    """Every table that may have values under keys of these owners, with its encrypted columns, and with the
    previous columns that may hold ciphertext of this library.

    Several `Table` objects may stand for a table of the database, each with some of its columns.
    """
    tables: dict[tuple[str, str], tuple[Table, dict[str, Column[Any]]]] = {}
    for table, columns in encrypted_tables(metadata_of(base), owner_class):
        _, known = tables.setdefault((table.schema or "", table.name), (table, {}))
        for column in columns:
            known.setdefault(column.name, column)
    return [(table, list(known.values())) for _, (table, known) in sorted(tables.items(), key=_name_of)]


def _name_of(one: tuple[tuple[str, str], object]) -> tuple[str, str]:
    return one[0]


def _of_server_key(desk: Desk, base: Any, key_id: bytes) -> KeyReferences:
    references: list[KeyReference] = []
    for owner_class in owner_classes_of(base):
        scan = _Scan(desk.session, owner_class.mapper)
        keys, slots = owner_class.key_class.__table__, owner_class.slot_class.__table__
        wrapped = slots.c.provider_wrapped
        is_named = slots.c.provider_ref.endswith(f" server:{key_id.hex()}", autoescape=True)
        is_under = _begins(wrapped, bytes([FORMAT_PROVIDER]) + key_id) | is_named
        is_under = is_under & (slots.c.kind == SlotKind.PROVIDER)
        references.append(scan.where(wrapped, is_under, "slot", needed=True))
        for table in (keys, slots, *(one.companion for one in owner_class.grants_of)):
            seal = table.c.seal
            references.append(scan.where(seal, _begins(seal, key_id), "row seal", needed=True))
        if owner_class.ticket_class is not None:
            pepper = owner_class.ticket_class.__table__.c.server_key_id
            references.append(scan.rows(pepper, key_id, "ticket", needed=True))
        for emergency in owner_class.emergencies:
            share = emergency.table.c.server_share
            references.append(scan.where(share, _begins(share, key_id), "emergency access", needed=True))
    for table, mapper in key_tables(metadata_of(base)):
        scan, wrapped = _Scan(desk.session, mapper), table.c.wrapped
        is_named = table.c.provider_ref.endswith(f" server:{key_id.hex()}", autoescape=True)
        is_under = _begins(wrapped, bytes([FORMAT_PROVIDER]) + key_id)
        is_under |= is_named & (table.c.state != IndexKeyState.DESTROYED.value)
        references.append(scan.where(wrapped, is_under, "index key", needed=True))
    known = desk.policy.seals.server_key_ids
    state = "unknown" if key_id not in known else "active" if key_id == known[0] else "configured"
    return KeyReferences(f"server:{key_id.hex()}", "server", state, tuple(references))


def _begins(column: Any, start: bytes) -> Any:
    return func.substr(column, 1, len(start), type_=LargeBinary) == start


def _place(column: Any) -> str:
    return f"{column.table.name}.{column.name}"
