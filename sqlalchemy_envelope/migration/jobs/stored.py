"""A stored value of a row: decrypted, encrypted again, and compared."""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.crypto.aead import HEADER_SIZE
from sqlalchemy_envelope.crypto.context import encode_reference
from sqlalchemy_envelope.exceptions import DecryptionError, FormatError
from sqlalchemy_envelope.migration.jobs.own_previous import LOCKED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy_envelope.crypto.aead import ValueCipher
    from sqlalchemy_envelope.migration.database.columns import MigratingColumn
    from sqlalchemy_envelope.migration.jobs.owner_ciphers import OwnerCiphers
    from sqlalchemy_envelope.orm.columns.codec import Codec
    from sqlalchemy_envelope.orm.tables.keyset import Position


def open_stored(
    column: MigratingColumn, keys: OwnerCiphers, position: Position, stored: Any, owner: tuple[Any, ...]
) -> bytes | None:
    """The plaintext bytes of a stored value; None if no key here opens it.

    Raises:
        FormatError, DecryptionError: the value was altered, or belongs to another owner.
    """
    return keys.open(column.plan.type.field, stored, owner, _reference(column, position))


def encrypted_again(
    column: MigratingColumn, writer: ValueCipher, position: Position, plaintext: bytes
) -> bytes:
    """A ciphertext of plaintext bytes for this row."""
    return writer.encrypt(plaintext, _reference(column, position))


def _reference(column: MigratingColumn, position: Position) -> bytes:
    return encode_reference(position) if column.plan.row_bound else b""


def headers_of(stored: Iterable[Any]) -> dict[bytes, int]:
    headers: dict[bytes, int] = {}
    for blob in stored:
        if isinstance(blob, (bytes, bytearray, memoryview)) and len(blob) > HEADER_SIZE:
            header = bytes(blob[:HEADER_SIZE])
            headers[header] = headers.get(header, 0) + 1
    return headers


class Verdict(Enum):
    """The result of comparing a stored value with the previous value."""

    SAME = auto()
    DIFFERS = auto()
    """The stored value opens, and is another value."""
    BROKEN = auto()
    """The stored value does not authenticate: it is altered, or of another owner or another column."""
    NO_KEY = auto()
    """No key here opens the stored value."""
    PREVIOUS_LOCKED = auto()
    """No key here opens the previous value, which this library encrypted too."""


def compare(column: MigratingColumn, keys: OwnerCiphers, part: Any) -> tuple[Verdict, bytes | None]:
    """Compare the two values of a row to the byte and type; the stored plaintext comes with the verdict."""
    position, owner, typed, _, stored = part
    try:
        plaintext = open_stored(column, keys, position, stored, owner)
    except (DecryptionError, FormatError):
        return Verdict.BROKEN, None
    if typed is LOCKED:
        return Verdict.PREVIOUS_LOCKED, None
    if plaintext is None:
        return Verdict.NO_KEY, None
    same = _encrypts_to(column.plan.type.codec, typed, plaintext)
    return (Verdict.SAME if same else Verdict.DIFFERS), plaintext


def _encrypts_to(codec: Codec, value: Any, plaintext: bytes) -> bool:
    try:
        if bytes(codec.encode(value)) == plaintext:
            return True
        # The previous column may have a scale and add zeros. The ciphertext has the number as it was written.
        return codec.tag == "decimal" and bool(codec.decode(plaintext) == value)
    except Exception:  # noqa: BLE001 - a value that cannot be encoded differs from the encrypted value
        return False
