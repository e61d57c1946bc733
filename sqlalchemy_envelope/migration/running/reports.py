"""The reports of a migration's steps: a job's progress, its result, and the state of a column."""

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
        done, total: numbers of rows; the total was counted when the job began.
        rate: recent rows a second.
        left_seconds: the time left at that rate; None while the rate is unknown.
        late: the number of rows that had to be done again so far.
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
    """The result of a run.

    Attributes:
        rows: the number of rows that this and earlier runs of the job encrypted, or moved back.
        late: how many of these rows a later sweep did: old writers wrote them, or they changed while we
            worked.
        pending: the number of rows left; `unowned` of them have no owner to encrypt for.
        finished: whether no work is left that can be done.
        earlier: how many of `rows` earlier runs did.
    """

    column: str
    rows: int
    late: int
    pending: int
    unowned: int
    finished: bool
    seconds: float
    earlier: int = 0


@dataclass(frozen=True)
class VerifyReport:
    """The result of a verification.

    Attributes:
        rows: the number of encrypted values that were checked.
        mismatches: the number of values that do not authenticate, or differ from the previous value.
        locked: the number of values that no key here opens: their owners alone hold the keys.
        pending: the number of rows that are not encrypted yet.
        sample: the share of rows that was checked; None for all.
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
    """The result of a repair: the rows that were repaired, and the rows without a key here."""

    column: str
    rows: int
    locked: int
    finished: bool


@dataclass(frozen=True)
class ReencryptReport:
    """The result of re-encryption: the rows that were re-encrypted, the rows without a key here, the rows
    with a value that does not authenticate, and the rows with a value whose key is destroyed. Rows of the
    last two kinds are left as they are."""

    column: str
    rows: int
    locked: int
    bad: int
    finished: bool
    seconds: float
    shredded: int = 0


@dataclass(frozen=True)
class IndexReport:
    """The result of filling a blind index, of comparing it with its values, or of emptying it.

    Attributes:
        rows: the number of rows that were written, or compared. Locked rows were not.
        bad: of a fill, the rows that got no tag: the value does not authenticate, or the index does not take
            it, or a unique index has an equal value already. Of a comparison, the rows whose tag is not that
            of their value, and the values that no tag can be made of.
        locked: the number of rows that no key here opens.
        pending: the number of values without a tag, locked values among them, bad ones not; after a fill,
            those that it left. None of an index that was emptied.
        examples: the primary keys of some bad rows; never values.
        finished: whether every row was looked at.
    """

    index: str
    rows: int
    bad: int
    locked: int
    pending: int | None
    examples: tuple[str, ...]
    finished: bool
    seconds: float

    @property
    def is_clean(self) -> bool:
        """Whether no value is without a tag, and every tag that can be checked here is that of its value."""
        return self.finished and self.bad == 0 and not self.pending


@dataclass(frozen=True)
class ColumnStatus:
    """The state of a column's migration, counted in the database now.

    Attributes:
        pending, both, encrypted: rows with the previous value alone, with both, with the encrypted value
            alone.
        unowned: pending rows without an owner.
        policy: the policy that this program's models declare.
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
