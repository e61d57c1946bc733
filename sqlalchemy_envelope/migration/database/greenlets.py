"""A migration over an asynchronous driver: in a greenlet, where a wait gives the event loop back."""

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
    """Whether an engine is an `AsyncEngine`; asked so that nothing is imported which needs greenlet."""
    return hasattr(engine, "sync_engine")


def sleep(seconds: float) -> None:
    """Sleep; in a greenlet of an event loop, without holding the loop up."""
    if in_greenlet():
        concurrency.await_only(asyncio.sleep(seconds))
    else:
        time.sleep(seconds)


async def spawn(engine: Any, call: Callable[[], T]) -> T:
    """Do it beside the event loop: in a greenlet where the engine is asynchronous, and else in a thread."""
    if is_asynchronous(engine):
        return await concurrency.greenlet_spawn(call)
    return await asyncio.to_thread(call)


def run_apart(engine: Any, call: Callable[[], T]) -> T:
    """Do it where no event loop runs; an asynchronous engine gets one of its own, and gives its connections
    back at the end: they belong to that loop."""
    if not is_asynchronous(engine):
        return call()

    async def whole() -> T:
        try:
            return await concurrency.greenlet_spawn(call)
        finally:
            await engine.dispose()

    return asyncio.run(whole())
