"""What a database answered when it was asked whether a table has encrypted values. An answer holds until this
process sends a statement that may change tables: a revision may encrypt a column that was plain."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import inspect

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, RootTransaction

    Place = tuple[Any, ...]

_known: WeakKeyDictionary[Engine, dict[Place, bool]] = WeakKeyDictionary()
_changing: WeakSet[RootTransaction] = WeakSet()
"""Transactions that change tables. Until they end, others may see the tables as they were."""
_SPACE = r"(?:\s|--[^\n]*\n|/\*.*?\*/)*"
_CHANGE = re.compile(rf"{_SPACE}(?:create|alter|drop|rename|attach|detach|do)\b", re.IGNORECASE | re.DOTALL)


def answer(connection: Connection, place: Place) -> bool | None:
    """The answer for a table and column; None if the database has to be asked."""
    return _known.get(connection.engine, {}).get(place)


def keep_answer(connection: Connection, place: Place, holds: bool) -> None:
    """Keep an answer of the database. While a transaction changes tables it is not kept."""
    if not any(transaction.is_active for transaction in tuple(_changing)):
        _known.setdefault(connection.engine, {})[place] = holds


def may_change_tables(sql: Any, compiled: Any) -> bool:
    """Whether a statement may change tables: it is DDL, or text with DDL in it."""
    if compiled is not None and not getattr(compiled, "isplaintext", False):
        return bool(getattr(compiled, "is_ddl", False))
    if not isinstance(sql, str):
        return True  # a driver's own object, which cannot be read
    return _CHANGE.match(sql) is not None or (";" in sql and any(map(_CHANGE.match, sql.split(";"))))


def tables_change(connection: Connection) -> None:
    """Forget the answers of every engine: a migration has an engine of its own."""
    _known.clear()
    transaction: Any = connection.get_transaction()
    if transaction is not None:
        _changing.add(transaction)


def is_temporary(connection: Connection, target: Any) -> bool:
    """Whether a temporary table has this name: the database prefers it to any other table."""
    try:
        names = inspect(connection).get_temp_table_names()
    except NotImplementedError:  # a dialect that does not list temporary tables
        return False
    return target.name.lower() in [name.lower() for name in names]
