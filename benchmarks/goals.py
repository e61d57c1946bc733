"""The library's own limits: on the cost of a value, with five encrypted columns, and on sharing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.measure import Series
from benchmarks.operations import BULK_INSERT, CORE_SELECT, ORM_LOAD
from benchmarks.variants import OURS_BY_COLUMN, OURS_BY_ROW, PLAINTEXT, UTILS_GCM, Variant

Named = dict[str, Variant]


@dataclass(frozen=True)
class Goal:
    """One limit, and how its figure is computed from a run.

    Attributes:
        limits: the limit of each database; a single number for all.
    """

    name: str
    limits: float | dict[str, float]
    compute: Callable[[Series, Named], float | None]
    column_count: int = 5

    def found(self, variants: list[Variant], series: Series) -> float | None:
        named = {variant.name: variant for variant in variants if variant.column_count == self.column_count}
        return self.compute(series, named)

    def limit(self, database: str) -> float:
        return self.limits[database] if isinstance(self.limits, dict) else self.limits

    def verdict(self, database: str, found: float) -> str:
        return "held" if found <= self.limit(database) else "missed"


def ratio(name: str, operation: str) -> Callable[[Series, Named], float | None]:
    def compute(series: Series, variants: Named) -> float | None:
        figure = series.figure(variants[name], operation)
        return figure.ratio if figure else None

    return compute


def share_of_peer(series: Series, variants: Named) -> float | None:
    if UTILS_GCM not in variants:
        return None
    ours, theirs = (series.figure(variants[name], ORM_LOAD) for name in (OURS_BY_COLUMN, UTILS_GCM))
    return ours.cpu / theirs.cpu if ours and theirs else None


def overhead(series: Series, _variants: Named) -> float:
    return series.stored_sizes[OURS_BY_COLUMN] - series.stored_sizes[PLAINTEXT]


def by_database(sqlite: float, psycopg: float, others: float) -> dict[str, float]:
    """Limits for SQLite, for psycopg, and for psycopg with binary results and asyncpg."""
    return {
        "sqlite": sqlite,
        "postgresql": psycopg,
        "postgresql-binary": others,
        "postgresql-asyncpg": others,
    }


LOADS, INSERTS = by_database(1.5, 1.8, 1.5), by_database(2.3, 2.5, 2.5)
GOALS = [
    Goal("ORM load bound to the column, ratio to bare", LOADS, ratio(OURS_BY_COLUMN, ORM_LOAD)),
    Goal(
        "ORM load bound to the row, ratio to bare",
        {name: limit + 0.2 for name, limit in LOADS.items()},
        ratio(OURS_BY_ROW, ORM_LOAD),
    ),
    Goal("ORM load of one column, ratio to bare", 1.6, ratio(OURS_BY_COLUMN, ORM_LOAD), 1),
    Goal("ORM load of one column bound to the row, ratio to bare", 2.0, ratio(OURS_BY_ROW, ORM_LOAD), 1),
    Goal("Core select bound to the column, ratio to bare", LOADS, ratio(OURS_BY_COLUMN, CORE_SELECT)),
    Goal("bulk insert bound to the column, ratio to bare", INSERTS, ratio(OURS_BY_COLUMN, BULK_INSERT)),
    Goal(
        "bulk insert bound to the row, ratio to bare",
        {name: limit + 0.2 for name, limit in INSERTS.items()},
        ratio(OURS_BY_ROW, BULK_INSERT),
    ),
    Goal("ORM load as a share of sqlalchemy-utils AesGcmEngine", 0.2, share_of_peer),
    Goal("bytes stored beyond the value", 45, overhead),
]


@dataclass(frozen=True)
class Limit:
    """One limit on a figure of a benchmark of sharing."""

    name: str
    limit: float
    benchmark: str
    figure: str
    at_least: bool = False
    database: str | None = None

    def verdict(self, found: float) -> str:
        return "held" if (found >= self.limit if self.at_least else found <= self.limit) else "missed"

    def limits(self, benchmark: str, database: str, figures: dict[str, float]) -> bool:
        """Whether this limit is on a figure of that finding."""
        there = self.benchmark == benchmark and self.figure in figures
        return there and self.database in (None, database)

    def __str__(self) -> str:
        return f"at least {self.limit:,g}" if self.at_least else f"{self.limit:g}"


SEALS, MIGRATION = ", row seals", "migration"
LIMITS = [
    *(
        Limit(
            f"unlocking in many groups, {when}{seals}: {figure}",
            limit,
            "groups",
            f"{figure}, {when}{seals}",
        )
        for seals in ("", SEALS)
        for when in ("member, later", "member, first")
        for figure, limit in (("queries", 6), ("milliseconds", 150))
    ),
    *(
        Limit(
            f"writing for a locked person, {way}: ratio to an unlocked one",
            1.15,
            "locked-writes",
            f"ratio, {way}",
        )
        for way in ("bulk insert", "unit-of-work insert")
    ),
    Limit("writing for a locked person: extra bytes of a row", 0, "locked-writes", "extra bytes"),
    Limit("writing for a locked person: seals of one epoch", 1, "locked-writes", "seals"),
    Limit("writing for a locked person: seals of four epochs", 4, "locked-writes", "seals, four epochs"),
    Limit("server mode, each row of another owner: key queries", 12, "server", "key queries"),
    Limit("rows of three owners in turn, ratio to bare", 1.7, "several-owners", "ratio, 3 owners in turn"),
    Limit("one leaves a large group: statements that seal to the others", 1, "rotation", "batches, leaving"),
    Limit(
        "one leaves a large group: seals beyond one for each", 0, "rotation", "seals beyond members, leaving"
    ),
    Limit("one joins a group with many rows: data rows touched", 0, "rotation", "data rows touched, joining"),
    Limit("one among a million by a blind index, ratio to plaintext", 1.5, "blind-indexes", "ratio, id"),
    Limit(
        "bulk insert with a blind index: µs beyond a plain column",
        2,
        "blind-indexes",
        "µs, an index, beyond a plain column",
    ),
    Limit("rotating a server key: owners a second", 5_000, "key-rotation", "owners a second", at_least=True),
    Limit("rotating a server key: MiB for all owners", 64, "key-rotation", "MiB more"),
    *(
        Limit(f"a plain {verb}: µs of the gate", 1, "plain-statements", f"µs, gate, {verb}, nobody unlocked")
        for verb in ("SELECT", "INSERT", "UPDATE", "DELETE")
    ),
    *(
        Limit("migration: rows a second", limit, MIGRATION, "rows a second", at_least=True, database=database)
        for database, limit in (("sqlite", 60_000), ("postgresql", 30_000))
    ),
    Limit("migration: MiB of a worker", 128, MIGRATION, "MiB of a worker"),
    Limit("migration: two workers, ratio to one", 1.6, MIGRATION, "two workers", at_least=True),
    Limit("migration: seconds for which rows are locked", 1, MIGRATION, "seconds locked"),
]
