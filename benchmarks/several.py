"""Loading rows while several owners are unlocked, which with groups is the normal case.

With one owner unlocked every row is that owner's. With several, each value's key is compared with its row's
owner as the rows are fetched (`sqlalchemy_envelope/orm/reading/rows.py`): what that costs is the difference.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from random import shuffle
from statistics import median
from typing import Any

from sqlalchemy import Engine, insert, select
from sqlalchemy.orm import Session

from benchmarks.databases import SECRET
from benchmarks.measure import Timing, timed
from benchmarks.operations import BareCipher
from benchmarks.sharing_models import (
    Group,
    Membership,
    PlainPost,
    Post,
    apart,
    cheap_envelope,
    create_tables,
    enroll_people,
    insert_posts,
    make_posts,
)
from benchmarks.sheets import DATABASE_NAMES, Finding, Sheet
from sqlalchemy_envelope import Envelope

NAME = "several-owners"
REASON = "benchmark"
PLAIN = "plaintext"
COLUMNS = 5
Load = Callable[[], object]


def measure_several(engine: Engine, row_count: int, round_count: int) -> Finding:
    create_tables(engine)
    envelope = cheap_envelope(sealed_rows=True)
    with ExitStack() as stack:
        loads = make_loads(engine, envelope, row_count, stack)
        runs: dict[str, list[Timing]] = {name: [] for name in loads}
        bare_cipher = BareCipher(COLUMNS * row_count, "posts.c1")
        bare: list[float] = []
        for number in range(-1, round_count):
            order = list(loads.items())
            shuffle(order)
            for name, load in order:
                timing = timed(load)
                if number >= 0:  # the round before is for warming up
                    runs[name].append(timing)
            if number >= 0:
                bare.append(timed(bare_cipher.decrypt).cpu)
    figures, lines = {}, []
    for name, timings in runs.items():
        if name == PLAIN:
            total = median(run.cpu for run in timings) * 1e3
            lines.append([f"{PLAIN}, in all", f"{total:.0f} ms", "", ""])
            continue
        cost = [run.cpu - plain.cpu for run, plain in zip(timings, runs[PLAIN], strict=True)]
        wall = [run.wall - plain.wall for run, plain in zip(timings, runs[PLAIN], strict=True)]
        found = median(one / unit for one, unit in zip(cost, bare, strict=True))
        figures[f"ratio, {name}"] = found
        values = row_count * COLUMNS
        lines.append(
            [
                name,
                f"{median(cost) / values * 1e6:.2f}",
                f"{median(wall) / values * 1e6:.2f}",
                f"{found:.1f}×",
            ]
        )
    sheet = Sheet(
        f"{DATABASE_NAMES[engine.dialect.name]}: ORM load of {row_count:,} rows of one group with {COLUMNS} "
        "columns, µs per value over plaintext",
        ["", "processor", "wall", "ratio to bare AES-GCM"],
        lines,
    )
    return Finding(NAME, engine.dialect.name, [sheet], figures)


def make_loads(engine: Engine, envelope: Envelope, row_count: int, stack: ExitStack) -> dict[str, Load]:
    """The same load, by the group alone, by somebody in that group, and by somebody in 49 groups."""
    session = stack.enter_context(Session(engine))
    one, many = enroll_people(session, envelope, 2)
    groups = [Group() for _ in range(49)]
    for group in groups:
        envelope.enroll(session, group, provider="server")
        with envelope.unlock(session, group, provider="server", reason=REASON):
            members = [one, many] if group is groups[0] else [many]
            session.add_all([Membership(group_id=group.id, person_id=member.id) for member in members])
            session.commit()
            if group is groups[0]:
                insert_posts(session, row_count, group.id)
    for start in range(1, row_count + 1, 5_000):
        rows = make_posts(start, min(5_000, row_count + 1 - start), groups[0].id)
        session.execute(insert(PlainPost), rows)
    session.commit()
    loads: dict[str, Load] = {PLAIN: partial(load, engine, PlainPost)}
    for name, unlocked in {
        "1 owner unlocked": envelope.unlock(session, groups[0], provider="server", reason=REASON),
        "2 owners unlocked": envelope.unlock(session, one, secret=SECRET),
        "50 owners unlocked": envelope.unlock(session, many, secret=SECRET),
    }.items():
        session.commit()
        inside = stack.enter_context(apart(unlocked))
        loads[name] = partial(inside, partial(load, engine, Post))
    return loads


def load(engine: Engine, model: type[Any]) -> list[Any]:
    with Session(engine) as session:
        posts = session.scalars(select(model)).all()
        return [(post.c1, post.c2, post.c3, post.c4, post.c5) for post in posts]
