"""Where the rows of an owner class lie: in which database, and in which schema of it.

Primary keys repeat: every tenant's database and schema has a user 1. So an owner's name in memory begins with
its location, and keys that are open for one location serve no other.

A database is told apart by the name that the application gives it (`Envelope(realm=...)`), else by the URL of
its engine. A schema is the one that a statement reaches: translated by `schema_translate_map`, or the first
in the connection's `search_path`.
"""

from __future__ import annotations

from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine

from sqlalchemy_envelope.crypto.context import encode_context
from sqlalchemy_envelope.orm.tables.binds import bind_for
from sqlalchemy_envelope.orm.tables.connections import connection_of
from sqlalchemy_envelope.orm.tables.default_schema import default_schema

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import URL
    from sqlalchemy.engine import Dialect
    from sqlalchemy.orm import Mapper, Session

    from sqlalchemy_envelope.keys.row_seals import Realm


Location = bytes
"""16 bytes that stand for a database and a schema in it."""
LOCATION_SIZE = 16
_numbers = count(1)
_names: WeakKeyDictionary[Dialect, str] = WeakKeyDictionary()


def location_of(session: Session, mapper: Mapper[Any], realm: Realm) -> Location:
    """Where a session keeps the owners of a class.

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


def bind_of(session: Session, mapper: Mapper[Any]) -> Engine | Connection:
    """The database that a session writes a class to: one that only reads may be a replica of it.

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
    table: Any = mapper.local_table
    schema = table.schema
    if translate and schema in translate:
        schema = translate[schema]
    if schema is None:
        schema = default_schema(connection) if connection is not None else ""
    elif schema == engine.dialect.default_schema_name:
        schema = ""
    named = encode_context("location", database_name(engine, realm).encode(), schema.encode())
    return sha256(named).digest()[:LOCATION_SIZE]


def database_name(engine: Engine, realm: Realm) -> str:
    """The name of an engine's database: the application's, else one made of its URL."""
    if realm is not None:
        return f"realm {realm if isinstance(realm, str) else realm(engine)}"
    dialect = engine.dialect
    known = _names.get(dialect)
    if known is None:
        # What a URL does not tell from others, in memory or opened by a function, is told by its engine.
        name = f"url {_address(engine.url)}" if _is_told(engine.url) else f"engine {next(_numbers)}"
        known = _names[dialect] = name
    return known


def _is_told(url: URL) -> bool:
    if url.get_backend_name() == "sqlite":
        return (
            bool(url.database)
            and ":memory:" not in str(url.database)
            and "mode=memory" not in str(url.database)
        )
    return bool(url.host or url.database or url.query)


def _address(url: URL) -> str:
    """Host, port and database, without driver, user and options: several roles and drivers reach one
    database."""
    database = url.database or ""
    if url.get_backend_name() == "sqlite":
        path = database.removeprefix("file:").partition("?")[0]
        return f"sqlite {Path(path).resolve()}"
    host = url.host or url.query.get("host") or ""
    port = url.port or url.query.get("port") or ""
    return f"{url.get_backend_name()} {host}:{port}/{database or url.query.get('dbname') or ''}"
