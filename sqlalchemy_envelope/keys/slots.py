"""Key slots: each is one way to reach the root key, stored as one wrap of it under a KEK.

A secret slot derives its KEK from what the owner knows; a provider slot has it unwrapped by a key that lies
outside. Both store the KEK's public key, so that a new root key can be put into a slot by whoever makes it.
"""

import uuid
from dataclasses import dataclass, replace
from hmac import compare_digest

from sqlalchemy_envelope.crypto.argon2id import KdfSalt
from sqlalchemy_envelope.crypto.kdf import x25519_public
from sqlalchemy_envelope.crypto.sealing import FORMAT_SEALED, PublicKeys, open_key, seal_key
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.crypto.wrapping import unwrap, wrap
from sqlalchemy_envelope.exceptions import ProviderError, TamperedKeyError, TransactionConflictError
from sqlalchemy_envelope.keys.hierarchy import verify
from sqlalchemy_envelope.keys.model import OpenedKey, SlotKind, StoredKey, StoredSlot


@dataclass(frozen=True)
class ProviderKek:
    """A KEK that a provider wrapped; one serves many slots, so that not each of them costs a call."""

    reference: str
    wrapped: bytes
    public_key: bytes
    key: KeyBytes | None = None


def secret_slot(
    root: OpenedKey, kek: KeyBytes, salt: KdfSalt, slot_id: uuid.UUID | None = None
) -> StoredSlot:
    """The slot that a secret opens. Its salt string is part of the wrap's context:
    altering it locks the slot."""
    wrapped = wrap(root.key, kek, root.stored.wrap_context(SlotKind.SECRET, str(salt)))
    return StoredSlot(
        slot_id or uuid.uuid4(),
        root.stored.key_id,
        SlotKind.SECRET,
        str(salt),
        wrapped,
        recipient_public_key=x25519_public(kek),
    )


def provider_slot(root: OpenedKey, kek: ProviderKek) -> StoredSlot:
    """The slot that a provider opens."""
    slot = StoredSlot(
        uuid.uuid4(),
        root.stored.key_id,
        SlotKind.PROVIDER,
        "",
        b"",
        recipient_public_key=kek.public_key,
        provider_ref=kek.reference,
        provider_wrapped=kek.wrapped,
    )
    if kek.key is None:
        return sealed_slot(root, slot)
    return replace(slot, wrapped=_wrap_in_slot(root, slot, kek.key))


def waiting_slot(root: StoredKey, kek: KeyBytes, salt: KdfSalt) -> StoredSlot:
    """The slot of a secret that was chosen while nobody present could open the root key."""
    public_key = x25519_public(kek)
    return StoredSlot(uuid.uuid4(), root.key_id, SlotKind.SECRET, str(salt), b"", public_key)


def is_waiting(slot: StoredSlot) -> bool:
    """Whether a slot has no root key in it yet."""
    return slot.kind is SlotKind.SECRET and not slot.wrapped


def opens_waiting(slot: StoredSlot, kek: KeyBytes) -> bool:
    """Whether this is the KEK that a waiting slot waits with."""
    return compare_digest(x25519_public(kek), slot.recipient_public_key or b"")


def released_slot(root: OpenedKey, waiting: StoredSlot) -> StoredSlot:
    """A waiting slot with the root key sealed into it, by who holds that."""
    return replace(sealed_slot(root, replace(waiting, wrapped=b"-")), slot_id=waiting.slot_id)


def sealed_slot(root: OpenedKey, like: StoredSlot) -> StoredSlot:
    """A slot for a new root key, which opens as `like` does; made without what opens it."""
    assert like.recipient_public_key is not None  # noqa: S101 - asked by `can_take_new_root`
    if is_waiting(like):
        # Whoever planted it would be given the new key: it goes on waiting for who may release it.
        return replace(like, slot_id=uuid.uuid4(), key_id=root.stored.key_id, seal=None)
    context = root.stored.wrap_context(like.kind, like.kdf, recipient=like.recipient_public_key)
    wrapped = seal_key(root.key, PublicKeys(like.recipient_public_key), context)
    return replace(like, slot_id=uuid.uuid4(), key_id=root.stored.key_id, wrapped=wrapped, seal=None)


def open_slot(slot: StoredSlot, root: StoredKey, kek: KeyBytes) -> OpenedKey:
    """Reach the root key through a slot with its KEK.

    Raises:
        FormatError, TruncatedError: neither wrapped nor sealed to the X25519 pair that a KEK has.
        UnlockError: another secret, or an altered slot.
        TamperedKeyError: the KEK is right and the stored bytes or the public key were altered.
    """
    if slot.wrapped[:1] == bytes([FORMAT_SEALED]):
        context = root.wrap_context(slot.kind, slot.kdf, recipient=slot.recipient_public_key or b"")
        opened = verify(open_key(slot.wrapped, kek, context), root)
    else:
        opened = verify(unwrap(slot.wrapped, kek, root.wrap_context(slot.kind, slot.kdf)), root)
    public_key = kek.public_key if isinstance(kek, SharedKek) else x25519_public(kek)
    if slot.recipient_public_key not in (None, public_key):
        opened.key.wipe()
        raise TamperedKeyError(
            "A key slot opened, and its public key is another's: a new epoch would be theirs."
        )
    return opened


def adopted_slot(slot: StoredSlot, root: OpenedKey, kek: KeyBytes) -> StoredSlot:
    """A sealed slot, wrapped under its KEK from now on."""
    return replace(slot, wrapped=_wrap_in_slot(root, slot, kek))


def _wrap_in_slot(root: OpenedKey, slot: StoredSlot, kek: KeyBytes) -> bytes:
    wrapped = wrap(root.key, kek, root.stored.wrap_context(slot.kind, slot.kdf))
    if not any(kek.buffer):
        # A campaign was closed by another thread meanwhile: under 32 zeros anybody would open it.
        raise TransactionConflictError(
            "The key of a slot was wiped at the same moment; nothing was changed. Run the transaction again."
        )
    return wrapped


def kek_context(public_key: bytes) -> dict[str, str]:
    """What a provider is asked to bind its wrap of a KEK to (section 8)."""
    return {"library": "sqlalchemy-envelope/v1", "kek": public_key.hex()}


class SharedKek(KeyBytes):
    """A KEK that serves many slots, with its public key worked out once: that costs more than to open one."""

    __slots__ = ("public_key",)

    def __init__(self, data: bytes | bytearray) -> None:
        super().__init__(data)
        self.public_key = x25519_public(self)


def check_kek(kek: KeyBytes, slot: StoredSlot) -> SharedKek:
    """Whether a provider answered with the KEK of this slot.

    Raises:
        ProviderError: it answered with another key.
    """
    shared = SharedKek(kek.buffer)
    kek.wipe()
    if shared.public_key != slot.recipient_public_key:
        shared.wipe()
        raise ProviderError(f"The provider behind {slot.provider_ref!r} answered with another key.")
    return shared
