"""Columns that lead to a row's owner, and that an UPDATE changes without naming them: by `onupdate=`, or in
the database. Such an UPDATE moves the row to another owner, but its values stay under the former owner's key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.tables.owner_paths import linked_paths

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Column

    from sqlalchemy_envelope.orm.tables.owner_paths import OwnerPath


def refuse_owner_updates(encrypted: Column[Any], path: OwnerPath) -> None:
    """Refuse such a column, in the row of an encrypted column or in a row on the way to the owner.

    Raises:
        ConfigurationError: there is such a column.
    """
    for column in _leading(path):
        how = changed_by_itself(column)
        if how is not None:
            where = f"{encrypted.table.name}.{encrypted.name}"
            raise ConfigurationError(
                f"{column.table.name}.{column.name} leads to the owner of {where}, and has {how}. Rows would "
                f"go to another owner when others of their columns are changed, and their values would stay "
                f"under the former owner's key. Remove it, and set {column.name} in Python."
            )


def changed_by_itself(column: Column[Any]) -> str | None:
    """The reason why a column changes in an UPDATE that does not name it."""
    if column.computed is not None:
        return "`Computed(...)`"
    if column.onupdate is not None:
        return "`onupdate=`"
    return None if column.server_onupdate is None else "`server_onupdate=`"


def _leading(path: OwnerPath) -> Iterator[Any]:
    yield from path.columns
    for linked in linked_paths(path):
        for step in linked.steps:
            for pair in step.local_remote_pairs or ():
                yield from pair
        yield from linked.onward.columns
