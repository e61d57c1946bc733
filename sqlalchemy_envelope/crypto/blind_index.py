"""The tags of blind indexes (section 13): a keyed hash of a value, stored beside its ciphertext.

Equal values of one index have equal tags, and so the database finds a value without reading it. Whoever has
the table sees which rows have equal values. Whoever also has the index key can test guesses.
"""

from collections.abc import Iterable

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from sqlalchemy_envelope.crypto.context import encode_context
from sqlalchemy_envelope.crypto.kdf import subkey
from sqlalchemy_envelope.crypto.secret import KeyBytes, Uncopied

FULL_BITS = 128
"""The bits of a tag that is not truncated. Among 2^32 different values, two have the same tag with a
probability of 2^-65."""


def index_row_seal(key: KeyBytes, label: str, epoch: int, state: str) -> bytes:
    """The seal of an index key's row (section 13): HMAC-SHA-256 over its label, generation and state, 32
    bytes."""
    derived = subkey(key, "index-row")
    mac = HMAC(derived.buffer, SHA256())
    derived.wipe()
    fields = label.encode("utf-8"), epoch.to_bytes(4, "big"), state.encode("ascii")
    mac.update(encode_context("index-row", *fields))
    return mac.finalize()


class IndexHasher(Uncopied):
    """Makes the tags of one index: HMAC-SHA-256 (RFC 2104), truncated.

    Args:
        key: the index key, 32 bytes.
        label: the label of the index.
        form: what the index makes of a value before it is hashed, and the type of the value: tags of two
            forms have nothing in common.
        bits: the bits of a tag, at most 128.
    """

    __slots__ = ("_mac", "_mask", "_size")

    def __init__(self, key: KeyBytes, label: str, form: str, bits: int = FULL_BITS) -> None:
        derived = subkey(key, "index", label.encode("utf-8"))
        self._mac = HMAC(derived.buffer, SHA256())
        derived.wipe()
        self._mac.update(encode_context("index-tag", form.encode("utf-8")))
        self._size = -(-bits // 8)
        self._mask = 0xFF & (0xFF << (8 * self._size - bits))

    def tag(self, data: bytes) -> bytes:
        """The tag of a value's bytes: the first bits of the hash, in whole bytes; the bits after them are
        0."""
        mac = self._mac.copy()
        mac.update(data)
        tag = mac.finalize()[: self._size]
        return tag if self._mask == 0xFF else tag[:-1] + bytes([tag[-1] & self._mask])

    def tags(self, datas: Iterable[bytes | None]) -> list[bytes | None]:
        """The tags of many values, None for each None. The hot path of every write."""
        if self._mask != 0xFF:
            return [None if data is None else self.tag(data) for data in datas]
        copy, size = self._mac.copy, self._size
        tags: list[bytes | None] = []
        for data in datas:
            if data is None:
                tags.append(None)
                continue
            mac = copy()
            mac.update(data)
            tags.append(mac.finalize()[:size])
        return tags

    def __repr__(self) -> str:
        return f"<IndexHasher of {self._size} bytes>"
