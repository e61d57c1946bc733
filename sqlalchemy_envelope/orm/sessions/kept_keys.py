"""The keys that a server keeps, for all threads that it serves."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy_envelope.crypto.aead import HEADER_SIZE
from sqlalchemy_envelope.exceptions import EnvelopeError
from sqlalchemy_envelope.keys.keyring import Keyring
from sqlalchemy_envelope.orm.sessions.fetched_keys import FetchedKeys, opens
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
    ) -> tuple[list[bytes], set[OwnerId], int]:
        """Note the owners of values as in use.

        Args:
            headers: the headers of the values, with the number of values under each.
            owner_of: finds the owner of a key that is held elsewhere.

        Returns:
            The headers of keys to be loaded, the owners to be opened anew, and the present moment.
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
            return missing, stale, self.owners.moment

    def leads_to(self, header: bytes) -> bool:
        """Tell whether this key opens with the keys held, or is known to be refused."""
        return opens(self.keyring, UUID(bytes=header[1:]))

    def lend(self, owner: OwnerId, keyring: Keyring) -> None:
        """Copy an owner's open keys into another keyring, unless the owner has to be opened anew."""
        with self.owners.guard:
            if owner not in self.owners.stale:
                keyring.add(owner, self.keyring.copy_of(owner))

    def share_fetched(self, fetched: FetchedKeys, moment: int) -> tuple[Counter[str], bool]:
        """Share the keys of one fetch with all threads, all at once.

        Args:
            fetched: the keys.
            moment: the moment before the keys were loaded. Owners that became stale later remain stale.

        Returns:
            The number of owners that were opened anew, by the name of their class; and whether any of them
            was stale, so that readers of its values have to be made anew.
        """
        opened: Counter[str] = Counter()
        with self.owners.guard:
            stale = fetched.places.keys() & self.owners.stale.keys()
            for owner, place in fetched.places.items():
                is_new = owner in stale or owner not in self.keyring
                if owner in stale and owner not in fetched.by_slot:
                    self.keyring.take_back(owner, self._lost(owner, fetched), ())
                self.keyring.take(fetched.keyring, owner)
                if is_new and fetched.keyring.refusal(owner) is None:
                    opened[place.owner_class.name] += 1
                if is_new:
                    self.owners.renew(owner, moment)
                if owner not in fetched.by_slot:
                    self.owners.granted.add(owner)
                self._places.setdefault(owner, place)
                self.owners.touch(owner)
        return opened, bool(stale)

    def _lost(self, owner: OwnerId, fetched: FetchedKeys) -> list[KeyId]:
        """Return the open keys of an owner that no grant leads to any more."""
        key_ids = [key.key_id for key in self.keyring.keys_of(owner)]
        return [one for one in key_ids if self.keyring.is_open(one) and not opens(fetched.keyring, one)]

    def share(self, place: Place, keyring: Keyring) -> None:
        """Take in all of an owner's keys for all threads.

        Every transaction reads with them. A transaction that finds them in its database also writes with
        them.
        """
        owner, keys = place.owner, keyring.copy_of(place.owner)
        with self.owners.guard:
            self.keyring.add(owner, keys)
            self.keyring.add_stored(owner, keyring.keys_of(owner))
            self._places[owner] = place
            self.owners.whole.add(owner)
            self.owners.touch(owner)

    def refuse(self, owner: OwnerId, keys: Sequence[StoredKey], error: EnvelopeError) -> None:
        """Refuse to open these keys: a later use raises the error."""
        self.keyring.refuse(owner, error, altogether=True)
        self.keyring.add_stored(owner, keys)

    def forget(self, owner: OwnerId) -> None:
        """Wipe an owner's keys."""
        self.owners.forget(owner)
        self._places.pop(owner, None)
        self.keyring.drop(owner)

    def forget_stale(self, owners: Iterable[OwnerId]) -> None:
        """Wipe the keys of owners that nothing leads to any more.

        An owner that is no longer stale was opened anew by another thread, and stays.
        """
        with self.owners.guard:
            for owner in owners:
                if owner in self.owners.stale:
                    self.forget(owner)

    def forget_deleted(self, key_ids: Collection[KeyId]) -> bool:
        """Forget keys that were deleted from the database, while their owner has others.

        Returns:
            Whether any of the keys was kept.
        """
        with self.owners.guard:
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
