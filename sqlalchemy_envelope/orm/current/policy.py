"""The policy of an `Envelope`, for work that no call of the `Envelope` starts: flushes and statements."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.keys.index_keys import IndexKeyCache
from sqlalchemy_envelope.keys.pepper import SlotPepper
from sqlalchemy_envelope.keys.row_seals import RowSeals
from sqlalchemy_envelope.orm.current.audit import AuditEvent, logger
from sqlalchemy_envelope.orm.tables.session_notes import known_page, put_page

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.escrow import EscrowKey
    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.keys.model import OpenedKey, StoredSlot
    from sqlalchemy_envelope.keys.providers.server import ServerKeyring
    from sqlalchemy_envelope.keys.receipts import ReceiptKey
    from sqlalchemy_envelope.keys.row_seals import Realm
    from sqlalchemy_envelope.keys.write_epoch import WriteEpoch
    from sqlalchemy_envelope.orm.current.providers import Providers


@dataclass(eq=False)
class Policy:
    """The part of an `Envelope` that the layers under it need.

    Attributes:
        seals: the row seals under the server keys, if there are server keys.
        pepper: the outer layer around secret slots, if there is a pepper.
        hybrid: whether new root keys get an ML-KEM-768 pair too: keys are sealed to them in format 0x13.
        audit: the application's own function for audit events.
        secret_strength: tells why a new secret is too weak; None if anything will do.
        actor: tells who acts at this moment, for audit events; None if nobody is named.
        write_epoch_seconds: how long a write epoch lasts, in seconds.
        write_epoch_values: the most values that are encrypted under a write epoch.
        escrow: the public key that escrow slots are sealed to.
        harden_claims: whether an owner who claims keys gets new keys at once, which the campaign never held.
        receipt_key: the key that signs erasure receipts, if there is one.
        ticket_keys: the keyrings with the server's part of tickets. The first serves new tickets.
        index_provider: the name of the provider that wraps new index keys of the server.
        index_keys: the index keys of the server that this process has opened.
    """

    seals: RowSeals = field(default_factory=RowSeals)
    pepper: SlotPepper = field(default_factory=SlotPepper)
    hybrid: bool = False
    audit: Callable[[AuditEvent], None] | None = None
    secret_strength: Callable[[str, Any], str | None] | None = None
    actor: Callable[[], str | None] | None = None
    providers: Providers | None = None
    write_epoch_seconds: float = 3600.0
    write_epoch_values: int = 2**24
    write_epochs: dict[OwnerId, WriteEpoch] = field(default_factory=dict, repr=False)
    harden_claims: bool = True
    escrow: EscrowKey | None = None
    receipt_key: ReceiptKey | None = None
    ticket_keys: tuple[ServerKeyring, ...] = field(default=(), repr=False)
    index_provider: str = "server"
    index_keys: IndexKeyCache = field(default_factory=IndexKeyCache, repr=False)

    def require_providers(self) -> Providers:
        """The providers of the envelope.

        Raises:
            ConfigurationError: this policy belongs to no envelope.
        """
        if self.providers is None:
            raise ConfigurationError("No provider is configured: make one Envelope for the application.")
        return self.providers

    def first_slots(self, root: OpenedKey, *, unacknowledged: bool = False) -> list[StoredSlot]:
        """The slots that the policy gives an owner with its first keys.

        Args:
            unacknowledged: whether the owner was there before, and is told of the slots. For a new owner they
                are part of what it joins.
        """
        escrow = self.escrow
        if escrow is None or not escrow.everyone:
            return []
        return [escrow.slot(root, unacknowledged=unacknowledged)]

    def emit(self, event: AuditEvent) -> None:
        """Report an audit event to the log and to the application."""
        if self.actor is not None and event.actor is None:
            event = replace(event, actor=self.actor())
        logger.info("%s", event, extra={"envelope_event": event})
        if self.audit is not None:
            self.audit(event)


class Envelopes:
    """The envelopes of this process that are in use.

    Attributes:
        policies: the policy of each.
    """

    def __init__(self) -> None:
        self.policies: WeakSet[Policy] = WeakSet()

    def add(self, policy: Policy) -> None:
        """Add the policy of a new envelope."""
        self.policies.add(policy)

    def __iter__(self) -> Iterator[Policy]:
        return iter(list(self.policies))

    def only(self) -> Policy | None:
        """The policy that serves a session without a policy of its own; None if several have server keys or
        a pepper.

        It is the policy of the only envelope with server keys or a pepper. If none has them, it is the policy
        of the only envelope, or a neutral policy where there are several envelopes or none.
        """
        policies = list(self)
        sealing = [policy for policy in policies if policy.seals.is_on or policy.pepper.is_on]
        if len(sealing) > 1:
            return None
        some = sealing or policies
        return some[0] if len(some) == 1 else _NEUTRAL


_NEUTRAL = Policy()
ENVELOPES = Envelopes()


def _forget_in_child() -> None:
    """Keys do not cross a fork: neither do those of providers and of write epochs."""
    for policy in ENVELOPES:
        policy.write_epochs.clear()
        policy.index_keys.clear()
        if policy.providers is not None:
            policy.providers.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def has_server_keys(session: Session | None) -> bool:
    """Whether the session's `Envelope` has server keys. If the session has no `Envelope` yet, whether any in
    this process has."""
    noted = _noted(session)
    return any(policy.seals.is_on for policy in ([noted] if noted is not None else ENVELOPES))


def note_policy(session: Session, policy: Policy) -> None:
    """Note that a verb of this policy's `Envelope` was used with a session: its later flushes use the same
    policy."""
    put_page(session, policy)


def noted_policy(session: Session) -> Policy:
    """The policy for what a session does by itself, while nothing is unlocked in it.

    It is the policy of the envelope that was used with the session or attached to it. Otherwise it is that of
    the process's only envelope.

    Raises:
        ConfigurationError: there are several with server keys or a pepper, and nothing says which to use.
    """
    policy = _noted(session) or ENVELOPES.only()
    if policy is None:
        raise ConfigurationError(
            "This process has several Envelopes with server keys or a pepper, and a flush has to know which "
            "one writes its key rows, and a look-up which one has the key of its blind index: make one "
            "Envelope for the application, or call envelope.attach(session)."
        )
    return policy


def policy_for(session: Session | None) -> Policy:
    """The policy for a statement, in a session or on a connection without a session.

    Raises:
        ConfigurationError: as `noted_policy`.
    """
    if session is not None:
        return noted_policy(session)
    policy = ENVELOPES.only()
    if policy is None:
        raise ConfigurationError(
            "This process has several Envelopes with server keys or a pepper, and a statement on a "
            "connection has to know which one to use: make one Envelope for the application, or use a "
            "Session, with envelope.attach(session)."
        )
    return policy


def noted_realm(session: Session | None) -> Realm:
    """The realm of the policy that a session's flushes use: an owner has one name, whoever asks for it."""
    policy = _noted(session) or ENVELOPES.only()
    return None if policy is None else policy.seals.realm


def _noted(session: Session | None) -> Policy | None:
    return None if session is None else known_page(session, Policy)


def require_reason(reason: object) -> None:
    """Require the reason for opening keys without the owner; it goes into the audit event.

    Raises:
        ConfigurationError: no reason was given.
    """
    if not isinstance(reason, str) or not reason.strip():
        raise ConfigurationError("Say why, for the audit event: reason='nightly export'.")
