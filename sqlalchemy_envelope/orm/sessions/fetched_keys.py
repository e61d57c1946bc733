"""The keys that a server session loads for one fetch of rows.

They lie in a keyring of their own until all of them are loaded. Then `KeptKeys.share_fetched` shares them
with all threads at once: no thread finds a key before the keys that lead to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy_envelope.exceptions import ConfigurationError, EnvelopeError, ProviderError
from sqlalchemy_envelope.keys.keyring import Keyring
from sqlalchemy_envelope.keys.slots import open_slot
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.tables.owners import Place
from sqlalchemy_envelope.orm.tables.stored_rows import usable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.keys.model import KeyId, StoredKey, StoredSlot
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.sessions.provider_slots import ProviderSlots
    from sqlalchemy_envelope.orm.sharing.granted import Places
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass
    from sqlalchemy_envelope.orm.tables.stored_rows import OwnedKey


def opens(keyring: Keyring, key_id: KeyId) -> bool:
    """Tell whether a keyring opens this key, or knows that it is refused."""
    try:
        return keyring.open(key_id) is not None
    except EnvelopeError:
        return True


class FetchedKeys:
    """Keys of one fetch, with their owners.

    Args:
        slots: the slots of the provider.
        lend: copies the keys of an owner that the process has open already into a keyring.

    Attributes:
        keyring: the keys.
        places: the owners that a slot or a grant leads to.
        by_slot: the owners among them that a slot of the provider leads to.
        key_ids: the keys that are in the database.
    """

    def __init__(self, slots: ProviderSlots, lend: Callable[[OwnerId, Keyring], None]) -> None:
        self.keyring = Keyring()
        self.places: Places = {}
        self.by_slot: set[OwnerId] = set()
        self.key_ids: set[KeyId] = set()
        self._slots = slots
        self._lend = lend

    def leads_to(self, header: bytes) -> bool:
        """Tell whether the key of this value opens, or is known to be refused."""
        return opens(self.keyring, UUID(bytes=header[1:]))

    def take_in(
        self, desk: Desk, owner_class: OwnerClass, held: Sequence[tuple[OwnedKey, OwnedKey, StoredSlot]]
    ) -> None:
        """Take in data keys that were loaded with their root keys and slots."""
        where = Names(desk.session).where(owner_class)
        for data, root, slot in held:
            self.key_ids.add(data.stored.key_id)
            if not self._slots.opens(slot):
                continue
            self.places.setdefault(data.owner, Place(owner_class, data.primary_key, where))
            self.by_slot.add(data.owner)
            try:
                usable([root, data])
                self._open_root(desk, data.owner, root.stored, slot)
                self.keyring.add_stored(data.owner, [data.stored])
            except (ProviderError, ConfigurationError):
                raise
            except EnvelopeError as error:
                self.refuse(data.owner, [root.stored, data.stored], error)

    def _open_root(self, desk: Desk, owner: OwnerId, root: StoredKey, slot: StoredSlot) -> None:
        if not self.keyring.is_open(root.key_id):
            self._lend(owner, self.keyring)
        if not self.keyring.is_open(root.key_id):
            self.keyring.add(owner, [open_slot(slot, root, self._slots.kek(desk, slot))])

    def take_granted(self, places: Iterable[Place]) -> None:
        """Note owners that grants lead to. Their keys are in the keyring."""
        self.places.update((place.owner, place) for place in places)

    def refuse(self, owner: OwnerId, keys: Sequence[StoredKey], error: EnvelopeError) -> None:
        """Refuse to open these keys: a later use raises the error."""
        self.keyring.refuse(owner, error, altogether=True)
        self.keyring.add_stored(owner, keys)
