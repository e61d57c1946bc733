"""Blind indexes under the keys of owners: what has to hold where one is declared.

Each owner has index keys of its own, so that tags of two owners have nothing in common. A group gets a new
index key with each new epoch, so that whoever was removed does not learn the tags of later values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from sqlalchemy import Table, UniqueConstraint, event

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.indexes.indexed import indexes_of_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Column
    from sqlalchemy.orm import Mapper

    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn

_waiting: WeakSet[Mapper[Any]] = WeakSet()
"""Configured mappers, whose owners' classes may not be configured yet."""


def check_mapper(mapper: Mapper[Any]) -> None:
    """Resolve the blind indexes of a mapper's tables, so that each owner gets its index keys.

    Raises:
        ConfigurationError: an index names no encrypted column, or columns of two owners; or a unique index
            would compare the values of one owner with those of another.
    """
    owned = list(_owned(mapper))
    for index in owned:
        for columns in unique_sets(index.column):
            _check_unique(index, columns)
            index.path.owner_class.compares = True
    if owned:
        _waiting.add(mapper)


def check_all() -> None:
    """Mappers are configured: check what an index asks of its owners.

    Raises:
        ConfigurationError: the owner is no group, or is one, and the index is unique.
    """
    for mapper in list(_waiting):
        _waiting.discard(mapper)
        try:
            for index in _owned(mapper):
                _check_owners(index)
        except ConfigurationError as error:
            _refuse_writes(mapper, error)
            raise


def _refuse_writes(mapper: Mapper[Any], error: ConfigurationError) -> None:
    """SQLAlchemy counts the mapper as configured even so, and code that catches the error would go on."""

    def refuse(*_: Any) -> None:
        raise error.with_traceback(None)

    for write in ("before_insert", "before_update"):
        event.listen(mapper, write, refuse)


def _owned(mapper: Mapper[Any]) -> Iterator[IndexedColumn]:
    for table in mapper.tables:
        if isinstance(table, Table):
            yield from (one for one in indexes_of_table(table) if one.scope != "server")


def _check_owners(index: IndexedColumn) -> None:
    where = _name(index.column)
    shared = [one.name for one in index.path.owner_classes if one.grants_with(None)]
    if index.scope == "group" and len(shared) < len(index.path.owner_classes):
        names = " or ".join(one.name for one in index.path.owner_classes)
        raise ConfigurationError(
            f"{where} has the scope 'group', and no class of grants gives the key of a {names} to others. "
            "Say scope='owner'; or declare the members of the group, `class Membership(KeyGrant, ...)`."
        )
    if shared and next(unique_sets(index.column), None) is not None:
        raise ConfigurationError(
            f"{where} is unique, and a {shared[0]} gets a new index key when a member leaves: an equal value "
            "from before would have another tag. To compare all values: BlindIndex(..., scope='server'), "
            f"{_together(index)}."
        )


def _check_unique(index: IndexedColumn, columns: tuple[Column[Any], ...]) -> None:
    path, where = index.path, _name(index.column)
    if path.is_self:
        raise ConfigurationError(
            f"{where} is unique, and its tags are those of one {path.owner_class.name}, which has one row: "
            "it would compare nothing. To compare all rows: BlindIndex(..., scope='server')."
        )
    if path.is_direct and path.columns and set(path.columns) <= set(columns):
        return
    if path.is_direct and all(one.table is index.column.table for one in path.columns):
        raise ConfigurationError(
            f"{where} is unique, and each {path.owner_class.name} has tags of its own: it compares the "
            f"values of one {path.owner_class.name}. Say so, {_together(index)}. To compare all rows: "
            "BlindIndex(..., scope='server')."
        )
    raise ConfigurationError(
        f"{where} is unique, and each owner has tags of its own; {index.column.table.name} has no column "
        "that names the owner. To compare all rows: BlindIndex(..., scope='server')."
    )


def _together(index: IndexedColumn) -> str:
    columns = index.path.columns if index.path.is_direct else ()
    names = [one.name for one in columns if one.table is index.column.table]
    if not names or index.path.is_self:
        return "unique=True"
    return f"UniqueConstraint({', '.join(map(repr, [*names, index.column.name]))})"


def unique_sets(column: Column[Any]) -> Iterator[tuple[Column[Any], ...]]:
    """The sets of columns, with this one among them, that are unique together."""
    if column.unique and not column.index:  # else it is among the indexes of the table
        yield (column,)
    for constraint in column.table.constraints:
        if isinstance(constraint, UniqueConstraint) and column in constraint.columns.values():
            yield tuple(constraint.columns)
    for index in column.table.indexes:
        if index.unique and column in index.columns.values():
            yield tuple(index.columns)


def _name(column: Column[Any]) -> str:
    return f"{column.table.name}.{column.name}"
