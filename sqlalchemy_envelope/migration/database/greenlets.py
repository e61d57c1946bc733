"""Run a migration over an asynchronous driver in a greenlet, where a wait lets the event loop go on."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.util import concurrency

from sqlalchemy_envelope.orm.tables.cascades import in_greenlet

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def is_asynchronous(engine: Any) -> bool:
    """Whether an engine is an `AsyncEngine`, found without an import that needs greenlet."""
    return hasattr(engine, "sync_engine")


def sleep(seconds: float) -> None:
    """Sleep. In a greenlet of an event loop, the loop goes on meanwhile."""
    if in_greenlet():
        concurrency.await_only(asyncio.sleep(seconds))
    else:
        time.sleep(seconds)


async def spawn(engine: Any, call: Callable[[], T]) -> T:
    """Call beside the event loop: in a greenlet if the engine is asynchronous, else in a thread."""
    if is_asynchronous(engine):
        return await concurrency.greenlet_spawn(call)
    return await asyncio.to_thread(call)


def run_apart(engine: Any, call: Callable[[], T]) -> T:
    """Call where no event loop runs. An asynchronous engine gets an event loop of its own, and closes its
    connections at the end, since they belong to that loop."""
    if not is_asynchronous(engine):
        return call()

    async def whole() -> T:
        try:
            return await concurrency.greenlet_spawn(call)
        finally:
            await engine.dispose()

    return asyncio.run(whole())
