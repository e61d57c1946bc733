"""Where a throttle remembers: the protocol of a store, and the store of a single process."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol, runtime_checkable
from uuid import UUID
from weakref import WeakSet

from sqlalchemy_envelope.orm.throttling.backoff import Bucket

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy_envelope.orm.throttling.backoff import Change


@runtime_checkable
class ThrottleStore(Protocol):
    """Where a throttle remembers. An application may bring its own, for Redis as an example.

    Attributes:
        blocks: whether `update` waits for something. Under asyncio it is then called in a thread.
    """

    blocks: bool

    def update(self, names: Sequence[UUID], change: Change, now: int) -> None:
        """Change what is remembered under these names, as one step that no other comes between.

        Call `change` with a `Bucket` for each name, `Bucket()` for a name that is new, and store what it
        returns. It may be called again, if another process came first. What is written stays, whatever
        becomes of the caller's transaction.

        Args:
            names: sorted, so that two callers lock in one order.
            now: the present, in milliseconds since 1970: what expires before may be dropped.
        """
        ...


class MemoryThrottle:
    """Remembers in this process alone: for an application of one process, and for tests.

    Args:
        most: the most names that are remembered. Those that were not used for longest are dropped first.
    """

    blocks = False

    def __init__(self, most: int = 100_000) -> None:
        self._most = most
        self._buckets: OrderedDict[UUID, Bucket] = OrderedDict()
        self.reset()
        _STORES.add(self)

    def reset(self) -> None:
        """Free the lock: a thread that holds it does not exist in a forked child."""
        self._lock = threading.Lock()

    def update(self, names: Sequence[UUID], change: Change, now: int) -> None:
        """See `ThrottleStore.update`."""
        with self._lock:
            changed = change({name: self._buckets.get(name, Bucket()) for name in names})
            for name, bucket in changed.items():
                self._buckets[name] = bucket
                self._buckets.move_to_end(name)
                if bucket.expires_at <= now:
                    del self._buckets[name]
            while len(self._buckets) > self._most:
                self._buckets.popitem(last=False)

    def __len__(self) -> int:
        return len(self._buckets)


_STORES: WeakSet[MemoryThrottle] = WeakSet()


def _reset_in_child() -> None:
    for store in _STORES:
        store.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_in_child)
