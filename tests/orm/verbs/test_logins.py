"""Logins that nobody asked for: a flood of them is refused in time and holds up nothing else, and neither how
long one takes nor what it raises tells which accounts have no secret yet."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    AsyncEnvelope,
    CampaignKeyFile,
    Envelope,
    EnvelopeError,
    KdfProfile,
    MemoryThrottle,
    NotEnrolledError,
    Throttle,
    UnclaimedError,
    UnlockBusyError,
    UnlockError,
    UnlockThrottledError,
)
from sqlalchemy_envelope.crypto.argon2id import KdfLimit
from sqlalchemy_envelope.migration import Campaign
from sqlalchemy_envelope.orm.current.threads import off_loop
from tests.orm.conftest import Started
from tests.orm.models import SECRET, Base, User

CHEAP = KdfProfile.unsafe_for_tests()


def slowly(monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[int]:
    """Let every derivation last so long; how many run at one moment is noted."""
    derive, running, most = KdfLimit.derive, [0], [0]

    def slow(limit: KdfLimit, *arguments: Any, **options: Any) -> Any:
        running[0] += 1
        most.append(running[0])
        time.sleep(seconds)
        running[0] -= 1
        return derive(limit, *arguments, **options)

    monkeypatch.setattr(KdfLimit, "derive", slow)
    return most


async def attempt(envelope: AsyncEnvelope) -> type[EnvelopeError]:
    """A login without an account; how it is refused."""
    with pytest.raises(EnvelopeError) as caught:
        await envelope.unlock_unknown(secret=SECRET)
    return caught.type


def test_a_flood_is_refused_in_time_and_names_are_still_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 logins at once, each of 0.05 s: who does not get a turn within 0.4 s is told so then, and the one
    thread that the event loop has for looking names up, and for the application, is free all the while."""
    most = slowly(monkeypatch, 0.05)
    envelope = Envelope(kdf_profile=CHEAP, concurrent_derivations=2, derivation_wait=0.4)

    async def timed(began: float) -> tuple[type[EnvelopeError], float]:
        # An envelope wrapped for each request, as a dependency of FastAPI may do.
        refused = await attempt(AsyncEnvelope(envelope))
        return refused, time.monotonic() - began

    async def flood() -> tuple[list[tuple[type[EnvelopeError], float]], float]:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        waits: list[float] = []
        attempts = asyncio.gather(*(timed(time.monotonic()) for _ in range(200)))
        while not attempts.done():
            asked = time.monotonic()
            await loop.getaddrinfo("127.0.0.1", 80)
            await loop.run_in_executor(None, time.monotonic)
            waits.append(time.monotonic() - asked)
            await asyncio.sleep(0.01)
        return await attempts, max(waits)

    refused, longest = asyncio.run(flood())
    busy = [took for error, took in refused if error is UnlockBusyError]
    print(
        f"{len(busy)} of 200 busy after {min(busy):.2f} to {max(busy):.2f} s; a look-up took {longest:.3f} s"
    )

    assert {UnlockError, UnlockBusyError} == {error for error, _ in refused}
    assert len(busy) > 200 - 2 * (0.4 / 0.05 + 2)
    assert min(busy) >= 0.4
    assert max(busy) < 1.4
    assert longest < 0.3
    assert max(most) == 2


def test_logins_that_are_cancelled_give_their_places_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A place is free when the derivation has ended, not when whoever waited for it went away."""
    most = slowly(monkeypatch, 0.05)
    envelope = AsyncEnvelope(Envelope(kdf_profile=CHEAP, concurrent_derivations=1))

    async def cancel() -> type[EnvelopeError]:
        for _ in range(5):
            attempts = [asyncio.create_task(attempt(envelope)) for _ in range(4)]
            await asyncio.sleep(0.01)
            for one in attempts:
                one.cancel()
            await asyncio.gather(*attempts, return_exceptions=True)
        return await attempt(envelope)

    assert asyncio.run(cancel()) is UnlockError
    assert max(most) == 1


def test_who_hangs_up_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A login that is cancelled while its key is derived counts as a failure: guesses would be free else."""
    slowly(monkeypatch, 0.05)
    throttle = Throttle(MemoryThrottle())
    envelope = AsyncEnvelope(Envelope(kdf_profile=CHEAP, throttle=throttle))

    async def hang_up() -> None:
        for _ in range(5):
            login = asyncio.create_task(envelope.unlock_unknown(secret=SECRET, account="eve"))
            await asyncio.sleep(0.01)
            login.cancel()
            await asyncio.gather(login, return_exceptions=True)
        with pytest.raises(UnlockThrottledError):
            await envelope.unlock_unknown(secret=SECRET, account="eve")

    asyncio.run(hang_up())


def test_a_second_event_loop_shares_the_limit() -> None:
    """The limit is the process's: a place that another loop, or a thread, holds is waited for, and not longer
    than the wait."""
    envelope = Envelope(kdf_profile=CHEAP, concurrent_derivations=1, derivation_wait=0.1)
    assert envelope.limit._slots.acquire(timeout=1)
    began = time.monotonic()
    refused = [asyncio.run(attempt(AsyncEnvelope(envelope))) for _ in range(2)]
    took = time.monotonic() - began
    envelope.limit._slots.release()

    assert refused == [UnlockBusyError] * 2
    assert took < 1
    assert asyncio.run(attempt(AsyncEnvelope(envelope))) is UnlockError


def test_calls_to_providers_leave_the_loops_threads_alone() -> None:
    """They run in threads of their own, as derivations do."""

    async def name() -> str:
        return await off_loop(lambda: threading.current_thread().name)

    assert asyncio.run(name()).startswith("envelope-provider")


@pytest.fixture
def derived(monkeypatch: pytest.MonkeyPatch) -> list[KdfLimit]:
    """The derivations that are made."""
    derive, made = KdfLimit.derive, list[KdfLimit]()

    def noted(limit: KdfLimit, *arguments: Any, **options: Any) -> Any:
        made.append(limit)
        return derive(limit, *arguments, **options)

    monkeypatch.setattr(KdfLimit, "derive", noted)
    return made


def test_an_owner_without_keys_is_refused_as_slowly_as_a_wrong_secret(
    lite: Started, derived: list[KdfLimit]
) -> None:
    """One derivation each: a wrong secret, no account, no keys."""
    envelope = Envelope(kdf_profile=CHEAP)
    lite.session.add(User(email="cleo"))
    lite.session.commit()
    cleo = lite.session.query(User).filter_by(email="cleo").one()
    counts = []
    for refused, how in [
        (UnlockError, lambda: envelope.unlock(lite.session, lite.ada, secret="wrong")),
        (UnlockError, lambda: envelope.unlock_unknown(secret="wrong")),
        (NotEnrolledError, lambda: envelope.unlock(lite.session, cleo, secret="wrong")),
    ]:
        with pytest.raises(refused):
            how()
        counts.append(len(derived))

    assert counts == [1, 2, 3]


def test_an_unclaimed_owner_is_refused_as_slowly_as_a_wrong_secret(
    lite: Started, derived: list[KdfLimit], tmp_path: Path
) -> None:
    """One derivation, though there is no slot that a secret could open."""
    key = CampaignKeyFile.generate(tmp_path / "campaign.key")
    envelope = Envelope(kdf_profile=CHEAP, providers={"campaign": key})
    with Session(lite.engine) as session:
        session.add(User(email="cleo"))
        session.commit()
        Campaign(lite.engine, envelope, Base, provider="campaign").provide()
        cleo = session.query(User).filter_by(email="cleo").one()
        with pytest.raises(UnclaimedError):
            envelope.unlock(session, cleo, secret="wrong")

    assert len(derived) == 1
