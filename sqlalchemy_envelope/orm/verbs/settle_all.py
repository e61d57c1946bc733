"""Settling a whole class of owners in batches: the job of a machine that may open what a provider holds.

Each batch is looked at without a lock. Where something waits, the owners' keys are locked, those that another
transaction holds are left out, and what is there then is put in order:

- slots that are sealed are adopted, and what lies sealed to the owners' root keys;
- pending grants are fulfilled, those of the whole batch at once;
- an epoch starts where somebody was removed, or where nobody vouches for the present one.

What was done is not looked for again: a run that was cut off is simply begun anew, and goes on where it was.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from sqlalchemy_envelope.crypto.frames import emptying
from sqlalchemy_envelope.crypto.sealing import is_sealed
from sqlalchemy_envelope.exceptions import (
    ConfigurationError,
    EnvelopeError,
    ProviderError,
    TransactionConflictError,
)
from sqlalchemy_envelope.keys.grants import sealed_grant
from sqlalchemy_envelope.keys.hierarchy import check_generations
from sqlalchemy_envelope.keys.keyring import Keyring
from sqlalchemy_envelope.keys.model import GrantState, KeyState, Purpose, SlotKind
from sqlalchemy_envelope.keys.slots import adopted_slot
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.current.locks import require_no_locks
from sqlalchemy_envelope.orm.current.policy import note_policy, require_reason
from sqlalchemy_envelope.orm.sharing.epochs import Recipient, roots_of
from sqlalchemy_envelope.orm.sharing.first_use import trusting_first_use
from sqlalchemy_envelope.orm.sharing.membership import forget_looks
from sqlalchemy_envelope.orm.sharing.roots import open_with_kek, renew
from sqlalchemy_envelope.orm.sharing.settle import Opening, is_left_undone, settle
from sqlalchemy_envelope.orm.tables.cascades import require_cascades
from sqlalchemy_envelope.orm.tables.grant_rows import GrantStore, count_grants
from sqlalchemy_envelope.orm.tables.key_rows import KeyStore, usable
from sqlalchemy_envelope.orm.tables.owners import Place, owner_class_of
from sqlalchemy_envelope.orm.verbs.steps import Outside

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.crypto.secret import KeyBytes
    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.keys.model import KeyId, OpenedKey, StoredGrant, StoredKey, StoredSlot
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.current.providers import Providers
    from sqlalchemy_envelope.orm.sharing.roots import OpenedRoot
    from sqlalchemy_envelope.orm.tables.grant_rows import GrantCounts
    from sqlalchemy_envelope.orm.tables.key_rows import OwnedKey
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass
    from sqlalchemy_envelope.orm.verbs.steps import Steps

    PrimaryKey = tuple[Any, ...]


class RefusedOwner(NamedTuple):
    """An owner whose keys could not be settled.

    Attributes:
        primary_key: whose.
        code: of the error, as in the error reference.
        why: its text.
    """

    primary_key: PrimaryKey
    code: str
    why: str


@dataclass(frozen=True)
class Settled:
    """How far `settle_all` has come, over all its batches so far.

    Attributes:
        settled: owners for whom something waited, and was put in order.
        unchanged: owners for whom nothing was to do.
        skipped: owners for whom something waits, and whose keys another transaction holds. They are left to
            it, or to the next run.
        refused: owners whose keys were altered, or do not open with the provider's key.
        last: the primary key of the last owner that was looked at.
    """

    settled: int = 0
    unchanged: int = 0
    skipped: int = 0
    refused: tuple[RefusedOwner, ...] = ()
    last: PrimaryKey | None = None


@dataclass(frozen=True)
class Job:
    """What a run does, and for whom."""

    policy: Policy
    owner_class: OwnerClass
    provider: str
    reason: str
    size: int


def job(policy: Policy, owner_class: type[Any], provider: str, reason: str, size: int) -> Job:
    """What `settle_all` was asked for.

    Raises:
        ConfigurationError: no class of key owners, no such provider, no reason, or an empty batch.
        ProviderError: the provider opens nothing here.
    """
    found = owner_class_of(getattr(owner_class, "__table__", None)) if isinstance(owner_class, type) else None
    if found is None or found.key_class is None or found.slot_class is None:
        raise ConfigurationError("settle_all() takes a class of key owners: settle_all(session, Group, ...).")
    if not isinstance(size, int) or size < 1:
        raise ConfigurationError(f"batch={size!r} owners at a time cannot be settled; give at least 1.")
    require_reason(reason)
    if not policy.require_providers().can_open(provider):
        raise ProviderError(
            f"Provider {provider!r} is the public half of an offline key: it seals keys here and opens none. "
            f"Run this where the private half is, Envelope(providers={{{provider!r}: OfflineKey(...)}})."
        )
    return Job(policy, found, provider, reason, size)


class Settling:
    """A run of `Envelope.settle_all`: a loop over it settles a batch at each turn."""

    def __init__(self, one_batch: Callable[[Settled], Settled | None]) -> None:
        self._one_batch = one_batch
        self._so_far = Settled()
        self._is_begun = False

    def __iter__(self) -> Self:
        return self

    @emptying
    def __next__(self) -> Settled:
        self._is_begun = True
        found = self._one_batch(self._so_far)
        if found is None:
            raise StopIteration
        self._so_far = found
        return found

    def __del__(self) -> None:
        _warn_unless(getattr(self, "_is_begun", True))


class AsyncSettling:
    """As `Settling`, for `async for`."""

    def __init__(self, one_batch: Callable[[Settled], Awaitable[Settled | None]]) -> None:
        self._one_batch = one_batch
        self._so_far = Settled()
        self._is_begun = False

    def __aiter__(self) -> Self:
        return self

    @emptying
    async def __anext__(self) -> Settled:
        self._is_begun = True
        found = await self._one_batch(self._so_far)
        if found is None:
            raise StopAsyncIteration
        self._so_far = found
        return found

    def __del__(self) -> None:
        _warn_unless(getattr(self, "_is_begun", True))


def _warn_unless(is_begun: bool) -> None:
    if not is_begun:
        warnings.warn(
            "settle_all() settled nothing: loop over it, and commit at each turn",
            RuntimeWarning,
            stacklevel=3,
        )


def batch_steps(session: Session, job: Job, so_far: Settled) -> Steps[Settled | None]:
    """The steps of one batch; None after the last one."""
    policy, owner_class = job.policy, job.owner_class
    require_cascades(session, owner_class.mapper)
    note_policy(session, policy)
    store = KeyStore(session, owner_class, policy.seals)
    primary_keys = store.load_held_by(job.provider, so_far.last, job.size)
    if not primary_keys:
        return None
    looked = _Look(session, job, store, primary_keys)
    again: _Look | None = None
    try:
        keks: dict[bytes, KeyBytes] = {}
        providers = policy.require_providers()
        for slot in looked.keks_needed():
            if not providers.is_local(job.provider):
                require_no_locks(session, job.provider)
            kek: KeyBytes | None = yield Outside(partial(_kek_of, providers, job.provider, slot))
            if kek is not None:
                keks[slot.provider_wrapped or b""] = kek
        looked.open(keks)
        event = AuditEvent(
            "provider_unlocked",
            owner_class.name,
            count=len(looked.places),
            reason=job.reason,
            provider=job.provider,
        )
        policy.emit(event)
        due = looked.due()
        free = looked.lock(due)
        done: set[OwnerId] = set()
        refused = dict(looked.refused)
        if free:
            # What was read before the lock is not used after it.
            again = _Look(session, job, store, [looked.places[owner].primary_key for owner in free])
            again.open(keks)
            done = again.settle()
            refused |= again.refused
            forget_looks(session)
    finally:
        looked.keyring.wipe()
        if again is not None:
            again.keyring.wipe()
    skipped = len(due) - len(free)
    return Settled(
        so_far.settled + len(done - refused.keys()),
        so_far.unchanged + len(primary_keys) - skipped - len(done | refused.keys()),
        so_far.skipped + skipped,
        so_far.refused + tuple(refused.values()),
        primary_keys[-1],
    )


def _kek_of(providers: Providers, provider: str, slot: StoredSlot) -> KeyBytes | None:
    """The KEK of a slot; None if a key at hand does not open it, which asking again would not change.

    Raises:
        ProviderError: a provider that is away failed.
    """
    try:
        return providers.open(slot)
    except ProviderError:
        if providers.is_local(provider):
            return None
        raise


@dataclass(eq=False)
class _Look:
    """The keys of some owners, as they are at one moment."""

    session: Session
    job: Job
    store: KeyStore
    primary_keys: Sequence[PrimaryKey]
    keyring: Keyring = field(default_factory=Keyring)
    places: dict[OwnerId, Place] = field(default_factory=dict)
    """Whose root key is open."""
    refused: dict[OwnerId, RefusedOwner] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._found: dict[OwnerId, list[OwnedKey]] = {}
        for row in self.store.load(self.primary_keys):
            self._found.setdefault(row.owner, []).append(row)
        self._slots: dict[KeyId, list[StoredSlot]] = {}
        for slot in self._load_slots():
            if self.job.policy.require_providers().of(slot) == self.job.provider:
                self._slots.setdefault(slot.key_id, []).append(slot)
        self._roots: dict[OwnerId, OpenedRoot] = {}
        self._counts: dict[KeyId, GrantCounts] = {}

    def _load_slots(self) -> list[StoredSlot]:
        roots = {owner: _roots(row.stored for row in rows) for owner, rows in self._found.items()}
        try:
            every = [key.key_id for some in roots.values() for key in some]
            return self.store.load_slots(every, SlotKind.PROVIDER)
        except EnvelopeError:
            slots = []
            for owner, some in roots.items():  # one of them was altered: whose?
                try:
                    slots += self.store.load_slots([key.key_id for key in some], SlotKind.PROVIDER)
                except EnvelopeError as error:
                    self._refuse(owner, error)
            return slots

    def keks_needed(self) -> Iterable[StoredSlot]:
        """A slot for each KEK that active root keys are under."""
        active = {
            row.stored.key_id
            for rows in self._found.values()
            for row in rows
            if row.stored.state is KeyState.ACTIVE
        }
        slots = (slot for key_id, some in self._slots.items() if key_id in active for slot in some[:1])
        return {slot.provider_wrapped: slot for slot in slots}.values()

    def open(self, keks: Mapping[bytes, KeyBytes]) -> None:
        """Open the root keys, and count what was granted of these owners' keys."""
        for owner, rows in self._found.items():
            if owner in self.refused:
                continue
            try:
                self._open_owner(owner, rows, keks)
            except EnvelopeError as error:
                self._refuse(owner, error)
        if self.job.owner_class.grants_of:
            shared = [key.key_id for owner in self.places for key in self._shared(owner)]
            self._counts = count_grants(self.session, self.job.owner_class.grants_of, shared)

    def _open_owner(self, owner: OwnerId, rows: list[OwnedKey], keks: Mapping[bytes, KeyBytes]) -> None:
        keys = [row.stored for row in usable(rows)]
        check_generations(keys)
        root = next((key for key in _roots(keys) if key.state is KeyState.ACTIVE), None)
        slot = next(iter(self._slots.get(root.key_id, ())), None) if root is not None else None
        if root is None or slot is None:
            return  # its keys changed a moment ago
        kek = keks.get(slot.provider_wrapped or b"")
        if kek is None:
            name = self.job.provider
            raise ProviderError(
                f"Provider {name!r} does not open this slot here: it is under another of its keys."
            )
        mine = [one for key in keys for one in self._slots.get(key.key_id, ())]
        found = trusting_first_use(open_with_kek(self.job.policy, keys, root, slot, mine, kek), keys)
        self.keyring.add(owner, [found.root, *found.older])
        self.keyring.add_stored(owner, keys)
        self._roots[owner] = found
        self.places[owner] = Place(self.job.owner_class, rows[0].primary_key, self.store.where)

    def _shared(self, owner: OwnerId) -> list[StoredKey]:
        return [
            key
            for key in self.keyring.keys_of(owner)
            if key.state is KeyState.ACTIVE and key.purpose in (Purpose.ROOT, Purpose.DATA)
        ]

    def due(self) -> list[OwnerId]:
        """The owners for whom something waits, as far as the rows tell."""
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
        """Whether somebody was removed, or something lies sealed, unlinked or not made yet."""
        counts = [(key, self._counts.get(key.key_id)) for key in self._shared(owner)]
        return is_left_undone(self.keyring, Opening({owner: self.places[owner]}, [], {})) or any(
            key.granted > 0 if count is None else count.is_left for key, count in counts
        )

    def lock(self, owners: Sequence[OwnerId]) -> list[OwnerId]:
        """Hold these owners' keys; those that no other transaction holds."""
        ids = {
            owner: {
                key.key_id
                for key in self.keyring.keys_of(owner)
                if key.purpose is Purpose.ROOT or key.state is KeyState.ACTIVE
            }
            for owner in owners
        }
        free = self.store.free([key_id for some in ids.values() for key_id in some])
        return [owner for owner, some in ids.items() if some <= free]

    def settle(self) -> set[OwnerId]:
        """Put in order what waits, of owners whose keys are locked; for whom something was done."""
        before = {owner: self._state(owner) for owner in self.places}
        adopted = self._adopt(self._roots)
        for owner in [one for one in self.places if not self._roots[one].trusted]:
            try:
                renew(self.session, self.job.policy, self.places[owner], self.keyring, self._roots[owner])
            except TransactionConflictError:
                raise
            except EnvelopeError as error:
                self._refuse(owner, error)
        fulfilled = self._fulfil()
        left = {
            owner: place
            for owner, place in self.places.items()
            if owner not in self.refused and self._is_left(owner)
        }
        if left:
            settle(self.session, self.job.policy, self.keyring, Opening(left, [], {}), writes=True)
            self._adopt_new(left)
        for owner in self.places:
            refusal = self.keyring.refusal(owner)
            if refusal is not None:
                self._refuse(owner, refusal)
        changed = {owner for owner, state in before.items() if self._state(owner) != state}
        return adopted | fulfilled | changed

    def _state(self, owner: OwnerId) -> set[tuple[KeyId, KeyState, bytes | None]]:
        return {(key.key_id, key.state, key.wrapped) for key in self.keyring.keys_of(owner)}

    def _adopt(self, roots: Mapping[OwnerId, OpenedRoot]) -> set[OwnerId]:
        """Wrap sealed slots under their KEK, so that the next root key can be told to be genuine."""
        sealed = {
            owner: (found.slot, adopted_slot(found.slot, found.root, found.kek))
            for owner, found in roots.items()
            if found.trusted and is_sealed(found.slot.wrapped)
        }
        self.store.replace_slots(list(sealed.values()))
        return set(sealed)

    def _adopt_new(self, owners: Iterable[OwnerId]) -> None:
        """The slots of epochs that were started here are genuine beyond doubt."""
        new = {}
        for owner in owners:
            root = self.keyring.root(owner)
            if root is not None and root.stored.key_id != self._roots[owner].root.stored.key_id:
                new[root.stored.key_id] = owner, root
        if not new:
            return
        made = {}
        for slot in self.store.load_slots(new, SlotKind.PROVIDER):
            owner, root = new[slot.key_id]
            found = self._roots[owner]
            if slot.recipient_public_key == found.slot.recipient_public_key:
                made[owner] = found._replace(root=root, slot=slot, trusted=True)
        self._adopt(made)

    def _fulfil(self) -> set[OwnerId]:
        """Seal keys to those to whom they were granted while nobody present held them: for each class of
        grants three statements, and one for each class of recipients."""
        done: set[OwnerId] = set()
        for grant_class in self.job.owner_class.grants_of:
            purpose = Purpose.ROOT if grant_class.scope is None else Purpose.DATA
            keys: dict[KeyId, OpenedKey] = {}
            for owner in self.places:
                stored = self.keyring.current(owner, purpose, grant_class.scope or "")
                opened = None if stored is None or owner in self.refused else self.keyring.open(stored.key_id)
                if opened is not None:
                    keys[opened.stored.key_id] = opened
            grants = GrantStore(self.session, grant_class, self.job.policy.seals)
            waiting = grants.load_of(keys, GrantState.PENDING) if self._is_pending(keys) else []
            to = [Recipient(grant_class, row_key, recipient) for _, row_key, recipient in waiting]
            roots = roots_of(self.session, self.job.policy, to, strict=False)
            free = grants.free([grant.grant_id for grant, _, _ in waiting])
            sealed: list[StoredGrant] = []
            for grant, _, recipient in waiting:
                root = roots.get((grant_class.to.owner_class, recipient))
                if root is not None and grant.grant_id in free:
                    made = sealed_grant(keys[grant.key_id], grant.granting_row, root, grant.grant_id)
                    sealed.append(replace(made, recipient=grant.recipient))
                    done.add(self.keyring.owner_of_key(grant.key_id))
            grants.replace(sealed)
            if sealed:
                event = AuditEvent("grant_sealed", self.job.owner_class.name, count=len(sealed))
                self.job.policy.emit(event)
        return done

    def _is_pending(self, keys: Iterable[KeyId]) -> bool:
        # Of a key that was just made nothing was counted: what its epoch could not seal waits for later.
        return any(self._counts[key_id].pending for key_id in keys if key_id in self._counts)

    def _refuse(self, owner: OwnerId, error: EnvelopeError) -> None:
        rows = self._found[owner]
        self.refused[owner] = RefusedOwner(rows[0].primary_key, error.code, str(error))
        self.places.pop(owner, None)
        self.job.policy.emit(AuditEvent("keys_refused", self.job.owner_class.name))


def _roots(keys: Iterable[StoredKey]) -> list[StoredKey]:
    return [key for key in keys if key.purpose is Purpose.ROOT]
