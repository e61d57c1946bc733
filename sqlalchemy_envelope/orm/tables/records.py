"""What the library knows of a table or a mapper, kept on that object itself.

A global dictionary with weak keys would never let go of them: its values lead back to the keys, from an owner
class to its mapper, from the mapper to its table. Kept on the object, both are collected together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy import Table
    from sqlalchemy.orm import Mapper

_RECORDS = "_sqlalchemy_envelope"


class Records(dict[str, Any]):
    """Records by name. A pickled `MetaData` takes none along: they are made again from the declarations."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Records, ()


def records_of_table(table: Table) -> Records:
    """The records of a table, and of its annotated copies in statements of the ORM.

    They are not in `Table.info`, which `Table.to_metadata` copies and Alembic writes into revisions.
    """
    known: Records | None = table.__dict__.get(_RECORDS)
    if known is not None:
        return known
    # A copy has the original's constraints; it may be older than the original's records.
    made: Records = table.primary_key.table.__dict__.setdefault(_RECORDS, Records())
    table.__dict__[_RECORDS] = made
    return made


def records_of_mapper(mapper: Mapper[Any]) -> Records:
    """The records of a mapper."""
    found: Records = mapper.__dict__.setdefault(_RECORDS, Records())
    return found
