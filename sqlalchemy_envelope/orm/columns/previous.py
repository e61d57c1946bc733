"""`PreviousColumn`: the source of an encrypted column's values while they are moved to it.

Both columns are in one table. Only the contents of a row tell how far it is:

    previous     encrypted    the row is
    value        NULL         pending: to be encrypted
    value        value        in both; the encrypted value counts
    NULL         value        encrypted
    NULL         NULL         NULL

A trigger keeps this so (`migration.database.triggers`): a program that changes the previous column alone,
because it does not know the encrypted column, makes the row pending again.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sqlalchemy import JSON, Column, Table
from sqlalchemy.orm.exc import UnmappedColumnError
from sqlalchemy.types import TypeEngine, to_instance

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.columns.column_notes import note, notes_of

ColumnPolicy = Literal["both", "read", "refuse"]
"""The three steps of a migration, each of them a deployment:

- `both`: write to both columns; read the encrypted column if it has a value, else the previous column.
- `read`: write to the encrypted column alone; a previous value is still read.
- `refuse`: a value in the previous column alone is an error.
"""


@dataclass(frozen=True, eq=False)
class PreviousColumn:
    """The column that an encrypted column replaces.

    Attributes:
        name: its name in the same table. Do not map it as well: the library adds it to the table.
        type: its type: that of plaintext, another library's encrypted type, or an `EncryptedType` that
            differs in label, binding or scope.
        policy: how far the migration is: "both", "read" or "refuse".
        nullable: whether the column may be NULL in the database. Must be true from the policy "read" on.

    Raises:
        ConfigurationError: another policy, or a type that moves values itself.
    """

    name: str
    type: TypeEngine[Any] | type[TypeEngine[Any]]
    policy: ColumnPolicy = "both"
    nullable: bool = True

    def __post_init__(self) -> None:
        if self.policy not in get_args(ColumnPolicy):
            raise ConfigurationError(
                f"PreviousColumn(policy={self.policy!r}): use 'both', 'read' or 'refuse'."
            )
        if not self.nullable and self.policy != "both":
            raise ConfigurationError(
                f"PreviousColumn({self.name!r}, nullable=False): with the policy {self.policy!r} the "
                "column is "
                "left NULL in new rows. Make it nullable in the database first; `migrate cutover` does."
            )
        object.__setattr__(self, "type", to_instance(self.type))
        if getattr(self.type, "previous", None) is not None:
            raise ConfigurationError(
                "A PreviousColumn has no previous column of its own: move one step at a time."
            )

    def __repr__(self) -> str:
        return f"PreviousColumn({self.name!r}, {type(self.type).__name__}(), {self.policy!r})"


def attach_previous(column: Column[Any], table: Table) -> None:
    """Add the previous column of an encrypted column to its table, under a key that no attribute has.

    Raises:
        ConfigurationError: the table has a column of that name already.
    """
    declared: PreviousColumn | None = getattr(column.type, "previous", None)
    if declared is None or notes_of(column).previous is not None:
        return
    known = next((one for one in table.columns if one.name == declared.name), None)
    if known is not None and notes_of(known).replaced_by == column.key:
        # The class is made a second time (`extend_existing`).
        note(column, previous=known.key)
        column.nullable = True
        return
    if known is not None:
        raise ConfigurationError(
            f"PreviousColumn({declared.name!r}): {table.name} declares that column itself. Remove it "
            "there, and "
            f"give the encrypted one a name of its own: mapped_column('{declared.name}_encrypted', ...)."
        )
    added: Column[Any] = Column(
        declared.name,
        _null_for_none(declared.type),
        key=f"{column.key}__previous",
        nullable=declared.nullable,
    )
    note(added, replaced_by=column.key)
    note(column, previous=added.key)
    column.nullable = True  # it is NULL in pending rows
    table.append_column(added)


def _null_for_none(type_: Any) -> Any:
    """Store NULL for None. A JSON column would store the text `null`, and a row without a value has to
    hold NULL."""
    if isinstance(type_, JSON) and not type_.none_as_null:
        type_ = copy(type_)
        type_.none_as_null = True
    return type_


def previous_of(column: Any) -> Any:
    """Return the previous column of an encrypted column, in the same table or alias; None without one."""
    base = base_of(column)
    if base is None or not has_previous(base):
        return None
    previous = base.table.c.get(notes_of(base).previous)
    return None if previous is None else column_beside(column, previous)


def column_beside(column: Any, wanted: Column[Any]) -> Any:
    """Return a column of the table of an encrypted column, as it stands beside that column in a statement: in
    the same table or alias. None if a subquery leaves it out."""
    entity = column._annotations.get("parententity")
    if entity is not None:
        # The column of the same mapped class or alias, as the attribute gives it.
        try:
            key = entity.mapper.get_property_by_column(wanted).key
        except UnmappedColumnError:
            pass  # a class that is mapped to a subquery
        else:
            return getattr(entity.entity, key).__clause_element__()
    return wanted if column.table is wanted.table else column.table.corresponding_column(wanted)


def is_moving(column: Any) -> bool:
    """Tell whether a column, of a table or of a SELECT from one, has a previous column."""
    base = base_of(column)
    return base is not None and has_previous(base)


def has_previous(column: Column[Any]) -> bool:
    """Tell whether a column of a table has a previous column."""
    return policy_of_column(column) is not None and notes_of(column).previous is not None


def base_of(column: Any) -> Any | None:
    """The column of a table that this column is, or is selected from."""
    if getattr(column, "table", None) is None:
        return None
    bases = (one for one in column.base_columns if isinstance(one, Column) and one.table is not None)
    return next(bases, None)


def policy_of_column(column: Any) -> ColumnPolicy | None:
    """Return the policy of an encrypted column's migration; None if it has no previous column."""
    declared: PreviousColumn | None = getattr(column.type, "previous", None)
    return None if declared is None else declared.policy
