"""References of rows: what the AAD of a row-bound value ends in, so that the value opens in its row alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.crypto.aead import NO_ROW, row_tail, row_tails
from sqlalchemy_envelope.crypto.context import encode_reference
from sqlalchemy_envelope.exceptions import StatementRefusedError
from sqlalchemy_envelope.orm.tables.key_types import mistyped_for

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy_envelope.orm.writing.rows import WrittenRows

    Row = Mapping[str, Any]


class RowReferences:
    """The references of one statement's rows: their primary keys, encoded."""

    __slots__ = ("_key_names", "_rows")

    def __init__(self, rows: WrittenRows) -> None:
        self._rows = rows
        self._key_names = [rows.parameter(column.key) for column in rows.plan.table.primary_key]

    def tails(self, bound: Sequence[str], rows: Sequence[Row]) -> list[bytes]:
        """The ends of the AADs of these rows' values.

        Args:
            bound: the parameters with row-bound values. Without any there are no tails.
        """
        if not bound:
            return []
        if self._rows.inserts and len(self._key_names) == 1:
            keys = [row.get(self._key_names[0]) for row in rows]
            if None not in keys:
                if set(map(type, keys)) != set(self._rows.plan.key_kinds):
                    for key in keys:
                        self._require_as_read([key])
                return row_tails(keys)
        # An UPDATE that leaves row-bound columns alone need not name a row.
        return [
            row_tail(self.of(row))
            if any([row.get(name) is not None for name in bound])  # noqa: C419 - less than a generator costs
            else NO_ROW
            for row in rows
        ]

    def of(self, row: Row) -> bytes:
        """The reference of one row.

        Raises:
            StatementRefusedError: the statement does not name the row's primary key.
        """
        parts = [row.get(name) for name in self._key_names] if self._rows.inserts else [None]
        if None not in parts:
            return self._encoded(parts)
        parts = []
        columns = self._rows.plan.table.primary_key.columns
        for column, now in zip(columns, self._rows.identity(row), strict=True):
            part = now if self._rows.inserts else row.get(self._rows.parameter(column.key), now)
            part = self._rows.literals.get(column.key) if part is None else part
            if part is None:
                raise StatementRefusedError(
                    f"A statement writes a row-bound column of {self._rows.plan.table.name} and does not "
                    f"name the row's {column.key}. Load and change the objects instead."
                )
            parts.append(part)
        return self._encoded(parts)

    def _encoded(self, parts: Sequence[Any]) -> bytes:
        if tuple(map(type, parts)) != self._rows.plan.key_kinds:
            self._require_as_read(parts)
        return encode_reference(parts)

    def _require_as_read(self, parts: Sequence[Any]) -> None:
        """Refuse a primary key in another form than it is read in: a value bound to that would never open.

        Raises:
            StatementRefusedError: the row's key is `"1"`, and its column has numbers.
        """
        columns: Any = self._rows.plan.table.primary_key.columns
        wrong = mistyped_for(columns, self._rows.plan.key_kinds, parts)
        if wrong is not None:
            raise StatementRefusedError(f"A row-bound value would never open again: {wrong}.")
