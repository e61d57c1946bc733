"""`create_engine(echo="debug")` logs decrypted result rows: a filter hides rows with encrypted columns.

SQLAlchemy has no event between decrypting a row and logging it. A filter on the engine's own logger runs
before every handler.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from sqlalchemy import Row

from sqlalchemy_envelope.orm.columns.encrypted_type import EncryptedType
from sqlalchemy_envelope.orm.tables.stored_rows import RawBytes
from sqlalchemy_envelope.words import counted

if TYPE_CHECKING:
    from sqlalchemy import Connection


def on_connect(connection: Connection) -> None:
    """When a connection is taken, add the filter that hides decrypted rows to its engine's logger."""
    logger: Any = connection.engine.logger
    # With `echo=`, `engine.logger` is SQLAlchemy's wrapper around the real logger.
    logger = getattr(logger, "logger", logger)
    if hide_rows not in logger.filters:
        logger.addFilter(hide_rows)


def hide_rows(record: logging.LogRecord) -> bool:
    """Take a row with encrypted columns out of a log record; the record itself stays."""
    if isinstance(record.args, tuple) and record.args:
        row = getattr(record.args[0], "row", None)
        if isinstance(row, Row) and _has_encrypted(row):
            record.args = (f"({counted(len(row), 'column')}, some encrypted: not shown)",)
    return True


def _has_encrypted(row: Row[Any]) -> bool:
    # Look at the types and at the processors: rows that SQLAlchemy keeps for later have lost their
    # processors, and rows of a text statement have no column objects. Hide a row if neither can be read.
    try:
        metadata: Any = row._parent
        hidden = (EncryptedType, RawBytes)
        typed = any(isinstance(getattr(key, "type", None), hidden) for key in metadata._keymap)
        ours = EncryptedType.__module__
        return typed or any(getattr(one, "__module__", None) == ours for one in metadata._processors or ())
    except Exception:  # noqa: BLE001 - an inside of SQLAlchemy that is no longer there
        return True
