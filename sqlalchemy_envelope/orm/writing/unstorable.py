"""Values that an encrypted column cannot store: what the error says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.sql.elements import BindParameter, ClauseElement

from sqlalchemy_envelope.crypto.aead import MAX_VALUE_SIZE, OVERHEAD
from sqlalchemy_envelope.exceptions import StatementRefusedError, ValueEncodingError, ValueTooLargeError
from sqlalchemy_envelope.orm.columns.list_codec import MAX_LIST_DEPTH
from sqlalchemy_envelope.orm.columns.sealed import Sealed, is_ciphertext

if TYPE_CHECKING:
    from sqlalchemy_envelope.orm.columns.plans import EncryptedColumn

_IN_WORDS = {
    "datetime": "datetimes without a time zone (tzinfo)",
    "datetimetz": "datetimes with a time zone (tzinfo)",
    "time": "times without a time zone (tzinfo)",
    "timetz": "times with a time zone (tzinfo)",
    "json": "what JSON can hold (dict, list, str, int, float, bool and None, all the way down)",
}


def unstorable(column: EncryptedColumn, value: Any, blob: bytes | bytearray | None) -> Exception:
    """The error for a value that was not encrypted. It never shows the value.

    Args:
        blob: the ciphertext, if the value is encoded and too large.
    """
    where = f"{column.column.table.name}.{column.key}"
    if blob is not None:
        return ValueTooLargeError(
            f"{where}: a value of {len(blob) - OVERHEAD:,} bytes is over {MAX_VALUE_SIZE:,} bytes."
        )
    if isinstance(value, Sealed) or is_ciphertext(value):
        return StatementRefusedError(
            f"{where}: a sealed value cannot be written elsewhere; unlock it and copy the plaintext."
        )
    if isinstance(value, BindParameter):
        return StatementRefusedError(
            f"{where} is encrypted, and its value is the parameter {value.key!r} inside of `values([...])`, "
            "which has none yet when the row is encrypted. Write the value itself in its place, or give the "
            "rows beside the statement: `execute(insert(...), [{...}, ...])`."
        )
    if isinstance(value, ClauseElement):
        return StatementRefusedError(f"{where} is encrypted: assign a Python value, not an SQL expression.")
    tag = column.type.codec.tag
    lists = f" (lists inside each other {MAX_LIST_DEPTH} deep at most)" if tag.startswith("list:") else ""
    holds = _IN_WORDS.get(tag, f"{tag!r} values{lists}")
    return ValueEncodingError(f"{where} holds {holds}; this {type(value).__name__} cannot be stored in it.")
