"""Recovery codes: another way to an owner's keys, for the day when the secret is forgotten.

A code is not stored. Its slots store the public key of its KEK, and a typed code finds them by that key,
among the owner's own slots: without a key derivation, and without a try at any other slot.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from sqlalchemy.exc import DBAPIError

from sqlalchemy_envelope.crypto.kdf import x25519_public
from sqlalchemy_envelope.crypto.recovery_code import hide_code, kek_of_code, new_code
from sqlalchemy_envelope.exceptions import (
    EnrollmentError,
    EnvelopeError,
    KeyNotFoundError,
    TransactionConflictError,
    UnlockError,
)
from sqlalchemy_envelope.keys.model import KeyState, Purpose, SlotKind
from sqlalchemy_envelope.keys.slots import new_slot
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.current.policy import note_policy
from sqlalchemy_envelope.orm.sessions.key_slots import checked_label
from sqlalchemy_envelope.orm.sharing.epochs import load_locked
from sqlalchemy_envelope.orm.sharing.locking import hold_slots
from sqlalchemy_envelope.orm.sharing.roots import open_with_kek, renew
from sqlalchemy_envelope.orm.tables.conflict_errors import should_retry
from sqlalchemy_envelope.orm.tables.slot_rows import MAX_SLOTS
from sqlalchemy_envelope.orm.verbs.log_in.strength import prepare_new
from sqlalchemy_envelope.orm.verbs.log_in.unlock import keyring_of, unlocked_owner
from sqlalchemy_envelope.orm.verbs.opened_owner import opened_roots, settle_owner
from sqlalchemy_envelope.orm.verbs.owner_keys import active_root, load_keys, locate_enrolled
from sqlalchemy_envelope.orm.verbs.slots.secrets import replace_secrets
from sqlalchemy_envelope.orm.verbs.steps import Derivation, locking_if_untold, wiping
from sqlalchemy_envelope.orm.verbs.tickets import revoke_tickets_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy_envelope.crypto.argon2id import KdfProfile, KdfSalt
    from sqlalchemy_envelope.crypto.preparation import HiddenSecret
    from sqlalchemy_envelope.crypto.recovery_code import RecoveryCode
    from sqlalchemy_envelope.crypto.secret import Hidden, KeyBytes
    from sqlalchemy_envelope.keys.keyring import Keyring, OwnerId
    from sqlalchemy_envelope.keys.model import OpenedKey, StoredKey, StoredSlot
    from sqlalchemy_envelope.orm.current.audit import EventName
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.sessions.unlocked import UnlockedSession
    from sqlalchemy_envelope.orm.sharing.roots import OpenedRoot
    from sqlalchemy_envelope.orm.verbs.log_in.attempts import Attempt
    from sqlalchemy_envelope.orm.verbs.owner_keys import LocatedOwner
    from sqlalchemy_envelope.orm.verbs.steps import Steps


def add_recovery_code(desk: Desk, owner: object, label: str | None) -> RecoveryCode:
    """Make a code for an owner who is unlocked here."""
    checked_label(label)
    located = locate_enrolled(desk, owner)
    note_policy(desk.session, desk.policy)
    settle_owner(located)
    hold_slots(desk, located.place)
    keys = load_keys(located)
    roots = opened_roots(located, keys)
    _require_room(located, keys)
    code = _insert_code(located, roots, label)
    _tell(located, "slot_added")
    return code


def _require_room(located: LocatedOwner, keys: Sequence[StoredKey]) -> None:
    """Require that an owner has not the most codes that it may have.

    Raises:
        EnrollmentError: there is no room for one more.
    """
    root = active_root(located, keys)
    if len(located.store.load_slots([root.key_id], SlotKind.RECOVERY)) >= MAX_SLOTS:
        raise EnrollmentError(
            f"This {located.name} has {MAX_SLOTS} recovery codes, and more are not added: remove one with "
            "`unlocked.remove_slot(owner, slot)`."
        )


def _insert_code(located: LocatedOwner, roots: Iterable[OpenedKey], label: str | None) -> RecoveryCode:
    code = new_code()
    kek = kek_of_code(hide_code(code))
    with wiping(kek):
        slots = [new_slot(root, kek, SlotKind.RECOVERY, label=label, unacknowledged=True) for root in roots]
    located.store.insert_slots(slots)
    return code


class _Opened(NamedTuple):
    """An owner whose root key a code opened, and the slots that were loaded."""

    located: LocatedOwner
    keys: list[StoredKey]
    found: OpenedRoot
    loaded: list[StoredSlot]

    def wipe(self) -> None:
        """Wipe the root keys."""
        for _, root in self.found.slots:
            root.key.wipe()


def _opened_by(desk: Desk, owner: object, kek: KeyBytes) -> Steps[_Opened]:
    yield from ()  # as the steps of every attempt; these wait for no derivation and no call
    located = locate_enrolled(desk, owner)
    keys = load_keys(located)
    return _Opened(located, keys, *_open(located, keys, kek))


def unlock_with_code_steps(
    desk: Desk, owner: object, code: Hidden[str], attempt: Attempt
) -> Steps[UnlockedSession]:
    """The steps of `Envelope.unlock` with a recovery code. The code goes on opening the owner."""
    kek = kek_of_code(code)
    with wiping(kek), attempt.told():
        note_policy(desk.session, desk.policy)
        opening = _opened_by(desk, owner, kek)
        located, keys, found, loaded = yield from attempt.counted(opening, _Opened.wipe)
        unlocked = unlocked_owner(desk, located, keys, found, new=loaded)
    attempt.told_unlocked(unlocked)
    with locking_if_untold(unlocked):
        _tell(located, "recovery_code_used")
    return unlocked


def refuse_unknown_steps(code: Hidden[str], attempt: Attempt) -> Steps[NoReturn]:
    """The steps of `Envelope.unlock_unknown` with a recovery code."""
    kek_of_code(code).wipe()
    with attempt.told():
        yield from attempt.counted(_opening_nothing())
    raise AssertionError  # nothing was opened


def _opening_nothing() -> Steps[NoReturn]:
    yield from ()
    raise UnlockError("This is no recovery code of this account: there is none.")


def reset_secret_steps(
    desk: Desk, profile: KdfProfile, owner: object, code: Hidden[str], new: HiddenSecret, attempt: Attempt
) -> Steps[RecoveryCode]:
    """The steps of `Envelope.reset_secret`."""
    kek = kek_of_code(code)
    with wiping(kek):
        with attempt.told():
            note_policy(desk.session, desk.policy)
            # A wrong code costs no derivation, and locks nothing.
            first = yield from attempt.counted(_opened_by(desk, owner, kek), _Opened.wipe)
            first.wipe()
        # A word on the new secret before the code was found right would tell that the account exists.
        prepared = prepare_new(desk.policy, new, owner)
        located = first.located
        salt = located.new_salt(profile)
        with attempt.told():
            secret = yield Derivation(prepared, salt)
            with wiping(secret), _telling_conflicts(located):
                located.store_share(salt)
                hold_slots(desk, located.place)
                made = _reset(located, kek, secret, salt)
                revoke_tickets_of(desk, located.place)
    _tell(located, "recovery_code_used")
    _tell(located, "secret_set", SlotKind.SECRET)
    _tell(located, "slot_added")  # the new code
    return made


def _reset(located: LocatedOwner, kek: KeyBytes, secret: KeyBytes, salt: KdfSalt) -> RecoveryCode:
    """Put a new secret in the place of every secret, and a new code in the place of the used one. The owner
    is locked.

    Args:
        kek: the KEK of the used code.
        secret: the KEK of the new secret.

    Raises:
        UnlockError: another transaction used the code meanwhile.
    """
    keys = load_locked(located.store, located.place)
    found, _ = _open(located, keys, kek, locked=True)
    with keyring_of(located, keys, found) as keyring:
        if not found.trusted:
            # The new slots would be wrapped, so that its root key would pass as the owner's own: renew it.
            renew(located.desk, located.place, keyring, found)
        keys, roots = keyring.keys_of(located.place.owner), _open_roots(keyring, located.place.owner)
        codes = _slots(located, keys, SlotKind.RECOVERY, locked=True)
        used = [slot for slot in codes if _is_of(slot, kek)]
        if located.store.delete_slots(used) != len(used):
            raise _conflict(located)
        secrets = _slots(located, keys, SlotKind.SECRET, locked=True)
        replace_secrets(located, roots, secrets, secret, salt)
        return _insert_code(located, roots, found.slot.label)


@contextmanager
def _telling_conflicts(located: LocatedOwner) -> Iterator[None]:
    """Tell what the database says of another transaction that came first, by one name."""
    try:
        yield
    except DBAPIError as error:
        if not should_retry(error):
            raise
        raise _conflict(located) from error


def _conflict(located: LocatedOwner) -> TransactionConflictError:
    return TransactionConflictError(
        f"The key slots of this {located.name} were changed by somebody else at the same moment: perhaps the "
        "code was used there. Run the transaction again."
    )


def _open(
    located: LocatedOwner, keys: Sequence[StoredKey], kek: KeyBytes, *, locked: bool = False
) -> tuple[OpenedRoot, list[StoredSlot]]:
    """Open the active root key through the slot of a code, and the older root keys that the code opens.

    Args:
        locked: whether the owner is locked, so that its slots are read as they are now.

    Returns:
        The root key, and the slots that were loaded: those of codes, and those that the owner has not
        acknowledged.

    Raises:
        UnlockError: the owner has no slot of this code.
        TamperedKeyError: the slot of this code was altered.
    """
    root, loaded = active_root(located, keys), _slots(located, keys, SlotKind.RECOVERY, locked=locked)
    mine = [slot for slot in loaded if _is_of(slot, kek)]
    refused: EnvelopeError = UnlockError(
        f"This is no recovery code of this {located.name}: it is another owner's, or it was replaced when it "
        "was used, or removed."
    )
    for slot in mine:
        if slot.key_id == root.key_id:
            try:
                return open_with_kek(located.desk.policy, keys, root, slot, mine, kek), loaded
            except EnvelopeError as error:
                refused = error  # perhaps planted beside the slot that the library made
    raise refused


def _slots(
    located: LocatedOwner, keys: Iterable[StoredKey], kind: SlotKind, *, locked: bool
) -> list[StoredSlot]:
    """The slots of an owner's root keys, of this kind; unless the owner is locked, also those that the owner
    has not acknowledged.

    Raises:
        KeyNotFoundError: there are more than the library makes.
    """
    store, roots = located.store, [key.key_id for key in keys if key.purpose is Purpose.ROOT]
    found = store.load_slots(
        roots,
        kind,
        (MAX_SLOTS + 1) * len(roots),
        or_new=not locked,
        for_update=locked and store.shows_others_when_locked,
        closed_too=True,
    )
    by_root = Counter(slot.key_id for slot in found if slot.kind is kind)
    if by_root and max(by_root.values()) > MAX_SLOTS:
        raise KeyNotFoundError(
            f"This {located.name} has more than {MAX_SLOTS} {kind} slots, and the library makes no more: "
            "some were added past it."
        )
    return found


def _is_of(slot: StoredSlot, kek: KeyBytes) -> bool:
    return slot.kind is SlotKind.RECOVERY and slot.recipient_public_key == x25519_public(kek)


def _open_roots(keyring: Keyring, owner: OwnerId) -> list[OpenedKey]:
    """The root keys of an owner that are open, the active one first."""
    found = []
    for key in keyring.keys_of(owner):  # the newest first
        if key.purpose is Purpose.ROOT and key.state is not KeyState.DESTROYED:
            try:
                opened = keyring.open(key.key_id)
            except EnvelopeError:
                continue  # the values under it stay locked, as they are now
            found += [] if opened is None else [opened]
    return found


def _tell(located: LocatedOwner, name: EventName, kind: SlotKind = SlotKind.RECOVERY) -> None:
    event = AuditEvent(name, located.name, owner_id=located.place.primary_key, slot_kind=kind.value)
    located.desk.emit(event)
