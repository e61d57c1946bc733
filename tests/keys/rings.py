"""Keyrings with keys in them, and ways from key to key."""

from dataclasses import replace

from sqlalchemy_envelope.crypto.aead import Field, ValueCipher
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.keys.hierarchy import describe, wrap_under_root
from sqlalchemy_envelope.keys.keyring import Keyring
from sqlalchemy_envelope.keys.model import KeyState, OpenedKey, Purpose

ADA, BEN = b"ada", b"ben"
BODY, TITLE = Field("notes.body", "str"), Field("notes.title", "str")


def opened(
    epoch: int = 1, state: KeyState = KeyState.ACTIVE, purpose: Purpose = Purpose.DATA, owner: bytes = ADA
) -> OpenedKey:
    made = describe(KeyBytes.generate(), owner, purpose, epoch=epoch)
    return OpenedKey(replace(made.stored, state=state), made.key)


def raw(key: OpenedKey) -> bytes:
    return bytes(key.key.buffer)


def writer(ring: Keyring, owner: bytes = ADA, field: Field = BODY) -> ValueCipher:
    cipher = ring.writer(owner, "", field)
    assert cipher is not None
    return cipher


def cipher_of(key: OpenedKey, field: Field = BODY) -> ValueCipher:
    """A cipher made beside the ring, with a copy of the key that nothing wipes."""
    return ValueCipher(KeyBytes(key.key.buffer), key.stored.key_id, field)


def root_of(owner: bytes, epoch: int = 1) -> OpenedKey:
    return opened(epoch, KeyState.ACTIVE, Purpose.ROOT, owner)


def under(root: OpenedKey, key: OpenedKey) -> OpenedKey:
    return OpenedKey(wrap_under_root(key, root), key.key)
