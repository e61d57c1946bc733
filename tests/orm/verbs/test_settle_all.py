"""A job settles a class of owners in batches. With an offline key, the web process wraps and reads nothing,
and the staff's machine alone unwraps, without server keys."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    AsyncEnvelope,
    AuditEvent,
    ConfigurationError,
    Envelope,
    KdfProfile,
    LockedError,
    OfflineKey,
    OfflinePublicKey,
    ProviderError,
    ServerKeyring,
    Settled,
)
from sqlalchemy_envelope.orm.current.desk import Desk
from sqlalchemy_envelope.orm.sharing.epochs import start_epoch
from sqlalchemy_envelope.orm.verbs.owner_keys import locate
from tests.orm.sharing_models import (
    Base,
    Circle,
    Group,
    KeysBase,
    Membership,
    PlainBase,
    Post,
    ProfileShare,
    Reader,
    Seat,
    Tenant,
    User,
    calls_sent,
    count,
    epochs,
    is_readable,
    secret_of,
)
from tests.prepared import prepared

PRIVATE = OfflineKey.generate()
PUBLIC = OfflineKey(PRIVATE).public_key
GRANTS = Base.metadata.tables["memberships_keygrant"]
SLOTS = Base.metadata.tables["groups_keyslot"]
SHARES = Base.metadata.tables["profile_shares_keygrant"]


def _app(key: Any, **options: Any) -> Envelope:
    return Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), providers={"staff": key}, **options)


web = _app(OfflinePublicKey(PUBLIC))
staff = _app(OfflineKey(PRIVATE))


def _scene(engine: Engine) -> None:
    """Three groups of a founder, made in the web process; then a newcomer, added while nobody is unlocked."""
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        names = ("founder", "member", "newcomer")
        users = [User(email=name, display_name=name, diary=f"the diary of {name}") for name in names]
        web.enroll(session, users, secret={one: secret_of(one.email) for one in users}, provider="staff")
        session.commit()
        with web.unlock(session, users[0], secret=secret_of("founder")):
            groups = [Group(id=number, name=f"group {number}") for number in (1, 2, 3)]
            web.enroll(session, groups, provider="staff")
            session.add_all([Membership(group_id=g.id, user_id=u) for g in groups for u in (1, 2)])
            session.add_all([Post(group_id=one.id, text=f"in {one.id}") for one in groups])
            session.commit()
    with Session(engine) as session:
        web.attach(session)
        session.add_all([Membership(group_id=number, user_id=3) for number in (1, 2, 3)])
        session.add(ProfileShare(user_id=1, group_id=1))
        session.commit()


@pytest.fixture
def scene(engine: Engine) -> Engine:
    prepared(engine, "settle all", lambda: _scene(engine))
    return engine


@pytest.fixture
def lite(sqlite_engine: Engine) -> Engine:
    prepared(sqlite_engine, "settle all", lambda: _scene(sqlite_engine))
    return sqlite_engine


def _run(
    engine: Engine, owner_class: type[Any] = Group, envelope: Envelope = staff, batch: int = 500
) -> Settled:
    """A job of the staff's, as the how-to has it."""
    last = Settled()
    with Session(engine) as session:
        for so_far in envelope.settle_all(session, owner_class, provider="staff", reason="test", batch=batch):
            session.commit()
            last = so_far
    return last


@contextmanager
def _unlocked(engine: Engine, name: str) -> Iterator[Session]:
    with Session(engine) as session:
        user = session.scalars(select(User).where(User.email == name)).one()
        with web.unlock(session, user, secret=secret_of(name)):
            yield session
            session.commit()


def _read(engine: Engine, name: str) -> list[str]:
    with _unlocked(engine, name) as session:
        web.settle(session)
        return [one.text for one in session.scalars(select(Post)) if is_readable(one, "text")]  # type: ignore[misc]


def _circles(engine: Engine, many: int) -> None:
    """So many circles of a founder, each with a pending grant to a reader who got keys later."""
    PlainBase.metadata.drop_all(engine)
    PlainBase.metadata.create_all(engine)
    with Session(engine) as session:
        founder, late = Reader(), Reader()
        session.add(late)
        with web.enroll(session, founder, secret=secret_of("founder")):
            circles = [Circle(id=number, name=f"circle {number}") for number in range(many)]
            web.enroll(session, circles, provider="staff")
            session.add_all([Seat(circle_id=c.id, reader_id=r.id) for c in circles for r in (founder, late)])
            session.commit()
        web.enroll(session, late, secret=secret_of("late"))
        session.commit()


@pytest.mark.parametrize("much", [200, pytest.param(1_000, marks=pytest.mark.thorough)])
def test_many_owners_cost_the_statements_of_twenty(sqlite_engine: Engine, much: int) -> None:
    """A batch of hundreds of owners whose grants are pending takes the eleven statements of one of ten
    owners; when all of it is done, four that read."""
    costs: dict[int, list[int]] = {}
    for many in (20, much):
        _circles(sqlite_engine, many)
        for _ in range(2):
            with Session(sqlite_engine) as session, calls_sent(sqlite_engine) as sent:
                for last in staff.settle_all(session, Circle, provider="staff", reason="t", batch=many // 2):
                    session.commit()
                    so_far = last
                    costs.setdefault(many, []).append(len(sent))
                    sent.clear()
        grants = PlainBase.metadata.tables["seats_keygrant"]

        assert count(sqlite_engine, grants, grants.c.state == "pending") == 0
        assert so_far == Settled(0, many, 0, (), (many - 1,))
    assert costs[20] == costs[much] == [11, 11, 4, 4]


def test_pending_grants_are_fulfilled(scene: Engine) -> None:
    """Who was added while nobody was unlocked reads after the job, whose process has no secret of anybody;
    the web process, which has the public half, reads nothing."""
    before = _read(scene, "newcomer")
    first, second = _run(scene), _run(scene)

    assert before == []
    assert (first.settled, first.unchanged, first.skipped, first.refused) == (3, 0, 0, ())
    assert (second.settled, second.unchanged, second.skipped, second.refused) == (0, 3, 0, ())
    assert _read(scene, "newcomer") == ["in 1", "in 2", "in 3"]
    with Session(scene) as session, pytest.raises(ProviderError, match="with its custodians, not here"):
        web.unlock(session, session.get_one(Group, 1), provider="staff", reason="curiosity")


def test_a_share_of_a_scope_is_fulfilled(lite: Engine) -> None:
    """A pending share of one scope of a user is fulfilled by a job over the users."""
    settled = _run(lite, User)
    _run(lite)

    assert settled.settled == 3
    assert count(lite, SHARES, SHARES.c.state == "pending") == 0
    with _unlocked(lite, "member") as session:
        assert session.get_one(User, 1).display_name == "founder"
        assert not is_readable(session.get_one(User, 1), "diary")


def test_no_needless_epoch(scene: Engine) -> None:
    """Without server keys neither the job nor the owners' next unlocks and writes start an epoch, in whatever
    order they come."""
    for _ in range(2):
        _run(scene)
        _run(scene, User)
        for name in ("founder", "member", "newcomer"):
            _read(scene, name)
            with _unlocked(scene, name) as session:
                session.add(Post(group_id=1, text=f"by {name}"))
    with Session(scene) as session:
        group = session.get_one(Group, 1)
        with staff.unlock(session, group, provider="staff", reason="a note of the staff's"):
            session.add(Post(group_id=1, text="by staff"))
            session.commit()

    assert [epochs(scene, Group, number) for number in (1, 2, 3)] == [1, 1, 1]
    assert [epochs(scene, User, number) for number in (1, 2, 3)] == [1, 1, 1]


@pytest.mark.parametrize("mode", ["unlock", "server mode"])
def test_no_needless_epoch_without_a_job(lite: Engine, mode: str) -> None:
    """Staff who write before any job came by, or after another one was begun, start no epoch either."""
    for _ in range(2):
        with Session(lite) as session:
            group = session.get_one(Group, 1)
            opened = (
                staff.unlock(session, group, provider="staff", reason="a note")
                if mode == "unlock"
                else staff.server_mode(session, provider="staff", reason="a note")
            )
            with opened:
                session.add(Post(group_id=1, text="by staff"))
                session.commit()

    assert epochs(lite, Group, 1) == 1
    assert _read(lite, "founder").count("by staff") == 2


def test_a_later_root_key_is_not_trusted_for_being_sealed(lite: Engine) -> None:
    """After the first, a root key that somebody put there with a slot sealed to the staff's key is replaced
    before the staff write: what they write does not open by it."""
    _run(lite)
    with Session(lite) as session:  # an epoch that nobody vouches for, as anybody can start one
        located = locate(Desk(session, web.policy), session.get_one(Group, 1))
        start_epoch(located.desk, located.place, None)
        session.commit()
    with (
        Session(lite) as session,
        staff.unlock(session, session.get_one(Group, 1), provider="staff", reason="a note"),
    ):
        session.add(Post(group_id=1, text="by staff"))
        session.commit()

    assert epochs(lite, Group, 1) == 3


@pytest.mark.parametrize("adopted", [False, True], ids=["at the first settling", "later"])
@pytest.mark.parametrize("how", ["with SQL", "through the web process"])
def test_an_epoch_where_somebody_was_removed(scene: Engine, how: str, adopted: bool) -> None:
    """A member goes while nobody is unlocked: the job starts what epoch is needed, those who stay read the
    old and the new and start none of their own, and who left reads nothing that is written later."""
    if adopted:
        _run(scene)
    with Session(scene) as session:
        if how == "with SQL":
            session.execute(text("DELETE FROM memberships WHERE group_id = 1 AND user_id = 2"))
        else:
            web.attach(session)
            session.delete(session.get_one(Membership, (1, 2)))
        session.commit()
    settled = _run(scene)
    after = epochs(scene, Group, 1)
    with _unlocked(scene, "newcomer") as session:
        session.add(Post(group_id=1, text="secret to the member"))

    assert settled.settled == (1 if adopted else 3)
    assert after == (2 if how == "with SQL" else 3)
    assert _run(scene).settled == 0
    assert _read(scene, "founder") == ["in 1", "in 2", "in 3", "secret to the member"]
    assert "secret to the member" not in _read(scene, "member")
    assert epochs(scene, Group, 1) == after


@pytest.mark.parametrize("settled", [False, True])
def test_sealed_write_epochs_are_adopted(lite: Engine, settled: bool) -> None:
    """What a webhook wrote for a user lies sealed; after the job it is wrapped under the user's own key, and
    the user's log-in has nothing left to do."""
    with Session(lite) as session, web.write_only(session):
        session.get_one(User, 1).diary = "by a webhook"
        session.commit()
    if settled:
        _run(lite, User)
    with calls_sent(lite) as sent, _unlocked(lite, "founder") as session:
        assert session.get_one(User, 1).diary == "by a webhook"
        web.settle(session)

    locks = "SET granted=users_key.granted"  # what holds the keys of a group on SQLite; it changes nothing
    writes = [one for one, _ in sent if one.startswith("UPDATE users_key ") and locks not in one]
    assert bool(writes) is not settled


def test_what_another_transaction_holds_is_skipped(postgres_engine: Engine) -> None:
    """Nobody is waited for: an owner whose keys another transaction changes is left to the next run."""
    prepared(postgres_engine, "settle all", lambda: _scene(postgres_engine))
    keys = Base.metadata.tables["groups_key"]
    with Session(postgres_engine) as other:
        other.execute(update(keys).where(keys.c.owner_id == 2).values(granted=keys.c.granted))
        with Session(postgres_engine) as session:
            session.execute(text("SET LOCAL lock_timeout = '100ms'"))
            (first,) = staff.settle_all(session, Group, provider="staff", reason="test")
            session.commit()
        other.rollback()

    assert (first.settled, first.skipped) == (2, 1)
    assert _run(postgres_engine).settled == 1


def test_a_run_that_was_cut_off_is_begun_again(lite: Engine) -> None:
    """A job that dies after its first batch has done that one, and a rollback takes a batch back; the next
    run does the rest."""
    with Session(lite) as session:
        runs = staff.settle_all(session, Group, provider="staff", reason="test", batch=1)
        assert next(runs).last == (1,)
        session.commit()
        assert next(runs) == Settled(2, 0, 0, (), (2,))
        session.rollback()
    after = _run(lite, batch=2)

    assert (after.settled, after.unchanged) == (2, 1)


def test_altered_owners_are_refused_and_stop_nobody(lite: Engine) -> None:
    """A slot that was altered, and a key that was: the others are settled, and the result says who is not."""
    keys = Base.metadata.tables["groups_key"]
    with lite.begin() as connection:
        of_first = select(keys.c.key_id).where(keys.c.owner_id == 1)
        wrapped = connection.scalar(select(SLOTS.c.wrapped).where(SLOTS.c.key_id.in_(of_first)))
        broken = wrapped[:-1] + bytes([wrapped[-1] ^ 1])
        connection.execute(update(SLOTS).where(SLOTS.c.key_id.in_(of_first)).values(wrapped=broken))
        connection.execute(update(keys).where(keys.c.owner_id == 2).values(owner_reference=b"another's"))
    so_far = _run(lite)

    assert (so_far.settled, so_far.skipped) == (1, 0)
    assert {(one.primary_key, one.code) for one in so_far.refused} == {
        ((1,), "unlock"),
        ((2,), "owner-mismatch"),
    }
    assert epochs(lite, Group, 1) == 1


def test_what_settling_finds_altered_stops_nobody(lite: Engine) -> None:
    """A write epoch that was altered shows when it is to be adopted: its owner is refused, and the run goes
    on to the owners behind."""
    keys = Base.metadata.tables["users_key"]
    with Session(lite) as session, web.write_only(session):
        session.get_one(User, 1).diary = "by a webhook"
        session.commit()
    with lite.begin() as connection:
        is_epoch = keys.c.purpose == "write"
        wrapped = connection.scalar(select(keys.c.wrapped).where(is_epoch))
        broken = wrapped[:-1] + bytes([wrapped[-1] ^ 1])
        connection.execute(update(keys).where(is_epoch).values(wrapped=broken))
    so_far = _run(lite, User)

    assert [(one.primary_key, one.code) for one in so_far.refused] == [((1,), "tampered-key")]
    assert so_far.last == (3,)


def test_slots_of_an_earlier_offline_key_are_refused(lite: Engine) -> None:
    """An owner whose slot is under an offline key that is not here any more is told, and stops nobody."""
    other = _app(OfflineKey(OfflineKey.generate()))
    with Session(lite) as session:
        other.enroll(session, Group(id=9), provider="staff")
        session.commit()
    so_far = _run(lite)

    assert so_far.settled == 3
    assert [(one.primary_key, one.code) for one in so_far.refused] == [((9,), "provider")]
    assert "another of its keys" in so_far.refused[0].why


@pytest.mark.parametrize("key", [None, PRIVATE], ids=["server keys alone", "beside an offline key"])
def test_with_server_keys(lite: Engine, key: str | None) -> None:
    """Sealed rows are read and written as sealed, and the provider "server" settles its owners too."""
    keys = ServerKeyring.from_text(ServerKeyring.generate_key())
    providers = {} if key is None else {"staff": OfflineKey(key)}
    app = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=keys, providers=providers)
    name = "server" if key is None else "staff"
    with Session(lite) as session:
        app.seal_rows(session, User, Group)
        session.commit()
        app.enroll(session, [Group(id=11), Group(id=12)], provider=name)
        session.add_all([Membership(group_id=number, user_id=3) for number in (11, 12)])
        session.commit()
        (so_far,) = app.settle_all(session, Group, provider=name, reason="test")
        session.commit()

    assert so_far.refused == ()
    assert so_far.settled == (2 if key is None else 5)
    assert count(lite, GRANTS, GRANTS.c.state == "pending") == (3 if key is None else 0)


def test_owners_of_two_columns(sqlite_engine: Engine) -> None:
    """Batches go on after a primary key of several columns."""
    KeysBase.metadata.create_all(sqlite_engine)
    with Session(sqlite_engine) as session:
        tenants = [Tenant(region=r, number=n) for r in ("eu", "us") for n in (1, 2, 10)]
        web.enroll(session, tenants, provider="staff")
        session.commit()
        last = [
            so_far.last for so_far in staff.settle_all(session, Tenant, provider="staff", reason="t", batch=2)
        ]

    assert last == [("eu", 2), ("us", 1), ("us", 10)]


def test_who_is_without_a_slot_is_passed_over(lite: Engine) -> None:
    """Owners that the provider does not hold are neither opened nor counted, though its name begins alike."""
    app = Envelope(
        kdf_profile=KdfProfile.unsafe_for_tests(),
        providers={"staff": OfflineKey(PRIVATE), "staff2": OfflineKey(OfflineKey.generate())},
    )
    with Session(lite) as session:
        app.enroll(session, Group(id=9), provider="staff2")
        session.commit()

    assert _run(lite, envelope=app).last == (3,)


def test_the_public_half_settles_nothing(lite: Engine) -> None:
    """Where only the public half is configured the call is refused, with what to configure where."""
    refusal = pytest.raises(ProviderError, match=r"public half.*'staff': OfflineKey")
    with Session(lite) as session, calls_sent(lite) as sent, refusal:
        web.settle_all(session, Group, provider="staff", reason="test")

    assert sent == []


@pytest.mark.parametrize(
    ("owner_class", "options", "match"),
    [
        (Post, {}, "a class of key owners"),
        (Group(), {}, "a class of key owners"),
        (Group, {"provider": "nobody"}, "No provider 'nobody'"),
        (Group, {"reason": " "}, "Say why"),
        (Group, {"batch": 0}, "batch=0"),
    ],
)
def test_what_it_cannot_be_asked(lite: Engine, owner_class: Any, options: dict[str, Any], match: str) -> None:
    """What is wrong with a call is told by the call, and not by the loop."""
    with Session(lite) as session, pytest.raises(ConfigurationError, match=match):
        staff.settle_all(session, owner_class, **{"provider": "staff", "reason": "test", **options})


def test_without_a_loop_it_warns(lite: Engine) -> None:
    """A call without a loop does nothing, and says so."""
    with Session(lite) as session:
        with pytest.warns(RuntimeWarning, match="settled nothing"):
            staff.settle_all(session, Group, provider="staff", reason="test")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            list(staff.settle_all(session, Group, provider="staff", reason="test"))


def test_the_reason_is_in_the_audit_event(lite: Engine) -> None:
    """Each batch says who was opened, how many and why; nothing of it is a key."""
    events: list[AuditEvent] = []
    app = _app(OfflineKey(PRIVATE), audit=events.append)
    _run(lite, envelope=app, batch=2)

    opened = [one for one in events if one.name == "provider_unlocked"]
    assert [(one.owner_class, one.count, one.reason, one.provider) for one in opened] == [
        ("Group", 2, "test", "staff"),
        ("Group", 1, "test", "staff"),
    ]
    assert sum(one.count for one in events if one.name == "grant_sealed") == 3


def test_nothing_stays_open(lite: Engine) -> None:
    """Between two batches and after them nobody is unlocked."""
    with Session(lite) as session:
        for _ in staff.settle_all(session, Group, provider="staff", reason="test"):
            with pytest.raises(LockedError):
                session.scalars(select(Post)).all()[0].text  # noqa: B018
            session.commit()


async def test_the_asynchronous_face(async_engine: AsyncEngine) -> None:
    """`async for` with `await session.commit()`, on both drivers."""
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(async_engine) as session:
        groups = [Group(id=number) for number in (1, 2, 3)]
        await AsyncEnvelope(web).enroll(session, groups, provider="staff")
        session.add(User(id=1, email="late"))
        session.add_all([Membership(group_id=number, user_id=1) for number in (1, 2, 3)])
        await session.commit()
        late = await session.get_one(User, 1)
        await AsyncEnvelope(web).enroll(session, late, secret=secret_of("late"))
        await session.commit()
        seen = []
        job = AsyncEnvelope(staff).settle_all(session, Group, provider="staff", reason="test", batch=2)
        async for so_far in job:
            await session.commit()
            seen.append(so_far.settled)
        pending = await session.scalar(
            select(sa.func.count()).select_from(GRANTS).where(GRANTS.c.state == "pending")
        )

    assert seen == [2, 3]
    assert pending == 0
