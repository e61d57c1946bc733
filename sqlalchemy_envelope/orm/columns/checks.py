"""What is checked when a column or a mapper is declared. An encrypted column that cannot keep its promise
raises there, and not at first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Table, UniqueConstraint

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.columns.encrypted_type import EncryptedType
from sqlalchemy_envelope.orm.columns.origin import note_origin
from sqlalchemy_envelope.orm.columns.owner_updates import changed_by_itself
from sqlalchemy_envelope.orm.columns.plans import plan_of_mapper
from sqlalchemy_envelope.orm.columns.previous import attach_previous
from sqlalchemy_envelope.orm.columns.stored_value import attach_check

if TYPE_CHECKING:
    from sqlalchemy.orm import Mapper

    from sqlalchemy_envelope.orm.columns.plans import EncryptedAttribute


def declare_column(column: Column[Any], table: Any) -> bool:
    """Give an encrypted column its label and its CHECK when it joins its table; tells whether it is one.

    Raises:
        ConfigurationError: the database would have to see the plaintext.
    """
    _check_variants(column)
    if not isinstance(column.type, EncryptedType) or not isinstance(table, Table):
        return False
    if column.type.label is None:
        column.type = column.type.labelled(f"{table.name}.{column.name}")
    _check_column(column, table)
    note_origin(column)
    attach_check(column, table)
    attach_previous(column, table)
    return True


def _check_variants(column: Column[Any]) -> None:
    """Refuse variants. A variant takes the place of the whole type on its database, and nothing would
    encrypt there, or refuse plaintext."""
    variants: Any = getattr(column.type, "_variant_mapping", {})
    if variants and any(isinstance(one, EncryptedType) for one in (column.type, *variants.values())):
        raise ConfigurationError(
            f"{column.name} is encrypted, and with_variant() would put another type in its place on one "
            "database. Leave it out: the stored type is each database's own binary type."
        )


def _check_column(column: Column[Any], table: Table) -> None:
    where = f"{table.name}.{column.name}"
    if column.server_default is not None or column.server_onupdate is not None or column.computed is not None:
        raise ConfigurationError(
            f"{where} is encrypted: the database cannot compute its value. Use a Python-side `default=`."
        )
    if column.onupdate is not None:
        raise ConfigurationError(f"{where} is encrypted: set it in Python instead of `onupdate=`.")
    if column.default is not None and not (column.default.is_scalar or column.default.is_callable):
        raise ConfigurationError(f"{where} is encrypted: its `default=` must be a Python value or function.")
    if column.primary_key or column.foreign_keys:
        raise ConfigurationError(f"{where} is encrypted: it cannot be a primary or foreign key.")
    if column.unique or column.index:
        raise _useless_index(where)


def _useless_index(where: str) -> ConfigurationError:
    return ConfigurationError(
        f"{where} is encrypted: equal values are stored as different bytes, so an index or a unique "
        "constraint on it would find nothing. Remove it."
    )


def check_mapper(mapper: Mapper[Any]) -> tuple[EncryptedAttribute, ...]:
    """Find the owners of a mapper's encrypted columns, and check what only the whole table shows.

    Raises:
        ConfigurationError: a column has no owner or several, an index is over ciphertext, or a row-bound
            column has no client-made key.
    """
    plan = plan_of_mapper(mapper)
    for attribute in plan:
        column, table = attribute.encrypted.column, attribute.encrypted.column.table
        for index in table.indexes:
            if column in index.columns.values():
                raise _useless_index(f"{table.name}.{column.name}")
        for constraint in table.constraints:
            if isinstance(constraint, UniqueConstraint) and column in constraint.columns.values():
                raise _useless_index(f"{table.name}.{column.name}")
        if attribute.encrypted.row_bound:
            _check_row_bound(column, mapper)
    return plan


def _check_row_bound(column: Column[Any], mapper: Mapper[Any]) -> None:
    base = mapper.base_mapper.local_table
    where = f"{column.table.name}.{column.name}"
    if not isinstance(base, Table):
        return  # a mapped subquery is read from and not written to
    if set(mapper.primary_key) != set(base.primary_key.columns):
        raise ConfigurationError(f"{where} is bound to its row: map its table's own primary key.")
    for key in base.primary_key.columns:
        how = changed_by_itself(key)
        if how is not None:
            raise ConfigurationError(
                f"{where} is bound to its row, and {base.name}.{key.name} has {how}: a value does not open "
                "in a row with another primary key. Remove it."
            )
        made_by_client = key.default is not None and (key.default.is_scalar or key.default.is_callable)
        if not made_by_client and (key is base.autoincrement_column or key.server_default is not None):
            raise ConfigurationError(
                f"{where} is bound to its row, and the database makes {base.name}.{key.name}: the value "
                f"cannot be encrypted before its row is known. Give {key.name} a client-side default (`Uuid` "
                "with `default=uuid.uuid4`), or use bind='column'."
            )
