"""The verbs that put new keys in the place of old ones, for an `AsyncSession`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.crypto.frames import emptying_class
from sqlalchemy_envelope.orm.current.desk import Desk
from sqlalchemy_envelope.orm.verbs.envelope.async_steps import AsyncSteps, plain_async
from sqlalchemy_envelope.orm.verbs.rotation.index_keys import open_steps
from sqlalchemy_envelope.orm.verbs.rotation.index_rotation import IndexRotation, index_job, index_steps
from sqlalchemy_envelope.orm.verbs.rotation.owner_rotation import AsyncRotating
from sqlalchemy_envelope.orm.verbs.rotation.provider_rotation import (
    ProviderRotation,
    rotation_job,
    rotation_steps,
)
from sqlalchemy_envelope.orm.verbs.rotation.rotate_all import OwnersRotation, owners_job, owners_steps

if TYPE_CHECKING:
    import datetime as dt
    import uuid

    from sqlalchemy_envelope.orm.verbs.envelope.async_steps import AnyAsyncSession
    from sqlalchemy_envelope.orm.verbs.rotation.kdf_standing import KdfStanding
    from sqlalchemy_envelope.orm.verbs.rotation.key_references import KeyReferences
    from sqlalchemy_envelope.orm.verbs.rotation.owner_rotation import RotatedKeys
    from sqlalchemy_envelope.orm.verbs.rotation.provider_rotation import RotationJob


@emptying_class
class AsyncRotationVerbs(AsyncSteps):
    """The verbs of an `AsyncEnvelope` that rotate keys."""

    async def rotate(
        self, session: AnyAsyncSession, owner: object, *, root: bool = False, scope: str | None = None
    ) -> RotatedKeys:
        """As `Envelope.rotate`."""
        rotated: RotatedKeys = await plain_async(session).run_sync(
            lambda plain: self.envelope.rotate(plain, owner, root=root, scope=scope)
        )
        return rotated

    def rotate_all(
        self,
        session: AnyAsyncSession,
        owner_class: type[Any],
        *,
        provider: str,
        reason: str,
        root: bool = False,
        before: dt.datetime | None = None,
        batch: int = 100,
    ) -> AsyncRotating[OwnersRotation]:
        """As `Envelope.rotate_all`, for `async for`."""
        policy = self.envelope.policy
        work = owners_job(policy, owner_class, provider, reason, root=root, before=before, size=batch)
        return AsyncRotating(
            OwnersRotation(),
            lambda so_far: self.run(session, lambda plain: owners_steps(Desk(plain, policy), work, so_far)),
        )

    def rotate_provider(
        self, session: AnyAsyncSession, owner_class: type[Any], *, provider: str = "server", batch: int = 500
    ) -> AsyncRotating[ProviderRotation]:
        """As `Envelope.rotate_provider`, for `async for`."""
        job = rotation_job(self.envelope.policy, "rotate_provider", owner_class, provider, batch)
        return self._rotation(session, job)

    def rotate_seals(
        self, session: AnyAsyncSession, owner_class: type[Any], *, batch: int = 500
    ) -> AsyncRotating[ProviderRotation]:
        """As `Envelope.rotate_seals`, for `async for`."""
        job = rotation_job(self.envelope.policy, "rotate_seals", owner_class, None, batch)
        return self._rotation(session, job)

    def _rotation(self, session: AnyAsyncSession, job: RotationJob) -> AsyncRotating[ProviderRotation]:
        return AsyncRotating(
            ProviderRotation(),
            lambda so_far: self.run(
                session, lambda plain: rotation_steps(Desk(plain, self.envelope.policy), job, so_far)
            ),
        )

    def rotate_index(
        self, session: AnyAsyncSession, index: Any, *, batch: int = 500, alone: bool = False
    ) -> AsyncRotating[IndexRotation]:
        """As `Envelope.rotate_index`, for `async for`."""
        job, policy = index_job(index, batch, alone=alone), self.envelope.policy
        return AsyncRotating(
            IndexRotation(job.index.label),
            lambda so_far: self.run(session, lambda plain: index_steps(Desk(plain, policy), job, so_far)),
        )

    async def open_index_keys(self, session: AnyAsyncSession, base: Any) -> int:
        """As `Envelope.open_index_keys`."""
        policy = self.envelope.policy
        return await self.run(session, lambda plain: open_steps(Desk(plain, policy), base))

    async def kdf_standing(self, session: AnyAsyncSession, owner_class: type[Any]) -> list[KdfStanding]:
        """As `Envelope.kdf_standing`."""
        found: list[KdfStanding] = await plain_async(session).run_sync(
            lambda plain: self.envelope.kdf_standing(plain, owner_class)
        )
        return found

    async def key_references(
        self,
        session: AnyAsyncSession,
        base: Any,
        key: str | uuid.UUID,
        *,
        horizon: dt.timedelta | None = None,
        backups_until: dt.datetime | None = None,
    ) -> KeyReferences:
        """As `Envelope.key_references`."""
        found: KeyReferences = await plain_async(session).run_sync(
            lambda plain: self.envelope.key_references(
                plain, base, key, horizon=horizon, backups_until=backups_until
            )
        )
        return found

    async def destroy_key(
        self,
        session: AnyAsyncSession,
        base: Any,
        key: str | uuid.UUID,
        *,
        horizon: dt.timedelta | None = None,
        backups_until: dt.datetime | None = None,
    ) -> KeyReferences:
        """As `Envelope.destroy_key`."""
        found: KeyReferences = await plain_async(session).run_sync(
            lambda plain: self.envelope.destroy_key(
                plain, base, key, horizon=horizon, backups_until=backups_until
            )
        )
        return found
