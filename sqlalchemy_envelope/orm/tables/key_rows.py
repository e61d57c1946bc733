"""Reading and writing the key tables, in the caller's transaction. Nothing here commits.

What is read is checked against its row seal, and what is written gets one, where server keys are configured.
"""

from __future__ import annotations

import datetime as dt
import uuid
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    and_,
    bindparam,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    tuple_,
    update,
)

from sqlalchemy_envelope.exceptions import (
    EnvelopeError,
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
from sqlalchemy_envelope.orm.tables.location import location_of
from sqlalchemy_envelope.orm.tables.retirements import note_retired
from sqlalchemy_envelope.orm.tables.rows import (
    chunks,
    given,
    matches,
    pairs,
    shows_others_when_locked,
    values_of,
)
from sqlalchemy_envelope.orm.tables.slot_rows import SlotRows
from sqlalchemy_envelope.orm.tables.stored_rows import (
    KEY_WIDTH,
    OwnedKey,
    key_columns,
    parsed,
    slot_columns,
    slot_notes,
    stored_key,
    stored_slot,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy import Table
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.keys.model import KeyId
    from sqlalchemy_envelope.keys.pepper import SlotPepper
    from sqlalchemy_envelope.keys.row_seals import RowSeals
    from sqlalchemy_envelope.orm.tables.owners import Location, OwnerClass
    from sqlalchemy_envelope.orm.tables.slot_rows import ShareStore
    from sqlalchemy_envelope.orm.tables.stored_rows import HeldKey

    PrimaryKey = tuple[Any, ...]


_MOST_ROWS = 20_000
"""The most rows of keys and slots of one owner that are read: planted rows have an end."""


class KeyStore(SlotRows):
    """The key and slot rows of one class of owners."""

    def __init__(
        self,
        session: Session,
        owner_class: OwnerClass,
        seals: RowSeals,
        pepper: SlotPepper | None = None,
        shares: ShareStore | None = None,
    ) -> None:
        super().__init__(session, owner_class, seals, pepper, shares)
        self._keys: Table = owner_class.key_class.__table__
        self.key_id = self._keys.c.key_id
        self._references: dict[PrimaryKey, OwnerId] = {}

    @cached_property
    def where(self) -> Location:
        """The database and schema that these owners are in."""
        return location_of(self._session, self._class.mapper, self._seals.realm)

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

    def hold_active(self, key_id: KeyId) -> bool:
        """Hold an active root key until the transaction ends, by writing its row as it is: a transaction with
        an older snapshot, which would not see what is written next, is told so (SQLSTATE 40001).

        Returns:
            Whether the key is there and active. If not, another transaction replaced it.
        """
        c = self._keys.c
        statement = self._made_once(
            "hold",
            lambda: (
                update(self._keys)
                .where(c.key_id == bindparam("this_key"), c.state == KeyState.ACTIVE)
                .values(granted=c.granted)
            ),
        )
        return bool(self._execute(statement, {"this_key": key_id}).rowcount == 1)

    def touch_roots(self, primary_keys: Sequence[PrimaryKey]) -> None:
        """As `hold_active`, for the active root keys of these owners, which are locked already."""
        c = self._keys.c
        for some in chunks(primary_keys):
            mine = and_(matches(self._class.owner_columns, some), c.purpose == Purpose.ROOT)
            self._execute(
                update(self._keys).where(mine, c.state == KeyState.ACTIVE).values(granted=c.granted)
            )

    def load_with_secrets(self, primary_key: PrimaryKey) -> tuple[list[OwnedKey], list[StoredSlot]]:
        """Every key of an owner, as `load`, and the secret slots of its root keys. One query.

        Slots under a pepper that is not configured are among them.
        """
        start = KEY_WIDTH + len(self._class.owner_columns) + (self._class.reference_attribute is not None)
        keys: dict[KeyId, OwnedKey] = {}
        slots: list[StoredSlot] = []
        query = self._made_once("with secrets", self._query_with_secrets)
        values = {"owners": values_of(self._class.owner_columns, [primary_key])}
        for row in self._rows(query, values):
            if row[0] not in keys:
                keys[row[0]] = self.owned(row[:start])
            if row[start] is not None:
                slots.append(self._opened(stored_slot(row[start:])))
        return list(keys.values()), slots

    def _query_with_secrets(self) -> Any:
        keys, slots = self._keys.c, self._slots
        on = and_(slots.c.key_id == keys.key_id, slots.c.kind == SlotKind.SECRET)
        query = self.select_keys(*slot_columns(slots), *slot_notes(slots)).outerjoin(slots, on)
        query = query.where(given(self._class.owner_columns, "owners"))
        query = query.order_by(keys.purpose, keys.scope, keys.epoch, slots.c.slot_id)
        return query.limit(_MOST_ROWS)

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
        query = self.select_keys(*key_columns(roots), *columns, *slot_columns(slots))
        query = query.join(roots, roots.c.key_id == self._keys.c.wrapping_key_id)
        query = query.join(slots, slots.c.key_id == roots.c.key_id)
        return query.where(slots.c.kind == SlotKind.PROVIDER)

    def _held(self, query: Any, values: dict[str, Any]) -> Iterator[HeldKey]:
        width = KEY_WIDTH + len(self._class.owner_columns)
        start = width + (self._class.reference_attribute is not None)
        for row in self._rows(query, values):
            root = self.owned((*row[start : start + width], *row[width:start]))
            slot = stored_slot(row[start + width :])
            self._seals.check(slot.seal, self._class.label, slot.sealed_fields(), self._realm)
            yield self.owned(row), root, slot

    def exists(self, primary_key: PrimaryKey, key_id: KeyId) -> bool:
        """Whether this owner has this key."""
        c = self._keys.c
        mine = matches(self._class.owner_columns, [primary_key])
        return bool(self._rows(select(c.key_id).where(c.key_id == key_id, mine)))

    def is_there(self, primary_key: PrimaryKey) -> bool:
        """Whether the owner's own row is in the database: asked for an error alone."""
        keys = self._class.primary_key
        return bool(self._rows(select(*keys).where(matches(keys, [primary_key])).limit(1)))

    def load_held_by(
        self,
        provider: str,
        after: PrimaryKey | None,
        limit: int,
        *,
        made_before: tuple[Purpose, dt.datetime] | None = None,
    ) -> list[PrimaryKey]:
        """The owners whose active root key has a slot of this provider, in the order of their primary keys;
        so many after this one. With `made_before`, those with an active key of this purpose that was made
        before this time, in UTC."""
        keys, slots, columns = self._keys.c, self._slots.c, self._class.owner_columns
        query = select(*columns).distinct().join(self._slots, slots.key_id == keys.key_id)
        query = query.where(
            keys.purpose == Purpose.ROOT,
            keys.state == KeyState.ACTIVE,
            slots.kind == SlotKind.PROVIDER,
            slots.provider_ref.startswith(f"{provider} ", autoescape=True),
        )
        if made_before is not None:
            purpose, time = made_before
            old = self._keys.alias()
            mine = pairs(columns, [old.c[column.key] for column in columns])
            old_key = (old.c.purpose == purpose, old.c.state == KeyState.ACTIVE, old.c.created_at < time)
            query = query.where(exists().where(*mine, *old_key))
        query = self.after(query, after)
        return [tuple(row) for row in self._rows(query.order_by(*columns).limit(limit))]

    def count_owners(self, provider: str | None = None) -> int:
        """The number of owners with keys; with `provider`, of those whom this provider opens."""
        keys, slots = self._keys.c, self._slots.c
        query = select(func.count()).where(keys.purpose == Purpose.ROOT, keys.state == KeyState.ACTIVE)
        if provider is not None:
            held = (slots.kind == SlotKind.PROVIDER, slots.key_id == keys.key_id)
            named = slots.provider_ref.startswith(f"{provider} ", autoescape=True)
            query = query.where(exists().where(*held, named))
        return int(self._rows(query)[0][0])

    def after(self, query: Any, primary_key: PrimaryKey | None) -> Any:
        """Of a query that gives owners, those after this one; all of them if it is None."""
        columns = self._class.owner_columns
        if primary_key is None:
            return query
        here = [literal(part, column.type) for part, column in zip(primary_key, columns, strict=True)]
        return query.where(columns[0] > here[0] if len(here) == 1 else tuple_(*columns) > tuple_(*here))

    def free(self, key_ids: Sequence[KeyId]) -> set[KeyId]:
        """Those of these keys whose rows no other transaction holds; they are held here from now on."""
        return self._free(self.key_id, key_ids)

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

    def load_active(self, key_ids: Iterable[KeyId], *, locking: bool = False) -> dict[KeyId, OwnerId]:
        """Whose these keys are, of those that are there and active.

        Args:
            locking: lock the rows for sharing, so that nobody retires them before the transaction ends.
        """
        c, found = self._keys.c, {}
        for some in chunks(list(key_ids)):
            query = select(c.key_id, *self._class.owner_columns)
            query = query.where(c.key_id.in_(some), c.state == KeyState.ACTIVE)
            query = query.with_for_update(of=self._keys, read=True) if locking else query
            for row in self._rows(query, locks=locking):
                found[row[0]] = self._class.owner_id(self.where, tuple(row[1:]))
        return found

    def primary_keys_of(self, key_ids: Iterable[KeyId]) -> dict[KeyId, PrimaryKey]:
        """The primary keys of the owners of these keys, for a report: no row is checked."""
        c, found = self._keys.c, {}
        for some in chunks(list(key_ids)):
            for row in self._rows(select(c.key_id, *self._class.owner_columns).where(c.key_id.in_(some))):
                found[row[0]] = tuple(row[1:])
        return found

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
            retired = {key.key_id for key in keys if key.state is KeyState.RETIRED}
            note_retired(self._session, self._mapper, self._keys, retired, now)

    def add_granted(self, counts: Sequence[tuple[KeyId, int]]) -> None:
        """Count grants that were made of keys."""
        c = self._keys.c
        statement = update(self._keys).where(c.key_id == bindparam("this_key"))
        rows = [{"this_key": key_id, "more": more} for key_id, more in counts]
        if rows:
            self._execute(statement.values(granted=c.granted + bindparam("more")), rows)

    def forget_grants(self, key_ids: Sequence[KeyId]) -> None:
        """Count no grants of these keys any more, and keep no proof: they are destroyed."""
        c = self._keys.c
        self._execute(update(self._keys).where(c.key_id.in_(key_ids)).values(granted=0, proof=None))

    def reseal(self) -> int:
        """Seal every row anew under the active server key, whatever seal it has; how many."""
        unchecked = KeyStore(self._session, self._class, type(self._seals)())
        found = unchecked._owned(unchecked._select())
        keys = [one.stored for one in parsed(found)]
        roots = [key.key_id for key in keys if key.purpose is Purpose.ROOT]
        slots = unchecked.load_slots(roots, closed_too=True)  # without a pepper: the seal covers the row
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

    def _select(self) -> Any:
        c = self._keys.c
        in_order = (c.purpose, c.scope, c.epoch)
        return self._made_once("keys", lambda: self.select_keys().order_by(*in_order))

    def select_keys(self, *more: Any) -> Any:
        """Every column that `owned` reads, and more after them."""
        columns = [*key_columns(self._keys), *self._class.owner_columns]
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
        end = KEY_WIDTH + len(self._class.owner_columns)
        primary_key = tuple(row[KEY_WIDTH:end])
        reference = self._references.get(primary_key)  # an owner has a key for each epoch
        if reference is None:
            reference = self._references[primary_key] = self._class.reference_of(primary_key)
        owner = self.where + reference
        try:
            stored = stored_key(row)
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
