"""`create_engine(echo="debug")` logs result rows after they are decrypted: rows with
encrypted columns are not shown.

SQLAlchemy has no event between decrypting a row and logging it. A filter on the engine's own logger is the
place that every handler stands behind.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from sqlalchemy import Row

from sqlalchemy_envelope.orm.columns.encrypted_type import EncryptedType
from sqlalchemy_envelope.orm.tables.stored_rows import RawBytes

if TYPE_CHECKING:
    from sqlalchemy import Connection


def on_connect(connection: Connection) -> None:
    """A connection is taken: see to it that its engine's logger shows no decrypted row."""
    logger: Any = connection.engine.logger
    # With `echo=` it is SQLAlchemy's wrapper around the logger itself.
    logger = getattr(logger, "logger", logger)
    if hide_rows not in logger.filters:
        logger.addFilter(hide_rows)


def hide_rows(record: logging.LogRecord) -> bool:
    """Take a row with encrypted columns out of a log record; the record itself stays."""
    if isinstance(record.args, tuple) and record.args:
        row = getattr(record.args[0], "row", None)
        if isinstance(row, Row) and _has_encrypted(row):
            record.args = (f"({len(row)} columns, some encrypted: not shown)",)
    return True


def _has_encrypted(row: Row[Any]) -> bool:
    # Both are asked: rows that SQLAlchemy keeps for later have lost their processors, and rows of a text
    # statement have no column objects. What cannot be told is not shown.
    try:
        metadata: Any = row._parent
        hidden = (EncryptedType, RawBytes)
        typed = any(isinstance(getattr(key, "type", None), hidden) for key in metadata._keymap)
        ours = EncryptedType.__module__
        return typed or any(getattr(one, "__module__", None) == ours for one in metadata._processors or ())
    except Exception:  # noqa: BLE001 - an inside of SQLAlchemy that is no longer there
        return True
