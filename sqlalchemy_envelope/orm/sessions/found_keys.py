"""The keys under which a transaction may write in server mode: keys that it found in its database, or made.

The keys that a server keeps are a single store for all threads, and the store names owners as the application
does. Another thread may put other keys there at any moment: keys of an owner that was deleted and made again,
or of an owner with the same name in another schema. So a transaction notes the ids of the keys that it found,
and writes under no other key.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy_envelope.exceptions import EnvelopeError
from sqlalchemy_envelope.keys.keyring import Keyring
from sqlalchemy_envelope.keys.model import KeyState, Purpose
from sqlalchemy_envelope.orm.sessions.by_session import BySession
from sqlalchemy_envelope.orm.sharing.active_keys import LOOK_SECONDS
from sqlalchemy_envelope.orm.sharing.membership import looked_at
from sqlalchemy_envelope.orm.sharing.rollbacks import note_end

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.crypto.aead import Field, ValueCipher
    from sqlalchemy_envelope.crypto.blind_index import IndexHasher
    from sqlalchemy_envelope.keys.keyring import Index, OwnerId
    from sqlalchemy_envelope.keys.model import KeyId, OpenedKey, StoredKey
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.tables.owners import Place


class _Seen(NamedTuple):
    place: Place
    data_keys: dict[str, KeyId]
    """By scope."""
    index_keys: dict[str, KeyId]
    """By scope. An owner may have none yet."""


class FoundKeys:
    """The keys that a transaction found or made.

    Attributes:
        look: the set of everything looked at in the transaction. If the session has another set, look again.
        opened: the keys of owners that were opened in this transaction; no other thread has this keyring.
    """

    def __init__(self, look: object) -> None:
        self.look = look
        self._began = time.monotonic()
        self.opened = Keyring()
        self._seen: dict[OwnerId, _Seen] = {}

    @property
    def is_old(self) -> bool:
        """Whether the keys may have been retired since: then look again."""
        return time.monotonic() - self._began >= LOOK_SECONDS

    def __contains__(self, owner: OwnerId) -> bool:
        return owner in self._seen or owner in self.opened

    def note_made(self, place: Place, keys: Iterable[OpenedKey]) -> None:
        """Note keys that this transaction made."""
        found: dict[Purpose, dict[str, KeyId]] = {Purpose.DATA: {}, Purpose.INDEX: {}}
        for one in keys:
            found.setdefault(one.stored.purpose, {})[one.stored.scope] = one.stored.key_id
        self._seen[place.owner] = _Seen(place, found[Purpose.DATA], found[Purpose.INDEX])

    def look_for(self, desk: Desk, places: Sequence[Place], keyrings: Sequence[Keyring]) -> None:
        """Note the active keys of these owners that are both in the keyrings and in the database.

        The owners are of one class. An owner with a missing key is left out. Sends one query.
        """
        known: dict[KeyId, tuple[Place, StoredKey]] = {
            key.key_id: (place, key)
            for place in places
            for keyring in keyrings
            for key in keyring.keys_of(place.owner)
            if key.state is KeyState.ACTIVE
        }
        if not known:
            return
        there = desk.keys(places[0].owner_class).load_active(known)
        wanted: dict[OwnerId, set[str]] = {}
        found: dict[OwnerId, dict[str, KeyId]] = {}
        indexes: dict[OwnerId, dict[str, KeyId]] = {}
        rooted = set()
        for key_id, (place, key) in known.items():
            is_there = there.get(key_id) == place.owner
            if key.purpose is Purpose.ROOT and is_there:
                rooted.add(place.owner)
            elif key.purpose is Purpose.DATA:
                wanted.setdefault(place.owner, set()).add(key.scope)
                if is_there:
                    found.setdefault(place.owner, {})[key.scope] = key_id
            elif key.purpose is Purpose.INDEX and is_there:
                indexes.setdefault(place.owner, {})[key.scope] = key_id
        for place in places:
            data_keys = found.get(place.owner, {})
            if place.owner in rooted and data_keys.keys() == wanted[place.owner]:
                self._seen[place.owner] = _Seen(place, data_keys, indexes.get(place.owner, {}))

    def index_writer(
        self, owner: OwnerId, scope: str, index: Index, keyrings: Iterable[Keyring]
    ) -> IndexHasher | None:
        """Return what makes the tags of an owner's new values; as `writer`."""
        seen = self._seen.get(owner)
        if seen is None:
            return self.opened.index_writer(owner, scope, index)
        key_id = seen.index_keys.get(scope)
        if key_id is None:
            return None
        found = (keyring.hasher(key_id, index) for keyring in keyrings if keyring.stored(key_id) is not None)
        return next((hasher for hasher in found if hasher is not None), None)

    def writer(
        self, owner: OwnerId, scope: str, field: Field, keyrings: Iterable[Keyring]
    ) -> ValueCipher | None:
        """Return the cipher for an owner's new values, from the keyrings with noted keys or from `opened`.

        Raises: as `Keyring.open`.
        """
        seen = self._seen.get(owner)
        if seen is None:
            return self.opened.writer(owner, scope, field)
        key_id = seen.data_keys.get(scope)
        if key_id is None:
            return None
        for keyring in keyrings:
            cipher = _cipher(keyring, key_id, field)
            if cipher is not None:
                return cipher
        return None

    def forget(self, owner: OwnerId) -> Place | None:
        """Forget an owner's noted keys, which the keyrings may have lost; return its place to look again."""
        seen = self._seen.pop(owner, None)
        return None if seen is None else seen.place

    def close(self) -> None:
        """End the transaction: forget its keys."""
        self._seen.clear()
        self.opened.wipe()


class FoundBySession(BySession[FoundKeys]):
    """The keys that each session's present transaction has found since its last look."""

    def now_in(self, session: Session) -> FoundKeys:
        """Return the keys that this session's transaction found."""
        look, found = looked_at(session), self.get(session)
        if found is None or found.look is not look or found.is_old:
            found = FoundKeys(look)
            self.put(session, found)
            note_end(session, found.close)
        return found

    def close(self) -> None:
        """End every transaction."""
        for found in self.all():
            found.close()
        self.clear()


def _cipher(keyring: Keyring, key_id: KeyId, field: Field) -> ValueCipher | None:
    stored = keyring.stored(key_id)
    if stored is None or stored.state is not KeyState.ACTIVE:
        return None
    try:
        return keyring.cipher(key_id, field)
    except EnvelopeError:
        return None  # the error is of an owner with the same name; this owner's own rows tell more
