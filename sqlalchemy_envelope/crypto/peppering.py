"""A secret slot under a pepper: format 0x15 (section 10).

    0      1              17        41              73                     n + 105   n + 121
    | 0x15 | pepper id 16 | salt 24 | commitment 32 | public key 32 ‖ wrap | tag 16 |

The wrap is the slot's own: `n` is 105 in format 0x11, 81 in format 0x12, and 0 while the slot waits. It
commits to the KEK, and the public key is a function of the KEK: whoever reads either can test guesses of the
secret. The pepper is a key that is not in the database. Bytes 17 onwards are a one-chunk message as in format
0x11.
"""

from typing import NamedTuple

from sqlalchemy_envelope.crypto.context import encode_context
from sqlalchemy_envelope.crypto.kdf import slot_pepper_key
from sqlalchemy_envelope.crypto.sealing import SEALED_SIZE
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.crypto.wrapping import WRAPPED_SIZE, decrypt_message, encrypt_message
from sqlalchemy_envelope.exceptions import FormatError, TamperedKeyError, TruncatedError, UnlockError
from sqlalchemy_envelope.words import counted

FORMAT_PEPPERED = 0x15
PREFIX_SIZE = 17
"""The format byte and the id of the pepper: the bytes that name the pepper of a stored slot."""
PUBLIC_SIZE = 32
WAITING_SIZE = PREFIX_SIZE + 72 + PUBLIC_SIZE
"""The bytes of a slot that waits: it has no wrap."""
_SIZES = (WAITING_SIZE, WAITING_SIZE + SEALED_SIZE, WAITING_SIZE + WRAPPED_SIZE)


class PepperContext(NamedTuple):
    """The fields of a slot's row that the pepper binds: a layer that is moved to another row does not open.

    The owner's label is not among them. The id of the root key belongs to a single owner, and the wrap below
    binds the owner reference, which `Envelope.rebind` changes after a table was renamed.

    Attributes:
        slot_id, key_id: 16 bytes each.
        kind: the kind of the slot.
        kdf: the PHC salt string, as stored.
    """

    slot_id: bytes
    key_id: bytes
    kind: str
    kdf: str

    def encode(self) -> bytes:
        """The bytes that go into the key derivation."""
        return encode_context(
            "slot-pepper", self.slot_id, self.key_id, self.kind.encode("ascii"), self.kdf.encode("utf-8")
        )


def is_peppered(blob: bytes) -> bool:
    """Whether a stored slot is under a pepper, by its first byte."""
    return blob[:1] == bytes([FORMAT_PEPPERED])


def prefix_of(pepper_id: bytes) -> bytes:
    """The first bytes of every slot that is under this pepper."""
    return bytes([FORMAT_PEPPERED]) + pepper_id


def pepper_id_of(blob: bytes) -> bytes:
    """The 16 bytes that name the pepper of a slot.

    Raises:
        FormatError, TruncatedError: the blob is no slot under a pepper.
    """
    if not is_peppered(blob):
        raise FormatError(f"The stored slot is not in format 0x{FORMAT_PEPPERED:02x}.")
    if len(blob) not in _SIZES:
        found = f"The stored slot has {counted(len(blob), 'byte')}, which no slot in format 0x15 has."
        raise TruncatedError(found) if len(blob) < _SIZES[0] else FormatError(found)
    return blob[1:PREFIX_SIZE]


def add_pepper(
    pepper_id: bytes, pepper: KeyBytes, public_key: bytes, wrapped: bytes, context: bytes
) -> bytes:
    """Encrypt a slot's public key and wrap under a pepper.

    Args:
        pepper_id: the 16 bytes that name the pepper.
        public_key: the X25519 public key of the KEK, 32 bytes.
        wrapped: the wrap in format 0x11 or 0x12; empty for a slot that waits.
        context: what the layer is bound to, from `PepperContext.encode`.
    """
    message = encrypt_message(public_key + wrapped, pepper.derived(slot_pepper_key), context)
    return prefix_of(pepper_id) + message


def take_pepper(blob: bytes, pepper: KeyBytes, context: bytes) -> tuple[bytes, bytes]:
    """Decrypt what `add_pepper` made: the public key and the wrap.

    Args:
        pepper: the pepper that the blob names, by `pepper_id_of`.

    Raises:
        TamperedKeyError: the bytes were altered, or belong to another row. The id of a pepper is computed
            from the pepper, which is therefore right beyond doubt.
    """
    try:
        found = decrypt_message(blob[PREFIX_SIZE:], pepper.derived(slot_pepper_key), context)
    except UnlockError:
        raise TamperedKeyError(
            f"A key slot under pepper {blob[1:5].hex()} was altered, or was moved here from another row."
        ) from None
    return found[:PUBLIC_SIZE], found[PUBLIC_SIZE:]
