"""The threads in which asynchronous envelopes derive keys, and the wait for one of them."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy_envelope.orm.current.threads import off_loop
from sqlalchemy_envelope.orm.verbs.steps import Derivation, Pause

if TYPE_CHECKING:
    from sqlalchemy_envelope.crypto.argon2id import KdfLimit
    from sqlalchemy_envelope.orm.verbs.envelope.envelope import Envelope
    from sqlalchemy_envelope.orm.verbs.steps import Work


class _Places:
    """The number of derivations that may still begin in an event loop, and the threads for them."""

    def __init__(self, count: int) -> None:
        self.free = asyncio.Semaphore(count)
        self.threads = ThreadPoolExecutor(count, "envelope-derivation")


# An envelope is made once, but may be wrapped for each request: so the envelope's limit is the key.
_places: WeakKeyDictionary[KdfLimit, WeakKeyDictionary[asyncio.AbstractEventLoop, _Places]] = (
    WeakKeyDictionary()
)


async def perform(envelope: Envelope, work: Work) -> Any:
    """As `Envelope.perform`, in a thread.

    At most as many derivations run as the envelope allows. Further derivations wait here, without a thread.

    Raises:
        UnlockBusyError: no place came free within the wait.
    """
    if isinstance(work, Pause):
        return await asyncio.sleep(work.seconds)
    if not isinstance(work, Derivation):
        return await off_loop(lambda: envelope.perform(work))
    loop, limit, began = asyncio.get_running_loop(), envelope.limit, time.monotonic()
    places = _places.setdefault(limit, WeakKeyDictionary()).get(loop)
    if places is None:
        places = _places[limit][loop] = _Places(limit.concurrent)
    try:
        async with asyncio.timeout(limit.wait):
            await places.free.acquire()
    except TimeoutError:
        raise limit.busy() from None
    waited = time.monotonic() - began
    running = places.threads.submit(limit.derive, work.secret, work.salt, waited=waited, took=work.took)
    running.add_done_callback(lambda _: _release(loop, places.free))
    return await asyncio.wrap_future(running)


def _release(loop: asyncio.AbstractEventLoop, free: asyncio.Semaphore) -> None:
    """Free a place when its thread is done: a cancelled task leaves a running derivation behind."""
    try:
        loop.call_soon_threadsafe(free.release)
    except RuntimeError:
        pass  # the loop is closed, so that no task waits
