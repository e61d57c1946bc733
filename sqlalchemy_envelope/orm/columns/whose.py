"""Whose key encrypts a column: the path from its rows to their owner, as `owner_spec` declares it.

A copy of an encrypted column in another table of the same MetaData, such as a history table, keeps the label
and takes the path of the original, through the columns of the same names. It does not go through a primary
key that the copy's rows may have of their own, and not where several originals have the label.
"""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING, Any

from sqlalchemy import Table
from sqlalchemy.orm import MANYTOONE, ColumnProperty, RelationshipProperty

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.columns.owner_advice import advice
from sqlalchemy_envelope.orm.columns.owner_spec import OneOf, OwnerColumn
from sqlalchemy_envelope.orm.tables.owner_paths import (
    ChosenPath,
    LinkedPath,
    OwnerPath,
    SolePath,
    foreign_key_paths,
    path_through,
)
from sqlalchemy_envelope.orm.tables.owners import owner_class_of
from sqlalchemy_envelope.orm.tables.python_types import python_type_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Column
    from sqlalchemy.orm import Mapper

    from sqlalchemy_envelope.orm.tables.owners import OwnerClass

Original = tuple[Table, OwnerPath]
MAX_STEPS = 8
"""The greatest number of relationships between a row and its owner."""


def path_of(
    column: Column[Any], mapper: Mapper[Any] | None, original: Callable[[str, Table], Original | None]
) -> OwnerPath:
    """The path from the rows of an encrypted column to their owners.

    Args:
        original: finds the column with this label in another table: that table, and its path.

    Raises:
        ConfigurationError: the declaration leads to no owner, or to several.
    """
    return _Resolver(column, mapper, original).path()


class _Resolver:
    """Finds the path of one column."""

    def __init__(
        self,
        column: Column[Any],
        mapper: Mapper[Any] | None,
        original: Callable[[str, Table], Original | None],
    ) -> None:
        self._column = column
        self._table: Table = column.table
        self._mapper = mapper
        self._original = original
        self._type: Any = column.type
        self._where = f"{self._table.name}.{column.name}"

    def path(self) -> OwnerPath:
        if self._type.owner is not None:
            return self._declared(self._type.owner)
        own = owner_class_of(self._table)
        if own is not None:
            return OwnerPath(own, tuple(self._table.primary_key.columns), is_self=True)
        candidates = foreign_key_paths(self._table, self._mapper)
        if len(candidates) == 1:
            return candidates[0]
        copied = self._copied(None) if not candidates else None
        if copied is not None:
            return copied
        found = "no foreign key" if not candidates else f"{len(candidates)} foreign keys"
        raise ConfigurationError(
            f"{self._where} is encrypted, and whose key encrypts it is not clear: {self._table.name} "
            f"has {found} to "
            f"a KeyOwner. {self._advice}"
        )

    def _declared(self, owner: Any) -> OwnerPath:
        if isinstance(owner, OneOf):
            return self._chosen(owner)
        if isinstance(owner, OwnerColumn):
            return self._by_columns(owner)
        if isinstance(owner, type):
            return self._sole(owner)
        if isinstance(owner, str) and "." in owner:
            return self._linked(owner)
        names = (owner,) if isinstance(owner, str) else tuple(owner)
        columns = self._columns(names)
        path = path_through(columns) or self._copied(columns)
        if path is None:
            bare = not any(one.foreign_keys for one in columns)
            told = advice(self._table, self._mapper, (names, columns) if bare else None)
            raise self._error(owner, f"{self._leads(names, columns)}. {told}")
        return path

    def _leads(self, names: Sequence[str], columns: Sequence[Column[Any]]) -> str:
        """Where a declaration leads if it does not lead to an owner."""
        shown = " and ".join(repr(name) for name in names)
        targets = {foreign.column.table for one in columns for foreign in one.foreign_keys}
        if not targets:
            return f"{shown} has no foreign key"
        target = next(iter(targets))
        owner_class = owner_class_of(target)
        if owner_class is None:
            return f"{shown} refers to {_class_of(self._mapper, target)}, which is no KeyOwner"
        keys = ", ".join(one.key for one in owner_class.primary_key)
        return f"{shown} refers to {owner_class.name}, and not to its whole primary key ({keys})"

    def _chosen(self, owner: OneOf) -> OwnerPath:
        paths = tuple(self._declared(one) for one in owner.owners)
        for one, path in zip(owner.owners, paths, strict=True):
            if not path.columns or isinstance(one, OneOf) or path.is_self:
                raise self._error(
                    owner, f"{one!r} cannot be an alternative: no column of a row says that it is set"
                )
        if len({path.identity for path in paths}) < len(paths):
            raise self._error(owner, "two of its alternatives are the same")
        united = _united(paths)
        self._check_told_apart(owner, united)
        return united[0] if len(united) == 1 else ChosenPath(united)

    def _check_told_apart(self, owner: OneOf, paths: Sequence[OwnerPath]) -> None:
        """Refuse alternatives of which one is set whenever another is: a row chooses by the columns that
        are set in it."""
        for one, other in permutations(paths, 2):
            if not one.is_self and not set(one.columns) <= set(other.columns):
                continue
            classes = dict.fromkeys(of for each in owner.owners for of in self._declared(each).owner_classes)
            columns = ", ".join(f"`{name}`" for of in classes for name in self._named_like(of))
            mine, its = (" and ".join(each.keys) for each in (one, other))
            raise self._error(
                owner,
                f"{mine} is set in every row where {its} is, so that no row says which of the two is meant. "
                f"Give {self._table.name} a foreign key to each of these owners ({columns}), set one of them "
                "in each row, and name those",
            )
        for path in paths:
            if isinstance(path, LinkedPath) and isinstance(path.onward, ChosenPath):
                self._check_told_apart(owner, path.onward.alternatives)

    def _by_columns(self, owner: OwnerColumn) -> OwnerPath:
        owner_class, columns = self._owner_class(owner, owner.of), self._columns(owner.names)
        if len(columns) != len(owner_class.primary_key):
            keys = ", ".join(one.key for one in owner_class.primary_key)
            raise self._error(
                owner, f"the primary key of {owner_class.name} is ({keys}); name as many columns"
            )
        through = path_through(columns)
        if through is not None and through.owner_class is not owner_class:
            raise self._error(owner, f"a foreign key of these columns leads to {through.owner_class.name}")
        for mine, its in zip(columns, owner_class.primary_key, strict=True):
            if python_type_of(mine.type) is not python_type_of(its.type):
                raise self._error(
                    owner,
                    f"{mine.name} holds {_told(mine)}, and {owner_class.name}.{its.key} holds {_told(its)}",
                )
        return OwnerPath(owner_class, columns, is_self=False)

    def _sole(self, owner: type[Any]) -> OwnerPath:
        owner_class = self._owner_class(owner, owner)
        if not owner_class.is_sole:
            name, keys = owner.__name__, ", ".join(f"{name!r}" for name in self._named_like(owner_class))
            raise self._error(
                owner,
                f"{name} may have many rows: say which column names the row's own, "
                f"OwnerColumn({keys}, of={name}), or "
                f"declare `class {name}(KeyOwner, Base, sole=True)` if it has one row",
            )
        return SolePath(owner_class)

    def _named_like(self, owner_class: OwnerClass) -> list[str]:
        return [f"{owner_class.name.lower()}_{one.key}" for one in owner_class.primary_key]

    def _owner_class(self, owner: Any, named: type[Any] | str) -> OwnerClass:
        found = named
        if isinstance(named, str):
            mappers = list(self._mapper.registry.mappers) if self._mapper is not None else []
            classes = [one.class_ for one in mappers if one.class_.__name__ == named]
            if len(classes) != 1:
                count = len(classes) or "no"
                raise self._error(owner, f"{count} mapped classes are called {named}; give the class itself")
            found = classes[0]
        owner_class = owner_class_of(getattr(found, "__table__", None))
        if owner_class is None:
            name = getattr(found, "__name__", found)
            raise self._error(owner, f"{name} is no KeyOwner: declare `class {name}(KeyOwner, Base)`")
        return owner_class

    def _linked(self, owner: str) -> OwnerPath:
        names = owner.split(".")
        if self._mapper is None:
            raise self._error(
                owner, f"{self._table.name} is mapped to no class, and relationships lead from classes"
            )
        if len(names) > MAX_STEPS:
            raise self._error(owner, f"it has more than {MAX_STEPS} steps")
        mapper, steps = self._mapper, []
        for at, name in enumerate(names):
            prop = mapper.attrs.get(name)
            is_last = at == len(names) - 1
            if isinstance(prop, RelationshipProperty):
                if prop.direction is not MANYTOONE or prop.secondary is not None:
                    raise self._error(owner, f"{mapper.class_.__name__}.{name} leads to many, not to one")
                if not is_last:
                    steps.append(prop)
                    mapper = prop.mapper
                    continue
                columns: Any = tuple(local for local, _ in prop.local_remote_pairs or ())
            elif isinstance(prop, ColumnProperty) and is_last:
                columns = (prop.columns[0],)
            else:
                what = "is no relationship" if prop is not None else "is no attribute of it"
                raise self._error(owner, f"{mapper.class_.__name__}: {name!r} {what}. {self._advice}")
        path = path_through(columns)
        if path is None:
            there = f"{mapper.class_.__name__}.{names[-1]}"
            raise self._error(
                owner, f"{there} is not a reference to the primary key of a KeyOwner. {self._advice}"
            )
        here: Any = tuple(local for local, _ in steps[0].local_remote_pairs or ())
        return LinkedPath(here, tuple(steps), path)

    def _columns(self, names: Sequence[str]) -> tuple[Column[Any], ...]:
        columns: list[Column[Any]] = []
        for name in names:
            prop = self._mapper.attrs.get(name) if self._mapper is not None else None
            if isinstance(prop, RelationshipProperty):
                columns += [local for local, _ in prop.local_remote_pairs or ()]  # type: ignore[misc]
            elif isinstance(prop, ColumnProperty):
                here = [one for one in prop.columns if getattr(one, "table", None) is self._table]
                columns.append((here or prop.columns)[0])  # type: ignore[arg-type]
            elif name in self._table.columns:
                columns.append(self._table.columns[name])
            else:
                raise self._error(name, f"{self._table.name} has no such column or attribute. {self._advice}")
        return tuple(columns)

    def _copied(self, columns: tuple[Column[Any], ...] | None) -> OwnerPath | None:
        """The path of the column that this one is a copy of, through columns of this table.

        Raises:
            ConfigurationError: it would lead through a key that the copy's rows may have of their own.
        """
        found = self._original(self._type.label, self._table)
        if found is None:
            return None
        table, path = found
        if columns is None:
            same = [self._table.columns.get(key) for key in path.keys]
            if any(one is None for one in same):
                return None
            columns = tuple(one for one in same if one is not None)
            self._check_key(table, path, columns)
        return path.along(columns) if len(columns) == len(path.columns) else None

    def _check_key(self, original: Table, path: OwnerPath, columns: tuple[Column[Any], ...]) -> None:
        """Check a copy whose own key has the name of the original's key. A version table keeps the
        original's key, with a version beside it. Another copy may number its rows itself, if it has
        another column that names the original."""
        keys = [
            mine
            for mine, its in zip(columns, path.columns, strict=True)
            if mine.primary_key and its.primary_key
        ]
        has_others = not set(self._table.columns.keys()) <= set(original.columns.keys())
        is_own = set(self._table.primary_key.columns) <= set(keys) or any(map(_is_made, keys))
        if not (keys and has_others and is_own):
            return
        names, owner = ", ".join(repr(one.key) for one in keys), path.owner_class.name
        other = f"{original.name}_{keys[0].key}"
        raise ConfigurationError(
            f"{self._where} is a copy of {self._type.label}, whose owner is found by {names}; here that is "
            f"the primary key, and may be a row's own. Say which column holds the key of the {owner}: "
            f"`owner=OwnerColumn({other!r}, of={owner})`, or `owner=OwnerColumn({names}, of={owner})` if the "
            "copy's rows have the keys of the original's."
        )

    @property
    def _advice(self) -> str:
        return advice(self._table, self._mapper)

    def _error(self, owner: Any, why: str) -> ConfigurationError:
        shown = owner.__name__ if isinstance(owner, type) else repr(owner)
        return ConfigurationError(f"EncryptedType(owner={shown}) on {self._where}: {why.rstrip('.')}.")


def _united(paths: Sequence[OwnerPath]) -> tuple[OwnerPath, ...]:
    """Alternatives that go the same way to another row become one path, and the choice is made in that
    row."""
    united: dict[object, list[OwnerPath]] = {}
    for path in paths:
        way = (path.columns, path.steps) if isinstance(path, LinkedPath) else path
        united.setdefault(way, []).append(path)
    return tuple(some[0] if len(some) == 1 else _choice_at_the_end(some) for some in united.values())


def _choice_at_the_end(paths: Sequence[Any]) -> LinkedPath:
    return LinkedPath(paths[0].columns, paths[0].steps, ChosenPath(tuple(one.onward for one in paths)))


def _class_of(mapper: Mapper[Any] | None, table: Any) -> str:
    """The class that a table is mapped to, or the table's name."""
    mappers = [] if mapper is None else list(mapper.registry.mappers)
    return next((one.class_.__name__ for one in mappers if one.local_table is table), str(table.name))


def _told(column: Column[Any]) -> str:
    found = python_type_of(column.type)
    return getattr(found, "__name__", str(column.type))


def _is_made(column: Column[Any]) -> bool:
    """Tell whether a column of a primary key gets another value in each row."""
    made = column.default, column.server_default, column.identity
    return column.autoincrement is True or any(one is not None for one in made)
