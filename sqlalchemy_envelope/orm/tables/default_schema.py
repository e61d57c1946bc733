"""Which schema a table without one is in, on one connection: `SET search_path` and `USE` change it.

PostgreSQL 18 reports its search path with each change, so that asking costs no statement. Elsewhere it is
asked once for each connection to the database, and again in each transaction once a statement has changed it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy_envelope.orm.tables.cascades import in_greenlet

if TYPE_CHECKING:
    from sqlalchemy import Connection

_KNOWN = "sqlalchemy_envelope.default_schema"
_CHANGES = "sqlalchemy_envelope.default_schema_changes"
_QUERIES = {
    "postgresql": "SELECT current_schema()",
    "mysql": "SELECT DATABASE()",
    "mariadb": "SELECT DATABASE()",
}
_FIRST = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^,\s]*))')
_SETS = re.compile(r"search_path|^\s*use\s", re.IGNORECASE)
_last: WeakKeyDictionary[Connection, str] = WeakKeyDictionary()
"""What was found last: a connection that is closed says nothing more, and its session's objects are still
asked."""


def default_schema(connection: Connection) -> str:
    """The schema of this connection's tables that name none; empty for the one that the database gives by
    default."""
    if connection.dialect.name not in _QUERIES:
        return ""
    if connection.closed or connection.invalidated:
        return _last.get(connection, "")
    path = _reported(connection)
    found = _asked(connection) if path is None else _first_of(path)
    if found == connection.dialect.default_schema_name:
        found = ""
    _last[connection] = found
    return found


def on_text(connection: Connection, statement: str) -> None:
    """A statement is about to be sent: if it sets the default schema, what is known of it no longer holds."""
    if ("search_path" in statement or statement[:4].upper() == "USE ") and _SETS.search(statement):
        connection.info[_CHANGES] = True
        connection.info.pop(_KNOWN, None)


def _reported(connection: Connection) -> str | None:
    """The search path as the driver has it from the server; None if it does not."""
    if connection.dialect.name != "postgresql":
        return None
    driver: Any = connection.connection.driver_connection
    try:
        if hasattr(driver, "get_settings"):  # asyncpg
            return getattr(driver.get_settings(), "search_path", None)
        if hasattr(driver, "info"):  # psycopg
            found: str | None = driver.info.parameter_status("search_path")
            return found
        if hasattr(driver, "get_parameter_status"):  # psycopg2
            return str(found) if (found := driver.get_parameter_status("search_path")) is not None else None
    except Exception:  # noqa: BLE001 - a driver that does not say; the database is asked
        return None
    return None


def _first_of(path: str) -> str:
    """The first schema of a search path; empty where it is the role's own or the default."""
    found = _FIRST.match(path)
    if found is None or "$user" in path:
        return ""
    quoted, plain = found.groups()
    return quoted.replace('""', '"') if quoted is not None else plain or ""


def _asked(connection: Connection) -> str:
    if connection.dialect.is_async and not in_greenlet():
        return _last.get(connection, "")  # an attribute is touched where no statement can be awaited
    info = connection.info
    if info.get(_CHANGES):
        # A rollback takes `SET` back too: what was found holds for one transaction at most.
        transaction = connection.get_nested_transaction() or connection.get_transaction()
        known = info.get(_KNOWN)
        if known is not None and known[0] is transaction:
            return str(known[1])
        answer = connection.exec_driver_sql(_QUERIES[connection.dialect.name]).scalar() or ""
        info[_KNOWN] = connection.get_nested_transaction() or connection.get_transaction(), answer
        return str(answer)
    known = info.get(_KNOWN)
    if known is None:
        answer = connection.exec_driver_sql(_QUERIES[connection.dialect.name]).scalar() or ""
        known = info[_KNOWN] = None, answer
    return str(known[1])
