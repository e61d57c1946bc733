"""Server mode: ten thousand rows of as many owners, beside as many rows of one unlocked owner."""

from __future__ import annotations

from statistics import median

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from benchmarks.measure import Timing, timed
from benchmarks.sharing_models import Event, Person, apart, cheap_envelope, create_tables, traffic
from benchmarks.sheets import DATABASE_NAMES, Finding, Sheet
from sqlalchemy_envelope import Envelope

NAME = "server"
REASON = "benchmark"


def measure_serving(engine: Engine, owner_count: int, round_count: int) -> Finding:
    create_tables(engine)
    envelope = cheap_envelope(sealed_rows=True)
    alone_id = make_rows(engine, envelope, owner_count)
    runs: dict[str, list[Timing]] = {"first load": [], "second load": [], "one owner": []}
    queries: dict[str, int] = {}
    with Session(engine) as session:
        alone = session.get_one(Person, alone_id)
        unlocked = envelope.unlock(session, alone, provider="server", reason=REASON)
        with apart(unlocked) as inside_alone:
            for _ in range(round_count):
                # A server that has just started. With one shared KEK, the provider's own cache is of no use.
                with apart(envelope.server_mode(reason=REASON)) as inside:
                    for name in ("first load", "second load"):
                        with traffic(engine) as seen:
                            runs[name].append(
                                timed(lambda: inside(lambda: load(engine, alone_id, others=True)))
                            )
                        queries[name] = len(seen) - 1
                runs["one owner"].append(
                    timed(lambda: inside_alone(lambda: load(engine, alone_id, others=False)))
                )
    base = runs["one owner"]
    lines = [
        [
            name,
            str(queries.get(name, 0)),
            f"{median(run.cpu for run in timings) / owner_count * 1e6:.1f}",
            f"{median(run.wall for run in timings) / owner_count * 1e6:.1f}",
            f"{ratio(timings, base):.2f}",
        ]
        for name, timings in runs.items()
    ]
    sheet = Sheet(
        f"{DATABASE_NAMES[engine.dialect.name]}: server mode, loading {owner_count:,} rows of "
        f"{owner_count:,} owners, and as many of one",
        ["", "key queries", "µs per row, processor", "µs per row, wall", "ratio to one owner"],
        lines,
    )
    figures = {
        "key queries": float(queries["first load"]),
        "key queries, second load": float(queries["second load"]),
        "ratio, first load": ratio(runs["first load"], base),
        "ratio, second load": ratio(runs["second load"], base),
    }
    return Finding(NAME, engine.dialect.name, [sheet], figures)


def ratio(timings: list[Timing], base: list[Timing]) -> float:
    return median(run.cpu / one.cpu for run, one in zip(timings, base, strict=True))


def make_rows(engine: Engine, envelope: Envelope, owner_count: int) -> int:
    """A row for each of many owners, and as many rows for one more owner, whose id is returned."""
    alone_id = owner_count + 1
    with envelope.server_mode(reason=REASON), Session(engine) as session:
        session.add(Person(id=alone_id))
        session.flush()
        for start in range(1, owner_count + 1, 1_000):
            ids = range(start, min(start + 1_000, alone_id))
            session.add_all([Person(id=one) for one in ids])
            session.flush()
            session.add_all([Event(id=one, person_id=one, body=body(one)) for one in ids])
            session.add_all([Event(id=alone_id + one, person_id=alone_id, body=body(one)) for one in ids])
            session.commit()
    return alone_id


def body(number: int) -> str:
    return f"event {number:014d}"


def load(engine: Engine, alone_id: int, *, others: bool) -> list[Event]:
    with Session(engine) as session:
        mine = Event.person_id != alone_id if others else Event.person_id == alone_id
        events = list(session.scalars(select(Event).where(mine)))
        assert all(event.body.startswith("event ") for event in events)
        return events
