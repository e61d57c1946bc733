"""One change of a group at a time: who changes it locks it first, and reads it then.

A change adds a member, removes one, starts an epoch, or puts in who was missing. What was read before the
lock is not used after it: another change may have come in between.

The order is fixed, so that two changes never wait for each other: classes of owners by their label; in a
class first the owners' rows, which whoever deletes an owner locks first too, then their root keys; both by
primary key. A granting row is deleted after the lock, and inserted before it, because only then is it known
whose it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy_envelope.orm.tables.owners import places_by_class
from sqlalchemy_envelope.orm.tables.session_notes import WithinTransaction, page_within

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.tables.owners import Place


@dataclass
class _LockedGroups(WithinTransaction):
    """A page of `SessionNotes`: the owners whose keys are held."""

    owners: set[OwnerId] = field(default_factory=set)


def lock_groups(desk: Desk, places: Iterable[Place]) -> None:
    """Hold the keys of these owners until the transaction ends: nobody else changes who has them. One
    statement for each class, and none for what is held already.

    Raises:
        DBAPIError: they were changed after this transaction's snapshot was taken (SQLSTATE 40001), or, on
        SQLite,
            the database is locked. Nothing of the change is done yet: run the transaction again.
    """
    held = _held(desk.session)
    waiting = {place.owner: place for place in places if None not in place.primary_key}
    new = [place for owner, place in waiting.items() if owner not in held]
    for owner_class, some in sorted(places_by_class(new).items(), key=lambda one: one[0].label):
        desk.keys(owner_class).lock_roots([place.primary_key for place in some])
    # Noted last: what failed is not held.
    _held(desk.session).update(place.owner for place in new)


def _held(session: Session) -> set[OwnerId]:
    """Those whom this transaction holds. A savepoint counts for itself: rolled back, it lets go of its
    own."""
    within = session.get_nested_transaction() or session.get_transaction()
    return page_within(session, _LockedGroups, within).owners
