"""psycopg's binary results, for statements that read encrypted columns.

As text, PostgreSQL sends each byte of a stored value as two hexadecimal digits, and psycopg converts them
back. In binary it sends the bytes. The database tells which columns a statement returns: the first execution
gets text, and later executions are binary only if psycopg reads the type of every column alike in both forms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from sqlalchemy import event

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.reading.statement_plan import plan_of_statement

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

_BINARY = 1
"""`psycopg.pq.Format.BINARY`, as a number, so that psycopg need not be installed."""
_ALIKE = frozenset(
    {
        16,  # boolean
        17,  # bytea
        20, 21, 23,  # bigint, smallint, integer
        25, 1042, 1043,  # text, char, varchar
        700, 701,  # real, double precision
        1082, 1083, 1114, 1184,  # date, time, timestamp, timestamp with time zone
        2950,  # uuid
    }
)  # fmt: skip
"""Types by their number in `pg_type`, which never changes."""


def binary_results(engine: Engine | AsyncEngine) -> None:
    """Have psycopg read encrypted columns in binary, which is faster.

    Call it once, right after `create_engine()`. It changes statements that read encrypted columns, if all
    their columns are bytes, text, numbers except NUMERIC, booleans, dates and times, or UUIDs. psycopg reads
    these types alike in both forms, unless the application has registered its own loaders for text. asyncpg
    always reads in binary.

    Raises:
        ConfigurationError: the engine's driver is not psycopg.
    """
    either: Any = engine
    target: Engine = getattr(either, "sync_engine", either)
    if target.dialect.driver not in ("psycopg", "psycopg_async"):
        raise ConfigurationError(
            f"binary_results() is for psycopg, and this engine's driver is {target.dialect.driver}."
        )
    if not event.contains(target, "before_cursor_execute", _before_cursor_execute):
        event.listen(target, "before_cursor_execute", _before_cursor_execute)
        event.listen(target, "after_cursor_execute", _after_cursor_execute)


_in_binary: WeakSet[Any] = WeakSet()


def _before_cursor_execute(
    connection: object, cursor: Any, sql: str, parameters: object, execution: Any, executemany: bool
) -> None:
    if execution is not None and execution.compiled in _in_binary:
        # For an asynchronous engine, SQLAlchemy passes an adapter around the cursor.
        getattr(cursor, "_cursor", cursor).format = _BINARY


def _after_cursor_execute(
    connection: object, cursor: Any, sql: str, parameters: object, execution: Any, executemany: bool
) -> None:
    compiled = getattr(execution, "compiled", None)
    if compiled is None or executemany or not cursor.description or compiled in _in_binary:
        return
    if plan_of_statement(execution, cursor.description).rows and all(
        column[1] in _ALIKE for column in cursor.description
    ):
        _in_binary.add(compiled)
