"""A server keyring wraps with its first key, unwraps with all, refuses what was touched, and shows no key."""

import base64
import copy
import os
import pickle
import traceback
from hashlib import sha512
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from sqlalchemy_envelope import (
    ConfigurationError,
    EnvelopeError,
    FormatError,
    ProviderError,
    TamperedKeyError,
    TruncatedError,
)
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.keys.providers import KeyProvider, ProviderCalls, ServerKeyring

OLD, NEW = sha512(b"old").digest()[:32], sha512(b"new").digest()[:32]
KEK = sha512(b"kek").digest()[:32]
CONTEXT = {"library": "sqlalchemy-envelope/v1", "kek": "6b" * 32}
RING = ServerKeyring([OLD])
WRAPPED = RING.wrap(KEK, CONTEXT)


def text(key: bytes) -> str:
    """A key as it stands in an environment variable."""
    return base64.b64encode(key).decode()


def refused(call: object) -> str:
    """The message with which a keyring is refused, after a look that it shows no key."""
    with pytest.raises(ConfigurationError) as caught:
        call()  # type: ignore[operator]
    shown = "".join(traceback.format_exception(caught.value))
    assert not any(spelling in shown for key in (OLD, NEW) for spelling in (text(key), key.hex(), repr(key)))
    return str(caught.value)


# ---------------------------------------------------------------- wrapping


@given(st.binary(min_size=32, max_size=32), st.dictionaries(st.text(), st.text(), max_size=4))
def test_what_is_wrapped_unwraps(key: bytes, context: dict[str, str]) -> None:
    """Any key comes back under the context it was wrapped for, in whatever order that is written."""
    wrapped = RING.wrap(key, context)

    assert len(wrapped) == 121
    assert key == RING.unwrap(wrapped, dict(reversed(context.items())))


def test_the_bytes_are_those_of_the_specification() -> None:
    """Section 8 of the wire format, read with nothing but HKDF and AES-GCM, gives the key."""

    def ctx(label: bytes, *fields: bytes) -> bytes:
        encoded = b"sqlalchemy-envelope/v1/" + label + b"\0" + bytes([len(fields)])
        return encoded + b"".join(len(field).to_bytes(4, "big") + field for field in fields)

    def expand(key: bytes, info: bytes, size: int) -> bytes:
        return HKDFExpand(SHA512(), size, info).derive(key)

    key_id = bytearray(expand(OLD, ctx(b"key-commitment"), 32)[:16])
    key_id[6], key_id[8] = 0x80 | key_id[6] & 0x0F, 0x80 | key_id[8] & 0x3F
    context = ctx(b"server", b"kek", b"6b" * 32, b"library", b"sqlalchemy-envelope/v1")
    salt, commitment, sealed = WRAPPED[17:41], WRAPPED[41:73], WRAPPED[73:]
    label = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0"
    okm = expand(expand(OLD, ctx(b"wrap"), 32), label + salt + context, 76)

    assert bytes(key_id) + b"\x11" == WRAPPED[:17]
    assert okm[44:] == commitment
    assert AESGCM(okm[:32]).decrypt(okm[32:44], sealed, None) == KEK


def test_a_new_key_before_the_others_takes_over() -> None:
    """After rotation by prepending, new wraps are under the new key and old ones still unwrap."""
    rotated = ServerKeyring([NEW, OLD])

    assert rotated.unwrap(WRAPPED, CONTEXT) == KEK
    assert ServerKeyring([NEW]).reference == rotated.reference != RING.reference
    assert ServerKeyring([NEW]).unwrap(rotated.wrap(KEK, CONTEXT), CONTEXT) == KEK


def test_a_key_that_is_not_configured_is_named() -> None:
    """A wrap under a key that was taken away is a `ProviderError` with the first digits of its id."""
    with pytest.raises(ProviderError, match=f"Server key {WRAPPED[:4].hex()} is not configured"):
        ServerKeyring([NEW]).unwrap(WRAPPED, CONTEXT)


@pytest.mark.parametrize(
    "context",
    [
        {},
        CONTEXT | {"kek": "6c" * 32},
        {"library": CONTEXT["library"]},
        CONTEXT | {"more": ""},
        {"library": CONTEXT["kek"], "kek": CONTEXT["library"]},
        {"kek": "6b" * 32 + "library", "": "sqlalchemy-envelope/v1"},
    ],
)
def test_another_context_opens_nothing(context: dict[str, str]) -> None:
    """A wrap that is moved to another KEK's row is refused, and is no wrong secret."""
    with pytest.raises(TamperedKeyError):
        RING.unwrap(WRAPPED, context)


def test_every_flipped_bit_is_refused() -> None:
    """Each bit counts: of the id (not configured), of the format byte (format), of the rest (tampered)."""
    refusals = []
    for bit in range(8 * len(WRAPPED)):
        flipped = bytearray(WRAPPED)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(EnvelopeError) as caught:
            RING.unwrap(bytes(flipped), CONTEXT)
        refusals.append(caught.type)

    assert [ProviderError] * 128 + [FormatError] * 8 + [TamperedKeyError] * 832 == refusals


def test_another_length_is_refused() -> None:
    """Cut short it is truncated, or without its format byte of no format; longer, it is of no format."""
    for size in range(len(WRAPPED)):
        with pytest.raises(FormatError) as caught:
            RING.unwrap(WRAPPED[:size], CONTEXT)
        assert (FormatError if size == 16 else TruncatedError) is caught.type
    with pytest.raises(FormatError):
        RING.unwrap(WRAPPED + b"\0", CONTEXT)


def test_a_keyring_is_a_local_provider() -> None:
    """It fits `KeyProvider`, and `ProviderCalls` brings a key through it as a stored 0x14."""
    provider: KeyProvider = RING
    calls = ProviderCalls(provider, "server")
    blob = calls.wrap(KeyBytes(KEK), CONTEXT)

    assert calls.local
    assert f"server:{WRAPPED[:16].hex()}" == calls.reference
    assert (blob[0], len(blob)) == (0x14, 122)
    assert KeyBytes(KEK) == calls.unwrap(blob, CONTEXT)


def test_row_seals_find_the_keys_by_id() -> None:
    """`active` is the first key, and `keys_by_id` has all of them in order."""
    ring = ServerKeyring([NEW, OLD])

    assert KeyBytes(NEW) == ring.active[1]
    assert [KeyBytes(NEW), KeyBytes(OLD)] == list(ring.keys_by_id.values())
    assert [ring.active[0], RING.active[0]] == list(ring.keys_by_id)
    assert WRAPPED[:16] == RING.active[0]
    with pytest.raises(TypeError):
        ring.keys_by_id[b""] = KeyBytes(OLD)  # type: ignore[index]


# ---------------------------------------------------------------- where keys come from


@pytest.mark.parametrize("separator", [",", " ", "\n", ", ", "\r\n\t", ",\n"])
def test_the_environment_holds_keys(monkeypatch: pytest.MonkeyPatch, separator: str) -> None:
    """Keys are separated by commas or white space, in either base64 alphabet, padded or not; active first."""
    urlsafe = base64.urlsafe_b64encode(OLD).decode().rstrip("=")
    monkeypatch.setenv("ENVELOPE_SERVER_KEYS", f" {text(NEW)}{separator}{urlsafe} ")

    assert list(ServerKeyring([NEW, OLD]).keys_by_id) == list(ServerKeyring.from_environment().keys_by_id)


@pytest.mark.parametrize("separator", [",", " ", "\n", ", "])
def test_text_holds_keys(separator: str) -> None:
    """Settings that the application reads itself are given as text, in the same form."""
    ring = ServerKeyring.from_text(f"{text(NEW)}{separator}{text(OLD)}\n")

    assert list(ServerKeyring([NEW, OLD]).keys_by_id) == list(ring.keys_by_id)


@pytest.mark.parametrize(
    "wrong", ["", " , ", text(NEW)[:-8], f"{text(NEW)} ?{text(OLD)}", b"bytes", SecretStr(text(NEW))]
)
def test_text_that_holds_no_keys(wrong: Any) -> None:
    """What is wrong with a text is said without showing it."""
    with pytest.raises(ConfigurationError) as caught:
        ServerKeyring.from_text(wrong)

    assert text(NEW)[:8] not in str(caught.value)
    assert text(OLD)[:8] not in str(caught.value)


def test_another_variable_holds_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable's name is the application's to choose."""
    monkeypatch.setenv("OTHER", ServerKeyring.generate_key())

    assert ServerKeyring.from_environment("OTHER").reference.startswith("server:")


def test_generated_keys_differ() -> None:
    """`generate_key` makes the base64 of 32 new bytes each time."""
    made = [ServerKeyring.generate_key() for _ in range(5)]

    assert len({base64.b64decode(key, validate=True) for key in made}) == 5
    assert {44} == {len(key) for key in made}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", "There is no key in"),
        (" ,\n", "There is no key in"),
        (f"{text(NEW)},{text(OLD)[:-4]}", "Key 2 of the environment variable KEYS has 30 bytes, not 32"),
        (f"{text(NEW)} {text(OLD + OLD)}", "Key 2 of the environment variable KEYS has 64 bytes, not 32"),
        (f"{text(NEW)[:-1]}!", "Key 1 of the environment variable KEYS is not base64"),
        (f"{text(NEW)[:20]}={text(NEW)[20:]}", "Key 1 of the environment variable KEYS is not base64"),
        (f"{text(NEW)[:-1]}é", "Key 1 of the environment variable KEYS is not base64"),
        (f"{text(NEW)[:-3]}", "Key 1 of the environment variable KEYS is not base64"),
        (f"{text(NEW)},{text(OLD)},{text(NEW)}", "Server key 3 is there twice"),
        (f"{text(NEW)};{text(OLD)}", "Key 1 of the environment variable KEYS is not base64"),
    ],
)
def test_what_is_wrong_is_said_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, value: str, said: str
) -> None:
    """A key that cannot be read is named by its place, never by its text."""
    monkeypatch.setenv("KEYS", value)

    assert said in refused(lambda: ServerKeyring.from_environment("KEYS"))


def test_a_missing_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its variable, the keyring says which one it looked for."""
    monkeypatch.delenv("ENVELOPE_SERVER_KEYS", raising=False)

    words = refused(ServerKeyring.from_environment)
    assert "ENVELOPE_SERVER_KEYS is not set" in words
    assert "ServerKeyring.generate_key() makes the text of one." in words


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ([], "no server key"),
        ([OLD, b"short"], "Server key 2 has 5 bytes, not 32"),
        ([OLD, OLD], "Server key 2 is there twice"),
        ([text(OLD)], "Server key 1 is a str, not bytes"),
        (OLD, "takes a list of keys"),
        (text(OLD), "takes a list of keys"),
    ],
)
def test_keys_that_cannot_be_are_refused(keys: list[bytes], said: str) -> None:
    """None, one of another size, one twice, or text where bytes are due is a `ConfigurationError`."""
    assert said in refused(lambda: ServerKeyring(keys))


def test_a_file_holds_keys(tmp_path: Path) -> None:
    """One key a line, active first; comments and empty lines are passed over."""
    path = tmp_path / "server.keys"
    path.write_text(f"# since May\n{text(NEW)}\n\n  # before\n{text(OLD)}\r\n")
    path.chmod(0o600)

    assert list(ServerKeyring([NEW, OLD]).keys_by_id) == list(ServerKeyring.from_file(path).keys_by_id)
    assert ServerKeyring([NEW]).reference == ServerKeyring.from_file(str(path)).reference


@pytest.mark.skipif(os.name != "posix", reason="file modes are of POSIX")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    """Keys that are open to group or others are refused, unless the caller says that it cannot be helped."""
    path = tmp_path / "server.keys"
    path.write_text(text(OLD))
    path.chmod(mode)

    assert f"mode {mode:04o}" in refused(lambda: ServerKeyring.from_file(path))
    assert RING.reference == ServerKeyring.from_file(path, unsafe_permissions=True).reference


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """No file, no text, no key and half a key each say what is wrong with which file."""
    path = tmp_path / "server.keys"
    assert "cannot be read: No such file" in refused(lambda: ServerKeyring.from_file(path))
    path.touch(0o600)
    assert "There is no key in" in refused(lambda: ServerKeyring.from_file(path))
    path.write_text(f"# a comment\n{text(OLD)[:20]}")
    assert "has 15 bytes" in refused(lambda: ServerKeyring.from_file(path))
    path.write_bytes(b"\xff\xfe" + OLD)
    assert "is not text" in refused(lambda: ServerKeyring.from_file(path))


# ---------------------------------------------------------------- what shows


def test_a_keyring_shows_no_key() -> None:
    """Neither `repr` nor `str` nor its reference holds a byte of a key."""
    shown = f"{RING!r} {RING} {RING.reference} {RING.keys_by_id!r} {RING.active!r}"

    assert not any(spelling in shown for spelling in (text(OLD), OLD.hex(), repr(OLD)))
    assert f"<ServerKeyring of 1, active {WRAPPED[:4].hex()}>" == repr(RING)


@pytest.mark.parametrize("copying", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_keyring_is_not_copied(copying: object) -> None:
    """Server keys are neither copied nor pickled."""
    with pytest.raises(TypeError, match="not copied or pickled"):
        copying(RING)  # type: ignore[operator]
