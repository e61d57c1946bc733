"""The tables whose statements this library looks at: tables with encrypted columns, tables of owners and of
grants, and tables that lead to an owner.

They are known by name, without a schema, because another `Table` object of such a table counts too: a
reflected table, a table made by hand, an annotated copy. A name too many costs a statement some microseconds
and nothing else, and so it stays when its table is gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary, ref

from sqlalchemy import MetaData, Table

if TYPE_CHECKING:
    from sqlalchemy.orm import Mapper

EXPECTED: set[ref[Mapper[Any]]] = set()
"""Mappers that are not configured yet: which tables lead to the owners of their values is not known."""

_names: set[str] = set()


class _Names(NamedTuple):
    """The names of a MetaData's tables, as long as it has so many."""

    table_count: int
    names: frozenset[str]


_names_by_metadata: WeakKeyDictionary[MetaData, _Names] = WeakKeyDictionary()


def watch_name(table: Table) -> None:
    """Look at the statements on tables of this name from now on."""
    _names.add(str.lower(table.name))


def is_watched(table: Any) -> bool:
    """Whether statements on this table are looked at. Those on an alias, or on anything but a `Table`,
    always are."""
    if not isinstance(table, Table):
        return True
    name = str.lower(table.name)  # `table.name.lower()` leaves a quoted name as it is
    return name in _names or (bool(EXPECTED) and bool(expected_for(name)))


def expected_for(name: str) -> list[Mapper[Any]]:
    """The mappers that are not configured yet and whose MetaData has a table of this name: the table may
    lead to the owners of their values. The other mappers stay as they are: the application may never use
    them."""
    mappers = filter(None, [reference() for reference in tuple(EXPECTED)])
    return [mapper for mapper in mappers if name in _names_in(getattr(mapper.local_table, "metadata", None))]


def _names_in(metadata: MetaData | None) -> frozenset[str]:
    if metadata is None:
        return frozenset()
    count = len(metadata.tables)
    known = _names_by_metadata.get(metadata)
    if known is None or known.table_count != count:
        names = frozenset(str.lower(table.name) for table in metadata.tables.values())
        known = _names_by_metadata[metadata] = _Names(count, names)
    return known.names
