"""Claiming: an owner who was away takes over the keys that a campaign made.

Nothing here authenticates the owner. An unclaimed owner has no secret yet, so that any secret would fit. The
application has checked the password as before, and confirms this by calling `enroll` or
`unlock(authenticated=True)`.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy_envelope.crypto.preparation import prepare_hidden
from sqlalchemy_envelope.exceptions import AlreadyEnrolledError, EnrollmentError, TransactionConflictError
from sqlalchemy_envelope.keys.hierarchy import check_generations
from sqlalchemy_envelope.keys.keyring import Keyring
from sqlalchemy_envelope.keys.model import Purpose, SlotKind
from sqlalchemy_envelope.keys.slots import (
    is_waiting,
    open_slot,
    provider_slot,
    released_slot,
    secret_slot,
    waiting_slot,
)
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.current.keks import kek_for_new, kek_of_slot
from sqlalchemy_envelope.orm.current.policy import note_policy
from sqlalchemy_envelope.orm.sessions.unlocked import UnlockedSession
from sqlalchemy_envelope.orm.sharing.locking import hold_slots
from sqlalchemy_envelope.orm.sharing.roots import OpenedRoot, open_with_kek
from sqlalchemy_envelope.orm.tables.cascades import require_cascades
from sqlalchemy_envelope.orm.tables.owners import require_owner_class
from sqlalchemy_envelope.orm.tables.stored_rows import usable
from sqlalchemy_envelope.orm.verbs.log_in import enroll, unlock
from sqlalchemy_envelope.orm.verbs.log_in.strength import prepare_new
from sqlalchemy_envelope.orm.verbs.owner_keys import active_root, are_destroyed, locate, usable_state
from sqlalchemy_envelope.orm.verbs.steps import Derivation, wiping

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy_envelope.crypto.argon2id import KdfProfile
    from sqlalchemy_envelope.crypto.preparation import HiddenSecret
    from sqlalchemy_envelope.crypto.secret import Hidden, KeyBytes
    from sqlalchemy_envelope.keys.model import OpenedKey, StoredKey, StoredSlot
    from sqlalchemy_envelope.keys.slots import ProviderKek
    from sqlalchemy_envelope.orm.current.audit import EventName
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.current.providers import Providers
    from sqlalchemy_envelope.orm.tables.key_rows import KeyStore
    from sqlalchemy_envelope.orm.verbs.log_in.attempts import Attempt
    from sqlalchemy_envelope.orm.verbs.owner_keys import LocatedOwner
    from sqlalchemy_envelope.orm.verbs.steps import Steps


class _Unclaimed(NamedTuple):
    """An owner without a secret, whose keys a campaign holds."""

    located: LocatedOwner
    keys: list[StoredKey]
    root: StoredKey
    slot: StoredSlot
    """The campaign's slot of the active root key."""
    campaign: list[StoredSlot]
    """All slots of campaigns, including the slots of retired root keys."""
    waiting: list[StoredSlot]


def enroll_steps(
    desk: Desk, profile: KdfProfile, asked: enroll.Asked, provider: str | None
) -> Steps[UnlockedSession]:
    """The steps of `Envelope.enroll`: a claim, if a campaign holds the owner's keys.

    Owners of a list do not claim: each has to authenticate on its own.
    """
    secret = None if asked.are_many else asked.secrets[0]
    found = None if secret is None else _unclaimed(desk, asked.owners[0])
    if secret is None or found is None:
        return (yield from enroll.enroll_steps(desk, profile, asked, provider))
    prepared = prepare_new(desk.policy, secret, asked.owners[0])
    return (yield from _claim_or_wait(desk, profile, found, prepared, provider))


def unlock_steps(
    desk: Desk, profile: KdfProfile, owner: object, secret: HiddenSecret, attempt: Attempt
) -> Steps[UnlockedSession]:
    """The steps of `Envelope.unlock` with a secret that the caller has checked.

    Its owner chose it long ago and logs in with it: the application's `secret_strength` is not asked.
    """
    found = _unclaimed(desk, owner)
    if found is not None:
        prepared = prepare_hidden(secret, new=True)
        return (yield from _claim_or_wait(desk, profile, found, prepared, None))
    owner_class = require_owner_class(owner)
    if usable_state(owner, owner_class).key is None or are_destroyed(locate(desk, owner).load()):
        asked = enroll.asked_for(owner, secret)
        try:
            return (yield from enroll.enroll_steps(desk, profile, asked, None, chosen=False))
        except AlreadyEnrolledError:
            lost = TransactionConflictError(
                f"This {owner_class.name} was enrolled by somebody else at the same moment. Run the "
                "transaction again: it unlocks."
            )
        raise lost
    return (yield from unlock.unlock_steps(desk, profile, owner, secret, attempt))


def _claim_or_wait(
    desk: Desk,
    profile: KdfProfile,
    found: _Unclaimed,
    prepared: Hidden[bytes],
    provider: str | None,
) -> Steps[UnlockedSession]:
    require_cascades(desk.session, found.located.place.owner_class.mapper)
    note_policy(desk.session, desk.policy)
    providers = desk.policy.require_providers()
    if providers.can_open(providers.of(found.slot)):
        return (yield from _claim(desk, profile, found, prepared, provider))
    if provider is not None:
        raise EnrollmentError(
            f"This {found.located.name} waits for the custodians of an offline key; add the provider later."
        )
    return (yield from _wait(desk, profile, found, prepared))


def _unclaimed(desk: Desk, owner: object) -> _Unclaimed | None:
    owner_class, providers = require_owner_class(owner), desk.policy.providers
    state = usable_state(owner, owner_class)
    if providers is None or not providers.campaigns or state.key is None:
        return None
    located = locate(desk, owner)
    rows = located.load()
    if are_destroyed(rows):
        return None
    keys = [row.stored for row in usable(rows)]
    check_generations(keys)
    return _found(located, providers, keys)


def _found(located: LocatedOwner, providers: Providers, keys: list[StoredKey]) -> _Unclaimed | None:
    root = active_root(located, keys)
    roots = [key.key_id for key in keys if key.purpose is Purpose.ROOT]
    slots = located.store.load_slots(roots, closed_too=True)
    campaign = [slot for slot in slots if _is_provisional(slot, providers)]
    slot = next((slot for slot in campaign if slot.key_id == root.key_id), None)
    waiting = [slot for slot in slots if is_waiting(slot)]
    has_secret = any(slot.kind is SlotKind.SECRET and not is_waiting(slot) for slot in slots)
    if slot is None or has_secret:
        return None
    return _Unclaimed(located, keys, root, slot, campaign, waiting)


def _is_provisional(slot: StoredSlot, providers: Providers) -> bool:
    return slot.kind is SlotKind.PROVIDER and providers.of(slot) in providers.campaigns


def _claim(
    desk: Desk,
    profile: KdfProfile,
    found: _Unclaimed,
    prepared: Hidden[bytes],
    provider: str | None,
) -> Steps[UnlockedSession]:
    providers, located = desk.policy.require_providers(), found.located
    name = providers.of(found.slot)
    added: ProviderKek | None = None
    if provider is not None:
        added = yield from kek_for_new(desk, provider)
    campaign_kek = yield from kek_of_slot(desk, found.slot)
    salt = located.new_salt(profile)
    kek = yield Derivation(prepared, salt)

    with wiping(kek):
        found = _still(found)
        reached = open_with_kek(desk.policy, found.keys, found.root, found.slot, found.campaign, campaign_kek)
        try:
            mine = [(secret_slot(root, kek, salt), root) for _, root in reached.slots]
            more = [] if added is None else [provider_slot(reached.root, added)]
            first_slots = desk.policy.first_slots
            more += [slot for _, root in reached.slots for slot in first_slots(root, unacknowledged=True)]
            _exchange(found, [*(slot for slot, _ in mine), *more])
            located.store.note_claim([slot for slot, _ in mine], found.slot.provider_ref)
        except BaseException:
            for _, root in reached.slots:
                root.key.wipe()
            raise
        desk.emit(_event("claimed", found, name))
        # Anybody can seal to the campaign's key. So a sealed root key is not trusted, whatever the policy is.
        harden = desk.policy.harden_claims or not reached.trusted
        own = OpenedRoot(reached.root, mine[0][0], kek, reached.older, mine, [], not harden)
        # An untrusted root key is renewed: a new root key and new data keys, under the secret alone.
        unlocked = unlock.unlocked_owner(desk, located, found.keys, own)
        unlocked.settle()  # a claim writes
        if harden:
            desk.emit(_event("hardened", found, name))
        return unlocked


def _wait(
    desk: Desk, profile: KdfProfile, found: _Unclaimed, prepared: Hidden[bytes]
) -> Steps[UnlockedSession]:
    """Leave a slot for the custodians. The owner stays locked until they release the keys."""
    salt = found.located.new_salt(profile)
    kek = yield Derivation(prepared, salt)
    with wiping(kek):
        found = _still(found)
        roots = {key.key_id: key for key in found.keys}
        slots = [waiting_slot(roots[slot.key_id], kek, salt) for slot in found.campaign]
    store = found.located.store
    # Replace the row by itself: this locks it, also if `_still` locked no row.
    if not store.replace_slot(found.slot, found.slot):
        raise _lost(found)
    # Delete slots that wait with another secret: the application has authenticated this secret since.
    before = [slot for slot in store.load_slots(roots, SlotKind.SECRET, closed_too=True) if is_waiting(slot)]
    store.insert_slots(slots)
    if before:
        store.delete_slots(before)
    store.note_claim(slots, found.slot.provider_ref)
    desk.emit(_event("claim_waiting", found, desk.policy.require_providers().of(found.slot)))
    return UnlockedSession(desk.session, desk.policy, [], Keyring())


def _still(found: _Unclaimed) -> _Unclaimed:
    """Hold the owner's slots and load the keys again: another claim may have come during a derivation."""
    store, primary_key = found.located.store, found.located.place.primary_key
    hold_slots(found.located.desk, found.located.place)
    rows = store.load([primary_key])
    keys = [row.stored for row in usable(rows)]
    now = _found(found.located, found.located.desk.policy.require_providers(), keys) if rows else None
    if now is None or now.slot != found.slot:
        raise _lost(found)
    return now


def _exchange(found: _Unclaimed, new: Sequence[StoredSlot]) -> None:
    """Insert the new slots, then delete the campaign's: in this order, an interruption leaves a slot."""
    store = found.located.store
    store.insert_slots(new)
    if store.delete_slots([found.slot]) != 1:
        store.delete_slots(new)
        raise _lost(found)
    rest = [slot for slot in (*found.campaign, *found.waiting) if slot != found.slot]
    if rest:
        store.delete_slots(rest)


def _lost(found: _Unclaimed) -> TransactionConflictError:
    return TransactionConflictError(
        f"The keys of this {found.located.name} were claimed or changed by somebody else at the same moment; "
        "nothing was changed here. Run the transaction again."
    )


def _event(name: EventName, found: _Unclaimed, provider: str) -> AuditEvent:
    located = found.located
    return AuditEvent(
        name,
        located.name,
        provider=provider,
        key_id=found.root.key_id.hex[:8],
        owner_id=located.place.primary_key,
    )


def release(
    policy: Policy, store: KeyStore, keys: Sequence[StoredKey], slots: Sequence[StoredSlot], provider: str
) -> bool:
    """Seal an owner's root keys into the waiting slots, and delete the campaign's slots.

    Returns:
        Whether any slot waited.

    Raises:
        EnrollmentError: several secrets wait, the owner has a secret already, or the campaign lacks a key.
        TransactionConflictError: a waiting secret was changed at the same moment.
        EnvelopeError: the rows are not as the application wrote them.
    """
    check_generations(keys)
    waiting = [slot for slot in slots if is_waiting(slot)]
    if not waiting:
        return False
    if len({slot.key_id for slot in waiting}) != len(waiting) or any(
        slot.kind is SlotKind.SECRET and not is_waiting(slot) for slot in slots
    ):
        raise EnrollmentError("Several secrets wait for the same keys, or their owner has one already.")
    with _opened_roots(policy, keys, slots, provider) as opened:
        by_key = {slot.key_id: root for slot, root in opened}
        if any(slot.key_id not in by_key for slot in waiting):
            raise EnrollmentError("A secret waits for keys that this campaign does not hold.")
        for slot in waiting:
            if not store.replace_slot(slot, released_slot(by_key[slot.key_id], slot)):
                raise TransactionConflictError(
                    "A waiting secret was changed at the same moment. Run the transaction again."
                )
        store.delete_slots([slot for slot, _ in opened])
    return True


def rewrap(
    policy: Policy,
    store: KeyStore,
    keys: Sequence[StoredKey],
    slots: Sequence[StoredSlot],
    provider: str,
    kek: ProviderKek,
) -> None:
    """Wrap an owner's root keys for another provider, and delete the campaign's slots.

    Raises:
        EnvelopeError: the rows are not as the application wrote them.
    """
    check_generations(keys)
    with _opened_roots(policy, keys, slots, provider) as opened:
        store.insert_slots([provider_slot(root, kek) for _, root in opened])
        store.delete_slots([slot for slot, _ in opened])


@contextmanager
def _opened_roots(
    policy: Policy, keys: Sequence[StoredKey], slots: Sequence[StoredSlot], provider: str
) -> Iterator[list[tuple[StoredSlot, OpenedKey]]]:
    """Open the root keys that a campaign holds, each with its slot. The block's end wipes them."""
    providers = policy.require_providers()
    roots = {key.key_id: key for key in keys if key.purpose is Purpose.ROOT}
    found: list[tuple[StoredSlot, OpenedKey]] = []
    try:
        for slot in slots:
            if slot.kind is SlotKind.PROVIDER and slot.provider_name == provider:
                kek: KeyBytes = providers.open(slot)
                found.append((slot, open_slot(slot, roots[slot.key_id], kek)))
        yield found
    finally:
        for _, root in found:
            root.key.wipe()
