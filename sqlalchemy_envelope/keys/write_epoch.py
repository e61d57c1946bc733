"""A sealed write epoch as its maker holds it: a key, until when, and for how many values."""

import time
from dataclasses import dataclass

from sqlalchemy_envelope.keys.model import OpenedKey


@dataclass
class WriteEpoch:
    """A write epoch that is still good."""

    opened: OpenedKey
    until: float
    values_left: int

    def lasts(self, values: int) -> bool:
        """Whether so many values may still be encrypted under it."""
        return values <= self.values_left and time.monotonic() < self.until
