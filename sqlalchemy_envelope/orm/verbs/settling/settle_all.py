"""Settling a whole class of owners in batches: the job of a machine that may open a provider's slots.

Each batch is first read without a lock. If anything waits for an owner, the owner's keys are locked, unless
another transaction holds them. Then the waiting work is done:

- sealed slots are adopted, and keys that are sealed to the owners' root keys;
- pending grants are fulfilled, for the whole batch at once;
- a new epoch starts if a member was removed, or if the present root key is not trusted.

Finished work is not found again. So after an interruption, start the run anew: it continues where it stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.exceptions import (
    ProviderError,
)
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.current.keks import Outside
from sqlalchemy_envelope.orm.current.locks import require_no_locks
from sqlalchemy_envelope.orm.current.policy import note_policy
from sqlalchemy_envelope.orm.sharing.membership import forget_looks
from sqlalchemy_envelope.orm.tables.cascades import require_cascades
from sqlalchemy_envelope.orm.verbs.settling.batches import AsyncBatches, Batches
from sqlalchemy_envelope.orm.verbs.settling.settle_batch import Batch, Job, RefusedOwner

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy_envelope.crypto.secret import KeyBytes
    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.keys.model import StoredSlot
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.current.providers import Providers
    from sqlalchemy_envelope.orm.verbs.steps import Steps

    PrimaryKey = tuple[Any, ...]


@dataclass(frozen=True)
class Settled:
    """The progress of `settle_all`, over all its batches so far.

    Attributes:
        settled: the number of owners whose waiting work was done.
        unchanged: the number of owners without waiting work.
        skipped: the number of owners with waiting work whose keys another transaction holds. That
            transaction, or the next run, settles them.
        refused: the owners whose keys were altered, or do not open with the provider's key.
        last: the primary key of the last owner that was looked at.
    """

    settled: int = 0
    unchanged: int = 0
    skipped: int = 0
    refused: tuple[RefusedOwner, ...] = ()
    last: PrimaryKey | None = None


class Settling(Batches[Settled]):
    """A run of `Envelope.settle_all`: a loop over it settles a batch at each turn."""

    undone = "settle_all() settled nothing"


class AsyncSettling(AsyncBatches[Settled]):
    """As `Settling`, for `async for`."""

    undone = Settling.undone


def batch_steps(desk: Desk, job: Job, so_far: Settled) -> Steps[Settled | None]:
    """The steps of one batch; None after the last one."""
    require_cascades(desk.session, job.owner_class.mapper)
    note_policy(desk.session, desk.policy)
    primary_keys = desk.keys(job.owner_class).load_held_by(job.provider, so_far.last, job.size)
    if not primary_keys:
        return None
    batch = Batch(desk, job, primary_keys)
    try:
        keks = yield from keks_of(desk, job, batch.keks_needed())
        batch.open(keks)
        desk.emit(opened_event(job, len(batch.places)))
        due = batch.due()
        free = batch.lock(due)
        done, refused = _settle(desk, job, [batch.places[owner].primary_key for owner in free], keks)
        refused = batch.refused | refused
    finally:
        batch.keyring.wipe()
    skipped = len(due) - len(free)
    return Settled(
        so_far.settled + len(done - refused.keys()),
        so_far.unchanged + len(primary_keys) - skipped - len(done | refused.keys()),
        so_far.skipped + skipped,
        so_far.refused + tuple(refused.values()),
        primary_keys[-1],
    )


def opened_event(job: Job, count: int) -> AuditEvent:
    """The event for owners that were opened by a provider."""
    name, reason, provider = job.owner_class.name, job.reason, job.provider
    return AuditEvent("provider_unlocked", name, count=count, reason=reason, provider=provider)


def _settle(
    desk: Desk, job: Job, primary_keys: Sequence[PrimaryKey], keks: Mapping[bytes, KeyBytes]
) -> tuple[set[OwnerId], dict[OwnerId, RefusedOwner]]:
    """Settle owners with locked key rows; return the owners for whom anything changed, and the refused."""
    if not primary_keys:
        return set(), {}
    # Load the rows again: rows that were read before the lock are not used after it.
    batch = Batch(desk, job, primary_keys)
    try:
        batch.open(keks)
        done = batch.settle()
        forget_looks(desk.session)
        return done, batch.refused
    finally:
        batch.keyring.wipe()


def keks_of(desk: Desk, job: Job, slots: Iterable[StoredSlot]) -> Steps[dict[bytes, KeyBytes]]:
    """Return the KEKs of these slots by their wrapped form, except KEKs that a local provider cannot open."""
    providers, keks = desk.policy.require_providers(), {}
    for slot in slots:
        if not providers.is_local(job.provider):
            require_no_locks(desk.session, job.provider)
        kek: KeyBytes | None = yield Outside(partial(_kek_of, providers, job.provider, slot))
        if kek is not None:
            keks[slot.provider_wrapped or b""] = kek
    return keks


def _kek_of(providers: Providers, provider: str, slot: StoredSlot) -> KeyBytes | None:
    """Return the KEK of a slot; None if a local provider cannot open it, since a retry would not help.

    Raises:
        ProviderError: a remote provider failed.
    """
    try:
        return providers.open(slot)
    except ProviderError:
        if providers.is_local(provider):
            return None
        raise
