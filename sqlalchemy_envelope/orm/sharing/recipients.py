"""The recipients of keys: the rows that grant the keys, and the root keys that the keys are sealed to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy_envelope.keys.model import GrantState
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.sharing.rights import vouches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy_envelope.keys.model import StoredKey
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.tables.owners import GrantClass, OwnerClass

    PrimaryKey = tuple[Any, ...]
    Roots = dict[tuple[OwnerClass, PrimaryKey], StoredKey]


class Recipient(NamedTuple):
    """A granting row, with the primary key of its recipient.

    Attributes:
        waits: whether the recipient is a group, and the key before this key is still pending for the group.
            The grant of the new key is pending then, too: somebody may have been removed from the group, and
            the holder who fulfils the grant checks that.
    """

    grant_class: GrantClass
    row_key: PrimaryKey
    primary_key: PrimaryKey
    waits: bool = False


def members_of(
    desk: Desk, grants: Sequence[GrantClass], key: StoredKey, generations: Sequence[StoredKey]
) -> list[Recipient]:
    """The recipients of a key, and the recipients of another generation who were left out of this key."""
    others = [
        one
        for one in generations
        if one.key_id != key.key_id and vouches(desk.policy.seals, one.epoch, key.epoch)
    ]
    found: list[Recipient] = []
    for grant_class in grants:
        found += rows_granting(desk, grant_class, [key])
        if others:
            found += rows_granting(desk, grant_class, others, without=key)
    return found


def rows_granting(
    desk: Desk, grant_class: GrantClass, keys: Sequence[StoredKey], without: StoredKey | None = None
) -> list[Recipient]:
    """The granting rows that grant any of these keys, each once. The rows are locked."""
    rows = desk.grants(grant_class).load_of(
        [key.key_id for key in keys], without=None if without is None else without.key_id, held=True
    )
    leads_on = bool(grant_class.to.owner_class.grants_with(None))
    found = {
        row_key: Recipient(grant_class, row_key, to, leads_on and grant.state is GrantState.PENDING)
        for grant, row_key, to in rows
    }
    return list(found.values())


def roots_of(desk: Desk, to: Sequence[Recipient], *, strict: bool) -> Roots:
    """The active root keys of these recipients, by class and primary key.

    Raises:
        RowSealError, OwnerMismatchError: a root key was altered. Unless `strict`, that key is left out.
    """
    roots: Roots = {}
    for grant_class in {one.grant_class for one in to}:
        owner_class = grant_class.to.owner_class
        primary_keys = list({one.primary_key for one in to if one.grant_class is grant_class})
        for one in desk.keys(owner_class).load_active_roots(primary_keys).values():
            if one.error is None:
                roots[owner_class, one.primary_key] = one.stored
            elif strict:
                raise one.error
            else:
                desk.emit(AuditEvent("grant_refused", owner_class.name, owner_id=one.primary_key))
    return roots
