"""The cost of a change of members: a member leaves a large group, and a member joins a group with many rows.

It counts the statements, the sealed grants and the changed rows of data. The rows are counted by comparing
the whole table before and after, which no statement can hide from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from benchmarks.databases import SECRET
from benchmarks.measure import Timing, timed
from benchmarks.sharing_models import (
    Base,
    Group,
    Membership,
    Person,
    cheap_envelope,
    create_tables,
    enroll_people,
    found_group,
    insert_posts,
    traffic,
)
from benchmarks.sheets import DATABASE_NAMES, Finding, Sheet

NAME = "rotation"
GRANTS = Base.metadata.tables["memberships_keygrant"]


@dataclass
class Change:
    """One change of members, done several times."""

    timings: list[Timing]
    reads: int
    writes: int
    batches: int
    sealed: int
    touched: int


def measure_rotation(engine: Engine, member_count: int, row_count: int, round_count: int) -> Finding:
    create_tables(engine)
    envelope = cheap_envelope(sealed_rows=True)
    with Session(engine) as session:
        founder, *people = enroll_people(session, envelope, member_count)
        away = enroll_people(session, envelope, round_count)
        with envelope.unlock(session, founder, secret=SECRET):
            crowd = found_group(session, envelope, [founder, *people])
            small, large = (found_group(session, envelope, [founder]) for _ in range(2))
            insert_posts(session, row_count, large.id)
            changes = {
                f"one of {member_count:,} members leaves": repeat(
                    engine, [partial(leave, session, crowd, one) for one in people[:round_count]]
                ),
                "one joins a group without rows": repeat(
                    engine, [partial(join, session, small, one) for one in away]
                ),
                f"one joins a group with {row_count:,} rows": repeat(
                    engine, [partial(join, session, large, one) for one in away]
                ),
            }
    leaving, _, joining = changes.values()
    sheet = Sheet(
        f"{DATABASE_NAMES[engine.dialect.name]}: a change of members",
        [
            "",
            "statements that read",
            "that write",
            "of them for grants",
            "grants sealed",
            "data rows touched",
            "ms, processor",
            "ms, wall",
        ],
        [
            [
                name,
                str(change.reads),
                str(change.writes),
                str(change.batches),
                str(change.sealed),
                str(change.touched),
                f"{median(timing.cpu for timing in change.timings) * 1e3:.1f}",
                f"{median(timing.wall for timing in change.timings) * 1e3:.1f}",
            ]
            for name, change in changes.items()
        ],
    )
    figures = {
        "statements, leaving": float(leaving.reads + leaving.writes),
        "batches, leaving": float(leaving.batches),
        "seals beyond members, leaving": float(leaving.sealed - (member_count - 1)),
        "data rows touched, leaving": float(leaving.touched),
        "data rows touched, joining": float(joining.touched),
        "statements, joining": float(joining.reads + joining.writes),
    }
    return Finding(NAME, engine.dialect.name, [sheet], figures)


def repeat(engine: Engine, actions: list[Callable[[], None]]) -> Change:
    """The counts are those of the first change; the rows are compared over all changes."""
    before, sealed = rows_of_posts(engine), sealed_grants(engine)
    with traffic(engine) as seen:
        first = timed(actions[0])
    reads = sum(statement.lstrip().upper().startswith("SELECT") for statement, _ in seen)
    new_grants = len(sealed_grants(engine) - sealed)
    timings = [first, *map(timed, actions[1:])]
    touched = len(before - rows_of_posts(engine))
    batches = sum(statement.startswith(f"INSERT INTO {GRANTS.name} ") for statement, _ in seen)
    return Change(timings, reads, len(seen) - reads, batches, new_grants, touched)


def leave(session: Session, group: Group, person: Person) -> None:
    session.delete(session.get_one(Membership, (group.id, person.id)))
    session.commit()


def join(session: Session, group: Group, person: Person) -> None:
    session.add(Membership(group_id=group.id, person_id=person.id))
    session.commit()


def sealed_grants(engine: Engine) -> set[object]:
    with engine.connect() as connection:
        return set(connection.scalars(select(GRANTS.c.grant_id).where(GRANTS.c.state == "sealed")))


def rows_of_posts(engine: Engine) -> set[object]:
    with engine.connect() as connection:
        return {tuple(row) for row in connection.execute(text("SELECT * FROM posts"))}
