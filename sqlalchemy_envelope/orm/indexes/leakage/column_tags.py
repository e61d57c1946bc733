"""The tags of a live column, counted by the database: what anybody with a dump can count."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn
    from sqlalchemy_envelope.orm.indexes.leakage.attack import Histogram

_TOGETHER = 500
"""Tags that are looked for in one statement."""


class ColumnTags:
    """The tags of one index in one database."""

    def __init__(self, session: Session, index: IndexedColumn) -> None:
        self._session = session
        self._table: Any = index.column.table
        self._tags = index.column
        self._index = index

    @property
    def keyed_apart(self) -> list[Any]:
        """The columns that tell whose key made a tag. Equal tags of two owners say nothing."""
        if self._index.scope == "server":
            return []
        return [one for one in self._index.path.columns if one.table is self._table]

    def histograms(self) -> list[Histogram]:
        """How many tags have how many rows, for each key: one histogram of an index of the server's scope,
        one for each owner of another."""
        owner = self.keyed_apart
        counted = select(*owner, func.count().label("rows"))
        counted = counted.where(self._tags.is_not(None)).group_by(*owner, self._tags)
        each = counted.subquery()
        whose = [each.c[one.key] for one in owner]
        query = select(*whose, each.c.rows, func.count()).group_by(*whose, each.c.rows)
        found: defaultdict[Any, Histogram] = defaultdict(dict)
        for *key, count, tags in self._run(query):
            found[tuple(key)][count] = tags
        return list(found.values())

    def pending(self) -> int:
        """The rows that have values and no tag yet."""
        values = [one.column.is_not(None) for one in self._index.sources]
        query = select(func.count()).select_from(self._table).where(self._tags.is_(None), *values)
        return int(self._run(query).scalar_one())

    def counts_of(self, tags: Iterable[bytes]) -> Counter[bytes]:
        """The rows of each of these tags."""
        wanted, found = list(tags), Counter[bytes]()
        for start in range(0, len(wanted), _TOGETHER):
            some = self._tags.in_(wanted[start : start + _TOGETHER])
            query = select(self._tags, func.count()).where(some).group_by(self._tags)
            for tag, count in self._run(query):
                found[bytes(tag)] += count
        return found

    def _run(self, query: Any) -> Any:
        return self._session.execute(query)
