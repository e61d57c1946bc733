"""What an unlocked session does with the keys of its owners: give them a secret, a slot, an epoch.

The verbs are those of the `Envelope` that made the unlocked session, in the session that it was made for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.crypto.frames import emptying
from sqlalchemy_envelope.crypto.preparation import hide_required
from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.tables.location import bind_of
from sqlalchemy_envelope.orm.tables.owners import require_owner_class

if TYPE_CHECKING:
    import datetime as dt
    import uuid

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.crypto.recovery_code import RecoveryCode
    from sqlalchemy_envelope.keys.receipts import ErasureReceipt
    from sqlalchemy_envelope.keys.ticket import Ticket
    from sqlalchemy_envelope.orm.sessions.key_slots import KeySlot


class OwnVerbs:
    """The verbs of an unlocked session. With an `AsyncSession`, `AsyncEnvelope` has the same verbs."""

    home: Session | None
    made_by: Any = None
    """The `Envelope` that made this session."""
    owner: Any = None
    """The owner, in a session that a ticket opened."""
    if TYPE_CHECKING:

        def _require_usable(self) -> None: ...

    @emptying
    def add_secret(self, owner: object, secret: str | bytes, *, label: str | None = None) -> None:
        """As `Envelope.add_secret`."""
        hidden = hide_required(secret)
        del secret
        envelope, session = self._verbs("add_secret", owner)
        envelope.run(envelope.add_secret_steps(session, owner, hidden, label))

    @emptying
    def set_secret(self, owner: object, new: str | bytes, *, label: str | None = None) -> None:
        """As `Envelope.set_secret`."""
        hidden = hide_required(new)
        del new
        envelope, session = self._verbs("set_secret", owner)
        envelope.run(envelope.set_secret_steps(session, owner, hidden, label))

    @emptying
    def add_provider(self, owner: object, provider: str) -> None:
        """As `Envelope.add_provider`."""
        envelope, session = self._verbs("add_provider", owner)
        envelope.add_provider(session, owner, provider=provider)

    @emptying
    def add_recovery_code(self, owner: object, *, label: str | None = None) -> RecoveryCode:
        """As `Envelope.add_recovery_code`."""
        envelope, session = self._verbs("add_recovery_code", owner)
        code: RecoveryCode = envelope.add_recovery_code(session, owner, label=label)
        return code

    @emptying
    def add_escrow(self, owner: object) -> None:
        """As `Envelope.add_escrow`."""
        envelope, session = self._verbs("add_escrow", owner)
        envelope.add_escrow(session, owner)

    @emptying
    def allow_emergency(self, owner: object, person: object, *, wait: dt.timedelta) -> None:
        """As `Envelope.allow_emergency`."""
        envelope, session = self._verbs("allow_emergency", owner)
        envelope.allow_emergency(session, owner, person=person, wait=wait)

    @emptying
    def request_emergency(self, owner: object, person: object) -> dt.datetime:
        """As `Envelope.request_emergency`."""
        envelope, session = self._verbs("request_emergency", owner)
        ends: dt.datetime = envelope.request_emergency(session, owner, person=person)
        return ends

    @emptying
    def cancel_emergency(self, owner: object, person: object) -> None:
        """As `Envelope.cancel_emergency`."""
        envelope, session = self._verbs("cancel_emergency", owner)
        envelope.cancel_emergency(session, owner, person=person)

    @emptying
    def refuse_emergency(self, owner: object, person: object) -> None:
        """As `Envelope.refuse_emergency`."""
        envelope, session = self._verbs("refuse_emergency", owner)
        envelope.refuse_emergency(session, owner, person=person)

    @emptying
    def remove_slot(self, owner: object, slot: KeySlot | uuid.UUID) -> None:
        """As `Envelope.remove_slot`."""
        envelope, session = self._verbs("remove_slot", owner)
        envelope.remove_slot(session, owner, slot)

    @emptying
    def acknowledge_slots(self, owner: object, *slots: KeySlot | uuid.UUID) -> None:
        """As `Envelope.acknowledge_slots`."""
        envelope, session = self._verbs("acknowledge_slots", owner)
        envelope.acknowledge_slots(session, owner, *slots)

    @emptying
    def shred(self, owner: object, *, reason: str, **how: Any) -> ErasureReceipt:
        """As `Envelope.shred`."""
        envelope, session = self._verbs("shred", owner)
        receipt: ErasureReceipt = envelope.shred(session, owner, reason=reason, **how)
        return receipt

    @emptying
    def issue_ticket(
        self,
        owner: object,
        *,
        lifetime: dt.timedelta | float,
        idle: dt.timedelta | float | None = None,
        label: str | None = None,
    ) -> Ticket:
        """As `Envelope.issue_ticket`."""
        envelope, session = self._verbs("issue_ticket", owner)
        made: Ticket = envelope.issue_ticket(session, owner, lifetime=lifetime, idle=idle, label=label)
        return made

    @emptying
    def revoke_ticket(self, owner: object, ticket: str | uuid.UUID) -> bool:
        """As `Envelope.revoke_ticket`."""
        envelope, session = self._verbs("revoke_ticket", owner)
        return bool(envelope.revoke_ticket(session, owner, ticket))

    @emptying
    def revoke_tickets(self, owner: object) -> int:
        """As `Envelope.revoke_tickets`."""
        envelope, session = self._verbs("revoke_tickets", owner)
        return int(envelope.revoke_tickets(session, owner))

    @emptying
    def rotate(self, owner: object, *, root: bool = False, scope: str | None = None) -> Any:
        """As `Envelope.rotate`."""
        envelope, session = self._verbs("rotate", owner)
        return envelope.rotate(session, owner, root=root, scope=scope)

    def _verbs(self, name: str, owner: object) -> tuple[Any, Session]:
        """Return the envelope of this unlocked session, and the session to work in.

        Raises:
            SessionLeftError, SessionForkedError: the session was left, or belongs to the parent process.
            ConfigurationError: the session is an AsyncSession, or there is none.
        """
        self._require_usable()
        if self.made_by is None or self.home is None:
            raise ConfigurationError(
                f"This unlocked session serves several sessions: call `envelope.{name}(session, owner, ...)`."
            )
        if bind_of(self.home, require_owner_class(owner).mapper).dialect.is_async:
            raise ConfigurationError(
                f"An AsyncSession is awaited: `await AsyncEnvelope(envelope).{name}(session, owner, ...)`."
            )
        return self.made_by, self.home
