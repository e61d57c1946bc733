"""What the tables of keys, slots and tickets have in common: each belongs to one class of owners."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, get_args, get_origin

from sqlalchemy import ForeignKey, ForeignKeyConstraint, Index
from sqlalchemy.orm import mapped_column
from sqlalchemy.schema import conv

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.tables.owners import OwnerClass, owner_class_of

if TYPE_CHECKING:
    from sqlalchemy import Column, Table

Owner = TypeVar("Owner")


class OwnedTable(Generic[Owner]):
    """A table finds its owner class in `Table[Owner]`."""

    __owner_class__: ClassVar[OwnerClass]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        for base in getattr(cls, "__orig_bases__", ()):
            origin = get_origin(base)
            if isinstance(origin, type) and issubclass(origin, OwnedTable):
                (owner,) = get_args(base)
                if isinstance(owner, TypeVar):
                    continue
                owner_class = owner_class_of(getattr(owner, "__table__", None))
                if owner_class is None:
                    raise ConfigurationError(f"{cls.__name__}: {owner.__name__} is not a mapped KeyOwner.")
                cls.__owner_class__ = owner_class
        if hasattr(cls, "__owner_class__"):
            cls._refer(cls.__owner_class__)
        super().__init_subclass__(**kwargs)

    @classmethod
    def _refer(cls, owner_class: OwnerClass) -> None:
        """Add the columns that refer to the owner, before the class is mapped."""


def owner_names(owner_class: OwnerClass) -> list[str]:
    """The names of the columns that refer to the owner."""
    key = owner_class.primary_key
    return ["owner_id"] if len(key) == 1 else [f"owner_{column.key}" for column in key]


def refer_to_owner(cls: type[Any], owner_class: OwnerClass) -> None:
    """Add the columns that refer to the owner. Their rows go with the owner."""
    for name, column in zip(owner_names(owner_class), owner_class.primary_key, strict=True):
        single = len(owner_class.primary_key) == 1
        reference = [ForeignKey(column, ondelete="CASCADE", onupdate="CASCADE")] if single else []
        setattr(cls, name, mapped_column(column.type, *reference, nullable=False, index=single))


def constrain_owner(table: Table, owner_class: OwnerClass) -> tuple[Column[Any], ...]:
    """Add the foreign key and the index of an owner with a composite primary key, once the table is made.

    Returns:
        The columns that refer to the owner.
    """
    columns = tuple(table.c[name] for name in owner_names(owner_class))
    if len(columns) > 1:
        table.append_constraint(
            ForeignKeyConstraint(columns, owner_class.primary_key, ondelete="CASCADE", onupdate="CASCADE")
        )
        Index(conv(f"ix_{table.name}_owner"), *columns)
    return columns
