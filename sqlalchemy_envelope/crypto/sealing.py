"""A key sealed to a public key: format 0x12 (section 5), HPKE base mode, RFC 9180.

    0      1         33               65       81
    | 0x12 | enc 32  | ciphertext 32  | tag 16 |

`cryptography`'s HPKE is one-shot and takes no AAD: the whole context goes into `info`.
"""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from sqlalchemy_envelope.crypto.kdf import x25519_private
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.crypto.wrapping import check_frame
from sqlalchemy_envelope.exceptions import TamperedKeyError, UnlockError

FORMAT_SEALED = 0x12
SEALED_SIZE = 81
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def seal_key(key: KeyBytes, public_key: bytes, context: bytes) -> bytes:
    """Seal a key to an X25519 public key of 32 bytes; 81 bytes.

    Raises:
        TamperedKeyError: the public key is one to which nothing can be sealed safely (low order).
    """
    try:
        recipient = X25519PublicKey.from_public_bytes(public_key)
        return bytes([FORMAT_SEALED]) + _SUITE.encrypt(bytes(key.buffer), recipient, info=context)
    except ValueError:
        raise TamperedKeyError("A stored public key is not a usable X25519 public key.") from None


def open_key(blob: bytes, recipient: KeyBytes, context: bytes) -> KeyBytes:
    """Open a sealed key with the key whose derived X25519 pair it was sealed to.

    Raises:
        FormatError, TruncatedError: not a sealed key.
        UnlockError: sealed to another key or for another context, or altered.
    """
    check_frame(blob, FORMAT_SEALED, SEALED_SIZE)
    try:
        return KeyBytes(_SUITE.decrypt(blob[1:], x25519_private(recipient), info=context))
    except InvalidTag:
        raise UnlockError(
            "A sealed key did not open: it is for another key or purpose, or was altered."
        ) from None
