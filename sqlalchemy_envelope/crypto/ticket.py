"""The bytes of a ticket: format 0x31 (section 12).

    0      1         25               57
    | 0x31 | salt 24 | commitment 32  | entries of 64 bytes each, in chunks of 16 KiB, each with a tag of 16 |

Bytes 1 onwards are a C2SP chunked-encryption@v1 message ("Cobblestone-256"). Its key is derived from three
parts, which lie in three places: with the client, in the row, and on the server. All that decides about the
ticket goes into the derivation: a row with another date opens as little as a row with other bytes.
"""

from typing import NamedTuple

from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from sqlalchemy_envelope.crypto.context import encode_context
from sqlalchemy_envelope.crypto.frames import emptying
from sqlalchemy_envelope.crypto.kdf import subkey
from sqlalchemy_envelope.crypto.secret import KEY_SIZE, KeyBytes
from sqlalchemy_envelope.exceptions import FormatError, TruncatedError, UnlockError

FORMAT_TICKET = 0x31
ENTRY_SIZE = 64
_CHUNK_SIZE = 16384
_TAG_SIZE = 16
_HEADER_SIZE = 57


class TicketContext(NamedTuple):
    """The seven fields that a ticket is bound to: always all of them, in this order (section 12).

    Attributes:
        ticket_id: the id of the row, 16 bytes.
        owner_reference: the owner of the ticket (`context.owner_reference`).
        root_key_id: the id of the owner's root key when the ticket was issued, 16 bytes.
        issued_at, expires_at: seconds since 1970, in UTC.
        idle_seconds: the seconds after which an unused ticket ends; 0 for a ticket without this limit.
        realm: the name of the database; empty if it has none.
    """

    ticket_id: bytes
    owner_reference: bytes
    root_key_id: bytes
    issued_at: int
    expires_at: int
    idle_seconds: int
    realm: str

    def encode(self) -> bytes:
        """The bytes that go into the derivation of the ticket's key.

        Raises:
            OverflowError: a number is negative or too large. No ticket has it.
        """
        return encode_context(
            "ticket",
            self.ticket_id,
            self.owner_reference,
            self.root_key_id,
            self.issued_at.to_bytes(8, "big"),
            self.expires_at.to_bytes(8, "big"),
            self.idle_seconds.to_bytes(4, "big"),
            self.realm.encode("utf-8"),
        )


def pepper_of(server_key: KeyBytes) -> KeyBytes:
    """The part of a ticket's key that the server holds, 32 bytes: the subkey of a server key or a pepper."""
    return subkey(server_key, "ticket-pepper")


def ticket_key(client_half: KeyBytes, row_half: bytes, pepper: KeyBytes, context: TicketContext) -> KeyBytes:
    """The key of a ticket, 32 bytes: HKDF-SHA-512 of the three parts, 32 bytes each, bound to the context."""
    parts = bytearray(client_half.buffer + row_half + pepper.buffer)
    try:
        kdf = HKDF(algorithm=SHA512(), length=KEY_SIZE, salt=None, info=context.encode())
        return KeyBytes(kdf.derive(parts))
    finally:
        parts[:] = bytes(len(parts))


def seal_ticket(entries: bytes | bytearray, key: KeyBytes) -> bytes:
    """Encrypt the entries of a ticket, with a fresh random salt."""
    message = Cobblestone256Encryptor(key.buffer, b"")
    return bytes([FORMAT_TICKET]) + message.update(entries) + message.finalize()


@emptying
def open_ticket(blob: bytes, key: KeyBytes) -> bytearray:
    """Decrypt what `seal_ticket` made. The caller wipes the entries.

    Raises:
        FormatError, TruncatedError: the blob is not a ticket.
        UnlockError: the key is another one, or the blob was altered: nothing can tell which.
    """
    _check_size(blob)
    try:
        message = Cobblestone256Decryptor(key.buffer, b"")
        return bytearray(message.update(blob[1:]) + message.finalize())
    except InvalidTag:
        raise UnlockError("The ticket did not open.") from None


def _check_size(blob: bytes) -> None:
    """Refuse another format byte, or a length that no number of entries has, before any cryptography."""
    if not blob or blob[0] != FORMAT_TICKET:
        raise FormatError(f"The stored ticket is not in format 0x{FORMAT_TICKET:02x}.")
    size = len(blob) - _HEADER_SIZE
    last = size % (_CHUNK_SIZE + _TAG_SIZE)
    # A message ends with a chunk that is not full, and may be empty.
    if size < 0 or last < _TAG_SIZE or (last - _TAG_SIZE) % ENTRY_SIZE:
        raise TruncatedError("The stored ticket has a length that no ticket has.")
