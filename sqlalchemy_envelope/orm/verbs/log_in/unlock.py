"""Unlocking: a slot opens the root key. The root key opens the owner's other keys, and keys granted to it."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy_envelope.crypto.argon2id import KdfSalt, share_named_by
from sqlalchemy_envelope.crypto.preparation import prepare_hidden
from sqlalchemy_envelope.crypto.sealing import is_sealed
from sqlalchemy_envelope.crypto.wrapping import wrong_secret
from sqlalchemy_envelope.exceptions import (
    EnvelopeError,
    KeyNotFoundError,
    KeyShareError,
    NoSecretError,
    TransactionConflictError,
    UnclaimedError,
    UnlockError,
)
from sqlalchemy_envelope.keys.hierarchy import link_to_newer_root, short, wrap_under_root
from sqlalchemy_envelope.keys.keyring import Keyring
from sqlalchemy_envelope.keys.model import KeyState, OpenedKey, Purpose, SlotKind
from sqlalchemy_envelope.keys.pepper import is_closed, require_open
from sqlalchemy_envelope.keys.slots import (
    adopted_slot,
    is_waiting,
    now,
    opens_waiting,
    sealed_slot,
    secret_slot,
)
from sqlalchemy_envelope.orm.columns.state import closed_values
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.current.keks import kek_of_slot
from sqlalchemy_envelope.orm.current.policy import note_policy, require_reason
from sqlalchemy_envelope.orm.sessions.key_slots import shown_slot
from sqlalchemy_envelope.orm.sessions.unlocked import UnlockedSession
from sqlalchemy_envelope.orm.sharing.carried_slots import carried_slots
from sqlalchemy_envelope.orm.sharing.epochs import start_epoch
from sqlalchemy_envelope.orm.sharing.first_use import trusting_first_use
from sqlalchemy_envelope.orm.sharing.granted import KEYS_WERE_DELETED
from sqlalchemy_envelope.orm.sharing.locking import hold_slots
from sqlalchemy_envelope.orm.sharing.rollbacks import note_unlock
from sqlalchemy_envelope.orm.sharing.roots import OpenedRoot, open_with_kek
from sqlalchemy_envelope.orm.sharing.waiting import Waiting
from sqlalchemy_envelope.orm.tables.slot_rows import MAX_SLOTS
from sqlalchemy_envelope.orm.verbs.emergency_requests import requests_of
from sqlalchemy_envelope.orm.verbs.owner_keys import (
    active_root,
    how_opened,
    load_keys,
    load_keys_and_secrets,
    load_moved_keys,
    locate_enrolled,
)
from sqlalchemy_envelope.orm.verbs.steps import Derivation, wiping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from sqlalchemy_envelope.crypto.argon2id import KdfProfile
    from sqlalchemy_envelope.crypto.preparation import HiddenSecret
    from sqlalchemy_envelope.crypto.secret import Hidden, KeyBytes
    from sqlalchemy_envelope.keys.model import KeyId, StoredKey, StoredSlot
    from sqlalchemy_envelope.keys.pepper import SlotPepper
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.sharing.waiting import SlotChange
    from sqlalchemy_envelope.orm.verbs.log_in.attempts import Attempt
    from sqlalchemy_envelope.orm.verbs.owner_keys import LocatedOwner
    from sqlalchemy_envelope.orm.verbs.steps import Steps

MAX_SALTS = 3
"""The most salts that an unlock tries: each costs a derivation, and planted ones would cost many."""


def unlock_steps(
    desk: Desk, profile: KdfProfile, owner: object, secret: HiddenSecret, attempt: Attempt
) -> Steps[UnlockedSession]:
    """The steps of `Envelope.unlock` with a secret."""
    prepared = prepare_hidden(secret)
    with attempt.told():
        note_policy(desk.session, desk.policy)
        opened = yield from attempt.judged(prepared, opened_by(desk, profile, owner, prepared), Opened.wipe)
        found = opened.found
        with wiping(found.kek):
            stronger: list[SlotChange] = []
            shares, salt = desk.shares(opened.located.place.owner_class), opened.salt
            falls_short = profile.exceeds(salt.profile) or (shares.are_wanted and salt.share_id is None)
            if falls_short and found.trusted:
                new = opened.located.new_salt(profile)
                stronger = yield from _stronger_slots(new, found, prepared)
            elif found.trusted:
                stronger = _peppered_slots(desk.policy.pepper, found)
            unlocked = unlocked_owner(desk, opened.located, opened.keys, found, stronger, new=opened.loaded)
    return attempt.told_unlocked(unlocked)


def _stronger_slots(salt: KdfSalt, found: OpenedRoot, prepared: Hidden[bytes]) -> Steps[list[SlotChange]]:
    """Wrap the root keys in the opened slots again, under the present profile, and with a share if the class
    has shares.

    The first write stores the new slots. They are derived now, so that no secret is kept, and no derivation
    runs while rows are locked.
    """
    kek = yield Derivation(prepared, salt)
    with wiping(kek):
        return [(slot, secret_slot(root, kek, salt, slot)) for slot, root in found.slots]


def _peppered_slots(pepper: SlotPepper, found: OpenedRoot) -> list[SlotChange]:
    """The opened slots, if any is not under the active pepper: the first write stores them under it."""
    if all(pepper.is_current(slot) for slot, _ in found.slots):
        return []
    return [
        (
            slot,
            adopted_slot(slot, root, found.kek) if is_sealed(slot.wrapped) else replace(slot, used_at=now()),
        )
        for slot, root in found.slots
    ]


def unlock_with_provider_steps(
    desk: Desk, owner: object, provider: str, reason: str
) -> Steps[UnlockedSession]:
    """The steps of `Envelope.unlock` with a provider."""
    require_reason(reason)
    providers = desk.policy.require_providers()
    providers.named(provider)
    located = locate_enrolled(desk, owner)
    note_policy(desk.session, desk.policy)
    keys = load_keys(located)
    root = active_root(located, keys)
    slots = located.store.load_slots(_roots(keys), SlotKind.PROVIDER)
    mine = [slot for slot in slots if providers.of(slot) == provider]
    slot = next((slot for slot in mine if slot.key_id == root.key_id), None)
    if slot is None:
        raise KeyNotFoundError(
            f"Provider {provider!r} has no key slot of this {located.name}, and so cannot unlock it. "
            "`envelope.slots(session, owner)` lists the slots. To add one, while the owner is unlocked: "
            f"`envelope.add_provider(session, owner, provider={provider!r})`."
        )
    kek = yield from kek_of_slot(desk, slot)
    found = trusting_first_use(open_with_kek(desk.policy, keys, root, slot, mine, kek), keys)
    desk.emit(
        AuditEvent(
            "provider_unlocked",
            located.name,
            reason=reason,
            provider=provider,
            key_id=root.key_id.hex[:8],
            owner_id=located.place.primary_key,
            slot_kind=SlotKind.PROVIDER.value,
        )
    )
    return unlocked_owner(desk, located, keys, found)


def whole_steps(steps: Steps[UnlockedSession]) -> Steps[UnlockedSession]:
    """The steps of an unlock, with all grants followed."""
    unlocked = yield from steps
    unlocked.follow_all()
    return unlocked


def rebind_steps(
    desk: Desk, profile: KdfProfile, owner: object, secret: HiddenSecret, attempt: Attempt
) -> Steps[None]:
    """The steps of `Envelope.rebind`."""
    prepared = prepare_hidden(secret)
    with attempt.told():
        opening = opened_by(desk, profile, owner, prepared, load_moved_keys)
        located, keys, found, _, _ = yield from attempt.judged(prepared, opening, Opened.wipe)
    with keyring_of(located, keys, found) as keyring:
        salt = located.new_salt(profile)
        kek = yield Derivation(prepared, salt)
        new_root = OpenedKey(replace(found.root.stored, owner_reference=located.reference), found.root.key)
        with wiping(kek, found.kek):
            new_slot = secret_slot(new_root, kek, salt, found.slot)
        moved = [_moved(key, keyring, new_root) for key in keys if key.key_id != new_root.stored.key_id]
        hold_slots(desk, located.place)
        _replace(located, found.slot, new_slot)
        # The secret does not open the other slots: seal the root key to them anew.
        others = located.store.load_slots([new_root.stored.key_id], closed_too=True)
        others = [slot for slot in others if slot.kind is not SlotKind.SECRET]
        for slot in carried_slots(desk, located.place, others):
            _replace(located, slot, replace(sealed_slot(new_root, slot), slot_id=slot.slot_id))
        located.store.replace_keys([new_root.stored, *moved])
        if located.place.owner_class.grants_of or not found.trusted:
            start_epoch(desk, located.place, keyring)


@contextmanager
def keyring_of(located: LocatedOwner, keys: Sequence[StoredKey], found: OpenedRoot) -> Iterator[Keyring]:
    """Make a keyring of an owner's keys. The block's end wipes it."""
    keyring = Keyring()
    try:
        keyring.add_stored(located.place.owner, keys)
        keyring.add(located.place.owner, [found.root, *found.older])
        yield keyring
    finally:
        keyring.wipe()


def _moved(key: StoredKey, keyring: Keyring, root: OpenedKey) -> StoredKey:
    """Return a key's row, bound to its owner's present primary key."""
    here = replace(key, owner_reference=root.stored.owner_reference)
    opened = keyring.open(key.key_id)
    if opened is None:
        return here
    moved = OpenedKey(here, opened.key)
    return link_to_newer_root(moved, root) if key.purpose is Purpose.ROOT else wrap_under_root(moved, root)


def _roots(keys: Sequence[StoredKey]) -> list[KeyId]:
    return [key.key_id for key in keys if key.purpose is Purpose.ROOT]


class Opened(NamedTuple):
    """An owner whose root key a secret opened.

    Attributes:
        found: the root key, and the slot that opened it.
        salt: the salt of that slot.
        loaded: the slots that were loaded: those of secrets, and those that the owner has not acknowledged.
    """

    located: LocatedOwner
    keys: list[StoredKey]
    found: OpenedRoot
    salt: KdfSalt
    loaded: list[StoredSlot]

    def wipe(self) -> None:
        """Wipe the keys."""
        for key in (self.found.kek, self.found.root.key, *(older.key for older in self.found.older)):
            key.wipe()


def opened_by(
    desk: Desk,
    profile: KdfProfile,
    owner: object,
    prepared: Hidden[bytes],
    load: Callable[[LocatedOwner], list[StoredKey]] = load_keys,
    *,
    with_secrets: bool = False,
) -> Steps[Opened]:
    """Find an owner, and open its root key with a secret.

    Args:
        load: loads the owner's keys.
        with_secrets: load the keys and the secret slots with one query: for a change of a secret, which sends
            two statements more.

    Raises:
        UnlockError: the secret opens no slot, or there is none.
    """
    located = locate_enrolled(desk, owner)
    keys, loaded = load_keys_and_secrets(located) if with_secrets else (load(located), None)
    return Opened(located, keys, *(yield from _open_with_secret(located, profile, keys, prepared, loaded)))


def _open_with_secret(
    located: LocatedOwner,
    profile: KdfProfile,
    keys: Sequence[StoredKey],
    prepared: Hidden[bytes],
    loaded: list[StoredSlot] | None = None,
) -> Steps[tuple[OpenedRoot, KdfSalt, list[StoredSlot]]]:
    """Open the active root key through the first secret slot that this secret opens.

    One key derivation serves all slots with the same salt: `secrets` gives the secrets of an owner one salt.

    Returns:
        The root key, the salt of its slot, and the slots that were loaded: those of secrets, and those that
        the owner has not acknowledged.

    Raises:
        UnlockError: the secret opens no slot.
        PepperError: the secret opens no slot, and one is under a pepper that is not configured.
        KeyShareError: it opens none, and the share of one cannot be had.
    """
    root = active_root(located, keys)
    loaded = _secret_slots(located, keys, root, loaded)
    secrets = [slot for slot in loaded if slot.kind is SlotKind.SECRET]
    by_salt: dict[str, list[StoredSlot]] = {}
    for slot in secrets:
        if slot.key_id == root.key_id:
            by_salt.setdefault(slot.kdf, []).append(slot)
    if len(by_salt) > MAX_SALTS or sum(map(len, by_salt.values())) > MAX_SLOTS:
        raise KeyNotFoundError(
            f"This {located.name} has more than {MAX_SLOTS} secret slots, or more than {MAX_SALTS} salts, "
            "and the library makes no more: some were added past it."
        )
    refused: UnlockError | None = None
    unshared: KeyShareError | None = None
    shares = located.desk.shares(located.place.owner_class).load(
        share_id for kdf in by_salt if (share_id := share_named_by(kdf)) is not None
    )
    for kdf, slots in by_salt.items():
        if all(is_closed(slot) for slot in slots):
            continue
        salt = KdfSalt.parse(kdf, policy=profile)
        share = None if salt.share_id is None else shares[salt.share_id]
        if isinstance(share, KeyShareError):
            unshared = share
            continue
        kek = yield Derivation(prepared, salt if share is None else salt.with_share(share))
        try:
            for slot in slots:
                if is_closed(slot):
                    continue
                try:
                    return _open_slot(located, keys, root, slot, secrets, kek), salt, loaded
                except UnlockError as error:
                    refused = error
            kek.wipe()
        except BaseException:
            kek.wipe()
            raise
    for slot in (slot for slots in by_salt.values() for slot in slots):
        require_open(slot)  # the secret may be right for a slot that could not be tried
    # Also if it opens no other slot: it may be the secret of the slot whose share is not there.
    why = unshared or refused
    assert why is not None  # noqa: S101 - there was at least one slot
    raise why


def _secret_slots(
    located: LocatedOwner,
    keys: Sequence[StoredKey],
    root: StoredKey,
    loaded: list[StoredSlot] | None,
) -> list[StoredSlot]:
    """Return the secret slots of an owner's root keys, including retired root keys, and the slots that the
    owner has not acknowledged.

    Args:
        loaded: the secret slots, if they are loaded already.

    Raises:
        UnclaimedError, NoSecretError: the active root key has no secret slot.
    """
    roots = _roots(keys)
    if loaded is None:
        limit = (MAX_SLOTS + 1) * len(roots)
        loaded = located.store.load_slots(roots, SlotKind.SECRET, limit=limit, or_new=True, closed_too=True)
    if any(slot.key_id == root.key_id and slot.kind is SlotKind.SECRET for slot in loaded):
        return loaded
    if is_unclaimed(located, roots):
        raise UnclaimedError(
            f"This {located.name} has keys that wait to be claimed, and no secret yet: authenticate as "
            "before, then call enroll() with the secret, or unlock(..., authenticated=True)."
        )
    raise NoSecretError(f"No secret opens this {located.name}: {how_opened(located, [root])}.")


def _open_slot(
    located: LocatedOwner,
    keys: Sequence[StoredKey],
    root: StoredKey,
    slot: StoredSlot,
    slots: Sequence[StoredSlot],
    kek: KeyBytes,
) -> OpenedRoot:
    """Open the active root key through this slot, and other slots that the same KEK opens."""
    policy = located.desk.policy
    if is_waiting(slot):
        raise _waits(located, slot, kek)
    found = open_with_kek(policy, keys, root, slot, slots, kek)
    if policy.harden_claims and is_sealed(slot.wrapped) and not found.vouching:
        # An enrolment wraps, and a new epoch leaves a wrapped slot behind. So custodians released this slot.
        found = found._replace(trusted=False, hardens=True)
    return found


def is_unclaimed(located: LocatedOwner, roots: Sequence[KeyId]) -> bool:
    """Tell whether a campaign holds these root keys."""
    providers = located.desk.policy.providers
    if providers is None or not providers.campaigns:
        return False
    slots = located.store.load_slots(roots, SlotKind.PROVIDER)
    return any(slot.provider_name in providers.campaigns for slot in slots)


def _waits(located: LocatedOwner, slot: StoredSlot, kek: KeyBytes) -> EnvelopeError:
    """Return the error for a waiting slot. A caller with a wrong secret gets the usual error."""
    if not opens_waiting(slot, kek):
        return wrong_secret()
    return UnclaimedError(
        f"The secret is right, and this {located.name} waits: the custodians of the offline key have not "
        "released its keys yet."
    )


def unlocked_owner(
    desk: Desk,
    located: LocatedOwner,
    keys: Sequence[StoredKey],
    found: OpenedRoot,
    stronger: Sequence[SlotChange] = (),
    new: Iterable[StoredSlot] = (),
) -> UnlockedSession:
    """Return the unlocked session of an owner with an open root key.

    This only reads: waiting work is left to be settled later. Grants to the owner are followed as needed.

    Args:
        found: the root key, and the slot that opened it.
        stronger: replacements for slots that fall short of the present key derivation policy.
        new: the slots that were loaded; the owner is shown those that it has not acknowledged.
    """
    keyring = Keyring()
    owner = located.place.owner
    try:
        keyring.add_stored(owner, keys)
        keyring.add(owner, [found.root, *found.older])
        _require_open(keyring, keys)
        waiting = Waiting(located.place, found, stronger)
        unlocked = UnlockedSession(desk.session, desk.policy, [located.place], keyring, waiting)
        unlocked.unacknowledged_slots = tuple(
            shown_slot(slot)
            for slot in new
            if slot.unacknowledged_since is not None and slot.key_id == found.root.stored.key_id
        )
        unlocked.emergency_requests = requests_of(desk, located.place)
        note_unlock(desk.session, owner, unlocked)
        if not located.place.owner_class.grants_to:
            unlocked.follow_all(desk.session)  # no class grants to this owner, so that there is no query
        elif closed := closed_values(desk.session):
            # Fetch the keys of locked objects now, so that reading their attributes needs no SQL.
            for owner_class, headers in closed.items():
                unlocked.prepare_read(desk.session, owner_class, headers)
    except BaseException:
        keyring.wipe()
        raise
    return unlocked


def _require_open(keyring: Keyring, keys: Sequence[StoredKey]) -> None:
    """Open an owner's own keys at the unlock, so that an altered key is reported at once.

    Granted keys wait until they are needed.
    """
    for key in keys:
        own = key.purpose in (Purpose.DATA, Purpose.INDEX) and key.state is not KeyState.DESTROYED
        if own and keyring.open(key.key_id) is None:
            raise KeyNotFoundError(
                f"Key {short(key)} is wrapped under a root key that is not here. {KEYS_WERE_DELETED}"
            )


def _replace(located: LocatedOwner, old: StoredSlot, new: StoredSlot) -> None:
    if not located.store.replace_slot(old, new):
        raise TransactionConflictError(
            f"A key slot of this {located.name} was changed by somebody else at the same moment. Run the "
            "transaction again."
        )
