"""In which schema a connection finds a table that names none: `SET search_path`, `SET ROLE` and `USE` change
it.

Only the database knows: a name of a search path may not exist, may not hold the table, or may be the role's
own. So the database is asked. Its answer holds until a statement that may change it is sent, or until the
driver reports another search path (PostgreSQL 18 reports it). A plain SELECT, INSERT, UPDATE or DELETE
changes nothing, unless it calls a function that is not known here. What an application sends past SQLAlchemy,
on the driver's own cursor, is not seen; where a pool has listeners that may do so, an answer holds for one
transaction.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary, ref

from sqlalchemy import Table

from sqlalchemy_envelope.orm.tables.cascades import in_greenlet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import Connection, Dialect

_NOTES = "sqlalchemy_envelope"
"""The key in `Connection.info`, which stays with the driver's connection in the pool."""
_ASKS = frozenset({"postgresql", "mysql", "mariadb"})
# Hexadecimal: drivers differ in what they make of a quote or a percent sign.
_SCHEMA_OF = (
    "(SELECT n.nspname FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n "
    "ON n.oid = c.relnamespace "
    "WHERE c.oid = to_regclass(quote_ident(convert_from(decode('NAME', 'hex'), 'UTF8'))))"
)
_MAX_TEXT = 10_000
"""Longer text is not kept in memory, but read each time."""


class _Known(NamedTuple):
    """An answer of the database.

    Attributes:
        schemas: what `default_schema` found for tables of these names.
        path: the search path that the driver reported then; None if it reports none.
        transaction: the transaction in which the answer holds; None if it holds until a change.
    """

    schemas: dict[tuple[str, ...], str]
    path: str | None
    transaction: Callable[[], Any] | None


@dataclass(slots=True)
class _SchemaNotes:
    """What is noted on a driver's connection.

    Attributes:
        known: what the database answered; None if it is to be asked.
        changed: the transaction in which a statement may have changed the answer; gives None outside of one.
    """

    known: _Known | None = None
    changed: Callable[[], Any] | None = None


_last: WeakKeyDictionary[Connection, dict[tuple[str, ...], str]] = WeakKeyDictionary()
"""The last answers: a closed connection answers nothing more, and the objects of its session are still
asked."""


def may_differ(dialect: Dialect) -> bool:
    """Whether connections of one engine may find tables in different schemas."""
    return dialect.name in _ASKS


def default_schema(connection: Connection, tables: tuple[str, ...]) -> str:
    """The schema in which this connection finds tables of these names; a name for all schemas, where they
    differ."""
    default = connection.dialect.default_schema_name or ""
    if not may_differ(connection.dialect):
        return default
    if connection.closed or connection.invalidated:
        return _last.get(connection, {}).get(tables, default)
    known = _known(connection)
    found = None if known is None else known.schemas.get(tables)
    if found is None and connection.dialect.is_async and not in_greenlet():
        # An attribute is read where no statement can be awaited. Nothing is written here.
        return _last.get(connection, {}).get(tables, default)
    if found is None:
        found, are_there = _asked(connection, tables)
        known = _known(connection) or _note(connection)
        if are_there:  # a table that is not there may be created at any time
            known.schemas[tables] = found
    assert known is not None  # noqa: S101 - where nothing is known, it was asked
    if _last.get(connection) is not known.schemas:
        _last[connection] = known.schemas
    return found


def schema_of(connection: Connection, table: Any, options: Mapping[str, Any] | None = None) -> str:
    """The schema in which a statement with these execution options finds a table. A lightweight `table()`
    is not translated."""
    options = connection.get_execution_options() if options is None else options
    translate: Any = options.get("schema_translate_map") if isinstance(table, Table) else None
    schema: str | None = translate.get(table.schema, table.schema) if translate else table.schema
    return schema or default_schema(connection, (str(table.name),))


def schemas_beside(
    connection: Connection, table: Any, schema: str, other: Any, options: Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    """Where to look for another table if the first table is in this schema. The schema need not be the
    model's: each tenant's schema has both tables."""
    if other.schema == table.schema:
        return (schema,)
    own = schema_of(connection, other, options)
    return (own,) if other.schema is not None else (schema, own)


def on_statement(connection: Connection, sql: Any, compiled: Any) -> bool:
    """A statement is about to be sent. If it may change where tables are found, forget the answers; tells
    whether it may. A compiled statement may do so each time, or never."""
    if not may_differ(connection.dialect):
        return False
    # What SQLAlchemy has compiled is the same text each time, without the values of an IN or of many rows.
    read = sql if compiled is None else compiled.string
    if not isinstance(read, str) or (_short_may_change if len(read) < _MAX_TEXT else may_change)(read):
        transaction = connection.get_transaction()
        changed = _nothing if transaction is None else ref(transaction)
        connection.info[_NOTES] = _SchemaNotes(None, changed)
        return True
    return False


def _nothing() -> None:
    """Stands for a weak reference to nothing."""


def _notes_on(connection: Connection) -> _SchemaNotes:
    info = connection.info
    notes: _SchemaNotes | None = info.get(_NOTES)
    if notes is None:
        notes = info[_NOTES] = _SchemaNotes()
    return notes


def _known(connection: Connection) -> _Known | None:
    """The answers that still hold."""
    notes = _notes_on(connection)
    root = connection.get_transaction()
    changed = notes.changed
    is_settled = changed is not None and changed is not _nothing and changed() is not root
    if root is not None and is_settled:
        # The transaction of the change has ended, by a commit or by a rollback that took the change back.
        notes.changed = notes.known = None
    known = notes.known
    if known is None or known.path != _reported(connection):
        return None
    if known.transaction is not None:
        holds_in = known.transaction()
        return known if holds_in is not None and holds_in is _innermost(connection) else None
    return None if _has_pool_listeners(connection) else known


def _note(connection: Connection) -> _Known:
    """A place for answers that hold from now on, for a transaction or until a change."""
    transaction: Callable[[], Any] | None = None
    notes = _notes_on(connection)
    if notes.changed is not None or _has_pool_listeners(connection):
        # A rollback takes `SET` back, also one to a savepoint.
        innermost = _innermost(connection)
        transaction = _nothing if innermost is None else ref(innermost)
    known = notes.known = _Known({}, _reported(connection), transaction)
    return known


def _innermost(connection: Connection) -> Any:
    return connection.get_nested_transaction() or connection.get_transaction()


def _has_pool_listeners(connection: Connection) -> bool:
    """Whether each checkout may run statements of which a connection's events do not tell."""
    listeners = connection.engine.pool.dispatch
    return bool(listeners.checkout or listeners.checkin or listeners.reset)


def _asked(connection: Connection, tables: tuple[str, ...]) -> tuple[str, bool]:
    """The schema of these tables and True; if one does not exist, a name for the search path and False."""
    if connection.dialect.name != "postgresql":
        return connection.exec_driver_sql("SELECT DATABASE()").scalar() or "", True
    schemas = [_SCHEMA_OF.replace("NAME", name.encode().hex()) for name in tables]
    query = ", ".join(["SELECT CAST(current_schemas(false) AS TEXT)", *schemas])
    path, *found = connection.exec_driver_sql(query).one()
    if None in found:
        return f"none of {path}", False
    return "\0".join(dict.fromkeys(found)), True


def _reported(connection: Connection) -> str | None:
    """The search path that the server reported to the driver; None if there is no such report."""
    if connection.dialect.name != "postgresql":
        return None
    driver: Any = connection.connection.driver_connection
    try:
        if hasattr(driver, "get_settings"):  # asyncpg
            return getattr(driver.get_settings(), "search_path", None)
        if hasattr(driver, "info"):  # psycopg
            found: str | None = driver.info.parameter_status("search_path")
            return found
        if hasattr(driver, "get_parameter_status"):  # psycopg2
            return str(found) if (found := driver.get_parameter_status("search_path")) is not None else None
    except Exception:  # noqa: BLE001 - a driver that does not say
        return None
    return None


# Which statements may change it


_NAME = r'"(?:[^"]|"")*"|`[^`]*`|[\w$]+'
_PLAIN = re.compile(r"[\s(]*(?:select|insert|update|delete|with|values|savepoint|release)\b", re.IGNORECASE)
_UNREADABLE = re.compile(r";\s*\S|/\*|--|(?<!insert\s)\binto\b", re.IGNORECASE)
_INSERT = re.compile(rf"\binsert\s+into\s+(?:{_NAME})(?:\.(?:{_NAME}))*\s*\(", re.IGNORECASE)
_CALL = re.compile(rf"(\bas\s+|\.)?({_NAME})\s*\(", re.IGNORECASE)
_WORDS = (
    # what stands before a bracket and is no function
    "all and any array as between bit by case char conflict distinct else end except exists filter float "
    "from group having in intersect is join key lateral like ilike limit materialized not nullif numeric "
    "decimal offset on or over partition returning row select set similar some then time timestamp union "
    "unique using values varchar when where with within "
    # functions that the databases bring along
    "abs array_agg array_length array_position avg btrim cardinality cast ceil ceiling char_length "
    "character_length coalesce concat concat_ws convert_from count cume_dist current_schema "
    "current_schemas database date date_part date_trunc decode dense_rank encode exp extract first_value "
    "floor format gen_random_uuid generate_series greatest group_concat hashtext ifnull initcap json_agg "
    "json_array_length json_build_object json_extract json_object_agg jsonb_agg jsonb_array_elements "
    "jsonb_array_length jsonb_build_object jsonb_object_agg lag last_value lead least left length ln log "
    "lower lpad ltrim make_date max md5 min mod now ntile octet_length percent_rank pg_advisory_lock "
    "pg_advisory_unlock pg_advisory_xact_lock pg_try_advisory_lock pg_try_advisory_xact_lock position "
    "power quote_ident random rank regexp_replace repeat replace reverse right round row_number rpad "
    "rtrim sign split_part sqrt string_agg strpos substr substring sum to_char to_date to_json to_jsonb "
    "to_number to_regclass to_timestamp to_tsquery to_tsvector plainto_tsquery websearch_to_tsquery "
    "ts_rank translate trim trunc unnest upper uuid nextval currval setval lastval version"
)
_HARMLESS = frozenset(_WORDS.split())


def may_change(sql: str) -> bool:
    """Whether a statement may change where tables are found, judged by its text."""
    if not _PLAIN.match(sql) or _UNREADABLE.search(sql):
        return True
    return any(
        prefix == "." or (not prefix and name.lower() not in _HARMLESS)
        for prefix, name in _CALL.findall(_INSERT.sub("values (", sql))
    )


_short_may_change = lru_cache(maxsize=512)(may_change)
