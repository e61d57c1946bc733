"""Grants: a key of one owner, stored for another owner, the recipient (section 4).

A grant is sealed to the public key of its recipient, who may be away. The recipient's first write after an
unlock adopts it: the key is opened, and wrapped under the recipient's own root key.
"""

import uuid
from dataclasses import replace

from sqlalchemy_envelope.crypto.sealing import seal_key
from sqlalchemy_envelope.exceptions import TamperedKeyError
from sqlalchemy_envelope.keys.hierarchy import wrap_under
from sqlalchemy_envelope.keys.model import GrantState, KeyId, OpenedKey, StoredGrant, StoredKey, Wrap


def sealed_grant(
    key: OpenedKey, granting_row: bytes, recipient: StoredKey, grant_id: uuid.UUID | None = None
) -> StoredGrant:
    """Seal a key to the recipient's root key.

    Args:
        granting_row: the reference of the application's row that gives the right.
        recipient: the row of the recipient's root key.
        grant_id: the id of the grant's row, if there is one already.

    Raises:
        TamperedKeyError: the stored public key is not usable.
    """
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
    """A grant without a key: nobody present holds the key, and the next holder seals it."""
    return StoredGrant(uuid.uuid4(), granting_row, key_id, None, GrantState.PENDING)


def adopted_grant(grant: StoredGrant, key: OpenedKey, recipient: OpenedKey) -> StoredGrant:
    """Wrap the key of a sealed grant, which its recipient opened, under the recipient's root key."""
    context = _context(key.stored, grant.granting_row, recipient.stored.key_id)
    return replace(
        grant, state=GrantState.ADOPTED, wrapped=wrap_under(key.key, recipient, context), seal=None
    )


def way_through(grant: StoredGrant, key: StoredKey) -> Wrap | None:
    """The way that a grant stores to its key; None while the grant is pending.

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
