"""A member of many groups that have lived through many epochs: the cost of an unlock, step by step.

The epochs are real: in each group members joined and left, through the unit of work, while a founder was
unlocked, until there were enough epochs. The member was away all the time. The first write after the first
unlock adopts every epoch of every group, and each later unlock finds them adopted. After each unlock a page
of one group is read, as in a request.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from benchmarks.databases import SECRET
from benchmarks.measure import timed
from benchmarks.sharing_models import (
    Group,
    Membership,
    Person,
    Post,
    apart,
    cheap_envelope,
    create_tables,
    enroll_people,
    insert_posts,
    traffic,
)
from benchmarks.sheets import DATABASE_NAMES, Finding, Sheet
from benchmarks.steps import Places, StepClock
from sqlalchemy_envelope import Envelope, UnlockedSession
from sqlalchemy_envelope.keys.keyring import Keyring
from sqlalchemy_envelope.keys.row_seals import RowSeals
from sqlalchemy_envelope.orm.tables import key_rows
from sqlalchemy_envelope.orm.verbs import owner_keys
from sqlalchemy_envelope.orm.verbs.log_in import unlock

NAME = "groups"
FIRST, LATER = "member, first", "member, later"
NEWEST = 1001
"""The first of ten posts in the newest epoch of the first group."""
AWAY = 3
"""The number of members of each kind. A member has one first unlock, so the median needs several members."""
STEPS: Places = {
    "Argon2id": [(Envelope, "perform")],
    "own keys, query and rows": [(unlock, "load_keys")],
    "own slots, query and rows": [(key_rows.KeyStore, "load_slots")],
    "seals of rows": [(RowSeals, "check")],
    "generations": [(owner_keys, "check_generations")],
    "opening keys": [(Keyring, "open"), (unlock, "open_with_kek")],
}


@dataclass(frozen=True)
class Sizes:
    groups: int
    epochs: int
    rounds: int


def measure_groups(engine: Engine, sizes: Sizes) -> Finding:
    sheets, figures = [], {}
    for sealed_rows in (False, True):
        create_tables(engine)
        envelope = cheap_envelope(sealed_rows=sealed_rows)
        members, newcomers = make_groups(engine, envelope, sizes)
        runs = {
            FIRST: [unlock_once(engine, envelope, one) for one in members],
            LATER: [unlock_once(engine, envelope, members[0]) for _ in range(sizes.rounds)],
            "newcomer, first": [unlock_once(engine, envelope, one) for one in newcomers],
            "newcomer, later": [unlock_once(engine, envelope, newcomers[0]) for _ in range(sizes.rounds)],
        }
        for kind in (FIRST, LATER):
            suffix = f"{kind}, row seals" if sealed_rows else kind
            figures[f"queries, {suffix}"] = float(max(run.queries for run in runs[kind]))
            figures[f"milliseconds, {suffix}"] = median(run.rest for run in runs[kind])
            figures[f"milliseconds with a page, {suffix}"] = median(run.cpu + run.page for run in runs[kind])
        sheets.append(steps_sheet(engine, sizes, "with row seals" if sealed_rows else "no server keys", runs))
        if not sealed_rows:
            sheets.append(reading_sheet(engine, envelope, {"member": members[0], "newcomer": newcomers[0]}))
    return Finding(NAME, engine.dialect.name, sheets, figures)


def make_groups(engine: Engine, envelope: Envelope, sizes: Sizes) -> tuple[list[int], list[int]]:
    """The ids of members from the first epoch on, and of some members who joined in the last epoch."""
    with Session(engine) as session:
        founder, guest, *others = enroll_people(session, envelope, 2 + 2 * AWAY)
        members, newcomers = others[:AWAY], others[AWAY:]
        with envelope.unlock(session, founder, secret=SECRET):
            groups = [Group() for _ in range(sizes.groups)]
            for group in groups:
                envelope.enroll(session, group)
                session.add_all([join(group, person) for person in (founder, guest, *members)])
            session.commit()
            insert_posts(session, 10, groups[0].id)
            for epoch in range(2, sizes.epochs + 1):
                for group in groups:
                    session.delete(session.get_one(Membership, (group.id, guest.id)))
                session.commit()
                if epoch < sizes.epochs:
                    session.add_all([join(group, guest) for group in groups])
                    session.commit()
            session.add_all([join(group, one) for group in groups for one in newcomers])
            session.commit()
            insert_posts(session, 10, groups[0].id, first=NEWEST)
        return [one.id for one in members], [one.id for one in newcomers]


def join(group: Group, person: Person) -> Membership:
    return Membership(group_id=group.id, person_id=person.id)


@dataclass(frozen=True)
class Run:
    """One unlock: its milliseconds, and its statements."""

    whole: float
    cpu: float
    steps: dict[str, float]
    queries: int
    writes: int
    page: float
    """Processor time of reading ten rows of one group."""
    page_queries: int
    """What reading them sent, the query for the rows included."""
    settling: float
    """Processor time of what a first write after it adds: sealed grants adopted, pending ones fulfilled."""

    @property
    def rest(self) -> float:
        return self.whole - self.steps["Argon2id"]


def unlock_once(engine: Engine, envelope: Envelope, person_id: int) -> Run:
    """Unlock with clock and counters at once: a second unlock would adopt nothing."""
    clock = StepClock()
    page = select(Post).where(Post.id.between(NEWEST, NEWEST + 9))
    with Session(engine) as session:
        person = session.get_one(Person, person_id)
        with traffic(engine) as seen, clock.running(STEPS):
            unlocked: list[UnlockedSession] = []
            timing = timed(lambda: unlocked.append(envelope.unlock(session, person, secret=SECRET)))
            steps = dict(clock.milliseconds)
        with unlocked[0]:
            with traffic(engine) as for_page:
                reading = timed(lambda: session.scalars(page).all())
            settling = timed(lambda: unlocked[0].settle())
            session.commit()
    queries = sum(statement.lstrip().upper().startswith("SELECT") for statement, _ in seen)
    return Run(
        timing.wall * 1e3,
        timing.cpu * 1e3,
        steps,
        queries,
        len(seen) - queries,
        reading.cpu * 1e3,
        len(for_page),
        settling.cpu * 1e3,
    )


def steps_sheet(engine: Engine, sizes: Sizes, how: str, runs: dict[str, list[Run]]) -> Sheet:
    steps = [step for step in STEPS if step != "Argon2id"]
    lines = [
        [step, *(middle(run.steps.get(step, 0.0) for run in some) for some in runs.values())]
        for step in steps
    ]
    others = [
        [run.rest - sum(run.steps.get(step, 0.0) for step in steps) for run in some] for some in runs.values()
    ]
    lines.append(["everything else", *map(middle, others)])
    lines.append(["in all", *(middle(run.rest for run in some) for some in runs.values())])
    lines.append(["in all, processor time", *(middle(run.cpu for run in some) for some in runs.values())])
    lines.append(
        [
            "settling after it, processor time",
            *(middle(run.settling for run in some) for some in runs.values()),
        ]
    )
    pages = [middle(run.page for run in some) for some in runs.values()]
    lines.append(["a page of one group after it, processor time", *pages])
    lines.append(["queries", *(str(some[0].queries) for some in runs.values())])
    lines.append(["queries of the page", *(str(some[0].page_queries) for some in runs.values())])
    lines.append(["statements that write", *(str(some[0].writes) for some in runs.values())])
    return Sheet(
        f"{DATABASE_NAMES[engine.dialect.name]}: unlocking a member of {sizes.groups} groups of "
        f"{sizes.epochs} epochs, {how}: ms beyond Argon2id",
        ["", *runs],
        lines,
    )


def middle(values: Any) -> str:
    return f"{median(values):.1f}"


def reading_sheet(engine: Engine, envelope: Envelope, readers: dict[str, int]) -> Sheet:
    """The first value of the oldest epoch opens the way to that epoch; the next value does not."""
    lines = []
    for name, person_id in readers.items():
        with Session(engine) as session:
            person = session.get_one(Person, person_id)
            with apart(envelope.unlock(session, person, secret=SECRET)) as inside:
                times = [inside(partial(read_one, session, number)) for number in range(1, 11)]
                session.commit()
        lines.append([name, f"{times[0]:.2f}", f"{median(times[2:]):.2f}"])
    return Sheet(
        f"{DATABASE_NAMES[engine.dialect.name]}: loading one row of 5 values of a group's oldest epoch, ms",
        ["", "the first", "each after it"],
        lines,
    )


def read_one(session: Session, number: int) -> float:
    start = time.perf_counter()
    post = session.scalars(select(Post).where(Post.id == number)).one()
    assert post.c5.startswith("c5-value")
    return (time.perf_counter() - start) * 1e3
