"""The verbs on tickets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.crypto.frames import emptying_class
from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.tables.owners import owner_class_of
from sqlalchemy_envelope.orm.verbs import tickets
from sqlalchemy_envelope.orm.verbs.envelope.envelope_steps import EnvelopeSteps, plain_session

if TYPE_CHECKING:
    import datetime as dt
    import uuid

    from sqlalchemy_envelope.keys.ticket import Ticket
    from sqlalchemy_envelope.orm.verbs.envelope.envelope_steps import AnySession
    from sqlalchemy_envelope.orm.verbs.tickets import IssuedTicket


@emptying_class
class TicketVerbs(EnvelopeSteps):
    """The verbs of an `Envelope` on tickets."""

    def issue_ticket(
        self,
        session: AnySession,
        owner: object,
        *,
        lifetime: dt.timedelta | float,
        idle: dt.timedelta | float | None = None,
        label: str | None = None,
    ) -> Ticket:
        """Issue a ticket for an owner who is unlocked here: a text for a cookie or a header, which opens the
        owner without the secret, `unlock(session, owner, ticket=...)`. Never commits: the ticket opens after
        the commit.

        A ticket carries the keys that open values of the owner, and of all that grants lead the owner to now.
        It carries no root key: it reads and writes values, and changes nothing about keys. What waits for the
        owner is settled first.

        Args:
            lifetime: from now, 400 days at most. It is bound to the ticket: nobody makes it longer.
            idle: the ticket ends earlier if nobody uses it for so long.
            label: a text for a page of "your devices", for example the name of the browser.

        Raises:
            LockedError: the owner is not unlocked here, or only by a ticket.
            ConfigurationError: there are no server keys, a time is out of bounds, or the owner has more keys
                than a ticket carries.
        """
        return tickets.issue_ticket(self._desk(plain_session(session)), owner, lifetime, idle, label)

    def tickets(self, session: AnySession, owner: object) -> list[IssuedTicket]:
        """Return the tickets of an owner that still open something, the oldest first. Needs no key.

        Raises:
            NotEnrolledError: the owner has no keys.
        """
        return tickets.tickets_of(self._desk(plain_session(session)), owner)

    def revoke_ticket(self, session: AnySession, owner: object, ticket: str | uuid.UUID) -> bool:
        """Revoke one ticket of an owner, and return whether it was there. Needs no key. Never commits. A
        request that the ticket has opened goes on to its end.

        Args:
            owner: the owner, whose tickets alone are looked at; or the owner's class, for a log-out.
            ticket: the text of the ticket, or its id from `tickets`.

        Raises:
            TicketError: the text is no ticket.
        """
        return tickets.revoke_ticket(self._desk(plain_session(session)), owner, ticket)

    def revoke_tickets(self, session: AnySession, owner: object) -> int:
        """Revoke every ticket of an owner, and return their number: "log out everywhere". Needs no key. Never
        commits. A change of the secret does it too.
        """
        return tickets.revoke_tickets(self._desk(plain_session(session)), owner)

    def sweep_tickets(self, session: AnySession, *owner_classes: type[Any]) -> int:
        """Delete the tickets of these classes that open nothing any more, and return their number. Use it in
        a job. Never commits. `issue_ticket` does it for the tickets of its owner.

        Raises:
            ConfigurationError: no class is given, or a class is no `KeyOwner`.
        """
        classes = [owner_class_of(getattr(one, "__table__", None)) for one in owner_classes]
        found = [one for one in classes if one is not None]
        if not found or len(found) < len(classes):
            raise ConfigurationError(
                "sweep_tickets() takes classes of key owners: sweep_tickets(session, User)."
            )
        return tickets.sweep_tickets(self._desk(plain_session(session)), found)
