"""What the error about an unclear `owner=` advises: lines to write, with the application's own names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Table
from sqlalchemy.orm import MANYTOONE

from sqlalchemy_envelope.orm.tables.owner_paths import foreign_key_paths, path_through
from sqlalchemy_envelope.orm.tables.owners import owner_class_of
from sqlalchemy_envelope.orm.tables.python_types import python_type_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy import Column
    from sqlalchemy.orm import Mapper

    from sqlalchemy_envelope.orm.tables.owners import OwnerClass

MAX_STEPS = 3
"""Most relationships in an advised path."""


def advice(
    table: Table,
    mapper: Mapper[Any] | None,
    written: tuple[Sequence[str], Sequence[Column[Any]]] | None = None,
) -> str:
    """The lines that could be written for an encrypted column of this table.

    Args:
        written: names that `owner=` has already, and their columns, which have no foreign key.
    """
    owners = _owner_mappers(mapper)
    sole = {name: one for name, one in owners.items() if _owner_class(one).is_sole}
    many = {name: one for name, one in owners.items() if name not in sole}
    named = "" if written is None else _of_written(*written, many)
    here = [*_by_columns(table, mapper), *_by_links(mapper)]
    lines = [f"`owner={shown}` ({why})" for shown, why in [*_by_sole(sole), *here]]
    possible = f"Possible here: {', '.join(lines)}. Choose the owner whose key must open it." if lines else ""
    if not owners:
        return _by_new_owners(table, mapper)
    new = _by_new_columns(many) if many and not here and not named else ""
    return " ".join(filter(None, (named, possible, _by_itself(mapper) if new else "", new)))


def _by_new_owners(table: Table, mapper: Mapper[Any] | None) -> str:
    """Advise which classes to declare as owners, the likeliest first, if no class is an owner yet."""
    mappers = [] if mapper is None else list(mapper.registry.mappers)
    referred = {one.column.table for one in table.foreign_keys} - {table}
    names = sorted({one.class_.__name__ for one in mappers if one.local_table in referred})
    if names:
        shown = " or ".join(f"`class {name}(KeyOwner, Base)`" for name in names)
        return f"Declare the class whose rows own the values: {shown}."
    itself, other = _by_itself(mapper), "User"
    if mapper is not None and mapper.class_.__name__ == other:
        other = "Owner"
    return (
        f"{itself}{' Otherwise declare' if itself else 'Declare'} the class that its rows refer to "
        f"`class {other}(KeyOwner, Base)`, and in this table write `{other.lower()}_id = "
        f"mapped_column(ForeignKey('{other.lower()}s.id', ondelete='CASCADE'))`."
    )


def _by_itself(mapper: Mapper[Any] | None) -> str:
    """Advise `KeyOwner` for the class with the encrypted column, in case it was forgotten there."""
    if mapper is None:
        return ""
    name = mapper.class_.__name__
    return f"If each {name} has a key of its own, declare `class {name}(KeyOwner, Base)`."


def _by_sole(owners: Iterable[str]) -> Iterator[tuple[str, str]]:
    for name in sorted(owners):
        yield name, f"the sole {name}"


def _of_written(names: Sequence[str], columns: Sequence[Column[Any]], owners: dict[str, Mapper[Any]]) -> str:
    """Return the advice that makes the written columns an owner; "" if they can hold no owner's key."""
    types = [python_type_of(one.type) for one in columns]
    fits = [
        name
        for name, one in sorted(owners.items())
        if types == [python_type_of(key.type) for key in _owner_class(one).primary_key]
    ]
    if not fits:
        return ""
    shown, one_column = ", ".join(repr(name) for name in names), len(names) == 1
    name, which = fits[0], ""
    if len(fits) > 1:
        holds = "it holds" if one_column else "they hold"
        name, which = "...", f" with the one of {', '.join(fits)} whose primary key {holds}"
    return (
        f"Write `owner=OwnerColumn({shown}, of={name})`{which}, or give {'it' if one_column else 'them'} a "
        "foreign key to that class."
    )


def _by_columns(table: Table, mapper: Mapper[Any] | None) -> Iterator[tuple[str, str]]:
    """Yield the advice for each of the table's foreign keys to an owner, with the owner's class."""
    paths = foreign_key_paths(table, mapper)
    places = {column: place for place, column in enumerate(table.columns)}
    paths.sort(key=lambda path: places.get(path.columns[0], len(places)))
    found = [
        (repr(path.keys[0] if len(path.keys) == 1 else path.keys), path.owner_class.name) for path in paths
    ]
    yield from found
    yield from _one_of(
        shown for (shown, _), path in zip(found, paths, strict=True) if _may_be_null(path.columns)
    )


def _one_of(nullable: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Advise `OneOf` for several nullable references of a row, which may be alternatives."""
    some = list(nullable)
    if len(some) > 1:
        yield f"OneOf({', '.join(some)})", "if each row is one or the other's"


def _may_be_null(columns: Iterable[Any]) -> bool:
    return all(getattr(column, "nullable", False) for column in columns)


def _by_links(mapper: Mapper[Any] | None) -> Iterator[tuple[str, str]]:
    """Each path over relationships to an owner, the shortest first."""
    reached: list[tuple[tuple[str, ...], Mapper[Any]]] = [] if mapper is None else [((), mapper)]
    seen = {mapper}
    for _ in range(MAX_STEPS):
        further: list[tuple[tuple[str, ...], Mapper[Any]]] = []
        for names, here in reached:
            if names:
                yield from _ends(names, here)
            for step in here.relationships:
                if step.direction is not MANYTOONE or step.mapper in seen:
                    continue
                if owner_class_of(step.mapper.local_table) is None:
                    seen.add(step.mapper)
                    further.append(((*names, step.key), step.mapper))
        reached = further


def _ends(names: tuple[str, ...], here: Mapper[Any]) -> Iterator[tuple[str, str]]:
    """The last steps from a class to owners: its relationships, and foreign keys that have none."""
    named, nullable = set(), []
    for step in here.relationships:
        owner_class = owner_class_of(step.mapper.local_table) if step.direction is MANYTOONE else None
        if owner_class is not None:
            named.add(owner_class)
            shown = repr(".".join((*names, step.key)))
            nullable += [shown] if _may_be_null(step.local_columns) else []
            yield shown, owner_class.name
    for column in here.columns:
        path = path_through((column,)) if isinstance(getattr(column, "table", None), Table) else None
        if path is not None and not path.is_self and path.owner_class not in named:
            shown = repr(".".join((*names, here.get_property_by_column(column).key)))
            nullable += [shown] if _may_be_null([column]) else []
            yield shown, path.owner_class.name
    yield from _one_of(nullable)


def _by_new_columns(owners: dict[str, Mapper[Any]]) -> str:
    """Advise a new foreign key for the table, or the form without a foreign key."""
    written, shown = [], ""
    for name in sorted(owners):
        keys = [
            (f"{name.lower()}_{column.key}", f"{column.table.fullname}.{column.name}")
            for column in owners[name].primary_key
        ]
        written.append(
            " and ".join(
                f"`{mine} = mapped_column(ForeignKey('{its}', ondelete='CASCADE'))`" for mine, its in keys
            )
        )
        shown = ", ".join(repr(mine) for mine, _ in keys) + f", of={name}"
    if len(owners) > 1:
        shown = f"..., of=...)` with one of {', '.join(sorted(owners))}"
    else:
        shown += ")`"
    return (
        f"Refer to the {' or '.join(sorted(owners))} of each row: {', or '.join(written)}. Or name a column "
        f"that has no foreign key: `owner=OwnerColumn({shown}."
    )


def _owner_class(mapper: Mapper[Any]) -> OwnerClass:
    found = owner_class_of(mapper.local_table)
    assert found is not None  # noqa: S101 - of owners alone
    return found


def _owner_mappers(mapper: Mapper[Any] | None) -> dict[str, Mapper[Any]]:
    mappers = [] if mapper is None else list(mapper.registry.mappers)
    return {one.class_.__name__: one for one in mappers if owner_class_of(one.local_table) is not None}
