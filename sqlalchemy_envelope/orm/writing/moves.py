"""Columns that decide whose key encrypts a value in another table, and the statements that change them.

Such a column stands in a row on a dotted path, or in the base table of a joined subclass. It leads on to the
owner; or the row is found by it, and no foreign key holds it. A change of the column moves the values behind
it to another owner, and they stay under the former owner's key. So each statement that can change one is
looked at before it is sent: the rows that it moves are locked, and then asked for encrypted values. It is
refused if there are some.

One thing moves and takes its values along: an object of a joined subclass, whose flush writes them after the
row in the base table. A row on the way does not, also if its flush writes all values behind it: which of them
are written before it and which after depends on primary keys and relationships, and nobody could tell why
it is refused today.

Whoever encrypts a value for a row's owner holds a weaker lock on the rows that decide the owner
(`owner_seek`): of a move and a new value, one waits for the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakSet, ref

from sqlalchemy import Insert, Table, Update, inspect, or_, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import aliased
from sqlalchemy.sql.elements import BindParameter, ClauseElement
from sqlalchemy.sql.selectable import TableClause

from sqlalchemy_envelope.exceptions import ConfigurationError, StatementRefusedError
from sqlalchemy_envelope.orm.columns.encrypted_type import EncryptedType
from sqlalchemy_envelope.orm.tables.default_schema import schema_of, schemas_beside
from sqlalchemy_envelope.orm.tables.key_rows import chunks
from sqlalchemy_envelope.orm.tables.owner_paths import among, linked_paths
from sqlalchemy_envelope.orm.tables.python_types import python_type_of
from sqlalchemy_envelope.orm.tables.records import records_of_table
from sqlalchemy_envelope.orm.tables.watched import EXPECTED, expected_for, watch_name
from sqlalchemy_envelope.orm.writing.answers import answer, is_temporary, keep_answer
from sqlalchemy_envelope.orm.writing.flushes import notes_of
from sqlalchemy_envelope.orm.writing.forms import (
    changed_by,
    column_key,
    equalities,
    table_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from sqlalchemy import Column, Connection, ForeignKey, Select
    from sqlalchemy.orm import Mapper, RelationshipProperty

    from sqlalchemy_envelope.orm.columns.plans import EncryptedAttribute
    from sqlalchemy_envelope.orm.tables.owner_paths import LinkedPath

    Key = tuple[Any, ...]
    Options = Mapping[str, Any]

_DECIDERS = "deciders"
_tables: dict[str, WeakSet[Table]] = {}


class Decider:
    """Columns of a table that decide the owner of an encrypted column's values.

    Attributes:
        table, columns: where they stand.
        keys: the key of each, by its name in the database: another `Table` object may have other keys.
        encrypted: the encrypted column.
        is_own: they belong to the object that has the value, and not to a row on the way.
        hanging: the primary keys of the rows with a value that hang on rows with these primary keys.
    """

    def __init__(
        self,
        table: Table,
        columns: frozenset[Column[Any]],
        encrypted: Column[Any],
        hanging: Callable[[Sequence[Key]], Select[Any]],
        *,
        is_own: bool,
    ) -> None:
        self.table = table
        self.columns = columns
        self.keys = {column.name.lower(): column.key for column in columns}
        self.encrypted = encrypted
        self.hanging = hanging
        self.is_own = is_own

    def is_like(self, other: Decider) -> bool:
        """Whether another one watches the same for the same."""
        same = self.columns == other.columns and self.encrypted is other.encrypted
        return same and self.is_own == other.is_own


def expect(mapper: Mapper[Any]) -> None:
    """Before this mapper is configured, nobody knows what decides the owners of its values."""
    types = [one.type for one in mapper.local_table.columns if isinstance(one.type, EncryptedType)]
    if types and (mapper.inherits is not None or any(one.owner is not None for one in types)):
        EXPECTED.add(ref(mapper, EXPECTED.discard))


def watch(mapper: Mapper[Any], plan: Sequence[EncryptedAttribute]) -> None:
    """Watch what decides, in other tables, the owners of these attributes."""
    EXPECTED.discard(ref(mapper))
    for attribute in plan:
        column = attribute.encrypted.column
        owning = [one for one in mapper.iterate_to_root() if column.table in one.tables]
        if not owning or len(attribute.owner_keys) != len(attribute.encrypted.path.columns):
            continue  # a mapped subquery: its tables have mappers of their own
        for decider in _deciders(owning[-1], attribute):
            known = records_of_table(decider.table).setdefault(_DECIDERS, [])
            if not any(decider.is_like(one) for one in known):
                known.append(decider)
                _tables.setdefault(decider.table.name.lower(), WeakSet()).add(decider.table)
                watch_name(decider.table)


def _deciders(mapper: Mapper[Any], attribute: EncryptedAttribute) -> Iterator[Decider]:
    """What decides an attribute's owner in the tables beside its own: first of its class, then on the way."""
    path, column = attribute.encrypted.path, attribute.encrypted.column
    for table, columns in _by_table(path.columns):
        if table is not column.table:
            yield Decider(
                table,
                columns,
                column,
                _hanging(mapper, attribute, table, None, 0),
                is_own=True,
            )
    for linked in linked_paths(path):
        for at, (there, keys) in enumerate(linked.links()):
            mapped = [one for key in keys for one in there.attrs[key].columns]
            for table, columns in _by_table(mapped):
                hanging = _hanging(mapper, attribute, table, linked, at + 1)
                yield Decider(table, columns, column, hanging, is_own=False)
            for table, columns in _by_table(_found_by(linked.steps[at])):
                hanging = _hanging(mapper, attribute, table, linked, at + 1)
                yield Decider(table, columns, column, hanging, is_own=False)


def _found_by(step: RelationshipProperty[Any]) -> list[Any]:
    """The columns by which a row on the way is found, as far as the database lets them change while other
    rows refer to them: without a foreign key, or with one that is looked at when the transaction ends."""
    pairs = step.local_remote_pairs or ()
    return [far for near, far in pairs if not any(_holds(one, far) for one in near.foreign_keys)]


def _holds(key: ForeignKey, column: Any) -> bool:
    return key.column is column and key.constraint is not None and not key.constraint.deferrable


def _by_table(columns: Iterable[Any]) -> list[tuple[Table, frozenset[Column[Any]]]]:
    found: dict[Table, set[Column[Any]]] = {}
    for column in columns:
        if isinstance(column.table, Table):
            found.setdefault(column.table, set()).add(column)
    return [(table, frozenset(some)) for table, some in found.items()]


def _hanging(
    mapper: Mapper[Any], attribute: EncryptedAttribute, table: Table, path: LinkedPath | None, steps: int
) -> Callable[[Sequence[Key]], Select[Any]]:
    def hanging(keys: Sequence[Key]) -> Select[Any]:
        row: Any = aliased(mapper)
        own = [_of_column(row, mapper, one) for one in attribute.encrypted.column.table.primary_key]
        statement: Any = select(*own).select_from(row)
        there, its = row, mapper
        if path is not None:
            statement, there = path.join(statement, row, mapper, steps)
            its = path.steps[steps - 1].mapper
        names = [_of_column(there, its, one) for one in table.primary_key]
        value = _of_column(row, mapper, attribute.encrypted.column)
        found: Select[Any] = statement.where(value.is_not(None), among(names, keys))
        return found

    return hanging


def _of_column(entity: Any, mapper: Mapper[Any], column: Any) -> Any:
    return getattr(entity, mapper.get_property_by_column(column).key)


def check_moves(
    connection: Connection, statement: Any, target: Any, multiparams: Any, params: Any, options: Options
) -> bool:
    """Refuse a statement that moves encrypted values to another owner; tells whether it was looked at.

    Raises:
        StatementRefusedError: it does.
    """
    if isinstance(statement, Insert) and not _replaces(statement):
        return False
    if EXPECTED:
        _configure(target)
    deciders, is_twin = _watched(target)
    if not deciders:
        return False
    rows, looked = list(multiparams) or [params or {}], False
    for decider in deciders:
        written = _written(decider, statement, target, rows)
        if is_twin and isinstance(statement, Update):
            written |= _changed_unnamed(decider, target)
        if not written or (is_twin and not _is_here(connection, target, decider, options)):
            continue
        if is_twin or isinstance(statement, Insert):
            raise _unknown(decider, min(written), is_twin=is_twin)
        moved = _moved_rows(connection, decider, statement, rows, written)
        if moved:
            _check_hanging(connection, decider, moved, min(written))
        looked = True
    return looked


def may_move(
    connection: Connection, statement: Any, target: Any, keys: Iterable[str], options: Options
) -> bool | None:
    """Whether a statement with these parameters changes a column that decides owners in another table; None
    if it would in another database."""
    if isinstance(statement, Insert) and not _replaces(statement):
        return False
    rows = [dict.fromkeys(keys)]
    deciders, is_twin = _watched(target)
    written = [one for one in deciders if _written(one, statement, target, rows)]
    if not is_twin or not written:
        return bool(written)
    return True if any(_is_here(connection, target, one, options) for one in written) else None


def may_move_beside(connection: Connection, column: Any, options: Options) -> bool:
    """Whether a column that an UPDATE of another table writes decides owners in a third."""
    deciders, is_twin = _watched(table_of(column))
    return any(
        column.name.lower() in one.keys
        and (not is_twin or _is_here(connection, table_of(column), one, options))
        for one in deciders
    )


def _replaces(statement: Any) -> bool:
    """Whether an INSERT may change a row that is there."""
    if getattr(statement, "_post_values_clause", None) is not None:
        return True
    prefixes = statement._prefixes
    return bool(prefixes) and any("REPLACE" in str(prefix).upper() for prefix, _ in prefixes)


def _configure(target: Any) -> None:
    """The first statement may come before the first class is used, and paths are declared by classes."""
    name = getattr(target, "name", None)
    if not isinstance(target, TableClause) or name is None:
        return
    for mapper in expected_for(str.lower(name)):
        try:
            mapper.attrs  # noqa: B018 - configures the mappers
        except (SQLAlchemyError, ConfigurationError):
            continue  # nothing can be written through them, and their own statements say why


def _watched(target: Any) -> tuple[list[Decider], bool]:
    """What is decided in this table; and whether it may be another `Table` object for the one that decides,
    in whichever schema: a tenant's has what the model's has."""
    name = getattr(target, "name", None)
    if not isinstance(target, TableClause) or name is None or name.lower() not in _tables:
        return [], False
    known = records_of_table(target).get(_DECIDERS) if isinstance(target, Table) else None
    if known is not None:
        return list(known), False
    others = tuple(_tables[name.lower()])
    return [decider for one in others for decider in records_of_table(one)[_DECIDERS]], True


def _is_here(connection: Connection, target: Any, decider: Decider, options: Options) -> bool:
    """Whether the encrypted values are stored beside the table that a statement reaches, and it has not only
    the name of the one that decides."""
    if target.schema is None and is_temporary(connection, target):
        return False
    schema, table = schema_of(connection, target, options), decider.encrypted.table
    places = schemas_beside(connection, decider.table, schema, table, options)
    return any(_stores(connection, decider.encrypted, place) for place in places)


def _stores(connection: Connection, column: Column[Any], schema: str) -> bool:
    table = column.table.name
    place = ("values", schema, table, column.name)
    known = answer(connection, place)
    if known is not None:
        return known
    inspector = inspect(connection)
    if not inspector.has_table(table, schema=schema):
        return False  # there is none yet
    found = any(
        one["name"] == column.name and python_type_of(one["type"]) is bytes
        for one in inspector.get_columns(table, schema=schema)
    )
    keep_answer(connection, place, found)
    return found


def _written(decider: Decider, statement: Any, target: Any, rows: Sequence[Any]) -> dict[str, Any]:
    """The deciding columns that a statement changes, by key: what it sets them to, or None where the rows of
    its parameters say so."""
    if isinstance(statement, Insert):
        clause = getattr(statement, "_post_values_clause", None)
        if clause is None:  # REPLACE takes the whole row's place
            return dict.fromkeys((column.key for column in decider.columns), statement)
        rows = ()
    keys = {
        one.key: decider.keys[one.name.lower()] for one in target.columns if one.name.lower() in decider.keys
    }
    found: dict[str, Any] = {keys[key]: None for row in rows for key in keys.keys() & row.keys()}
    named = {column_key(one): value for one, value in changed_by(statement).items()}
    return found | {keys[key]: named[key] for key in keys.keys() & named.keys()}


def _changed_unnamed(decider: Decider, twin: Any) -> dict[str, Any]:
    """The deciding columns that an UPDATE through another Table object changes without naming them. Those of
    the model have no `onupdate=`."""
    columns = [one for one in twin.columns if getattr(one, "onupdate", None) is not None]
    return {decider.keys[one.name.lower()]: None for one in columns if one.name.lower() in decider.keys}


def _moved_rows(
    connection: Connection, decider: Decider, statement: Any, rows: Sequence[Any], written: Mapping[str, Any]
) -> dict[Key, list[dict[str, Any]]]:
    """The primary keys of the rows whose deciding columns get other values, locked from here on; each with
    what it gets, as far as that is known."""
    key, table = list(decider.table.primary_key), decider.table
    columns = [table.columns[name] for name in sorted(written)]
    wanted: dict[Key, list[dict[str, Any]]] = {}
    found: dict[Key, list[dict[str, Any]]] = {}
    for row in rows:
        new = {name: _value(name, clause, row) for name, clause in written.items()}
        pinned = dict(equalities(statement, table, row))
        at = tuple(pinned.get(column) for column in key)
        if None not in at:
            wanted.setdefault(at, []).append(new)
            continue
        changes = or_(*(column.is_distinct_from(new[column.key]) for column in columns))
        query: Any = select(*key).select_from(table).where(*statement._where_criteria, changes)
        moved = connection.execute(query.with_for_update(of=table), row).all()
        found.update((tuple(one), []) for one in moved)
    for some in chunks(list(wanted)):
        query = select(*key, *columns).where(among(key, some)).with_for_update(of=table)
        for one in connection.execute(query):
            at, before = tuple(one[: len(key)]), dict(zip(sorted(written), one[len(key) :], strict=True))
            # What the database gives may be of another type than what the statement says: then it is moved.
            if any(_differ(before, new) for new in wanted.get(at, [{}])):
                found.setdefault(at, wanted.get(at, []))
    return found


def _value(name: str, clause: Any, row: Mapping[str, Any]) -> Any:
    if isinstance(clause, BindParameter):
        # A literal goes by the name of its column: a parameter of that name takes its place.
        is_named = clause.required or not clause.unique
        return row.get(clause.key if is_named else name, clause.effective_value)
    return row.get(name) if clause is None else clause


def _differ(before: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    if not new:
        return True
    return any(isinstance(one, ClauseElement) or one != before[name] for name, one in new.items())


def _follows(connection: Connection, decider: Decider, key: Key, new: Mapping[str, Any]) -> bool:
    """Whether the flush of an object of a joined subclass writes its value after this, for the owner that its
    row gets here."""
    notes, encrypted = notes_of(connection), decider.encrypted
    if notes is None or key not in notes.to_rewrite.get(encrypted, ()):
        return False
    state = notes.find(encrypted.table, key)
    if state is None:
        return False
    says, mapper = notes.replacing.get(state, state).dict, state.mapper
    mine = {one.key: says.get(mapper.get_property_by_column(one).key) for one in decider.columns}
    return not _differ(mine, new)


def _check_hanging(
    connection: Connection, decider: Decider, moved: Mapping[Key, Sequence[dict[str, Any]]], name: str
) -> None:
    dialect = connection.dialect.name
    anew = set()
    if decider.is_own:
        anew = {key for key, new in moved.items() if new and _follows(connection, decider, key, new[-1])}
    for some in chunks(list(moved)):
        query = decider.hanging(some).limit(len(anew) + 1)
        if dialect in ("mysql", "mariadb"):
            query = query.with_for_update(
                read=True
            )  # else it reads what was there when the transaction began
        if any(tuple(row) not in anew for row in connection.execute(query)):
            raise _refusal(decider, name)
    if dialect == "postgresql" and connection.get_isolation_level() == "REPEATABLE READ":
        raise _unseen(decider, name)


def unseen_move(table: Any) -> StatementRefusedError:
    """Why a statement is refused that changes a deciding column in a form that nobody looked at."""
    return StatementRefusedError(
        f"A statement changes what leads from {table.name} to the owner of encrypted values, in a form that "
        "was not looked at before it was compiled; nothing was sent. Execute `update(...)` by itself, or "
        "change the objects in a session."
    )


def _what(decider: Decider, name: str) -> tuple[str, str]:
    encrypted = decider.encrypted
    return f"{decider.table.name}.{name}", f"{encrypted.table.name}.{encrypted.key}"


def _refusal(decider: Decider, name: str) -> StatementRefusedError:
    what, where = _what(decider, name)
    table = decider.encrypted.table
    inherits = any(key.references(one) for key in table.primary_key for one in decider.table.primary_key)
    cure = "Change the objects in a session" if inherits else f"Give the rows of {table.name} another parent"
    return StatementRefusedError(
        f"{what} leads to the owner of encrypted values in {where}, and a statement moves rows that have "
        f"some: they would stay under the former owner's key. {cure}, or empty {where} and write it anew: "
        "each in a flush of its own."
    )


def _unknown(decider: Decider, name: str, *, is_twin: bool) -> StatementRefusedError:
    what, where = _what(decider, name)
    statement = (
        f"A statement writes {what} through another Table object than the model's"
        if is_twin
        else f"An upsert or REPLACE writes {what}"
    )
    return StatementRefusedError(
        f"{statement}. The column leads to the owner of encrypted values in {where}, and which rows move to "
        "another owner is not known before the statement is sent. Leave the column out of what it sets, "
        "write `update(...)` with the model, or change the objects in a session."
    )


def _unseen(decider: Decider, name: str) -> StatementRefusedError:
    what, where = _what(decider, name)
    return StatementRefusedError(
        f"{what} leads to the owner of encrypted values in {where}. A transaction at REPEATABLE READ does "
        "not see the values that others have written since it began, and they would stay under the former "
        "owner's key. Move these rows at READ COMMITTED or SERIALIZABLE."
    )
