"""The keys that an unlocked owner reaches through grants, followed when they are needed.

An unlock loads the owner's own keys. The grants that lead to another owner are followed when rows of that
owner are read or written. The rows of a fetch are handled together, so a page of a group's rows costs the
same for a member of two groups as for a member of two hundred.

**To read, a single way is enough.** First load the grants that lead straight to the owners of the values,
together with these owners' keys. If some values stay closed, load the ways through other owners.

**To write, follow every way** that leads to the owner. A planted active root key shows against the newest
root key that the unlocked owner adopted, on whichever way. The first write looks for owners with pending work
(`undone`), and follows and settles those owners.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy_envelope.crypto.aead import HEADER_SIZE
from sqlalchemy_envelope.exceptions import EnvelopeError
from sqlalchemy_envelope.orm.current.desk import Desk
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.sharing.beyond import MAX_LEVELS
from sqlalchemy_envelope.orm.sharing.granted import follow_grants
from sqlalchemy_envelope.orm.sharing.membership import looked_at
from sqlalchemy_envelope.orm.sharing.rollbacks import note_unlock
from sqlalchemy_envelope.orm.sharing.undone import find_undone
from sqlalchemy_envelope.orm.sharing.ways import classes_beyond, is_straight, owners_between

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.keyring import Keyring
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.sharing.granted import Opening, Owners
    from sqlalchemy_envelope.orm.sharing.rollbacks import KeyHolder
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass, Place
    from sqlalchemy_envelope.orm.tables.stored_rows import OwnedKey

    PrimaryKey = tuple[Any, ...]


class Reach:
    """The grants of an unlocked owner that were not followed yet.

    Args:
        policy: the settings of the envelope.
        keyring: the keys of the unlocked session. Keys that are reached are added to it.
        place: the owner.

    Attributes:
        has_looked: whether owners with pending work were looked for. Kept until they are settled for good.
    """

    def __init__(self, policy: Policy, keyring: Keyring, place: Place) -> None:
        self._policy = policy
        self._keyring = keyring
        self._place = place
        self._lost: set[tuple[OwnerClass, bytes]] = set()
        self._looked: object = None
        self._followed: set[tuple[OwnerClass, PrimaryKey]] = set()
        self._leads_on: bool | None = None
        self.has_looked = False
        self.note(place)

    @cached_property
    def owner_classes(self) -> list[OwnerClass]:
        """The classes of owners that may be reached."""
        return classes_beyond(self._place.owner_class)

    def may_lead_to(self, owner_class: OwnerClass) -> bool:
        """Whether grants may lead to owners of this class."""
        return owner_class in self.owner_classes

    def note(self, place: Place) -> None:
        """Note that this owner's keys are loaded, and that a write for it has to follow no grant."""
        self._followed.add((place.owner_class, place.primary_key))

    def forget(self, place: Place) -> None:
        """Note that this owner's keys are no longer loaded."""
        self._followed.discard((place.owner_class, place.primary_key))

    def is_in(self, session: Session) -> bool:
        """Whether this session uses the database and schema of the owner."""
        names = Names(session)
        return names.owner(self._place.owner_class, self._place.primary_key) == self._place.owner

    def leads_on(self, session: Session) -> bool:
        """Whether anything was granted to the owner. Asks the database once."""
        if self._leads_on is None:
            desk = Desk(session, self._policy)
            self._leads_on = any(
                desk.grants(one).leads_from(self._place.primary_key)
                for one in self._place.owner_class.grants_to
            )
        return self._leads_on

    def look_again(self, session: Session) -> None:
        """Forget failed searches in a new transaction, or after a rollback: there may be a way by now."""
        looked = looked_at(session)
        if looked is not self._looked:
            self._looked = looked
            self._lost.clear()

    def closed(self, owner_class: OwnerClass, headers: Collection[bytes]) -> list[bytes]:
        """The value headers with keys that do not open yet, except where a search in this class failed."""
        return [
            one
            for one in headers
            if len(one) == HEADER_SIZE and (owner_class, one) not in self._lost and not self._opens(one)
        ]

    def _opens(self, header: bytes) -> bool:
        try:
            return self._keyring.open(UUID(bytes=header[1:])) is not None
        except EnvelopeError:
            return False  # another way may open it; if no way does, the reader of the value gets the error

    def follow_values(
        self, session: Session, holder: KeyHolder, owner_class: OwnerClass, headers: Collection[bytes]
    ) -> list[Opening]:
        """Load the grants and keys that lead to the owners of these values, all of one class."""
        found: list[Opening] = []
        if self.may_lead_to(owner_class):
            store = Desk(session, self._policy).keys(owner_class)
            rows = store.load_around([UUID(bytes=header[1:]) for header in headers])
            owners = {row.owner: row.primary_key for row in rows}
            if any(one.to.owner_class is self._place.owner_class for one in owner_class.grants_of):
                targets = {owner_class: list(owners.values())}
                found.append(self._follow(session, holder, targets, levels=1, rows=rows))
                if is_straight(self._place.owner_class, owner_class):
                    self._followed.update((owner_class, key) for key in owners.values())
            held = {row.stored.key_id.bytes: row.owner for row in rows}
            left = {held[one[1:]] for one in self.closed(owner_class, headers) if one[1:] in held}
            if left:
                found += self.follow_owners(session, holder, owner_class, [owners[one] for one in left], rows)
        # No way leads to the keys of the other values: do not look for them again.
        self._lost.update((owner_class, one) for one in self.closed(owner_class, headers))
        return found

    def unfollowed(self, owner_class: OwnerClass, keys: Collection[PrimaryKey]) -> list[PrimaryKey]:
        """The owners among these with ways that were not followed yet."""
        return [key for key in keys if (owner_class, key) not in self._followed]

    def follow_owners(
        self,
        session: Session,
        holder: KeyHolder,
        owner_class: OwnerClass,
        keys: Collection[PrimaryKey],
        rows: Iterable[OwnedKey] = (),
    ) -> list[Opening]:
        """Load the grants and keys that lead to these owners, on every way."""
        targets: Owners = {owner_class: list(keys)}
        found = []
        if self.may_lead_to(owner_class):
            if not is_straight(self._place.owner_class, owner_class):
                targets = owners_between(session, self._place, targets)
            found.append(self._follow(session, holder, targets, rows=rows))
        self._followed.update((of, key) for of, some in targets.items() for key in some)
        return found

    def undone(self, session: Session) -> Owners | None:
        """The owners with pending work; None if any owner may have some."""
        return find_undone(session, self._place)

    def follow_all(self, session: Session, holder: KeyHolder) -> Opening:
        """Load every key that the owner was granted, directly or through other owners."""
        return self._follow(session, holder, None)

    def _follow(
        self,
        session: Session,
        holder: KeyHolder,
        within: Owners | None,
        levels: int = MAX_LEVELS,
        rows: Iterable[OwnedKey] = (),
    ) -> Opening:
        desk = Desk(session, self._policy)
        found = follow_grants(desk, self._keyring, [self._place], within, levels, rows)
        for owner in found.places if within is not None else self._keyring:
            note_unlock(session, owner, holder)
        return found
