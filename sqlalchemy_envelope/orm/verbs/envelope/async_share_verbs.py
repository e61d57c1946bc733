"""The verb on the shares of keys in a second database, for an `AsyncSession`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.orm.verbs.envelope.async_steps import AsyncSteps, plain_async
from sqlalchemy_envelope.orm.verbs.slots.share_sweep import DEFAULT_KEEP, SharesSwept

if TYPE_CHECKING:
    import datetime as dt

    from sqlalchemy_envelope.orm.verbs.envelope.async_steps import AnyAsyncSession


class AsyncShareVerbs(AsyncSteps):
    """The verb of an `AsyncEnvelope` on shares."""

    async def sweep_shares(
        self,
        session: AnyAsyncSession,
        owner_class: type[Any],
        *,
        keep: dt.timedelta = DEFAULT_KEEP,
        delete: bool = True,
    ) -> SharesSwept:
        """As `Envelope.sweep_shares`."""
        found: SharesSwept = await plain_async(session).run_sync(
            lambda plain: self.envelope.sweep_shares(plain, owner_class, keep=keep, delete=delete)
        )
        return found
