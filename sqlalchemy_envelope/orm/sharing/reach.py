"""What an unlocked owner reaches beyond its own keys, followed as it is needed.

An unlock loads the owner's own keys. The grants that lead to another owner are followed when rows of that
owner are read or written: those of one fetch together. So a page of one group costs the same for a member of
two groups and of two hundred.

**To read, one way is enough.** The grants that lead straight to the owners of some values are loaded with
these owners' keys; where that does not open them, the ways through others.

**To write, every way is followed** that leads to the owner: who may have planted its active root key shows
against the newest one that this owner adopted, on whichever way. The first write looks for whom anything
waits (`undone`), and follows and settles those.
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
        keyring: the keys that are held, which those that are reached come into.
        place: the owner.

    Attributes:
        has_looked: whether it was asked for whom something waits. That is kept until it is settled for good.
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
        """This owner's keys are here, and no grant has to be followed to write for it."""
        self._followed.add((place.owner_class, place.primary_key))

    def forget(self, place: Place) -> None:
        """This owner's keys are here no more."""
        self._followed.discard((place.owner_class, place.primary_key))

    def is_in(self, session: Session) -> bool:
        """Whether this session reaches the database and schema that the owner is in."""
        names = Names(session)
        return names.owner(self._place.owner_class, self._place.primary_key) == self._place.owner

    def leads_on(self, session: Session) -> bool:
        """Whether anything was granted to the owner. Asked once."""
        if self._leads_on is None:
            desk = Desk(session, self._policy)
            self._leads_on = any(
                desk.grants(one).leads_from(self._place.primary_key)
                for one in self._place.owner_class.grants_to
            )
        return self._leads_on

    def look_again(self, session: Session) -> None:
        """In another transaction, or after a rollback, a way may lead to what none led to before."""
        looked = looked_at(session)
        if looked is not self._looked:
            self._looked = looked
            self._lost.clear()

    def closed(self, owner_class: OwnerClass, headers: Collection[bytes]) -> list[bytes]:
        """Those of these value headers that name a key which nothing followed so far opens, and for which
        no way was looked for among the owners of this class."""
        return [
            one
            for one in headers
            if len(one) == HEADER_SIZE and (owner_class, one) not in self._lost and not self._opens(one)
        ]

    def _opens(self, header: bytes) -> bool:
        try:
            return self._keyring.open(UUID(bytes=header[1:])) is not None
        except EnvelopeError:
            return False  # another way may open it; if none does, whoever asks for it is told

    def follow_values(
        self, session: Session, holder: KeyHolder, owner_class: OwnerClass, headers: Collection[bytes]
    ) -> list[Opening]:
        """Load what leads to the owners of these values, who are of one class."""
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
        # No way leads to what opens the rest: it is not looked for again.
        self._lost.update((owner_class, one) for one in self.closed(owner_class, headers))
        return found

    def unfollowed(self, owner_class: OwnerClass, keys: Collection[PrimaryKey]) -> list[PrimaryKey]:
        """Those of these owners to whom not every way was followed."""
        return [key for key in keys if (owner_class, key) not in self._followed]

    def follow_owners(
        self,
        session: Session,
        holder: KeyHolder,
        owner_class: OwnerClass,
        keys: Collection[PrimaryKey],
        rows: Iterable[OwnedKey] = (),
    ) -> list[Opening]:
        """Load what leads to these owners, on every way."""
        targets: Owners = {owner_class: list(keys)}
        found = []
        if self.may_lead_to(owner_class):
            if not is_straight(self._place.owner_class, owner_class):
                targets = owners_between(session, self._place, targets)
            found.append(self._follow(session, holder, targets, rows=rows))
        self._followed.update((of, key) for of, some in targets.items() for key in some)
        return found

    def undone(self, session: Session) -> Owners | None:
        """The owners for whom something waits; None if it may be anybody."""
        return find_undone(session, self._place)

    def follow_all(self, session: Session, holder: KeyHolder) -> Opening:
        """Load all that the owner was granted, and all that leads to."""
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
