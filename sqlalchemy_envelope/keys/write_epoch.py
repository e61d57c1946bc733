"""A sealed write epoch at its maker's: the key, until when, and for how many values more."""

import time
from dataclasses import dataclass

from sqlalchemy_envelope.keys.model import OpenedKey


@dataclass
class WriteEpoch:
    """A write epoch that its maker still encrypts under.

    Attributes:
        until: the end, in seconds of `time.monotonic()`.
        values_left: a list of one number. The copies of an epoch share it, because they use up the same key.
    """

    opened: OpenedKey
    until: float
    values_left: list[int]

    def lasts(self, values: int) -> bool:
        """Whether so many more values may be encrypted under it.

        Args:
            values: the number of values; 0 if they were counted before.
        """
        return (not values or values <= self.values_left[0]) and time.monotonic() < self.until
