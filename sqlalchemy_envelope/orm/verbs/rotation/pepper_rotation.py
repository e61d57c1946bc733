"""Rotating the pepper: secret slots are stored under the active pepper, in batches, without any owner.

A batch is read without a lock. Slots that another transaction holds are skipped, and a slot that somebody
else replaced meanwhile stays as it is now: that process stored it by its own policy. Finished slots are not
found again. So after an interruption, start the run anew: it continues where it stopped.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.current.policy import note_policy
from sqlalchemy_envelope.orm.tables.owners import owner_class_of
from sqlalchemy_envelope.orm.verbs.settling.batches import AsyncBatches, Batches
from sqlalchemy_envelope.orm.verbs.settling.settle_batch import RefusedOwner

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping, Sequence

    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.tables.key_rows import KeyStore
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass
    from sqlalchemy_envelope.orm.tables.slot_rows import StaleSlot
    from sqlalchemy_envelope.orm.verbs.steps import Steps

_MOST_NAMED = 100
"""The most refused owners that the progress names: a run takes the same memory however many there are."""


@dataclass(frozen=True)
class PepperProgress:
    """The progress of `rotate_pepper`, over all its batches so far.

    Attributes:
        replaced: the number of slots that were stored under the active pepper.
        skipped: the number of slots that another transaction held, or replaced meanwhile.
        refused_count: the number of slots that were altered, or are under a pepper that is not configured.
        refused: the owners of the first hundred of these, and why.
        last: the id of the last slot that was looked at.
    """

    replaced: int = 0
    skipped: int = 0
    refused_count: int = 0
    refused: tuple[RefusedOwner, ...] = ()
    last: uuid.UUID | None = None


@dataclass(frozen=True)
class PepperUse:
    """The peppers of the secret slots of a class, as they are stored now.

    Attributes:
        active: the first eight hex digits of the pepper that new slots get; None if they get none.
        under: the number of slots under each pepper, by the first eight hex digits of its id.
        without: the number of slots without a pepper.
    """

    active: str | None
    under: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    without: int = 0

    @property
    def remaining(self) -> int:
        """The number of slots that are not stored as new slots are. At 0 the other peppers can be retired."""
        everything = sum(self.under.values()) + self.without
        return everything - (self.without if self.active is None else self.under.get(self.active, 0))


class PepperRotation(Batches[PepperProgress]):
    """A run of `Envelope.rotate_pepper`: a loop over it stores a batch of slots at each turn."""

    undone = "rotate_pepper() rotated nothing"


class AsyncPepperRotation(AsyncBatches[PepperProgress]):
    """As `PepperRotation`, for `async for`."""

    undone = PepperRotation.undone


def check_rotation(desk: Desk, owner_class: object, batch: int) -> OwnerClass:
    """Check the arguments of `rotate_pepper`, and return the class of owners.

    Raises:
        ConfigurationError: no pepper is configured, this is no class of key owners, or the batch is empty.
    """
    if not desk.policy.pepper.is_on:
        raise ConfigurationError("No pepper is configured: Envelope(pepper=ServerKeyring([...])).")
    if not isinstance(batch, int) or batch < 1:
        raise ConfigurationError(f"batch={batch!r} slots at a time cannot be rotated; give at least 1.")
    return owners_with_slots(owner_class, "rotate_pepper")


def owners_with_slots(owner_class: object, verb: str) -> OwnerClass:
    """Return the class of owners that a verb was given.

    Raises:
        ConfigurationError: this is no class of key owners.
    """
    found = owner_class_of(getattr(owner_class, "__table__", None)) if isinstance(owner_class, type) else None
    if found is None or found.key_class is None or found.slot_class is None:
        raise ConfigurationError(f"{verb}() takes a class of key owners: {verb}(session, User).")
    return found


def rotate_steps(
    desk: Desk, owner_class: OwnerClass, batch: int, so_far: PepperProgress
) -> Steps[PepperProgress | None]:
    """The steps of one batch; None after the last one."""
    yield from ()  # there is no work outside of the database
    note_policy(desk.session, desk.policy)
    store = desk.keys(owner_class)
    found = store.load_stale(so_far.last, batch)
    if not found:
        return None
    slots = [one.slot for one in found if one.error is None]
    free = store.free_slots([slot.slot_id for slot in slots])
    replaced = store.replace_slots([(slot, slot) for slot in slots if slot.slot_id in free])
    if replaced:
        desk.emit(AuditEvent("pepper_rotated", owner_class.name, count=replaced))
    refused = [one for one in found if one.error is not None]
    return PepperProgress(
        so_far.replaced + replaced,
        so_far.skipped + len(slots) - replaced,
        so_far.refused_count + len(refused),
        so_far.refused + _named(store, refused[: _MOST_NAMED - len(so_far.refused)]),
        found[-1].slot.slot_id,
    )


def _named(store: KeyStore, refused: Sequence[StaleSlot]) -> tuple[RefusedOwner, ...]:
    if not refused:
        return ()
    owners: Mapping[Any, tuple[Any, ...]] = store.primary_keys_of(one.slot.key_id for one in refused)
    return tuple(
        RefusedOwner(owners.get(one.slot.key_id, ()), one.error.code, str(one.error))
        for one in refused
        if one.error is not None
    )


def pepper_use(desk: Desk, owner_class: OwnerClass) -> PepperUse:
    """Count the secret slots of a class by their peppers. One query."""
    counts = desk.keys(owner_class).count_peppers()
    without = counts.pop(b"", 0)
    active = desk.policy.pepper.prefix[1:].hex()[:8] or None
    under: dict[str, int] = {}
    for prefix, count in counts.items():
        name = prefix[1:].hex()[:8]
        under[name] = under.get(name, 0) + count
    return PepperUse(active, MappingProxyType(under), without)
