"""Key slots: each stores the root key, wrapped under or sealed to a key-encryption key, the KEK (section 4).

The KEK of a secret slot is derived from a secret that the owner knows. The KEK of a provider slot is
unwrapped by an outside key. Both slots store the KEK's public key, so that the maker of a new root key can
put it into the slot without the secret or the provider.
"""

import datetime as dt
import uuid
from dataclasses import dataclass, replace
from hmac import compare_digest

from sqlalchemy_envelope.crypto.argon2id import KdfSalt
from sqlalchemy_envelope.crypto.kdf import x25519_public
from sqlalchemy_envelope.crypto.key_share import KeyShare
from sqlalchemy_envelope.crypto.peppering import WAITING_SIZE, is_peppered
from sqlalchemy_envelope.crypto.sealing import FORMAT_SEALED, PublicKeys, open_key, seal_key
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.crypto.wrapping import unwrap, wrap
from sqlalchemy_envelope.exceptions import ProviderError, TamperedKeyError, TransactionConflictError
from sqlalchemy_envelope.keys.hierarchy import verify
from sqlalchemy_envelope.keys.model import OpenedKey, SlotKind, StoredKey, StoredSlot
from sqlalchemy_envelope.keys.pepper import require_open


@dataclass(frozen=True)
class ProviderKek:
    """A KEK that a provider wrapped. One KEK serves many slots, so that not each slot costs a call.

    Attributes:
        reference: the name of the provider, and which of its keys wrapped.
        wrapped: the KEK in format 0x14.
        public_key: the X25519 public key of the KEK, 32 bytes.
        key: the KEK itself; None if only the public half is here.
    """

    reference: str
    wrapped: bytes
    public_key: bytes
    key: KeyBytes | None = None


def new_slot(
    root: OpenedKey,
    kek: KeyBytes,
    kind: SlotKind,
    *,
    kdf: str = "",
    label: str | None = None,
    share: KeyShare | None = None,
    unacknowledged: bool = False,
) -> StoredSlot:
    """Make a slot: a root key, wrapped under a KEK.

    Args:
        kek: what opens the slot; it has a public key, to which the maker of a new root key seals that key.
        kdf: the PHC salt string that makes the KEK from a secret. It is part of the wrap's context: to alter
            it locks the slot.
        label: a name for people.
        share: the share of the KEK, where a second database holds one.
        unacknowledged: whether the owner is to be told of the slot at the next unlock.
    """
    slot = StoredSlot(
        uuid.uuid4(),
        root.stored.key_id,
        kind,
        kdf,
        b"",
        recipient_public_key=x25519_public(kek),
        label=label,
        unacknowledged_since=now() if unacknowledged else None,
        share=share,
    )
    return replace(slot, wrapped=_wrap_in_slot(root, slot, kek))


def secret_slot(
    root: OpenedKey, kek: KeyBytes, salt: KdfSalt, instead_of: StoredSlot | None = None
) -> StoredSlot:
    """Make a slot that a secret opens, of which the owner knows.

    Args:
        kek: derived from the secret with `salt`.
        instead_of: the slot that is replaced. The new slot keeps its id, its label and when it was made.
    """
    slot = replace(new_slot(root, kek, SlotKind.SECRET, kdf=str(salt), share=salt.share), used_at=now())
    if instead_of is None:
        return slot
    return replace(
        slot,
        slot_id=instead_of.slot_id,
        label=instead_of.label,
        created_at=instead_of.created_at,
        unacknowledged_since=instead_of.unacknowledged_since,
    )


def now() -> dt.datetime:
    """The time that is noted in a slot, in UTC."""
    return dt.datetime.now(dt.UTC)


def provider_slot(root: OpenedKey, kek: ProviderKek, *, unacknowledged: bool = False) -> StoredSlot:
    """Make a slot that a provider opens.

    Args:
        unacknowledged: as in `new_slot`.
    """
    slot = StoredSlot(
        uuid.uuid4(),
        root.stored.key_id,
        SlotKind.PROVIDER,
        "",
        b"",
        recipient_public_key=kek.public_key,
        provider_ref=kek.reference,
        provider_wrapped=kek.wrapped,
        used_at=now(),
        unacknowledged_since=now() if unacknowledged else None,
    )
    if kek.key is None:
        return sealed_slot(root, slot)
    return replace(slot, wrapped=_wrap_in_slot(root, slot, kek.key))


def waiting_slot(root: StoredKey, kek: KeyBytes, salt: KdfSalt) -> StoredSlot:
    """Make a slot without a root key, for a secret that was chosen while nobody could open the root key.

    Args:
        root: the root key that a holder will seal into the slot.
    """
    public_key = x25519_public(kek)
    return StoredSlot(
        uuid.uuid4(), root.key_id, SlotKind.SECRET, str(salt), b"", public_key, share=salt.share
    )


def is_waiting(slot: StoredSlot) -> bool:
    """Whether a slot waits: it holds no root key yet."""
    empty = len(slot.wrapped) == WAITING_SIZE if is_peppered(slot.wrapped) else not slot.wrapped
    return slot.kind is SlotKind.SECRET and empty


def opens_waiting(slot: StoredSlot, kek: KeyBytes) -> bool:
    """Whether a KEK is that of a waiting slot, compared in constant time."""
    return compare_digest(x25519_public(kek), slot.recipient_public_key or b"")


def released_slot(root: OpenedKey, waiting: StoredSlot) -> StoredSlot:
    """A waiting slot with the root key sealed into it by a holder of the root key."""
    return replace(sealed_slot(root, replace(waiting, wrapped=b"-")), slot_id=waiting.slot_id)


def sealed_slot(root: OpenedKey, like: StoredSlot) -> StoredSlot:
    """A slot for a new root key, which opens as `like` does; made without the secret or the provider.

    Args:
        like: a slot that stores the public key of its KEK.
    """
    assert like.recipient_public_key is not None  # noqa: S101 - callers leave out slots without one
    if is_waiting(like):
        # Whoever planted the slot would be given the new key. The slot goes on waiting for a release.
        return replace(like, slot_id=uuid.uuid4(), key_id=root.stored.key_id, seal=None)
    context = root.stored.wrap_context(like.kind, like.kdf, recipient=like.recipient_public_key)
    wrapped = seal_key(root.key, PublicKeys(like.recipient_public_key), context)
    return replace(like, slot_id=uuid.uuid4(), key_id=root.stored.key_id, wrapped=wrapped, seal=None)


def open_slot(slot: StoredSlot, root: StoredKey, kek: KeyBytes) -> OpenedKey:
    """Open the root key of a slot with the KEK.

    Raises:
        PepperError: the slot is under a pepper that is not configured.
        FormatError, TruncatedError: the slot's blob is neither wrapped nor sealed to an X25519 key.
        UnlockError: the KEK is of another secret, or the slot was altered.
        TamperedKeyError: the KEK is right, so the stored bytes or the public key were altered.
    """
    require_open(slot)
    if slot.wrapped[:1] == bytes([FORMAT_SEALED]):
        context = root.wrap_context(slot.kind, slot.kdf, recipient=slot.recipient_public_key or b"")
        opened = verify(open_key(slot.wrapped, kek, context), root)
    else:
        opened = verify(unwrap(slot.wrapped, kek, root.wrap_context(slot.kind, slot.kdf)), root)
    public_key = kek.public_key if isinstance(kek, SharedKek) else x25519_public(kek)
    if slot.recipient_public_key not in (None, public_key):
        opened.key.wipe()
        raise TamperedKeyError(
            "A key slot opened, but its stored public key does not fit its key: it was altered, so that the "
            "next root key would be sealed to whoever altered it."
        )
    return opened


def adopted_slot(slot: StoredSlot, root: OpenedKey, kek: KeyBytes) -> StoredSlot:
    """A sealed slot, with the root key wrapped under the KEK in place of the seal.

    Raises:
        TransactionConflictError: another thread wiped the KEK meanwhile.
    """
    return replace(slot, wrapped=_wrap_in_slot(root, slot, kek), used_at=now())


def _wrap_in_slot(root: OpenedKey, slot: StoredSlot, kek: KeyBytes) -> bytes:
    wrapped = wrap(root.key, kek, root.stored.wrap_context(slot.kind, slot.kdf))
    if not any(kek.buffer):
        # Another thread closed the campaign meanwhile. A wrap under 32 zeros opens for anybody.
        raise TransactionConflictError(
            "The key of a slot was wiped at the same moment; nothing was changed. Run the transaction again."
        )
    return wrapped


def kek_context(public_key: bytes) -> dict[str, str]:
    """The context that a provider must bind its wrap of a KEK to (section 8).

    Args:
        public_key: the X25519 public key of the KEK, 32 bytes.
    """
    return {"library": "sqlalchemy-envelope/v1", "kek": public_key.hex()}


class SharedKek(KeyBytes):
    """A KEK that serves many slots. Its public key is computed once: that costs more than to open a slot."""

    __slots__ = ("public_key",)

    def __init__(self, data: bytes | bytearray) -> None:
        super().__init__(data)
        self.public_key = x25519_public(self)


def check_kek(kek: KeyBytes, slot: StoredSlot) -> SharedKek:
    """Check that a provider answered with the KEK of this slot, and return it; `kek` is wiped.

    Raises:
        ProviderError: the provider answered with another key.
    """
    shared = SharedKek(kek.buffer)
    kek.wipe()
    if shared.public_key != slot.recipient_public_key:
        shared.wipe()
        raise ProviderError(f"The provider behind {slot.provider_ref!r} answered with another key.")
    return shared
