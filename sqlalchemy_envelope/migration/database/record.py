"""The record of a column's migration: its phase, and the result of its last verification."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import case, delete, insert, inspect, or_, select, update

from sqlalchemy_envelope.migration.database.state import JobState, MigrationState, Phase, RangeState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

_TABLE: Any = MigrationState.__table__
_COLUMNS = _TABLE.c
_ORDER = list(Phase)


@dataclass(frozen=True)
class Standing:
    """The state of a migration, as recorded.

    Attributes:
        previous: the name of the previous column, as the models had it when the migration began.
        verified_at: the time of the verification; None if rows were written since.
        mismatches, locked, sample: the result of the verification: values that differ, values that no key
            there opened, and the share of rows that was checked (None for all).
    """

    phase: Phase = Phase.NEW
    previous: str | None = None
    verified_at: dt.datetime | None = None
    mismatches: int | None = None
    locked: int | None = None
    sample: float | None = None

    def has_reached(self, phase: Phase) -> bool:
        """Whether the migration is in this phase or a later phase."""
        return _ORDER.index(self.phase) >= _ORDER.index(phase)

    @property
    def is_clean(self) -> bool:
        """Whether the migration was verified since rows were last written, and no value differed."""
        return self.verified_at is not None and not self.mismatches


class Record:
    """The row of a migration in the state table; the row need not exist.

    Args:
        connection: the row is read and written in this connection's transaction.
        name: the migration's name.
    """

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection, self.name = connection, name

    @classmethod
    def find(cls, connection: Connection, names: Sequence[str]) -> Record | None:
        """The record of the first of these names that has a row."""
        known = standings(connection, *names)
        return next((cls(connection, name) for name in names if name in known), None)

    def read(self) -> Standing:
        """The state of the migration. A migration that was not begun is in the phase `NEW`."""
        return standings(self._connection, self.name).get(self.name, Standing())

    def set_phase(self, phase: Phase, previous: str) -> None:
        """Record a phase; with the first phase, also the previous column's name."""
        if self._update(phase=phase.value) == 0:
            values = {"name": self.name, "phase": phase.value, "previous": previous}
            self._connection.execute(insert(_TABLE).values(values))

    def advance(self, phase: Phase, previous: str) -> None:
        """Record a phase, unless the migration has reached a later phase."""
        now = self.read()
        if now.phase in (Phase.REVERSING, Phase.REVERSED) or not now.has_reached(phase):
            self.set_phase(phase, previous)

    def note_verification(self, rows: int, mismatches: int, locked: int, sample: float | None) -> None:
        """Record the result of a finished verification."""
        self._update(
            verified_rows=rows,
            verified_sample=sample,
            mismatches=mismatches,
            locked=locked,
            verified_at=dt.datetime.now(dt.UTC),
        )

    def forget_verification(self) -> None:
        """Record that rows were written: the verification says nothing about them."""
        phase = case((_COLUMNS.phase == Phase.VERIFIED.value, Phase.BACKFILLED.value), else_=_COLUMNS.phase)
        # Each chunk calls this. The row is locked only if there is a verification to forget.
        known = or_(_COLUMNS.verified_at.is_not(None), _COLUMNS.phase == Phase.VERIFIED.value)
        self._update(known, verified_at=None, mismatches=None, locked=None, phase=phase)

    def forget(self) -> None:
        """Delete the record: the next migration of this column begins anew."""
        inspector = inspect(self._connection)
        for model in (MigrationState, JobState, RangeState):
            table: Any = model.__table__
            if inspector.has_table(table.name):
                self._connection.execute(delete(table).where(table.c.name == self.name))

    def _update(self, *conditions: Any, **values: Any) -> int:
        statement = update(_TABLE).where(_COLUMNS.name == self.name, *conditions).values(**values)
        return self._connection.execute(statement).rowcount


def standings(connection: Connection, *names: str) -> dict[str, Standing]:
    """The states of the migrations with these names, or of all migrations, by name."""
    if not inspect(connection).has_table(_TABLE.name):
        return {}
    c = _COLUMNS
    query = select(c.name, c.phase, c.previous, c.verified_at, c.mismatches, c.locked, c.verified_sample)
    found = connection.execute(query.where(c.name.in_(names)) if names else query)
    return {name: Standing(Phase(phase), *rest) for name, phase, *rest in found}
