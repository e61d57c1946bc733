"""The columns that are being moved, found in the mapped classes, each with its table, key, owner and both
columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Table
from sqlalchemy.orm import Mapper, configure_mappers

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.columns.plans import plan_of_mapper
from sqlalchemy_envelope.orm.columns.previous import previous_of
from sqlalchemy_envelope.orm.indexes.indexed import indexes_on
from sqlalchemy_envelope.orm.tables.bases import mappers_of, require_registries

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy_envelope.orm.columns.plans import EncryptedAttribute, EncryptedColumn
    from sqlalchemy_envelope.orm.columns.previous import PreviousColumn
    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn
    from sqlalchemy_envelope.orm.tables.owner_paths import OwnerPath


@dataclass(frozen=True, eq=False)
class MigratingColumn:
    """An encrypted column that takes the place of a previous column.

    Attributes:
        mapper, attribute: the mapped class, and the attribute's name in it.
        table: the table that holds both columns.
        keys: the columns of its primary key, in order.
        encrypted, previous: the two columns. Re-encryption needs no previous column.
        plan: how values are encoded, and the path to their owner.
    """

    mapper: Mapper[Any]
    attribute: str
    table: Table
    keys: tuple[Column[Any], ...]
    encrypted: Column[Any]
    previous: Any
    plan: EncryptedColumn

    @property
    def name(self) -> str:
        """The migration's name in the state table and on the command line: `table.attribute`."""
        return f"{self.table.name}.{self.attribute}"

    @property
    def indexes(self) -> tuple[IndexedColumn, ...]:
        """The blind indexes of the column, alone or with others."""
        return indexes_on(self.encrypted)

    @property
    def path(self) -> OwnerPath:
        """How a row names its owner."""
        return self.plan.path

    @property
    def from_column(self) -> Column[Any]:
        """The previous column, for callers that need it.

        Raises:
            ConfigurationError: there is no previous column.
        """
        if self.previous is None:
            raise ConfigurationError(
                f"{self.name} has no previous column: its EncryptedType has no `previous=`."
            )
        previous: Column[Any] = self.previous
        return previous

    @property
    def policy(self) -> str:
        """The policy that the model declares; "none" if it no longer declares the previous column."""
        declared: PreviousColumn | None = self.plan.type.previous
        return "none" if declared is None else declared.policy

    @property
    def declared(self) -> PreviousColumn:
        """The encrypted type's declaration of the previous column."""
        declared: PreviousColumn = self.plan.type.previous  # type: ignore[assignment]  # such columns alone come here
        return declared


def migrating_columns(base: Any) -> list[MigratingColumn]:
    """The columns of a declarative base, or a registry, that have a previous column; in the order of names.

    Raises:
        ConfigurationError: `base` is neither.
    """
    return [one for one in encrypted_columns(base) if one.previous is not None]


def encrypted_columns(base: Any) -> list[MigratingColumn]:
    """Every encrypted column of a declarative base, or a registry.

    Raises:
        ConfigurationError: `base` is neither.
    """
    require_registries(base)
    configure_mappers()
    columns: dict[str, MigratingColumn] = {}
    for mapper in sorted(mappers_of(base), key=lambda one: len(list(one.iterate_to_root()))):
        for attribute in plan_of_mapper(mapper):
            one = _described(mapper, attribute)
            columns.setdefault(f"{one.table.key}.{one.encrypted.key}", one)
    return sorted(columns.values(), key=lambda one: one.name)


def _described(mapper: Mapper[Any], attribute: EncryptedAttribute) -> MigratingColumn:
    encrypted = attribute.encrypted.column
    previous = previous_of(encrypted)
    table: Table = encrypted.table
    return MigratingColumn(
        mapper,
        attribute.key,
        table,
        tuple(table.primary_key.columns),
        encrypted,
        previous,
        attribute.encrypted,
    )


def column_named(columns: Iterable[MigratingColumn], name: str) -> MigratingColumn:
    """The column with this name.

    Raises:
        ConfigurationError: no column has this name.
    """
    known = list(columns)
    for one in known:
        names = (one.encrypted.name, one.previous.name if one.previous is not None else None)
        if name == one.name or name in [f"{one.table.name}.{other}" for other in names]:
            return one
    there = ", ".join(one.name for one in known) or "none: no EncryptedType has `previous=`"
    raise ConfigurationError(f"No column {name!r} is being moved (there is {there}).")
