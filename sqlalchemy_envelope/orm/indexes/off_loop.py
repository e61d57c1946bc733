"""Work that takes its time, beside the event loop where there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from sqlalchemy.util import concurrency

from sqlalchemy_envelope.orm.current.threads import off_loop
from sqlalchemy_envelope.orm.tables.cascades import in_greenlet

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def off_the_loop(call: Callable[[], T]) -> T:
    """Call something; under asyncio in a thread, so that the event loop is not blocked meanwhile."""
    return concurrency.await_only(off_loop(call)) if in_greenlet() else call()
