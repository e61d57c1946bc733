"""Pending rows: they have a value and no tag. No comparison finds them, whichever it is.

A row is pending if it was written by somebody without the owner's index key (`write_only`, a ticket from
before the index, a grant of one scope), or if it was there before its index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import LargeBinary, and_, bindparam, func, or_, select, true, tuple_, update

from sqlalchemy_envelope.orm.columns.plans import mapper_of_table
from sqlalchemy_envelope.orm.indexes.indexed import indexes_of_table
from sqlalchemy_envelope.orm.indexes.tokens.tokenized import tokenized_of_table
from sqlalchemy_envelope.orm.tables.raw_tables import raw_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Column, ColumnElement, Select, Table, Update

    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn
    from sqlalchemy_envelope.orm.indexes.tokens.tokenized import TokenizedColumn
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass, Place


def indexes_of(owner_class: OwnerClass) -> list[IndexedColumn]:
    """The blind indexes of values under keys of these owners, of every scope."""
    return [
        index
        for table in list(owner_class.index_tables)
        for index in indexes_of_table(table)
        if owner_class in index.path.owner_classes
    ]


def token_indexes_of(owner_class: OwnerClass) -> list[TokenizedColumn]:
    """The token indexes of texts under keys of these owners, of every scope."""
    return [
        index
        for table in list(owner_class.index_tables)
        for index in tokenized_of_table(table)
        if owner_class in index.path.owner_classes
    ]


def shown_name(index: IndexedColumn) -> str:
    """The name of an index with that of its class, "Note.title_index"; of its table if no class maps it."""
    table: Table = index.column.table
    mapper = mapper_of_table(table)
    if mapper is None or not mapper.columns.contains_column(index.column):
        return f"{table.name}.{index.column.name}"
    return f"{mapper.class_.__name__}.{mapper.get_property_by_column(index.column).key}"


def count_pending(index: IndexedColumn, place: Place | None) -> Select[Any]:
    """A query for the number of pending rows; with a place, of the rows of that owner."""
    table: Table = index.column.table
    query = select(func.count()).select_from(table).where(is_pending(index))
    return query if place is None else query.where(is_of(index, place))


def select_pending(index: IndexedColumn, place: Place) -> Select[Any]:
    """A query for the pending rows of an owner: the primary key, the values, and what names the owner."""
    table: Table = index.column.table
    keys = tuple(table.primary_key.columns)
    here = [one for one in index.path.columns if one.table is table]
    query = select(*keys, *(one.column for one in index.sources), *here)
    return query.where(is_pending(index), is_of(index, place)).order_by(*keys)


def is_pending(index: IndexedColumn) -> ColumnElement[bool]:
    """The condition that a row has values and no tag. Without one of several values there is none."""
    return and_(index.column.is_(None), *(one.column.is_not(None) for one in index.sources))


def is_of(index: IndexedColumn, place: Place, held: Table | None = None) -> ColumnElement[bool]:
    """The condition that a row is this owner's.

    Args:
        held: the table as a statement has it, if that is another `Table` object.
    """
    table, path = index.column.table, index.path
    c = (table if held is None else held).c
    if not path.columns:
        return true()  # a sole owner has all rows
    base: Any = path.columns[0].table
    if base is table:
        own = [column_named(c, one) for one in path.columns]
        return path.belongs(own, place.owner_class, place.primary_key)
    # A joined subclass: the row of the class that it extends names the owner.
    mine = path.belongs(path.columns, place.owner_class, place.primary_key)
    keys = [column_named(c, one) for one in table.primary_key.columns]
    its = tuple(base.primary_key.columns)
    return (keys[0] if len(keys) == 1 else tuple_(*keys)).in_(select(*its).where(mine))


def column_named(columns: Any, wanted: Column[Any]) -> Any:
    """The column of this name."""
    return next(one for one in columns if one.name == wanted.name)


def update_tag(index: IndexedColumn) -> Update:
    """An UPDATE that gives rows their tags. Send it with `UNCACHED`, and marked: it writes no value.

    Its parameters are `tag`, and `key_0`, `key_1` and so on.
    """
    table: Table = index.column.table
    keys = tuple(table.primary_key.columns)
    raw = raw_table(table, [index.column], keys)  # which has no `onupdate`
    tags = raw.c[index.column.name]
    mine = [raw.c[one.name] == bindparam(f"key_{at}", type_=one.type) for at, one in enumerate(keys)]
    return update(raw).where(*mine, tags.is_(None)).values({tags: bindparam("tag", type_=LargeBinary())})


class OwnTags:
    """The tags of an owner's rows, also those under a next key.

    Attributes:
        keys: the columns that tell a row.
        are_there: the condition that a row is the owner's, and has a tag.
    """

    def __init__(self, index: IndexedColumn, place: Place) -> None:
        table: Table = index.column.table
        here = {
            one.name: one for one in (*table.primary_key.columns, *index.path.columns) if one.table is table
        }
        both = [one for one in (index.column, index.guard) if one is not None]
        self._table = raw_table(table, both, here.values())
        self._tags = [self._table.c[one.name] for one in both]
        self.keys = [self._table.c[one.name] for one in table.primary_key.columns]
        self.are_there = and_(
            or_(*(one.is_not(None) for one in self._tags)), is_of(index, place, self._table)
        )

    def update_to_none(self) -> Update:
        """An UPDATE that takes them away. Send it as `update_tag`."""
        return update(self._table).where(self.are_there).values(dict.fromkeys(self._tags))


def converted(index: IndexedColumn, values: Sequence[Any]) -> Iterator[Any]:
    """Decrypted values of a row, as their inner types convert them to be encrypted."""
    for source, value in zip(index.sources, values, strict=True):
        yield value if source.convert is None or value is None else source.convert(value)
