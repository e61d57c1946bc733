"""A sealed write epoch as its maker holds it: a key, until when, and for how many values."""

import time
from dataclasses import dataclass

from sqlalchemy_envelope.keys.model import OpenedKey


@dataclass
class WriteEpoch:
    """A write epoch that is still good.

    Attributes:
        values_left: one number, which the copies of an epoch share: they all use up the same key.
    """

    opened: OpenedKey
    until: float
    values_left: list[int]

    def lasts(self, values: int) -> bool:
        """Whether so many values may still be encrypted under it; none may when they were counted before."""
        return (not values or values <= self.values_left[0]) and time.monotonic() < self.until
