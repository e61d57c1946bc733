"""Write the test vectors from docs/reference/wire-format.md: one long file, to be read beside one long page.

This file imports nothing of the library. It reads the specification a second time, in the plainest code that
says it: a mistake that stands in the library and in its vectors alike takes two accidents, and not one.
Before a case is written, the readers below open it, and it must come out as it says.

    python tests/vectors/build.py            write the files
    python tests/vectors/build.py --check    write nothing; exit 1 if a file is not what would be written

Nobody can choose the randomness of ML-KEM here: a blob of hybrid.json is sealed once, and is then kept as
long as it opens as its case says. Every run makes all other cases anew.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import json
import re
import struct
import sys
import unicodedata
import uuid
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from argon2.low_level import Type, hash_secret_raw
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

HERE = Path(__file__).parent
Case = dict[str, Any]


class RefusedError(Exception):
    """What a reader answers instead of a result; its text is the word that stands in `expect` or `reason`."""


# ---------------------------------------------------------------- section 1: context


def ctx(label: str, *fields: bytes) -> bytes:
    name = label.encode("ascii")
    if b"\x00" in name or len(fields) > 255:
        raise RefusedError("refused")
    encoded = b"".join(struct.pack(">I", len(field)) + field for field in fields)
    return b"sqlalchemy-envelope/v1/" + name + b"\x00" + bytes([len(fields)]) + encoded


def reference(parts: Iterable[object]) -> bytes:
    return b"".join(reference_part(part) for part in parts)


def reference_part(part: object) -> bytes:
    match part:
        case bool() | dt.datetime():
            raise RefusedError("refused")
        case int():
            tag, body = b"i", str(part).encode("ascii")
        case str():
            tag, body = b"s", utf8(part)
        case uuid.UUID():
            tag, body = b"u", part.bytes
        case bytes():
            tag, body = b"b", part
        case dt.date():
            tag, body = b"d", part.isoformat().encode("ascii")
        case _:
            raise RefusedError("refused")
    return tag + struct.pack(">I", len(body)) + body


def utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise RefusedError("refused") from None


def owner_reference(label: str, parts: Iterable[object]) -> bytes:
    return ctx("owner", utf8(label), reference(parts))


def granting_row(label: str, parts: Iterable[object]) -> bytes:
    return ctx("grant", utf8(label), reference(parts))


# ---------------------------------------------------------------- section 2: keys


def expand(key: bytes, info: bytes, size: int) -> bytes:
    return HKDFExpand(hashes.SHA512(), size, info).derive(key)


def subkey(key: bytes, purpose: str, *fields: bytes, size: int = 32) -> bytes:
    return expand(key, ctx(purpose, *fields), size)


def commitment(key: bytes) -> bytes:
    return subkey(key, "key-commitment")


def key_id(key: bytes) -> bytes:
    name = bytearray(commitment(key)[:16])
    name[6] = 0x80 | name[6] & 0x0F
    name[8] = 0x80 | name[8] & 0x3F
    return bytes(name)


def x25519_public(key: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(subkey(key, "x25519")).public_key().public_bytes_raw()


def mlkem_seed(key: bytes) -> bytes:
    return subkey(key, "mlkem768", size=64)


def mlkem_public(key: bytes) -> bytes:
    return MLKEM768PrivateKey.from_seed_bytes(mlkem_seed(key)).public_key().public_bytes_raw()


def wrapping(key: bytes) -> bytes:
    return subkey(key, "wrap")


def epoch_proof(previous: bytes, new: bytes) -> bytes:
    return subkey(previous, "epoch-proof", key_id(new))  # section 7


def value_key(data_key: bytes, label: str) -> bytes:
    return subkey(data_key, "column", utf8(label))


# ---------------------------------------------------------------- section 3: secret


def prepare(secret: str | bytes, making: bool) -> bytes:
    if isinstance(secret, bytes):
        prepared = secret
    else:
        if len(secret) > 4096:
            raise RefusedError("too many code points")
        spaced = "".join(" " if unicodedata.category(c) == "Zs" else c for c in secret)
        normal = unicodedata.normalize("NFC", spaced)
        categories = {unicodedata.category(c) for c in normal}
        for category, reason in (("Cc", "control"), ("Cs", "surrogate")):
            if category in categories:
                raise RefusedError(reason)
        if making and "Cn" in categories:
            raise RefusedError("unassigned")
        prepared = normal.encode("utf-8")
    if not prepared:
        raise RefusedError("empty")
    if len(prepared) > 1024:
        raise RefusedError("too many bytes")
    return prepared


PHC = re.compile(
    r"\$argon2id\$v=19\$m=([1-9][0-9]*),t=([1-9][0-9]*),p=([1-9][0-9]*)"
    r"(?:,share=([A-Za-z0-9+/]{22}))?\$([A-Za-z0-9+/]{22})",
    re.ASCII,
)


def sixteen(text: str) -> bytes:
    data = base64.b64decode(text + "==")
    if base64.b64encode(data).decode().rstrip("=") != text:
        raise RefusedError("refused")
    return data


def parse_phc(text: str) -> dict[str, Any]:
    found = PHC.fullmatch(text)
    if found is None:
        raise RefusedError("refused")
    if max(map(len, found.groups()[:3])) > 10:
        raise RefusedError("refused")
    m, t, p = (int(number) for number in found.groups()[:3])
    share, salt = None if found[4] is None else sixteen(found[4]), sixteen(found[5])
    within = (
        19_456 <= m <= 1_048_576
        and (2 <= t <= 16 or (t == 1 and m >= 47_104))
        and 1 <= p <= 16
        and m >= 8 * p
        and m * t <= 8_388_608
    )
    if not within:
        raise RefusedError("refused")
    named = {} if share is None else {"share_id": share}
    return {"m": m, "t": t, "p": p, "salt": salt, **named}


def argon2id(secret: bytes, phc: str) -> bytes:
    cost = parse_phc(phc)
    return hash_secret_raw(secret, cost["salt"], cost["t"], cost["m"], cost["p"], 32, Type.ID, 19)


def kek(argon2_output: bytes, share: bytes = b"") -> bytes:
    return HKDF(hashes.SHA512(), 32, share or b"\x00" * 64, ctx("kek")).derive(argon2_output)


def naming(phc: str, share: bytes) -> str:
    head, salt = phc.rsplit("$", 1)
    return f"{head},share={base64.b64encode(key_id(share)).decode().rstrip('=')}${salt}"


CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def recovery_text(random: bytes) -> str:
    data = int.from_bytes(random, "big")
    number = data * 2**20 + (-data * 2**20) % 1_048_517
    symbols = "".join(CROCKFORD[int(f"{number:0180b}"[at : at + 5], 2)] for at in range(0, 180, 5))
    return "-".join(re.findall("....", symbols))


def recovery_random(text: str) -> bytes:
    if len(text) > 256:
        raise RefusedError("too long")
    kept = [
        one
        for one in unicodedata.normalize("NFKC", text)
        if one not in "_\t\n\r\u2212\u2043\u30fc"
        and unicodedata.category(one) not in ("Pd", "Cf", "Zs", "Zl", "Zp")
    ]
    if any(one not in CROCKFORD + CROCKFORD.lower() + "OoIiLl" for one in kept):
        raise RefusedError("character")
    if len(kept) != 36:
        raise RefusedError("count")
    spelt = "".join(kept).upper().replace("O", "0").replace("I", "1").replace("L", "1")
    number = 0
    for symbol in spelt:
        number = number * 32 + CROCKFORD.index(symbol)
    if number % 1_048_517:
        raise RefusedError("check")
    return (number >> 20).to_bytes(20, "big")


def recovery_kek(random: bytes) -> bytes:
    return HKDF(hashes.SHA512(), 32, b"\x00" * 64, ctx("recovery-code")).derive(random)


# ---------------------------------------------------------------- section 4: 0x11

WRAP_FIELDS = (
    "kind",
    "key_id",
    "owner_reference",
    "purpose",
    "scope",
    "epoch",
    "kdf",
    "recipient",
    "granter",
)
COBBLESTONE = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\x00"


def wrap_context(of: Case) -> bytes:
    """The nine fields as they stand in a case: names as text, ids and references as hex, epoch a number."""
    return ctx(
        "wrap",
        of["kind"].encode("ascii"),
        bytes.fromhex(of["key_id"]),
        bytes.fromhex(of["owner_reference"]),
        of["purpose"].encode("ascii"),
        utf8(of["scope"]),
        struct.pack(">I", of["epoch"]),
        of["kdf"].encode("ascii"),
        bytes.fromhex(of["recipient"]),
        bytes.fromhex(of["granter"]),
    )


def wrap(wrapping_key: bytes, key: bytes, salt: bytes, context: bytes) -> bytes:
    okm = expand(wrapping_key, COBBLESTONE + salt + context, 76)
    return b"\x11" + salt + okm[44:76] + AESGCM(okm[:32]).encrypt(okm[32:44], key, None)


def unwrap(wrapping_key: bytes, blob: bytes, context: bytes) -> bytes:
    check_form(blob, 0x11, 105)
    okm = expand(wrapping_key, COBBLESTONE + blob[1:25] + context, 76)
    if not hmac.compare_digest(okm[44:76], blob[25:57]):
        raise RefusedError("unlock")
    try:
        return AESGCM(okm[:32]).decrypt(okm[32:44], blob[57:], None)
    except InvalidTag:
        raise RefusedError("tampered") from None


def check_form(blob: bytes, first: int, size: int) -> None:
    if not blob or blob[0] != first:
        raise RefusedError("format")
    if len(blob) != size:
        raise RefusedError("truncated" if len(blob) < size else "format")


def check_key(key: bytes, stored_id: bytes, stored_commitment: bytes) -> None:
    if not hmac.compare_digest(commitment(key), stored_commitment) or not hmac.compare_digest(
        key_id(key), stored_id
    ):
        raise RefusedError("tampered")


# ---------------------------------------------------------------- section 5: 0x12, HPKE by hand

KEM_SUITE = b"KEM" + struct.pack(">H", 0x0020)
HPKE_SUITE = b"HPKE" + struct.pack(">HHH", 0x0020, 0x0001, 0x0002)
HYBRID_SUITE = b"HPKE" + struct.pack(">HHH", 0x647A, 0x0001, 0x0002)


def labeled_extract(suite: bytes, salt: bytes, label: bytes, ikm: bytes) -> bytes:
    return hmac.digest(salt or b"\x00" * 32, b"HPKE-v1" + suite + label + ikm, "sha256")


def labeled_expand(suite: bytes, prk: bytes, label: bytes, info: bytes, size: int) -> bytes:
    labeled = struct.pack(">H", size) + b"HPKE-v1" + suite + label + info
    return HKDFExpand(hashes.SHA256(), size, labeled).derive(prk)


def kem_secret(shared: bytes, enc: bytes, public: bytes) -> bytes:
    eae_prk = labeled_extract(KEM_SUITE, b"", b"eae_prk", shared)
    return labeled_expand(KEM_SUITE, eae_prk, b"shared_secret", enc + public, 32)


def key_and_nonce(suite: bytes, shared_secret: bytes, info: bytes) -> tuple[bytes, bytes]:
    schedule = b"\x00" + b"".join(
        labeled_extract(suite, b"", label, ikm)
        for label, ikm in ((b"psk_id_hash", b""), (b"info_hash", info))
    )
    secret = labeled_extract(suite, shared_secret, b"secret", b"")
    return (
        labeled_expand(suite, secret, b"key", schedule, 32),
        labeled_expand(suite, secret, b"base_nonce", schedule, 12),
    )


def seal(public: bytes, key: bytes, ephemeral: bytes, context: bytes) -> bytes:
    """HPKE seals with a fresh pair; here its private key is an input, so that the bytes can be fixed."""
    pair = X25519PrivateKey.from_private_bytes(ephemeral)
    enc = pair.public_key().public_bytes_raw()
    try:
        shared = pair.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:  # the shared secret is all zero
        raise RefusedError("refused") from None
    aes_key, nonce = key_and_nonce(HPKE_SUITE, kem_secret(shared, enc, public), context)
    return b"\x12" + enc + AESGCM(aes_key).encrypt(nonce, key, None)


def open_sealed(private: bytes, blob: bytes, context: bytes) -> bytes:
    check_form(blob, 0x12, 81)
    pair = X25519PrivateKey.from_private_bytes(private)
    try:
        shared = pair.exchange(X25519PublicKey.from_public_bytes(blob[1:33]))
        secret = kem_secret(shared, blob[1:33], pair.public_key().public_bytes_raw())
        aes_key, nonce = key_and_nonce(HPKE_SUITE, secret, context)
        return AESGCM(aes_key).decrypt(nonce, blob[33:], None)
    except (InvalidTag, ValueError):  # ValueError: the shared secret was all zero
        raise RefusedError("unlock") from None


# ---------------------------------------------------------------- section 5: 0x13, but for ML-KEM by hand too


def hybrid_pair(key: bytes) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
    return (
        MLKEM768PrivateKey.from_seed_bytes(mlkem_seed(key)),
        X25519PrivateKey.from_private_bytes(subkey(key, "x25519")),
    )


def hybrid_secret(mlkem_shared: bytes, x25519_shared: bytes, x25519_enc: bytes, public: bytes) -> bytes:
    """How MLKEM768-X25519 makes one secret of two; what is public of ML-KEM is bound by ML-KEM itself."""
    return hashlib.sha3_256(mlkem_shared + x25519_shared + x25519_enc + public + b"\\.//^\\").digest()


def mlkem_shared(recipient: bytes, blob: bytes) -> bytes:
    """ML-KEM refuses no ciphertext: of an altered one it makes a secret that nobody else has."""
    return hybrid_pair(recipient)[0].decapsulate(blob[1:1089])


def open_hybrid(recipient: bytes, blob: bytes, context: bytes) -> bytes:
    check_form(blob, 0x13, 1169)
    pair, enc = hybrid_pair(recipient)[1], blob[1089:1121]
    try:
        shared = pair.exchange(X25519PublicKey.from_public_bytes(enc))
        secret = hybrid_secret(
            mlkem_shared(recipient, blob), shared, enc, pair.public_key().public_bytes_raw()
        )
        aes_key, nonce = key_and_nonce(HYBRID_SUITE, secret, context)
        return AESGCM(aes_key).decrypt(nonce, blob[1121:], None)
    except (InvalidTag, ValueError):  # ValueError: the shared secret was all zero
        raise RefusedError("unlock") from None


def seal_hybrid(mlkem: bytes, x25519: bytes, key: bytes, context: bytes) -> bytes:
    try:
        public = hpke.MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(mlkem), X25519PublicKey.from_public_bytes(x25519)
        )
        return b"\x13" + HYBRID.encrypt(key, public, info=context)
    except ValueError:
        raise RefusedError("refused") from None


def open_either(recipient: bytes, blob: bytes, context: bytes) -> bytes:
    """Which of the two it is, the first byte says."""
    if blob[:1] == b"\x13":
        return open_hybrid(recipient, blob, context)
    return open_sealed(subkey(recipient, "x25519"), blob, context)


HYBRID = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


# ---------------------------------------------------------------- section 6: 0x01


def encrypt(case: Case, plaintext: bytes) -> bytes:
    data_key, nonce = bytes.fromhex(case["data_key"]), bytes.fromhex(case["nonce"])
    header = b"\x01" + key_id(data_key)
    sealed = AESGCM(value_key(data_key, case["label"])).encrypt(nonce, plaintext, value_aad(header, case))
    return header + nonce + sealed


def decrypt(case: Case, blob: bytes) -> bytes:
    if not blob or blob[0] != 0x01:
        raise RefusedError("format")
    if len(blob) < 45:
        raise RefusedError("truncated")
    cipher = AESGCM(value_key(bytes.fromhex(case["data_key"]), case["label"]))
    try:
        return cipher.decrypt(blob[17:29], blob[29:], value_aad(blob[:17], case))
    except InvalidTag:
        raise RefusedError("decryption") from None


def value_aad(header: bytes, case: Case) -> bytes:
    fields = utf8(case["label"]), utf8(case["type"]), bytes.fromhex(case["row_reference"])
    return header + ctx("value", *fields)


def encode_int(number: int) -> bytes:
    size = 1
    while not -(1 << (8 * size - 1)) <= number < 1 << (8 * size - 1):
        size += 1
    return number.to_bytes(size, "big", signed=True)


def encode_float(number: float) -> bytes:
    return bytes.fromhex("7ff8000000000000") if number != number else struct.pack(">d", number)


def encode_decimal(number: Decimal) -> bytes:
    if number.is_snan():
        raise RefusedError("refused")
    return str(number).encode("ascii")


def encode_time(of: dt.time) -> bytes:
    return of.isoformat("microseconds").encode("ascii")


def encode_datetime(of: dt.datetime) -> bytes:
    moment = of if of.tzinfo is None else of.astimezone(dt.UTC)
    return moment.isoformat(timespec="microseconds").encode("ascii")


def encode_json(value: object) -> bytes:
    try:
        return utf8(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")))
    except ValueError:
        raise RefusedError("refused") from None


def encode_list(items: Sequence[object], one: Callable[[Any], bytes], depth: int = 1) -> bytes:
    if depth > 8:
        raise RefusedError("refused")
    encoded = struct.pack(">I", len(items))
    for item in items:
        if item is None:
            encoded += b"\x00"
        else:
            nested = isinstance(item, list)
            body = encode_list(item, one, depth + 1) if isinstance(item, list) else one(item)
            encoded += (b"\x02" if nested else b"\x01") + struct.pack(">I", len(body)) + body
    return encoded


def read_list(encoded: bytes, tag: str, flat: bool, depth: int = 1) -> list[Any]:
    """The items of a list, as bytes: what no writer makes is refused."""

    def take(size: int) -> bytes:
        nonlocal encoded
        if size > len(encoded):
            raise RefusedError("format")
        taken, encoded = encoded[:size], encoded[size:]
        return taken

    if depth > 8:
        raise RefusedError("format")
    items: list[Any] = []
    for _ in range(int.from_bytes(take(4))):
        kind = take(1)[0]
        if kind == 0:
            items.append(None)
            continue
        body = take(int.from_bytes(take(4)))
        if kind == 2 and not flat:
            items.append(read_list(body, tag, flat, depth + 1))
        elif kind == 1 and not (tag == "json" and (body == b"null" or (body[:1] == b"[" and not flat))):
            items.append(body)
        else:
            raise RefusedError("format")
    if encoded:
        raise RefusedError("format")
    return items


def timedelta_microseconds(of: dt.timedelta) -> int:
    return (of.days * 86_400 + of.seconds) * 1_000_000 + of.microseconds


# How a value stands in the JSON files (left), and how Python and the format read it (right).
READ: dict[str, Callable[[Any], Any]] = {
    "str": str,
    "bytes": bytes.fromhex,
    "int": int,
    "float": lambda bits: struct.unpack(">d", bytes.fromhex(bits))[0],
    "decimal": Decimal,
    "bool": bool,
    "date": dt.date.fromisoformat,
    "time": dt.time.fromisoformat,
    "timetz": dt.time.fromisoformat,
    "datetime": dt.datetime.fromisoformat,
    "datetimetz": dt.datetime.fromisoformat,
    "timedelta": lambda parts: dt.timedelta(**parts),
    "uuid": uuid.UUID,
    "enum": str,
    "json": json.loads,
}
ENCODE: dict[str, Callable[[Any], bytes]] = {
    "str": utf8,
    "bytes": bytes,
    "int": encode_int,
    "float": encode_float,
    "decimal": encode_decimal,
    "bool": lambda value: b"\x01" if value else b"\x00",
    "date": lambda value: value.isoformat().encode("ascii"),
    "time": encode_time,
    "timetz": encode_time,
    "datetime": encode_datetime,
    "datetimetz": encode_datetime,
    "timedelta": lambda value: encode_int(timedelta_microseconds(value)),
    "uuid": lambda value: value.bytes,
    "enum": utf8,
    "json": encode_json,
}


def encode(tag: str, value: Any) -> bytes:
    """The plaintext bytes of a value as it stands in a JSON file."""
    if not tag.startswith("list:"):
        return ENCODE[tag](READ[tag](value))
    inner = tag.removeprefix("list:")
    return encode_list(value, lambda item: ENCODE[inner](READ[inner](item)))


# ---------------------------------------------------------------- section 8: 0x14 and the server keyring

Context = dict[str, str]


def server_context(of: Context) -> bytes:
    pairs = sorted((utf8(name), utf8(value)) for name, value in of.items())
    return ctx("server", *(field for pair in pairs for field in pair))


def provider_context(kek: bytes) -> Context:
    return {"library": "sqlalchemy-envelope/v1", "kek": x25519_public(kek).hex()}


def server_wrap(server_key: bytes, kek: bytes, salt: bytes, of: Context) -> bytes:
    return key_id(server_key) + wrap(wrapping(server_key), kek, salt, server_context(of))


def server_unwrap(server_keys: Iterable[bytes], wrapped: bytes, of: Context) -> bytes:
    by_id = {key_id(key): key for key in server_keys}
    if len(wrapped) != 121 or wrapped[:16] not in by_id:
        raise RefusedError("refused")
    try:
        return unwrap(wrapping(by_id[wrapped[:16]]), wrapped[16:], server_context(of))
    except RefusedError:  # a provider is an outside party: all that goes wrong in it is one refusal
        raise RefusedError("refused") from None


def open_provided(server_keys: Iterable[bytes], blob: bytes, stored_public: bytes) -> bytes:
    if not blob or blob[0] != 0x14:
        raise RefusedError("format")
    of = {"library": "sqlalchemy-envelope/v1", "kek": stored_public.hex()}
    kek = server_unwrap(server_keys, blob[1:], of)
    if not hmac.compare_digest(x25519_public(kek), stored_public):
        raise RefusedError("refused")
    return kek


# ---------------------------------------------------------------- section 9: row seals


def row_mac(server_key: bytes, label: str, row: str, columns: Iterable[bytes], realm: str = "") -> bytes:
    content = ctx("row", row.encode("ascii"), *columns)
    return hmac.digest(subkey(server_key, "row-seal", utf8(label), utf8(realm)), content, "sha256")


def seal_row(server_key: bytes, label: str, row: str, columns: Iterable[bytes], realm: str = "") -> bytes:
    return key_id(server_key) + row_mac(server_key, label, row, columns, realm)


def check_row(
    seal: bytes | None,
    server_keys: Iterable[bytes],
    label: str,
    row: str,
    columns: Iterable[bytes],
    realm: str = "",
) -> None:
    by_id = {key_id(key): key for key in server_keys}
    if seal is None or len(seal) != 48 or seal[:16] not in by_id:
        raise RefusedError("refused")
    if not hmac.compare_digest(row_mac(by_id[seal[:16]], label, row, columns, realm), seal[16:]):
        raise RefusedError("refused")


# ---------------------------------------------------------------- section 10: slots under a pepper


def pepper_context(of: Case) -> bytes:
    slot_id, slot_key = bytes.fromhex(of["slot_id"]), bytes.fromhex(of["key_id"])
    return ctx("slot-pepper", slot_id, slot_key, of["kind"].encode("ascii"), utf8(of["kdf"]))


def add_pepper(pepper: bytes, public: bytes, wrapped: bytes, salt: bytes, of: Case) -> bytes:
    okm = expand(subkey(pepper, "slot-pepper"), COBBLESTONE + salt + pepper_context(of), 76)
    sealed = AESGCM(okm[:32]).encrypt(okm[32:44], public + wrapped, None)
    return b"\x15" + key_id(pepper) + salt + okm[44:76] + sealed


def take_pepper(peppers: Iterable[bytes], blob: bytes, of: Case) -> tuple[bytes, bytes]:
    if not blob or blob[0] != 0x15:
        raise RefusedError("format")
    if len(blob) not in (121, 202, 226):
        raise RefusedError("truncated" if len(blob) < 121 else "format")
    by_id = {key_id(key): key for key in peppers}
    if blob[1:17] not in by_id:
        raise RefusedError("refused")
    key = subkey(by_id[blob[1:17]], "slot-pepper")
    okm = expand(key, COBBLESTONE + blob[17:41] + pepper_context(of), 76)
    if not hmac.compare_digest(okm[44:76], blob[41:73]):
        raise RefusedError("tampered")
    try:
        found = AESGCM(okm[:32]).decrypt(okm[32:44], blob[73:], None)
    except InvalidTag:
        raise RefusedError("tampered") from None
    return found[:32], found[32:]


# ---------------------------------------------------------------- erasure receipts

RECEIPT_FORMAT = "sqlalchemy-envelope/erasure-receipt/1"


def receipt_seed(server_key: bytes) -> bytes:
    return subkey(server_key, "erasure-receipt")


def owner_tag(seed: bytes, owner: bytes) -> bytes:
    return subkey(seed, "erased-owner", owner)


def ed25519_public(seed: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def canonical(value: object) -> str:
    match value:
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case int():
            if abs(value) >= 2**53:
                raise RefusedError("format")
            return str(value)
        case str():
            return json.dumps(value, ensure_ascii=False)
        case list():
            return "[" + ",".join(map(canonical, value)) + "]"
        case dict():
            if not all(name.isascii() for name in value):
                raise RefusedError("format")
            return (
                "{" + ",".join(f"{canonical(name)}:{canonical(value[name])}" for name in sorted(value)) + "}"
            )
        case _:
            raise RefusedError("format")


def receipt_message(body: dict[str, Any]) -> bytes:
    try:
        return ctx("erasure-receipt", canonical(body).encode())
    except UnicodeEncodeError:
        raise RefusedError("format") from None


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise RefusedError("format")
    return dict(pairs)


def check_receipt(text: str, public_key: bytes) -> bytes:
    """The signed bytes of a receipt."""
    try:
        whole = json.loads(text, object_pairs_hook=once)
        body, signature = whole["receipt"], base64.b64decode(whole["signature"], validate=True)
        if body["format"] != RECEIPT_FORMAT:
            raise RefusedError("format")
    except (ValueError, KeyError, TypeError):
        raise RefusedError("format") from None
    message = receipt_message(body)
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except InvalidSignature:
        raise RefusedError("refused") from None
    return message


# ---------------------------------------------------------------- section 12: tickets

CHUNK = 16384
TICKET_TEXT = re.compile(r"st1\.([A-Za-z0-9_-]{64})", re.ASCII)


def ticket_context(of: Case) -> bytes:
    """The seven fields as they stand in a case: ids and reference as hex, seconds as numbers."""
    return ctx(
        "ticket",
        bytes.fromhex(of["ticket_id"]),
        bytes.fromhex(of["owner_reference"]),
        bytes.fromhex(of["root_key_id"]),
        struct.pack(">Q", of["issued_at"]),
        struct.pack(">Q", of["expires_at"]),
        struct.pack(">I", of["idle_seconds"]),
        utf8(of["realm"]),
    )


def ticket_key(client_half: bytes, row_half: bytes, server_key: bytes, context: bytes) -> bytes:
    parts = client_half + row_half + subkey(server_key, "ticket-pepper")
    return HKDF(hashes.SHA512(), 32, b"\x00" * 64, context).derive(parts)


def seal_ticket(key: bytes, entries: bytes, salt: bytes) -> bytes:
    okm = expand(key, COBBLESTONE + salt, 76)
    sealed = b""
    for number in range(len(entries) // CHUNK + 1):  # the last chunk is not full, and may be empty
        nonce = bytes(a ^ b for a, b in zip(okm[32:44], number.to_bytes(12, "big"), strict=True))
        sealed += AESGCM(okm[:32]).encrypt(nonce, entries[number * CHUNK : (number + 1) * CHUNK], None)
    return b"\x31" + salt + okm[44:76] + sealed


def open_ticket(key: bytes, blob: bytes) -> bytes:
    if not blob or blob[0] != 0x31:
        raise RefusedError("format")
    last = (len(blob) - 57) % (CHUNK + 16)
    if len(blob) < 57 or last < 16 or (last - 16) % 64:
        raise RefusedError("truncated")
    okm = expand(key, COBBLESTONE + blob[1:25], 76)
    if not hmac.compare_digest(okm[44:76], blob[25:57]):
        raise RefusedError("unlock")
    entries = b""
    for number, start in enumerate(range(57, len(blob), CHUNK + 16)):
        nonce = bytes(a ^ b for a, b in zip(okm[32:44], number.to_bytes(12, "big"), strict=True))
        try:
            entries += AESGCM(okm[:32]).decrypt(nonce, blob[start : start + CHUNK + 16], None)
        except InvalidTag:
            raise RefusedError("unlock") from None
    return entries


def ticket_entries(carried: Iterable[Case]) -> bytes:
    entries = []
    for of in carried:
        key = bytes.fromhex(of["key"])
        described = {"kind": "ticket", "key_id": key_id(key).hex(), "kdf": "", "recipient": "", "granter": ""}
        binding = hashlib.sha256(wrap_context(of | described)).digest()[:16]
        entries.append(key_id(key) + key + binding)
    return b"".join(sorted(entries))


def ticket_text(ticket_id: bytes, client_half: bytes) -> str:
    return "st1." + base64.urlsafe_b64encode(ticket_id + client_half).decode()


def parse_ticket(text: str) -> tuple[bytes, bytes]:
    found = TICKET_TEXT.fullmatch(text)
    if found is None:
        raise RefusedError("refused")
    data = base64.urlsafe_b64decode(found[1])
    return data[:16], data[16:]


# ---------------------------------------------------------------- section 13: blind indexes


def index_tag(index_key: bytes, label: str, form: str, bits: int, data: bytes) -> bytes:
    derived = subkey(index_key, "index", utf8(label))
    mac = hmac.digest(derived, ctx("index-tag", utf8(form)) + data, "sha256")
    size = (bits + 7) // 8
    kept = int.from_bytes(mac[:size], "big") >> (8 * size - bits) << (8 * size - bits)
    return kept.to_bytes(size, "big")


def index_key_context(of: Case) -> Context:
    return {
        "library": "sqlalchemy-envelope/v1",
        "index": of["label"],
        "index_epoch": str(of["epoch"]),
        "index_key": of["key_id"],
    }


def index_seal(index_key: bytes, of: Case) -> bytes:
    fields = utf8(of["label"]), struct.pack(">I", of["epoch"]), of["state"].encode("ascii")
    return hmac.digest(subkey(index_key, "index-row"), ctx("index-row", *fields), "sha256")


def open_index_key(server_keys: Iterable[bytes], of: Case) -> bytes:
    blob = bytes.fromhex(of["wrapped"])
    if not blob or blob[0] != 0x14:
        raise RefusedError("format")
    key = server_unwrap(server_keys, blob[1:], index_key_context(of))
    same = commitment(key).hex() == of["commitment"], key_id(key).hex() == of["key_id"]
    if not all(same) or index_seal(key, of).hex() != of["seal"]:
        raise RefusedError("tampered")
    return key


# ---------------------------------------------------------------- helpers for the cases

A, B, C, D = (bytes(range(start, start + 32)) for start in (0x00, 0x20, 0x40, 0x60))
ONES = b"\xff" * 32


def fixed(name: str, size: int) -> bytes:
    """Bytes that look random and are the same in every run: what is a random input in the library."""
    return hashlib.shake_256(b"sqlalchemy-envelope test vectors: " + name.encode()).digest(size)


def flip(blob: bytes, at: int, bit: int = 0x01) -> bytes:
    return blob[:at] + bytes([blob[at] ^ bit]) + blob[at + 1 :]


def outcome(call: Callable[[], object]) -> str:
    try:
        call()
    except RefusedError as refusal:
        return str(refusal)
    return "ok"


def flips(regions: Sequence[tuple[str, int, int]]) -> Iterable[tuple[str, int]]:
    """The first and the last byte of each region."""
    for region, start, stop in regions:
        yield f"{region}, first byte", start
        if stop - start > 1:
            yield f"{region}, last byte", stop - 1


# ---------------------------------------------------------------- context.json


def part(kind: str, value: str) -> dict[str, str]:
    return {"type": kind, "value": value}


READ_PART: dict[str, Callable[[str], object]] = {
    "int": int,
    "str": str,
    "uuid": uuid.UUID,
    "bytes": bytes.fromhex,
    "date": dt.date.fromisoformat,
    "datetime": dt.datetime.fromisoformat,
    "bool": lambda value: value == "true",
    "float": float,
    "null": lambda value: None,
}


def context_cases() -> list[Case]:
    cases: list[Case] = []

    def add_ctx(name: str, comment: str, label: str, *fields: bytes) -> None:
        case = {
            "name": name,
            "comment": comment,
            "op": "ctx",
            "label": label,
            "fields": [f.hex() for f in fields],
        }
        try:
            cases.append(case | {"expect": ctx(label, *fields).hex()})
        except (RefusedError, UnicodeEncodeError):
            cases.append(case | {"expect": "refused"})

    def add_reference(name: str, comment: str, *parts: dict[str, str], owner: str | None = None) -> None:
        case: Case = {"name": name, "comment": comment, "op": "reference", "parts": list(parts)}
        if owner is not None:
            case |= {"op": "owner_reference", "label": owner}
        try:
            values = [READ_PART[p["type"]](p["value"]) for p in parts]
            made = reference(values) if owner is None else owner_reference(owner, values)
            cases.append(case | {"expect": made.hex()})
        except RefusedError:
            cases.append(case | {"expect": "refused"})

    def add_wrap(name: str, comment: str, **changed: Any) -> None:
        case = {"name": name, "comment": comment, "op": "wrap_context", **(SECRET_CONTEXT | changed)}
        cases.append(case | {"expect": wrap_context(case).hex()})

    def add_grant(name: str, comment: str, label: str, *parts: dict[str, str]) -> None:
        case: Case = {"name": name, "comment": comment, "op": "granting_row"}
        made = granting_row(label, [READ_PART[p["type"]](p["value"]) for p in parts])
        cases.append(case | {"label": label, "parts": list(parts), "expect": made.hex()})

    add_ctx("no field", "the count byte is there when there is nothing to count", "kek")
    add_ctx("one empty field", "differs from no field", "kek", b"")
    add_ctx("two empty fields", "differs from one empty field", "kek", b"", b"")
    add_ctx("split ab|c", "the pair of the next case", "value", b"ab", b"c")
    add_ctx("split a|bc", "the border between fields counts", "value", b"a", b"bc")
    add_ctx("abc in one", "the number of fields counts", "value", b"abc")
    add_ctx("empty first", "the pair of the next case", "value", b"", b"a")
    add_ctx("empty last", "where the empty field stands counts", "value", b"a", b"")
    add_ctx("table | a.b", "the pair of the next case", "column", b"table", b"a.b")
    add_ctx("table.a | b", "a dot inside a name moves nothing across the border", "column", b"table.a", b"b")
    add_ctx(
        "table.a.b", "nor does it when the label is one field, as it is in the format", "column", b"table.a.b"
    )
    add_ctx("NUL in a field", "NUL ends the label only; a field may hold it", "value", b"a\x00b", b"\x00")
    add_ctx(
        "a field like a field", "a field that spells two encoded fields", "value", b"\0\0\0\x01a\0\0\0\x01b"
    )
    add_ctx("those two fields", "differs from the field that spells them", "value", b"a", b"b")
    add_ctx("a field like a context", "a whole context inside one field", "value", ctx("value", b"a"))
    add_ctx("empty label", "the label may be empty; NUL still ends it", "", b"a")
    add_ctx("label tail as field", "value + x against valuex", "valuex")
    add_ctx("label as field", "the other of that pair", "value", b"x")
    add_ctx("upper case", "labels are compared as bytes", "VALUE", b"x")
    add_ctx("all byte values", "fields are bytes, not text", "value", bytes(range(256)))
    add_ctx("length 65536", "lengths are 32 bits wide", "value", b"\x00" * 65536)
    add_ctx("255 fields", "the most that the count byte can say", "value", *[b""] * 255)
    add_ctx("256 fields", "refused: the count does not fit into its byte", "value", *[b""] * 256)
    add_ctx("NUL in the label", "refused: two contexts could be read one for the other", "val\x00ue", b"a")
    add_ctx("label not ASCII", "refused: labels are ASCII", "vall\u00e9e", b"a")

    add_reference("int 0", "the smallest decimal", part("int", "0"))
    add_reference("int 1", "an everyday key", part("int", "1"))
    add_reference("int -1", "the sign is a byte of its own", part("int", "-1"))
    for bits in (7, 8, 15, 16, 31, 32, 63, 64):
        add_reference(
            f"int 2^{bits}", "encoded alike whatever the width of the column", part("int", str(1 << bits))
        )
    add_reference("int -2^63", "the smallest BIGINT", part("int", str(-(1 << 63))))
    add_reference("int 2^63-1", "the largest BIGINT", part("int", str((1 << 63) - 1)))
    add_reference("int 10^100", "no width limits the number", part("int", str(10**100)))
    add_reference("int -10^100", "nor below", part("int", str(-(10**100))))
    add_reference("str 1", "the tag sets it apart from int 1", part("str", "1"))
    add_reference("str -1", "and from int -1", part("str", "-1"))
    add_reference("bytes 31", "and from the bytes of the digit", part("bytes", "31"))
    add_reference("str empty", "an empty string is a part", part("str", ""))
    add_reference("bytes empty", "empty bytes are another", part("bytes", ""))
    add_reference("str NFC", "e with acute, composed", part("str", "\u00e9"))
    add_reference("str NFD", "not normalised: the decomposed one is another key", part("str", "e\u0301"))
    add_reference("str upper", "nor case-folded", part("str", "\u00c9"))
    add_reference("str trailing space", "nor trimmed", part("str", "a "))
    add_reference("str without it", "the other of that pair", part("str", "a"))
    add_reference("str 4-byte", "a character beyond the BMP is four bytes", part("str", "\U0001f511"))
    add_reference("str NUL", "NUL is a character like any other", part("str", "a\x00b"))
    add_reference(
        "str bidi", "right-to-left text stays in logical order", part("str", "\u05de\u05e4\u05ea\u05d7")
    )
    add_reference("str surrogate", "refused: a lone surrogate has no UTF-8", part("str", "\ud800"))
    some_uuid = "f81d4fae-7dec-11d0-a765-00a0c91e6bf6"
    add_reference("uuid", "sixteen bytes in network order", part("uuid", some_uuid))
    add_reference("uuid nil", "all zero", part("uuid", str(uuid.UUID(int=0))))
    add_reference(
        "uuid as bytes", "the same bytes under another tag", part("bytes", some_uuid.replace("-", ""))
    )
    add_reference("uuid as str", "the same id as text", part("str", some_uuid))
    add_reference("bytes", "bytes that are no UTF-8", part("bytes", "ff00fe80"))
    add_reference("date", "ISO 8601", part("date", "2024-02-29"))
    add_reference("date as str", "the same ten characters under another tag", part("str", "2024-02-29"))
    add_reference("date first", "the year has four digits", part("date", "0001-01-01"))
    add_reference("date last", "the last date", part("date", "9999-12-31"))
    add_reference("composite", "two parts in the table's order", part("int", "7"), part("str", "eu"))
    add_reference("composite swapped", "the order counts", part("str", "eu"), part("int", "7"))
    add_reference("composite a, bc", "the pair of the next case", part("str", "a"), part("str", "bc"))
    add_reference("composite ab, c", "the border between parts counts", part("str", "ab"), part("str", "c"))
    add_reference("composite 1, 23", "the pair of the next case", part("int", "1"), part("int", "23"))
    add_reference("composite 12, 3", "digits do not run together", part("int", "12"), part("int", "3"))
    add_reference("one int 123", "nor into one number", part("int", "123"))
    spelled = reference([1]).decode("latin-1")
    add_reference("str spells a part", "text that spells an encoded part is text", part("str", spelled))
    five = (
        part("int", "-5"),
        part("str", "\u00df"),
        part("uuid", some_uuid),
        part("bytes", "00"),
        part("date", "1970-01-01"),
    )
    add_reference("composite of all", "one part of each type", *five)
    add_reference("bool", "refused: True is an int in Python, and would be taken for 1", part("bool", "true"))
    add_reference(
        "datetime", "refused: a datetime is a date in Python", part("datetime", "2024-02-29T00:00:00")
    )
    add_reference("float", "refused: not one of the five types", part("float", "1.0"))
    add_reference("null", "refused: a primary key has no NULL part", part("int", "1"), part("null", ""))

    add_reference("owner", "an owner with an integer key", part("int", "1"), owner="users")
    add_reference("owner, other table", "the same key in another table", part("int", "1"), owner="groups")
    add_reference(
        "owner, composite",
        "an owner with a composite key",
        part("int", "1"),
        part("str", "eu"),
        owner="users",
    )
    add_reference(
        "owner, label not ASCII", "table names are UTF-8", part("int", "1"), owner="Benutzer\u00fcbersicht"
    )
    add_reference("owner, label with a dot", "a dot says nothing", part("int", "1"), owner="app.users")

    add_wrap("wrap secret", "a root key under a KEK")
    add_wrap("wrap root", "a data key under a root key: no kdf", kind="root", purpose="data", kdf="")
    add_wrap("wrap index", "an index key with a scope", kind="root", purpose="index", kdf="", scope="mail")
    add_wrap("wrap epoch 0", "the smallest epoch", epoch=0)
    add_wrap("wrap epoch 2^32-1", "the largest epoch", epoch=0xFFFFFFFF)
    add_wrap("wrap scope not ASCII", "a scope is UTF-8", scope="caf\u00e9 \U0001f511")
    add_wrap(
        "wrap recipient",
        "all nine fields filled",
        kind="sealed",
        recipient=x25519_public(C).hex(),
        granter="aa" * 16,
    )
    add_wrap(
        "wrap granter",
        "recipient and granter do not change places",
        kind="sealed",
        granter=x25519_public(C).hex(),
        recipient="aa" * 16,
    )

    add_grant("granting row", "the row that grants", "memberships", part("int", "1"))
    add_grant("granting row, other row", "another row grants something else", "memberships", part("int", "2"))
    add_grant("granting row, other table", "so does another table", "profile_shares", part("int", "1"))
    two = part("int", "7"), part("int", "1")
    add_grant("granting row, composite", "a group and a user: an everyday key", "memberships", *two)
    add_grant("granting row, composite swapped", "their order counts", "memberships", *reversed(two))
    add_grant(
        "granting row, label not ASCII", "table names are UTF-8", "mitglieder\u00fcbersicht", part("int", "1")
    )
    add_grant(
        "granting row, label of an owner", "not an owner reference: labels differ", "users", part("int", "1")
    )

    encoded = [(case["op"], case["expect"]) for case in cases if case["expect"] != "refused"]
    assert len(set(encoded)) == len(encoded), "two inputs encode alike"
    return cases


# ---------------------------------------------------------------- derivation.json


def derivation_cases() -> list[Case]:
    cases: list[Case] = []
    keys = {
        "00..1f": A,
        "20..3f": B,
        "all ff": ONES,
        "all 00": b"\x00" * 32,
        "a random one": fixed("a key", 32),
    }
    for name, key in keys.items():
        for op, result, comment in (
            ("commitment", commitment(key), "what is stored beside every key"),
            ("key_id", key_id(key), "UUIDv8 from the commitment; version and variant are set"),
            ("x25519_private", subkey(key, "x25519"), "stored nowhere; X25519 clamps it"),
            ("x25519_public", x25519_public(key), "the public key of an owner"),
            ("wrapping", wrapping(key), "what wraps other keys; never the key itself"),
        ):
            case = {"name": f"{op} of {name}", "comment": comment, "op": op, "key": key.hex()}
            cases.append(case | {"expect": result.hex()})
    for key, label, comment in (
        (A, "notes.body", "an everyday column"),
        (B, "notes.body", "the same column under another key"),
        (A, "notes.title", "another column of the same table"),
        (A, "Notes.body", "labels are compared as bytes"),
        (A, "\u00fcbung.\u00e9t\u00e9", "labels are UTF-8"),
        (A, "\u00fcbung.e\u0301te\u0301", "and are not normalised"),
        (A, 'odd "name".a.b', "a dot and quotes inside a name"),
        (A, "", "the empty label"),
    ):
        name = f"value key of {key[:1].hex()}.. for {label!a}"
        case = {"name": name, "comment": comment, "op": "value_key", "key": key.hex(), "label": label}
        cases.append(case | {"expect": value_key(key, label).hex()})
    for purpose, fields, size, comment in (
        ("column", (b"notes.body",), 32, "equals the value key"),
        ("column", (b"notes", b"body"), 32, "two fields are not one"),
        ("wrap", (), 32, "equals wrapping"),
        ("wrap", (b"",), 32, "an empty field is a field"),
        ("key-commitment", (), 1, "one byte of output"),
        ("key-commitment", (), 64, "one block of SHA-512; begins with the shorter output, as HKDF has it"),
        ("key-commitment", (), 65, "one byte into the second block"),
        ("stream", (b"\x00", b"\xff" * 100), 200, "several blocks"),
    ):
        name = f"subkey {purpose} of {len(fields)} fields, {size} bytes"
        inputs: Case = {"key": A.hex(), "purpose": purpose, "fields": [f.hex() for f in fields], "size": size}
        case = {"name": name, "comment": comment, "op": "subkey", **inputs}
        cases.append(case | {"expect": subkey(A, purpose, *fields, size=size).hex()})
    for name, key in keys.items():
        case = {"name": f"KEK of {name}", "comment": "extract with 64 zero bytes, then expand", "op": "kek"}
        cases.append(case | {"argon2_output": key.hex(), "expect": kek(key).hex()})
    for name, key in keys.items():
        inputs = {"op": "mlkem_seed", "key": key.hex()}
        case = {"name": f"mlkem_seed of {name}", "comment": "64 bytes: d and z of FIPS 203", **inputs}
        cases.append(case | {"expect": mlkem_seed(key).hex()})
    for previous, new, comment in (
        (A, B, "by who holds the previous root key"),
        (B, A, "the two do not change places"),
        (C, B, "another previous root key"),
        (A, ONES, "another new root key"),
        (A, A, "of a key by itself"),
    ):
        case = {"name": f"epoch_proof of {new[:1].hex()}.. by {previous[:1].hex()}..", "comment": comment}
        case |= {"op": "epoch_proof", "key": previous.hex(), "new_key": new.hex()}
        cases.append(case | {"expect": epoch_proof(previous, new).hex()})
    for purpose, fields, size, comment in (
        ("mlkem768", (), 64, "equals the ML-KEM seed"),
        ("mlkem768", (), 32, "d alone; HKDF does not hash the length, so it is where the seed begins"),
        ("x25519", (), 64, "another purpose: shares nothing with the ML-KEM seed"),
        ("row-seal", (b"users", b""), 32, "what seals the rows of one table"),
        ("row-seal", (b"users", b"acme"), 32, "the same table in a realm with a name"),
        ("row-seal", (b"memberships", b""), 32, "another table, another key"),
        ("throttle", (), 32, "what names accounts and sources in a throttle"),
    ):
        name = f"subkey {purpose} of {[f.decode() for f in fields]}, {size} bytes"
        inputs = {"key": A.hex(), "purpose": purpose, "fields": [f.hex() for f in fields], "size": size}
        case = {"name": name, "comment": comment, "op": "subkey", **inputs}
        cases.append(case | {"expect": subkey(A, purpose, *fields, size=size).hex()})
    return cases


# ---------------------------------------------------------------- secret.json

SPACES = "\u00a0\u1680" + "".join(chr(c) for c in range(0x2000, 0x200B)) + "\u202f\u205f\u3000"


def secret_cases() -> list[Case]:
    cases: list[Case] = []

    def add(name: str, comment: str, secret: str | bytes, reason: str = "", *, making: bool = True) -> None:
        given = {"text": secret} if isinstance(secret, str) else {"bytes": secret.hex()}
        case: Case = {"name": name, "comment": comment, **given, "making": making}
        assert outcome(lambda: prepare(secret, making)) == (reason or "ok"), name
        if reason:
            cases.append(case | {"expect": "refused", "reason": reason})
        else:
            cases.append(case | {"expect": "ok", "prepared": prepare(secret, making).hex()})

    add("ASCII", "unchanged", "correct horse battery staple")
    add("one letter", "the shortest", "a")
    add("one space", "nothing is trimmed, so a space is a secret", " ")
    add("spaces around", "nothing is trimmed", "  pass  word  ")
    add("case", "nothing is case-folded", "PassWord \u0130\u00df")
    add("NFC", "composed stays", "\u00e9\u00f1")
    add("NFD", "decomposed becomes the same bytes as composed", "e\u0301n\u0303")
    add("NFKC is not done", "the ligature fi stays one character", "\ufb01")
    add("full width", "width is kept", "\uff41\uff11")
    add("angstrom sign", "a singleton: NFC changes it", "\u212b")
    add("composition excluded", "NFC makes two characters of this one", "\u0958")
    add("order of marks", "NFC sorts combining marks, then composes", "q\u0307\u0323")
    add("Hangul", "three jamo become one syllable", "\u1112\u1161\u11ab")
    for character in SPACES:
        add(f"space U+{ord(character):04X}", "category Zs becomes U+0020", f"a{character}b")
    add("only ideographic space", "a space alone is no empty string", "\u3000")
    add("space before a mark", "spaces are mapped before NFC", "\u2001\u0301")
    add("zero width space", "U+200B is Cf, no space, and stays", "a\u200bb")
    add("mongolian vowel separator", "U+180E is Cf since Unicode 6.3, and stays", "a\u180eb")
    add(
        "zero width joiner",
        "Cf is accepted: families of emoji are joined by it",
        "\U0001f469\u200d\U0001f467",
    )
    add("byte order mark", "U+FEFF is Cf and stays", "\ufeffa")
    add("line separator", "U+2028 is Zl, neither Zs nor Cc", "a\u2028b")
    add("private use", "Co is neither control nor unassigned", "\ue000")
    add("4-byte characters", "beyond the BMP", "\U0001f511\U0001d11e")
    add(
        "unassigned, unlocking",
        "accepted: it may have been assigned where the slot was made",
        "\u0378",
        making=False,
    )
    add("noncharacter, unlocking", "U+FFFE is Cn", "\ufffe", making=False)
    add("1024 bytes", "the most", "x" * 1024)
    add("1024 bytes in 512 characters", "bytes are counted, not characters", "\u00e9" * 512)
    add("1024 bytes after NFC", "1024 bytes hold when 1536 go in", "e\u0301" * 512)
    add(
        "1368 code points become 1026",
        "refused by bytes alone",
        "\u03b1\u0313\u0300\u0345" * 342,
        "too many bytes",
    )
    add(
        "1364 code points",
        "the two limits are two: 341 characters of 3 bytes",
        "\u03b1\u0313\u0300\u0345" * 341,
    )
    add("bytes", "taken as they are", b"\x00\xff\x7f\r\n")
    add("bytes of NFD", "bytes are not normalised", "e\u0301".encode())
    add("bytes of no-break space", "nor are spaces mapped in them", "\u00a0".encode())
    add("1024 given as bytes", "the most", b"\x00" * 1024)

    add("empty", "refused: no secret", "", "empty")
    add("empty bytes", "refused: no secret", b"", "empty")
    add("empty, unlocking", "refused as well", "", "empty", making=False)
    for name, character in (
        ("NUL", "\x00"),
        ("tab", "\t"),
        ("line feed", "\n"),
        ("carriage return", "\r"),
        ("escape", "\x1b"),
        ("unit separator", "\x1f"),
        ("delete", "\x7f"),
        ("first C1", "\x80"),
        ("next line", "\x85"),
        ("last C1", "\x9f"),
    ):
        add(f"control: {name}", f"U+{ord(character):04X} is Cc", f"a{character}b", "control")
    add("trailing line feed", "refused, not trimmed", "password\n", "control")
    add("control, unlocking", "refused as well", "a\x00b", "control", making=False)
    add("lone high surrogate", "no character and no UTF-8", "a\ud800b", "surrogate")
    add("lone low surrogate", "the other half", "\udfff", "surrogate")
    add("surrogates swapped", "low before high is no pair", "\udc00\ud800", "surrogate")
    add("surrogate, unlocking", "refused as well", "\ud83d", "surrogate", making=False)
    add(
        "unassigned, making", "refused: a later Unicode might normalise it otherwise", "a\u0378", "unassigned"
    )
    add("noncharacter U+FFFE, making", "noncharacters are Cn", "\ufffe", "unassigned")
    add("noncharacter U+10FFFF, making", "the last code point", "\U0010ffff", "unassigned")
    add("1025 bytes", "one too many; nothing is cut off", "x" * 1025, "too many bytes")
    add("1025 bytes, unlocking", "refused as well", "x" * 1025, "too many bytes", making=False)
    add("1026 bytes in 513 characters", "bytes are counted, not characters", "\u00e9" * 513, "too many bytes")
    add(
        "1026 bytes after NFC",
        "513 bytes go in: the limit is on what comes out",
        "\u0958" * 171,
        "too many bytes",
    )
    add("1025 given as bytes", "one too many", b"\x00" * 1025, "too many bytes")
    add("4096 code points", "not stopped by the first limit, but by the second", "x" * 4096, "too many bytes")
    add("4097 code points", "stopped before any other work", "x" * 4097, "too many code points")
    add("4097 controls", "stopped before the controls are seen", "\x00" * 4097, "too many code points")
    add(
        "4096 beyond the BMP",
        "code points are counted, not UTF-16 units",
        "\U0001f511" * 4096,
        "too many bytes",
    )
    add("4097 beyond the BMP", "and this is one too many", "\U0001f511" * 4097, "too many code points")
    return cases


# ---------------------------------------------------------------- recovery_code.json


def recovery_code_cases() -> list[Case]:
    cases: list[Case] = []

    def add(name: str, comment: str, text: str, reason: str = "") -> None:
        case: Case = {"name": name, "comment": comment, "text": text}
        assert outcome(lambda: recovery_random(text)) == (reason or "ok"), name
        if reason:
            cases.append(case | {"expect": "refused", "reason": reason})
            return
        random = recovery_random(text)
        more = {"random": random.hex(), "written": recovery_text(random), "kek": recovery_kek(random).hex()}
        cases.append(case | more | {"public": x25519_public(recovery_kek(random)).hex(), "expect": "ok"})

    random = fixed("recovery code", 20)
    code = recovery_text(random)
    add("as written", "nine groups of four", code)
    add("zeros", "no code is weak: the reader refuses none", recovery_text(b"\x00" * 20))
    add("ones", "the largest number", recovery_text(b"\xff" * 20))
    for byte in (1, 0x80):
        add(f"last byte {byte:02x}", "the bytes are big-endian", recovery_text(b"\x00" * 19 + bytes([byte])))
    for at, name in ((0, "first"), (19, "last")):
        add(f"another {name} byte", "every bit counts", recovery_text(flip(random, at)))

    add("lower case", "case means nothing", code.lower())
    add("without hyphens", "groups mean nothing", code.replace("-", ""))
    add("in fives", "wherever the hyphens are", "-".join(re.findall(".{1,5}", code.replace("-", ""))))
    mixed = recovery_text(b"\x00\x44\x32\x14\x00" * 4)
    assert {"0", "1"} <= set(mixed)
    add("O for 0", "the letter is read as the digit", mixed.replace("0", "O"))
    add("o for 0", "in lower case too", mixed.lower().replace("0", "o"))
    add("I for 1", "the letter is read as the digit", mixed.replace("1", "I"))
    add("i for 1", "in lower case too", mixed.lower().replace("1", "i"))
    add("L for 1", "the letter is read as the digit", mixed.replace("1", "L"))
    add("l for 1", "in lower case too", mixed.lower().replace("1", "l"))
    wide = "".join(chr(ord(one) + 0xFEE0) for one in code)
    add("full width", "NFKC makes them ASCII, and their hyphens too", wide)
    dashes = "-\u058a\u05be\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u2043\u301c\u30fc\ufe58\ufe63\uff0d_"
    spaces = " \t\n\r\u00a0\u1680\u2003\u2009\u2028\u2029\u202f\u205f\u3000\u200b\u200d\u2060\ufeff\u00ad"
    for one in dashes + spaces:
        what = "a dash" if one in dashes else "a space, or invisible"
        add(f"separator U+{ord(one):04X}", f"{what}: left out", code.replace("-", one) + one)
    add("256 characters", "the most that are looked at", code + " " * (256 - len(code)))

    for at, symbol in enumerate(code):
        if symbol == "-":
            continue
        other = CROCKFORD[(CROCKFORD.index(symbol) + 1 + at % 31) % 32]
        typo = code[:at] + other + code[at + 1 :]
        add(f"typo at {at}", "one symbol is another", typo, "check")
    bare = code.replace("-", "")
    for at, (a, b) in enumerate(pairwise(bare)):
        if a != b:
            swapped = bare[:at] + b + a + bare[at + 2 :]
            add(f"swap at {at}", "two neighbours changed places", swapped, "check")
    assert "Q" not in (bare[3], bare[30])
    two = f"{bare[:3]}Q{bare[4:30]}Q{bare[31:]}"
    add("two typos", "two wrong symbols are found, wherever they are", two, "check")
    add("checked by nothing", "the last four symbols are the check", bare[:32] + "0000", "check")
    add("one missing", "35 symbols", bare[:-1], "count")
    add("one twice", "37 symbols", bare[0] + bare, "count")
    add("bits alone", "32 symbols", bare[:32], "count")
    add("empty", "no symbol", "", "count")
    add("separators alone", "no symbol", " - - ", "count")
    for one in "U*~$=.+\u00e9\u0660\u0391\u0131\u00df":
        add(f"character U+{ord(one):04X}", "neither a symbol nor a separator", one + code[1:], "character")
    add("control", "a NUL is no separator", code + "\x00", "character")
    add("lone surrogate", "no character", code + "\ud800", "character")
    add("character and count", "characters are looked at first", "U", "character")
    add("257 characters", "refused before any other work", code + " " * (257 - len(code)), "too long")
    return cases


# ---------------------------------------------------------------- kdf.json

SALT = "AAECAwQFBgcICQoLDA0ODw"
DEFAULT_PHC = f"$argon2id$v=19$m=65536,t=3,p=4${SALT}"
CHEAP_PHC = f"$argon2id$v=19$m=19456,t=2,p=1${SALT}"
A_SHARE = fixed("share", 32)
SHARE = base64.b64encode(key_id(A_SHARE)).decode().rstrip("=")
SHARED_PHC = naming(DEFAULT_PHC, A_SHARE)


def kdf_cases() -> list[Case]:
    cases: list[Case] = []

    def add(name: str, comment: str, phc: str, expect: str) -> None:
        case: Case = {"name": name, "comment": comment, "op": "parse", "phc": phc}
        assert outcome(lambda: parse_phc(phc)) == expect, name
        if expect == "ok":
            case |= {
                key: value.hex() if isinstance(value, bytes) else value
                for key, value in parse_phc(phc).items()
            }
        cases.append(case | {"expect": expect})

    def bound(name: str, m: int | str, t: int | str, p: int | str, expect: str, comment: str) -> None:
        add(name, comment, f"$argon2id$v=19$m={m},t={t},p={p}${SALT}", expect)

    add("default", "RFC 9106 low memory", DEFAULT_PHC, "ok")
    add("cheapest", "the least that is accepted", CHEAP_PHC, "ok")
    add("salt of zeros", "a salt is any 16 bytes", DEFAULT_PHC.replace(SALT, "A" * 22), "ok")
    add(
        "salt of ones",
        "plus and slash are the 63rd and 64th letter",
        DEFAULT_PHC.replace(SALT, "/" * 21 + "w"),
        "ok",
    )
    add("salt of plus", "the standard alphabet", DEFAULT_PHC.replace(SALT, "+" * 21 + "g"), "ok")
    add("share", "names the share of the KEK in a second database", SHARED_PHC, "ok")
    add(
        "share of zeros",
        "an id is any 16 bytes; a share proves its own",
        SHARED_PHC.replace(SHARE, "A" * 22),
        "ok",
    )
    add("share of plus", "the standard alphabet", SHARED_PHC.replace(SHARE, "+" * 21 + "g"), "ok")

    bound("m below", 19_455, 2, 1, "refused", "one KiB below 19 MiB")
    bound("m lowest", 19_456, 2, 1, "ok", "19 MiB")
    bound("m above lowest", 19_457, 2, 1, "ok", "any number of KiB")
    bound("m below highest", 1_048_575, 2, 1, "ok", "one KiB below 1 GiB")
    bound("m highest", 1_048_576, 2, 1, "ok", "1 GiB")
    bound("m above", 1_048_577, 2, 1, "refused", "one KiB above: the row would be a denial of service")
    bound("m 64 GiB", 67_108_864, 2, 1, "refused", "would take the machine down")
    bound("m 2^32", 4_294_967_296, 2, 1, "refused", "does not fit Argon2's own 32 bits")
    bound("m 2^64 + 65536", 2**64 + 65_536, 3, 4, "refused", "must not wrap around to 65536")
    bound(
        "m of 5000 digits", "9" * 5000, 2, 1, "refused", "refused by its length, before it is made a number"
    )
    bound("m zero", 0, 2, 1, "refused", "no memory")
    bound("t below", 19_456, 1, 1, "refused", "one pass needs 46 MiB")
    bound("t 1, m below", 47_103, 1, 1, "refused", "one KiB below 46 MiB")
    bound("t 1, m lowest", 47_104, 1, 1, "ok", "46 MiB")
    bound("t 1, m above", 47_105, 1, 1, "ok", "more memory")
    bound("t zero", 65_536, 0, 4, "refused", "no pass")
    bound("t lowest", 65_536, 2, 4, "ok", "two passes")
    bound("t below highest", 65_536, 15, 4, "ok", "fifteen passes")
    bound("t highest", 65_536, 16, 4, "ok", "sixteen passes")
    bound("t above", 65_536, 17, 4, "refused", "seventeen passes")
    bound("p zero", 65_536, 3, 0, "refused", "no lane")
    bound("p lowest", 65_536, 3, 1, "ok", "one lane")
    bound("p highest", 65_536, 3, 16, "ok", "sixteen lanes; m is above 8 p whenever m is in its bounds")
    bound("p above", 65_536, 3, 17, "refused", "seventeen lanes")
    bound("m t highest", 524_288, 16, 1, "ok", "2^23 exactly")
    bound("m t above", 524_289, 16, 1, "refused", "16 above")
    bound("m t highest at m highest", 1_048_576, 8, 1, "ok", "2^23 exactly")
    bound("m t above at m highest", 1_048_576, 9, 1, "refused", "each of the two is in its bounds")
    bound("leading zero in m", "065536", 3, 4, "refused", "one number, one spelling")
    bound("leading zero in t", 65_536, "03", 4, "refused", "one number, one spelling")
    bound("leading zero in p", 65_536, 3, "04", "refused", "one number, one spelling")
    bound("plus sign", "+65536", 3, 4, "refused", "Python's int() would take it")
    bound("minus sign", "-65536", 3, 4, "refused", "negative")
    bound("underscore", "65_536", 3, 4, "refused", "Python's int() would take it")
    bound("space before", " 65536", 3, 4, "refused", "Python's int() would take it")
    bound("space after", "65536 ", 3, 4, "refused", "Python's int() would take it")
    bound(
        "full-width digits", "\uff16\uff15\uff15\uff13\uff16", 3, 4, "refused", "Python's \\d would take them"
    )
    bound("hexadecimal", "0x10000", 3, 4, "refused", "decimals only")
    bound("exponent", "65536e0", 3, 4, "refused", "integers only")
    bound("m empty", "", 3, 4, "refused", "no number")

    for name, comment, phc in (
        ("empty", "no parameters", ""),
        ("no dollar first", "matches in full", DEFAULT_PHC[1:]),
        ("reordered t, m, p", "one order", f"$argon2id$v=19$t=3,m=65536,p=4${SALT}"),
        ("reordered m, p, t", "one order", f"$argon2id$v=19$m=65536,p=4,t=3${SALT}"),
        ("m twice", "no duplicates", f"$argon2id$v=19$m=65536,m=65536,t=3,p=4${SALT}"),
        ("t twice", "no duplicates", f"$argon2id$v=19$m=65536,t=3,t=3,p=4${SALT}"),
        ("p twice", "no duplicates", f"$argon2id$v=19$m=65536,t=3,p=4,p=4${SALT}"),
        ("p missing", "all three", f"$argon2id$v=19$m=65536,t=3${SALT}"),
        ("t missing", "all three", f"$argon2id$v=19$m=65536,p=4${SALT}"),
        ("m missing", "all three", f"$argon2id$v=19$t=3,p=4${SALT}"),
        ("share of 21", "16 bytes", SHARED_PHC.replace(SHARE, SHARE[:-1])),
        ("share of 23", "16 bytes", SHARED_PHC.replace(SHARE, SHARE + "A")),
        ("share padded", "without padding", SHARED_PHC.replace(SHARE, SHARE + "==")),
        ("share not canonical", "a spare bit is set", SHARED_PHC.replace(SHARE, SHARE[:-1] + "x")),
        ("share url-safe", "the standard alphabet", SHARED_PHC.replace(SHARE, "-" * 21 + "g")),
        ("share empty", "16 bytes", SHARED_PHC.replace(SHARE, "")),
        ("share twice", "no duplicates", SHARED_PHC.replace(",share", f",share={SHARE},share")),
        ("share before p", "one order", f"$argon2id$v=19$m=65536,t=3,share={SHARE},p=4${SALT}"),
        ("share after the salt", "a parameter, and no hash", f"{DEFAULT_PHC}$share={SHARE}"),
        ("keyid", "no other parameter", f"$argon2id$v=19$m=65536,t=3,p=4,keyid=AAAA${SALT}"),
        ("data", "no other parameter", f"$argon2id$v=19$m=65536,t=3,p=4,data=AAAA${SALT}"),
        ("argon2i", "another function", DEFAULT_PHC.replace("argon2id", "argon2i")),
        ("argon2d", "another function", DEFAULT_PHC.replace("argon2id", "argon2d")),
        ("upper case", "names are lower case", DEFAULT_PHC.replace("argon2id", "ARGON2ID")),
        ("v 16", "the older version", DEFAULT_PHC.replace("v=19", "v=16")),
        ("v 0x13", "decimals only", DEFAULT_PHC.replace("v=19", "v=0x13")),
        ("v 019", "one spelling", DEFAULT_PHC.replace("v=19", "v=019")),
        ("v missing", "which would mean 16", DEFAULT_PHC.replace("v=19$", "")),
        ("salt missing", "no salt", DEFAULT_PHC.removesuffix("$" + SALT)),
        ("salt empty", "no salt", DEFAULT_PHC.removesuffix(SALT)),
        ("salt of 21", "too short", DEFAULT_PHC[:-1]),
        ("salt of 23", "too long", DEFAULT_PHC + "A"),
        ("salt of 24", "18 bytes", DEFAULT_PHC + "AA"),
        ("salt padded", "without padding", DEFAULT_PHC + "=="),
        ("salt not canonical, 1", "the last of four spare bits is set", DEFAULT_PHC[:-1] + "x"),
        ("salt not canonical, 8", "the first of four spare bits is set", DEFAULT_PHC[:-1] + "4"),
        ("salt url-safe -", "the standard alphabet", DEFAULT_PHC.replace(SALT, "-" * 21 + "g")),
        ("salt url-safe _", "the standard alphabet", DEFAULT_PHC.replace(SALT, "_" * 21 + "w")),
        ("salt with a dot", "crypt's alphabet", DEFAULT_PHC.replace(SALT, "." * 21 + "A")),
        (
            "salt with a line feed",
            "decoders may skip it",
            DEFAULT_PHC.replace(SALT, SALT[:10] + "\n" + SALT[11:]),
        ),
        ("hash follows", "a salt string, not a password hash", DEFAULT_PHC + "$" + "A" * 43),
        ("dollar last", "matches in full", DEFAULT_PHC + "$"),
        ("trailing line feed", "Python's $ would take it", DEFAULT_PHC + "\n"),
        ("trailing space", "matches in full", DEFAULT_PHC + " "),
        ("leading space", "matches in full", " " + DEFAULT_PHC),
        ("trailing NUL", "C would not see it", DEFAULT_PHC + "\x00"),
        ("NUL inside", "C would stop there", DEFAULT_PHC.replace(",t=", "\x00,t=")),
        ("two of them", "matches in full", DEFAULT_PHC + DEFAULT_PHC),
        ("scrypt", "another function", "$scrypt$ln=16,r=8,p=1$" + SALT),
    ):
        add(name, f"refused: {comment}", phc, "refused")

    other = "$argon2id$v=19$m=19456,t=2,p=1$" + base64.b64encode(fixed("argon2 salt", 16)).decode().rstrip(
        "="
    )
    for name, comment, secret, phc in (
        ("derive ASCII", "a passphrase at the least cost", b"correct horse battery staple", CHEAP_PHC),
        ("derive, other salt", "the same passphrase, another salt", b"correct horse battery staple", other),
        ("derive not ASCII", "prepared text is UTF-8", "p\u00e4ss w\u00f6rd \U0001f511".encode(), CHEAP_PHC),
        ("derive one byte", "the shortest; NUL is a byte", b"\x00", CHEAP_PHC),
        ("derive 1024 bytes", "the longest", b"x" * 1024, CHEAP_PHC),
        ("derive at the default", "m = 64 MiB, t = 3, p = 4", b"correct horse battery staple", DEFAULT_PHC),
    ):
        output = argon2id(secret, phc)
        case = {"name": name, "comment": comment, "op": "derive", "secret": secret.hex(), "phc": phc}
        cases.append(case | {"argon2_output": output.hex(), "kek": kek(output).hex(), "expect": "ok"})
    secret = b"correct horse battery staple"
    for name, comment, share in (
        ("derive with a share", "the HKDF salt; Argon2id is that of the same text without share=", A_SHARE),
        ("derive with another share", "another share, another KEK", fixed("another share", 32)),
        ("derive with a share of ones", "no share is weak", ONES),
    ):
        phc = naming(CHEAP_PHC, share)
        output = argon2id(secret, phc)
        inputs = {"op": "derive", "secret": secret.hex(), "phc": phc, "share": share.hex()}
        outputs = {"argon2_output": output.hex(), "kek": kek(output, share).hex(), "expect": "ok"}
        cases.append({"name": name, "comment": comment, **inputs, **outputs})
    for name, comment, share in (
        ("share cut", "31 bytes", A_SHARE[:-1]),
        ("share of another slot", "its id is another", fixed("another share", 32)),
        ("share altered", "one bit", bytes([A_SHARE[0] ^ 1]) + A_SHARE[1:]),
        ("share missing", "nothing is derived without it", None),
    ):
        inputs = {"op": "share", "phc": SHARED_PHC, "share": None if share is None else share.hex()}
        assert share is None or len(share) != 32 or key_id(share) != parse_phc(SHARED_PHC)["share_id"]
        cases.append({"name": name, "comment": comment, **inputs, "expect": "refused"})
    return cases


# ---------------------------------------------------------------- wrap.json and sealed.json

OWNER = owner_reference("users", [1])
SECRET_CONTEXT: Case = {
    "kind": "secret",
    "key_id": key_id(A).hex(),
    "owner_reference": OWNER.hex(),
    "purpose": "root",
    "scope": "",
    "epoch": 1,
    "kdf": DEFAULT_PHC,
    "recipient": "",
    "granter": "",
}
ROOT_CONTEXT = SECRET_CONTEXT | {"kind": "root", "key_id": key_id(B).hex(), "purpose": "data", "kdf": ""}
GRANTER = granting_row("memberships", [7, 1])
PREVIOUS_CONTEXT = SECRET_CONTEXT | {"kind": "previous", "kdf": "", "recipient": key_id(C).hex()}
GRANT_CONTEXT = ROOT_CONTEXT | {
    "kind": "grant",
    "scope": "profile",
    "epoch": 2,
    "recipient": key_id(C).hex(),
    "granter": GRANTER.hex(),
}
# What is sealed, to the key C: for the first three C is the KEK of a slot, for the others a root key.
SEALED_CONTEXTS: dict[str, Case] = {
    "secret": SECRET_CONTEXT | {"recipient": x25519_public(C).hex()},
    "provider": SECRET_CONTEXT | {"kind": "provider", "kdf": "", "recipient": x25519_public(C).hex()},
    "recovery": SECRET_CONTEXT | {"kind": "recovery", "kdf": "", "recipient": x25519_public(C).hex()},
    "sealed": ROOT_CONTEXT | {"kind": "sealed", "purpose": "write", "epoch": 3, "recipient": key_id(C).hex()},
    "grant": GRANT_CONTEXT,
}
SEALED_CONTEXT = GRANT_CONTEXT | {"purpose": "root", "key_id": key_id(A).hex(), "scope": "", "epoch": 1}


def other_field(name: str, of: Case) -> Case:
    """The context with one field changed as little as it can be."""
    value = of[name]
    match name:
        case "epoch":
            changed: Any = value + 1
        case "kind":
            changed = "root" if value == "secret" else "secret"
        case "purpose":
            changed = {"data": "index", "write": "data"}.get(value, "data")
        case "scope":
            changed = value + "x"
        case "kdf":
            changed = value.replace("m=65536", "m=65537") if value else DEFAULT_PHC
        case "owner_reference":
            changed = owner_reference("users", [2]).hex()
        case "key_id":
            changed = key_id(D).hex()
        case _:
            changed = value[:-2] + f"{int(value[-2:], 16) ^ 1:02x}" if value else "00"
    return of | {name: changed}


def wrap_cases() -> list[Case]:
    cases: list[Case] = []

    def add(
        name: str,
        comment: str,
        wrapping_key: bytes,
        context: Case,
        blob: bytes,
        stored: bytes,
        expect: str,
        key: bytes | None = None,
        salt: bytes | None = None,
    ) -> None:
        def read() -> bytes:
            found = unwrap(wrapping_key, blob, wrap_context(context))
            check_key(found, bytes.fromhex(context["key_id"]), stored)
            return found

        assert outcome(read) == expect, (name, outcome(read))
        case: Case = {
            "name": name,
            "comment": comment,
            "wrapping_key": wrapping_key.hex(),
            "context": context,
        }
        case |= {"stored_commitment": stored.hex(), "blob": blob.hex()}
        if key is not None and salt is not None:
            assert read() == key
            case |= {"salt": salt.hex(), "key": key.hex()}
        cases.append(case | {"expect": expect})

    def good(name: str, comment: str, wrapping_key: bytes, context: Case, key: bytes) -> bytes:
        salt = fixed(f"wrap salt: {name}", 24)
        blob = wrap(wrapping_key, key, salt, wrap_context(context))
        add(name, comment, wrapping_key, context, blob, commitment(key), "ok", key, salt)
        return blob

    the_kek, the_root = kek(D), wrapping(A)
    secret_blob = good("secret", "a root key under a KEK", the_kek, SECRET_CONTEXT, A)
    root_blob = good("root", "a data key under a root key's wrapping key", the_root, ROOT_CONTEXT, B)
    index = ROOT_CONTEXT | {"purpose": "index", "key_id": key_id(C).hex()}
    good("root, index key", "an index key", the_root, index, C)
    good("scope not ASCII", "a scope is UTF-8", the_root, ROOT_CONTEXT | {"scope": "caf\u00e9 \U0001f511"}, B)
    good("epoch 2^32-1", "the largest epoch", the_root, ROOT_CONTEXT | {"epoch": 0xFFFFFFFF}, B)
    composite = owner_reference("tenants", ["eu", -7, uuid.UUID(int=1)]).hex()
    good(
        "composite owner",
        "an owner with a primary key of three parts",
        the_root,
        ROOT_CONTEXT | {"owner_reference": composite},
        B,
    )
    ones = ROOT_CONTEXT | {"key_id": key_id(ONES).hex()}
    good("keys of ones", "no key is weak", b"\xff" * 32, ones, ONES)

    regions = (("salt", 1, 25), ("commitment", 25, 57), ("ciphertext", 57, 89), ("tag", 89, 105))
    for kind, blob, wrapping_key, context, key in (
        ("secret", secret_blob, the_kek, SECRET_CONTEXT, A),
        ("root", root_blob, the_root, ROOT_CONTEXT, B),
    ):
        stored = commitment(key)

        read_as = partial(add, wrapping_key=wrapping_key, context=context, stored=stored)

        def bad(
            name: str, comment: str, changed: bytes, expect: str, kind: str = kind, read_as: Any = read_as
        ) -> None:
            read_as(f"{kind}: {name}", comment, blob=changed, expect=expect)

        for first in (0x00, 0x01, 0x10, 0x12, 0x13, 0x31, 0xFF):
            bad(f"format byte {first:02x}", "the first byte is not 0x11", bytes([first]) + blob[1:], "format")
        for region, at in flips(regions):
            expect = "unlock" if at < 57 else "tampered"
            why = "the commitment does not match" if at < 57 else "the commitment matches, the tag does not"
            bad(f"flipped: {region}", why, flip(blob, at), expect)
        bad("flipped: tag, top bit", "every bit of the tag counts", flip(blob, 104, 0x80), "tampered")
        bad("empty", "no first byte", b"", "format")
        for size in (1, 57, 89, 104):
            bad(f"cut to {size}", "too short, and says so before any cryptography", blob[:size], "truncated")
        bad("cut to 104, format byte", "the first byte is looked at first", b"\x12" + blob[1:104], "format")
        bad("one byte more", "too long", blob + b"\x00", "format")
        bad("twice", "too long", blob + blob, "format")
        bad("104 bytes of Cobblestone", "the message without its format byte", blob[1:], "format")
        for field in WRAP_FIELDS:
            add(
                f"{kind}: wrong {field}",
                "the wrap is bound to this field",
                wrapping_key,
                other_field(field, context),
                blob,
                stored,
                "unlock",
            )
        swapped = context | {"purpose": context["scope"], "scope": context["purpose"]}
        add(
            f"{kind}: purpose and scope swapped",
            "fields do not change places",
            wrapping_key,
            swapped,
            blob,
            stored,
            "unlock",
        )
        add(
            f"{kind}: wrong wrapping key",
            "one bit off",
            flip(wrapping_key, 31),
            context,
            blob,
            stored,
            "unlock",
        )
        wrong = commitment(D)
        add(
            f"{kind}: other stored commitment",
            "it opens, but is not the key of this row",
            wrapping_key,
            context,
            blob,
            wrong,
            "tampered",
        )
        near = flip(stored, 31)
        add(
            f"{kind}: stored commitment one bit off",
            "all 32 bytes are compared",
            wrapping_key,
            context,
            blob,
            near,
            "tampered",
        )
        planted = wrap(wrapping_key, D, fixed(f"planted {kind}", 24), wrap_context(context))
        add(
            f"{kind}: another key inside",
            "a good wrap of a key that is not the one named",
            wrapping_key,
            context,
            planted,
            stored,
            "tampered",
        )
        add(
            f"{kind}: another key inside, its commitment stored",
            "the id is compared as well",
            wrapping_key,
            context,
            planted,
            commitment(D),
            "tampered",
        )
    add(
        "root key used bare",
        "the root key itself wraps nothing; wrapping(k) does",
        A,
        ROOT_CONTEXT,
        root_blob,
        commitment(B),
        "unlock",
    )
    add(
        "wrap of another slot",
        "a wrap moved between rows of one owner",
        the_kek,
        SECRET_CONTEXT | {"kdf": CHEAP_PHC},
        secret_blob,
        commitment(A),
        "unlock",
    )

    provider = SECRET_CONTEXT | {"kind": "provider", "kdf": ""}
    recovery = SECRET_CONTEXT | {"kind": "recovery", "kdf": ""}
    the_code = recovery_kek(fixed("recovery code", 20))
    write = ROOT_CONTEXT | {"purpose": "write", "epoch": 3}
    grant_root = SEALED_CONTEXT
    of_composite = granting_row("memberships", ["eu", -7, uuid.UUID(int=1)]).hex()
    new: list[tuple[str, str, bytes, Case, bytes]] = [
        ("provider", "a root key under a provider's KEK: no kdf", the_kek, provider, A),
        ("recovery", "a root key under the KEK of a recovery code: no kdf", the_code, recovery, A),
        ("root, write key", "the key of a write epoch, once its owner has adopted it", the_root, write, B),
        ("previous", "a retired root key under a newer one", wrapping(C), PREVIOUS_CONTEXT, A),
        ("grant", "a data key of a scope under a recipient's root key", wrapping(C), GRANT_CONTEXT, B),
        ("grant, root key", "a root key under a recipient's root key", wrapping(C), grant_root, A),
    ]
    for name, comment, wrapping_key, context, key in new:
        blob = good(name, comment, wrapping_key, context, key)
        faults = [
            (f"wrong {f}", "the wrap is bound to this field", other_field(f, context)) for f in WRAP_FIELDS
        ]
        faults += [
            (f"read as kind {kind}", "no kind is taken for another", context | {"kind": kind})
            for kind in ("secret", "provider", "recovery", "root", "sealed", "previous", "grant")
            if kind != context["kind"] and kind != other_field("kind", context)["kind"]
        ]
        faults += [
            (f"read as purpose {purpose}", "no purpose is taken for another", context | {"purpose": purpose})
            for purpose in ("root", "data", "index", "write")
            if purpose != context["purpose"] and purpose != other_field("purpose", context)["purpose"]
        ]
        for fault, why, changed in faults:
            add(f"{name}: {fault}", why, wrapping_key, changed, blob, commitment(key), "unlock")
        add(
            f"{name}: wrong wrapping key",
            "one bit off",
            flip(wrapping_key, 0),
            context,
            blob,
            commitment(key),
            "unlock",
        )
        planted = wrap(wrapping_key, D, fixed(f"planted {name}", 24), wrap_context(context))
        why = "a good wrap of a key that is not the one named"
        add(f"{name}: another key inside", why, wrapping_key, context, planted, commitment(key), "tampered")
    good(
        "grant, composite and not ASCII",
        "a granting row of three parts, a scope in UTF-8",
        wrapping(C),
        GRANT_CONTEXT | {"granter": of_composite, "scope": "caf\u00e9 \U0001f511"},
        B,
    )
    granted = wrap(wrapping(C), B, fixed("a grant", 24), wrap_context(GRANT_CONTEXT))
    for name, comment, changed in (
        *grant_faults(GRANT_CONTEXT),
        (
            "recipient's public key for its id",
            "a grant names a root key",
            {"recipient": x25519_public(C).hex()},
        ),
        ("recipient and granter swapped", "fields do not change places", swapped_ends(GRANT_CONTEXT)),
    ):
        context = GRANT_CONTEXT | changed
        add(f"grant: {name}", comment, wrapping(C), context, granted, commitment(B), "unlock")
    add(
        "grant: recipient's root key bare",
        "the root key itself wraps nothing; wrapping(k) does",
        C,
        GRANT_CONTEXT,
        granted,
        commitment(B),
        "unlock",
    )
    retired = wrap(wrapping(C), A, fixed("a retired key", 24), wrap_context(PREVIOUS_CONTEXT))
    add(
        "previous: wrapped under the retired key's own",
        "the newer key opens the older, never the other way round",
        wrapping(A),
        PREVIOUS_CONTEXT,
        retired,
        commitment(A),
        "unlock",
    )
    return cases


def grant_faults(of: Case) -> Iterable[tuple[str, str, Case]]:
    other_key, other_row = granting_row("memberships", [7, 2]), granting_row("memberships", [1, 7])
    yield "other granting row", "the right is that of one row", {"granter": other_key.hex()}
    yield (
        "granting row, parts swapped",
        "a group and a user do not change places",
        {"granter": other_row.hex()},
    )
    other_table = granting_row("profile_shares", [7, 1])
    yield "other granting table", "the same key in another table", {"granter": other_table.hex()}
    yield "no granting row", "a grant is not made a wrap of the owner's own", {"granter": ""}
    owner = owner_reference("memberships", [7, 1])
    yield "owner reference for the granting row", "the two have labels of their own", {"granter": owner.hex()}
    yield "other recipient", "a grant moved to another member", {"recipient": key_id(D).hex()}
    yield "no recipient", "a grant is for one root key", {"recipient": ""}
    yield "other scope", "who was granted a profile is not granted a diary", {"scope": of["scope"] + "diary"}
    yield "granted key's id for the recipient's", "the two ids are two", {"recipient": of["key_id"]}


def swapped_ends(of: Case) -> Case:
    return {"recipient": of["granter"], "granter": of["recipient"]}


LOW_ORDER = {
    "zero": bytes(32),
    "one": b"\x01" + bytes(31),
    "order eight": bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    "order eight, the other": bytes.fromhex(
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"
    ),
    "p": (2**255 - 19).to_bytes(32, "little"),
}


def sealed_cases() -> list[Case]:
    cases: list[Case] = []

    def add(
        name: str,
        comment: str,
        recipient: bytes,
        context: Case,
        blob: bytes,
        stored: bytes,
        expect: str,
        key: bytes | None = None,
        ephemeral: bytes | None = None,
    ) -> None:
        private = subkey(recipient, "x25519")

        def read() -> bytes:
            found = open_either(recipient, blob, wrap_context(context))
            check_key(found, bytes.fromhex(context["key_id"]), stored)
            return found

        assert outcome(read) == expect, (name, outcome(read))
        case: Case = {"name": name, "comment": comment, "recipient_key": recipient.hex()}
        case |= {"recipient_private": private.hex(), "context": context}
        case |= {"stored_commitment": stored.hex(), "blob": blob.hex()}
        if key is not None and ephemeral is not None:
            assert read() == key
            case |= {"ephemeral_private": ephemeral.hex(), "key": key.hex()}
        cases.append(case | {"expect": expect})

    suite = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)

    def good(name: str, comment: str, recipient: bytes, context: Case, key: bytes) -> bytes:
        ephemeral = fixed(f"ephemeral: {name}", 32)
        pair = X25519PrivateKey.from_private_bytes(subkey(recipient, "x25519"))
        blob = seal(pair.public_key().public_bytes_raw(), key, ephemeral, wrap_context(context))
        assert suite.decrypt(blob[1:], pair, info=wrap_context(context)) == key  # a third opinion
        add(name, comment, recipient, context, blob, commitment(key), "ok", key, ephemeral)
        return blob

    stored = commitment(A)
    blob = good("grant, root key", "a root key sealed to a recipient's root key", C, SEALED_CONTEXT, A)
    keys = {"secret": A, "provider": A, "recovery": A, "sealed": B, "grant": B}
    comments = {
        "secret": "a root key sealed to the KEK of a secret slot; kdf is as in 0x11",
        "provider": "a root key sealed to the KEK of a provider slot: no kdf",
        "recovery": "a root key sealed to the KEK of a recovery code: no kdf",
        "sealed": "the key of a write epoch, made while its owner is away",
        "grant": "a data key of a scope, granted to one who is away",
    }
    blobs = {
        kind: good(kind, comments[kind], C, context, keys[kind]) for kind, context in SEALED_CONTEXTS.items()
    }
    data = SEALED_CONTEXTS["sealed"] | {"purpose": "data", "scope": "profile"}
    good("sealed, data key", "a new epoch of a data key, made while its owner is away", C, data, B)
    outside = fixed("another recipient", 32)
    good(
        "grant, other recipient",
        "another member has a blob of its own",
        outside,
        GRANT_CONTEXT | {"recipient": key_id(outside).hex()},
        B,
    )
    of_composite = granting_row("memberships", ["eu", -7, uuid.UUID(int=1)]).hex()
    good(
        "grant, composite and not ASCII",
        "a granting row of three parts, a scope in UTF-8",
        C,
        GRANT_CONTEXT | {"granter": of_composite, "scope": "caf\u00e9 \U0001f511"},
        B,
    )
    good(
        "empty recipient and granter",
        "a context is bytes; HPKE has the recipient anyway",
        C,
        SEALED_CONTEXT | {"recipient": "", "granter": ""},
        A,
    )
    good("epoch 2^32-1", "the largest epoch", C, SEALED_CONTEXT | {"epoch": 0xFFFFFFFF}, A)

    def bad(name: str, comment: str, changed: bytes, expect: str) -> None:
        add(name, comment, C, SEALED_CONTEXT, changed, stored, expect)

    for first in (0x00, 0x01, 0x11, 0x14, 0xFF):
        bad(f"format byte {first:02x}", "neither 0x12 nor 0x13", bytes([first]) + blob[1:], "format")
    bad("format byte 13", "the other of the two formats: it is too short", b"\x13" + blob[1:], "truncated")
    for region, at in flips((("enc", 1, 33), ("ciphertext", 33, 65), ("tag", 65, 81))):
        bad(f"flipped: {region}", "does not authenticate", flip(blob, at), "unlock")
    bad(
        "flipped: enc, top bit",
        "X25519 ignores this bit; HPKE's schedule does not",
        flip(blob, 32, 0x80),
        "unlock",
    )
    for name, point in LOW_ORDER.items():
        why = "the shared secret is all zero and must be refused"
        bad(f"enc of low order: {name}", why, b"\x12" + point + blob[33:], "unlock")
    # Sealed for that all-zero secret, so that nothing but the refusal of the point keeps it shut.
    for name, point in LOW_ORDER.items():
        secret = kem_secret(bytes(32), point, x25519_public(C))
        aes_key, nonce = key_and_nonce(HPKE_SUITE, secret, wrap_context(SEALED_CONTEXT))
        forged = b"\x12" + point + AESGCM(aes_key).encrypt(nonce, A, None)
        bad(
            f"sealed by nobody: enc {name}",
            "made without the public key's owner: authenticates",
            forged,
            "unlock",
        )
    bad("empty", "no first byte", b"", "format")
    for size in (1, 33, 65, 80):
        bad(f"cut to {size}", "too short, and says so before any cryptography", blob[:size], "truncated")
    bad("cut to 80, format byte", "the first byte is looked at first", b"\x11" + blob[1:80], "format")
    bad("one byte more", "too long", blob + b"\x00", "format")
    bad("twice", "too long", blob + blob, "format")
    bad("80 bytes of HPKE", "the message without its format byte", blob[1:], "format")
    for field in WRAP_FIELDS:
        context = other_field(field, SEALED_CONTEXT)
        add(f"wrong {field}", "the seal is bound to this field", C, context, blob, stored, "unlock")
    swapped = SEALED_CONTEXT | swapped_ends(SEALED_CONTEXT)
    add("recipient and granter swapped", "fields do not change places", C, swapped, blob, stored, "unlock")
    add("wrong recipient key", "another recipient", outside, SEALED_CONTEXT, blob, stored, "unlock")
    add(
        "other stored commitment",
        "it opens, but is not the key of this row",
        C,
        SEALED_CONTEXT,
        blob,
        commitment(D),
        "tampered",
    )
    add(
        "stored commitment one bit off",
        "all 32 bytes are compared",
        C,
        SEALED_CONTEXT,
        blob,
        flip(stored, 31),
        "tampered",
    )
    planted = seal(x25519_public(C), D, fixed("planted seal", 32), wrap_context(SEALED_CONTEXT))
    bad("another key inside", "anyone can seal; the key must be the one named", planted, "tampered")
    add(
        "another key inside, its commitment stored",
        "the id is compared as well",
        C,
        SEALED_CONTEXT,
        planted,
        commitment(D),
        "tampered",
    )

    for kind, context in SEALED_CONTEXTS.items():
        for fault, why, changed in seal_faults(kind, context):
            add(f"{kind}: {fault}", why, C, changed, blobs[kind], commitment(keys[kind]), "unlock")
        add(
            f"{kind}: wrong recipient key",
            "another key",
            outside,
            context,
            blobs[kind],
            commitment(keys[kind]),
            "unlock",
        )
    bare = {
        "op": "seal",
        "context": SEALED_CONTEXT,
        "key": A.hex(),
        "ephemeral_private": fixed("e", 32).hex(),
    }
    for name, point in LOW_ORDER.items():
        case = {"name": f"sealed to low order: {name}", "comment": "a planted public key", **bare}
        assert outcome(partial(seal, point, A, fixed("e", 32), wrap_context(SEALED_CONTEXT))) == "refused"
        cases.append(case | {"recipient_public": point.hex(), "expect": "refused"})
    return cases


def seal_faults(kind: str, context: Case) -> Iterable[tuple[str, str, Case]]:
    """What is sealed, moved to where something else stands: one field at a time, then the moves that pay."""
    for field in WRAP_FIELDS:
        yield f"wrong {field}", "the seal is bound to this field", other_field(field, context)
    for other in ("provider", "recovery", "root", "sealed", "previous", "grant", "secret"):
        if other not in (kind, other_field("kind", context)["kind"]):
            yield f"read as kind {other}", "no kind is taken for another", context | {"kind": other}
    yield "previous epoch", "an old epoch is not made current", context | {"epoch": context["epoch"] - 1}
    if kind in ("secret", "provider", "recovery"):
        yield (
            "recipient's id for its public key",
            "a slot names its KEK by its public key",
            context | {"recipient": key_id(C).hex()},
        )
    else:
        yield (
            "recipient's public key for its id",
            "a root key is named by its id",
            context | {"recipient": x25519_public(C).hex()},
        )
    if kind == "grant":
        for name, comment, changed in grant_faults(context):
            yield name, comment, context | changed


# ---------------------------------------------------------------- hybrid.json


def hybrid_cases() -> list[Case]:
    cases: list[Case] = []
    path = HERE / "hybrid.json"
    made = json.loads(path.read_text("ascii"))["cases"] if path.exists() else []
    before = {case["name"]: bytes.fromhex(case["blob"]) for case in made if "blob" in case}

    for name, key in {"00..1f": A, "40..5f": C, "all ff": ONES, "all 00": bytes(32)}.items():
        case: Case = {
            "name": f"public keys of {name}",
            "comment": "what is stored of a key that is sealed to in this format",
            "op": "public_keys",
            "key": key.hex(),
            "mlkem_seed": mlkem_seed(key).hex(),
            "mlkem_public": mlkem_public(key).hex(),
            "x25519_public": x25519_public(key).hex(),
        }
        cases.append(case | {"expect": "ok"})

    def add(
        name: str,
        comment: str,
        recipient: bytes,
        context: Case,
        blob: bytes,
        stored: bytes,
        expect: str,
        key: bytes | None = None,
    ) -> None:
        def read() -> bytes:
            found = open_either(recipient, blob, wrap_context(context))
            check_key(found, bytes.fromhex(context["key_id"]), stored)
            return found

        assert outcome(read) == expect, (name, outcome(read))
        case: Case = {"name": name, "comment": comment, "op": "open", "recipient_key": recipient.hex()}
        case |= {"context": context, "stored_commitment": stored.hex(), "blob": blob.hex()}
        if len(blob) == 1169:
            case |= {"mlkem_shared": mlkem_shared(recipient, blob).hex()}
        if key is not None:
            assert read() == key
            case |= {"key": key.hex()}
        cases.append(case | {"expect": expect})

    def kept(name: str, pair: tuple[bytes, bytes], key: bytes, info: bytes) -> bytes:
        """The blob that the file has under this name, if it still is what it was made to be; or a new one."""
        mlkem, x25519 = pair  # one key twice, but where a case mixes two
        private = hpke.MLKEM768X25519PrivateKey(hybrid_pair(mlkem)[0], hybrid_pair(x25519)[1])
        blob = before.get(name, b"")
        try:
            same = blob[:1] == b"\x13" and HYBRID.decrypt(blob[1:], private, info=info) == key
        except InvalidTag:
            same = False
        return blob if same else seal_hybrid(mlkem_public(mlkem), x25519_public(x25519), key, info)

    def good(name: str, comment: str, recipient: bytes, context: Case, key: bytes) -> bytes:
        blob = kept(name, (recipient, recipient), key, wrap_context(context))
        add(name, comment, recipient, context, blob, commitment(key), "ok", key)
        return blob

    blob = good("grant, root key", "a root key sealed to a recipient's root key", C, SEALED_CONTEXT, A)
    for kind in ("sealed", "grant"):  # a KEK has no ML-KEM pair: no slot is sealed in this format
        good(kind, f"kind {kind}: the contexts are those of 0x12", C, SEALED_CONTEXTS[kind], B)
    outside = fixed("another recipient", 32)
    other = GRANT_CONTEXT | {"recipient": key_id(outside).hex()}
    good("grant, other recipient", "another member has a blob of its own", outside, other, B)
    stored = commitment(A)

    def bad(name: str, comment: str, changed: bytes, expect: str) -> None:
        add(name, comment, C, SEALED_CONTEXT, changed, stored, expect)

    for first in (0x00, 0x01, 0x11, 0x14, 0x21, 0x31, 0xFF):
        bad(f"format byte {first:02x}", "neither 0x12 nor 0x13", bytes([first]) + blob[1:], "format")
    bad("format byte 12", "the other of the two formats: it is too long", b"\x12" + blob[1:], "format")
    regions = (
        ("enc of ML-KEM", 1, 1089),
        ("enc of X25519", 1089, 1121),
        ("ciphertext", 1121, 1153),
        ("tag", 1153, 1169),
    )
    for region, at in flips(regions):
        bad(f"flipped: {region}", "does not authenticate", flip(blob, at), "unlock")
    why = "X25519 ignores this bit; the combiner does not"
    bad("flipped: enc of X25519, top bit", why, flip(blob, 1120, 0x80), "unlock")
    why = "the two parts of enc do not change places"
    bad("enc turned round", why, blob[:1] + blob[1089:1121] + blob[1:1089] + blob[1121:], "unlock")
    bad(
        "enc of ML-KEM of zeros",
        "ML-KEM refuses no ciphertext",
        b"\x13" + bytes(1088) + blob[1089:],
        "unlock",
    )
    bad("empty", "no first byte", b"", "format")
    for size in (1, 81, 1089, 1121, 1168):
        bad(f"cut to {size}", "too short, and says so before any cryptography", blob[:size], "truncated")
    bad("cut to 1168, format byte", "the first byte is looked at first", b"\x11" + blob[1:1168], "format")
    bad("one byte more", "too long", blob + b"\x00", "format")
    bad("twice", "too long", blob + blob, "format")
    bad("1168 bytes of HPKE", "the message without its format byte", blob[1:], "format")
    classical = seal(x25519_public(C), A, fixed("classical", 32), wrap_context(SEALED_CONTEXT))
    bad(
        "0x12 under 0x13",
        "the first byte is the format: it is too short",
        b"\x13" + classical[1:],
        "truncated",
    )
    for field in WRAP_FIELDS:
        context = other_field(field, SEALED_CONTEXT)
        add(f"wrong {field}", "the seal is bound to this field", C, context, blob, stored, "unlock")
    swapped = SEALED_CONTEXT | swapped_ends(SEALED_CONTEXT)
    add("recipient and granter swapped", "fields do not change places", C, swapped, blob, stored, "unlock")
    for name, comment, changed in grant_faults(SEALED_CONTEXT):
        add(name, comment, C, SEALED_CONTEXT | changed, blob, stored, "unlock")
    add("wrong recipient key", "another recipient", outside, SEALED_CONTEXT, blob, stored, "unlock")
    why = "it opens, but is not the key of this row"
    add("other stored commitment", why, C, SEALED_CONTEXT, blob, commitment(D), "tampered")
    near = flip(stored, 31)
    add(
        "stored commitment one bit off",
        "all 32 bytes are compared",
        C,
        SEALED_CONTEXT,
        blob,
        near,
        "tampered",
    )
    info = wrap_context(SEALED_CONTEXT)
    publics = mlkem_public(C), x25519_public(C)
    name = "another key inside"
    planted = kept(name, (C, C), D, info)
    bad(name, "anyone can seal; the key must be the one named", planted, "tampered")

    # One of the two KEMs is broken: the other keeps it shut.
    for name, comment, pair in (
        ("ML-KEM to another key", "X25519 alone opens nothing", (outside, C)),
        ("X25519 to another key", "ML-KEM alone opens nothing", (C, outside)),
    ):
        bad(name, comment, kept(name, pair, A, info), "unlock")
    # Sealed for an all-zero X25519 secret: nothing but the refusal of the point keeps it shut.
    for point_name, point in LOW_ORDER.items():
        name = f"sealed to half the pair: enc of X25519 {point_name}"
        forged = before.get(name, b"")
        if not forged_for(C, forged, point, info):
            shared, enc = hybrid_pair(C)[0].public_key().encapsulate()
            secret = hybrid_secret(shared, bytes(32), point, x25519_public(C))
            aes_key, nonce = key_and_nonce(HYBRID_SUITE, secret, info)
            forged = b"\x13" + enc + point + AESGCM(aes_key).encrypt(nonce, A, None)
        bad(name, "a point of small order: half of the hybrid would be missing", forged, "unlock")

    bare = {"op": "seal", "context": SEALED_CONTEXT, "key": A.hex()}

    def not_sealed(name: str, comment: str, mlkem: bytes, x25519: bytes) -> None:
        assert outcome(partial(seal_hybrid, mlkem, x25519, A, info)) == "refused", name
        case = {"name": name, "comment": comment, **bare, "mlkem_public": mlkem.hex()}
        cases.append(case | {"x25519_public": x25519.hex(), "expect": "refused"})

    for point_name, point in LOW_ORDER.items():
        not_sealed(f"sealed to low order: {point_name}", "a planted public key", publics[0], point)
    not_sealed("sealed to 1183 bytes", "an ML-KEM-768 public key has 1184", publics[0][:-1], publics[1])
    not_sealed("sealed to 1185 bytes", "an ML-KEM-768 public key has 1184", publics[0] + b"\x00", publics[1])
    large = b"\xff\xff" + publics[0][2:]
    not_sealed("sealed to a coefficient of 4095", "FIPS 203 7.2: below 3329, each of them", large, publics[1])
    return cases


def forged_for(recipient: bytes, blob: bytes, point: bytes, info: bytes) -> bool:
    if len(blob) != 1169 or blob[1089:1121] != point:
        return False
    secret = hybrid_secret(mlkem_shared(recipient, blob), bytes(32), point, x25519_public(recipient))
    aes_key, nonce = key_and_nonce(HYBRID_SUITE, secret, info)
    try:
        return AESGCM(aes_key).decrypt(nonce, blob[1121:], None) == A
    except InvalidTag:
        return False


# ---------------------------------------------------------------- server_keyring.json


def server_keyring_cases() -> list[Case]:
    cases: list[Case] = []

    def add(
        name: str, comment: str, keys: Sequence[bytes], of: Context, wrapped: bytes, expect: str, **more: str
    ) -> None:
        assert outcome(lambda: server_unwrap(keys, wrapped, of)) == expect, name
        case: Case = {
            "name": name,
            "comment": comment,
            "op": "unwrap",
            "server_keys": [k.hex() for k in keys],
        }
        cases.append(case | {"context": of, "wrapped": wrapped.hex(), **more, "expect": expect})

    def good(
        name: str, comment: str, keys: Sequence[bytes], under: bytes, kek: bytes, of: Context | None = None
    ) -> bytes:
        of = provider_context(kek) if of is None else of
        salt = fixed(f"server salt: {name}", 24)
        wrapped = server_wrap(under, kek, salt, of)
        assert server_unwrap(keys, wrapped, of) == kek
        add(name, comment, keys, of, wrapped, "ok", server_key=under.hex(), salt=salt.hex(), key=kek.hex())
        return wrapped

    kek, of = C, provider_context(C)
    wrapped = good("one server key", "a KEK under the only server key", [D], D, kek)
    good("first of two", "the first is the active one", [D, B], D, kek)
    older = good("second of two", "what an older server key wrapped stays open", [B, D], D, kek)
    good("KEK of ones", "no KEK is weak", [D], D, ONES)
    good("server key of ones", "no server key is weak", [ONES], ONES, kek)
    good("no context", "a context of no field", [D], D, kek, {})
    turned = dict(reversed(of.items()))
    assert turned == of
    same = server_wrap(D, kek, fixed("server salt: one server key", 24), turned)
    assert same == wrapped
    more = {"server_key": D.hex(), "salt": fixed("server salt: one server key", 24).hex(), "key": kek.hex()}
    add("names in the other order", "they are sorted: the same bytes", [D], turned, same, "ok", **more)
    for name, comment, names in (
        (
            "names by bytes",
            "upper case, then lower case, then what is not ASCII",
            "a B b A z Z \u00e9 \u00c9 _ 0",
        ),
        (
            "names beyond the BMP",
            "in UTF-8 U+FF5A stands before U+10000; in UTF-16 units it does not",
            "\U00010000 \uff5a \ue000",
        ),
        ("one name begins another", "the shorter stands first", "abc ab a abd"),
    ):
        good(name, comment, [D], D, kek, {n: f"value of {i}" for i, n in enumerate(names.split(" "))})
    good("empty name and value", "each is a field", [D], D, kek, {"": "", "a": ""})
    good(
        "value not ASCII",
        "values are UTF-8 and not normalised",
        [D],
        D,
        kek,
        {"a": "e\u0301\u00e9\U0001f511"},
    )

    def bad(name: str, comment: str, changed: bytes, keys: Sequence[bytes] = (D,), of: Context = of) -> None:
        add(name, comment, keys, of, changed, "refused")

    bad("unknown server key id", "wrapped under a server key that is not at hand", wrapped, [B])
    bad("unknown server key id, two keys", "nothing is tried that is not named", older, [A, B])
    bad("other server key named", "the key that is named does not open it", key_id(B) + wrapped[16:], [D, B])
    for region, at in flips(
        (
            ("server key id", 0, 16),
            ("format byte", 16, 17),
            ("salt", 17, 41),
            ("commitment", 41, 73),
            ("ciphertext", 73, 105),
            ("tag", 105, 121),
        )
    ):
        bad(f"flipped: {region}", "altered", flip(wrapped, at))
    bad("flipped: tag, top bit", "every bit of the tag counts", flip(wrapped, 120, 0x80))
    bad("empty", "nothing", b"")
    for size in (1, 15, 16, 17, 105, 120):
        bad(f"cut to {size}", "too short", wrapped[:size])
    bad("one byte more", "too long", wrapped + b"\x00")
    bad("twice", "too long", wrapped + wrapped)
    bad("without the server key id", "a frame of section 4 alone", wrapped[16:])
    bad("with 0x14 before it", "that byte is not the provider's", b"\x14" + wrapped)
    bare = key_id(D) + wrap(D, kek, fixed("bare", 24), server_context(of))
    bad("under the server key itself", "the server key wraps nothing; wrapping(k) does", bare)
    foreign = key_id(D) + wrap(wrapping(D), kek, fixed("foreign", 24), wrap_context(SECRET_CONTEXT))
    bad("a wrap of a root key", "contexts have labels: this one is of section 4", foreign)
    for name, comment, changed in (
        ("other KEK", "the public key of another KEK", provider_context(B)),
        ("upper-case hexadecimal", "lower case, as specified", of | {"kek": of["kek"].upper()}),
        ("no kek", "a name is missing", {"library": of["library"]}),
        ("no library", "a name is missing", {"kek": of["kek"]}),
        (
            "other library",
            "another library, or another version of this",
            of | {"library": of["library"] + "x"},
        ),
        ("one name more", "a name too many", of | {"table": "users"}),
        ("other name", "names are bound too", {"library": of["library"], "KEK": of["kek"]}),
        ("values swapped", "values do not change names", {"library": of["kek"], "kek": of["library"]}),
        ("none", "no context is another context", {}),
    ):
        bad(f"other context: {name}", comment, wrapped, of=changed)
    split = good("split ab|c", "the pair of the next case", [D], D, kek, {"ab": "c"})
    bad("split a|bc", "the border between name and value counts", split, of={"a": "bc"})

    def slot(name: str, comment: str, blob: bytes, expect: str, public: bytes = x25519_public(kek)) -> None:
        assert outcome(lambda: open_provided([D], blob, public)) == expect, name
        case: Case = {"name": f"slot: {name}", "comment": comment, "op": "open", "server_keys": [D.hex()]}
        case |= {"stored_public": public.hex(), "blob": blob.hex()}
        cases.append(case | ({"key": kek.hex()} if expect == "ok" else {}) | {"expect": expect})

    slot("ok", "0x14, then what the provider made: 122 bytes", b"\x14" + wrapped, "ok")
    slot("empty", "no first byte", b"", "format")
    for first in (0x00, 0x11, 0x12, 0x13, 0x15):
        slot(f"format byte {first:02x}", "the first byte is not 0x14", bytes([first]) + wrapped, "format")
    answer = server_wrap(D, B, fixed("another KEK", 24), of)
    slot("another key", "the provider answers with a key that is not the slot's", b"\x14" + answer, "refused")
    return cases


# ---------------------------------------------------------------- row_seal.json


def row_columns(row: str) -> dict[str, bytes]:
    """A row with every column filled; what they hold is that of the other files where it has a format."""
    one = b"\x00\x00\x00\x01"
    match row:
        case "key":
            return {
                "key_id": key_id(B),
                "owner_reference": OWNER,
                "purpose": b"data",
                "scope": b"profile",
                "epoch": one,
                "state": b"active",
                "commitment": commitment(B),
                "public_key": x25519_public(B),
                "mlkem_public_key": mlkem_public(B)[:40],  # cut, to keep the file small; whole in one case
                "wrapping_key_id": key_id(A),
                "wrapped": wrap(wrapping(A), B, fixed("row wrap", 24), wrap_context(ROOT_CONTEXT)),
            }
        case "slot":
            kek, of = C, provider_context(C)
            return {
                "slot_id": uuid.UUID(int=0x5107).bytes,
                "key_id": key_id(A),
                "kind": b"provider",
                "kdf": DEFAULT_PHC.encode("ascii"),
                "recipient_public_key": x25519_public(kek),
                "provider_reference": "server/\u00fc".encode(),
                "provider_blob": b"\x14" + server_wrap(D, kek, fixed("row server", 24), of),
                "wrapped": wrap(kek, A, fixed("row slot", 24), wrap_context(SECRET_CONTEXT)),
            }
        case _:
            return {
                "grant_id": uuid.UUID(int=0x62A7).bytes,
                "granting_row": GRANTER,
                "recipient": owner_reference("users", [3]),
                "key_id": key_id(B),
                "recipient_key_id": key_id(C),
                "state": b"sealed",
                "wrapped": wrap(wrapping(C), B, fixed("row grant", 24), wrap_context(GRANT_CONTEXT)),
            }


def row_seal_cases() -> list[Case]:
    cases: list[Case] = []

    def add(
        name: str,
        comment: str,
        row: str,
        label: str,
        columns: dict[str, bytes],
        seal: bytes | None,
        expect: str,
        keys: Sequence[bytes] = (D, B),
        realm: str = "",
        **more: str,
    ) -> None:
        assert outcome(lambda: check_row(seal, keys, label, row, columns.values(), realm)) == expect, name
        case: Case = {"name": name, "comment": comment, "server_keys": [k.hex() for k in keys]}
        case |= {"label": label, "realm": realm, "row": row}
        case |= {"columns": {n: c.hex() for n, c in columns.items()}}
        cases.append(case | {"seal": None if seal is None else seal.hex(), **more, "expect": expect})

    for row, label in (("key", "users"), ("slot", "users"), ("grant", "memberships")):
        full = row_columns(row)

        def good(
            name: str,
            comment: str,
            columns: dict[str, bytes],
            label: str = label,
            under: bytes = D,
            keys: Sequence[bytes] = (D, B),
            row: str = row,
            realm: str = "",
        ) -> bytes:
            seal = seal_row(under, label, row, columns.values(), realm)
            name = f"{row}: {name}"
            add(name, comment, row, label, columns, seal, "ok", keys, realm, server_key=under.hex())
            return seal

        seal = good("every column filled", "the row that the failures below begin with", full)
        good("one server key", "the only one", full, keys=[D])
        good("older server key", "sealed under a key that is no longer the first", full, under=B)
        good("a realm", "the database has a name", full, realm="acme")
        good("realm not ASCII", "realms are UTF-8", full, realm="k\u00f6ln")
        good("label not ASCII", "labels are UTF-8", full, label="mitglieder\u00fcbersicht")
        absent = {
            "key": ("scope", "public_key", "mlkem_public_key", "wrapping_key_id", "wrapped"),
            "slot": ("kdf", "recipient_public_key", "provider_reference", "provider_blob", "wrapped"),
            "grant": ("wrapped",),
        }[row]
        good("columns absent", "what is absent is empty", full | dict.fromkeys(absent, b""))
        if row == "key":
            good("whole ML-KEM public key", "1184 bytes", full | {"mlkem_public_key": mlkem_public(B)})
        good("every column empty", "the number of fields is fixed", dict.fromkeys(full, b""))

        def bad(
            name: str,
            comment: str,
            columns: dict[str, bytes] = full,
            seal: bytes | None = seal,
            label: str = label,
            row: str = row,
            of: str = row,
            keys: Sequence[bytes] = (D, B),
            realm: str = "",
        ) -> None:
            add(f"{of}: {name}", comment, row, label, columns, seal, "refused", keys, realm)

        for column, content in full.items():
            for where, at in (("first", 0), ("last", len(content) - 1)):
                changed = full | {column: flip(content, at)}
                bad(f"flipped: {column}, {where} byte", "every column is sealed", changed)
            bad(f"emptied: {column}", "a column is not taken away", full | {column: b""})
            bad(f"longer: {column}", "nor is anything added", full | {column: content + b"\x00"})
        names = list(full)
        for left, right in pairwise(names):
            a, b = full[left], full[right]
            moved = full | {left: a + b[:1], right: b[1:]}
            bad(f"moved: first byte of {right} to {left}", "the borders between columns are sealed", moved)
            moved = full | {left: a[:-1], right: a[-1:] + b}
            bad(f"moved: last byte of {left} to {right}", "the borders between columns are sealed", moved)
            bad(f"swapped: {left} and {right}", "columns do not change places", full | {left: b, right: a})
        bad("first column dropped", "the number of columns is sealed", {n: full[n] for n in names[1:]})
        bad("an empty column more", "the number of columns is sealed", full | {"more": b""})

        bad("missing seal", "NULL: a row without a seal is refused", seal=None)
        bad("empty seal", "no seal either", seal=b"")
        for size in (16, 32, 47):
            bad(f"seal cut to {size}", "too short", seal=seal[:size])
        bad("seal one byte more", "too long", seal=seal + b"\x00")
        bad("MAC without its server key id", "too short", seal=seal[16:])
        for region, at in flips((("server key id", 0, 16), ("MAC", 16, 48))):
            bad(f"flipped: {region} of the seal", "altered", seal=flip(seal, at))
        bad("flipped: MAC, top bit", "every bit of the MAC counts", seal=flip(seal, 47, 0x80))
        bad("MAC of zeros", "no MAC", seal=seal[:16] + bytes(32))
        bad("unknown server key id", "sealed under a server key that is not at hand", keys=[A, B])
        bad("unknown server key", "by one who made a key", seal=seal_row(C, label, row, full.values()))
        bad("other server key named", "it did not make this MAC", seal=key_id(B) + seal[16:])
        bad("other label", "moved to the table of another class", label="accounts")
        bad("other realm", "moved to another database", realm="acme")
        in_realm = seal_row(D, label, row, full.values(), "acme")
        bad("a realm's seal without it", "moved out of its database", seal=in_realm)
        bad("realm, other case", "realms are compared as bytes", seal=in_realm, realm="ACME")
        joined = seal_row(D, label + "x", row, full.values(), "acme")
        bad("a byte moved from label to realm", "their border is sealed", seal=joined, realm="xacme")
        bad("label, other case", "labels are compared as bytes", label=label.upper())
        for other in ("key", "slot", "grant"):
            if other != row:
                bad(f"as a {other}", "no kind of row is taken for another", row=other)
        content = ctx("row", row.encode("ascii"), *full.values())
        for name, comment, key in (
            ("server key itself", "the MAC key is a subkey of it", D),
            ("subkey without the label", "the MAC key is one of this label", subkey(D, "row-seal")),
            ("other purpose", "the MAC key is one of this purpose", subkey(D, "wrap")),
        ):
            bad(f"MAC under: {name}", comment, seal=key_id(D) + hmac.digest(key, content, "sha256"))
        older = (
            full
            | {"key": {"state": b"retired"}, "slot": {"kind": b"secret"}, "grant": {"state": b"adopted"}}[row]
        )
        replayed = seal_row(D, label, row, older.values())
        bad("seal of another state", "a seal is of one state of its row", seal=replayed)
    return cases


# ---------------------------------------------------------------- pepper.json


def pepper_cases() -> list[Case]:
    cases: list[Case] = []
    slot: Case = {
        "slot_id": uuid.UUID(int=7).hex,
        "key_id": key_id(A).hex(),
        "kind": "secret",
        "kdf": DEFAULT_PHC,
    }

    def add(
        name: str, comment: str, peppers: Sequence[bytes], of: Case, blob: bytes, expect: str, **more: str
    ) -> None:
        assert outcome(lambda: take_pepper(peppers, blob, of)) == expect, name
        case: Case = {"name": name, "comment": comment, "peppers": [one.hex() for one in peppers]}
        cases.append(case | {"slot": of, "blob": blob.hex(), **more, "expect": expect})

    def good(
        name: str, comment: str, peppers: Sequence[bytes], under: bytes, wrapped: bytes, of: Case = slot
    ) -> bytes:
        salt = fixed(f"pepper salt: {name}", 24)
        public = x25519_public(C)
        blob = add_pepper(under, public, wrapped, salt, of)
        assert take_pepper(peppers, blob, of) == (public, wrapped)
        more = {"pepper": under.hex(), "salt": salt.hex(), "public_key": public.hex()}
        add(name, comment, peppers, of, blob, "ok", **more, wrapped=wrapped.hex())
        return blob

    wrapped = wrap(C, A, fixed("wrap under a pepper", 24), wrap_context(SECRET_CONTEXT))
    public = x25519_public(C)
    sealed = seal(public, A, fixed("seal under a pepper", 32), wrap_context(SEALED_CONTEXTS["secret"]))
    blob = good("wrapped", "a root key wrapped under the KEK", [D], D, wrapped)
    by_epoch = good("sealed", "a root key that a new epoch sealed to the KEK", [D], D, sealed)
    waiting = good("waiting", "a slot that waits has no wrap, and a public key", [D], D, b"")
    good("first of two", "the first pepper is the active one", [D, B], D, wrapped)
    older = good("second of two", "what is under an older pepper stays open", [B, D], D, wrapped)
    good("pepper of ones", "no pepper is weak", [ONES], ONES, wrapped)
    good(
        "long salt string", "the kdf is bound as it is stored", [D], D, wrapped, slot | {"kdf": "\u00e9" * 99}
    )

    for first in (0x00, 0x01, 0x11, 0x12, 0x14, 0xFF):
        name, changed = f"format byte {first:02x}", bytes([first]) + blob[1:]
        add(name, "the first byte is not 0x15", [D], slot, changed, "format")
    add("empty", "a slot that waits without a pepper is no 0x15", [D], slot, b"", "format")
    for size in (1, 17, 73, 120):
        add(f"cut to {size}", "shorter than a slot that waits", [D], slot, blob[:size], "truncated")
    for size in (122, 201, 203, 225):
        add(f"cut to {size}", "a size that no slot has", [D], slot, blob[:size], "format")
    add("too long", "a size that no slot has", [D], slot, blob + b"\0", "format")
    add(
        "cut to a size that fits", "a wrapped slot at the size of a sealed", [D], slot, blob[:202], "tampered"
    )
    add("wrap cut off", "at the size of a slot that waits", [D], slot, blob[:121], "tampered")
    add("another pepper", "its pepper is not configured", [B], slot, blob, "refused")
    add("pepper taken off the list", "a rotation was not finished", [B, C], slot, older, "refused")
    renamed = b"\x15" + key_id(B) + blob[17:]
    add(
        "under the name of another pepper", "the other pepper does not fit", [B, D], slot, renamed, "tampered"
    )
    regions = (
        ("pepper id", 1, 17, "refused"),
        ("salt", 17, 41, "tampered"),
        ("commitment", 41, 73, "tampered"),
    )
    for region, start, end, expect in (*regions, ("public key", 73, 105, "tampered")):
        for _, at in flips(((region, start, end),)):
            add(f"flipped: {region}, byte {at}", "altered", [D], slot, flip(blob, at), expect)
    for kind, one in (("wrapped", blob), ("sealed", by_epoch), ("waiting", waiting)):
        add(f"flipped: tag, {kind}", "altered", [D], slot, flip(one, len(one) - 1), "tampered")
    add("flipped: wrap", "altered", [D], slot, flip(blob, 150), "tampered")
    for name, changed in (
        ("slot id", slot | {"slot_id": uuid.UUID(int=8).hex}),
        ("root key", slot | {"key_id": key_id(B).hex()}),
        ("kind", slot | {"kind": "provider"}),
        ("kdf", slot | {"kdf": DEFAULT_PHC.replace("t=3", "t=4")}),
        ("no kdf", slot | {"kdf": ""}),
    ):
        add(f"in another row: {name}", "the layer is bound to its row", [D], changed, blob, "tampered")
    direct = expand(D, COBBLESTONE + blob[17:41] + pepper_context(slot), 76)
    by_itself = blob[:41] + direct[44:76] + AESGCM(direct[:32]).encrypt(direct[32:44], public + wrapped, None)
    add("the pepper itself", "not the subkey: the pepper encrypts nothing", [D], slot, by_itself, "tampered")
    return cases


# ---------------------------------------------------------------- value.json


def float_bits(number: float) -> str:
    return struct.pack(">d", number).hex()


VALUES: dict[str, list[tuple[str, Any]]] = {
    "str": [
        ("everyday", "hello"),
        ("empty: encrypted, unlike NULL", ""),
        ("not normalised: NFC", "\u00e9"),
        ("not normalised: NFD", "e\u0301"),
        ("4-byte characters", "\U0001f511\U0001d11e\U0010ffff"),
        ("NUL and controls", "a\x00b\x1f\x7f\n"),
        ("spaces stay", " a\u00a0 "),
        ("1000 characters", "x" * 1000),
    ],
    "bytes": [
        ("empty", ""),
        ("zero byte", "00"),
        ("no UTF-8", "ff00fe80c0"),
        ("all byte values", bytes(range(256)).hex()),
    ],
    "int": [
        (f"{number}", str(number))
        for number in (
            0,
            1,
            -1,
            127,
            128,
            -127,
            -128,
            -129,
            255,
            256,
            32767,
            32768,
            -32768,
            -32769,
            2**31 - 1,
            2**31,
            -(2**31),
            2**63 - 1,
            2**63,
            -(2**63),
            -(2**63) - 1,
            2**64,
            2**1023,
            -(2**1023),
            10**400,
        )
    ],
    "float": [
        (name, float_bits(number))
        for name, number in (
            ("zero", 0.0),
            ("negative zero keeps its sign", -0.0),
            ("one", 1.0),
            ("a tenth", 0.1),
            ("pi", -3.141592653589793),
            ("smallest subnormal", 5e-324),
            ("smallest normal", 2.2250738585072014e-308),
            ("largest", 1.7976931348623157e308),
            ("2^53", 9007199254740992.0),
            ("infinity", float("inf")),
            ("minus infinity", float("-inf")),
        )
    ]
    + [
        ("NaN", "7ff8000000000000"),
        ("NaN with its sign set becomes the one NaN", "fff8000000000000"),
        ("NaN with a payload becomes the one NaN", "7ff8000000000001"),
        ("signalling NaN becomes the one NaN", "7ff0000000000001"),
    ],
    "decimal": [
        ("zero", "0"),
        ("negative zero", "-0"),
        ("two places", "1.10"),
        ("one place is another coefficient", "1.1"),
        ("zero with places", "0.00"),
        ("zero with seven places is written with an exponent", "0.0000000"),
        ("six places is the last without", "0.000001"),
        ("seven places is the first with", "0.0000001"),
        ("exponent, upper case and signed", "1e3"),
        ("not the same as 1E+3", "1000"),
        ("zero with a positive exponent", "0e5"),
        ("more digits than the context's precision", "-1234567890123456789012345678901234567890.123456789"),
        ("large exponent", "9.99e999999"),
        ("small exponent", "1e-999999"),
        ("infinity", "Infinity"),
        ("minus infinity", "-Infinity"),
        ("NaN", "NaN"),
        ("negative NaN", "-NaN"),
        ("NaN with a payload", "NaN123"),
    ],
    "bool": [("true", True), ("false", False)],
    "date": [
        ("leap day", "2024-02-29"),
        ("first", "0001-01-01"),
        ("last", "9999-12-31"),
        ("year 999", "0999-07-08"),
    ],
    "time": [
        ("midnight: microseconds are always written", "00:00:00"),
        ("last", "23:59:59.999999"),
        ("one microsecond", "12:34:56.000001"),
    ],
    "timetz": [
        ("UTC is +00:00", "12:00:00+00:00"),
        ("Z is +00:00", "12:00:00Z"),
        ("its own offset is kept", "23:30:00.250000+05:30"),
        ("negative offset", "01:02:03-03:30"),
        ("largest offset", "00:00:00+23:59"),
        ("smallest offset", "00:00:00-23:59"),
    ],
    "datetime": [
        ("everyday: microseconds are always written", "2024-02-29T12:34:56"),
        ("one microsecond", "1999-12-31T23:59:59.000001"),
        ("first", "0001-01-01T00:00:00"),
        ("last", "9999-12-31T23:59:59.999999"),
    ],
    "datetimetz": [
        ("UTC", "2024-02-29T12:34:56+00:00"),
        ("converted, the day changes", "2024-03-01T01:00:00+05:45"),
        ("converted, the year changes", "2024-12-31T23:00:00-09:30"),
        ("offset with seconds", "1937-01-01T12:00:27.870000+00:19:32"),
        ("offset with microseconds", "2024-01-01T00:00:00-01:02:03.000004"),
        ("leap day reached by conversion", "2024-03-01T00:00:00+00:01"),
        ("no leap day in 2100", "2100-03-01T00:00:00+00:01"),
        ("largest offset", "2024-01-01T00:00:00+23:59"),
        ("first that UTC can say", "0001-01-01T14:00:00+14:00"),
        ("last that UTC can say", "9999-12-31T09:59:59.999999-14:00"),
    ],
    "timedelta": [
        ("zero", {"days": 0, "seconds": 0, "microseconds": 0}),
        ("one microsecond", {"days": 0, "seconds": 0, "microseconds": 1}),
        ("minus one microsecond", {"days": -1, "seconds": 86399, "microseconds": 999999}),
        ("one day", {"days": 1, "seconds": 0, "microseconds": 0}),
        ("largest", {"days": 999999999, "seconds": 86399, "microseconds": 999999}),
        ("smallest", {"days": -999999999, "seconds": 0, "microseconds": 0}),
    ],
    "uuid": [
        ("everyday", "f81d4fae-7dec-11d0-a765-00a0c91e6bf6"),
        ("nil", "00000000-0000-0000-0000-000000000000"),
        ("all ones", "ffffffff-ffff-ffff-ffff-ffffffffffff"),
    ],
    "enum": [("name", "ACTIVE"), ("not ASCII", "gr\u00f6\u00dfe"), ("empty", "")],
    "json": [
        ("null inside the column, unlike NULL", "null"),
        ("true", "true"),
        ("string", '"hello"'),
        ("empty string", '""'),
        ("empty object", "{ }"),
        ("empty list", "[ ]"),
        ("no white space, order kept", ' {"b" : 1 ,\n "a" : [ true, false , null ] } '),
        ("no escapes but those demanded", '"\\u00e9 \\/ \\u2028 \\u007f \\ud83d\\udd11"'),
        ("demanded escapes, the short ones", '"\\u0022 \\u005c \\u0008 \\u000c \\u000a \\u000d \\u0009"'),
        ("demanded escapes, the others in lower case", '"\\u0000 \\u001F \\u000B"'),
        ("names are strings", '{"": 1, "\\u00e9": 2, "a b": 3}'),
        ("integers of any size", "[0, -1, 9007199254740993, 123456789012345678901234567890]"),
        ("float and integer stay apart", "[1.0, 1, -0.0, 0.1, 100.0]"),
        (
            "floats, the shortest digits that read back",
            "[0.30000000000000004, 5e-324, 1.7976931348623157e308]",
        ),
        ("floats, where the exponent begins", "[0.0001, 0.00001, 1e15, 1e16, 1.5e16, 123456789012345680.0]"),
        ("nested", '[[[{"a": {"b": [1.5, "x"]}}]]]'),
    ],
    "list:str": [
        ("empty", []),
        ("two", ["a", "b"]),
        ("None is not the empty string", [None, ""]),
        ("one of two letters is not two of one", ["ab"]),
        ("nested, with None", [["a", None], [], [["\U0001f511"]]]),
        ("an item that spells a list", ["\x00\x00\x00\x00"]),
        ("an empty list inside", [[]]),
        ("eight deep", [[[[[[[["a"]]]]]]]]),
    ],
    "list:int": [("numbers", ["1", "-128", "128", None]), ("two dimensions", [["1", "2"], ["3", None]])],
    "list:bytes": [("an item that spells a list", ["00000000"]), ("a list inside", [[]])],
    "list:float": [("edge values", [float_bits(-0.0), "fff8000000000000", None])],
    "list:decimal": [("exponents are kept", ["1.10", "1E+3"])],
    "list:bool": [("three states", [True, False, None])],
    "list:uuid": [("one", ["f81d4fae-7dec-11d0-a765-00a0c91e6bf6"])],
    "list:date": [("one", ["2024-02-29"])],
    "list:datetimetz": [("items are converted too", ["2024-03-01T01:00:00+05:45"])],
    "list:json": [("an item that is a JSON list is an item", [None, "[1, 2]", '{"a": null}'])],
}
NOT_ENCODED: list[tuple[str, str, str, Any]] = [
    ("decimal", "sNaN", "refused: it raises when it is looked at", "sNaN"),
    ("decimal", "sNaN with a payload", "refused: signalling", "-sNaN7"),
    ("str", "lone surrogate", "refused: no UTF-8", "a\ud800"),
    ("enum", "lone surrogate", "refused: no UTF-8", "\udfff"),
    ("json", "NaN", "refused: not JSON", "[NaN]"),
    ("json", "Infinity", "refused: not JSON", "[Infinity]"),
    ("json", "-Infinity", "refused: not JSON", "-Infinity"),
    ("list:decimal", "sNaN inside", "refused: as it is alone", ["1", "sNaN"]),
    ("list:str", "nine deep", "refused: eight lists inside each other are the most", [[[[[[[[[]]]]]]]]]),
]
NOT_DECODED: list[tuple[str, str, str, bool, str]] = [
    (
        "list:str",
        "a nested list in a flat one",
        "an array of one dimension has items alone",
        True,
        "00000001 02 00000004 00000000",
    ),
    ("list:str", "another kind", "there are three", False, "00000001 03 00000001 61"),
    ("list:str", "nine deep", "eight lists inside each other are the most", False, "nine deep"),
    ("list:str", "one item too few", "the count says two", False, "00000002 00"),
    ("list:str", "one item too many", "the count says one", False, "00000001 00 00"),
    ("list:str", "an item longer than the list", "one byte is missing", False, "00000001 01 00000002 61"),
    (
        "list:str",
        "a list longer than the one around it",
        "its items stand outside of its own bytes",
        False,
        "00000001 02 00000004 00000001 00",
    ),
    (
        "list:str",
        "a list shorter than its items",
        "bytes follow its last item",
        False,
        "00000001 02 00000005 00000000 00",
    ),
    ("list:str", "a count cut short", "three bytes", False, "000000"),
    ("list:json", "a list as an item", "it would be written as nested", False, "00000001 01 00000003 5b315d"),
    ("list:json", "null as an item", "it would be written as None", False, "00000001 01 00000004 6e756c6c"),
    ("list:json", "null as an item of a flat list", "None, here too", True, "00000001 01 00000004 6e756c6c"),
]


def value_cases() -> list[Case]:
    cases: list[Case] = []

    def inputs(name: str, comment: str, tag: str, label: str, row: bytes, key: bytes) -> Case:
        case: Case = {
            "name": name,
            "comment": comment,
            "op": "decrypt",
            "data_key": key.hex(),
            "label": label,
        }
        return case | {"type": tag, "row_reference": row.hex()}

    def good(
        name: str,
        comment: str,
        tag: str,
        value: Any,
        label: str = "notes.body",
        row: bytes = b"",
        key: bytes = A,
    ) -> Case:
        case = inputs(name, comment, tag, label, row, key) | {
            "nonce": fixed(f"nonce: {name}", 12).hex(),
            "value": value,
        }
        plaintext = encode(tag, value)
        blob = encrypt(case, plaintext)
        assert decrypt(case, blob) == plaintext
        if tag.startswith("list:"):
            read_list(plaintext, tag.removeprefix("list:"), flat=tag == "list:json")
        cases.append(case | {"plaintext": plaintext.hex(), "blob": blob.hex(), "expect": "ok"})
        return cases[-1]

    for tag, values in VALUES.items():
        for comment, value in values:
            good(f"{tag}: {comment}", comment, tag, value)
    base = good("base", "the value that the failures below begin with", "str", "attack at dawn")
    good("other key", "the id in the header is another", "str", "attack at dawn", key=B)
    good("other label", "another column, another subkey", "str", "attack at dawn", label="notes.title")
    good("label not ASCII", "labels are UTF-8", "str", "attack at dawn", label="\u00fcbung.\u00e9t\u00e9")
    good("label with dots", "a label is one field", "str", "attack at dawn", label="a.b.c")
    row = reference([42])
    bound = good("bound to a row", "an integer key", "str", "attack at dawn", row=row)
    good("bound to a composite row", "two parts", "str", "attack at dawn", row=reference([42, "eu"]))
    good(
        "bound to a uuid row", "a client-made key", "str", "attack at dawn", row=reference([uuid.UUID(int=7)])
    )
    alike = {
        case["comment"]: case["plaintext"] for case in cases if case["type"] in ("list:str", "list:bytes")
    }
    assert len(alike) == len(set(alike.values())) + 1, (
        "only the empty list inside is the same under both tags"
    )

    def bad(name: str, comment: str, blob: bytes, expect: str, *, of: Case = base, **changed: Any) -> None:
        case = inputs(name, comment, of["type"], of["label"], bytes.fromhex(of["row_reference"]), A) | changed
        assert outcome(lambda: decrypt(case, blob)) == expect, name
        cases.append(case | {"blob": blob.hex(), "expect": expect})

    blob = bytes.fromhex(base["blob"])
    row_blob = bytes.fromhex(bound["blob"])
    for first in (0x00, 0x02, 0x11, 0x12, 0x21, 0x31, 0x61, 0xFF):
        bad(f"format byte {first:02x}", "the first byte is not 0x01", bytes([first]) + blob[1:], "format")
    size = len(blob)
    regions = (("key id", 1, 17), ("nonce", 17, 29), ("ciphertext", 29, size - 16), ("tag", size - 16, size))
    for region, at in flips(regions):
        why = (
            "opened with the key given, whatever the header names"
            if region.startswith("key")
            else "does not authenticate"
        )
        bad(f"flipped: {region}", why, flip(blob, at), "decryption")
    bad("flipped: tag, top bit", "every bit of the tag counts", flip(blob, size - 1, 0x80), "decryption")
    bad("empty", "no first byte: not taken for an empty plaintext", b"", "format")
    bad("plaintext", "bytes that were never encrypted", b"attack at dawn", "format")
    bad("long plaintext", "nor are these", b"attack at dawn, " * 8, "format")
    for cut in (1, 17, 29, 44):
        bad(f"cut to {cut}", "shorter than an empty value", blob[:cut], "truncated")
    bad("cut to 44, format byte", "the first byte is looked at first", b"\x02" + blob[1:44], "format")
    bad("cut to 45", "long enough, but the tag is gone", blob[:45], "decryption")
    bad("one byte less", "long enough, but the tag is cut", blob[:-1], "decryption")
    bad("one byte more", "a value ends with its tag", blob + b"\x00", "decryption")
    bad("twice", "a value ends with its tag", blob + blob, "decryption")
    bad("wrong key", "another data key", blob, "decryption", data_key=B.hex())
    bad("wrong label", "moved to another column", blob, "decryption", label="notes.title")
    bad("wrong label, other case", "labels are compared as bytes", blob, "decryption", label="Notes.body")
    bad("wrong type", "str read as bytes", blob, "decryption", type="bytes")
    bad("wrong type, list", "str read as a list of it", blob, "decryption", type="list:str")
    bad(
        "row given, not bound",
        "a column-bound value read as row-bound",
        blob,
        "decryption",
        row_reference=row.hex(),
    )
    bad("bound, no row given", "and the other way round", row_blob, "decryption", of=bound, row_reference="")
    bad(
        "wrong row",
        "copied to another row",
        row_blob,
        "decryption",
        of=bound,
        row_reference=reference([43]).hex(),
    )
    text_row = reference(["42"]).hex()
    bad(
        "wrong row, str 42",
        "the type of the key counts",
        row_blob,
        "decryption",
        of=bound,
        row_reference=text_row,
    )
    swapped = flip(blob, 29, blob[29] ^ blob[30])
    swapped = flip(swapped, 30, blob[29] ^ blob[30])
    bad(
        "ciphertext bytes swapped",
        "their order counts",
        swapped if blob[29] != blob[30] else flip(blob, 29),
        "decryption",
    )

    for tag, name, comment, value in NOT_ENCODED:
        assert outcome(partial(encode, tag, value)) == "refused", name
        case = {
            "name": f"not encoded: {tag} {name}",
            "comment": comment,
            "op": "encode",
            "type": tag,
            "value": value,
        }
        cases.append(case | {"expect": "refused"})
    deepest = bytes.fromhex(next(case for case in cases if case["comment"] == "eight deep")["plaintext"])
    too_deep = b"\0\0\0\1\2" + struct.pack(">I", len(deepest)) + deepest
    for tag, name, comment, flat, text in NOT_DECODED:
        plaintext = too_deep if text == "nine deep" else bytes.fromhex(text)
        assert outcome(partial(read_list, plaintext, tag.removeprefix("list:"), flat)) == "format", name
        case = {"name": f"not decoded: {tag} {name}", "comment": comment, "op": "decode", "type": tag}
        cases.append(case | {"flat": flat, "plaintext": plaintext.hex(), "expect": "format"})
    return cases


# ---------------------------------------------------------------- section 4: escrow slots and escrow keys

ESCROW_CONTEXT = SECRET_CONTEXT | {"kind": "escrow", "kdf": "", "recipient": x25519_public(C).hex()}
RS1024 = (
    0xE0E040, 0x1C1C080, 0x3838100, 0x7070200, 0xE0E0009,
    0x1C0C2412, 0x38086C24, 0x3090FC48, 0x21B1F890, 0x3F3F120,
)  # fmt: skip


def rs1024(values: Iterable[int]) -> int:
    check = 1
    for value in values:
        top = check >> 20
        check = (check & 0xFFFFF) << 10 ^ value
        for bit, generator in enumerate(RS1024):
            if top >> bit & 1:
                check ^= generator
    return check


def gf_multiply(a: int, b: int) -> int:
    """In GF(2^8) modulo x^8 + x^4 + x^3 + x + 1."""
    product = 0
    while b:
        product ^= a if b & 1 else 0
        a = a << 1 ^ (0x11B if a & 0x80 else 0)
        b >>= 1
    return product


def gf_divide(a: int, b: int) -> int:
    inverse = 1
    for _ in range(254):
        inverse = gf_multiply(inverse, b)
    return gf_multiply(a, inverse)


def interpolate(points: dict[int, bytes], at: int) -> bytes:
    found = bytes(32)
    for x, y in points.items():
        factor = 1
        for other in points:
            if other != x:
                factor = gf_multiply(factor, gf_divide(at ^ other, x ^ other))
        found = bytes(one ^ gf_multiply(factor, byte) for one, byte in zip(found, y, strict=True))
    return found


def feistel(half: bytes, other: bytes, rounds: Iterable[int]) -> bytes:
    for number in rounds:
        mask = hashlib.pbkdf2_hmac("sha256", bytes([number]), other, 2500, 16)
        half, other = other, bytes(a ^ b for a, b in zip(half, mask, strict=True))
    return other + half


def split_key(key: bytes, custodians: int, threshold: int, identifier: int, name: str) -> list[list[int]]:
    """The words of SLIP-0039, as their numbers in its list: one group, extendable, no passphrase."""
    secret = feistel(key[:16], key[16:], range(4))
    points = {number: fixed(f"{name} share {number}", 32) for number in range(threshold - 2)}
    random = fixed(f"{name} digest", 28)
    digest = hmac.new(random, secret, hashlib.sha256).digest()[:4]
    base = points | {254: digest + random, 255: secret}
    for number in range(custodians):
        points.setdefault(number, interpolate(base, number))
    shares = []
    for number in range(custodians):
        bits = (identifier << 5 | 1 << 4) << 20 | number << 4 | threshold - 1
        bits = bits << 260 | int.from_bytes(points[number])
        words = [bits >> 10 * at & 1023 for at in reversed(range(30))]
        check = rs1024([*b"shamir_extendable", *words, 0, 0, 0]) ^ 1
        shares.append(words + [check >> 10 * at & 1023 for at in reversed(range(3))])
    return shares


def join_key(shares: Sequence[Sequence[int]]) -> bytes:
    points: dict[int, bytes] = {}
    common = set()
    for words in shares:
        if len(words) != 33 or rs1024([*b"shamir_extendable", *words]) != 1:
            raise RefusedError("refused")
        bits = 0
        for word in words[:30]:
            bits = bits << 10 | word
        number = bits >> 264 & 15
        if number in points:
            raise RefusedError("refused")
        points[number] = (bits & (1 << 256) - 1).to_bytes(32)
        common.add((bits >> 280, bits >> 260 & 15))
    if len(common) != 1:
        raise RefusedError("refused")
    ((head, threshold),) = common
    # One group of one, extendable, without further work against guessing; at least two custodians.
    if head & 0x1F != 0x10 or threshold < 1 or len(points) < threshold + 1:
        raise RefusedError("refused")
    for extra in list(points)[threshold + 1 :]:
        first = dict(list(points.items())[:threshold])
        if interpolate(first | {extra: points[extra]}, 255) != interpolate(points, 255):
            raise RefusedError("refused")
    secret, other = interpolate(points, 255), interpolate(points, 254)
    if hmac.new(other[4:], secret, hashlib.sha256).digest()[:4] != other[:4]:
        raise RefusedError("refused")
    return feistel(secret[:16], secret[16:], reversed(range(4)))


def escrow_text(half: str, data: bytes) -> str:
    return f"escrow-{half}:{base64.b64encode(data).decode('ascii')}"


def escrow_cases() -> list[Case]:
    cases: list[Case] = []
    private, stored = subkey(C, "x25519"), commitment(A)
    ephemeral, salt = fixed("ephemeral: escrow", 32), fixed("escrow wrap", 24)
    sealed = seal(x25519_public(C), A, ephemeral, wrap_context(ESCROW_CONTEXT))
    adopted_context = ESCROW_CONTEXT | {"recipient": ""}
    adopted = wrap(C, A, salt, wrap_context(adopted_context))

    def add_slot(name: str, comment: str, blob: bytes, context: Case, expect: str, **more: str) -> None:
        def read() -> bytes:
            found = (
                unwrap(C, blob, wrap_context(context))
                if blob[0] == 0x11
                else open_either(C, blob, wrap_context(context))
            )
            check_key(found, bytes.fromhex(context["key_id"]), stored)
            return found

        assert outcome(read) == expect, (name, outcome(read))
        case: Case = {"name": name, "comment": comment, "op": "slot", "recipient_key": C.hex()}
        case |= {"recipient_private": private.hex(), "context": context}
        case |= {"stored_commitment": stored.hex(), "blob": blob.hex()}
        cases.append(case | more | {"expect": expect})

    more = {"ephemeral_private": ephemeral.hex(), "key": A.hex()}
    add_slot("slot", "a root key sealed to an escrow key", sealed, ESCROW_CONTEXT, "ok", **more)
    more = {"salt": salt.hex(), "key": A.hex()}
    add_slot(
        "slot, adopted", "the same, once custodians have opened it", adopted, adopted_context, "ok", **more
    )
    for kind in ("secret", "provider", "root", "sealed", "previous", "grant"):
        comment = "an escrow slot is taken for no other kind"
        add_slot(f"slot read as {kind}", comment, sealed, ESCROW_CONTEXT | {"kind": kind}, "unlock")
        moved = adopted_context | {"kind": kind}
        add_slot(f"adopted slot read as {kind}", comment, adopted, moved, "unlock")
    for field in ("key_id", "owner_reference", "epoch", "recipient"):
        changed = other_field(field, ESCROW_CONTEXT)
        add_slot(f"slot, wrong {field}", "the seal is bound to this field", sealed, changed, "unlock")

    for name, key in (("A", A), ("D", D)):
        text = {"private": escrow_text("private", key), "public": escrow_text("public", x25519_public(key))}
        case: Case = {
            "name": f"texts of {name}",
            "comment": "the two halves, as people see them",
            "op": "text",
        }
        cases.append(case | {"key": key.hex()} | text)

    def add_join(
        name: str, comment: str, shares: Sequence[Sequence[int]], expect: str, key: bytes = b""
    ) -> None:
        assert outcome(lambda: join_key(shares)) == expect, (name, outcome(lambda: join_key(shares)))
        case: Case = {"name": name, "comment": comment, "op": "join", "shares": [list(one) for one in shares]}
        if expect == "ok":
            assert join_key(shares) == key
            case["key"] = key.hex()
        cases.append(case | {"expect": expect})

    five, two = split_key(A, 5, 3, 0x1234, "five"), split_key(D, 2, 2, 0x7FFF, "two")
    again, largest = split_key(A, 5, 3, 0x1235, "again"), split_key(D, 16, 16, 0, "sixteen")
    add_join("three of five", "the first three", five[:3], "ok", A)
    add_join("three of five, others", "in another order", [five[4], five[1], five[3]], "ok", A)
    add_join("five of five", "more than are needed fit too", five, "ok", A)
    add_join("two of two", "the smallest ceremony", two, "ok", D)
    add_join("sixteen of sixteen", "the largest ceremony", largest, "ok", D)
    add_join("two of five", "one share is missing", five[:2], "refused")
    add_join("none", "no share at all", [], "refused")
    add_join("twice the same", "one share counts once", [five[0], five[1], five[0]], "refused")
    add_join("two ceremonies", "of one key", [five[0], five[1], again[2]], "refused")
    for at in (0, 3, 4, 17, 30, 32):
        wrong = [*five[2][:at], five[2][at] ^ 1, *five[2][at + 1 :]]
        add_join(f"a wrong word {at + 1}", "the checksum finds it", [*five[:2], wrong], "refused")
    swapped = [*five[2][:8], five[2][9], five[2][8], *five[2][10:]]
    add_join("two words swapped", "the checksum finds it", [*five[:2], swapped], "refused")
    add_join("a word is missing", "a share has 33 words", [*five[:2], five[2][:-1]], "refused")
    forged = split_key(D, 5, 3, 0x1234, "forged")
    add_join(
        "a forged share", "of another key, in the name of the ceremony", [*five[:2], forged[2]], "refused"
    )
    add_join("a forged share beside enough", "no share is ignored", [*five[:3], forged[3]], "refused")
    return cases


# ---------------------------------------------------------------- section 4: slots for emergencies


def joined_kek(server_share: bytes, person_share: bytes) -> bytes:
    return HKDF(hashes.SHA512(), 32, server_share, ctx("emergency-kek")).derive(person_share)


def emergency_contexts(row: Case) -> tuple[Context, bytes]:
    """What the shares of a row are bound to."""
    requested = "" if row["requested"] is None else str(row["requested"])
    server = {"library": "sqlalchemy-envelope/v1", "emergency": row["public_key"], "owner": row["owner"]}
    server |= {"person": row["person"], "wait": str(row["wait"]), "requested": requested}
    names = ("public_key", "owner", "person", "person_key_id")
    return server, ctx("emergency", *(bytes.fromhex(row[name]) for name in names))


def emergency_kek(row: Case, server_keys: Sequence[bytes], root: bytes, now: int) -> bytes:
    of_server, of_person = emergency_contexts(row)
    server_share = server_unwrap(server_keys, bytes.fromhex(row["server_share"]), of_server)
    requested = row["requested"]
    if requested is None or now < requested or now < requested + row["wait"]:
        raise RefusedError("refused")
    try:
        person_share = open_either(root, bytes.fromhex(row["sealed_share"]), of_person)
    except RefusedError:
        raise RefusedError("tampered") from None
    kek = joined_kek(server_share, person_share)
    if x25519_public(kek).hex() != row["public_key"]:
        raise RefusedError("tampered")
    return kek


def emergency_cases() -> list[Case]:
    cases: list[Case] = []
    start, week = 1_777_896_000, 604_800
    server_share, person_share = fixed("server share", 32), fixed("person share", 32)
    kek = joined_kek(server_share, person_share)
    owner, person = owner_reference("users", [1]), owner_reference("users", [2])
    row: Case = {"public_key": x25519_public(kek).hex(), "owner": owner.hex(), "person": person.hex()}
    row |= {"person_key_id": key_id(C).hex(), "wait": week, "requested": start}
    ephemeral, salt = fixed("ephemeral: emergency", 32), fixed("emergency wrap", 24)

    def shares(of: Case, joined: bytes = person_share, to: bytes = C) -> Case:
        server, context = emergency_contexts(of)
        sealed = seal(x25519_public(to), joined, ephemeral, context)
        return of | {
            "sealed_share": sealed.hex(),
            "server_share": server_wrap(D, server_share, salt, server).hex(),
        }

    def add(name: str, comment: str, of: Case, now: int, expect: str, keys: Sequence[bytes] = (D,)) -> None:
        found = outcome(lambda: emergency_kek(of, keys, C, now))
        assert found == expect, (name, found)
        case: Case = {"name": name, "comment": comment, "server_keys": [key.hex() for key in keys]}
        case |= {"root_key": C.hex(), "now": now, "row": of}
        if expect == "ok":
            assert emergency_kek(of, keys, C, now) == kek
            case |= {"server_share": server_share.hex(), "person_share": person_share.hex()}
            case |= {"ephemeral_private": ephemeral.hex(), "salt": salt.hex(), "kek": kek.hex()}
        cases.append(case | {"expect": expect})

    good = shares(row)
    add("the time is over", "to the second", good, start + week, "ok")
    add("long after", "the access stays open", good, start + 100 * week, "ok")
    add("an older server key", "all server keys open", good, start + week, "ok", (A, D))
    add("a second before", "the time is not over", good, start + week - 1, "refused")
    add("a clock that went back", "no time is over", good, start - 1, "refused")
    add("nobody has asked", "there is no request", shares(row | {"requested": None}), start + week, "refused")
    add("another server key", "the server's share does not open", good, start + week, "refused", (A,))
    changes: list[tuple[str, object]] = [
        ("requested", start - 10 * week),
        ("requested", None),
        ("wait", 1),
        ("owner", owner_reference("users", [3]).hex()),
        ("person", owner_reference("users", [3]).hex()),
        ("public_key", x25519_public(A).hex()),
    ]
    for name, value in changes:
        comment = "the server's share is bound to it"
        add(f"edited: {name} {str(value)[-6:]}", comment, good | {name: value}, start + 10 * week, "refused")
    moved = good | {"person_key_id": key_id(A).hex()}
    add("edited: person_key_id", "the person's share is bound to it", moved, start + week, "tampered")
    others = shares(row, to=A)
    add("sealed to another", "the person's share is for another root key", others, start + week, "tampered")
    planted = shares(row, joined=fixed("planted share", 32))
    add("a planted share", "the shares do not make the KEK of the slots", planted, start + week, "tampered")
    flipped = good | {"sealed_share": flip(bytes.fromhex(good["sealed_share"]), 40).hex()}
    add("an altered person share", "it does not open", flipped, start + week, "tampered")
    flipped = good | {"server_share": flip(bytes.fromhex(good["server_share"]), 100).hex()}
    add("an altered server share", "it does not open", flipped, start + week, "refused")
    return cases


# ---------------------------------------------------------------- erasure_receipt.json


def erasure_receipt_cases() -> list[Case]:
    cases: list[Case] = []
    server_key = fixed("receipt: server key", 32)
    seed = receipt_seed(server_key)
    public = ed25519_public(seed)
    owner = ctx("owner", b"users", reference([42]))
    cases += [
        {
            "name": "derived key",
            "comment": "the signing key of an application with server keys",
            "op": "derive",
            "server_key": server_key.hex(),
            "seed": seed.hex(),
            "public_key": public.hex(),
            "expect": "ok",
        },
        {
            "name": "owner tag",
            "comment": "the name of an owner in receipts",
            "op": "tag",
            "seed": seed.hex(),
            "owner_reference": owner.hex(),
            "tag": owner_tag(seed, owner).hex(),
            "expect": "ok",
        },
    ]
    key = fixed("receipt: data key", 32)
    body: dict[str, Any] = {
        "format": RECEIPT_FORMAT,
        "library": "1.0",
        "realm": "",
        "destroyed_at": "2026-11-30T18:00:00Z",
        "owners": [
            {
                "class": "users",
                "tag": owner_tag(seed, owner).hex(),
                "key_table": "users_key",
                "keys": [
                    {
                        "id": key_id(key).hex(),
                        "commitment": commitment(key).hex(),
                        "purpose": "data",
                        "epoch": 1,
                    }
                ],
            }
        ],
        "counts": {"values": 3, "slots": 1, "tickets": 0, "grants_given": 0, "grants_received": 2},
        "remains": [{"place": "backups", "known": "kept", "until": "2026-12-30T18:00:00Z"}],
        "public_key": base64.b64encode(public).decode(),
    }

    def signed(of: dict[str, Any], message: bytes | None = None) -> bytes:
        return Ed25519PrivateKey.from_private_bytes(seed).sign(message or receipt_message(of))

    def text_of(of: dict[str, Any], signature: bytes, **layout: Any) -> str:
        return json.dumps({"receipt": of, "signature": base64.b64encode(signature).decode()}, **layout)

    def add(name: str, comment: str, text: str, expect: str = "ok", by: bytes = public) -> None:
        assert outcome(lambda: check_receipt(text, by)) == expect, name
        case: Case = {"name": name, "comment": comment, "op": "check", "text": text, "public_key": by.hex()}
        more = {}
        if expect == "ok":
            message = check_receipt(text, by)
            more = {"message": message.hex(), "seed": seed.hex()}
        cases.append(case | more | {"expect": expect})

    good = signed(body)
    add("as written", "what an application keeps", text_of(body, good, indent=2))
    add("one line", "the layout means nothing", text_of(body, good, separators=(",", ":")))
    turned = dict(reversed(body.items()))
    add("names in another order", "names are sorted before they are signed", text_of(turned, good))
    wide = {**body, "realm": 'K\u00fcche \U0001f511 "\\/\b\f\n\r\t\u0001\u007f\u2028'}
    add("text of all kinds", "the escapes of RFC 8785, and no others", text_of(wide, signed(wide)))
    add("escaped text", "however the file spells it", text_of(wide, signed(wide), ensure_ascii=False))
    more = {**body, "later": [None, True, False, [], {}, -1, 2**53 - 1]}
    add("more than is known", "everything in it is signed", text_of(more, signed(more)))
    for name, comment, altered in (
        ("one value fewer", "a count was changed", {**body, "counts": {**body["counts"], "values": 2}}),
        ("another time", "a time was changed", {**body, "destroyed_at": "2026-11-30T18:00:01Z"}),
        ("no owner", "an owner was taken out", {**body, "owners": []}),
        ("something added", "a name was put in", {**body, "more": None}),
        ("true for 1", "another type", {**body, "counts": {**body["counts"], "slots": True}}),
        ("text for 1", "another type", {**body, "counts": {**body["counts"], "slots": "1"}}),
    ):
        add(name, comment, text_of(altered, good), "refused")
    for at, name in ((0, "first"), (63, "last")):
        add(f"signature, {name} byte", "it was altered", text_of(body, flip(good, at)), "refused")
    add(
        "another key",
        "it is signed by somebody else",
        text_of(body, good),
        "refused",
        ed25519_public(server_key),
    )
    bare = signed(body, canonical(body).encode())
    add(
        "without its context",
        "the bytes under the signature say what they are",
        text_of(body, bare),
        "refused",
    )
    later = {**body, "format": "sqlalchemy-envelope/erasure-receipt/2"}
    add("a later format", "the format is looked at first", text_of(later, signed(later)), "format")
    add("a name twice", "two readers would read two receipts", '{"receipt": {"a": 1, "a": 2}}', "format")
    for name, comment, value in (
        ("a fraction", "there are no fractions", "1.5"),
        ("an exponent", "there are no exponents", "1e3"),
        ("a large number", "not every reader knows it exactly", str(2**53)),
        ("a lone surrogate", "it has no UTF-8", '"\\ud800"'),
        ("a name that is not ASCII", "sorting it would depend on the language", '{"\\u00e9": 1}'),
    ):
        text = text_of(body, good).replace('"realm": ""', f'"realm": {value}')
        add(name, comment, text, "format")
    add("no signature", "nothing to check", json.dumps({"receipt": body}), "format")
    add("no base64", "the signature is no base64", json.dumps({"receipt": body, "signature": "!"}), "format")
    add("no JSON", "another file", "receipt", "format")
    add("a list", "another file", "[]", "format")
    return cases


# ---------------------------------------------------------------- writing

# ---------------------------------------------------------------- ticket.json


TICKET = {
    "ticket_id": uuid.UUID(int=0x0F1E2D3C4B5A49788796A5B4C3D2E1F0).hex,
    "owner_reference": owner_reference("users", [1]).hex(),
    "root_key_id": key_id(A).hex(),
    "issued_at": 1_893_456_000,
    "expires_at": 1_894_665_600,
    "idle_seconds": 43_200,
    "realm": "",
}
OTHER_TICKET = {
    "ticket_id": uuid.UUID(int=1).hex,
    "owner_reference": owner_reference("users", [2]).hex(),
    "root_key_id": key_id(B).hex(),
    "issued_at": 1_893_456_001,
    "expires_at": 1_926_201_600,
    "idle_seconds": 0,
    "realm": "acme",
}


def ticket_cases() -> list[Case]:
    cases: list[Case] = []
    halves = {"client_half": fixed("client half", 32), "row_half": fixed("row half", 32), "server_key": D}

    def add(name: str, comment: str, blob: bytes, expect: str, context: Case = TICKET, **more: Any) -> None:
        parts = halves | {part: more.pop(part) for part in tuple(halves) if part in more}
        key = ticket_key(
            parts["client_half"], parts["row_half"], parts["server_key"], ticket_context(context)
        )
        assert outcome(lambda: open_ticket(key, blob)) == expect, name
        case: Case = {"name": name, "comment": comment, "op": "open", "context": context}
        case |= {part: value.hex() for part, value in parts.items()}
        cases.append(case | {"blob": blob.hex(), **more, "expect": expect})

    def good(name: str, comment: str, entries: bytes, context: Case = TICKET, **parts: bytes) -> bytes:
        own = halves | parts
        key = ticket_key(own["client_half"], own["row_half"], own["server_key"], ticket_context(context))
        salt = fixed(f"salt of ticket {name}", 24)
        blob = seal_ticket(key, entries, salt)
        add(name, comment, blob, "ok", context, salt=salt.hex(), entries=entries.hex(), **parts)
        return blob

    mine = {"owner_reference": TICKET["owner_reference"], "purpose": "data", "scope": "", "epoch": 1}
    group = mine | {"owner_reference": owner_reference("groups", ["eu", 7]).hex()}
    carried = [
        mine | {"key": B.hex()},
        mine | {"key": C.hex(), "scope": "caf\u00e9", "epoch": 0xFFFFFFFF},
        mine | {"key": D.hex(), "purpose": "index"},
        group | {"key": ONES.hex(), "purpose": "write", "epoch": 0x7FFFFFFF},
    ]
    for count in (0, 1, len(carried)):
        entries = ticket_entries(carried[:count])
        case: Case = {
            "name": f"entries: {count}",
            "comment": "in the order of their key ids",
            "op": "entries",
        }
        cases.append(case | {"carried": carried[:count], "expect": entries.hex()})

    entries = ticket_entries(carried)
    blob = good("four keys", "the ticket that the failures below begin with", entries)
    good("one key", "the fewest that an owner has", ticket_entries(carried[:1]))
    good("no key", "an empty chunk", b"")
    good("no idle time, a realm", "0 stands for no limit", entries, OTHER_TICKET)
    good("realm not ASCII", "realms are UTF-8", entries, TICKET | {"realm": "k\u00f6ln"})
    latest = {"issued_at": 253_402_300_798, "expires_at": 253_402_300_799, "idle_seconds": 2**32 - 1}
    good("the year 9999", "seconds are u64, and u32 for the idle time", entries, TICKET | latest)
    good("parts of ones", "no part is weak", entries, client_half=ONES, row_half=ONES, server_key=ONES)
    for count, why in ((256, "a full chunk, and an empty last chunk"), (257, "two chunks")):
        many = [mine | {"key": fixed(f"carried {number}", 32).hex()} for number in range(count)]
        long = good(f"{count} keys", why, ticket_entries(many))
    middle = 57 + CHUNK + 16
    add("long: cut at the chunk", "the last chunk is missing", long[:middle], "truncated")
    add("long: flipped in chunk 2", "each chunk has a tag", flip(long, middle + 3), "unlock")
    add("long: chunk 1 alone", "another chunk is the last", long[:57] + long[middle:], "unlock")

    for field, other in OTHER_TICKET.items():
        add(f"wrong {field}", "the ticket is bound to it", blob, "unlock", TICKET | {field: other})
    for part in halves:
        add(f"wrong {part}", "no two parts are enough", blob, "unlock", **{part: fixed(f"no {part}", 32)})
    add("parts swapped", "the parts do not change places", blob, "unlock",
        client_half=halves["row_half"], row_half=halves["client_half"])  # fmt: skip
    for first in (0x00, 0x01, 0x11, 0x21, 0xFF):
        add(f"format byte {first:02x}", "the first byte is not 0x31", bytes([first]) + blob[1:], "format")
    regions = (("salt", 1, 25), ("commitment", 25, 57), ("entries", 57, len(blob) - 16),
               ("tag", len(blob) - 16, len(blob)))  # fmt: skip
    for region, at in flips(regions):
        add(f"flipped: {region}", "nothing tells which byte it is", flip(blob, at), "unlock")
    add("empty", "no first byte", b"", "format")
    for size in (1, 56, 57, 72, 74, len(blob) - 1):
        add(f"cut to {size}", "a length that no ticket has", blob[:size], "truncated")
    add("one entry less", "a length that a ticket may have", blob[: len(blob) - 64], "unlock")
    add("one byte more", "a length that no ticket has", blob + b"\x00", "truncated")

    ticket_id, half = bytes.fromhex(TICKET["ticket_id"]), halves["client_half"]
    text = ticket_text(ticket_id, half)
    for name, given in (
        ("text", text),
        ("text of zeros", "st1." + "A" * 64),
        ("text of ones", "st1." + "_" * 64),
        ("text cut", text[:-1]),
        ("text longer", text + "A"),
        ("text of a later version", "st2" + text[3:]),
        ("text without version", text[4:]),
        ("text with padding", text[:-1] + "="),
        ("text in the other alphabet", text[:-2] + "+/"),
        ("text with a line end", text + "\n"),
        ("text with a full-width digit", text[:-1] + "\uff11"),
        ("no text", ""),
    ):
        case = {"name": name, "comment": "the text that the client keeps", "op": "text", "text": given}
        if outcome(partial(parse_ticket, given)) == "ok":
            found = parse_ticket(given)
            case |= {"ticket_id": found[0].hex(), "client_half": found[1].hex(), "expect": "ok"}
        else:
            case |= {"expect": "refused"}
        cases.append(case)
    return cases


# ---------------------------------------------------------------- index.json


def index_cases() -> list[Case]:
    cases: list[Case] = []

    def tag(name: str, comment: str, data: bytes, **changed: Any) -> None:
        of: Case = {"key": C.hex(), "label": "users.email_index", "form": "exact str", "bits": 128} | changed
        made = index_tag(bytes.fromhex(of["key"]), of["label"], of["form"], of["bits"], data)
        case: Case = {"name": name, "comment": comment, "op": "tag", **of, "data": data.hex()}
        cases.append(case | {"expect": made.hex()})

    ada = b"ada@example.org"
    tag("everyday", "a text", ada)
    tag("empty", "an empty value has a tag", b"")
    tag("long", "longer than a block of SHA-256", b"x" * 200)
    for bits in (1, 7, 8, 9, 13, 32, 64, 127):
        tag(f"{bits} bits", "the bits after them are 0", ada, bits=bits)
    tag("another key", "nothing in common", ada, key=D.hex())
    tag("another label", "nothing in common", ada, label="users.login_index")
    tag("another form", "nothing in common", ada, form="casefold-v1 str")
    tag("a label that is not ASCII", "UTF-8", ada, label="caf\u00e9.\u4e2d")
    tag("decimal", "1.00 and 1 have this tag", b"1", form="exact decimal")
    tag("float", "both zeros have this tag", bytes(8), form="exact float")
    tag("prefix", "the first three code points", b"ada", form="prefix 3 of exact str")
    parts = ctx("index-parts", b"lovelace", b"1815-12-10")
    tag("compound", "two values together", parts, form="compound [exact str, exact date]")
    parts = ctx("index-parts", b"lovelace1", b"815-12-10")
    tag("compound, otherwise split", "has another tag", parts, form="compound [exact str, exact date]")
    salt = subkey(C, "index-salt", utf8("users.email_index"))[:16]
    stretched = hash_secret_raw(ada, salt, 2, 19_456, 1, 32, Type.ID, 19)
    tag("slow", "the data is what Argon2id makes", stretched, form="argon2id m=19456,t=2,p=1 of exact str")

    def row(server_key: bytes, key: bytes, **changed: Any) -> Case:
        of: Case = {"label": "users.email_index", "epoch": 1, "state": "active"} | changed
        of |= {"key_id": key_id(key).hex(), "commitment": commitment(key).hex()}
        wrapped = server_wrap(server_key, key, fixed(f"salt of {of['epoch']}", 24), index_key_context(of))
        return of | {"wrapped": (b"\x14" + wrapped).hex(), "seal": index_seal(key, of).hex()}

    def add(
        name: str, comment: str, of: Case, expect: str, keys: Sequence[bytes] = (D,), **more: str
    ) -> None:
        assert outcome(lambda: open_index_key(keys, of)) == expect, name
        case: Case = {
            "name": name,
            "comment": comment,
            "op": "key",
            "server_keys": [one.hex() for one in keys],
        }
        cases.append(case | {"row": of, **more, "expect": expect})

    def good(name: str, comment: str, of: Case, keys: Sequence[bytes] = (D,), under: bytes = D) -> None:
        salt = fixed(f"salt of {of['epoch']}", 24).hex()
        add(name, comment, of, "ok", keys, key=C.hex(), server_key=under.hex(), salt=salt)

    mine = row(D, C)
    for state in ("active", "next", "ready", "moving", "retired"):
        good(state, "a key in this state", row(D, C, state=state))
    good("last epoch", "the largest number", row(D, C, epoch=0xFFFFFFFF))
    good("second of two server keys", "an older one opens", mine, [B, D])
    good(
        "a row whose label is not ASCII",
        "UTF-8, in the context and the seal",
        row(D, C, label="caf\u00e9.\u4e2d"),
    )
    for name, comment, changed, expect in (
        ("another state", "the key did not seal it", {"state": "next"}, "tampered"),
        ("another epoch", "the wrap is bound to it", {"epoch": 2}, "refused"),
        ("another label", "the wrap is bound to it", {"label": "users.login_index"}, "refused"),
        ("another id", "the wrap is bound to it", {"key_id": key_id(B).hex()}, "refused"),
        ("another commitment", "it is another key", {"commitment": commitment(B).hex()}, "tampered"),
        ("no seal", "empty", {"seal": ""}, "tampered"),
        ("seal cut", "31 bytes", {"seal": mine["seal"][:-2]}, "tampered"),
        ("no wrap", "as of a key that was destroyed", {"wrapped": ""}, "format"),
        ("another format", "a key under a key", {"wrapped": "11" + mine["wrapped"][2:]}, "format"),
        ("wrap cut", "the provider refuses it", {"wrapped": mine["wrapped"][:-2]}, "refused"),
    ):
        add(f"changed: {name}", comment, mine | changed, expect)
    seal = bytes.fromhex(mine["seal"])
    for at in (0, 31):
        add(f"flipped: seal, byte {at}", "altered", mine | {"seal": flip(seal, at).hex()}, "tampered")
    other = row(D, C, epoch=2)
    swapped = mine | {"epoch": 2, "seal": other["seal"]}
    add("an old wrap in a new row", "whoever has the key cannot give it another epoch", swapped, "refused")
    stated = row(D, C, state="retired")
    add("a seal of another state", "put back", mine | {"seal": stated["seal"]}, "tampered")
    add("another server key", "it is not configured", mine, "refused", [B])
    return cases


FILES: dict[str, tuple[str, Callable[[], list[Case]]]] = {
    "context.json": (
        "Section 1: contexts and references. No two inputs of one `op` encode alike.",
        context_cases,
    ),
    "derivation.json": (
        "Section 2: subkeys, commitments, ids, public keys; step 4 of section 3; section 7.",
        derivation_cases,
    ),
    "secret.json": (
        "Section 3, steps 1 and 2: preparing a secret, for a new slot or to unlock.",
        secret_cases,
    ),
    "recovery_code.json": (
        "Section 3: the text of a recovery code, its random bytes, its KEK and the KEK's public key.",
        recovery_code_cases,
    ),
    "kdf.json": ("Section 3, steps 3 and 4: reading the parameters; Argon2id; KEK.", kdf_cases),
    "wrap.json": ("Section 4: a key wrapped under a key.", wrap_cases),
    "sealed.json": ("Section 5: a key sealed to a public key.", sealed_cases),
    "hybrid.json": ("Section 5: a key sealed to a hybrid public key.", hybrid_cases),
    "value.json": ("Section 6: values.", value_cases),
    "server_keyring.json": (
        "Section 8: what a server keyring makes, and the slot that it stands in.",
        server_keyring_cases,
    ),
    "escrow.json": (
        "Section 4: escrow slots; the texts of an escrow key, and the shares of its custodians.",
        escrow_cases,
    ),
    "emergency.json": (
        "Section 4: the two shares of the KEK of a slot for emergencies, and the waiting time.",
        emergency_cases,
    ),
    "row_seal.json": ("Section 9: row seals. Columns stand in their order.", row_seal_cases),
    "pepper.json": ("Section 10: secret slots under a pepper.", pepper_cases),
    "erasure_receipt.json": ("Section 11: erasure receipts, and what is signed.", erasure_receipt_cases),
    "ticket.json": ("Section 12: tickets: entries, wraps and texts.", ticket_cases),
    "index.json": (
        "Section 13: the tags of blind indexes, and the rows of a server's index keys.",
        index_cases,
    ),
}


def render(about: str, cases: list[Case]) -> str:
    names = [case["name"] for case in cases]
    assert len(set(names)) == len(names), sorted({n for n in names if names.count(n) > 1})
    # ASCII only: a lone surrogate can stand in a JSON escape, but in no UTF-8 file.
    return (
        json.dumps({"about": about, "count": len(cases), "cases": cases}, indent=1, ensure_ascii=True) + "\n"
    )


def main(arguments: Sequence[str]) -> int:
    stale = 0
    for name, (about, build) in FILES.items():
        cases = build()
        text = render(about, cases)
        path = HERE / name
        same = path.exists() and path.read_text("ascii") == text
        if not same and "--check" in arguments:
            stale += 1
        elif not same:
            path.write_text(text, "ascii")
        note = "" if same else ", differs" if "--check" in arguments else ", written"
        print(f"{name}: {len(cases)} cases{note}")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
