"""The asynchronous face of a migration: the same steps, beside the event loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy_envelope.migration.database.greenlets import spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Executor

    from sqlalchemy_envelope.migration.database.columns import MigratingColumn
    from sqlalchemy_envelope.migration.database.state import Phase
    from sqlalchemy_envelope.migration.inspection.findings import Finding
    from sqlalchemy_envelope.migration.migrator import Migrator
    from sqlalchemy_envelope.migration.running.reports import (
        ColumnStatus,
        IndexReport,
        Progress,
        ReencryptReport,
        RepairReport,
        RunReport,
        VerifyReport,
    )

T = TypeVar("T")


class AsyncMigrator:
    """`Migrator` for programs with an event loop: in a greenlet over an `AsyncEngine`, else in a thread.

    A cancelled task stops the job after the chunk at hand, and then ends. A task that is cancelled twice ends
    at once: in a greenlet the chunk is rolled back, while a thread does the chunk to its end.
    """

    def __init__(self, migrator: Migrator) -> None:
        self.migrator = migrator

    async def column(self, name: str) -> MigratingColumn:
        """As `Migrator.column`."""
        return await self._do(lambda _: self.migrator.column(name))

    async def forgotten(self) -> list[str]:
        """As `Migrator.forgotten`."""
        return await self._do(lambda _: self.migrator.forgotten())

    async def put_back(self, names: Iterable[str]) -> str:
        """As `Migrator.put_back`."""
        return await self._do(lambda _: self.migrator.put_back(names))

    async def leftovers(self) -> list[MigratingColumn]:
        """As `Migrator.leftovers`."""
        return await self._do(lambda _: self.migrator.leftovers())

    async def phase(self, name: str) -> Phase:
        """As `Migrator.phase`."""
        return await self._do(lambda _: self.migrator.phase(name))

    async def plan(self, name: str) -> list[Finding]:
        """As `Migrator.plan`."""
        return await self._do(lambda _: self.migrator.plan(name))

    async def status(self, name: str) -> ColumnStatus:
        """As `Migrator.status`."""
        return await self._do(lambda _: self.migrator.status(name))

    async def expand(self, name: str) -> None:
        """As `Migrator.expand`."""
        await self._do(lambda _: self.migrator.expand(name))

    async def run(
        self,
        name: str,
        *,
        workers: int = 1,
        executor: Executor | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> RunReport:
        """As `Migrator.run`; cancel it to stop it."""
        return await self._do(
            lambda stop: self.migrator.run(
                name, workers=workers, executor=executor, stop=stop, progress=progress
            )
        )

    async def verify(
        self,
        name: str,
        *,
        sample: float | None = None,
        workers: int = 1,
        executor: Executor | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> VerifyReport:
        """As `Migrator.verify`; cancel it to stop it."""
        return await self._do(
            lambda stop: self.migrator.verify(
                name, sample=sample, workers=workers, executor=executor, stop=stop, progress=progress
            )
        )

    async def cutover(self, name: str, *, accept_sample: bool = False, accept_locked: int = 0) -> None:
        """As `Migrator.cutover`."""
        await self._do(
            lambda _: self.migrator.cutover(name, accept_sample=accept_sample, accept_locked=accept_locked)
        )

    async def guard(self, name: str, *, accept_sample: bool = False, accept_locked: int = 0) -> None:
        """As `Migrator.guard`."""
        await self._do(
            lambda _: self.migrator.guard(name, accept_sample=accept_sample, accept_locked=accept_locked)
        )

    async def contract(
        self, name: str, *, accept_sample: bool = False, accept_locked: int = 0, stopped: bool = False
    ) -> None:
        """As `Migrator.contract`."""
        await self._do(
            lambda _: self.migrator.contract(
                name, accept_sample=accept_sample, accept_locked=accept_locked, stopped=stopped
            )
        )

    async def repair(self, name: str) -> RepairReport:
        """As `Migrator.repair`; cancel it to stop it."""
        return await self._do(lambda stop: self.migrator.repair(name, stop=stop))

    async def reverse(
        self,
        name: str,
        *,
        workers: int = 1,
        executor: Executor | None = None,
        progress: Callable[[Progress], None] | None = None,
        drop: bool = False,
    ) -> RunReport:
        """As `Migrator.reverse`; cancel it to stop it."""
        return await self._do(
            lambda stop: self.migrator.reverse(
                name, workers=workers, executor=executor, stop=stop, progress=progress, drop=drop
            )
        )

    async def reencrypt(
        self,
        name: str,
        *,
        owner: object | None = None,
        workers: int = 1,
        executor: Executor | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> ReencryptReport:
        """As `Migrator.reencrypt`; cancel it to stop it."""
        return await self._do(
            lambda stop: self.migrator.reencrypt(
                name, owner=owner, workers=workers, executor=executor, stop=stop, progress=progress
            )
        )

    @property
    def indexes(self) -> list[str]:
        """As `Migrator.indexes`."""
        return self.migrator.indexes

    @property
    def token_indexes(self) -> list[str]:
        """As `Migrator.token_indexes`."""
        return self.migrator.token_indexes

    async def fill_index(
        self,
        name: str,
        *,
        again: bool = False,
        workers: int = 1,
        executor: Executor | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> IndexReport:
        """As `Migrator.fill_index`; cancel it to stop it."""
        return await self._do(
            lambda stop: self.migrator.fill_index(
                name, again=again, workers=workers, executor=executor, stop=stop, progress=progress
            )
        )

    async def verify_index(
        self,
        name: str,
        *,
        workers: int = 1,
        executor: Executor | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> IndexReport:
        """As `Migrator.verify_index`; cancel it to stop it."""
        return await self._do(
            lambda stop: self.migrator.verify_index(
                name, workers=workers, executor=executor, stop=stop, progress=progress
            )
        )

    async def drop_index(
        self,
        name: str,
        *,
        label: str | None = None,
        stopped: bool = False,
        progress: Callable[[Progress], None] | None = None,
    ) -> IndexReport:
        """As `Migrator.drop_index`; cancel it to stop it."""
        return await self._do(
            lambda stop: self.migrator.drop_index(
                name, label=label, stopped=stopped, stop=stop, progress=progress
            )
        )

    async def _do(self, call: Callable[[Callable[[], bool]], T]) -> T:
        stopping = False
        # Use a task of its own: a cancellation of the caller would cut off a chunk in the middle.
        task: asyncio.Future[Any] = asyncio.ensure_future(
            spawn(self.migrator.given_engine, lambda: call(lambda: stopping))
        )
        try:
            result: T = await asyncio.shield(task)
        except asyncio.CancelledError:
            stopping = True
            await _ended(task)
            raise
        return result


async def _ended(task: asyncio.Future[Any]) -> None:
    """Wait for a task that was told to stop. Another cancellation cuts it off."""
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait([task])
        raise
    finally:
        if not task.cancelled():
            task.exception()  # retrieve the error: the caller has ended, and nobody else will
