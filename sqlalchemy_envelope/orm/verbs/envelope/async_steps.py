"""The steps of the verbs, carried out for an `AsyncSession`: database work in the session's greenlet, key
derivations and calls to providers in threads of their own."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.util import concurrency

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.verbs.envelope.threads import perform

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.orm.verbs.envelope.envelope import Envelope
    from sqlalchemy_envelope.orm.verbs.steps import Steps

    AnyAsyncSession = AsyncSession | async_scoped_session[Any]

T = TypeVar("T")


class AsyncSteps:
    """Carries the steps of an envelope out.

    Attributes:
        envelope: the envelope with the policy of the application.
    """

    envelope: Envelope

    async def run(self, session: AnyAsyncSession, make_steps: Callable[[Session], Steps[T]]) -> T:
        """Carry steps out, deriving keys in a thread."""
        plain = plain_async(session)
        result: T = await self._run(make_steps(plain.sync_session), plain.run_sync)
        return result

    async def run_alone(self, steps: Steps[T]) -> T:
        """Carry steps out that need no session."""
        result: T = await self._run(steps, _spawned)
        return result

    async def _run(self, steps: Any, in_greenlet: Callable[[Callable[[Any], Any]], Any]) -> Any:
        go_on: Any = steps.send
        answer: Any = None
        while True:
            finished, value = await in_greenlet(partial(_advance, go_on, answer))
            if finished:
                return value
            try:
                go_on, answer = steps.send, await perform(self.envelope, value)
            except Exception as error:  # noqa: BLE001 - the steps raise it again
                go_on, answer = steps.throw, error


def plain_async(session: AnyAsyncSession) -> Any:
    # An async_scoped_session returns its session, and lacks both attributes that are used here.
    registry = getattr(session, "registry", None)
    plain: Any = registry() if registry is not None else session
    if not hasattr(plain, "sync_session"):
        raise ConfigurationError("This is a plain Session: use Envelope, without `await`.")
    return plain


async def _spawned(step: Callable[[Any], Any]) -> Any:
    return await concurrency.greenlet_spawn(step, None)


def _advance(go_on: Callable[[Any], Any], answer: Any, _: object) -> tuple[bool, Any]:
    """Take one step. A StopIteration cannot leave a coroutine, so a pair tells the end."""
    try:
        return False, go_on(answer)
    except StopIteration as stop:
        return True, stop.value
