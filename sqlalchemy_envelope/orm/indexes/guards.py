"""`<index>_guard`: the tags of the next key of an index of the server's scope, during a rotation.

A rotation fills the guard before the index changes. So the index is always under one key or the other, and
the guard under the next alone: what an index is moved to is known without decrypting anything, and what it
cannot be moved to yet is seen, for its guard is NULL. Where an index is unique its guard is unique, too.
Outside of a rotation the guard is NULL. It is not mapped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Index, Table, UniqueConstraint, and_, event
from sqlalchemy.orm import Mapper

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.columns.column_notes import note, notes_of
from sqlalchemy_envelope.orm.indexes.blind_index import BlindIndex
from sqlalchemy_envelope.orm.tables.generated import LONGEST_NAME

if TYPE_CHECKING:
    from collections.abc import Iterable

_NAME = "{column}_guard"


class IndexGuard(BlindIndex):
    """A column of tags under the next key of an index. The library declares it."""

    cache_ok = True

    def __repr__(self) -> str:
        return f"IndexGuard({self.label!r})"


def listen() -> None:
    """Listen for classes and constraints, which are told of guards."""
    event.listen(Mapper, "instrument_class", _leave_unmapped)
    event.listen(UniqueConstraint, "after_parent_attach", _on_constraint)
    event.listen(Index, "after_parent_attach", _on_constraint)


def add_guard(column: Column[Any], table: Table) -> None:
    """Add the guard of an index to its table.

    Raises:
        ConfigurationError: the table has a column of that name already, or the name is too long.
    """
    if notes_of(column).guard is not None:
        return  # a copy, whose table is given a copy of the guard
    type_: BlindIndex = column.type  # type: ignore[assignment]  # only such columns come here
    name = _NAME.format(column=column.name)
    known = next((one for one in table.columns if one.name == name), None)
    if known is None and len(name.encode()) > LONGEST_NAME:
        raise ConfigurationError(
            f"The column {name!r} beside {table.name}.{column.name} would have a name of more than "
            f"{LONGEST_NAME} bytes, which PostgreSQL does not take. Give the index a shorter name."
        )
    if known is not None and not isinstance(known.type, IndexGuard):
        raise ConfigurationError(
            f"{table.name}.{name} is the column in which a rotation of the index key of {column.name} keeps "
            "tags: the library declares it. Give your own column another name."
        )
    if known is None:
        label = type_.label or f"{table.name}.{column.name}"
        guard = IndexGuard(type_.of, scope="server", bits=type_.bits, label=label)
        known = Column(name, guard, key=f"{column.key}__guard", nullable=True)
        table.append_column(known)
    note(column, guard=known.key)


def guard_of(column: Column[Any]) -> Column[Any] | None:
    """The guard of an index; None of an index whose key the server does not hold."""
    key = notes_of(column).guard
    return None if key is None else column.table.columns.get(key)


def guard_beside(encrypted: Any, index: Column[Any]) -> Any:
    """The guard of an index, in the table or alias of an encrypted column in a statement."""
    guard: Any = guard_of(index)
    entity = encrypted._annotations.get("parententity")
    if entity is not None:
        selected = entity.selectable
        return guard if selected is guard.table else selected.corresponding_column(guard)
    return guard if encrypted.table is guard.table else encrypted.table.corresponding_column(guard)


def _leave_unmapped(mapper: Mapper[Any], _: type[Any]) -> None:
    """Keep guards out of a class: nobody but a rotation reads them."""
    guards = {
        one.key for one in mapper.persist_selectable.columns if isinstance(one.type, IndexGuard) and one.key
    }
    if guards:
        known: Any = mapper.exclude_properties
        mapper.exclude_properties = guards | set(known or ())


def _on_constraint(constraint: Any, table: Any) -> None:
    """Give what makes an index unique, or fast, a twin that does the same for its guard."""
    if not isinstance(table, Table):
        return
    columns = list(constraint.columns)
    if any(isinstance(one.type, IndexGuard) for one in columns):
        if any(one is not constraint and _is_same(one, constraint) for one in _unique_of(table, constraint)):
            _unique_of(table, constraint).discard(constraint)  # a copy, of what was made here already
        return
    indexes = [one for one in columns if isinstance(one.type, BlindIndex) and one.type.scope == "server"]
    if not indexes:
        return
    for one in indexes:
        add_guard(one, table)
    # By name: in a copy of a table, the copies of guards follow.
    names = [notes_of(one).guard if one in indexes else one.key for one in columns]
    if any(name not in table.columns for name in names):
        return  # its own copy follows, too
    twins = [table.columns[name] for name in names]
    name = None if constraint.name is None else f"{constraint.name}_guard"[:LONGEST_NAME]
    if isinstance(constraint, Index):
        Index(name, *twins, unique=constraint.unique, **_options(constraint, twins))
    else:
        table.append_constraint(
            UniqueConstraint(
                *twins, name=name, deferrable=constraint.deferrable, initially=constraint.initially
            )
        )


def _options(index: Index, twins: list[Column[Any]]) -> dict[str, Any]:
    """The dialects' options of a twin. Outside of a rotation there is nothing in it."""
    options = {key: value for key, value in index.dialect_kwargs.items() if not key.endswith("distinct")}
    if not index.unique:
        there = and_(*(one.is_not(None) for one in twins if isinstance(one.type, IndexGuard)))
        for name in ("postgresql_where", "sqlite_where"):
            options.setdefault(name, there)
    return options


def _unique_of(table: Table, like: Any) -> Any:
    return table.indexes if isinstance(like, Index) else table.constraints


def _is_same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and _keys(one.columns) == _keys(other.columns)


def _keys(columns: Iterable[Any]) -> list[str]:
    return [one.key for one in columns]
