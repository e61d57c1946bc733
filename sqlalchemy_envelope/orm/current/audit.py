"""Audit events: what was done with keys, at whose request, and why. An event has ids, no value and no key.

The events go to the logger `sqlalchemy_envelope.audit` at level INFO, and to the function that the
application gives its `Envelope`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

logger = logging.getLogger("sqlalchemy_envelope.audit")


@dataclass(frozen=True)
class AuditEvent:
    """One thing that was done with keys.

    Attributes:
        name: what was done: `provider_unlocked`, `server_opened`, `write_epoch_sealed`, `grant_sealed`,
            `grant_pending`, `grant_adopted`, `grant_refused`, `grant_bypassed`, `epoch_started`,
            `kek_wrapped`, ...
        owner_class: the name of the owners' class.
        count: the number of owners, of rows or of keys.
        reason: the reason that the application gave, where it must give one.
        provider: the name of the provider, if a provider was used.
        key_id: the first eight hex digits of the key concerned.
    """

    name: str
    owner_class: str
    count: int = 1
    reason: str | None = None
    provider: str | None = None
    key_id: str | None = None

    def __str__(self) -> str:
        parts = [f"{self.name} {self.owner_class} x{self.count}"]
        parts += [
            f"{name}={value!r}"
            for name, value in (("provider", self.provider), ("key", self.key_id), ("reason", self.reason))
            if value is not None
        ]
        return " ".join(parts)
