"""Root and data keys: made, described, wrapped under one another, and opened again.

After every unwrap of every kind the commitment and the id are recomputed and compared: that makes all paths
key-committing, whatever wrapped the key.
"""

from collections.abc import Sequence
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
    # One by one: joined, bytes could move from one column of the row to the next and still compare equal.
    same = (
        compare_digest(commitment, stored.commitment),
        compare_digest(kdf.key_id_of(commitment).bytes, stored.key_id.bytes),
        compare_digest(kdf.x25519_public(key), stored.public_key),
    )
    if not all(same):
        raise TamperedKeyError(f"Key {short(stored)} opened, but is not the key that its row describes.")
    return OpenedKey(stored, key)


def check_generations(keys: Sequence[StoredKey]) -> None:
    """Whether each kind of key has one active generation, and it is the newest.

    The state is part of no wrap, so that a key can be retired without what wraps it. A row that was made
    active again, to have new values encrypted under a key that somebody was shut out from, shows here alone;
    so does a second root beside the genuine one.

    Raises:
        TamperedKeyError: two are active, or a newer one than the active is not.
    """
    for kind in {(key.purpose, "" if key.purpose is Purpose.ROOT else key.scope) for key in keys}:
        of_kind = [
            k for k in keys if k.purpose is kind[0] and (k.purpose is Purpose.ROOT or k.scope == kind[1])
        ]
        if all(key.state is KeyState.DESTROYED for key in of_kind):
            continue
        newest = max(of_kind, key=lambda key: key.epoch)
        if [key for key in of_kind if key.state is KeyState.ACTIVE] != [newest]:
            raise TamperedKeyError(
                f"The active {kind[0]} key of this owner is not the newest one, or is not the only one."
            )


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
