"""A key wrapped under a key: format 0x11 (section 4).

    0      1            25               57                89       105
    | 0x11 | salt 24    | commitment 32  | ciphertext 32   | tag 16 |

Bytes 1 onwards are a one-chunk C2SP chunked-encryption@v1 message ("Cobblestone-256"). The message commits to
key and context alike, so that no blob opens under two secrets (no partitioning oracle). AES key and nonce are
derived with the salt, and so are fresh.
"""

import os
from hmac import compare_digest
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sqlalchemy_envelope.crypto.context import encode_context
from sqlalchemy_envelope.crypto.frames import emptying
from sqlalchemy_envelope.crypto.kdf import expand
from sqlalchemy_envelope.crypto.secret import KEY_SIZE, KeyBytes
from sqlalchemy_envelope.exceptions import FormatError, TamperedKeyError, TruncatedError, UnlockError
from sqlalchemy_envelope.words import counted

FORMAT_WRAPPED = 0x11
WRAPPED_SIZE = 105
_SALT_SIZE = 24
_ALGORITHM = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0"


class WrapContext(NamedTuple):
    """The nine fields that a wrapped key is bound to: always all of them, in this order (section 4).

    Attributes:
        kind: `secret`, `provider`, `recovery`, `root`, `sealed`, `previous` or `grant`.
        key_id: the id of the wrapped key, 16 bytes.
        owner_reference: the owner of the wrapped key (`context.owner_reference`).
        purpose: `root`, `data`, `index` or `write`.
        scope: the scope of a data or index key.
        epoch: the generation of the wrapped key, from 0 to 2**32 - 1.
        kdf: the PHC salt string of a secret slot.
        recipient: the id of the key that it is sealed to or wrapped under (16 bytes); of a sealed slot, the
            KEK's X25519 public key (32 bytes). Empty where section 4 says so.
        granter: the granting row of a grant.
    """

    kind: str
    key_id: bytes
    owner_reference: bytes
    purpose: str
    scope: str
    epoch: int
    kdf: str = ""
    recipient: bytes = b""
    granter: bytes = b""

    def encode(self) -> bytes:
        """The bytes that go into the key derivation or, for HPKE, into `info`.

        Raises:
            TamperedKeyError: the epoch is out of range; no key has it.
        """
        if not 0 <= self.epoch < 2**32:
            raise TamperedKeyError(f"A stored key has the epoch {self.epoch}, which is out of range.")
        return encode_context(
            "wrap",
            self.kind.encode("ascii"),
            self.key_id,
            self.owner_reference,
            self.purpose.encode("ascii"),
            self.scope.encode("utf-8"),
            self.epoch.to_bytes(4, "big"),
            self.kdf.encode("ascii"),
            self.recipient,
            self.granter,
        )


def check_frame(blob: bytes, first: int, size: int) -> None:
    """Refuse another format byte or length before any cryptography: oracles that need such a blob find none.

    Args:
        first: the format byte.
        size: the bytes of the whole frame.

    Raises:
        FormatError: the first byte is another, or the blob is too long.
        TruncatedError: the blob is too short.
    """
    if not blob or blob[0] != first:
        raise FormatError(f"The stored key is not in format 0x{first:02x}.")
    found = f"The stored key has {counted(len(blob), 'byte')} where format 0x{first:02x} has {size}."
    if len(blob) < size:
        raise TruncatedError(found)
    if len(blob) > size:
        raise FormatError(found)


def wrap(key: KeyBytes, wrapping_key: KeyBytes, context: bytes) -> bytes:
    """Wrap a key under a key, with a fresh random salt; 105 bytes.

    Args:
        context: what the wrap is bound to, from `WrapContext.encode`.
    """
    return bytes([FORMAT_WRAPPED]) + encrypt_message(bytes(key.buffer), wrapping_key, context)


@emptying
def unwrap(blob: bytes, wrapping_key: KeyBytes, context: bytes) -> KeyBytes:
    """Unwrap what `wrap` made. The caller must compare the key with its stored commitment and id.

    Raises:
        FormatError, TruncatedError: the blob is not a wrapped key.
        UnlockError: the wrapping key or the context is another one, or salt or commitment were altered.
        TamperedKeyError: the wrapping key and the context are right, so the bytes certainly were altered.
    """
    check_frame(blob, FORMAT_WRAPPED, WRAPPED_SIZE)
    return KeyBytes(decrypt_message(blob[1:], wrapping_key, context))


def encrypt_message(plaintext: bytes, key: KeyBytes, context: bytes) -> bytes:
    """Encrypt bytes as a one-chunk message, with a fresh random salt: 72 bytes more than they are.

    Args:
        plaintext: less than a chunk, 16 KiB.
        context: what the message is bound to.
    """
    salt = os.urandom(_SALT_SIZE)
    aes, nonce, commitment = _derive(key, salt, context)
    return salt + commitment + AESGCM(aes).encrypt(nonce, plaintext, None)


def decrypt_message(message: bytes, key: KeyBytes, context: bytes) -> bytes:
    """Decrypt what `encrypt_message` made. The caller has checked the length.

    Raises:
        UnlockError: the key or the context is another one, or salt or commitment were altered.
        TamperedKeyError: the key and the context are right, so the bytes certainly were altered.
    """
    salt, stored, sealed = message[:24], message[24:56], message[56:]
    aes, nonce, commitment = _derive(key, salt, context)
    # The stored commitment is public, but the computed one is a function of the guessed secret under a salt
    # that an attacker may have chosen: comparing byte by byte would hand out an offline test through timing.
    if not compare_digest(commitment, stored):
        raise wrong_secret()
    try:
        return AESGCM(aes).decrypt(nonce, sealed, None)
    except InvalidTag:
        raise TamperedKeyError(
            "A stored key was altered: its commitment fits and its bytes do not."
        ) from None


def wrong_secret() -> UnlockError:
    """The one error for a slot that does not open, whatever the reason."""
    return UnlockError("The key slot did not open: the secret is wrong, or the slot was altered.")


def _derive(wrapping_key: KeyBytes, salt: bytes, context: bytes) -> tuple[bytes, bytes, bytes]:
    okm = expand(wrapping_key, _ALGORITHM + salt + context, KEY_SIZE + 12 + 32)
    return okm[:32], okm[32:44], okm[44:]
