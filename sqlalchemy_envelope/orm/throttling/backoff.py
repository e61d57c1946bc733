"""The rules of waiting, without a clock and without a store.

Three times are remembered under a name, and nothing else: when its failures are forgotten, when the next
attempt may be made, and until when it is known. Each failure moves the first two. So what is remembered
decays by itself, and a row whose times are past says nothing and can go.

A clock may be set back, and the clocks of two machines differ. A remembered time that is further away than
the rules allow is therefore brought near: no wait is ever longer than the longest, and none is negative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, isfinite, log2
from typing import NamedTuple
from uuid import UUID

from sqlalchemy_envelope.exceptions import ConfigurationError


class Bucket(NamedTuple):
    """What is remembered under a name. Each field is a time, in milliseconds since 1970; 0 is long ago.

    Attributes:
        forgotten_at: when its failures are forgotten.
        free_at: when the next attempt may be made.
        known_until: of an account at a source, until when the source counts as the owner's.
    """

    forgotten_at: int = 0
    free_at: int = 0
    known_until: int = 0

    @property
    def expires_at(self) -> int:
        """When all of this is past."""
        return max(self)


Buckets = Mapping[UUID, Bucket]
Change = Callable[[Buckets], Buckets]
"""What is to be remembered in place of what is. It may be called more than once, and returns only changes."""


@dataclass(frozen=True)
class Backoff:
    """How long attempts wait after failures.

    Attributes:
        free: the failures that nobody waits for. The next attempt waits `first` seconds, and each one after
            it twice as long.
        first: the first wait, in seconds.
        longest: the longest wait, in seconds.
        forget: the seconds after which one failure is forgotten.

    Raises:
        ConfigurationError: a number is out of range.
    """

    free: int = 5
    first: float = 1.0
    longest: float = 60.0
    forget: float = 300.0

    def __post_init__(self) -> None:
        numbers = (self.free, self.first, self.longest, self.forget)
        if not all(isfinite(number) for number in numbers) or not (
            self.free >= 1 and 0.001 <= self.first <= self.longest and self.forget >= 0.001
        ):
            raise ConfigurationError(
                f"{self!r} cannot be: one failure or more is free, and 0 < first <= longest, 0 < forget."
            )

    @property
    def most(self) -> int:
        """The most failures that are remembered: the wait after them is the longest."""
        return self.free + ceil(log2(self.longest / self.first))

    def wait(self, failures: int) -> int:
        """The milliseconds to wait after so many failures."""
        if failures < self.free:
            return 0
        return round(min(self.longest, self.first * 2.0 ** min(failures - self.free, 64)) * 1000)

    def failures(self, bucket: Bucket, now: int) -> int:
        """How many failures are not forgotten yet."""
        return min(self.most, max(0, -((now - bucket.forgotten_at) // self._forget)))

    def seen(self, bucket: Bucket, now: int) -> Bucket:
        """What is remembered, as it looks by this clock."""
        return bucket._replace(
            forgotten_at=min(bucket.forgotten_at, now + self.most * self._forget),
            free_at=min(bucket.free_at, now + round(self.longest * 1000)),
        )

    def failed(self, bucket: Bucket, now: int) -> Bucket:
        """What is remembered after one more failure."""
        forgotten_at = max(now, bucket.forgotten_at) + self._forget
        after = bucket._replace(forgotten_at=min(forgotten_at, now + self.most * self._forget))
        return after._replace(free_at=now + self.wait(self.failures(after, now)))

    def undone(self, bucket: Bucket, before: Bucket, after: Bucket) -> Bucket:
        """What is remembered once an attempt was no failure: what stood before it, or, where others failed
        meanwhile, one failure less.

        Args:
            before, after: what the attempt found, and what it left.
        """
        if bucket == after:
            return before
        return bucket._replace(forgotten_at=max(0, bucket.forgotten_at - self._forget))

    @property
    def _forget(self) -> int:
        return round(self.forget * 1000)
