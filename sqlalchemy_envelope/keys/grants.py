"""Grants: a key of one owner, for another. Sealed to who is away, adopted at their next unlock."""

import uuid
from dataclasses import replace

from sqlalchemy_envelope.crypto.sealing import seal_key
from sqlalchemy_envelope.exceptions import TamperedKeyError
from sqlalchemy_envelope.keys.hierarchy import wrap_under
from sqlalchemy_envelope.keys.model import GrantState, KeyId, OpenedKey, StoredGrant, StoredKey, Wrap


def sealed_grant(
    key: OpenedKey, granting_row: bytes, recipient: StoredKey, grant_id: uuid.UUID | None = None
) -> StoredGrant:
    """A key, sealed to the recipient's root key."""
    context = _context(key.stored, granting_row, recipient.key_id)
    return StoredGrant(
        grant_id or uuid.uuid4(),
        granting_row,
        key.stored.key_id,
        recipient.key_id,
        GrantState.SEALED,
        seal_key(key.key, recipient.public_keys, context),
    )


def pending_grant(key_id: KeyId, granting_row: bytes) -> StoredGrant:
    """The note that a key is to be granted by somebody who holds it."""
    return StoredGrant(uuid.uuid4(), granting_row, key_id, None, GrantState.PENDING)


def adopted_grant(grant: StoredGrant, key: OpenedKey, recipient: OpenedKey) -> StoredGrant:
    """A sealed grant that its recipient opened, wrapped under the recipient's root key from now on."""
    context = _context(key.stored, grant.granting_row, recipient.stored.key_id)
    return replace(
        grant, state=GrantState.ADOPTED, wrapped=wrap_under(key.key, recipient, context), seal=None
    )


def way_through(grant: StoredGrant, key: StoredKey) -> Wrap | None:
    """The way to a key that a grant stores; None while it is pending.

    Raises:
        TamperedKeyError: the row cannot be a grant of this key.
    """
    if grant.key_id != key.key_id or (grant.state is GrantState.PENDING) != (grant.wrapped is None):
        raise TamperedKeyError("A stored grant does not fit the key that it grants.")
    if grant.wrapped is None or grant.recipient_key_id is None:
        return None
    sealed = grant.state is GrantState.SEALED
    return Wrap(grant.recipient_key_id, grant.wrapped, "grant", grant.granting_row, sealed=sealed)


def _context(key: StoredKey, granting_row: bytes, recipient: KeyId) -> bytes:
    return key.wrap_context("grant", recipient=recipient.bytes, granter=granting_row)
