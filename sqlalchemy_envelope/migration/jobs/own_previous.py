"""Previous values that this library encrypted itself, under another label, binding or scope. They are
decrypted and encrypted with the keys of their rows' owners, which no column type has at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.crypto.aead import HEADER_SIZE, check_value
from sqlalchemy_envelope.crypto.context import encode_reference
from sqlalchemy_envelope.exceptions import DecryptionError, FormatError
from sqlalchemy_envelope.migration.jobs.owner_ciphers import OwnerCiphers
from sqlalchemy_envelope.migration.jobs.preflight import unreadable
from sqlalchemy_envelope.orm.columns.encrypted_type import EncryptedType
from sqlalchemy_envelope.orm.current.context import find_writer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.migration.database.rows import Rows
    from sqlalchemy_envelope.orm.tables.keyset import Position

LOCKED: Any = object()
"""Stands for a previous value that no key here opens."""


def open_previous(session: Session, rows: Rows, parts: list[Any]) -> list[Any]:
    """The parts of a chunk's rows, with the previous values decrypted if this library encrypted them.

    Raises:
        PreviousValueError: a previous value does not authenticate, or is under another owner's key.
    """
    type_ = rows.column.from_column.type
    if not isinstance(type_, EncryptedType):
        return parts
    headers: dict[bytes, int] = {}
    for _, _, typed, *_ in parts:
        if typed is not None:
            header = bytes(typed[:HEADER_SIZE])
            headers[header] = headers.get(header, 0) + 1
    keys = OwnerCiphers(session, rows.column)
    keys.prepare_read(headers)
    return [
        (position, owner, _open(session, rows, keys, position, owner, typed), *rest)
        for position, owner, typed, *rest in parts
    ]


def _open(
    session: Session, rows: Rows, keys: OwnerCiphers, position: Position, owner: tuple[Any, ...], typed: Any
) -> Any:
    if typed is None:
        return None
    type_: Any = rows.column.from_column.type
    try:
        check_value(typed, type_.field.label)
        if not keys.are_of(bytes(typed[:HEADER_SIZE]), owner):
            # If we re-encrypted this value, the row's owner could read another owner's value.
            raise unreadable(rows, position, "it is under the key of another owner than its row's")
        opened = keys.open(type_.field, typed, owner, _reference(type_, position))
        return LOCKED if opened is None else type_.format.decode(opened)
    except (DecryptionError, FormatError):
        pass
    raise unreadable(rows, position, "it does not authenticate")


def seal_previous(session: Session, rows: Rows, parts: Sequence[Any]) -> list[Any]:
    """The values to write back to the previous column, encrypted if this library encrypted that column.

    Args:
        parts: key, owner's key, the stored encrypted value as read, value.
    """
    type_ = rows.column.from_column.type
    if not isinstance(type_, EncryptedType):
        return [(position, stored, value) for position, _, stored, value in parts]
    keys = OwnerCiphers(session, rows.column)
    keys.writers({owner for _, owner, *_ in parts}, len(parts))
    made = []
    for position, owner, stored, value in parts:
        name = keys.owner_name(owner)
        cipher = None if name is None else find_writer(session, name, type_.scope, type_.field)
        if cipher is not None:
            encrypted = cipher.encrypt(type_.codec.encode(value), _reference(type_, position))
            made.append((position, stored, encrypted))
    return made


def _reference(type_: EncryptedType, position: Position) -> bytes:
    return encode_reference(position) if type_.bind == "row" else b""
