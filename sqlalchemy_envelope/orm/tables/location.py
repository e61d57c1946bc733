"""Where the rows of an owner class are: in which database, and in which of its schemas.

Primary keys repeat: every tenant's database and schema has a user 1. So an owner's name in memory begins with
its location, and keys that are open for one location serve no other.

`databases` distinguishes databases. The schema is the one that a statement reaches: `schema_translate_map`
translates it, or the database finds the owner's table and the table of its keys there.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import ref

from sqlalchemy import Connection, Engine

from sqlalchemy_envelope.crypto.context import encode_context
from sqlalchemy_envelope.orm.tables.binds import bind_for
from sqlalchemy_envelope.orm.tables.connections import connection_of
from sqlalchemy_envelope.orm.tables.databases import database_name
from sqlalchemy_envelope.orm.tables.default_schema import default_schema, may_differ
from sqlalchemy_envelope.orm.tables.owners import LOCATION_SIZE, Location, owner_class_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import Table
    from sqlalchemy.orm import Mapper, Session

    from sqlalchemy_envelope.keys.row_seals import Realm
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass


def location_of(session: Session, mapper: Mapper[Any], realm: Realm) -> Location:
    """Where a session has the owners of a class.

    Raises:
        ConfigurationError: the session spreads one class over several databases.
    """
    bind = bind_of(session, mapper)
    engine = bind.engine
    connection = bind if isinstance(bind, Connection) else connection_of(session, engine)
    options = (connection or engine).get_execution_options()
    return _location(engine, connection, mapper, realm, options.get("schema_translate_map"))


def location_on(
    connection: Connection,
    mapper: Mapper[Any],
    realm: Realm,
    options: Mapping[str, Any] | None = None,
) -> Location:
    """Where a statement on this connection, with these execution options, finds the owners of a class."""
    options = connection.get_execution_options() if options is None else options
    translate = options.get("schema_translate_map")
    return _location(connection.engine, connection, mapper, realm, translate)


def schema_on(connection: Connection, mapper: Mapper[Any]) -> str:
    """The schema in which this connection finds the owners of a class."""
    translate = connection.get_execution_options().get("schema_translate_map")
    return _schema(connection.engine, connection, mapper, translate)


def location_of_table(
    connection: Connection, table: Table, realm: Realm, options: Mapping[str, Any] | None = None
) -> bytes:
    """A table's name in memory: where a statement on this connection, with these execution options, finds it.
    Tables of one schema may have indexes of one label, and each has keys of its own."""
    options = connection.get_execution_options() if options is None else options
    translate = options.get("schema_translate_map")
    schema = _schema_of(connection.engine, connection, table, translate)
    return _name(database_name(connection.engine, realm), schema) + table.name.encode()


class _Found(NamedTuple):
    """A location, and what was asked: the realm, the translation of schemas, and whether a listener chooses
    the database."""

    engine: Callable[[], Engine | None]
    asked: tuple[Realm, Any, bool]
    location: Location


class LastLocation:
    """Where a statement last found the owners of a class: most statements find them there again."""

    __slots__ = ("_found", "_owner_class")

    def __init__(self, owner_class: OwnerClass) -> None:
        self._owner_class = owner_class
        self._found: _Found | None = None

    def on(self, connection: Connection, realm: Realm, options: Mapping[str, Any]) -> Location:
        """As `location_on`."""
        engine, translate = connection.engine, options.get("schema_translate_map")
        chosen = bool(engine.dialect.dispatch.do_connect)  # a listener may be added at any time
        found = self._found
        if found is not None and found.engine() is engine and found.asked == (realm, translate, chosen):
            return found.location
        location = location_on(connection, self._owner_class.mapper, realm, options)
        if not may_differ(engine.dialect):
            asked = realm, translate and dict(translate), chosen
            self._found = _Found(ref(engine), asked, location)
        return location


def bind_of(session: Session, mapper: Mapper[Any]) -> Engine | Connection:
    """The database to which a session writes a class. Where it only reads, it may use a replica of that
    database.

    Raises:
        ConfigurationError: as `location_of`.
    """
    return session.get_bind(**bind_for(session, mapper))


def _location(
    engine: Engine,
    connection: Connection | None,
    mapper: Mapper[Any],
    realm: Realm,
    translate: Mapping[str | None, str | None] | None,
) -> Location:
    return _name(database_name(engine, realm), _schema(engine, connection, mapper, translate))


def _schema(
    engine: Engine,
    connection: Connection | None,
    mapper: Mapper[Any],
    translate: Mapping[str | None, str | None] | None,
) -> str:
    table: Any = mapper.local_table
    return _schema_of(engine, connection, table, translate)


def _schema_of(
    engine: Engine,
    connection: Connection | None,
    table: Table,
    translate: Mapping[str | None, str | None] | None,
) -> str:
    schema: str | None = table.schema
    if translate and schema in translate:
        schema = translate[schema]
    if schema is None and connection is not None and may_differ(engine.dialect):
        schema = default_schema(connection, _tables(table))
    elif schema is None:
        schema = engine.dialect.default_schema_name or ""
    return schema


@lru_cache(maxsize=4096)  # asked for each result; a tenant is a schema or a database
def _name(database: str, schema: str) -> Location:
    named = encode_context("location", database.encode(), schema.encode())
    return sha256(named).digest()[:LOCATION_SIZE]


def _tables(table: Table) -> tuple[str, ...]:
    """The names of an owner class's tables: its own, and the table of its keys."""
    owner_class = owner_class_of(table)
    if owner_class is None or owner_class.key_class is None:
        return (table.name,)
    return table.name, owner_class.key_class.__table__.name
