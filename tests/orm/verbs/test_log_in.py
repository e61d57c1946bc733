"""What a login view relies on: one error for every refusal, an event for every attempt, and the application's
word on a new secret."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    AsyncEnvelope,
    AuditEvent,
    Backoff,
    CampaignKeyFile,
    ConfigurationError,
    Envelope,
    EnvelopeError,
    KdfProfile,
    MemoryThrottle,
    NoSecretError,
    NotEnrolledError,
    SecretError,
    ServerKeyring,
    Throttle,
    UnclaimedError,
    UnlockBusyError,
    UnlockError,
    UnlockThrottledError,
    WeakSecretError,
)
from sqlalchemy_envelope.crypto.argon2id import KdfLimit
from sqlalchemy_envelope.migration import Campaign
from sqlalchemy_envelope.orm.current.context import unlocked_sessions
from tests.orm.conftest import Started
from tests.orm.models import SECRET, Base, User

CHEAP = KdfProfile.unsafe_for_tests()
HOME = "203.0.113.7"
OTHER = "other words entirely"


def own_derivations(monkeypatch: pytest.MonkeyPatch) -> list[KdfProfile]:
    """The profiles of the derivations that are made."""
    derive, made = KdfLimit.derive, list[KdfProfile]()

    def noted(limit: KdfLimit, secret: Any, salt: Any, **options: Any) -> Any:
        made.append(salt.profile)
        return derive(limit, secret, salt, **options)

    monkeypatch.setattr(KdfLimit, "derive", noted)
    return made


class Accounts:
    """An account of every kind, each of which a wrong secret does not open."""

    def __init__(self, session: Session, folder: Path) -> None:
        self.session = session
        campaign = CampaignKeyFile.generate(folder / "campaign.key")
        self.envelope = Envelope(
            kdf_profile=CHEAP,
            server_keys=ServerKeyring([b"k" * 32]),
            providers={"campaign": campaign},
            throttle=Throttle(MemoryThrottle()),
        )
        self.wrong = self._added("wrong")
        self.envelope.enroll(session, self.wrong, secret=SECRET)
        self.unclaimed = self._added("unclaimed")
        session.commit()
        Campaign(session.get_bind(), self.envelope, Base, provider="campaign").provide()
        self.not_enrolled = self._added("not-enrolled")
        self.no_secret = self._added("no-secret")
        self.envelope.enroll(session, self.no_secret, provider="server")
        session.commit()
        self.new = User(email="new")

    def _added(self, name: str) -> User:
        user = User(email=name)
        self.session.add(user)
        self.session.flush()
        return user

    def attempts(self) -> dict[str, tuple[type[EnvelopeError], Callable[[], object]]]:
        def unlock(user: User) -> Callable[[], object]:
            return lambda: self.envelope.unlock(self.session, user, secret="no", source=HOME)

        return {
            "wrong": (UnlockError, unlock(self.wrong)),
            "unknown": (
                UnlockError,
                lambda: self.envelope.unlock_unknown(secret="no", account="eve", source=HOME),
            ),
            "unclaimed": (UnclaimedError, unlock(self.unclaimed)),
            "not enrolled": (NotEnrolledError, unlock(self.not_enrolled)),
            "no secret": (NoSecretError, unlock(self.no_secret)),
            "not in the database": (NotEnrolledError, unlock(self.new)),
        }


@pytest.fixture
def accounts(sqlite_engine: Any, tmp_path: Path) -> Iterator[Accounts]:
    Base.metadata.create_all(sqlite_engine)
    with Session(sqlite_engine) as session:
        yield Accounts(session, tmp_path)


# ------------------------------------------------------------------ one answer


def test_every_refusal_is_caught_alike_and_costs_one_derivation(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is the matter with an account, a login view catches `UnlockError`, and one key was derived
    under the envelope's profile. The class tells the developer which it was."""
    derived = own_derivations(monkeypatch)
    for name, (error, attempt) in accounts.attempts().items():
        derived.clear()
        with pytest.raises(UnlockError) as caught:
            attempt()

        assert (name, error) == (name, caught.type)
        assert (name, [CHEAP]) == (name, derived)


def test_every_account_is_throttled_alike(accounts: Accounts) -> None:
    """After five failures each kind of account gets the very same error, and the same wait."""
    told, attempts = set(), accounts.attempts()
    del attempts["not in the database"]  # which is no account
    for _, attempt in attempts.values():
        accounts.envelope.throttle = Throttle(MemoryThrottle(), clock=lambda: 1_800_000_000.0)
        for _ in range(5):
            with pytest.raises(UnlockError):
                attempt()
        with pytest.raises(UnlockThrottledError) as caught:
            attempt()
        told.add((str(caught.value), caught.value.retry_after))

    assert len(told) == 1
    assert next(iter(told))[1] == 1.0


def test_an_account_that_waits_derives_nothing(accounts: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal by the throttle costs no derivation, and is no `UnlockError`: a view answers 429."""
    for _ in range(5):
        with pytest.raises(UnlockError):
            accounts.attempts()["wrong"][1]()
    derived = own_derivations(monkeypatch)
    with pytest.raises(UnlockThrottledError) as caught:
        accounts.envelope.unlock(accounts.session, accounts.wrong, secret=SECRET, source=HOME)

    assert derived == []
    assert not isinstance(caught.value, UnlockError)


@pytest.mark.parametrize("verb", ["change_secret", "rebind"])
def test_other_verbs_that_take_a_secret_are_throttled_too(accounts: Accounts, verb: str) -> None:
    """Whoever guesses by another verb is counted at the same account."""
    envelope, at = accounts.envelope, (accounts.session, accounts.wrong)
    arguments: dict[str, Any] = {"old": "no", "new": OTHER} if verb == "change_secret" else {"secret": "no"}
    for _ in range(5):
        with pytest.raises(UnlockError):
            getattr(envelope, verb)(*at, **arguments, source=HOME)
    with pytest.raises(UnlockThrottledError):
        envelope.unlock(*at, secret=SECRET, source=HOME)


def test_a_recovery_code_opens_an_account_under_attack(lite: Started) -> None:
    """Nobody guesses a code: failures at the account do not delay it, and those of its source do."""
    envelope = Envelope(
        kdf_profile=CHEAP, throttle=Throttle(MemoryThrottle(), source=Backoff(free=9, longest=60))
    )
    session, ada = lite.session, lite.ada
    with envelope.unlock(session, ada, secret=SECRET):
        code = str(envelope.add_recovery_code(session, ada))
        session.commit()
    for _ in range(6):
        with pytest.raises((UnlockError, UnlockThrottledError)):
            envelope.unlock(session, ada, secret="no", source="198.51.100.9")
    with pytest.raises(UnlockThrottledError):
        envelope.unlock(session, ada, secret=SECRET, source=HOME)
    with envelope.unlock(session, ada, recovery_code=code, source=HOME):
        code = str(envelope.add_recovery_code(session, ada))
        session.commit()
    for _ in range(10):
        with pytest.raises((UnlockError, UnlockThrottledError)) as caught:
            envelope.unlock(session, lite.ben, recovery_code=code, source=HOME)

    assert caught.type is UnlockThrottledError
    with pytest.raises(UnlockThrottledError):
        envelope.reset_secret(session, ada, recovery_code=code, new=OTHER, source=HOME)


def test_who_was_busy_has_not_tried(lite: Started) -> None:
    """An attempt that was turned away for want of a place counts nowhere."""
    envelope = Envelope(
        kdf_profile=CHEAP,
        concurrent_derivations=1,
        derivation_wait=0.01,
        throttle=Throttle(MemoryThrottle(), account=Backoff(free=1)),
    )
    assert envelope.limit._slots.acquire(timeout=1)
    for _ in range(5):
        with pytest.raises(UnlockBusyError):
            envelope.unlock(lite.session, lite.ada, secret="no")
    envelope.limit._slots.release()

    with envelope.unlock(lite.session, lite.ada, secret=SECRET) as unlocked:
        assert unlocked.is_open


# ------------------------------------------------------------------ events


@pytest.fixture
def events() -> list[AuditEvent]:
    return []


def told(events: list[AuditEvent]) -> list[tuple[Any, ...]]:
    """What events have, and empty the list."""
    found = [(e.name, e.owner_class, e.owner_id, e.slot_kind, e.reason, e.actor) for e in events]
    events.clear()
    return found


def test_each_attempt_is_an_event(lite: Started, events: list[AuditEvent]) -> None:
    """Right, wrong, busy, throttled and of nobody: with class, primary key, kind of slot and actor."""
    envelope = Envelope(
        kdf_profile=CHEAP,
        concurrent_derivations=1,
        derivation_wait=0.01,
        throttle=Throttle(MemoryThrottle(), account=Backoff(free=1)),
        audit=events.append,
        actor=lambda: "support",
    )
    ada, session = lite.ada, lite.session
    mine = ("User", (ada.id,), "secret")
    with envelope.unlock(session, ada, secret=SECRET):
        pass
    assert [("unlocked", *mine, None, "support")] == told(events)
    assert envelope.limit._slots.acquire(timeout=1)
    with pytest.raises(UnlockBusyError):
        envelope.unlock(session, ada, secret=SECRET)
    envelope.limit._slots.release()
    assert [("unlock_busy", *mine, None, "support")] == told(events)
    with pytest.raises(UnlockError):
        envelope.unlock(session, ada, secret="no")
    assert [("unlock_failed", *mine, "unlock", "support")] == told(events)
    with pytest.raises(UnlockThrottledError):
        envelope.unlock(session, ada, secret=SECRET)
    assert [("unlock_throttled", *mine, None, "support")] == told(events)
    with pytest.raises(UnlockError):
        envelope.unlock_unknown(secret="no", account="eve")
    assert told(events) == [("unlock_failed", "unknown", None, "secret", "unlock", "support")]


def test_an_event_under_asyncio(async_engine: AsyncEngine, events: list[AuditEvent]) -> None:
    """The same events, also of a login that is turned away while it waits for a place."""
    envelope = Envelope(
        kdf_profile=CHEAP, concurrent_derivations=1, derivation_wait=0.01, audit=events.append
    )

    async def attempts() -> None:
        aenvelope = AsyncEnvelope(envelope)
        async with async_engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        async with AsyncSession(async_engine) as session:
            ada = User(email="ada")
            await aenvelope.enroll(session, ada, secret=SECRET)
            await session.commit()
            await session.refresh(ada)
            async with aenvelope.unlock(session, ada, secret=SECRET):
                pass
            envelope.limit._slots.acquire()
            with pytest.raises(UnlockBusyError):
                await aenvelope.unlock(session, ada, secret=SECRET)
            envelope.limit._slots.release()
            with pytest.raises(UnlockError):
                await aenvelope.unlock(session, ada, secret="no")
        await async_engine.dispose()

    asyncio.run(attempts())

    assert [(name, (1,)) for name in ("enrolled", "unlocked", "unlock_busy", "unlock_failed")] == [
        (one.name, one.owner_id) for one in events
    ]


def test_events_of_changes(accounts: Accounts, events: list[AuditEvent]) -> None:
    """A secret that is changed is an event with its owner; a wrong old secret a failed unlock; an unlock by a
    provider names owner and kind; what can be seen of no event is a secret."""
    envelope, session = accounts.envelope, accounts.session
    envelope.policy.audit = events.append
    envelope.change_secret(session, accounts.wrong, old=SECRET, new=OTHER)
    with pytest.raises(UnlockError):
        envelope.change_secret(session, accounts.wrong, old=SECRET, new=OTHER)
    envelope.unlock(session, accounts.no_secret, provider="server", reason="a test")
    seen = repr(events)
    found = told(events)

    assert [
        ("secret_changed", "User", (accounts.wrong.id,), "secret", None, None),
        ("unlock_failed", "User", (accounts.wrong.id,), "secret", "unlock", None),
        ("provider_unlocked", "User", (accounts.no_secret.id,), "provider", "a test", None),
    ] == found
    assert SECRET not in seen
    assert OTHER not in seen


def test_what_cannot_be_audited_is_not_done(lite: Started) -> None:
    """An application's function that raises stops an unlock, and the owner stays locked."""

    def full(event: AuditEvent) -> None:
        raise OSError("no space left")

    envelope = Envelope(kdf_profile=CHEAP, audit=full)
    with pytest.raises(OSError, match="no space"):
        envelope.unlock(lite.session, lite.ada, secret=SECRET)
    with pytest.raises(OSError, match="no space") as caught:
        envelope.unlock(lite.session, lite.ada, secret="no")

    assert not any(unlocked.is_open for unlocked in unlocked_sessions(lite.session))
    assert isinstance(caught.value.__context__, UnlockError)


# ------------------------------------------------------------------ strength


class Judge:
    """Refuses what is shorter than twelve characters, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, object]] = []

    def __call__(self, secret: str, owner: object) -> str | None:
        self.asked.append((secret, owner))
        return None if len(secret) >= 12 else "Take twelve characters or more."


def test_each_new_secret_is_judged_before_it_is_used(lite: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sign-up, a further secret, one for a forgotten one and a change: a weak secret is refused with the
    application's reason, before any derivation. A secret that is there still unlocks."""
    judge = Judge()
    envelope, ada = Envelope(kdf_profile=CHEAP, secret_strength=judge), lite.ada
    cleo = User(email="cleo")
    derived = own_derivations(monkeypatch)
    with envelope.unlock(lite.session, ada, secret=SECRET) as unlocked:
        code = unlocked.add_recovery_code(ada)
        derived.clear()
        for verb in (
            lambda: envelope.enroll(lite.session, cleo, secret="short"),
            lambda: envelope.enroll(lite.session, [cleo], secret={cleo: "short"}),
            lambda: envelope.change_secret(lite.session, ada, old=SECRET, new="short"),
            lambda: envelope.set_secret(lite.session, ada, new=b"short"),
            lambda: unlocked.add_secret(ada, "short", label="phone"),
            lambda: envelope.reset_secret(lite.session, ada, recovery_code=str(code), new="short"),
        ):
            with pytest.raises(WeakSecretError, match="Take twelve characters or more"):
                verb()
    envelope.change_secret(lite.session, ada, old=SECRET, new=OTHER)

    assert [("short", cleo)] * 2 + [("short", ada)] * 4 + [(OTHER, ada)] == judge.asked
    assert CHEAP not in derived[:-2]
    assert issubclass(WeakSecretError, SecretError)


def test_a_secret_that_was_checked_elsewhere_is_not_judged(lite: Started) -> None:
    """Nobody is shut out by the secret that they log in with for years."""
    judge = Judge()
    envelope = Envelope(kdf_profile=CHEAP, secret_strength=judge)
    cleo = User(email="cleo")
    with envelope.unlock(lite.session, cleo, secret="short", authenticated=True) as unlocked:
        assert unlocked.is_open

    assert judge.asked == []


class PydanticError(ValueError):
    """As pydantic's: it puts its input into its text, cut short."""


def raising(error: type[Exception]) -> Callable[[str, object], str]:
    def strength(secret: str, owner: object) -> str:
        raise error(f"Too weak: {secret[:6]}...") if error is PydanticError else error("Add another word.")

    return strength


@pytest.mark.parametrize(
    ("strength", "said"),
    [
        (lambda secret, _: f"{secret.upper()} is too weak", "The secret is too weak; choose another."),
        (raising(ValueError), "Add another word."),
        (raising(WeakSecretError), "Add another word."),
        (raising(PydanticError), "was not judged: the function secret_strength raised PydanticError"),
        (raising(KeyError), "was not judged: the function secret_strength raised KeyError"),
    ],
)
def test_the_reason_shows_no_secret(lite: Started, strength: Any, said: str) -> None:
    """A reason is told unless it shows the secret; an error in the function refuses, and is not chained."""
    envelope = Envelope(kdf_profile=CHEAP, secret_strength=strength)
    with pytest.raises(WeakSecretError) as caught:
        envelope.change_secret(lite.session, lite.ada, old=SECRET, new="needle words")

    assert said in str(caught.value)
    assert "needle" not in str(caught.value).lower()
    assert caught.value.__cause__ is caught.value.__context__ is None


@pytest.mark.parametrize("answer", [True, False, {"score": 1}, 4])
def test_an_answer_that_is_no_reason_is_told(lite: Started, answer: Any) -> None:
    """A function that returns a score or a yes is a mistake of the application's: no secret passes by it."""
    envelope = Envelope(kdf_profile=CHEAP, secret_strength=lambda *_: answer)
    with pytest.raises(ConfigurationError, match="secret_strength"):
        envelope.change_secret(lite.session, lite.ada, old=SECRET, new=OTHER)
