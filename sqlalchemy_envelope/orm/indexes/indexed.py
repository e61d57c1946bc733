"""The blind indexes of a table: which columns each of them indexes, and what it makes of their values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Table

from sqlalchemy_envelope.crypto.blind_index import IndexHasher
from sqlalchemy_envelope.crypto.slow_index import SlowIndexHasher, slow_form
from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.columns.origin import origin_of
from sqlalchemy_envelope.orm.columns.plans import encrypted_column_of, mapper_of_table, plan_of_table
from sqlalchemy_envelope.orm.indexes.blind_index import BlindIndex
from sqlalchemy_envelope.orm.indexes.guards import IndexGuard, guard_of
from sqlalchemy_envelope.orm.indexes.kinds.compound import Compound
from sqlalchemy_envelope.orm.indexes.kinds.equal import Equal, Normalized
from sqlalchemy_envelope.orm.indexes.kinds.prefix import Prefix
from sqlalchemy_envelope.orm.indexes.kinds.range import Range
from sqlalchemy_envelope.orm.indexes.low_entropy import check_entropy
from sqlalchemy_envelope.orm.indexes.normalizing import normalizers_of
from sqlalchemy_envelope.orm.indexes.off_loop import off_the_loop
from sqlalchemy_envelope.orm.tables.records import records_of_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy_envelope.crypto.secret import KeyBytes
    from sqlalchemy_envelope.orm.columns.plans import EncryptedColumn
    from sqlalchemy_envelope.orm.indexes.kinds.kind import Kind
    from sqlalchemy_envelope.orm.tables.owner_paths import OwnerPath

_INDEXES = "blind indexes"


class IndexedColumn:
    """A blind index, with the encrypted columns that it indexes.

    Attributes:
        column: the column of tags.
        key: its name in a statement's parameters.
        sources: the encrypted columns.
        kind: what it makes of their values.
        label: the name that its tags are bound to.
        path: the path from a row to its owner.
        guard: the column with the tags of the next key during a rotation; None if the server holds no key.
        data_scope: the scope of the keys of its values. An index under an owner's key has an index key of
            that scope.
    """

    __slots__ = (
        "bits",
        "column",
        "data_scope",
        "guard",
        "key",
        "kind",
        "label",
        "path",
        "scope",
        "sources",
        "type",
    )

    def __init__(self, column: Column[Any], sources: Sequence[EncryptedColumn]) -> None:
        type_: BlindIndex = column.type  # type: ignore[assignment]  # only such columns come here
        self.column = column
        self.key: str = column.key
        self.type = type_
        self.sources = tuple(sources)
        self.kind = _kind(type_, self.sources)
        self.scope = type_.scope
        self.bits = type_.bits
        self.label: str = type_.label or ""
        self.path: OwnerPath = self.sources[0].path
        self.data_scope = self.sources[0].scope
        self.guard = guard_of(column)

    def hasher(self, key: KeyBytes) -> IndexHasher:
        """What makes the tags of this index under a key."""
        if self.type.slow is not None:
            return SlowIndexHasher(key, self.label, self.kind.form, self.bits, self.type.slow, off_the_loop)
        return IndexHasher(key, self.label, self.kind.form, self.bits)

    def is_like(self, other: IndexedColumn) -> bool:
        """Whether equal values have equal tags in both indexes: each table has index keys of its own."""
        if self.column is other.column:
            return True
        mine, others = ((one.label, one.kind.form, one.bits, one.scope) for one in (self, other))
        return mine == others and (self.scope != "server" or self.column.table is other.column.table)


def _kind(type_: BlindIndex, sources: Sequence[EncryptedColumn]) -> Kind:
    kind = _quick_kind(type_, sources)
    if type_.slow is not None:
        kind.form = slow_form(kind.form, type_.slow)
    return kind


def _quick_kind(type_: BlindIndex, sources: Sequence[EncryptedColumn]) -> Kind:
    if type_.bucket is not None:
        return Range(sources, type_.bucket, type_.normalize)
    normalizers = normalizers_of(type_, sources)
    if len(sources) > 1:
        return Compound(sources, normalizers)
    if type_.prefix is not None:
        return Prefix(sources[0], normalizers[0], type_.prefix)
    if normalizers[0] is not None:
        return Normalized(sources[0], normalizers[0])
    return Equal(sources[0])


def indexes_of_table(table: Table) -> tuple[IndexedColumn, ...]:
    """The blind indexes of a table.

    Raises:
        ConfigurationError: an index names no encrypted attribute of its table, or one of few values.
    """
    records = records_of_table(table)
    known: tuple[IndexedColumn, ...] | None = records.get(_INDEXES)
    if known is None:
        known = tuple(_resolved(one) for one in table.columns if _is_index(one))
        records[_INDEXES] = known
    return known


def _is_index(column: Column[Any]) -> bool:
    return isinstance(column.type, BlindIndex) and not isinstance(column.type, IndexGuard)


def forget_indexes(table: Table) -> None:
    """Find the indexes of a table again: it has another mapper, or one more column."""
    records_of_table(table).pop(_INDEXES, None)


def indexes_on(column: Any) -> tuple[IndexedColumn, ...]:
    """The blind indexes of an encrypted column of a table, alone or with others, in the order in which they
    are asked."""
    table = getattr(column, "table", None)
    if not isinstance(table, Table):
        return ()
    found = [one for one in indexes_of_table(table) if any(source.column is column for source in one.sources)]
    return tuple(sorted(found, key=lambda one: one.kind.rank))


def _resolved(column: Column[Any]) -> IndexedColumn:
    type_: BlindIndex = column.type  # type: ignore[assignment]  # only such columns come here
    sources = [_source(column, name) for name in type_.of]
    check_entropy(column, sources, type_.allow_low_entropy)
    index = IndexedColumn(column, sources)
    if index.scope != "server":
        note_owners(index)
    if origin_of(index.sources[0].column) is None:  # no copy of a table for another MetaData
        for owner_class in index.path.owner_classes:
            owner_class.index_tables[column.table] = None
    return index


def note_owners(index: IndexedColumn) -> None:
    """Have an index key made for each owner of the values.

    Raises:
        ConfigurationError: the values have several owners, or are under data keys of several scopes.
    """
    for source in index.sources:
        if source.path.identity != index.path.identity or source.scope != index.data_scope:
            table, first = index.column.table.name, index.sources[0].key
            raise ConfigurationError(
                f"{table}.{index.column.name} is a blind index of the scope {index.scope!r} over {first} and "
                f"{source.key}, which are under the keys of two owners, or of two scopes. Index each alone; "
                "or BlindIndex(..., scope='server')."
            )
    for owner_class in index.path.owner_classes:
        owner_class.indexed.add(index.data_scope)


def _source(column: Column[Any], name: str) -> EncryptedColumn:
    table: Table = column.table
    mapper = mapper_of_table(table)
    source: Any = None
    if mapper is not None and name in mapper.column_attrs:
        source = next(
            (one for one in mapper.column_attrs[name].columns if getattr(one, "table", None) is table), None
        )
    if source is None:
        source = table.columns.get(name)
    encrypted = None if source is None else encrypted_column_of(source)
    if encrypted is None:
        plan = plan_of_table(table)
        there = sorted(() if plan is None else plan.keys)
        raise ConfigurationError(
            f"{table.name}.{column.name} is a blind index of {name!r}, which is no encrypted column of "
            f"{table.name}. Its encrypted columns: {', '.join(there) or 'none'}."
        )
    return encrypted
