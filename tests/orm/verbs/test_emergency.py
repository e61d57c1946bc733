"""Emergency access: a person whom the owner named opens the owner after a waiting time, and never before; the
owner sees the request and can cancel it; edited dates, a wrong clock and moved rows open nothing."""

import datetime as dt
import gc
import uuid
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, ForeignKey, String, Text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, configure_mappers, mapped_column

from sqlalchemy_envelope import (
    AsyncEnvelope,
    AuditEvent,
    ConfigurationError,
    EmergencyAccess,
    EmergencyError,
    EmergencyRequest,
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyOwner,
    LockedError,
    NotEnrolledError,
    ProviderError,
    ServerKeyring,
    TamperedKeyError,
)
from sqlalchemy_envelope.orm.verbs.slots import emergency as module
from tests.prepared import tables_of

pytestmark = pytest.mark.any_database

SECRET = "correct horse battery staple"
WEEK = dt.timedelta(days=7)
START = dt.datetime(2026, 5, 4, 12, 0, 0, tzinfo=dt.UTC)
SERVER_KEY, OTHER_KEY = b"\x51" * 32, b"\x52" * 32


class Base(DeclarativeBase):
    type_annotation_map: ClassVar[Any] = {str: String(80)}


class User(KeyOwner, Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    diary: Mapped[str | None] = mapped_column(EncryptedType(Text))


class Helper(EmergencyAccess, Base, of="owner_id", to="person_id"):
    __tablename__ = "helpers"

    owner_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)


HELPERS: Any = Helper.__table__


class Clock:
    """The clock of the server."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.time = START
        monkeypatch.setattr(module, "now", lambda: self.time)

    def pass_(self, **time: float) -> None:
        self.time += dt.timedelta(**time)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Site:
    """An application with three users: Ada, who named Ben, and Eve."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.events: list[AuditEvent] = []
        self.restart(SERVER_KEY)
        with Session(engine) as session:
            users = [User(name=name, diary=f"diary of {name}") for name in ("ada", "ben", "eve")]
            self.envelope.enroll(session, users, secret=dict.fromkeys(users, SECRET))
            session.commit()
            self.ada, self.ben, self.eve = (user.id for user in users)

    def restart(self, *keys: bytes) -> None:
        """Start the application again with these server keys."""
        self.envelope = Envelope(
            kdf_profile=KdfProfile.unsafe_for_tests(),
            server_keys=ServerKeyring(list(keys)) if keys else None,
            audit=self.events.append,
        )

    def as_(self, user: int, verb: str, other: int, **how: Any) -> Any:
        """What a user who is unlocked does about another."""
        with Session(self.engine) as session:
            mine, theirs = session.get_one(User, user), session.get_one(User, other)
            with self.envelope.unlock(session, mine, secret=SECRET) as unlocked:
                pair = (theirs, mine) if verb == "request_emergency" else (mine, theirs)
                result = getattr(unlocked, verb)(*pair, **how)
                session.commit()
                return result

    def allow(self) -> None:
        self.as_(self.ada, "allow_emergency", self.ben, wait=WEEK)

    def request(self, person: int | None = None) -> Any:
        return self.as_(person or self.ben, "request_emergency", self.ada)

    def open(self, person: int | None = None) -> str | None:
        """Ada's diary, as it opens for a person."""
        with Session(self.engine) as session:
            mine, ada = session.get_one(User, person or self.ben), session.get_one(User, self.ada)
            with (
                self.envelope.unlock(session, mine, secret=SECRET),
                self.envelope.unlock(session, ada, emergency=mine),
            ):
                return ada.diary

    def requests(self) -> tuple[EmergencyRequest, ...]:
        """What Ada sees at an unlock."""
        with Session(self.engine) as session:
            ada = session.get_one(User, self.ada)
            return self.envelope.unlock(session, ada, secret=SECRET).emergency_requests

    def edit(self, **values: Any) -> None:
        """What somebody does who writes to the database."""
        with self.engine.begin() as connection:
            connection.execute(sa.update(HELPERS).values(values))

    def names(self) -> list[str]:
        return [event.name for event in self.events if event.name.startswith("emergency")]


@pytest.fixture
def site(engine: Engine) -> Site:
    """On both databases."""
    tables_of(Base.metadata, engine)
    return Site(engine)


@pytest.fixture
def lite(sqlite_engine: Engine) -> Site:
    """On SQLite."""
    tables_of(Base.metadata, sqlite_engine)
    return Site(sqlite_engine)


@pytest.fixture
def asked(lite: Site, clock: Clock) -> Site:
    """Ben has asked, a moment ago."""
    lite.allow()
    lite.request()
    return lite


# ---------------------------------------------------------------- the whole way


def test_a_person_helps_after_the_waiting_time(site: Site, clock: Clock) -> None:
    """Allowed, requested, shown to the owner, refused before the time is over, open after it; all events."""
    site.allow()
    with pytest.raises(EmergencyError, match="Nobody has asked"):
        site.open()
    ends = site.request()
    clock.pass_(days=6, hours=23, minutes=59, seconds=59)
    with pytest.raises(EmergencyError, match=r"over at 2026-05-11 12:00:00 UTC"):
        site.open()
    assert site.requests() == (EmergencyRequest("User", (site.ben,), START, START + WEEK),)
    clock.pass_(seconds=1)

    assert ends == START + WEEK
    assert site.open() == "diary of ada"
    assert site.names() == ["emergency_allowed", "emergency_requested", "emergency_opened"]
    event = next(event for event in site.events if event.name == "emergency_opened")
    assert (event.owner_id, event.slot_kind, event.reason) == ((site.ada,), "emergency", f"User {site.ben}")


def test_the_helped_get_a_new_secret(site: Site, clock: Clock) -> None:
    """In the emergency the person may give the owner a new secret, with which all opens again."""
    site.allow()
    site.request()
    clock.pass_(days=7)
    with Session(site.engine) as session:
        ben, ada = session.get_one(User, site.ben), session.get_one(User, site.ada)
        with (
            site.envelope.unlock(session, ben, secret=SECRET),
            site.envelope.unlock(session, ada, emergency=ben) as unlocked,
        ):
            ada.diary = "written in the emergency"
            unlocked.set_secret(ada, "a new secret of ada")
            session.commit()
    with Session(site.engine) as session:
        ada = session.get_one(User, site.ada)
        with site.envelope.unlock(session, ada, secret="a new secret of ada"):
            assert ada.diary == "written in the emergency"


def test_the_owner_cancels(site: Site, clock: Clock) -> None:
    """After a cancellation nothing opens; the person may ask again, and waits again."""
    site.allow()
    site.request()
    clock.pass_(days=6)
    site.as_(site.ada, "cancel_emergency", site.ben)
    clock.pass_(days=6)
    with pytest.raises(EmergencyError, match="Nobody has asked"):
        site.open()

    assert site.requests() == ()
    assert site.request() == clock.time + WEEK
    clock.pass_(days=6)
    with pytest.raises(EmergencyError, match="waiting time"):
        site.open()
    clock.pass_(days=1)
    assert site.open() == "diary of ada"


def test_the_owner_refuses_for_ever(site: Site, clock: Clock) -> None:
    """What was allowed is taken back: the person cannot ask, and no slot is left."""
    site.allow()
    site.request()
    site.as_(site.ada, "refuse_emergency", site.ben)
    clock.pass_(days=70)

    with pytest.raises(EmergencyError, match="not allowed"):
        site.open()
    with pytest.raises(EmergencyError, match="not allowed"):
        site.request()
    with Session(site.engine) as session:
        ada = session.get_one(User, site.ada)
        assert [slot.kind for slot in site.envelope.slots(session, ada)] == ["secret"]


def test_epochs_of_both(site: Site, clock: Clock) -> None:
    """New root keys of the owner and of the person, before the request and after it, change nothing."""
    site.allow()
    for user in (site.ada, site.ben):
        renew(site, user)
    site.request()
    for user in (site.ada, site.ben):
        renew(site, user)
    clock.pass_(days=7)

    assert site.open() == "diary of ada"


def renew(site: Site, user: int) -> None:
    """Start an epoch of a user."""
    with Session(site.engine) as session:
        mine = session.get_one(User, user)
        with site.envelope.unlock(session, mine, secret=SECRET) as unlocked:
            unlocked.add_provider(mine, "server")
            session.commit()
            site.envelope.remove_provider(session, mine, provider="server")
            session.commit()


def test_the_owner_sees_the_slot(lite: Site) -> None:
    """The slot is listed with the person's name, and told as new until it is acknowledged."""
    lite.allow()
    with Session(lite.engine) as session:
        ada = session.get_one(User, lite.ada)
        with lite.envelope.unlock(session, ada, secret=SECRET) as unlocked:
            (slot,) = unlocked.unacknowledged_slots
            assert (slot.kind, slot.label) == ("emergency", f"User {lite.ben}")


def test_rows_go_with_both(site: Site) -> None:
    """A deleted person helps nobody: the row goes with the person, as with the owner."""
    site.allow()
    with Session(site.engine) as session:
        session.delete(session.get_one(User, site.ben))
        session.commit()

        assert session.scalar(sa.select(sa.func.count()).select_from(HELPERS)) == 0


async def test_async(async_engine: AsyncEngine, clock: Clock) -> None:
    """The same for an AsyncSession."""
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    keys = ServerKeyring([SERVER_KEY])
    envelope = AsyncEnvelope(Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=keys))
    async with AsyncSession(async_engine, expire_on_commit=False) as session:
        ada, ben = (User(name=name, diary=f"diary of {name}") for name in ("ada", "ben"))
        await envelope.enroll(session, [ada, ben], secret={ada: SECRET, ben: SECRET})
        async with envelope.unlock(session, ada, secret=SECRET) as unlocked:
            with pytest.raises(ConfigurationError, match=r"AsyncEnvelope\(envelope\).allow_emergency"):
                unlocked.allow_emergency(ada, ben, wait=WEEK)
            await envelope.allow_emergency(session, ada, person=ben, wait=WEEK)
            await session.commit()
        async with envelope.unlock(session, ben, secret=SECRET):
            assert await envelope.request_emergency(session, ada, person=ben) == START + WEEK
            await session.commit()
        async with envelope.unlock(session, ada, secret=SECRET) as unlocked:
            assert [request.person_id for request in unlocked.emergency_requests] == [(ben.id,)]
            await envelope.cancel_emergency(session, ada, person=ben)
            await session.commit()
        async with envelope.unlock(session, ben, secret=SECRET):
            await envelope.request_emergency(session, ada, person=ben)
            await session.commit()
        clock.pass_(days=7)
        session.expunge_all()
        ada, ben = await session.get_one(User, ada.id), await session.get_one(User, ben.id)
        async with envelope.unlock(session, ben, secret=SECRET), envelope.unlock(session, ada, emergency=ben):
            assert ada.diary == "diary of ada"
        async with envelope.unlock(session, ada, secret=SECRET):
            await envelope.refuse_emergency(session, ada, person=ben)
            await session.commit()
        async with envelope.unlock(session, ben, secret=SECRET):
            with pytest.raises(EmergencyError):
                await envelope.unlock(session, ada, emergency=ben)


# ---------------------------------------------------------------- who may not


def test_who_was_not_named(asked: Site, clock: Clock) -> None:
    """Eve has no access, whatever the time is; and Ben has none while he is locked himself."""
    clock.pass_(days=8)
    with pytest.raises(EmergencyError, match="not allowed"):
        asked.open(asked.eve)
    with pytest.raises(EmergencyError, match="not allowed"):
        asked.request(asked.eve)
    with Session(asked.engine) as session:
        ada, ben, eve = (session.get_one(User, one) for one in (asked.ada, asked.ben, asked.eve))
        with pytest.raises(LockedError):
            asked.envelope.unlock(session, ada, emergency=ben)
        with asked.envelope.unlock(session, eve, secret=SECRET), pytest.raises(LockedError):
            asked.envelope.unlock(session, ada, emergency=ben)
        with pytest.raises(LockedError):
            asked.envelope.request_emergency(session, ada, person=ben)
        with pytest.raises(LockedError):
            asked.envelope.cancel_emergency(session, ada, person=ben)
        with pytest.raises(LockedError):
            asked.envelope.allow_emergency(session, ada, person=eve, wait=WEEK)


def test_a_clock_that_goes_back(asked: Site, clock: Clock) -> None:
    """While the clock is before the request, the time is not over, and the error names the clock; asking
    again begins nothing anew. When the clock is right, the time counts from the first request."""
    clock.pass_(days=-30)
    with pytest.raises(EmergencyError, match=r"clock of this server says 2026-04-04 .* before the request"):
        asked.open()
    assert asked.request() == START + WEEK
    clock.pass_(days=37)

    assert asked.open() == "diary of ada"


def test_asking_again_does_not_begin_anew(asked: Site, clock: Clock) -> None:
    """A second request, or ten, keep the first date."""
    clock.pass_(days=3)

    assert {asked.request() for _ in range(3)} == {START + WEEK}


# ---------------------------------------------------------------- attackers


@pytest.mark.parametrize(
    ("column", "value", "error"),
    [
        ("requested_at", START - dt.timedelta(days=30), TamperedKeyError),
        ("requested_at", None, TamperedKeyError),
        ("wait_seconds", 1, TamperedKeyError),
        ("wait_seconds", 2**31 - 1, TamperedKeyError),
        ("kek_public_key", b"\x09" + bytes(31), TamperedKeyError),
        ("person_key_id", uuid.UUID(int=7), LockedError),
        ("sealed_share", b"\x12" + bytes(80), TamperedKeyError),
        ("server_share", bytes(121), ProviderError),
    ],
)
def test_edited_rows_open_nothing(
    asked: Site, clock: Clock, column: str, value: Any, error: type[Exception]
) -> None:
    """Somebody who writes to the database edits a column: a date, the time, a share. Nothing opens by it."""
    clock.pass_(days=8)
    asked.edit(**{column: value})

    with pytest.raises(error):
        asked.open()
    asked.requests()  # the owner unlocks as before


def test_an_edited_date_does_not_shorten_the_time(asked: Site, clock: Clock) -> None:
    """A date of long ago, and a short time, are refused before the time is over: they are not believed."""
    asked.edit(requested_at=START - dt.timedelta(days=30), wait_seconds=1)

    with pytest.raises(TamperedKeyError):
        asked.open()


def test_a_row_of_another_owner(lite: Site, clock: Clock) -> None:
    """The row by which Ben helps Ada, with its request, does not help him to Eve's data, nor Eve to Ada's."""
    lite.allow()
    lite.as_(lite.eve, "allow_emergency", lite.ben, wait=WEEK)
    lite.request()
    clock.pass_(days=8)
    columns = ("kek_public_key", "person_key_id", "sealed_share", "server_share", "requested_at")
    with lite.engine.begin() as connection:
        row = connection.execute(sa.select(HELPERS).where(HELPERS.c.owner_id == lite.ada)).one()
        values = {name: getattr(row, name) for name in columns}
        connection.execute(sa.update(HELPERS).where(HELPERS.c.owner_id == lite.eve).values(values))
        copied = sa.insert(HELPERS).values({**row._asdict(), "person_id": lite.eve})
        connection.execute(copied)
    with Session(lite.engine) as session:
        ben, eve = session.get_one(User, lite.ben), session.get_one(User, lite.eve)
        with lite.envelope.unlock(session, ben, secret=SECRET), pytest.raises(TamperedKeyError):
            lite.envelope.unlock(session, eve, emergency=ben)
    with pytest.raises(TamperedKeyError):
        lite.open(lite.eve)
    assert lite.open() == "diary of ada"


def test_another_server_key(asked: Site, clock: Clock) -> None:
    """A copy of the database and the person's secret open nothing without the server key; nor does a server
    without keys."""
    clock.pass_(days=8)
    asked.restart(OTHER_KEY)
    with pytest.raises(TamperedKeyError):
        asked.open()
    asked.restart()
    with pytest.raises(ConfigurationError, match="server keys"):
        asked.open()
    asked.restart(OTHER_KEY, SERVER_KEY)

    assert asked.open() == "diary of ada"


def test_a_server_key_is_replaced(site: Site, clock: Clock) -> None:
    """After `seal_rows` under a new server key the old one can go, and the request is as it was."""
    site.allow()
    site.as_(site.eve, "allow_emergency", site.ben, wait=WEEK)
    site.request()
    site.restart(OTHER_KEY, SERVER_KEY)
    with Session(site.engine) as session:
        site.envelope.seal_rows(session, User)
        session.commit()
    site.restart(OTHER_KEY)

    assert site.requests() == (EmergencyRequest("User", (site.ben,), START, START + WEEK),)
    clock.pass_(days=7)
    assert site.open() == "diary of ada"


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("verb", ["rotate_provider", "rotate_seals"])
def test_a_rotation_of_the_server_key_moves_the_servers_share(lite: Site, clock: Clock, verb: str) -> None:
    """The old server key is needed while a share is under it, and not after a rotation, which counts it."""
    lite.allow()
    lite.restart(OTHER_KEY, SERVER_KEY)
    old = f"server:{next(iter(ServerKeyring([SERVER_KEY]).keys_by_id)).hex()}"
    with Session(lite.engine) as session:
        needed = {one.place for one in lite.envelope.key_references(session, Base, old).needed}
        *_, done = getattr(lite.envelope, verb)(session, User)
        session.commit()
        after = lite.envelope.key_references(session, Base, old).needed
    lite.restart(OTHER_KEY)
    lite.request()
    clock.pass_(days=7)

    assert "helpers.server_share" in needed
    assert after == ()
    assert (done.skipped, done.refused) == (0, ())
    assert lite.open() == "diary of ada"


def test_a_rotation_refuses_an_owner_with_an_altered_share(lite: Site) -> None:
    """An altered row is not moved, its owner is named, and other owners are moved."""
    lite.allow()
    lite.edit(wait_seconds=1)
    lite.restart(OTHER_KEY, SERVER_KEY)
    with Session(lite.engine) as session:
        *_, done = lite.envelope.rotate_seals(session, User)

    assert [((lite.ada,), "tampered-key")] == [(one.primary_key, one.code) for one in done.refused]
    assert done.rotated == 2


def test_a_new_root_key_of_the_person_takes_the_share(site: Site, clock: Clock) -> None:
    """A share under the person's earlier root key keeps that key; the person's rotation moves the share, and
    then the earlier key can be destroyed."""
    site.allow()
    site.request()
    with Session(site.engine) as session:
        ben = session.get_one(User, site.ben)
        keys = User.__key_class__.__table__
        root = session.scalar(sa.select(HELPERS.c.person_key_id))
        before = {one.place for one in site.envelope.key_references(session, Base, root).needed}
        with site.envelope.unlock(session, ben, secret=SECRET) as unlocked:
            unlocked.rotate(ben, root=True)
            session.commit()
        long_ago = START - dt.timedelta(days=600)
        session.execute(sa.update(keys).where(keys.c.key_id == root).values(retired_at=long_ago))
        session.commit()
        site.envelope.destroy_key(session, Base, root, horizon=WEEK)
        session.commit()
    clock.pass_(days=7)

    assert "helpers.person_key_id" in before
    assert site.open() == "diary of ada"


def test_a_share_that_does_not_open_stays_under_the_earlier_root_key(lite: Site) -> None:
    """The rotation goes on, and the earlier root key cannot be destroyed."""
    lite.allow()
    lite.edit(sealed_share=b"\x12" * 80)
    with Session(lite.engine) as session:
        ben = session.get_one(User, lite.ben)
        with lite.envelope.unlock(session, ben, secret=SECRET) as unlocked:
            root, _ = unlocked.rotate(ben, root=True).retired
        needed = lite.envelope.key_references(session, Base, root).needed

    assert [one.place for one in needed] == ["helpers.person_key_id"]


@pytest.mark.parametrize("wait", [dt.timedelta(0), -WEEK, dt.timedelta(days=4000), 7])
def test_waiting_times_that_cannot_be(lite: Site, wait: Any) -> None:
    """A waiting time is a second to ten years."""
    with pytest.raises(ConfigurationError, match="waiting time"):
        lite.as_(lite.ada, "allow_emergency", lite.ben, wait=wait)


def test_persons_who_cannot_be(lite: Site) -> None:
    """Nobody helps themselves, and a person without keys cannot be named."""
    with pytest.raises(ConfigurationError, match="cannot be the person"):
        lite.as_(lite.ada, "allow_emergency", lite.ada, wait=WEEK)
    with Session(lite.engine) as session:
        late = User(name="late")
        session.add(late)
        session.commit()
        late_id = late.id
    with pytest.raises(NotEnrolledError):
        lite.as_(lite.ada, "allow_emergency", late_id, wait=WEEK)


def test_declarations_that_cannot_be() -> None:
    """A class without of and to, with a column that is no reference, and with a row that would outlive its
    owner."""

    class Other(DeclarativeBase):
        pass

    class Person(KeyOwner, Other):
        __tablename__ = "persons"
        id: Mapped[int] = mapped_column(primary_key=True)

    with pytest.raises(ConfigurationError, match="of whom and to whom"):

        class Nobody(EmergencyAccess, Other):
            __tablename__ = "nobodies"
            id: Mapped[int] = mapped_column(primary_key=True)

    with pytest.raises(ConfigurationError, match="CASCADE"):

        class Kept(EmergencyAccess, Other, of="owner_id", to="person_id"):
            __tablename__ = "kept"
            owner_id: Mapped[int] = mapped_column(ForeignKey("persons.id"), primary_key=True)
            person_id: Mapped[int] = mapped_column(ForeignKey("persons.id"), primary_key=True)

    class Another(DeclarativeBase):
        pass

    class Loose(EmergencyAccess, Another, of="owner_id", to="person_id"):
        __tablename__ = "loose"
        owner_id: Mapped[int] = mapped_column(primary_key=True)
        person_id: Mapped[int] = mapped_column(primary_key=True)

    with pytest.raises(ConfigurationError, match="must each name the foreign key"):
        Another.registry.configure()
    del Loose, Another
    gc.collect()  # the declarations of other tests are configured without it
    configure_mappers()
