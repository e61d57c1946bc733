"""The verbs for the day when a secret is forgotten, for an `AsyncSession`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy_envelope.crypto.frames import emptying_class
from sqlalchemy_envelope.crypto.preparation import hide_required
from sqlalchemy_envelope.crypto.recovery_code import hide_code
from sqlalchemy_envelope.orm.verbs.envelope.async_steps import AsyncSteps, plain_async

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy_envelope.crypto.recovery_code import RecoveryCode
    from sqlalchemy_envelope.orm.verbs.envelope.async_steps import AnyAsyncSession
    from sqlalchemy_envelope.orm.verbs.slots.recoverable import Recoverability


@emptying_class
class AsyncRecoveryVerbs(AsyncSteps):
    """The verbs of an `AsyncEnvelope` on recovery codes."""

    async def add_recovery_code(
        self, session: AnyAsyncSession, owner: object, *, label: str | None = None
    ) -> RecoveryCode:
        """As `Envelope.add_recovery_code`."""
        code: RecoveryCode = await plain_async(session).run_sync(
            lambda plain: self.envelope.add_recovery_code(plain, owner, label=label)
        )
        return code

    async def reset_secret(
        self,
        session: AnyAsyncSession,
        owner: object,
        *,
        recovery_code: str,
        new: str | bytes,
        source: str | None = None,
    ) -> RecoveryCode:
        """As `Envelope.reset_secret`."""
        code, hidden = hide_code(recovery_code), hide_required(new)
        del recovery_code, new
        return await self.run(
            session, lambda plain: self.envelope.reset_secret_steps(plain, owner, code, hidden, source)
        )

    async def recoverable(
        self, session: AnyAsyncSession, owner: object, *, without: Collection[str] = ("secret",)
    ) -> Recoverability:
        """As `Envelope.recoverable`."""
        found: Recoverability = await plain_async(session).run_sync(
            lambda plain: self.envelope.recoverable(plain, owner, without=without)
        )
        return found
