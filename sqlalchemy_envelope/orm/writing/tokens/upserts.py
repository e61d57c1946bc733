"""Upserts on a table with a token index: which rows have the texts that they brought.

A row that was there may have been left as it was, and the result does not tell. So the rows are read again:
no two ciphertexts are the same, and a row with the ciphertext that was sent has its text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import UniqueConstraint, select
from sqlalchemy.sql.elements import ClauseElement

from sqlalchemy_envelope.exceptions import StatementRefusedError
from sqlalchemy_envelope.orm.tables.owner_paths import among
from sqlalchemy_envelope.orm.tables.raw_tables import UNCACHED, raw_table
from sqlalchemy_envelope.orm.tables.rows import chunks
from sqlalchemy_envelope.orm.writing.assignments import literal_value
from sqlalchemy_envelope.orm.writing.forms import assigned_by_upsert, column_key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy_envelope.orm.writing.rows import WrittenRows

    Key = tuple[Any, ...]


class TokenUpsert:
    """The rows of an upsert."""

    __slots__ = ("_given", "_rows", "_sent", "_shared", "_updates")

    def __init__(self, rows: WrittenRows) -> None:
        self._rows = rows
        self._updates = {column_key(key) for key in assigned_by_upsert(rows.statement)}
        self._shared = self._shared_columns()
        self._sent: list[Mapping[str, Any]] = []
        self._given: list[Key] = []

    def _shared_columns(self) -> list[str] | None:
        """The columns by which a row that is there is found; None if nobody can say."""
        table = self._rows.plan.table
        clause: Any = getattr(self._rows.statement, "_post_values_clause", None)
        named = getattr(clause, "inferred_target_elements", None)
        if named and self._updates:
            by_name = {column.name: column.key for column in table.columns}
            return [by_name.get(one, one) if isinstance(one, str) else column_key(one) for one in named]
        has_another = any(isinstance(one, UniqueConstraint) for one in table.constraints)
        has_another |= any(one.unique for one in table.indexes)
        is_named = getattr(clause, "constraint_target", None) is not None
        if self._updates and (has_another or is_named):
            return None
        return [column.key for column in table.primary_key]

    def add(self, row: Mapping[str, Any]) -> None:
        """Note a row of the statement. Its texts are encrypted in place before it is sent."""
        self._sent.append(row)
        self._given.append(tuple(literal_value(self._rows.value(key, row)) for key in self._shared or ()))

    def check(self) -> None:
        """Refuse an upsert whose rows cannot be found afterwards.

        Raises:
            StatementRefusedError: they cannot.
        """
        key = {column.key for column in self._rows.plan.table.primary_key}
        shared = set(self._shared or ())
        is_given = not any(
            one is None or isinstance(one, (ClauseElement, tuple)) for given in self._given for one in given
        )
        if not shared or not is_given or shared & self._rows.plan.keys or self._updates & (key | shared):
            raise StatementRefusedError(
                f"{self._rows.plan.table.name} has a token index, and this upsert does not tell which rows "
                f"it writes; nothing was sent. Give each row its {' and '.join(sorted(key))}, or let the "
                "conflict be about columns whose values the rows have (`index_elements=[...]`), and do not "
                "set these; or load the rows and change the objects."
            )

    def find(self, indexed: Sequence[str]) -> dict[Key, int]:
        """The rows that have the texts, by primary key, each with its place in the statement."""
        columns: Any = self._rows.plan.table.columns
        shared = [columns[key] for key in self._shared or ()]
        own, texts = list(self._rows.plan.table.primary_key), [columns[key] for key in indexed]
        raw = raw_table(self._rows.plan.table, texts, {*shared, *own}).columns
        query = select(*(raw[one.name] for one in (*shared, *own, *texts)))
        places = {given: at for at, given in enumerate(self._given)}
        found: dict[Key, int] = {}
        for some in chunks(list(places)):
            wanted = query.where(among([raw[one.name] for one in shared], some))
            for row in self._rows.connection.execute(wanted, execution_options=UNCACHED):
                values = tuple(row)
                place = places[values[: len(shared)]]
                sent = [self._sent[place].get(self._rows.parameter(key)) for key in indexed]
                if values[len(values) - len(texts) :] == tuple(one and one[1] for one in sent):
                    found[values[len(shared) : len(shared) + len(own)]] = place
        return found
