"""The owners on the ways from an owner to other owners, by the granting rows alone.

The keys and grants of these owners have to be loaded, so that the keys at the end of the ways open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.orm.sharing.beyond import MAX_LEVELS
from sqlalchemy_envelope.orm.tables.grant_rows import load_granting_rows

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.orm.sharing.granted import Owners
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass, Place

    Owner = tuple[OwnerClass, tuple[Any, ...]]


def is_straight(start: OwnerClass, owner_class: OwnerClass) -> bool:
    """Whether every way to an owner of this class is a single step.

    Then only the owner's own grants to an owner of the first class lead there.
    """
    return all(one.to.owner_class is start for one in owner_class.grants_of) and not start.grants_with(None)


def classes_beyond(start: OwnerClass) -> list[OwnerClass]:
    """The classes of owners that grants may lead to from an owner of this class."""
    found: dict[OwnerClass, None] = {}
    walk = [start]
    for one in walk:  # grows while it is walked
        for grant in one.grants_to:
            found[grant.of.owner_class] = None
            if grant.scope is None and grant.of.owner_class not in walk:
                walk.append(grant.of.owner_class)
    return list(found)


def owners_between(session: Session, start: Place, targets: Owners) -> Owners:
    """The target owners, and every owner on a way from the first owner to them.

    Each level sends one query for each class of grants.
    """
    walk = [(of, key) for of, keys in targets.items() for key in keys]
    steps, first = steps_from(session, start, set(targets)), (start.owner_class, start.primary_key)
    found: dict[OwnerClass, dict[tuple[Any, ...], None]] = {}
    for of, key in walk:  # grows while it is walked
        if key not in found.get(of, {}):
            found.setdefault(of, {})[key] = None
            walk += [one for one in steps.get((of, key), ()) if one != first]
    return found


def steps_from(
    session: Session, start: Place, targets: Collection[OwnerClass] | None = None
) -> dict[Owner, list[Owner]]:
    """Every owner that granting rows lead to from this owner, each with the recipients that the rows name.

    Args:
        session: the session to query.
        start: the owner where the ways begin.
        targets: the classes of owners to find ways to. Grants of a scope count for these classes only. None
            for every way of root keys.
    """
    leading = None if targets is None else _leading_to(targets)
    steps: dict[Owner, list[Owner]] = {}
    frontier = {start.owner_class: {start.primary_key}}
    seen = {(start.owner_class, start.primary_key)}
    for _ in range(MAX_LEVELS):
        reached: dict[OwnerClass, set[tuple[Any, ...]]] = {}
        for to, keys in frontier.items():
            for grant in to.grants_to:
                of, ends = grant.of.owner_class, grant.scope is not None
                if (ends and of not in (targets or ())) or (leading is not None and of not in leading):
                    continue
                for owner_key, key in load_granting_rows(session, grant, list(keys)):
                    steps.setdefault((of, owner_key), []).append((to, key))
                    # A scope of an owner leads to no other owner.
                    if not ends and (of, owner_key) not in seen:
                        seen.add((of, owner_key))
                        reached.setdefault(of, set()).add(owner_key)
        frontier = reached
    return steps


def _leading_to(targets: Collection[OwnerClass]) -> set[OwnerClass]:
    walk = list(targets)
    for one in walk:  # grows while it is walked
        grants = one.grants_of if one in targets else one.grants_with(None)
        walk += [grant.to.owner_class for grant in grants if grant.to.owner_class not in walk]
    return set(walk)
