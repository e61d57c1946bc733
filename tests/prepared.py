"""What many tests start from is made once in a process: each later test has a copy of the database.

A copy takes a millisecond on SQLite and thirty on PostgreSQL, where tables and enrolled owners take some
hundred.
"""

import uuid
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from psycopg import sql
from sqlalchemy import URL, Engine, MetaData

T = TypeVar("T")

_made: dict[tuple[str, Hashable], tuple[Any, Any]] = {}
_templates: list[str] = []
left_over: set[str] = set()
"""The address of the database, while what an earlier test left is in it."""


def tables_of(metadata: MetaData, engine: Engine) -> None:
    """The tables of models that live as long as the process, in a database that is still empty."""
    prepared(engine, metadata, lambda: metadata.create_all(engine))


def prepared(engine: Engine, key: Hashable, make: Callable[[], T]) -> T:
    """What a function makes in a database that is still empty, and what it returns: plain values, that hold
    for each copy.

    Args:
        engine: on an SQLite file or on the PostgreSQL database of this test process.
        key: what it is known by, with the kind of database.
        make: leaves no transaction open.
    """
    postgres = engine.dialect.name == "postgresql"
    file = Path(engine.url.database or "")
    known = _made.get((engine.dialect.name, key))
    if known is not None:
        copy, result = known
        engine.dispose()
        if postgres:
            _replace(engine.url, copy)
        else:
            file.write_bytes(copy)
        return result  # type: ignore[no-any-return]
    result = make()
    engine.dispose()
    _made[engine.dialect.name, key] = _template_of(engine.url) if postgres else file.read_bytes(), result
    return result


def drop_templates(database: URL) -> None:
    """Leave no copy on a server that goes on running."""
    with _beside(database) as connection:
        for name in _templates:
            connection.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(name)))
    _templates.clear()


def _template_of(database: URL) -> str:
    name = f"envelope_{uuid.uuid4().hex}"
    with _beside(database) as connection:
        _copy(connection, str(database.database), name)
    _templates.append(name)
    return name


def _replace(database: URL, template: str) -> None:
    left_over.clear()
    with _beside(database) as connection:
        old = sql.Identifier(str(database.database))
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(old))
        _copy(connection, template, str(database.database))


def _copy(connection: "psycopg.Connection[Any]", source: str, target: str) -> None:
    names = sql.Identifier(target), sql.Identifier(source)
    connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY").format(*names))


def _beside(database: URL) -> "psycopg.Connection[Any]":
    """A connection to another database of the same server."""
    address = database.set(drivername="postgresql", database="postgres")
    return psycopg.connect(address.render_as_string(hide_password=False), autocommit=True)
