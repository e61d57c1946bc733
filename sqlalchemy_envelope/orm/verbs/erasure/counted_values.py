"""The encrypted values under an owner's keys, counted by column; and the plaintext columns beside them.

A stored value names its key in its first 17 bytes, so that counting needs no key. Where the row itself names
its owner, only the owner's rows are read; else the whole table is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Column, LargeBinary, Table, and_, case, func, or_, select, true

from sqlalchemy_envelope.crypto.aead import value_header
from sqlalchemy_envelope.orm.columns.encrypted_type import EncryptedType
from sqlalchemy_envelope.orm.columns.plans import mapper_of_table, plan_of_table
from sqlalchemy_envelope.orm.tables.binds import bind_for
from sqlalchemy_envelope.orm.tables.generated import is_of_keys
from sqlalchemy_envelope.orm.tables.raw_tables import UNCACHED, raw_table

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.model import KeyId
    from sqlalchemy_envelope.orm.columns.plans import EncryptedColumn, TablePlan
    from sqlalchemy_envelope.orm.tables.owner_paths import OwnerPath
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass, Place

_MOST_KEYS = 400
"""The most keys of one statement: it compares each column of a table with all of them, twice."""


class ValueCount(NamedTuple):
    """The number of encrypted values in a column.

    Attributes:
        column: the name of the column with that of its class, "Note.body", or of its table if no class maps
            it.
    """

    column: str
    values: int


class PlaintextColumns(NamedTuple):
    """The columns of a class, or of an unmapped table, that are not encrypted. Its keys are left out."""

    name: str
    columns: tuple[str, ...]


def count_values(session: Session, place: Place, key_ids: Collection[KeyId]) -> tuple[ValueCount, ...]:
    """Count the values under these keys of an owner. Sends one query for each table that may have some."""
    found: dict[str, int] = {}
    for table, plan in _encrypted_tables(place.owner_class):
        for path, columns in plan.groups:
            if place.owner_class not in path.owner_classes:
                continue
            for start in range(0, len(key_ids), _MOST_KEYS):
                some = sorted(key_ids)[start : start + _MOST_KEYS]
                counts = _counted(session, table, plan, path, columns, place, some)
                for one, count in zip(columns, counts, strict=True):
                    name = _name_of(table, one.column)
                    found[name] = found.get(name, 0) + int(count or 0)
    return tuple(ValueCount(name, count) for name, count in sorted(found.items()) if count)


def _counted(
    session: Session,
    table: Table,
    plan: TablePlan,
    path: OwnerPath,
    columns: Sequence[EncryptedColumn],
    place: Place,
    key_ids: Sequence[KeyId],
) -> Sequence[Any]:
    headers = [value_header(key_id.bytes) for key_id in key_ids]
    owners = path.columns if path.is_direct and plan.has(path) else ()
    held = raw_table(table, [one.column for one in columns], owners)
    are_here = [
        func.substr(held.c[one.column.name], 1, len(headers[0]), type_=LargeBinary).in_(headers)
        for one in columns
    ]
    mine: ColumnElement[bool] = true()
    if owners:
        mine = path.belongs([held.c[one.name] for one in owners], place.owner_class, place.primary_key)
    query = select(*(func.sum(case((one, 1), else_=0)) for one in are_here)).select_from(held)
    query = query.where(and_(mine, or_(*are_here)))
    mapper = mapper_of_table(table) or place.owner_class.mapper
    with session.no_autoflush:
        bind = bind_for(session, mapper, query)
        row = session.execute(query, execution_options=UNCACHED, bind_arguments=bind).one()
    return tuple(row)


def plaintext_beside(owner_class: OwnerClass) -> tuple[PlaintextColumns, ...]:
    """The columns that stay as they are: of the owner's own tables, and of every table that refers to them or
    has values under the owner's key."""
    kinds = owner_class.mapper.self_and_descendants
    own = {one for mapper in kinds for one in mapper.tables if isinstance(one, Table)}
    values = {
        table
        for table, plan in _encrypted_tables(owner_class)
        if any(owner_class in path.owner_classes for path, _ in plan.groups)
    }
    found = []
    for table in _tables(owner_class):
        refers = any(one.column.table in own for one in table.foreign_keys)
        if is_of_keys(table) or not (table in own or table in values or refers):
            continue
        columns = tuple(one.name for one in table.columns if _is_plain(one))
        if columns:
            found.append(PlaintextColumns(_name_of_table(table), columns))
    return tuple(sorted(found))


def _is_plain(column: Column[Any]) -> bool:
    return not (isinstance(column.type, EncryptedType) or column.primary_key or column.foreign_keys)


def _tables(owner_class: OwnerClass) -> Iterable[Table]:
    """The tables beside the owner's: of its MetaData, and of every class in its registry."""
    tables: dict[Table, None] = {}
    for mapper in owner_class.mapper.registry.mappers:
        tables.update((one, None) for one in mapper.tables if isinstance(one, Table))
    for table in list(tables):
        tables.update(dict.fromkeys(table.metadata.tables.values()))
    return sorted(tables, key=lambda one: one.fullname)


def _encrypted_tables(owner_class: OwnerClass) -> Iterator[tuple[Table, TablePlan]]:
    for table in _tables(owner_class):
        plan = plan_of_table(table)
        if plan is not None:
            yield table, plan


def _name_of(table: Table, column: Column[Any]) -> str:
    mapper = mapper_of_table(table)
    if mapper is None or not mapper.columns.contains_column(column):
        return f"{table.name}.{column.name}"
    return f"{mapper.class_.__name__}.{mapper.get_property_by_column(column).key}"


def _name_of_table(table: Table) -> str:
    mapper = mapper_of_table(table)
    return table.name if mapper is None else mapper.class_.__name__
