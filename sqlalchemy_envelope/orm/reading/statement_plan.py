"""A statement's plan: the positions of encrypted values, and of the owner and primary key of their rows.

Two columns belong to the same row if both come the same way (`origins`): by the same alias of the same part.
A value that cannot be traced has no known row, and so no known owner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy.orm.exc import UnmappedColumnError
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ColumnElement

from sqlalchemy_envelope.orm.columns.encrypted_type import format_in, is_ours
from sqlalchemy_envelope.orm.columns.plans import encrypted_column_of
from sqlalchemy_envelope.orm.reading.origins import origins_of, output_column, unlabelled
from sqlalchemy_envelope.orm.tables.location import LastLocation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Column

    from sqlalchemy_envelope.orm.columns.format import ColumnFormat
    from sqlalchemy_envelope.orm.columns.plans import EncryptedColumn
    from sqlalchemy_envelope.orm.reading.origins import Origin, Way
    from sqlalchemy_envelope.orm.tables.owner_paths import OwnerPath
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass


class PlannedValue:
    """An encrypted value in each row.

    Attributes:
        position: its position in the row.
        formats: the format of its column; for a UNION, the distinct formats of its parts.
        slot: its place among an unlocked session's readers; None if no reader is kept for it.
        owner_classes: the classes of its possible owners, as far as they are known.
        for_entity: whether the value goes into an object, which knows its row better.
    """

    __slots__ = (
        "_read_null",
        "decode",
        "for_entity",
        "formats",
        "owner_classes",
        "position",
        "row_bound",
        "slot",
    )

    def __init__(
        self,
        position: int,
        formats: tuple[ColumnFormat, ...],
        slot: object,
        owner_classes: tuple[OwnerClass, ...],
        *,
        for_entity: bool,
    ) -> None:
        self.position = position
        self.formats = formats
        self.slot = slot
        self.owner_classes = owner_classes
        self.decode = formats[0].codec.decode
        self.row_bound = formats[0].bind == "row"
        self.for_entity = for_entity
        self._read_null = formats[0].codec.read_null

    def null(self) -> Any:
        """Return the value that NULL is read as."""
        return None if self._read_null is None else self._read_null()


class PlannedRow:
    """The part of a row that is one row of one table, or of one entity: its values have one owner.

    Attributes:
        path: the path to its owner; None if the owner cannot be traced.
        owners, owner_types: the positions and types of the values that identify the owner.
        keys, key_types: the positions and types of its primary key; empty if the key is not in the result, or
            no value is bound to it.
        location: the place where its owners are stored; None without a path.
        values: its encrypted values.
        few: the same values, with the attributes that the loop over a few rows needs.
    """

    __slots__ = ("few", "key_types", "keys", "location", "owner_types", "owners", "path", "values")

    def __init__(self, path: OwnerPath | None, owners: Way, keys: Way, entries: Sequence[Any]) -> None:
        self.path = path
        self.owners = owners
        self.owner_types = tuple(entries[one].type for one in owners)
        self.keys = keys
        self.key_types = tuple(entries[one].type for one in keys)
        self.location = None if path is None else LastLocation(path.owner_class)
        self.values: list[PlannedValue] = []
        self.few: list[tuple[PlannedValue, int, object, Any, bool]] = []

    def add(self, value: PlannedValue) -> None:
        """Add a value."""
        self.values.append(value)
        self.few.append((value, value.position, value.slot, value.decode, value.row_bound))


class StatementPlan:
    """The positions of encrypted values in a statement's rows.

    Attributes:
        rows: the parts of a result row with encrypted values, a part for each table row; empty if no output
            is encrypted.
        linked: whether the owner of any part is found through other rows.
        gave_many: whether any result of the statement had many rows.
    """

    __slots__ = ("_bare", "gave_many", "linked", "rows")

    def __init__(self, rows: tuple[PlannedRow, ...]) -> None:
        self.rows = rows
        self.linked = any(row.path is not None and not row.path.is_direct for row in rows)
        self.gave_many = False
        self._bare: tuple[Any, Any, frozenset[int]] = (None, None, frozenset())

    def without_processors(self, metadata: Any) -> tuple[Any, frozenset[int]]:
        """Return a copy of a result's metadata without our processors, and the positions of those processors.

        An application's own type around ours keeps its processor.
        """
        known, copy, bare = self._bare
        if metadata is not known:
            places = [value.position for row in self.rows for value in row.values]
            bare = frozenset(at for at in places if is_ours(metadata._processors[at]))
            kind: Any = type(metadata)
            copy = kind.__new__(kind)
            for name in kind.__slots__:
                setattr(copy, name, getattr(metadata, name))
            copy._processors = [None if at in bare else one for at, one in enumerate(metadata._processors)]
            self._bare = metadata, copy, bare
        return copy, bare


_NOTHING = StatementPlan(())
_plans: WeakKeyDictionary[Any, StatementPlan] = WeakKeyDictionary()


def plan_of_statement(execution: Any, description: Sequence[Any]) -> StatementPlan:
    """Return the plan of a statement that is being executed; empty if nothing in its rows is encrypted."""
    compiled = execution.compiled
    known = _plans.get(compiled)
    if known is not None:
        return known
    if not isinstance(compiled, SQLCompiler):
        return _NOTHING
    entries: Sequence[Any] = compiled._result_columns
    if not any(format_in(entry.type) for entry in entries):
        _plans[compiled] = _NOTHING
        return _NOTHING
    textual = compiled._textual_ordered_columns
    by_driver = execution.execution_options.get("driver_column_names", False)
    if textual or (compiled._ordered_columns and len(entries) == len(description) and not by_driver):
        plan = _plans[compiled] = _make_plan(compiled, entries)
        return plan
    return _make_plan(compiled, _by_name(compiled, entries, description))


def _by_name(compiled: Any, entries: Sequence[Any], description: Sequence[Any]) -> list[Any]:
    """Match outputs to the names in the cursor's description, as SQLAlchemy does for textual SQL."""
    named: dict[Any, Any] = {}
    for entry in entries:
        named.setdefault(entry.keyname, entry)
        if compiled._loose_column_name_matching:
            for name in entry.objects:
                named.setdefault(name, entry)
    return [named.get(one[0]) or named.get(one[0].rpartition(".")[2]) for one in description]


def _make_plan(compiled: Any, entries: Sequence[Any]) -> StatementPlan:
    columns = [None if entry is None else output_column(entry) for entry in entries]
    origins = origins_of(compiled, columns)
    entities, selected = _entities(compiled)
    homes = _homes(compiled, columns)
    rows: dict[Any, PlannedRow] = {}
    for position, entry in enumerate(entries):
        form = None if entry is None else format_in(entry.type)
        if form is None:
            continue
        column = columns[position]
        for_entity = entities and column is not None and hash(column) not in selected
        classes = _owner_classes(origins[position])
        encrypted = _encrypted(origins[position])
        owners = _owners(position, homes, origins, encrypted)
        keys = _keys(position, homes, origins, encrypted)
        path = None if owners is None else encrypted[0].path
        kept = encrypted[0].slot if path is not None and path.is_direct and len(encrypted) == 1 else None
        formats = _formats(origins[position]) or (form,)
        where = (None if path is None else path.identity, owners, keys)
        row = rows.setdefault(where, PlannedRow(path, owners or (), keys, entries))
        row.add(PlannedValue(position, formats, kept, classes, for_entity=for_entity))
    return StatementPlan(tuple(rows.values()))


def _formats(origins: list[Origin] | None) -> tuple[ColumnFormat, ...]:
    found = [format_in(base.type) for _, base in origins or ()]
    return tuple({id(one): one for one in found if one is not None}.values())


def _owner_classes(origins: list[Origin] | None) -> tuple[OwnerClass, ...]:
    found = [encrypted_column_of(base) for _, base in origins or ()]
    return tuple(dict.fromkeys(one for column in found if column for one in column.path.owner_classes))


def _encrypted(origins: list[Origin] | None) -> list[EncryptedColumn]:
    """Return the encrypted columns that an output comes from; empty if any origin is not encrypted."""
    found = [encrypted_column_of(base) for _, base in origins or ()]
    known = [one for one in found if one is not None]
    return known if len(known) == len(found) else []


def _owners(
    position: int,
    homes: Sequence[Any],
    origins: Sequence[list[Origin] | None],
    encrypted: Sequence[EncryptedColumn],
) -> Way | None:
    """Return the positions of the owner of an output's row; None if the owner is not in the result."""
    if not encrypted or any(not _alike(one.path, encrypted[0].path) for one in encrypted):
        return None
    wanted = [one.path.columns for one in encrypted]
    return _positions(position, homes, origins, list(zip(*wanted, strict=True)))


def _keys(
    position: int,
    homes: Sequence[Any],
    origins: Sequence[list[Origin] | None],
    encrypted: Sequence[EncryptedColumn],
) -> Way:
    """Return the positions of the primary key of an output's row, if the value is bound to its row."""
    if not any(one.row_bound for one in encrypted):
        return ()
    wanted = [tuple(one.column.table.primary_key.columns) for one in encrypted]
    if len({len(one) for one in wanted}) != 1:
        return ()
    return _positions(position, homes, origins, list(zip(*wanted, strict=True))) or ()


def _alike(one: OwnerPath, other: OwnerPath) -> bool:
    """Tell whether the same values lead to the same owner along both paths."""
    both_direct = one.is_direct and other.is_direct
    return one.identity == other.identity or (both_direct and one.owner_class is other.owner_class)


def _positions(
    position: int,
    homes: Sequence[Any],
    origins: Sequence[list[Origin] | None],
    wanted: Sequence[Sequence[Column[Any]]],
) -> Way | None:
    """Return the positions of these columns in the row of a value; None if a column is missing.

    Args:
        wanted: for each column, its counterpart at each origin of the value.
    """
    found = []
    for each in wanted:
        for other, theirs in enumerate(origins):
            if theirs and _beside(homes[position], origins[position] or [], homes[other], theirs, each):
                found.append(other)
                break
        else:
            return None
    return tuple(found)


def _beside(
    home: Any, mine: list[Origin], other: Any, theirs: list[Origin], wanted: Sequence[Column[Any]]
) -> bool:
    mapper = home.mapper if _is_same_entity(home, other) else None
    return all(
        any(_is_there(way, base, one, mapper=mapper, wanted=each) for one in theirs)
        for (way, base), each in zip(mine, wanted, strict=True)
    )


def _is_same_entity(one: Any, other: Any) -> bool:
    """Tell whether both are the same entity, or parts of one `with_polymorphic`: they share a selectable."""
    if one is None or other is None:
        return False
    aliases = one.is_aliased_class and other.is_aliased_class
    return one is other or (aliases and one.selectable is other.selectable)


def _is_there(way: Way, base: Column[Any], other: Origin, *, mapper: Any, wanted: Column[Any]) -> bool:
    their_way, their_base = other
    if their_base in wanted.base_columns and their_way == way:
        return True
    # Joined inheritance: an entity has columns in several tables, and an attribute may map several columns.
    if mapper is None or their_base.table is base.table:
        return False
    try:
        return mapper.get_property_by_column(wanted) is mapper.get_property_by_column(their_base)
    except UnmappedColumnError:
        return False


def _homes(compiled: Any, columns: Sequence[Any]) -> list[Any]:
    """Return the entity of each column; None for a column without an entity."""
    selected: dict[int, Any] = {}
    waiting = list(getattr(compiled.compile_state, "_entities", None) or ())
    for one in waiting:  # grows while it is walked: a bundle has entities of its own
        waiting += getattr(one, "_entities", ())
        column = getattr(one, "column", None)
        if column is not None:
            selected[hash(unlabelled(column))] = getattr(one, "entity_zero", None)
    return [
        None
        if column is None
        else getattr(column, "_annotations", {}).get("parententity") or selected.get(hash(column))
        for column in columns
    ]


def _entities(compiled: Any) -> tuple[bool, frozenset[int]]:
    """Tell whether the rows become objects, and return the columns that are selected on their own as well."""
    state = compiled.compile_state
    entities = getattr(state, "_entities", None)
    if not entities or not any(getattr(one, "supports_single_entity", False) for one in entities):
        return False, frozenset()
    statement = getattr(state, "select_statement", None)
    raw = getattr(statement, "_raw_columns", ())
    return True, frozenset(hash(unlabelled(one)) for one in raw if isinstance(one, ColumnElement))
