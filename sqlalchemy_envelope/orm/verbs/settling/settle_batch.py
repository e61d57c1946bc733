"""One batch of `settle_all`: some owners of a class, as they are at one moment, and their waiting work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy_envelope.crypto.sealing import is_sealed
from sqlalchemy_envelope.exceptions import (
    ConfigurationError,
    EnvelopeError,
    ProviderError,
    TransactionConflictError,
)
from sqlalchemy_envelope.keys.keyring import Keyring
from sqlalchemy_envelope.keys.model import GrantState, KeyState, Purpose, SlotKind
from sqlalchemy_envelope.keys.slots import adopted_slot
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.current.policy import require_reason
from sqlalchemy_envelope.orm.sharing.first_use import open_held
from sqlalchemy_envelope.orm.sharing.granted import Opening
from sqlalchemy_envelope.orm.sharing.new_grants import fulfil
from sqlalchemy_envelope.orm.sharing.own_keys import is_left_undone
from sqlalchemy_envelope.orm.sharing.roots import renew
from sqlalchemy_envelope.orm.sharing.settle import settle
from sqlalchemy_envelope.orm.tables.grant_counts import count_grants
from sqlalchemy_envelope.orm.tables.owners import Place, owner_class_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy_envelope.crypto.secret import KeyBytes
    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.keys.model import KeyId, OpenedKey, StoredKey, StoredSlot
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.sharing.roots import OpenedRoot
    from sqlalchemy_envelope.orm.tables.grant_counts import GrantCounts
    from sqlalchemy_envelope.orm.tables.owners import GrantClass, OwnerClass
    from sqlalchemy_envelope.orm.tables.stored_rows import OwnedKey

    PrimaryKey = tuple[Any, ...]


class RefusedOwner(NamedTuple):
    """An owner whose keys could not be settled.

    Attributes:
        primary_key: the owner's primary key.
        code: the code of the error, as in the error reference.
        why: the text of the error.
    """

    primary_key: PrimaryKey
    code: str
    why: str


@dataclass(frozen=True)
class Job:
    """The arguments of a run of `settle_all`."""

    owner_class: OwnerClass
    provider: str
    reason: str
    size: int


def job(
    policy: Policy,
    owner_class: type[Any],
    provider: str,
    reason: str,
    size: int,
    *,
    verb: str = "settle_all",
) -> Job:
    """Check the arguments of `settle_all`, or of another verb over a class of owners.

    Raises:
        ConfigurationError: no class of key owners, no such provider, no reason, or an empty batch.
        ProviderError: the provider can open no keys in this process.
    """
    found = owner_class_of(getattr(owner_class, "__table__", None)) if isinstance(owner_class, type) else None
    if found is None or found.key_class is None or found.slot_class is None:
        raise ConfigurationError(f"{verb}() takes a class of key owners: {verb}(session, Group, ...).")
    if not isinstance(size, int) or size < 1:
        raise ConfigurationError(f"batch={size!r} owners at a time: give at least 1.")
    require_reason(reason)
    if not policy.require_providers().can_open(provider):
        raise ProviderError(
            f"Provider {provider!r} is the public half of an offline key: it seals keys here and opens none. "
            f"Run this where the private half is, Envelope(providers={{{provider!r}: OfflineKey(...)}})."
        )
    return Job(found, provider, reason, size)


class Batch:
    """The keys of some owners, as they are at one moment.

    Attributes:
        places: the owners whose root key is open.
        refused: the owners whose keys could not be settled.
    """

    def __init__(self, desk: Desk, job: Job, primary_keys: Sequence[PrimaryKey]) -> None:
        self._desk = desk
        self._job = job
        self._store = desk.keys(job.owner_class)
        self.keyring = Keyring()
        self.places: dict[OwnerId, Place] = {}
        self.refused: dict[OwnerId, RefusedOwner] = {}
        self._found: dict[OwnerId, list[OwnedKey]] = {}
        for row in self._store.load(primary_keys):
            self._found.setdefault(row.owner, []).append(row)
        self._slots: dict[KeyId, list[StoredSlot]] = {}
        for slot in self._load_slots():
            if slot.provider_name == job.provider:
                self._slots.setdefault(slot.key_id, []).append(slot)
        self._roots: dict[OwnerId, OpenedRoot] = {}
        self._counts: dict[KeyId, GrantCounts] = {}

    def _load_slots(self) -> list[StoredSlot]:
        roots = {owner: _roots(row.stored for row in rows) for owner, rows in self._found.items()}
        try:
            return self._store.load_slots(
                [key_id for some in roots.values() for key_id in some], SlotKind.PROVIDER
            )
        except EnvelopeError:
            slots = []
            for owner, some in roots.items():  # a slot was altered: find its owner
                try:
                    slots += self._store.load_slots(some, SlotKind.PROVIDER)
                except EnvelopeError as error:
                    self.refuse(owner, error)
            return slots

    def keks_needed(self) -> Iterable[StoredSlot]:
        """Return a slot for each KEK that wraps active root keys."""
        active = {
            row.stored.key_id
            for rows in self._found.values()
            for row in rows
            if row.stored.state is KeyState.ACTIVE
        }
        slots = (slot for key_id, some in self._slots.items() if key_id in active for slot in some[:1])
        return {slot.provider_wrapped: slot for slot in slots}.values()

    def open(self, keks: Mapping[bytes, KeyBytes]) -> None:
        """Open the root keys, and count the grants of these owners' keys."""
        for owner, rows in self._found.items():
            if owner in self.refused:
                continue
            try:
                self._open_owner(owner, rows, keks)
            except EnvelopeError as error:
                self.refuse(owner, error)
        if self._job.owner_class.grants_of:
            shared = [key.key_id for owner in self.places for key in self._shared(owner)]
            self._counts = count_grants(self._desk.session, self._job.owner_class.grants_of, shared)

    def _open_owner(self, owner: OwnerId, rows: list[OwnedKey], keks: Mapping[bytes, KeyBytes]) -> None:
        def kek_of(slot: StoredSlot) -> KeyBytes:
            kek = keks.get(slot.provider_wrapped or b"")
            if kek is None:
                name = self._job.provider
                raise ProviderError(
                    f"Provider {name!r} does not open this slot here: the slot is under another of its keys."
                )
            return kek

        found = open_held(self._desk.policy, rows, self._slots, kek_of)
        if found is None:
            return  # the owner's keys changed a moment ago
        self.keyring.add(owner, [found.root, *found.older])
        self.keyring.add_stored(owner, [row.stored for row in rows])
        self._roots[owner] = found
        self.places[owner] = Place(self._job.owner_class, rows[0].primary_key, self._store.where)

    def _shared(self, owner: OwnerId) -> list[StoredKey]:
        return [
            key
            for key in self.keyring.keys_of(owner)
            if key.state is KeyState.ACTIVE and key.purpose in (Purpose.ROOT, Purpose.DATA)
        ]

    def due(self) -> list[OwnerId]:
        """Return the owners with waiting work, as far as the rows tell."""
        return [
            owner
            for owner in self.places
            if not self._roots[owner].trusted
            or is_sealed(self._roots[owner].slot.wrapped)
            or self._is_left(owner)
            or any(self._counts[key.key_id].pending for key in self._counted(owner))
        ]

    def _counted(self, owner: OwnerId) -> list[StoredKey]:
        return [key for key in self._shared(owner) if key.key_id in self._counts]

    def _is_left(self, owner: OwnerId) -> bool:
        """Tell whether a member was removed, or a key is sealed, unlinked or not made yet."""
        counts = [(key, self._counts.get(key.key_id)) for key in self._shared(owner)]
        return is_left_undone(self.keyring, Opening({owner: self.places[owner]}, [], {})) or any(
            key.granted > 0 if count is None else count.is_left for key, count in counts
        )

    def lock(self, owners: Sequence[OwnerId]) -> list[OwnerId]:
        """Lock these owners' keys; return the owners whose keys no other transaction holds."""
        ids = {
            owner: {
                key.key_id
                for key in self.keyring.keys_of(owner)
                if key.purpose is Purpose.ROOT or key.state is KeyState.ACTIVE
            }
            for owner in owners
        }
        free = self._store.free([key_id for some in ids.values() for key_id in some])
        return [owner for owner, some in ids.items() if some <= free]

    def settle(self) -> set[OwnerId]:
        """Settle what waits, for owners with locked key rows; return the owners for whom anything changed."""
        before = {owner: self._state(owner) for owner in self.places}
        adopted = self._adopt(self._roots)
        self._renew_untrusted()
        fulfilled = self._fulfil()
        left = {
            owner: place
            for owner, place in self.places.items()
            if owner not in self.refused and self._is_left(owner)
        }
        if left:
            settle(self._desk, self.keyring, Opening(left, [], {}), writes=True)
            self._adopt_new(left)
        for owner in list(self.places):
            refusal = self.keyring.refusal(owner)
            if refusal is not None:
                self.refuse(owner, refusal)
        changed = {owner for owner, state in before.items() if self._state(owner) != state}
        return adopted | fulfilled | changed

    def _renew_untrusted(self) -> None:
        """Start new epochs to replace untrusted root keys."""
        for owner in [one for one in self.places if not self._roots[one].trusted]:
            try:
                renew(self._desk, self.places[owner], self.keyring, self._roots[owner])
            except TransactionConflictError:
                raise
            except EnvelopeError as error:
                self.refuse(owner, error)

    def _state(self, owner: OwnerId) -> set[tuple[KeyId, KeyState, bytes | None]]:
        return {(key.key_id, key.state, key.wrapped) for key in self.keyring.keys_of(owner)}

    def _adopt(self, roots: Mapping[OwnerId, OpenedRoot]) -> set[OwnerId]:
        """Wrap sealed slots under their KEK, so that the next root key can be recognised as genuine."""
        sealed = {
            owner: (found.slot, adopted_slot(found.slot, found.root, found.kek))
            for owner, found in roots.items()
            if found.trusted and is_sealed(found.slot.wrapped)
        }
        self._store.replace_slots(list(sealed.values()))
        return set(sealed)

    def _adopt_new(self, owners: Iterable[OwnerId]) -> None:
        """Adopt the slots of epochs that were started here: they are certainly genuine."""
        new = {}
        for owner in owners:
            root = self.keyring.root(owner)
            if root is not None and root.stored.key_id != self._roots[owner].root.stored.key_id:
                new[root.stored.key_id] = owner, root
        if not new:
            return
        made = {}
        for slot in self._store.load_slots(new, SlotKind.PROVIDER):
            owner, root = new[slot.key_id]
            found = self._roots[owner]
            if slot.recipient_public_key == found.slot.recipient_public_key:
                made[owner] = found._replace(root=root, slot=slot, trusted=True)
        self._adopt(made)

    def _fulfil(self) -> set[OwnerId]:
        """Fulfil the pending grants of these owners' keys.

        It takes three statements for each class of grants, and one for each class of recipients.
        """
        done: set[OwnerId] = set()
        for grant_class in self._job.owner_class.grants_of:
            keys = self._current(grant_class)
            if self._is_pending(keys):
                pending = self._desk.grants(grant_class).load_of(keys, GrantState.PENDING)
                sealed = fulfil(self._desk, grant_class, keys, pending)
                done.update(self.keyring.owner_of_key(grant.key_id) for grant in sealed)
        return done

    def _current(self, grant_class: GrantClass) -> dict[KeyId, OpenedKey]:
        """Return the active keys that a grant of this class gives, without those of refused owners."""
        purpose, scope = Purpose.ROOT if grant_class.scope is None else Purpose.DATA, grant_class.scope or ""
        owners = [owner for owner in self.places if owner not in self.refused]
        stored = [self.keyring.current(owner, purpose, scope) for owner in owners]
        opened = [self.keyring.open(key.key_id) for key in stored if key is not None]
        return {key.stored.key_id: key for key in opened if key is not None}

    def _is_pending(self, keys: Iterable[KeyId]) -> bool:
        # Grants of a key that was just made were not counted: grants that its epoch could not seal wait.
        return any(self._counts[key_id].pending for key_id in keys if key_id in self._counts)

    def refuse(self, owner: OwnerId, error: EnvelopeError) -> None:
        """Leave an owner out, whose keys are not as they should be."""
        rows = self._found[owner]
        self.refused[owner] = RefusedOwner(rows[0].primary_key, error.code, str(error))
        self.places.pop(owner, None)
        self._desk.emit(AuditEvent("keys_refused", self._job.owner_class.name, owner_id=rows[0].primary_key))


def _roots(keys: Iterable[StoredKey]) -> list[KeyId]:
    return [key.key_id for key in keys if key.purpose is Purpose.ROOT]
