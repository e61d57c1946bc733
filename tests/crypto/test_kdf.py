"""What is derived from a key: registered purposes alone, and ids that are UUIDs of the version they say."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlalchemy_envelope.crypto import kdf
from sqlalchemy_envelope.crypto.secret import KeyBytes

RAW = b"<these are 32 bytes of key, yes>"


@pytest.mark.parametrize(
    ("purpose", "fields"),
    [
        ("column", []),
        ("column", [b"a", b"b"]),
        ("wrap", [b"a"]),
        ("key-commitment", [b""]),
        ("x25519", [b"a"]),
    ],
)
def test_a_purpose_has_its_number_of_fields(purpose: str, fields: list[bytes]) -> None:
    """A registered purpose with another number of fields is refused: it would be another purpose."""
    with pytest.raises(ValueError, match=f"{purpose!r} takes"):
        kdf.subkey(KeyBytes(RAW), purpose, *fields)


def test_only_registered_purposes_are_derived() -> None:
    """A purpose that nobody registered cannot be derived."""
    with pytest.raises(LookupError):
        kdf.subkey(KeyBytes(RAW), "another")


@given(st.binary(min_size=32, max_size=32))
def test_a_key_id_is_a_uuid_of_version_8(commitment: bytes) -> None:
    """Six bits of an id say that it is a UUIDv8; the other 122 are the commitment's."""
    found = kdf.key_id_of(commitment)
    kept = (2**128 - 1) ^ (0xF << 76) ^ (0x3 << 62)

    assert (found.version, found.variant) == (8, uuid.RFC_4122)
    assert int.from_bytes(commitment[:16], "big") & kept == found.int & kept


@given(st.binary(min_size=32, max_size=32).map(KeyBytes), st.binary(max_size=40), st.binary(max_size=40))
def test_subkeys_are_apart(key: KeyBytes, one: bytes, other: bytes) -> None:
    """Subkeys of one key differ by purpose and by field, and are none of them the key itself."""
    assert (one == other) is (kdf.subkey(key, "column", one) == kdf.subkey(key, "column", other))
    assert kdf.subkey(key, "column", b"") != kdf.subkey(key, "wrap")
    assert kdf.commitment(key) == bytes(kdf.subkey(key, "key-commitment").buffer)
    assert key not in (kdf.subkey(key, "column", one), kdf.subkey(key, "wrap"), kdf.subkey(key, "x25519"))
