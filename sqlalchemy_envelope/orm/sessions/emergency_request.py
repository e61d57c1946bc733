"""A request for emergency access, as an owner sees it."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class EmergencyRequest:
    """Somebody has asked to open an owner's keys. The owner can cancel it with `cancel_emergency`.

    Attributes:
        person_class: the name of the person's class.
        person_id: the primary key of the person.
        requested_at: when the person asked, in UTC.
        opens_at: when the waiting time is over, in UTC.
    """

    person_class: str
    person_id: tuple[Any, ...]
    requested_at: dt.datetime
    opens_at: dt.datetime
