"""The setting of a migration: its database, its provider, and how hard it works."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.migration.database import schema
from sqlalchemy_envelope.migration.database.greenlets import is_asynchronous, sleep
from sqlalchemy_envelope.migration.database.index_columns import IndexColumn, IndexRows
from sqlalchemy_envelope.migration.database.rows import Rows
from sqlalchemy_envelope.migration.running.runner import Pace, Runner

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from sqlalchemy_envelope.migration.database.columns import MigratingColumn
    from sqlalchemy_envelope.migration.jobs.work import Work
    from sqlalchemy_envelope.orm.verbs.envelope.envelope import Envelope


@dataclass(eq=False, repr=False)
class Setting:
    """The setting that all steps of a migration share.

    Attributes:
        given_engine: the engine that the application gave, perhaps an asynchronous engine.
        engine: the synchronous engine behind it. Its logs and errors show no parameters.
        provider: owners without keys get keys under this provider; with None they get no keys.
        reference: `"module:attribute"`, by which other processes find the migrator.
    """

    given_engine: Engine | AsyncEngine
    envelope: Envelope
    provider: str | None = None
    reference: str | None = None
    pace: Pace = field(default_factory=Pace)
    sleep: Callable[[float], Any] = sleep
    engine: Engine = field(init=False)

    def __post_init__(self) -> None:
        either: Any = self.given_engine
        self.engine = quiet(either.sync_engine if is_asynchronous(either) else either)

    def rows(self, connection: Connection, column: MigratingColumn) -> Rows:
        """The statements for a column on this database."""
        checked = schema.checks_owners(connection, column)
        made = IndexRows if isinstance(column, IndexColumn) else Rows
        rows: Rows = made(column, connection.dialect, owners_checked=checked)  # type: ignore[arg-type]
        rows.self_updating = schema.self_updating(connection, column.table)
        return rows

    def runner(self, column: MigratingColumn, work: Work, number: int = 0, **options: Any) -> Runner:
        """A worker of a job."""
        with self.engine.connect() as connection:
            rows = self.rows(connection, column)
        return Runner(
            self.engine,
            self.envelope,
            rows,
            column.name,
            work,
            provider=self.provider,
            pace=self.pace,
            number=number,
            sleep=self.sleep,
            **options,
        )


def quiet(engine: Engine) -> Engine:
    """The same engine with parameters hidden from logs and errors: previous values are among them."""
    silent: Any = engine.execution_options()
    silent.hide_parameters = True
    found: Engine = silent
    return found
