"""Escrow: custodians help an owner who has lost everything else, by a key that the configuration pins; a
planted slot is given nothing."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    AsyncEnvelope,
    AuditEvent,
    ConfigurationError,
    EnrollmentError,
    Envelope,
    EscrowKey,
    KdfProfile,
    KeyNotFoundError,
    LockedError,
    OpenedEscrowKey,
    RowSealError,
    ServerKeyring,
    UnlockError,
)
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.keys.hierarchy import describe
from sqlalchemy_envelope.keys.model import KeyState, Purpose, SlotKind
from sqlalchemy_envelope.orm.current.desk import Desk
from sqlalchemy_envelope.orm.verbs.owner_keys import locate
from tests.orm import models as claiming
from tests.orm.sharing_models import Base, Group, Membership, Post, User
from tests.orm.verbs.claiming.application import Application
from tests.prepared import tables_of

pytestmark = pytest.mark.any_database

SECRET, NEW = "correct horse battery staple", "a new secret, well kept"
PRIVATE = b"\x2a" * 32
OTHER = b"\x2b" * 32
SERVER_KEY = os.urandom(32)
SLOTS = Base.metadata.tables["users_keyslot"]
WHY = {"reason": "case 12"}


def opened(private: bytes = PRIVATE) -> OpenedEscrowKey:
    """What the custodians open."""
    return OpenedEscrowKey(private)


class Site:
    """An application with its database, and the events that it was told."""

    def __init__(self, engine: Engine, *, seals: bool) -> None:
        self.engine = engine
        self.events: list[AuditEvent] = []
        self.seals = seals
        self.pin(opened().public)

    def pin(self, escrow: EscrowKey | None) -> Envelope:
        """Start the application again with this key."""
        keys = ServerKeyring([SERVER_KEY]) if self.seals else None
        self.envelope = Envelope(
            kdf_profile=KdfProfile.unsafe_for_tests(),
            server_keys=keys,
            providers=None if self.seals else {"server": ServerKeyring([SERVER_KEY])},
            escrow=escrow,
            audit=self.events.append,
        )
        return self.envelope

    def enrolled(self, session: Session, name: str = "ada", *, in_escrow: bool = True) -> User:
        """A user with a diary, in escrow or not."""
        user = User(email=name, diary=f"diary of {name}", display_name=name.title())
        with self.envelope.enroll(session, user, secret=SECRET) as unlocked:
            if in_escrow:
                unlocked.add_escrow(user)
            session.commit()
        return user

    def diary(self, user: User, **how: Any) -> str | None:
        """What an unlock in a session of its own reads."""
        with Session(self.engine) as session:
            again = session.get_one(User, user.id)
            with self.envelope.unlock(session, again, **how):
                return again.diary

    def names(self, name: str) -> list[AuditEvent]:
        """The events of one name."""
        return [event for event in self.events if event.name == name]

    def slots(self, kind: str = "escrow") -> list[Any]:
        """The rows of the slots of one kind."""
        with self.engine.connect() as connection:
            return list(connection.execute(sa.select(SLOTS).where(SLOTS.c.kind == kind)))


@pytest.fixture(params=["seals", "no seals"])
def site(request: pytest.FixtureRequest, engine: Engine) -> Site:
    """On both databases, with row seals and without."""
    tables_of(Base.metadata, engine)
    return Site(engine, seals=request.param == "seals")


@pytest.fixture(params=["seals", "no seals"])
def lite(request: pytest.FixtureRequest, sqlite_engine: Engine) -> Site:
    """On SQLite."""
    tables_of(Base.metadata, sqlite_engine)
    return Site(sqlite_engine, seals=request.param == "seals")


@pytest.fixture
def without(sqlite_engine: Engine) -> Site:
    """On SQLite, without row seals."""
    tables_of(Base.metadata, sqlite_engine)
    return Site(sqlite_engine, seals=False)


@pytest.fixture
def session(site: Site) -> Iterator[Session]:
    with Session(site.engine, expire_on_commit=False) as session:
        yield session


# ---------------------------------------------------------------- the way back


def test_custodians_help_who_forgot_the_secret(site: Site, session: Session) -> None:
    """Three of five shares open the owner; a new secret is set, opens everything, and the old one nothing."""
    ada = site.enrolled(session)
    shares = opened().shares(custodians=5, threshold=3)
    session.expunge_all()
    ada = session.get_one(User, ada.id)
    with (
        OpenedEscrowKey.from_shares(shares[1:4], fits=opened().public) as key,
        site.envelope.unlock(session, ada, escrow_key=key, reason="case 12") as unlocked,
    ):
        assert ada.diary == "diary of ada"
        ada.diary = "written by the helped"
        unlocked.set_secret(ada, NEW)
        session.commit()

    assert site.diary(ada, secret=NEW) == "written by the helped"
    with pytest.raises(UnlockError):
        site.diary(ada, secret=SECRET)
    assert site.diary(ada, escrow_key=opened(), **WHY) == "written by the helped"
    (event, _) = site.names("escrow_opened")
    assert (event.reason, event.owner_id, event.slot_kind) == ("case 12", (ada.id,), "escrow")
    with pytest.raises(ConfigurationError, match="wiped"):
        site.diary(ada, escrow_key=key, **WHY)


def test_its_owner_sees_it_until_acknowledged(site: Site, session: Session) -> None:
    """The slot is listed, shown at each unlock until the owner acknowledges it, and an event."""
    ada = site.enrolled(session)
    (event,) = site.names("slot_added")

    assert (event.owner_class, event.owner_id, event.slot_kind) == ("User", (ada.id,), "escrow")
    assert sorted(slot.kind for slot in site.envelope.slots(session, ada)) == ["escrow", "secret"]
    assert site.envelope.slots(session, ada).in_escrow
    for _ in range(2):
        with site.envelope.unlock(session, ada, secret=SECRET) as unlocked:
            assert [slot.kind for slot in unlocked.unacknowledged_slots] == ["escrow"]
    with unlocked_again(site, session, ada) as unlocked:
        unlocked.acknowledge_slots(ada)
        session.commit()
    with unlocked_again(site, session, ada) as unlocked:
        assert unlocked.unacknowledged_slots == ()


def unlocked_again(site: Site, session: Session, user: User) -> Any:
    """Another unlock with the secret."""
    return site.envelope.unlock(session, user, secret=SECRET)


async def test_async(async_engine: AsyncEngine) -> None:
    """The same for an AsyncSession: added, used, a new secret set."""
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    envelope = AsyncEnvelope(Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), escrow=opened().public))
    async with AsyncSession(async_engine, expire_on_commit=False) as session:
        ada = User(email="ada", diary="diary of ada")
        async with envelope.enroll(session, ada, secret=SECRET) as unlocked:
            with pytest.raises(ConfigurationError, match=r"await AsyncEnvelope\(envelope\).add_escrow"):
                unlocked.add_escrow(ada)
            await envelope.add_escrow(session, ada)
            await session.commit()
        session.expunge_all()
        ada = await session.get_one(User, ada.id)
        async with envelope.unlock(session, ada, escrow_key=opened(), reason="case 12"):
            assert ada.diary == "diary of ada"
            await envelope.set_secret(session, ada, new=NEW)
            await session.commit()
        async with envelope.unlock(session, ada, secret=NEW):
            assert ada.diary == "diary of ada"


def test_it_follows_every_epoch(site: Site, session: Session) -> None:
    """The values of each epoch of an owner, and of a group that it is in, are open after the rescue."""
    ada, ben = site.enrolled(session), site.enrolled(session, "ben", in_escrow=False)
    with site.envelope.unlock(session, ada, secret=SECRET) as unlocked:
        group = Group(name="readers")
        with site.envelope.enroll(session, group):
            session.add_all([Membership(group=group, user=one) for one in (ada, ben)])
            session.flush()
            session.add(Post(group=group, text="with ben"))
            session.commit()
        site.envelope.add_provider(session, ada, provider="server")
        session.commit()
        site.envelope.remove_provider(session, ada, provider="server")  # a new epoch of ada
        ada.display_name = "of the second epoch"
        session.commit()
        session.delete(session.get_one(Membership, (group.id, ben.id)))
        session.flush()
        session.add(Post(group=group, text="without ben"))
        session.commit()
        unlocked.add_escrow(ada)  # again: nothing to do
        session.commit()
    session.expunge_all()
    again = session.get_one(User, ada.id)
    with site.envelope.unlock(session, again, escrow_key=opened(), **WHY) as unlocked:
        unlocked.set_secret(again, NEW)
        session.commit()
    session.expunge_all()
    again = session.get_one(User, ada.id)
    with site.envelope.unlock(session, again, secret=NEW):
        assert (again.diary, again.display_name) == ("diary of ada", "of the second epoch")
        assert {"with ben", "without ben"} == {post.text for post in session.scalars(sa.select(Post))}
    assert len(site.names("slot_added")) == 1


def test_everyone(site: Site, session: Session) -> None:
    """With `everyone=True` each enrolment makes a slot: by secret, of a list, in server mode. It is no news
    for a new owner."""
    site.pin(EscrowKey(opened().public_key, everyone=True))
    ada = site.enrolled(session, in_escrow=False)
    many = [User(email=name, diary=name) for name in ("ben", "cid")]
    site.envelope.enroll(session, many, secret=dict.fromkeys(many, SECRET))
    with site.envelope.server_mode(session, reason="test"):
        eve = User(email="eve", diary="eve")
        session.add(eve)
        session.commit()

    assert len(site.slots()) == 4
    assert site.diary(ada, escrow_key=opened(), **WHY) == "diary of ada"
    assert [site.diary(one, escrow_key=opened(), **WHY) for one in (*many, eve)] == ["ben", "cid", "eve"]
    with site.envelope.unlock(session, ada, secret=SECRET) as unlocked:
        assert unlocked.unacknowledged_slots == ()


def test_claimed_keys(sqlite_engine: Engine, tmp_path: Path) -> None:
    """With `everyone=True`, an owner who claims keys that a campaign made is in escrow, with every epoch."""
    tables_of(claiming.Base.metadata, sqlite_engine)
    app = Application(sqlite_engine, tmp_path)
    app.restart(escrow=EscrowKey(opened().public_key, everyone=True))
    owner = app.away()
    app.claim(owner)

    assert app.roots() == 2
    assert app.note(owner, secret=claiming.SECRET) == "of ada"
    assert app.note(owner, escrow_key=opened(), **WHY) == "of ada"


def test_custodians_are_not_a_groups_members(lite: Site) -> None:
    """A group that is enrolled and granted to nobody is refused at the commit, escrow or not."""
    envelope = lite.pin(EscrowKey(opened().public_key, everyone=True))
    with Session(lite.engine, expire_on_commit=False) as session:
        ada = lite.enrolled(session)
        with envelope.unlock(session, ada, secret=SECRET):
            envelope.enroll(session, Group(name="nobody's"))
            with pytest.raises(EnrollmentError, match="Nobody could open"):
                session.commit()


def test_a_changed_primary_key(lite: Site) -> None:
    """After a rebind the custodians open the owner still."""
    with Session(lite.engine, expire_on_commit=False) as session:
        ada = lite.enrolled(session)
        ada.id = 77
        session.commit()
        lite.envelope.rebind(session, ada, secret=SECRET)
        session.commit()

        assert lite.diary(ada, escrow_key=opened(), **WHY) == "diary of ada"


def test_an_owner_leaves_escrow(site: Site, session: Session) -> None:
    """The slot is removed as any other: the custodians open nothing more, and no new epoch brings it back."""
    ada = site.enrolled(session)
    with site.envelope.unlock(session, ada, secret=SECRET) as unlocked:
        (slot,) = [one for one in site.envelope.slots(session, ada) if one.kind == "escrow"]
        unlocked.remove_slot(ada, slot)
        ada.diary = "private again"
        session.commit()

    assert not site.envelope.slots(session, ada).in_escrow
    with pytest.raises(KeyNotFoundError, match="no escrow slot"):
        site.diary(ada, escrow_key=opened(), **WHY)


# ---------------------------------------------------------------- another key


def test_a_new_escrow_key(site: Site, session: Session) -> None:
    """Slots of a key that is named as `previous` go over to the new key: at the next epoch without their
    owner, and for all epochs when the owner adds escrow again. The former key then opens nothing."""
    ada = site.enrolled(session)
    site.pin(EscrowKey(opened(OTHER).public_key, previous=[opened().public.text]))
    with site.envelope.unlock(session, ada, secret=SECRET):
        site.envelope.add_provider(session, ada, provider="server")
        session.commit()
        site.envelope.remove_provider(session, ada, provider="server")
        session.commit()

    with pytest.raises(KeyNotFoundError, match="another key"):
        site.diary(ada, escrow_key=opened(), **WHY)
    with site.envelope.unlock(session, ada, secret=SECRET) as unlocked:
        unlocked.add_escrow(ada)
        session.commit()
    assert site.diary(ada, escrow_key=opened(OTHER), **WHY) == "diary of ada"
    assert {opened(OTHER).public_key} == {bytes(row.recipient_public_key) for row in site.slots()}
    assert not site.names("slot_refused")


# ---------------------------------------------------------------- bad input


def test_what_is_refused(lite: Site) -> None:
    """No reason, another key, no slot, no pinned key, a locked owner, two ways: each its own error."""
    with Session(lite.engine, expire_on_commit=False) as session:
        ada, ben = lite.enrolled(session), lite.enrolled(session, "ben", in_escrow=False)

        with pytest.raises(ConfigurationError, match="Say why"):
            lite.diary(ada, escrow_key=opened())
        with pytest.raises(KeyNotFoundError, match="another key"):
            lite.diary(ada, escrow_key=opened(OTHER), **WHY)
        with pytest.raises(KeyNotFoundError, match="no escrow slot"):
            lite.diary(ben, escrow_key=opened(), **WHY)
        with pytest.raises(ConfigurationError, match="one of them"):
            lite.diary(ada, escrow_key=opened(), secret=SECRET, **WHY)
        with pytest.raises(LockedError):
            lite.envelope.add_escrow(session, ben)
        lite.pin(None)
        with (
            lite.envelope.unlock(session, ben, secret=SECRET) as unlocked,
            pytest.raises(ConfigurationError, match="keys generate escrow"),
        ):
            unlocked.add_escrow(ben)
        with pytest.raises(ConfigurationError, match="takes an EscrowKey"):
            lite.pin(opened())  # type: ignore[arg-type]


# ---------------------------------------------------------------- attackers


def new_epoch(site: Site, session: Session, user: User) -> None:
    """The owner starts an epoch."""
    with site.envelope.unlock(session, user, secret=SECRET):
        site.envelope.add_provider(session, user, provider="server")
        session.commit()
        site.envelope.remove_provider(session, user, provider="server")
        session.commit()


@pytest.mark.parametrize("genuine", [True, False])
def test_a_planted_slot_is_given_no_key(lite: Site, *, genuine: bool) -> None:
    """Somebody who writes rows adds an escrow slot with a public key of their own, or swaps that of the
    owner's slot. With seals nothing goes on. Without, the next root key is not sealed to it, and an event
    tells of it."""
    with Session(lite.engine, expire_on_commit=False) as session:
        ada = lite.enrolled(session, in_escrow=genuine)
        row = lite.slots("escrow" if genuine else "secret")[0]
        mine = {"recipient_public_key": opened(OTHER).public_key, "kind": "escrow"}
        with lite.engine.begin() as connection:
            if genuine:
                connection.execute(sa.update(SLOTS).where(SLOTS.c.slot_id == row.slot_id).values(mine))
            else:
                connection.execute(
                    sa.insert(SLOTS).values({**row._asdict(), "slot_id": uuid.uuid4(), "kdf": "", **mine})
                )
        if lite.seals:
            with pytest.raises(RowSealError):
                new_epoch(lite, session, ada)
            return
        new_epoch(lite, session, ada)
        with Session(lite.engine) as other:
            located = locate(Desk(other, lite.envelope.policy), other.get_one(User, ada.id))
            roots = [one.stored for one in located.load() if one.stored.purpose is Purpose.ROOT]
            active = [one.key_id for one in roots if one.state is KeyState.ACTIVE]

            assert located.store.load_slots(active, SlotKind.ESCROW) == []
        (event,) = lite.names("slot_refused")
        assert (event.owner_id, event.slot_kind, event.count) == ((ada.id,), "escrow", 1)


def test_a_planted_root_key_is_not_written_under(without: Site) -> None:
    """Somebody retires the owner's root key and plants one of their own, sealed to the pinned key, for the
    custodians to open. What is written in the rescued session is not under that key."""
    mine = KeyBytes(OTHER)
    with Session(without.engine, expire_on_commit=False) as session:
        ada = without.enrolled(session)
        store = locate(Desk(session, without.envelope.policy), ada).store
        keys = [one.stored for one in store.load([(ada.id,)])]
        (root,) = [key for key in keys if key.purpose is Purpose.ROOT]
        planted = describe(mine, root.owner_reference, Purpose.ROOT, epoch=2)
        with without.engine.begin() as connection:
            table = Base.metadata.tables["users_key"]
            connection.execute(sa.update(table).where(table.c.key_id == root.key_id).values(state="retired"))
        store.insert_keys([((ada.id,), planted.stored)])
        store.insert_slots([opened().public.slot(planted)])
        session.commit()
        session.expunge_all()
        again = session.get_one(User, ada.id)
        with without.envelope.unlock(session, again, escrow_key=opened(), **WHY):
            assert again.diary == "diary of ada"
            again.diary = "after the rescue"
            session.commit()
        keys = [one.stored for one in store.load([(ada.id,)])]
        active = {key.key_id for key in keys if key.state is KeyState.ACTIVE}

        assert planted.stored.key_id not in active
        assert planted.stored.key_id not in {key.wrapping_key_id for key in keys if key.key_id in active}


def test_a_slot_of_another_owner_opens_nothing(lite: Site) -> None:
    """A slot that is moved to another owner's root key does not open there: it is bound to its own."""
    with Session(lite.engine, expire_on_commit=False) as session:
        ada, ben = lite.enrolled(session), lite.enrolled(session, "ben")
        of_ada, of_ben = sorted(lite.slots(), key=lambda row: row.created_at)
        with lite.engine.begin() as connection:
            statement = sa.update(SLOTS).where(SLOTS.c.slot_id == of_ben.slot_id)
            connection.execute(statement.values(wrapped=of_ada.wrapped))
        with pytest.raises(RowSealError if lite.seals else UnlockError):
            lite.diary(ben, escrow_key=opened(), **WHY)
        assert lite.diary(ada, escrow_key=opened(), **WHY) == "diary of ada"
