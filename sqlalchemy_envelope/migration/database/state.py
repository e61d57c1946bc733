"""How far a migration is: mapped tables, beside the data and in its transactions.

The tables are this library's own, under a registry of their own; `expand` creates them.
"""

from __future__ import annotations

import datetime as dt
from enum import StrEnum
from typing import TYPE_CHECKING

from sqlalchemy import BigInteger, DateTime, Float, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

if TYPE_CHECKING:
    from sqlalchemy import Engine


class Phase(StrEnum):
    """The phases of a migration, in their order."""

    NEW = "new"
    """Nothing was done."""
    TRACKING = "tracking"
    """Both columns exist, and a trigger notices writes to the previous column alone."""
    BACKFILLED = "backfilled"
    """Every row has been encrypted once."""
    VERIFIED = "verified"
    """Every value, or a stated sample, was decrypted and compared."""
    CUT_OVER = "cut over"
    """The encrypted column counts alone; the application may leave the previous column empty."""
    GUARDED = "guarded"
    """The database refuses plaintext; the models may stop declaring the previous column."""
    CONTRACTED = "contracted"
    """The previous column is gone."""
    REVERSING = "reversing"
    """Values are moved back."""
    REVERSED = "reversed"
    """Every value is in the previous column again."""


class Job(StrEnum):
    """The jobs that go over the rows."""

    BACKFILL = "backfill"
    VERIFY = "verify"
    REVERSE = "reverse"
    REENCRYPT = "reencrypt"
    REPAIR = "repair"
    INDEX_FILL = "index fill"
    INDEX_REFILL = "index refill"
    INDEX_VERIFY = "index verify"


class StateBase(DeclarativeBase):
    """The registry of the state tables."""


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class MigrationState(StateBase):
    """A column's migration. It keeps the previous column's name when the models no longer declare it."""

    __tablename__ = "envelope_migration"

    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    phase: Mapped[str] = mapped_column(String(16), default=Phase.NEW)
    previous: Mapped[str | None] = mapped_column(String(255))
    verified_rows: Mapped[int | None] = mapped_column(BigInteger)
    verified_sample: Mapped[float | None] = mapped_column(Float)
    mismatches: Mapped[int | None] = mapped_column(BigInteger)
    locked: Mapped[int | None] = mapped_column(BigInteger)
    verified_at: Mapped[dt.datetime | None] = mapped_column(DateTime(timezone=True))
    started_at: Mapped[dt.datetime] = mapped_column(DateTime(timezone=True), default=_now)
    changed_at: Mapped[dt.datetime] = mapped_column(DateTime(timezone=True), default=_now, onupdate=_now)


class JobState(StateBase):
    """A job over the rows of a migration. `rows_before` is the number of rows that were done when this sweep
    began. Workers that find `stopping` set end after their chunk."""

    __tablename__ = "envelope_migration_job"

    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    job: Mapped[str] = mapped_column(String(64), primary_key=True)
    sweep: Mapped[int] = mapped_column(default=1)
    rows_before: Mapped[int] = mapped_column(BigInteger, default=0)
    total: Mapped[int] = mapped_column(BigInteger, default=0)
    sample: Mapped[float | None] = mapped_column(Float)
    stopping: Mapped[bool] = mapped_column(default=False)


class RangeState(StateBase):
    """A range of primary keys of a job. A worker holds a lock on this row for the length of a chunk.

    Attributes:
        lower, upper: the bounds of the range, `upper` included; None is open.
        position: the last primary key that is done in this sweep.
        rows: the number of rows that were changed or compared; `late` of them after the first sweep.
        bad, locked: for a verification, values that differ, and values that no key here opens.
        shredded: values whose keys are destroyed.
        examples: the primary keys of a few rows that differ; never values.
    """

    __tablename__ = "envelope_migration_range"

    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    job: Mapped[str] = mapped_column(String(64), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    lower: Mapped[str | None] = mapped_column(Text)
    upper: Mapped[str | None] = mapped_column(Text)
    position: Mapped[str | None] = mapped_column(Text)
    sweep: Mapped[int] = mapped_column(default=1)
    finished: Mapped[bool] = mapped_column(default=False)
    rows: Mapped[int] = mapped_column(BigInteger, default=0)
    late: Mapped[int] = mapped_column(BigInteger, default=0)
    bad: Mapped[int] = mapped_column(BigInteger, default=0)
    locked: Mapped[int] = mapped_column(BigInteger, default=0)
    shredded: Mapped[int] = mapped_column(BigInteger, default=0)
    examples: Mapped[str | None] = mapped_column(Text)


STATE_TABLES = frozenset(StateBase.metadata.tables)
"""The names of the state tables; autogenerate leaves them alone."""


def create_state_tables(engine: Engine) -> None:
    """Create the state tables that do not exist."""
    with engine.begin() as connection:
        StateBase.metadata.create_all(connection)
