"""The blind indexes of the models, each with its table, and the statements that read and write its tags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import LargeBinary, bindparam, not_, null, or_, update
from sqlalchemy import column as bare_column

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.migration.database.columns import MigratingColumn, encrypted_columns
from sqlalchemy_envelope.migration.database.rows import Rows
from sqlalchemy_envelope.orm.tables.stored_rows import raw
from sqlalchemy_envelope.orm.writing.marks import mark

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import ColumnElement, Connection
    from sqlalchemy.engine import Dialect

    from sqlalchemy_envelope.orm.columns.plans import EncryptedColumn
    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn
    from sqlalchemy_envelope.orm.tables.keyset import Position


@dataclass(frozen=True, eq=False)
class IndexColumn(MigratingColumn):
    """A blind index; as a column that is worked on, it is the first column that it indexes.

    Attributes:
        index: the index.
    """

    index: IndexedColumn

    @property
    def name(self) -> str:
        """The index's name in the state table and on the command line: `table.index`."""
        return f"{self.table.name}.{self.index.key}"

    @property
    def sources(self) -> tuple[EncryptedColumn, ...]:
        """The encrypted columns."""
        return self.index.sources


def index_columns(base: Any) -> list[IndexColumn]:
    """The blind indexes of a declarative base, or a registry, in the order of names.

    Raises:
        ConfigurationError: `base` is neither.
    """
    found: dict[Any, IndexColumn] = {}
    for one in encrypted_columns(base):
        for index in one.indexes:
            if index.sources[0].column is one.encrypted:
                found.setdefault(
                    index.column,
                    IndexColumn(
                        one.mapper, one.attribute, one.table, one.keys, one.encrypted, None, one.plan, index
                    ),
                )
    return sorted(found.values(), key=lambda one: one.name)


def index_named(indexes: Iterable[IndexColumn], name: str) -> IndexColumn:
    """The index with this name.

    Raises:
        ConfigurationError: no index has this name.
    """
    known = list(indexes)
    for one in known:
        if name in (one.name, f"{one.table.name}.{one.index.column.name}"):
            return one
    there = ", ".join(one.name for one in known) or "none"
    raise ConfigurationError(f"No blind index is called {name!r} (there is: {there}).")


class IndexRows(Rows):
    """The table of a blind index, on a database. A row that is read has more parts than in `Rows`: the stored
    values of the other indexed columns, and the tag."""

    column: IndexColumn

    def __init__(self, column: IndexColumn, dialect: Dialect, *, owners_checked: bool = False) -> None:
        super().__init__(column, dialect, owners_checked=owners_checked)
        self.tag = self.table.c[column.index.column.name]
        self._others: list[Any] = [
            bare_column(one.column.name, LargeBinary(), _selectable=self.table) for one in column.sources[1:]
        ]

    @property
    def has_value(self) -> ColumnElement[bool]:
        """Whether the row has a value of any indexed column."""
        return or_(self.encrypted.is_not(None), *(one.is_not(None) for one in self._others))

    def selected(self, where: ColumnElement[bool], after: Position | None, upto: Position | None) -> Any:
        """The query behind `read`."""
        query = super().selected(where, after, upto)
        query = query.add_columns(*map(raw, self._others), raw(self.tag))
        # A tag of several values is theirs only as long as none of them changes.
        locks = bool(self._others) and self._name != "sqlite"
        return (
            query.with_for_update(key_share=self._name == "postgresql", of=self._locked) if locks else query
        )

    def split(self, row: Any) -> Any:
        """The parts of a row as in `Rows`, the stored values of all indexed columns, and the tag."""
        more = len(self._others) + 1
        parts = super().split(tuple(row[:-more]))
        return (*parts, (parts[-1], *row[-more:-1]), row[-1])

    def empty_tags(self, connection: Connection, positions: list[Position]) -> int:
        """Take the tags from rows without a value."""
        emptied = 0
        for position in positions:
            pairs = zip(self.keys, position, strict=True)
            mine = [key == bindparam(None, part, type_=key.type) for key, part in pairs]
            statement = update(self.table).where(*mine, not_(self.has_value))
            statement = statement.values({**dict.fromkeys(self._tags, null()), **self._kept()})
            emptied += connection.execute(mark(statement)).rowcount
        return emptied
