"""The blind indexes of the models, each with its table, and the statements that read and write its tags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import LargeBinary, and_, bindparam, not_, null, update
from sqlalchemy import column as bare_column

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.migration.database.columns import MigratingColumn, encrypted_columns
from sqlalchemy_envelope.migration.database.rows import Rows
from sqlalchemy_envelope.orm.columns.plans import mapper_of_table
from sqlalchemy_envelope.orm.indexes.tokens.tokenized import tokenized_of_table
from sqlalchemy_envelope.orm.tables.bases import metadata_of
from sqlalchemy_envelope.orm.writing.marks import mark

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy import ColumnElement, Connection
    from sqlalchemy.engine import Dialect

    from sqlalchemy_envelope.orm.columns.plans import EncryptedColumn
    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn
    from sqlalchemy_envelope.orm.indexes.tokens.tokenized import TokenizedColumn
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
    def indexes(self) -> tuple[IndexedColumn, ...]:
        """The index alone: the tags of other indexes of its columns are not worked on."""
        return (self.index,)

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


def token_indexes(base: Any) -> dict[str, TokenizedColumn]:
    """The token indexes of a declarative base, or a registry, by their names: `table.index`. They have tables
    of tags, and no job works on them.

    Raises:
        ConfigurationError: `base` is neither.
    """
    tables = [table for metadata in metadata_of(base) for table in metadata.tables.values()]
    found = [one for table in dict.fromkeys(tables) for one in tokenized_of_table(table)]
    return {f"{one.text.table.name}.{one.key}": one for one in found}


def refuse_tokens(tokens: Mapping[str, TokenizedColumn], name: str) -> None:
    """Say what fills and checks a token index.

    Raises:
        ConfigurationError: it is a token index.
    """
    one = tokens.get(name)
    if one is None:
        return
    mapper = mapper_of_table(one.text.table)
    attribute = name if mapper is None else f"{mapper.class_.__name__}.{one.key}"
    if one.scope != "server":
        cure = "each owner fills it when unlocked, or with `envelope.settle(session)`"
    else:
        cure = (
            f"`fill_tokens(session, {attribute}, objects)` gives tags to rows that have none, and "
            f"`stale_tokens(session, {attribute}, objects)` finds rows whose tags are not those of their text"
        )
    raise ConfigurationError(f"{name} is a token index, which has a table of tags and no column: {cure}.")


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
    def has_values(self) -> ColumnElement[bool]:
        """Whether the row has a value of each indexed column. With NULL in one of them it has no tag."""
        return and_(self.encrypted.is_not(None), *(one.is_not(None) for one in self._others))

    def selected(self, where: ColumnElement[bool], after: Position | None, upto: Position | None) -> Any:
        """The query behind `read`."""
        query = super().selected(where, after, upto)
        query = query.add_columns(*map(self.as_stored, [*self._others, self.tag]))
        # A tag of several values is right only as long as no value changes.
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
        """Take the tags from rows without values."""
        emptied = 0
        for position in positions:
            pairs = zip(self.keys, position, strict=True)
            mine = [key == bindparam(None, part, type_=key.type) for key, part in pairs]
            statement = update(self.table).where(*mine, not_(self.has_values))
            statement = statement.values({**dict.fromkeys(self._tags, null()), **self._kept()})
            emptied += connection.execute(mark(statement)).rowcount
        return emptied
