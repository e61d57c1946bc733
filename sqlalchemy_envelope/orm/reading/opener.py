"""The one opener: it opens a stored value for an owner and a row, and for no other.

Whoever reads says whose the value is. That its key is open here is not enough: somebody could put a value of
one owner into a row of another, to be read, saved and so encrypted for the wrong one.
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
"""In place of a value whose key is not open here."""


def open_stored(
    session: Session | None, form: ColumnFormat, stored: Any, owner: OwnerId, reference: bytes
) -> Any:
    """The plaintext of a stored value, or `LOCKED`.

    Args:
        session: whose unlocked sessions are asked.
        form: of the value's column.
        owner: whose row it is in.
        reference: of its row, if the column is bound to it.

    Raises:
        FormatError, TruncatedError: it is no value of ours.
        DecryptionError: it is not what was written into this row of this owner.
    """
    opened = open_bytes(session, form.field, stored, owner, reference)
    return LOCKED if opened is None else form.decode(opened)


def open_bytes(
    session: Session | None, field: Field, stored: Any, owner: OwnerId, reference: bytes
) -> bytes | None:
    """The same, not yet read as a Python value; None if its key is locked."""
    check_value(stored, field.label)
    blob = bytes(stored)
    header = blob[:HEADER_SIZE]
    cipher = context.find_reader(session, header, field)
    if cipher is None:
        return None
    if context.owner_of(session, header) != owner:
        raise moved(field)
    return cipher.decrypt(blob, reference if field.row_bound else b"")


def moved(field: Field) -> DecryptionError:
    """The error for a value in a row of another owner."""
    return DecryptionError(
        f"A value of {field.label!r} is under the key of another owner than its row's: it was moved here."
    )
