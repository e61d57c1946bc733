"""Ciphertext in a previous column: a release that encrypts wrote it there before its revision had run.

Such ciphertext is never encrypted a second time. Plaintext may have the form of ciphertext by chance, and
stops the migration too, with another message. The test between them is whether the database has the key
that the bytes name.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy_envelope.crypto.aead import FORMAT_VALUE, HEADER_SIZE, may_be_value
from sqlalchemy_envelope.exceptions import MigrationStoppedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy_envelope.migration.database.columns import MigratingColumn
    from sqlalchemy_envelope.migration.jobs.owner_ciphers import OwnerCiphers


class Advice(NamedTuple):
    """What to do about such a row, if its value is ciphertext and if it is plaintext."""

    ciphertext: str
    plaintext: str


_WRITE_ANEW = (
    "the application write the row anew: load it, call `flag_modified(row, {attribute!r})` of "
    "`sqlalchemy.orm.attributes`, and commit"
)
BESIDE = Advice(
    "Put the bytes into the encrypted column by hand (of text, PostgreSQL's `decode(substr(value, 3), "
    "'hex')`), if its `label=` is the one that they were written under, and NULL in their place; or restore "
    "the plaintext. Then run again.",
    f"have {_WRITE_ANEW}. Then run again.",
)
"""The advice if the encrypted column exists, and stays."""
IN_PLACE = Advice(
    "The column is as it was, and there is none beside it that could take the bytes. Restore the plaintext, "
    "and upgrade again. Or write op.expand_encrypted_column() in place of op.encrypt_column(): the column "
    "that it adds takes the bytes by hand, and `sqlalchemy-envelope migrate run` encrypts the others.",
    "write op.expand_encrypted_column() in place of op.encrypt_column(), with `previous=` in the model, have "
    f"{_WRITE_ANEW}, and let `sqlalchemy-envelope migrate run` encrypt the others.",
)
"""The advice if a single revision encrypts the column in place."""

_HEX = f"\\x{FORMAT_VALUE:02x}"
_ESCAPED = f"\\{FORMAT_VALUE:03o}"
_ESCAPE = re.compile(r"\\([0-7]{3})|\\(\\)|([^\\])")


def refuse_ciphertext(
    column: MigratingColumn, keys: OwnerCiphers, parts: Sequence[Any], advice: Advice
) -> None:
    """Stop at a row if its previous value is, or may be, ciphertext of this library.

    Args:
        parts: the rows as `Rows.split` gives them.

    Raises:
        MigrationStoppedError: there is such a row.
    """
    for position, _, typed, *_ in parts:
        blob = _bytes_of(typed)
        if blob is None or not may_be_value(blob):
            continue
        where = f"{column.name}: the previous value of the row {position!r}"
        if keys.has_key(blob[:HEADER_SIZE]):
            raise MigrationStoppedError(
                f"{where} is ciphertext already. A release that encrypts wrote it before its revision had "
                "run: run the revision first, and start the release then. It is not encrypted a second "
                f"time. {advice.ciphertext}"
            )
        raise MigrationStoppedError(
            f"{where} looks like ciphertext, and the database does not have the key that it names. If it is "
            "ciphertext, its key is gone or in another database, and nothing here opens it: restore the "
            "plaintext, or write NULL. If it is plaintext that looks so by chance, "
            f"{advice.plaintext.format(attribute=column.attribute)}"
        )


def _bytes_of(value: object) -> bytes | None:
    """The bytes that a previous value may stand for; None if it cannot be ciphertext."""
    if isinstance(value, str):
        # The forms in which PostgreSQL writes bytes into a column of text, by its setting `bytea_output`.
        if value.startswith(_HEX):
            return _of_hex(value[2:])
        return _of_escapes(value) if value.startswith(_ESCAPED) else None
    return value if isinstance(value, bytes) else None


def _of_hex(digits: str) -> bytes | None:
    try:
        return bytes.fromhex(digits)
    except ValueError:
        return None


def _of_escapes(text: str) -> bytes | None:
    made, end = bytearray(), 0
    for found in _ESCAPE.finditer(text):
        octal, backslash, plain = found.groups()
        code = int(octal, 8) if octal else ord(backslash or plain)
        if found.start() != end or code > 0xFF:
            return None
        made.append(code)
        end = found.end()
    return bytes(made) if end == len(text) else None
