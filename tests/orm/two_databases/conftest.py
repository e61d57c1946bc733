"""Pairs of databases: two SQLite files, and PostgreSQL with an SQLite file, in both orders."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine, func, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from sqlalchemy_envelope import EnvelopeError, enforce_foreign_keys
from tests.orm.two_databases.split_models import Base, Share, User, envelope, second, sessions_on

PAIRS = [
    "sqlite, sqlite",
    pytest.param("postgres, sqlite", marks=pytest.mark.backend),
    pytest.param("sqlite, postgres", marks=pytest.mark.backend),
]


@dataclass
class Two:
    """Two databases with their tables."""

    first: Engine
    second: Engine
    sessions: sessionmaker[Session]

    def shares(self) -> int:
        """The number of shares."""
        with self.second.connect() as connection:
            return connection.scalar(select(func.count()).select_from(Share.__table__)) or 0

    def opens(self, key: int, secret: str) -> str | None:
        """What an owner's value is with a secret, in a session of its own; or the name of the error."""
        with self.sessions() as session:
            user = session.get_one(User, key)
            try:
                with envelope.unlock(session, user, secret=secret):
                    return user.phone
            except EnvelopeError as error:
                return type(error).__name__


@pytest.fixture
def other_url(tmp_path: Path) -> URL:
    """The address of another SQLite file."""
    return URL.create("sqlite", database=str(tmp_path / "other.db"))


@pytest.fixture(params=PAIRS)
def two(request: pytest.FixtureRequest, other_url: URL) -> Iterator[Two]:
    """Each pair of databases."""
    yield from _pair(request, other_url, request.param)


@pytest.fixture
def lite_two(request: pytest.FixtureRequest, other_url: URL) -> Iterator[Two]:
    """Two SQLite files."""
    yield from _pair(request, other_url, "sqlite, sqlite")


def _pair(request: pytest.FixtureRequest, other_url: URL, which: str) -> Iterator[Two]:
    (known,) = set(which.split(", ")) - {"sqlite"} or {"sqlite"}
    engine: Any = request.getfixturevalue(f"{known}_engine")
    other = create_engine(other_url)
    enforce_foreign_keys(other)
    one, two = (other, engine) if which.endswith("postgres") else (engine, other)
    Base.metadata.create_all(one)
    second.create_all(two)
    yield Two(one, two, sessions_on(one, two))
    other.dispose()


@dataclass
class AsyncTwo:
    """Two databases with their tables, through asyncio drivers."""

    first: AsyncEngine
    second: AsyncEngine

    def session(self) -> AsyncSession:
        """A session that leads to both."""
        return AsyncSession(self.first, binds={Share: self.second}, expire_on_commit=False)


@pytest.fixture
async def async_two(async_engine: AsyncEngine, other_url: URL) -> AsyncIterator[AsyncTwo]:
    """Each first database with an SQLite file, through asyncio drivers."""
    other = create_async_engine(other_url.set(drivername="sqlite+aiosqlite"))
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with other.begin() as connection:
        await connection.run_sync(second.create_all)
    yield AsyncTwo(async_engine, other)
    await other.dispose()
