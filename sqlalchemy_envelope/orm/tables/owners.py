"""Which mapped classes own keys, by their tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from sqlalchemy import Table, Uuid

from sqlalchemy_envelope.crypto.context import encode_context, encode_reference, owner_reference
from sqlalchemy_envelope.exceptions import ConfigurationError, EnrollmentError
from sqlalchemy_envelope.keys.model import Purpose
from sqlalchemy_envelope.orm.tables.records import records_of_table
from sqlalchemy_envelope.orm.tables.watched import watch_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Column
    from sqlalchemy.orm import InstanceState, Mapper

    from sqlalchemy_envelope.keys.keyring import OwnerId

Location = bytes
"""16 bytes that stand for a database and a schema in it."""
LOCATION_SIZE = 16
Kind = tuple[Purpose, str]
"""A kind of key: its purpose and its scope."""


@dataclass(eq=False)
class OwnerClass:
    """One class of key owners, with the tables that hold its keys.

    Attributes:
        scopes: the scopes that its encrypted columns name; each scope has data keys of its own.
        indexed: the scopes with blind indexes under an owner's key; each has index keys of its own.
        compares: whether an index under an owner's key is unique.
        index_tables: the tables with blind indexes of values under the owners' keys.
        grants_of, grants_to: the grant classes that share its keys, and those that give it the keys of
            others.
        emergencies, emergencies_to: the classes of emergency access to its owners, and those in which its
            owners are the persons who help.
        is_sole: the class has one row, which owns the rows that name no other owner.
        has_shares: secrets open nothing without a share in a second database, in the table of `share_class`.
        selects: the statements that read its tables at each unlock; to make such a statement costs a fifth of
            sending it.
    """

    mapper: Mapper[Any]
    label: str
    reference_attribute: str | None
    primary_key: tuple[Column[Any], ...]
    is_sole: bool = False
    key_class: Any = None
    slot_class: Any = None
    has_shares: bool = False
    share_class: Any = None
    ticket_class: Any = None
    owner_columns: tuple[Column[Any], ...] = field(default=())
    scopes: set[str] = field(default_factory=lambda: {""})
    indexed: set[str] = field(default_factory=set)
    compares: bool = False
    index_tables: dict[Table, None] = field(default_factory=dict, repr=False)
    grants_of: list[GrantClass] = field(default_factory=list)
    grants_to: list[GrantClass] = field(default_factory=list)
    emergencies: list[EmergencyClass] = field(default_factory=list)
    emergencies_to: list[EmergencyClass] = field(default_factory=list)
    selects: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def kinds(self) -> set[Kind]:
        """The kinds of keys that each owner has, beside its root key."""
        data = {(Purpose.DATA, scope) for scope in self.scopes}
        return data | {(Purpose.INDEX, scope) for scope in self.indexed}

    @property
    def name(self) -> str:
        """The name of the class."""
        return self.mapper.class_.__name__

    def grants_with(self, scope: str | None) -> list[GrantClass]:
        """The classes of grants of one scope's keys; with None, of the whole key."""
        return [grant for grant in self.grants_of if grant.scope == scope]

    def owner_id(self, where: Location, primary_key: tuple[Any, ...]) -> OwnerId:
        """The keyring's name for the owner with this primary key, in this database and schema."""
        return where + owner_reference(self.label, primary_key)

    def reference_of(self, primary_key: tuple[Any, ...]) -> bytes:
        """What is stored to say whose a key row is: the table's label and the primary key, without the
        location."""
        return owner_reference(self.label, primary_key)

    def reference(self, owner: Any, primary_key: tuple[Any, ...]) -> bytes:
        """What this owner's wraps are bound to: its primary key, or the value of the attribute that the
        class names."""
        if self.reference_attribute is None:
            return self.reference_of(primary_key)
        value = getattr(owner, self.reference_attribute)
        if value is None:
            raise ConfigurationError(
                f"{self.name}.{self.reference_attribute} is None; keys cannot be bound to it."
            )
        return owner_reference(self.label, (value,))


class Place(NamedTuple):
    """An owner by its class, its primary key, and the database and schema that its row is in."""

    owner_class: OwnerClass
    primary_key: tuple[Any, ...]
    where: Location

    @property
    def owner(self) -> bytes:
        """The keyring's name for this owner."""
        return self.owner_class.owner_id(self.where, self.primary_key)


def places_by_class(places: Iterable[Place]) -> dict[OwnerClass, list[Place]]:
    """Owners by their class, in the order in which they come."""
    found: dict[OwnerClass, list[Place]] = {}
    for place in places:
        found.setdefault(place.owner_class, []).append(place)
    return found


History = Literal["shared", "from_join"]


class OwnerReference(Protocol):
    """Columns that refer to an owner, in the order of its primary key."""

    owner_class: OwnerClass
    columns: tuple[Column[Any], ...]


@dataclass(eq=False)
class GrantClass:
    """One class of grants, with the table that holds its wraps.

    Attributes:
        scope: the scope that is granted, None for the root key.
        row_columns: the companion table's columns that refer to the granting row.
        selects: the statements that read its tables as rows are read, as in `OwnerClass`.
    """

    mapper: Mapper[Any]
    label: str
    of: OwnerReference
    to: OwnerReference
    scope: str | None
    history: History
    companion: Table
    row_columns: tuple[Column[Any], ...]
    selects: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def table(self) -> Table:
        """The table of the granting rows."""
        table: Table = self.mapper.local_table  # type: ignore[assignment]  # a declared class
        return table

    @property
    def row_key(self) -> tuple[Column[Any], ...]:
        """The primary key of the granting rows."""
        return tuple(self.table.primary_key.columns)

    def granting_row(self, primary_key: Sequence[Any]) -> bytes:
        """What a grant through this row is bound to (wire format, section 4)."""
        return encode_context("grant", self.label.encode("utf-8"), encode_reference(primary_key))

    def values(self, state: InstanceState[Any], columns: Sequence[Column[Any]]) -> tuple[Any, ...]:
        """What a flushed object has in these columns."""
        return tuple(state.dict.get(self.mapper.get_property_by_column(column).key) for column in columns)


@dataclass(eq=False)
class EmergencyClass:
    """One class of emergency access: the owners, and the persons who may help them."""

    mapper: Mapper[Any]
    of: OwnerReference
    to: OwnerReference

    @property
    def table(self) -> Table:
        """The table of its rows."""
        table: Table = self.mapper.local_table  # type: ignore[assignment]  # a declared class
        return table


KEY_UUID: Uuid[Any] = Uuid().with_variant(Uuid(native_uuid=False), "mysql", "mariadb")
"""The type of key ids. MariaDB's own type refuses one UUIDv8 in some dozens, because of how it sorts them."""

_OWNER_CLASS = "owner_class"


def register(table: Any, owner_class: OwnerClass) -> None:
    """Note whose table this is."""
    if isinstance(table, Table):  # a class can be mapped to a subquery
        records_of_table(table)[_OWNER_CLASS] = owner_class
        watch_name(table)


def owner_class_of(table: Any) -> OwnerClass | None:
    """The class of owners that this table belongs to. The table of a joined subclass belongs to it too."""
    return records_of_table(table).get(_OWNER_CLASS) if isinstance(table, Table) else None


def require_owner_class(owner: object) -> OwnerClass:
    """The owner class of an instance.

    Raises:
        ConfigurationError: its class is no `KeyOwner`, or has no key tables.
        EnrollmentError: the instance is None.
    """
    if owner is None:
        raise EnrollmentError(
            "No owner was given; for a user who does not exist, call envelope.unlock_unknown()."
        )
    if not hasattr(type(owner), "__mapper__"):
        raise ConfigurationError(
            f"An object of the type {type(owner).__name__} is no owner of keys: give the session, and then "
            "an instance of a KeyOwner."
        )
    owner_class = owner_class_of(getattr(type(owner), "__table__", None))
    if owner_class is None:
        raise ConfigurationError(
            f"{type(owner).__name__} has no keys; declare `class {type(owner).__name__}(KeyOwner, Base)`."
        )
    if owner_class.key_class is None or owner_class.slot_class is None:
        name = owner_class.name
        raise ConfigurationError(
            f"{name} declares key_tables=False; add `class {name}Key(KeyTable[{name}], Base)` and `class "
            f"{name}KeySlot(KeySlotTable[{name}], Base)`."
        )
    if owner_class.has_shares and owner_class.share_class is None:
        name = owner_class.name
        raise ConfigurationError(
            f"{name} declares key_tables=False and key_shares=True; add `class {name}KeyShare("
            f"KeyShareTable[{name}], Base)`."
        )
    return owner_class
