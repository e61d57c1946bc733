"""The slots of root keys: `KeyStore` reads and writes them beside the keys."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from sqlalchemy import LargeBinary, and_, bindparam, case, func, insert, literal, or_, select, update

from sqlalchemy_envelope.crypto.peppering import PREFIX_SIZE, prefix_of
from sqlalchemy_envelope.exceptions import EnvelopeError
from sqlalchemy_envelope.keys.model import SlotKind, StoredSlot
from sqlalchemy_envelope.keys.pepper import SlotPepper, require_open
from sqlalchemy_envelope.orm.tables.rows import Rows, chunks, given, insert_unless_there, made_once
from sqlalchemy_envelope.orm.tables.stored_rows import raw, slot_columns, slot_notes, stored_slot

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy import Table
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.crypto.key_share import KeyShare
    from sqlalchemy_envelope.keys.model import KeyId, StoredKey
    from sqlalchemy_envelope.keys.row_seals import RowSeals
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass


MAX_SLOTS = 32
"""The most slots of one kind that an owner has."""
_EXCHANGED = 200
"""The most slots that one statement replaces."""


def in_utc(time: dt.datetime | None) -> dt.datetime | None:
    """A time from the database. SQLite and MySQL store no zone: the library writes UTC."""
    if time is None or time.tzinfo is not None:
        return time
    return time.replace(tzinfo=dt.UTC)


def was_used_since(slot: StoredSlot, time: dt.datetime) -> bool:
    """Whether a slot opened its root key at this time or later, as far as it is noted."""
    used = in_utc(slot.used_at)
    return used is not None and used >= time


class StaleSlot(NamedTuple):
    """A slot that is stored otherwise than slots are stored now; or its ids, and why it must not be used."""

    slot: StoredSlot
    error: EnvelopeError | None


class ShareStore(Protocol):
    """Stores the shares of KEKs in the second database."""

    def store(self, shares: Iterable[KeyShare]) -> None:
        """Store shares, and commit them."""


class SlotRows(Rows):
    """The slot rows of one class of owners.

    A slot that is loaded is out of its pepper, and one that is written is put under the active pepper. Its
    share is committed in the second database before it is written.

    Args:
        pepper, shares: left out by code that reads and writes no secret slot.
    """

    def __init__(
        self,
        session: Session,
        owner_class: OwnerClass,
        seals: RowSeals,
        pepper: SlotPepper | None = None,
        shares: ShareStore | None = None,
    ) -> None:
        super().__init__(session, owner_class.mapper, seals)
        self._pepper = pepper or SlotPepper()
        self._class = owner_class
        self._shares = shares
        self._slots: Table = owner_class.slot_class.__table__

    def load_slots(
        self,
        key_ids: Iterable[KeyId],
        kind: SlotKind | None = None,
        limit: int | None = None,
        *,
        or_new: bool = False,
        for_update: bool = False,
        closed_too: bool = False,
    ) -> list[StoredSlot]:
        """The slots of these root keys. One query for some thousands.

        Args:
            kind: the kind of the slots; left out, every kind.
            limit: the most slots to load.
            or_new: load slots of other kinds too, if their owner has not acknowledged them.
            for_update: lock the slots.
            closed_too: load slots under a pepper that is not configured, too: for a caller that reads neither
                their wrap nor their public key.

        Raises:
            PepperError: there is a slot under a pepper that is not configured.
        """
        found: list[StoredSlot] = []
        name = ("slots", kind, limit, or_new)
        query = self._made_once(name, lambda: self._query_slots(kind, limit, or_new=or_new))
        query = query.with_for_update(of=self._slots) if for_update else query
        for some in chunks(list(key_ids)):
            found += [self._opened(stored_slot(row)) for row in self._rows(query, {"key_ids": some})]
        for slot in () if closed_too else found:
            require_open(slot)
        return found

    def _opened(self, row: StoredSlot) -> StoredSlot:
        """Check a row's seal, and take the slot out of its pepper. The seal covers the row as it is."""
        self._seals.check(row.seal, self._class.label, row.sealed_fields(), self._realm)
        return self._pepper.opened(row)

    def _query_slots(self, kind: SlotKind | None, limit: int | None, *, or_new: bool) -> Any:
        c = self._slots.c
        columns = (*slot_columns(self._slots), *slot_notes(self._slots))
        query = select(*columns).where(given([c.key_id], "key_ids")).order_by(c.slot_id)
        if kind is not None:
            wanted = c.kind == kind
            if or_new:
                # A slot of a kind that a later version adds must not keep its owner out.
                is_new = and_(c.unacknowledged_since.is_not(None), c.kind.in_(list(SlotKind)))
                wanted = or_(wanted, is_new)
            query = query.where(wanted)
        return query.limit(limit)

    def load_stale(self, after: uuid.UUID | None, limit: int) -> list[StaleSlot]:
        """Secret slots that are not stored under the active pepper: so many after this one, by their ids."""
        c, pepper = self._slots.c, self._pepper_of
        query = select(*slot_columns(self._slots)).where(self._is_secret, pepper != self._pepper.prefix)
        # A slot without a public key gets no pepper: no such slot is made.
        query = query.where(or_(c.recipient_public_key.is_not(None), pepper != b""))
        query = query if after is None else query.where(c.slot_id > after)
        return [self._stale(row) for row in self._rows(query.order_by(c.slot_id).limit(limit))]

    def _stale(self, row: Any) -> StaleSlot:
        try:
            slot = self._opened(stored_slot(row))
            require_open(slot)
        except EnvelopeError as error:
            return StaleSlot(StoredSlot(row[0], row[1], SlotKind.SECRET, "", b""), error)
        return StaleSlot(slot, None)

    def count_peppers(self) -> dict[bytes, int]:
        """How many secret slots are under each pepper, by the first bytes of the slots; empty without one."""
        found = select(self._pepper_of.label("pepper")).where(self._is_secret).subquery()
        query = select(found.c.pepper, func.count()).group_by(found.c.pepper)
        return {bytes(pepper): count for pepper, count in self._rows(query)}

    @property
    def _is_secret(self) -> Any:
        return self._slots.c.kind == SlotKind.SECRET

    @property
    def _pepper_of(self) -> Any:
        """The first bytes of a slot under a pepper, and empty bytes of any other."""
        wrapped = raw(self._slots.c.wrapped)
        first, prefix = (func.substr(wrapped, 1, size, type_=LargeBinary()) for size in (1, PREFIX_SIZE))
        return case((first == prefix_of(b""), prefix), else_=literal(b"", LargeBinary()))

    def free_slots(self, slot_ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        """As `free`, of slots."""
        return self._free(self._slots.c.slot_id, slot_ids)

    def insert_slots(self, slots: Sequence[StoredSlot]) -> None:
        """Write new slots."""
        rows = self._slot_rows(slots)
        if rows:
            self._execute(insert(self._slots), rows)

    def delete_slots(self, slots: Sequence[StoredSlot]) -> int:
        """Delete slots: what they opened no longer opens this way. How many were there still."""
        ids = [one.slot_id for one in slots]
        return int(self._execute(self._slots.delete().where(self._slots.c.slot_id.in_(ids))).rowcount)

    def replace_slot(self, old: StoredSlot, new: StoredSlot) -> StoredSlot | None:
        """Replace a slot's wrap, unless somebody else did in the meantime.

        Returns:
            The new slot, to be replaced again; None if somebody else replaced the old one.
        """
        self._store_shares([new])
        c, row = self._slots.c, self._pepper.stored(new)
        statement = update(self._slots).where(c.slot_id == old.slot_id, c.wrapped == old.in_row)
        result = self._execute(
            statement.values(
                kdf=row.kdf,
                wrapped=row.wrapped,
                recipient_public_key=row.recipient_public_key,
                provider_ref=row.provider_ref,
                provider_wrapped=row.provider_wrapped,
                used_at=row.used_at,
                seal=self._seal(row),
            )
        )
        return replace(new, under_pepper=row.under_pepper) if result.rowcount == 1 else None

    def note_use(self, slots: Sequence[StoredSlot], at: dt.datetime) -> None:
        """Note that these slots opened their root keys."""
        self._note(slots, used_at=at)

    def note_claim(self, slots: Sequence[StoredSlot], provider_ref: str | None) -> None:
        """Note the campaign's key that held the keys of these slots, for its report."""
        self._note(slots, claimed_from=provider_ref)

    def acknowledge(self, slots: Sequence[StoredSlot]) -> None:
        """Note that the owner knows of these slots."""
        self._note(slots, unacknowledged_since=None)

    def _note(self, slots: Sequence[StoredSlot], **values: Any) -> None:
        c = self._slots.c
        for some in chunks([slot.slot_id for slot in slots]):
            # `changed_at` tells when a slot's wrap changed, so that a note leaves it as it is.
            statement = update(self._slots).where(c.slot_id.in_(some))
            self._execute(statement.values(changed_at=c.changed_at, **values))

    def exchange(self, slots: Sequence[tuple[StoredSlot, StoredSlot]]) -> bool:
        """Replace slots that one KEK opens by slots of another KEK, in one statement; each unless somebody
        else did in the meantime.

        Returns:
            Whether every slot was replaced. If not, the caller raises, and the transaction is rolled back.
        """
        self._store_shares(new for _, new in slots)
        c = self._slots.c
        replaced = 0
        for some in chunks([(old, self._pepper.stored(new)) for old, new in slots], _EXCHANGED):
            new = some[0][1]
            statement = update(self._slots).where(
                or_(*(and_(c.slot_id == old.slot_id, c.wrapped == old.in_row) for old, _ in some))
            )
            result = self._execute(
                statement.values(
                    kdf=new.kdf,
                    recipient_public_key=new.recipient_public_key,
                    used_at=new.used_at,
                    wrapped=_by_slot(c, c.wrapped, [(old, new.wrapped) for old, new in some]),
                    seal=_by_slot(c, c.seal, [(old, self._seal(new)) for old, new in some])
                    if self._seals.is_on
                    else None,
                )
            )
            replaced += result.rowcount
        return replaced == len(slots)

    def replace_slots(self, slots: Sequence[tuple[StoredSlot, StoredSlot]]) -> int:
        """Replace the wraps of slots, each unless somebody else did in the meantime. How many were replaced,
        as far as the driver tells."""
        c = self._slots.c
        statement = update(self._slots).where(c.slot_id == bindparam("this"), c.wrapped == bindparam("old"))
        statement = statement.values(
            wrapped=bindparam("new"), recipient_public_key=bindparam("public"), seal=bindparam("new_seal")
        )
        rows = [
            {
                "this": old.slot_id,
                "old": old.in_row,
                "new": row.wrapped,
                "public": row.recipient_public_key,
                "new_seal": self._seal(row),
            }
            for old, row in ((old, self._pepper.stored(new)) for old, new in slots)
        ]
        if not rows:
            return 0
        replaced = self._execute(statement.execution_options(preserve_rowcount=True), rows).rowcount
        return int(replaced) if self.dialect.supports_sane_multi_rowcount else len(rows)

    def _slot_rows(self, slots: Sequence[StoredSlot]) -> list[dict[str, Any]]:
        self._store_shares(slots)
        now = dt.datetime.now(dt.UTC)
        made = []
        for slot in slots:
            row = self._pepper.stored(slot)
            columns = {
                **vars(row),
                "kind": row.kind.value,
                "seal": self._seal(row),
                "created_at": row.created_at or now,
            }
            del columns["under_pepper"]  # what the row holds is in `wrapped`
            del columns["share"]  # it has no place in this database
            made.append(columns)
        return made

    def _store_shares(self, slots: Iterable[StoredSlot]) -> None:
        """Commit the shares of new slots in the second database.

        The share comes first: wherever a crash comes between, the owner opens what was there before.
        """
        shares = [slot.share for slot in slots if slot.share is not None]
        if shares and self._shares is not None:
            self._shares.store(shares)

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

    def _made_once(self, name: object, make: Callable[[], Any]) -> Any:
        return made_once(self._class.selects, name, make)


def _by_slot(c: Any, column: Any, values: Sequence[tuple[StoredSlot, bytes | None]]) -> Any:
    """An expression that gives each of these slots its own value."""
    # Not `case({...}, value=c.slot_id)`: SQLAlchemy gives its keys no type, and MariaDB stores ids as text.
    return case(
        *((c.slot_id == slot.slot_id, bindparam(None, value, type_=column.type)) for slot, value in values)
    )
