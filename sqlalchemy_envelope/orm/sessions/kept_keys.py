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
    """Keys, with their owners and their limits.

    Attributes:
        owners: the owners whose keys are kept, with their time and uses.
        keyring: the keys.
    """

    def __init__(self, cache: CachePolicy, keyring: Keyring, places: Places) -> None:
        self.owners = KeptOwners(cache)
        self.keyring = keyring
        self._places = places

    def use(
        self, headers: Mapping[bytes, int], owner_of: Callable[[bytes], OwnerId | None]
    ) -> tuple[list[bytes], set[OwnerId]]:
        """Note the owners of values as in use.

        Args:
            headers: the headers of the values, with the number of values under each.
            owner_of: finds the owner of a key that is held elsewhere.

        Returns:
            The headers of keys to be loaded, and the owners to be opened anew.
        """
        missing, stale = [], set()
        with self.owners.guard:  # no owner found here is swept away before it is marked as in use
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
        """Tell whether this key opens with the keys held, or is known to be refused."""
        try:
            return self.keyring.open(UUID(bytes=header[1:])) is not None
        except EnvelopeError:
            return True

    def is_ready(self, header: bytes) -> bool:
        """Tell whether the key of this value can be used now."""
        owner = self.keyring.owner_of(header)
        return owner is not None and owner not in self.owners.stale and self.leads_to(header)

    def take_granted(self, places: Iterable[Place]) -> Counter[str]:
        """Note owners reached through grants; return the number of new owners, by the name of their class."""
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
        """Take in all of an owner's keys for all threads.

        Every transaction reads with them. A transaction that finds them in its database also writes with
        them.
        """
        owner, keys = place.owner, keyring.copy_of(place.owner)
        # Root keys first: as soon as a data key is known here, other threads assume that it is open.
        for is_root in (True, False):
            some = [one for one in keys if (one.stored.purpose is Purpose.ROOT) is is_root]
            self.keyring.add(owner, some)
        self.keyring.add_stored(owner, keyring.keys_of(owner))
        self._places[owner] = place
        self.owners.whole.add(owner)
        self.owners.touch(owner)

    def needs(self, owner: OwnerId, root_id: KeyId) -> bool:
        """Tell whether an owner's root key has to be opened before its keys are used."""
        return not self.keyring.is_open(root_id) or owner in self.owners.stale

    def refuse(self, owner: OwnerId, keys: Sequence[StoredKey], error: EnvelopeError) -> None:
        """Refuse to open these keys: a later use raises the error."""
        self.keyring.refuse(owner, error, altogether=True)
        self.keyring.add_stored(owner, keys)

    def forget(self, owner: OwnerId) -> None:
        """Wipe an owner's keys."""
        self.owners.forget(owner)
        self._places.pop(owner, None)
        self.keyring.drop(owner)

    def forget_deleted(self, key_ids: Collection[KeyId]) -> bool:
        """Forget keys that were deleted from the database, while their owner has others.

        Returns:
            Whether any of the keys was kept.
        """
        here = [(key_id, owner) for key_id in key_ids if (owner := self.keyring.owner_of_key(key_id))]
        gone = [(key_id, owner) for key_id, owner in here if owner not in self.owners.stale]
        for key_id, owner in gone:
            self.keyring.take_back(owner, [key_id], ())
        return bool(gone)

    def distrust(self, owner_classes: Collection[OwnerClass]) -> None:
        """Have the keys of all owners of these classes loaded anew before their next use."""
        with self.owners.guard:
            places = list(self._places.items())
            self.owners.distrust([owner for owner, place in places if place.owner_class in owner_classes])

    def sweep(self) -> bool:
        """Drop owners over a limit, if it is time to look; tell whether there were any."""
        if not self.owners.is_sweep_due():
            return False
        with self.owners.guard:
            gone = self.owners.over_limit()
            for owner in gone:
                self.forget(owner)
        return bool(gone)

    def start_again(self) -> Keyring:
        """Drop the parent's keys in a forked child, and return the child's new keyring."""
        self.owners.clear()
        self.keyring.wipe()
        self._places.clear()
        self.keyring = Keyring()  # the old keyring's lock may be held by a thread of the parent
        return self.keyring
