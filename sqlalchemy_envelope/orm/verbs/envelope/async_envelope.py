"""The asynchronous envelope: the same steps, with database work in the session's greenlet. Key derivations
and calls to providers run in threads of their own."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NoReturn

from sqlalchemy_envelope.crypto.frames import emptying, emptying_class
from sqlalchemy_envelope.crypto.preparation import hide_required, hide_secret
from sqlalchemy_envelope.crypto.recovery_code import hide_given
from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.current.desk import Desk
from sqlalchemy_envelope.orm.verbs.envelope.async_emergency_verbs import AsyncEmergencyVerbs
from sqlalchemy_envelope.orm.verbs.envelope.async_escrow_verbs import AsyncEscrowVerbs
from sqlalchemy_envelope.orm.verbs.envelope.async_pepper_verbs import AsyncPepperVerbs
from sqlalchemy_envelope.orm.verbs.envelope.async_recovery_verbs import AsyncRecoveryVerbs
from sqlalchemy_envelope.orm.verbs.envelope.async_rotation_verbs import AsyncRotationVerbs
from sqlalchemy_envelope.orm.verbs.envelope.async_share_verbs import AsyncShareVerbs
from sqlalchemy_envelope.orm.verbs.envelope.async_shred_verbs import AsyncShredVerbs
from sqlalchemy_envelope.orm.verbs.envelope.async_slot_verbs import AsyncSlotVerbs
from sqlalchemy_envelope.orm.verbs.envelope.async_steps import AsyncSteps, plain_async
from sqlalchemy_envelope.orm.verbs.envelope.async_ticket_verbs import AsyncTicketVerbs
from sqlalchemy_envelope.orm.verbs.envelope.envelope import Envelope
from sqlalchemy_envelope.orm.verbs.log_in.enroll import asked_for
from sqlalchemy_envelope.orm.verbs.log_in.way import Way
from sqlalchemy_envelope.orm.verbs.settling.settle_all import AsyncSettling, Settled, batch_steps
from sqlalchemy_envelope.orm.verbs.settling.settle_batch import job

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.escrow import OpenedEscrowKey
    from sqlalchemy_envelope.orm.sessions.server import ServerSession
    from sqlalchemy_envelope.orm.sessions.unlocked import UnlockedSession
    from sqlalchemy_envelope.orm.sessions.write_only import WriteOnlySession
    from sqlalchemy_envelope.orm.tables.key_grant import KeyGrant
    from sqlalchemy_envelope.orm.verbs.envelope.async_steps import AnyAsyncSession
    from sqlalchemy_envelope.orm.verbs.envelope.envelope_steps import Follow
    from sqlalchemy_envelope.orm.verbs.status.grant_status import GrantStatus
    from sqlalchemy_envelope.orm.verbs.status.lock_answer import WhyLocked
    from sqlalchemy_envelope.orm.verbs.status.pending_rows import PendingIndexRows
    from sqlalchemy_envelope.orm.verbs.steps import Steps


@emptying_class
class AsyncEnvelope(
    AsyncSlotVerbs,
    AsyncRecoveryVerbs,
    AsyncPepperVerbs,
    AsyncEscrowVerbs,
    AsyncEmergencyVerbs,
    AsyncShareVerbs,
    AsyncShredVerbs,
    AsyncTicketVerbs,
    AsyncRotationVerbs,
    AsyncSteps,
):
    """`Envelope` for `AsyncSession`. Neither a key derivation nor a provider ever holds up the event loop."""

    def __init__(self, envelope: Envelope | None = None) -> None:
        self.envelope = envelope or Envelope()

    def enroll(
        self,
        session: AnyAsyncSession,
        owner: object,
        *,
        secret: str | bytes | Mapping[Any, str | bytes] | None = None,
        provider: str | None = None,
    ) -> AsyncUnlocking:
        """As `Envelope.enroll`; `await` it, or unlock the owner at once with `async with`."""
        asked = asked_for(owner, secret)
        del secret
        return AsyncUnlocking(
            self, session, lambda plain: self.envelope.enroll_steps(plain, owner, asked, provider)
        )

    def unlock(
        self,
        session: AnyAsyncSession,
        owner: object,
        *,
        secret: str | bytes | None = None,
        ticket: str | None = None,
        provider: str | None = None,
        reason: str | None = None,
        authenticated: bool = False,
        follow: Follow = "needed",
        recovery_code: str | None = None,
        source: str | None = None,
        escrow_key: OpenedEscrowKey | None = None,
        emergency: object | None = None,
    ) -> AsyncUnlocking:
        """As `Envelope.unlock`, for `async with`."""
        way = Way(
            secret=hide_secret(secret),
            ticket=hide_secret(ticket),
            provider=provider,
            recovery_code=hide_given(recovery_code),
            escrow_key=escrow_key,
            emergency=emergency,
            reason=reason,
            authenticated=authenticated,
            source=source,
        )
        del secret, recovery_code, ticket
        return AsyncUnlocking(
            self, session, lambda plain: self.envelope.unlock_steps(plain, owner, way, follow)
        )

    async def settle(self, session: AnyAsyncSession) -> None:
        """As `Envelope.settle`."""
        await plain_async(session).run_sync(self.envelope.settle)

    def settle_all(
        self,
        session: AnyAsyncSession,
        owner_class: type[Any],
        *,
        provider: str,
        reason: str,
        batch: int = 500,
    ) -> AsyncSettling:
        """As `Envelope.settle_all`, for `async for`."""
        work = job(self.envelope.policy, owner_class, provider, reason, batch)
        return AsyncSettling(
            Settled(),
            lambda so_far: self.run(
                session, lambda plain: batch_steps(Desk(plain, self.envelope.policy), work, so_far)
            ),
        )

    def write_only(self, session: AnyAsyncSession, *owners: object) -> WriteOnlySession:
        """As `Envelope.write_only`, for a plain `with`: entering it waits for nothing."""
        return self.envelope.write_only(plain_async(session).sync_session, *owners)

    def server_mode(
        self, session: AnyAsyncSession | None = None, *, provider: str = "server", reason: str
    ) -> ServerSession:
        """As `Envelope.server_mode`, for a plain `with`: entering it waits for nothing."""
        plain = None if session is None else plain_async(session).sync_session
        return self.envelope.server_mode(plain, provider=provider, reason=reason)

    def attach(self, session: AnyAsyncSession) -> None:
        """As `Envelope.attach`. It waits for nothing."""
        self.envelope.attach(plain_async(session).sync_session)

    async def why_locked(
        self,
        session: AnyAsyncSession,
        instance: object,
        attribute: str | None = None,
        *,
        reader: object | None = None,
    ) -> WhyLocked | None:
        """As `Envelope.why_locked`."""
        why: WhyLocked | None = await plain_async(session).run_sync(
            lambda plain: self.envelope.why_locked(plain, instance, attribute, reader=reader)
        )
        return why

    async def pending_index_rows(
        self, session: AnyAsyncSession, owner: object
    ) -> tuple[PendingIndexRows, ...]:
        """As `Envelope.pending_index_rows`."""
        found: tuple[PendingIndexRows, ...] = await plain_async(session).run_sync(
            lambda plain: self.envelope.pending_index_rows(plain, owner)
        )
        return found

    async def grant_states(
        self, session: AnyAsyncSession, grants: type[KeyGrant] | Iterable[KeyGrant]
    ) -> list[GrantStatus]:
        """As `Envelope.grant_states`."""
        found: list[GrantStatus] = await plain_async(session).run_sync(
            lambda plain: self.envelope.grant_states(plain, grants)
        )
        return found

    async def seal_rows(self, session: AnyAsyncSession, *owner_classes: type[Any]) -> int:
        """As `Envelope.seal_rows`."""
        count: int = await plain_async(session).run_sync(
            lambda plain: self.envelope.seal_rows(plain, *owner_classes)
        )
        return count

    async def unlock_unknown(
        self,
        *,
        secret: str | bytes | None = None,
        recovery_code: str | None = None,
        account: str | None = None,
        source: str | None = None,
        session: AnyAsyncSession | None = None,
    ) -> NoReturn:
        """As `Envelope.unlock_unknown`."""
        hidden, code = hide_secret(secret), hide_given(recovery_code)
        del secret, recovery_code
        plain = None if session is None else plain_async(session).sync_session
        steps = self.envelope.unknown_steps(plain, hidden, account, source, code)
        await self.run_alone(steps)
        raise AssertionError  # the steps end with an error

    async def rebind(
        self, session: AnyAsyncSession, owner: object, *, secret: str | bytes, source: str | None = None
    ) -> None:
        """As `Envelope.rebind`."""
        hidden = hide_required(secret)
        del secret
        await self.run(session, lambda plain: self.envelope.rebind_steps(plain, owner, hidden, source))


class AsyncUnlocking:
    """An enrolment or unlock to be awaited, or entered with `async with`."""

    def __init__(
        self,
        owner: AsyncEnvelope,
        session: AnyAsyncSession,
        make_steps: Callable[[Session], Steps[UnlockedSession]],
    ) -> None:
        self._envelope = owner
        self._session = session
        self._make_steps = make_steps
        self._unlocked: UnlockedSession | None = None
        self._awaited = False

    def __del__(self) -> None:
        if not getattr(self, "_awaited", True):
            warnings.warn("AsyncEnvelope.enroll or unlock was never awaited", RuntimeWarning, stacklevel=2)

    @emptying
    def __await__(self) -> Generator[Any, Any, UnlockedSession]:
        self._awaited = True
        return self._envelope.run(self._session, self._make_steps).__await__()

    def __enter__(self) -> NoReturn:
        self._awaited = True  # what it should have been is told below
        raise ConfigurationError("AsyncEnvelope waits for the database: write `async with`, and not `with`.")

    def __exit__(self, *_: object) -> None:
        """Never reached; without it `with` would not come as far as `__enter__`."""

    @emptying
    async def __aenter__(self) -> UnlockedSession:
        self._unlocked = await self
        return self._unlocked.__enter__()

    @emptying
    async def __aexit__(self, *failure: Any) -> None:
        # No SQL and no await from here on: a cancelled task still wipes its keys.
        if self._unlocked is not None:
            self._unlocked.__exit__(*failure)
