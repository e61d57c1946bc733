"""The keys of a session that a ticket opened."""

from sqlalchemy_envelope.exceptions import EnvelopeError
from sqlalchemy_envelope.keys.keyring import Keyring
from sqlalchemy_envelope.keys.model import KeyId, OpenedKey, Purpose
from sqlalchemy_envelope.keys.ticket import CarriedKeys


class TicketKeyring(Keyring):
    """A keyring without a root key: it opens the keys that a ticket carries.

    A carried key opens only while stored ways lead to it from the owner's root key. No way is opened, for
    want of the root key; but a member who was removed, and has a ticket with the group's key, reads no more.

    Args:
        carried: the keys of the ticket. They are wiped with the keyring.
        root_id: the root key of the ticket's owner.
    """

    def __init__(self, carried: CarriedKeys, root_id: KeyId) -> None:
        super().__init__()
        self._carried = carried
        self._root_id = root_id

    def _open(self, key_id: KeyId, depth: int, tried: set[KeyId]) -> OpenedKey | None:
        opened, known = self._opened.get(key_id), self._stored.get(key_id)
        if opened is not None or known is None:
            return opened
        refused, altogether = self._refused.get(known[0], (None, False))
        if refused is not None and altogether:
            raise refused
        wiped = self._wiped
        try:
            opened = self._carried.open(known[1]) if self._is_reached(key_id) else None
        except EnvelopeError as error:
            refused = error
        if opened is None:
            if refused is not None and wiped == self._wiped:
                raise refused
            return None
        self._opened[key_id] = opened
        if wiped != self._wiped:  # a signal handler or another thread wiped, without waiting
            self._opened.pop(key_id, opened).key.wipe()
            return None
        return opened

    def leads_to(self, key_id: KeyId) -> bool:
        """Whether stored ways lead from the owner's root key to this root key, or this key is carried and
        opens."""
        known = self._stored.get(key_id)
        is_root = known is not None and known[1].purpose is Purpose.ROOT
        return self._is_reached(key_id) if is_root else super().leads_to(key_id)

    def _is_reached(self, key_id: KeyId) -> bool:
        """Whether stored ways lead from the owner's root key to this key."""
        walk = {key_id: None}
        frontier = [key_id]
        while frontier and self._root_id not in walk:
            frontier = [
                way.under for one in frontier for way in self._ways.get(one, ()) if way.under not in walk
            ]
            walk |= dict.fromkeys(frontier)
        return self._root_id in walk

    def wipe(self) -> None:
        """Forget and wipe all keys, those that were not used too."""
        super().wipe()
        self._carried.wipe()
