"""Audit events: what was done with keys, at whose request, and why. An event has ids, no value and no key.

The events go to the logger `sqlalchemy_envelope.audit` at level INFO, and to the function that the
application gives its `Envelope`.

An event is sent at once, when the verb has written its rows and before the transaction ends: so the
application can write its own row in the same transaction, or raise and stop the verb. `shredded` alone is
sent after the commit. `AuditEvent.survives_rollback` tells what a rollback does not take back.
"""

from __future__ import annotations

import datetime as dt
import logging
from dataclasses import dataclass, field
from typing import Any, Literal

logger = logging.getLogger("sqlalchemy_envelope.audit")

EventName = Literal[
    # Unlocking
    "unlocked", "unlock_failed", "unlock_busy", "unlock_throttled", "provider_unlocked",
    # Server mode
    "server_mode_started", "server_opened", "server_enrolled",
    # First keys
    "enrolled",
    # Slots
    "secret_added", "secret_set", "secret_changed", "slot_added", "slot_removed", "slot_acknowledged",
    "provider_added", "provider_removed", "recovery_code_used",
    # Escrow
    "escrow_opened", "slot_refused",
    # Emergency access
    "emergency_allowed", "emergency_requested", "emergency_cancelled", "emergency_opened",
    # Tickets
    "ticket_issued", "ticket_used", "ticket_revoked", "ticket_refused",
    # Sharing
    "grant_sealed", "grant_pending", "grant_adopted", "grant_refused", "grant_bypassed", "epoch_started",
    "keys_refused", "hardened",
    # Write epochs
    "write_epoch_sealed", "write_epoch_adopted",
    # Campaigns
    "claimed", "claim_waiting", "claim_released", "release_refused", "rewrap_refused",
    "campaign_provided", "campaign_closed", "campaign_shredded",
    # The end of keys
    "rotated", "provider_rotated", "pepper_rotated", "rows_sealed",
    "index_rotated", "index_key_destroyed",
    "key_retired", "shredded", "orphans_swept",
]  # fmt: skip
"""The name of every event."""

_SURVIVING: frozenset[EventName] = frozenset((
    # Attempts and readings
    "unlocked", "unlock_failed", "unlock_busy", "unlock_throttled", "provider_unlocked", "recovery_code_used",
    "server_mode_started", "server_opened", "escrow_opened", "emergency_opened",
    "ticket_used", "ticket_refused",
    # What was refused, or left out
    "slot_refused", "grant_refused", "grant_bypassed", "keys_refused", "release_refused", "rewrap_refused",
    # What is sent after the commit
    "shredded", "campaign_provided", "campaign_closed", "campaign_shredded",
))  # fmt: skip


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


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
        at: when the event was made, in UTC.
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
    at: dt.datetime = field(default_factory=_now)

    @property
    def survives_rollback(self) -> bool:
        """Whether the event stays true if the session's transaction is rolled back. It does for an attempt,
        for a reading, and for what was committed; it does not for a change of stored keys."""
        return self.name in _SURVIVING

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
