"""Change a group in one transaction at a time: lock the group first, then read it.

A change adds a member, removes a member, starts an epoch, or grants a key to a member who was left out. Do
not use rows that were read before the lock: another change may have come in between.

The order of locks is fixed, so that two changes never wait for each other. Classes of owners come in the
order of their labels. Within a class, the owners' rows come first, because a deletion of an owner locks its
row first too; then come the root keys. Both are locked in the order of the primary keys. A granting row is
deleted after the lock. It is inserted before the lock, because its owner is known only then.
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
    """A page of `SessionNotes`: the owners that are locked."""

    owners: set[OwnerId] = field(default_factory=set)


def lock_groups(desk: Desk, places: Iterable[Place]) -> None:
    """Lock these owners until the transaction ends, so that no other transaction changes their members.

    Each class takes one statement. Owners that are locked already take none.

    Raises:
        DBAPIError: the keys were changed after this transaction's snapshot was taken (SQLSTATE 40001), or, on
            SQLite, the database is locked. Nothing of the change is done yet: run the transaction again.
    """
    held = _held(desk.session)
    waiting = {place.owner: place for place in places if None not in place.primary_key}
    new = [place for owner, place in waiting.items() if owner not in held]
    for owner_class, some in sorted(places_by_class(new).items(), key=lambda one: one[0].label):
        desk.keys(owner_class).lock_roots([place.primary_key for place in some])
    # Noted last: an owner is not locked if its statement failed.
    _held(desk.session).update(place.owner for place in new)


def hold_slots(desk: Desk, place: Place) -> None:
    """Lock an owner before its slots are changed, and before they are read for the change.

    Whoever starts an epoch makes the slots of the new root key from those of the old one. So the change waits
    for such a transaction, or that transaction waits for the change. A transaction whose snapshot is older
    than the change would not see it: it is told so, because the change writes the row of the root key.

    Raises:
        DBAPIError: as `lock_groups`.
    """
    lock_groups(desk, [place])
    store = desk.keys(place.owner_class)
    if not store.locks_as_a_whole:  # there, the lock itself wrote the row
        store.touch_roots([place.primary_key])


def _held(session: Session) -> set[OwnerId]:
    """The owners that this transaction locked.

    Each savepoint has a set of its own, because a rollback of the savepoint releases its locks.
    """
    within = session.get_nested_transaction() or session.get_transaction()
    return page_within(session, _LockedGroups, within).owners
