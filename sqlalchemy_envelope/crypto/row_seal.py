"""Row seals (section 9): a MAC under a server key over each key, slot and grant row.

A wrap binds the key that it wraps. It cannot prove that the application wrote a public key, a state or a
whole row; the seal proves it. An attacker who has only the database can copy and delete rows, and can make
none.
"""

import hmac
from collections.abc import Sequence

from sqlalchemy_envelope.crypto.context import encode_context
from sqlalchemy_envelope.crypto.kdf import commitment, key_id_of, subkey
from sqlalchemy_envelope.crypto.secret import KeyBytes

SEAL_SIZE = 48
"""The bytes of a seal: the id of the server key, 16, and the MAC, 32."""


def server_key_id(server_key: KeyBytes) -> bytes:
    """The 16 bytes that name a server key in seals and wraps."""
    return key_id_of(commitment(server_key)).bytes


def row_key(server_key: KeyBytes, label: str, realm: str = "") -> KeyBytes:
    """The subkey of a server key that seals the rows of one table of one database, 32 bytes.

    Args:
        label: the owner label of a key or slot table, or the grant label of a grant table.
        realm: the name that the application gives the database; empty if it gives none.
    """
    return subkey(server_key, "row-seal", label.encode("utf-8"), realm.encode("utf-8"))


def row_bytes(fields: Sequence[bytes]) -> bytes:
    """The columns of a row, encoded for its MAC."""
    return encode_context("row", *fields)


def row_mac(key: KeyBytes, row: bytes) -> bytes:
    """The MAC over the columns of a row, from `row_bytes`: HMAC-SHA-256 (RFC 2104), 32 bytes."""
    return hmac.digest(key.buffer, row, "sha256")
