"""A key sealed to a public key: formats 0x12 and 0x13 (section 5), HPKE base mode (RFC 9180).

    0      1                33 (1121)        65 (1153)  81 (1169)
    | 0x12 | enc 32 (1120)  | ciphertext 32  | tag 16   |

0x12 uses X25519 (RFC 7748). 0x13 joins X25519 and ML-KEM-768 (FIPS 203, draft-ietf-hpke-pq), for keys that
are stored today and must withstand a quantum computer later. The HPKE of `cryptography` is one-shot and
takes no AAD, so the whole context goes into `info`.
"""

from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from sqlalchemy_envelope.crypto.kdf import mlkem_seed, x25519_private, x25519_public
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.crypto.wrapping import check_frame
from sqlalchemy_envelope.exceptions import TamperedKeyError, UnlockError

FORMAT_SEALED = 0x12
FORMAT_HYBRID = 0x13
SEALED_SIZE = 81
HYBRID_SIZE = 1169
MLKEM_PUBLIC_SIZE = 1184
SEALED_PREFIXES = (bytes([FORMAT_SEALED]), bytes([FORMAT_HYBRID]))
"""The first byte of a stored key that is sealed; a wrapped key begins with another byte."""
_X25519 = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_HYBRID = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


@dataclass(frozen=True)
class PublicKeys:
    """The public half of a key.

    Attributes:
        x25519: 32 bytes.
        mlkem768: 1,184 bytes; None if the key is not hybrid.
    """

    x25519: bytes
    mlkem768: bytes | None = None


def public_keys(key: KeyBytes, *, hybrid: bool) -> PublicKeys:
    """The public half of a key; others seal keys to it while its owner is locked."""
    mlkem = _mlkem_private(key).public_key().public_bytes_raw() if hybrid else None
    return PublicKeys(x25519_public(key), mlkem)


def seal_key(key: KeyBytes, to: PublicKeys, context: bytes) -> bytes:
    """Seal a key to a public key: 81 bytes, or 1,169 if the public key is hybrid.

    Args:
        context: what the seal is bound to, from `WrapContext.encode`.

    Raises:
        TamperedKeyError: nothing can be sealed safely to this public key, of low order for example.
    """
    try:
        x25519 = X25519PublicKey.from_public_bytes(to.x25519)
        if to.mlkem768 is None:
            return bytes([FORMAT_SEALED]) + _X25519.encrypt(bytes(key.buffer), x25519, info=context)
        recipient = MLKEM768X25519PublicKey(MLKEM768PublicKey.from_public_bytes(to.mlkem768), x25519)
        return bytes([FORMAT_HYBRID]) + _HYBRID.encrypt(bytes(key.buffer), recipient, info=context)
    except ValueError:
        raise TamperedKeyError("A stored public key is not a usable public key.") from None


def is_usable(public_key: bytes) -> bool:
    """Whether a key can be sealed to these 32 bytes of an X25519 public key."""
    try:
        seal_key(KeyBytes.generate(), PublicKeys(public_key), b"")
    except TamperedKeyError:
        return False
    return True


def is_sealed(blob: bytes) -> bool:
    """Whether a stored key is sealed, and not wrapped, by its first byte."""
    return blob[:1] in SEALED_PREFIXES


def open_key(blob: bytes, recipient: KeyBytes, context: bytes) -> KeyBytes:
    """Open a sealed key.

    Args:
        recipient: the key whose public half the blob was sealed to.

    Raises:
        FormatError, TruncatedError: the blob is not a sealed key.
        UnlockError: it was sealed to another key or for another context, or was altered.
    """
    hybrid = blob[:1] == bytes([FORMAT_HYBRID])
    check_frame(blob, FORMAT_HYBRID if hybrid else FORMAT_SEALED, HYBRID_SIZE if hybrid else SEALED_SIZE)
    try:
        if not hybrid:
            return KeyBytes(_X25519.decrypt(blob[1:], recipient.derived(x25519_private), info=context))
        pair = MLKEM768X25519PrivateKey(recipient.derived(_mlkem_private), recipient.derived(x25519_private))
        return KeyBytes(_HYBRID.decrypt(blob[1:], pair, info=context))
    except InvalidTag:
        raise UnlockError(
            "A sealed key did not open: it is for another key or purpose, or was altered."
        ) from None


def _mlkem_private(key: KeyBytes) -> MLKEM768PrivateKey:
    return MLKEM768PrivateKey.from_seed_bytes(mlkem_seed(key))
