"""Escrow: slots that are sealed to a public key, whose private half custodians keep offline, in shares.

The public half is pinned in the application's configuration and is never read from the database. Whoever may
write rows would otherwise be given the next root key of every owner.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import uuid
from dataclasses import replace
from hmac import compare_digest
from pathlib import Path
from typing import TYPE_CHECKING, Self

from sqlalchemy_envelope.crypto.frames import emptying
from sqlalchemy_envelope.crypto.sealing import is_usable
from sqlalchemy_envelope.crypto.secret import KEY_SIZE, KeyBytes, Uncopied
from sqlalchemy_envelope.exceptions import ConfigurationError, SharesError
from sqlalchemy_envelope.keys import custodians
from sqlalchemy_envelope.keys.model import SlotKind, StoredSlot
from sqlalchemy_envelope.keys.slots import SharedKek, now, sealed_slot

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy_envelope.keys.model import OpenedKey

PUBLIC, PRIVATE = "escrow-public:", "escrow-private:"
"""What the texts of the two halves begin with, so that neither is taken for the other."""
_MAKE = "`sqlalchemy-envelope keys generate escrow` makes one and prints its public half."


class EscrowKey:
    """The public half of an escrow key, pinned: `Envelope(escrow=EscrowKey("escrow-public:..."))`.

    Args:
        public_key: the text that the ceremony printed, or its 32 bytes (X25519, RFC 7748).
        everyone: seal the keys of every owner to it that is enrolled from now on. Otherwise owners choose,
            with `add_escrow`.
        previous: the public halves that were pinned before. A slot of such a key is carried over to this key
            at the owner's next epoch, or by `add_escrow`.

    Raises:
        ConfigurationError: this is the private half, or nothing can be sealed to it.
    """

    @emptying
    def __init__(
        self, public_key: str | bytes, *, everyone: bool = False, previous: Iterable[str | bytes] = ()
    ) -> None:
        if isinstance(previous, (str, bytes)):
            raise ConfigurationError("EscrowKey(previous=...) takes a list of public halves.")
        self.public_key = _public_bytes(public_key)
        self.everyone = everyone
        self._pinned = frozenset([self.public_key, *map(_public_bytes, previous)])

    @property
    def text(self) -> str:
        """The text to pin."""
        return PUBLIC + base64.b64encode(self.public_key).decode("ascii")

    def carried(self, slot: StoredSlot) -> StoredSlot | None:
        """The slot to make for the next root key in place of an escrow slot; None if its key is not pinned.

        Anybody who may write rows can make a slot for a key of their own.
        """
        if slot.recipient_public_key not in self._pinned:
            return None
        return replace(slot, recipient_public_key=self.public_key)

    def slot(self, root: OpenedKey, *, unacknowledged: bool = True) -> StoredSlot:
        """Make a slot: the root key, sealed to this key.

        Args:
            unacknowledged: whether the owner is told of it at the next unlock.
        """
        like = StoredSlot(
            uuid.uuid4(),
            root.stored.key_id,
            SlotKind.ESCROW,
            "",
            b"-",
            recipient_public_key=self.public_key,
            unacknowledged_since=now() if unacknowledged else None,
        )
        return sealed_slot(root, like)

    def __repr__(self) -> str:
        return f"EscrowKey({self.text!r}{', everyone=True' if self.everyone else ''})"


class OpenedEscrowKey(Uncopied):
    """Both halves of an escrow key, for as long as a `with` lasts: it opens every owner with an escrow slot.

    Args:
        private: the text of the private half, or its 32 bytes.

    Raises:
        ConfigurationError: this is neither.
    """

    __slots__ = ("kek",)

    @emptying
    def __init__(self, private: str | bytes) -> None:
        self.kek = SharedKek(_private_bytes(private))

    @classmethod
    def generate(cls) -> Self:
        """Make a fresh key."""
        return cls(os.urandom(KEY_SIZE))

    @classmethod
    @emptying
    def from_shares(cls, shares: Iterable[str], *, fits: EscrowKey | None = None) -> Self:
        """Join custodians' shares. Needs the extra `escrow`.

        Args:
            shares: the words of each share, or the whole text of its file.
            fits: the pinned key, which the shares have to open.

        Raises:
            SharesError: the shares do not make a key, or make another key than `fits`.
        """
        if isinstance(shares, (str, bytes)):
            raise ConfigurationError("from_shares takes a list of shares, each a text.")
        read = [
            custodians.CustodianShare(words_of(text), f"Share {number}")
            for number, text in enumerate(shares, 1)
        ]
        return cls.of(read, fits=fits)

    @classmethod
    def of(cls, shares: list[custodians.CustodianShare], *, fits: EscrowKey | None = None) -> Self:
        """As `from_shares`, of shares that were read already."""
        key = custodians.joined(shares)
        opened = cls(bytes(key.buffer))
        key.wipe()
        if fits is not None and not compare_digest(opened.public_key, fits.public_key):
            opened.wipe()
            raise SharesError(
                f"The shares of ceremony {shares[0].ceremony!r} are good, and make another key than "
                f"{fits.text}."
            )
        return opened

    @classmethod
    @emptying
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Read the private half from the file that `sqlalchemy-envelope keys escrow open --to` made.

        Raises:
            ConfigurationError: the file cannot be read, is open to others, or does not hold one key.
        """
        try:
            with Path(path).open(encoding="utf-8") as file:
                mode = os.fstat(file.fileno()).st_mode
                if os.name == "posix" and mode & 0o077:
                    raise ConfigurationError(
                        f"The escrow key in {str(path)!r} is open to others (mode {mode & 0o777:04o}): "
                        "chmod 600."
                    )
                text = file.read()
        except OSError as error:
            raise ConfigurationError(
                f"The escrow key in {str(path)!r} cannot be read: {error.strerror}."
            ) from None
        except UnicodeDecodeError:
            raise ConfigurationError(f"{str(path)!r} is not text.") from None
        return cls(text.strip())

    @property
    def public_key(self) -> bytes:
        """The public half, 32 bytes."""
        return self.kek.public_key

    @property
    def public(self) -> EscrowKey:
        """The public half, to pin."""
        return EscrowKey(self.public_key)

    @property
    def text(self) -> str:
        """The text of the private half. Whoever has it opens every owner with an escrow slot."""
        return PRIVATE + base64.b64encode(bytes(self.kek.buffer)).decode("ascii")

    @emptying
    def shares(self, *, custodians: int, threshold: int) -> list[str]:
        """Make shares, one text for each custodian; any `threshold` of them make this key.

        Shares that were made before go on making this key. Needs the extra `escrow`.

        Raises:
            ConfigurationError: there cannot be so many custodians, or the extra is missing.
        """
        return _split(self.kek, custodians, threshold)

    def wipe(self) -> None:
        """Overwrite the key with zeros."""
        self.kek.wipe()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wipe()

    def __repr__(self) -> str:
        return f"<OpenedEscrowKey {self.public_key.hex()[:8]}>"


def words_of(text: str) -> str:
    """The words of a share's text: lines that begin with `#` are for people."""
    lines = (line.strip() for line in text.splitlines())
    return " ".join(line for line in lines if not line.startswith("#"))


def _split(key: KeyBytes, custodian_count: int, threshold: int) -> list[str]:
    return custodians.split(key, custodian_count, threshold)


def _public_bytes(public_key: object) -> bytes:
    if isinstance(public_key, str) and public_key.strip().startswith(PRIVATE):
        raise ConfigurationError(
            "This is the private half of an escrow key, which belongs to its custodians alone. Pin the "
            f"public half, which begins with {PUBLIC!r}. Make a new key: this one has been in a "
            "configuration."
        )
    data = _decoded(public_key, PUBLIC)
    if data is None:
        raise ConfigurationError(
            f"EscrowKey takes the public half of an escrow key: {PUBLIC!r} and 44 letters, or {KEY_SIZE} "
            f"bytes. {_MAKE}"
        )
    if not is_usable(data):
        raise ConfigurationError(f"Nothing can be sealed to this public key. {_MAKE}")
    return data


def _private_bytes(private: object) -> bytes:
    data = _decoded(private, PRIVATE)
    if data is None:
        raise ConfigurationError(
            f"OpenedEscrowKey takes the private half of an escrow key: {PRIVATE!r} and 44 letters, or "
            f"{KEY_SIZE} bytes. `sqlalchemy-envelope keys escrow open` makes it of custodians' shares."
        )
    return data


def _decoded(given: object, prefix: str) -> bytes | None:
    if isinstance(given, str):
        if re.fullmatch(re.escape(prefix) + "[A-Za-z0-9+/]{43}=", given.strip()) is None:
            return None
        try:
            given = base64.b64decode(given.strip().removeprefix(prefix), validate=True)
        except (binascii.Error, ValueError):
            return None
    if not isinstance(given, (bytes, bytearray)) or len(given) != KEY_SIZE:
        return None
    return bytes(given)
