"""What is noted of one column's migration: its phase, and what was found when it was last verified."""

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
    """Where a migration stands, as it was noted.

    Attributes:
        previous: the name of the previous column, as the models had it when the migration began.
        verified_at: when it was verified; None if rows were written since.
        mismatches, locked, sample: what the verification found: values that differ, values that no key there
            opened, and the share of rows that was looked at (None for all).
    """

    phase: Phase = Phase.NEW
    previous: str | None = None
    verified_at: dt.datetime | None = None
    mismatches: int | None = None
    locked: int | None = None
    sample: float | None = None

    def has_reached(self, phase: Phase) -> bool:
        """Whether it is in this phase or in a later one."""
        return _ORDER.index(self.phase) >= _ORDER.index(phase)

    @property
    def is_clean(self) -> bool:
        """Whether it was verified since rows were last written, and no value differed."""
        return self.verified_at is not None and not self.mismatches


class Record:
    """The row of one migration in the state table; it need not be there.

    Args:
        connection: in whose transaction it is read and written.
        name: what the migration is called.
    """

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection, self.name = connection, name

    @classmethod
    def find(cls, connection: Connection, names: Sequence[str]) -> Record | None:
        """The record with the first of these names that there is."""
        known = standings(connection, *names)
        return next((cls(connection, name) for name in names if name in known), None)

    def read(self) -> Standing:
        """Where the migration stands; of one that was not begun, in the phase `NEW`."""
        return standings(self._connection, self.name).get(self.name, Standing())

    def set_phase(self, phase: Phase, previous: str) -> None:
        """Note a phase, with the first one also the previous column's name."""
        if self._update(phase=phase.value) == 0:
            values = {"name": self.name, "phase": phase.value, "previous": previous}
            self._connection.execute(insert(_TABLE).values(values))

    def advance(self, phase: Phase, previous: str) -> None:
        """Note a phase, unless a later one is reached."""
        now = self.read()
        if now.phase in (Phase.REVERSING, Phase.REVERSED) or not now.has_reached(phase):
            self.set_phase(phase, previous)

    def note_verification(self, rows: int, mismatches: int, locked: int, sample: float | None) -> None:
        """Note what a verification found that is finished."""
        self._update(
            verified_rows=rows,
            verified_sample=sample,
            mismatches=mismatches,
            locked=locked,
            verified_at=dt.datetime.now(dt.UTC),
        )

    def forget_verification(self) -> None:
        """Note that rows were written: what was verified says nothing of them."""
        phase = case((_COLUMNS.phase == Phase.VERIFIED.value, Phase.BACKFILLED.value), else_=_COLUMNS.phase)
        # Each chunk asks for it, and the row is locked only where there is something to forget.
        known = or_(_COLUMNS.verified_at.is_not(None), _COLUMNS.phase == Phase.VERIFIED.value)
        self._update(known, verified_at=None, mismatches=None, locked=None, phase=phase)

    def forget(self) -> None:
        """Delete all that is noted: the next migration of this column begins anew."""
        inspector = inspect(self._connection)
        for model in (MigrationState, JobState, RangeState):
            table: Any = model.__table__
            if inspector.has_table(table.name):
                self._connection.execute(delete(table).where(table.c.name == self.name))

    def _update(self, *conditions: Any, **values: Any) -> int:
        statement = update(_TABLE).where(_COLUMNS.name == self.name, *conditions).values(**values)
        return self._connection.execute(statement).rowcount


def standings(connection: Connection, *names: str) -> dict[str, Standing]:
    """Where migrations stand, by name: those with these names, or all."""
    if not inspect(connection).has_table(_TABLE.name):
        return {}
    c = _COLUMNS
    query = select(c.name, c.phase, c.previous, c.verified_at, c.mismatches, c.locked, c.verified_sample)
    found = connection.execute(query.where(c.name.in_(names)) if names else query)
    return {name: Standing(Phase(phase), *rest) for name, phase, *rest in found}
