"""Statements on a table that has nothing to do with encryption: the cost of the library's listeners.

SQLAlchemy's call of a listener has a cost of its own, whatever the listener does. So the same statements run
on the same connection with the library's listeners, with the gate for writing alone, with listeners that do
nothing in their places, and with none.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from random import sample
from statistics import median
from typing import Any

from sqlalchemy import Engine, String, delete, event, insert, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, configure_mappers, mapped_column

from benchmarks.databases import SECRET
from benchmarks.sharing_models import apart, cheap_envelope, create_tables, enroll_people
from benchmarks.sheets import DATABASE_NAMES, Finding, Sheet
from sqlalchemy_envelope.orm import hooks
from sqlalchemy_envelope.orm.reading import results

NAME = "plain-statements"
REASON = "benchmark"
OURS, GATE, NOTHING, NONE = "ours", "the gate alone", "listeners that do nothing", "no listeners"
THE_GATE = "before_cursor_execute"
SOME = 50
Run = Callable[[], object]


class Base(DeclarativeBase):
    """A separate MetaData, as another part of an application has it."""


class City(Base):
    """A row without encrypted columns and without an owner."""

    __tablename__ = "plain_cities"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(40))


CITIES: Any = City.__table__


IDLE: dict[str, tuple[Callable[..., Any], Callable[..., Any], dict[str, Any]]] = {
    "before_execute": (
        hooks._before_execute,
        lambda _c, statement, many, one, _o: (statement, many, one),
        {"retval": True},
    ),
    "before_cursor_execute": (
        hooks._before_cursor_execute,
        lambda _c, _cursor, sql, parameters, _e, _m: (sql, parameters),
        {"retval": True},
    ),
    "after_cursor_execute": (hooks._after_cursor_execute, lambda _c, _cursor, _sql, _p, _e, _m: None, {}),
    "after_execute": (results.after_execute, lambda _c, _statement, _m, _p, _o, _result: None, {}),
}
"""As many listeners that do nothing as the library has."""


def measure_plain_statements(engine: Engine, count: int, round_count: int) -> Finding:
    configure_mappers()  # as where an application's classes are in use
    create_tables(engine)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    envelope = cheap_envelope(sealed_rows=True)
    lines, figures = [], {}
    with Session(engine) as keys, engine.connect() as connection, Session(connection) as session:
        (person,) = enroll_people(keys, envelope, 1)
        inside: dict[str, Any] = {
            "nobody unlocked": nullcontext(),
            "one unlocked": envelope.unlock(keys, person, secret=SECRET),
            "server mode": envelope.server_mode(reason=REASON),
        }
        session.add(City(name="x"))  # the first: its key is 1
        session.flush()
        for where, entered in inside.items():
            with apart(entered) as inside_it:
                for name, run in runs(session).items():
                    found = inside_it(lambda run=run: compare(session, run, count, round_count))
                    figures[f"µs, {name}, {where}"], figures[f"µs, gate, {name}, {where}"], ratio = found
                    lines.append([where, name, f"{found[1]:.2f}", f"{found[0]:.2f}", f"{ratio:.3f}"])
    Base.metadata.drop_all(engine)
    sheet = Sheet(
        f"{DATABASE_NAMES[engine.dialect.name]}: what the library adds to a statement on a plain table",
        ["", "statement", "the gate, µs of the processor", "all listeners, µs", "all, ratio to no listeners"],
        lines,
    )
    return Finding(NAME, engine.dialect.name, [sheet], figures)


def runs(session: Session) -> dict[str, Run]:
    """One statement each, made anew for each execution, as in applications."""
    connection = session.connection()
    return {
        "SELECT": lambda: connection.execute(select(CITIES.c.name).where(CITIES.c.id == 1)).all(),
        "SELECT, ORM": lambda: session.scalars(select(City).where(City.id == 1)).all(),
        "INSERT": lambda: connection.execute(insert(CITIES), {"name": "x"}),
        "UPDATE": lambda: connection.execute(update(CITIES).where(CITIES.c.id == 1), {"name": "x"}),
        "DELETE": lambda: connection.execute(delete(CITIES).where(CITIES.c.id == 0)),
    }


def compare(session: Session, run: Run, count: int, round_count: int) -> tuple[float, float, float]:
    """The microseconds of all listeners, and of the gate, beyond as many listeners that do nothing; and the
    ratio of the whole statement to the statement without listeners."""
    engine = session.connection().engine
    all_over, gate_over, ratios = [], [], []
    for number in range(-1, round_count):
        took: dict[str, list[float]] = {OURS: [], GATE: [], NOTHING: [], NONE: []}
        with no_collector():
            for _ in range(count // SOME):
                for variant in sample(list(took), len(took)):
                    with listeners(engine, variant):
                        run()  # the first run after a change of listeners is slower
                        took[variant].append(processor_time(run))
        if number >= 0:  # the round before is for warming up
            ours, gate, nothing, none = (median(took[variant]) for variant in (OURS, GATE, NOTHING, NONE))
            all_over.append((ours - nothing) / SOME * 1e6)
            gate_over.append((gate - nothing) / SOME * 1e6)
            ratios.append(ours / none)
    return median(all_over), median(gate_over), median(ratios)


def processor_time(run: Run) -> float:
    """The seconds of a few executions. A shared machine changes its speed within a round, so they are few."""
    started = time.process_time()
    for _ in range(SOME):
        run()
    return time.process_time() - started


@contextmanager
def no_collector() -> Iterator[None]:
    """Switch the garbage collector off."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def listeners(engine: Any, variant: str) -> Iterator[None]:
    """Add these listeners to the engine."""
    replaced = [name for name in IDLE if variant == NOTHING or (variant == GATE and name != THE_GATE)]
    for name in replaced:
        ours, idle, options = IDLE[name]
        event.remove(Engine, name, ours)
        event.listen(Engine, name, idle, **options)
    engine._has_events = variant != NONE
    try:
        yield
    finally:
        engine._has_events = True
        for name in replaced:
            ours, idle, options = IDLE[name]
            event.remove(Engine, name, idle)
            event.listen(Engine, name, ours, **options)
