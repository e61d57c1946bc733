"""Whether the time of a refused login tells which kind of account it was.

    python -m benchmarks.login_timing
    python -m benchmarks.login_timing --cheap

A login view looks the account up and unlocks it, in a session of its own, as each request does. It is timed
as an attacker would time it: from the request to the answer. The kinds of accounts take turns, in an order
drawn anew for each round. Each two kinds are compared by a rank-sum test (Mann and Whitney) and by the
greatest distance of their distributions (Kolmogorov and Smirnov).

With `--cheap` a derivation takes microseconds. Nothing then hides the time of everything else: this is
the harder test of it. There is no other profile, and its account is one more with a wrong secret.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from statistics import median, quantiles

from sqlalchemy import Engine, String, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import (
    CampaignKeyFile,
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyOwner,
    UnlockError,
    enforce_foreign_keys,
)
from sqlalchemy_envelope.migration import Campaign

LIMIT = 0.001
PRESENT = KdfProfile(32_768, 2, 1)
EARLIER = KdfProfile.OWASP_MINIMUM
UNKNOWN = "unknown"


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    phone: Mapped[str | None] = mapped_column(EncryptedType(String))


def accounts(
    engine: Engine, folder: Path, present: KdfProfile, earlier: KdfProfile
) -> tuple[Envelope, list[str]]:
    """An account of each kind, and one name without an account."""
    campaign = CampaignKeyFile.generate(folder / "campaign.key")
    envelope = Envelope(kdf_profile=present, providers={"campaign": campaign})
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(User(email="unclaimed"))
        session.commit()
        Campaign(engine, envelope, Base, provider="campaign").provide()
        session.add(User(email="not enrolled"))
        envelope.enroll(session, User(email="wrong secret"), secret="right")
        before = Envelope(kdf_profile=earlier, providers={"campaign": campaign})
        before.enroll(session, User(email="other profile"), secret="right")
        session.commit()
    return envelope, ["wrong secret", UNKNOWN, "not enrolled", "unclaimed", "other profile"]


def login(engine: Engine, envelope: Envelope, email: str) -> None:
    """A login view, and a secret that is wrong."""
    with Session(engine) as session:
        user = session.scalar(select(User).where(User.email == email))
        try:
            if user is None:
                envelope.unlock_unknown(secret="wrong", account=email, source="203.0.113.7")
            envelope.unlock(session, user, secret="wrong", source="203.0.113.7")
        except UnlockError:
            return
        raise AssertionError(email)


def measure(rounds: int, kinds: Sequence[str], attempt: Callable[[str], None]) -> dict[str, list[float]]:
    """Seconds of each attempt, by kind. The first rounds are not counted."""
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(-20, rounds):
        for kind in random.sample(kinds, len(kinds)):
            began = time.perf_counter()
            attempt(kind)
            if number >= 0:
                taken[kind].append(time.perf_counter() - began)
        if number % 100 == 0:
            print(f"{number} of {rounds} rounds", file=sys.stderr)
    return taken


def rank_sum(one: Sequence[float], other: Sequence[float]) -> float:
    """The p-value of Mann and Whitney's test, two-sided, by its normal approximation."""
    in_order = sorted([(value, 0) for value in one] + [(value, 1) for value in other])
    ranks = sum(rank for rank, (_, group) in enumerate(in_order, 1) if group == 0)
    n, m = len(one), len(other)
    z = (ranks - n * (n + m + 1) / 2) / math.sqrt(n * m * (n + m + 1) / 12)
    return math.erfc(abs(z) / math.sqrt(2))


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """The p-value of Kolmogorov and Smirnov's test, by its limit distribution."""
    first, second = sorted(one), sorted(other)
    n, m = len(first), len(second)
    apart = max(
        abs(bisect_right(first, value) / n - bisect_right(second, value) / m) for value in first + second
    )
    scaled = apart * math.sqrt(n * m / (n + m))
    if scaled < 0.2:
        return 1.0  # where the series below does not converge
    terms = (2 * (-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 101))
    return min(1.0, max(0.0, sum(terms)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--attempts", type=int, default=4_000, help="in all (default: 4,000)")
    parser.add_argument("--cheap", action="store_true", help="with derivations of microseconds")
    options = parser.parse_args()
    cheap = KdfProfile.unsafe_for_tests()
    profiles = (cheap, cheap) if options.cheap else (PRESENT, EARLIER)
    with tempfile.TemporaryDirectory() as folder:
        engine = create_engine(f"sqlite:///{folder}/accounts.db")
        enforce_foreign_keys(engine)
        envelope, kinds = accounts(engine, Path(folder), *profiles)
        taken = measure(options.attempts // len(kinds), kinds, lambda email: login(engine, envelope, email))
        engine.dispose()
    for kind, times in taken.items():
        low, _, high = quantiles(times, n=4)
        print(
            f"{kind:>14}: median {median(times) * 1e3:.2f} ms, quartiles {low * 1e3:.2f} to {high * 1e3:.2f}"
        )
    least = 1.0
    for one, other in combinations(kinds, 2):
        found = rank_sum(taken[one], taken[other]), distance(taken[one], taken[other])
        least = min(least, *found)
        print(f"{one:>14} and {other:<14}: rank sum p = {found[0]:.4f}, distance p = {found[1]:.4f}")
    print(f"{sum(map(len, taken.values())):,} attempts; least p = {least:.4f}")
    sys.exit(least < LIMIT)


if __name__ == "__main__":
    main()
