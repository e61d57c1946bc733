"""Candidates: an index whose tags do not tell a value for certain gives rows that may have it, and each row
is compared again after its value is decrypted."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.crypto.blind_index import FULL_BITS
from sqlalchemy_envelope.exceptions import ConfigurationError, StatementRefusedError
from sqlalchemy_envelope.orm.columns.plans import mapper_of_table
from sqlalchemy_envelope.orm.indexes.kinds.equal import Equal

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Column

    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn
    from sqlalchemy_envelope.orm.indexes.kinds.kind import Wanted


def rechecked(index: IndexedColumn, wanted: Wanted) -> Wanted:
    """What a comparison looks for, with the check that an index of fewer bits needs: another value may have
    the same tag.

    Raises:
        StatementRefusedError: it asks for all rows but the candidates.
    """
    if wanted.check is None and index.bits < FULL_BITS and wanted.datas:
        wanted = replace(wanted, check=_has_data(index, wanted))
    if wanted.check is not None and wanted.negated:
        name, entity, _ = names_of(index)
        raise StatementRefusedError(
            f"{name} is found by {index.key!r}, whose tags give candidates: a row with another value may "
            f"have the same tag, and `!=` and `not_in()` would leave it out. Load the rows and compare the "
            f"decrypted values: `[one for one in session.scalars(select({entity})) if ...]`."
        )
    return wanted


def _has_data(index: IndexedColumn, wanted: Wanted) -> Callable[..., bool]:
    """A check that a row's values give the same bytes to hash as what is looked for."""
    datas, kind = frozenset(wanted.datas), index.kind
    converts = [one.convert for one in index.sources]

    def check(*values: Any) -> bool:
        return (
            kind.data(
                [
                    value if convert is None else convert(value)
                    for value, convert in zip(values, converts, strict=True)
                ]
            )
            in datas
        )

    return check


def is_certain(index: IndexedColumn) -> bool:
    """Whether rows with equal tags have equal values, so that tags can be compared with tags."""
    return index.bits == FULL_BITS and isinstance(index.kind, Equal)


def refuse_unique(column: Column[Any]) -> None:
    """Refuse a unique index whose tags different values share.

    Raises:
        ConfigurationError: the column is unique, and is such an index.
    """
    type_: Any = column.type
    if column.unique and (type_.bits < FULL_BITS or type_.bucket is not None):
        what = "in buckets" if type_.bucket is not None else f"of {type_.bits} bits"
        raise ConfigurationError(
            f"{column.name} is a blind index {what}, and unique: the database would refuse rows whose values "
            f"differ and share a tag. Leave out `unique=True`, or declare a second index of {FULL_BITS} bits."
        )


def names_of(index: IndexedColumn) -> tuple[str, str, str]:
    """The names that an application has for what is indexed: of the attribute, of its class, and of the
    primary key."""
    column, table = index.sources[0].column, index.column.table
    mapper = mapper_of_table(table)
    keys = list(table.primary_key.columns)
    if mapper is None:
        return str(column), table.name, f"{table.name}.c.{keys[0].key}" if keys else "the primary key"
    entity = mapper.class_.__name__
    name = mapper.get_property_by_column(column).key
    key = mapper.get_property_by_column(keys[0]).key if keys else "id"
    return f"{entity}.{name}", entity, f"{entity}.{key}"
