"""The limits the library sets itself, all with five encrypted columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.measure import Series
from benchmarks.operations import BULK_INSERT, ORM_LOAD
from benchmarks.variants import OURS_BY_COLUMN, OURS_BY_ROW, PLAINTEXT, UTILS_GCM, Variant

Named = dict[str, Variant]


@dataclass(frozen=True)
class Goal:
    """One limit, and how the figure it limits comes out of a run."""

    name: str
    limit: float
    compute: Callable[[Series, Named], float | None]

    def found(self, variants: list[Variant], series: Series) -> float | None:
        return self.compute(
            series, {variant.name: variant for variant in variants if variant.column_count == 5}
        )

    def verdict(self, found: float) -> str:
        return "held" if found <= self.limit else "missed"


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


GOALS = [
    Goal("ORM load bound to the column, ratio to bare", 1.6, ratio(OURS_BY_COLUMN, ORM_LOAD)),
    Goal("ORM load bound to the row, ratio to bare", 2.2, ratio(OURS_BY_ROW, ORM_LOAD)),
    Goal("bulk insert bound to the column, ratio to bare", 2.5, ratio(OURS_BY_COLUMN, BULK_INSERT)),
    Goal("bulk insert bound to the row, ratio to bare", 3.5, ratio(OURS_BY_ROW, BULK_INSERT)),
    Goal("ORM load as a share of sqlalchemy-utils AesGcmEngine", 0.2, share_of_peer),
    Goal("bytes stored beyond the value", 45, overhead),
]
