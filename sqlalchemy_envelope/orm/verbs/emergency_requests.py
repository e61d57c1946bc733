"""The requests for emergency access to an owner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy_envelope.orm.sessions.emergency_request import EmergencyRequest
from sqlalchemy_envelope.orm.tables.emergency_rows import EmergencyRows, time_of

if TYPE_CHECKING:
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.tables.owners import Place


def requests_of(desk: Desk, place: Place) -> tuple[EmergencyRequest, ...]:
    """The requests for emergency access to an owner, the oldest first. One query for each class of them."""
    found = []
    for one in place.owner_class.emergencies:
        rows = EmergencyRows(desk.session, one, desk.policy.seals)
        for person_key, row in rows.load(place.primary_key, requested=True):
            since = row.requested_at or 0
            times = time_of(since), time_of(since + row.wait)
            found.append(EmergencyRequest(one.to.owner_class.name, person_key, *times))
    return tuple(sorted(found, key=lambda request: request.requested_at))
