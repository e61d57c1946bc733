"""What the steps of a migration tell: how far a job is, what it came to, and where a column stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import datetime as dt

    from sqlalchemy_envelope.migration.database.state import Phase


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Attributes:
        done, total: rows; the total is of the moment when the job began.
        rate: rows a second, of late.
        left_seconds: what is left at that rate; None before there is one.
        late: how many rows had to be gone over again so far.
    """

    column: str
    job: str
    done: int
    total: int
    rate: float
    left_seconds: float | None
    late: int = 0


@dataclass(frozen=True)
class RunReport:
    """What a run came to.

    Attributes:
        rows: how many rows were encrypted by this and earlier runs of the job, or moved back.
        late: how many of them had to be gone over again: old writers, and rows that changed under our hands.
        pending: how many are left; `unowned` of them have no owner to encrypt for.
        finished: whether nothing is left that can be done.
    """

    column: str
    rows: int
    late: int
    pending: int
    unowned: int
    finished: bool
    seconds: float


@dataclass(frozen=True)
class VerifyReport:
    """What a verification came to.

    Attributes:
        rows: how many encrypted values were looked at.
        mismatches: how many do not authenticate, or differ from the previous value.
        locked: how many no key here opens: their owners hold the keys alone.
        pending: rows that are not encrypted yet.
        sample: the share of rows that was looked at; None for all.
        examples: the primary keys of some rows that differ.
    """

    column: str
    rows: int
    mismatches: int
    locked: int
    pending: int
    sample: float | None
    finished: bool = True
    examples: tuple[str, ...] = ()

    @property
    def is_clean(self) -> bool:
        """Whether nothing differs and nothing is left."""
        return self.finished and self.mismatches == 0 and self.pending == 0


@dataclass(frozen=True)
class RepairReport:
    """What putting rows right came to: rows that were, and rows whose keys are not here."""

    column: str
    rows: int
    locked: int
    finished: bool


@dataclass(frozen=True)
class ReencryptReport:
    """What encrypting anew came to: rows that were, rows whose keys are not here, and rows whose value does
    not authenticate, which are left as they are."""

    column: str
    rows: int
    locked: int
    bad: int
    finished: bool
    seconds: float


@dataclass(frozen=True)
class ColumnStatus:
    """Where the migration of a column stands, counted in the database now.

    Attributes:
        pending, both, encrypted: rows with a previous value alone, with both, with an encrypted one alone.
        unowned: pending rows without an owner.
        policy: what this program's models declare.
    """

    column: str
    phase: Phase
    policy: str
    pending: int
    both: int
    encrypted: int
    unowned: int
    encrypted_by_job: int
    late: int
    verified_at: dt.datetime | None
    mismatches: int | None
    locked: int | None
    sample: float | None
