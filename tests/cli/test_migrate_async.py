"""An asynchronous engine: the command line drives it as any other, and `AsyncMigrator` does beside an event
loop, where the cancellation of a task is a clean stop."""

import asyncio
from base64 import b64decode
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import ForeignKey, String, Text, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqlalchemy_envelope import (
    EncryptedType,
    Envelope,
    KeyOwner,
    MigrationRefusedError,
    PreviousColumn,
    ServerKeyring,
)
from sqlalchemy_envelope.migration.aio import AsyncMigrator
from sqlalchemy_envelope.migration.migrator import Migrator
from sqlalchemy_envelope.migration.running.reports import Progress
from tests.cli.migrating import APP, Old, make_old

ROWS = 10_000
BODY = "notes.body"
ASYNC_APP = f"""
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy_envelope.migration.migrator import Migrator
from {APP} import Base, engine, envelope

def make():
    return Migrator(
        create_async_engine(engine.url.set(drivername="sqlite+aiosqlite")), envelope, Base, provider="server"
    )
"""


class Base(DeclarativeBase):
    """Models of the same tables, for this process."""


class User(KeyOwner, Base):
    """An owner."""

    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(String(200), unique=True)
    phone: Mapped[str | None] = mapped_column(
        "phone_encrypted", EncryptedType(String, previous=PreviousColumn("phone", String(20)))
    )


class Note(Base):
    """A row of an owner's."""

    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    body: Mapped[str | None] = mapped_column(
        "body_encrypted", EncryptedType(Text, previous=PreviousColumn("body", Text))
    )


@pytest.fixture
def old(template: Old, tmp_path: Path) -> Old:
    """The old application."""
    return make_old(template, tmp_path / "app", ROWS)


@pytest.fixture(params=["asynchronous", "synchronous"])
async def migrator(old: Old, request: pytest.FixtureRequest) -> AsyncIterator[AsyncMigrator]:
    """A migrator over an engine of either kind."""
    envelope = Envelope(server_keys=ServerKeyring([b64decode(old.key)]))
    if request.param == "asynchronous":
        engine = create_async_engine(f"sqlite+aiosqlite:///{old.file}", connect_args={"timeout": 0.3})
        yield AsyncMigrator(Migrator(engine, envelope, Base, provider="server"))
        await engine.dispose()
    else:
        plain = create_engine(f"sqlite:///{old.file}")
        yield AsyncMigrator(Migrator(plain, envelope, Base, provider="server"))
        plain.dispose()


async def test_every_step(migrator: AsyncMigrator, old: Old) -> None:
    """Plan, expand, run, verify, cut over and back, each awaited; contract is refused as ever."""
    assert await migrator.plan(BODY)
    await migrator.expand(BODY)
    assert (await migrator.run(BODY)).finished
    assert (await migrator.verify(BODY)).is_clean
    await migrator.cutover(BODY)
    assert (await migrator.status(BODY)).phase.value == "cut over"
    with pytest.raises(MigrationRefusedError, match="both"):
        await migrator.guard(BODY)
    assert (await migrator.reverse(BODY)).finished


async def test_cancelled(migrator: AsyncMigrator, old: Old) -> None:
    """A cancelled run ends after its chunk, while other tasks of the loop go on, and is gone on with."""
    migrator.migrator.pace = replace(migrator.migrator.pace, load=0.02)
    seen = asyncio.Event()
    loop = asyncio.get_running_loop()

    def progress(now: Progress) -> None:
        if now.done:
            loop.call_soon_threadsafe(seen.set)

    task = asyncio.create_task(migrator.run(BODY, progress=progress))
    await asyncio.wait_for(seen.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 30)

    half = await migrator.status(BODY)
    assert 0 < half.pending < ROWS
    assert half.encrypted_by_job == ROWS - half.pending
    migrator.migrator.pace = replace(migrator.migrator.pace, load=1.0)
    report = await migrator.run(BODY)
    assert (report.rows, report.late, report.finished) == (ROWS, 0, True)


@pytest.mark.parametrize("migrator", ["asynchronous"], indirect=True)
async def test_cancelled_twice(migrator: AsyncMigrator, old: Old) -> None:
    """A run that does not come to its end is cut off by a second cancellation, and loses nothing."""
    await migrator.expand(BODY)
    engine: Any = migrator.migrator.given_engine
    async with engine.connect() as other:
        await other.execute(text("BEGIN IMMEDIATE"))
        task = asyncio.create_task(migrator.run(BODY))
        await asyncio.wait([task], timeout=0.3)
        task.cancel()
        await asyncio.wait([task], timeout=0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 30)
    assert (await migrator.run(BODY)).finished


def test_command_line(old: Old) -> None:
    """The command line drives an application with an asynchronous engine, also with workers."""
    (old.folder / "mine.py").write_text(ASYNC_APP)

    ran = old.migrate("run", "--workers", "2", BODY, app="mine:make")

    assert f"{BODY}: {ROWS:,} rows encrypted; none left" in ran.out
    assert ran.err == ""
