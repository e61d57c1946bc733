"""An unlock reads: whatever waits for its owner, it writes nothing, locks nothing and waits for nobody.
What waits is settled with the first flush that writes, or on request, and waits again where that is rolled
back."""

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, create_engine, delete, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    AsyncEnvelope,
    ConfigurationError,
    Envelope,
    KdfProfile,
    LockedError,
    SessionLeftError,
    enforce_foreign_keys,
)
from tests.orm.sharing_models import (
    Base,
    Group,
    Membership,
    Post,
    User,
    add_user,
    calls_sent,
    count,
    envelope,
    epochs,
    found_group,
    secret_of,
    unlock,
)
from tests.prepared import prepared

KEYS: sa.Table = Base.metadata.tables["users_key"]
SLOTS: sa.Table = Base.metadata.tables["users_keyslot"]
GRANTS: sa.Table = Base.metadata.tables["memberships_keygrant"]
STRONGER = Envelope(kdf_profile=KdfProfile(20 * 1024, 2, 1))
"""The application after its policy was raised."""
WEAK = Envelope(kdf_profile=KdfProfile.OWASP_MINIMUM)
SECRET = "correct horse battery staple"
GROUP = 1
"""The group of every scene: its founder, and a member who has not been there since."""


def nothing(engine: Engine) -> None:
    """All was settled before."""
    with Session(engine) as session, unlock(session, "member") as unlocked:
        unlocked.settle()
        session.commit()


def a_grant(engine: Engine) -> None:
    """The group's key lies sealed for the member from the beginning."""


def a_write_epoch(engine: Engine) -> None:
    """A webhook wrote for the member."""
    nothing(engine)
    with Session(engine) as session, envelope.write_only(session):
        session.get_one(User, 2).diary = "by a webhook"
        session.commit()


def a_pending_grant(engine: Engine) -> None:
    """Somebody was added to the group while nobody held its key."""
    nothing(engine)
    with Session(engine) as session:
        envelope.attach(session)
        session.add(Membership(group_id=GROUP, user_id=3))
        session.commit()


def a_removal(engine: Engine) -> None:
    """Somebody was removed from the group past the unit of work."""
    nothing(engine)
    with engine.begin() as connection:
        connection.execute(delete(Membership.__table__).where(Membership.__table__.c.user_id == 4))


def a_missing_scope(engine: Engine) -> None:
    """The member was enrolled before a scope was declared."""
    nothing(engine)
    with engine.begin() as connection:
        connection.execute(update(User.__table__).where(User.__table__.c.id == 2).values(display_name=None))
        connection.execute(delete(KEYS).where(KEYS.c.owner_id == 2, KEYS.c.scope == "profile"))


WAITING: dict[str, Callable[[Engine], None]] = {
    "nothing": nothing,
    "grant": a_grant,
    "write epoch": a_write_epoch,
    "pending grant": a_pending_grant,
    "removal": a_removal,
    "scope": a_missing_scope,
}
waiting = pytest.mark.parametrize("waits", WAITING.values(), ids=WAITING)


@pytest.fixture
def scene(engine: Engine) -> Engine:
    """The scene, on SQLite and on PostgreSQL."""
    return make_scene(engine)


def make_scene(engine: Engine) -> Engine:
    """Four users, three of them in a group."""

    def make() -> None:
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            for name in ("founder", "member", "newcomer", "leaver"):
                add_user(session, name)
            assert found_group(session, "founder", "member", "leaver") == GROUP

    prepared(engine, "four users", make)
    return engine


def left_waiting(engine: Engine) -> list[int]:
    """What waits for the member, counted past the library: grants of the group's first key and write epochs
    that are sealed, pending grants, group epochs too few, scopes without a key."""
    keys = Base.metadata.tables["groups_key"]
    first = select(keys.c.key_id).where(keys.c.purpose == "root", keys.c.epoch == 1)
    mine = GRANTS.c.key_id.in_(first), GRANTS.c.row_user_id == 2, GRANTS.c.state == "sealed"
    gone = count(engine, Membership) < 3
    return [
        count(engine, GRANTS, *mine),
        sealed_epochs(engine, 2),
        count(engine, GRANTS, GRANTS.c.state == "pending"),
        int(gone and epochs(engine, Group, GROUP) == 1),
        1 - count(engine, KEYS, KEYS.c.owner_id == 2, KEYS.c.scope == "profile"),
    ]


def sealed_epochs(engine: Engine, owner: int) -> int:
    """How many write epochs of a user were not adopted yet."""
    query = select(KEYS.c.wrapped).where(KEYS.c.purpose == "write", KEYS.c.owner_id == owner)
    with engine.connect() as connection:
        return sum(bytes(wrapped)[:1] == b"\x12" for wrapped in connection.scalars(query))


def member(session: Session, by: Envelope = envelope) -> Any:
    """The member, unlocked."""
    return by.unlock(session, session.get_one(User, 2), secret=secret_of("member"))


def reads(session: Session) -> bool:
    """Whether the member reads what there is to read."""
    session.expire_all()
    diaries = ("the diary of member", "by a webhook")
    return session.scalars(select(Post.text)).all() == ["the first post"] and (
        session.get_one(User, 2).diary in diaries
    )


# An unlock


WRITES = ("INSERT", "UPDATE", "DELETE", "SAVEPOINT", "BEGIN IMMEDIATE")


@waiting
def test_an_unlock_writes_nothing(scene: Engine, waits: Callable[[Engine], None]) -> None:
    """Whatever waits, an unlock and all that is read by it is SELECTs that lock no row, and it waits on."""
    waits(scene)
    before = left_waiting(scene)
    with Session(scene) as session, calls_sent(scene) as sent, member(session):
        is_read = reads(session)
        session.commit()
    statements = [statement.lstrip().upper() for statement, _ in sent]

    assert is_read
    assert not [one for one in statements if one.startswith(WRITES) or " FOR " in one.partition("WHERE")[2]]
    assert left_waiting(scene) == before


@waiting
def test_where_nothing_can_be_written(scene: Engine, waits: Callable[[Engine], None]) -> None:
    """On a read-only file, on a standby and in a read-only transaction everything is read."""
    waits(scene)
    url = scene.url
    if scene.dialect.name == "sqlite":
        standby = create_engine(f"sqlite:///file:{url.database}?mode=ro&uri=true")
        enforce_foreign_keys(standby)
    else:
        standby = create_engine(url, connect_args={"options": "-c default_transaction_read_only=on"})
    with Session(standby) as session, member(session):
        assert reads(session)
    standby.dispose()


@pytest.mark.backend
@waiting
def test_in_a_read_only_transaction(postgres_engine: Engine, waits: Callable[[Engine], None]) -> None:
    """A transaction that was made read-only unlocks, reads, and flushes what was touched and not changed."""
    scene = make_scene(postgres_engine)
    waits(scene)
    with Session(scene) as session:
        session.execute(text("SET TRANSACTION READ ONLY"))
        with member(session):
            user = session.get_one(User, 2)
            user.email = user.email
            session.commit()

            assert reads(session)


def test_a_slot_below_the_policy(scene: Engine) -> None:
    """A slot that is too cheap opens, is left by an unlock that reads, and replaced by the first that
    writes."""
    with Session(scene) as session:
        user = User(id=5, email="weak", diary="the diary of weak")
        WEAK.enroll(session, user, secret=SECRET)
        session.commit()
    cheap = SLOTS.c.kdf.contains("m=19456")
    with (
        Session(scene) as session,
        calls_sent(scene) as sent,
        STRONGER.unlock(session, session.get_one(User, 5), secret=SECRET),
    ):
        assert session.get_one(User, 5).diary == "the diary of weak"
        session.commit()
    unlocking = [statement for statement, _ in sent if statement.startswith(WRITES)]
    left = count(scene, SLOTS, cheap)
    with Session(scene) as session:
        with STRONGER.unlock(session, session.get_one(User, 5), secret=SECRET):
            session.get_one(User, 5).email = "strong"
            session.flush()
            session.rollback()
            rolled_back = count(scene, SLOTS, cheap)
            session.get_one(User, 5).email = "strong"
            session.commit()
        with STRONGER.unlock(session, session.get_one(User, 5), secret=SECRET):
            assert session.get_one(User, 5).diary == "the diary of weak"

    assert (unlocking, left, rolled_back, count(scene, SLOTS, cheap)) == ([], 1, 1, 0)


# Settling


def by_a_flush(session: Session, unlocked: Any) -> None:
    """Something that is not encrypted is written."""
    session.get_one(User, 2).email = "another"
    session.flush()


def by_a_statement(session: Session, unlocked: Any) -> None:
    """A value is encrypted past the unit of work."""
    with unlocked.using(session.get_one(User, 2)):
        session.execute(update(User).where(User.id == 2).values(diary="new"))


def by_request(session: Session, unlocked: Any) -> None:
    """The application asks for it."""
    unlocked.settle()


def by_the_envelope(session: Session, unlocked: Any) -> None:
    """The application asks for it, without the unlocked session at hand."""
    envelope.settle(session)


SETTLING = [by_a_flush, by_a_statement, by_request, by_the_envelope]


@waiting
@pytest.mark.parametrize("settles", SETTLING, ids=lambda one: one.__name__)
@pytest.mark.any_database
def test_the_first_write_settles(
    scene: Engine, waits: Callable[[Engine], None], settles: Callable[[Session, Any], None]
) -> None:
    """What waits is done in the first transaction that writes, or when it is asked for; rolled back, it waits
    as before, and is done by the next."""
    waits(scene)
    before = left_waiting(scene)
    with Session(scene) as session, member(session) as unlocked:
        settles(session, unlocked)
        session.rollback()
        rolled_back = left_waiting(scene)
        settles(session, unlocked)
        session.commit()

        assert session.scalars(select(Post.text)).all() == ["the first post"]
    with Session(scene) as session, member(session):
        assert session.scalars(select(Post.text)).all() == ["the first post"]

    assert rolled_back == before
    assert left_waiting(scene) == [0] * 5


def test_what_is_settled_is_settled_once(scene: Engine) -> None:
    """Later transactions of an unlocked session look for nothing any more."""
    a_grant(scene)
    with Session(scene) as session, member(session) as unlocked:
        unlocked.settle()
        session.commit()
        with calls_sent(scene) as sent:
            unlocked.settle()
            session.get_one(User, 2).email = "another"
            session.commit()

    assert not [statement for statement, _ in sent if "key" in statement.partition("WHERE")[0]]


def test_a_savepoint_that_is_rolled_back(scene: Engine) -> None:
    """What a savepoint settled waits again after it."""
    a_write_epoch(scene)
    with Session(scene) as session, member(session) as unlocked:
        with session.begin_nested() as savepoint:
            unlocked.settle()
            savepoint.rollback()
        session.get_one(User, 2).email = "another"
        session.commit()

    assert left_waiting(scene) == [0] * 5


def test_a_value_goes_under_the_new_epoch(scene: Engine) -> None:
    """After a removal the very statement that writes first is under the new key."""
    a_removal(scene)
    with Session(scene) as session, member(session):
        session.execute(sa.insert(Post), [{"group_id": GROUP, "text": "not for the leaver"}])
        session.commit()
    keys = Base.metadata.tables["groups_key"]
    with scene.connect() as connection:
        newest = connection.scalar(
            select(keys.c.key_id).where(keys.c.purpose == "data", keys.c.state == "active")
        )
        raw = connection.scalar(
            select(sa.type_coerce(Post.__table__.c.text, sa.LargeBinary)).where(Post.__table__.c.id == 2)
        )

    assert newest is not None
    assert bytes(raw or b"")[1:17] == newest.bytes


# Two at once


@waiting
def test_a_second_tab_waits_for_nobody(scene: Engine, waits: Callable[[Engine], None]) -> None:
    """While a long request has settled and not committed, another unlock of the same user reads at once; on
    PostgreSQL it settles at once too, what is left for it."""
    waits(scene)
    impatient = create_engine(scene.url, **_impatience(scene))
    if scene.dialect.name == "sqlite":
        enforce_foreign_keys(impatient)
    with Session(scene) as first, member(first) as unlocked:
        unlocked.settle()
        first.get_one(User, 1).email = "held"
        first.flush()
        with Session(impatient) as second, member(second) as again:
            is_read = reads(second)
            if scene.dialect.name == "postgresql" and waits not in (a_removal, a_missing_scope):
                again.settle()
                second.commit()
        first.commit()
    impatient.dispose()

    assert is_read
    assert left_waiting(scene) == [0] * 5


def _impatience(engine: Engine) -> dict[str, Any]:
    if engine.dialect.name == "sqlite":
        return {"connect_args": {"timeout": 0}}
    return {"connect_args": {"options": "-c lock_timeout=200ms"}}


def test_two_that_settle_one_after_the_other(scene: Engine) -> None:
    """The second of two unlocks finds done what it saw waiting."""
    a_write_epoch(scene)
    with Session(scene) as first, Session(scene) as second:
        here, there = member(first), member(second)
        second.rollback()
        here.settle()
        first.commit()
        with there:
            there.settle()
            second.commit()

            assert reads(second)

    assert left_waiting(scene) == [0] * 5
    assert epochs(scene, Group, GROUP) == 1


# What cannot be


def test_settling_where_nothing_is_unlocked(scene: Engine) -> None:
    """Nothing is unlocked, or not any more: told as anywhere else."""
    with Session(scene) as session:
        with pytest.raises(LockedError, match="locked"):
            envelope.settle(session)
        with member(session) as unlocked:
            pass
        with pytest.raises(SessionLeftError):
            unlocked.settle()
        with pytest.raises(LockedError):
            envelope.settle(session)


async def test_asyncio_settles(async_engine: AsyncEngine) -> None:
    """With `await` on the envelope; the plain call says so."""
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    secure = AsyncEnvelope(envelope)
    async with AsyncSession(async_engine, expire_on_commit=False) as session:
        user = User(email="ada", diary="hers")
        await secure.enroll(session, user, secret=SECRET)
        await session.commit()
        with secure.write_only(session):
            user.display_name = "by a webhook"
            await session.commit()
        async with secure.unlock(session, user, secret=SECRET) as unlocked:
            with pytest.raises(ConfigurationError, match=r"await AsyncEnvelope\(envelope\)\.settle"):
                unlocked.settle()
            await secure.settle(session)
            await session.commit()
        wrapped = await session.scalar(select(KEYS.c.wrapped).where(KEYS.c.purpose == "write"))

    assert wrapped is not None
    assert wrapped[:1] == b"\x11"
