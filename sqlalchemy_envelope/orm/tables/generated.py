"""Classes and tables that are made beside a class of the application: their names, and where they are
mapped."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from sqlalchemy import UniqueConstraint
from sqlalchemy.orm import MappedColumn
from sqlalchemy.schema import conv

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.tables.records import records_of_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import MetaData, Table
    from sqlalchemy.orm import Mapper

LONGEST_NAME = 63
"""The longest name of a table, in bytes, that every supported database takes. PostgreSQL has this limit."""


@dataclass(frozen=True)
class KeyNames:
    """What the tables and classes of a `KeyOwner` are called. `{table}` stands for the name of the owner's
    table, and `{owner}` for that of its class, so that an abstract base can set the pattern for all.
    """

    key_table: str = "{table}_key"
    slot_table: str = "{table}_keyslot"
    key_class: str = "{owner}Key"
    slot_class: str = "{owner}KeySlot"
    share_table: str = "{table}_keyshare"
    share_class: str = "{owner}KeyShare"
    ticket_table: str = "{table}_keyticket"
    ticket_class: str = "{owner}KeyTicket"


@dataclass(frozen=True)
class GrantNames:
    """What the companion table of a `KeyGrant` and its class are called. `{table}` stands for the name of the
    table of granting rows, and `{grant}` for that of its class.
    """

    table: str = "{table}_keygrant"
    class_name: str = "{grant}KeyGrant"


@dataclass(frozen=True)
class Name:
    """The name of a generated class and its table, filled in.

    Attributes:
        attribute: the class attribute by which the application's class names the generated class.
        chosen_by: how to choose another table name, for an error.
    """

    cls: str
    table: str
    attribute: str
    chosen_by: str


def now(_context: object) -> dt.datetime:
    """The default of the columns that hold a time."""
    # Without a parameter SQLAlchemy would wrap it, and a MetaData with the wrapper in it cannot be pickled.
    return dt.datetime.now(dt.UTC)


_counter = count()
_BESIDE = "beside"
_TABLE_OPTIONS = frozenset(
    f"{dialect}_{option}"
    for dialect in ("mysql", "mariadb")
    for option in ("engine", "charset", "default_charset", "collate", "default_collate")
)
"""What tables must have in common for a foreign key between them."""


def generate(
    mapper: Mapper[Any],
    base: type[Any],
    name: Name,
    attributes: Mapping[str, Any],
    metadata: MetaData | None = None,
) -> Any:
    """Map a class to a table of its own, in the schema and the registry of `mapper`.

    The declarative base of the application is not used: it may make dataclasses of its subclasses, or have
    columns of its own.

    Args:
        metadata: the MetaData of the table; left out, that of `mapper`.

    Raises:
        ConfigurationError: the table's name is too long, or another table has it.
    """
    cls: Any = mapper.class_
    table: Any = mapper.local_table
    where: MetaData = table.metadata if metadata is None else metadata
    _check_length(cls, name)
    _make_room(table, where, base, cls, name)
    options = {"schema": table.schema, "extend_existing": True}
    options |= {option: value for option, value in table.kwargs.items() if option in _TABLE_OPTIONS}
    namespace = {
        "__tablename__": name.table,
        "__table_args__": options,
        "__module__": cls.__module__,
        "__qualname__": f"{cls.__qualname__}.{name.attribute}",
        "metadata": where,
        **attributes,
    }
    # Mapped under a name that no class of the application can have. SQLAlchemy warns of two classes of one
    # name in a registry, and `relationship("UserKey")` to the application's own class would be ambiguous.
    made: Any = type(f"{name.cls} {next(_counter)}", (base,), namespace)
    mapper.registry.mapped(made)
    made.__name__ = name.cls
    note_table(made.__table__, beside=table)
    return made


def note_table(table: Table, *, beside: Table) -> None:
    """Note beside which table of the application a table of keys or grants stands."""
    records_of_table(table)[_BESIDE] = beside


def is_of_keys(table: Table) -> bool:
    """Whether this is a table of keys, slots or grants."""
    return _BESIDE in records_of_table(table)


def fill_in(cls: type[Any], pattern: str, **known: str) -> str:
    """A pattern of `KeyNames` or `GrantNames`, filled in.

    Raises:
        ConfigurationError: the pattern asks for another name than it may.
    """
    try:
        return pattern.format(**known)
    except (KeyError, IndexError, ValueError, AttributeError):
        there = " and ".join(f"{{{name}}}" for name in known)
        raise ConfigurationError(f"{cls.__name__}: the name {pattern!r} may have {there} in it.") from None


def _check_length(cls: type[Any], name: Name) -> None:
    size = len(name.table.encode())
    if size > LONGEST_NAME:
        raise ConfigurationError(
            f"{cls.__name__}: the name of its table {name.table!r} would have {size} bytes, and PostgreSQL "
            f"takes {LONGEST_NAME}. Choose a shorter name: `class {cls.__name__}(..., {name.chosen_by})`."
        )


def _make_room(table: Table, metadata: MetaData, base: type[Any], cls: type[Any], name: Name) -> None:
    """Clear a table of that name that was reflected before, or made with an earlier class of the same name.

    Raises:
        ConfigurationError: it is another table.
    """
    existing = metadata.tables.get(f"{table.schema}.{name.table}" if table.schema else name.table)
    if existing is None:
        return
    own = {key for key, value in vars(base).items() if isinstance(value, MappedColumn)}
    beside = records_of_table(existing).get(_BESIDE)
    if beside not in (None, table) or not own <= set(existing.columns.keys()):
        raise ConfigurationError(
            f"{cls.__name__}: its MetaData has a table {name.table!r} already, which is not ours. Choose "
            f"another name: `class {cls.__name__}(..., {name.chosen_by})`."
        )
    if beside is None:
        _remove_reflected(existing)
    else:
        _empty(existing)


def _remove_reflected(existing: Table) -> None:
    """Take a reflected table out of its MetaData: it may be mapped, by `automap` for example, and replaced
    columns would break that mapping. Only slots and grants refer to it. They go with it, or their foreign
    keys would find the new table."""
    metadata = existing.metadata
    for other in list(metadata.tables.values()):
        if any(key.target_fullname.rpartition(".")[0] == existing.key for key in other.foreign_keys):
            metadata.remove(other)
    metadata.remove(existing)


def _empty(existing: Table) -> None:
    """Take off what the class that is made now declares again. The table stays, because other tables refer to
    it, and its columns are replaced."""
    existing.indexes.clear()
    for constraint in list(existing.constraints):
        if isinstance(constraint, UniqueConstraint):
            existing.constraints.discard(constraint)


def name_indexes(table: Table) -> None:
    """Name the indexes of a table of ours that a naming convention without "ix" leaves nameless."""
    for index in table.indexes:
        if index.name is None:
            index.name = conv("_".join(("ix", table.name, *index.columns.keys())))
