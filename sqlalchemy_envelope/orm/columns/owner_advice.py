"""What the error about an unclear `owner=` advises: lines to write, with the application's own names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Table
from sqlalchemy.orm import MANYTOONE

from sqlalchemy_envelope.orm.tables.owner_paths import foreign_key_paths, path_through
from sqlalchemy_envelope.orm.tables.owners import owner_class_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import Mapper

MAX_STEPS = 3
"""Most relationships in an advised path."""


def advice(table: Table, mapper: Mapper[Any] | None) -> str:
    """The lines that could be written for an encrypted column of this table."""
    lines = [f"`owner={shown}` ({name})" for shown, name in [*_by_columns(table, mapper), *_by_links(mapper)]]
    if lines:
        return f"Possible here: {', '.join(lines)}. Choose the owner whose key must open it."
    owners = _owner_mappers(mapper)
    if not owners:
        return (
            "Declare the class that its rows refer to `class User(KeyOwner, Base)`, and in this table write "
            "`user_id = mapped_column(ForeignKey('users.id', ondelete='CASCADE'))`."
        )
    return _by_new_columns(owners)


def _by_columns(table: Table, mapper: Mapper[Any] | None) -> Iterator[tuple[str, str]]:
    """Each foreign key to an owner that the table has: what to write, and the owner's class."""
    for path in foreign_key_paths(table, mapper):
        yield repr(path.keys[0] if len(path.keys) == 1 else path.keys), path.owner_class.name


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
    named = set()
    for step in here.relationships:
        owner_class = owner_class_of(step.mapper.local_table) if step.direction is MANYTOONE else None
        if owner_class is not None:
            named.add(owner_class)
            yield repr(".".join((*names, step.key))), owner_class.name
    for column in here.columns:
        path = path_through((column,)) if isinstance(getattr(column, "table", None), Table) else None
        if path is not None and not path.is_self and path.owner_class not in named:
            attribute = here.get_property_by_column(column).key
            yield repr(".".join((*names, attribute))), path.owner_class.name


def _by_new_columns(owners: dict[str, Mapper[Any]]) -> str:
    """The foreign key that the table could be given, and the form without one."""
    name = min(owners)
    keys = [
        (f"{name.lower()}_{column.key}", f"{column.table.fullname}.{column.name}")
        for column in owners[name].primary_key
    ]
    written = " and ".join(
        f"`{mine} = mapped_column(ForeignKey('{its}', ondelete='CASCADE'))`" for mine, its in keys
    )
    shown = ", ".join(repr(mine) for mine, _ in keys)
    others = f" (or another of {', '.join(sorted(owners))})" if len(owners) > 1 else ""
    return (
        f"Refer to the {name}{others} of each row: {written}. Or name a column that has no foreign key: "
        f"`owner=OwnerColumn({shown}, of={name})`."
    )


def _owner_mappers(mapper: Mapper[Any] | None) -> dict[str, Mapper[Any]]:
    mappers = [] if mapper is None else list(mapper.registry.mappers)
    return {one.class_.__name__: one for one in mappers if owner_class_of(one.local_table) is not None}
