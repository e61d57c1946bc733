"""The key slots of an owner, as an application sees them."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.keys.model import SlotKind
from sqlalchemy_envelope.keys.slots import is_waiting
from sqlalchemy_envelope.orm.tables.slot_rows import in_utc

if TYPE_CHECKING:
    import uuid

    from sqlalchemy_envelope.keys.model import StoredSlot


MAX_LABEL = 255
"""The most characters of a label."""


@dataclass(frozen=True)
class KeySlot:
    """One way to an owner's keys that needs no other owner unlocked.

    Attributes:
        kind: "secret", "provider", "recovery", "escrow" or "emergency"; "waiting" for a secret that opens
            nothing until custodians release it.
        provider: the name of the provider, for a provider slot.
        reference: the reference of the outside key that wraps it.
        through: the grants that lead from the owner to the owner of the slot, outermost last; empty for the
            owner's own slots.
        scope: the scope that the grants open, or None for all scopes.
        label: the name that the slot was given, such as "phone".
        created_at: when the slot was made, in UTC.
        used_at: when the slot last opened the keys, in UTC, to the day; None if it never did. The first write
            of an unlocked session notes it.
        unacknowledged_since: when the slot was added, in UTC, if its owner has not acknowledged it.
        slot_id: the id of the slot, for `remove_slot`. A new epoch gives every slot a new id.
    """

    kind: str
    provider: str | None = None
    reference: str | None = None
    through: tuple[str, ...] = ()
    scope: str | None = None
    label: str | None = None
    created_at: dt.datetime | None = None
    used_at: dt.datetime | None = None
    unacknowledged_since: dt.datetime | None = None
    slot_id: uuid.UUID | None = None


class KeySlots(tuple[KeySlot, ...]):
    """The slots that open an owner's keys: its own slots, and the slots of providers and of escrow that reach
    it through grants."""

    __slots__ = ()

    @property
    def providers(self) -> frozenset[str]:
        """The providers that can open any of this owner's data.

        The operators of these providers can read it. If this is empty, only people with a secret can.
        """
        return frozenset(slot.provider for slot in self if slot.provider is not None)

    @property
    def in_escrow(self) -> bool:
        """Whether the custodians of an escrow key can open any of this owner's data."""
        return any(slot.kind == SlotKind.ESCROW for slot in self)


def checked_label(label: object) -> None:
    """Require that a label can be stored.

    Raises:
        ConfigurationError: it is no text, is longer than 255 characters, or has no UTF-8 form.
    """
    if label is None:
        return
    if not isinstance(label, str) or len(label) > MAX_LABEL or not label.isprintable():
        raise ConfigurationError(
            f"label= takes text that can be printed, of at most {MAX_LABEL} characters: label='phone'."
        )


def shown_slot(slot: StoredSlot, through: tuple[str, ...] = (), scope: str | None = None) -> KeySlot:
    """A stored slot, as an application sees it."""
    provider, reference = None, None
    if slot.kind is SlotKind.PROVIDER:
        provider, _, reference = (slot.provider_ref or "").partition(" ")
    return KeySlot(
        "waiting" if is_waiting(slot) else slot.kind.value,
        provider,
        reference,
        through,
        scope,
        slot.label,
        in_utc(slot.created_at),
        in_utc(slot.used_at),
        in_utc(slot.unacknowledged_since),
        slot.slot_id,
    )
