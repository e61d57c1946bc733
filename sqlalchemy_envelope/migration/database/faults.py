"""Decide from a chunk's database error whether to try again, or to stop and say what to do."""

from __future__ import annotations

import re

from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    NoSuchTableError,
    OperationalError,
    SQLAlchemyError,
    StatementError,
)

from sqlalchemy_envelope.exceptions import EnvelopeError
from sqlalchemy_envelope.orm.tables.collisions import may_pass
from sqlalchemy_envelope.orm.tables.conflict_errors import error_number, sql_state

_FULL_STATES = {"53100", "53200", "54000"}
_FULL_NUMBERS = {1021, 1114, 28}
_SHORT_NUMBERS = {1406, 1264, 1265}
_VALUE_NUMBERS = {1048, 1062, 1366, 3819, 4025} | _SHORT_NUMBERS
_LOST_NUMBERS = {2006, 2013, 2055, 1927}


def is_lost(error: Exception) -> bool:
    """Whether the connection is lost; a new connection may work."""
    if not isinstance(error, DBAPIError):
        return False
    state = sql_state(error) or ""
    lost = error.connection_invalidated or state.startswith(("08", "57P"))
    return lost or error_number(error) in _LOST_NUMBERS or _refused(error)


def _refused(error: DBAPIError) -> bool:
    text = str(error.orig).lower()
    words = ("connection", "server closed", "terminating", "starting up", "shutting down", "recovery mode")
    return isinstance(error, (OperationalError, InterfaceError)) and any(word in text for word in words)


def refuses_value(error: Exception) -> bool:
    """Whether the database, its driver or the column's type refused a value."""
    if isinstance(error, DBAPIError):
        if may_pass(error) or is_lost(error):
            return False
        by_state = (sql_state(error) or "").startswith(("22", "23")) or error_number(error) in _VALUE_NUMBERS
        return by_state or isinstance(error, (DataError, IntegrityError))
    # A type's error comes as a StatementError. An error that a driver raises itself is not SQLAlchemy's.
    others = (SQLAlchemyError, EnvelopeError, MemoryError, OSError)
    return isinstance(error, StatementError) or not isinstance(error, others)


def why_refused(error: Exception) -> str:
    """Why a value was refused, without a word of the value."""
    if not isinstance(error, DBAPIError):
        text = str(error.orig if isinstance(error, StatementError) else error)
        return _NUL if "NUL" in text else "its type cannot write it"
    text, state, number = str(error.orig), sql_state(error), error_number(error)
    if state == "22001" or number == 1406:
        return "it is too long"
    if state == "22003" or number == 1264:
        return "it is a number out of range"
    if "NUL" in text or "0x00" in text or state == "22P05":
        return _NUL
    if isinstance(error, IntegrityError):
        return f"a constraint forbids it ({_named(error)})"
    return f"the database refused it ({_named(error)})"


_NUL = "it holds the character NUL, which this database does not store in text"


_ABSENT_TABLE = re.compile(
    r"(?:no such table: |relation \"|Table ')(?P<name>[^\s\"']+)(?:$|\" does not exist|' doesn't exist)",
    re.MULTILINE,
)
"""The words of SQLite, PostgreSQL and MariaDB for a missing table."""
_ABSENT_COLUMN = re.compile(
    r"(?:no such column: |Unknown column '|column \"?)(?P<name>[\w.]+)"
    r"(?:$|' in |\"?(?: of relation \"\w+\")? does not exist)",
    re.MULTILINE,
)
"""The same for a missing column."""


def advice(error: Exception) -> str:
    """A sentence on what to do, without a word of the statement or its parameters."""
    if isinstance(error, NoSuchTableError):
        return _absent(str(error))
    if isinstance(error, DBAPIError):
        text = str(error.orig).lower()
        if sql_state(error) in _FULL_STATES or error_number(error) in _FULL_NUMBERS or "disk is full" in text:
            return (
                "The database is out of space: the encrypted column needs 45 bytes a value beside the "
                "plaintext. Make room"
            )
        if error_number(error) in _SHORT_NUMBERS or sql_state(error) in ("22001", "01004"):
            return (
                "The encrypted column is too short for what is stored in it: make it larger (LONGBLOB on "
                "MySQL)"
            )
        absent = _ABSENT_TABLE.search(str(error.orig))
        if absent is not None:
            return _absent(absent["name"])
        column = _ABSENT_COLUMN.search(str(error.orig))
        if column is not None:
            return f"The database has no column {column['name']}: create it first, with an Alembic revision"
        if is_lost(error):
            return "The connection to the database was lost, and could not be made anew in time"
        if may_pass(error):
            return (
                "Locks or conflicts did not clear in time: look for long transactions, or run with a "
                "smaller load"
            )
        if "no space left" in text or "i/o" in text:
            return "The database cannot write to its disk"
        return f"The database refused ({_named(error)})"
    if isinstance(error, MemoryError):
        return "There is not enough memory for a chunk: run with a smaller chunk size"
    if isinstance(error, OSError):
        return f"The machine refused ({error.strerror or type(error).__name__})"
    return f"{type(error).__name__} was raised"


def _absent(table: str) -> str:
    return (
        f"The database has no table {table}: create it first, with an Alembic revision or "
        "`metadata.create_all()`"
    )


def _named(error: DBAPIError) -> str:
    state, number = sql_state(error), error_number(error)
    code = f"SQLSTATE {state}" if state else f"error {number}" if number else ""
    return f"{type(error.orig).__name__}{', ' + code if code else ''}"
