"""The keys of an owner that other owners can open, read from the rows alone.

The search follows wraps as an unlock does, but without a key: a wrap leads from the wrapping key to the
wrapped key. It also follows the granting rows, so that it finds the obstacle: a right without a wrap, or with
a wrap of another key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy_envelope.keys.model import KeyState, Purpose
from sqlalchemy_envelope.orm.sharing.beyond import MAX_LEVELS
from sqlalchemy_envelope.orm.sharing.rights import RightStore
from sqlalchemy_envelope.orm.tables.owners import places_by_class

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.keys.model import KeyId, StoredKey
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.current.names import Names
    from sqlalchemy_envelope.orm.sharing.rights import Right
    from sqlalchemy_envelope.orm.tables.owners import GrantClass, OwnerClass, Place

    Held = Mapping[Place, Collection[KeyId]]


class Way(NamedTuple):
    """A way through granting rows to an owner.

    Attributes:
        right: the last row on the way.
        opens: the owner's keys that the way opens.
        blocked: the first row on the way that opens nothing.
    """

    right: Right
    opens: frozenset[KeyId]
    blocked: Right | None


def ways_to(desk: Desk, names: Names, held: Held, target: Place, scope: str) -> list[Way]:
    """Return all ways from owners with held keys to another owner's key of a scope.

    On each level, it sends a query for each class of grants and each class of owners.
    """
    found: list[Way] = []
    leading = _leading_to(target.owner_class)
    seen: dict[OwnerId, bool] = {place.owner: True for place in held}
    frontier: dict[Place, tuple[frozenset[KeyId], Right | None]]
    frontier = {place: (frozenset(opens), None) for place, opens in held.items() if place != target}
    for _ in range(MAX_LEVELS):
        reached: dict[Place, list[Way]] = {}
        for grant in _grants_to(frontier):
            if grant.of.owner_class not in leading:
                continue
            mine = {one.primary_key: one for one in frontier if one.owner_class is grant.to.owner_class}
            for right in RightStore(desk.session, grant, desk.policy.seals).load_rights(list(mine)):
                of = names.place(grant.of.owner_class, right.of)
                way = _along(right, *frontier[mine[right.to]])
                if of == target and grant.scope in (None, scope):
                    found.append(way)
                elif grant.scope is None and of != target and _is_news(way, seen.get(of.owner)):
                    reached.setdefault(of, []).append(way)
        frontier = _opened(desk, reached)
        seen.update((place.owner, blocked is None) for place, (_, blocked) in frontier.items())
        if not frontier:
            break
    return found


def _is_news(way: Way, was_open: bool | None) -> bool:
    """Tell whether a way leads further than the earlier ways to the same owner."""
    return was_open is None or (not was_open and bool(way.opens))


def _leading_to(target: OwnerClass) -> set[OwnerClass]:
    """Return the classes whose keys may lead to an owner of this class through grants, including itself."""
    leading, frontier = {id(target): target}, [target]
    while frontier:
        onward = [one.to.owner_class for way in frontier for one in way.grants_of]
        frontier = [one for one in onward if id(one) not in leading]
        leading.update((id(one), one) for one in frontier)
    return set(leading.values())


def _grants_to(frontier: Iterable[Place]) -> list[GrantClass]:
    return list({id(grant): grant for place in frontier for grant in place.owner_class.grants_to}.values())


def _along(right: Right, opens: frozenset[KeyId], blocked: Right | None) -> Way:
    if blocked is not None:
        return Way(right, frozenset(), blocked)
    mine = frozenset(
        one.key_id for one in right.wraps if not one.is_pending and one.recipient_key_id in opens
    )
    return Way(right, mine, None if mine else right)


def _opened(
    desk: Desk, reached: Mapping[Place, list[Way]]
) -> dict[Place, tuple[frozenset[KeyId], Right | None]]:
    """Return the keys of each owner that all ways to it open together, or the row in the way if none."""
    found: dict[Place, tuple[frozenset[KeyId], Right | None]] = {}
    for owner_class, some in places_by_class(reached).items():
        rows: dict[OwnerId, list[StoredKey]] = {}
        for one in desk.keys(owner_class).load([place.primary_key for place in some]):
            if one.error is None:
                rows.setdefault(one.owner, []).append(one.stored)
        for place in some:
            granted = {key_id for way in reached[place] for key_id in way.opens}
            opens = closure(rows.get(place.owner, ()), granted)
            blocked = None if opens else next(way.blocked or way.right for way in reached[place])
            found[place] = opens, blocked
    return found


def closure(keys: Sequence[StoredKey], opens: Iterable[KeyId]) -> frozenset[KeyId]:
    """Return an owner's keys that open from these keys: each row names the key that wraps it."""
    there = {key.key_id: key for key in keys if key.state is not KeyState.DESTROYED}
    found = {key_id for key_id in opens if key_id in there}
    more: set[Any] = found
    while more:
        more = {
            key.key_id
            for key in there.values()
            if key.key_id not in found and key.wrapped is not None and key.wrapping_key_id in found
        }
        found |= more
    return frozenset(found)


def active_roots(keys: Iterable[StoredKey]) -> list[KeyId]:
    """Return the ids of an owner's active root keys, which the owner's slots open."""
    return [key.key_id for key in keys if key.purpose is Purpose.ROOT and key.state is KeyState.ACTIVE]
