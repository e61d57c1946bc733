"""The server's shares of emergency accesses, which are moved when the server key changes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy_envelope.keys.emergency import dated
from sqlalchemy_envelope.orm.tables.emergency_rows import EmergencyRows
from sqlalchemy_envelope.orm.tables.owners import Place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy_envelope.keys.emergency import StoredEmergency
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.tables.owners import EmergencyClass, OwnerClass

    PrimaryKey = tuple[Any, ...]


class MovedShare(NamedTuple):
    """A row of emergency access as it was read, and with its server's share under the active server key."""

    emergency: EmergencyClass
    owner_key: PrimaryKey
    person_key: PrimaryKey
    old: StoredEmergency
    new: StoredEmergency

    def write(self, desk: Desk) -> bool:
        """Write the row, unless somebody else changed it in the meantime; tells whether it did."""
        rows = EmergencyRows(desk.session, self.emergency, desk.policy.seals)
        return rows.replace(self.owner_key, self.person_key, self.old, self.new)


def rewrap_shares(desk: Desk, owner_class: OwnerClass) -> int:
    """Wrap the server's shares under the active server key, for a class of owners; return their number."""
    count = 0
    for emergency in owner_class.emergencies:
        moved = moved_shares(desk, emergency, stale_only=False)
        count += sum(share.write(desk) for share in moved)
    return count


def moved_shares(
    desk: Desk, emergency: EmergencyClass, of: Sequence[PrimaryKey] | None = None, *, stale_only: bool = True
) -> list[MovedShare]:
    """The server's shares of these owners, or of all, wrapped under the active server key; not yet written.

    Args:
        stale_only: leave out the shares that are under the active server key.

    Raises:
        TamperedKeyError: a row is not as the application wrote it.
        ProviderError: a share's server key is not configured.
    """
    seals = desk.policy.seals
    if seals.server_keys is None:
        return []
    found = EmergencyRows(desk.session, emergency, seals).load_all(of)
    if stale_only:
        # A share, as a row seal, begins with the id of its server key.
        found = [one for one in found if not seals.is_under_active(one[1].stored.server_share)]
    owners = _references(desk, emergency.of.owner_class, [owner_key for owner_key, _ in found])
    persons = _references(desk, emergency.to.owner_class, [row.person_key for _, row in found])
    moved = []
    for owner_key, (person_key, stored) in found:
        row = replace(stored, owner=owners.get(owner_key, b""), person=persons.get(person_key, b""))
        new = dated(seals.server_keys, row, row.requested_at)
        moved.append(MovedShare(emergency, owner_key, person_key, row, new))
    return moved


def _references(
    desk: Desk, owner_class: OwnerClass, primary_keys: Sequence[PrimaryKey]
) -> dict[PrimaryKey, bytes]:
    """What the keys of these owners are bound to."""
    store = desk.keys(owner_class)
    names = {Place(owner_class, key, store.where).owner: key for key in primary_keys}
    return {names[key.owner]: key.stored.owner_reference for key in store.load(list(names.values()))}
