"""Cursors that fetch rows ahead: for readers that cannot wait for the database, and for databases that accept
no other statement until all rows of the last statement are fetched."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


class FetchedCursor:
    """A cursor over rows that are already fetched."""

    __slots__ = ("_cursor", "_rows")

    def __init__(self, cursor: Any, rows: Sequence[Any]) -> None:
        self._cursor = cursor
        self._rows = iter(rows)

    def fetchone(self) -> Any:
        """Return the next row, or None."""
        return next(self._rows, None)

    def fetchmany(self, size: int | None = None) -> list[Any]:
        """Return up to `size` rows."""
        return list(islice(self._rows, self._cursor.arraysize if size is None else size))

    def fetchall(self) -> list[Any]:
        """Return all remaining rows."""
        return list(self._rows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)


class StreamedCursor:
    """A cursor of a database that accepts no other statement until all its rows are fetched."""

    __slots__ = ("_cursor", "_rest")

    def __init__(self, cursor: Any) -> None:
        self._cursor = self._rest = cursor

    def fetch_ahead(self) -> None:
        """Fetch the remaining rows, because another statement follows."""
        if self._rest is self._cursor:
            self._rest = FetchedCursor(self._cursor, self._cursor.fetchall())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rest, name)
