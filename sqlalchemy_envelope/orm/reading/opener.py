"""The only opener: it opens a stored value for a given owner and row, and for no other.

The caller names the owner of the value's row. An unlocked key is not enough: somebody could move a value of
one owner into a row of another owner. Reading and saving that row would then encrypt the value for the wrong
owner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.crypto.aead import HEADER_SIZE, check_value
from sqlalchemy_envelope.exceptions import DecryptionError
from sqlalchemy_envelope.orm.current import context

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.crypto.aead import Field
    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.orm.columns.format import ColumnFormat

LOCKED: Any = object()
"""Stands in place of a value whose key is not unlocked."""


def open_stored(
    session: Session | None, form: ColumnFormat, stored: Any, owner: OwnerId, reference: bytes
) -> Any:
    """Return the plaintext of a stored value, or `LOCKED`.

    Args:
        session: the session that selects the unlocked sessions.
        form: the format of the value's column.
        owner: the owner of the value's row.
        reference: the reference of the value's row, if the column is bound to its row.

    Raises:
        FormatError, TruncatedError: the bytes are not a stored value of ours.
        DecryptionError: the value is not what was written into this row of this owner.
    """
    opened = open_bytes(session, form.field, stored, owner, reference)
    return LOCKED if opened is None else form.decode(opened)


def open_bytes(
    session: Session | None, field: Field, stored: Any, owner: OwnerId, reference: bytes
) -> bytes | None:
    """Return the plaintext bytes, not yet decoded to a Python value; None if the key is locked."""
    check_value(stored, field.label)
    blob = bytes(stored)
    header = blob[:HEADER_SIZE]
    cipher = context.find_reader(session, header, field)
    if cipher is None:
        return None
    holder = context.owner_of(session, header)
    if holder is None:
        return None  # another thread dropped the key since
    if holder != owner:
        raise moved(field)
    return cipher.decrypt(blob, reference if field.row_bound else b"")


def moved(field: Field) -> DecryptionError:
    """Return the error for a value in a row of another owner."""
    return DecryptionError(
        f"A value of {field.label!r} is under the key of another owner than its row's: it was moved here."
    )
