"""Rotation of a server key over many owners, each with a slot of the server, a root key and a data key.

The owners are enrolled a thousand at a time, so that a thousand slots share a key which the server wrapped.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from benchmarks.measure import Timing
from benchmarks.sharing_models import Person, create_tables
from benchmarks.sheets import DATABASE_NAMES, Finding, Sheet
from sqlalchemy_envelope import Envelope, KdfProfile, ProviderRotation, ServerKeyring

NAME = "key-rotation"
TOGETHER = 1_000


def measure_key_rotation(engine: Engine, owner_count: int) -> Finding:
    create_tables(engine)
    old, new = (ServerKeyring.generate_key() for _ in range(2))
    enroll(engine, envelope_of(old), owner_count)
    both = envelope_of(f"{new},{old}")
    small = megabytes()
    runs: list[ProviderRotation] = []
    first, again = (timed_with_collector(lambda: runs.append(rotate(engine, both))) for _ in range(2))
    done, nothing = runs
    found = DATABASE_NAMES[engine.dialect.name]
    sheet = Sheet(
        f"{found}: rotation of a server key over {owner_count:,} owners",
        ["", "owners", "keys wrapped", "rows written", "owners/s", "µs an owner, processor", "MiB more"],
        [
            [
                name,
                f"{run.rotated:,}",
                f"{run.keks:,}",
                f"{run.seals:,}",
                f"{owner_count / timing.wall:,.0f}",
                f"{timing.cpu / owner_count * 1e6:.0f}",
                f"{more:.0f}",
            ]
            for name, run, timing, more in (
                ("every owner", done, first, megabytes() - small),
                ("once more: nothing to do", nothing, again, megabytes() - small),
            )
        ],
    )
    figures = {"owners a second": owner_count / first.wall, "MiB more": megabytes() - small}
    return Finding(NAME, engine.dialect.name, [sheet], figures)


def timed_with_collector(action: Callable[[], None]) -> Timing:
    """As `timed`, with the garbage collector on: what is measured is memory, too."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return Timing(time.process_time() - cpu, time.perf_counter() - wall)


def envelope_of(keys: str) -> Envelope:
    return Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring.from_text(keys))


def enroll(engine: Engine, envelope: Envelope, owner_count: int) -> None:
    with Session(engine) as session:
        for _ in range(0, owner_count, TOGETHER):
            envelope.enroll(session, [Person() for _ in range(TOGETHER)], provider="server")
            session.commit()
            session.expunge_all()


def rotate(engine: Engine, envelope: Envelope) -> ProviderRotation:
    last = ProviderRotation()
    with Session(engine) as session:
        for so_far in envelope.rotate_provider(session, Person):
            session.commit()
            last = so_far
    return last


def megabytes() -> float:
    """The most memory that this process has had so far."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 1024 if sys.platform != "darwin" else size / 1024 / 1024
