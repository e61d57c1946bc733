"""Key, slot and grant rows that are wrapped and sealed anew, each only if it is still as it was read.

Nothing here opens a key. What a row says stays the same: only the wrap of a provider's KEK and the row seal
change. So a row is never sealed anew unless its present seal is right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import select

from sqlalchemy_envelope.keys.model import Purpose, SlotKind
from sqlalchemy_envelope.orm.tables.key_rows import KeyStore
from sqlalchemy_envelope.orm.tables.rows import chunks
from sqlalchemy_envelope.orm.tables.stored_rows import stored_slot

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy_envelope.keys.model import KeyId, StoredGrant, StoredKey, StoredSlot

    PrimaryKey = tuple[Any, ...]


class RenewedSlot(NamedTuple):
    """A slot as it was read, and as it is written."""

    old: StoredSlot
    new: StoredSlot


class Renewals(KeyStore):
    """The key and slot rows of one class of owners, to be wrapped and sealed anew."""

    def owners_after(self, after: PrimaryKey | None, limit: int) -> list[PrimaryKey]:
        """So many owners with keys after this one, in the order of their primary keys."""
        c, columns = self._keys.c, self._class.owner_columns
        query = select(*columns).distinct().where(c.purpose == Purpose.ROOT)
        query = self.after(query, after)
        return [tuple(row) for row in self._rows(query.order_by(*columns).limit(limit))]

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

    def renew_keys(self, keys: Sequence[StoredKey]) -> int:
        """Seal these key rows under the active server key; how many were still as they were read."""
        # The seal covers the row: whoever changes the row changes the seal.
        c = self._keys.c
        rows = [(key.key_id, key.seal, self._seal(key)) for key in keys]
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
            (old.slot_id, old.seal, self._seal(new))
            for old, new in slots
            if new.kind is not SlotKind.PROVIDER
        ]
        # `changed_at` tells when a slot's wrap changed, so that a new seal leaves it as it is.
        return count + self.update_each(self._slots, (c.slot_id, c.seal), (c.seal,), others, (c.changed_at,))
