"""The verbs on emergency access, for an `AsyncSession`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy_envelope.crypto.frames import emptying_class
from sqlalchemy_envelope.orm.verbs.envelope.async_steps import AsyncSteps, plain_async

if TYPE_CHECKING:
    import datetime as dt

    from sqlalchemy_envelope.orm.verbs.envelope.async_steps import AnyAsyncSession


@emptying_class
class AsyncEmergencyVerbs(AsyncSteps):
    """The verbs of an `AsyncEnvelope` on emergency access."""

    async def allow_emergency(
        self, session: AnyAsyncSession, owner: object, *, person: object, wait: dt.timedelta
    ) -> None:
        """As `Envelope.allow_emergency`."""
        await plain_async(session).run_sync(
            lambda plain: self.envelope.allow_emergency(plain, owner, person=person, wait=wait)
        )

    async def request_emergency(
        self, session: AnyAsyncSession, owner: object, *, person: object
    ) -> dt.datetime:
        """As `Envelope.request_emergency`."""
        ends: dt.datetime = await plain_async(session).run_sync(
            lambda plain: self.envelope.request_emergency(plain, owner, person=person)
        )
        return ends

    async def cancel_emergency(self, session: AnyAsyncSession, owner: object, *, person: object) -> None:
        """As `Envelope.cancel_emergency`."""
        await plain_async(session).run_sync(
            lambda plain: self.envelope.cancel_emergency(plain, owner, person=person)
        )

    async def refuse_emergency(self, session: AnyAsyncSession, owner: object, *, person: object) -> None:
        """As `Envelope.refuse_emergency`."""
        await plain_async(session).run_sync(
            lambda plain: self.envelope.refuse_emergency(plain, owner, person=person)
        )
