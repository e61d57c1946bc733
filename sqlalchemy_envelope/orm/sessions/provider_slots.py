"""The slots of one provider, through which a server opens owners."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from sqlalchemy.util import concurrency

from sqlalchemy_envelope.crypto.sealing import is_sealed
from sqlalchemy_envelope.keys.model import Purpose, SlotKind
from sqlalchemy_envelope.keys.slots import adopted_slot
from sqlalchemy_envelope.orm.current.keks import kek_for_new, kek_of_slot
from sqlalchemy_envelope.orm.current.threads import off_loop
from sqlalchemy_envelope.orm.sharing.first_use import open_held
from sqlalchemy_envelope.orm.sharing.roots import renew
from sqlalchemy_envelope.orm.tables.cascades import in_greenlet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy_envelope.crypto.secret import KeyBytes
    from sqlalchemy_envelope.keys.keyring import Keyring, OwnerId
    from sqlalchemy_envelope.keys.model import KeyId, StoredSlot
    from sqlalchemy_envelope.keys.slots import ProviderKek
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.current.keks import Calls
    from sqlalchemy_envelope.orm.tables.owners import Place
    from sqlalchemy_envelope.orm.tables.stored_rows import OwnedKey

    Rows = Mapping[OwnerId, list[OwnedKey]]
    Slots = Mapping[KeyId, Sequence[StoredSlot]]
    """By root key."""

T = TypeVar("T")


class ProviderSlots:
    """The slots of a provider.

    Args:
        can_open: whether the provider can open its slots in this process.
    """

    def __init__(self, provider: str, *, can_open: bool) -> None:
        self._provider = provider
        self.can_open = can_open

    def opens(self, slot: StoredSlot) -> bool:
        """Tell whether the provider can open this slot in this process."""
        return self.can_open and slot.provider_name == self._provider

    def of_owners(self, desk: Desk, places: Sequence[Place], rows: Rows, *, locking: bool) -> Slots:
        """Return the slots of root keys of owners of one class. One query, if the provider can open any."""
        found: dict[KeyId, list[StoredSlot]] = {}
        if not self.can_open:
            return found
        keys = [row.stored for place in places for row in rows[place.owner]]
        roots = [key.key_id for key in keys if key.purpose is Purpose.ROOT]
        store = desk.keys(places[0].owner_class)
        for slot in store.load_slots(roots, SlotKind.PROVIDER, for_update=locking):
            if self.opens(slot):
                found.setdefault(slot.key_id, []).append(slot)
        return found

    def open(self, desk: Desk, keyring: Keyring, place: Place, rows: list[OwnedKey], slots: Slots) -> bool:
        """Take all of an owner's keys into a keyring; return False if no slot opens its active root key.

        An untrusted root key is replaced, and a sealed slot is adopted.

        Raises:
            EnvelopeError: the rows are not as the application wrote them.
        """
        found = open_held(desk.policy, rows, slots, lambda slot: self.kek(desk, slot))
        if found is None:
            return False
        keyring.add(place.owner, [found.root, *found.older])
        keyring.add_stored(place.owner, [row.stored for row in rows])
        if not found.trusted:
            renew(desk, place, keyring, found)
        elif is_sealed(found.slot.wrapped):
            adopted = adopted_slot(found.slot, found.root, found.kek)
            desk.keys(place.owner_class).replace_slot(found.slot, adopted)
        return True

    def kek(self, desk: Desk, slot: StoredSlot) -> KeyBytes:
        """Return the KEK of a slot."""
        return _answered(kek_of_slot(desk, slot))

    def kek_for_new(self, desk: Desk, *, however_old: bool) -> ProviderKek:
        """Return the KEK that wraps new slots."""
        return _answered(kek_for_new(desk, self._provider, however_old=however_old))


def _answered(calls: Calls[T]) -> T:
    """Run steps that call a provider; under asyncio in a thread, so that the event loop is not blocked."""
    try:
        work = next(calls)
        while True:
            answer = concurrency.await_only(off_loop(work.call)) if in_greenlet() else work.call()
            work = calls.send(answer)
    except StopIteration as stop:
        result: T = stop.value
        return result
