"""The owners that a server keeps: for a time, for a number of uses, and up to a number of owners.

If an owner over a limit is in use at this moment, its keys stay, and are opened anew before their next use.
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
"""The seconds for which an owner stays after its last use, whatever the limits: another thread may be reading
its rows."""


class KeptOwners:
    """The owners whose keys are kept, with the time and number of their uses.

    Attributes:
        stale: the owners to be opened anew before their next use, each with the moment since when.
        moment: a number that grows whenever owners become stale.
        whole: the owners with all their keys in memory.
        granted: the owners reached through a grant: their values are read, but not written.
        guard: held while owners are looked up and noted as used, so that no owner is dropped in between.
    """

    def __init__(self, cache: CachePolicy) -> None:
        self.stale: dict[OwnerId, int] = {}
        self.moment = 0
        self.whole: set[OwnerId] = set()
        self.granted: set[OwnerId] = set()
        self.guard = Lock()
        self._cache = cache
        self._used: OrderedDict[OwnerId, tuple[float, float]] = OrderedDict()
        """For each owner, the start of its keeping and the time of its last use; the latest at the end."""
        self._uses: dict[OwnerId, int] = {}
        self._swept = time.monotonic()

    def touch(self, owner: OwnerId, uses: int = 1) -> None:
        """Note that an owner's keys are used, and how many times."""
        now = time.monotonic()
        since, _ = self._used.pop(owner, (now, now))
        self._used[owner] = since, now
        self._uses[owner] = self._uses.get(owner, 0) + uses

    def renew(self, owner: OwnerId, moment: int | None = None) -> None:
        """Start an owner's time and uses again, after its keys were opened anew.

        Args:
            owner: the owner.
            moment: the moment before its keys were loaded. If it became stale later, it remains stale.
        """
        if moment is None or self.stale.get(owner, 0) <= moment:
            self.stale.pop(owner, None)
        self._used.pop(owner, None)
        self._uses.pop(owner, None)

    def forget(self, owner: OwnerId) -> None:
        """Forget an owner whose keys are no longer kept."""
        self.renew(owner)
        self.whole.discard(owner)
        self.granted.discard(owner)

    def distrust(self, owners: Collection[OwnerId]) -> None:
        """Have these owners opened anew before their next use."""
        self.moment += 1
        self.stale.update(dict.fromkeys(owners, self.moment))
        self.whole.difference_update(owners)

    def clear(self) -> None:
        """Forget all owners. In a forked child, a thread of the parent may hold the lock: make a new lock."""
        self.guard = Lock()
        for known in (self.stale, self.whole, self.granted, self._used, self._uses):
            known.clear()

    def is_sweep_due(self) -> bool:
        """Tell whether it is time to look for owners over a limit. Called with each statement."""
        now = time.monotonic()
        if now - self._swept <= 1.0 and len(self._used) <= self._cache.keys:
            return False
        self._swept = now
        return True

    def over_limit(self) -> list[OwnerId]:
        """Return the owners to drop. Owners over a limit that are in use become stale instead."""
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
