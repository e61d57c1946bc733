"""An owner with its place in the database, and the checks before its keys are opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import inspect
from sqlalchemy.orm import object_session

from sqlalchemy_envelope.crypto.argon2id import KdfSalt
from sqlalchemy_envelope.exceptions import (
    EnrollmentError,
    KeyNotFoundError,
    NotEnrolledError,
    OwnerMismatchError,
)
from sqlalchemy_envelope.keys.hierarchy import check_generations
from sqlalchemy_envelope.keys.model import KeyState, Purpose, SlotKind
from sqlalchemy_envelope.orm.current.context import server_hint
from sqlalchemy_envelope.orm.sharing.granted import KEYS_WERE_DELETED
from sqlalchemy_envelope.orm.sharing.roots import active_root_among
from sqlalchemy_envelope.orm.tables.cascades import require_cascades
from sqlalchemy_envelope.orm.tables.owners import OwnerClass, Place, require_owner_class
from sqlalchemy_envelope.orm.tables.stored_rows import usable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy.orm import InstanceState

    from sqlalchemy_envelope.crypto.argon2id import KdfProfile
    from sqlalchemy_envelope.keys.model import StoredKey, StoredSlot
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.tables.key_rows import KeyStore
    from sqlalchemy_envelope.orm.tables.stored_rows import OwnedKey


class LocatedOwner(NamedTuple):
    """An owner with its place in the database."""

    desk: Desk
    instance: object
    place: Place
    store: KeyStore

    @property
    def name(self) -> str:
        """The name of its class."""
        return self.place.owner_class.name

    @property
    def reference(self) -> bytes:
        """The reference that this owner's wrapped keys are bound to."""
        return self.place.owner_class.reference(self.instance, self.place.primary_key)

    def new_salt(self, profile: KdfProfile) -> KdfSalt:
        """Make the salt of a new secret slot, with a fresh share if the class has shares."""
        return KdfSalt.generate(profile, self.desk.shares(self.place.owner_class).new())

    def store_share(self, salt: KdfSalt) -> None:
        """Store the share of a new salt before anything else is written: the second database may be away."""
        if salt.share is not None:
            self.desk.shares(self.place.owner_class).store([salt.share])

    def load(self) -> list[OwnedKey]:
        """Load the owner's key rows, checked but not refused yet."""
        return self.store.load([self.place.primary_key])


def usable_state(owner: object, owner_class: OwnerClass) -> InstanceState[Any]:
    """Return the state of an owner that is not deleted."""
    state: InstanceState[Any] = inspect(owner)
    if state.deleted or state.was_deleted or (state.session is not None and owner in state.session.deleted):
        raise EnrollmentError(f"This {owner_class.name} is deleted, and its keys with it.")
    return state


def locate(desk: Desk, owner: object, store: KeyStore | None = None) -> LocatedOwner:
    """Locate an owner that is in the database. To locate several owners of a class, share its `store`."""
    owner_class = require_owner_class(owner)
    identity: Any = inspect(owner).key
    store = store or desk.keys(owner_class)
    return LocatedOwner(desk, owner, Place(owner_class, tuple(identity[1]), store.where), store)


def locate_enrolled(desk: Desk, owner: object) -> LocatedOwner:
    """Locate an owner that can have keys, in a database that deletes the keys with the owner.

    Raises:
        NotEnrolledError, EnrollmentError, ConfigurationError: the owner cannot have keys.
    """
    owner_class = require_owner_class(owner)
    if usable_state(owner, owner_class).key is None:
        raise NotEnrolledError(
            f"This {owner_class.name} is not in the database yet; enroll it: envelope.enroll(...)."
        )
    require_cascades(desk.session, owner_class.mapper)
    return locate(desk, owner)


def named(located: LocatedOwner, among_others: bool) -> str:
    """Return an owner's name for an error: with its primary key, if there are several owners."""
    if not among_others:
        return f"This {located.name}"
    return f"{located.name} {', '.join(map(str, located.place.primary_key))}"


def active_root(located: LocatedOwner, keys: Sequence[StoredKey]) -> StoredKey:
    """Return an owner's active root key.

    Raises:
        KeyNotFoundError: there is no active root key.
    """
    root = active_root_among(keys)
    if root is None:
        raise KeyNotFoundError(
            f"This {located.name} has keys and no active root key to open them with. {KEYS_WERE_DELETED}"
        )
    return root


def how_opened(located: LocatedOwner, keys: Sequence[StoredKey]) -> str:
    """Return an error's text for keys that the caller did not expect: what opens them, and what to call."""
    roots = [key.key_id for key in keys if key.purpose is Purpose.ROOT]
    slots = located.store.load_slots(roots, closed_too=True)
    kinds = {slot.kind for slot in slots}
    if SlotKind.SECRET in kinds:
        return "unlock it, or change its secret"
    if SlotKind.RECOVERY in kinds:
        return (
            "it has no secret, and is opened by a recovery code. `envelope.reset_secret(session, owner, "
            "recovery_code=..., new=...)` gives it a secret"
        )
    if SlotKind.PROVIDER not in kinds and SlotKind.ESCROW in kinds:
        return "it has no secret, and is held in escrow. Custodians open it with `escrow_key=`"
    if SlotKind.PROVIDER not in kinds:
        return "it is opened by whom they are granted to"
    providers = sorted({slot.provider_name for slot in slots if slot.kind is SlotKind.PROVIDER})
    names = " and ".join(repr(one) for one in providers)
    return (
        f"it is held by provider {names} alone and has no secret. Open it in server mode or with "
        f"`envelope.unlock(session, owner, provider={providers[0]!r}, reason=...)`; inside of that, "
        "`envelope.add_secret(session, owner, secret=...)` gives it one"
    )


def load_keys(located: LocatedOwner) -> list[StoredKey]:
    """Load an owner's keys, and check that each has one active generation.

    Raises:
        NotEnrolledError: the owner has no keys.
        TamperedKeyError, RowSealError: an older key was made active again, or a key was altered.
        OwnerMismatchError: the keys are bound to another owner.
    """
    return checked_keys(_rows(located))


def load_keys_and_secrets(located: LocatedOwner) -> tuple[list[StoredKey], list[StoredSlot]]:
    """As `load_keys`, and the secret slots of the root keys, with one query.

    Raises: as `load_keys`.
    """
    rows, slots = located.store.load_with_secrets(located.place.primary_key)
    return checked_keys(_usable(located, rows)), slots


def load_moved_keys(located: LocatedOwner) -> list[StoredKey]:
    """As `load_keys`, after a change of the primary key: the keys may be bound to the old primary key."""
    rows = _rows(located)
    return checked_keys(
        [row._replace(error=None) if isinstance(row.error, OwnerMismatchError) else row for row in rows]
    )


def are_destroyed(rows: Iterable[OwnedKey]) -> bool:
    """Tell whether every key among these is destroyed, so that their owner may be enrolled again."""
    return all(row.stored.state is KeyState.DESTROYED for row in rows)


def _rows(located: LocatedOwner) -> list[OwnedKey]:
    return _usable(located, located.load())


def _usable(located: LocatedOwner, rows: list[OwnedKey]) -> list[OwnedKey]:
    """Require that an owner has keys that are not destroyed."""
    if rows and are_destroyed(rows):
        raise NotEnrolledError(
            f"The keys of this {located.name} were destroyed, and nobody reads its earlier values again. "
            "envelope.enroll(...) gives it new keys."
        )
    if not rows:
        hint = server_hint(object_session(located.instance))
        raise NotEnrolledError(
            f"This {located.name} has no keys; enroll it first: envelope.enroll(...).{hint}"
        )
    return rows


def checked_keys(rows: list[OwnedKey]) -> list[StoredKey]:
    """Return an owner's keys, whose rows were loaded, if they may be used.

    Raises: as `load_keys`.
    """
    keys = [row.stored for row in usable(rows)]
    check_generations(keys)
    return keys
