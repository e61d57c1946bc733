"""Threads for calls to providers under asyncio.

The event loop's own threads stay free: asyncio looks names up in them, and a flood of calls would hold up
every other connection.
"""

from __future__ import annotations

import asyncio
import contextvars
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

MOST_CALLS = 32
"""The calls that run at one time. Each provider has its own limit, and its own time-out for waiting
callers."""

_pools: WeakKeyDictionary[asyncio.AbstractEventLoop, ThreadPoolExecutor] = WeakKeyDictionary()


async def off_loop(call: Callable[[], T]) -> T:
    """Call something in a thread, as `asyncio.to_thread` does, but not in a thread of the loop."""
    loop = asyncio.get_running_loop()
    pool = _pools.get(loop)
    if pool is None:
        pool = _pools[loop] = ThreadPoolExecutor(MOST_CALLS, "envelope-provider")
    return await loop.run_in_executor(pool, contextvars.copy_context().run, call)
