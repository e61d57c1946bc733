"""Row seals (section 9): a MAC under a server key over each key, slot and grant row.

Wraps bind what they wrap; they cannot say that a public key, a state or a whole row was written by the
application. This does: whoever has only the database can copy and delete rows, and make none.
"""

import hmac
from collections.abc import Mapping, Sequence

from sqlalchemy_envelope.crypto.context import encode_context
from sqlalchemy_envelope.crypto.kdf import commitment, key_id_of, subkey
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.exceptions import RowSealError

SEAL_SIZE = 48


def server_key_id(server_key: KeyBytes) -> bytes:
    """The 16 bytes by which seals and wraps name a server key."""
    return key_id_of(commitment(server_key)).bytes


def row_key(server_key: KeyBytes, label: str) -> KeyBytes:
    """What seals the rows of one table under a server key."""
    return subkey(server_key, "row-seal", label.encode("utf-8"))


def row_mac(key: KeyBytes, fields: Sequence[bytes]) -> bytes:
    """The MAC over a row's columns, 32 bytes."""
    return hmac.digest(key.buffer, encode_context("row", *fields), "sha256")


def seal_row(server_key: KeyBytes, label: str, fields: Sequence[bytes]) -> bytes:
    """The seal of a row: id of the server key and MAC, 48 bytes."""
    return server_key_id(server_key) + row_mac(row_key(server_key, label), fields)


def check_row(
    seal: bytes | None, server_keys: Mapping[bytes, KeyBytes], label: str, fields: Sequence[bytes]
) -> None:
    """Whether the application wrote this row as it stands.

    Raises:
        RowSealError: it did not, or under a server key that is not configured.
    """
    if seal is None or len(seal) != SEAL_SIZE:
        raise RowSealError(f"A row of {label!r} has no row seal: it was not written by the application.")
    server_key = server_keys.get(seal[:16])
    if server_key is None:
        raise RowSealError(
            f"A row of {label!r} is sealed under server key {seal[:4].hex()}, which is not configured."
        )
    if not hmac.compare_digest(seal[16:], row_mac(row_key(server_key, label), fields)):
        raise RowSealError(f"A row of {label!r} was altered: its row seal does not fit.")
