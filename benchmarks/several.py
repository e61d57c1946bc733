"""Loading rows while several owners are unlocked, the normal case with groups.

As rows are fetched, the key of each value is compared with the row's owner
(`sqlalchemy_envelope/orm/reading/rows.py`). Rows of one owner are compared all at once, so that the number of
unlocked owners should not matter. Rows of three owners in turn are compared each by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import cycle
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
    Person,
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
IN_TURN = "3 owners in turn"
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
        f"{DATABASE_NAMES[engine.dialect.name]}: ORM load of {row_count:,} rows of groups with {COLUMNS} "
        "columns, µs per value over plaintext",
        ["", "processor", "wall", "ratio to bare AES-GCM"],
        lines,
    )
    return Finding(NAME, engine.dialect.name, [sheet], figures)


def make_loads(engine: Engine, envelope: Envelope, row_count: int, stack: ExitStack) -> dict[str, Load]:
    """The same load by the group alone, by a member of that group, and by a member of 49 groups. And a load
    of as many rows that belong to three groups in turn, by a member of these three."""
    session = stack.enter_context(Session(engine))
    one, many, three = enroll_people(session, envelope, 3)
    groups = [Group() for _ in range(52)]
    for group in groups[:49]:
        found(session, envelope, group, [one, many] if group is groups[0] else [many])
    for group in groups[49:]:
        found(session, envelope, group, [three])
    for start in range(1, row_count + 1, 5_000):
        rows = make_posts(start, min(5_000, row_count + 1 - start), groups[0].id)
        session.execute(insert(PlainPost), rows)
    with envelope.unlock(session, groups[0], provider="server", reason=REASON):
        insert_posts(session, row_count, groups[0].id)
    with envelope.unlock(session, three, secret=SECRET):
        insert_in_turn(session, row_count + 1, row_count, [group.id for group in groups[49:]])
    loads: dict[str, Load] = {PLAIN: partial(load, engine, PlainPost, 1, row_count)}
    for name, first, unlocked in (
        ("1 owner unlocked", 1, envelope.unlock(session, groups[0], provider="server", reason=REASON)),
        ("2 owners unlocked", 1, envelope.unlock(session, one, secret=SECRET)),
        ("50 owners unlocked", 1, envelope.unlock(session, many, secret=SECRET)),
        (IN_TURN, row_count + 1, envelope.unlock(session, three, secret=SECRET)),
    ):
        session.commit()
        inside = stack.enter_context(apart(unlocked))
        loads[name] = partial(inside, partial(load, engine, Post, first, row_count))
    return loads


def found(session: Session, envelope: Envelope, group: Group, members: list[Person]) -> None:
    """Make a group with these members, which the server can open too."""
    envelope.enroll(session, group, provider="server")
    with envelope.unlock(session, group, provider="server", reason=REASON):
        session.add_all([Membership(group_id=group.id, person_id=member.id) for member in members])
        session.commit()


def insert_in_turn(session: Session, first: int, count: int, group_ids: list[int]) -> None:
    for start in range(first, first + count, 5_000):
        rows = make_posts(start, min(5_000, first + count - start), group_ids[0])
        for row, group_id in zip(rows, cycle(group_ids), strict=False):
            row["group_id"] = group_id
        session.execute(insert(Post), rows)
    session.commit()


def load(engine: Engine, model: type[Any], first: int, count: int) -> list[Any]:
    with Session(engine) as session:
        posts = session.scalars(select(model).where(model.id.between(first, first + count - 1))).all()
        assert len(posts) == count
        return [(post.c1, post.c2, post.c3, post.c4, post.c5) for post in posts]
