"""Server mode for a whole process with several tenants whose owners have the same names: each transaction
writes under the keys that it found in its own database, whatever other threads open, exchange or let go of.

`ENVELOPE_RACE_ROWS=2000` for as many rows; some hundred without it.
"""

import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, create_engine, insert, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    CachePolicy,
    Envelope,
    KdfProfile,
    ServerKeyring,
    ServerSession,
    enforce_foreign_keys,
)
from sqlalchemy_envelope.orm.sessions import kept_owners
from sqlalchemy_envelope.orm.tables.collisions import may_pass
from tests.orm.models import Base, Note, User

ROWS = int(os.environ.get("ENVELOPE_RACE_ROWS", "90"))
THREADS, OWNERS = 6, 5
TENANTS = ("acme", "zeta")
FILES = ("file_acme", "file_zeta")
WAYS = ("flush", "bulk", "core", "unlocked", "write only")
Open = Callable[[str], Any]


def process(**options: Any) -> Envelope:
    """What a process that has just started has."""
    return Envelope(
        kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([b"\x07" * 32]), **options
    )


@pytest.fixture(params=["keys stay", "keys go at once"])
def serving(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerSession]:
    """Server mode for this process; once with a cache that lets go of everything that others may be using."""
    cache = CachePolicy()
    if request.param == "keys go at once":
        cache = CachePolicy(keys=1)
        monkeypatch.setattr(kept_owners, "_IN_USE", -1.0)
    server = process(cache=cache).server_mode(reason="test").everywhere()
    yield server
    if server.is_open:
        server.stop()


def schemas(engine: Engine) -> None:
    """A schema with all tables for each tenant."""
    for tenant in TENANTS:
        with engine.begin() as connection:
            connection.execute(sa.text(f"CREATE SCHEMA {tenant}"))
            connection.execute(sa.text(f"SET LOCAL search_path TO {tenant}"))
            Base.metadata.create_all(connection)


def by_search_path(engine: Engine) -> Open:
    """SQLAlchemy does not notice which tenant's tables it works on."""
    schemas(engine)

    @contextmanager
    def opened(tenant: str) -> Iterator[Session]:
        with Session(engine) as session:
            session.execute(sa.text(f"SET LOCAL search_path TO {tenant}"))
            yield session

    return opened


def by_function(engine: Engine) -> Open:
    """The same with a SELECT."""
    schemas(engine)

    @contextmanager
    def opened(tenant: str) -> Iterator[Session]:
        with Session(engine) as session:
            session.execute(select(sa.func.set_config("search_path", tenant, True)))
            yield session

    return opened


def by_translation(engine: Engine) -> Open:
    """SQLAlchemy's own way to a schema for each tenant."""
    schemas(engine)
    engines = {one: engine.execution_options(schema_translate_map={None: one}) for one in TENANTS}
    return lambda tenant: Session(engines[tenant])


def by_database(folder: Path) -> Open:
    """A file for each tenant."""
    engines = {}
    for tenant in (*TENANTS, *FILES):
        engines[tenant] = create_engine(
            f"sqlite:///{folder / tenant}.db", connect_args={"timeout": 60}, poolclass=sa.NullPool
        )
        enforce_foreign_keys(engines[tenant])
        Base.metadata.create_all(engines[tenant])
    return lambda tenant: Session(engines[tenant])


def by_both(engine: Engine, folder: Path) -> Open:
    """Two schemas of one database, and two other databases, in one process."""
    schema, file = by_translation(engine), by_database(folder)
    return lambda tenant: file(tenant) if tenant in FILES else schema(tenant)


@pytest.fixture(
    params=[
        "by_database",
        pytest.param("by_both", marks=pytest.mark.backend),
        *(
            pytest.param(name, marks=pytest.mark.backend)
            for name in ("by_search_path", "by_function", "by_translation")
        ),
    ]
)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens a session on a tenant's tables; each tenant has users 1 to 5, without keys."""
    if request.param == "by_database":
        open_one = by_database(tmp_path)
    elif request.param == "by_both":
        open_one = by_both(request.getfixturevalue("postgres_engine"), tmp_path)
    else:
        make: Callable[[Engine], Open] = globals()[request.param]
        open_one = make(request.getfixturevalue("postgres_engine"))
    for tenant in tenants_of(request):
        with open_one(tenant) as session:
            rows = [{"id": n, "email": f"{n}@{tenant}.example"} for n in range(1, OWNERS + 1)]
            session.execute(insert(User.__table__), rows)
            session.commit()
    return open_one


def tenants_of(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The tenants of a test: those of a file beside those of a schema where it has both."""
    way = request.node.callspec.params.get("opened")
    return (*TENANTS, *FILES) if way == "by_both" else TENANTS


def put(session: Session, way: str, owners: list[int], bodies: list[str]) -> None:
    """Write notes, in one of the ways there are."""
    rows = [{"user_id": owner, "body": body} for owner, body in zip(owners, bodies, strict=True)]
    if way == "bulk":
        session.execute(insert(Note), rows)
    elif way == "core":
        for row in rows:
            session.execute(insert(Note.__table__).values(row))
    elif way == "write only":
        with process().write_only(session):
            session.add_all(Note(**row) for row in rows)
            session.flush()
    elif way == "unlocked":
        for row in rows:
            owner = session.get_one(User, row["user_id"])
            with process().unlock(session, owner, provider="server", reason="test"):
                session.add(Note(**row))
                session.flush()
    else:
        session.add_all(Note(**row) for row in rows[:2])
        session.flush()
        session.add_all(Note(**row) for row in rows[2:])
    session.commit()


def foreign(opened: Open, tenant: str) -> int:
    """How many values of a tenant are not under a data key of their row's owner in the tenant's own table."""
    keys = Base.metadata.tables["users_key"]
    raw = sa.type_coerce(Note.__table__.c.body, sa.LargeBinary)
    with opened(tenant) as session:
        held = {
            (row.owner_id, row.key_id.bytes) for row in session.execute(select(keys.c["owner_id", "key_id"]))
        }
        values = session.execute(select(Note.__table__.c.user_id, raw)).all()
        return sum((user, bytes(value)[1:17]) not in held for user, value in values)


def test_each_tenant_is_written_under_its_own_keys(
    opened: Open, serving: ServerSession, request: pytest.FixtureRequest
) -> None:
    """Six threads write, in every way, for owners of several tenants that have the same names: no value is
    under a key of another tenant, and each is read by its owner."""
    tenants = tenants_of(request)
    expected: dict[str, set[str]] = {tenant: set() for tenant in tenants}
    for tenant in tenants:
        with opened(tenant) as session:  # so that everybody has keys to be unlocked with
            put(session, "flush", list(range(1, OWNERS + 1)), [f"{tenant} {n}" for n in range(OWNERS)])
            expected[tenant].update(f"{tenant} {n}" for n in range(OWNERS))
    guard = threading.Lock()

    def write(number: int) -> list[str]:
        order, wrong = random.Random(number), []
        for turn in range(ROWS // THREADS // 3):
            tenant, way = order.choice(tenants), order.choice(WAYS)
            owners = [order.randrange(OWNERS) + 1 for _ in range(3)]
            bodies = [f"{tenant} {owner} {number}-{turn}-{n}" for n, owner in enumerate(owners)]
            while True:
                try:
                    with opened(tenant) as session:
                        put(session, way, owners, bodies)
                    break
                except DBAPIError as error:
                    if not may_pass(error):
                        wrong.append(f"{way}: {type(error).__name__}: {error}")
                        break
                except Exception as error:  # noqa: BLE001 - every other one is a finding
                    wrong.append(f"{way}: {type(error).__name__}: {error}")
                    break
            with guard:
                expected[tenant].update(bodies)
        return wrong

    with ThreadPoolExecutor(THREADS) as pool:
        wrong = [one for found in pool.map(write, range(THREADS)) for one in found]
    serving.stop()

    assert wrong == []
    assert dict.fromkeys(tenants, 0) == {tenant: foreign(opened, tenant) for tenant in tenants}
    for tenant in tenants:
        with process().server_mode(reason="test"), opened(tenant) as session:
            assert expected[tenant] == {note.body for note in session.scalars(select(Note))}


@pytest.mark.backend
@pytest.mark.parametrize(
    "how", ["SET LOCAL search_path TO {}", "SELECT set_config('search_path', '{}', true)"]
)
def test_one_transaction_goes_from_tenant_to_tenant(postgres_engine: Engine, how: str) -> None:
    """What was found before the tenant was changed is not taken for what is there afterwards; nor are keys
    that the transaction itself made."""
    opened = by_search_path(postgres_engine)
    with process().server_mode(reason="test"), Session(postgres_engine) as session:
        for turn in range(2):
            for tenant in TENANTS:
                session.execute(sa.text(how.format(tenant)))
                if turn == 0:
                    session.execute(insert(User.__table__).values(id=1, email=f"1@{tenant}.example"))
                session.execute(insert(Note), [{"user_id": 1, "body": f"{tenant} {turn}"}])
        session.commit()

    assert [foreign(opened, tenant) for tenant in TENANTS] == [0, 0]
