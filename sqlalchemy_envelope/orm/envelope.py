"""`Envelope`: the policy of an application, and its verbs: enroll, unlock, change a secret.

Each verb is a generator that does its database work and yields when a key has to be derived. The synchronous
face runs the derivation on the spot, the asynchronous one in a thread: the core is written once.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

from sqlalchemy import inspect
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import InstanceState, Session, scoped_session

from sqlalchemy_envelope.crypto.argon2id import KdfLimit, KdfProfile, KdfSalt
from sqlalchemy_envelope.crypto.preparation import prepare_secret
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.crypto.wrapping import wrong_secret
from sqlalchemy_envelope.exceptions import (
    AlreadyEnrolledError,
    ConfigurationError,
    KeyNotFoundError,
    UnlockError,
)
from sqlalchemy_envelope.keys.hierarchy import describe, open_under_root, wrap_under_root
from sqlalchemy_envelope.keys.keyring import Keyring
from sqlalchemy_envelope.keys.model import KeyState, OpenedKey, Purpose, StoredKey, StoredSlot
from sqlalchemy_envelope.keys.slots import open_secret_slot, secret_slot
from sqlalchemy_envelope.orm.binding import plan_of_mapper
from sqlalchemy_envelope.orm.engine import require_cascades
from sqlalchemy_envelope.orm.located import (
    LocatedOwner,
    check_reference,
    load_keys,
    locate,
    locate_enrolled,
    usable_state,
)
from sqlalchemy_envelope.orm.owners import OwnerClass, require_owner_class
from sqlalchemy_envelope.orm.store import MAX_SLOTS
from sqlalchemy_envelope.orm.transactions import note_enrolment, note_unlock
from sqlalchemy_envelope.orm.unlocked import UnlockedSession
from sqlalchemy_envelope.orm.writing import ENROLLING_OWNER, Enrolling, enrolling, require_enrolling

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

T = TypeVar("T")


class Derivation(NamedTuple):
    """A key derivation that a step waits for."""

    secret: bytes
    salt: KdfSalt

    def __repr__(self) -> str:
        return "<Derivation redacted>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("secrets are not copied or pickled")


Steps = Generator[Derivation, KeyBytes, T]


class Envelope:
    """The policy of an application; one for each. Holds no key.

    Args:
        kdf_profile: the cost of new secret slots, and the least an opened one is left at.
        concurrent_derivations: most key derivations at once in this process; default, one for each core. Each
            holds its profile's memory while it runs.
        derivation_wait: seconds to wait for one to come free, before `UnlockBusyError`.
    """

    def __init__(
        self,
        *,
        kdf_profile: KdfProfile = KdfProfile.RFC9106_LOW_MEMORY,
        concurrent_derivations: int | None = None,
        derivation_wait: float = 5.0,
    ) -> None:
        self.kdf_profile = kdf_profile
        self._limit = KdfLimit(concurrent_derivations or os.cpu_count() or 1, derivation_wait)

    def enroll(
        self, session: Session | scoped_session[Any], owner: object, *, secret: str | bytes
    ) -> UnlockedSession:
        """Make an owner's keys, opened by `secret`, and flush the owner with them. Never commits.

        Adds the owner to the session if it is not in it. The owner is unlocked while the
        result is used in a `with`.

        Raises:
            AlreadyEnrolledError: it has keys.
            SecretError: the secret cannot be used.
            ConfigurationError: it is no `KeyOwner`, or its database would not delete its keys with it.
        """
        return self.run(self.enroll_steps(plain_session(session), owner, secret))

    def unlock(
        self, session: Session | scoped_session[Any], owner: object, *, secret: str | bytes
    ) -> UnlockedSession:
        """Open an owner's keys; they are of use while the result is used in a `with`.
        Success is an authentication.

        Two queries and one key derivation, of some 0.2 s with the default profile. A slot that falls short of
        the policy is upgraded in the caller's transaction.

        Raises:
            UnlockError: the secret is wrong, or its slot was altered. Which of the two cannot be told.
            NotEnrolledError: the owner has no keys.
            TamperedKeyError, OwnerMismatchError, KdfParametersError: stored keys were altered. Certain.
            UnlockBusyError: too many derivations at once.
            SecretError: the secret cannot be anyone's.
        """
        return self.run(self.unlock_steps(plain_session(session), owner, secret))

    def change_secret(
        self, session: Session | scoped_session[Any], owner: object, *, old: str | bytes, new: str | bytes
    ) -> None:
        """Put a new secret in place of the old one. One row changes and no data is touched. Never commits.

        Raises: as `unlock`, and
            UnlockError: the old secret is wrong, or somebody else changed it at the same moment.
        """
        self.run(self.change_secret_steps(plain_session(session), owner, old, new))

    def unlock_unknown(self, *, secret: str | bytes) -> NoReturn:
        """Refuse an account that does not exist as slowly as a wrong secret, so that time
        does not tell who exists.

        Raises:
            UnlockError: always, after one key derivation.
            UnlockBusyError, SecretError: as `unlock` would.
        """
        kek = self.derive(Derivation(prepare_secret(secret), KdfSalt.generate(self.kdf_profile)))
        kek.wipe()
        raise wrong_secret()

    def rebind(self, session: Session | scoped_session[Any], owner: object, *, secret: str | bytes) -> None:
        """Bind an owner's keys to its present primary key, after that was changed. Never commits.

        The cure for `OwnerMismatchError` when the primary key was changed on purpose, and only then: keys
        that were moved here from another owner open with that owner's secret alone.

        Raises: as `unlock`.
        """
        self.run(self.rebind_steps(plain_session(session), owner, secret))

    def run(self, steps: Steps[T]) -> T:
        """Carry steps out, deriving keys on this thread."""
        try:
            derivation = next(steps)
            while True:
                derivation = steps.send(self.derive(derivation))
        except StopIteration as stop:
            result: T = stop.value
            return result

    def derive(self, derivation: Derivation) -> KeyBytes:
        """Run one key derivation, within the limit."""
        return self._limit.derive(derivation.secret, derivation.salt)

    def enroll_steps(self, session: Session, owner: object, secret: str | bytes) -> Steps[UnlockedSession]:
        """The steps of `enroll`."""
        prepared = prepare_secret(secret, new=True)
        owner_class = require_owner_class(owner)
        state = usable_state(owner, owner_class)
        require_cascades(session, {"mapper": owner_class.mapper})
        if state.key is not None and locate(session, owner).store.load_keys():
            raise AlreadyEnrolledError(
                f"This {owner_class.name} has keys already; unlock it, or change its secret."
            )
        _refuse_unenrolled_others(session, state)
        salt = KdfSalt.generate(self.kdf_profile)
        kek = yield Derivation(prepared, salt)

        root_key, data_key = KeyBytes.generate(), KeyBytes.generate()
        try:
            _flush_owner(session, owner, state, owner_class, data_key)
            located = locate(session, owner)
            root = describe(root_key, located.reference, Purpose.ROOT)
            data = describe(data_key, located.reference, Purpose.DATA)
            stored = [root.stored, wrap_under_root(data, root)]
            _insert(located, stored, secret_slot(root, kek, salt))
        except BaseException:
            data_key.wipe()
            raise
        finally:
            root_key.wipe()
            kek.wipe()
        unlocked = _unlocked(session, located, [data])
        note_enrolment(session, owner_class.owner_id(located.primary_key), unlocked)
        return unlocked

    def unlock_steps(self, session: Session, owner: object, secret: str | bytes) -> Steps[UnlockedSession]:
        """The steps of `unlock`."""
        prepared = prepare_secret(secret)
        located = locate_enrolled(session, owner)
        keys = load_keys(located)
        check_reference(keys, located)
        root, slot, salt = yield from self._open_root(located, keys, prepared)
        with wiping(root.key):
            if self.kdf_profile.exceeds(salt.profile):
                stronger = KdfSalt.generate(self.kdf_profile)
                kek = yield Derivation(prepared, stronger)
                # A lost race is no loss: whoever won has upgraded or changed the slot.
                with wiping(kek):
                    located.store.replace_slot(slot, secret_slot(root, kek, stronger, slot.slot_id))
            opened = _open_all(keys, root)
        unlocked = _unlocked(session, located, opened)
        note_unlock(session, located.owner_class.owner_id(located.primary_key), unlocked)
        return unlocked

    def change_secret_steps(
        self, session: Session, owner: object, old: str | bytes, new: str | bytes
    ) -> Steps[None]:
        """The steps of `change_secret`."""
        prepared, prepared_new = prepare_secret(old), prepare_secret(new, new=True)
        located = locate_enrolled(session, owner)
        keys = load_keys(located)
        check_reference(keys, located)
        root, slot, _ = yield from self._open_root(located, keys, prepared)
        with wiping(root.key):
            salt = KdfSalt.generate(self.kdf_profile)
            kek = yield Derivation(prepared_new, salt)
            with wiping(kek):
                new_slot = secret_slot(root, kek, salt, slot.slot_id)
        if not located.store.replace_slot(slot, new_slot):
            raise UnlockError(
                "The secret was changed by somebody else at the same moment; nothing was changed here."
            )

    def rebind_steps(self, session: Session, owner: object, secret: str | bytes) -> Steps[None]:
        """The steps of `rebind`."""
        prepared = prepare_secret(secret)
        located = locate_enrolled(session, owner)
        keys = load_keys(located)
        root, slot, _ = yield from self._open_root(located, keys, prepared)
        with wiping(root.key):
            opened = _open_all(keys, root)
            with wiping(*(one.key for one in opened)):
                salt = KdfSalt.generate(self.kdf_profile)
                kek = yield Derivation(prepared, salt)
                new_root = OpenedKey(replace(root.stored, owner_reference=located.reference), root.key)
                with wiping(kek):
                    new_slot = secret_slot(new_root, kek, salt, slot.slot_id)
                moved = [replace(one.stored, owner_reference=located.reference) for one in opened]
                rewrapped = [
                    wrap_under_root(OpenedKey(stored, one.key), new_root)
                    for stored, one in zip(moved, opened, strict=True)
                ]
        if not located.store.replace_slot(slot, new_slot):
            raise UnlockError(
                "The secret was changed by somebody else at the same moment; nothing was changed here."
            )
        for stored in (new_root.stored, *rewrapped):
            located.store.replace_key(stored)

    def _open_root(
        self, located: LocatedOwner, keys: Sequence[StoredKey], prepared: bytes
    ) -> Steps[tuple[OpenedKey, StoredSlot, KdfSalt]]:
        root = next(
            (key for key in keys if key.purpose is Purpose.ROOT and key.state is KeyState.ACTIVE), None
        )
        if root is None:
            raise KeyNotFoundError(
                f"This {located.owner_class.name} has keys and no active root key to open them with."
            )
        slots = located.store.load_secret_slots(root)
        if not slots or len(slots) > MAX_SLOTS:
            raise KeyNotFoundError(
                f"This {located.owner_class.name} has {'too many' if slots else 'no'} secret slots; 1 to "
                f"{MAX_SLOTS} are accepted."
            )
        refused: UnlockError | None = None
        for slot in slots:
            salt = KdfSalt.parse(slot.kdf, policy=self.kdf_profile)
            kek = yield Derivation(prepared, salt)
            try:
                return open_secret_slot(slot, root, kek), slot, salt
            except UnlockError as error:
                refused = error
            finally:
                kek.wipe()
        assert refused is not None  # noqa: S101 - there was at least one slot
        raise refused

    def __repr__(self) -> str:
        return f"Envelope(kdf_profile={self.kdf_profile!r})"


def plain_session(session: Session | scoped_session[Any]) -> Session:
    """The session behind a scoped one.

    Raises:
        ConfigurationError: it is an asynchronous one.
    """
    if hasattr(session, "sync_session"):
        raise ConfigurationError(
            "This is an AsyncSession: use AsyncEnvelope(envelope), with `await` or `async with`."
        )
    return session.registry() if isinstance(session, scoped_session) else session


def _open_all(keys: Sequence[StoredKey], root: OpenedKey) -> list[OpenedKey]:
    wanted = [key for key in keys if key.purpose is not Purpose.ROOT and key.state is not KeyState.DESTROYED]
    return [open_under_root(key, root) for key in wanted]


def _unlocked(session: Session, located: LocatedOwner, keys: Sequence[OpenedKey]) -> UnlockedSession:
    keyring = Keyring()
    keyring.add(located.owner_class.owner_id(located.primary_key), keys)
    return UnlockedSession(session, located.owner_class, located.primary_key, keyring)


def _refuse_unenrolled_others(session: Session, state: InstanceState[Any]) -> None:
    """Before the flush, and not in it: a failed flush would roll the caller's transaction back."""
    for instance in session.new:
        other: InstanceState[Any] = inspect(instance)
        if other is not state and any(a.encrypted.path.is_self for a in plan_of_mapper(other.mapper)):
            require_enrolling(other)


def _flush_owner(
    session: Session, owner: object, state: InstanceState[Any], owner_class: OwnerClass, data_key: KeyBytes
) -> None:
    """Write the owner's row, with its own encrypted columns under a key that is not stored yet."""
    keyring = Keyring()
    keyring.add(ENROLLING_OWNER, [describe(data_key, b"", Purpose.DATA)])
    with enrolling(session, Enrolling(state, owner_class, keyring)):
        session.add(owner)
        session.flush()


def _insert(located: LocatedOwner, keys: Sequence[StoredKey], slot: StoredSlot) -> None:
    try:
        located.store.insert_keys(keys)
    except IntegrityError:
        pass
    else:
        located.store.insert_slot(slot)
        return
    raise AlreadyEnrolledError(
        f"This {located.owner_class.name} was enrolled by somebody else at the same moment; roll back and "
        "unlock it."
    )


@contextmanager
def wiping(*keys: KeyBytes) -> Iterator[None]:
    """Wipe keys at the end of the block, however it ends."""
    try:
        yield
    finally:
        for key in keys:
            key.wipe()
