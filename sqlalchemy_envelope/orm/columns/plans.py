"""Which row and owner a value belongs to: a plan for each table and mapper with encrypted columns, made
once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar
from weakref import ref

from sqlalchemy import Column, Table
from sqlalchemy.orm import Mapper

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.columns.column_notes import notes_of
from sqlalchemy_envelope.orm.columns.encrypted_type import EncryptedType
from sqlalchemy_envelope.orm.columns.origin import origin_of
from sqlalchemy_envelope.orm.columns.owner_updates import refuse_owner_updates
from sqlalchemy_envelope.orm.columns.previous import policy_of_column
from sqlalchemy_envelope.orm.columns.sealed import Sealed, is_ciphertext
from sqlalchemy_envelope.orm.columns.whose import path_of
from sqlalchemy_envelope.orm.tables.key_types import kinds_of
from sqlalchemy_envelope.orm.tables.owner_paths import OwnerPath
from sqlalchemy_envelope.orm.tables.records import records_of_mapper, records_of_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy import ColumnElement


T = TypeVar("T")


class EncryptedColumn:
    """One encrypted column of a table. It is read for every value that is written, so it has plain attributes
    throughout.

    Attributes:
        key: its name in a statement's parameters.
        encode: a value's plaintext bytes.
        convert: what the inner type makes of a value first, if it is a decorator. A None that it makes is
            stored as NULL.
        encode_converted: the plaintext bytes of a converted value.
        row_bound: whether its values are bound to their row.
        scope: the scope of the owner's data key that encrypts it.
        slot: its place among an unlocked session's readers.
    """

    __slots__ = (
        "column",
        "convert",
        "encode",
        "encode_converted",
        "key",
        "path",
        "row_bound",
        "scope",
        "slot",
        "type",
    )

    def __init__(self, column: Column[Any], type_: EncryptedType, path: OwnerPath) -> None:
        self.column = column
        self.type = type_
        self.path = path
        self.key: str = column.key
        codec = type_.codec
        self.encode = _plain_only(codec.encode)
        self.convert = None if codec.convert is None else _plain_only(codec.convert)
        converted = codec.encode_converted
        self.encode_converted = self.encode if converted is None else _plain_only(converted)
        self.row_bound = type_.bind == "row"
        self.scope = type_.scope
        self.slot = object()


def _plain_only(encode: Callable[[Any], T]) -> Callable[[Any], T]:
    """Refuse what is encrypted already. A codec that takes any sequence, or a codec of the application's,
    might encode it once more."""
    if encode is str.encode:
        return encode  # takes text alone

    def encode_plain(value: Any) -> T:
        if isinstance(value, Sealed) or is_ciphertext(value):
            raise TypeError("a sealed value is no plaintext")
        return encode(value)

    return encode_plain


class TablePlan:
    """The encrypted columns of a table, grouped by the path to their owner.

    Attributes:
        attributes: by the key of a column, the attribute that maps it, if that has another name.
        keys: the keys of the encrypted columns.
        dual: the columns with a previous column: its name, and whether it is written too.
        converting: the columns whose inner type converts values itself.
        key_kinds: the types of the primary key's values, as `key_types` has them.
    """

    def __init__(
        self,
        table: Table,
        groups: Iterable[tuple[OwnerPath, Sequence[EncryptedColumn]]],
        attributes: dict[str, str],
    ) -> None:
        self.table = table
        self.groups = tuple((path, tuple(columns)) for path, columns in groups)
        self.attributes = attributes
        self.columns = tuple(column for _, columns in self.groups for column in columns)
        self.keys = frozenset(column.key for column in self.columns)
        self.dual = {
            one.key: (previous, policy_of_column(one.column) == "both")
            for one in self.columns
            if (previous := notes_of(one.column).previous) is not None
        }
        self.converting = {one.key: one for one in self.columns if one.convert is not None}
        self.row_bound = any(column.row_bound for column in self.columns)
        keys = tuple(table.primary_key.columns) if self.row_bound else ()
        self.key_kinds = kinds_of(keys)
        owners = {one for path, _ in self.groups if not path.is_self for one in path.columns}
        made = (*keys, *owners, *(c.column for c in self.columns))
        self.has_defaults = any(one.default is not None for one in made)
        self._here = {
            path for path, _ in self.groups if all(column.table is table for column in path.columns)
        }

    def has(self, path: OwnerPath) -> bool:
        """Whether the owner's columns are in this very table. A joined subclass has them in the table that
        it extends."""
        return path in self._here

    def decided_by(self, encrypted: EncryptedColumn) -> list[Column[Any]]:
        """The columns of this table for which a value is encrypted: the columns that name its owner; and
        the primary key, if the value is bound to its row, or if the key leads to the row of the base table
        that names the owner."""
        path = encrypted.path
        found = [] if path.is_self else [one for one in path.columns if one.table is self.table]
        by_key = encrypted.row_bound or not (path.is_self or self.has(path))
        return found + (list(self.table.primary_key) if by_key else [])


class EncryptedAttribute:
    """One mapped attribute over an encrypted column.

    Attributes:
        owner_keys: the attributes that hold the owner's primary key.
    """

    __slots__ = ("encrypted", "key", "owner_keys", "row_bound", "type")

    def __init__(self, key: str, encrypted: EncryptedColumn, owner_keys: tuple[str, ...]) -> None:
        self.key = key
        self.encrypted = encrypted
        self.owner_keys = owner_keys
        self.type = encrypted.type
        self.row_bound = encrypted.row_bound

    def is_nothing(self, value: Any) -> bool:
        """Whether NULL is stored for a value. A decorator may store a value for None, and read it as None."""
        return value is None and self.encrypted.convert is None

    def is_null(self, value: Any) -> bool:
        """Tell whether a decorator reads NULL as this value. To move such a value here is to write NULL."""
        read_null = self.type.codec.read_null
        return read_null is not None and bool(self.type.compare_values(read_null(), value))


_PLAN = "plan"
_MAPPER = "mapper"


def note_mapper(mapper: Mapper[Any]) -> None:
    """Remember the mapper of a table. The first mapper is the most general."""
    for table in mapper.tables:
        if isinstance(table, Table) and any(isinstance(c.type, EncryptedType) for c in table.columns):
            records = records_of_table(table)
            first = mapper_of_table(table)
            # A table that was declared a second time has other columns than the first class.
            if first is None or not all(map(first.columns.contains_column, table.columns)):
                records[_MAPPER] = ref(mapper)
            records.pop(_PLAN, None)


def mapper_of_table(table: Table) -> Mapper[Any] | None:
    """The most general mapper of a table with encrypted columns."""
    noted: ref[Mapper[Any]] | None = records_of_table(table).get(_MAPPER)
    return None if noted is None else noted()


def key_in_base(table: Table, path: OwnerPath) -> list[Column[Any]]:
    """The primary key of a joined subclass's table, as the table that it extends has it, with the columns
    of a path in that table; empty if there is no such table."""
    mapper, bases = mapper_of_table(table), {column.table for column in path.columns}
    if mapper is None or len(bases) != 1:
        return []
    (base,), own = bases, table.primary_key
    same = [c for one in own for c in mapper.get_property_by_column(one).columns if c.table is base]
    return same if len(same) == len(own) else []


def plan_of_table(table: Any) -> TablePlan | None:
    """The plan of a table, or None if nothing in it is encrypted."""
    if not isinstance(table, Table):
        return None
    records = records_of_table(table)
    try:
        known: TablePlan | None = records[_PLAN]
        return known
    except KeyError:
        plan = records[_PLAN] = _plan_table(table)
        return plan


def plan_of_mapper(mapper: Mapper[Any]) -> tuple[EncryptedAttribute, ...]:
    """The encrypted attributes of a mapper."""
    records = records_of_mapper(mapper)
    plan: tuple[EncryptedAttribute, ...] | None = records.get(_PLAN)
    if plan is None:
        plan = records[_PLAN] = tuple(_plan_attributes(mapper))
    return plan


def _plan_table(table: Table) -> TablePlan | None:
    encrypted = [column for column in table.columns if isinstance(column.type, EncryptedType)]
    if not encrypted:
        return None
    mapper = mapper_of_table(table)
    groups: dict[tuple[Any, ...], tuple[OwnerPath, list[EncryptedColumn]]] = {}
    for column in encrypted:
        path = (_path_of_copy(column) if mapper is None else None) or path_of(column, mapper, _original)
        refuse_owner_updates(column, path)
        path, members = groups.setdefault(path.identity, (path, []))
        members.append(EncryptedColumn(column, _encrypted_type(column), path))
        for owner_class in path.owner_classes:
            owner_class.scopes.add(_encrypted_type(column).scope)
    attributes = (
        {}
        if mapper is None
        else {
            column.key: prop.key
            for prop in mapper.column_attrs
            for column in prop.columns
            if isinstance(column, Column) and column.table is table and column.key != prop.key
        }
    )
    return TablePlan(table, groups.values(), attributes)


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
    """The encrypted column of a table that this column is, or that a part of a UNION takes it from; None
    if there is none. The other parts may have anything in its place, usually `NULL`. Where two encrypted
    columns meet, the first by name counts, so that every process takes the same."""
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


def _path_of_copy(column: Column[Any]) -> OwnerPath | None:
    """The path of a column that `Table.to_metadata()` made: that of its original."""
    origin = origin_of(column)
    encrypted = None if origin is None else encrypted_column_of(origin)
    if encrypted is None or any(one.table is not encrypted.column.table for one in encrypted.path.columns):
        return None
    columns: Any = column.table.columns
    return encrypted.path.along(tuple(columns[key] for key in encrypted.path.keys))


def _encrypted_type(column: Column[Any]) -> EncryptedType:
    encrypted: EncryptedType = column.type  # type: ignore[assignment]  # only such columns come here
    return encrypted


def _original(label: str, table: Table) -> tuple[Table, OwnerPath] | None:
    """The table whose column has this label, and the path from that table; None if no other table of the same
    MetaData has such a column. Several schemas may have one each: the copy's own schema comes first.

    Raises:
        ConfigurationError: there are several, all in other schemas.
    """
    name, _, key = label.rpartition(".")
    found = [
        (other, path)
        for other in table.metadata.tables.values()
        if other.name == name and other is not table and _has_label(other.columns.get(key), label)
        for path in _path_without_copy(other.columns[key])
    ]
    here = [one for one in found if one[0].schema == table.schema] or found
    if len(here) > 1:
        names = " and ".join(sorted(other.fullname for other, _ in here))
        raise ConfigurationError(
            f"{table.fullname} has a copy of the column {label!r}, which several tables have: {names}. "
            "Say whose key encrypts the copy: `owner=` with a foreign key, or "
            "`owner=OwnerColumn('user_id', of=User)`."
        )
    return here[0] if here else None


def _path_without_copy(column: Column[Any]) -> Iterable[OwnerPath]:
    """Yield the path of a column that needs no original to find its owner; none for a copy."""
    try:
        yield path_of(column, mapper_of_table(column.table), lambda *_: None)
    except ConfigurationError:
        return


def _has_label(column: Column[Any] | None, label: str) -> bool:
    return column is not None and isinstance(column.type, EncryptedType) and column.type.label == label
