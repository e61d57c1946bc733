"""The rows of a blind index during a rotation of its key: guards are filled, moved and emptied in the
order of the primary key, each only if its row is still as it was read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import LargeBinary, and_, bindparam, func, null, or_, select, update

from sqlalchemy_envelope.orm.columns.sealed import Sealed
from sqlalchemy_envelope.orm.tables.binds import bind_for
from sqlalchemy_envelope.orm.tables.keyset import beyond, up_to
from sqlalchemy_envelope.orm.tables.raw_tables import UNCACHED, raw_table
from sqlalchemy_envelope.orm.writing.marks import mark
from sqlalchemy_envelope.orm.writing.moved_rows import Batch, MovedRows

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.crypto.blind_index import IndexHasher
    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn
    from sqlalchemy_envelope.orm.tables.keyset import Position


class GuardRows(MovedRows):
    """The rows of a blind index."""

    def __init__(self, session: Session, index: IndexedColumn) -> None:
        assert index.guard is not None  # noqa: S101 - an index of the server's scope has one
        table: Any = index.column.table
        super().__init__(session, table)
        self._index = index
        primary = list(table.primary_key.columns)
        sources = [source.column for source in index.sources]
        self._raw = raw_table(table, [index.column, index.guard, *sources], primary)
        c = self._raw.c
        self._keys = [c[one.name] for one in primary]
        self._tags, self._guard = c[index.column.name], c[index.guard.name]
        self._values = [c[one.name] for one in sources]
        self.pending = and_(self._tags.is_not(None), self._guard.is_(None))
        self.guarded = self._guard.is_not(None)
        self.unmoved = and_(self.guarded, self._tags != self._guard)
        self.left = or_(self.pending, self.unmoved)

    def _send(self, statement: Any, parameters: Any = None) -> Any:
        return self.connection.execute(statement, parameters, execution_options=UNCACHED)

    def know(self, old: IndexHasher | None) -> None:
        """Nothing: what is in a guard is under the next key."""

    def any(self, condition: ColumnElement[bool], *, locks: bool = False) -> bool:
        """As `MovedRows.any`."""
        query = select(1).select_from(self._raw).where(condition).limit(1)
        return self._send(query.with_for_update(read=True) if locks else query).first() is not None

    def count(self, condition: ColumnElement[bool]) -> int:
        """As `MovedRows.count`."""
        query = select(func.count()).select_from(self._raw).where(condition)
        return int(self._send(query).scalar_one())

    def fill(self, hasher: IndexHasher, after: Position | None, size: int) -> Batch:
        """Give pending rows whose values are open here their guards."""
        stored = select(*self._keys, *self._values).where(self.pending, *self._after(after))
        found = [tuple(row) for row in self._send(stored.order_by(*self._keys).limit(size))]
        if not found:
            return Batch(None, 0)
        width = len(self._keys)
        last = found[-1][:width]
        # The values after the bytes: what was changed in between is left, for its bytes are others.
        tags = self._tags_of(hasher, after, last)
        made = [
            self._named(row, {"made": tags[row[:width]]})
            for row in found
            if tags.get(row[:width]) is not None
        ]
        if made:
            is_same = [key == bindparam(f"key_{at}", type_=key.type) for at, key in enumerate(self._keys)]
            is_same += [
                value.is_not_distinct_from(bindparam(f"value_{at}", type_=LargeBinary()))
                for at, value in enumerate(self._values)
            ]
            change = update(self._raw).where(*is_same, self.pending)
            self._send(mark(change.values({self._guard.name: bindparam("made", type_=LargeBinary())})), made)
        return Batch(last, len(made))

    def _named(self, row: tuple[Any, ...], more: dict[str, Any]) -> dict[str, Any]:
        width = len(self._keys)
        keys = {f"key_{at}": part for at, part in enumerate(row[:width])}
        return keys | {f"value_{at}": value for at, value in enumerate(row[width:])} | more

    def _tags_of(
        self, hasher: IndexHasher, after: Position | None, last: Position
    ) -> dict[Position, bytes | None]:
        """The tags of rows whose values are open here, by their primary keys."""
        table, sources = self._index.column.table, self._index.sources
        keys = list(table.primary_key.columns)
        owners = [one for one in self._index.path.columns if one.table is table and one not in keys]
        query = select(*keys, *owners, *(source.column for source in sources))
        query = query.where(*self._bounds(keys, after, last), self._index.column.is_not(None))
        with self._session.no_autoflush:
            rows = self._session.execute(query, bind_arguments=bind_for(self._session, self._mapper, query))
        tags: dict[Position, bytes | None] = {}
        for row in rows:
            values = row[len(keys) + len(owners) :]
            if not any(isinstance(value, Sealed) for value in values):
                tags[tuple(row[: len(keys)])] = self._tag(hasher, values)
        return tags

    def _tag(self, hasher: IndexHasher, values: Any) -> bytes | None:
        converted = [
            value if source.convert is None else source.convert(value)
            for source, value in zip(self._index.sources, values, strict=True)
        ]
        data = self._index.kind.data(converted)
        return None if data is None else hasher.tag(data)

    def move(self, after: Position | None, size: int) -> Batch:
        """Put what guards have into the index."""
        return self._set(self.unmoved, {self._tags.name: self._guard}, after, size)

    def clear(self, after: Position | None, size: int) -> Batch:
        """Empty guards."""
        return self._set(self.guarded, {self._guard.name: null()}, after, size)

    def _set(
        self, condition: ColumnElement[bool], values: dict[str, Any], after: Position | None, size: int
    ) -> Batch:
        query = select(*self._keys).where(condition, *self._after(after)).order_by(*self._keys).limit(size)
        found = [tuple(row) for row in self._send(query)]
        if not found:
            return Batch(None, 0)
        bounds = self._bounds(self._keys, after, found[-1])
        self._send(mark(update(self._raw).where(*bounds, condition).values(values)))
        return Batch(found[-1], len(found))

    def _after(self, after: Position | None) -> list[ColumnElement[bool]]:
        return [] if after is None else [beyond(self._keys, after, self._dialect)]

    def _bounds(self, keys: Any, after: Position | None, last: Position) -> list[ColumnElement[bool]]:
        lower = [] if after is None else [beyond(keys, after, self._dialect)]
        return [*lower, up_to(keys, last, self._dialect)]
