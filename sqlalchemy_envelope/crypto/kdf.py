"""Derivations from a key: HKDF (RFC 5869) with registered purposes (section 2).

HKDF-Expand alone is enough: every input key is 32 uniform bytes already (RFC 5869, section 3.3).
"""

import uuid

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from sqlalchemy_envelope.crypto.context import encode_context
from sqlalchemy_envelope.crypto.secret import KEY_SIZE, KeyBytes

_PURPOSES = {
    "key-commitment": 0,
    "x25519": 0,
    "mlkem768": 0,
    "wrap": 0,
    "column": 1,
    "row-seal": 2,
    "epoch-proof": 1,
    "slot-pepper": 0,
    "throttle": 0,
    "erasure-receipt": 0,
    "ticket-pepper": 0,
    "index": 1,
    "index-salt": 1,
    "index-row": 0,
}
"""Every purpose that a subkey may have, with the number of its fields. Nothing else can be derived."""


def expand(key: KeyBytes, info: bytes, size: int = KEY_SIZE) -> bytes:
    """HKDF-Expand-SHA-512 (RFC 5869) of a uniform key.

    Args:
        size: the bytes to derive.
    """
    return HKDFExpand(algorithm=SHA512(), length=size, info=info).derive(key.buffer)


def subkey(key: KeyBytes, purpose: str, *fields: bytes) -> KeyBytes:
    """The subkey of a key for one registered purpose, 32 bytes.

    Raises:
        KeyError: the purpose is not registered.
        ValueError: the purpose takes another number of fields.
    """
    if _PURPOSES[purpose] != len(fields):
        raise ValueError(f"purpose {purpose!r} takes {_PURPOSES[purpose]} fields")
    return KeyBytes(expand(key, encode_context(purpose, *fields)))


def wrapping_key(key: KeyBytes) -> KeyBytes:
    """The subkey that wraps other keys under `key`; `key` itself never does."""
    return subkey(key, "wrap")


def slot_pepper_key(key: KeyBytes) -> KeyBytes:
    """The subkey of a pepper that encrypts secret slots; the pepper itself never does."""
    return subkey(key, "slot-pepper")


def commitment(key: KeyBytes) -> bytes:
    """The commitment to a key (section 2): 32 public bytes that no other key has."""
    return expand(key, encode_context("key-commitment"))


def key_id_of(commitment: bytes) -> uuid.UUID:
    """The id of the key with this commitment: a UUIDv8 (RFC 9562), so that a key proves its id."""
    data = bytearray(commitment[:16])
    data[6] = 0x80 | data[6] & 0x0F
    data[8] = 0x80 | data[8] & 0x3F
    return uuid.UUID(bytes=bytes(data))


def x25519_private(key: KeyBytes) -> X25519PrivateKey:
    """The X25519 private key (RFC 7748) that belongs to a root or data key."""
    return X25519PrivateKey.from_private_bytes(subkey(key, "x25519").buffer)


def x25519_public(key: KeyBytes) -> bytes:
    """The public half of `x25519_private`, 32 bytes: others seal keys to it while the owner is locked."""
    return x25519_private(key).public_key().public_bytes_raw()


def mlkem_seed(key: KeyBytes) -> bytes:
    """The 64-byte seed `d ‖ z` (FIPS 203) of the ML-KEM-768 pair that belongs to a root key."""
    return expand(key, encode_context("mlkem768"), 64)


def joined_key(server_share: KeyBytes, person_share: KeyBytes) -> KeyBytes:
    """The KEK of emergency access, from two shares that nobody has both of: HKDF-SHA-512 (section 4)."""
    salt, info = bytes(server_share.buffer), encode_context("emergency-kek")
    kdf = HKDF(algorithm=SHA512(), length=KEY_SIZE, salt=salt, info=info)
    return KeyBytes(kdf.derive(person_share.buffer))


def key_encryption_key(stretched: bytes | bytearray, share: KeyBytes | None = None) -> KeyBytes:
    """The KEK from the output of Argon2id, 32 bytes each: HKDF-SHA-512 (section 3, step 4).

    Args:
        share: the KEK's share, where a second database holds one. Without it nobody can tell the KEK from
            random bytes, not even with the secret.
    """
    salt = None if share is None else bytes(share.buffer)
    kdf = HKDF(algorithm=SHA512(), length=KEY_SIZE, salt=salt, info=encode_context("kek"))
    return KeyBytes(kdf.derive(stretched))


def recovery_kek(random: bytes) -> KeyBytes:
    """The KEK from the 20 random bytes of a recovery code: HKDF-SHA-512 (section 3)."""
    kdf = HKDF(algorithm=SHA512(), length=KEY_SIZE, salt=None, info=encode_context("recovery-code"))
    return KeyBytes(kdf.derive(random))
