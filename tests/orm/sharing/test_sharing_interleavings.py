"""Whatever two requests do with a group at once: the invariants hold after each interleaving, every present
member reads everything, and nobody who was removed opens what is written later with keys that they kept.

`ENVELOPE_INTERLEAVINGS=all` runs every pair, stopped before every statement; some of them without it. On
MariaDB they run where `ENVELOPE_MARIADB_URL` names a server (`mysql+pymysql://root@127.0.0.1/`).
"""

import os
import threading

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session

from sqlalchemy_envelope import enforce_foreign_keys
from tests.orm import interleavings as machine
from tests.orm.interleavings import REQUESTS, Kept, Outcome, interleave, try_check
from tests.orm.sharing_models import Base, Membership, add_user, found_group, read, unlock
from tests.prepared import prepared

ALL = os.environ.get("ENVELOPE_INTERLEAVINGS") == "all"
EVERY = 1 if ALL else 9
"""Of the statements that the first is stopped before, each of so many."""
LEVELS = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]
QUICK = [
    (machine.adds, machine.adds),
    (machine.settles, machine.adds),
    (machine.adds, machine.removes),
    (machine.settles, machine.removes_by_sql),
    (machine.writes, machine.moves),
]
"""What locked members out before; the others are run on request."""


def _begin(engine: Engine) -> None:
    """The group as it is before each interleaving."""
    if engine.dialect.name != "mysql":
        prepared(engine, "interleavings", lambda: machine.build(engine))
        return
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP DATABASE IF EXISTS envelope_interleavings")
        connection.exec_driver_sql("CREATE DATABASE envelope_interleavings CHARACTER SET utf8mb4")
    engine.dispose()
    machine.build(engine)


def run(engine: Engine, level: str | None, pairs: list[tuple[object, object]], every: int) -> Outcome:
    """Interleave these pairs, stopped before each of so many statements."""
    outcome, url, kept = Outcome(), engine.url, None
    for first, second in pairs:
        for at in range(0, 200, every):
            _begin(engine)
            if kept is None or engine.dialect.name == "mysql":  # elsewhere it is a copy, with the same keys
                kept = Kept(engine)
            before = len(outcome.failures)
            if not interleave(url, level, first, second, at, outcome):  # type: ignore[arg-type]
                break
            outcome.failures += try_check(engine, kept)
            name = f"{first.__name__} stopped before {at}, {second.__name__}"  # type: ignore[attr-defined]
            outcome.failures[before:] = [f"{name}: {one}" for one in outcome.failures[before:]]
    print(
        f"{level or 'SQLite'}: {outcome.interleavings} interleavings, {outcome.again} run again, "
        f"{outcome.waited} waited, {len(outcome.failures)} failures"
    )
    return outcome


def pairs() -> list[tuple[object, object]]:
    """The pairs that are interleaved."""
    if ALL:
        return [(first, second) for first in REQUESTS for second in REQUESTS]
    return list(QUICK)


def test_on_sqlite(sqlite_engine: Engine) -> None:
    """With the one writer of an SQLite file."""
    assert run(sqlite_engine, None, pairs(), EVERY).failures == []


@pytest.mark.backend
@pytest.mark.parametrize("level", LEVELS)
def test_on_postgresql(postgres_engine: Engine, level: str) -> None:
    """At each isolation level."""
    some = pairs() if ALL or level == LEVELS[0] else pairs()[1:2]

    assert run(postgres_engine, level, some, EVERY).failures == []


@pytest.mark.parametrize("level", LEVELS)
def test_on_mariadb(level: str) -> None:
    """Likewise, on the server that `ENVELOPE_MARIADB_URL` names."""
    address = os.environ.get("ENVELOPE_MARIADB_URL")
    if not address:
        pytest.skip("ENVELOPE_MARIADB_URL names no server")
    server = create_engine(address)
    with server.begin() as connection:
        connection.exec_driver_sql("CREATE DATABASE IF NOT EXISTS envelope_interleavings")
    engine = create_engine(server.url.set(database="envelope_interleavings"))

    assert run(engine, level, pairs(), EVERY).failures == []
    for one in (engine, server):
        one.dispose()


# Many at once


def test_eight_add_a_member_at_once(engine: Engine) -> None:
    """One member's requests, each in a thread of its own: everybody reads what is written later, on SQLite
    and on PostgreSQL."""
    names = [f"user {number}" for number in range(8)]
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        ids = [add_user(session, name).id for name in ["founder", *names]][1:]
        group = found_group(session, "founder")
    other, begin = create_engine(engine.url, pool_size=8), threading.Barrier(8)
    if engine.dialect.name == "sqlite":
        enforce_foreign_keys(other)

    def add(number: int) -> None:
        with Session(other) as session, unlock(session, "founder"):
            session.commit()
            begin.wait(20)
            session.add(Membership(group_id=group, user_id=number))
            session.commit()

    failed: list[BaseException] = []

    def request(number: int) -> None:
        try:
            add(number)
        except BaseException as error:  # noqa: BLE001 - told below
            failed.append(error)

    threads = [threading.Thread(target=request, args=(number,)) for number in ids]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    other.dispose()
    machine.writes_as(engine, "founder", group)

    assert failed == []
    assert {name: len(read(engine, name)) for name in names} == dict.fromkeys(names, 2)
