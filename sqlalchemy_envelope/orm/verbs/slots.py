"""The slots that open an owner's keys, read from the rows; adding and removing provider slots, and adding a
first secret."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy_envelope.crypto.argon2id import KdfSalt
from sqlalchemy_envelope.crypto.preparation import prepare_hidden
from sqlalchemy_envelope.exceptions import AlreadyEnrolledError, KeyNotFoundError, UnclaimedError
from sqlalchemy_envelope.keys.model import KeyState, Purpose, SlotKind
from sqlalchemy_envelope.keys.slots import is_waiting, provider_slot, secret_slot
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.current.keks import kek_for_new
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.current.policy import note_policy
from sqlalchemy_envelope.orm.sharing.beyond import MAX_LEVELS
from sqlalchemy_envelope.orm.sharing.epochs import start_epoch
from sqlalchemy_envelope.orm.sharing.membership import forget_looks
from sqlalchemy_envelope.orm.sharing.reachable import note_provider_removed
from sqlalchemy_envelope.orm.tables.key_rows import KeyStore
from sqlalchemy_envelope.orm.tables.owners import Place
from sqlalchemy_envelope.orm.verbs.owner_keys import active_root, load_keys, locate_enrolled
from sqlalchemy_envelope.orm.verbs.steps import Derivation, wiping
from sqlalchemy_envelope.orm.verbs.unlock import is_unclaimed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy_envelope.crypto.argon2id import KdfProfile
    from sqlalchemy_envelope.crypto.preparation import HiddenSecret
    from sqlalchemy_envelope.keys.model import OpenedKey, StoredKey, StoredSlot
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.verbs.owner_keys import LocatedOwner
    from sqlalchemy_envelope.orm.verbs.steps import Steps


@dataclass(frozen=True)
class KeySlot:
    """One way to an owner's keys that needs no other owner unlocked.

    Attributes:
        kind: "secret" or "provider"; "waiting" for a secret that opens nothing until custodians release it.
        provider: the name of the provider, for a provider slot.
        reference: the reference of the outside key that wraps it.
        through: the grants that lead from the owner to the owner of the slot, outermost last; empty for the
            owner's own slots.
        scope: the scope that the grants open, or None for all scopes.
    """

    kind: str
    provider: str | None = None
    reference: str | None = None
    through: tuple[str, ...] = ()
    scope: str | None = None


class KeySlots(tuple[KeySlot, ...]):
    """The slots that open an owner's keys: its own slots, and provider slots that reach it through grants."""

    __slots__ = ()

    @property
    def providers(self) -> frozenset[str]:
        """The providers that can open any of this owner's data.

        The operators of these providers can read it. If this is empty, only people with a secret can.
        """
        return frozenset(slot.provider for slot in self if slot.provider is not None)


def slots_of(desk: Desk, owner: object) -> KeySlots:
    """Return the slots of an owner, and the provider slots that lead to it through grants."""
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
    slots = store.load_slots(roots, SlotKind.PROVIDER if through else None)
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
    return [_told(slot, through, scope) for slot in slots], further


def _told(slot: StoredSlot, through: tuple[str, ...], scope: str | None) -> KeySlot:
    if slot.kind is SlotKind.SECRET:
        return KeySlot("waiting" if is_waiting(slot) else "secret", through=through, scope=scope)
    name, _, reference = (slot.provider_ref or "").partition(" ")
    return KeySlot("provider", name, reference, through, scope)


def add_provider_steps(desk: Desk, owner: object, provider: str) -> Steps[None]:
    """The steps of `Envelope.add_provider`."""
    located = locate_enrolled(desk, owner)
    note_policy(desk.session, desk.policy)
    _settle(located)
    root = active_root(located, load_keys(located))
    opened = _opened(located, root)
    kek = yield from kek_for_new(desk, provider)
    mine = [slot for slot in _provider_slots(located.store, [root]) if slot.provider_name == provider]
    if not mine:
        located.store.insert_slots([provider_slot(opened, kek)])
        forget_looks(desk.session)  # this transaction may have looked for these keys in vain
        desk.emit(AuditEvent("provider_added", located.name, provider=provider))


def add_secret_steps(desk: Desk, profile: KdfProfile, owner: object, secret: HiddenSecret) -> Steps[None]:
    """The steps of `Envelope.add_secret`."""
    prepared = prepare_hidden(secret, new=True)
    located = locate_enrolled(desk, owner)
    note_policy(desk.session, desk.policy)
    keys = load_keys(located)
    _require_no_secret(located, keys)
    opened = _opened(located, active_root(located, keys))
    salt = KdfSalt.generate(profile)
    kek = yield Derivation(prepared, salt)
    with wiping(kek):
        # During the derivation, somebody else may have added a secret. So lock the owner's rows now, and load
        # them again, since a statement that waited for a lock sees no new rows.
        located.store.load([located.place.primary_key], for_update=True)
        keys = load_keys(located)
        _require_no_secret(located, keys)
        if active_root(located, keys).key_id != opened.stored.key_id:
            opened = _opened(located, active_root(located, keys))
        located.store.insert_slots([secret_slot(opened, kek, salt)])
    desk.emit(AuditEvent("secret_added", located.name))


def _settle(located: LocatedOwner) -> None:
    """Settle what waits for an owner before its keys are given to somebody."""
    session = located.desk.session
    for unlocked in context.unlocked_sessions(session):
        unlocked.follow_owners(session, located.place.owner_class, [located.place.primary_key])
    context.settle_unlocked(session)


def _opened(located: LocatedOwner, root: StoredKey) -> OpenedKey:
    """Open a root key of an unlocked owner.

    Raises:
        LockedError: no unlocked session has the root key.
    """
    session = located.desk.session
    for unlocked in context.unlocked_sessions(session):
        if unlocked.on_demand:  # a server opens owners as they are needed
            unlocked.prepare_write(session, located.place.owner_class, [located.place.primary_key], 0)
        else:
            unlocked.follow_owners(session, located.place.owner_class, [located.place.primary_key])
        keyring = unlocked.keyring_for(located.place.owner, session)
        opened = None if keyring is None else keyring.open(root.key_id)
        if opened is not None:
            return opened
    context.refuse_replaced(session, located.place.owner, located.place.owner_class, root.key_id)
    raise context.locked(f"This {located.name}", session, located.place.owner_class, use="give")


def _require_no_secret(located: LocatedOwner, keys: Sequence[StoredKey]) -> None:
    roots = [key.key_id for key in keys if key.purpose is Purpose.ROOT]
    if is_unclaimed(located, roots):
        raise UnclaimedError(
            f"This {located.name} has keys that wait to be claimed: `envelope.enroll(session, owner, "
            "secret=...)` claims them with its first secret."
        )
    if located.store.load_slots(roots, SlotKind.SECRET):
        raise AlreadyEnrolledError(
            f"This {located.name} has a secret already: `envelope.change_secret(session, owner, old=..., "
            "new=...)` puts another in its place."
        )


def remove_provider(desk: Desk, owner: object, provider: str) -> None:
    """Delete a provider's slots, and start a new epoch whose keys the provider never held."""
    located = locate_enrolled(desk, owner)
    note_policy(desk.session, desk.policy)
    _settle(located)
    roots = [key for key in load_keys(located) if key.purpose is Purpose.ROOT]
    slots = _provider_slots(located.store, roots)
    mine = [slot for slot in slots if slot.provider_name == provider]
    if not mine:
        raise KeyNotFoundError(
            f"This {located.name} has no key slot of provider {provider!r}. `envelope.slots(session, owner)` "
            "lists its slots."
        )
    located.store.delete_slots(mine)
    start_epoch(desk, located.place, desk.keyring_for(located.place.owner))
    note_provider_removed(desk, located.place)
    here: Any = context.unlocked_sessions(desk.session)
    for innermost in here:
        for unlocked in innermost.outward():
            if unlocked.on_demand:  # the provider must not read the new epoch
                unlocked.drop(located.place.owner)
    desk.emit(AuditEvent("provider_removed", located.name, provider=provider))


def seal_rows(desk: Desk, owner_classes: Sequence[Any]) -> int:
    """Seal every key, slot and grant row of these classes; return the number of rows."""
    count = 0
    for owner_class in owner_classes:
        count += desk.keys(owner_class).reseal()
        count += sum(desk.grants(grant).reseal() for grant in owner_class.grants_of)
    return count


def _provider_slots(store: KeyStore, roots: Sequence[StoredKey]) -> list[StoredSlot]:
    return store.load_slots([root.key_id for root in roots], SlotKind.PROVIDER)
