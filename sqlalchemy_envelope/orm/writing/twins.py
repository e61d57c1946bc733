"""Twins: other `Table` objects of a table with encrypted columns, whether reflected, written `table("notes",
column("body"))`, or made by the bulk inserts of Alembic and pandas. A twin does not know that a column is
encrypted.

Twins are recognised by name (`namesakes`), and the database says whether a twin really is the table
(`stored_columns`). Stored bytes pass: a program that copies rows has them.

The columns that a statement names are looked at with their values, before it is compiled. The columns that
SQLAlchemy adds when it compiles, by `default=` and `onupdate=`, are looked at afterwards.
"""

from __future__ import annotations

from types import NoneType
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Insert
from sqlalchemy.sql.elements import BindParameter, ClauseElement, ColumnClause, Null
from sqlalchemy.sql.selectable import ScalarSelect, TableClause, TextualSelect

from sqlalchemy_envelope.crypto.aead import check_value
from sqlalchemy_envelope.exceptions import (
    ConfigurationError,
    FormatError,
    StatementRefusedError,
    TruncatedError,
)
from sqlalchemy_envelope.orm.columns.plans import plan_of_table
from sqlalchemy_envelope.orm.indexes.indexed import indexes_of_table
from sqlalchemy_envelope.orm.tables.default_schema import schema_of
from sqlalchemy_envelope.orm.tables.raw_tables import is_raw
from sqlalchemy_envelope.orm.writing.forms import (
    assigned_by,
    assigned_by_upsert,
    changed_by,
    is_null,
    named_by,
    parts_of,
    rows_of,
    source_of,
    table_of,
    target_of,
)
from sqlalchemy_envelope.orm.writing.namesakes import (
    encrypted_in,
    known_in,
    namesakes_of,
    unknown_columns,
    unknown_to,
)
from sqlalchemy_envelope.orm.writing.stored_columns import holds_encrypted, stores_values
from sqlalchemy_envelope.orm.writing.tokens.twins import refuse_stale_tokens

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from sqlalchemy import Connection, Table

    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn

    Options = Mapping[str, Any]


def check_twin(
    connection: Connection, target: Any, statement: Any, multiparams: Any, params: Any, options: Options
) -> bool:
    """Refuse to write anything but stored bytes into an encrypted column, or to move a row away from its
    value; tells whether the twin has such a column at all.

    Raises:
        StatementRefusedError: the statement would store plaintext, or move rows to another owner.
    """
    names = unknown_to(connection, target, options)
    if not names:
        return False
    rows = multiparams or ([params] if params else [])
    given: dict[str, bool] = {}
    for key, value in _written(statement, rows):
        name = _column_name(target, key)
        given[name] = given.get(name, False) or not (value is None or is_null(value))
        if name not in names or _is_stored(target, name, value):
            continue
        if holds_encrypted(connection, target, name, options):
            raise _refusal(target, names[name])
    _refuse_stale_indexes(connection, statement, given, options)
    refuse_stale_tokens(connection, statement, given, options)
    _refuse_moves(connection, target, _changed(statement, target, rows), options)
    return True


def _refuse_stale_indexes(
    connection: Connection, statement: Any, given: Mapping[str, bool], options: Options
) -> None:
    """Refuse to write a value and leave its blind index as it was, or to write a tag alone.

    Args:
        given: the columns that the statement writes, each with whether it writes more than NULL into it.
    """
    target = target_of(statement)
    if is_raw(target):
        return  # its own statements write both, one after the other
    changes = not isinstance(statement, Insert) or bool(changed_by(statement))

    def is_written(name: str) -> bool:
        return name in given if changes else given.get(name, False)

    for table in namesakes_of(connection, target, options):
        for index in _indexes_of(table):
            column, names = index.column, [one.column.name.lower() for one in index.sources]
            name, has_value = column.name.lower(), any(map(is_written, names))
            # NULL in an index is no lie: the row is pending.
            is_stale = name not in given if has_value else given.get(name, False)
            # Other models of the process may have a table of this name.
            is_here = is_stale and stores_values(connection, column, schema_of(connection, target, options))
            if is_here and any(holds_encrypted(connection, target, name, options) for name in names):
                raise _stale_index(column)


def _indexes_of(table: Table) -> Sequence[IndexedColumn]:
    try:
        return indexes_of_table(table)
    except ConfigurationError:
        return ()  # nothing can be encrypted in it, and its own statements say why


def refuse_twin(
    connection: Connection, statement: Any, column_keys: Collection[str] | None, options: Options
) -> None:
    """Refuse to write an encrypted column at all. The values are not known here: the statement stands inside
    another, or the application compiled it.

    Raises:
        StatementRefusedError: it writes one.
    """
    target = target_of(statement)
    if column_keys is None and not named_by(statement):
        column_keys = target.columns.keys()  # compiled without parameters: it takes all of them
    rows = [dict.fromkeys(column_keys or ())]
    keys = [key for key, _ in _written(statement, rows)]
    _refuse(connection, target, [_column_name(target, key) for key in keys], options)
    _refuse_moves(connection, target, _changed(statement, target, rows), options)


def refuse_defaults(
    connection: Connection, statement: Any, column_keys: Iterable[str], options: Options
) -> bool:
    """Refuse a value that SQLAlchemy adds for an encrypted column that the statement does not name; tells
    whether it adds a value for any column that a namesake has encrypted.

    Raises:
        StatementRefusedError: it adds one.
    """
    target = target_of(statement)
    when = "default" if isinstance(statement, Insert) else "onupdate"
    added = [column for column in target.columns if _adds(getattr(column, when, None))]
    selects = isinstance(statement, Insert) and statement.select is not None
    if not added or (selects and not statement.include_insert_from_select_defaults):
        return False
    # Each row of a multiple VALUES may leave out other columns.
    rows = [{_column_name(target, key) for key in row} for row in named_by(statement) or [()]]
    given = set.intersection(*rows) | {_column_name(target, key) for key in column_keys}
    names = ({column.name.lower() for column in added} - given) & unknown_columns(target)
    _refuse(connection, target, names, options)
    return bool(names)


def refuse_beside(connection: Connection, column: Any, options: Options) -> None:
    """Refuse to write an encrypted column of the second table of an UPDATE.

    Raises:
        StatementRefusedError: the column is encrypted.
    """
    _refuse(connection, table_of(column), [column.name.lower()], options)
    _refuse_moves(connection, table_of(column), {column.name.lower()}, options)


def _refuse(connection: Connection, target: Any, written: Iterable[str], options: Options) -> None:
    names = unknown_to(connection, target, options)
    for name in written:
        if name in names and holds_encrypted(connection, target, name, options):
            raise _refusal(target, names[name])


def _changed(statement: Any, target: Any, rows: Sequence[Any]) -> set[str]:
    """The columns that a statement changes in rows that exist."""
    if isinstance(statement, Insert):
        return {_column_name(target, key) for key in changed_by(statement)}
    made = {column.name.lower() for column in target.columns if _adds(getattr(column, "onupdate", None))}
    # SQLAlchemy writes the columns that the first row names.
    given = [key for row in rows[:1] for key in row if key in target.columns]
    return made | {_column_name(target, key) for key in (*changed_by(statement), *given)}


def _refuse_moves(connection: Connection, target: Any, changed: set[str], options: Options) -> None:
    """Refuse to change what an encrypted value was written for while the value stays as it is."""
    written = known_in(target) | changed  # with a stored value, which a program copies with its row
    for table in namesakes_of(connection, target, options):
        for name, column in encrypted_in(table).items():
            for decides in () if name in written else _decided_by(column):
                if decides.lower() in changed and holds_encrypted(connection, target, name, options):
                    raise _move(column, decides)


def _decided_by(column: Column[Any]) -> list[str]:
    try:
        plan = plan_of_table(column.table)
    except ConfigurationError:
        return []  # nothing can be encrypted in it, and its own statements say why
    if plan is None:
        return []
    encrypted = [each for each in plan.columns if each.column is column]
    return [decides.name for each in encrypted for decides in plan.decided_by(each)]


def _adds(default: Any) -> bool:
    """Whether a `default=` or `onupdate=` may write anything but NULL."""
    return default is not None and not isinstance(getattr(default, "arg", default), (NoneType, Null))


def _column_name(target: Any, key: Any) -> str:
    column = key if isinstance(key, ClauseElement) else target.columns.get(key)
    return str(getattr(column, "name", key)).lower()


def _written(statement: Any, parameters: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """What a statement writes: pairs of a column, or its key, and a value."""
    rows = rows_of(statement) if getattr(statement, "_multi_values", None) else []
    for row in (assigned_by(statement), *rows, assigned_by_upsert(statement)):
        for key, value in row.items():
            yield from ((key, given) for given in _given(value, parameters))
    for key, value in _selected(statement):
        yield from ((key, given) for given in _given(value, parameters))
    columns = target_of(statement).columns  # a parameter of the WHERE may be called like another table's
    for row in parameters:
        yield from ((key, value) for key, value in row.items() if key in columns)


def _selected(statement: Any) -> Iterator[tuple[Any, Any]]:
    """What an INSERT .. FROM SELECT writes."""
    names = getattr(statement, "_select_names", None) or ()
    for part in parts_of(statement.select) if names else ():
        sources = [source_of(output) for output in part.selected_columns]
        if len(names) != len(sources) or isinstance(part, TextualSelect):
            sources = [part] * len(names)  # nobody can say what goes where, or what it is
        yield from zip(names, sources, strict=True)


def _given(value: Any, parameters: Sequence[Any]) -> list[Any]:
    """The values that a bound parameter has in the executions."""
    if not isinstance(value, BindParameter):
        return [value]
    own = value.effective_value
    return [row.get(value.key, own) for row in parameters] or [own]


def _is_stored(target: Any, name: str, value: Any) -> bool:
    """Whether a value is nothing, or was stored by this library: bytes, or the column itself (`body = body`),
    also of another row or of the row that an upsert was to insert (`excluded.body`, which is looked at
    there)."""
    if value is None or is_null(value):
        return True
    if isinstance(value, ScalarSelect):
        parts = [list(part.selected_columns) for part in parts_of(value.element)]
        return all(len(columns) == 1 and _is_same_column(target, name, columns[0]) for columns in parts)
    if isinstance(value, ColumnClause):
        return _is_same_column(target, name, value)
    try:
        check_value(value, name)
    except (FormatError, TruncatedError):
        return False
    return True


def _is_same_column(target: Any, name: str, column: Any) -> bool:
    """Whether this is the very column of the table, of an alias of it, or of a table that has it
    encrypted."""
    if not isinstance(column, ColumnClause) or column.name.lower() != name:
        return False
    table = table_of(column)
    if not isinstance(table, TableClause) or table.name.lower() != target.name.lower():
        return False
    return hash(table) == hash(target) or name in encrypted_in(table)  # an annotated copy has the same hash


def _refusal(target: Any, column: Column[Any]) -> StatementRefusedError:
    where = f"{column.table.name}.{column.name}"
    return StatementRefusedError(
        f"{where} is encrypted, and this statement writes it through another Table object, which does not "
        "know that: the value would be stored as it is. Write through the model, or through its own table: "
        f"`insert(Model)`, `Model.__table__`, or `metadata.tables[{column.table.key!r}]`."
    )


def _stale_index(column: Column[Any]) -> StatementRefusedError:
    table = column.table
    return StatementRefusedError(
        f"A statement writes {table.name} through another Table object than the model's, and would leave its "
        f"blind index {column.name} out of step with the value. Write through the model or its own table; or "
        f"copy both columns of the row that has the value."
    )


def _move(column: Column[Any], decides: str) -> StatementRefusedError:
    table = column.table
    return StatementRefusedError(
        f"A statement writes {table.name}.{decides} through another Table object than the model's, and rows "
        f"that move to another owner or key would leave {column.name} encrypted for the former owner or key. "
        f"Load the objects and change them; or leave {decides} out of what the statement sets."
    )
