"""Open an owner's root keys through a slot; start a new epoch where the present epoch is unproven."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy_envelope.crypto.sealing import is_sealed
from sqlalchemy_envelope.exceptions import EnvelopeError
from sqlalchemy_envelope.keys.hierarchy import is_proven, short
from sqlalchemy_envelope.keys.model import KeyState, Purpose
from sqlalchemy_envelope.keys.slots import adopted_slot, open_slot
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.sharing.beyond import renew_beyond
from sqlalchemy_envelope.orm.sharing.epochs import start_epoch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy_envelope.crypto.secret import KeyBytes
    from sqlalchemy_envelope.keys.keyring import Keyring
    from sqlalchemy_envelope.keys.model import OpenedKey, StoredKey, StoredSlot
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.tables.owners import Place


class OpenedRoot(NamedTuple):
    """The active root key, the slot that opened it, and the retired root keys that the same KEK opens."""

    root: OpenedKey
    slot: StoredSlot
    kek: KeyBytes
    older: list[OpenedKey]
    slots: list[tuple[StoredSlot, OpenedKey]]
    """The slots that this KEK opens, each with its root key. The slot of the active root key comes first."""
    vouching: list[OpenedKey]
    """The retired root keys that are known to be the owner's, the oldest first."""
    trusted: bool
    hardens: bool = False
    """Whether the root key is not trusted because custodians have held it, as the policy decides."""


def active_root_among(keys: Iterable[StoredKey]) -> StoredKey | None:
    """The root key that an owner's slots open."""
    roots = (key for key in keys if key.purpose is Purpose.ROOT)
    return next((key for key in roots if key.state is KeyState.ACTIVE), None)


def open_with_kek(
    policy: Policy,
    keys: Sequence[StoredKey],
    root: StoredKey,
    slot: StoredSlot,
    slots: Sequence[StoredSlot],
    kek: KeyBytes,
) -> OpenedRoot:
    """Open the active root key through a slot with its KEK, and the retired root keys with the same KEK.

    Raises: as `open_slot`.
    """
    opened = open_slot(slot, root, kek)
    older, reached = [], [(slot, opened)]
    for one in slots:
        like = one.kdf == slot.kdf and one.recipient_public_key == slot.recipient_public_key
        key = next((key for key in keys if key.key_id == one.key_id), None)
        if one.slot_id == slot.slot_id or key is None or not like:
            continue
        try:
            before = open_slot(one, key, kek)
        except EnvelopeError:
            continue  # the values under it stay locked, and the active root key is not affected
        older.append(before)
        reached.append((one, before))
    known = _known(reached[1:])
    # Anybody can make a sealed slot; only a holder of the KEK can make a wrapped slot.
    genuine = not is_sealed(slot.wrapped) or policy.seals.is_on or is_proven(root, known[-1:])
    return OpenedRoot(opened, slot, kek, older, reached, known, genuine)


def _known(reached: Iterable[tuple[StoredSlot, OpenedKey]]) -> list[OpenedKey]:
    """The retired root keys that are known to be the owner's, the oldest first.

    A root key is known if a holder of the KEK wrapped it, or if its maker proves to have held the newest root
    key that was known before. The older ones prove nothing: whoever was shut out since still has them.
    """
    known: list[OpenedKey] = []
    for slot, root in sorted(reached, key=lambda one: one[1].stored.epoch):
        if not is_sealed(slot.wrapped) or is_proven(root.stored, known[-1:]):
            known.append(root)
    return known


def renew(
    desk: Desk, place: Place, keyring: Keyring, found: OpenedRoot
) -> list[tuple[StoredSlot, OpenedKey]]:
    """Replace an epoch that somebody else may have made, and keep the slot that led to it.

    Returns:
        The slot with the new root key; an empty list if the keyring does not hold the new root key.
    """
    if place.owner_class.grants_of:
        # First the owners that reach this owner: the new key is sealed to the root keys that they have then.
        renew_beyond(desk, keyring, {place.owner_class: [found.root.stored.key_id]})
    vouching = max(found.vouching, key=lambda one: one.stored.epoch, default=None)
    start_epoch(desk, place, keyring, vouching=vouching)
    if found.hardens:
        key_id = short(found.root.stored)
        desk.emit(AuditEvent("hardened", place.owner_class.name, key_id=key_id, owner_id=place.primary_key))
    root = keyring.root(place.owner)
    if root is None:
        return []
    store, kept = desk.keys(place.owner_class), []
    for slot in store.load_slots([root.stored.key_id], found.slot.kind):
        like = (slot.kdf, slot.recipient_public_key) == (found.slot.kdf, found.slot.recipient_public_key)
        if like:
            adopted = adopted_slot(slot, root, found.kek)
            kept.append((store.replace_slot(slot, adopted) or adopted, root))
    return kept
