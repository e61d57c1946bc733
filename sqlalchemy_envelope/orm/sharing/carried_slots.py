"""The slots that go over to a new root key.

An escrow slot goes over only if its key is pinned in the configuration, and a slot for emergencies only where
there are server keys, whose seal it carries. Without these checks, whoever may write rows could plant a slot
and would be given the next root key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy_envelope.keys.model import SlotKind
from sqlalchemy_envelope.orm.current.audit import AuditEvent

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy_envelope.keys.model import StoredSlot
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.tables.owners import Place


def carried_slots(desk: Desk, place: Place, slots: Iterable[StoredSlot]) -> list[StoredSlot]:
    """Return what the slots for a new root key are made like.

    For a slot that is left out, an event is emitted: the slot was planted, or this process was started
    without `Envelope(escrow=...)` or `server_keys=`. To refuse the epoch instead would let whoever plants a
    slot keep a removed member in.
    """
    known = [slot for slot in slots if slot.recipient_public_key is not None]
    carried = [slot for slot in known if slot.kind not in (SlotKind.ESCROW, SlotKind.EMERGENCY)]
    if len(carried) == len(known):
        return carried
    pinned = desk.policy.escrow
    in_escrow = [slot for slot in known if slot.kind is SlotKind.ESCROW]
    found = [None if pinned is None else pinned.carried(slot) for slot in in_escrow]
    carried += [slot for slot in found if slot is not None][:1]
    _tell(desk, place, SlotKind.ESCROW, found.count(None))
    emergency = [slot for slot in known if slot.kind is SlotKind.EMERGENCY]
    if desk.policy.seals.is_on:
        return carried + emergency
    _tell(desk, place, SlotKind.EMERGENCY, len(emergency))
    return carried


def _tell(desk: Desk, place: Place, kind: SlotKind, count: int) -> None:
    if count:
        name, owner_id = place.owner_class.name, place.primary_key
        desk.emit(AuditEvent("slot_refused", name, count, owner_id=owner_id, slot_kind=kind.value))
