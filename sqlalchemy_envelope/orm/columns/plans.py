"""Which row and owner a value belongs to: a plan for each table and mapper with
encrypted columns, made once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy import Column, Table
from sqlalchemy.orm import ColumnProperty, Mapper, RelationshipProperty

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.columns.encrypted_type import EncryptedType
from sqlalchemy_envelope.orm.columns.previous import PREVIOUS, policy_of_column
from sqlalchemy_envelope.orm.columns.sealed import Sealed, is_ciphertext
from sqlalchemy_envelope.orm.tables.owners import OwnerPath, owner_class_of, path_through

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy import ColumnElement


class EncryptedColumn:
    """One encrypted column of a table; read for every value written, so plain attributes throughout.

    Attributes:
        key: its name in a statement's parameters.
        encode: a value's plaintext bytes.
        row_bound: whether its values are bound to their row.
        scope: which of the owner's data keys encrypts it.
    """

    __slots__ = ("column", "encode", "key", "path", "row_bound", "scope", "type")

    def __init__(self, column: Column[Any], type_: EncryptedType, path: OwnerPath) -> None:
        self.column = column
        self.type = type_
        self.path = path
        self.key: str = column.key
        self.encode = (
            type_.codec.encode if type_.codec.encode is str.encode else _plain_only(type_.codec.encode)
        )
        self.row_bound = type_.bind == "row"
        self.scope = type_.scope


def _plain_only(encode: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """Refuse what is encrypted already: a codec that takes any sequence, or a user's,
    might encode it once more."""

    def encode_plain(value: Any) -> bytes:
        if isinstance(value, Sealed) or is_ciphertext(value):
            raise TypeError("a sealed value is no plaintext")
        return encode(value)

    return encode_plain


class TablePlan:
    """The encrypted columns of a table, grouped by the path to their owner.

    Attributes:
        names: mapped attribute names that differ from their column's, for
            `insert(Model).values(attribute=...)`.
        keys: the names of the encrypted columns.
        dual: those with a previous column: its name, and whether it is written too.
    """

    def __init__(
        self,
        table: Table,
        groups: Iterable[tuple[OwnerPath, Sequence[EncryptedColumn]]],
        names: dict[str, str],
    ) -> None:
        self.table = table
        self.groups = tuple((path, tuple(columns)) for path, columns in groups)
        self.names = names
        self.columns = tuple(column for _, columns in self.groups for column in columns)
        self.keys = frozenset(column.key for column in self.columns)
        self.dual = {
            one.key: (str(one.column.info[PREVIOUS]), policy_of_column(one.column) == "both")
            for one in self.columns
            if PREVIOUS in one.column.info
        }
        self.row_bound = any(column.row_bound for column in self.columns)
        keys = tuple(table.primary_key.columns) if self.row_bound else ()
        self.has_defaults = any(one.default is not None for one in (*keys, *(c.column for c in self.columns)))
        self._here = {
            path for path, _ in self.groups if all(column.table is table for column in path.columns)
        }

    def has(self, path: OwnerPath) -> bool:
        """Whether the owner's columns are in this very table (a joined subclass has them in its base)."""
        return path in self._here


class EncryptedAttribute:
    """One mapped attribute over an encrypted column.

    Attributes:
        owner_keys: the attributes that hold the owner's primary key.
        slot: its place among an unlocked session's readers.
        opening: key, slot, decoding, owner's attribute if it is one, and whether it is row-bound; unpacked
            for every value that is opened in its row.
    """

    __slots__ = ("encrypted", "key", "opening", "owner_keys", "row_bound", "slot", "type")

    def __init__(self, key: str, encrypted: EncryptedColumn, owner_keys: tuple[str, ...]) -> None:
        self.key = key
        self.encrypted = encrypted
        self.owner_keys = owner_keys
        self.type = encrypted.type
        self.row_bound = encrypted.row_bound
        self.slot = object()
        owner_key = owner_keys[0] if len(owner_keys) == 1 else None
        self.opening: tuple[Any, ...] = (
            key,
            self.slot,
            encrypted.type.codec.decode,
            owner_key,
            encrypted.row_bound,
        )


_table_plans: WeakKeyDictionary[Any, TablePlan | None] = WeakKeyDictionary()
_mapper_plans: WeakKeyDictionary[Any, tuple[EncryptedAttribute, ...]] = WeakKeyDictionary()
_mappers: WeakKeyDictionary[Any, Mapper[Any]] = WeakKeyDictionary()


def note_mapper(mapper: Mapper[Any]) -> None:
    """Remember which mapper a table belongs to; the first one made is the most general."""
    for table in mapper.tables:
        if isinstance(table, Table) and any(isinstance(c.type, EncryptedType) for c in table.columns):
            _mappers.setdefault(table, mapper)
            _table_plans.pop(table, None)


def plan_of_table(table: Any) -> TablePlan | None:
    """The plan of a table, or None if nothing in it is encrypted."""
    try:
        return _table_plans[table]
    except (KeyError, TypeError):
        plan = _plan_table(table) if isinstance(table, Table) else None
        if isinstance(table, Table):
            _table_plans[table] = plan
        return plan


def plan_of_mapper(mapper: Mapper[Any]) -> tuple[EncryptedAttribute, ...]:
    """The encrypted attributes of a mapper."""
    plan = _mapper_plans.get(mapper)
    if plan is None:
        plan = _mapper_plans[mapper] = tuple(_plan_attributes(mapper))
    return plan


def _plan_table(table: Table) -> TablePlan | None:
    encrypted = [column for column in table.columns if isinstance(column.type, EncryptedType)]
    if not encrypted:
        return None
    groups: dict[tuple[Any, ...], tuple[OwnerPath, list[EncryptedColumn]]] = {}
    for column in encrypted:
        path = _resolve(column, _mappers.get(table))
        path, members = groups.setdefault(path.columns, (path, []))
        members.append(EncryptedColumn(column, _encrypted_type(column), path))
        path.owner_class.scopes.add(_encrypted_type(column).scope)
    mapper = _mappers.get(table)
    names = (
        {}
        if mapper is None
        else {
            prop.key: column.key
            for prop in mapper.column_attrs
            for column in prop.columns
            if isinstance(column, Column) and column.table is table and column.key != prop.key
        }
    )
    return TablePlan(table, groups.values(), names)


def _plan_attributes(mapper: Mapper[Any]) -> Iterable[EncryptedAttribute]:
    for prop in mapper.column_attrs:
        column = prop.columns[0]
        # A column_property over an expression has the type and no row of its own: it stays as it is read.
        if not isinstance(column, Column) or not isinstance(column.type, EncryptedType):
            continue
        encrypted = encrypted_column_of(column)
        if encrypted is None:
            continue
        yield EncryptedAttribute(prop.key, encrypted, _attribute_keys(mapper, encrypted.path.columns))


def encrypted_column_of(column: ColumnElement[Any]) -> EncryptedColumn | None:
    """The encrypted column of a table that this is, or that a part of a UNION comes from; None if there is
    none. The other parts may have anything in its place, `NULL` as a rule. Where two columns meet, the first
    by name counts, so that each process takes the same."""
    found = []
    for base in column.base_columns:
        plan = plan_of_table(getattr(base, "table", None))
        found += [one for one in plan.columns if one.column is base] if plan is not None else []
    return min(found, key=lambda one: str(one.column), default=None)


def _attribute_keys(mapper: Mapper[Any], columns: Sequence[Column[Any]]) -> tuple[str, ...]:
    """The attributes that hold these columns; empty if a mapped subquery leaves one out."""
    keys = []
    for wanted in columns:
        key = next(
            (
                p.key
                for p in mapper.column_attrs
                for c in p.columns
                if isinstance(c, Column) and wanted in c.base_columns
            ),
            None,
        )
        if key is None:
            return ()
        keys.append(key)
    return tuple(keys)


def _encrypted_type(column: Column[Any]) -> EncryptedType:
    encrypted: EncryptedType = column.type  # type: ignore[assignment]  # only such columns come here
    return encrypted


def _resolve(column: Column[Any], mapper: Mapper[Any] | None) -> OwnerPath:
    table: Table = column.table
    owner = _encrypted_type(column).owner
    if owner is not None:
        path = path_through(_named_columns(owner, table, mapper))
        if path is None:
            raise ConfigurationError(
                f"EncryptedType(owner={owner!r}) on {table.name}.{column.name}: that is not a foreign key to "
                f"the primary key of a KeyOwner. {_hint(column, _candidates(table, mapper))}"
            )
        return path
    own = owner_class_of(table)
    if own is not None:
        return OwnerPath(own, tuple(table.primary_key.columns), is_self=True)
    candidates = _candidates(table, mapper)
    if len(candidates) != 1:
        found = "no foreign key" if not candidates else f"{len(candidates)} foreign keys"
        raise ConfigurationError(
            f"{table.name}.{column.name} is encrypted, and whose key encrypts it is not clear: the table has "
            f"{found} to a KeyOwner. {_hint(column, candidates)}"
        )
    return candidates[0]


def _hint(column: Column[Any], candidates: Sequence[OwnerPath]) -> str:
    if not candidates:
        return (
            "Declare the class that its rows refer to `class User(KeyOwner, Base)`, and in this table write "
            "`user_id = mapped_column(ForeignKey('users.id', ondelete='CASCADE'))`."
        )
    names = [path.keys[0] if len(path.keys) == 1 else path.keys for path in candidates]
    type_: Any = column.type
    lines = " or ".join(f"`{column.name} = mapped_column({_with_owner(type_, name)})`" for name in names)
    return f"Write {lines}."


def _with_owner(type_: EncryptedType, owner: Any) -> str:
    return f"EncryptedType({type(type_.inner).__name__}, owner={owner!r})"


def _candidates(table: Table, mapper: Mapper[Any] | None) -> list[OwnerPath]:
    tables = [one for one in mapper.tables if isinstance(one, Table)] if mapper is not None else [table]
    found: dict[tuple[Any, ...], OwnerPath] = {}
    for one in tables:
        for constraint in sorted(one.foreign_key_constraints, key=lambda each: list(each.column_keys)):
            path = path_through(tuple(constraint.columns))
            if path is not None:
                found.setdefault(path.columns, path)
    return list(found.values())


def _named_columns(
    owner: str | tuple[str, ...], table: Table, mapper: Mapper[Any] | None
) -> tuple[Column[Any], ...]:
    names = (owner,) if isinstance(owner, str) else owner
    columns: list[Column[Any]] = []
    for name in names:
        prop = mapper.attrs.get(name) if mapper is not None else None
        if isinstance(prop, RelationshipProperty):
            columns += [local for local, _ in prop.local_remote_pairs]  # type: ignore[misc]
        elif isinstance(prop, ColumnProperty):
            here = [one for one in prop.columns if getattr(one, "table", None) is table] or prop.columns
            columns.append(here[0])  # type: ignore[arg-type]
        elif name in table.columns:
            columns.append(table.columns[name])
        else:
            raise ConfigurationError(
                f"EncryptedType(owner={name!r}): {table.name} has no such column or attribute."
            )
    return tuple(columns)
