"""How a row leads to its owner: by columns of its own, through other rows, in one of several ways, or not at
all because there is only one owner.

A path takes the values of the row's own columns (`keys`) and gives class and primary key of the owner. A
`Seeker` looks up what the row itself does not hold.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import Table, and_, inspect, or_, select, tuple_
from sqlalchemy.orm import aliased

from sqlalchemy_envelope.orm.tables.key_types import kinds_of, mistyped_for
from sqlalchemy_envelope.orm.tables.owners import owner_class_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Column, ColumnElement, Select
    from sqlalchemy.orm import Mapper, RelationshipProperty

    from sqlalchemy_envelope.orm.tables.owners import OwnerClass

    PrimaryKey = tuple[Any, ...]
    Owner = tuple[OwnerClass, PrimaryKey]


class Seeker(Protocol):
    """Looks up owners that a row does not name itself. Its answer is None where it cannot know."""

    def linked(self, path: LinkedPath, values: PrimaryKey) -> PrimaryKey | None:
        """What the row at the end of the path's steps says of its owner: its values of `path.last`."""

    def sole(self, owner_class: OwnerClass) -> PrimaryKey | None:
        """The only row of a class."""


class OwnerPath:
    """Columns of the row hold the owner's primary key, in the order of that key.

    Attributes:
        columns, keys: the columns, and their names in a statement's parameters.
        is_self: the row is the owner.
        is_direct: the columns are the owner's key itself, and nothing has to be looked up.
    """

    is_direct = True

    def __init__(self, owner_class: OwnerClass, columns: tuple[Column[Any], ...], *, is_self: bool) -> None:
        self.owner_class = owner_class
        self.columns = columns
        self.is_self = is_self
        self.keys: tuple[str, ...] = tuple(column.key for column in columns)
        self._kinds = kinds_of(columns)

    def mistyped(self, values: Sequence[Any]) -> str | None:
        """Which of these values of `keys` is of another type than its column, in words; None if all fit."""
        return mistyped_for(self.columns, self._kinds, values)

    @property
    def owner_classes(self) -> tuple[OwnerClass, ...]:
        """Every class that an owner may have."""
        return (self.owner_class,)

    @property
    def identity(self) -> tuple[Any, ...]:
        """Equal for two paths that lead every row to the same owner."""
        return (self.owner_class.mapper, self.columns)

    def find(self, values: Sequence[Any], seeker: Seeker) -> Owner | None:
        """The owner of a row with these values of `keys`; None if they lead to no owner."""
        missing = any(value is None for value in values)
        return None if missing else (self.owner_class, tuple(values))

    def why_none(self, values: Sequence[Any]) -> str:
        """Why these values lead to no owner, for an error."""
        missing = [key for key, value in zip(self.keys, values, strict=False) if value is None]
        return f"{' and '.join(missing or self.keys)} is not set"

    def belongs(
        self, columns: Sequence[Any], owner_class: OwnerClass, key: PrimaryKey
    ) -> ColumnElement[bool]:
        """The SQL condition that a row is this owner's. `columns` stand for the path's own columns. It is
        NULL where the row leads to no owner."""
        return and_(*(column == value for column, value in zip(columns, key, strict=True)))

    def along(self, columns: tuple[Column[Any], ...]) -> OwnerPath:
        """The same path for a copy of the table, whose columns these are."""
        return OwnerPath(self.owner_class, columns, is_self=False)


class LinkedPath(OwnerPath):
    """Columns of the row refer to another row, and that row leads to the owner, through any number of steps.

    Attributes:
        steps: the relationships on the way, each many-to-one; the first belongs to the row's own class.
        onward: the path from the row at the end of the steps to the owner: by its own columns, or one of
            several paths.
        last: the attributes of that row which `onward` takes.
    """

    is_direct = False

    def __init__(
        self,
        columns: tuple[Column[Any], ...],
        steps: tuple[RelationshipProperty[Any], ...],
        onward: OwnerPath,
    ) -> None:
        super().__init__(onward.owner_class, columns, is_self=False)
        self.steps = steps
        self.onward = onward
        last = steps[-1].mapper
        self.last = tuple(last.get_property_by_column(column).key for column in onward.columns)
        self.remote: tuple[str, ...] = _attributes(steps[0], columns)

    @property
    def owner_classes(self) -> tuple[OwnerClass, ...]:
        """Every class that an owner may have."""
        return self.onward.owner_classes

    @property
    def identity(self) -> tuple[Any, ...]:
        """Equal for two paths that lead every row to the same owner."""
        return (self.columns, self.steps, self.onward.identity)

    def find(self, values: Sequence[Any], seeker: Seeker) -> Owner | None:
        """The owner behind the row that these values refer to."""
        if any(value is None for value in values):
            return None
        last = seeker.linked(self, tuple(values))
        return None if last is None else self.onward.find(last, seeker)

    def leads(self, last: Sequence[Any]) -> bool:
        """Whether the row at the end of the steps names an owner by these values of `last`."""
        return self.onward.find(last, _NOBODY) is not None

    def why_none(self, values: Sequence[Any]) -> str:
        """Why these values lead to no owner, for an error."""
        if any(value is None for value in values):
            return super().why_none(values)
        names = ".".join(step.key for step in self.steps)
        if isinstance(self.onward, ChosenPath):
            said = f"in that row not exactly one of {self.onward.names} is set"
            return f"{names} has no row of this key, or {said}"
        return f"{names} has no row of this key, or that row leads to no {self.owner_class.name}"

    def along(self, columns: tuple[Column[Any], ...]) -> OwnerPath:
        """The same path for a copy of the table, whose columns these are."""
        copy = LinkedPath.__new__(LinkedPath)
        OwnerPath.__init__(copy, self.owner_class, columns, is_self=False)
        copy.steps, copy.onward, copy.last, copy.remote = self.steps, self.onward, self.last, self.remote
        return copy

    def query(self, links: Iterable[PrimaryKey], *, locks: bool = False) -> Select[Any]:
        """A query for the rows that these values refer to: their primary keys, and what they say of their
        owner.

        Args:
            locks: for a writer. The rows are locked, as by a foreign key that refers to them, and so lead to
                the same owner until the transaction ends.
        """
        entities = [aliased(step.mapper) for step in self.steps]
        remote = [getattr(entities[0], key) for key in self.remote]
        owner = [getattr(entities[-1], key) for key in self.last]
        statement = self._select(entities, [*remote, *owner])
        query: Select[Any] = statement.where(among(remote, links))
        return query.with_for_update(read=True, key_share=True, of=entities) if locks else query

    def belongs(
        self, columns: Sequence[Any], owner_class: OwnerClass, key: PrimaryKey
    ) -> ColumnElement[bool]:
        """The SQL condition that a row is this owner's. `columns` stand for the path's own columns."""
        entities = [aliased(step.mapper) for step in self.steps]
        remote = [getattr(entities[0], name) for name in self.remote]
        last = [getattr(entities[-1], name) for name in self.last]
        leading = self._select(entities, remote).where(self.onward.belongs(last, owner_class, key))
        only = columns[0] if len(columns) == 1 else tuple_(*columns)
        belongs: ColumnElement[bool] = only.in_(leading)
        return belongs

    def _select(self, entities: Sequence[Any], columns: Sequence[Any]) -> Any:
        statement: Any = select(*columns).select_from(entities[0])
        for (near, far), step in zip(pairwise(entities), self.steps[1:], strict=True):
            statement = statement.join(far, _on(step, near, far))
        return statement

    def links(self) -> Iterable[tuple[Mapper[Any], tuple[str, ...]]]:
        """Each class on the way, with its attributes that lead on. A change of such an attribute moves
        other rows."""
        for here, onward in pairwise(self.steps):
            yield here.mapper, tuple(here.mapper.get_property_by_column(c).key for c in onward.local_columns)
        yield self.steps[-1].mapper, self.last

    def join(self, statement: Any, row: Any, mapper: Mapper[Any], steps: int) -> tuple[Any, Any]:
        """A SELECT from rows of the path's own class, joined to the class so many steps on; and that class
        as the SELECT names it."""
        here = row
        for at, step in enumerate(self.steps[:steps]):
            far = aliased(step.mapper)
            if at:
                on = _on(step, here, far)
            else:
                names = [mapper.get_property_by_column(column).key for column in self.columns]
                pairs = zip(names, self.remote, strict=True)
                on = and_(*(getattr(row, mine) == getattr(far, its) for mine, its in pairs))
            statement = statement.join(far, on)
            here = far
        return statement, here


class ChosenPath(OwnerPath):
    """Several paths, of which each row has exactly one: it belongs to a user or to an organisation."""

    is_direct = False

    def __init__(self, alternatives: tuple[OwnerPath, ...]) -> None:
        columns = tuple(dict.fromkeys(column for path in alternatives for column in path.columns))
        super().__init__(alternatives[0].owner_class, columns, is_self=False)
        self.alternatives = alternatives
        at = {column: place for place, column in enumerate(columns)}
        self._places = [[at[column] for column in path.columns] for path in alternatives]

    @property
    def owner_classes(self) -> tuple[OwnerClass, ...]:
        """Every class that an owner may have."""
        return tuple({id(c): c for path in self.alternatives for c in path.owner_classes}.values())

    @property
    def identity(self) -> tuple[Any, ...]:
        """Equal for two paths that lead every row to the same owner."""
        return tuple(path.identity for path in self.alternatives)

    def parts(self, values: Sequence[Any]) -> list[tuple[OwnerPath, tuple[Any, ...]]]:
        """The alternatives that these values set, each with its own values."""
        cut = [tuple(values[place] for place in places) for places in self._places]
        return [
            (path, mine)
            for path, mine in zip(self.alternatives, cut, strict=True)
            if mine and all(value is not None for value in mine)
        ]

    def find(self, values: Sequence[Any], seeker: Seeker) -> Owner | None:
        """The owner by the only alternative that is set."""
        chosen = self.parts(values)
        if len(chosen) != 1:
            return None
        ((path, part),) = chosen
        return path.find(part, seeker)

    def why_none(self, values: Sequence[Any]) -> str:
        """Why these values lead to no owner, for an error."""
        chosen = self.parts(values)
        if len(chosen) == 1:
            ((path, part),) = chosen
            return path.why_none(part)
        count = len(chosen) or "none"
        return f"exactly one of {self.names} must be set, and {count} of them {_are(len(chosen))}"

    def belongs(
        self, columns: Sequence[Any], owner_class: OwnerClass, key: PrimaryKey
    ) -> ColumnElement[bool]:
        """The SQL condition that a row is this owner's. `columns` stand for the path's own columns."""
        cut = [[columns[place] for place in places] for places in self._places]
        ways = []
        for at, path in enumerate(self.alternatives):
            if owner_class in path.owner_classes:
                others = [or_(*(each.is_(None) for each in mine)) for mine in cut[:at] + cut[at + 1 :]]
                ways.append(and_(path.belongs(cut[at], owner_class, key), *others))
        return or_(*ways)

    @property
    def names(self) -> str:
        """The alternatives by their columns, for an error."""
        return " or ".join(", ".join(path.keys) for path in self.alternatives)

    def along(self, columns: tuple[Column[Any], ...]) -> OwnerPath:
        """The same path for a copy of the table, whose columns these are."""
        return ChosenPath(
            tuple(
                path.along(tuple(columns[place] for place in places))
                for path, places in zip(self.alternatives, self._places, strict=True)
            )
        )


class SolePath(OwnerPath):
    """Rows name no owner: a class with one row owns all of them."""

    is_direct = False

    def __init__(self, owner_class: OwnerClass) -> None:
        super().__init__(owner_class, (), is_self=False)

    def find(self, values: Sequence[Any], seeker: Seeker) -> Owner | None:
        """The only row of the class."""
        key = seeker.sole(self.owner_class)
        return None if key is None else (self.owner_class, key)

    def why_none(self, values: Sequence[Any]) -> str:
        """Why there is no owner, for an error."""
        return f"there is no {self.owner_class.name} yet"

    def along(self, columns: tuple[Column[Any], ...]) -> OwnerPath:
        """The same path for a copy of the table."""
        return self


class _Nobody:
    """A seeker that looks nothing up."""

    def linked(self, path: LinkedPath, values: PrimaryKey) -> None:
        """Unknown."""

    def sole(self, owner_class: OwnerClass) -> None:
        """Unknown."""


_NOBODY = _Nobody()


def path_through(columns: tuple[Column[Any], ...]) -> OwnerPath | None:
    """The path to the owner class that these columns refer to, in the order of its primary key."""
    own = owner_class_of(columns[0].table) if columns else None
    if own is not None and set(columns) == set(columns[0].table.primary_key.columns):
        return OwnerPath(own, tuple(columns[0].table.primary_key.columns), is_self=True)
    remote = {foreign.column: local for local in columns for foreign in local.foreign_keys}
    for target in {column.table for column in remote}:
        owner_class = owner_class_of(target)
        key = tuple(target.primary_key.columns)
        if owner_class is not None and len(key) == len(columns) and all(column in remote for column in key):
            return OwnerPath(owner_class, tuple(remote[column] for column in key), is_self=False)
    return None


def foreign_key_paths(table: Table, mapper: Mapper[Any] | None) -> list[OwnerPath]:
    """The paths by foreign keys of a table, and of the other tables of its class, such as an inherited
    table."""
    tables = [table] if mapper is None else [each for each in mapper.tables if isinstance(each, Table)]
    paths: dict[tuple[Any, ...], OwnerPath] = {}
    for own in tables:
        for constraint in sorted(own.foreign_key_constraints, key=lambda each: list(each.column_keys)):
            path = path_through(tuple(constraint.columns))
            if path is not None:
                paths.setdefault(path.columns, path)
    return list(paths.values())


def linked_paths(path: OwnerPath) -> tuple[LinkedPath, ...]:
    """The parts of this path that go through other rows."""
    if isinstance(path, LinkedPath):
        return (path,)
    if isinstance(path, ChosenPath):
        return tuple(linked for part in path.alternatives for linked in linked_paths(part))
    return ()


def among(columns: Sequence[Any], keys: Iterable[PrimaryKey]) -> Any:
    """The SQL condition that these columns hold any of these keys."""
    wanted = list(keys)
    if len(columns) == 1:
        return columns[0].in_([key[0] for key in wanted])
    return tuple_(*columns).in_(wanted)


def referred(step: RelationshipProperty[Any]) -> tuple[str, ...]:
    """The attributes of the other class that a relationship refers to."""
    pairs = step.local_remote_pairs or ()
    return tuple(step.mapper.get_property_by_column(remote).key for _, remote in pairs)


def referring(step: RelationshipProperty[Any]) -> tuple[str, ...]:
    """The attributes of its own class by which a relationship refers."""
    pairs = step.local_remote_pairs or ()
    return tuple(step.parent.get_property_by_column(local).key for local, _ in pairs)


def _attributes(step: RelationshipProperty[Any], columns: Sequence[Column[Any]]) -> tuple[str, ...]:
    """The attributes of the other class that these local columns refer to."""
    remote = dict(step.local_remote_pairs or ())
    return tuple(step.mapper.get_property_by_column(remote[column]).key for column in columns)


def _on(step: RelationshipProperty[Any], near: Any, far: Any) -> Any:
    here, there = inspect(near).mapper, inspect(far).mapper
    return and_(
        *(
            getattr(near, here.get_property_by_column(local).key)
            == getattr(far, there.get_property_by_column(remote).key)
            for local, remote in step.local_remote_pairs or ()
        )
    )


def _are(count: int) -> str:
    return "is" if count == 0 else "are"
