"""Four threads and two processes make the keys of the same owners at once, and `migrate run` beside them: no
failure that running the transaction again does not cure, and no owner with two root keys.

`ENVELOPE_RACE_OWNERS=2000` for as many owners; a few dozen without it.
"""

import multiprocessing
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor

import pytest
from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sqlalchemy_envelope import ServerSession, enforce_foreign_keys
from sqlalchemy_envelope.migration.running.runner import Pace
from sqlalchemy_envelope.orm.tables.collisions import may_pass
from sqlalchemy_envelope.orm.tables.conflict_errors import sql_state
from tests.conftest import LogCapture
from tests.migration.engine_models import Trial, deployment, new_envelope

OWNERS = int(os.environ.get("ENVELOPE_RACE_OWNERS", "40"))
THREADS, PROCESSES = 4, 2
LEVELS = [
    ("sqlite", None),
    *(
        pytest.param("postgres", level, marks=pytest.mark.backend)
        for level in ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")
    ),
]


def engine_of(url: str, level: str | None) -> Engine:
    """Connections of a process of its own."""
    if level is not None:
        return create_engine(url, isolation_level=level)
    engine = create_engine(url, connect_args={"timeout": 60})
    enforce_foreign_keys(engine)
    return engine


def write_for_all(engine: Engine, name: str) -> Counter[str]:
    """Write a note for every owner, in an order of its own, some at a time: what the database said to run
    again, by SQLSTATE, and every other error."""
    note = deployment("both").Note
    said: Counter[str] = Counter()
    order = random.Random(name)
    owners = list(range(1, OWNERS + 1))
    order.shuffle(owners)
    while owners:
        some = [owners.pop() for _ in range(min(order.choice((1, 1, 1, 20)), len(owners)))]
        for turn in range(200):
            try:
                with Session(engine) as session:
                    session.add_all(note(user_id=owner, body=f"{name} {owner}") for owner in some)
                    session.commit()
                break
            except DBAPIError as error:
                if not may_pass(error):
                    said[f"failed: {type(error).__name__}"] += 1
                    break
                said[sql_state(error) or "busy"] += 1
                time.sleep(order.uniform(0, 0.01 * min(turn + 1, 20)))
            except Exception as error:  # noqa: BLE001 - every other one is a finding
                said[f"failed: {type(error).__name__}: {error}"] += 1
                break
        else:
            said["failed: never went through"] += 1
    return said


def write_in_process(url: str, level: str | None, name: str) -> Counter[str]:
    """The same in a process that serves itself."""
    engine = engine_of(url, level)
    new_envelope().server_mode(reason="race").everywhere()
    try:
        return write_for_all(engine, name)
    finally:
        engine.dispose()


@pytest.fixture
def everywhere() -> Iterator[ServerSession]:
    """Server mode for this process."""
    server = new_envelope().server_mode(reason="race").everywhere()
    yield server
    if server.is_open:
        server.stop()


@pytest.mark.parametrize(("database", "level"), LEVELS)
def test_nobody_loses(
    request: pytest.FixtureRequest,
    database: str,
    level: str | None,
    everywhere: ServerSession,
    capture_logs: LogCapture,
) -> None:
    """Each writer ends with a note for each owner, the migration with every row, and each owner with one key
    of each kind."""
    url: URL = request.getfixturevalue(f"{database}_url")
    address = (url if level is None else url.set(drivername="postgresql+psycopg")).render_as_string(
        hide_password=False
    )
    engine = engine_of(address, level)
    trial = Trial(engine, users=list(range(1, OWNERS + 1)), pace=Pace(smallest=5, largest=50, patience=60.0))
    trial.create("notes")
    old = [
        {"id": owner, "user_id": owner, "title": None, "body": f"old {owner}"}
        for owner in range(1, OWNERS + 1)
    ]
    trial.insert("notes", old)
    if database == "postgres":
        trial.sql("SELECT setval(pg_get_serial_sequence('notes', 'id'), :last)", last=OWNERS)
    migrator = trial.migrator()
    migrator.expand("notes.body")
    began = time.monotonic()
    spawned = multiprocessing.get_context("spawn")
    with ThreadPoolExecutor(THREADS + 1) as threads, ProcessPoolExecutor(PROCESSES, spawned) as processes:
        writers: list[Future[Counter[str]]] = [
            processes.submit(write_in_process, address, level, f"process {number}")
            for number in range(PROCESSES)
        ]
        writers += [threads.submit(write_for_all, engine, f"thread {number}") for number in range(THREADS)]
        migration = threads.submit(migrator.run, "notes.body")
        said = sum((one.result() for one in writers), Counter[str]())
        assert migration.result().finished
    assert migrator.run("notes.body").finished
    everywhere.stop()
    print(f"{OWNERS} owners, {database} {level}: {time.monotonic() - began:.1f} s, said {dict(said)}")

    assert [text for text in said if text.startswith("failed")] == []
    assert "error ignored" not in capture_logs.text
    by_kind = "SELECT owner_id, purpose, count(*) FROM users_key WHERE state = 'active' GROUP BY 1, 2"
    assert Counter((purpose, count) for _, purpose, count in trial.sql(by_kind)) == {
        ("root", 1): OWNERS,
        ("data", 1): OWNERS,
    }
    names = ["old", *(f"thread {n}" for n in range(THREADS)), *(f"process {n}" for n in range(PROCESSES))]
    expected = Counter(f"{name} {owner}" for name in names for owner in range(1, OWNERS + 1))
    assert expected == Counter(trial.read("Note", "body", "refuse").values())
    engine.dispose()
