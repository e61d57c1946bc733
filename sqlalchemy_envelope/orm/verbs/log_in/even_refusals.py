"""Refusals that take the same time: a wrong secret, no account, no keys, no secret, an older profile.

Each costs one key derivation under the envelope's profile, and ends after a time that all of them share: that
of a slow derivation and of slow queries among the last ones in this process, and some random milliseconds. A
caller who was faster pauses. So the pause hides a slot under a cheaper profile, and which queries were sent.
It does not hide a slot under a costlier profile, nor a machine that is slower than it was a moment ago.
"""

from __future__ import annotations

import random
import time
from collections import deque
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy_envelope.crypto.argon2id import KdfSalt
from sqlalchemy_envelope.exceptions import UnlockError
from sqlalchemy_envelope.orm.verbs.steps import Derivation, Pause

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy_envelope.crypto.argon2id import KdfProfile
    from sqlalchemy_envelope.crypto.secret import Hidden
    from sqlalchemy_envelope.orm.verbs.steps import Steps, Work

T = TypeVar("T")

_SAMPLES = 128
_JITTER = 0.01
"""Seconds: the least range of the random part. What differs after the pause is some microseconds."""
_JITTER_SHARE = 0.1
"""The range of the random part, as a share of the whole."""


class Pace:
    """How long refusals of one envelope take in this process, from the last attempts of everybody."""

    def __init__(self) -> None:
        self._derivations: deque[float] = deque(maxlen=_SAMPLES)
        self._queries: deque[float] = deque(maxlen=_SAMPLES)

    @property
    def is_known(self) -> bool:
        """Whether any derivation was timed."""
        return bool(self._derivations)

    def note_derivation(self, seconds: float) -> None:
        """Note a derivation under the envelope's profile."""
        self._derivations.append(seconds)

    def note_queries(self, seconds: float) -> None:
        """Note all else that an attempt at an account did."""
        self._queries.append(seconds)

    def seconds(self) -> float:
        """How long the next refusal takes."""
        # The times of queries spread more widely than those of derivations, and only some kinds send them.
        whole = _slow(tuple(self._derivations), 2) + _slow(tuple(self._queries), 8)
        return whole + random.uniform(0, max(_JITTER, whole * _JITTER_SHARE))  # noqa: S311 - noise, no key


def _slow(samples: Collection[float], most: int) -> float:
    """The slowest of these, but at most so many times the median: a single outlier would slow all others."""
    return min(max(samples), most * median(samples)) if samples else 0.0


class _Watch:
    """What an attempt spent its time on."""

    def __init__(self, pace: Pace, profile: KdfProfile) -> None:
        self._pace = pace
        self._profile = profile
        self._began = time.perf_counter()
        self._outside = 0.0
        self._derived = 0.0
        self.has_derived = False

    @property
    def queries(self) -> float:
        """The seconds for all but derivations, and the waits for them."""
        return time.perf_counter() - self._began - self._outside

    @property
    def spent(self) -> float:
        """The seconds without waits for a place."""
        return self.queries + self._derived

    def watched(self, steps: Steps[T]) -> Steps[T]:
        """The same steps, timed."""
        go_on: Any = steps.send
        answer: Any = None
        try:
            while True:
                work: Work = go_on(answer)
                began = time.perf_counter()
                try:
                    go_on, answer = steps.send, (yield work)
                except Exception as error:  # noqa: BLE001 - the steps raise it again
                    go_on, answer = steps.throw, error
                self._note(work, time.perf_counter() - began)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _note(self, work: Work, seconds: float) -> None:
        self._outside += seconds
        if isinstance(work, Derivation):
            took = seconds if work.seconds is None else work.seconds
            self._derived += took
            self.has_derived = True
            if work.salt.profile == self._profile:
                self._pace.note_derivation(took)


def even(
    pace: Pace,
    profile: KdfProfile,
    prepared: Hidden[bytes],
    opening: Steps[T],
    *,
    of_account: bool = True,
) -> Steps[T]:
    """Open something with a secret; a refusal takes as long as every other.

    Rows that were altered are told at once: nothing is derived for them, and whoever altered them knows that
    the account exists.

    Args:
        of_account: whether the account exists, so that queries are sent for it.
    """
    watch = _Watch(pace, profile)
    try:
        opened = yield from watch.watched(opening)
    except UnlockError:
        if of_account:
            pace.note_queries(watch.queries)
        if not watch.has_derived or not pace.is_known:
            yield from watch.watched(_waste_a_derivation(prepared, profile))
        pause = pace.seconds() - watch.spent
        if pause > 0:
            yield Pause(pause)
        raise
    pace.note_queries(watch.queries)
    return opened


def _waste_a_derivation(prepared: Hidden[bytes], profile: KdfProfile) -> Steps[None]:
    kek = yield Derivation(prepared, KdfSalt.generate(profile))
    kek.wipe()
