"""The way of a result's rows to the place of reading, between the driver's cursor and SQLAlchemy.

An opened value is passed on in a cell, and the result processor of its column takes the value out. So bytes
that came by another way are never mistaken for a value. A processor costs as much as opening the value. So
once a result is known to fetch from that cursor alone, it gets metadata without our processors, and the
values without cells. Each result is checked anew: the metadata that SQLAlchemy keeps for a statement always
has the processors.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine.cursor import BufferedRowCursorFetchStrategy, CursorFetchStrategy

from sqlalchemy_envelope.orm.reading.candidates import filters_of
from sqlalchemy_envelope.orm.reading.fetched_cursor import FetchedCursor, StreamedCursor
from sqlalchemy_envelope.orm.reading.rows import CHUNK, RowOpener
from sqlalchemy_envelope.orm.reading.statement_plan import plan_of_statement

if TYPE_CHECKING:
    from sqlalchemy import CursorResult

    from sqlalchemy_envelope.orm.reading.statement_plan import StatementPlan


_ONE_AT_A_TIME = frozenset({"mysql", "mariadb"})
"""Databases that accept no statement until all rows of the last statement are fetched."""


def after_cursor_execute(
    connection: Any, cursor: Any, statement: str, parameters: object, execution: Any, executemany: bool
) -> None:
    """Put the place of reading between the driver's cursor and SQLAlchemy, if rows have encrypted values."""
    if execution.compiled is None:
        return
    description = cursor.description or ()
    plan = plan_of_statement(execution, description)
    if not plan.rows:
        return  # and no candidates, which are refused without their value
    filters = filters_of(execution, description, plan)
    if executemany:
        _read_batches(connection, cursor, execution, plan)
    elif execution.cursor is cursor:
        dialect = connection.dialect
        read = StreamedCursor(cursor) if dialect.name in _ONE_AT_A_TIME else cursor
        opener = RowOpener(connection, read, execution, plan, filters)
        opened = OpeningCursor(read, opener)
        out_of_reach = dialect.is_async and _is_read_out_of_reach(cursor) and opener.fetches_more()
        execution.cursor = FetchedCursor(cursor, opened.fetchall()) if out_of_reach else opened


def after_execute(
    connection: object, statement: object, multiparams: object, params: object, options: object, result: Any
) -> None:
    """Let the result take opened values without cells, if it fetches from the place of reading."""
    cursor = getattr(result, "cursor", None)
    # For an object or two, this costs more than it saves.
    if type(cursor) is OpeningCursor and cursor.opener.plan.gave_many:
        cursor.hand_to(result)


def opener_of(result: Any) -> RowOpener | None:
    """Return the opener of a result's rows; None if the rows came by another way."""
    cursor = getattr(result, "cursor", None)
    return cursor.opener if type(cursor) is OpeningCursor else None


def _is_read_out_of_reach(cursor: Any) -> bool:
    """Tell whether rows may be read where nothing can be fetched.

    An `AsyncConnection` passes on the rows that the driver has buffered, and its reader cannot wait for the
    database.
    """
    return cursor.description is not None and not getattr(cursor, "server_side", False)


def _read_batches(connection: Any, cursor: Any, execution: Any, plan: StatementPlan) -> None:
    """Open the rows of `INSERT .. RETURNING` for many rows.

    SQLAlchemy fetches them batch by batch, past the execution's cursor.
    """
    if "fetchall_for_returning" in vars(execution):
        return
    opener = RowOpener(connection, cursor, execution, plan)
    fetch = execution.fetchall_for_returning

    def fetchall_for_returning(of: Any) -> Any:
        return opener.open(fetch(of))

    execution.fetchall_for_returning = fetchall_for_returning


class OpeningCursor:
    """A driver's cursor that opens rows as they are fetched."""

    __slots__ = ("_ahead", "_cursor", "opener")

    def __init__(self, cursor: Any, opener: RowOpener) -> None:
        self._ahead: deque[Any] | None = None
        self._cursor = cursor
        self.opener = opener

    def fetchone(self) -> Any:
        """Return the next row, or None.

        Iterating a result calls this. If the rows need something fetched before they can be opened, ever more
        rows are opened ahead, instead of each row on its own.
        """
        if self._ahead:
            return self._ahead.popleft()
        fetched = self.opener.fetched
        if not fetched or not self.opener.fetches_more():
            while (row := self._cursor.fetchone()) is not None:
                for opened in self.opener.open([row]):
                    return opened
            return None
        while found := self._cursor.fetchmany(min(4 * fetched, CHUNK)):
            self._ahead = deque(self.opener.open(found))
            if self._ahead:
                return self._ahead.popleft()
        return None

    def fetchmany(self, *size: int) -> Any:
        """Return up to `size` rows."""
        if self._ahead:
            wanted = min(len(self._ahead), *(size or (self._cursor.arraysize,)))
            return [self._ahead.popleft() for _ in range(wanted)]
        rows = self.opener.open(self._cursor.fetchmany(*size))
        if self.opener.filters:
            rows = self._filled(list(rows), *(size or (self._cursor.arraysize,)))
        return rows

    def _filled(self, rows: list[Any], size: int) -> list[Any]:
        """Rows with further ones in place of those that were dropped: fewer would be taken for the last."""
        while len(rows) < size and (found := self._cursor.fetchmany(size - len(rows))):
            rows += self.opener.open(found)
        return rows

    def fetchall(self) -> Any:
        """Return all remaining rows."""
        ahead, self._ahead = self._ahead, None
        return [*ahead, *self.opener.open_all()] if ahead else self.opener.open_all()

    def hand_to(self, result: CursorResult[Any]) -> None:
        """From now on, give the result values without cells, and metadata without our processors."""
        strategy, metadata = result.cursor_strategy, result._metadata
        streams = type(strategy) is BufferedRowCursorFetchStrategy
        if not streams and type(strategy) is not CursorFetchStrategy:
            return
        # A stream has fetched its first row by now.
        held: Any = strategy._rowbuffer if streams else ()  # type: ignore[attr-defined]
        if len(held) != self.opener.fetched or metadata._tuplefilter is not None:
            return
        result._metadata, self.opener.bare = self.opener.plan.without_processors(metadata)
        result._reset_memoizations()
        for _ in range(len(held)):
            held.append(
                tuple(
                    one.cell_contents if at in self.opener.bare else one
                    for at, one in enumerate(held.popleft())
                )
            )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)
