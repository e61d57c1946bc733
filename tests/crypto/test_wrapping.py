"""A wrapped key opens under its key, in its context, whole and unaltered; and in no other case."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlalchemy_envelope.crypto import wrapping
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.crypto.wrapping import WRAPPED_SIZE, WrapContext, check_frame, unwrap, wrap
from sqlalchemy_envelope.exceptions import (
    EnvelopeError,
    FormatError,
    TamperedKeyError,
    TruncatedError,
    UnlockError,
)
from sqlalchemy_envelope.words import counted

KEY, KEK = KeyBytes(bytes(range(32))), KeyBytes(bytes(range(32, 64)))
CONTEXT = WrapContext("secret", b"\1" * 16, b"owner", "root", "", 1, "$argon2id$").encode()
BLOB = wrap(KEY, KEK, CONTEXT)

KEYS = st.binary(min_size=32, max_size=32).map(KeyBytes)
WORDS = st.text(st.characters(codec="ascii"), max_size=12)
CONTEXTS = st.builds(
    WrapContext,
    kind=WORDS,
    key_id=st.binary(min_size=16, max_size=16),
    owner_reference=st.binary(max_size=40),
    purpose=WORDS,
    scope=st.text(st.characters(codec="utf-8"), max_size=12),
    epoch=st.integers(0, 2**32 - 1),
    kdf=WORDS,
    recipient=st.binary(max_size=32),
    granter=st.binary(max_size=32),
)


@given(KEYS, KEYS, st.binary(max_size=200))
def test_a_wrapped_key_opens(key: KeyBytes, wrapping_key: KeyBytes, context: bytes) -> None:
    """Any key under any key in any context comes back, from 105 bytes."""
    blob = wrap(key, wrapping_key, context)

    assert len(blob) == WRAPPED_SIZE
    assert key == unwrap(blob, wrapping_key, context)


def test_no_two_wraps_are_alike() -> None:
    """The same key wrapped twice shares neither salt nor commitment nor ciphertext."""
    blobs = [wrap(KEY, KEK, CONTEXT) for _ in range(200)]
    for part in (slice(1, 25), slice(25, 57), slice(57, 105)):
        assert len({blob[part] for blob in blobs}) == 200


@given(KEYS, st.binary(max_size=100))
def test_another_key_or_context_does_not_open(other: KeyBytes, context: bytes) -> None:
    """A wrong key and a wrong context look alike: `UnlockError`, with one message."""
    messages = set()
    for wrapping_key, of in [(other, CONTEXT), (KEK, context), (other, context)]:
        with pytest.raises(UnlockError) as caught:
            unwrap(BLOB, wrapping_key, of)
        messages.add(str(caught.value))

    assert len(messages) == 1
    assert "the secret is wrong, or the slot was altered" in messages.pop()


def test_every_flipped_bit_is_noticed() -> None:
    """Each of the 840 bits, flipped, raises the error of its part: format, unlock, or certainly tampered."""
    for bit in range(8 * WRAPPED_SIZE):
        at = bit // 8
        blob = bytearray(BLOB)
        blob[at] ^= 1 << bit % 8
        expected = FormatError if at == 0 else UnlockError if at < 57 else TamperedKeyError
        with pytest.raises(EnvelopeError) as caught:
            unwrap(bytes(blob), KEK, CONTEXT)

        assert expected is caught.type, at
        assert ("its commitment fits" in str(caught.value)) is (at >= 57)


def test_a_commitment_is_compared_whole() -> None:
    """A commitment that is wrong in all its bytes, or swapped with another wrap's, opens nothing."""
    other = wrap(KEY, KEK, CONTEXT)
    for commitment in (bytes(32), bytes(byte ^ 0xFF for byte in BLOB[25:57]), other[25:57]):
        with pytest.raises(UnlockError):
            unwrap(BLOB[:25] + commitment + BLOB[57:], KEK, CONTEXT)


@given(st.integers(0, WRAPPED_SIZE - 1))
def test_every_truncation_is_noticed(size: int) -> None:
    """A wrap cut short anywhere is called truncated; nothing at all is no format."""
    with pytest.raises(FormatError) as caught:
        unwrap(BLOB[:size], KEK, CONTEXT)

    assert (FormatError if size == 0 else TruncatedError) is caught.type


@given(st.binary(min_size=1, max_size=300))
def test_every_extension_is_noticed(more: bytes) -> None:
    """A wrap with bytes after it is not in our format, and is not called truncated."""
    with pytest.raises(FormatError) as caught:
        unwrap(BLOB + more, KEK, CONTEXT)

    assert FormatError is caught.type


def test_the_frame_is_checked_before_any_cryptography(monkeypatch: pytest.MonkeyPatch) -> None:
    """A blob of another format or length derives nothing: who measures time learns nothing."""
    monkeypatch.setattr(wrapping, "expand", lambda *_: pytest.fail("something was derived"))
    for blob in (b"", b"\x12" + BLOB[1:], BLOB[:-1], BLOB + b"\0"):
        with pytest.raises(FormatError):
            unwrap(blob, KEK, CONTEXT)


def test_a_wrong_commitment_decrypts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a wrong key the ciphertext is not even tried."""
    monkeypatch.setattr(wrapping, "AESGCM", lambda *_: pytest.fail("something was decrypted"))
    with pytest.raises(UnlockError):
        unwrap(BLOB, KEY, CONTEXT)


@given(st.integers(0, 255), st.integers(1, 40), st.binary(max_size=60), st.booleans())
def test_a_frame_is_its_first_byte_and_its_length(first: int, size: int, blob: bytes, ours: bool) -> None:
    """`check_frame` accepts what starts with the byte and has the size, and says what else is wrong."""
    blob = bytes([first]) + blob if ours else blob
    if blob[:1] != bytes([first]):
        expected: type[EnvelopeError] | None = FormatError
    else:
        expected = TruncatedError if len(blob) < size else FormatError if len(blob) > size else None
    if expected is None:
        check_frame(blob, first, size)
        return
    with pytest.raises(EnvelopeError) as caught:
        check_frame(blob, first, size)

    assert expected is caught.type
    assert f"0x{first:02x}" in str(caught.value)
    assert blob[:1] != bytes([first]) or counted(len(blob), "byte") in str(caught.value)


@given(CONTEXTS, CONTEXTS)
def test_wrap_contexts_do_not_collide(one: WrapContext, other: WrapContext) -> None:
    """Two contexts encode alike if they are equal in all nine fields, and never otherwise."""
    assert (one == other) is (one.encode() == other.encode())


@given(CONTEXTS, st.integers(0, 8))
def test_each_field_is_bound(context: WrapContext, index: int) -> None:
    """A key wrapped in one context does not open where one field is another, nor where two are exchanged."""
    blob = wrap(KEY, KEK, context.encode())
    name = WrapContext._fields[index]
    value = getattr(context, name)
    if isinstance(value, int):
        value = (value + 1) % 2**32
    else:
        value += "x" if isinstance(value, str) else b"x"
    changed = context._replace(**{name: value})
    with pytest.raises(UnlockError):
        unwrap(blob, KEK, changed.encode())
    exchanged = context._replace(recipient=context.granter, granter=context.recipient)
    if exchanged != context:
        with pytest.raises(UnlockError):
            unwrap(blob, KEK, exchanged.encode())

    assert unwrap(blob, KEK, context.encode()) == KEY


@pytest.mark.parametrize("epoch", [-1, 2**32, 10**30])
def test_an_epoch_that_no_key_has_is_tampering(epoch: int) -> None:
    """A stored epoch that has no four bytes is our error, not an OverflowError out of the depths."""
    with pytest.raises(TamperedKeyError, match=str(epoch)):
        WrapContext("root", b"", b"", "data", "", epoch).encode()


@pytest.mark.parametrize("epoch", [0, 1, 2**32 - 1])
def test_an_epoch_has_four_bytes(epoch: int) -> None:
    """The least and the greatest epoch are bound as u32be."""
    assert epoch.to_bytes(4, "big") in WrapContext("root", b"", b"", "data", "", epoch).encode()


def test_errors_hold_no_key() -> None:
    """What is raised for a wrong key or an altered wrap names no byte of either and chains nothing."""
    for blob, key in [(BLOB, KEY), (BLOB[:-1] + bytes([BLOB[-1] ^ 1]), KEK)]:
        with pytest.raises(EnvelopeError) as caught:
            unwrap(blob, key, CONTEXT)

        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
        assert not any(part.hex() in repr(caught.value) for part in (blob[1:9], blob[25:33], blob[57:65]))
