"""Signatures that anybody can check with a public key: Ed25519 (RFC 8032), section 11."""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sqlalchemy_envelope.crypto.secret import KeyBytes

PUBLIC_KEY_SIZE, SIGNATURE_SIZE = 32, 64


def ed25519_public(seed: KeyBytes) -> bytes:
    """The public key of a seed, 32 bytes."""
    return _private(seed).public_key().public_bytes_raw()


def sign(seed: KeyBytes, message: bytes) -> bytes:
    """The signature of a message, 64 bytes."""
    return _private(seed).sign(message)


def is_signed(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the holder of a public key's seed signed this message."""
    if len(public_key) != PUBLIC_KEY_SIZE or len(signature) != SIGNATURE_SIZE:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _private(seed: KeyBytes) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(seed.buffer)
