"""Key slots: each is one way to reach the root key, stored as one wrap of it."""

import uuid

from sqlalchemy_envelope.crypto.argon2id import KdfSalt
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.crypto.wrapping import unwrap, wrap
from sqlalchemy_envelope.keys.hierarchy import verify
from sqlalchemy_envelope.keys.model import OpenedKey, SlotKind, StoredKey, StoredSlot


def secret_slot(
    root: OpenedKey, kek: KeyBytes, salt: KdfSalt, slot_id: uuid.UUID | None = None
) -> StoredSlot:
    """The slot that a secret opens. Its salt string is part of the wrap's context:
    altering it locks the slot."""
    wrapped = wrap(root.key, kek, root.stored.wrap_context(SlotKind.SECRET, str(salt)))
    return StoredSlot(slot_id or uuid.uuid4(), root.stored.key_id, SlotKind.SECRET, str(salt), wrapped)


def open_secret_slot(slot: StoredSlot, root: StoredKey, kek: KeyBytes) -> OpenedKey:
    """Reach the root key through a secret slot.

    Raises:
        UnlockError: another secret, or an altered slot.
        TamperedKeyError: the secret is right and the stored bytes were altered.
    """
    key = unwrap(slot.wrapped, kek, root.wrap_context(SlotKind.SECRET, slot.kdf))
    return verify(key, root)
