"""Erasure receipts (section 11): a signed text that says which keys were destroyed, and when.

A receipt names keys by their ids and commitments, and owners by a hash under the signing key: it holds no
personal data. Anybody can check it offline with the public key.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy_envelope.crypto import kdf
from sqlalchemy_envelope.crypto.context import encode_context
from sqlalchemy_envelope.crypto.frames import emptying
from sqlalchemy_envelope.crypto.secret import KEY_SIZE, KeyBytes, Uncopied
from sqlalchemy_envelope.crypto.signing import PUBLIC_KEY_SIZE, ed25519_public, is_signed, sign
from sqlalchemy_envelope.exceptions import ConfigurationError, FormatError, ReceiptError
from sqlalchemy_envelope.keys.model import KeyId
from sqlalchemy_envelope.words import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy_envelope.keys.providers.server import ServerKeyring

FORMAT = "sqlalchemy-envelope/erasure-receipt/1"
_FORMATS = "sqlalchemy-envelope/erasure-receipt/"
_LARGEST = 2**53 - 1
"""The largest integer that every reader of JSON knows exactly."""


class ReceiptKey(Uncopied):
    """The key that signs erasure receipts: `Envelope(receipt_key=ReceiptKey.from_text(...))`.

    An application with server keys needs none: its receipts are signed with a key that is derived from the
    active server key.

    Args:
        seed: 32 random bytes, kept apart from the database.

    Raises:
        ConfigurationError: the seed has another size.
    """

    __slots__ = ("_seed", "public_key")

    @emptying
    def __init__(self, seed: bytes | bytearray) -> None:
        given: object = seed
        if not isinstance(given, (bytes, bytearray)) or len(given) != KEY_SIZE:
            raise ConfigurationError(
                f"ReceiptKey takes {KEY_SIZE} random bytes; for base64 text use ReceiptKey.from_text()."
            )
        self._seed = KeyBytes(seed)
        self.public_key = ed25519_public(self._seed)

    @classmethod
    @emptying
    def from_text(cls, text: str) -> Self:
        """Read the key from base64 text, as `generate_key` makes it.

        Raises:
            ConfigurationError: the text is no such key.
        """
        return cls(_decoded(text, "The receipt key"))

    @staticmethod
    def generate_key() -> str:
        """Make the base64 text of a fresh key."""
        return base64.b64encode(os.urandom(KEY_SIZE)).decode("ascii")

    @property
    def public_text(self) -> str:
        """The public key as base64 text, for whoever checks receipts."""
        return base64.b64encode(self.public_key).decode("ascii")

    def owner_tag(self, owner_reference: bytes) -> str:
        """The name of an owner in receipts, 64 hexadecimal digits: only a holder of this key can tell whose
        it is."""
        return kdf.expand(self._seed, encode_context("erased-owner", owner_reference)).hex()

    def sign(self, body: Mapping[str, Any]) -> str:
        """The text of a receipt with this body."""
        whole = {**body, "public_key": self.public_text}
        signature = sign(self._seed, signed_bytes(whole))
        return json.dumps(
            {"receipt": whole, "signature": base64.b64encode(signature).decode("ascii")},
            ensure_ascii=False,
            indent=2,
        )

    def __repr__(self) -> str:
        return f"<ReceiptKey with the public key {self.public_text}>"


def receipt_key_of(server_keys: ServerKeyring) -> ReceiptKey:
    """The receipt key that is derived from the active server key."""
    return ReceiptKey(kdf.subkey(server_keys.active[1], "erasure-receipt").buffer)


class ErasureReceipt:
    """The receipt of a shredding. It is one after the commit of the transaction, and not before.

    Attributes:
        key_ids: the destroyed keys.
        destroyed_at: the time of the commit; None before it.
    """

    def __init__(self, key: ReceiptKey, body: Mapping[str, Any], key_ids: Sequence[KeyId]) -> None:
        self._key = key
        self._body = dict(body)
        self._is_undone = False
        self.key_ids = tuple(key_ids)
        self.destroyed_at: dt.datetime | None = None

    def to_json(self) -> str:
        """The signed receipt, for the file of the erasure. It holds no personal data.

        Raises:
            ReceiptError: the transaction is not committed, or was rolled back: nothing is destroyed.
        """
        if self.destroyed_at is None:
            why = "was rolled back" if self._is_undone else "is not committed yet"
            raise ReceiptError(f"The transaction of the shredding {why}: there is nothing to receipt.")
        return self._key.sign({**self._body, "destroyed_at": shown_time(self.destroyed_at)})

    def commit(self) -> None:
        """Note that the transaction was committed."""
        self.destroyed_at = dt.datetime.now(dt.UTC)

    def undo(self) -> None:
        """Note that the transaction was rolled back."""
        self._is_undone = True

    def __repr__(self) -> str:
        state = "undone" if self._is_undone else "pending" if self.destroyed_at is None else "committed"
        return f"<ErasureReceipt of {counted(len(self.key_ids), 'key')}, {state}>"


def shown_time(time: dt.datetime) -> str:
    """A time as receipts write it: RFC 3339, in UTC, whole seconds."""
    return f"{time.astimezone(dt.UTC):%Y-%m-%dT%H:%M:%SZ}"


def signing_key(given: ReceiptKey | None, server_keys: ServerKeyring | None) -> ReceiptKey | None:
    """The key that signs an application's receipts: the given key, or one derived from the server keys.

    Raises:
        ConfigurationError: what was given is no `ReceiptKey`.
    """
    if given is None:
        return None if server_keys is None else receipt_key_of(server_keys)
    if not isinstance(given, ReceiptKey):
        raise ConfigurationError(
            f"Envelope(receipt_key=...) takes a ReceiptKey, not a {type(given).__name__}: "
            "`ReceiptKey.from_text(...)`."
        )
    return given


@dataclass(frozen=True)
class DestroyedKey:
    """A key that a receipt says is destroyed.

    Attributes:
        table: the name of the table of keys, with its schema if it has one.
    """

    table: str
    key_id: KeyId
    commitment: bytes


@dataclass(frozen=True)
class CheckedReceipt:
    """A receipt whose signature fits.

    Attributes:
        destroyed_at: the time of the commit.
        keys: the destroyed keys.
        body: everything that was signed.
        public_key: the public key that it was checked with, as base64 text.
    """

    destroyed_at: dt.datetime
    keys: tuple[DestroyedKey, ...]
    body: Mapping[str, Any]
    public_key: str


def canonical(value: object) -> bytes:
    """The bytes of a JSON value, the same in every language (RFC 8785): names sorted, no white space.

    Raises:
        FormatError: the value is none that a receipt has: floating point, a large integer, a lone surrogate.
    """
    _require_plain(value)
    try:
        return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError:
        raise FormatError("A receipt holds a lone surrogate, which has no UTF-8.") from None


def _require_plain(value: object) -> None:
    if isinstance(value, dict):
        for name, one in value.items():
            if not isinstance(name, str) or not name.isascii():
                raise FormatError("A receipt has a name that is not ASCII text.")
            _require_plain(one)
    elif isinstance(value, list):
        for one in value:
            _require_plain(one)
    elif isinstance(value, int):
        if abs(value) > _LARGEST:
            raise FormatError("A receipt holds an integer that not every reader knows exactly.")
    elif not isinstance(value, (str, type(None))):
        raise FormatError(f"A receipt holds a value of the type {type(value).__name__}.")


def signed_bytes(body: Mapping[str, Any]) -> bytes:
    """The bytes under the signature of a receipt with this body."""
    return encode_context("erasure-receipt", canonical(dict(body)))


def check_receipt(text: str | bytes, public_keys: str | Iterable[str]) -> CheckedReceipt:
    """Check a receipt offline.

    Args:
        text: the receipt, as `to_json()` gave it.
        public_keys: the public key of the application, as base64 text; several after the server keys were
            rotated.

    Raises:
        ReceiptError: it was altered, or is signed by another key.
        FormatError: it is no receipt, or one of a newer version.
        ConfigurationError: a public key is none.
    """
    given = [public_keys] if isinstance(public_keys, str) else list(public_keys)
    known = [_public_key(one) for one in given]
    body, signature = _parsed(text)
    message = signed_bytes(body)
    public_key = next((one for one in known if is_signed(one, signature, message)), None)
    if public_key is None:
        named = body.get("public_key")
        if named not in [base64.b64encode(one).decode("ascii") for one in known]:
            raise ReceiptError(
                f"The receipt says that it is signed by the key {named!r}. If that is a key of the same "
                "application, check the receipt with it; `sqlalchemy-envelope keys receipt-key` prints it."
            )
        raise ReceiptError("The signature of the receipt does not fit: the receipt was altered.")
    try:
        return CheckedReceipt(
            dt.datetime.fromisoformat(body["destroyed_at"]),
            tuple(_keys(body)),
            body,
            base64.b64encode(public_key).decode("ascii"),
        )
    except (KeyError, TypeError, ValueError):
        raise FormatError("The receipt is signed, and lacks what a receipt of its format says.") from None


def _keys(body: Mapping[str, Any]) -> Iterable[DestroyedKey]:
    for owner in body["owners"]:
        for key in owner["keys"]:
            yield DestroyedKey(owner["key_table"], KeyId(hex=key["id"]), bytes.fromhex(key["commitment"]))


def _parsed(text: str | bytes) -> tuple[dict[str, Any], bytes]:
    """The body and the signature of a receipt."""
    try:
        whole = json.loads(text, object_pairs_hook=_without_twins)
    except (ValueError, RecursionError):
        raise FormatError("This is no erasure receipt: it is not JSON.") from None
    body = whole.get("receipt") if isinstance(whole, dict) else None
    if not isinstance(body, dict) or not isinstance(body.get("format"), str):
        raise FormatError("This is no erasure receipt: it has no `receipt` with a `format`.")
    if body["format"] != FORMAT:
        if body["format"].startswith(_FORMATS):
            raise FormatError(f"The receipt is of the format {body['format']!r}: a newer version reads it.")
        raise FormatError(f"This is no erasure receipt: its format is {body['format']!r}.")
    try:
        signature = base64.b64decode(whole["signature"], validate=True)
    except (KeyError, TypeError, ValueError):
        raise FormatError("The receipt has no signature, or one that is not base64.") from None
    return body, signature


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a name that is there twice: two readers would each take another value."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found


def _public_key(text: str) -> bytes:
    public_key = _decoded(text, "A public key of receipts")
    if len(public_key) != PUBLIC_KEY_SIZE:
        raise ConfigurationError(f"A public key of receipts has {PUBLIC_KEY_SIZE} bytes, in base64.")
    return public_key


def _decoded(text: object, what: str) -> bytes:
    try:
        return base64.b64decode(text.strip(), validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        raise ConfigurationError(f"{what} is not base64.") from None
