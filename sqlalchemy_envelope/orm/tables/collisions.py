"""Which errors of a job's chunk may be gone when the chunk is done again."""

from __future__ import annotations

import sqlite3

from sqlalchemy.exc import DBAPIError, IntegrityError

from sqlalchemy_envelope.orm.tables.conflict_errors import error_number, should_retry, sql_state

_TIMED_OUT = "57014"  # by `statement_timeout`, as a rule
_THERE_STATES = {"42701", "42P07", "42710", "42723"}  # a column, table, object or function exists already
_THERE_NUMBERS = {1050, 1060, 1359}


def may_pass(error: Exception) -> bool:
    """Whether the same chunk may succeed when it is done again."""
    return should_retry(error) or (isinstance(error, DBAPIError) and sql_state(error) == _TIMED_OUT)


def collided(error: Exception) -> bool:
    """Whether another program has just done the same work: a second look finds it done."""
    if isinstance(error, IntegrityError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    state, text = sql_state(error), str(error.orig).lower()
    if state in _THERE_STATES or error_number(error) in _THERE_NUMBERS:
        return True
    if state == "XX000":
        return "concurrently" in text
    words = ("already exists", "duplicate column")
    return isinstance(error.orig, sqlite3.OperationalError) and any(word in text for word in words)
