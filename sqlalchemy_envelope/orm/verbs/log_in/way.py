"""What an owner is to be unlocked with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.crypto.secret import Uncopied
from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.keys.escrow import OpenedEscrowKey

if TYPE_CHECKING:
    from sqlalchemy_envelope.crypto.preparation import HiddenSecret
    from sqlalchemy_envelope.crypto.secret import Hidden


@dataclass(frozen=True, kw_only=True, repr=False)
class Way(Uncopied):
    """One way to unlock an owner: the arguments of `Envelope.unlock`, checked.

    Raises:
        ConfigurationError: not exactly one of the first six is given, or `authenticated` without a secret.
    """

    secret: HiddenSecret | None = None
    ticket: HiddenSecret | None = None
    provider: str | None = None
    recovery_code: Hidden[str] | None = None
    escrow_key: OpenedEscrowKey | None = None
    emergency: Any = None
    reason: str | None = None
    authenticated: bool = False
    source: str | None = None

    def __post_init__(self) -> None:
        ways = (
            self.secret,
            self.ticket,
            self.provider,
            self.recovery_code,
            self.escrow_key,
            self.emergency,
        )
        if sum(way is not None for way in ways) != 1:
            raise ConfigurationError(
                "Unlock with `secret=`, `ticket=`, `provider=`, `recovery_code=`, `escrow_key=` or "
                "`emergency=`: one of them."
            )
        if self.provider is not None and not isinstance(self.provider, str):
            raise ConfigurationError(f"provider= takes its name, not a {type(self.provider).__name__}.")
        if self.escrow_key is not None and not isinstance(self.escrow_key, OpenedEscrowKey):
            raise ConfigurationError(
                f"escrow_key= takes an OpenedEscrowKey, not a {type(self.escrow_key).__name__}: "
                "OpenedEscrowKey.from_shares(...) or OpenedEscrowKey.from_file(...)."
            )
        if self.authenticated and self.secret is None:
            raise ConfigurationError("authenticated=True says that a secret was checked: give `secret=`.")
