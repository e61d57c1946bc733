"""The keys that a server keeps, for all threads that it serves."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy_envelope.crypto.aead import HEADER_SIZE
from sqlalchemy_envelope.exceptions import EnvelopeError
from sqlalchemy_envelope.keys.keyring import Keyring
from sqlalchemy_envelope.keys.model import Purpose
from sqlalchemy_envelope.orm.sessions.kept_owners import KeptOwners

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.keys.model import KeyId, StoredKey
    from sqlalchemy_envelope.orm.current.providers import CachePolicy
    from sqlalchemy_envelope.orm.sharing.granted import Places
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass, Place


class KeptKeys:
    """Keys, whose they are, and how long they are kept.

    Attributes:
        owners: how long their keys are kept.
        keyring: the keys themselves.
    """

    def __init__(self, cache: CachePolicy, keyring: Keyring, places: Places) -> None:
        self.owners = KeptOwners(cache)
        self.keyring = keyring
        self._places = places

    def use(
        self, headers: Mapping[bytes, int], owner_of: Callable[[bytes], OwnerId | None]
    ) -> tuple[list[bytes], set[OwnerId]]:
        """Note the owners of values, so many of each, as in use; the headers whose keys are to be loaded, and
        the owners who are to be opened anew.

        Args:
            owner_of: tells of keys that are elsewhere.
        """
        missing, stale = [], set()
        with self.owners.guard:  # what is found here is not swept away before it is marked as in use
            for header, uses in headers.items():
                owner = self.keyring.owner_of(header)
                if owner is not None and owner in self.owners.stale:
                    stale.add(owner)
                    missing.append(header)
                elif owner is not None and self.leads_to(header):
                    self.owners.touch(owner, uses)
                elif len(header) == HEADER_SIZE and (owner is not None or owner_of(header) is None):
                    missing.append(header)
        return missing, stale

    def leads_to(self, header: bytes) -> bool:
        """Whether something that is known here opens this key, or says why it must not be opened."""
        try:
            return self.keyring.open(UUID(bytes=header[1:])) is not None
        except EnvelopeError:
            return True

    def is_ready(self, header: bytes) -> bool:
        """Whether the key of this value serves whoever reads it now."""
        owner = self.keyring.owner_of(header)
        return owner is not None and owner not in self.owners.stale and self.leads_to(header)

    def take_granted(self, places: Iterable[Place]) -> Counter[str]:
        """Note owners whom grants led to; how many are new here, by the name of their class."""
        opened: Counter[str] = Counter()
        for place in places:
            if place.owner not in self.owners.granted or place.owner in self.owners.stale:
                opened[place.owner_class.name] += 1
                self.owners.renew(place.owner)
            self.owners.granted.add(place.owner)
            self._places.setdefault(place.owner, place)
            self.owners.touch(place.owner)
        return opened

    def share(self, place: Place, keyring: Keyring) -> None:
        """Take in all of an owner's keys: they serve everybody, to read, and to write in transactions that
        find them."""
        owner, keys = place.owner, keyring.copy_of(place.owner)
        # Root keys first: as soon as a data key is known here, other threads take it to be open.
        for is_root in (True, False):
            some = [one for one in keys if (one.stored.purpose is Purpose.ROOT) is is_root]
            self.keyring.add(owner, some)
        self.keyring.add_stored(owner, keyring.keys_of(owner))
        self._places[owner] = place
        self.owners.whole.add(owner)
        self.owners.touch(owner)

    def needs(self, owner: OwnerId, root_id: KeyId) -> bool:
        """Whether an owner's root key is to be opened before its keys are used."""
        return not self.keyring.is_open(root_id) or owner in self.owners.stale

    def refuse(self, owner: OwnerId, keys: Sequence[StoredKey], error: EnvelopeError) -> None:
        """Whoever asks for these keys is told why they do not open."""
        self.keyring.refuse(owner, error, altogether=True)
        self.keyring.add_stored(owner, keys)

    def forget(self, owner: OwnerId) -> None:
        """Wipe an owner's keys."""
        self.owners.forget(owner)
        self._places.pop(owner, None)
        self.keyring.drop(owner)

    def forget_deleted(self, key_ids: Collection[KeyId]) -> bool:
        """Forget keys that are in the database no more, though their owner has others; whether any was
        here."""
        here = [(key_id, owner) for key_id in key_ids if (owner := self.keyring.owner_of_key(key_id))]
        gone = [(key_id, owner) for key_id, owner in here if owner not in self.owners.stale]
        for key_id, owner in gone:
            self.keyring.take_back(owner, [key_id], ())
        return bool(gone)

    def distrust(self, owner_classes: Collection[OwnerClass]) -> None:
        """The keys of owners of these classes are to be loaded anew before their next use."""
        with self.owners.guard:
            places = list(self._places.items())
            self.owners.distrust([owner for owner, place in places if place.owner_class in owner_classes])

    def sweep(self) -> bool:
        """Let go of owners over a limit, if it is time to look; whether there were any."""
        if not self.owners.is_sweep_due():
            return False
        with self.owners.guard:
            gone = self.owners.over_limit()
            for owner in gone:
                self.forget(owner)
        return bool(gone)

    def start_again(self) -> Keyring:
        """A forked child keeps none of its parent's keys; its new keyring."""
        self.owners.clear()
        self.keyring.wipe()
        self._places.clear()
        self.keyring = Keyring()  # the other one's lock may be held by a thread that is not here
        return self.keyring
