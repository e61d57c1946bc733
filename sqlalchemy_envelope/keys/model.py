"""Keys as stored and as opened: frozen records that `orm` reads from and writes to its tables."""

import uuid
from dataclasses import dataclass, field
from enum import StrEnum

from sqlalchemy_envelope.crypto.sealing import PublicKeys
from sqlalchemy_envelope.crypto.secret import KeyBytes, Uncopied
from sqlalchemy_envelope.crypto.wrapping import WrapContext

KeyId = uuid.UUID


class Purpose(StrEnum):
    """What a key is for."""

    ROOT = "root"
    DATA = "data"
    INDEX = "index"
    WRITE = "write"
    """A sealed write epoch: made by somebody who could not read, for an owner who was locked."""


class KeyState(StrEnum):
    """Where a key stands in its life."""

    ACTIVE = "active"
    """Encrypts and decrypts."""
    RETIRED = "retired"
    """Decrypts what was written before. Write epochs are born so: their owner never writes under them."""
    DESTROYED = "destroyed"
    """Its bytes are gone."""


class SlotKind(StrEnum):
    """Who can open a key slot."""

    SECRET = "secret"  # noqa: S105 - the name of a kind, stored in rows
    PROVIDER = "provider"


class GrantState(StrEnum):
    """Where a grant stands."""

    PENDING = "pending"
    """Nobody present held the key, or the recipient has none yet: the next holder seals it."""
    SEALED = "sealed"
    """Sealed to the recipient's public key, who was away."""
    ADOPTED = "adopted"
    """Opened by the recipient, and wrapped under the recipient's own root key."""


@dataclass(frozen=True)
class StoredKey:
    """One row of a key table.

    Attributes:
        wrapping_key_id: the root key it is wrapped under or sealed to; of a retired root key, a newer one.
        wrapped: its wrap under that key. An active root key has none here; it lives in its slots and grants.
        proof: of a root key, that whoever made it held an earlier one (`hierarchy.proof_of_epoch`).
        granted: how many grants were made of it; fewer rows than that, and somebody was removed.
        seal: the row seal, where server keys are configured.
    """

    key_id: KeyId
    owner_reference: bytes
    purpose: Purpose
    scope: str
    epoch: int
    state: KeyState
    commitment: bytes
    public_key: bytes
    mlkem_public_key: bytes | None = None
    wrapping_key_id: KeyId | None = None
    wrapped: bytes | None = field(default=None, repr=False)
    proof: bytes | None = field(default=None, repr=False)
    granted: int = 0
    seal: bytes | None = field(default=None, repr=False)

    @property
    def public_keys(self) -> PublicKeys:
        """What keys are sealed to, for its owner."""
        return PublicKeys(self.public_key, self.mlkem_public_key)

    def wrap_context(self, kind: str, kdf: str = "", recipient: bytes = b"", granter: bytes = b"") -> bytes:
        """What a wrap of this key is bound to (wire format, section 4)."""
        return WrapContext(
            kind,
            self.key_id.bytes,
            self.owner_reference,
            self.purpose,
            self.scope,
            self.epoch,
            kdf,
            recipient,
            granter,
        ).encode()

    def sealed_fields(self) -> list[bytes]:
        """The columns that the row seal covers (section 9)."""
        return [
            b"key",
            self.key_id.bytes,
            self.owner_reference,
            self.purpose.encode("ascii"),
            self.scope.encode("utf-8"),
            self.epoch.to_bytes(4, "big"),
            self.state.encode("ascii"),
            self.commitment,
            self.public_key,
            self.mlkem_public_key or b"",
            self.wrapping_key_id.bytes if self.wrapping_key_id is not None else b"",
            self.wrapped or b"",
        ]


@dataclass(frozen=True)
class StoredSlot:
    """One row of a key slot table: a wrap of a root key under a KEK.

    Attributes:
        kdf: how a secret becomes the KEK; empty for a provider.
        recipient_public_key: the KEK's public key, so that a new root key can be put into the slot by whoever
            makes it, without the secret or the provider.
        provider_ref: which outside key wraps the KEK.
        provider_wrapped: the KEK, wrapped by the provider.
    """

    slot_id: uuid.UUID
    key_id: KeyId
    kind: SlotKind
    kdf: str
    wrapped: bytes = field(repr=False)
    recipient_public_key: bytes | None = None
    provider_ref: str | None = None
    provider_wrapped: bytes | None = field(default=None, repr=False)
    seal: bytes | None = field(default=None, repr=False)

    def sealed_fields(self) -> list[bytes]:
        """The columns that the row seal covers (section 9)."""
        return [
            b"slot",
            self.slot_id.bytes,
            self.key_id.bytes,
            self.kind.encode("ascii"),
            self.kdf.encode("utf-8"),
            self.recipient_public_key or b"",
            (self.provider_ref or "").encode("utf-8"),
            self.provider_wrapped or b"",
            self.wrapped,
        ]


@dataclass(frozen=True)
class StoredGrant:
    """One row of a grant table: a key of one owner, for another.

    Attributes:
        granting_row: which row of the application is the right to it (section 4).
        recipient_key_id: the recipient's root key that it is sealed to or wrapped under.
        recipient: whose that is; the granting row names somebody, and this is under the row seal.
    """

    grant_id: uuid.UUID
    granting_row: bytes
    key_id: KeyId
    recipient_key_id: KeyId | None
    state: GrantState
    wrapped: bytes | None = field(default=None, repr=False)
    seal: bytes | None = field(default=None, repr=False)
    recipient: bytes = b""

    def sealed_fields(self) -> list[bytes]:
        """The columns that the row seal covers (section 9)."""
        return [
            b"grant",
            self.grant_id.bytes,
            self.granting_row,
            self.recipient,
            self.key_id.bytes,
            self.recipient_key_id.bytes if self.recipient_key_id is not None else b"",
            self.state.encode("ascii"),
            self.wrapped or b"",
        ]


@dataclass(frozen=True)
class OpenedKey(Uncopied):
    """A key in memory beside the row that describes it."""

    stored: StoredKey
    key: KeyBytes = field(repr=False)


@dataclass(frozen=True)
class Wrap:
    """One stored way to a key: under, or sealed to, another key.

    Attributes:
        under: the id of that other key, a root key.
        kind: what kind of wrap it is (wire format, section 4).
        granter: of a grant, the granting row.
        sealed: whether it must be sealed, and so may be anybody's; else only a holder of `under` made it.
    """

    under: KeyId
    blob: bytes = field(repr=False)
    kind: str
    granter: bytes = field(default=b"", repr=False)
    sealed: bool = False

    def context(self, stored: StoredKey) -> bytes:
        """What the wrap of this key is bound to. Worked out when it is opened: most never are."""
        recipient = b"" if self.kind == "root" else self.under.bytes
        return stored.wrap_context(self.kind, recipient=recipient, granter=self.granter)
