"""Key, slot and grant rows that are wrapped and sealed anew, each only if it is still as it was read.

Nothing here opens a key. What a row says stays the same: only the wrap of a provider's KEK and the row seal
change. So a row is never sealed anew unless its present seal is right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import literal, select, tuple_

from sqlalchemy_envelope.keys.model import Purpose, SlotKind
from sqlalchemy_envelope.orm.tables.key_rows import KeyStore
from sqlalchemy_envelope.orm.tables.rows import chunks
from sqlalchemy_envelope.orm.tables.stored_rows import slot_columns, slot_notes, stored_slot

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.model import KeyId, StoredGrant, StoredKey, StoredSlot
    from sqlalchemy_envelope.keys.row_seals import RenewingSeals
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass
    from sqlalchemy_envelope.orm.tables.stored_rows import OwnedKey

    PrimaryKey = tuple[Any, ...]


class RenewedSlot(NamedTuple):
    """A slot as it was read, and as it is written."""

    old: StoredSlot
    new: StoredSlot


class Renewals(KeyStore):
    """The key and slot rows of one class of owners, to be wrapped and sealed anew."""

    def __init__(self, session: Session, owner_class: OwnerClass, seals: RenewingSeals) -> None:
        super().__init__(session, owner_class, seals)
        self._renewing = seals

    def owners_after(self, after: PrimaryKey | None, limit: int) -> list[PrimaryKey]:
        """So many owners with keys after this one, in the order of their primary keys."""
        c, columns = self._keys.c, self._class.owner_columns
        query = select(*columns).distinct().where(c.purpose == Purpose.ROOT)
        query = self.after(query, after)
        return [tuple(row) for row in self._rows(query.order_by(*columns).limit(limit))]

    def load_between(self, after: PrimaryKey | None, last: PrimaryKey) -> list[OwnedKey]:
        """Every key of the owners after the one, up to the other."""
        return self._owned(self._between(self._select(), after, last))

    def slots_between(self, after: PrimaryKey | None, last: PrimaryKey) -> list[StoredSlot]:
        """As `slots_unchecked`, of all root keys of the owners after the one, up to the other."""
        query = select(*slot_columns(self._slots), *slot_notes(self._slots))
        query = query.join(self._keys, self._keys.c.key_id == self._slots.c.key_id)
        return [stored_slot(row) for row in self._rows(self._between(query, after, last))]

    def _between(self, query: Any, after: PrimaryKey | None, last: PrimaryKey) -> Any:
        columns = self._class.owner_columns
        end = [literal(part, column.type) for part, column in zip(last, columns, strict=True)]
        up_to = columns[0] <= end[0] if len(end) == 1 else tuple_(*columns) <= tuple_(*end)
        return self.after(query, after).where(up_to)

    def slots_unchecked(self, key_ids: Iterable[KeyId]) -> list[StoredSlot]:
        """The slots of these root keys as their rows are: in their pepper, and whatever seal they have. The
        caller checks each with `check_slot`."""
        query = self._query_slots(None, None, or_new=False)
        return [
            stored_slot(row) for some in chunks(list(key_ids)) for row in self._rows(query, {"key_ids": some})
        ]

    def check_slot(self, slot: StoredSlot) -> None:
        """Check the row seal of a slot.

        Raises:
            RowSealError: the application did not write this row.
        """
        self._seals.check(slot.seal, self._class.label, slot.sealed_fields(), self._realm)

    def is_sealed_now(self, record: StoredKey | StoredSlot | StoredGrant) -> bool:
        """Whether a row needs no new seal: it has one under the active server key, or there are none."""
        return self._seals.is_under_active(record.seal)

    def _renewed(self, record: StoredKey | StoredSlot) -> bytes | None:
        return self._renewing.renewed(record.seal) or self._seal(record)

    def renew_keys(self, keys: Sequence[StoredKey]) -> int:
        """Seal these key rows under the active server key; how many were still as they were read."""
        # The seal covers the row: whoever changes the row changes the seal.
        c = self._keys.c
        rows = [(key.key_id, key.seal, self._renewed(key)) for key in keys]
        return self.update_each(self._keys, (c.key_id, c.seal), (c.seal,), rows)

    def renew_slots(self, slots: Sequence[RenewedSlot]) -> int:
        """Write these slots; how many were still as they were read."""
        c = self._slots.c
        wrapped = [
            (
                old.slot_id,
                old.wrapped,
                old.provider_wrapped,
                new.provider_wrapped,
                new.provider_ref,
                self._seal(new),
            )
            for old, new in slots
            if new.kind is SlotKind.PROVIDER
        ]
        still = (c.slot_id, c.wrapped, c.provider_wrapped)
        count = self.update_each(self._slots, still, (c.provider_wrapped, c.provider_ref, c.seal), wrapped)
        others = [
            (old.slot_id, old.seal, self._renewed(old))
            for old, new in slots
            if new.kind is not SlotKind.PROVIDER
        ]
        # `changed_at` tells when a slot's wrap changed, so that a new seal leaves it as it is.
        return count + self.update_each(self._slots, (c.slot_id, c.seal), (c.seal,), others, (c.changed_at,))
