"""The cost of an unlock: the key derivation, which is slow on purpose, apart from all other work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any
from unittest import mock

from argon2.low_level import Type, hash_secret_raw
from sqlalchemy import Engine, event
from sqlalchemy.orm import Session

from benchmarks.databases import SECRET, enroll_owner
from benchmarks.measure import Timing, timed
from benchmarks.variants import User
from sqlalchemy_envelope import Envelope
from sqlalchemy_envelope.crypto import argon2id


@dataclass(frozen=True)
class UnlockFigures:
    """Milliseconds by the wall clock, milliseconds of processor time, and statements sent to the database."""

    argon2id: Timing
    unlock: Timing
    rest: Timing
    statements: dict[str, int]


def derive_alone() -> None:
    """RFC 9106, second recommended option: the work that the default profile asks of Argon2id."""
    hash_secret_raw(SECRET.encode(), os.urandom(16), 3, 64 * 1024, 4, 32, Type.ID)


def measure_unlock(engine: Engine, envelope: Envelope, round_count: int) -> UnlockFigures:
    user_id = enroll_owner(engine, envelope)
    alone, unlocks, rests = [], [], []
    with Session(engine) as session, derivations() as inside:
        user = session.get_one(User, user_id)

        def unlock() -> None:
            with envelope.unlock(session, user, secret=SECRET):
                pass

        unlock()
        for _ in range(round_count):
            alone.append(timed(derive_alone))
            whole = timed(unlock)
            unlocks.append(whole)
            rests.append(Timing(whole.cpu - inside[-1].cpu, whole.wall - inside[-1].wall))
    return UnlockFigures(middle(alone), middle(unlocks), middle(rests), count_statements(engine, envelope))


@contextmanager
def derivations() -> Iterator[list[Timing]]:
    """Time Argon2id where the library calls it: the rest would be lost in a difference of two runs."""
    seen: list[Timing] = []

    def timed_hash(*arguments: Any, **options: Any) -> bytes:
        wall, cpu = time.perf_counter(), time.process_time()
        digest = hash_secret_raw(*arguments, **options)
        seen.append(Timing(time.process_time() - cpu, time.perf_counter() - wall))
        return digest

    with mock.patch.object(argon2id, "hash_secret_raw", timed_hash):
        yield seen


def middle(timings: list[Timing]) -> Timing:
    return Timing(
        median(timing.cpu for timing in timings) * 1e3, median(timing.wall for timing in timings) * 1e3
    )


def count_statements(engine: Engine, envelope: Envelope) -> dict[str, int]:
    """The statements of each ceremony: `enroll` with the owner's own INSERT, the others without loading the
    owner."""
    counts: dict[str, int] = {}

    def count(name: str, ceremony: Callable[[Session], Any]) -> None:
        with Session(engine) as session:
            with statements(engine) as seen:
                ceremony(session)
            counts[name] = len(seen)

    def enroll(session: Session) -> None:
        with envelope.enroll(session, User(), secret=SECRET):
            pass

    def unlock(session: Session) -> None:
        with envelope.unlock(session, owner(session), secret=SECRET):
            pass

    def change_secret(session: Session) -> None:
        envelope.change_secret(session, owner(session), old=SECRET, new="other words entirely")

    user_id = enroll_owner(engine, envelope)

    def owner(session: Session) -> User:
        return session.get_one(User, user_id)

    count("enroll", enroll)
    for name, ceremony in {"unlock": unlock, "change_secret": change_secret}.items():
        count(name, ceremony)
        counts[name] -= 1
    return counts


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """Collect every statement that reaches the driver."""
    seen: list[str] = []

    def listen(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        seen.append(statement)

    event.listen(engine, "before_cursor_execute", listen)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", listen)
