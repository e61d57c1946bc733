"""Keys of owners that a session deleted. They are put aside until the transaction ends, because new owners
have the same names."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakMethod

from sqlalchemy_envelope.orm.sharing.rollbacks import note_outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.keyring import Keyring, OwnerId
    from sqlalchemy_envelope.orm.sharing.granted import Places
    from sqlalchemy_envelope.orm.tables.owners import Place


class FormerOwners:
    """Keys and places that were put aside from an unlocked session. A commit wipes them; a rollback puts them
    back."""

    def __init__(self, keyring: Keyring, places: Places) -> None:
        self._keyring = keyring
        self._places = places
        self._aside: dict[OwnerId, tuple[Place | None, Keyring]] = {}

    def put_aside(self, session: Session, owner: OwnerId, taken_back: Callable[[], None]) -> None:
        """Put an owner's keys aside.

        Args:
            taken_back: a method, called when the keys are put back. It is not kept alive.
        """
        self._aside[owner] = self._places.get(owner), self._keyring.put_aside(owner)
        forget, take_back, told = (
            WeakMethod(self._forget),
            WeakMethod(self._take_back),
            WeakMethod(taken_back),
        )
        note_outcome(
            session,
            lambda: (call := forget()) and call(owner),
            lambda: (call := take_back()) and call(owner, told()),
        )

    def wipe(self) -> None:
        """Wipe all keys that are put aside."""
        for owner in list(self._aside):
            self._forget(owner)

    def _forget(self, owner: OwnerId) -> None:
        _, keyring = self._aside.pop(owner, (None, None))
        if keyring is not None:
            keyring.wipe()

    def _take_back(self, owner: OwnerId, told: Callable[[], None] | None) -> None:
        place, keyring = self._aside.pop(owner, (None, None))
        if keyring is None:
            return
        self._keyring.put_back(owner, keyring)
        if place is not None:
            self._places[owner] = place
        if told is not None:
            told()
