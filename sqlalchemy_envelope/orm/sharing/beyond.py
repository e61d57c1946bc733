"""Who reaches a key beyond the owners that it is granted to: the members of a group that is a member, and so
on.

Somebody who left such a group reaches the key through the group's old one, until the group has a new epoch.
Epochs start at the far end: each makes stale what the next group on the way was sealed to, and an epoch that
started before would have to start again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.sharing.epochs import start_epoch
from sqlalchemy_envelope.orm.sharing.locking import lock_groups
from sqlalchemy_envelope.orm.sharing.refusing import grant_refused, refusing
from sqlalchemy_envelope.orm.tables.grant_counts import count_grants, recipients_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.keyring import Keyring, OwnerId
    from sqlalchemy_envelope.keys.model import KeyId, OpenedKey
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.sharing.recipients import Recipient
    from sqlalchemy_envelope.orm.tables.grant_counts import GrantCounts
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass, Place

    Keys = Mapping[OwnerClass, Collection[KeyId]]

MAX_LEVELS = 8
"""Most grants from an unlocked owner to another: groups in groups in groups."""


class Left(NamedTuple):
    """An owner from whom somebody was removed.

    Attributes:
        key_id: the root key that a new one is to replace.
        level: how many grants lead from the keys in question to this owner, by the longest way.
    """

    place: Place
    key_id: KeyId
    level: int


def by_class(keys: Iterable[tuple[Place, KeyId]]) -> dict[OwnerClass, set[KeyId]]:
    """Keys by the class of their owners."""
    found: dict[OwnerClass, set[KeyId]] = {}
    for place, key_id in keys:
        found.setdefault(place.owner_class, set()).add(key_id)
    return found


def find_left(
    session: Session, keys: Keys, also: Collection[KeyId] = (), *, themselves: bool = False
) -> list[Left]:
    """Of the owners that these keys are granted to, directly or through others, those from whom somebody was
    removed, and those whose root keys are named in `also`. The farthest first, each once. One statement for
    each class of grants on the way that leads on.

    Args:
        session, keys, also: what is asked.
        themselves: these are root keys, and their owners are asked about as well.
    """
    found: dict[KeyId, Left] = {}
    names, frontier = Names(session), {of: set(some) for of, some in keys.items()}
    for of, some in frontier.items() if themselves else ():
        for key_id, count in _count_whole(session, of, some).items():
            if count.is_left:
                found[key_id] = Left(names.place(of, count.owner), key_id, -1)
    for level in range(MAX_LEVELS):
        reached: dict[OwnerClass, set[KeyId]] = {}
        for grant, some in [(grant, some) for of, some in frontier.items() if some for grant in of.grants_of]:
            to = grant.to.owner_class
            for key_id, count in _count_whole(session, to, recipients_of(grant, some)).items():
                if count.is_left or key_id in also:
                    found[key_id] = Left(names.place(to, count.owner), key_id, level)
                reached.setdefault(to, set()).add(key_id)
        frontier = reached
        if not frontier:
            break
    return sorted(found.values(), key=lambda one: -one.level)


def _count_whole(session: Session, of: OwnerClass, key_ids: Any) -> dict[KeyId, GrantCounts]:
    """How often these root keys of a class were granted; nothing, and no query, where none can be."""
    whole = of.grants_with(None)
    return count_grants(session, whole, key_ids) if whole else {}


def renew_beyond(
    desk: Desk,
    keyring: Keyring | None,
    keys: Keys,
    vouching: Mapping[KeyId, OpenedKey] | None = None,
    *,
    themselves: bool = False,
) -> None:
    """Start epochs of those who reach these keys and whom somebody left, or whose root key another one has to
    vouch for. One level at a time, for an epoch may make owners stale that are nearer: each has one epoch."""
    done: set[OwnerId] = set()
    vouching = vouching or {}
    while True:
        found = [
            one
            for one in find_left(desk.session, keys, vouching, themselves=themselves)
            if one.place.owner not in done
        ]
        if not found:
            return
        lock_groups(desk, [one.place for one in found])
        for place, key_id, level in found:
            if level < found[0].level:
                break
            done.add(place.owner)
            holder = keyring if keyring is not None and place.owner in keyring else None
            proof = vouching.get(key_id)
            with refusing(desk, keyring, place.owner, grant_refused(place)):
                # A group without members gets a new key as well: its old key leads on to other owners.
                start_epoch(desk, place, holder, vouching=proof, instead_of=key_id, for_nobody=True)


def renew_left(desk: Desk, keyring: Keyring | None, recipients: Iterable[Recipient]) -> None:
    """Before a key is sealed to groups: start epochs of those from whom somebody was removed, and of those
    who reach them. Who left would open by the old key of the group what they never had a right to."""
    groups: dict[OwnerClass, set[tuple[Any, ...]]] = {}
    for one in recipients:
        owner_class = one.grant_class.to.owner_class
        if owner_class.grants_with(None):
            groups.setdefault(owner_class, set()).add(one.primary_key)
    keys: dict[OwnerClass, set[KeyId]] = {}
    for owner_class, primary_keys in groups.items():
        roots = desk.keys(owner_class).load_active_roots(list(primary_keys))
        keys[owner_class] = {one.stored.key_id for one in roots.values()}
    if keys:
        renew_beyond(desk, keyring, keys, themselves=True)
