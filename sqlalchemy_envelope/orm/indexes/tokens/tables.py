"""`<table>_<name>`: the tags of a token index, which the database deletes with their row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from sqlalchemy import Column, ForeignKeyConstraint, Index, LargeBinary, PrimaryKeyConstraint, Table
from sqlalchemy.dialects.mysql import VARBINARY

from sqlalchemy_envelope.crypto.blind_index import FULL_BITS
from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.columns.encrypted_type import EncryptedType
from sqlalchemy_envelope.orm.columns.searching import answer_by
from sqlalchemy_envelope.orm.indexes import executing, several_rows
from sqlalchemy_envelope.orm.indexes.indexed import note_owners
from sqlalchemy_envelope.orm.indexes.tokens.comparisons import search
from sqlalchemy_envelope.orm.indexes.tokens.token_index import TokenIndex
from sqlalchemy_envelope.orm.indexes.tokens.tokenized import (
    TAG_COLUMN,
    TokenizedColumn,
    as_indexed,
    note_tokenized,
    tags_of,
    tokenized_of_table,
)
from sqlalchemy_envelope.orm.tables.generated import LONGEST_NAME
from sqlalchemy_envelope.orm.tables.index_key_table import add_index_key_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import MetaData
    from sqlalchemy.orm import Mapper

_SIZE = FULL_BITS // 8
_waiting: WeakSet[Mapper[Any]] = WeakSet()
"""Configured mappers, whose owners' classes may not be configured yet."""


def declare_tokens(mapper: Mapper[Any], cls: type[Any]) -> bool:
    """Make the tables of the token indexes that a class declares, when it is mapped; tells whether there are
    any.

    Raises:
        ConfigurationError: an index is of no encrypted column, or its table cannot have its name.
    """
    declared = list(_declared(mapper, cls))
    for one in declared:
        _declare(mapper, cls, one)
    if declared:
        answer_by(search, first=True)
        executing.listen()
        several_rows.listen()
    return bool(declared)


def _declared(mapper: Mapper[Any], cls: type[Any]) -> Iterator[TokenIndex]:
    """The declarations of a class and of its mixins, and not those of the class that it extends: they have
    their tables."""
    base = None if mapper.inherits is None or mapper.concrete else mapper.inherits.class_
    of_base = set() if base is None else set(base.__mro__)
    seen = set()
    for part in cls.__mro__:
        for name, value in vars(part).items():
            if name not in seen and isinstance(value, TokenIndex) and part not in of_base:
                yield value
            seen.add(name)


def _declare(mapper: Mapper[Any], cls: type[Any], declared: TokenIndex) -> None:
    column: Any = mapper.columns.get(declared.options.of)
    table = getattr(column, "table", None)
    if not isinstance(table, Table) or not isinstance(column.type, EncryptedType):
        there = sorted(key for key, one in mapper.columns.items() if isinstance(one.type, EncryptedType))
        raise ConfigurationError(
            f"{cls.__name__}.{declared.key} is a token index of {declared.options.of!r}, which is no "
            f"encrypted attribute of {cls.__name__}. Its encrypted attributes: {', '.join(there) or 'none'}."
        )
    tags = _table(cls, declared, table)
    keys = [one for one in tags.columns if one.key != TAG_COLUMN]
    note_tokenized(table, TokenizedColumn(declared.key, declared.options, column, tags, keys))
    if declared.options.scope == "server":
        add_index_key_table(table)


def check_tokens(mapper: Mapper[Any]) -> None:
    """Resolve the token indexes of a configured mapper, so that each owner gets its index keys.

    Raises:
        ConfigurationError: an index is of a column that holds no texts.
    """
    for index in _indexes_of(mapper):
        if index.scope != "server":
            note_owners(as_indexed(index))
            _waiting.add(mapper)
        for owner_class in index.path.owner_classes:
            owner_class.index_tables[index.text.table] = None


def check_groups() -> None:
    """Mappers are configured: check that an index of a group's scope has groups.

    Raises:
        ConfigurationError: no class of grants gives the owner's key to others.
    """
    for mapper in list(_waiting):
        _waiting.discard(mapper)
        for index in _indexes_of(mapper):
            alone = [one.name for one in index.path.owner_classes if not one.grants_with(None)]
            if index.scope == "group" and alone:
                raise ConfigurationError(
                    f"{index.label} has the scope 'group', and no class of grants gives the key of a "
                    f"{alone[0]} to others. Say scope='owner'; or declare the members of the group, "
                    "`class Membership(KeyGrant, ...)`."
                )


def _indexes_of(mapper: Mapper[Any]) -> list[TokenizedColumn]:
    return [index for table in mapper.tables for index in tokenized_of_table(table)]


def _table(cls: type[Any], declared: TokenIndex, of: Table) -> Table:
    name = declared.options.table or f"{of.name}_{declared.key}"
    where = f"{cls.__name__}.{declared.key}: its table {name!r}"
    if len(name.encode()) > LONGEST_NAME:
        raise ConfigurationError(
            f"{where} would have a name of more than {LONGEST_NAME} bytes, which PostgreSQL does not take. "
            f"Choose a shorter name: token_index({declared.options.of!r}, ..., table=...)."
        )
    own = list(of.primary_key)
    if not own:
        raise ConfigurationError(f"{where} refers to the primary key of {of.name}, which has none.")
    _make_room(where, of.metadata, f"{of.schema}.{name}" if of.schema else name)
    named = [f"row_{column.name}" for column in own]
    return Table(
        name,
        of.metadata,
        Column(
            TAG_COLUMN, LargeBinary(_SIZE).with_variant(VARBINARY(_SIZE), "mysql", "mariadb"), nullable=False
        ),
        *(Column(one, nullable=False, autoincrement=False) for one in named),
        PrimaryKeyConstraint(TAG_COLUMN, *named, name=f"pk_{name}"[:LONGEST_NAME]),
        ForeignKeyConstraint(
            named, own, ondelete="CASCADE", onupdate="CASCADE", name=f"fk_{name}_row"[:LONGEST_NAME]
        ),
        Index(f"ix_{name}_row"[:LONGEST_NAME], *named),
        schema=of.schema,
        sqlite_with_rowid=False,
    )


def _make_room(where: str, metadata: MetaData, key: str) -> None:
    """Clear a table that was reflected, or made with an earlier class of the same name."""
    existing = metadata.tables.get(key)
    if existing is None:
        return
    if tags_of(existing) is None and TAG_COLUMN not in existing.columns:
        raise ConfigurationError(
            f"{where} is in its MetaData already, and is not ours. Choose another name: table=..."
        )
    metadata.remove(existing)
