"""Which database an engine reaches, by a name in memory: two engines with one name share what is unlocked.

The application names the database (`Envelope(realm=...)`). Otherwise two engines reach one database if they
name the same host, port and database, in the URL or in `connect_args`. An engine that chooses by a function,
`creator=` or a `do_connect` listener, names nothing: it counts as a database of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from inspect import getclosurevars
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy_envelope.keys.row_seals import realm_name

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.engine import Dialect

    from sqlalchemy_envelope.keys.row_seals import Realm

_numbers = count(1)


class _Names(NamedTuple):
    """The names of an engine's database: by its address, if that is known, and by a number."""

    by_address: str
    by_number: str


_names: WeakKeyDictionary[Dialect, _Names] = WeakKeyDictionary()
"""By an engine's dialect, which `engine.execution_options()` shares."""
_ADDRESS = frozenset(
    {
        "host",
        "hostaddr",
        "port",
        "database",
        "service",
        "servicefile",
        "unix_socket",
        "read_default_file",
        "read_default_group",
        "options",
    }
)
_SAME = {"dbname": "database", "db": "database"}
_WHOLE = frozenset({"dsn", "conninfo"})
"""Arguments that are a whole address by themselves, and may hold a password."""
_SETTINGS = re.compile(r"(?:\s*(?:-c\s*|--)[\w.]+=(?:\\.|[^\s\\])*)*\s*")
"""`options` that set parameters of a PostgreSQL session. Other `options` may choose a database behind a
proxy."""


def database_name(engine: Engine, realm: Realm) -> str:
    """The name of an engine's database."""
    if realm is not None:
        return f"realm {realm_name(realm, engine)}"
    dialect = engine.dialect
    known = _names.get(dialect)
    if known is None:
        number = f"engine {next(_numbers)}"
        known = _names[dialect] = _Names(_address(engine) or number, number)
    # A listener may be added at any time.
    return known.by_number if dialect.dispatch.do_connect else known.by_address


def _address(engine: Engine) -> str | None:
    """The address of an engine's database, without driver, user and password: several roles and drivers
    reach one database. None if the engine does not say enough."""
    arguments = _arguments(engine)
    if arguments is None or arguments.keys() & _WHOLE:
        return None
    if engine.url.get_backend_name() == "sqlite":
        return _file(engine.url.database or "")
    parts = _parts(engine, arguments)
    if parts.keys() <= {"port", "options"}:
        return None
    named = sorted(f"{name}={value}" for name, value in parts.items())
    return f"url {engine.url.get_backend_name()} {' '.join(named)}"


def _parts(engine: Engine, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of the address that the URL and the driver's arguments name."""
    parts: dict[str, Any] = {
        "host": engine.url.host,
        "port": engine.url.port,
        "database": engine.url.database,
    }
    for name, value in (*engine.url.query.items(), *arguments.items()):
        part = _SAME.get(name, name)
        is_settings = part == "options" and isinstance(value, str) and _SETTINGS.fullmatch(value)
        if part in _ADDRESS and not is_settings:
            parts[part] = value
    return {name: value for name, value in parts.items() if value}


def _file(database: str) -> str | None:
    """The file of an SQLite URL; None for a database in memory."""
    if not database or ":memory:" in database or "mode=memory" in database:
        return None
    return f"url sqlite {Path(database.removeprefix('file:').partition('?')[0]).resolve()}"


def _arguments(engine: Engine) -> Mapping[str, Any] | None:
    """What an engine passes to its driver beside its URL, `connect_args` as a rule. None if the application
    opens connections itself.

    SQLAlchemy keeps these arguments only in a function of its own, which an engine without another `creator`
    calls.
    """
    creator: Any = getattr(engine.pool, "_creator", None)
    if getattr(creator, "__module__", None) != "sqlalchemy.engine.create":
        return None
    found = getclosurevars(creator).nonlocals.get("cparams")
    if not isinstance(found, Mapping):
        return None
    _, by_url = engine.dialect.create_connect_args(engine.url)
    return {name: value for name, value in found.items() if name not in by_url or by_url[name] != value}
