"""Which mapped classes own keys, found by their tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy import Table, Uuid

from sqlalchemy_envelope.crypto.context import owner_reference
from sqlalchemy_envelope.exceptions import ConfigurationError, EnrollmentError

if TYPE_CHECKING:
    from sqlalchemy import Column
    from sqlalchemy.orm import Mapper

    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.orm.grants import GrantClass


@dataclass(eq=False)
class OwnerClass:
    """One class of key owners, with the tables that hold its keys.

    Attributes:
        scopes: the scopes that its encrypted columns name; each has data keys of its own.
        grants_of, grants_to: the grant classes that share its keys, and that give it others'.
        selects: what is read from its tables at each unlock; to make such a statement costs a fifth of
            sending it.
    """

    mapper: Mapper[Any]
    label: str
    reference_attribute: str | None
    primary_key: tuple[Column[Any], ...]
    key_class: Any = None
    slot_class: Any = None
    owner_columns: tuple[Column[Any], ...] = field(default=())
    scopes: set[str] = field(default_factory=lambda: {""})
    grants_of: list[GrantClass] = field(default_factory=list)
    grants_to: list[GrantClass] = field(default_factory=list)
    selects: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """The name of the class."""
        return self.mapper.class_.__name__

    def owner_id(self, primary_key: tuple[Any, ...]) -> OwnerId:
        """The keyring's name for the owner with this primary key."""
        return owner_reference(self.label, primary_key)

    def reference(self, owner: Any, primary_key: tuple[Any, ...]) -> bytes:
        """What this owner's wraps are bound to: its primary key, or the attribute that the class names."""
        if self.reference_attribute is None:
            return owner_reference(self.label, primary_key)
        value = getattr(owner, self.reference_attribute)
        if value is None:
            raise ConfigurationError(
                f"{self.name}.{self.reference_attribute} is None; keys cannot be bound to it."
            )
        return owner_reference(self.label, (value,))


class Place(NamedTuple):
    """An owner's place in the database."""

    owner_class: OwnerClass
    primary_key: tuple[Any, ...]

    @property
    def owner(self) -> bytes:
        """The keyring's name for it."""
        return self.owner_class.owner_id(self.primary_key)


KEY_UUID: Uuid[Any] = Uuid().with_variant(Uuid(native_uuid=False), "mysql", "mariadb")
"""The type of key ids. MariaDB's own type refuses one UUIDv8 in some dozens, by how it sorts them."""

_by_table: WeakKeyDictionary[Any, OwnerClass] = WeakKeyDictionary()


def register(table: Any, owner_class: OwnerClass) -> None:
    """Note whose table this is."""
    _by_table[table] = owner_class


def owner_class_of(table: Any) -> OwnerClass | None:
    """The class of owners that this table belongs to, joined subclasses included."""
    return _by_table.get(table) if isinstance(table, Table) else None


def require_owner_class(owner: object) -> OwnerClass:
    """The owner class of an instance.

    Raises:
        ConfigurationError: its class is no `KeyOwner`, or has no key tables.
        EnrollmentError: None was given.
    """
    if owner is None:
        raise EnrollmentError(
            "No owner was given; for a user who does not exist, call envelope.unlock_unknown()."
        )
    if not hasattr(type(owner), "__mapper__"):
        raise ConfigurationError(
            f"A {type(owner).__name__} is no owner of keys: give the session, and then an instance of a "
            "KeyOwner."
        )
    table = getattr(type(owner), "__table__", None)
    found = owner_class_of(table)
    if found is None:
        raise ConfigurationError(
            f"{type(owner).__name__} has no keys; declare `class {type(owner).__name__}(KeyOwner, Base)`."
        )
    if found.key_class is None or found.slot_class is None:
        raise ConfigurationError(
            f"{found.name} declares key_tables=False; add `class {found.name}Key(KeyTable[{found.name}], "
            f"Base)` and `class {found.name}KeySlot(KeySlotTable[{found.name}], Base)`."
        )
    return found
