"""The databases and the log capture that tests ask for by name.

SQLite is a file in the test's own folder. PostgreSQL is one server per test process, started when the first
test wants it, its database emptied after each; `pytest --postgresql-host=localhost` uses a server that runs
already. Tests that need PostgreSQL carry the marker `backend`: `pytest -m "not backend"` leaves them out.
"""

import gc
import io
import logging
import os
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from weakref import WeakSet

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from psycopg import sql
from pytest_postgresql.config import get_config
from pytest_postgresql.janitor import DatabaseJanitor
from sqlalchemy import URL, Engine, Pool, create_engine, event, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tests.prepared import drop_templates, left_over

BOTH_DATABASES = ["sqlite", pytest.param("postgres", marks=pytest.mark.backend)]
BOTH_ASYNC_DRIVERS = ["aiosqlite", pytest.param("asyncpg", marks=pytest.mark.backend)]

# A shared machine is slow now and then; that is no finding about the code.
UNHURRIED: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("some", max_examples=25, **UNHURRIED)
settings.register_profile("all", max_examples=100, **UNHURRIED)


_connections: WeakSet[psycopg.Connection[Any]] = WeakSet()


@event.listens_for(Pool, "connect")
def _on_connect(connection: Any, _: object) -> None:
    """SQLite files of tests are written without fsync, which saves from a power cut and not from a kill.
    Connections to PostgreSQL are remembered, so that none outlives its test; the first of a test empties the
    database."""
    if isinstance(connection, psycopg.Connection):
        _connections.add(connection)
        _empty(connection.info.backend_pid)
    elif "asyncpg" in type(connection).__module__:
        _empty(connection.driver_connection.get_server_pid())
    elif "psycopg" in type(connection).__module__:
        _empty(connection.driver_connection.info.backend_pid)
    elif "sqlite" in type(connection).__module__:
        cursor = connection.cursor()
        cursor.execute("PRAGMA synchronous = OFF")
        cursor.close()


def pytest_configure(config: pytest.Config) -> None:
    """So many examples of a property, where a test does not say how many."""
    settings.load_profile("all" if config.getoption("all") else "some")


@pytest.fixture(autouse=True, scope="module")
def _what_lives_stays() -> None:
    """What is alive when a file of tests begins stays to the end: neither the garbage collector nor a test
    that looks through the memory for what is new there goes over it again."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that ask for PostgreSQL itself; a parametrised fixture marks its own parameter."""
    for item in items:
        if "postgres_database" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.backend)


EveryNth = Callable[[int, Sequence[Any]], Sequence[Any]]


@pytest.fixture(scope="session")
def every_nth(pytestconfig: pytest.Config) -> EveryNth:
    """Of cases that are much alike each n-th, and the last; all of them with `--all`."""

    def chosen(n: int, cases: Sequence[Any]) -> Sequence[Any]:
        return cases if pytestconfig.getoption("all") else [*cases[:-1:n], *cases[-1:]]

    return chosen


@pytest.fixture
def sqlite_url(tmp_path: Path) -> URL:
    """The address of an SQLite file that does not exist yet."""
    return make_url(f"sqlite:///{tmp_path / 'test.db'}")


@pytest.fixture
def sqlite_engine(sqlite_url: URL) -> Iterator[Engine]:
    """A fresh SQLite file whose foreign keys are enforced."""
    from sqlalchemy_envelope import enforce_foreign_keys

    engine = create_engine(sqlite_url)
    enforce_foreign_keys(engine)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def postgres_database(request: pytest.FixtureRequest) -> Iterator[URL]:
    """A database of this test process, on the server that the command line names or on one started here."""
    with ExitStack() as stack:
        if request.config.getoption("postgresql_host"):
            named = get_config(request)
            user, password, host, port = named.user, named.password, named.host, str(named.port or 5432)
        else:
            from tests.throwaway_postgres import throwaway_postgres

            user, password, port = "postgres", None, "5432"
            host = str(stack.enter_context(throwaway_postgres()))
        name = f"envelope_{uuid.uuid4().hex}"
        stack.enter_context(DatabaseJanitor(user=user, password=password, host=host, port=port, dbname=name))
        # As a query, because a host may be the folder of a socket.
        url = URL.create("postgresql", user, password, database=name, query={"host": host, "port": port})
        stack.callback(drop_templates, url)
        yield url


@pytest.fixture
def used_postgres(postgres_database: URL) -> Iterator[URL]:
    """The address of the PostgreSQL database as the last test left it: `tests.prepared` puts another in its
    place, or the first connection of an engine empties it."""
    yield postgres_database
    for connection in tuple(_connections):
        connection.close()
    left_over.add(postgres_database.render_as_string(hide_password=False))


@pytest.fixture
def postgres_url(used_postgres: URL) -> URL:
    """The address of an empty PostgreSQL database."""
    _empty()
    return used_postgres


@pytest.fixture
def postgres_engine(used_postgres: URL) -> Iterator[Engine]:
    """An empty PostgreSQL database, through psycopg."""
    engine = create_engine(used_postgres.set(drivername="postgresql+psycopg"))
    yield engine
    engine.dispose()


@pytest.fixture
def mariadb_engine() -> Iterator[Engine]:
    """An empty MariaDB database, on the server that `ENVELOPE_MARIADB_URL` names
    (`mysql+pymysql://root@127.0.0.1/`)."""
    address, name = os.environ.get("ENVELOPE_MARIADB_URL"), "envelope_tests"
    if not address:
        pytest.skip("ENVELOPE_MARIADB_URL names no server")
    server = create_engine(address)
    with server.begin() as connection:
        connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {name}")
        connection.exec_driver_sql(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    engine = create_engine(server.url.set(database=name))
    yield engine
    for one in (engine, server):
        one.dispose()


def _empty(first_pid: int = 0) -> None:
    """Emptying takes a few milliseconds where making a database anew takes two hundred."""
    if not left_over:
        return
    address = left_over.pop()
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid NOT IN (pg_backend_pid(), %s)",
            [first_pid],
        )
        schemas = connection.execute(
            "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'"
        ).fetchall()
        for (schema,) in schemas:
            connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
        connection.execute("CREATE SCHEMA public")


@pytest.fixture
def postgres_dump(postgres_url: URL) -> Callable[[], str]:
    """A function that gives the whole PostgreSQL database as pg_dump prints it, bytes in hexadecimal."""
    from tests.throwaway_postgres import BINARIES

    def dump() -> str:
        address = postgres_url.render_as_string(hide_password=False)
        return subprocess.run(
            [BINARIES / "pg_dump", address], check=True, capture_output=True, text=True
        ).stdout

    return dump


@pytest.fixture(params=BOTH_DATABASES)
def engine(request: pytest.FixtureRequest) -> Engine:
    """The same test on SQLite and on PostgreSQL."""
    chosen: Engine = request.getfixturevalue(f"{request.param}_engine")
    return chosen


@pytest.fixture(params=BOTH_ASYNC_DRIVERS)
def async_url(request: pytest.FixtureRequest) -> URL:
    """The address of a fresh database on SQLite and on PostgreSQL, for their asyncio drivers."""
    if request.param == "aiosqlite":
        sqlite: URL = request.getfixturevalue("sqlite_url")
        return sqlite.set(drivername="sqlite+aiosqlite")
    postgres: URL = request.getfixturevalue("postgres_url")
    return postgres.set(drivername="postgresql+asyncpg")


@pytest.fixture
async def async_engine(async_url: URL) -> AsyncIterator[AsyncEngine]:
    """The same test on SQLite and on PostgreSQL, through their asyncio drivers."""
    from sqlalchemy_envelope import enforce_foreign_keys

    engine = create_async_engine(async_url)
    if engine.dialect.name == "sqlite":
        enforce_foreign_keys(engine.sync_engine)
    yield engine
    await engine.dispose()


class LogCapture:
    """Everything that was logged since the fixture was set up, at every level, by every logger."""

    def __init__(self) -> None:
        self._stream = io.StringIO()
        self.handler = logging.StreamHandler(self._stream)
        # The arguments too: a handler that ships structured records sends them as they are.
        self.handler.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s %(args)r"))

    @property
    def text(self) -> str:
        return self._stream.getvalue()


@pytest.fixture
def capture_logs() -> Iterator[LogCapture]:
    """All log output as one text, SQLAlchemy's echo of statements, parameters and result rows included."""
    capture = LogCapture()
    root = logging.getLogger()
    known = [item for item in root.manager.loggerDict.values() if isinstance(item, logging.Logger)]
    before = [(logger, logger.level, logger.disabled, logger.propagate) for logger in (root, *known)]
    for logger in (root, *known):
        # A level set on a logger hides what its parents would show: SQLAlchemy sets one when it is imported.
        logger.setLevel(logging.DEBUG)
        logger.disabled, logger.propagate = False, True
    root.addHandler(capture.handler)
    yield capture
    root.removeHandler(capture.handler)
    for logger, level, disabled, propagate in before:
        logger.setLevel(level)
        logger.disabled, logger.propagate = disabled, propagate
