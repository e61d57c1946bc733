"""What the database said when a chunk failed: try again, or stop and say what to do."""

from __future__ import annotations

import sqlite3
from typing import Any

from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError

_AGAIN_STATES = {"40001", "40P01", "55P03", "57014"}  # serialization, deadlock, lock not available, time-out
_FULL_STATES = {"53100", "53200", "54000"}
_AGAIN_NUMBERS = {1205, 1213, 1020}  # MySQL: lock wait time-out, deadlock, row changed since
_FULL_NUMBERS = {1021, 1114, 28}
_SHORT_NUMBERS = {1406, 1264, 1265}
_LOST_NUMBERS = {2006, 2013, 2055, 1927}
_THERE_STATES = {
    "42701",
    "42P07",
    "42710",
    "42723",
}  # a column, table, object or function that is there already
_THERE_NUMBERS = {1050, 1060, 1359}


def may_pass(error: Exception) -> bool:
    """Whether the same chunk may succeed when it is done again."""
    if not isinstance(error, DBAPIError):
        return False
    state, number = sql_state(error), _number(error)
    if state in _AGAIN_STATES or number in _AGAIN_NUMBERS:
        return True
    text = str(error.orig).lower()
    return isinstance(error.orig, sqlite3.OperationalError) and ("locked" in text or "busy" in text)


def collided(error: Exception) -> bool:
    """Whether somebody else has just done the same; who looks again finds it there."""
    if isinstance(error, IntegrityError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    state, text = sql_state(error), str(error.orig).lower()
    if state in _THERE_STATES or _number(error) in _THERE_NUMBERS:
        return True
    if state == "XX000":
        return "concurrently" in text
    words = ("already exists", "duplicate column")
    return isinstance(error.orig, sqlite3.OperationalError) and any(word in text for word in words)


def is_lost(error: Exception) -> bool:
    """Whether the connection is gone; a new one may work."""
    if not isinstance(error, DBAPIError):
        return False
    state = sql_state(error) or ""
    lost = error.connection_invalidated or state.startswith(("08", "57P"))
    return lost or _number(error) in _LOST_NUMBERS or _refused(error)


def _refused(error: DBAPIError) -> bool:
    text = str(error.orig).lower()
    words = ("connection", "server closed", "terminating", "starting up", "shutting down", "recovery mode")
    return isinstance(error, (OperationalError, InterfaceError)) and any(word in text for word in words)


def advice(error: Exception) -> str:
    """What to do, in a sentence; without a word of the statement or its parameters."""
    if isinstance(error, DBAPIError):
        text = str(error.orig).lower()
        if sql_state(error) in _FULL_STATES or _number(error) in _FULL_NUMBERS or "disk is full" in text:
            return (
                "The database is out of space: the encrypted column needs 45 bytes a value beside the "
                "plaintext. Make room"
            )
        if _number(error) in _SHORT_NUMBERS or sql_state(error) in ("22001", "01004"):
            return (
                "The encrypted column is too short for what is stored in it: make it larger (LONGBLOB on "
                "MySQL)"
            )
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


def _named(error: DBAPIError) -> str:
    state, number = sql_state(error), _number(error)
    code = f"SQLSTATE {state}" if state else f"error {number}" if number else ""
    return f"{type(error.orig).__name__}{', ' + code if code else ''}"


def sql_state(error: DBAPIError) -> str | None:
    """The SQLSTATE of a driver's error, if it has one."""
    original: Any = error.orig
    for name in ("sqlstate", "pgcode"):
        state = getattr(original, name, None)
        if isinstance(state, str):
            return state
    return None


def _number(error: DBAPIError) -> int | None:
    arguments = getattr(error.orig, "args", ())
    return arguments[0] if arguments and isinstance(arguments[0], int) else None
