"""The tickets of those who can read an owner's values: they may carry the owner's keys.

A ticket carries every key that a grant leads to, and its row does not tell which. So where a key is
destroyed, all tickets of its readers end: they log in again.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.verbs.tickets import revoke_tickets_of_many

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass, Place


def revoke_readers_tickets(desk: Desk, places: Iterable[Place]) -> int:
    """Revoke every ticket of the owners that grants lead to from these, and return their number.

    Call it while the owners are locked, and before the grants are deleted.
    """
    return sum(revoke_tickets_of_many(desk, *one) for one in _by_class(readers_of(desk, places)).items())


def readers_of(desk: Desk, places: Iterable[Place]) -> set[Place]:
    """The owners that were granted a key of these; and those that were granted the root key of such an owner,
    as the members of a group in a group."""
    start = set(places)
    found: set[Place] = set()
    new = _recipients(desk, start, scoped=True) - start
    while new:
        found |= new
        # The key of a scope leads to that scope alone, and not to what its owner was granted.
        new = _recipients(desk, new, scoped=False) - start - found
    return found


def _recipients(desk: Desk, places: Iterable[Place], *, scoped: bool) -> set[Place]:
    names = Names(desk.session)
    found: set[Place] = set()
    for owner_class, primary_keys in _by_class(places).items():
        grants = [one for one in owner_class.grants_of if scoped or one.scope is None]
        keys = desk.keys(owner_class).load(primary_keys) if grants else []
        key_ids = [one.stored.key_id for one in keys]
        for grant in grants:
            rows = desk.grants(grant).load_of(key_ids)
            found.update(names.place(grant.to.owner_class, recipient) for *_, recipient in rows)
    return found


def _by_class(places: Iterable[Place]) -> dict[OwnerClass, list[tuple[Any, ...]]]:
    found = defaultdict(list)
    for place in places:
        found[place.owner_class].append(place.primary_key)
    return found
