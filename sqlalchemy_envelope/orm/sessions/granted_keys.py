"""The grants to the owner of an unlocked session: followed as they are needed, and settled before a write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakMethod

from sqlalchemy_envelope.orm.current.desk import Desk
from sqlalchemy_envelope.orm.sharing.granted import Opening
from sqlalchemy_envelope.orm.sharing.reach import Reach
from sqlalchemy_envelope.orm.sharing.rollbacks import KeyHolder, note_rollback
from sqlalchemy_envelope.orm.tables.cascades import in_greenlet

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.keyring import Keyring
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.sharing.granted import Places
    from sqlalchemy_envelope.orm.sharing.waiting import Waiting
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass, Place


class Holder(KeyHolder, Protocol):
    """The part of an unlocked session that `GrantedKeys` uses."""

    def follow_all(self, session: Session | None = None) -> None:
        """Follow all grants, of this unlocked session and the sessions around it."""


class GrantedKeys:
    """The grants of one unlocked owner.

    Args:
        home: the session of the unlock.
        keyring: the keys that are held; keys of followed grants are added to it.
        places: the owners of these keys; at first only the unlocked owner.
        waiting: the work that the unlock found and left.

    Attributes:
        is_settled: whether nothing waits, as far as the grants were followed.

    The unlocked session passes itself as `holder`. It is not kept here, so that it goes, and wipes its keys,
    as soon as nothing else refers to it.
    """

    def __init__(
        self, home: Session | None, policy: Policy, keyring: Keyring, places: Places, waiting: Waiting
    ) -> None:
        self._home = home
        self._policy = policy
        self._keyring = keyring
        self._places = places
        self._waiting = waiting
        self._reach: Reach | None = Reach(policy, keyring, next(iter(places.values())))
        self.is_settled = False
        waiting.take(keyring, Opening(dict(places), [], {}), waits=True)

    @property
    def leads_on(self) -> bool:
        """Whether any grants were not followed yet."""
        return self._reach is not None

    @property
    def owner_classes(self) -> Sequence[OwnerClass]:
        """The classes of owners to which the remaining grants may lead."""
        return self._reach.owner_classes if self._reach is not None else ()

    def note(self, place: Place) -> None:
        """Note an owner with open keys, so that no grant is followed to it."""
        if self._reach is not None:
            self._reach.note(place)

    def forget(self, place: Place) -> None:
        """Forget an owner whose keys are gone."""
        if self._reach is not None:
            self._reach.forget(place)

    def wipe(self) -> None:
        """Forget the waiting work: the next unlock finds it."""
        self._waiting.wipe()

    def is_async(self) -> bool:
        """Whether the unlock's session waits for its database through asyncio."""
        return self._home is not None and self._waiting.is_async(self._home)

    def follow_all(self, session: Session | None, holder: Holder) -> None:
        """Follow all remaining grants."""
        reach = self._reach
        reader = None if reach is None else self._reads_with(reach, session)
        if reach is not None and reader is not None:
            self._end(reach, reach.follow_all(reader, holder))

    def follow_owners(
        self,
        session: Session | None,
        holder: Holder,
        owner_class: OwnerClass,
        keys: Collection[tuple[Any, ...]],
    ) -> None:
        """Follow all grants that lead to these owners, on every way."""
        reach = self._reach
        left = reach.unfollowed(owner_class, keys) if reach is not None else ()
        reader = self._reads_with(reach, session) if reach is not None and left else None
        if reach is not None and reader is not None:
            for found in reach.follow_owners(reader, holder, owner_class, left):
                self._take(found)

    def closed(
        self, session: Session | None, owner_class: OwnerClass, headers: Collection[bytes]
    ) -> list[bytes]:
        """Return the value headers whose keys are not open, but may be reached through grants."""
        reach, reader = self._reach, session or self._home
        if reach is None:
            return []
        if reader is not None:
            reach.look_again(reader)
        return reach.closed(owner_class, headers)

    def follow_values(
        self, session: Session | None, holder: Holder, owner_class: OwnerClass, headers: Collection[bytes]
    ) -> None:
        """Follow the grants that lead to the owners of these values."""
        reach = self._reach
        reader = self._reads_with(reach, session) if reach is not None and headers else None
        if reach is not None and reader is not None:
            for found in reach.follow_values(reader, holder, owner_class, headers):
                self._take(found)

    def may_follow(self, owner_class: OwnerClass, header: bytes) -> bool:
        """Tell whether a grant may lead to the key of a stored value, and was not looked for yet."""
        reach = self._reach
        return (
            reach is not None and reach.may_lead_to(owner_class) and bool(reach.closed(owner_class, [header]))
        )

    def find_others(self, session: Session | None) -> None:
        """Find out whether keys of other owners may come."""
        reach = self._reach
        reader = None if reach is None else self._reads_with(reach, session)
        if reach is not None and reader is not None and not reach.leads_on(reader):
            self._end(reach, Opening(dict(self._places), [], {}))

    def settle(self, session: Session, holder: Holder) -> bool:
        """Settle what waits, in the transaction of a session that is about to write under these keys.

        After a rollback, the next write settles it.

        Returns:
            Whether anything waited.
        """
        if self.is_settled:
            return False
        self.is_settled = True  # set first, so that the writes of settling do not settle again
        try:
            self._follow_undone(session, holder)
            for owner_class, keys in self._waiting.owners.items():
                self.follow_owners(session, holder, owner_class, keys)
            self.is_settled = True
            self._places.update(self._waiting.settle(Desk(session, self._policy), self._keyring))
        except BaseException:
            self._again()
            raise
        again = WeakMethod(self._again)
        note_rollback(session, lambda: (settle_again := again()) and settle_again())
        return True

    def _follow_undone(self, session: Session, holder: Holder) -> None:
        """Follow the grants that lead to owners with waiting work."""
        reach = self._reach
        reader = None if reach is None else self._reads_with(reach, session)
        if reach is None or reader is None or reach.has_looked:
            return
        undone = reach.undone(reader)
        if undone is None:
            holder.follow_all(session)
        for owner_class, keys in (undone or {}).items():
            for found in reach.follow_owners(reader, holder, owner_class, keys):
                self._take(found, waits=True)
        reach.has_looked = True

    def _again(self) -> None:
        self._waiting.again()
        self.is_settled = False

    def _end(self, reach: Reach, found: Opening) -> None:
        """Take in the last grants: all of them were followed."""
        if self._reach is reach:  # no other thread was faster
            self._take(found, waits=True, whole=True)
            self._reach = None

    def _take(self, found: Opening, *, waits: bool = False, whole: bool = False) -> None:
        self._places.update(found.places)
        if self._waiting.take(self._keyring, found, waits=waits, whole=whole):
            self.is_settled = False

    def _reads_with(self, reach: Reach, session: Session | None) -> Session | None:
        """Return the session to read grants with; None if nothing can be awaited."""
        reader = session if session is not None and reach.is_in(session) else self._home
        if reader is None or self._waiting.is_async(reader):
            return reader if in_greenlet() else None
        return reader
