"""Rotations that meet: two runs at once, two rotations of one owner, and a transaction of the server's."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from sqlalchemy_envelope import ProviderRotation, should_retry
from sqlalchemy_envelope.orm.sessions import found_keys
from tests.orm.models import stored
from tests.orm.sharing_models import Base, Group, User
from tests.orm.verbs.rotating.scene import (
    NEW,
    OLD,
    OLD_ID,
    WRITTEN,
    application,
    read,
    rows_with,
    started,
    unlocked,
)

KEYS = Base.metadata.tables["users_key"]
envelope = application(OLD)


def test_two_runs_at_once(postgres_engine: Engine) -> None:
    """A rotation that is started twice does each owner once, and nothing is left half done."""
    started(postgres_engine)
    together = threading.Barrier(2, timeout=30)

    def run(_: int) -> int:
        both, done = application(NEW, OLD), ProviderRotation()
        with Session(postgres_engine) as session:
            batches = both.rotate_provider(session, User, batch=1)
            together.wait()
            for so_far in batches:
                session.commit()
                done = so_far
        return done.rotated

    with ThreadPoolExecutor(2) as threads:
        rotated = sum(threads.map(run, range(2)))
    with Session(postgres_engine) as session:
        for owner_class in (User, Group):
            for so_far in application(NEW, OLD).rotate_provider(session, owner_class):
                session.commit()
                rotated += so_far.rotated

    assert rotated == 4
    assert rows_with(postgres_engine, OLD_ID) == 0
    assert read(postgres_engine, application(NEW)) == WRITTEN


def test_two_rotations_of_one_owner(postgres_engine: Engine) -> None:
    """The second waits for the first, and makes the next epoch or is told to run again."""
    started(postgres_engine)
    begun = threading.Event()

    def second() -> bool:
        begun.set()
        try:
            with unlocked(postgres_engine, envelope) as (_, user, keys):
                keys.rotate(user, root=True)
        except Exception as error:
            if not should_retry(error):
                raise
            return False
        return True

    with ThreadPoolExecutor(1) as threads, unlocked(postgres_engine, envelope) as (session, user, keys):
        keys.rotate(user, root=True)
        running = threads.submit(second)
        begun.wait()
        session.commit()
        is_done = running.result(timeout=30)

    with postgres_engine.connect() as connection:
        active = select(KEYS.c.epoch).where(KEYS.c.owner_id == 1, KEYS.c.state == "active")
        assert connection.scalars(active).all() == [3 if is_done else 2] * 3
    assert read(postgres_engine, envelope) == WRITTEN


def test_a_transaction_of_the_server_that_lasts(
    postgres_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Server mode looks again in a transaction that is older than a minute: its next value is under the key
    that another process has made meanwhile."""
    started(postgres_engine)
    with Session(postgres_engine) as session, envelope.server_mode(session, reason="test"):
        user = session.get_one(User, 1)
        user.diary = "before"
        session.flush()
        with unlocked(postgres_engine, envelope) as (_, other, keys):
            keys.rotate(other)
        monkeypatch.setattr(found_keys, "LOOK_SECONDS", 0.0)
        user.display_name = "after"
        session.commit()

    value = stored(postgres_engine, User.display_name, 1)
    assert value is not None
    with postgres_engine.connect() as connection:
        mine = (KEYS.c.owner_id == 1, KEYS.c.scope == "profile", KEYS.c.state == "active")
        assert value[1:17] == connection.scalars(select(KEYS.c.key_id).where(*mine)).one().bytes
    assert read(postgres_engine, envelope) == [
        {"diary 1": "before", "name 1": "after"}.get(str(one), one) for one in WRITTEN
    ]
