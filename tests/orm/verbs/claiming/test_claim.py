"""Keys that a campaign made for owners who were away become theirs: claimed by whoever the application has
authenticated and by nobody else, in the caller's transaction, and then out of the campaign's reach.
"""

import threading
from collections.abc import Mapping
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
    ConfigurationError,
    Envelope,
    EnvelopeError,
    KdfProfile,
    KeyNotFoundError,
    LockedError,
    ProviderError,
    ServerKeyring,
    TransactionConflictError,
    UnclaimedError,
    UnlockError,
)
from sqlalchemy_envelope.keys.providers import CampaignKey, CampaignKeyFile
from tests.orm import sharing_models as sharing
from tests.orm.models import SECRET, Base, Note, User
from tests.orm.verbs.claiming.application import Application

WAIT = 20
"""Seconds after which a thread that does not come is given up."""
CHEAP = KdfProfile.unsafe_for_tests()


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
