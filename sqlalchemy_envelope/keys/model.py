"""Keys as stored and as opened: frozen records that `orm` reads from and writes to its tables."""

import uuid
from dataclasses import dataclass, field
from enum import StrEnum

from sqlalchemy_envelope.crypto.secret import KeyBytes, Uncopied
from sqlalchemy_envelope.crypto.wrapping import WrapContext

KeyId = uuid.UUID


class Purpose(StrEnum):
    """What a key is for."""

    ROOT = "root"
    DATA = "data"
    INDEX = "index"


class KeyState(StrEnum):
    """Where a key stands in its life."""

    ACTIVE = "active"
    """Encrypts and decrypts."""
    RETIRED = "retired"
    """Decrypts what was written before."""
    DESTROYED = "destroyed"
    """Its bytes are gone."""


class SlotKind(StrEnum):
    """Who can open a key slot."""

    SECRET = "secret"  # noqa: S105 - the name of a kind, stored in rows


@dataclass(frozen=True)
class StoredKey:
    """One row of a key table. `wrapped` is None for a root key, which lives in its slots alone."""

    key_id: KeyId
    owner_reference: bytes
    purpose: Purpose
    scope: str
    epoch: int
    state: KeyState
    commitment: bytes
    public_key: bytes
    wrapping_key_id: KeyId | None = None
    wrapped: bytes | None = field(default=None, repr=False)

    def wrap_context(self, kind: str, kdf: str = "") -> bytes:
        """What a wrap of this key is bound to (wire format, section 4)."""
        return WrapContext(
            kind, self.key_id.bytes, self.owner_reference, self.purpose, self.scope, self.epoch, kdf
        ).encode()


@dataclass(frozen=True)
class StoredSlot:
    """One row of a key slot table: a wrap of a root key."""

    slot_id: uuid.UUID
    key_id: KeyId
    kind: SlotKind
    kdf: str
    wrapped: bytes = field(repr=False)


@dataclass(frozen=True)
class OpenedKey(Uncopied):
    """A key in memory beside the row that describes it."""

    stored: StoredKey
    key: KeyBytes = field(repr=False)
