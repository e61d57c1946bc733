"""A key that was retired gets no new values: an unlocked session looks whether its keys are still active.

A key may be replaced in another process while it is open here. So before a value is encrypted, the session
asks the database for the owner's active keys, unless it has done so within the last minute. Most requests end
within a minute of their unlock, and ask nothing. What was retired more than ten minutes ago may be destroyed
(`verbs.rotation.key_destruction`).

The rows are locked for sharing until the transaction ends. A transaction whose snapshot is older than the
retirement would see the key as active; the database refuses it instead (SQLSTATE 40001).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.keys.model import KeyState, Purpose
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.sharing.granted import load_owners
from sqlalchemy_envelope.orm.tables.owners import places_by_class

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy_envelope.keys.keyring import Keyring, OwnerId
    from sqlalchemy_envelope.keys.model import KeyId
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass, Place

LOOK_SECONDS = 60.0
"""How long a key counts as active after the database said so."""


class ActiveKeys:
    """When the keys of an unlocked session were last known to be active."""

    __slots__ = ("_opened", "_seen")

    def __init__(self) -> None:
        self._opened = time.monotonic()
        self._seen: dict[OwnerId, float] = {}

    @property
    def is_young(self) -> bool:
        """Whether the unlocked session began so recently that there is nothing to look for."""
        return time.monotonic() - self._opened < LOOK_SECONDS

    def look(
        self,
        desk: Desk,
        keyring: Keyring,
        owner_class: OwnerClass,
        keys: Collection[tuple[Any, ...]],
        *,
        always: bool = False,
    ) -> None:
        """Take in the keys of these owners as they are now, if one of theirs was retired since the last look.

        Args:
            keys: the owners by primary key.
            always: look again, however short ago the last look is.
        """
        now, names = time.monotonic(), Names(desk.session)
        places = [names.place(owner_class, key) for key in keys]
        due = [
            place
            for place in places
            if place.owner in keyring
            and (always or now - self._seen.get(place.owner, self._opened) >= LOOK_SECONDS)
        ]
        if due:
            _renew(desk, keyring, due)
            self._seen.update((place.owner, now) for place in due)


def _renew(desk: Desk, keyring: Keyring, places: list[Place]) -> None:
    known: dict[KeyId, Place] = {
        key.key_id: place
        for place in places
        for key in keyring.keys_of(place.owner)
        if key.purpose is Purpose.DATA and key.state is KeyState.ACTIVE
    }
    with desk.session.no_autoflush:
        for owner_class, some in places_by_class(places).items():
            mine = [key_id for key_id, place in known.items() if place in some]
            active = desk.keys(owner_class).load_active(mine, locking=True)
            retired = [key_id for key_id in mine if key_id not in active]
            if not retired:
                continue
            load_owners(desk, keyring, list(dict.fromkeys(known[key_id] for key_id in retired)))
            for key_id in retired:
                _forget_if_current(keyring, known[key_id].owner, key_id)


def _forget_if_current(keyring: Keyring, owner: OwnerId, key_id: KeyId) -> None:
    """Forget a key that nothing has replaced: its row is gone, or says that it is destroyed."""
    stored = keyring.stored(key_id)
    if stored is not None and keyring.current(owner, stored.purpose, stored.scope) == stored:
        keyring.take_back(owner, [key_id], ())
