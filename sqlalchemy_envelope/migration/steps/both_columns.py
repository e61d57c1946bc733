"""The previous and the encrypted column of a migration in the schema, and the triggers that watch them."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from sqlalchemy_envelope.exceptions import MigrationRefusedError
from sqlalchemy_envelope.migration.database import schema
from sqlalchemy_envelope.migration.database.record import Record
from sqlalchemy_envelope.migration.database.state import Phase
from sqlalchemy_envelope.words import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Connection

    from sqlalchemy_envelope.migration.database.columns import MigratingColumn
    from sqlalchemy_envelope.migration.running.setting import Setting


class BothColumns:
    """A migration's changes to the schema. Each change is a short transaction that waits for its locks."""

    def __init__(self, setting: Setting, column: MigratingColumn) -> None:
        self._setting, self._column = setting, column
        self._engine, self._dialect = setting.engine, setting.engine.dialect
        self._names = schema.tracked(column)

    def _change(self, statements: Sequence[str] | Callable[[Connection], Sequence[str]]) -> None:
        schema.change(self._engine, statements, patience=self._setting.pace.patience)

    # ------------------------------------------------------------------ there

    def add(self, *, reversed_before: bool) -> None:
        """Add the encrypted column, if it does not exist, and begin to notice writes to the previous column
        alone."""

        def missing(connection: Connection) -> list[str]:
            schema.require_trackable(connection, self._names)
            there = schema.has_column(connection, self._names, self._names.encrypted)
            # A reverse that was killed in the middle has left its guard.
            unguarded = schema.unguard(self._dialect, self._names) if reversed_before else []
            added = [] if there else schema.add_column(self._dialect, self._names)
            return [*added, *unguarded, *schema.track(self._dialect, self._names)]

        self._change(missing)

    def add_check(self) -> None:
        """Add the CHECK of the encrypted column, if the database takes it later than the column."""
        # Use a transaction for each step: the second step reads the whole table, and lets others write.
        for step in (schema.add_missing_check, schema.validate_check):
            self._change(partial(step, columns=self._names))

    def track_again(self) -> bool:
        """Put back triggers that were disabled, or were lost when the table was rebuilt; False if none were.

        Writes in the meantime were not noticed, so the last verification no longer holds.
        """
        with self._engine.connect() as connection:
            phase = Record(connection, self._column.name).read().phase
            kept, guarded = phase in (Phase.CUT_OVER, Phase.GUARDED), phase is Phase.GUARDED
            if schema.is_tracked(connection, self._names, kept=kept, guarded=guarded):
                return False
        put_back = schema.triggers_of(self._dialect, self._names, phase)
        self._change([*schema.untrack(self._dialect, self._names), *put_back])
        with self._engine.begin() as connection:
            Record(connection, self._column.name).forget_verification()
        return True

    def let_previous_be_empty(self) -> None:
        """Let the previous column be NULL, and refuse writes that empty it alone."""
        with self._engine.connect() as connection:
            statements = schema.make_nullable(connection, self._names)
        self._change([*statements, *schema.keep(self._dialect, self._names)])

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Refuse writes to the previous column alone. From here on nobody can make a row pending, so a check
        in the block stays true. If the block fails, the guard is dropped."""
        self._change(schema.guard(self._dialect, self._names))
        try:
            yield
        except BaseException:
            self._change(schema.triggers_of(self._dialect, self._names, Phase.CUT_OVER))
            raise

    def require_previous_droppable(self) -> bool:
        """Whether the previous column exists.

        Raises:
            MigrationRefusedError: the column exists, and the database cannot drop it.
        """
        with self._engine.connect() as connection:
            there = schema.has_column(connection, self._names, self._names.previous)
            if there:
                schema.require_droppable(connection, self._names, self._names.previous)
        return there

    def drop_previous(self) -> None:
        """Drop the previous column and every trigger."""
        self._drop(self._names.previous)

    # ------------------------------------------------------------------ and back

    def require_encrypted_droppable(self) -> None:
        """Refuse to begin if the database cannot drop the encrypted column.

        Raises:
            MigrationRefusedError: the database cannot drop it.
        """
        with self._engine.connect() as connection:
            schema.require_droppable(connection, self._names, self._names.encrypted)

    def unkeep(self) -> None:
        """Allow writes to both columns as before the cut-over."""
        self._change(schema.unkeep(self._dialect, self._names))

    def drop_encrypted(self) -> None:
        """Drop the encrypted column and every trigger.

        Raises:
            MigrationRefusedError: rows have an encrypted value alone.
        """
        # From here on nobody can write the encrypted column alone, so the count below stays true.
        self._change(schema.guard(self._dialect, self._names, back=True))
        with self._engine.connect() as connection:
            rows = self._setting.rows(connection, self._column)
            left = rows.count(connection, rows.encrypted_alone)
        if left:
            self._change(schema.unguard(self._dialect, self._names))
            raise MigrationRefusedError(
                f"{self._column.name}: {counted(left, 'value is', 'values are')} in the encrypted column "
                "alone, which stays. No key here opens them, since only their owners hold the keys; or a "
                "program with the policy 'read' goes on writing: stop it, and reverse again."
            )
        self._drop(self._names.encrypted)

    def _drop(self, name: str) -> None:
        dropping = schema.drop_column(self._dialect, self._names, name)
        self._change([*schema.untrack(self._dialect, self._names), *dropping])
