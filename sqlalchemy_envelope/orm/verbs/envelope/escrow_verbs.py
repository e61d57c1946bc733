"""The verbs on escrow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy_envelope.crypto.frames import emptying_class
from sqlalchemy_envelope.orm.verbs.envelope.envelope_steps import EnvelopeSteps, plain_session
from sqlalchemy_envelope.orm.verbs.slots.escrow import add_escrow

if TYPE_CHECKING:
    from sqlalchemy_envelope.orm.verbs.envelope.envelope_steps import AnySession


@emptying_class
class EscrowVerbs(EnvelopeSteps):
    """The verbs of an `Envelope` on escrow."""

    def add_escrow(self, session: AnySession, owner: object) -> None:
        """Let the custodians of the pinned escrow key open an owner who is unlocked here. Every root key that
        is open here is sealed to it, so that values of earlier epochs are helped too. Slots of a former
        escrow key are replaced. May be called again. Never commits.

        Raises:
            LockedError: the owner is not unlocked here.
            ConfigurationError: the envelope has no `escrow=`.
        """
        add_escrow(self._desk(plain_session(session)), owner)
