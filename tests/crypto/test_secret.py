"""Key bytes do not print, pickle, copy or compare carelessly; wiping zeroes them, nothing else does."""

import copy
import gc
import logging
import pickle
import traceback
import uuid
from collections.abc import Callable

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sqlalchemy_envelope.crypto import kdf
from sqlalchemy_envelope.crypto.aead import Field, ValueCipher
from sqlalchemy_envelope.crypto.secret import KEY_SIZE, KeyBytes
from sqlalchemy_envelope.keys.hierarchy import describe
from sqlalchemy_envelope.keys.keyring import Keyring
from sqlalchemy_envelope.keys.model import Purpose

RAW = b"<these are 32 bytes of key, yes>"
ZEROS = bytes(KEY_SIZE)


def opened() -> object:
    return describe(KeyBytes(RAW), b"owner", Purpose.DATA)


def keyring() -> Keyring:
    ring = Keyring()
    ring.add(b"owner", [describe(KeyBytes(RAW), b"owner", Purpose.DATA)])
    ring.writer(b"owner", "", Field("t.c", "str"))
    return ring


HOLDERS: dict[str, Callable[[], object]] = {
    "KeyBytes": lambda: KeyBytes(RAW),
    "ValueCipher": lambda: ValueCipher(KeyBytes(RAW), uuid.UUID(int=0), Field("t.c", "str")),
    "OpenedKey": opened,
    "Keyring": keyring,
}
holders = pytest.mark.parametrize("make", HOLDERS.values(), ids=HOLDERS)


@holders
def test_a_key_is_not_printed(make: Callable[[], object], caplog: pytest.LogCaptureFixture) -> None:
    """What holds a key shows no byte of it: in repr, str, format, logging or a traceback's locals."""
    holder = make()
    logging.getLogger("test").warning("%s %r", holder, holder)
    try:
        raise ValueError(holder)
    except ValueError as error:
        frames = traceback.TracebackException.from_exception(error, capture_locals=True)
    shown = [repr(holder), str(holder), f"{holder}", repr([holder]), caplog.text, "".join(frames.format())]
    # What the class is called is shown, or the test would see nothing at all.
    assert all(type(holder).__name__ in text for text in shown)
    subkeys = [kdf.subkey(KeyBytes(RAW), "wrap"), kdf.subkey(KeyBytes(RAW), "column", b"t.c")]
    for data in [RAW, *(bytes(subkey.buffer) for subkey in subkeys)]:
        for spelling in (data.hex(), repr(data)[2:-1], repr(list(data))[1:-1], data.decode("latin-1")):
            assert not any(spelling in text for text in shown)


@holders
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_key_is_not_pickled(make: Callable[[], object], protocol: int) -> None:
    """What holds a key cannot be sent anywhere by any pickle protocol."""
    with pytest.raises(TypeError, match="keys are not copied or pickled"):
        pickle.dumps(make(), protocol)


@holders
def test_a_key_is_not_copied(make: Callable[[], object]) -> None:
    """What holds a key has no copy that would outlive its wiping: neither a deep nor a shallow one."""
    with pytest.raises(TypeError):
        copy.deepcopy(make())
    with pytest.raises(TypeError):
        copy.copy(make())


def test_a_key_says_that_it_is_redacted() -> None:
    """What is printed in place of a key is said in so many words."""
    assert repr(KeyBytes(RAW)) == "<KeyBytes redacted>"


def test_a_key_is_no_bytes() -> None:
    """`bytes`, iteration, length and hashing are not there to be used by mistake."""
    key = KeyBytes(RAW)
    for use in (bytes, iter, len, hash):
        with pytest.raises(TypeError):
            use(key)  # type: ignore[operator]
    with pytest.raises(AttributeError):
        key.other = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_a_key_has_32_bytes(size: int) -> None:
    """Bytes of any other number are no key."""
    with pytest.raises(ValueError, match="a key has 32 bytes") as caught:
        KeyBytes(b"k" * size)

    assert "kk" not in str(caught.value)


def test_equality_is_of_keys_alone() -> None:
    """Two keys of the same bytes are equal; a key equals no bytes, and not another key."""
    assert KeyBytes(RAW) == KeyBytes(bytearray(RAW))
    assert KeyBytes(RAW) != KeyBytes(RAW[:-1] + b"?")
    assert KeyBytes(RAW) != RAW
    assert KeyBytes(RAW) != bytearray(RAW)


def test_a_key_has_its_own_buffer() -> None:
    """Neither wiping the source changes the key, nor wiping the key the source."""
    source = bytearray(RAW)
    key = KeyBytes(source)
    source[:] = ZEROS
    assert bytes(key.buffer) == RAW
    twin = KeyBytes(key.buffer)
    key.wipe()

    assert bytes(twin.buffer) == RAW


def test_wiping_zeroes_the_buffer_itself() -> None:
    """After `wipe` the very buffer that held the key holds zeros, whoever else refers to it."""
    key = KeyBytes(RAW)
    held = key.buffer
    key.wipe()

    assert held is key.buffer
    assert bytes(held) == ZEROS


def test_generated_keys_are_random() -> None:
    """A thousand fresh keys are a thousand different keys, none of them zero."""
    made = {bytes(KeyBytes.generate().buffer) for _ in range(1000)}

    assert len(made) == 1000
    assert ZEROS not in made
    assert {KEY_SIZE} == {len(one) for one in made}


def test_a_key_that_nobody_names_keeps_its_bytes() -> None:
    """The buffer of a temporary key is read before anything could wipe it: no `__del__` does."""
    buffer = KeyBytes(RAW).buffer
    gc.collect()

    assert bytes(buffer) == RAW
    assert not hasattr(KeyBytes, "__del__")


def test_what_is_derived_is_made_once_and_goes_with_the_key() -> None:
    """A subkey that is kept beside its key is the same each time; its bytes are zeros once the key's are, and
    an object of OpenSSL is let go of."""
    key = KeyBytes(RAW)
    wrapping, private = key.derived(kdf.wrapping_key), key.derived(kdf.x25519_private)
    assert wrapping == kdf.subkey(key, "wrap")
    assert wrapping is key.derived(kdf.wrapping_key)
    assert private is key.derived(kdf.x25519_private)
    held = wrapping.buffer
    key.wipe()

    assert bytes(held) == ZEROS
    assert key._derived == {}


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_is_derived_while_its_key_is_wiped_is_wiped_too(when: str) -> None:
    """A signal handler or another thread wipes without waiting: no subkey is left that nobody wipes."""
    key, made = KeyBytes(RAW), []

    def derive(of: KeyBytes) -> KeyBytes:
        if when == "before":
            key.wipe()
        made.append(kdf.wrapping_key(of))
        if when == "after":
            assert any(made[0].buffer)
            key.wipe()
        return made[0]

    assert key.derived(derive) is made[0]
    assert bytes(made[0].buffer) == ZEROS
    assert key._derived == {}


def test_no_subkey_is_zero() -> None:
    """Every derivation in one expression gives its key's bytes; once a temporary key wiped itself before."""
    key = KeyBytes(RAW)
    made = [
        bytes(kdf.subkey(key, "wrap").buffer),
        bytes(kdf.subkey(key, "column", b"t.c").buffer),
        bytes(kdf.subkey(key, "x25519").buffer),
        bytes(kdf.subkey(key, "key-commitment").buffer),
        bytes(kdf.key_encryption_key(RAW).buffer),
        kdf.x25519_private(key).private_bytes_raw(),
    ]
    gc.collect()

    assert ZEROS not in made
    assert len(made[:5]) == len(set(made[:5]))
    assert kdf.x25519_public(key) == kdf.x25519_private(key).public_key().public_bytes_raw()
    assert (
        kdf.x25519_public(key) != X25519PrivateKey.from_private_bytes(ZEROS).public_key().public_bytes_raw()
    )


def test_no_cipher_is_under_zeros() -> None:
    """A cipher's values do not open under 32 zeros, and do open under the subkey of its column."""
    cipher = ValueCipher(KeyBytes(RAW), uuid.UUID(int=0), Field("t.c", "str"))
    blob = cipher.encrypt(b"value")
    with pytest.raises(InvalidTag):
        AESGCM(ZEROS).decrypt(blob[17:29], blob[29:], cipher.aad)
    subkey = kdf.subkey(KeyBytes(RAW), "column", b"t.c")

    assert AESGCM(subkey.buffer).decrypt(blob[17:29], blob[29:], cipher.aad) == b"value"
