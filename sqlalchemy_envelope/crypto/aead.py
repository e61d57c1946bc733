"""One value under one data key: format 0x01 (section 6).

    0      1            17         29           29 + n   45 + n
    | 0x01 | key_id 16  | nonce 12 | ciphertext | tag 16 |

Nonces are random and made here; no call from outside takes one. They are drawn for a whole batch of values at
once, which costs a fifth of drawing each alone, and no pool outlives its batch: there is nothing for a fork
to copy.
"""

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from operator import itemgetter
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sqlalchemy_envelope.crypto.context import encode_context, encode_reference
from sqlalchemy_envelope.crypto.kdf import subkey
from sqlalchemy_envelope.crypto.secret import KeyBytes, Uncopied
from sqlalchemy_envelope.exceptions import (
    DOCUMENTATION,
    DecryptionError,
    FormatError,
    TruncatedError,
    ValueTooLargeError,
)

FORMAT_VALUE = 0x01
HEADER_SIZE = 17
NONCE_SIZE = 12
OVERHEAD = 45
"""Bytes a stored value has beyond its plaintext."""
MAX_VALUE_SIZE = 16 * 1024 * 1024
"""Most bytes of one plaintext."""
MAX_STORED_SIZE = MAX_VALUE_SIZE + OVERHEAD


@dataclass(frozen=True)
class Field:
    """The column a value belongs to: its label, the tag of its type, and whether its row is bound too."""

    label: str
    tag: str
    row_bound: bool = False

    def context(self, row_reference: bytes = b"") -> bytes:
        """What of the AAD comes after the value's own header."""
        return encode_context("value", self.label.encode("utf-8"), self.tag.encode("ascii"), row_reference)


class ValueCipher(Uncopied):
    """Encrypts and decrypts the values of one field under one data key.

    `seal` and `open` are AES-256-GCM itself, bound once, so that hot loops call them without a frame in
    between: `seal` in `Batch`, which brings the nonce; `open` where values are read.
    """

    __slots__ = ("aad", "field", "header", "open", "row_aad", "seal")

    def __init__(self, data_key: KeyBytes, key_id: uuid.UUID, field: Field) -> None:
        aes = AESGCM(subkey(data_key, "column", field.label.encode("utf-8")).buffer)
        self.field = field
        self.header = bytes([FORMAT_VALUE]) + key_id.bytes
        self.aad = self.header + field.context()
        # `ctx` ends in u32be(length) || row reference, which `row_tail` makes; what
        # stands before is the field's.
        self.row_aad = self.aad[:-4]
        self.seal: Callable[[bytes, bytes, bytes], bytes] = aes.encrypt
        self.open: Callable[[bytes, bytes, bytes], bytes] = aes.decrypt

    def bind(
        self, name: str, encode: Callable[[Any], bytes], source: Any, *, as_bytearray: bool = False
    ) -> "BoundCipher":
        """What a `Batch` needs to encrypt one named value of each row; `source` comes back with a failure."""
        header = bytearray(self.header) if as_bytearray else self.header
        row_bound = self.field.row_bound
        return name, encode, header, self.seal, self.row_aad if row_bound else self.aad, row_bound, source

    def aad_of(self, row_reference: bytes) -> bytes:
        """The AAD of a value bound to this row."""
        return self.row_aad + row_tail(row_reference)

    def encrypt(self, plaintext: bytes, row_reference: bytes = b"") -> bytes:
        """Encrypt one value under a fresh random nonce."""
        check_size(plaintext)
        nonce = os.urandom(NONCE_SIZE)
        return self.header + nonce + self.seal(nonce, plaintext, self.aad_of(row_reference))

    def decrypt(self, blob: bytes, row_reference: bytes = b"") -> bytes:
        """Decrypt one value.

        Raises:
            FormatError, TruncatedError: not a value of ours.
            DecryptionError: altered, moved, or of another label, row or key.
        """
        check_value(blob, self.field.label)
        try:
            if blob[:HEADER_SIZE] == self.header:
                return self.open(blob[17:29], blob[29:], self.aad_of(row_reference))
        except InvalidTag:
            pass
        raise altered(self.field)

    def __repr__(self) -> str:
        return f"<ValueCipher {self.field.label}>"


_Seal = Callable[[bytes, bytes, bytes], bytes]
BoundCipher = tuple[str, Callable[[Any], bytes], bytes | bytearray, _Seal, bytes, bool, Any]
"""Name, encoding, value header, AES-GCM, AAD, whether the row is to follow it, and source: flat, because it
is unpacked for every value."""


class Batch:
    """Encrypts the values of some rows, and draws their nonces.

    Args:
        expected: how many values there will be, more or less.
        mark: what stands beside each ciphertext, so that it is told from plaintext.
    """

    __slots__ = ("_mark", "_nonces")

    def __init__(self, expected: int, mark: object = None) -> None:
        self._mark = mark
        self._nonces = fresh_nonces(expected)

    def encrypt(
        self, row: dict[str, Any], ciphers: list[BoundCipher], tail: bytes
    ) -> tuple[Any, Any, bytes | bytearray | None] | None:
        """Put `(mark, ciphertext)` in place of each value of a row, whose AADs end in `tail` if they are
        bound to it.

        Gives source, value and, if it was made, ciphertext of the first value that cannot be encoded or is
        too large.
        """
        nonces, mark = self._nonces, self._mark
        for name, encode, header, seal, aad, row_bound, source in ciphers:
            value = row.get(name)
            if value is None:
                continue
            nonce = next(nonces)
            try:
                blob = header + nonce + seal(nonce, encode(value), aad + tail if row_bound else aad)
            except Exception:  # noqa: BLE001 - told by the caller, chained to nothing that holds the value
                blob = None
            if blob is None or len(blob) > MAX_STORED_SIZE:
                return source, value, blob
            row[name] = (mark, blob)
        return None

    def encrypt_rows(
        self, rows: Sequence[dict[str, Any]], ciphers: list[BoundCipher], tails: Sequence[bytes]
    ) -> bool:
        """As `encrypt` does, for many rows of one owner, column by column. Tells whether it could: if not,
        the rows are as they were, and `encrypt` finds the value."""
        made = []
        for cipher in ciphers:
            name = cipher[0]
            blobs = self.encrypt_column(list(map(dict.get, rows, repeat(name))), cipher, tails)
            if blobs is None:
                return False
            made.append((name, blobs))
        mark = self._mark
        for name, blobs in made:
            for row, blob in zip(rows, blobs, strict=True):
                if blob is not None:
                    row[name] = (mark, blob)
        return True

    def encrypt_column(
        self, values: Sequence[Any], cipher: BoundCipher, tails: Sequence[bytes]
    ) -> list[Any] | None:
        """The ciphertexts of many values of one column, None for each None. The hot path of every write.

        Gives none at all if one of the values cannot be encoded or is too large.
        """
        _, encode, header, seal, aad, row_bound, _ = cipher
        try:
            if row_bound:
                blobs = [
                    None if value is None else header + nonce + seal(nonce, encode(value), aad + tail)
                    for value, nonce, tail in zip(values, self._nonces, tails, strict=False)
                ]
            else:
                blobs = [
                    None if value is None else header + nonce + seal(nonce, encode(value), aad)
                    for value, nonce in zip(values, self._nonces, strict=False)
                ]
        except Exception:  # noqa: BLE001 - as above
            return None
        return None if any_too_large([*filter(None, blobs)] if None in blobs else blobs) else blobs


def any_too_large(blobs: Sequence[Any]) -> bool:
    """Whether one of these is larger than any stored value. Most batches are smaller than one value may be:
    their sum, which costs less than to look at each, says so.

    Raises:
        TypeError: one of them is None.
    """
    return sum(map(len, blobs)) > MAX_STORED_SIZE and max(map(len, blobs)) > MAX_STORED_SIZE


def row_tail(row_reference: bytes) -> bytes:
    """The end of every AAD of a row's values."""
    return len(row_reference).to_bytes(4, "big") + row_reference


NO_ROW = row_tail(b"")
"""The end of every AAD of values that are bound to no row."""
_INT_TAILS = [(5 + size).to_bytes(4, "big") + b"i" + size.to_bytes(4, "big") for size in range(32)]
"""What stands before the digits of an integer, by their number."""


def row_tails(keys: Sequence[Any]) -> list[bytes]:
    """`row_tail` for many rows, whose primary keys are of one column each."""
    if set(map(type, keys)) == {int}:
        least, most = min(keys), max(keys)
        size = len(str(most))
        if least >= 0 and size == len(str(least)) and size < len(_INT_TAILS):  # so have all between them
            tail = _INT_TAILS[size] + b"%d"
            return [tail % key for key in keys]
        digits = [b"%d" % key for key in keys]
        if max(map(len, digits)) < len(_INT_TAILS):
            return [_INT_TAILS[len(one)] + one for one in digits]
    return [row_tail(encode_reference((key,))) for key in keys]


def altered(field: Field) -> DecryptionError:
    """The error for a value that does not authenticate."""
    return DecryptionError(
        f"A value of {field.label!r} does not authenticate. It was altered or moved here; or the table or "
        "column was renamed after it was written: pin the old name, EncryptedType(..., label='old.name'); "
        f"or the column's inner type, which reads {field.tag!r} now, changed after it was written: declare "
        "the old one again."
    )


def check_size(plaintext: bytes) -> None:
    """Refuse a plaintext over 16 MiB.

    Raises:
        ValueTooLargeError: too large.
    """
    if len(plaintext) > MAX_VALUE_SIZE:
        raise ValueTooLargeError(
            f"A value of {len(plaintext)} bytes is over the limit of {MAX_VALUE_SIZE} bytes."
        )


_ENCRYPT = (
    "A new type of the column encrypts nothing that is stored; a migration does: "
    f"{DOCUMENTATION}/how-to/alembic.html."
)


def check_value(blob: object, label: str) -> None:
    """Whether these bytes can be a stored value of this column at all; told before any key is looked for.

    Raises:
        FormatError, TruncatedError: they cannot.
    """
    if not isinstance(blob, (bytes, bytearray, memoryview)):
        raise FormatError(
            f"A value of {label!r} is stored as {type(blob).__name__}, and not as bytes: it looks like "
            f"plaintext from before the column was encrypted. {_ENCRYPT}"
        )
    if len(blob) == 0 or blob[0] != FORMAT_VALUE:
        raise FormatError(
            f"A value of {label!r} is bytes that this library did not write; not taken for plaintext. If it "
            f"is from before the column was encrypted: {_ENCRYPT[0].lower()}{_ENCRYPT[1:]}"
        )
    if len(blob) < OVERHEAD:
        raise TruncatedError(
            f"A value of {label!r} was cut short: it has {len(blob)} bytes; the shortest has {OVERHEAD}."
        )
    if len(blob) > MAX_STORED_SIZE:
        raise FormatError(f"A value of {label!r} has {len(blob)} bytes, more than any that is written.")


def may_be_value(blob: bytes) -> bool:
    """Whether bytes have the outside of a stored value: its format, its least length, and the UUIDv8 that
    every key id is. One in 16,384 other strings that begin with this format has it by chance."""
    if len(blob) < OVERHEAD or blob[0] != FORMAT_VALUE:
        return False
    return uuid.UUID(bytes=bytes(blob[1:HEADER_SIZE])).version == 8


_CUTS = [slice(start, start + NONCE_SIZE) for start in range(0, 256 * NONCE_SIZE, NONCE_SIZE)]
_CUT_BATCH: Callable[[bytes], tuple[bytes, ...]] = itemgetter(*_CUTS)
_CUT_FEW: Callable[[bytes], tuple[bytes, ...]] = itemgetter(*_CUTS[:8])


def fresh_nonces(expected: int) -> Iterator[bytes]:
    """Random nonces for `ValueCipher.seal`, without end, drawn and cut for as many values
    at a time as are expected.

    All of it runs in C: a generator would cost as much again as the random bytes.
    """
    count, cut = (256, _CUT_BATCH) if expected > 8 else (8, _CUT_FEW)
    return chain.from_iterable(map(cut, map(os.urandom, repeat(count * NONCE_SIZE))))
