"""The verbs on an owner's key slots, for an `AsyncSession`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy_envelope.crypto.frames import emptying_class
from sqlalchemy_envelope.crypto.preparation import hide_required
from sqlalchemy_envelope.orm.verbs.envelope.async_steps import AsyncSteps, plain_async

if TYPE_CHECKING:
    import uuid

    from sqlalchemy_envelope.orm.sessions.key_slots import KeySlot, KeySlots
    from sqlalchemy_envelope.orm.verbs.envelope.async_steps import AnyAsyncSession


@emptying_class
class AsyncSlotVerbs(AsyncSteps):
    """The verbs of an `AsyncEnvelope` on key slots."""

    async def slots(self, session: AnyAsyncSession, owner: object) -> KeySlots:
        """As `Envelope.slots`."""
        found: KeySlots = await plain_async(session).run_sync(lambda plain: self.envelope.slots(plain, owner))
        return found

    async def add_secret(
        self, session: AnyAsyncSession, owner: object, *, secret: str | bytes, label: str | None = None
    ) -> None:
        """As `Envelope.add_secret`."""
        hidden = hide_required(secret)
        del secret
        await self.run(session, lambda plain: self.envelope.add_secret_steps(plain, owner, hidden, label))

    async def set_secret(
        self, session: AnyAsyncSession, owner: object, *, new: str | bytes, label: str | None = None
    ) -> None:
        """As `Envelope.set_secret`."""
        hidden = hide_required(new)
        del new
        await self.run(session, lambda plain: self.envelope.set_secret_steps(plain, owner, hidden, label))

    async def change_secret(
        self,
        session: AnyAsyncSession,
        owner: object,
        *,
        old: str | bytes,
        new: str | bytes,
        source: str | None = None,
    ) -> None:
        """As `Envelope.change_secret`."""
        hidden, hidden_new = hide_required(old), hide_required(new)
        del old, new
        await self.run(
            session, lambda plain: self.envelope.change_secret_steps(plain, owner, hidden, hidden_new, source)
        )

    async def add_provider(self, session: AnyAsyncSession, owner: object, *, provider: str) -> None:
        """As `Envelope.add_provider`."""
        await self.run(session, lambda plain: self.envelope.add_provider_steps(plain, owner, provider))

    async def remove_provider(self, session: AnyAsyncSession, owner: object, *, provider: str) -> None:
        """As `Envelope.remove_provider`."""
        await plain_async(session).run_sync(
            lambda plain: self.envelope.remove_provider(plain, owner, provider=provider)
        )

    async def remove_slot(self, session: AnyAsyncSession, owner: object, slot: KeySlot | uuid.UUID) -> None:
        """As `Envelope.remove_slot`."""
        await plain_async(session).run_sync(lambda plain: self.envelope.remove_slot(plain, owner, slot))

    async def acknowledge_slots(
        self, session: AnyAsyncSession, owner: object, *named: KeySlot | uuid.UUID
    ) -> None:
        """As `Envelope.acknowledge_slots`."""
        await plain_async(session).run_sync(
            lambda plain: self.envelope.acknowledge_slots(plain, owner, *named)
        )
