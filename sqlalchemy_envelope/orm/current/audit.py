"""Audit events: what was done with keys, at whose request, and why. An event has ids, no value and no key.

The events go to the logger `sqlalchemy_envelope.audit` at level INFO, and to the function that the
application gives its `Envelope`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal

logger = logging.getLogger("sqlalchemy_envelope.audit")

EventName = Literal[
    # Unlocking
    "unlocked", "unlock_failed", "unlock_busy", "unlock_throttled", "provider_unlocked",
    # Server mode
    "server_mode_started", "server_opened", "server_enrolled",
    # Slots
    "secret_added", "secret_set", "secret_changed", "slot_added", "slot_removed", "slot_acknowledged",
    "provider_added", "provider_removed", "recovery_code_used", "kek_wrapped",
    # Escrow
    "escrow_opened", "slot_refused",
    # Emergency access
    "emergency_allowed", "emergency_requested", "emergency_cancelled", "emergency_opened",
    # Tickets
    "ticket_issued", "ticket_used", "ticket_revoked", "ticket_refused",
    # Sharing
    "grant_sealed", "grant_pending", "grant_adopted", "grant_refused", "grant_bypassed", "epoch_started",
    "keys_refused", "hardened", "owner_settled",
    # Write epochs
    "write_epoch_sealed", "write_epoch_adopted",
    # Campaigns
    "claimed", "claim_waiting", "claim_released", "release_refused", "rewrap_refused",
    "campaign_provided", "campaign_closed", "campaign_shredded",
    # The end of keys
    "rotated", "provider_rotated", "pepper_rotated", "key_retired", "shredded", "orphans_swept",
]  # fmt: skip
"""The name of every event."""


@dataclass(frozen=True)
class AuditEvent:
    """One thing that was done with keys.

    Attributes:
        name: what was done, one of `EventName`.
        owner_class: the name of the owners' class; "unknown" for an account that does not exist.
        count: the number of owners, of rows or of keys.
        reason: the reason that the application gave, where it must give one; of a refused unlock, the code of
            the error.
        provider: the name of the provider, if a provider was used.
        key_id: the first eight hex digits of the key concerned.
        owner_id: the primary key of the owner, if the event concerns one owner.
        slot_kind: the kind of the key slot concerned, such as "secret" or "recovery".
        actor: who acted, as `Envelope(actor=...)` told.
    """

    name: EventName
    owner_class: str
    count: int = 1
    reason: str | None = None
    provider: str | None = None
    key_id: str | None = None
    owner_id: tuple[Any, ...] | None = None
    slot_kind: str | None = None
    actor: str | None = None

    def __str__(self) -> str:
        owner = "" if self.owner_id is None else " " + ", ".join(map(str, self.owner_id))
        parts = [f"{self.name} {self.owner_class}{owner} x{self.count}"]
        parts += [
            f"{name}={value!r}"
            for name, value in (
                ("slot", self.slot_kind),
                ("provider", self.provider),
                ("key", self.key_id),
                ("reason", self.reason),
                ("actor", self.actor),
            )
            if value is not None
        ]
        return " ".join(parts)
