"""The slots that open an owner's keys, read from the rows; adding a provider, and removing slots."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy_envelope.exceptions import EnrollmentError, KeyNotFoundError
from sqlalchemy_envelope.keys.model import KeyState, Purpose, SlotKind
from sqlalchemy_envelope.keys.slots import is_waiting, provider_slot
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.current.keks import kek_for_new
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.current.policy import note_policy
from sqlalchemy_envelope.orm.sessions.key_slots import KeySlot, KeySlots, shown_slot
from sqlalchemy_envelope.orm.sharing.beyond import MAX_LEVELS
from sqlalchemy_envelope.orm.sharing.epochs import start_epoch
from sqlalchemy_envelope.orm.sharing.locking import hold_slots
from sqlalchemy_envelope.orm.sharing.membership import forget_looks
from sqlalchemy_envelope.orm.sharing.reachable import note_slots_removed
from sqlalchemy_envelope.orm.tables.grant_counts import count_grants
from sqlalchemy_envelope.orm.tables.key_rows import KeyStore
from sqlalchemy_envelope.orm.tables.owners import Place
from sqlalchemy_envelope.orm.verbs.emergency_shares import rewrap_shares
from sqlalchemy_envelope.orm.verbs.opened_owner import opened_root, opened_roots, settle_owner
from sqlalchemy_envelope.orm.verbs.owner_keys import active_root, load_keys, locate_enrolled

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy_envelope.keys.model import StoredKey, StoredSlot
    from sqlalchemy_envelope.orm.current.audit import EventName
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.verbs.owner_keys import LocatedOwner
    from sqlalchemy_envelope.orm.verbs.steps import Steps


def slots_of(desk: Desk, owner: object) -> KeySlots:
    """Return the slots of an owner, and the slots of providers and escrow that lead to it through grants."""
    located = locate_enrolled(desk, owner)
    found: list[KeySlot] = []
    seen, frontier = {located.place.owner}, [_Step(located.place, (), None)]
    for _ in range(MAX_LEVELS + 1):
        reached: list[_Step] = []
        for step in frontier:
            slots, further = _look_at(desk, step)
            found += slots
            for one in further:
                if one.place.owner not in seen:
                    seen.add(one.place.owner)
                    reached.append(one)
        frontier = reached
        if not frontier:
            break
    return KeySlots(dict.fromkeys(found))


class _Step(NamedTuple):
    """An owner reached through these grants, with the scope that they open."""

    place: Place
    through: tuple[str, ...]
    scope: str | None


def _look_at(desk: Desk, step: _Step) -> tuple[list[KeySlot], list[_Step]]:
    """Return the slots of an owner, and the recipients of grants of its keys."""
    place, through, scope = step
    store = desk.keys(place.owner_class)
    keys = [one.stored for one in store.load([place.primary_key])]
    active = [key for key in keys if key.state is KeyState.ACTIVE]
    roots = [key.key_id for key in active if key.purpose is Purpose.ROOT]
    slots = store.load_slots(roots, closed_too=True)
    if through:  # what opens without a person
        slots = [slot for slot in slots if slot.kind in (SlotKind.PROVIDER, SlotKind.ESCROW)]
    further: list[_Step] = []
    names = Names(desk.session)
    for grant in place.owner_class.grants_of:
        # Past the first grant, follow only grants of a root key: a granted scope leads no further.
        if through and grant.scope is not None:
            continue
        name = grant.mapper.class_.__name__
        for _, _, recipient in desk.grants(grant).load_of([key.key_id for key in active]):
            to = names.place(grant.to.owner_class, recipient)
            further.append(_Step(to, (*through, name), scope if through else grant.scope))
    return [shown_slot(slot, through, scope) for slot in slots], further


def add_provider_steps(desk: Desk, owner: object, provider: str) -> Steps[None]:
    """The steps of `Envelope.add_provider`."""
    located = locate_enrolled(desk, owner)
    note_policy(desk.session, desk.policy)
    settle_owner(located)
    opened_roots(located)  # refused before the provider is called
    kek = yield from kek_for_new(desk, provider)
    hold_slots(desk, located.place)  # no provider is called while a lock is held
    opened = opened_roots(located)
    slots = _provider_slots(located.store, [root.stored for root in opened])
    mine = {slot.key_id for slot in slots if slot.provider_name == provider}
    missing = [root for root in opened if root.stored.key_id not in mine]
    if missing:
        made = [provider_slot(root, kek, unacknowledged=True) for root in missing]
        located.store.insert_slots(made)
        forget_looks(desk.session)  # this transaction may have looked for these keys in vain
        _tell(located, "provider_added", SlotKind.PROVIDER, provider)


def remove_provider(desk: Desk, owner: object, provider: str) -> None:
    """Delete a provider's slots, and start a new epoch whose keys the provider never held."""
    located = locate_enrolled(desk, owner)
    note_policy(desk.session, desk.policy)
    settle_owner(located)
    hold_slots(desk, located.place)
    roots = [key for key in load_keys(located) if key.purpose is Purpose.ROOT]
    slots = _provider_slots(located.store, roots)
    mine = [slot for slot in slots if slot.provider_name == provider]
    if not mine:
        raise KeyNotFoundError(
            f"This {located.name} has no key slot of provider {provider!r}. `envelope.slots(session, owner)` "
            "lists its slots."
        )
    _shut_out(located, mine)
    _tell(located, "provider_removed", SlotKind.PROVIDER, provider)


def remove_slot(desk: Desk, owner: object, slot: KeySlot | uuid.UUID) -> None:
    """Delete a slot, and start a new epoch whose keys its holder never held."""
    located = locate_enrolled(desk, owner)
    note_policy(desk.session, desk.policy)
    settle_owner(located)
    opened_root(located, active_root(located, load_keys(located)))
    # Held, so that two removals at once do not leave the owner without a slot.
    hold_slots(desk, located.place)
    keys = [key for key in load_keys(located) if key.purpose is Purpose.ROOT]
    slots = located.store.load_slots([key.key_id for key in keys], for_update=True, closed_too=True)
    named = _named(located, slots, [slot])
    mine = [one for one in slots if any(one.opens_like(removed) for removed in named)]
    _require_other_way(located, keys, slots, mine)
    _shut_out(located, mine)
    _tell(located, "slot_removed", named[0].kind, named[0].provider_name or None)


def acknowledge_slots(desk: Desk, owner: object, slots: Sequence[KeySlot | uuid.UUID]) -> None:
    """Note that the owner knows of these slots; of every slot if none is named."""
    located = locate_enrolled(desk, owner)
    note_policy(desk.session, desk.policy)
    root = active_root(located, load_keys(located))
    opened_root(located, root)
    stored = located.store.load_slots([root.key_id], closed_too=True)
    named = _named(located, stored, slots) if slots else stored
    unknown = [slot for slot in named if slot.unacknowledged_since is not None]
    if unknown:
        located.store.acknowledge(unknown)
        for kind in sorted({slot.kind for slot in unknown}):
            _tell(located, "slot_acknowledged", kind, count=sum(slot.kind is kind for slot in unknown))


def _named(
    located: LocatedOwner, stored: Sequence[StoredSlot], slots: Iterable[KeySlot | uuid.UUID]
) -> list[StoredSlot]:
    """Return the stored slots that an application names.

    Raises:
        KeyNotFoundError: the owner has no such slot any more.
    """
    by_id = {slot.slot_id: slot for slot in stored}
    found = []
    for slot in slots:
        slot_id = slot.slot_id if isinstance(slot, KeySlot) else slot
        if not isinstance(slot_id, uuid.UUID) or slot_id not in by_id:
            raise KeyNotFoundError(
                f"This {located.name} has no such key slot. A new epoch gives every slot a new id: "
                "`envelope.slots(session, owner)` lists the slots as they are now."
            )
        found.append(by_id[slot_id])
    return found


def _require_other_way(
    located: LocatedOwner,
    roots: Sequence[StoredKey],
    slots: Sequence[StoredSlot],
    removed: Sequence[StoredSlot],
) -> None:
    """Require that each root key opens in another way, once these slots are gone.

    Raises:
        EnrollmentError: nothing else leads to one of the root keys.
    """
    gone = {slot.slot_id for slot in removed}
    # A waiting slot opens nothing yet; an emergency slot opens only for a person who may be gone by then.
    lasting = [slot for slot in slots if slot.kind is not SlotKind.EMERGENCY and not is_waiting(slot)]
    stay = {slot.key_id for slot in lasting if slot.slot_id not in gone}
    alone = [
        root.key_id
        for root in roots
        if root.key_id in {slot.key_id for slot in removed}
        and root.key_id not in stay
        and root.wrapping_key_id is None
    ]
    grants = located.place.owner_class.grants_of
    counts = count_grants(located.desk.session, grants, alone) if alone and grants else {}
    for key_id in alone:
        if key_id not in counts or counts[key_id].rows == counts[key_id].pending:
            raise EnrollmentError(
                f"This key slot is the last way to keys of this {located.name}: values under these keys "
                "would be lost. Add another slot first, such as a secret or a recovery code."
            )


def _shut_out(located: LocatedOwner, slots: Sequence[StoredSlot]) -> None:
    """Delete slots, and start a new epoch, whose keys they never held."""
    desk = located.desk
    located.store.delete_slots(slots)
    start_epoch(desk, located.place, desk.keyring_for(located.place.owner))
    note_slots_removed(desk, located.place)
    if not any(slot.kind is SlotKind.PROVIDER for slot in slots):
        return
    here: Any = context.unlocked_sessions(desk.session)
    for innermost in here:
        for unlocked in innermost.outward():
            if unlocked.on_demand:  # the provider must not read the new epoch
                unlocked.drop(located.place.owner)


def seal_rows(desk: Desk, owner_classes: Sequence[Any]) -> int:
    """Seal every key, slot and grant row of these classes, and wrap what the server holds for emergencies;
    return the number of rows."""
    total = 0
    for owner_class in owner_classes:
        count = desk.keys(owner_class).reseal()
        count += sum(desk.grants(grant).reseal() for grant in owner_class.grants_of)
        count += rewrap_shares(desk, owner_class)
        if count:
            desk.emit(AuditEvent("rows_sealed", owner_class.name, count))
        total += count
    return total


def _provider_slots(store: KeyStore, roots: Sequence[StoredKey]) -> list[StoredSlot]:
    return store.load_slots([root.key_id for root in roots], SlotKind.PROVIDER)


def _tell(
    located: LocatedOwner,
    name: EventName,
    kind: SlotKind,
    provider: str | None = None,
    count: int = 1,
) -> None:
    owner_id = located.place.primary_key
    located.desk.emit(
        AuditEvent(name, located.name, count, provider=provider, owner_id=owner_id, slot_kind=kind.value)
    )
