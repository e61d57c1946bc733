"""Which errors say that another transaction came first: the same work may succeed when it is run again.

They are recognised by their codes and never by their texts, which are in the server's language.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.exc import DBAPIError

from sqlalchemy_envelope.exceptions import TransactionConflictError

_STATES = frozenset({"40001", "40P01", "55P03"})
"""SQLSTATE: serialization failure, deadlock, a lock that was not free in time."""
_NUMBERS = frozenset({1020, 1205, 1213})
"""MySQL and MariaDB: a row changed since it was read, a lock that was not free in time, deadlock."""
_SQLITE_CODES = frozenset({5, 6})
"""SQLITE_BUSY and SQLITE_LOCKED. Not taken from `sqlite3`: that would be imported for every database."""


def should_retry(error: BaseException) -> bool:
    """Whether to roll back and run the whole transaction again, because another transaction came first.

    True for `TransactionConflictError`, and for the `DBAPIError` that SQLAlchemy makes of SQLSTATE 40001,
    40P01 and 55P03, of SQLite's "database is locked", and of the errors 1020, 1205 and 1213 of MySQL and
    MariaDB. False for all others, a lost connection among them: nobody knows whether its COMMIT was carried
    out.
    """
    if isinstance(error, TransactionConflictError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    sqlite_code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF  # the primary code alone
    return sql_state(error) in _STATES or error_number(error) in _NUMBERS or sqlite_code in _SQLITE_CODES


def sql_state(error: DBAPIError) -> str | None:
    """The SQLSTATE of a driver's error, if it has one."""
    original: Any = error.orig
    for name in ("sqlstate", "pgcode"):
        state = getattr(original, name, None)
        if isinstance(state, str):
            return state
    return None


def error_number(error: DBAPIError) -> int | None:
    """The number of a driver's error for MySQL and MariaDB, if it has one."""
    original: Any = error.orig
    for number in (getattr(original, "errno", None), *getattr(original, "args", ())[:1]):
        if isinstance(number, int):
            return number
    return None
