"""Reading and writing the key tables, in the caller's transaction. Nothing here commits.

What is read is checked against its row seal, and what is written gets one, where server keys are configured.
"""

from __future__ import annotations

import datetime as dt
import uuid
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import (
    LargeBinary,
    and_,
    bindparam,
    func,
    insert,
    literal,
    or_,
    select,
    tuple_,
    type_coerce,
    update,
)
from sqlalchemy.exc import DBAPIError

from sqlalchemy_envelope.exceptions import (
    EnvelopeError,
    KdfParametersError,
    OwnerMismatchError,
    RowSealError,
    TamperedKeyError,
)
from sqlalchemy_envelope.keys.model import (
    KeyState,
    Purpose,
    SlotKind,
    StoredKey,
    StoredSlot,
)
from sqlalchemy_envelope.orm.tables.binds import bind_for
from sqlalchemy_envelope.orm.tables.location import bind_of, location_of
from sqlalchemy_envelope.orm.tables.missing_tables import missing_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from sqlalchemy import Dialect, Table
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.keys.model import KeyId
    from sqlalchemy_envelope.keys.row_seals import RowSeals
    from sqlalchemy_envelope.orm.tables.owners import Location, OwnerClass

    PrimaryKey = tuple[Any, ...]

MAX_SLOTS = 3
"""Most secret slots that are tried: each costs a derivation, and planted ones would cost many."""
CHUNK = 4000
"""Most values of one `IN`: every supported database takes so many parameters."""


class OwnedKey(NamedTuple):
    """A key row with whose it is: by its foreign key, and by what the owner is bound to."""

    owner: OwnerId
    primary_key: PrimaryKey
    stored: StoredKey
    error: EnvelopeError | None
    """Why it must not be used, if it must not: told with the row, so that a bad row stops its owner alone."""


HeldKey = tuple[OwnedKey, OwnedKey, StoredSlot]
"""A data key, the root key that wraps it, and a provider's slot of that root key."""


class Rows:
    """Statements on the tables of one class, through the session's own connection."""

    def __init__(self, session: Session, mapper: Any, seals: RowSeals) -> None:
        self._session = session
        self._mapper = mapper
        self._seals = seals

    @cached_property
    def _realm(self) -> str:
        """The name of these tables' database, for row seals."""
        return self._seals.realm_of(bind_of(self._session, self._mapper).engine)

    def _execute(self, statement: Any, *rows: Any, locks: bool = False) -> Any:
        bind = bind_for(self._session, self._mapper, statement, locks=locks)
        # No autoflush: values may be waiting for the very key that is being unlocked.
        try:
            with self._session.no_autoflush:
                return self._session.execute(statement, *rows, bind_arguments=bind)
        except DBAPIError as error:
            missing = missing_tables(error, statement)
            if missing is None:
                raise
            raise missing from error.orig

    def _rows(self, query: Any, *values: Any, locks: bool = False) -> Sequence[Any]:
        result = self._execute(query, *values, locks=locks)
        try:
            rows: Sequence[Any] = result.all()
            return rows
        except (TypeError, ValueError, AttributeError):
            # SQLite stores anything in any column: what SQLAlchemy's own types choke on comes here.
            raise TamperedKeyError("A stored key or slot holds what its columns cannot hold.") from None

    def _free(self, column: Any, ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        """Those of these rows that are there and no other transaction holds: they are this one's from now on.
        Where the database cannot pass over the others, or locks the whole of itself to write, all of them."""
        if not ids or not _skips_locked(self._dialect):
            return set(ids)
        found: set[uuid.UUID] = set()
        for some in chunks(ids):
            query = select(column).where(column.in_(some))
            # As an UPDATE locks that leaves the key alone: whoever refers to the row is not in the way.
            query = query.with_for_update(skip_locked=True, key_share=True)
            found.update(row[0] for row in self._rows(query, locks=True))
        return found

    @property
    def _dialect(self) -> Dialect:
        return self._session.connection(bind_arguments=bind_for(self._session, self._mapper)).dialect


class KeyStore(Rows):
    """The key and slot rows of one class of owners."""

    def __init__(self, session: Session, owner_class: OwnerClass, seals: RowSeals) -> None:
        super().__init__(session, owner_class.mapper, seals)
        self._class = owner_class
        self._keys: Table = owner_class.key_class.__table__
        self.key_id = self._keys.c.key_id
        self._slots: Table = owner_class.slot_class.__table__
        self._references: dict[PrimaryKey, OwnerId] = {}

    @cached_property
    def where(self) -> Location:
        """The database and schema that these owners are in."""
        return location_of(self._session, self._class.mapper, self._seals.realm)

    @property
    def dialect(self) -> Dialect:
        """The dialect of the database that these tables are in."""
        return self._dialect

    @property
    def shows_others_when_locked(self) -> bool:
        """Whether a locking read alone shows what others committed after the transaction's first read."""
        return shows_others_when_locked(self.dialect)

    @property
    def locks_as_a_whole(self) -> bool:
        """Whether the database has one lock for whoever writes, and none for rows."""
        return self.dialect.name == "sqlite"

    def load(self, primary_keys: Sequence[PrimaryKey], *, for_update: bool = False) -> list[OwnedKey]:
        """Every key of these owners, oldest first. One query for some thousands of owners."""
        found: list[OwnedKey] = []
        columns = self._class.owner_columns
        query = self._made_once("owned", lambda: self._select().where(given(columns, "owners")))
        query = query.with_for_update(of=self._keys) if for_update else query
        for some in chunks(primary_keys):
            found += self._owned(query, {"owners": values_of(columns, some)}, locks=for_update)
        return found

    def load_around(self, key_ids: Iterable[KeyId]) -> list[OwnedKey]:
        """Every key of the owners that these keys are of, oldest first. One query for some thousands."""
        found: dict[KeyId, OwnedKey] = {}
        query = self._made_once("around", self._query_around)
        for some in chunks(list(key_ids)):
            rows = self._rows(query, {"key_ids": some})
            found.update((row[0], self.owned(row)) for row in rows)
        return list(found.values())

    def _query_around(self) -> Any:
        named = self._keys.alias()
        owners = [named.c[column.key] for column in self._class.owner_columns]
        wanted = select(*owners).where(given([named.c.key_id], "key_ids")).distinct().subquery()
        pairs = zip(wanted.c, self._class.owner_columns, strict=True)
        return self._select().join(wanted, and_(*(a == b for a, b in pairs)))

    def lock_roots(self, primary_keys: Sequence[PrimaryKey]) -> None:
        """Hold the root keys of these owners until the transaction ends. What was read before may be old by
        now.

        The first root key of each and the active one. The first is there as long as its owner, so that
        whoever waits for it holds the same row as whoever comes after an epoch was started; every change
        writes the row of the active one, which tells a transaction whose snapshot is older (SQLSTATE 40001).
        """
        c, dialect = self._keys.c, self.dialect
        for some in chunks(primary_keys):
            mine = and_(matches(self._class.owner_columns, some), c.purpose == Purpose.ROOT)
            if self.locks_as_a_whole:
                # It locks the whole database for whoever writes first.
                statement = update(self._keys).where(mine, c.state == KeyState.ACTIVE)
                self._execute(statement.values(granted=c.granted))
                continue
            query = select(c.key_id).where(mine, or_(c.epoch == 1, c.state == KeyState.ACTIVE))
            query = query.order_by(*self._class.owner_columns, c.epoch)
            if dialect.name == "postgresql":
                # The owner's row first, as whoever deletes it does; nobody else waits for this lock. An outer
                # join, for a row policy may hide the row from whoever would lock it.
                owners = select(*self._class.primary_key).where(matches(self._class.primary_key, some))
                owners = owners.order_by(*self._class.primary_key)
                held = owners.with_for_update(read=True, key_share=True).cte("owners")
                pairs = zip(self._class.owner_columns, held.c, strict=True)
                query = query.outerjoin(held, and_(*(a == b for a, b in pairs)))
            self._rows(query.with_for_update(of=self._keys, key_share=True), locks=True)

    def load_active_roots(self, primary_keys: Sequence[PrimaryKey]) -> dict[OwnerId, OwnedKey]:
        """The active root key of each of these owners that has one; its public key is what others seal to."""
        c, found = self._keys.c, []
        for some in chunks(primary_keys):
            query = self._select().where(matches(self._class.owner_columns, some))
            found += self._owned(query.where(c.purpose == Purpose.ROOT, c.state == KeyState.ACTIVE))
        return {one.owner: one for one in found}

    def load_held(self, key_ids: Iterable[bytes]) -> list[HeldKey]:
        """These data keys, each with the root key that wraps it and a provider's slot of that. One query for
        some thousands; what no provider holds is left out."""
        query = self._made_once("held", lambda: self._query_held().where(given([self.key_id], "key_ids")))
        ids = [uuid.UUID(bytes=key_id) for key_id in key_ids]
        return [held for some in chunks(ids) for held in self._held(query, {"key_ids": some})]

    def load_held_of(self, primary_keys: Sequence[PrimaryKey]) -> list[HeldKey]:
        """As `load_held`, of the active data key that each of these owners has outside of its scopes."""
        c, columns = self._keys.c, self._class.owner_columns
        mine = (c.purpose == Purpose.DATA, c.scope == "", c.state == KeyState.ACTIVE)
        query = self._made_once("held of", lambda: self._query_held().where(given(columns, "owners"), *mine))
        return [
            held
            for some in chunks(primary_keys)
            for held in self._held(query, {"owners": values_of(columns, some)})
        ]

    def _query_held(self) -> Any:
        roots, slots = self._keys.alias(), self._slots
        columns = [roots.c[column.key] for column in self._class.owner_columns]
        query = self.select_keys(*_key_columns(roots), *columns, *_slot_columns(slots))
        query = query.join(roots, roots.c.key_id == self._keys.c.wrapping_key_id)
        query = query.join(slots, slots.c.key_id == roots.c.key_id)
        return query.where(slots.c.kind == SlotKind.PROVIDER)

    def _held(self, query: Any, values: dict[str, Any]) -> Iterator[HeldKey]:
        width = _KEY_WIDTH + len(self._class.owner_columns)
        start = width + (self._class.reference_attribute is not None)
        for row in self._rows(query, values):
            root = self.owned((*row[start : start + width], *row[width:start]))
            slot = _stored_slot(row[start + width :])
            self._seals.check(slot.seal, self._class.label, slot.sealed_fields(), self._realm)
            yield self.owned(row), root, slot

    def exists(self, primary_key: PrimaryKey, key_id: KeyId) -> bool:
        """Whether this owner has this key."""
        c = self._keys.c
        mine = matches(self._class.owner_columns, [primary_key])
        return bool(self._rows(select(c.key_id).where(c.key_id == key_id, mine)))

    def load_slots(
        self,
        key_ids: Iterable[KeyId],
        kind: SlotKind | None = None,
        limit: int | None = None,
        *,
        for_update: bool = False,
    ) -> list[StoredSlot]:
        """The slots of these root keys. One query for some thousands."""
        found: list[StoredSlot] = []
        query = self._made_once(("slots", kind, limit), lambda: self._query_slots(kind, limit))
        query = query.with_for_update(of=self._slots) if for_update else query
        for some in chunks(list(key_ids)):
            found += [_stored_slot(row) for row in self._rows(query, {"key_ids": some})]
        for slot in found:
            self._seals.check(slot.seal, self._class.label, slot.sealed_fields(), self._realm)
        return found

    def _query_slots(self, kind: SlotKind | None, limit: int | None) -> Any:
        c = self._slots.c
        query = select(*_slot_columns(self._slots)).where(given([c.key_id], "key_ids")).order_by(c.slot_id)
        return (query if kind is None else query.where(c.kind == kind)).limit(limit)

    def load_held_by(self, provider: str, after: PrimaryKey | None, limit: int) -> list[PrimaryKey]:
        """The owners whose active root key has a slot of this provider, in the order of their primary keys;
        so many after this one."""
        keys, slots, columns = self._keys.c, self._slots.c, self._class.owner_columns
        query = select(*columns).distinct().join(self._slots, slots.key_id == keys.key_id)
        query = query.where(
            keys.purpose == Purpose.ROOT,
            keys.state == KeyState.ACTIVE,
            slots.kind == SlotKind.PROVIDER,
            slots.provider_ref.startswith(f"{provider} ", autoescape=True),
        )
        if after is not None:
            here = [literal(part, column.type) for part, column in zip(after, columns, strict=True)]
            query = query.where(columns[0] > here[0] if len(here) == 1 else tuple_(*columns) > tuple_(*here))
        return [tuple(row) for row in self._rows(query.order_by(*columns).limit(limit))]

    def free(self, key_ids: Sequence[KeyId]) -> set[KeyId]:
        """Those of these keys whose rows no other transaction holds; they are held here from now on."""
        return self._free(self.key_id, key_ids)

    def free_slots(self, slot_ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        """As `free`, of slots."""
        return self._free(self._slots.c.slot_id, slot_ids)

    def insert_keys(self, keys: Sequence[tuple[PrimaryKey, StoredKey]]) -> None:
        """Write new key rows, a root before what it wraps."""
        rows = self._key_rows(keys)
        if rows:
            self._execute(insert(self._keys), rows)

    def insert_first(self, keys: Sequence[tuple[PrimaryKey, StoredKey]]) -> set[KeyId]:
        """Write new keys, each unless its owner has one of that kind and epoch, or an active one of that
        kind: which were written. Whoever makes the same keys in another transaction is waited for.

        Raises:
            DBAPIError: that one committed after this transaction's snapshot was taken (SQLSTATE 40001).
        """
        # Every transaction in the same order: two that make keys of the same owners do not wait in a circle.
        in_order = sorted(keys, key=lambda one: (one[1].owner_reference, one[1].purpose, one[1].scope))
        return self._insert_whole(self._keys, self._key_rows(in_order), unless_there=True)

    def insert_first_of(
        self, owners: Sequence[tuple[PrimaryKey, Sequence[StoredKey], Sequence[StoredSlot]]]
    ) -> set[KeyId]:
        """Write the first keys of owners, each with a root key that is the first, and its slots; of an owner
        who has keys already, nothing. Which root keys were written."""
        made = self.insert_first([(primary_key, keys[0]) for primary_key, keys, _ in owners])
        mine = [one for one in owners if one[1][0].key_id in made]
        wrapped = [(primary_key, key) for primary_key, keys, _ in mine for key in keys[1:]]
        self._insert_whole(self._keys, self._key_rows(wrapped))
        self._insert_whole(self._slots, self._slot_rows([slot for *_, slots in mine for slot in slots]))
        return made

    def load_active(self, key_ids: Iterable[KeyId]) -> dict[KeyId, OwnerId]:
        """Whose these keys are, of those that are there and active."""
        c, found = self._keys.c, {}
        for some in chunks(list(key_ids)):
            query = select(c.key_id, *self._class.owner_columns)
            for row in self._rows(query.where(c.key_id.in_(some), c.state == KeyState.ACTIVE)):
                found[row[0]] = self._class.owner_id(self.where, tuple(row[1:]))
        return found

    def insert_slots(self, slots: Sequence[StoredSlot]) -> None:
        """Write new slots."""
        rows = self._slot_rows(slots)
        if rows:
            self._execute(insert(self._slots), rows)

    def delete_slots(self, slots: Sequence[StoredSlot]) -> int:
        """Delete slots: what they opened no longer opens this way. How many were there still."""
        ids = [one.slot_id for one in slots]
        return int(self._execute(self._slots.delete().where(self._slots.c.slot_id.in_(ids))).rowcount)

    def label_slots(self, slots: Sequence[StoredSlot], label: str) -> None:
        """Note something about slots, for people and reports: the label is under no seal."""
        ids = [one.slot_id for one in slots]
        self._execute(update(self._slots).where(self._slots.c.slot_id.in_(ids)).values(label=label))

    def replace_slot(self, old: StoredSlot, new: StoredSlot) -> bool:
        """Replace a slot's wrap, unless somebody else did in the meantime; tells whether it did."""
        c = self._slots.c
        statement = update(self._slots).where(c.slot_id == old.slot_id, c.wrapped == old.wrapped)
        result = self._execute(
            statement.values(
                kdf=new.kdf,
                wrapped=new.wrapped,
                recipient_public_key=new.recipient_public_key,
                provider_ref=new.provider_ref,
                provider_wrapped=new.provider_wrapped,
                seal=self._seal(new),
            )
        )
        return bool(result.rowcount == 1)

    def replace_slots(self, slots: Sequence[tuple[StoredSlot, StoredSlot]]) -> None:
        """Replace the wraps of slots, each unless somebody else did in the meantime."""
        c = self._slots.c
        statement = update(self._slots).where(c.slot_id == bindparam("this"), c.wrapped == bindparam("old"))
        rows = [
            {"this": old.slot_id, "old": old.wrapped, "new": new.wrapped, "new_seal": self._seal(new)}
            for old, new in slots
        ]
        if rows:
            self._execute(statement.values(wrapped=bindparam("new"), seal=bindparam("new_seal")), rows)

    def replace_keys(self, keys: Sequence[StoredKey], *, in_their_state: bool = False) -> None:
        """Replace what may change of key rows: what they are bound to, their state and their wrap; if
        `in_their_state`, not of those that were retired meanwhile."""
        statement = (
            update(self._keys)
            .where(self._keys.c.key_id == bindparam("this_key"))
            .values(
                owner_reference=bindparam("owner_reference"),
                state=bindparam("state"),
                wrapping_key_id=bindparam("wrapping_key_id"),
                wrapped=bindparam("wrapped"),
                retired_at=func.coalesce(self._keys.c.retired_at, bindparam("retired_at")),
                seal=bindparam("seal"),
            )
        )
        if in_their_state:
            statement = statement.where(self._keys.c.state == bindparam("state"))
        now = dt.datetime.now(dt.UTC)
        rows = [
            {
                "this_key": key.key_id,
                "owner_reference": key.owner_reference,
                "state": key.state.value,
                "wrapping_key_id": key.wrapping_key_id,
                "wrapped": key.wrapped,
                "retired_at": None if key.state is KeyState.ACTIVE else now,
                "seal": self._seal(key),
            }
            for key in keys
        ]
        if rows:
            self._execute(statement, rows)

    def add_granted(self, counts: Sequence[tuple[KeyId, int]]) -> None:
        """Count grants that were made of keys."""
        c = self._keys.c
        statement = update(self._keys).where(c.key_id == bindparam("this_key"))
        rows = [{"this_key": key_id, "more": more} for key_id, more in counts]
        if rows:
            self._execute(statement.values(granted=c.granted + bindparam("more")), rows)

    def reseal(self) -> int:
        """Seal every row anew under the active server key, whatever seal it has; how many."""
        unchecked = KeyStore(self._session, self._class, type(self._seals)())
        found = unchecked._owned(unchecked._select())
        keys = [one.stored for one in _parsed(found)]
        slots = unchecked.load_slots([key.key_id for key in keys if key.purpose is Purpose.ROOT])
        for table, id_column, sealed in (
            (self._keys, self._keys.c.key_id, [(key.key_id, self._seal(key)) for key in keys]),
            (self._slots, self._slots.c.slot_id, [(slot.slot_id, self._seal(slot)) for slot in slots]),
        ):
            statement = update(table).where(id_column == bindparam("this")).values(seal=bindparam("seal"))
            if sealed:
                self._execute(statement, [{"this": this, "seal": seal} for this, seal in sealed])
        return len(keys) + len(slots)

    def _key_rows(self, keys: Iterable[tuple[PrimaryKey, StoredKey]]) -> list[dict[str, Any]]:
        names = [column.key for column in self._class.owner_columns]
        return [
            {
                **vars(key),
                **dict(zip(names, primary_key, strict=True)),
                "purpose": key.purpose.value,
                "state": key.state.value,
                "seal": self._seal(key),
            }
            for primary_key, key in keys
        ]

    def _slot_rows(self, slots: Iterable[StoredSlot]) -> list[dict[str, Any]]:
        return [{**vars(slot), "kind": slot.kind.value, "seal": self._seal(slot)} for slot in slots]

    def _insert_whole(
        self, table: Table, rows: Sequence[dict[str, Any]], *, unless_there: bool = False
    ) -> set[uuid.UUID]:
        """Insert rows, or of those that no constraint stands against: which were inserted."""
        if not rows:
            return set()
        (id_column,) = table.primary_key.columns
        dialect = self.dialect
        statement = insert_unless_there(dialect.name, table, id_column) if unless_there else insert(table)
        ids = [row[id_column.key] for row in rows]
        # psycopg sends many statements in a pipeline, and logs it twice when one fails: here it gets a single
        # one with many rows.
        if dialect.driver.startswith("psycopg") or (unless_there and dialect.name == "postgresql"):
            return set(self._execute(statement.returning(id_column), rows).scalars())
        result = self._execute(statement.execution_options(preserve_rowcount=True), rows)
        if not unless_there or (dialect.name == "sqlite" and result.rowcount == len(rows)):
            return set(ids)
        found: set[uuid.UUID] = set()
        for some in chunks(ids):
            found.update(row[0] for row in self._rows(select(id_column).where(id_column.in_(some))))
        return found

    def _seal(self, record: StoredKey | StoredSlot) -> bytes | None:
        if not self._seals.is_on:
            return None
        return self._seals.seal(self._class.label, record.sealed_fields(), self._realm)

    def _select(self) -> Any:
        c = self._keys.c
        in_order = (c.purpose, c.scope, c.epoch)
        return self._made_once("keys", lambda: self.select_keys().order_by(*in_order))

    def _made_once(self, name: object, make: Callable[[], Any]) -> Any:
        return made_once(self._class.selects, name, make)

    def select_keys(self, *more: Any) -> Any:
        """Every column that `owned` reads, and more after them."""
        columns = [*_key_columns(self._keys), *self._class.owner_columns]
        attribute = self._class.reference_attribute
        if attribute is None:
            return select(*columns, *more).select_from(self._keys)
        table = self._class.primary_key[0].table
        on = [a == b for a, b in zip(self._class.owner_columns, self._class.primary_key, strict=True)]
        columns.append(self._class.mapper.columns[attribute])
        return select(*columns, *more).select_from(self._keys.join(table, and_(*on)))

    def _owned(self, query: Any, *values: Any, locks: bool = False) -> list[OwnedKey]:
        return [self.owned(row) for row in self._rows(query, *values, locks=locks)]

    def owned(self, row: Any) -> OwnedKey:
        """One row of `select_keys`, checked."""
        end = _KEY_WIDTH + len(self._class.owner_columns)
        primary_key = tuple(row[_KEY_WIDTH:end])
        reference = self._references.get(primary_key)  # an owner has a key for each epoch
        if reference is None:
            reference = self._references[primary_key] = self._class.reference_of(primary_key)
        owner = self.where + reference
        try:
            stored = _stored_key(row)
        except TamperedKeyError as altered:
            # A stand-in with its id, so that whoever meets a value under it is told why it does not open.
            stored = StoredKey(row[0], b"", Purpose.DATA, "", 0, KeyState.RETIRED, b"", b"")
            return OwnedKey(owner, primary_key, stored, altered)
        if self._class.reference_attribute is not None:
            reference = self._class.reference_of((row[end],))
        error: EnvelopeError | None = None
        if self._seals.is_on:
            try:
                self._seals.check(stored.seal, self._class.label, stored.sealed_fields(), self._realm)
            except RowSealError as broken:
                error = broken
        if stored.owner_reference != reference:
            error = error or OwnerMismatchError(
                f"Keys stored for this {self._class.name} are bound to another owner. If its table was "
                "renamed, pin the old name: `__owner_label__ = 'old_name'` on the class. If its primary key "
                "was changed, bind the keys anew: envelope.rebind(session, owner, secret=...). If neither, "
                "they were moved here."
            )
        return OwnedKey(owner, primary_key, stored, error)


def shows_others_when_locked(dialect: Dialect) -> bool:
    """Whether a locking read alone shows what others committed after the transaction's first read."""
    return dialect.name in ("mysql", "mariadb")


def insert_unless_there(dialect: str, table: Table, id_column: Any) -> Any:
    """An INSERT that leaves out what a unique constraint stands against, and nothing else."""
    # The engine's own dialect, imported already: another one takes a quarter of a second to import.
    dialects = import_module(f"sqlalchemy.dialects.{'mysql' if dialect == 'mariadb' else dialect}")
    statement = dialects.insert(table)
    if dialect in ("mysql", "mariadb"):
        # Not INSERT IGNORE, which passes over a missing owner and cuts off what is too long.
        return statement.on_duplicate_key_update({id_column.key: id_column})
    return statement.on_conflict_do_nothing()


def usable(keys: Iterable[OwnedKey]) -> list[OwnedKey]:
    """The same keys, if each may be used.

    Raises:
        RowSealError, OwnerMismatchError: one may not.
    """
    found = list(keys)
    for one in found:
        if one.error is not None:
            raise one.error
    return found


def _parsed(keys: Iterable[OwnedKey]) -> Iterator[OwnedKey]:
    for one in keys:
        if isinstance(one.error, TamperedKeyError):
            raise one.error
        yield one


def _skips_locked(dialect: Dialect) -> bool:
    """Whether a locking read can pass over the rows that others hold."""
    if dialect.name in ("mysql", "mariadb"):
        version = dialect.server_version_info or ()
        return version >= ((10, 6) if getattr(dialect, "is_mariadb", False) else (8, 0, 1))
    return dialect.name == "postgresql"


def chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (values[start : start + CHUNK] for start in range(0, len(values), CHUNK))


def matches(columns: Sequence[Any], keys: Sequence[PrimaryKey]) -> Any:
    if len(columns) == 1:
        return columns[0].in_([key[0] for key in keys])
    # Not one condition for each: SQLite takes some hundreds of those.
    return tuple_(*columns).in_([tuple(key) for key in keys])


def made_once(selects: dict[Any, Any], name: object, make: Callable[[], Any]) -> Any:
    """A statement that was made before, if it was: to make one takes as long as sending it."""
    found = selects.get(name)
    if found is None:
        found = selects[name] = make()
    return found


def given(columns: Sequence[Any], name: str) -> Any:
    """As `matches`, of a statement that is made once: the keys come with it, as `values_of` makes them."""
    keys: Any = bindparam(name, expanding=True)
    return columns[0].in_(keys) if len(columns) == 1 else tuple_(*columns).in_(keys)


def values_of(columns: Sequence[Any], keys: Iterable[PrimaryKey]) -> list[Any]:
    """What `given` takes for these keys."""
    return [key[0] for key in keys] if len(columns) == 1 else [tuple(key) for key in keys]


class RawBytes(LargeBinary):
    """Bytes as the driver gives them. SQLAlchemy's own type calls `bytes()` on them, and `bytes(n)` of an
    integer that was planted in a binary column of SQLite allocates n bytes."""

    def result_processor(self, dialect: Any, coltype: object) -> None:
        """None: nothing is done to them."""


def raw(column: Any) -> Any:
    return type_coerce(column, RawBytes())


def stored_bytes(value: object, size: int | None = None) -> bytes:
    if not isinstance(value, (bytes, bytearray, memoryview)) or size not in (None, len(value)):
        raise TamperedKeyError(
            "A stored key has something else than bytes of its size where bytes are stored."
        )
    return bytes(value)


def _key_columns(keys: Any) -> tuple[Any, ...]:
    c = keys.c
    return (
        c.key_id, raw(c.owner_reference), c.purpose, c.scope, c.epoch, c.state, raw(c.commitment),
        raw(c.public_key), raw(c.mlkem_public_key), c.wrapping_key_id, raw(c.wrapped), raw(c.proof),
        c.granted, raw(c.seal),
    )  # fmt: skip


def _slot_columns(slots: Table) -> tuple[Any, ...]:
    c = slots.c
    return (
        c.slot_id, c.key_id, c.kind, c.kdf, raw(c.wrapped), raw(c.recipient_public_key), c.provider_ref,
        raw(c.provider_wrapped), raw(c.seal),
    )  # fmt: skip


_KEY_WIDTH = 14
_PURPOSES = {purpose.value: purpose for purpose in Purpose}
_STATES = {state.value: state for state in KeyState}


def _stored_key(row: Any) -> StoredKey:
    purpose, state = _PURPOSES.get(row[2]), _STATES.get(row[5])
    if purpose is None or state is None:
        raise TamperedKeyError("A stored key has a purpose or state that no key has.")
    scope, epoch, granted = row[3], row[4], row[12]
    if not isinstance(scope, str) or not isinstance(epoch, int) or not isinstance(granted, int):
        raise TamperedKeyError("A stored key has a scope or epoch that no key has.")
    if not 0 <= epoch < 2**32:
        raise TamperedKeyError(f"A stored key says it is of epoch {epoch}; no key is.")
    return StoredKey(
        row[0],
        stored_bytes(row[1]),
        purpose,
        scope,
        epoch,
        state,
        stored_bytes(row[6], 32),
        stored_bytes(row[7], 32),
        None if row[8] is None else stored_bytes(row[8], 1184),
        row[9],
        None if row[10] is None else stored_bytes(row[10]),
        _proof(row[11]),
        granted,
        None if row[13] is None else stored_bytes(row[13]),
    )


def _proof(value: object) -> bytes | None:
    if value is None:
        return None
    proof = stored_bytes(value)
    if len(proof) not in (32, 64):
        raise TamperedKeyError("A stored key has a proof of another size than proofs have.")
    return proof


def _stored_slot(row: Any) -> StoredSlot:
    kdf, reference = row[3] or "", row[6]
    if not isinstance(kdf, str) or not isinstance(reference, (str, type(None))):
        raise KdfParametersError("The stored key-derivation string is no text.")
    try:
        kind = SlotKind(row[2])
    except ValueError:
        raise TamperedKeyError("A stored slot is of a kind that no slot is of.") from None
    return StoredSlot(
        row[0],
        row[1],
        kind,
        kdf,
        stored_bytes(row[4]),
        None if row[5] is None else stored_bytes(row[5], 32),
        reference,
        None if row[7] is None else stored_bytes(row[7]),
        None if row[8] is None else stored_bytes(row[8]),
    )
