"""A whole migration while an application and an old program write: `benchmarks/migration_traffic.py`, with
some thousand rows in place of a million.

It proves what no test of one step can: that the steps follow each other without a gap. Every write is in a
ledger outside the database, and every read and the whole database are compared with it.
"""

from __future__ import annotations

import os

import pytest
from sqlalchemy import URL

from benchmarks.migration_traffic import COLUMNS, Outcome, Scale, run_traffic

SCALE = Scale(3_000, rate=80, seconds=0.5)
DATABASES = [
    pytest.param(
        "sqlite",
        marks=pytest.mark.skipif("ENVELOPE_LIVE" not in os.environ, reason="ENVELOPE_LIVE is not set"),
    ),
    pytest.param("postgres", marks=pytest.mark.backend),
]
"""A dozen processes for a quarter of a minute each: both with `ENVELOPE_LIVE=1`."""


@pytest.fixture(params=DATABASES)
def outcome(request: pytest.FixtureRequest) -> Outcome:
    """What the migration came to."""
    url: URL = request.getfixturevalue(f"{request.param}_url")
    if request.param == "postgres":
        url = url.set(drivername="postgresql+psycopg")
    return run_traffic(url.render_as_string(hide_password=False), SCALE)


def test_nothing_is_lost_or_stale_and_no_reader_sees_an_error(outcome: Outcome) -> None:
    """Every read and every row is as the ledger says, the old program's included: while it writes, neither
    the cut-over nor the guard goes through, and after the contract its writes do not."""
    wrong = {
        "rows lost": outcome.lost,
        "rows stale": outcome.stale,
        "rows from nowhere": outcome.unexpected,
        "stale reads": outcome.stale_reads,
        "errors of readers": dict(outcome.reader_errors),
        "errors of writers": dict(outcome.writer_errors),
        "values that differ": outcome.mismatches,
    }

    assert {name: found for name, found in wrong.items() if found} == {}
    assert outcome.checked >= SCALE.rows * 9 // 10
    assert outcome.values > 100
    assert outcome.old_found > 0
    refused = [message.partition(":")[0] for message in outcome.refused]
    for what in ("cutover while the old program writes", "guard while the old program writes"):
        assert refused.count(what) == len(COLUMNS)
    assert refused.count("an old write after the contract") == len(COLUMNS)
