"""Rotation of an outside key: the KEKs of a provider's slots and the index keys of the server are wrapped
anew, and the row seals are renewed.

No owner is opened, and no root key or data key changes. Many slots share one KEK, which is wrapped once. What
the provider wrapped is unwrapped again before the old wrap is overwritten, so that the old wrap stays until
the key was read through the new one. A row is written only if it is still as it was read and its present seal
is right: a row that was planted is refused, and never sealed.

Finished work is not found again. So after an interruption, start the run anew; a second run beside the first
finds less, and undoes nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.exceptions import ConfigurationError, EnvelopeError, ProviderError
from sqlalchemy_envelope.keys.model import SlotKind
from sqlalchemy_envelope.keys.row_seals import RenewingSeals
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.current.keks import Outside
from sqlalchemy_envelope.orm.current.locks import require_no_locks
from sqlalchemy_envelope.orm.current.policy import note_policy
from sqlalchemy_envelope.orm.tables.owners import owner_class_of
from sqlalchemy_envelope.orm.tables.renewals import Renewals, RenewedSlot
from sqlalchemy_envelope.orm.verbs.emergency_shares import moved_shares
from sqlalchemy_envelope.orm.verbs.rotation.index_keys import rewrap_steps
from sqlalchemy_envelope.orm.verbs.settling.settle_batch import RefusedOwner

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.keys.model import StoredGrant, StoredKey, StoredSlot
    from sqlalchemy_envelope.keys.slots import ProviderKek
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.current.providers import Providers
    from sqlalchemy_envelope.orm.tables.owners import EmergencyClass, GrantClass, OwnerClass
    from sqlalchemy_envelope.orm.tables.stored_rows import OwnedKey
    from sqlalchemy_envelope.orm.verbs.emergency_shares import MovedShare
    from sqlalchemy_envelope.orm.verbs.steps import Steps

    PrimaryKey = tuple[Any, ...]

MOST_KEKS = 10_000
"""The most wraps that a run remembers. A KEK that was forgotten is wrapped once more."""


@dataclass(frozen=True)
class ProviderRotation:
    """The progress of `rotate_provider` and `rotate_seals`, over all batches so far.

    Attributes:
        rotated: the number of owners of whom a row was written.
        unchanged: the number of owners of whom nothing was to be done.
        skipped: the number of owners with a row that another transaction holds or changed meanwhile. The next
            run finds them.
        refused: the owners with an altered or unsealed row, or with a slot that the provider does not open.
        keks: the number of KEKs that the provider wrapped anew.
        slots: the number of slots that were put under the key that wraps now.
        seals: the number of rows that were sealed under the active server key, and of emergency accesses
            whose server's share was wrapped under it.
        last: the primary key of the last owner that was looked at.
        index_keys: the number of index keys of the server that were put under the key that wraps now.
    """

    rotated: int = 0
    unchanged: int = 0
    skipped: int = 0
    refused: tuple[RefusedOwner, ...] = ()
    keks: int = 0
    slots: int = 0
    seals: int = 0
    last: PrimaryKey | None = None
    index_keys: int = 0


@dataclass
class RotationJob:
    """A run over the owners of a class.

    Attributes:
        provider: the provider whose slots are wrapped anew; None to renew the seals alone.
        rewrapped: the new wraps, by the old one; the least used are forgotten.
    """

    owner_class: OwnerClass
    provider: str | None
    size: int
    rewrapped: OrderedDict[bytes, ProviderKek | EnvelopeError] = field(
        default_factory=OrderedDict, repr=False
    )


def rotation_job(
    policy: Policy, verb: str, owner_class: type[Any], provider: str | None, size: int
) -> RotationJob:
    """Check the arguments of `rotate_provider` and `rotate_seals`.

    Raises:
        ConfigurationError: no class of key owners, no such provider, an empty batch, an offline key, or no
            server keys to seal with.
    """
    found = owner_class_of(getattr(owner_class, "__table__", None)) if isinstance(owner_class, type) else None
    if found is None or found.key_class is None or found.slot_class is None:
        raise ConfigurationError(f"{verb}() takes a class of key owners: {verb}(session, User, ...).")
    if not isinstance(size, int) or size < 1:
        raise ConfigurationError(f"batch={size!r} owners at a time cannot be rotated; give at least 1.")
    if provider is None:
        if not policy.seals.is_on:
            raise ConfigurationError("There are no server keys to seal with: Envelope(server_keys=...).")
    elif policy.require_providers().named(provider).public_key is not None:
        raise ConfigurationError(
            f"Provider {provider!r} is an offline key, which wraps nothing anew: its slots are sealed to its "
            "public half. Put the new key beside it under another name, give each owner a slot of that with "
            "`envelope.add_provider`, and take the old slots away with `envelope.remove_provider`."
        )
    return RotationJob(found, provider, size)


def rotation_steps(desk: Desk, job: RotationJob, so_far: ProviderRotation) -> Steps[ProviderRotation | None]:
    """The steps of one batch; None after the last one."""
    note_policy(desk.session, desk.policy)
    if so_far.last is None and job.provider is not None:
        mapper = job.owner_class.mapper
        metadatas: Any = (mapper.local_table.metadata, mapper.registry.metadata)  # type: ignore[attr-defined]
        rewrapped = yield from rewrap_steps(desk, metadatas, job.provider)
        if rewrapped:
            return replace(so_far, index_keys=so_far.index_keys + rewrapped)
    batch = _Batch(desk, job, so_far.last)
    if not batch.primary_keys:
        return None
    made = 0
    for slot in batch.keks_needed():
        made += yield from _rewrapped(desk, job, slot)
    batch.prepare()
    written = batch.write()
    while len(job.rewrapped) > MOST_KEKS:
        job.rewrapped.popitem(last=False)
    name = job.owner_class.name
    if written.slots and job.provider is not None:
        desk.emit(AuditEvent("provider_rotated", name, count=written.slots, provider=job.provider))
    if written.seals:
        desk.emit(AuditEvent("rows_sealed", name, count=written.seals))
    return ProviderRotation(
        so_far.rotated + written.owners,
        so_far.unchanged + len(batch.primary_keys) - written.owners - written.skipped - len(batch.refused),
        so_far.skipped + written.skipped,
        so_far.refused + tuple(batch.refused.values()),
        so_far.keks + made,
        so_far.slots + written.slots,
        so_far.seals + written.seals,
        batch.primary_keys[-1],
        so_far.index_keys,
    )


def _rewrapped(desk: Desk, job: RotationJob, slot: StoredSlot) -> Steps[int]:
    """Have the KEK of a slot wrapped anew, unless it was; how many were."""
    providers, blob = desk.policy.require_providers(), slot.provider_wrapped or b""
    if blob in job.rewrapped:
        job.rewrapped.move_to_end(blob)
        return 0
    if not providers.is_local(job.provider or ""):
        require_no_locks(desk.session, job.provider or "")
    made: ProviderKek | EnvelopeError = yield Outside(partial(_rewrap, providers, slot))
    job.rewrapped[blob] = made
    return int(not isinstance(made, EnvelopeError))


def _rewrap(providers: Providers, slot: StoredSlot) -> ProviderKek | EnvelopeError:
    """The new wrap of a slot's KEK, or the error if this slot alone is at fault: a retry would not help.

    Raises:
        ProviderError: a remote provider failed.
    """
    try:
        return providers.rewrap(slot)
    except ProviderError as error:
        if providers.is_local(slot.provider_name):
            return error
        raise
    except EnvelopeError as error:
        return error


@dataclass
class _Owner:
    """The rows of an owner that are to be written."""

    keys: list[StoredKey] = field(default_factory=list)
    slots: list[RenewedSlot] = field(default_factory=list)
    grants: list[tuple[GrantClass, StoredGrant]] = field(default_factory=list)
    shares: list[MovedShare] = field(default_factory=list)

    @property
    def is_due(self) -> bool:
        return bool(self.keys or self.slots or self.grants or self.shares)


@dataclass(frozen=True)
class _Written:
    owners: int = 0
    skipped: int = 0
    slots: int = 0
    seals: int = 0


class _Batch:
    """Some owners with their key, slot and grant rows, as they are now."""

    def __init__(self, desk: Desk, job: RotationJob, after: PrimaryKey | None) -> None:
        self._desk, self._job = desk, job
        name = job.provider
        self._reference = None if name is None else desk.policy.require_providers().current_reference(name)
        self._store = Renewals(desk.session, job.owner_class, RenewingSeals(desk.policy.seals))
        self.primary_keys = self._store.owners_after(after, job.size)
        self._after = after
        self.refused: dict[OwnerId, RefusedOwner] = {}
        self._keys: dict[OwnerId, list[OwnedKey]] = {}
        if self.primary_keys:
            for row in self._store.load_between(after, self.primary_keys[-1]):
                self._keys.setdefault(row.owner, []).append(row)
        for owner, rows in self._keys.items():
            for row in rows:
                if row.error is not None:
                    self._refuse(owner, row.error)
        self._owner_of = {row.stored.key_id: owner for owner, rows in self._keys.items() for row in rows}
        self._slots = self._load_slots()
        self._due: dict[OwnerId, _Owner] = {}

    def _load_slots(self) -> list[StoredSlot]:
        if not self.primary_keys:
            return []
        try:
            found = self._store.slots_between(self._after, self.primary_keys[-1])
        except EnvelopeError:
            found = self._load_slots_one_by_one()
        # A root key that was made a moment ago was not loaded, and needs nothing.
        found = [slot for slot in found if slot.key_id in self._owner_of]
        for slot in found:
            try:
                self._store.check_slot(slot)
            except EnvelopeError as error:
                self._refuse(self._owner_of[slot.key_id], error)
        return [slot for slot in found if self._owner_of[slot.key_id] not in self.refused]

    def _load_slots_one_by_one(self) -> list[StoredSlot]:
        """A slot holds what no slot can hold: find its owner."""
        found: list[StoredSlot] = []
        for root, owner in self._owner_of.items():
            try:
                found += self._store.slots_unchecked([root])
            except EnvelopeError as error:
                self._refuse(owner, error)
        return found

    def _is_stale(self, slot: StoredSlot) -> bool:
        """Whether a slot of the provider is under another of its keys than the one that wraps now."""
        if slot.kind is not SlotKind.PROVIDER or slot.provider_ref == self._reference:
            return False
        return slot.provider_name == self._job.provider

    def keks_needed(self) -> Iterable[StoredSlot]:
        """A slot for each KEK that is under another key than the one that wraps now."""
        return {slot.provider_wrapped: slot for slot in self._slots if self._is_stale(slot)}.values()

    def prepare(self) -> None:
        """Find the rows to write."""
        for slot in self._slots:
            owner, new = self._owner_of[slot.key_id], slot
            if self._is_stale(slot):
                made = self._job.rewrapped[slot.provider_wrapped or b""]
                if isinstance(made, EnvelopeError):
                    self._refuse(owner, made)
                    continue
                new = replace(slot, provider_ref=made.reference, provider_wrapped=made.wrapped, seal=None)
            if new is not slot or not self._store.is_sealed_now(slot):
                self._due.setdefault(owner, _Owner()).slots.append(RenewedSlot(slot, new))
        for owner, rows in self._keys.items():
            stale = [row.stored for row in rows if not self._store.is_sealed_now(row.stored)]
            if stale:
                self._due.setdefault(owner, _Owner()).keys += stale
        if self._desk.policy.seals.is_on:
            self._prepare_grants()
            for emergency in self._job.owner_class.emergencies:
                self._prepare_shares(emergency)
        for owner in self.refused:
            self._due.pop(owner, None)

    def _prepare_grants(self) -> None:
        for grant_class in self._job.owner_class.grants_of:
            for grant, error in self._desk.grants(grant_class).load_checked(list(self._owner_of)):
                owner = self._owner_of[grant.key_id]
                if error is not None:
                    self._refuse(owner, error)
                elif not self._store.is_sealed_now(grant):
                    self._due.setdefault(owner, _Owner()).grants.append((grant_class, grant))

    def _prepare_shares(self, emergency: EmergencyClass) -> None:
        owners = {rows[0].primary_key: owner for owner, rows in self._keys.items()}
        try:
            moved = moved_shares(self._desk, emergency, list(owners))
        except EnvelopeError:  # a row is at fault: find its owner
            moved = []
            for primary_key, owner in owners.items():
                try:
                    moved += moved_shares(self._desk, emergency, [primary_key])
                except EnvelopeError as error:
                    self._refuse(owner, error)
        for share in moved:
            self._due.setdefault(owners[share.owner_key], _Owner()).shares.append(share)

    def write(self) -> _Written:
        """Write what is due, but of owners with a row that another transaction holds nothing."""
        due = {owner: one for owner, one in self._due.items() if one.is_due}
        if not due:
            return _Written()
        free = self._free(due)
        mine = [one for owner, one in due.items() if owner in free]
        keys = [key for one in mine for key in one.keys]
        slots = [slot for one in mine for slot in one.slots]
        rewrapped = [slot for slot in slots if slot.new is not slot.old]
        grants: dict[GrantClass, list[StoredGrant]] = {}
        for one in mine:
            for grant_class, grant in one.grants:
                grants.setdefault(grant_class, []).append(grant)
        seals = self._store.renew_keys(keys)
        seals += sum(self._desk.grants(of).renew_seals(some) for of, some in grants.items())
        shares = [share for one in mine for share in one.shares]
        seals += sum(share.write(self._desk) for share in shares)
        moved = self._store.renew_slots(rewrapped)
        sealed = self._store.renew_slots([slot for slot in slots if slot.new is slot.old])
        due_rows = len(keys) + len(slots) + len(shares) + sum(map(len, grants.values()))
        lost = due_rows - seals - moved - sealed
        if self._desk.policy.seals.is_on:
            seals += moved + sealed
        skipped = len(due) - len(mine) + min(lost, len(mine))
        return _Written(len(due) - skipped, skipped, moved, seals)

    def _free(self, due: dict[OwnerId, _Owner]) -> set[OwnerId]:
        """The owners of whom no other transaction holds a key or a slot that is to be written."""
        keys = {key.key_id: owner for owner, one in due.items() for key in one.keys}
        slots = {slot.old.slot_id: owner for owner, one in due.items() for slot in one.slots}
        held = {keys[one] for one in keys.keys() - self._store.free(list(keys))}
        held |= {slots[one] for one in slots.keys() - self._store.free_slots(list(slots))}
        return due.keys() - held

    def _refuse(self, owner: OwnerId, error: EnvelopeError) -> None:
        if owner not in self.refused:
            primary_key = self._keys[owner][0].primary_key
            self.refused[owner] = RefusedOwner(primary_key, error.code, str(error))
            self._desk.emit(AuditEvent("keys_refused", self._job.owner_class.name, owner_id=primary_key))
