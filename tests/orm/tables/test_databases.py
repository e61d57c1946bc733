"""Two engines reach one database if they say the same host, port and database; else each is its own."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

from sqlalchemy_envelope import ConfigurationError, Envelope, KdfProfile, LockedError, enforce_foreign_keys
from sqlalchemy_envelope.orm.current import policy
from sqlalchemy_envelope.orm.tables.databases import database_name
from tests.orm import sharing_models as sharing
from tests.orm.models import SECRET, Base, Note, User, envelope

URL = "postgresql+psycopg://db.example/app"


def name(url: str = URL, **more: Any) -> str:
    return database_name(create_engine(url, **more), None)


def test_connect_args_count_as_the_url_does() -> None:
    """A database, host or service in `connect_args` names the database; a setting of the session does not."""
    plain = name()
    others = [
        name(connect_args={"dbname": "other"}),
        name(connect_args={"host": "other.example"}),
        name(connect_args={"hostaddr": "192.0.2.1"}),
        name(connect_args={"service": "other"}),
        name(connect_args={"options": "endpoint=other"}),
        name(connect_args={"conninfo": "dbname=other"}),
        name(URL + "?service=other2"),
        name("postgresql+psycopg:///?service=one"),
        name("postgresql+psycopg:///?service=two"),
        name("postgresql+psycopg:///?application_name=one"),
        name("postgresql+psycopg:///?application_name=one"),
    ]

    assert len({plain, *others}) == len(others) + 1
    assert plain == name(connect_args={"dbname": "app"}) == name(connect_args={"sslmode": "require"})
    assert plain == name(connect_args={"options": "-c lock_timeout=4s -csearch_path=a"})
    assert plain == name("postgresql+psycopg://db.example/", connect_args={"dbname": "app"})
    assert plain == name("postgresql+asyncpg://db.example/", connect_args={"database": "app"})


def test_an_engine_that_chooses_by_a_function_is_its_own() -> None:
    """`creator=`, a pool of the application's and a `do_connect` listener may lead anywhere."""
    listening = create_engine(URL)
    plain = database_name(listening, None)
    event.listen(listening, "do_connect", lambda *_: None)
    names = [
        name(creator=lambda: None),
        name(creator=lambda: None),
        name(pool=QueuePool(lambda: None)),  # type: ignore[arg-type, return-value]
        database_name(listening, None),
        database_name(listening.execution_options(isolation_level="AUTOCOMMIT"), None),
    ]

    assert plain == name()
    assert len({plain, *names}) == 5
    assert names[-2] == names[-1]
    assert database_name(listening, "app") == "realm app"


def _by_creator(path: Path) -> Engine:
    return create_engine("sqlite:///one.db", creator=lambda: sqlite3.connect(path))


def _by_listener(path: Path) -> Engine:
    engine = create_engine("sqlite:///one.db")

    @event.listens_for(engine, "do_connect")
    def _(dialect: Any, record: Any, arguments: list[Any], named: Any) -> None:
        arguments[0] = str(path)

    return engine


@pytest.mark.parametrize("make", [_by_creator, _by_listener])
def test_two_files_behind_one_url(tmp_path: Path, make: Callable[[Path], Engine]) -> None:
    """Who is unlocked in one file is locked in the other; the error says how one name is given to both."""
    engines = [make(tmp_path / name) for name in ("a.db", "b.db")]
    for engine in engines:
        enforce_foreign_keys(engine)
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            envelope.enroll(session, User(email="x"), secret=SECRET)
            session.commit()

    with (
        Session(engines[0]) as one,
        Session(engines[1]) as other,
        envelope.unlock(one, one.get_one(User, 1), secret=SECRET),
    ):
        other.add(Note(user_id=1, body="x"))
        with pytest.raises(LockedError, match=r"Envelope\(realm='app'\)"):
            other.flush()


@pytest.mark.parametrize("realm", ["\ud800", " ", lambda _: 5, lambda _: "\ud800"])
def test_a_realm_that_is_no_name_is_told(realm: Any) -> None:
    """Text that UTF-8 cannot hold is refused at once, and what a function gives, when it is asked."""
    with pytest.raises(ConfigurationError, match="realm"):
        database_name(create_engine(URL), Envelope(realm=realm, kdf_profile=PROFILE).policy.seals.realm)


PROFILE = KdfProfile.unsafe_for_tests()


def test_two_envelopes_and_no_say_which(sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flush goes by one of the two, be it the other database's: members are added and removed, as it needs
    no key for that."""
    monkeypatch.setattr(policy.ENVELOPES, "policies", WeakSet())
    mine = Envelope(kdf_profile=PROFILE)
    sharing.Base.metadata.create_all(sqlite_engine)
    with Session(sqlite_engine) as session:
        users = [sharing.User(id=number, email=str(number)) for number in (1, 2)]
        mine.enroll(session, users, secret=dict.fromkeys(users, SECRET))
        with mine.unlock(session, users[0], secret=SECRET):
            mine.enroll(session, sharing.Group(id=1))
            session.add(sharing.Membership(group_id=1, user_id=1))
            session.commit()
    another = Envelope(realm="the other one", kdf_profile=PROFILE)
    for is_there in (True, False):
        with Session(sqlite_engine) as session:
            if is_there:
                session.add(sharing.Membership(group_id=1, user_id=2))
            else:
                session.delete(session.get_one(sharing.Membership, (1, 2)))
            session.commit()
            states = another.grant_states(session, sharing.Membership)

        assert ({1, 2} if is_there else {1}) == {one.row[1] for one in states}
    assert sharing.epochs(sqlite_engine, sharing.Group, 1) == 2
