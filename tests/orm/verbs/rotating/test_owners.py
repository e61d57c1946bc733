"""Rotation of data keys and root keys: new values are under new keys, and whoever could open an owner still
can, without being there."""

import datetime as dt
from typing import Any

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    AsyncEnvelope,
    AuditEvent,
    ConfigurationError,
    LockedError,
    OwnersRotation,
    UnlockError,
)
from sqlalchemy_envelope.migration import Migrator
from tests.orm.models import stored
from tests.orm.sharing_models import Base, Group, Post, User, secret_of
from tests.orm.verbs.rotating.scene import OLD, WRITTEN, application, read, started, unlocked

TABLES = Base.metadata.tables
KEYS, GROUP_KEYS, GRANTS = TABLES["users_key"], TABLES["groups_key"], TABLES["memberships_keygrant"]
envelope = application(OLD)


def _key_of(engine: Engine, column: Any, row: int) -> bytes:
    value = stored(engine, column, row)
    assert value is not None
    return value[1:17]


def _count(engine: Engine, *where: Any) -> int:
    with engine.connect() as connection:
        return int(connection.execute(select(func.count()).where(*where)).scalar_one())


def test_a_data_key(engine: Engine) -> None:
    """A new value is under the new key, an old value stays under the old key, and both are read: here, after
    another unlock, and by the server. The other scope has a new key too."""
    started(engine)
    old = _key_of(engine, User.diary, 1)
    with unlocked(engine, envelope) as (session, user, keys):
        rotated = keys.rotate(user)
        user.display_name = "name 1, again"
        session.flush()
        assert user.diary == "diary 1"

    assert len(rotated.made) == len(rotated.retired) == 2
    assert old in {one.bytes for one in rotated.retired}
    assert _key_of(engine, User.diary, 1) == old
    assert _key_of(engine, User.display_name, 1) in {one.bytes for one in rotated.made}
    assert read(engine, envelope) == [one if one != "name 1" else "name 1, again" for one in WRITTEN]
    with unlocked(engine, envelope) as (_, user, _):
        user.diary = "diary 1"
        user.display_name = "name 1"
        assert user.diary == "diary 1"
    assert read(engine, envelope) == WRITTEN


def test_one_scope(sqlite_engine: Engine) -> None:
    """With `scope`, the data key of that scope alone is replaced."""
    started(sqlite_engine)
    with unlocked(sqlite_engine, envelope) as (session, user, _):
        rotated = envelope.rotate(session, user, scope="profile")
        with pytest.raises(ConfigurationError, match="no data key of the scope 'other'"):
            envelope.rotate(session, user, scope="other")
        with pytest.raises(ConfigurationError, match="has no scope"):
            envelope.rotate(session, user, scope="profile", root=True)

    assert len(rotated.made) == 1
    assert rotated.retired[0].bytes == _key_of(sqlite_engine, User.display_name, 1)


def test_a_root_key(engine: Engine) -> None:
    """A user makes a new root key while nobody else is there. The secret, the server's slot and the grant of
    the group lead to it, and nothing is under the old root key any more."""
    started(engine)
    seen: list[AuditEvent] = []
    told = application(OLD, audit=seen.append)
    with unlocked(engine, told, 2) as (_, user, keys):
        rotated = keys.rotate(user, root=True)
        user.diary = "diary 2, again"
    old_root, new_root = rotated.retired[0], rotated.made[0]

    event = next(one for one in seen if one.name == "rotated")
    assert (event.owner_class, event.owner_id, event.count) == ("User", (2,), 3)
    assert _count(engine, KEYS.c.wrapping_key_id == old_root) == 0
    assert _count(engine, GRANTS.c.recipient_key_id == old_root) == 0
    assert _count(engine, GRANTS.c.recipient_key_id == new_root) == 1
    for _ in range(2):  # the first unlock adopts the slot
        with unlocked(engine, envelope, 2) as (session, user, keys):
            assert session.get_one(Post, 1).text == "post 1"
            assert (user.diary, user.display_name) == ("diary 2, again", "name 2")
            keys.settle()
    assert read(engine, envelope) == [one if one != "diary 2" else "diary 2, again" for one in WRITTEN]


def test_a_group(engine: Engine) -> None:
    """A member rotates the root key of its group: the member who was away reads old and new posts."""
    started(engine)
    with unlocked(engine, envelope) as (session, _, keys):
        group = session.get_one(Group, 1)
        keys.rotate(group, root=True)
        keys.rotate(group)
        session.add(Post(id=2, group_id=1, text="post 2"))
    for number in (2, 1):
        with unlocked(engine, envelope, number) as (session, _, _):
            posts = session.scalars(select(Post).order_by(Post.id))
            assert [one.text for one in posts] == ["post 1", "post 2"]

    epochs = (
        select(func.max(GROUP_KEYS.c.epoch)).group_by(GROUP_KEYS.c.purpose).order_by(GROUP_KEYS.c.purpose)
    )
    with engine.connect() as connection:
        assert list(connection.scalars(epochs)) == [3, 2]


@pytest.mark.parametrize("root", [False, True])
def test_a_rollback_takes_it_back(engine: Engine, root: bool) -> None:
    """After a rollback the keys before are the keys to write under, in the same unlocked session too."""
    started(engine)
    old = _key_of(engine, User.diary, 1)
    with unlocked(engine, envelope) as (session, user, keys):
        keys.rotate(user, root=root)
        session.rollback()
        user.diary = "diary 1, again"
        session.commit()
        assert _key_of(engine, User.diary, 1) == old
        user.diary = "diary 1"

    assert read(engine, envelope) == WRITTEN


def test_locked(sqlite_engine: Engine) -> None:
    """An owner that is not unlocked is not rotated; nor one that a left session had open."""
    started(sqlite_engine)
    with Session(sqlite_engine) as session, pytest.raises(LockedError):
        envelope.rotate(session, session.get_one(User, 1))
    with unlocked(sqlite_engine, envelope) as (_, user, keys):
        pass
    with pytest.raises(LockedError):
        keys.rotate(user)


def test_in_server_mode(engine: Engine) -> None:
    """The server rotates an owner it holds, and goes on under the new key in the same transaction."""
    started(engine)
    with Session(engine) as session, envelope.server_mode(session, reason="test"):
        user = session.get_one(User, 1)
        assert user.diary == "diary 1"
        rotated = envelope.rotate(session, user, root=True)
        user.diary = "again"
        session.commit()

    assert _key_of(engine, User.diary, 1) in {one.bytes for one in rotated.made}
    with unlocked(engine, envelope) as (_, user, _):
        assert (user.diary, user.display_name) == ("again", "name 1")


def _rotate_all(engine: Engine, **options: Any) -> OwnersRotation:
    last = OwnersRotation()
    with Session(engine) as session:
        for so_far in envelope.rotate_all(session, User, provider="server", reason="test", **options):
            session.commit()
            last = so_far
    return last


@pytest.mark.parametrize("root", [False, True])
def test_a_whole_class(engine: Engine, root: bool) -> None:
    """A job rotates every owner that the provider holds. A run with the same time finds what is left."""
    started(engine)
    before = dt.datetime.now(dt.timezone(dt.timedelta(hours=5)))
    with Session(engine) as session:
        run = envelope.rotate_all(
            session, User, provider="server", reason="test", root=root, before=before, batch=1
        )
        next(run)
        session.commit()
        next(run)
        session.rollback()
    rest = _rotate_all(engine, root=root, before=before)
    again = _rotate_all(engine, root=root, before=before)

    assert (rest.rotated, rest.skipped, rest.refused) == (2, 0, ())
    assert again.rotated == 0
    assert read(engine, envelope) == WRITTEN
    with unlocked(engine, envelope, 3) as (_, user, _):
        assert user.diary == "diary 3"


def test_values_are_encrypted_anew_in_bulk(engine: Engine) -> None:
    """After a rotation the migration engine puts every value of a column under its owner's new key. It needs
    no previous column."""
    started(engine)
    _rotate_all(engine)
    migrator = Migrator(engine, envelope, Base, provider="server")
    reports = [migrator.reencrypt(name) for name in ("users.diary", "users.display_name")]

    assert [(one.rows, one.locked, one.bad, one.finished) for one in reports] == [(3, 0, 0, True)] * 2
    with engine.connect() as connection:
        active = connection.scalars(select(KEYS.c.key_id).where(KEYS.c.state == "active")).all()
    ids = {one.bytes for one in active}
    columns = [User.diary, User.display_name]
    assert {_key_of(engine, column, number) in ids for column in columns for number in (1, 2, 3)} == {True}
    assert read(engine, envelope) == WRITTEN


def test_refused_arguments(sqlite_engine: Engine) -> None:
    """A time without a zone, and a job without a reason, are refused."""
    with Session(sqlite_engine) as session:
        with pytest.raises(ConfigurationError, match="time zone"):
            envelope.rotate_all(
                session, User, provider="server", reason="test", before=dt.datetime(2026, 1, 1)
            )
        with pytest.raises(ConfigurationError, match="Say why"):
            envelope.rotate_all(session, User, provider="server", reason="")


async def test_the_same_under_asyncio(async_engine: AsyncEngine) -> None:
    """An `AsyncEnvelope` rotates one owner, and a class of owners."""
    held = AsyncEnvelope(envelope)
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(async_engine) as session:
        users = [User(id=n, email=f"user{n}", diary=f"diary {n}") for n in (1, 2)]
        await held.enroll(
            session, users, secret={one: secret_of(one.email) for one in users}, provider="server"
        )
        await session.commit()
        async with held.unlock(session, users[0], secret=secret_of("user1")) as keys:
            with pytest.raises(ConfigurationError, match="await AsyncEnvelope"):
                keys.rotate(users[0])
            rotated = await held.rotate(session, users[0], root=True)
            await session.commit()
        run = held.rotate_all(session, User, provider="server", reason="test")
        found = []
        async for so_far in run:
            await session.commit()
            found.append(so_far.rotated)
        async with held.unlock(session, users[1], secret=secret_of("user2")):
            await session.refresh(users[1])
            assert users[1].diary == "diary 2"
        with pytest.raises(UnlockError):
            await held.unlock(session, users[1], secret="another")

    assert len(rotated.made) == 3
    assert found == [2]
