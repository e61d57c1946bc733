"""One value under one data key: format 0x01 (section 6), AES-256-GCM (NIST SP 800-38D). Sizes are in bytes.

    0      1            17         29           29 + n   45 + n
    | 0x01 | key_id 16  | nonce 12 | ciphertext | tag 16 |

Nonces are random and made here: no caller passes a nonce. They are drawn for a whole batch of values at
once, which costs a fifth of drawing each alone. No pool of nonces outlives its batch, so a fork has nothing
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
from sqlalchemy_envelope.words import counted

FORMAT_VALUE = 0x01
HEADER_SIZE = 17
NONCE_SIZE = 12
OVERHEAD = 45
"""The bytes that a stored value has beyond its plaintext."""
MAX_VALUE_SIZE = 16 * 1024 * 1024
"""The most bytes of a plaintext: 16 MiB."""
MAX_STORED_SIZE = MAX_VALUE_SIZE + OVERHEAD


@dataclass(frozen=True)
class Field:
    """The column that a value belongs to.

    Attributes:
        label: `table.column`, or the label that the column pins.
        tag: the type tag of the plaintext encoding (section 6).
        row_bound: whether each value is bound to its row too.
    """

    label: str
    tag: str
    row_bound: bool = False

    def context(self, row_reference: bytes = b"") -> bytes:
        """The part of the AAD that follows the value's own header (section 6)."""
        return encode_context("value", self.label.encode("utf-8"), self.tag.encode("ascii"), row_reference)


class ValueCipher(Uncopied):
    """Encrypts and decrypts the values of one field under one data key.

    `seal` and `open` are the methods of AES-256-GCM themselves, so that hot loops call them without a Python
    frame in between. `Batch` calls `seal` and brings the nonce; the code that reads values calls `open`.
    """

    __slots__ = ("aad", "field", "header", "open", "row_aad", "seal")

    def __init__(self, data_key: KeyBytes, key_id: uuid.UUID, field: Field) -> None:
        aes = AESGCM(subkey(data_key, "column", field.label.encode("utf-8")).buffer)
        self.field = field
        self.header = bytes([FORMAT_VALUE]) + key_id.bytes
        self.aad = self.header + field.context()
        # `ctx` ends in u32be(length) ‖ row reference: `row_tail` makes that end, and the field all before it.
        self.row_aad = self.aad[:-4]
        self.seal: Callable[[bytes, bytes, bytes], bytes] = aes.encrypt
        self.open: Callable[[bytes, bytes, bytes], bytes] = aes.decrypt

    def bind(
        self, name: str, encode: Callable[[Any], bytes], source: Any, *, as_bytearray: bool = False
    ) -> "BoundCipher":
        """Describe how a `Batch` encrypts one named value of each row.

        Args:
            name: the key of the value in the row.
            encode: makes the plaintext bytes of a value.
            source: an object of the caller's; `Batch.encrypt` returns it with a value that it cannot encrypt.
            as_bytearray: make ciphertexts of the type `bytearray`, and not `bytes`.
        """
        header = bytearray(self.header) if as_bytearray else self.header
        row_bound = self.field.row_bound
        return name, encode, header, self.seal, self.row_aad if row_bound else self.aad, row_bound, source

    def aad_of(self, row_reference: bytes) -> bytes:
        """The AAD of a value bound to this row."""
        return self.row_aad + row_tail(row_reference)

    def encrypt(self, plaintext: bytes, row_reference: bytes = b"") -> bytes:
        """Encrypt one value under a fresh random nonce; the result has 45 bytes more.

        Raises:
            ValueTooLargeError: the plaintext is over 16 MiB.
        """
        check_size(plaintext)
        nonce = os.urandom(NONCE_SIZE)
        return self.header + nonce + self.seal(nonce, plaintext, self.aad_of(row_reference))

    def decrypt(self, blob: bytes, row_reference: bytes = b"") -> bytes:
        """Decrypt one value.

        Raises:
            FormatError: this library did not write the blob.
            TruncatedError: the blob was cut short.
            DecryptionError: the blob was altered or moved, or is of another label, type, row or key.
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
"""Name, encoding, value header, AES-GCM, AAD, whether the row follows in the AAD, source. It is a flat tuple,
because the hot loop unpacks it for every value."""


class Batch:
    """Encrypts the values of some rows, and draws their nonces.

    Args:
        expected: about how many values there will be.
        mark: an object to stand beside each ciphertext in its row, which tells ciphertext from plaintext.
    """

    __slots__ = ("_mark", "_nonces")

    def __init__(self, expected: int, mark: object = None) -> None:
        self._mark = mark
        self._nonces = fresh_nonces(expected)

    def encrypt(
        self, row: dict[str, Any], ciphers: list[BoundCipher], tail: bytes
    ) -> tuple[Any, Any, bytes | bytearray | None] | None:
        """Replace each value of a row by `(mark, ciphertext)`; None stays.

        Args:
            row: the values by name; changed in place.
            ciphers: what to encrypt, from `ValueCipher.bind`.
            tail: the end of the AAD of values that are bound to this row (`row_tail`).

        Returns:
            None if all values are encrypted. Otherwise source, value and ciphertext of the first value that
            is too large, or that cannot be encoded: then its ciphertext is None.
        """
        nonces, mark = self._nonces, self._mark
        for name, encode, header, seal, aad, row_bound, source in ciphers:
            value = row.get(name)
            if value is None:
                continue
            nonce = next(nonces)
            try:
                blob = header + nonce + seal(nonce, encode(value), aad + tail if row_bound else aad)
            except Exception:  # noqa: BLE001 - the caller reports it, and no chained error holds the value
                blob = None
            if blob is None or len(blob) > MAX_STORED_SIZE:
                return source, value, blob
            row[name] = (mark, blob)
        return None

    def encrypt_rows(
        self, rows: Sequence[dict[str, Any]], ciphers: list[BoundCipher], tails: Sequence[bytes]
    ) -> bool:
        """Encrypt many rows of one owner, column by column; otherwise as `encrypt` does.

        Returns:
            Whether it could. If not, no row is changed: call `encrypt` for each, to find the faulty value.
        """
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

        Returns:
            None, in place of the list, if a value cannot be encoded or is too large.
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
    """Whether any of these blobs is larger than a stored value may be.

    The sum of the sizes is asked first: most batches as a whole are smaller than one value may be, and the
    sum costs less than a look at each blob.

    Raises:
        TypeError: an item is None.
    """
    return sum(map(len, blobs)) > MAX_STORED_SIZE and max(map(len, blobs)) > MAX_STORED_SIZE


def row_tail(row_reference: bytes) -> bytes:
    """The end of the AAD of every value that is bound to this row: u32be(length) ‖ row reference."""
    return len(row_reference).to_bytes(4, "big") + row_reference


NO_ROW = row_tail(b"")
"""The end of the AAD of every value that is bound to no row."""
_INT_TAILS = [(5 + size).to_bytes(4, "big") + b"i" + size.to_bytes(4, "big") for size in range(32)]
"""The bytes before the digits of an integer key, at the index of the number of digits."""


def row_tails(keys: Sequence[Any]) -> list[bytes]:
    """The `row_tail` of many rows, whose primary keys have one column each."""
    if set(map(type, keys)) == {int}:
        least, most = min(keys), max(keys)
        size = len(str(most))
        if least >= 0 and size == len(str(least)) and size < len(_INT_TAILS):  # all have as many digits
            tail = _INT_TAILS[size] + b"%d"
            return [tail % key for key in keys]
        digits = [b"%d" % key for key in keys]
        if max(map(len, digits)) < len(_INT_TAILS):
            return [_INT_TAILS[len(text)] + text for text in digits]
    return [row_tail(encode_reference((key,))) for key in keys]


def altered(field: Field) -> DecryptionError:
    """The error for a value that does not authenticate."""
    return DecryptionError(
        f"A value of {field.label!r} does not authenticate. It was altered, or moved here. Or the table or "
        "column was renamed after the value was written: pin the old name, EncryptedType(..., "
        f"label='old.name'). Or the column's inner type was changed, and reads {field.tag!r} now: declare "
        "the old type again."
    )


def check_size(plaintext: bytes) -> None:
    """Refuse a plaintext over 16 MiB.

    Raises:
        ValueTooLargeError: the plaintext is larger.
    """
    if len(plaintext) > MAX_VALUE_SIZE:
        raise ValueTooLargeError(
            f"A value of {len(plaintext):,} bytes is over the limit of {MAX_VALUE_SIZE:,} bytes."
        )


_ENCRYPT = (
    "To change the type of a column does not encrypt the stored values; a migration does: "
    f"{DOCUMENTATION}/how-to/alembic.html."
)


def value_header(key_id: bytes) -> bytes:
    """The first 17 bytes of every value under a key: the format, and the id of the key."""
    return bytes([FORMAT_VALUE]) + key_id


def check_value(blob: object, label: str) -> None:
    """Refuse bytes that cannot be a stored value of the column; asked before any key is looked for.

    Args:
        label: the column, for the message.

    Raises:
        FormatError: the blob is not bytes, begins with another format byte, or is too long.
        TruncatedError: the blob is too short.
    """
    if not isinstance(blob, (bytes, bytearray, memoryview)):
        raise FormatError(
            f"A value of {label!r} is stored as {type(blob).__name__}, and not as bytes: it looks like "
            f"plaintext from before the column was encrypted. {_ENCRYPT}"
        )
    if len(blob) == 0 or blob[0] != FORMAT_VALUE:
        raise FormatError(
            f"A value of {label!r} holds bytes that this library did not write; they are not taken for "
            "plaintext. If the value is from before the column was encrypted: "
            f"{_ENCRYPT[0].lower()}{_ENCRYPT[1:]}"
        )
    if len(blob) < OVERHEAD:
        raise TruncatedError(
            f"A value of {label!r} was cut short: it has {counted(len(blob), 'byte')}, and the shortest has "
            f"{OVERHEAD}."
        )
    if len(blob) > MAX_STORED_SIZE:
        raise FormatError(
            f"A value of {label!r} has {counted(len(blob), 'byte')}, and the longest that is written has "
            f"{MAX_STORED_SIZE:,}."
        )


def may_be_value(blob: bytes) -> bool:
    """Whether bytes look like a stored value: format byte, least length, key id a UUIDv8 (RFC 9562).

    Of random strings of 45 bytes or more, one in 16,384 looks so by chance.
    """
    if len(blob) < OVERHEAD or blob[0] != FORMAT_VALUE:
        return False
    return uuid.UUID(bytes=bytes(blob[1:HEADER_SIZE])).version == 8


_CUTS = [slice(start, start + NONCE_SIZE) for start in range(0, 256 * NONCE_SIZE, NONCE_SIZE)]
_CUT_BATCH: Callable[[bytes], tuple[bytes, ...]] = itemgetter(*_CUTS)
_CUT_FEW: Callable[[bytes], tuple[bytes, ...]] = itemgetter(*_CUTS[:8])


def fresh_nonces(expected: int) -> Iterator[bytes]:
    """Random nonces for `ValueCipher.seal`, without end, drawn 256 at a time, or 8 if few are expected.

    All of it runs in C: a generator would cost as much again as the random bytes.
    """
    count, cut = (256, _CUT_BATCH) if expected > 8 else (8, _CUT_FEW)
    return chain.from_iterable(map(cut, map(os.urandom, repeat(count * NONCE_SIZE))))
