"""The tables whose statements this library looks at: with encrypted columns, of owners and of grants, and
those that lead to an owner.

They are known by name, without a schema, because another `Table` object of one of them counts too: reflected,
made by hand, or an annotated copy. A name too many costs a statement some microseconds and nothing else, and
so it stays when its table is gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import ref

from sqlalchemy import Table

if TYPE_CHECKING:
    from sqlalchemy.orm import Mapper

EXPECTED: set[ref[Mapper[Any]]] = set()
"""Mappers that are not configured yet: which tables lead to the owners of their values is not known."""

_names: set[str] = set()


def watch_name(table: Table) -> None:
    """Look at the statements on tables of this name from here on."""
    _names.add(str.lower(table.name))


def is_watched(table: Any) -> bool:
    """Whether this table's statements are looked at; so are those on an alias, or whatever is no `Table`."""
    if EXPECTED or not isinstance(table, Table):
        return True
    return str.lower(table.name) in _names  # `table.name.lower()` leaves a quoted name as it is
