"""The first grants of owners with keys that this transaction made, all at once.

Nobody else sees such keys before the commit. So nobody can have been removed from them, and nothing has to be
locked, compared or retired. Only the sealing is left: one query for the recipients of each class, one INSERT
for the grants of each class and one UPDATE for their counts, whatever the number of owners.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sqlalchemy_envelope.orm.sharing.beyond import renew_left
from sqlalchemy_envelope.orm.sharing.new_grants import granted_keys, insert_grants, sealed_to
from sqlalchemy_envelope.orm.sharing.recipients import roots_of
from sqlalchemy_envelope.orm.sharing.rollbacks import note_end
from sqlalchemy_envelope.orm.tables.key_grant import grants_can_circle
from sqlalchemy_envelope.orm.tables.session_notes import known_page, page_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.keyring import Keyring, OwnerId
    from sqlalchemy_envelope.keys.model import KeyId, OpenedKey
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.sharing.recipients import Recipient
    from sqlalchemy_envelope.orm.tables.owners import GrantClass, OwnerClass, Place

Shared = dict[tuple["GrantClass", "Place"], "list[Recipient]"]
"""The recipients that joined, by the class of the grants and the owner of the granted key."""


@dataclass(slots=True)
class _FirstKeys:
    """A page of `SessionNotes`: the owners that get their first keys in the present transaction."""

    owners: set[OwnerId] = field(default_factory=set)


def note_first_keys(session: Session, places: Iterable[Place]) -> None:
    """Note that the session's present transaction makes the first keys of these owners."""
    owners = {place.owner for place in places}
    known = page_of(session, _FirstKeys).owners
    known |= owners
    note_end(session, lambda: known.difference_update(owners))


def made_first_keys(session: Session, owner: OwnerId) -> bool:
    """Whether the session's present transaction made the first keys of this owner."""
    page = known_page(session, _FirstKeys)
    return page is not None and owner in page.owners


def grant_first(desk: Desk, shared: Shared) -> Shared:
    """Grant the keys that this transaction made, where they are open here.

    Returns:
        The other shares, which the caller grants one by one.
    """
    page = known_page(desk.session, _FirstKeys)
    if page is None or not page.owners:
        return shared
    known = page.owners
    rest: Shared = {}
    mine: dict[OwnerClass, list[tuple[Keyring, Place, OpenedKey, list[Recipient]]]] = {}
    for (grant, place), recipients in shared.items():
        keyring = desk.keyring_for(place.owner) if place.owner in known and _is_plain(grant) else None
        keys = [] if keyring is None else granted_keys(keyring, grant, place.owner)
        if keyring is None or not keys:
            rest[grant, place] = recipients
        else:
            some = mine.setdefault(place.owner_class, [])
            some += [(keyring, place, key, recipients) for key in keys]
    for owner_class, some in mine.items():
        renew_left(desk, some[0][0], [one for _, _, _, recipients in some for one in recipients])
        counts = _seal(desk, [(key, recipients) for _, _, key, recipients in some])
        desk.keys(owner_class).add_granted(list(counts.items()))
        for keyring, place, key, _ in some:
            # Two classes may grant the same key: start from the row as the keyring knows it by now.
            stored = keyring.stored(key.stored.key_id) or key.stored
            granted = key.stored.granted + counts[stored.key_id]
            keyring.add_stored(place.owner, [replace(stored, granted=granted)])
    return rest


def _is_plain(grant: GrantClass) -> bool:
    """Whether a grant needs no more than a seal: no epoch for new members, and no search for circles."""
    return grant.history == "shared" and not (grant.scope is None and grants_can_circle(grant))


def _seal(desk: Desk, keys: Sequence[tuple[OpenedKey, list[Recipient]]]) -> Counter[KeyId]:
    """Seal each key to its recipients, pending for recipients without keys; count the grants of each key."""
    roots = roots_of(desk, [one for _, to in keys for one in to], strict=True)
    made = [grant for key, to in keys for grant in sealed_to(key, to, roots)]
    insert_grants(desk, made)
    return Counter(grant.key_id for _, _, grant in made)
