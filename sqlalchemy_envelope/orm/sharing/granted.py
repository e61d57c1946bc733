"""Load the keys that owners were granted, directly and through other owners, into a keyring, unopened.

Grants lead from owner to owner: from a user to its groups, from a group to larger groups and to the scopes
that its members share with it. They are followed level by level, with one query for each class of grants and
one query for each class of owners, and no owner twice. Either all grants are followed, or only the grants of
given owners (`reach`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy_envelope.exceptions import EnvelopeError, KeyNotFoundError, TamperedKeyError
from sqlalchemy_envelope.keys.grants import way_through
from sqlalchemy_envelope.keys.hierarchy import check_generations, short
from sqlalchemy_envelope.keys.model import KeyState, Purpose
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.sharing.beyond import MAX_LEVELS
from sqlalchemy_envelope.orm.sharing.rights import gives
from sqlalchemy_envelope.orm.tables.owners import Place, places_by_class

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy_envelope.keys.keyring import Keyring, OwnerId
    from sqlalchemy_envelope.keys.model import StoredGrant
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.tables.owners import GrantClass, OwnerClass
    from sqlalchemy_envelope.orm.tables.stored_rows import OwnedKey

Places = dict["OwnerId", Place]
Owners = Mapping["OwnerClass", Collection[tuple[Any, ...]]]
"""Owners by class and primary key."""

KEYS_WERE_DELETED = "Rows of keys were deleted: restore them from a backup."
"""The cure for a key whose wrapping key is missing."""


class Opening(NamedTuple):
    """The result of following grants.

    Attributes:
        places: the owners that were reached through a root key.
        grants: the grants that led to keys.
        scoped: the owners of granted scopes, by class and primary key.
    """

    places: Places
    grants: list[tuple[GrantClass, StoredGrant]]
    scoped: dict[OwnerClass, dict[tuple[Any, ...], None]]


def owners_of(found: Opening) -> Owners:
    """The owners of the keys that were found, by class and primary key."""
    owners = {of: dict(keys) for of, keys in found.scoped.items()}
    for place in found.places.values():
        owners.setdefault(place.owner_class, {})[place.primary_key] = None
    return owners


def follow_grants(
    desk: Desk,
    keyring: Keyring,
    start: Iterable[Place],
    within: Owners | None = None,
    levels: int = MAX_LEVELS,
    rows: Iterable[OwnedKey] = (),
) -> Opening:
    """Load the keys that these owners were granted, directly or through others, into the keyring, unopened.

    Args:
        desk: the session with its policy.
        keyring: the keyring that takes the keys.
        start: the owners to start from.
        within: the owners whose granted keys are loaded; None for all.
        levels: the largest number of grants in a row.
        rows: every key of some of the owners that may be reached, if those were read already.
    """
    first = {place.owner: place for place in start}
    found = _Walk(desk, keyring, within, _by_owner(rows)).follow(first, levels)
    beyond = found.places.keys() - first.keys()
    if any(_is_ahead(keyring, owner) for owner in beyond):
        found = _Walk(desk, keyring, within, {}).follow(first, levels)
    return found


def _is_ahead(keyring: Keyring, owner: OwnerId) -> bool:
    """Whether a grant led to an owner, but no grant led to its active root key.

    Then an epoch was committed after the grants were read and before the keys were read.
    """
    root = keyring.current(owner, Purpose.ROOT)
    return root is not None and not keyring.is_open(root.key_id) and not keyring.has_way(root.key_id)


class _Walk:
    """Follows grants, level by level."""

    def __init__(
        self, desk: Desk, keyring: Keyring, within: Owners | None, rows: Mapping[OwnerId, list[OwnedKey]]
    ) -> None:
        self._desk = desk
        self._keyring = keyring
        self._within = within
        self._rows = rows
        self._found = Opening({}, [], {})

    def follow(self, start: Places, levels: int) -> Opening:
        """Follow the grants of these owners, and return all that they lead to."""
        self._found.places.update(start)
        frontier = list(start.values())
        for _ in range(levels):
            frontier = self._step(frontier)
            if not frontier:
                break
            for some in places_by_class(frontier).values():
                self._load(some)
        return self._found

    def _step(self, frontier: list[Place]) -> list[Place]:
        """The owners that grants to these owners lead to, without owners that were reached before."""
        reached: list[Place] = []
        for owner_class, places in places_by_class(frontier).items():
            keys = [place.primary_key for place in places]
            for grant_class in owner_class.grants_to:
                of = None if self._within is None else list(self._within.get(grant_class.of.owner_class, ()))
                if of is None or of:
                    reached += self._follow(grant_class, keys, of)
        return reached

    def _follow(
        self, grant_class: GrantClass, recipients: list[tuple[Any, ...]], of: list[tuple[Any, ...]] | None
    ) -> list[Place]:
        found, owner_class, reached = self._found, grant_class.of.owner_class, []
        where = Names(self._desk.session).where(owner_class)
        for grant, broken, owned in self._desk.grants(grant_class).load_to(recipients, of):
            if not self._take(grant_class, grant, owned, broken or owned.error):
                continue
            # Also for a refused owner, so that values under its keys are recognised, and the reason for the
            # refusal is told.
            if grant_class.scope is None and owned.owner not in found.places:
                place = found.places[owned.owner] = Place(owner_class, owned.primary_key, where)
                reached.append(place)
        return reached

    def _take(
        self, grant_class: GrantClass, grant: StoredGrant, owned: OwnedKey, error: EnvelopeError | None
    ) -> bool:
        """Take in a key and the grant that leads to it, or refuse the key.

        Returns:
            False if the grant leads to no key yet.
        """
        keyring, name, way = self._keyring, grant_class.of.owner_class.name, None
        try:
            if error is None and not gives(grant_class, owned.stored):
                error = TamperedKeyError(f"A stored grant of {name} grants another key than its class may.")
            way = None if error is not None else way_through(grant, owned.stored)
            keyring.add_stored(owned.owner, [owned.stored] if owned.owner not in self._found.places else [])
        except TamperedKeyError as altered:
            error = error or altered
        if error is not None:
            self._desk.emit(
                AuditEvent("grant_refused", name, key_id=short(owned.stored), owner_id=owned.primary_key)
            )
            keyring.refuse(owned.owner, error, altogether=owned.error is not None)
            return True
        if way is None:
            return False
        keyring.add_way(owned.stored.key_id, way)
        self._found.grants.append((grant_class, grant))
        if grant_class.scope is not None:
            self._found.scoped.setdefault(grant_class.of.owner_class, {})[owned.primary_key] = None
        return True

    def _load(self, places: list[Place]) -> None:
        """Load every key of these owners, of one class, from rows that were read already or with a query."""
        read = [row for place in places for row in self._rows.get(place.owner, ())]
        _take_in(self._desk, self._keyring, places[0].owner_class, read)
        if unread := [place for place in places if place.owner not in self._rows]:
            load_owners(self._desk, self._keyring, unread)


def load_owners(desk: Desk, keyring: Keyring, places: list[Place], *, again: bool = False) -> None:
    """Load every key of these owners, of one class, into the keyring, unopened.

    `again`: the keys were loaded before, so keys without their wrapping key are not refused a second time.
    """
    owner_class = places[0].owner_class
    rows = desk.keys(owner_class).load([place.primary_key for place in places])
    _take_in(desk, keyring, owner_class, rows, again=again)


def load_again(desk: Desk, keyring: Keyring, places: Places, within: Owners | None = None) -> Opening:
    """Load the keys and the granted keys of these owners again, as they are now.

    Args:
        desk: the session with its policy.
        keyring: the keyring that takes the keys.
        places: the owners.
        within: the owners whose granted keys are loaded; None for all.
    """
    for some in places_by_class(places.values()).values():
        load_owners(desk, keyring, some, again=True)
    return follow_grants(desk, keyring, places.values(), within)


def _by_owner(rows: Iterable[OwnedKey]) -> dict[OwnerId, list[OwnedKey]]:
    by_owner: dict[OwnerId, list[OwnedKey]] = {}
    for one in rows:
        by_owner.setdefault(one.owner, []).append(one)
    return by_owner


def _take_in(
    desk: Desk, keyring: Keyring, owner_class: OwnerClass, found: Iterable[OwnedKey], *, again: bool = False
) -> None:
    """Take in every key of some owners of one class, as stored. `again`: as for `load_owners`."""
    for owner, rows in _by_owner(found).items():
        error = next((row.error for row in rows if row.error is not None), None)
        try:
            keyring.add_stored(owner, [row.stored for row in rows])
            check_generations([row.stored for row in rows])
        except EnvelopeError as altered:
            error = error or altered
        if error is not None:
            desk.emit(AuditEvent("keys_refused", owner_class.name, owner_id=rows[0].primary_key))
            keyring.refuse(owner, error, altogether=True)
        elif not again and _hangs_on_nothing(rows):
            lost = KeyNotFoundError(
                f"A key is wrapped under a root key that its owner does not have. {KEYS_WERE_DELETED}"
            )
            keyring.refuse(owner, lost, altogether=False)


def _hangs_on_nothing(rows: Iterable[OwnedKey]) -> bool:
    """Whether some key of an owner, other than a root key, is wrapped under no key of the owner."""
    keys = [row.stored for row in rows]
    ids = {key.key_id for key in keys}
    return any(
        key.wrapped is None or key.wrapping_key_id not in ids
        for key in keys
        if key.purpose is not Purpose.ROOT and key.state is not KeyState.DESTROYED
    )
