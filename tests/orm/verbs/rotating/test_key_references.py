"""A key is destroyed only if nothing refers to it, over every column and table, and no backup needs it."""

import datetime as dt
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    AsyncEnvelope,
    ConfigurationError,
    EncryptedType,
    KeyInUseError,
    KeyNotFoundError,
    KeyReferences,
    LockedError,
    TransactionConflictError,
)
from sqlalchemy_envelope.orm.sharing import active_keys
from sqlalchemy_envelope.orm.tables import retirements
from sqlalchemy_envelope.orm.tables.key_rows import KeyStore
from sqlalchemy_envelope.orm.verbs.rotation import key_destruction
from tests.orm.sharing_models import Base, Group, Membership, Post, User, secret_of
from tests.orm.verbs.rotating.scene import (
    NEW,
    NEW_ID,
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
NOW: dict[str, Any] = {"horizon": dt.timedelta(0)}


def _rotated(engine: Engine, *, root: bool = False, reencrypt: bool = True) -> Any:
    """Rotate user 1 and write its values anew; return the ids of its retired keys, the diary's last."""
    with unlocked(engine, envelope) as (session, user, keys):
        rotated = keys.rotate(user, root=root)
        if reencrypt:
            for name in ("diary", "display_name"):
                value = getattr(user, name)
                setattr(user, name, None)
                session.flush()
                setattr(user, name, value)
                session.flush()
        by_scope = select(KEYS.c.key_id).where(KEYS.c.key_id.in_(rotated.retired))
        return session.scalars(by_scope.order_by(KEYS.c.purpose.desc(), KEYS.c.scope.desc())).all()


def _long_ago(engine: Engine) -> None:
    """The retirement of each key was an hour ago: the column is under no seal."""
    with engine.begin() as connection:
        for owner_class in (User, Group):
            table = owner_class.__key_class__.__table__
            retired = table.c.retired_at.is_not(None)
            hour_ago = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
            connection.execute(update(table).where(retired).values(retired_at=hour_ago))


def _references(engine: Engine, key: Any, **options: Any) -> KeyReferences:
    with Session(engine) as session:
        return envelope.key_references(session, Base, key, **options)


def _destroy(engine: Engine, key: Any, **options: Any) -> KeyReferences:
    with Session(engine) as session:
        found = envelope.destroy_key(session, Base, key, **(options or NOW))
        session.commit()
        return found


def _values_by_brute_force(engine: Engine, key_id: Any) -> int:
    """Every encrypted column of every table, read whole, past the library."""
    count = 0
    with engine.connect() as connection:
        for table in Base.metadata.tables.values():
            for column in table.columns:
                if isinstance(column.type, EncryptedType):
                    rows = connection.execute(text(f"SELECT {column.name} FROM {table.name}"))
                    count += sum(bytes(row[0])[1:17] == key_id.bytes for row in rows if row[0] is not None)
    return count


def test_the_proof_equals_a_full_scan(engine: Engine) -> None:
    """For every key of every owner, the counted values are those of a brute-force scan of every column."""
    started(engine)
    _rotated(engine, reencrypt=False)
    with engine.connect() as connection:
        ids = [
            one
            for t in ("users_key", "groups_key")
            for one in connection.scalars(select(Base.metadata.tables[t].c.key_id))
        ]
    columns = {
        f"{table.name}.{column.name}"
        for table in Base.metadata.tables.values()
        for column in table.columns
        if isinstance(column.type, EncryptedType)
    }
    scanned = []
    for key_id in ids:
        found = _references(engine, key_id)
        values = [one for one in found.references if one.what == "value"]
        assert sum(one.count for one in values) == _values_by_brute_force(engine, key_id)
        if found.kind == "data":
            scanned.append(sum(one.count for one in values))
            assert {one.place for one in values} == columns

    assert sorted(scanned) == [0, 0, 1, 1, 1, 1, 1, 1, 2]


def test_a_write_epoch_that_goes_on(sqlite_engine: Engine) -> None:
    """Its key may still get values, until the epoch is over: no clock is blamed."""
    started(sqlite_engine)
    with Session(sqlite_engine) as session:
        user = session.get_one(User, 1)
        with envelope.write_only(session, user):
            user.diary = "from outside"
            session.commit()
    with sqlite_engine.connect() as connection:
        key_id = connection.scalar(select(KEYS.c.key_id).where(KEYS.c.purpose == "write"))
    found = _references(sqlite_engine, key_id)
    now = dt.datetime.now(dt.UTC)
    reasons = " ".join(found.reasons(now))

    assert "its write epoch goes on, and it may get values until" in reasons
    assert "clock" not in reasons
    assert found.retired_at is not None
    assert "write epoch" not in " ".join(found.reasons(found.retired_at))


@pytest.mark.parametrize("root", [False, True])
def test_a_key_that_nothing_needs_is_destroyed(engine: Engine, root: bool) -> None:
    """Its bytes are gone from the database, and everything else is read as before."""
    started(engine)
    retired = _rotated(engine, root=root)
    _long_ago(engine)
    for key_id in reversed(retired):
        assert _destroy(engine, key_id).state == "destroyed"
        assert _destroy(engine, key_id).state == "destroyed"  # once more changes nothing

    with engine.connect() as connection:
        gone = connection.execute(select(KEYS).where(KEYS.c.key_id.in_(retired))).all()
    assert {(one.state, one.wrapped, one.wrapping_key_id, one.proof) for one in gone} == {
        ("destroyed", None, None, None)
    }
    assert read(engine, envelope) == WRITTEN
    with unlocked(engine, envelope) as (session, user, keys):
        user.diary = "diary 1, again"
        keys.rotate(user, root=True)
        session.add(Post(id=2, group_id=1, text="post 2"))
    with unlocked(engine, envelope, 2) as (session, _, _):
        assert session.get_one(Post, 2).text == "post 2"


def test_one_straggler_stops_the_destroy(engine: Engine) -> None:
    """A single value under the old key, in a row of somebody else, is found and named."""
    started(engine)
    with engine.connect() as connection:
        old = connection.execute(text("SELECT diary FROM users WHERE id = 1")).scalar_one()
    *_, retired = _rotated(engine)
    _long_ago(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE posts SET text = :old"), {"old": bytes(old)})
    with pytest.raises(KeyInUseError, match=r"posts\.text has 1 value under it\."):
        _destroy(engine, retired)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM posts"))

    assert _destroy(engine, retired).state == "destroyed"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda engine: None, "may still get values until"),
        (_long_ago, "backups need it until"),
    ],
)
def test_within_the_horizon(sqlite_engine: Engine, change: Callable[[Engine], None], why: str) -> None:
    """A key is kept while somebody may write under it, and while backups need it."""
    started(sqlite_engine)
    *_, retired = _rotated(sqlite_engine)
    change(sqlite_engine)
    for options in (
        {"horizon": dt.timedelta(days=30)},
        {"backups_until": dt.datetime.now(dt.UTC) + dt.timedelta(days=1)},
    ):
        with pytest.raises(KeyInUseError, match=why):
            _destroy(sqlite_engine, retired, **options)
    assert _references(sqlite_engine, retired).state == "retired"


def test_a_retirement_has_the_time_of_its_commit(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rotation whose transaction lasts eleven minutes retires its keys at its end; the time of a key that
    was retired before stays."""
    started(engine)
    *_, earlier = _rotated(engine)
    _long_ago(engine)
    before = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=11)

    class Then(dt.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return before

    with unlocked(engine, envelope) as (_, user, keys):
        with monkeypatch.context() as patch:
            patch.setattr("sqlalchemy_envelope.orm.tables.key_rows.dt.datetime", Then)
            *_, retired = keys.rotate(user).retired
        monkeypatch.setattr(retirements, "LATE_SECONDS", 0.0)

    with pytest.raises(KeyInUseError, match="it was retired a moment ago"):
        _destroy(engine, retired)
    assert "moment ago" not in str(_references(engine, earlier).reasons(dt.datetime.now(dt.UTC)))


def test_a_clock_that_goes_back(sqlite_engine: Engine) -> None:
    """A retirement in the future tells of a clock that went back: the key is kept."""
    started(sqlite_engine)
    *_, retired = _rotated(sqlite_engine)
    with sqlite_engine.begin() as connection:
        ahead = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
        connection.execute(update(KEYS).where(KEYS.c.key_id == retired).values(retired_at=ahead))
    with pytest.raises(KeyInUseError, match="a clock went back"):
        _destroy(sqlite_engine, retired)


def test_an_active_key_and_a_key_with_keys_under_it(sqlite_engine: Engine) -> None:
    """An active key is never destroyed, nor a root key while a data key or a grant is under it."""
    started(sqlite_engine)
    with sqlite_engine.connect() as connection:
        root = connection.scalar(select(KEYS.c.key_id).where(KEYS.c.purpose == "root", KEYS.c.owner_id == 2))
    assert root is not None
    found = _references(sqlite_engine, root)
    needed = {(one.place, one.count) for one in found.needed}
    with pytest.raises(
        KeyInUseError, match=r"it is active: rotate first; .* 2 keys under it; .* 1 grant under it"
    ):
        _destroy(sqlite_engine, root)

    assert needed == {("users_key.wrapping_key_id", 2), ("memberships_keygrant.recipient_key_id", 1)}


def test_the_key_of_a_group(sqlite_engine: Engine) -> None:
    """The grants of a retired key lead to it, and go with it."""
    started(sqlite_engine)
    with unlocked(sqlite_engine, envelope) as (session, _, keys):
        group, post = session.get_one(Group, 1), session.get_one(Post, 1)
        rotated = keys.rotate(group, root=True)
        name, written = group.name, post.text
        group.name = post.text = None
        session.flush()
        group.name, post.text = name, written
    _long_ago(sqlite_engine)
    root, data = rotated.retired
    grants = [one for one in _references(sqlite_engine, root).references if one.what == "grant" and one.count]
    _destroy(sqlite_engine, data)
    _destroy(sqlite_engine, root)

    assert [(one.place, one.count, one.needed) for one in grants] == [
        ("memberships_keygrant.key_id", 2, False)
    ]
    for number in (1, 2):
        with unlocked(sqlite_engine, envelope, number) as (session, _, _):
            assert session.get_one(Post, 1).text == "post 1"
    with unlocked(sqlite_engine, envelope) as (session, _, _):
        session.add(Membership(group_id=1, user_id=3))
    with unlocked(sqlite_engine, envelope, 3) as (session, _, _):
        assert session.get_one(Post, 1).text == "post 1"


def test_a_server_key(engine: Engine) -> None:
    """Slots and row seals of every table name the server key, and none does after its rotation."""
    started(engine)
    both = application(NEW, OLD)
    with Session(engine) as session:
        before = both.key_references(session, Base, f"server:{OLD_ID.hex()[:8]}")
        for owner_class in (User, Group):
            for _ in both.rotate_provider(session, owner_class):
                session.commit()
        after = both.key_references(session, Base, f"server:{OLD_ID.hex()}")
        active = both.key_references(session, Base, f"server:{NEW_ID.hex()}")

    assert sum(one.count for one in before.needed) == sum(one.count for one in active.needed)
    assert (before.state, after.state, active.state) == ("configured", "configured", "active")
    assert after.needed == ()
    after.require_unused()
    assert rows_with(engine, OLD_ID) == 0
    seals = [one for one in before.needed if one.what == "row seal"]
    assert sum(one.count for one in seals) == 9 + 6 + 2 + 1 + 2
    with pytest.raises(KeyInUseError, match="it is active"):
        active.require_unused()


@pytest.mark.parametrize(
    ("key", "options", "error", "why"),
    [
        ("ffffffff", {}, KeyNotFoundError, "has the id ffffffff"),
        ("fff", {}, ConfigurationError, "names no key"),
        ("server:fff", {}, ConfigurationError, "names no server key"),
        (f"server:{OLD_ID.hex()}", {"horizon": dt.timedelta(1)}, ConfigurationError, "--backups-until"),
        ("ffffffff", {"horizon": -dt.timedelta(1)}, ConfigurationError, "not negative"),
        ("ffffffff", {"backups_until": dt.datetime(2026, 1, 1)}, ConfigurationError, "time zone"),
        (
            "ffffffff",
            {"backups_until": dt.datetime(2026, 1, 1, tzinfo=dt.UTC), "horizon": dt.timedelta(1)},
            ConfigurationError,
            "and not both",
        ),
    ],
    ids=["unknown", "short", "of no server key", "server key", "negative", "naive", "both"],
)
def test_bad_arguments(
    sqlite_engine: Engine, key: str, options: dict[str, Any], error: type[Exception], why: str
) -> None:
    """An id that names no key, or a horizon that says nothing, is refused."""
    started(sqlite_engine)
    with pytest.raises(error, match=why):
        _references(sqlite_engine, key, **options)


def test_what_destroy_refuses(sqlite_engine: Engine) -> None:
    """A destruction needs a horizon, and there is nothing of a server key to destroy here."""
    started(sqlite_engine)
    with Session(sqlite_engine) as session:
        with pytest.raises(ConfigurationError, match="Say how long backups are kept"):
            envelope.destroy_key(session, Base, "ffffffff")
        with pytest.raises(ConfigurationError, match="is in no table"):
            envelope.destroy_key(
                session, Base, f"server:{OLD_ID.hex()}", backups_until=dt.datetime.now(dt.UTC)
            )


# Nobody writes under a retired key


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, more than a minute has passed since each unlock."""

    def go_on() -> None:
        monkeypatch.setattr(active_keys, "LOOK_SECONDS", 0.0)

    return go_on


def _rotate_elsewhere(engine: Engine, **options: Any) -> None:
    with unlocked(engine, envelope) as (_, user, keys):
        keys.rotate(user, **options)


def test_a_session_that_lasts_takes_the_new_key(engine: Engine, later: Callable[[], None]) -> None:
    """An unlocked session older than a minute writes under the key that replaced its own elsewhere."""
    started(engine)
    with unlocked(engine, envelope) as (session, user, _):
        session.commit()
        _rotate_elsewhere(engine)
        later()
        user.diary = "later"
        session.commit()
        found = session.execute(text("SELECT diary FROM users WHERE id = 1")).scalar_one()
        assert user.display_name == "name 1"
        key_id = select(KEYS.c.key_id).where(
            KEYS.c.owner_id == 1, KEYS.c.purpose == "data", KEYS.c.scope == "", KEYS.c.state == "active"
        )
        assert bytes(found)[1:17] == session.scalar(key_id).bytes  # type: ignore[union-attr]


def test_a_session_that_lasts_is_told_of_a_new_root_key(engine: Engine, later: Callable[[], None]) -> None:
    """It cannot open the new keys: the transaction is to be run again, with the unlock in it."""
    started(engine)
    with Session(engine) as session:
        user = session.get_one(User, 1)
        with envelope.unlock(session, user, secret=secret_of("user1")):
            session.commit()
            _rotate_elsewhere(engine, root=True)
            later()
            user.diary = "later"
            with pytest.raises(TransactionConflictError):
                session.commit()
            session.rollback()


def test_a_session_that_lasts_never_writes_under_a_destroyed_key(
    engine: Engine, later: Callable[[], None]
) -> None:
    """Even where nothing came in the place of the key."""
    started(engine)
    with Session(engine) as session:
        user = session.get_one(User, 1)
        with envelope.unlock(session, user, secret=secret_of("user1")):
            session.commit()
            with engine.begin() as connection:
                gone = KEYS.delete().where(KEYS.c.owner_id == 1, KEYS.c.purpose == "data")
                connection.execute(gone)
            later()
            user.diary = "later"
            with pytest.raises((LockedError, TransactionConflictError)):
                session.commit()
            session.rollback()


def test_tickets(engine: Engine, later: Callable[[], None]) -> None:
    """A session by ticket writes under no retired key, however long it lasts. Tickets go with a data key that
    is destroyed, and with a rotation of the root key."""
    started(engine)
    with unlocked(engine, envelope) as (session, user, keys):
        ticket = keys.issue_ticket(user, lifetime=dt.timedelta(days=1))
        session.commit()
        with envelope.unlock(session, user, ticket=ticket):
            user.diary = "by ticket"
            session.commit()
    with Session(engine) as session:
        user = session.get_one(User, 1)
        with envelope.unlock(session, user, ticket=ticket):
            session.commit()
            *_, retired = _rotated(engine)
            later()
            user.diary = "later"
            with pytest.raises(LockedError, match="a ticket is open here"):
                session.commit()
            session.rollback()
    _long_ago(engine)
    with Session(engine) as session:
        found = envelope.key_references(session, Base, retired)
        assert sum(one.count for one in found.references if one.what == "ticket") == 1
    _destroy(engine, retired)
    with unlocked(engine, envelope) as (session, user, keys):
        assert envelope.tickets(session, user) == []
        keys.issue_ticket(user, lifetime=dt.timedelta(days=1))
        keys.rotate(user, root=True)
        assert envelope.tickets(session, user) == []


def test_a_young_session_asks_nothing(sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a minute of the unlock, no write asks whether its key is active; after that, each minute one."""
    started(sqlite_engine)
    asked = []
    load_active = KeyStore.load_active

    def counting(store: KeyStore, key_ids: Any, **options: Any) -> Any:
        asked.append(key_ids)
        return load_active(store, key_ids, **options)

    monkeypatch.setattr(KeyStore, "load_active", counting)
    with unlocked(sqlite_engine, envelope) as (session, user, _):
        user.diary = "now"
        session.flush()
        assert asked == []
        clock = time.monotonic() + 61
        monkeypatch.setattr(active_keys.time, "monotonic", lambda: clock)
        for number in range(3):
            user.diary = f"then {number}"
            session.flush()
        assert len(asked) == 1


def test_an_old_snapshot_is_refused(postgres_engine: Engine, later: Callable[[], None]) -> None:
    """Under REPEATABLE READ, a transaction from before the retirement cannot write under the retired key."""
    started(postgres_engine)
    engine = postgres_engine.execution_options(isolation_level="REPEATABLE READ")
    with Session(engine) as session:
        user = session.get_one(User, 1)
        with envelope.unlock(session, user, secret=secret_of("user1")):
            assert user.diary == "diary 1"
            _rotate_elsewhere(postgres_engine)
            later()
            user.diary = "later"
            with pytest.raises(Exception) as refused:
                session.commit()
            session.rollback()

    assert getattr(refused.value.orig, "sqlstate", None) == "40001"  # type: ignore[attr-defined]


def test_a_transaction_in_flight_is_waited_for(
    postgres_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value that was written under the key, and is not committed yet, stops the destruction: it is refused
    while the transaction lasts, and finds the value after it."""
    monkeypatch.setattr(key_destruction, "_PATIENCE", 1)
    started(postgres_engine)
    with postgres_engine.connect() as connection:
        old = connection.execute(text("SELECT diary FROM users WHERE id = 1")).scalar_one()
    *_, retired = _rotated(postgres_engine)
    _long_ago(postgres_engine)
    with postgres_engine.connect() as writer:
        writer.execute(text("UPDATE users SET diary = :old WHERE id = 2"), {"old": bytes(old)})
        with pytest.raises(KeyInUseError, match="goes on for more than 1 seconds"):
            _destroy(postgres_engine, retired)
        commit = threading.Timer(0.3, writer.commit)
        commit.start()
        with pytest.raises(KeyInUseError, match=r"users\.diary has 1 value under it"):
            _destroy(postgres_engine, retired)
        commit.join()


def test_an_old_transaction_stops_it(postgres_engine: Engine) -> None:
    """A transaction that began before the key was retired may see it as active, and is waited for."""
    started(postgres_engine)
    *_, retired = _rotated(postgres_engine)
    _long_ago(postgres_engine)
    with postgres_engine.begin() as connection:
        ahead = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=11)
        connection.execute(update(KEYS).where(KEYS.c.key_id == retired).values(retired_at=ahead))
    serial = postgres_engine.execution_options(isolation_level="SERIALIZABLE")
    with Session(serial) as session, pytest.raises(ConfigurationError, match="READ COMMITTED"):
        envelope.destroy_key(session, Base, retired, **NOW)
    with postgres_engine.connect() as other:
        other.execute(select(func.now()))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(key_destruction, "LAST_WRITES", dt.timedelta(hours=1))
            with pytest.raises(KeyInUseError, match="1 transaction began before it was retired"):
                _destroy(postgres_engine, retired)

    assert _destroy(postgres_engine, retired).state == "destroyed"


async def test_the_same_under_asyncio(async_engine: AsyncEngine) -> None:
    """An `AsyncEnvelope` counts and destroys."""
    aenvelope = AsyncEnvelope(envelope)
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(async_engine) as session:
        user = User(id=1, email="user1", diary="diary 1")
        async with aenvelope.enroll(session, user, secret=secret_of("user1")):
            await session.commit()
            rotated = await aenvelope.rotate(session, user, scope="profile")
            await session.commit()
        (retired,) = rotated.retired
        hour_ago = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
        await session.execute(update(KEYS).where(KEYS.c.key_id == retired).values(retired_at=hour_ago))
        await session.commit()
        found = await aenvelope.key_references(session, Base, str(retired)[:8])
        gone = await aenvelope.destroy_key(session, Base, retired, **NOW)
        await session.commit()

    assert (found.state, found.scope, found.needed, gone.state) == ("retired", "profile", (), "destroyed")
