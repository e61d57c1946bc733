"""Blind indexes kept in step: a statement that writes an encrypted value writes its tags, too."""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any

from sqlalchemy import null
from sqlalchemy.sql.elements import BindParameter, Null

from sqlalchemy_envelope.exceptions import NormalizationError, StatementRefusedError
from sqlalchemy_envelope.orm.indexes.indexed import indexes_of_table
from sqlalchemy_envelope.orm.indexes.server_keys import server_hashers
from sqlalchemy_envelope.orm.indexes.tag import TAG
from sqlalchemy_envelope.orm.writing.index_values import forget_parts, values_of
from sqlalchemy_envelope.orm.writing.unstorable import unstorable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy_envelope.crypto.blind_index import IndexHasher
    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn
    from sqlalchemy_envelope.orm.writing.rows import WrittenRows

    Hashers = Sequence[tuple[IndexedColumn, IndexHasher | None]]


class IndexTags:
    """The tags of one statement's rows."""

    __slots__ = ("_guarded", "_guards", "_hashers", "_indexes", "_options", "_rows")

    def __init__(self, rows: WrittenRows, options: Any) -> None:
        self._rows = rows
        self._options = options
        self._indexes = indexes_of_table(rows.plan.table)
        self._hashers: dict[IndexedColumn, IndexHasher] = {}
        self._guards: dict[IndexedColumn, IndexHasher | None] = {}
        self._guarded: dict[IndexedColumn, bool] = {}

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Put the tags of the values into these rows, which are not encrypted yet. An index under the owners'
        keys gets NULL, until `add_owned` puts tags there.

        Raises:
            StatementRefusedError: the statement writes an index by itself.
            ValueEncodingError: a value has another type than its column takes.
            NormalizationError: the normaliser of an index makes nothing of a value.
        """
        for index in self._indexes:
            name, is_written = index.key, self._is_written(index, rows[0])
            if self._is_given(index, rows, is_written=is_written):
                raise StatementRefusedError(
                    f"The blind index {index.label!r} is written with what it indexes, "
                    f"{' and '.join(one.key for one in index.sources)}. Leave it out of the statement."
                )
            if not is_written:
                continue
            if len(index.sources) > 1:
                forget_parts(self._rows, rows[0])
            if index.scope == "server":
                self._add_tags(index, rows, None)
                continue
            for row in rows:
                row[name] = None

    def add_owned(self, rows: Sequence[dict[str, Any]], hashers: Hashers) -> None:
        """Put the tags under an owner's index key into the owner's rows. Without the key they stay NULL:
        their owner fills them in, and so a value that can have no tag is refused now.

        Raises:
            ValueEncodingError: a value has another type than its column takes.
            NormalizationError: the normaliser of an index makes nothing of a value.
        """
        for index, hasher in hashers:
            if index not in self._indexes or not self._is_written(index, rows[0]):
                continue
            if hasher is None:
                self._datas(index, rows)
            else:
                self._add_tags(index, rows, hasher)

    def _add_tags(
        self, index: IndexedColumn, rows: Sequence[dict[str, Any]], hasher: IndexHasher | None
    ) -> None:
        """Put tags into rows. Without a hasher, the server's is taken if there is a value."""
        name, datas = self._rows.parameter(index.key), self._datas(index, rows)
        tags: Any = repeat(None)
        if datas.count(None) < len(datas):
            tags = (self._hasher(index) if hasher is None else hasher).tags(datas)
        for row, tag in zip(rows, tags, strict=False):
            row[name] = None if tag is None else (TAG, tag)
        if index.guard is not None:
            self._add_guards(index, index.guard.key, rows, datas)

    def _add_guards(
        self, index: IndexedColumn, name: str, rows: Sequence[dict[str, Any]], datas: Sequence[bytes | None]
    ) -> None:
        """Put the tags under the next key beside those of the index. Where there is none, a row that exists
        may have one all the same, of its value before: it is emptied."""
        hasher = self._guards.get(index)
        if index not in self._guarded:  # all rows of a statement have the same parameters
            may_be_there = not self._rows.inserts or self._rows.upserts or index not in self._guards
            self._guarded[index] = may_be_there or hasher is not None
        if not self._guarded[index]:
            return
        tags: Any = repeat(None) if hasher is None else hasher.tags(datas)
        for row, tag in zip(rows, tags, strict=False):
            row[name] = None if tag is None else (TAG, tag)

    def _datas(self, index: IndexedColumn, rows: Sequence[dict[str, Any]]) -> list[bytes | None]:
        """What is hashed of each row's values."""
        data, names = index.kind.data, [self._rows.parameter(one.key) for one in index.sources]
        values: Any = None if len(names) == 1 else [values_of(self._rows, index, row) for row in rows]
        try:
            if values is None:
                (name,) = names
                return [data((row.get(name),)) for row in rows]
            return [data(one) for one in values]
        except Exception:  # noqa: BLE001, S110 - raised below, chained to nothing that holds the value
            pass
        del values
        raise self._faulty(index, rows)

    def _faulty(self, index: IndexedColumn, rows: Sequence[dict[str, Any]]) -> Exception:
        """The error for the first row whose values have no tag."""
        for row in rows:
            values = values_of(self._rows, index, row)
            known: NormalizationError | None = None
            try:
                index.kind.data(values)
                continue
            except NormalizationError as error:
                known = error.with_traceback(None)
            except Exception:  # noqa: BLE001, S110 - the value is not shown
                pass
            return self._unstorable(index, row) or known or unstorable(index.sources[0], None, None)
        return unstorable(index.sources[0], None, None)

    def _is_given(self, index: IndexedColumn, rows: Sequence[dict[str, Any]], *, is_written: bool) -> bool:
        """Whether the statement writes an index by itself. A NULL of an INSERT, or beside the value that is
        indexed, does not count: `insert(table).values((1, None, None))` names every column. Nor does what an
        object holds of its index: it may come from `session.merge()`."""
        clauses, name = self._rows.assignments.clauses, self._rows.parameter(index.key)
        if name != index.key or not isinstance(clauses.get(name, null()), (BindParameter, Null)):
            return True
        if self._rows.notes is not None:
            return False
        if any([row.get(name) is not None for row in rows]):  # noqa: C419
            return True
        is_named = name in clauses or name in rows[0]
        return is_named and not is_written and not self._rows.inserts

    def _is_written(self, index: IndexedColumn, row: dict[str, Any]) -> bool:
        """Whether the statement writes what an index indexes."""
        clauses = self._rows.assignments.clauses
        return any(
            self._rows.parameter(one.key) in row or isinstance(clauses.get(one.key), Null)
            for one in index.sources
        )

    def _unstorable(self, index: IndexedColumn, row: dict[str, Any]) -> Exception | None:
        """The error for a value that its column does not take, whatever the index makes of it."""
        for source in index.sources:
            value = row.get(self._rows.parameter(source.key))
            try:
                if value is not None:
                    source.encode_converted(value)
            except Exception:  # noqa: BLE001 - the value is not shown
                return unstorable(source, value, None)
        return None

    def _hasher(self, index: IndexedColumn) -> IndexHasher:
        known = self._hashers.get(index)
        if known is None:
            found = server_hashers(self._rows.connection, index, makes=True, options=self._options)
            assert found.writes is not None  # noqa: S101 - it was made
            known = self._hashers[index] = found.writes
            self._guards[index] = found.guards
        return known
