"""psycopg's binary results, for statements that read encrypted columns.

As text, PostgreSQL sends each byte of a stored value as two hexadecimal digits, which are then read back; in
binary it sends the bytes. Which columns a statement gives is asked of the database: its first execution gets
text, and only if every column is of a type that psycopg reads alike in both forms are later ones binary.
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
"""`psycopg.pq.Format.BINARY`; a number, so that psycopg need not be there."""
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

    Call it once, right after `create_engine()`. It changes statements that read encrypted columns, if all of
    their columns are bytes, text, numbers but NUMERIC, booleans, dates and times, or UUIDs: psycopg reads
    these alike in both forms, unless the application has registered loaders of its own for text. asyncpg
    reads in binary anyway.

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
        # Of an asynchronous engine SQLAlchemy hands out an adapter.
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
