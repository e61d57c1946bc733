"""The ways from owners with keys that a provider holds to owners with keys that it does not hold.

A user may have a slot of the provider while the user's groups have none. In server mode, the grants are
searched backwards: from the owners of some values to a recipient that the provider can open. A single
recipient is enough for each key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy_envelope.keys.model import KeyState
from sqlalchemy_envelope.orm.sharing.beyond import MAX_LEVELS
from sqlalchemy_envelope.orm.sharing.rights import gives
from sqlalchemy_envelope.orm.tables.grant_rows import load_recipients

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass
    from sqlalchemy_envelope.orm.tables.stored_rows import OwnedKey

    PrimaryKey = tuple[Any, ...]
    OwnersByClass = dict[OwnerClass, dict[PrimaryKey, None]]


class ProviderWays(NamedTuple):
    """The owners on the ways.

    Attributes:
        starts: owners at the beginning, with keys that the provider holds, by class and primary key.
        between: owners with grants on the ways, including the owners at the end.
    """

    starts: OwnersByClass
    between: OwnersByClass


def ways_from_provider(
    desk: Desk, provider: str, owner_class: OwnerClass, rows: Iterable[OwnedKey]
) -> ProviderWays:
    """Search for ways to the owners of these key rows, all of one class.

    Each level sends one query for each class of grants.

    Args:
        desk: of the session that reads the rows of values.
        provider: the name of the provider.
        owner_class: the class of the owners.
        rows: every key row of the owners.
    """
    starts: OwnersByClass = {}
    between: OwnersByClass = {}
    level = {owner_class: list(rows)}
    for _ in range(MAX_LEVELS):
        above: OwnersByClass = {}
        for of, keys in level.items():
            between.setdefault(of, {}).update((key.primary_key, None) for key in keys)
            reached = _held_recipients(desk, provider, of, keys, starts)
            left = {key.primary_key: None for key in keys if key.owner not in reached}
            for grant in of.grants_of if left else ():
                to = grant.to.owner_class
                if to.grants_of:  # otherwise the recipient's keys are granted to nobody
                    recipients = load_recipients(desk.session, grant, list(left))
                    above.setdefault(to, {}).update((recipient, None) for recipient in recipients)
        level = {}
        for of, owners in above.items():
            unseen = [owner for owner in owners if owner not in between.get(of, {})]
            if unseen:
                level[of] = desk.keys(of).load(unseen)
        if not level:
            break
    return ProviderWays(starts, between)


def _held_recipients(
    desk: Desk,
    provider: str,
    of: OwnerClass,
    keys: list[OwnedKey],
    starts: OwnersByClass,
) -> set[OwnerId]:
    """Note a recipient that the provider can open, for each key that has such a recipient.

    Returns:
        The owners whose active root key is among these keys, so that a longer way to them is not needed.
    """
    owners = {key.stored.key_id: key for key in keys}
    reached = set()
    for grant in of.grants_of:
        grantable = [key.stored.key_id for key in keys if gives(grant, key.stored)]
        for key_id, recipient in desk.grants(grant).load_held(grantable, provider):
            starts.setdefault(grant.to.owner_class, {})[recipient] = None
            if owners[key_id].stored.state is KeyState.ACTIVE and grant.scope is None:
                reached.add(owners[key_id].owner)
    return reached
