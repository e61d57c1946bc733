"""`KeyOwner` and the mapped tables that hold its keys, beside the data and with real cascades.

Each owner class gets tables of its own: a foreign key needs one target, and only a foreign key deletes an
owner's keys with the owner, whichever program deletes it.
"""

from __future__ import annotations

import datetime as dt
import uuid
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import (
    Column,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    UniqueConstraint,
)
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.schema import conv

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.keys.model import KeyState
from sqlalchemy_envelope.orm.tables.generated import (
    LONGEST_NAME,
    KeyNames,
    Name,
    fill_in,
    generate,
    name_indexes,
    note_table,
    now,
)
from sqlalchemy_envelope.orm.tables.key_ticket import KeyTicketTable
from sqlalchemy_envelope.orm.tables.owned_table import (
    OwnedTable,
    Owner,
    constrain_owner,
    owner_names,
    refer_to_owner,
)
from sqlalchemy_envelope.orm.tables.owners import KEY_UUID, OwnerClass, owner_class_of, register
from sqlalchemy_envelope.orm.tables.python_types import python_type_of
from sqlalchemy_envelope.orm.tables.sole import sole_key

if TYPE_CHECKING:
    from sqlalchemy import Table
    from sqlalchemy.orm import Mapper


class KeyOwner:
    """Mixin: instances of the class have keys, in `<table>_key`, `<table>_keyslot` and `<table>_keyticket`,
    which are deleted with their owner. The classes that map these tables are `__key_class__`,
    `__slot_class__` and `__ticket_class__`.

    The class's own `EncryptedType` columns are encrypted with the instance's key. Other tables refer to it by
    a foreign key.

    Class keywords:
        sole: the class has one row, and columns that name the class, `EncryptedType(..., owner=Vault)`, are
            encrypted with its key: an application's own secrets, the user of a program with one passphrase, a
            tenant with a schema of its own.
        key_tables: False to declare the tables yourself, as `KeyTable[Owner]` and `KeySlotTable[Owner]`, and
            `KeyTicketTable[Owner]` if owners of the class are to stay logged in.
        key_shares: True to keep half of each secret's way to the keys in a second database, in the table
            `<table>_keyshare`, which `__share_class__` maps. Tell the session where it is:
            `Session(engine, binds={User.__share_class__: second_engine})`. Give a `MetaData` in place of True
            to have the table in that MetaData, and not among those of the first database.
        key_names: other names for the tables and their classes, `KeyNames(key_table="user_keys")`.

    Class attributes:
        __owner_label__: the name that keys are bound to in place of the table's name. Set it to the old name
            before a rename.
        __owner_reference__: the name of an immutable, unique attribute to which keys are bound in place of
            the primary key.
    """

    __owner_label__: ClassVar[str | None] = None
    __owner_reference__: ClassVar[str | None] = None
    __key_tables__: ClassVar[bool] = True
    __sole_owner__: ClassVar[bool] = False
    __key_names__: ClassVar[KeyNames] = KeyNames()
    __key_shares__: ClassVar[bool | MetaData] = False
    if TYPE_CHECKING:
        __key_class__: ClassVar[type[KeyTable[Any]]]
        __slot_class__: ClassVar[type[KeySlotTable[Any]]]
        __share_class__: ClassVar[type[KeyShareTable[Any]]]
        __ticket_class__: ClassVar[type[KeyTicketTable[Any]]]

    def __init_subclass__(
        cls,
        key_tables: bool = True,
        sole: bool = False,
        key_names: KeyNames | None = None,
        key_shares: bool | MetaData = False,
        **kwargs: Any,
    ) -> None:
        if not isinstance(key_shares, (bool, MetaData)):
            raise ConfigurationError(
                f"{cls.__name__}: key_shares= takes True, or a MetaData for the table of the second database."
            )
        if key_shares is not False:
            cls.__key_shares__ = key_shares
        if sole:
            cls.__sole_owner__ = True
        if not key_tables:
            cls.__key_tables__ = False
        if key_names is not None:
            cls.__key_names__ = key_names
        super().__init_subclass__(**kwargs)


class KeyTable(OwnedTable[Owner]):
    """Keys of one class of owners. `granted` counts the grants that were made of a key: if fewer rows than
    that exist, somebody was removed. Subclass it to choose the table's name or to add columns: `class
    UserKey(KeyTable[User], Base): __tablename__ = "user_keys"`."""

    key_id: Mapped[uuid.UUID] = mapped_column(KEY_UUID, primary_key=True)
    owner_reference: Mapped[bytes] = mapped_column(LargeBinary)
    purpose: Mapped[str] = mapped_column(String(8))
    scope: Mapped[str] = mapped_column(String(64), default="")
    epoch: Mapped[int] = mapped_column(Integer)
    state: Mapped[str] = mapped_column(String(16))
    commitment: Mapped[bytes] = mapped_column(LargeBinary(32))
    public_key: Mapped[bytes] = mapped_column(LargeBinary(32))
    wrapping_key_id: Mapped[uuid.UUID | None] = mapped_column(KEY_UUID, index=True)
    mlkem_public_key: Mapped[bytes | None] = mapped_column(LargeBinary(1184))
    wrapped: Mapped[bytes | None] = mapped_column(LargeBinary)
    proof: Mapped[bytes | None] = mapped_column(LargeBinary(64))
    granted: Mapped[int] = mapped_column(Integer, default=0)
    seal: Mapped[bytes | None] = mapped_column(LargeBinary(48))
    created_at: Mapped[dt.datetime] = mapped_column(DateTime(timezone=True), default=now)
    retired_at: Mapped[dt.datetime | None] = mapped_column(DateTime(timezone=True))

    @classmethod
    def _refer(cls, owner_class: OwnerClass) -> None:
        refer_to_owner(cls, owner_class)


class KeySlotTable(OwnedTable[Owner]):
    """Key slots of one class of owners: each row is one way to reach a root key."""

    slot_id: Mapped[uuid.UUID] = mapped_column(KEY_UUID, primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    kdf: Mapped[str | None] = mapped_column(String(128))
    recipient_public_key: Mapped[bytes | None] = mapped_column(LargeBinary(32))
    provider_ref: Mapped[str | None] = mapped_column(String(255))
    provider_wrapped: Mapped[bytes | None] = mapped_column(LargeBinary)
    wrapped: Mapped[bytes] = mapped_column(LargeBinary)
    seal: Mapped[bytes | None] = mapped_column(LargeBinary(48))
    label: Mapped[str | None] = mapped_column(String(255))
    claimed_from: Mapped[str | None] = mapped_column(String(255))
    created_at: Mapped[dt.datetime] = mapped_column(DateTime(timezone=True), default=now)
    changed_at: Mapped[dt.datetime | None] = mapped_column(DateTime(timezone=True), onupdate=now)
    used_at: Mapped[dt.datetime | None] = mapped_column(DateTime(timezone=True))
    unacknowledged_since: Mapped[dt.datetime | None] = mapped_column(DateTime(timezone=True))

    if TYPE_CHECKING:
        key_id: Mapped[uuid.UUID]

    @classmethod
    def _refer(cls, owner_class: OwnerClass) -> None:
        if owner_class.key_class is None:
            raise ConfigurationError(f"{cls.__name__}: declare `KeyTable[{owner_class.name}]` before it.")
        target = owner_class.key_class.__table__.c.key_id
        reference = ForeignKey(target, ondelete="CASCADE")
        cls.key_id = mapped_column(KEY_UUID, reference, nullable=False, index=True)


class KeyShareTable(OwnedTable[Owner]):
    """Shares of the KEKs of one class of owners, in a second database: a secret opens nothing without them.

    A key slot names its share by the id. No row says whose a share is; only in which schema of the first
    database its slot is, for the sweep.
    """

    share_id: Mapped[uuid.UUID] = mapped_column(KEY_UUID, primary_key=True)
    share: Mapped[bytes] = mapped_column(LargeBinary(32))
    slot_schema: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[dt.datetime] = mapped_column(DateTime(timezone=True), default=now)
    unused_since: Mapped[dt.datetime | None] = mapped_column(DateTime(timezone=True))


def on_mapper(mapper: Mapper[Any], cls: type[Any]) -> None:
    """A class was mapped: note a key owner and make its tables, or complete a key table."""
    if issubclass(cls, OwnedTable):
        _complete(mapper, cls)
    elif issubclass(cls, KeyOwner):
        inherited = owner_class_of(mapper.inherits.local_table) if mapper.inherits is not None else None
        register(mapper.local_table, inherited or _new_owner_class(mapper, cls))


def tables_beside(owner_class: OwnerClass) -> list[tuple[Table, Column[Any]]]:
    """The tables of one class of owners that refer to its keys, and go with them: slots, and what is like
    slots. With each the column that names the key."""
    found = []
    for mapper in owner_class.mapper.registry.mappers:
        cls = mapper.class_
        if not issubclass(cls, OwnedTable) or cls.__owner_class__ is not owner_class:
            continue
        table: Table = mapper.local_table  # type: ignore[assignment]  # a declared class
        keys = owner_class.key_class.__table__
        found += [
            (table, key.parent)
            for one in table.columns
            if table is not keys
            for key in one.foreign_keys
            if key.column is keys.c.key_id
        ]
    return sorted(found, key=lambda one: one[0].name)


def _new_owner_class(mapper: Mapper[Any], cls: type[KeyOwner]) -> OwnerClass:
    table: Table = mapper.local_table  # type: ignore[assignment]  # a declared class
    key = tuple(table.primary_key.columns)
    for column in key:
        _check_key_type(cls, column)
    owner_class = OwnerClass(mapper, cls.__owner_label__ or table.name, cls.__owner_reference__, key)
    owner_class.is_sole = cls.__sole_owner__
    owner_class.has_shares = cls.__key_shares__ is not False
    if owner_class.is_sole:
        for column in key:
            sole_key(column)
    before = owner_class_of(table)
    if before is not None:
        # The class is declared a second time. Other tables hold the first owner class, which is renewed.
        owner_class = _renew(before, owner_class)
    register(table, owner_class)
    if cls.__key_tables__:
        of_keys, of_slots, of_tickets, of_shares = _names(cls, table.name)
        generate(mapper, KeyTable, of_keys, {"__owner_class__": owner_class})
        generate(mapper, KeySlotTable, of_slots, {"__owner_class__": owner_class})
        # The longest ending: a table whose name had room before tickets came is used without them.
        if len(of_tickets.table.encode()) <= LONGEST_NAME:
            generate(mapper, KeyTicketTable, of_tickets, {"__owner_class__": owner_class})
        if owner_class.has_shares:
            shares = cls.__key_shares__
            metadata = shares if isinstance(shares, MetaData) else None
            generate(mapper, KeyShareTable, of_shares, {"__owner_class__": owner_class}, metadata)
    return owner_class


def is_sole(mapper: Mapper[Any]) -> bool:
    """Whether a mapper is that of a sole owner's class."""
    owner_class = owner_class_of(mapper.local_table)
    return owner_class is not None and owner_class.is_sole and owner_class.mapper is mapper


def _renew(before: OwnerClass, now: OwnerClass) -> OwnerClass:
    before.mapper, before.label = now.mapper, now.label
    before.reference_attribute, before.primary_key = now.reference_attribute, now.primary_key
    before.is_sole, before.has_shares = now.is_sole, now.has_shares
    before.key_class = before.slot_class = before.ticket_class = before.share_class = None
    before.selects.clear()
    for grant in (*before.grants_of, *before.grants_to):
        for prepared in (grant, grant.of.owner_class, grant.to.owner_class):
            prepared.selects.clear()
    return before


def _names(cls: type[KeyOwner], table: str) -> tuple[Name, Name, Name, Name]:
    names = cls.__key_names__

    def name(class_name: str, table_name: str, attribute: str) -> Name:
        known = {"table": table, "owner": cls.__name__}
        return Name(
            fill_in(cls, class_name, **known),
            fill_in(cls, table_name, **known),
            attribute,
            "key_names=KeyNames(key_table=..., slot_table=..., ticket_table=..., share_table=...)",
        )

    return (
        name(names.key_class, names.key_table, "__key_class__"),
        name(names.slot_class, names.slot_table, "__slot_class__"),
        name(names.ticket_class, names.ticket_table, "__ticket_class__"),
        name(names.share_class, names.share_table, "__share_class__"),
    )


def _check_key_type(cls: type[Any], column: Column[Any]) -> None:
    python_type = python_type_of(column.type)
    if python_type is None:
        return  # its values are checked when keys are bound to them
    if python_type is bool or not issubclass(python_type, (int, str, uuid.UUID, bytes, dt.date)):
        raise ConfigurationError(
            f"{cls.__name__}.{column.key}: a key owner's primary key is made of int, str, UUID, bytes or "
            f"date columns, not {python_type.__name__}."
        )


def _complete(mapper: Mapper[Any], cls: type[Any]) -> None:
    """Add the constraints that need the whole table, and note it in the owner class."""
    table: Table = mapper.local_table  # type: ignore[assignment]  # a declared class
    owner_class: OwnerClass = cls.__owner_class__
    owner: Any = owner_class.mapper.class_
    note_table(table, beside=owner_class.primary_key[0].table)
    name_indexes(table)
    if issubclass(cls, KeySlotTable):
        owner_class.slot_class = owner.__slot_class__ = cls
        return
    if issubclass(cls, KeyShareTable):
        owner_class.share_class = owner.__share_class__ = cls
        return
    if issubclass(cls, KeyTicketTable):
        constrain_owner(table, owner_class)
        owner_class.ticket_class = owner.__ticket_class__ = cls
        return
    _constrain(table, owner_class)
    owner_class.key_class = owner.__key_class__ = cls
    owner_class.owner_columns = tuple(table.c[name] for name in owner_names(owner_class))


def _constrain(table: Table, owner_class: OwnerClass) -> None:
    """Give a table of keys its keys, its foreign keys and indexes."""
    columns = constrain_owner(table, owner_class)
    # NO ACTION: deleting a root key on which keys depend must fail, while the owner's cascade, checked at the
    # end of the statement, passes.
    table.append_constraint(ForeignKeyConstraint([table.c.wrapping_key_id], [table.c.key_id]))
    generation = (*columns, table.c.purpose, table.c.scope)
    # `conv`: names that a naming convention leaves as they are, and that the dialect shortens.
    table.append_constraint(UniqueConstraint(*generation, table.c.epoch, name=conv(f"uq_{table.name}_epoch")))
    active = table.c.state == KeyState.ACTIVE
    # MySQL has no partial index; without its WHERE this index would forbid rotation.
    Index(
        conv(f"uq_{table.name}_active"),
        *generation,
        unique=True,
        sqlite_where=active,
        postgresql_where=active,
    ).ddl_if(dialect=("sqlite", "postgresql"))  # type: ignore[arg-type]  # documented to take several
