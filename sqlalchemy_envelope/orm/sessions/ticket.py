"""An unlocked session that a ticket opened: it reads and writes values, and changes nothing about keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from sqlalchemy_envelope.crypto.frames import emptying
from sqlalchemy_envelope.exceptions import LockedError
from sqlalchemy_envelope.orm.sessions.unlocked import UnlockedSession
from sqlalchemy_envelope.orm.sharing.present_members import refuse_due_epochs
from sqlalchemy_envelope.orm.tables.location import bind_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.keyring import Keyring
    from sqlalchemy_envelope.keys.model import OpenedKey
    from sqlalchemy_envelope.keys.ticket_keyring import TicketKeyring
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.sharing.granted import Opening, Owners
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass, Place


class NothingWaits:
    """Stands for the waiting work of an unlock. A ticket leaves it to an unlock with the secret.

    Args:
        place: the owner.
    """

    def __init__(self, place: Place) -> None:
        self.owners: Owners = {}
        self._place = place

    def take(self, keyring: Keyring, found: Opening, *, waits: bool, whole: bool = False) -> bool:
        """Tell that nothing is to be settled here."""
        return False

    def is_async(self, session: Session) -> bool:
        """Tell whether the owner's database is reached through asyncio."""
        return bind_of(session, self._place.owner_class.mapper).dialect.is_async

    def wipe(self) -> None:
        """Do nothing: no key is kept."""


class TicketSession(UnlockedSession):
    """The keys that a ticket carries, open from `with` to its end. Made by `Envelope.unlock(ticket=...)`.

    The session has no root key. It makes, grants and settles no key. Keys that were made or granted after the
    ticket was issued are locked.
    """

    by_ticket = True

    def __init__(
        self, session: Session, policy: Policy, place: Place, keyring: TicketKeyring, owner: Any
    ) -> None:
        self.owner = owner
        # Where no class grants to this owner, there is nothing to follow.
        waiting: Any = NothingWaits(place) if place.owner_class.grants_to else None
        super().__init__(session, policy, [place], keyring, waiting)
        if self._granted is not None:
            self._granted.is_settled = True

    @emptying
    def settle(self) -> NoReturn:
        """Refuse: a ticket settles nothing.

        Raises:
            LockedError: always.
        """
        self._require_usable()
        raise LockedError(
            "A ticket settles nothing, since it carries no root key: unlock with the secret, and settle then."
        )

    def admit(self, place: Place, keys: Iterable[OpenedKey]) -> None:
        """Pass a new owner on to the session around this: a ticket takes no keys in.

        Raises:
            LockedError: no unlocked session is around this.
        """
        if self._is_outermost:
            for one in keys:
                one.key.wipe()
            raise LockedError(
                f"A ticket makes no keys, so that this {place.owner_class.name} gets none here: unlock with "
                "the secret, and enroll it there."
            )
        self._parent.admit(place, keys)

    def _put_in_order(
        self, session: Session | None, owner_class: OwnerClass, keys: Collection[tuple[Any, ...]]
    ) -> None:
        """Refuse a write under a key that was replaced, and where an epoch has to start first.

        A session around this may start the epoch.
        """
        self._look_for_retired(session, owner_class, keys)
        if session is not None and owner_class.grants_of:
            refuse_due_epochs(session, self._keyring, self.places, owner_class, keys)
