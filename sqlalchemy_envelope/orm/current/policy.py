"""What an `Envelope` decides for work that no call of it starts: flushes, and statements."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.keys.row_seals import RowSeals
from sqlalchemy_envelope.orm.current.audit import AuditEvent, logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.keys.row_seals import Realm
    from sqlalchemy_envelope.keys.write_epoch import WriteEpoch
    from sqlalchemy_envelope.orm.current.providers import Providers

_POLICY = "sqlalchemy_envelope.policy"
_live: WeakSet[Policy] = WeakSet()
_latest: list[Any] = [None]


@dataclass(eq=False)
class Policy:
    """The part of an `Envelope` that the layers under it need.

    Attributes:
        seals: row seals under the server keys, if there are any.
        hybrid: whether new root keys get a post-quantum pair, so that keys are sealed to it in format 0x13.
        audit: the application's own function for audit events.
        harden_claims: whether a claimed owner gets new keys at once, which the campaign never held.
    """

    seals: RowSeals = field(default_factory=RowSeals)
    hybrid: bool = False
    audit: Callable[[AuditEvent], None] | None = None
    providers: Providers | None = None
    write_epoch_seconds: float = 3600.0
    write_epoch_values: int = 2**24
    write_epochs: dict[OwnerId, WriteEpoch] = field(default_factory=dict, repr=False)
    harden_claims: bool = True

    def __post_init__(self) -> None:
        _live.add(self)
        _latest[0] = self

    def require_providers(self) -> Providers:
        """The providers of the envelope.

        Raises:
            ConfigurationError: this policy is no envelope's.
        """
        if self.providers is None:
            raise ConfigurationError("No provider is configured: make one Envelope for the application.")
        return self.providers

    def emit(self, event: AuditEvent) -> None:
        """Tell the log and the application what was done."""
        logger.info("%s", event, extra={"envelope_event": event})
        if self.audit is not None:
            self.audit(event)


def _forget_in_child() -> None:
    """Keys do not cross a fork, those of providers and of write epochs no more than others."""
    for policy in list(_live):
        policy.write_epochs.clear()
        if policy.providers is not None:
            policy.providers.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def has_server_keys(session: Session | None) -> bool:
    """Whether the session's `Envelope` has server keys; an `Envelope` of this process, if it has none yet."""
    noted: Policy | None = session.info.get(_POLICY) if session is not None else None
    return any(policy.seals.is_on for policy in ([noted] if noted is not None else list(_live)))


def note_policy(session: Session, policy: Policy) -> None:
    """A verb of this policy's `Envelope` was used with a session; its later flushes go by the same one."""
    session.info[_POLICY] = policy


def noted_policy(session: Session) -> Policy:
    """The policy for what a session does by itself, while nothing is unlocked in it.

    Raises:
        ConfigurationError: there are several with different server keys, and nothing says which.
    """
    noted: Policy | None = session.info.get(_POLICY)
    if noted is not None:
        return noted
    found = _policy_of_process()
    if found is None:
        raise ConfigurationError(
            "This process has several Envelopes with server keys, and a flush has to know which one seals "
            "its rows: make one Envelope for the application, or call envelope.attach(session)."
        )
    return found


def noted_realm(session: Session | None) -> Realm:
    """The realm of the policy that a session's flushes go by: an owner has one name, whoever asks for it."""
    noted: Policy | None = session.info.get(_POLICY) if session is not None else None
    found = noted or _policy_of_process()
    return None if found is None else found.seals.realm


def _policy_of_process() -> Policy | None:
    """The policy of the process: that with server keys, or else the latest. None if several have such."""
    sealing = [policy for policy in list(_live) if policy.seals.is_on]
    if len({id(policy.seals) for policy in sealing}) > 1:
        return None
    latest: Policy | None = _latest[0]
    return next(iter(sealing), None) or latest or Policy()


def require_reason(reason: object) -> None:
    """Opening without the owner asks for a reason, which goes into the audit event.

    Raises:
        ConfigurationError: none was given.
    """
    if not isinstance(reason, str) or not reason.strip():
        raise ConfigurationError("Say why, for the audit event: reason='nightly export'.")
