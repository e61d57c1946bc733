"""The secrets of an owner: a first or a further secret, and a new secret in place of an old or forgotten one.

The secrets of an owner share one salt, as far as they were set under the same profile. So an unlock, which
does not know which secret it was given, costs one key derivation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy_envelope.crypto.argon2id import KdfSalt
from sqlalchemy_envelope.crypto.kdf import x25519_public
from sqlalchemy_envelope.crypto.key_share import KeyShare
from sqlalchemy_envelope.crypto.preparation import prepare_hidden
from sqlalchemy_envelope.exceptions import (
    AlreadyEnrolledError,
    EnrollmentError,
    KdfParametersError,
    KeyNotFoundError,
    SecretError,
    TransactionConflictError,
    UnclaimedError,
)
from sqlalchemy_envelope.keys.model import Purpose, SlotKind
from sqlalchemy_envelope.keys.slots import is_waiting, new_slot, secret_slot
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.current.policy import note_policy
from sqlalchemy_envelope.orm.sessions.key_slots import checked_label
from sqlalchemy_envelope.orm.sharing.locking import hold_slots
from sqlalchemy_envelope.orm.sharing.roots import renew
from sqlalchemy_envelope.orm.tables.slot_rows import MAX_SLOTS
from sqlalchemy_envelope.orm.verbs.log_in.strength import prepare_new
from sqlalchemy_envelope.orm.verbs.log_in.unlock import Opened, is_unclaimed, keyring_of, opened_by
from sqlalchemy_envelope.orm.verbs.opened_owner import opened_roots, settle_owner
from sqlalchemy_envelope.orm.verbs.owner_keys import load_keys, locate_enrolled
from sqlalchemy_envelope.orm.verbs.steps import Derivation, wiping
from sqlalchemy_envelope.orm.verbs.tickets import revoke_tickets_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy_envelope.crypto.argon2id import KdfProfile
    from sqlalchemy_envelope.crypto.preparation import HiddenSecret
    from sqlalchemy_envelope.crypto.secret import KeyBytes
    from sqlalchemy_envelope.keys.model import OpenedKey, StoredKey, StoredSlot
    from sqlalchemy_envelope.orm.current.audit import EventName
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.verbs.log_in.attempts import Attempt
    from sqlalchemy_envelope.orm.verbs.owner_keys import LocatedOwner
    from sqlalchemy_envelope.orm.verbs.steps import Steps


def add_secret_steps(
    desk: Desk, profile: KdfProfile, owner: object, secret: HiddenSecret, label: str | None
) -> Steps[None]:
    """The steps of `Envelope.add_secret`."""
    checked_label(label)
    prepared = prepare_new(desk.policy, secret, owner)
    located = _located(desk, owner)
    slots = _present(located).secrets
    _require_new_label(located, slots, label)
    salt = _shared_salt(located, profile, slots)
    kek = yield Derivation(prepared, salt)
    with wiping(kek):
        now = _locked(located)
        _require_new_label(located, now.secrets, label)
        _require_new_secret(now.secrets, kek)
        first = not now.secrets
        kind = SlotKind.SECRET
        made = [
            # The first secret is what its owner chose a moment ago, so that there is nothing to tell.
            new_slot(root, kek, kind, kdf=str(salt), share=salt.share, label=label, unacknowledged=not first)
            for root in now.roots
        ]
        located.store.insert_slots(made)
    _tell(located, "secret_added")


def set_secret_steps(
    desk: Desk, profile: KdfProfile, owner: object, new: HiddenSecret, label: str | None
) -> Steps[None]:
    """The steps of `Envelope.set_secret`."""
    prepared = prepare_new(desk.policy, new, owner)
    located = _located(desk, owner)
    slots = _present(located).secrets
    replaced, kept = _parted(located, slots, label)
    salt = _shared_salt(located, profile, kept)
    kek = yield Derivation(prepared, salt)
    with wiping(kek):
        now = _locked(located)
        replaced, kept = _parted(located, now.secrets, label)
        _require_new_secret(kept, kek)
        replace_secrets(located, now.roots, replaced, kek, salt)
        revoke_tickets_of(desk, located.place)
    _tell(located, "secret_set")


def change_secret_steps(
    desk: Desk, profile: KdfProfile, owner: object, old: HiddenSecret, new: HiddenSecret, attempt: Attempt
) -> Steps[None]:
    """The steps of `Envelope.change_secret`."""
    prepared, prepared_new = prepare_hidden(old), prepare_new(desk.policy, new, owner)
    with attempt.told():
        opening = opened_by(desk, profile, owner, prepared, with_secrets=True)
        located, keys, found, _, loaded = yield from attempt.judged(prepared, opening, Opened.wipe)
    with keyring_of(located, keys, found) as keyring:
        kept = [slot for slot in loaded if not slot.opens_like(found.slot)]
        salt = _shared_salt(located, profile, kept)
        kek = yield Derivation(prepared_new, salt)
        with wiping(kek, found.kek):
            _require_new_secret(kept, kek)
            slots = found.slots
            # An epoch that starts at the same moment would be sealed to the slot as it was.
            if not located.store.hold_active(found.root.stored.key_id):
                raise _conflict(located)
            if not found.trusted:
                # The new slot would be wrapped, so that its root key would pass as the owner's own: renew it.
                slots = [*renew(desk, located.place, keyring, found), *slots[1:]]
            # Slots of retired root keys, too: keys wrapped under such a root key have no other way.
            changed = [(slot, secret_slot(root, kek, salt, slot)) for slot, root in slots]
            if not located.store.exchange(changed):
                raise _conflict(located)
            revoke_tickets_of(desk, located.place)
    _tell(located, "secret_changed")


class _Present(NamedTuple):
    """The open root keys of an owner, the active one first, and the secret slots of all root keys."""

    roots: list[OpenedKey]
    secrets: list[StoredSlot]


def _located(desk: Desk, owner: object) -> LocatedOwner:
    located = locate_enrolled(desk, owner)
    note_policy(desk.session, desk.policy)
    settle_owner(located)
    return located


def _present(located: LocatedOwner, *, for_update: bool = False) -> _Present:
    keys = load_keys(located)
    roots = opened_roots(located, keys)
    return _Present(roots, _secrets(located, keys, for_update=for_update))


def _locked(located: LocatedOwner) -> _Present:
    """Hold the owner's slots, and load them again: somebody else may have changed them meanwhile."""
    hold_slots(located.desk, located.place)
    return _present(located, for_update=True)


def _secrets(located: LocatedOwner, keys: Sequence[StoredKey], *, for_update: bool) -> list[StoredSlot]:
    """Load the secret slots of an owner.

    Raises:
        UnclaimedError: a campaign holds the keys.
    """
    roots = [key.key_id for key in keys if key.purpose is Purpose.ROOT]
    slots = located.store.load_slots(roots, SlotKind.SECRET, for_update=for_update, closed_too=True)
    # A claim takes the campaign's slots away, so that an owner with a secret that opens has claimed its keys.
    opened = any(not is_waiting(slot) for slot in slots)
    if not opened and is_unclaimed(located, roots):
        raise UnclaimedError(
            f"This {located.name} has keys that wait to be claimed: `envelope.enroll(session, owner, "
            "secret=...)` claims them with its first secret."
        )
    return slots


def _parted(
    located: LocatedOwner, slots: Sequence[StoredSlot], label: str | None
) -> tuple[list[StoredSlot], list[StoredSlot]]:
    """Part the secret slots into those that a new secret replaces, and the others.

    Raises:
        KeyNotFoundError: no secret has this label.
    """
    if label is None:
        return list(slots), []
    replaced = [slot for slot in slots if slot.label == label]
    if not replaced:
        raise KeyNotFoundError(
            f"This {located.name} has no secret with the label {label!r}: `envelope.slots(session, owner)` "
            "lists its slots, and `add_secret` adds a secret."
        )
    return replaced, [slot for slot in slots if slot.label != label]


def replace_secrets(
    located: LocatedOwner,
    roots: Sequence[OpenedKey],
    replaced: Sequence[StoredSlot],
    kek: KeyBytes,
    salt: KdfSalt,
) -> None:
    """Put a new secret in the place of others, for each root key that is open.

    A slot of a root key that is not open here stays: it may be the only way to the values of its epoch.
    """
    added, exchanged, gone = [], [], []
    for root in roots:
        slots = [slot for slot in replaced if slot.key_id == root.stored.key_id]
        slots.sort(key=lambda slot: slot.label or "")  # the new secret takes the label that comes first
        if slots:
            exchanged.append((slots[0], secret_slot(root, kek, salt, slots[0])))
            gone += slots[1:]
        else:
            added.append(secret_slot(root, kek, salt))
    store = located.store
    if exchanged and not store.exchange(exchanged):
        raise _conflict(located)
    store.insert_slots(added)
    if gone:
        store.delete_slots(gone)


def _conflict(located: LocatedOwner) -> TransactionConflictError:
    return TransactionConflictError(
        f"The keys of this {located.name} were changed by somebody else at the same moment. Run the "
        "transaction again."
    )


def _require_new_label(located: LocatedOwner, slots: Sequence[StoredSlot], label: str | None) -> None:
    """Require that no secret of an owner has this label, and that there is room for one more.

    Raises:
        AlreadyEnrolledError, EnrollmentError, ConfigurationError: there is such a secret, or no room.
    """
    if any(slot.label == label for slot in slots):
        which = "already" if label is None else f"with the label {label!r} already"
        raise AlreadyEnrolledError(
            f"This {located.name} has a secret {which}: `envelope.change_secret(session, owner, old=..., "
            "new=...)` puts another in its place, and `set_secret` does so without the old one. To add a "
            "further secret, give it a label of its own: `label='phone'`."
        )
    if len({(slot.kdf, slot.recipient_public_key) for slot in slots}) >= MAX_SLOTS:
        raise EnrollmentError(
            f"This {located.name} has {MAX_SLOTS} secrets, and more are not added: remove one with "
            "`unlocked.remove_slot(owner, slot)`."
        )


def _require_new_secret(slots: Sequence[StoredSlot], kek: KeyBytes) -> None:
    """Require that a secret is none of the owner's other secrets: removing one would leave it open."""
    public_key = x25519_public(kek)
    if any(slot.recipient_public_key == public_key for slot in slots):
        raise SecretError("The owner has this very secret already, under another label. Choose another.")


def _shared_salt(located: LocatedOwner, profile: KdfProfile, slots: Sequence[StoredSlot]) -> KdfSalt:
    """Return the salt for a new secret beside these slots: the salt of one of them, or a fresh one.

    With the salt goes its share, if the class has shares.
    """
    shares = located.desk.shares(located.place.owner_class)
    for kdf in dict.fromkeys(slot.kdf for slot in slots):
        try:
            salt = KdfSalt.parse(kdf, policy=profile)
        except KdfParametersError:
            continue
        if salt.profile != profile or (salt.share_id is not None) != shares.are_wanted:
            continue
        if salt.share_id is None:
            return salt
        share = shares.load([salt.share_id])[salt.share_id]
        if isinstance(share, KeyShare):
            return salt.with_share(share)
    return located.new_salt(profile)


def _tell(located: LocatedOwner, name: EventName) -> None:
    place = located.place
    located.desk.emit(
        AuditEvent(name, located.name, owner_id=place.primary_key, slot_kind=SlotKind.SECRET.value)
    )
