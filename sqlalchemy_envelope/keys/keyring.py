"""The opened keys of one unlocked session, by id and by owner, with the ciphers built from them."""

from collections.abc import Iterable, Iterator

from sqlalchemy_envelope.crypto.aead import HEADER_SIZE, Field, ValueCipher
from sqlalchemy_envelope.crypto.secret import Uncopied
from sqlalchemy_envelope.keys.model import KeyState, OpenedKey, Purpose

OwnerId = bytes
"""An owner's table label and primary key, encoded without ambiguity (`crypto.context.owner_reference`)."""


class Keyring(Uncopied):
    """Data keys by id, the current one of each owner, and cached ciphers per (key, field).

    A cipher costs three times a value to build, so each is built once and lives as long as the keyring.
    """

    def __init__(self) -> None:
        self._keys: dict[bytes, tuple[OwnerId, OpenedKey]] = {}
        self._current: dict[OwnerId, OpenedKey] = {}
        self._ciphers: dict[tuple[bytes, Field], ValueCipher] = {}

    def add(self, owner: OwnerId, keys: Iterable[OpenedKey]) -> None:
        """Take an owner's opened data keys in."""
        for opened in keys:
            if opened.stored.purpose is Purpose.DATA:
                self._keys[opened.stored.key_id.bytes] = (owner, opened)
                if opened.stored.state is KeyState.ACTIVE:
                    self._current[owner] = opened

    def drop(self, owner: OwnerId) -> None:
        """Forget and wipe one owner's keys."""
        self._current.pop(owner, None)
        for key_id in [key_id for key_id, (of, _) in self._keys.items() if of == owner]:
            self._keys.pop(key_id)[1].key.wipe()
            for entry in [entry for entry in self._ciphers if entry[0] == key_id]:
                del self._ciphers[entry]

    def wipe(self) -> None:
        """Forget and wipe everything."""
        opened = [one for _, one in self._keys.values()]
        # Forgotten first: `_cipher` relies on it.
        self._keys.clear()
        self._current.clear()
        self._ciphers.clear()
        for one in opened:
            one.key.wipe()

    def reader(self, header: bytes, field: Field) -> ValueCipher | None:
        """The cipher for a stored value that starts with `header`, or None if its key is not here."""
        key_id = bytes(header[1:HEADER_SIZE])
        found = self._keys.get(key_id)
        return None if found is None else self._cipher(key_id, found[1], field)

    def writer(self, owner: OwnerId, field: Field) -> ValueCipher | None:
        """The cipher that encrypts new values of an owner, or None if its keys are not here."""
        opened = self._current.get(owner)
        return None if opened is None else self._cipher(opened.stored.key_id.bytes, opened, field)

    def owner_of(self, header: bytes) -> OwnerId | None:
        """Whose key a stored value names."""
        found = self._keys.get(bytes(header[1:HEADER_SIZE]))
        return None if found is None else found[0]

    def _cipher(self, key_id: bytes, opened: OpenedKey, field: Field) -> ValueCipher | None:
        cipher = self._ciphers.get((key_id, field))
        if cipher is None:
            cipher = self._ciphers[key_id, field] = ValueCipher(opened.key, opened.stored.key_id, field)
            if key_id not in self._keys:
                # Another thread wiped the key while the cipher was built: it may be a cipher under 32 zeros.
                self._ciphers.pop((key_id, field), None)
                return None
        return cipher

    def __contains__(self, owner: OwnerId) -> bool:
        return owner in self._current

    def __iter__(self) -> Iterator[OwnerId]:
        return iter(self._current)

    def __len__(self) -> int:
        return len(self._current)

    def __repr__(self) -> str:
        return f"<Keyring of {len(self._keys)} keys>"
