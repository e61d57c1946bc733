"""Row seals (section 9): a MAC under a server key over each key, slot and grant row.

Wraps bind what they wrap; they cannot say that a public key, a state or a whole row was written by the
application. This does: whoever has only the database can copy and delete rows, and make none.
"""

import hmac
from collections.abc import Sequence

from sqlalchemy_envelope.crypto.context import encode_context
from sqlalchemy_envelope.crypto.kdf import commitment, key_id_of, subkey
from sqlalchemy_envelope.crypto.secret import KeyBytes

SEAL_SIZE = 48


def server_key_id(server_key: KeyBytes) -> bytes:
    """The 16 bytes by which seals and wraps name a server key."""
    return key_id_of(commitment(server_key)).bytes


def row_key(server_key: KeyBytes, label: str, realm: str = "") -> KeyBytes:
    """What seals the rows of one table of one database under a server key; `realm` is the database's name."""
    return subkey(server_key, "row-seal", label.encode("utf-8"), realm.encode("utf-8"))


def row_mac(key: KeyBytes, fields: Sequence[bytes]) -> bytes:
    """The MAC over a row's columns, 32 bytes."""
    return hmac.digest(key.buffer, encode_context("row", *fields), "sha256")
