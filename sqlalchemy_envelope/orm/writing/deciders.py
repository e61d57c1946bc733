"""Columns that decide whose key encrypts a value in another table.

Such a column stands in a row on a dotted path, or in the base table of a joined subclass. Either it leads on
to the owner; or rows refer to it without a foreign key that would hold it. `moves` looks at the statements
that change one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakSet, ref

from sqlalchemy import Table, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import aliased
from sqlalchemy.sql.selectable import TableClause

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.columns.encrypted_type import EncryptedType
from sqlalchemy_envelope.orm.tables.owner_paths import among, linked_paths
from sqlalchemy_envelope.orm.tables.records import records_of_table
from sqlalchemy_envelope.orm.tables.watched import EXPECTED, expected_for, watch_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from sqlalchemy import Column, ForeignKey, Select
    from sqlalchemy.orm import Mapper, RelationshipProperty

    from sqlalchemy_envelope.orm.columns.plans import EncryptedAttribute
    from sqlalchemy_envelope.orm.tables.owner_paths import LinkedPath

    Key = tuple[Any, ...]

_DECIDERS = "deciders"
_tables: dict[str, WeakSet[Table]] = {}


class Decider:
    """Columns of a table that decide the owner of an encrypted column's values.

    Attributes:
        table, columns: the deciding columns and their table.
        keys: the key of each column, by its name in the database: another `Table` object may use other keys.
        encrypted: the encrypted column.
        is_own: the columns belong to the object that has the value, and not to a row on the way.
        hanging: a query for the rows whose value depends on deciding rows with these primary keys.
    """

    def __init__(
        self,
        table: Table,
        columns: frozenset[Column[Any]],
        encrypted: Column[Any],
        hanging: Callable[[Sequence[Key]], Select[Any]],
        *,
        is_own: bool,
    ) -> None:
        self.table = table
        self.columns = columns
        self.keys = {column.name.lower(): column.key for column in columns}
        self.encrypted = encrypted
        self.hanging = hanging
        self.is_own = is_own

    def is_like(self, other: Decider) -> bool:
        """Whether another decider has the same columns for the same encrypted column."""
        same = self.columns == other.columns and self.encrypted is other.encrypted
        return same and self.is_own == other.is_own


def expect(mapper: Mapper[Any]) -> None:
    """Remember a mapper that may have deciders. They are known when it is configured, because only then do
    paths lead through its relationships."""
    types = [column.type for column in mapper.local_table.columns if isinstance(column.type, EncryptedType)]
    if types and (mapper.inherits is not None or any(type_.owner is not None for type_ in types)):
        EXPECTED.add(ref(mapper, EXPECTED.discard))


def watch(mapper: Mapper[Any], plan: Sequence[EncryptedAttribute]) -> None:
    """Watch the columns of other tables that decide the owners of these attributes."""
    EXPECTED.discard(ref(mapper))
    for attribute in plan:
        column = attribute.encrypted.column
        owning = [base for base in mapper.iterate_to_root() if column.table in base.tables]
        if not owning or len(attribute.owner_keys) != len(attribute.encrypted.path.columns):
            continue  # a mapped subquery: its tables have mappers of their own
        for decider in _deciders(owning[-1], attribute):
            known = records_of_table(decider.table).setdefault(_DECIDERS, [])
            if not any(map(decider.is_like, known)):
                known.append(decider)
                _tables.setdefault(decider.table.name.lower(), WeakSet()).add(decider.table)
                watch_name(decider.table)


def _deciders(mapper: Mapper[Any], attribute: EncryptedAttribute) -> Iterator[Decider]:
    """The deciders of an attribute in other tables: first those of its own class, then those on the way."""
    path, column = attribute.encrypted.path, attribute.encrypted.column
    for table, columns in _by_table(path.columns):
        if table is not column.table:
            hanging = _hanging(mapper, attribute, table, None, 0)
            yield Decider(table, columns, column, hanging, is_own=True)
    for linked in linked_paths(path):
        for at, (there, keys) in enumerate(linked.links()):
            leading = [mapped for key in keys for mapped in there.attrs[key].columns]
            for table, columns in (*_by_table(leading), *_by_table(_unheld(linked.steps[at]))):
                hanging = _hanging(mapper, attribute, table, linked, at + 1)
                yield Decider(table, columns, column, hanging, is_own=False)


def _unheld(step: RelationshipProperty[Any]) -> list[Any]:
    """Columns of the next row on the way that may change although rows refer to them: no foreign key holds
    them, or only one that is checked when the transaction ends."""
    pairs = step.local_remote_pairs or ()
    return [far for near, far in pairs if not any(_holds(key, far) for key in near.foreign_keys)]


def _holds(key: ForeignKey, column: Any) -> bool:
    return key.column is column and key.constraint is not None and not key.constraint.deferrable


def _by_table(columns: Iterable[Any]) -> list[tuple[Table, frozenset[Column[Any]]]]:
    by_table: dict[Table, set[Column[Any]]] = {}
    for column in columns:
        if isinstance(column.table, Table):
            by_table.setdefault(column.table, set()).add(column)
    return [(table, frozenset(own)) for table, own in by_table.items()]


def _hanging(
    mapper: Mapper[Any], attribute: EncryptedAttribute, table: Table, path: LinkedPath | None, steps: int
) -> Callable[[Sequence[Key]], Select[Any]]:
    """Makes the query of a decider: rows of `mapper` with a value, by the primary keys of rows in `table`.

    Args:
        path: the path on which that table lies, so many steps on; None if the table is the mapper's own.
    """

    def hanging(keys: Sequence[Key]) -> Select[Any]:
        row: Any = aliased(mapper)
        own = [_of_column(row, mapper, column) for column in attribute.encrypted.column.table.primary_key]
        statement: Any = select(*own).select_from(row)
        there, its = row, mapper
        if path is not None:
            statement, there = path.join(statement, row, mapper, steps)
            its = path.steps[steps - 1].mapper
        deciding = [_of_column(there, its, column) for column in table.primary_key]
        value = _of_column(row, mapper, attribute.encrypted.column)
        query: Select[Any] = statement.where(value.is_not(None), among(deciding, keys))
        return query

    return hanging


def _of_column(entity: Any, mapper: Mapper[Any], column: Any) -> Any:
    return getattr(entity, mapper.get_property_by_column(column).key)


def configure_expected(target: Any) -> None:
    """Configure the mappers that may have deciders in this table: the first statement may come before the
    first class is used."""
    name = getattr(target, "name", None)
    if not EXPECTED or not isinstance(target, TableClause) or name is None:
        return
    for mapper in expected_for(str.lower(name)):
        try:
            mapper.attrs  # noqa: B018 - configures the mappers
        except (SQLAlchemyError, ConfigurationError):
            continue  # nothing can be written through it, and its own statements say why


def deciders_in(target: Any) -> tuple[list[Decider], bool]:
    """The deciders in this table, and whether the table is a twin: another `Table` object of the same
    name. Its schema does not count, because a tenant's schema has what the model's has."""
    name = getattr(target, "name", None)
    if not isinstance(target, TableClause) or name is None or name.lower() not in _tables:
        return [], False
    known = records_of_table(target).get(_DECIDERS) if isinstance(target, Table) else None
    if known is not None:
        return list(known), False
    namesakes = tuple(_tables[name.lower()])
    return [decider for table in namesakes for decider in records_of_table(table)[_DECIDERS]], True
