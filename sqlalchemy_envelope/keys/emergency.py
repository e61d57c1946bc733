"""Emergency access: a person whom an owner named opens the owner's keys, after a waiting time.

The KEK of the slot comes from two shares. One is sealed to the person's root key. The other is wrapped under
the server keys, bound to the owner, the person, the waiting time and the date of the request. So the person
cannot skip the time, the server cannot read without the person, and a date that is edited in the database
opens nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sqlalchemy_envelope.crypto.context import encode_context
from sqlalchemy_envelope.crypto.kdf import joined_key, x25519_public
from sqlalchemy_envelope.crypto.sealing import open_key, seal_key
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.exceptions import TamperedKeyError, UnlockError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy_envelope.keys.model import KeyId, StoredKey
    from sqlalchemy_envelope.keys.providers.server import ServerKeyring


@dataclass(frozen=True)
class StoredEmergency:
    """What one row of emergency access holds.

    Attributes:
        owner, person: their owner references (section 1).
        public_key: the X25519 public key of the KEK, as in the slots that it opens.
        person_key_id: the id of the person's root key to which the person's share is sealed.
        sealed_share: the person's share, in format 0x12 or 0x13.
        server_share: the server's share, wrapped by the server keyring.
        wait: the waiting time in seconds.
        requested_at: when the person asked, in whole seconds since 1970; None if nobody has asked.
    """

    owner: bytes
    person: bytes
    public_key: bytes
    person_key_id: KeyId
    sealed_share: bytes = field(repr=False)
    server_share: bytes = field(repr=False)
    wait: int
    requested_at: int | None = None

    def server_context(self) -> Mapping[str, str]:
        """The context that the server's share is bound to."""
        return {
            "library": "sqlalchemy-envelope/v1",
            "emergency": self.public_key.hex(),
            "owner": self.owner.hex(),
            "person": self.person.hex(),
            "wait": str(self.wait),
            "requested": "" if self.requested_at is None else str(self.requested_at),
        }

    def person_context(self) -> bytes:
        """The context that the person's share is bound to."""
        return encode_context("emergency", self.public_key, self.owner, self.person, self.person_key_id.bytes)


def arranged(
    server_keys: ServerKeyring, owner: bytes, person: bytes, root: StoredKey, wait: int
) -> tuple[StoredEmergency, KeyBytes]:
    """Make the shares of a fresh KEK.

    Args:
        root: the person's active root key.

    Returns:
        The row, and the KEK for the owner's slots.
    """
    server_share, person_share = KeyBytes.generate(), KeyBytes.generate()
    kek = joined_key(server_share, person_share)
    row = StoredEmergency(owner, person, x25519_public(kek), root.key_id, b"", b"", wait)
    row = replace(
        row,
        sealed_share=seal_key(person_share, root.public_keys, row.person_context()),
        server_share=server_keys.wrap(bytes(server_share.buffer), row.server_context()),
    )
    server_share.wipe()
    person_share.wipe()
    return row, kek


def check_share(server_keys: ServerKeyring, row: StoredEmergency) -> None:
    """Check that the application wrote the row as it stands, with its dates.

    Raises:
        TamperedKeyError: the row is not as the application wrote it.
        ProviderError: its server key is not configured.
    """
    server_keys.unwrap(row.server_share, row.server_context())


def dated(server_keys: ServerKeyring, row: StoredEmergency, requested_at: int | None) -> StoredEmergency:
    """The row with another date of the request.

    Raises:
        TamperedKeyError: the row is not as the application wrote it.
        ProviderError: its server key is not configured.
    """
    share = server_keys.unwrap(row.server_share, row.server_context())
    now = replace(row, requested_at=requested_at)
    return replace(now, server_share=server_keys.wrap(share, now.server_context()))


def opened_kek(server_keys: ServerKeyring, row: StoredEmergency, root: KeyBytes) -> KeyBytes:
    """The KEK of the slots. The caller has checked that the waiting time is over.

    Args:
        root: the person's root key that `row.person_key_id` names.

    Raises:
        TamperedKeyError: the row is not as the application wrote it.
        ProviderError: its server key is not configured.
    """
    server_share = KeyBytes(server_keys.unwrap(row.server_share, row.server_context()))
    try:
        person_share = _opened_share(row, root)
    except TamperedKeyError:
        server_share.wipe()
        raise
    kek = joined_key(server_share, person_share)
    server_share.wipe()
    person_share.wipe()
    if x25519_public(kek) != row.public_key:
        kek.wipe()
        raise TamperedKeyError("The shares of an emergency access do not fit each other.")
    return kek


def moved_share(row: StoredEmergency, old: KeyBytes, new: StoredKey) -> StoredEmergency:
    """The row with the person's share sealed to another root key of the person.

    Args:
        old: the root key that `row.person_key_id` names.
        new: the person's active root key.

    Raises:
        TamperedKeyError: the share is not as the application wrote it.
    """
    share = _opened_share(row, old)
    moved = replace(row, person_key_id=new.key_id)
    moved = replace(moved, sealed_share=seal_key(share, new.public_keys, moved.person_context()))
    share.wipe()
    return moved


def _opened_share(row: StoredEmergency, root: KeyBytes) -> KeyBytes:
    try:
        return open_key(row.sealed_share, root, row.person_context())
    except UnlockError:
        raise TamperedKeyError(
            "The person's share of an emergency access was altered, or moved here."
        ) from None
