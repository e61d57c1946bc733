"""Statements that move encrypted values to another owner by way of another table.

A deciding column (`deciders`) says whose key encrypts the values of rows in another table. A statement that
changes it moves those values to another owner, while they stay under the former owner's key. So each such
statement is looked at before it is sent: the rows that it moves are locked, and then asked for encrypted
values. If there are any, it is refused.

One move takes its values along: that of an object of a joined subclass, whose flush writes the values after
the row in the base table. The flush of a row on the way does not, even if it writes all values behind that
row: which of them it writes before and which after depends on primary keys and relationships, and an
application could not tell why the same flush is refused today and not tomorrow.

A statement that encrypts a value holds a weaker lock on the rows that decide the owner (`owner_seek`). So of
a move and a new value, one waits for the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Insert, Update, or_, select
from sqlalchemy.sql.elements import BindParameter, ClauseElement

from sqlalchemy_envelope.exceptions import StatementRefusedError
from sqlalchemy_envelope.orm.tables.default_schema import schema_of, schemas_beside
from sqlalchemy_envelope.orm.tables.owner_paths import among
from sqlalchemy_envelope.orm.tables.rows import chunks
from sqlalchemy_envelope.orm.writing.answers import is_temporary
from sqlalchemy_envelope.orm.writing.deciders import configure_expected, deciders_in
from sqlalchemy_envelope.orm.writing.flush_notes import notes_of
from sqlalchemy_envelope.orm.writing.forms import changed_by, column_key, equalities, table_of
from sqlalchemy_envelope.orm.writing.stored_columns import stores_values

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Connection

    from sqlalchemy_envelope.orm.writing.deciders import Decider

    Key = tuple[Any, ...]
    Options = Mapping[str, Any]


def check_moves(
    connection: Connection, statement: Any, target: Any, multiparams: Any, params: Any, options: Options
) -> bool:
    """Refuse a statement that moves rows with encrypted values to another owner; tells whether it changes a
    deciding column at all.

    Raises:
        StatementRefusedError: it moves such rows, or which rows it moves is not known.
    """
    if isinstance(statement, Insert) and not _replaces(statement):
        return False
    configure_expected(target)
    deciders, is_twin = deciders_in(target)
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
        moved = _Moves(connection, decider, statement, written).of(rows)
        if moved:
            _check_hanging(connection, decider, moved, min(written))
        looked = True
    return looked


def may_move(
    connection: Connection, statement: Any, target: Any, keys: Iterable[str], options: Options
) -> bool | None:
    """Whether a statement with these parameters changes a deciding column; None if it does not in this
    database and may in another."""
    if isinstance(statement, Insert) and not _replaces(statement):
        return False
    rows = [dict.fromkeys(keys)]
    deciders, is_twin = deciders_in(target)
    changed = [decider for decider in deciders if _written(decider, statement, target, rows)]
    if not is_twin or not changed:
        return bool(changed)
    return True if any(_is_here(connection, target, decider, options) for decider in changed) else None


def may_move_beside(connection: Connection, column: Any, options: Options) -> bool:
    """Whether a column that an UPDATE of another table writes is a deciding column."""
    deciders, is_twin = deciders_in(table_of(column))
    return any(
        column.name.lower() in decider.keys
        and (not is_twin or _is_here(connection, table_of(column), decider, options))
        for decider in deciders
    )


def _replaces(statement: Any) -> bool:
    """Whether an INSERT may change a row that exists."""
    if getattr(statement, "_post_values_clause", None) is not None:
        return True
    prefixes = statement._prefixes
    return bool(prefixes) and any("REPLACE" in str(prefix).upper() for prefix, _ in prefixes)


def _is_here(connection: Connection, target: Any, decider: Decider, options: Options) -> bool:
    """Whether a twin is the deciding table itself: the encrypted values are stored beside it. Another table
    may have its name."""
    if target.schema is None and is_temporary(connection, target):
        return False
    schema, table = schema_of(connection, target, options), decider.encrypted.table
    schemas = schemas_beside(connection, decider.table, schema, table, options)
    return any(stores_values(connection, decider.encrypted, schema) for schema in schemas)


def _written(decider: Decider, statement: Any, target: Any, rows: Sequence[Any]) -> dict[str, Any]:
    """The deciding columns that a statement changes, each with what it is set to; None stands for a value
    in the rows of parameters."""
    if isinstance(statement, Insert):
        clause = getattr(statement, "_post_values_clause", None)
        if clause is None:  # REPLACE takes the whole row's place
            return dict.fromkeys((column.key for column in decider.columns), statement)
        rows = ()
    keys = {
        column.key: decider.keys[column.name.lower()]
        for column in target.columns
        if column.name.lower() in decider.keys
    }
    in_rows: dict[str, Any] = {keys[key]: None for row in rows for key in keys.keys() & row.keys()}
    changed = {column_key(named): value for named, value in changed_by(statement).items()}
    return in_rows | {keys[key]: changed[key] for key in keys.keys() & changed.keys()}


def _changed_unnamed(decider: Decider, twin: Any) -> dict[str, Any]:
    """The deciding columns that an UPDATE through another Table object changes without naming them. Those of
    the model have no `onupdate=`."""
    names = [column.name.lower() for column in twin.columns if getattr(column, "onupdate", None) is not None]
    return {decider.keys[name]: None for name in names if name in decider.keys}


class _Moves:
    """The rows that an UPDATE moves, by primary key, each with the values that its deciding columns get,
    as far as they are known. The rows are locked from here on."""

    def __init__(
        self, connection: Connection, decider: Decider, statement: Any, written: Mapping[str, Any]
    ) -> None:
        self._connection = connection
        self._statement = statement
        self._written = written
        self._table = decider.table
        self._key = list(decider.table.primary_key)
        self._names = sorted(written)
        self._columns = [decider.table.columns[name] for name in self._names]
        self._moved: dict[Key, list[dict[str, Any]]] = {}

    def of(self, rows: Sequence[Any]) -> dict[Key, list[dict[str, Any]]]:
        """The moves of all these executions. Rows that the WHERE names by primary key are compared
        together, in one query; any other WHERE gets a query of its own."""
        by_key: dict[Key, list[dict[str, Any]]] = {}
        for row in rows:
            new = {name: _value(name, clause, row) for name, clause in self._written.items()}
            pinned = dict(equalities(self._statement, self._table, row))
            key = tuple(pinned.get(column) for column in self._key)
            if None in key:
                self._by_condition(row, new)
            else:
                by_key.setdefault(key, []).append(new)
        self._compare(by_key)
        return self._moved

    def _by_condition(self, row: Any, new: Mapping[str, Any]) -> None:
        changes = or_(*(column.is_distinct_from(new[column.key]) for column in self._columns))
        query: Any = select(*self._key).select_from(self._table)
        query = query.where(*self._statement._where_criteria, changes).with_for_update(of=self._table)
        self._moved.update((tuple(key), []) for key in self._connection.execute(query, row).all())

    def _compare(self, by_key: Mapping[Key, list[dict[str, Any]]]) -> None:
        for keys in chunks(list(by_key)):
            query: Any = select(*self._key, *self._columns).where(among(self._key, keys))
            for row in self._connection.execute(query.with_for_update(of=self._table)):
                key, before = tuple(row[: len(self._key)]), row[len(self._key) :]
                held = dict(zip(self._names, before, strict=True))
                # The database may give another type than the statement: then the row counts as moved.
                if any(_differ(held, new) for new in by_key.get(key, [{}])):
                    self._moved.setdefault(key, by_key.get(key, []))


def _value(name: str, clause: Any, row: Mapping[str, Any]) -> Any:
    if isinstance(clause, BindParameter):
        # A literal goes by the name of its column: a parameter of that name takes its place.
        is_named = clause.required or not clause.unique
        return row.get(clause.key if is_named else name, clause.effective_value)
    return row.get(name) if clause is None else clause


def _differ(before: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    if not new:
        return True
    return any(isinstance(value, ClauseElement) or value != before[name] for name, value in new.items())


def _follows(connection: Connection, decider: Decider, key: Key, new: Mapping[str, Any]) -> bool:
    """Whether a flush encrypts the value after this statement, for the owner that the statement gives the
    row: it writes the table of a joined subclass after the base table."""
    notes, encrypted = notes_of(connection), decider.encrypted
    if notes is None or key not in notes.to_rewrite.get(encrypted, ()):
        return False
    state = notes.find(encrypted.table, key)
    if state is None:
        return False
    held, mapper = notes.replacing.get(state, state).dict, state.mapper
    own = {column.key: held.get(mapper.get_property_by_column(column).key) for column in decider.columns}
    return not _differ(own, new)


def _check_hanging(
    connection: Connection, decider: Decider, moved: Mapping[Key, Sequence[dict[str, Any]]], name: str
) -> None:
    """Refuse the move if a value depends on one of the rows and is not written anew in this flush.

    Raises:
        StatementRefusedError: there is such a value, or there may be one that this transaction cannot see.
    """
    dialect = connection.dialect.name
    anew = set()
    if decider.is_own:
        anew = {key for key, new in moved.items() if new and _follows(connection, decider, key, new[-1])}
    for keys in chunks(list(moved)):
        query = decider.hanging(keys).limit(len(anew) + 1)
        if dialect in ("mysql", "mariadb"):
            # Without a lock it reads what was there when the transaction began.
            query = query.with_for_update(read=True)
        if any(tuple(row) not in anew for row in connection.execute(query)):
            raise _refusal(decider, name)
    if dialect == "postgresql" and connection.get_isolation_level() == "REPEATABLE READ":
        raise _unseen(decider, name)


def unseen_move(table: Any) -> StatementRefusedError:
    """The error for a statement that changes a deciding column and went past the statement hook."""
    return StatementRefusedError(
        f"A statement changes a column of {table.name} that leads to the owner of encrypted values, in a "
        "form that does not show which rows it moves; nothing was sent. Execute `update(...)` by itself, or "
        "change the objects in a session."
    )


def _what(decider: Decider, name: str) -> tuple[str, str]:
    """The names of the deciding column and of the encrypted column, for an error."""
    encrypted = decider.encrypted
    return f"{decider.table.name}.{name}", f"{encrypted.table.name}.{encrypted.key}"


def _refusal(decider: Decider, name: str) -> StatementRefusedError:
    what, where = _what(decider, name)
    table = decider.encrypted.table
    base_key = decider.table.primary_key
    inherits = any(key.references(base) for key in table.primary_key for base in base_key)
    cure = "Change the objects in a session" if inherits else f"Give the rows of {table.name} another parent"
    return StatementRefusedError(
        f"{what} leads to the owner of encrypted values in {where}, and a statement moves rows with such "
        f"values: they would stay under the former owner's key. {cure}, or empty {where} and write it anew: "
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
