"""The parts of unlocked sessions, each by itself: what a server keeps, and what is around the outermost."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import sqlalchemy_envelope.orm.sessions as sessions_room
from sqlalchemy_envelope import CachePolicy
from sqlalchemy_envelope.orm.sessions import kept_owners
from sqlalchemy_envelope.orm.sessions.kept_owners import KeptOwners
from sqlalchemy_envelope.orm.sessions.nothing_around import NOTHING_AROUND

ADA, BEN, EVE = b"ada", b"ben", b"eve"


class Clock:
    """A clock that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(kept_owners.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def swept(kept: KeptOwners) -> list[bytes]:
    assert kept.is_sweep_due()
    return kept.over_limit()


def test_an_owner_past_its_time_goes(clock: Clock) -> None:
    """Only the owner whose keys were opened longest ago is over the limit, though it was used since."""
    kept = KeptOwners(CachePolicy(seconds=60))
    kept.touch(ADA)
    clock.now += 50
    kept.touch(BEN)
    kept.touch(ADA)
    clock.now += 11

    assert swept(kept) == [ADA]
    assert not kept.stale


def test_an_owner_in_use_is_opened_anew_and_not_let_go_of(clock: Clock) -> None:
    """An owner over its uses, whose rows may be read just now, stays and is stale; renewed, it is not."""
    kept = KeptOwners(CachePolicy(uses=10))
    kept.whole.add(ADA)
    kept.touch(ADA, 11)
    clock.now += 2

    assert swept(kept) == []
    assert ({ADA}, set()) == (set(kept.stale), kept.whole)

    kept.renew(ADA)
    kept.touch(ADA)
    clock.now += 10

    assert swept(kept) == []
    assert not kept.stale


def test_of_too_many_owners_the_longest_unused_go(clock: Clock) -> None:
    """With one owner too many, the one that was used last of all stays, and the first to be used goes."""
    kept = KeptOwners(CachePolicy(keys=2))
    for owner in (ADA, BEN, EVE):
        kept.touch(owner)
        clock.now += 1
    kept.touch(ADA)
    clock.now += 10

    assert swept(kept) == [BEN]


def test_no_sweep_within_a_second(clock: Clock) -> None:
    """Statements that follow each other do not look through all owners each time."""
    kept = KeptOwners(CachePolicy())
    kept.touch(ADA)
    clock.now += 0.5

    assert not kept.is_sweep_due()


def test_nothing_around_answers_whatever_a_session_asks() -> None:
    """Each question that a session passes outwards has an answer where nothing is around."""
    (room,) = sessions_room.__path__
    text = "".join(path.read_text() for path in Path(room).glob("*.py"))
    asked = set(re.findall(r"self\._parent\.(\w+)", text))
    # Asked where something is around, and only there.
    asked -= {"_children", "admit", "only_owner", "places_for"}

    assert {"reader", "writer", "prepare_write", "settle_around"} <= asked
    assert [name for name in sorted(asked) if not hasattr(NOTHING_AROUND, name)] == []
    assert ADA not in NOTHING_AROUND
