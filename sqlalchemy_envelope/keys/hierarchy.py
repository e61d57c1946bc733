"""Root and data keys: made, described, wrapped under one another, and opened again.

After every unwrap of every kind the commitment and the id are recomputed and compared: that makes all paths
key-committing, whatever wrapped the key.
"""

from dataclasses import replace
from hmac import compare_digest

from sqlalchemy_envelope.crypto import kdf
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.crypto.wrapping import unwrap, wrap
from sqlalchemy_envelope.exceptions import KeyNotFoundError, TamperedKeyError, UnlockError
from sqlalchemy_envelope.keys.model import KeyState, OpenedKey, Purpose, StoredKey


def describe(
    key: KeyBytes, owner_reference: bytes, purpose: Purpose, *, scope: str = "", epoch: int = 1
) -> OpenedKey:
    """A new key with the row that describes it, not wrapped yet."""
    commitment = kdf.commitment(key)
    stored = StoredKey(
        kdf.key_id_of(commitment),
        owner_reference,
        purpose,
        scope,
        epoch,
        KeyState.ACTIVE,
        commitment,
        kdf.x25519_public(key),
    )
    return OpenedKey(stored, key)


def verify(key: KeyBytes, stored: StoredKey) -> OpenedKey:
    """Whether an unwrapped key is the one its row describes.

    Raises:
        TamperedKeyError: it is not; the bytes were altered or exchanged.
    """
    commitment = kdf.commitment(key)
    expected = commitment + kdf.key_id_of(commitment).bytes + kdf.x25519_public(key)
    if not compare_digest(expected, stored.commitment + stored.key_id.bytes + stored.public_key):
        raise TamperedKeyError(f"Key {short(stored)} opened, but is not the key that its row describes.")
    return OpenedKey(stored, key)


def wrap_under_root(child: OpenedKey, root: OpenedKey) -> StoredKey:
    """The row of a data or index key, wrapped under its owner's root key."""
    stored = replace(child.stored, wrapping_key_id=root.stored.key_id)
    wrapped = wrap(child.key, kdf.subkey(root.key, "wrap"), stored.wrap_context("root"))
    return replace(stored, wrapped=wrapped)


def open_under_root(stored: StoredKey, root: OpenedKey) -> OpenedKey:
    """Open a data or index key.

    Raises:
        KeyNotFoundError: it is wrapped under another root than this one.
        TamperedKeyError: altered, or moved here from another owner, scope or epoch.
    """
    if stored.wrapping_key_id != root.stored.key_id or stored.wrapped is None:
        raise KeyNotFoundError(f"Key {short(stored)} is wrapped under a root key that is not here.")
    try:
        key = unwrap(stored.wrapped, kdf.subkey(root.key, "wrap"), stored.wrap_context("root"))
    except UnlockError:
        # The root key is right beyond doubt, so this is no wrong secret.
        raise TamperedKeyError(
            f"Key {short(stored)} was altered, or belongs to another owner or epoch."
        ) from None
    return verify(key, stored)


def short(stored: StoredKey) -> str:
    """The first eight hex digits of a key id: enough to find the row, fit for a message."""
    return stored.key_id.hex[:8]
