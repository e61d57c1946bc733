"""Who can open an owner's keys, and giving or taking that ability: told by one line, and true."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, ForeignKey, String, select, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import (
    AlreadyEnrolledError,
    AsyncEnvelope,
    AuditEvent,
    ConfigurationError,
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyGrant,
    KeyNotFoundError,
    KeyOwner,
    LockedError,
    OwnerMismatchError,
    RowSealError,
    ServerKeyring,
    UnlockError,
)
from tests.orm.sharing_models import Base, Group, Membership, Post, ProfileShare, User
from tests.prepared import tables_of

pytestmark = pytest.mark.any_database

SECRET = "correct horse battery staple"
KEYS = ServerKeyring([os.urandom(32)])


@pytest.fixture(params=["seals", "no seals"])
def envelope(request: pytest.FixtureRequest) -> Envelope:
    """With row seals, and with the same provider and none."""
    profile = KdfProfile.unsafe_for_tests()
    if request.param == "seals":
        return Envelope(kdf_profile=profile, server_keys=KEYS)
    return Envelope(kdf_profile=profile, providers={"server": KEYS})


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """An empty database."""
    tables_of(Base.metadata, engine)
    with Session(engine, expire_on_commit=False) as session:
        yield session


def user_of(envelope: Envelope, session: Session, name: str, provider: str | None = None) -> User:
    """An enrolled user with a diary and a display name."""
    user = User(email=name, display_name=name.title(), diary=f"diary of {name}")
    envelope.enroll(session, user, secret=SECRET, provider=provider)
    session.commit()
    return user


def test_a_users_own_slots_say_who_opens_them(envelope: Envelope, session: Session) -> None:
    """A user with a secret alone is nobody else's; with a provider slot, it is the provider's too."""
    ada, ben = user_of(envelope, session, "ada"), user_of(envelope, session, "ben", "server")

    assert [slot.kind for slot in envelope.slots(session, ada)] == ["secret"]
    assert frozenset() == envelope.slots(session, ada).providers
    assert sorted(slot.kind for slot in envelope.slots(session, ben)) == ["provider", "secret"]
    assert {"server"} == envelope.slots(session, ben).providers


def test_a_provider_that_reaches_an_owner_through_a_grant_is_told(
    envelope: Envelope, session: Session
) -> None:
    """What is shared with a group that the operator can open, the operator can read; told with its scope."""
    ada = user_of(envelope, session, "ada")
    group = Group(name="open")
    envelope.enroll(session, group, provider="server")
    with envelope.unlock(session, ada, secret=SECRET):
        session.add(ProfileShare(user=ada, group=group))
        session.commit()

    slots = envelope.slots(session, ada)

    assert {"server"} == slots.providers
    assert [(slot.scope, slot.through) for slot in slots if slot.kind == "provider"] == [
        ("profile", ("ProfileShare",))
    ]


def test_a_provider_is_added_and_taken_away(envelope: Envelope, session: Session) -> None:
    """Added, it opens what is there. Taken away, a keyring that it opened before does not open what is
    written after, and the owner reads everything."""
    ada = user_of(envelope, session, "ada")
    with pytest.raises(LockedError):
        envelope.add_provider(session, ada, provider="server")
    with envelope.unlock(session, ada, secret=SECRET):
        envelope.add_provider(session, ada, provider="server")
        session.commit()
    kept = envelope.unlock(session, ada, provider="server", reason="support case 12")
    envelope.remove_provider(session, ada, provider="server")
    session.commit()

    assert frozenset() == envelope.slots(session, ada).providers
    with pytest.raises(KeyNotFoundError):
        envelope.unlock(session, ada, provider="server", reason="support case 13")
    with envelope.unlock(session, ada, secret=SECRET):
        assert session.get_one(User, ada.id, populate_existing=True).diary == "diary of ada"
        ada.diary = "written after"
        session.commit()
    session.expunge_all()
    with kept:
        again = session.get_one(User, ada.id)

        assert again.display_name == "Ada"
        with pytest.raises(LockedError):
            _ = again.diary


@pytest.mark.parametrize("way", ["server mode", "provider"])
def test_a_first_secret(envelope: Envelope, session: Session, way: str) -> None:
    """An owner whom server mode made gets a secret while it is open; with the provider taken away, the secret
    opens what was written before and after."""
    events: list[AuditEvent] = []
    with envelope.server_mode(session, reason="test"):
        ada = User(email="ada", diary="written before")
        session.add(ada)
        session.commit()
    with pytest.raises(LockedError):
        envelope.add_secret(session, ada, secret=SECRET)
    envelope = envelope_like(envelope, events.append)
    opened: Any = (
        envelope.server_mode(session, reason="test")
        if way == "server mode"
        else envelope.unlock(session, ada, provider="server", reason="asked for a secret")
    )
    with opened:
        envelope.add_secret(session, ada, secret=SECRET)
        session.commit()
        ada.diary = "written after"
        session.commit()

    assert [one.owner_class for one in events if one.name == "secret_added"] == ["User"]
    assert sorted(slot.kind for slot in envelope.slots(session, ada)) == ["provider", "secret"]
    envelope.remove_provider(session, ada, provider="server")
    session.commit()
    session.expunge_all()
    ada = session.get_one(User, ada.id)
    with envelope.unlock(session, ada, secret=SECRET):
        assert ada.diary == "written after"
        session.commit()
    envelope.change_secret(session, ada, old=SECRET, new="words that came later")
    with envelope.unlock(session, ada, secret="words that came later"):
        assert ada.diary == "written after"


def envelope_like(envelope: Envelope, audit: Any) -> Envelope:
    """The same server keys, for another process that listens."""
    seals = {"server_keys": KEYS} if envelope.policy.seals.is_on else {"providers": {"server": KEYS}}
    return Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), audit=audit, **seals)  # type: ignore[arg-type]


def test_a_secret_is_added_once(envelope: Envelope, session: Session) -> None:
    """Who has a secret is told to change it; who has none, wherever one is asked for, how to get one."""
    ada = user_of(envelope, session, "ada", "server")
    with envelope.server_mode(session, reason="test"):
        with pytest.raises(AlreadyEnrolledError, match=r"has a secret already: `envelope\.change_secret"):
            envelope.add_secret(session, ada, secret="another secret")
        ben = User(email="ben", diary="the server's")
        session.add(ben)
        session.commit()
    cure = (
        r"held by provider 'server' alone and has no secret\..*`envelope.add_secret\(session, owner, secret"
    )
    with pytest.raises(AlreadyEnrolledError, match=cure):
        envelope.enroll(session, ben, secret=SECRET)
    with pytest.raises(KeyNotFoundError, match=cure):
        envelope.unlock(session, ben, secret=SECRET)
    with pytest.raises(KeyNotFoundError, match=cure):
        envelope.unlock(session, ben, secret=SECRET, authenticated=True)
    with pytest.raises(KeyNotFoundError, match=cure):
        envelope.change_secret(session, ben, old=SECRET, new="another secret")
    with pytest.raises(AlreadyEnrolledError, match="unlock it, or change its secret"):
        envelope.enroll(session, ada, secret=SECRET)


def test_two_first_secrets_at_once(sqlite_engine: Engine) -> None:
    """While one derives its key, another request gives the owner a secret: the first is refused then."""
    envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=KEYS)
    Base.metadata.create_all(sqlite_engine)
    with Session(sqlite_engine) as session, envelope.server_mode(reason="test"):
        ada = User(email="ada", diary="x")
        session.add(ada)
        session.commit()
        steps = envelope.add_secret_steps(session, ada, "one secret")
        work = next(steps)
        session.rollback()
        with Session(sqlite_engine) as other:
            envelope.add_secret(other, other.get_one(User, ada.id), secret="the other secret")
            other.commit()
        with pytest.raises(AlreadyEnrolledError):
            steps.send(envelope.perform(work))

        assert len(envelope.slots(session, ada)) == 2


async def test_a_first_secret_asynchronously(async_engine: AsyncEngine) -> None:
    """The same with `await`."""
    envelope = AsyncEnvelope(Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=KEYS))
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(async_engine, expire_on_commit=False) as session:
        ada = User(email="ada", diary="x")
        with envelope.server_mode(session, reason="test"):
            session.add(ada)
            await session.commit()
            await envelope.add_secret(session, ada, secret=SECRET)
            await session.commit()
        async with envelope.unlock(session, ada, secret=SECRET):
            await session.refresh(ada)

            assert ada.diary == "x"


def test_a_removed_provider_needs_no_holder(envelope: Envelope, session: Session) -> None:
    """The slot is taken away while the owner is locked; the owner's secret still opens everything."""
    ada = user_of(envelope, session, "ada", "server")
    envelope.remove_provider(session, ada, provider="server")
    session.commit()
    with pytest.raises(KeyNotFoundError):
        envelope.remove_provider(session, ada, provider="server")
    for _ in range(2):
        session.expunge_all()
        ada = session.scalars(select(User)).one()
        with envelope.unlock(session, ada, secret=SECRET):
            assert (ada.display_name, ada.diary) == ("Ada", "diary of ada")
            session.commit()


def test_a_secret_changed_right_after_a_new_epoch_loses_nothing(envelope: Envelope, session: Session) -> None:
    """A root key that was retired while its owner was locked hangs on its secret slot alone, and a new secret
    opens that too."""
    ada = user_of(envelope, session, "ada", "server")
    envelope.remove_provider(session, ada, provider="server")
    envelope.change_secret(session, ada, old=SECRET, new="other words entirely")
    session.commit()
    session.expunge_all()
    ada = session.scalars(select(User)).one()

    with pytest.raises(UnlockError):
        envelope.unlock(session, ada, secret=SECRET)
    with envelope.unlock(session, ada, secret="other words entirely"):
        assert (ada.display_name, ada.diary) == ("Ada", "diary of ada")
        session.commit()


def test_rows_of_an_older_database_are_sealed_once(session: Session) -> None:
    """Server keys that come later refuse rows without seals; seal_rows() takes them as they are."""
    before = Envelope(kdf_profile=KdfProfile.unsafe_for_tests())
    after = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=KEYS)
    ada = user_of(before, session, "ada")
    with before.unlock(session, ada, secret=SECRET):
        group = Group(name="g")
        before.enroll(session, group)
        session.add_all([Membership(group=group, user=ada), Post(group=group, text="hello")])
        session.commit()
    with pytest.raises(RowSealError):
        after.unlock(session, ada, secret=SECRET)
    with pytest.raises(ConfigurationError):
        before.seal_rows(session, User)
    with pytest.raises(ConfigurationError):
        after.seal_rows(session, Post)

    count = after.seal_rows(session, User, Group)
    session.commit()
    session.expunge_all()

    assert count == sum(
        session.scalar(sa.select(sa.func.count()).select_from(Base.metadata.tables[name]))
        for name in ("users_key", "users_keyslot", "groups_key", "groups_keyslot", "memberships_keygrant")
    )
    ada = session.scalars(select(User)).one()
    with after.unlock(session, ada, secret=SECRET):
        assert [post.text for post in session.scalars(select(Post))] == ["hello"]


def test_a_server_key_is_rotated_by_prepending(session: Session) -> None:
    """Rows sealed under the older key serve on; after seal_rows() they need it no more."""
    old, new = os.urandom(32), os.urandom(32)
    profile = KdfProfile.unsafe_for_tests()
    first = Envelope(kdf_profile=profile, server_keys=ServerKeyring([old]))
    both = Envelope(kdf_profile=profile, server_keys=ServerKeyring([new, old]))
    only_new = Envelope(kdf_profile=profile, server_keys=ServerKeyring([new]))
    ada = user_of(first, session, "ada")
    with both.unlock(session, ada, secret=SECRET):
        assert session.get_one(User, ada.id, populate_existing=True).diary == "diary of ada"
    with pytest.raises(RowSealError):
        only_new.unlock(session, ada, secret=SECRET)
    both.seal_rows(session, User)
    session.commit()

    with only_new.unlock(session, ada, secret=SECRET):
        assert session.get_one(User, ada.id, populate_existing=True).diary == "diary of ada"


def test_audit_events_name_the_provider_and_the_reason(session: Session) -> None:
    """Who opened without the owner, and why, is in the event; nothing in it is a value or a key."""
    events: list[AuditEvent] = []
    envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=KEYS, audit=events.append)
    ada = user_of(envelope, session, "ada", "server")
    with pytest.raises(ConfigurationError):
        envelope.unlock(session, ada, provider="server", reason=" ")
    with envelope.unlock(session, ada, provider="server", reason="nightly export"):
        pass

    (opened,) = [event for event in events if event.name == "provider_unlocked"]
    assert (opened.owner_class, opened.provider, opened.reason) == ("User", "server", "nightly export")
    assert "diary" not in repr(events)
    assert "Ada" not in repr(events)


class MovingBase(DeclarativeBase):
    """Tables that follow a changed primary key."""


class Person(KeyOwner, MovingBase):
    __tablename__ = "people"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(EncryptedType(String, scope="profile"))
    diary: Mapped[str] = mapped_column(EncryptedType(String))


class Team(KeyOwner, MovingBase):
    __tablename__ = "teams"

    id: Mapped[int] = mapped_column(primary_key=True)


class Player(KeyGrant, MovingBase, of="team_id", to="person_id"):
    __tablename__ = "players"

    team_id: Mapped[int] = mapped_column(ForeignKey("teams.id", onupdate="CASCADE"), primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("people.id", onupdate="CASCADE"), primary_key=True)


class Shown(KeyGrant, MovingBase, of="person_id", to="team_id", scope="profile"):
    __tablename__ = "shown"

    id: Mapped[int] = mapped_column(primary_key=True)
    team_id: Mapped[int] = mapped_column(ForeignKey("teams.id", onupdate="CASCADE"))
    person_id: Mapped[int] = mapped_column(ForeignKey("people.id", onupdate="CASCADE"))


def test_a_moved_owner_is_bound_anew_with_its_provider_and_its_sharing(
    envelope: Envelope, engine: Engine
) -> None:
    """After its primary key was changed and its keys bound anew, its secret and its provider open what they
    opened before, and a team that it shares with reads what it writes from then on."""
    MovingBase.metadata.create_all(engine)
    with Session(engine, expire_on_commit=False) as session:
        ada, ben = (Person(id=number, name=f"name {number}", diary=f"diary {number}") for number in (1, 2))
        envelope.enroll(session, ada, secret=SECRET, provider="server")
        envelope.enroll(session, ben, secret=SECRET)
        with envelope.unlock(session, ben, secret=SECRET), envelope.unlock(session, ada, secret=SECRET):
            envelope.enroll(session, team := Team(id=1))
            session.add_all([Player(team_id=1, person_id=2), Shown(team_id=team.id, person_id=1)])
            session.commit()
        session.execute(update(Person).where(Person.id == 1).values(id=77))
        session.commit()
        session.expunge_all()
        ada, ben = session.get_one(Person, 77), session.get_one(Person, 2)
        with pytest.raises(OwnerMismatchError):
            envelope.unlock(session, ada, secret=SECRET)

        envelope.rebind(session, ada, secret=SECRET)
        session.commit()

        for opening in ({"secret": SECRET}, {"provider": "server", "reason": "test"}):
            session.expire_all()
            with envelope.unlock(session, ada, **opening):
                assert (ada.name, ada.diary) == ("name 1", "diary 1")
                session.commit()
        with envelope.unlock(session, ada, secret=SECRET):
            ada.name = "another name"
            session.commit()
        session.expire_all()
        with envelope.unlock(session, ben, secret=SECRET):
            assert ada.name == "another name"
            with pytest.raises(LockedError):
                _ = ada.diary
            session.commit()
