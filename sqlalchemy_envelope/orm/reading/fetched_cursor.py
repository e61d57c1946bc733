"""Cursors whose rows are fetched ahead: for readers that cannot wait for the database, and for databases that
take no statement before the rows of another one were fetched."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


class FetchedCursor:
    """A cursor whose rows are here already."""

    __slots__ = ("_cursor", "_rows")

    def __init__(self, cursor: Any, rows: Sequence[Any]) -> None:
        self._cursor = cursor
        self._rows = iter(rows)

    def fetchone(self) -> Any:
        """One row, or None."""
        return next(self._rows, None)

    def fetchmany(self, size: int | None = None) -> list[Any]:
        """Some rows."""
        return list(islice(self._rows, self._cursor.arraysize if size is None else size))

    def fetchall(self) -> list[Any]:
        """All rows that are left."""
        return list(self._rows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)


class StreamedCursor:
    """A cursor of a database that takes no other statement while its rows are on their way."""

    __slots__ = ("_cursor", "_rest")

    def __init__(self, cursor: Any) -> None:
        self._cursor = self._rest = cursor

    def fetch_ahead(self) -> None:
        """Fetch the rows that are left: another statement comes."""
        if self._rest is self._cursor:
            self._rest = FetchedCursor(self._cursor, self._cursor.fetchall())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rest, name)
