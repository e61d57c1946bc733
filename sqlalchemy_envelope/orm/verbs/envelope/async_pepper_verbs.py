"""The verbs on the pepper, for an `AsyncSession`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.crypto.frames import emptying_class
from sqlalchemy_envelope.orm.current.desk import Desk
from sqlalchemy_envelope.orm.verbs.envelope.async_steps import AsyncSteps, plain_async
from sqlalchemy_envelope.orm.verbs.rotation.pepper_rotation import (
    AsyncPepperRotation,
    PepperProgress,
    check_rotation,
)

if TYPE_CHECKING:
    from sqlalchemy_envelope.orm.verbs.envelope.async_steps import AnyAsyncSession
    from sqlalchemy_envelope.orm.verbs.rotation.pepper_rotation import PepperUse


@emptying_class
class AsyncPepperVerbs(AsyncSteps):
    """The verbs of an `AsyncEnvelope` on the pepper of secret slots."""

    def rotate_pepper(
        self, session: AnyAsyncSession, owner_class: type[Any], *, batch: int = 1000
    ) -> AsyncPepperRotation:
        """As `Envelope.rotate_pepper`, for `async for`."""
        check_rotation(Desk(plain_async(session).sync_session, self.envelope.policy), owner_class, batch)
        return AsyncPepperRotation(
            PepperProgress(),
            lambda so_far: self.run(
                session,
                lambda plain: self.envelope.rotate_pepper_steps(plain, owner_class, batch, so_far),
            ),
        )

    async def pepper_use(self, session: AnyAsyncSession, owner_class: type[Any]) -> PepperUse:
        """As `Envelope.pepper_use`."""
        found: PepperUse = await plain_async(session).run_sync(
            lambda plain: self.envelope.pepper_use(plain, owner_class)
        )
        return found
