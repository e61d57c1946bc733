"""The names under which a throttle counts: a MAC of an account or a source, which is stored nowhere in clear.

Without a key, whoever has a copy of the table can test a guessed address or source against it.
"""

import hmac
from uuid import UUID

from sqlalchemy_envelope.crypto.context import encode_context
from sqlalchemy_envelope.crypto.kdf import key_id_of, subkey
from sqlalchemy_envelope.crypto.secret import KEY_SIZE, KeyBytes

_NO_KEY = bytes(KEY_SIZE)


def throttle_key(server_key: KeyBytes) -> KeyBytes:
    """The subkey of a server key that names accounts and sources."""
    return subkey(server_key, "throttle")


def throttle_name(key: KeyBytes | None, *fields: bytes) -> UUID:
    """The name of an account, a source, or both: the first 16 bytes of HMAC-SHA-256 (RFC 2104), as a UUIDv8.

    Args:
        key: from `throttle_key`; None where the application has no server key.
    """
    mac_key = _NO_KEY if key is None else key.buffer
    return key_id_of(hmac.digest(mac_key, encode_context("throttle", *fields), "sha256"))
