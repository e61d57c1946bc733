"""The pending work that an unlock found: an unlock only reads, and the first write settles.

Three things are kept: the grants that were followed, the new slots, which are ciphertext already, and the KEK
of a slot with a root key that has to be replaced. No secret is kept. The key for a stronger slot was derived
at the unlock, while no row was locked and off the event loop.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.crypto.sealing import is_sealed
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.exceptions import EnvelopeError
from sqlalchemy_envelope.keys.model import Purpose
from sqlalchemy_envelope.keys.slots import adopted_slot, open_slot
from sqlalchemy_envelope.orm.sharing.granted import Opening, load_again, owners_of
from sqlalchemy_envelope.orm.sharing.locking import lock_groups
from sqlalchemy_envelope.orm.sharing.own_keys import is_left_undone
from sqlalchemy_envelope.orm.sharing.roots import renew
from sqlalchemy_envelope.orm.sharing.settle import settle
from sqlalchemy_envelope.orm.tables.attempts import attempt
from sqlalchemy_envelope.orm.tables.location import bind_of
from sqlalchemy_envelope.orm.tables.slot_rows import was_used_since

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.keyring import Keyring
    from sqlalchemy_envelope.keys.model import StoredGrant, StoredSlot
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.sharing.granted import Owners, Places
    from sqlalchemy_envelope.orm.sharing.roots import OpenedRoot
    from sqlalchemy_envelope.orm.tables.key_rows import KeyStore
    from sqlalchemy_envelope.orm.tables.owners import GrantClass, OwnerClass, Place

_NOTED_EVERY = dt.timedelta(days=1)

SlotChange = tuple["StoredSlot", "StoredSlot"]
"""A slot as it is stored now, and the slot that replaces it."""


class _Part:
    """Owners that were followed, with the grants that led to them."""

    def __init__(self) -> None:
        self.places: Places = {}
        self.whole = False
        self._scoped: dict[OwnerClass, dict[tuple[Any, ...], None]] = {}
        self._grants: dict[UUID, tuple[GrantClass, StoredGrant]] = {}

    def add(self, found: Opening, *, whole: bool) -> None:
        self.places.update(found.places)
        for of, keys in found.scoped.items():
            self._scoped.setdefault(of, {}).update(keys)
        self._grants.update((grant.grant_id, (of, grant)) for of, grant in found.grants)
        self.whole = self.whole or whole

    def join(self, other: _Part) -> None:
        self.add(other.opening(), whole=other.whole)

    def opening(self) -> Opening:
        return Opening(dict(self.places), list(self._grants.values()), self._scoped)


class Waiting:
    """The pending work of an unlocked owner.

    Args:
        place: the owner.
        root: the owner's root key, with the slot and the KEK that opened it.
        stronger: replacements for slots of the owner that fall short of the present key derivation policy.
    """

    def __init__(
        self,
        place: Place,
        root: OpenedRoot,
        stronger: Sequence[SlotChange] = (),
    ) -> None:
        self._place = place
        self._unsettled, self._settled = _Part(), _Part()
        # A copy: the unlock wipes its KEK, and a provider keeps its KEK for others.
        self._root = root if root.trusted else root._replace(kek=KeyBytes(root.kek.buffer))
        self._is_left = not root.trusted
        self._slots = list(stronger)
        self._used = root.slot
        if root.trusted and not stronger and is_sealed(root.slot.wrapped):
            self._slots = [(root.slot, adopted_slot(root.slot, root.root, root.kek))]

    def take(self, keyring: Keyring, found: Opening, *, waits: bool, whole: bool = False) -> bool:
        """Take in grants of the owner that were followed.

        Nothing may be written under a sealed key before its maker is known.

        Args:
            keyring: the keys of the unlocked session.
            found: the owners and grants that were followed.
            waits: whether other rows show pending work.
            whole: whether every grant of the owner was followed.

        Returns:
            Whether these owners have to be settled: `waits`, or these rows show pending work themselves.
        """
        # Asked now: after a rollback the keyring shows the planned state, not the stored state.
        is_left = is_left_undone(keyring, found)
        if waits or is_left:
            self._unsettled.add(found, whole=whole)
            self._is_left = self._is_left or is_left
        return waits or is_left

    @property
    def owners(self) -> Owners:
        """The owners that were followed and are not settled yet."""
        return owners_of(self._unsettled.opening())

    def again(self) -> None:
        """Make settled work pending again, after a rollback."""
        self._unsettled.join(self._settled)
        self._settled = _Part()

    def wipe(self) -> None:
        """Forget the KEK. The next unlock finds the pending work again."""
        if not self._root.trusted:
            self._root.kek.wipe()

    def is_async(self, session: Session) -> bool:
        """Whether the owner's database is reached through asyncio."""
        return bind_of(session, self._place.owner_class.mapper).dialect.is_async

    def settle(self, desk: Desk, keyring: Keyring) -> Places:
        """Carry out the pending work of the owners that were followed, in the session's transaction.

        Returns:
            The owners that the keyring reaches now.
        """
        # Emptied first: the writes of settling must not ask for settling.
        part, self._unsettled = self._unsettled, _Part()
        self._settled.join(part)
        found, store = part.opening(), desk.keys(self._place.owner_class)
        if not self._root.trusted or (store.locks_as_a_whole and (self._is_left or self._slots)):
            lock_groups(desk, [self._place])  # before the rows are read that the writes depend on
        if self._is_left:
            # Another unlock of this owner may have done the work meanwhile.
            within = None if part.whole else owners_of(found)
            found = load_again(desk, keyring, found.places, within)
        for old, new in self._replaceable(desk, store):
            store.replace_slot(old, new)  # a lost race does no harm: the winner did the same, or more
        if not self._root.trusted and not self._is_renewed(desk, keyring):
            renew(desk, self._place, keyring, self._root)
        settle(desk, keyring, found)
        self._note_use(desk)
        return found.places

    def _replaceable(self, desk: Desk, store: KeyStore) -> list[SlotChange]:
        """The slots that are replaced now. A later unlock replaces what another transaction holds."""
        if not self._slots:
            return []
        if any(old.kdf != new.kdf for old, new in self._slots):
            # Under another KEK. An epoch that starts at this moment would be sealed to the slot as it was.
            root_id, holds = self._root.root.stored.key_id, False
            with attempt(desk.session, self._place.owner_class.mapper):
                holds = root_id in store.free([root_id]) and store.hold_active(root_id)
            if not holds:
                return []
        free = store.free_slots([old.slot_id for old, _ in self._slots])
        return [(old, new) for old, new in self._slots if old.slot_id in free]

    def _note_use(self, desk: Desk) -> None:
        """Note, once a day, that the slot was used. It is done without: others may change the slot now."""
        slot, now = self._used, dt.datetime.now(dt.UTC)
        if was_used_since(slot, now - _NOTED_EVERY) or any(old == slot for old, _ in self._slots):
            return
        self._used = replace(slot, used_at=now)
        store = desk.keys(self._place.owner_class)
        with attempt(desk.session, self._place.owner_class.mapper):
            if store.free_slots([slot.slot_id]):
                store.note_use([slot], now)

    def _is_renewed(self, desk: Desk, keyring: Keyring) -> bool:
        """Whether another unlock already replaced this root key, with a new root key that this KEK opens."""
        current, slot = keyring.current(self._place.owner, Purpose.ROOT), self._root.slot
        if current is None or current.key_id == self._root.root.stored.key_id:
            return False
        store = desk.keys(self._place.owner_class)
        for one in store.load_slots([current.key_id], slot.kind, closed_too=True):
            if is_sealed(one.wrapped) or (one.kdf, one.recipient_public_key) != (
                slot.kdf,
                slot.recipient_public_key,
            ):
                continue
            try:
                keyring.add(self._place.owner, [open_slot(one, current, self._root.kek)])
                return True
            except EnvelopeError:
                continue
        return False
