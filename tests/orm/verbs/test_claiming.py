"""Keys that a campaign made for owners who were away become theirs: claimed by whoever the application has
authenticated and by nobody else, in the caller's transaction, and then out of the campaign's reach.
"""

import threading
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    AlreadyEnrolledError,
    AsyncEnvelope,
    AuditEvent,
    ConfigurationError,
    Envelope,
    EnvelopeError,
    KdfProfile,
    KeyNotFoundError,
    LockedError,
    ProviderError,
    RowSealError,
    ServerKeyring,
    TransactionConflictError,
    UnclaimedError,
    UnlockError,
)
from sqlalchemy_envelope.campaign.campaign import Campaign
from sqlalchemy_envelope.crypto.argon2id import KdfSalt, derive_kek
from sqlalchemy_envelope.crypto.kdf import x25519_public
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.keys.hierarchy import bound_keys, new_keys
from sqlalchemy_envelope.keys.providers import CampaignKey, CampaignKeyFile, OfflineKey, OfflinePublicKey
from sqlalchemy_envelope.keys.slots import provider_slot
from sqlalchemy_envelope.orm.current.desk import Desk
from sqlalchemy_envelope.orm.sharing.epochs import start_epoch
from sqlalchemy_envelope.orm.tables.generated import now
from sqlalchemy_envelope.orm.tables.key_rows import KeyStore
from sqlalchemy_envelope.orm.verbs.owner_keys import locate
from tests.orm import sharing_models as sharing
from tests.orm.models import SECRET, Base, Note, User, stored
from tests.prepared import tables_of

WAIT = 20
"""Seconds after which a thread that does not come is given up."""
CHEAP = KdfProfile.unsafe_for_tests()
OFFLINE = OfflineKey.generate()


class Application:
    """An application in the middle of a campaign, and a way to start it anew with nothing cached."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine, self.path = engine, folder / "campaign.key"
        self.key: Any = CampaignKeyFile.generate(self.path)
        self.events: list[AuditEvent] = []
        self.envelope = self.restart()

    def restart(self, key: object | None = None, **options: Any) -> Envelope:
        self.key = key or self.key
        options.setdefault("providers", {"campaign": self.key})
        self.envelope = Envelope(kdf_profile=CHEAP, audit=self.events.append, **options)
        return self.envelope

    def away(self, name: str = "ada", note: str | None = None) -> int:
        """An owner whose keys the campaign made, with a note under them; its id."""
        with Session(self.engine) as session:
            user = User(email=name)
            session.add(user)
            session.commit()
            with self.envelope.server_mode(session, provider="campaign", reason="backfill").prepare():
                session.add(Note(user=user, body=note or f"of {name}"))
                session.commit()
            return user.id

    def note(self, owner: int, envelope: Envelope | None = None, **how: Any) -> str | None:
        """The owner's first note, after an unlock that is settled and committed."""
        with (
            Session(self.engine) as session,
            (envelope or self.envelope).unlock(session, session.get_one(User, owner), **how) as unlocked,
        ):
            unlocked.settle()
            query = select(Note).where(Note.user_id == owner).order_by(Note.id)
            found = session.scalars(query).first()
            body = None if found is None else found.body
            session.commit()
            return body

    def claim(self, owner: int, secret: str = SECRET) -> None:
        """The owner comes back: the application has authenticated them."""
        with Session(self.engine) as session:
            self.envelope.enroll(session, session.get_one(User, owner), secret=secret)
            session.commit()

    def slots(self) -> list[tuple[Any, ...]]:
        """Every key slot as it is stored."""
        with self.engine.connect() as connection:
            table = Base.metadata.tables["users_keyslot"]
            return [tuple(row) for row in connection.execute(select(table).order_by(table.c.slot_id))]

    def keys(self) -> list[tuple[Any, ...]]:
        """Every key as it is stored."""
        with self.engine.connect() as connection:
            table = Base.metadata.tables["users_key"]
            return [tuple(row) for row in connection.execute(select(table).order_by(table.c.key_id))]

    def roots(self) -> int:
        """How many root keys there are."""
        return sum(row.count("root") for row in self.keys())

    def kinds(self) -> list[str]:
        """The kinds of all slots."""
        with self.engine.connect() as connection:
            return sorted(connection.scalars(select(Base.metadata.tables["users_keyslot"].c.kind)))

    def named(self, name: str) -> int:
        """How many audit events of this name there were."""
        return sum(event.name == name for event in self.events)


@pytest.fixture
def app(engine: Engine, tmp_path: Path) -> Application:
    """The application, on SQLite and on PostgreSQL."""
    tables_of(Base.metadata, engine)
    return Application(engine, tmp_path)


@pytest.fixture
def lite(sqlite_engine: Engine, tmp_path: Path) -> Application:
    """The application, on SQLite."""
    tables_of(Base.metadata, sqlite_engine)
    return Application(sqlite_engine, tmp_path)


@pytest.fixture
def sealed(sqlite_engine: Engine, tmp_path: Path) -> Application:
    """The application with row seals, on SQLite."""
    tables_of(Base.metadata, sqlite_engine)
    app = Application(sqlite_engine, tmp_path)
    app.restart(server_keys=ServerKeyring([b"\x51" * 32]))
    return app


# ---------------------------------------------------------------- claiming


@pytest.mark.any_database
def test_a_claimed_owner_unlocks_as_everybody_does(app: Application) -> None:
    """After the claim the secret opens what was written before, and no slot of the campaign is left."""
    owner = app.away()

    app.claim(owner)
    app.restart()

    assert app.note(owner, secret=SECRET) == "of ada"
    assert set(app.kinds()) == {"secret"}
    assert app.named("claimed") == app.named("hardened") == 1
    with pytest.raises(UnlockError):
        app.note(owner, secret="another one")


@pytest.mark.any_database
def test_the_claim_itself_opens(app: Application) -> None:
    """What `enroll` answers is an unlocked session: old values are read, new ones written."""
    owner = app.away()

    with Session(app.engine) as session:
        user = session.get_one(User, owner)
        with app.envelope.enroll(session, user, secret=SECRET):
            assert user.notes[0].body == "of ada"
            session.add(Note(user=user, body="new"))
            session.commit()
    with (
        Session(app.engine) as session,
        app.envelope.unlock(session, session.get_one(User, owner), secret=SECRET),
    ):
        assert [note.body for note in session.scalars(select(Note).order_by(Note.id))] == ["of ada", "new"]


@pytest.mark.any_database
def test_a_claim_ends_the_campaigns_reach(app: Application) -> None:
    """Though its key is still there, neither a new process nor the one that made the keys opens the owner."""
    owner = app.away()
    before = app.envelope

    app.claim(owner)

    for envelope in (before, app.restart()):
        with pytest.raises(KeyNotFoundError):
            app.note(owner, envelope, provider="campaign", reason="look")
        with (
            Session(app.engine) as session,
            envelope.server_mode(session, provider="campaign", reason="look"),
        ):
            note = session.scalars(select(Note)).one()
            with pytest.raises(LockedError):
                note.body  # noqa: B018


def test_a_hardened_owner_has_keys_that_the_campaign_never_had(lite: Application) -> None:
    """There is a second root key, that no slot of the campaign was ever made for."""
    owner = lite.away()
    before = lite.roots()

    lite.claim(owner)

    assert (before, lite.roots()) == (1, 2)


@pytest.mark.any_database
def test_hardening_can_wait(app: Application) -> None:
    """With `harden_claims=False` a claim changes slots alone: the keys stay as they were."""
    app.restart(harden_claims=False)
    owner = app.away()
    before = app.keys()

    app.claim(owner)

    assert app.keys() == before
    assert app.note(owner, secret=SECRET) == "of ada"
    assert app.named("hardened") == 0


def test_a_claim_may_add_a_provider(lite: Application) -> None:
    """`enroll` with both: the secret and the provider open the owner, and the campaign no more."""
    lite.restart(server_keys=ServerKeyring([b"\x51" * 32]))
    owner = lite.away()

    with Session(lite.engine) as session:
        lite.envelope.enroll(session, session.get_one(User, owner), secret=SECRET, provider="server")
        session.commit()
        found = lite.envelope.slots(session, session.get_one(User, owner))

    assert found.providers == {"server"}
    assert lite.note(owner, secret=SECRET) == lite.note(owner, provider="server", reason="test") == "of ada"


@pytest.mark.any_database
def test_what_a_webhook_wrote_meanwhile_is_there(app: Application) -> None:
    """Write epochs that were sealed to an unclaimed owner are adopted when it claims its keys."""
    owner = app.away()
    with Session(app.engine) as session:
        user = session.get_one(User, owner)
        with app.envelope.write_only(session, user):
            session.add(Note(user=user, body="from a webhook"))
            session.commit()

    app.claim(owner)

    with (
        Session(app.engine) as session,
        app.envelope.unlock(session, session.get_one(User, owner), secret=SECRET),
    ):
        bodies = [note.body for note in session.scalars(select(Note).order_by(Note.id))]
    assert bodies == ["of ada", "from a webhook"]


def test_a_claimed_owner_is_not_claimed_again(lite: Application) -> None:
    """A second `enroll` says that the owner has keys, as it always did."""
    owner = lite.away()
    lite.claim(owner)

    with pytest.raises(AlreadyEnrolledError):
        lite.claim(owner, "another one")
    assert lite.note(owner, secret=SECRET) == "of ada"


def test_a_provider_that_is_no_campaigns_is_not_claimed_from(lite: Application) -> None:
    """An owner whom the server holds for good is enrolled already: nothing of it changes by an `enroll`."""
    lite.restart(server_keys=ServerKeyring([b"\x51" * 32]), providers={})
    with Session(lite.engine) as session:
        user = User(email="ada")
        lite.envelope.enroll(session, user, provider="server")
        session.commit()
        with pytest.raises(AlreadyEnrolledError):
            lite.envelope.enroll(session, user, secret=SECRET)


# ---------------------------------------------------------------- who authenticates


@pytest.mark.parametrize("secret", [SECRET, "x", b"\x00", "campaign"])
@pytest.mark.any_database
def test_no_secret_unlocks_an_unclaimed_owner(app: Application, secret: str | bytes) -> None:
    """Unlocking authenticates: without a secret to compare with none is right, and nothing is changed."""
    owner = app.away()
    before = app.slots()

    with pytest.raises(UnclaimedError, match="authenticate as before"):
        app.note(owner, secret=secret)

    assert app.slots() == before


@pytest.mark.any_database
def test_one_line_serves_a_login_handler(app: Application) -> None:
    """With `authenticated=True` the unclaimed claim, those without keys get some, and all others unlock."""
    ada = app.away()
    with Session(app.engine) as session:
        ben = User(email="ben")
        session.add(ben)
        session.commit()
        app_ben = ben.id

    for _ in range(2):
        assert app.note(ada, secret=SECRET, authenticated=True) == "of ada"
        assert app.note(app_ben, secret=SECRET, authenticated=True) is None
    assert app.named("claimed") == 1
    with pytest.raises(UnlockError):
        app.note(ada, secret="another one", authenticated=True)


def test_authenticated_says_nothing_of_a_provider(lite: Application) -> None:
    """Without a secret there is nothing that the caller could have checked."""
    owner = lite.away()

    with pytest.raises(ConfigurationError, match="authenticated"):
        lite.note(owner, provider="campaign", reason="test", authenticated=True)


# ---------------------------------------------------------------- transactions


def test_a_rolled_back_claim_leaves_everything_as_it_was(app: Application) -> None:
    """After a rollback the owner is unclaimed, its rows are the same to the byte, and it may claim anew."""
    owner = app.away()
    before = app.slots(), app.keys()

    with (
        Session(app.engine) as session,
        app.envelope.enroll(session, session.get_one(User, owner), secret="gone"),
    ):
        session.rollback()

    assert (app.slots(), app.keys()) == before
    app.claim(owner)
    assert app.note(owner, secret=SECRET) == "of ada"


def test_a_claim_rolled_back_to_a_savepoint(app: Application) -> None:
    """Nothing of the claim is left when only its savepoint is rolled back, and the transaction goes on."""
    owner = app.away()
    before = app.slots(), app.keys()

    with Session(app.engine) as session:
        user = session.get_one(User, owner)
        session.add(User(email="other"))
        session.flush()
        savepoint = session.begin_nested()
        app.envelope.enroll(session, user, secret="gone")
        savepoint.rollback()
        session.commit()

    assert (app.slots(), app.keys()) == before
    assert app.note(owner, secret=SECRET, authenticated=True) == "of ada"


def test_two_claims_at_the_same_moment(app: Application) -> None:
    """One of two secrets wins; the other is told, changes nothing, and nothing is lost."""
    owner = app.away()
    meeting, answers = threading.Barrier(2, timeout=WAIT), {}

    def claim(secret: str) -> None:
        with Session(app.engine) as session:
            user = session.get_one(User, owner)
            steps = app.envelope.enroll_steps(session, user, secret, None)
            work = next(steps)
            meeting.wait()  # both have seen an unclaimed owner
            try:
                while True:
                    work = steps.send(app.envelope.perform(work))
            except StopIteration:
                session.commit()
                answers[secret] = "claimed"
            except (TransactionConflictError, OperationalError) as error:
                session.rollback()
                answers[secret] = type(error).__name__

    threads = [threading.Thread(target=claim, args=(secret,)) for secret in ("first", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)

    assert sorted(answers.values()) == ["TransactionConflictError", "claimed"]
    (winner,) = [secret for secret, answer in answers.items() if answer == "claimed"]
    assert app.note(owner, secret=winner) == "of ada"
    assert set(app.kinds()) == {"secret"}


class LostError(Exception):
    """A lost connection, as it were."""


def interrupted(app: Application, owner: int, after: int) -> Session:
    """A session whose claim went wrong after so many statements."""
    count = 0

    def stop(*_: object) -> None:
        nonlocal count
        count += 1
        if count > after:
            raise LostError

    session = Session(app.engine)
    user = session.get_one(User, owner)
    sa.event.listen(app.engine, "before_cursor_execute", stop)
    try:
        app.envelope.enroll(session, user, secret=SECRET)
    except LostError:
        pass
    finally:
        sa.event.remove(app.engine, "before_cursor_execute", stop)
    return session


@pytest.mark.parametrize("after", range(16))
def test_an_interrupted_claim_is_rolled_back(lite: Application, after: int) -> None:
    """Wherever between its statements it stops, a rollback leaves the rows as they were, to the byte."""
    owner = lite.away()
    before = lite.slots(), lite.keys()

    with interrupted(lite, owner, after) as session:
        session.rollback()

    assert (lite.slots(), lite.keys()) == before
    lite.claim(owner)
    assert lite.note(owner, secret=SECRET) == "of ada"


@pytest.mark.parametrize("after", range(9))
def test_an_interrupted_claim_that_is_committed_all_the_same(lite: Application, after: int) -> None:
    """An application that swallows the error and commits has lost nothing: secret or campaign still opens."""
    lite.restart(harden_claims=False)
    owner = lite.away()

    with interrupted(lite, owner, after) as session:
        session.commit()

    lite.restart()
    ways: list[dict[str, Any]] = [{"secret": SECRET}, {"provider": "campaign", "reason": "test"}]
    for how in ways:
        try:
            assert lite.note(owner, **how) == "of ada"
            return
        except EnvelopeError:
            continue
    pytest.fail("nobody opens the owner any more")


# ---------------------------------------------------------------- a campaign's key over a network


class Remote:
    """A provider over a network, as it were."""

    local = False
    reference = "remote/1"

    def __init__(self) -> None:
        self._keys = ServerKeyring([b"\x21" * 32])
        self.unwraps = 0

    def wrap(self, key: bytes, context: Mapping[str, str]) -> bytes:
        return self._keys.wrap(key, context)

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        self.unwraps += 1
        return self._keys.unwrap(wrapped, context)


def test_a_campaign_under_a_key_service(lite: Application) -> None:
    """Any provider serves as a campaign's: one call opens many, none in a transaction that has written."""
    remote = Remote()
    lite.restart(CampaignKey(remote))
    ada, ben = lite.away(), lite.away("ben")
    lite.restart()

    with Session(lite.engine) as session:
        session.add(User(email="other"))
        session.flush()
        with pytest.raises(ProviderError, match="holds locks"):
            lite.envelope.enroll(session, session.get_one(User, ada), secret=SECRET)
    lite.claim(ada)
    lite.claim(ben)

    assert remote.unwraps == 1
    assert lite.note(ada, secret=SECRET) == "of ada"


async def test_claiming_asynchronously(async_engine: AsyncEngine) -> None:
    """`AsyncEnvelope` claims in the same two ways, its derivation and its call off the event loop."""
    envelope = Envelope(kdf_profile=CHEAP, providers={"campaign": CampaignKey(Remote())})
    face = AsyncEnvelope(envelope)
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(async_engine, expire_on_commit=False) as session:
        users = [User(email=name) for name in ("ada", "ben")]
        session.add_all(users)
        await session.commit()
        with face.server_mode(session, provider="campaign", reason="backfill").prepare():
            session.add_all(Note(user_id=user.id, body=f"of {user.email}") for user in users)
            await session.commit()

        with pytest.raises(UnclaimedError):
            await face.unlock(session, users[0], secret=SECRET)
        await face.enroll(session, users[0], secret=SECRET)
        await face.unlock(session, users[1], secret=SECRET, authenticated=True)
        await session.commit()
        for user in users:
            async with face.unlock(session, user, secret=SECRET):
                body = (await session.scalars(select(Note.body).where(Note.user_id == user.id))).one()
                assert body == f"of {user.email}"
            await session.commit()


# ---------------------------------------------------------------- an offline key


def waiting(app: Application, secret: str = SECRET) -> int:
    """An owner who chose a secret while nobody could open their keys."""
    app.restart(OfflinePublicKey(OfflineKey(OFFLINE).public_key))
    owner = app.away()
    app.restart()
    app.claim(owner, secret)
    return owner


def released(app: Application, **how: Any) -> tuple[int, int]:
    """What the custodians did, on their machine."""
    custodians = Envelope(
        kdf_profile=CHEAP,
        server_keys=app.envelope.policy.seals._server_keys,
        providers={"campaign": OfflineKey(OFFLINE)},
        audit=app.events.append,
    )
    campaign = Campaign(app.engine, custodians, Base)
    with Session(app.engine) as session:
        found = campaign.release(session, **how)
        session.commit()
    return tuple(found)  # type: ignore[return-value]  # a pair


@pytest.mark.any_database
def test_the_server_cannot_read_behind_an_offline_key(app: Application) -> None:
    """After a restart the server opens nothing of the owner, and writes to it by sealed write epochs."""
    app.restart(OfflinePublicKey(OfflineKey(OFFLINE).public_key))
    owner = app.away()
    app.restart()

    with pytest.raises(ProviderError):
        app.note(owner, provider="campaign", reason="look")
    with (
        Session(app.engine) as session,
        app.envelope.server_mode(session, provider="campaign", reason="look"),
    ):
        user = session.get_one(User, owner)
        with pytest.raises(LockedError):
            user.notes[0].body  # noqa: B018
        session.add(Note(user=user, body="refused"))
        with pytest.raises(LockedError):
            session.commit()
        session.rollback()
        with app.envelope.write_only(session):
            session.add(Note(user_id=owner, body="sealed"))
            session.commit()
    assert (
        app.slots()[0][[c.key for c in Base.metadata.tables["users_keyslot"].c].index("wrapped")][:1]
        == b"\x12"
    )


@pytest.mark.any_database
def test_a_secret_waits_for_the_custodians_and_then_opens(app: Application) -> None:
    """The whole way: chosen, told to wait, released, opened, with everything readable and new keys."""
    owner = waiting(app)

    with pytest.raises(UnclaimedError, match="custodians"):
        app.note(owner, secret=SECRET)
    with pytest.raises(UnlockError):
        app.note(owner, secret="another one")
    assert released(app, unsafe_without_row_seals=True) == (1, 0)

    for _ in range(2):
        assert app.note(owner, secret=SECRET) == "of ada"
    assert set(app.kinds()) == {"secret"}
    assert app.roots() == 2
    assert app.named("claim_waiting") == app.named("claim_released") == app.named("hardened") == 1


def test_with_row_seals_too_what_was_released_is_hardened(sealed: Application) -> None:
    """The custodians' key opened the first root key, so that the owner's first unlock makes another."""
    owner = waiting_sealed(sealed)

    assert released(sealed) == (1, 0)
    for _ in range(2):
        assert sealed.note(owner, secret=SECRET) == "of ada"
    assert sealed.roots() == 2


def waiting_sealed(app: Application) -> int:
    """As `waiting`, with row seals."""
    server_keys = ServerKeyring([b"\x51" * 32])
    app.restart(OfflinePublicKey(OfflineKey(OFFLINE).public_key), server_keys=server_keys)
    owner = app.away()
    app.restart(server_keys=server_keys)
    app.claim(owner)
    return owner


def test_a_released_secret_can_be_changed_first(sealed: Application) -> None:
    """A changed secret opens what was released as well: what was sealed is not taken for the owner's own."""
    owner = waiting_sealed(sealed)
    released(sealed)

    with Session(sealed.engine) as session:
        user = session.get_one(User, owner)
        sealed.envelope.change_secret(session, user, old=SECRET, new="the next one")
        session.commit()

    assert sealed.note(owner, secret="the next one") == "of ada"
    assert sealed.roots() == 2


def test_who_waits_may_choose_again(lite: Application) -> None:
    """Whoever is authenticated anew and claims again puts another secret in place of the one that waits."""
    owner = waiting(lite, "mistyped")

    assert lite.named("claim_waiting") == 1
    lite.claim(owner)

    released(lite, unsafe_without_row_seals=True)
    assert lite.note(owner, secret=SECRET) == "of ada"
    with pytest.raises(UnlockError):
        lite.note(owner, secret="mistyped")


def test_a_login_while_waiting_is_locked_and_no_error(lite: Application) -> None:
    """With `authenticated=True` the login goes on, and what is encrypted stays locked."""
    owner = waiting(lite)

    with Session(lite.engine) as session:
        user = session.get_one(User, owner)
        unlocked = lite.envelope.unlock(session, user, secret=SECRET, authenticated=True)
        with unlocked, pytest.raises(LockedError):
            user.notes[0].body  # noqa: B018
        assert {slot.kind for slot in lite.envelope.slots(session, user)} == {"provider", "waiting"}


def test_release_asks_for_row_seals(lite: Application) -> None:
    """Without them nobody tells an owner's secret from a planted one: the custodians have to insist."""
    waiting(lite)

    with pytest.raises(EnvelopeError, match="row seals"):
        released(lite)


def test_release_may_be_of_some_owners(lite: Application) -> None:
    """Custodians who look at each owner release those they name, and no other."""
    ada = waiting(lite)
    lite.restart(OfflinePublicKey(OfflineKey(OFFLINE).public_key))
    ben = lite.away("ben")
    lite.claim(ben)

    with Session(lite.engine) as session:
        user = session.get_one(User, ben)
        assert released(lite, owners=[user], unsafe_without_row_seals=True) == (1, 0)

    assert lite.note(ben, secret=SECRET) == "of ben"
    with pytest.raises(UnclaimedError):
        lite.note(ada, secret=SECRET)


# ---------------------------------------------------------------- who writes to the database


def plant(app: Application, owner: int, wrapped: bytes, secret: str = "planted") -> None:  # noqa: S107
    """Put a secret slot into the database that opens with a secret of one's own, past the application."""
    salt = KdfSalt.generate(CHEAP)
    kek = derive_kek(secret.encode(), salt)
    slots = Base.metadata.tables["users_keyslot"]
    keys = Base.metadata.tables["users_key"]
    with app.engine.begin() as connection:
        query = select(keys.c.key_id).where(keys.c.owner_id == owner, keys.c.purpose == "root")
        key_id = connection.scalars(query.order_by(keys.c.epoch.desc())).first()
        connection.execute(slots.insert().values(**_slot_values(key_id, salt, kek, wrapped)))


def _slot_values(key_id: Any, salt: KdfSalt, kek: KeyBytes, wrapped: bytes) -> dict[str, Any]:
    return {
        "slot_id": uuid.uuid4(),
        "key_id": key_id,
        "kind": "secret",
        "kdf": str(salt),
        "recipient_public_key": x25519_public(kek),
        "wrapped": wrapped,
        "created_at": now(None),
    }


@pytest.mark.parametrize("wrapped", [b"", b"\x11" * 105, b"\x12" * 81])
def test_a_planted_slot_opens_no_unclaimed_owner(lite: Application, wrapped: bytes) -> None:
    """A slot that somebody put there, waiting or with bytes of theirs, never unlocks; nothing is lost."""
    owner = lite.away()
    plant(lite, owner, wrapped)

    for secret in ("planted", SECRET):
        with pytest.raises((UnclaimedError, UnlockError)):
            lite.note(owner, secret=secret)
    assert lite.note(owner, provider="campaign", reason="test") == "of ada"


def test_a_planted_waiting_slot_is_gone_with_the_claim(lite: Application) -> None:
    """The owner's own claim goes through beside it, and the planted one is not given the new keys."""
    owner = lite.away()
    plant(lite, owner, b"")

    lite.claim(owner)

    assert lite.note(owner, secret=SECRET) == "of ada"
    with pytest.raises(UnlockError):
        lite.note(owner, secret="planted")


def test_a_planted_waiting_slot_is_not_sealed_to_by_an_epoch(lite: Application) -> None:
    """A new epoch of an owner who is away is sealed to slots that hold a key, and not to one that waits."""
    owner = waiting(lite)
    plant(lite, owner, b"")

    with Session(lite.engine) as session:
        located = locate(Desk(session, lite.envelope.policy), session.get_one(User, owner))
        start_epoch(located.desk, located.place, None)
        session.commit()
        roots = [one.stored.key_id for one in located.load() if one.stored.epoch == 2]
        slots = KeyStore(session, located.place.owner_class, lite.envelope.policy.seals).load_slots(roots)

    assert [len(slot.wrapped) for slot in slots if slot.kind == "secret"] == [0, 0]
    with pytest.raises((UnclaimedError, UnlockError)):
        lite.note(owner, secret="planted")


def test_a_planted_secret_is_not_released(sealed: Application) -> None:
    """With row seals the custodians hand out no key to a secret that the application did not store."""
    sealed.restart(
        OfflinePublicKey(OfflineKey(OFFLINE).public_key), server_keys=ServerKeyring([b"\x51" * 32])
    )
    owner = sealed.away()
    plant(sealed, owner, b"")

    assert released(sealed) == (0, 1)
    assert sealed.named("release_refused") == 1
    with pytest.raises((RowSealError, UnclaimedError)):
        sealed.note(owner, secret="planted")


def test_two_waiting_secrets_are_not_released(lite: Application) -> None:
    """Where a second secret stands beside it, nobody can tell which is meant: neither is released."""
    owner = waiting(lite)
    plant(lite, owner, b"")

    assert released(lite, unsafe_without_row_seals=True) == (0, 1)
    with pytest.raises((UnclaimedError, UnlockError)):
        lite.note(owner, secret="planted")


def test_planted_keys_are_not_written_under_after_a_claim(lite: Application) -> None:
    """Anybody can seal keys of their own to the campaign's KEK in an owner's place: what was sealed and not
    wrapped is replaced at the claim, whatever the policy says of hardening."""
    lite.restart(harden_claims=False)
    with Session(lite.engine) as session:
        session.add(User(email="ada"))
        session.commit()
        lite.envelope.server_mode(provider="campaign", reason="test").prepare()
        ready = lite.envelope.policy.require_providers().ready_for_new("campaign")
        assert ready is not None
        located = locate(Desk(session, lite.envelope.policy), session.get_one(User, 1))
        planted = bound_keys(new_keys(located.place.owner_class.scopes), located.reference)
        located.store.insert_keys([((1,), one.stored) for one in planted])
        located.store.insert_slots([provider_slot(planted[0], replace(ready, key=None))])
        session.commit()

    with Session(lite.engine) as session:
        user = session.get_one(User, 1)
        with lite.envelope.enroll(session, user, secret=SECRET):
            session.add(Note(user=user, body="mine"))
            session.commit()

    assert lite.note(1, secret=SECRET) == "mine"
    value = stored(lite.engine, Note.__table__.c.body, 1)
    assert value is not None
    assert value[1:17] not in {one.stored.key_id.bytes for one in planted}
    assert lite.roots() == 2


def test_a_claimed_owners_old_slot_put_back_opens_nothing_new(lite: Application, tmp_path: Path) -> None:
    """Whoever saved the campaign's slot and puts the row back reads nothing that was written since."""
    owner = lite.away()
    before = lite.slots()
    lite.claim(owner)
    table = Base.metadata.tables["users_keyslot"]
    with lite.engine.begin() as connection:
        connection.execute(table.insert(), [dict(zip(table.c.keys(), row, strict=True)) for row in before])

    lite.restart()

    with pytest.raises(KeyNotFoundError):
        lite.note(owner, provider="campaign", reason="look")
    with Session(lite.engine) as session:
        user = session.get_one(User, owner)
        with lite.envelope.unlock(session, user, secret=SECRET):
            session.add(Note(user=user, body="new"))
            session.commit()
    with Session(lite.engine) as session, lite.envelope.server_mode(session, provider="campaign", reason="x"):
        new = session.scalars(select(Note).order_by(Note.id.desc())).first()
        assert new is not None
        with pytest.raises(LockedError):
            new.body  # noqa: B018


# ---------------------------------------------------------------- groups


@pytest.mark.any_database
def test_a_member_who_claims_reads_the_group(engine: Engine, tmp_path: Path) -> None:
    """What a group granted to a member under the campaign's keys, the member has after a hardened claim."""
    sharing.Base.metadata.create_all(engine)
    key = CampaignKeyFile.generate(tmp_path / "campaign.key")
    envelope = Envelope(kdf_profile=CHEAP, providers={"campaign": key})
    with Session(engine) as session:
        users = [sharing.User(email=name) for name in ("ada", "ben")]
        group = sharing.Group()
        session.add_all([*users, group])
        session.commit()
        with envelope.server_mode(session, provider="campaign", reason="backfill"):
            for user in users:
                user.diary = f"of {user.email}"
            group.name = "readers"
            session.commit()
            session.add_all(sharing.Membership(group=group, user=user) for user in users)
            session.add(sharing.Post(group=group, text="welcome"))
            session.commit()
        ids = [user.id for user in users]

    for owner in ids:
        with Session(engine) as session:
            user = session.get_one(sharing.User, owner)
            with envelope.enroll(session, user, secret=SECRET):
                assert session.scalars(select(sharing.Post)).one().text == "welcome"
                session.commit()
    for owner in ids:
        with Session(engine) as session:
            user = session.get_one(sharing.User, owner)
            with envelope.unlock(session, user, secret=SECRET):
                assert session.scalars(select(sharing.Group)).one().name == "readers"
                session.add(sharing.Post(group_id=1, text=f"by {user.email}"))
                session.commit()
                assert len(session.scalars(select(sharing.Post.text)).all()) > 1
