"""Escrow: root keys sealed to a pinned public key, and opened with the private half of its custodians."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy_envelope.exceptions import ConfigurationError, KeyNotFoundError
from sqlalchemy_envelope.keys.model import Purpose, SlotKind
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.current.policy import note_policy, require_reason
from sqlalchemy_envelope.orm.sharing.first_use import trusting_first_use
from sqlalchemy_envelope.orm.sharing.locking import hold_slots
from sqlalchemy_envelope.orm.sharing.roots import open_with_kek
from sqlalchemy_envelope.orm.verbs.log_in.unlock import unlocked_owner
from sqlalchemy_envelope.orm.verbs.opened_owner import opened_roots, settle_owner
from sqlalchemy_envelope.orm.verbs.owner_keys import active_root, load_keys, locate_enrolled

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy_envelope.keys.escrow import OpenedEscrowKey
    from sqlalchemy_envelope.keys.model import KeyId, StoredKey, StoredSlot
    from sqlalchemy_envelope.orm.current.audit import EventName
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.sessions.unlocked import UnlockedSession
    from sqlalchemy_envelope.orm.verbs.owner_keys import LocatedOwner
    from sqlalchemy_envelope.orm.verbs.steps import Steps


def add_escrow(desk: Desk, owner: object) -> None:
    """Seal each open root key of an owner to the pinned key, and delete escrow slots of other keys."""
    escrow = desk.policy.escrow
    if escrow is None:
        raise ConfigurationError(
            "There is no escrow key to seal to: Envelope(escrow=EscrowKey('escrow-public:...')). "
            "`sqlalchemy-envelope keys generate escrow` makes one."
        )
    located = locate_enrolled(desk, owner)
    note_policy(desk.session, desk.policy)
    settle_owner(located)
    opened_roots(located)  # refused before anything is locked
    hold_slots(desk, located.place)
    keys = load_keys(located)
    opened = opened_roots(located, keys)
    slots = located.store.load_slots(_roots(keys), SlotKind.ESCROW)
    mine = {slot.key_id for slot in slots if slot.recipient_public_key == escrow.public_key}
    made = [escrow.slot(root) for root in opened if root.stored.key_id not in mine]
    # A slot of a former key stays as long as it is the only one of its root key.
    there = mine | {slot.key_id for slot in made}
    former = [
        slot for slot in slots if slot.recipient_public_key != escrow.public_key and slot.key_id in there
    ]
    located.store.insert_slots(made)
    if former:
        located.store.delete_slots(former)
        _tell(located, "slot_removed", count=len(former))
    if made:
        _tell(located, "slot_added", count=len(made))


def unlock_with_escrow_steps(
    desk: Desk, owner: object, key: OpenedEscrowKey, reason: str
) -> Steps[UnlockedSession]:
    """The steps of `Envelope.unlock` with an opened escrow key."""
    yield from ()  # nothing slow: a generator as the steps of every unlock
    require_reason(reason)
    if not any(key.kek.buffer):
        raise ConfigurationError("This escrow key was wiped, at the end of its `with`: open it again.")
    located = locate_enrolled(desk, owner)
    note_policy(desk.session, desk.policy)
    keys = load_keys(located)
    root = active_root(located, keys)
    loaded = located.store.load_slots(_roots(keys), SlotKind.ESCROW, or_new=True, closed_too=True)
    slot, mine = _slots_of(located, root, loaded, key)
    found = trusting_first_use(open_with_kek(desk.policy, keys, root, slot, mine, key.kek), keys)
    _tell(located, "escrow_opened", reason=reason, key_id=root.key_id.hex[:8])
    return unlocked_owner(desk, located, keys, found, new=loaded)


def _slots_of(
    located: LocatedOwner, root: StoredKey, loaded: Iterable[StoredSlot], key: OpenedEscrowKey
) -> tuple[StoredSlot, list[StoredSlot]]:
    """Return the slot of the active root key that this key opens, and all slots that it may open.

    Raises:
        KeyNotFoundError: there is no such slot.
    """
    slots = [slot for slot in loaded if slot.kind is SlotKind.ESCROW]
    mine = [slot for slot in slots if slot.recipient_public_key == key.public_key]
    slot = next((slot for slot in mine if slot.key_id == root.key_id), None)
    if slot is not None:
        return slot, mine
    others = {(slot.recipient_public_key or b"").hex()[:8] for slot in slots if slot.key_id == root.key_id}
    if others:
        raise KeyNotFoundError(
            f"The escrow slot of this {located.name} is sealed to another key than {key.public!r}: to one "
            f"whose public half begins with {', '.join(sorted(others))} (hexadecimal)."
        )
    raise KeyNotFoundError(
        f"This {located.name} has no escrow slot: its keys were never given to custodians, or no longer are. "
        "`envelope.slots(session, owner)` lists the slots."
    )


def _roots(keys: Sequence[StoredKey]) -> list[KeyId]:
    return [key.key_id for key in keys if key.purpose is Purpose.ROOT]


def _tell(
    located: LocatedOwner,
    name: EventName,
    count: int = 1,
    *,
    reason: str | None = None,
    key_id: str | None = None,
) -> None:
    located.desk.emit(
        AuditEvent(
            name,
            located.name,
            count,
            reason=reason,
            key_id=key_id,
            owner_id=located.place.primary_key,
            slot_kind=SlotKind.ESCROW.value,
        )
    )
