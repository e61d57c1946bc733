"""Keys, slots and grants as stored and as opened: frozen records, which `orm` reads and writes as rows."""

import datetime as dt
import uuid
from dataclasses import dataclass, field
from enum import StrEnum

from sqlalchemy_envelope.crypto.key_share import KeyShare
from sqlalchemy_envelope.crypto.sealing import PublicKeys
from sqlalchemy_envelope.crypto.secret import KeyBytes, Uncopied
from sqlalchemy_envelope.crypto.wrapping import WrapContext

KeyId = uuid.UUID


class Purpose(StrEnum):
    """The use of a key (section 2)."""

    ROOT = "root"
    DATA = "data"
    INDEX = "index"
    WRITE = "write"
    """The key of a sealed write epoch: made without the right to read, for an owner who was locked."""


class KeyState(StrEnum):
    """The state of a key in its life (section 2)."""

    ACTIVE = "active"
    """Encrypts and decrypts."""
    RETIRED = "retired"
    """Decrypts old values. A write epoch is retired from birth: its owner never encrypts under it."""
    DESTROYED = "destroyed"
    """Its bytes are gone: nothing opens the values under it."""


class SlotKind(StrEnum):
    """What opens a key slot."""

    SECRET = "secret"  # noqa: S105 - the name of a kind, stored in rows
    """A secret that the owner knows."""
    PROVIDER = "provider"
    """An outside key: of a server, a KMS or a campaign."""
    RECOVERY = "recovery"
    """A recovery code that the owner keeps."""
    ESCROW = "escrow"
    """The private half of a public key that the application's configuration names."""
    EMERGENCY = "emergency"
    """A person whom the owner named, after a waiting time that the server keeps."""


class GrantState(StrEnum):
    """The state of a grant (section 4)."""

    PENDING = "pending"
    """It has no key yet: nobody present held the key, or the recipient had none. The next holder seals it."""
    SEALED = "sealed"
    """The key is sealed to the recipient's public key: the recipient was away."""
    ADOPTED = "adopted"
    """The recipient opened the key, and wrapped it under the recipient's own root key."""


@dataclass(frozen=True)
class StoredKey:
    """One row of a key table (section 2).

    Attributes:
        owner_reference: the owner that the key is bound to (section 1).
        epoch: the generation of the key: within its owner, or within owner and scope.
        commitment: 32 public bytes that no other key has.
        public_key: the X25519 public key, 32 bytes.
        mlkem_public_key: the ML-KEM-768 public key of a hybrid key, 1,184 bytes.
        wrapping_key_id: the root key that this key is wrapped under or sealed to; of a retired root key, a
            newer root key.
        wrapped: the wrap or seal under that key. An active root key has none: slots and grants hold it.
        proof: of a root key, the proof that its maker held an earlier one (`hierarchy.proof_of_epoch`), 32 or
            64 bytes.
        granted: how many grants of the key were made. If fewer rows are left, somebody was removed.
        seal: the row seal, 48 bytes, where server keys are configured.
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
        """The public half of the key; others seal keys of its owner to it."""
        return PublicKeys(self.public_key, self.mlkem_public_key)

    def wrap_context(self, kind: str, kdf: str = "", recipient: bytes = b"", granter: bytes = b"") -> bytes:
        """The bytes that a wrap of this key is bound to (section 4).

        Args:
            kind, kdf, recipient, granter: see `WrapContext`.
        """
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
    """One row of a key slot table: a root key, wrapped under or sealed to a KEK.

    Attributes:
        key_id: the id of the root key.
        kdf: the PHC salt string with which a secret becomes the KEK; empty for a provider.
        wrapped: the root key, in format 0x11 or 0x12; empty while the slot waits.
        recipient_public_key: the X25519 public key of the KEK, 32 bytes. The maker of a new root key seals it
            into the slot with this key, without the secret or the provider.
        provider_ref: the name of the provider, and which of its keys wraps the KEK.
        provider_wrapped: the KEK, wrapped by the provider (format 0x14).
        seal: the row seal, 48 bytes, where server keys are configured.
        label: a name for people, such as "phone". Under no seal, as the times.
        created_at: when the slot was made, for this root key or an earlier one; None for a new slot.
        used_at: when the slot last opened its root key, to the day.
        unacknowledged_since: when the slot was added, while its owner has not acknowledged it.
        under_pepper: of a slot that was loaded or replaced, what the row holds in place of `wrapped` and
            `recipient_public_key` (format 0x15); None if the row has no pepper.
        share: of a new slot, the share of its KEK, which is stored in the second database before the slot.
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
    label: str | None = None
    created_at: dt.datetime | None = None
    used_at: dt.datetime | None = None
    unacknowledged_since: dt.datetime | None = None
    under_pepper: bytes | None = field(default=None, repr=False, compare=False)
    share: KeyShare | None = field(default=None, repr=False, compare=False)

    @property
    def in_row(self) -> bytes:
        """The wrap as the row holds it."""
        return self.wrapped if self.under_pepper is None else self.under_pepper

    def opens_like(self, other: "StoredSlot") -> bool:
        """Whether the same KEK opens both slots, each of another root key. Where their public keys are under
        a pepper that is not configured, slots of the same label count as such."""
        return self._kek() == other._kek()

    def _kek(self) -> tuple[object, ...]:
        known = self.recipient_public_key is not None
        return self.kind, self.kdf, self.recipient_public_key, known or self.label

    @property
    def provider_name(self) -> str:
        """The name of the provider that opens the slot; empty for a secret's."""
        return (self.provider_ref or "").partition(" ")[0]

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
    """One row of a grant table: a key of one owner, stored for another owner.

    Attributes:
        granting_row: the reference of the application's row that gives the right (section 4).
        key_id: the id of the granted key.
        recipient_key_id: the recipient's root key that the granted key is sealed to or wrapped under.
        wrapped: the granted key; None while the grant is pending.
        seal: the row seal, 48 bytes, where server keys are configured.
        recipient: the owner reference of the recipient. The granting row names the recipient too, but this
            column is under the row seal.
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
    """A key in memory, with the row that describes it."""

    stored: StoredKey
    key: KeyBytes = field(repr=False)


@dataclass(frozen=True)
class Wrap:
    """One stored way to a key: a blob that is wrapped under another key, or sealed to it.

    Attributes:
        under: the id of the other key, a root key.
        kind: the kind of the wrap (section 4).
        granter: the granting row, if the kind is `grant`.
        sealed: whether the blob must be sealed. Anybody can have made it then; otherwise only a holder of
            `under` can.
    """

    under: KeyId
    blob: bytes = field(repr=False)
    kind: str
    granter: bytes = field(default=b"", repr=False)
    sealed: bool = False

    def context(self, stored: StoredKey) -> bytes:
        """The bytes that the wrap of this key is bound to, made when the wrap is opened: most never are."""
        recipient = b"" if self.kind == "root" else self.under.bytes
        return stored.wrap_context(self.kind, recipient=recipient, granter=self.granter)
