"""The steps of the verbs, carried out for an `AsyncSession`: database work in the session's greenlet, key
derivations and calls to providers in threads of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.verbs.threads import perform

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.orm.verbs.envelope import Envelope
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
        steps: Any = make_steps(plain.sync_session)
        answer: Any = None
        while True:
            finished, value = await plain.run_sync(lambda _, answer=answer: _advance(steps, answer))
            if finished:
                result: T = value
                return result
            answer = await perform(self.envelope, value)


def plain_async(session: AnyAsyncSession) -> Any:
    # An async_scoped_session returns its session, and lacks both attributes that are used here.
    registry = getattr(session, "registry", None)
    plain: Any = registry() if registry is not None else session
    if not hasattr(plain, "sync_session"):
        raise ConfigurationError("This is a plain Session: use Envelope, without `await`.")
    return plain


def _advance(steps: Any, answer: Any) -> tuple[bool, Any]:
    """Take one step. A StopIteration cannot leave a coroutine, so a pair tells the end."""
    try:
        return False, steps.send(answer)
    except StopIteration as stop:
        return True, stop.value
