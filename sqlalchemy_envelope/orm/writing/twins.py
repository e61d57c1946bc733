"""Twins: other `Table` objects of a table with encrypted columns, whether reflected, written `table("notes",
column("body"))`, or made by the bulk inserts of Alembic and pandas. A twin does not know that a column is
encrypted.

Twins are recognised by name, in whichever schema: a tenant's schema has what the model's has. A table of
another database or schema may have the same name. So the database is asked, once for each engine, schema and
table (`answers`), whether the column holds bytes and the owner's keys are stored beside it. Stored bytes
pass: a program that copies rows has them.

The columns that a statement names are looked at with their values, before it is compiled. The columns that
SQLAlchemy adds when it compiles, by `default=` and `onupdate=`, are looked at afterwards.
"""

from __future__ import annotations

from types import NoneType
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from sqlalchemy import Column, Insert, Table, inspect
from sqlalchemy.sql.elements import BindParameter, ClauseElement, ColumnClause, Null
from sqlalchemy.sql.selectable import ScalarSelect, TableClause, TextualSelect

from sqlalchemy_envelope.crypto.aead import check_value
from sqlalchemy_envelope.exceptions import (
    ConfigurationError,
    FormatError,
    StatementRefusedError,
    TruncatedError,
)
from sqlalchemy_envelope.orm.columns.encrypted_type import EncryptedType
from sqlalchemy_envelope.orm.columns.plans import plan_of_table
from sqlalchemy_envelope.orm.columns.previous import previous_of
from sqlalchemy_envelope.orm.tables.default_schema import schema_of, schemas_beside
from sqlalchemy_envelope.orm.tables.python_types import python_type_of
from sqlalchemy_envelope.orm.tables.watched import watch_name
from sqlalchemy_envelope.orm.writing.answers import answer, is_temporary, keep_answer
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

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from sqlalchemy import Connection
    from sqlalchemy.engine import Inspector

    Options = Mapping[str, Any]

_by_name: dict[str, WeakSet[Table]] = {}


def note_table(table: Table) -> None:
    """Remember the name of a table with encrypted columns."""
    _by_name.setdefault(table.name.lower(), WeakSet()).add(table)
    watch_name(table)


def check_twin(
    connection: Connection, target: Any, statement: Any, multiparams: Any, params: Any, options: Options
) -> bool:
    """Refuse to write anything but stored bytes into an encrypted column, or to move a row away from its
    value; tells whether the twin has such a column at all.

    Raises:
        StatementRefusedError: the statement would store plaintext, or move rows to another owner.
    """
    names = _encrypted_names(connection, target, options)
    if not names:
        return False
    rows = multiparams or ([params] if params else [])
    for key, value in _written(statement, rows):
        name = _column_name(target, key)
        if name not in names or _is_stored(target, name, value):
            continue
        if _is_here(connection, target, name, options):
            raise _refusal(target, names[name])
    _refuse_moves(connection, target, _changed(statement, target, rows), options)
    return True


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
    names = _encrypted_names(connection, target, options)
    for name in written:
        if name in names and _is_here(connection, target, name, options):
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
    written = _known_in(target) | changed  # with a stored value, which a program copies with its row
    for table in _namesakes(connection, target, options):
        for name, column in _encrypted_in(table).items():
            for decides in () if name in written else _decided_by(column):
                if decides.lower() in changed and _is_here(connection, target, name, options):
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


def is_twin(target: Any) -> bool:
    """Whether a table without encrypted columns has the name of a table with some."""
    name = getattr(target, "name", None)
    return isinstance(target, TableClause) and name is not None and name.lower() in _by_name


def unknown_columns(target: Any) -> set[str]:
    """The columns that a namesake of this table has encrypted and this table has not, by their names in the
    database. The namesake may be in any schema."""
    name = getattr(target, "name", None)
    tables = tuple(_by_name.get(name.lower(), ())) if name is not None else ()
    others = [table for table in tables if table is not target]
    return {name for table in others for name in _encrypted_in(table)} - _known_in(target)


def _encrypted_names(connection: Connection, target: Any, options: Options) -> dict[str, Column[Any]]:
    """The columns that a namesake has encrypted, and this table has not."""
    own = _known_in(target)
    return {
        name: column
        for table in _namesakes(connection, target, options)
        for name, column in _encrypted_in(table).items()
        if name not in own
    }


def _namesakes(connection: Connection, target: Any, options: Options) -> list[Table]:
    """The other tables with encrypted columns that have this name. A table with encrypted columns of its own
    knows what is encrypted in its schema: then namesakes of another schema do not count."""
    others = [table for table in tuple(_by_name.get(target.name.lower(), ())) if table is not target]
    if not others or not _encrypted_in(target):
        return others
    schema = schema_of(connection, target, options)
    return [table for table in others if schema_of(connection, table, options) == schema]


def _known_in(table: Any) -> set[str]:
    """The columns that a table knows as encrypted, or as the previous column of an encrypted one."""
    encrypted = _encrypted_in(table)
    previous = [previous_of(column) for column in encrypted.values()]
    return encrypted.keys() | {column.name.lower() for column in previous if column is not None}


def _encrypted_in(table: Any) -> dict[str, Column[Any]]:
    return {column.name.lower(): column for column in table.columns if isinstance(column.type, EncryptedType)}


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
    return hash(table) == hash(target) or name in _encrypted_in(table)  # an annotated copy has the same hash


def _is_here(connection: Connection, target: Any, name: str, options: Options) -> bool:
    """Whether a statement reaches the table with the encrypted column, and not only a table of its name."""
    schema = schema_of(connection, target, options)
    keys = _key_tables(connection, target, schema, name, options)
    question = (schema, target.name.lower(), name, *sorted(keys.keys()))
    known = answer(connection, question)
    if known is False:
        return False
    if target.schema is None and is_temporary(connection, target):
        return False  # not kept: it may be dropped, and the table behind it is another
    if known is True:
        return True
    is_here = _look(connection, target, schema, name, keys.values())
    if is_here is None:
        key_tables = [key for key, _ in keys.values()]
        return connection.dialect.name == "sqlite" and _is_attached(connection, target, name, key_tables)
    keep_answer(connection, question, is_here)
    return is_here


def _is_attached(connection: Connection, target: Any, name: str, keys: Sequence[Table]) -> bool:
    """Whether SQLite finds the table in an attached file, where it looks for a name without a schema."""
    schemas = inspect(connection).get_schema_names()
    return any(_look(connection, target, file, name, [(key, file) for key in keys]) for file in schemas)


def _look(
    connection: Connection, target: Any, schema: str, name: str, keys: Iterable[tuple[Table, str]]
) -> bool | None:
    """Whether a schema has the column as bytes and the keys beside it; None if the table does not exist."""
    inspector = inspect(connection)
    columns = _columns_here(inspector, target.name, schema)
    if columns is None:
        return None
    types = [column["type"] for column in columns if column["name"].lower() == name]
    if not any(python_type_of(type_) is bytes for type_ in types):
        return False
    return any(_stores_keys(inspector, table, there) for table, there in keys)


def _stores_keys(inspector: Inspector, table: Table, schema: str) -> bool:
    """Whether this is a table of keys here too: another table may use its name."""
    names = {column["name"].lower() for column in _columns_here(inspector, table.name, schema) or ()}
    return all(column.name.lower() in names for column in table.primary_key)


def _columns_here(inspector: Inspector, name: str, schema: str | None) -> Sequence[Any] | None:
    """The columns of a table, as the database describes them; None if the table does not exist."""
    # `has_table` first: SQLite raises for the columns of a table in a database that is not attached.
    return inspector.get_columns(name, schema=schema) if inspector.has_table(name, schema=schema) else None


def _key_tables(
    connection: Connection, target: Any, schema: str, name: str, options: Options
) -> dict[tuple[str, str], tuple[Table, str]]:
    """The tables of the keys that encrypt a column and the schemas in which they may be, by the names of
    both."""
    return {
        (key.name, there): (key, there)
        for table in _namesakes(connection, target, options)
        for key in _keys_of(table, name)
        for there in schemas_beside(connection, table, schema, key, options)
    }


def _keys_of(table: Table, name: str) -> list[Table]:
    try:
        plan = plan_of_table(table)
    except ConfigurationError:
        return []  # nothing can be encrypted in it, and its own statements say why
    columns = () if plan is None else plan.columns
    encrypted = [each for each in columns if each.column.name.lower() == name]
    # The classes of a registry that was disposed of have no tables any more.
    classes = [owner_class.key_class for each in encrypted for owner_class in each.path.owner_classes]
    tables = [getattr(key_class, "__table__", None) for key_class in classes]
    return [table for table in tables if table is not None]


def _refusal(target: Any, column: Column[Any]) -> StatementRefusedError:
    where = f"{column.table.name}.{column.name}"
    return StatementRefusedError(
        f"{where} is encrypted, and this statement writes it through another Table object, which does not "
        "know that: the value would be stored as it is. Write through the model, or through its own table: "
        f"`insert(Model)`, `Model.__table__`, or `metadata.tables[{column.table.key!r}]`."
    )


def _move(column: Column[Any], decides: str) -> StatementRefusedError:
    table = column.table
    return StatementRefusedError(
        f"A statement writes {table.name}.{decides} through another Table object than the model's, and rows "
        f"that move to another owner or key would leave {column.name} encrypted for where it was. Load the "
        f"objects and change them; or leave {decides} out of what the statement sets."
    )
