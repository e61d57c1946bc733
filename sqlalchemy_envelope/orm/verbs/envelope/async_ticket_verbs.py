"""The verbs on tickets, for an `AsyncSession`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.crypto.frames import emptying_class
from sqlalchemy_envelope.orm.verbs.envelope.async_steps import AsyncSteps, plain_async

if TYPE_CHECKING:
    import datetime as dt
    import uuid

    from sqlalchemy_envelope.keys.ticket import Ticket
    from sqlalchemy_envelope.orm.verbs.envelope.async_steps import AnyAsyncSession
    from sqlalchemy_envelope.orm.verbs.tickets import IssuedTicket


@emptying_class
class AsyncTicketVerbs(AsyncSteps):
    """The verbs of an `AsyncEnvelope` on tickets."""

    async def issue_ticket(
        self,
        session: AnyAsyncSession,
        owner: object,
        *,
        lifetime: dt.timedelta | float,
        idle: dt.timedelta | float | None = None,
        label: str | None = None,
    ) -> Ticket:
        """As `Envelope.issue_ticket`."""
        made: Ticket = await plain_async(session).run_sync(
            lambda plain: self.envelope.issue_ticket(plain, owner, lifetime=lifetime, idle=idle, label=label)
        )
        return made

    async def tickets(self, session: AnyAsyncSession, owner: object) -> list[IssuedTicket]:
        """As `Envelope.tickets`."""
        found: list[IssuedTicket] = await plain_async(session).run_sync(
            lambda plain: self.envelope.tickets(plain, owner)
        )
        return found

    async def revoke_ticket(self, session: AnyAsyncSession, owner: object, ticket: str | uuid.UUID) -> bool:
        """As `Envelope.revoke_ticket`."""
        revoked: bool = await plain_async(session).run_sync(
            lambda plain: self.envelope.revoke_ticket(plain, owner, ticket)
        )
        return revoked

    async def revoke_tickets(self, session: AnyAsyncSession, owner: object) -> int:
        """As `Envelope.revoke_tickets`."""
        count: int = await plain_async(session).run_sync(
            lambda plain: self.envelope.revoke_tickets(plain, owner)
        )
        return count

    async def sweep_tickets(self, session: AnyAsyncSession, *owner_classes: type[Any]) -> int:
        """As `Envelope.sweep_tickets`."""
        count: int = await plain_async(session).run_sync(
            lambda plain: self.envelope.sweep_tickets(plain, *owner_classes)
        )
        return count
