"""Which owners a server keeps: for a time, a number of uses, and up to a number of owners.

Of an owner over a limit that is in use at this moment the keys stay; they are opened anew before their next
use.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.orm.current.providers import CachePolicy

_IN_USE = 5.0
"""Seconds for which an owner that was just needed is kept, whatever the limits say: another thread may be
reading its rows."""


class KeptOwners:
    """The owners whose keys are kept, with when and how often they were used.

    Attributes:
        stale: those to be opened anew before their next use.
        whole: those of whom every key is here.
        granted: those to whom a grant leads: they are read, and not written.
        guard: held while owners are looked up and noted as used, so that none is let go of in between.
    """

    def __init__(self, cache: CachePolicy) -> None:
        self.stale: set[OwnerId] = set()
        self.whole: set[OwnerId] = set()
        self.granted: set[OwnerId] = set()
        self.guard = Lock()
        self._cache = cache
        self._used: OrderedDict[OwnerId, tuple[float, float]] = OrderedDict()
        """Since when each is kept, and when it was used last; the latest at the end."""
        self._uses: dict[OwnerId, int] = {}
        self._swept = time.monotonic()

    def touch(self, owner: OwnerId, uses: int = 1) -> None:
        """An owner's keys are used, so many times."""
        now = time.monotonic()
        since, _ = self._used.pop(owner, (now, now))
        self._used[owner] = since, now
        self._uses[owner] = self._uses.get(owner, 0) + uses

    def renew(self, owner: OwnerId) -> None:
        """An owner's keys were opened anew: its time and uses begin again."""
        self.stale.discard(owner)
        self._used.pop(owner, None)
        self._uses.pop(owner, None)

    def forget(self, owner: OwnerId) -> None:
        """An owner's keys are kept no more."""
        self.renew(owner)
        self.whole.discard(owner)
        self.granted.discard(owner)

    def distrust(self, owners: Collection[OwnerId]) -> None:
        """These are to be opened anew before their next use."""
        self.stale.update(owners)
        self.whole.difference_update(owners)

    def clear(self) -> None:
        """Nobody is kept. In a forked child the lock may be held by a thread that is not here."""
        self.guard = Lock()
        for known in (self.stale, self.whole, self.granted, self._used, self._uses):
            known.clear()

    def is_sweep_due(self) -> bool:
        """Whether it is time to look for owners over a limit; asked with each statement."""
        now = time.monotonic()
        if now - self._swept <= 1.0 and len(self._used) <= self._cache.keys:
            return False
        self._swept = now
        return True

    def over_limit(self) -> list[OwnerId]:
        """The owners to let go of. One that is in use is noted as to be opened anew."""
        now, used = self._swept, list(self._used.items())
        due = [owner for owner, (since, _) in used if self._is_spent(owner, now - since)]
        busy = {owner for owner, (_, last) in used if now - last <= _IN_USE}
        self.distrust([owner for owner in due if owner in busy])
        gone = [owner for owner in due if owner not in busy]
        over = len(used) - len(gone) - self._cache.keys
        if over > 0:
            spent = set(gone)
            rest = [owner for owner, _ in used if owner not in busy and owner not in spent]
            gone += rest[:over]  # the longest unused first
        return gone

    def _is_spent(self, owner: OwnerId, age: float) -> bool:
        return age > self._cache.seconds or self._uses.get(owner, 0) > self._cache.uses
