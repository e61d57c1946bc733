"""Indirect holders of a key: the members of a group that is itself a member, and so on.

A former member of such a group reaches the key through the group's old key, until the group has a new epoch.
Epochs start at the far end. Each epoch makes stale the key that the next group on the way was sealed to, so
an epoch that started earlier would have to start again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.sharing.epochs import start_epoch
from sqlalchemy_envelope.orm.sharing.locking import lock_groups
from sqlalchemy_envelope.orm.sharing.refusing import grant_refused, refusing
from sqlalchemy_envelope.orm.tables.grant_counts import count_grants

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.keyring import Keyring, OwnerId
    from sqlalchemy_envelope.keys.model import KeyId, OpenedKey
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.sharing.recipients import Recipient
    from sqlalchemy_envelope.orm.tables.grant_counts import GrantCounts
    from sqlalchemy_envelope.orm.tables.owners import GrantClass, OwnerClass, Place

    Keys = Mapping[OwnerClass, Collection[KeyId]]

MAX_LEVELS = 8
"""The largest number of grants in a row from an unlocked owner to another: groups in groups in groups."""


class Left(NamedTuple):
    """An owner that needs a new root key: somebody was removed from it, or the caller named its root key.

    Attributes:
        key_id: the root key to replace.
        level: how far the owner is from the keys in question, on the longest way: 0 for a recipient of a key,
            -1 for the owner of a key.
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
    """Find owners that need a new root key among the recipients of these keys, direct and indirect.

    The farthest owner comes first, and each root key comes once. Each level sends one statement for each
    class of grants that leads on.

    Args:
        session: the session to query.
        keys: the keys to start from, by the class of their owners.
        also: root keys to report even if nobody was removed from their owners.
        themselves: look at the owners of `keys` as well. `keys` are root keys then.
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
            for key_id, count in _count_whole(session, to, some, grant).items():
                if count.is_left or key_id in also:
                    found[key_id] = Left(names.place(to, count.owner), key_id, level)
                reached.setdefault(to, set()).add(key_id)
        frontier = reached
        if not frontier:
            break
    return sorted(found.values(), key=lambda one: -one.level)


def _count_whole(
    session: Session, of: OwnerClass, key_ids: Collection[KeyId], recipients_of: GrantClass | None = None
) -> dict[KeyId, GrantCounts]:
    """Count the grants of these root keys. No query where the class has no grants of root keys."""
    whole = of.grants_with(None)
    return count_grants(session, whole, key_ids, recipients_of) if whole else {}


def renew_beyond(
    desk: Desk,
    keyring: Keyring | None,
    keys: Keys,
    vouching: Mapping[KeyId, OpenedKey] | None = None,
    *,
    themselves: bool = False,
) -> None:
    """Start epochs of the owners that reach these keys and need a new root key.

    An owner needs a new root key if somebody was removed from it, or if `vouching` names its root key. Work
    on one level at a time: an epoch may make nearer owners stale. Each owner gets one epoch.
    """
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
    """Start the epochs that are due before a key is sealed to groups.

    These are the epochs of groups that somebody was removed from, and of groups that reach them. Otherwise a
    former member could open the new grant with the group's old key, without ever having had a right to it.
    """
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
