"""A sealed key opens for its recipient, in its context, whole and unaltered; and in no other case."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlalchemy_envelope.crypto import sealing
from sqlalchemy_envelope.crypto.kdf import x25519_public
from sqlalchemy_envelope.crypto.sealing import (
    HYBRID_SIZE,
    MLKEM_PUBLIC_SIZE,
    SEALED_SIZE,
    PublicKeys,
    is_sealed,
    open_key,
    public_keys,
    seal_key,
)
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.exceptions import (
    EnvelopeError,
    FormatError,
    TamperedKeyError,
    TruncatedError,
    UnlockError,
)

KEY, RECIPIENT, OTHER = (KeyBytes(bytes([n]) * 32) for n in (1, 2, 3))
CONTEXT = b"context"
PUBLIC = public_keys(RECIPIENT, hybrid=False)
BLOB = seal_key(KEY, PUBLIC, CONTEXT)
KEYS = st.binary(min_size=32, max_size=32).map(KeyBytes)

# The points of small order on Curve25519 and its twist (RFC 7748, section 7), and two beyond p.
P = 2**255 - 19
LOW_ORDER = [
    *(number.to_bytes(32, "little") for number in (0, 1, P - 1, P, P + 1)),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
]


@given(KEYS, KEYS, st.binary(max_size=200))
def test_a_sealed_key_opens(key: KeyBytes, recipient: KeyBytes, context: bytes) -> None:
    """Any key, sealed to any key's public half in any context, comes back from 81 bytes."""
    blob = seal_key(key, public_keys(recipient, hybrid=False), context)

    assert len(blob) == SEALED_SIZE
    assert key == open_key(blob, recipient, context)


def test_no_two_seals_are_alike() -> None:
    """The same key sealed twice shares neither the ephemeral key nor the ciphertext."""
    blobs = [seal_key(KEY, PUBLIC, CONTEXT) for _ in range(100)]

    assert 100 == len({blob[1:33] for blob in blobs}) == len({blob[33:] for blob in blobs})


@given(KEYS, st.binary(max_size=100))
def test_another_recipient_or_context_does_not_open(other: KeyBytes, context: bytes) -> None:
    """Neither another key nor another context opens it; the sealed key itself does not either."""
    for recipient, of in [(other, CONTEXT), (RECIPIENT, context + b"?"), (KEY, CONTEXT)]:
        with pytest.raises(UnlockError):
            open_key(BLOB, recipient, of)


# X25519 ignores the top bit of a public key, but HPKE derives from the bytes as sent: it is noticed too.
def test_every_flipped_bit_is_noticed() -> None:
    """Each of the 648 bits, flipped, raises one of our errors; in the first byte it is the format."""
    for bit in range(8 * SEALED_SIZE):
        blob = bytearray(BLOB)
        blob[bit // 8] ^= 1 << bit % 8
        with pytest.raises(EnvelopeError) as caught:
            open_key(bytes(blob), RECIPIENT, CONTEXT)

        expected = FormatError if bit < 8 else UnlockError
        if bit == 0:  # 0x13, the hybrid, which is longer
            expected = TruncatedError
        assert expected is caught.type, bit


@given(st.integers(0, SEALED_SIZE - 1))
def test_every_truncation_is_noticed(size: int) -> None:
    """A sealed key cut short anywhere is called truncated; nothing at all is no format."""
    with pytest.raises(FormatError) as caught:
        open_key(BLOB[:size], RECIPIENT, CONTEXT)

    assert (FormatError if size == 0 else TruncatedError) is caught.type


@given(st.binary(min_size=1, max_size=200))
def test_every_extension_is_noticed(more: bytes) -> None:
    """A sealed key with bytes after it is not in our format."""
    with pytest.raises(FormatError) as caught:
        open_key(BLOB + more, RECIPIENT, CONTEXT)

    assert FormatError is caught.type


def test_the_frame_is_checked_before_any_cryptography(monkeypatch: pytest.MonkeyPatch) -> None:
    """A blob of another format or length does not reach HPKE."""
    monkeypatch.setattr(sealing, "x25519_private", lambda *_: pytest.fail("something was derived"))
    for blob in (b"", b"\x11" + BLOB[1:], BLOB[:-1], BLOB + b"\0"):
        with pytest.raises(FormatError):
            open_key(blob, RECIPIENT, CONTEXT)


@pytest.mark.parametrize("public_key", LOW_ORDER, ids=lambda public_key: public_key.hex()[:8])
def test_nothing_is_sealed_to_a_point_of_low_order(public_key: bytes) -> None:
    """A planted public key, whose shared secret everyone knows, is refused as tampering."""
    with pytest.raises(TamperedKeyError, match="public key"):
        seal_key(KEY, PublicKeys(public_key), CONTEXT)


@pytest.mark.parametrize("enc", LOW_ORDER, ids=lambda enc: enc.hex()[:8])
def test_nothing_opens_from_a_point_of_low_order(enc: bytes) -> None:
    """An ephemeral key of low order opens nothing, and raises our error."""
    with pytest.raises(UnlockError):
        open_key(BLOB[:1] + enc + BLOB[33:], RECIPIENT, CONTEXT)


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_public_key_has_32_bytes(size: int) -> None:
    """A stored public key of another length is tampering too, and not a ValueError."""
    with pytest.raises(TamperedKeyError):
        seal_key(KEY, PublicKeys(b"\x09" * size), CONTEXT)


def test_who_seals_cannot_open() -> None:
    """The public half alone does not open what was sealed to it."""
    with pytest.raises(UnlockError, match="did not open"):
        open_key(BLOB, KeyBytes(x25519_public(RECIPIENT)), CONTEXT)


# ---------------------------------------------------------------- the hybrid of X25519 and ML-KEM-768

HYBRID = public_keys(RECIPIENT, hybrid=True)
HYBRID_BLOB = seal_key(KEY, HYBRID, CONTEXT)


@given(KEYS, KEYS, st.binary(max_size=200))
def test_a_hybrid_sealed_key_opens(key: KeyBytes, recipient: KeyBytes, context: bytes) -> None:
    """Any key, sealed to any key's hybrid public half in any context, comes back from 1,169 bytes."""
    blob = seal_key(key, public_keys(recipient, hybrid=True), context)

    assert len(blob) == HYBRID_SIZE
    assert key == open_key(blob, recipient, context)


def test_both_public_keys_come_from_one_key() -> None:
    """The hybrid public half is the classical one and 1,184 bytes more."""
    assert HYBRID.mlkem768 is not None
    assert len(HYBRID.mlkem768) == MLKEM_PUBLIC_SIZE
    assert PublicKeys(HYBRID.x25519) == PUBLIC == PublicKeys(x25519_public(RECIPIENT))


def test_the_format_is_that_of_the_public_keys() -> None:
    """With an ML-KEM public key it is 0x13, without one 0x12; both say that they are sealed, and nothing else
    does."""
    assert (BLOB[:1], HYBRID_BLOB[:1]) == (b"\x12", b"\x13")
    assert is_sealed(BLOB)
    assert is_sealed(HYBRID_BLOB)
    assert not is_sealed(b"\x11" + BLOB[1:])
    assert not is_sealed(b"")


def test_no_byte_of_a_hybrid_seal_is_without_meaning() -> None:
    """Each of the 1,169 bytes, altered, raises one of our errors, and none gives a key."""
    for at in range(HYBRID_SIZE):
        blob = bytearray(HYBRID_BLOB)
        blob[at] ^= 0xFF
        with pytest.raises(EnvelopeError) as caught:
            open_key(bytes(blob), RECIPIENT, CONTEXT)

        assert (FormatError if at == 0 else UnlockError) is caught.type, at


@pytest.mark.parametrize("size", [0, 1, SEALED_SIZE, HYBRID_SIZE - 1])
def test_a_hybrid_seal_that_was_cut_is_truncated(size: int) -> None:
    """The length is that of the first byte's format."""
    with pytest.raises(FormatError) as caught:
        open_key(HYBRID_BLOB[:size], RECIPIENT, CONTEXT)

    assert (FormatError if size == 0 else TruncatedError) is caught.type
    with pytest.raises(FormatError):
        open_key(HYBRID_BLOB + bytes(1), RECIPIENT, CONTEXT)


@pytest.mark.parametrize("public_key", LOW_ORDER, ids=lambda public_key: public_key.hex()[:8])
def test_half_a_hybrid_is_not_sealed_to(public_key: bytes) -> None:
    """With a planted X25519 key of low order ML-KEM would stand alone: it is refused."""
    with pytest.raises(TamperedKeyError):
        seal_key(KEY, PublicKeys(public_key, HYBRID.mlkem768), CONTEXT)


@pytest.mark.parametrize("public_key", [b"", bytes(32), bytes(1183), bytes(1185), b"\xff" * 1184])
def test_an_ml_kem_public_key_is_checked(public_key: bytes) -> None:
    """Of another length, or with coefficients that there are not, it is tampering, and not a ValueError."""
    with pytest.raises(TamperedKeyError):
        seal_key(KEY, PublicKeys(PUBLIC.x25519, public_key), CONTEXT)


@pytest.mark.parametrize("half", ["x25519", "mlkem768"])
def test_one_half_of_the_hybrid_opens_nothing(half: str) -> None:
    """Sealed to the recipient's one half and somebody else's other, it opens for neither of them."""
    others = public_keys(OTHER, hybrid=True)
    mixed = (
        PublicKeys(HYBRID.x25519, others.mlkem768)
        if half == "x25519"
        else PublicKeys(others.x25519, HYBRID.mlkem768)
    )
    blob = seal_key(KEY, mixed, CONTEXT)
    for recipient in (RECIPIENT, OTHER):
        with pytest.raises(UnlockError):
            open_key(blob, recipient, CONTEXT)
