"""Rotation of the data keys or the root keys of a whole class of owners, by a provider's slots.

Each batch takes owners with a key that was made before a given time. An owner who was rotated has none, so
that finished work is not found again. After an interruption, start the run anew with the same time.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.exceptions import ConfigurationError, EnvelopeError, TransactionConflictError
from sqlalchemy_envelope.keys.model import Purpose
from sqlalchemy_envelope.orm.current.policy import note_policy
from sqlalchemy_envelope.orm.verbs.rotation.owner_rotation import rotate_place
from sqlalchemy_envelope.orm.verbs.settling.settle_all import keks_of, opened_event
from sqlalchemy_envelope.orm.verbs.settling.settle_batch import Batch, job

if TYPE_CHECKING:
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.verbs.settling.settle_batch import Job, RefusedOwner
    from sqlalchemy_envelope.orm.verbs.steps import Steps

    PrimaryKey = tuple[Any, ...]


@dataclass(frozen=True)
class OwnersRotation:
    """The progress of `rotate_all`, over all batches so far.

    Attributes:
        rotated: the number of owners with new keys.
        skipped: the number of owners whose keys another transaction holds. The next run finds them.
        refused: the owners whose keys were altered, or do not open with the provider's key.
        last: the primary key of the last owner that was looked at.
    """

    rotated: int = 0
    skipped: int = 0
    refused: tuple[RefusedOwner, ...] = ()
    last: PrimaryKey | None = None


@dataclass(frozen=True)
class OwnersJob:
    """The arguments of a run of `rotate_all`."""

    job: Job
    purpose: Purpose
    before: dt.datetime


def owners_job(
    policy: Policy,
    owner_class: type[Any],
    provider: str,
    reason: str,
    *,
    root: bool,
    before: dt.datetime | None,
    size: int,
) -> OwnersJob:
    """Check the arguments of `rotate_all`.

    Raises: as `settle_batch.job`, and
        ConfigurationError: the time has no time zone.
    """
    if before is not None and before.tzinfo is None:
        raise ConfigurationError("rotate_all(before=...) takes a time with a time zone.")
    at = (before or dt.datetime.now(dt.UTC)).astimezone(dt.UTC)
    checked = job(policy, owner_class, provider, reason, size, verb="rotate_all")
    return OwnersJob(checked, Purpose.ROOT if root else Purpose.DATA, at)


def owners_steps(desk: Desk, work: OwnersJob, so_far: OwnersRotation) -> Steps[OwnersRotation | None]:
    """The steps of one batch; None after the last one."""
    job = work.job
    note_policy(desk.session, desk.policy)
    store = desk.keys(job.owner_class)
    primary_keys = store.load_held_by(
        job.provider, so_far.last, job.size, made_before=(work.purpose, work.before)
    )
    if not primary_keys:
        return None
    batch = Batch(desk, job, primary_keys)
    try:
        keks = yield from keks_of(desk, job, batch.keks_needed())
        batch.open(keks)
        free = batch.lock(list(batch.places))
        refused, skipped = batch.refused, len(batch.places) - len(free)
        mine = [batch.places[owner].primary_key for owner in free]
    finally:
        batch.keyring.wipe()
    if mine:
        batch = Batch(desk, job, mine)  # rows that were read before the lock are not used after it
        try:
            batch.open(keks)
            batch.settle()
            desk.emit(opened_event(job, len(batch.places)))
            rotated = _rotate(desk, work, batch)
            refused = refused | batch.refused
        finally:
            batch.keyring.wipe()
    else:
        rotated = 0
    return OwnersRotation(
        so_far.rotated + rotated,
        so_far.skipped + skipped,
        so_far.refused + tuple(refused.values()),
        primary_keys[-1],
    )


def _rotate(desk: Desk, work: OwnersJob, batch: Batch) -> int:
    rotated = 0
    for owner, place in list(batch.places.items()):
        if owner in batch.refused:
            continue
        try:
            made = rotate_place(desk, place, batch.keyring, root=work.purpose is Purpose.ROOT)
        except TransactionConflictError:
            raise
        except EnvelopeError as error:
            batch.refuse(owner, error)
            continue
        rotated += made is not None
    return rotated
