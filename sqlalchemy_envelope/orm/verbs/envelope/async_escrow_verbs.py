"""The verbs on escrow, for an `AsyncSession`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy_envelope.crypto.frames import emptying_class
from sqlalchemy_envelope.orm.verbs.envelope.async_steps import AsyncSteps, plain_async

if TYPE_CHECKING:
    from sqlalchemy_envelope.orm.verbs.envelope.async_steps import AnyAsyncSession


@emptying_class
class AsyncEscrowVerbs(AsyncSteps):
    """The verbs of an `AsyncEnvelope` on escrow."""

    async def add_escrow(self, session: AnyAsyncSession, owner: object) -> None:
        """As `Envelope.add_escrow`."""
        await plain_async(session).run_sync(lambda plain: self.envelope.add_escrow(plain, owner))
