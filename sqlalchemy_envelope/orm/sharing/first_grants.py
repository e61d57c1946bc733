"""The first grants of owners whose keys this transaction made: all of them at once.

Nobody else sees such keys before the commit, so that nobody can have been removed from them, and nothing has
to be locked, compared or retired. What is left to do is to seal: one query for the recipients of each class,
one INSERT for the grants of each class and one UPDATE for their counts, however many owners there are.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sqlalchemy_envelope.keys.grants import pending_grant, sealed_grant
from sqlalchemy_envelope.keys.model import GrantState, KeyState, Purpose
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.sharing.beyond import renew_left
from sqlalchemy_envelope.orm.sharing.epochs import roots_of
from sqlalchemy_envelope.orm.sharing.rollbacks import note_end
from sqlalchemy_envelope.orm.tables.grant_rows import GrantStore
from sqlalchemy_envelope.orm.tables.key_grant import grants_can_circle
from sqlalchemy_envelope.orm.tables.key_rows import KeyStore
from sqlalchemy_envelope.orm.tables.session_notes import known_page, page_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.keyring import Keyring, OwnerId
    from sqlalchemy_envelope.keys.model import KeyId, OpenedKey, StoredGrant
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.sharing.epochs import Recipient
    from sqlalchemy_envelope.orm.tables.owners import GrantClass, OwnerClass, Place

Shared = dict[tuple["GrantClass", "Place"], "list[Recipient]"]
"""Who joined, by whose key is granted."""


@dataclass(slots=True)
class _FirstKeys:
    """A page of `SessionNotes`: the owners whose first keys the present transaction makes."""

    owners: set[OwnerId] = field(default_factory=set)


def note_first_keys(session: Session, places: Iterable[Place]) -> None:
    """The session's present transaction makes the first keys of these owners."""
    owners = {place.owner for place in places}
    known = page_of(session, _FirstKeys).owners
    known |= owners
    note_end(session, lambda: known.difference_update(owners))


def made_first_keys(session: Session, owner: OwnerId) -> bool:
    """Whether the session's present transaction made the first keys of this owner."""
    page = known_page(session, _FirstKeys)
    return page is not None and owner in page.owners


def grant_first(session: Session, policy: Policy, shared: Shared) -> Shared:
    """Grant the keys that this transaction made, where they are open here; the others, which are to be
    granted one by one."""
    page = known_page(session, _FirstKeys)
    if page is None or not page.owners:
        return shared
    known = page.owners
    rest: Shared = {}
    mine: dict[OwnerClass, list[tuple[Keyring, Place, OpenedKey, list[Recipient]]]] = {}
    for (grant, place), recipients in shared.items():
        keyring = _keyring(session, place.owner) if place.owner in known and _is_plain(grant) else None
        keys = [] if keyring is None else _granted(keyring, grant, place)
        if keyring is None or not keys:
            rest[grant, place] = recipients
        else:
            some = mine.setdefault(place.owner_class, [])
            some += [(keyring, place, key, recipients) for key in keys]
    for owner_class, some in mine.items():
        renew_left(session, policy, some[0][0], [one for _, _, _, recipients in some for one in recipients])
        counts = _seal(session, policy, [(key, recipients) for _, _, key, recipients in some])
        KeyStore(session, owner_class, policy.seals).add_granted(list(counts.items()))
        for keyring, place, key, _ in some:
            # Two classes may grant one key: as the keyring knows it now, and as it is stored.
            stored = keyring.stored(key.stored.key_id) or key.stored
            granted = key.stored.granted + counts[stored.key_id]
            keyring.add_stored(place.owner, [replace(stored, granted=granted)])
    return rest


def _is_plain(grant: GrantClass) -> bool:
    """Whether granting needs no more than a seal: no epoch for who joins, and no search for circles."""
    return grant.history == "shared" and not (grant.scope is None and grants_can_circle(grant))


def _keyring(session: Session, owner: OwnerId) -> Keyring | None:
    rings = (one.keyring_for(owner, session) for one in context.unlocked_sessions(session))
    return next((one for one in rings if one is not None), None)


def _granted(keyring: Keyring, grant: GrantClass, place: Place) -> list[OpenedKey]:
    """The keys that a grant of this class gives: the active root key, or every key of the scope."""
    purpose = Purpose.ROOT if grant.scope is None else Purpose.DATA
    opened = [
        keyring.open(key.key_id)
        for key in keyring.keys_of(place.owner)
        if key.purpose is purpose
        and key.scope == (grant.scope or "")
        and (purpose is Purpose.DATA or key.state is KeyState.ACTIVE)
    ]
    return [one for one in opened if one is not None]


def _seal(
    session: Session, policy: Policy, keys: Sequence[tuple[OpenedKey, list[Recipient]]]
) -> Counter[KeyId]:
    """Seal each key to its recipients, pending for those without keys; how many grants were made of each."""
    roots = roots_of(session, policy, [one for _, to in keys for one in to], strict=True)
    made: dict[GrantClass, list[tuple[tuple[object, ...], StoredGrant]]] = {}
    for key, to in keys:
        for one in to:
            row, recipients = one.grant_class.granting_row(one.row_key), one.grant_class.to.owner_class
            root = roots.get((recipients, one.primary_key))
            grant = pending_grant(key.stored.key_id, row) if root is None else sealed_grant(key, row, root)
            grant = replace(grant, recipient=recipients.reference_of(one.primary_key))
            made.setdefault(one.grant_class, []).append((one.row_key, grant))
    for grant_class, grants in made.items():
        GrantStore(session, grant_class, policy.seals).insert(grants)
        states = Counter(grant.state for _, grant in grants)
        for state, event in ((GrantState.SEALED, "grant_sealed"), (GrantState.PENDING, "grant_pending")):
            if states[state]:
                policy.emit(AuditEvent(event, grant_class.of.owner_class.name, count=states[state]))
    return Counter(grant.key_id for grants in made.values() for _, grant in grants)
