"""What a throttle promises, whatever is tried and whatever the clock does."""

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlalchemy_envelope import Backoff, ConfigurationError, MemoryThrottle, Throttle
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.orm.throttling.throttle import (
    Names,
    Reservation,
    owner_account,
    typed_account,
)

ADA, BEN = owner_account(b"ada"), owner_account(b"ben")
HOME, OFFICE, ELSEWHERE = "203.0.113.7", "203.0.113.8", "198.51.100.9"
DAY = 86_400


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Doors:
    """A throttle with a clock, and attempts at it."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.store = MemoryThrottle()
        self.throttle = Throttle(self.store, clock=self.clock, **options)

    def reserve(self, account: bytes | None, source: str | None) -> Reservation | float:
        return self.throttle.reserve(self.store, self.throttle.names(account, source))

    def wrong(self, account: bytes | None = ADA, source: str | None = HOME) -> float:
        """An attempt that fails, and how long it would have to wait; 0 if it was made."""
        reserved = self.reserve(account, source)
        return 0.0 if isinstance(reserved, Reservation) else reserved

    def right(self, account: bytes | None = ADA, source: str | None = HOME) -> float:
        """The same of an attempt that succeeds."""
        reserved = self.reserve(account, source)
        if not isinstance(reserved, Reservation):
            return reserved
        self.throttle.give_back(self.store, reserved, opened=True)
        return 0.0

    def patient(self, account: bytes | None = ADA, source: str | None = HOME) -> float:
        """Fail as soon as that is possible; how long it took."""
        began = self.clock.now
        while wait := self.wrong(account, source):
            self.clock.now += wait
        return self.clock.now - began

    @property
    def remembered(self) -> dict[Any, Any]:
        """What is remembered at this moment, without what is past."""
        now = round(self.clock.now * 1000)
        return {name: one for name, one in self.store._buckets.items() if one.expires_at > now}


# ------------------------------------------------------------------ the waits


def test_waits_double_up_to_the_longest() -> None:
    """Five failures are free; the sixth attempt waits a second, and no attempt ever more than a minute."""
    doors = Doors(pair=Backoff())
    waits = [doors.patient() for _ in range(16)]

    assert pytest.approx(waits) == [0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60]


def test_a_refused_attempt_makes_no_wait_longer() -> None:
    """Whoever hammers on a closed door waits as long as whoever waits."""
    doors = Doors()
    for _ in range(8):
        doors.patient()
    first = doors.wrong()
    hammered = [doors.wrong() for _ in range(100)]
    doors.clock.now += first

    assert {first} == set(hammered)
    assert doors.wrong() == 0


def test_what_is_remembered_decays() -> None:
    """After a time without failures nothing is remembered, and all waits are as at first."""
    doors = Doors()
    for _ in range(30):
        doors.patient()
    doors.clock.now += Backoff(longest=300.0).most * 300

    assert doors.remembered == {}
    assert [doors.wrong() for _ in range(5)] == [0.0] * 5
    assert doors.wrong() == 1


def test_a_source_waits_for_all_its_failures() -> None:
    """Twenty accounts, one guess each, and then the source waits; another source does not."""
    doors = Doors()
    guessed = [doors.wrong(owner_account(b"%d" % number), ELSEWHERE) for number in range(20)]

    assert guessed == [0.0] * 20
    assert doors.wrong(ADA, ELSEWHERE) == 1
    assert doors.wrong(ADA, OFFICE) == 0


def test_an_account_waits_for_failures_from_everywhere() -> None:
    """Five sources, one guess each, and the account waits for a sixth."""
    doors = Doors()
    guessed = [doors.wrong(ADA, f"198.51.100.{number}") for number in range(5)]

    assert guessed == [0.0] * 5
    assert doors.wrong(ADA, "198.51.100.6") == 1
    assert doors.wrong(BEN, "198.51.100.6") == 0


def test_without_a_source_the_account_alone_waits() -> None:
    """An application that names no source is protected all the same; one that names nothing is not."""
    doors = Doors()
    waits = [doors.wrong(ADA, None) for _ in range(6)]

    assert waits == [0, 0, 0, 0, 0, 1]
    assert [doors.wrong(None, None) for _ in range(50)] == [0.0] * 50


# ------------------------------------------------------------------ who waits for whom


def test_an_attacker_elsewhere_never_locks_the_owner_out() -> None:
    """Home unlocked a week ago. However long somebody guesses from a thousand other sources, home is let in
    at once, each time."""
    doors = Doors()
    assert doors.right(ADA, HOME) == 0
    doors.clock.now += 7 * DAY
    let_in = []
    for number in range(3_000):
        doors.wrong(ADA, f"198.51.{number % 4}.{number % 250}")
        doors.clock.now += 0.5
        let_in.append(doors.right(ADA, HOME))

    assert {0.0} == set(let_in)
    assert doors.wrong(ADA, OFFICE) > 0


def test_an_attacker_behind_the_owners_router_does_not_lock_the_owner_out() -> None:
    """A known source waits for no failures at other accounts from the same address."""
    doors = Doors()
    doors.right(ADA, HOME)
    for number in range(200):
        doors.wrong(owner_account(b"%d" % number), HOME)

    assert doors.wrong(BEN, HOME) > 0
    assert doors.right(ADA, HOME) == 0


def test_a_known_source_waits_for_its_own_failures() -> None:
    """Whoever sits at the owner's own machine cannot guess for ever, and no one elsewhere waits for that."""
    doors = Doors()
    doors.right(ADA, HOME)
    waits = [doors.patient(ADA, HOME) for _ in range(13)]

    assert pytest.approx(waits) == [0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60]
    assert doors.wrong(ADA, OFFICE) == 0


def test_a_source_is_known_for_thirty_days() -> None:
    """After them it waits as everybody does."""
    doors = Doors()
    doors.right(ADA, HOME)
    doors.clock.now += 29 * DAY
    for number in range(9):
        doors.wrong(ADA, f"198.51.100.{number}")
    assert doors.right(ADA, HOME) == 0
    doors.clock.now += 31 * DAY
    for number in range(9):
        doors.wrong(ADA, f"198.51.100.{number}")

    assert doors.right(ADA, HOME) == 1


def test_a_success_clears_nothing_that_others_did() -> None:
    """With an account of one's own nobody clears a source, and an owner who logs in clears no guesses."""
    doors = Doors()
    for number in range(4):
        doors.wrong(ADA, f"198.51.100.{number}")
    for number in range(19):
        doors.wrong(owner_account(b"%d" % number), ELSEWHERE)
    mallory, before = owner_account(b"mallory"), dict(doors.remembered)
    successes = [doors.right(mallory, ELSEWHERE), doors.right(ADA, HOME), doors.right(ADA, OFFICE)]
    known = {doors.throttle.names(*of).pair for of in [(mallory, ELSEWHERE), (ADA, HOME), (ADA, OFFICE)]}

    assert successes == [0.0] * 3
    assert before == {name: one for name, one in doors.remembered.items() if name not in known}


def test_accounts_that_do_not_exist_wait_alike() -> None:
    """A name that somebody typed waits as an owner does. Another spelling is another account, since only the
    application knows which spellings are one."""
    doors = Doors()
    waits = [doors.wrong(typed_account("eve@example.org"), None) for _ in range(6)]

    assert waits == [0, 0, 0, 0, 0, 1]
    assert doors.wrong(typed_account("Eve@example.org"), None) == 0


def test_owners_of_one_primary_key_in_two_databases() -> None:
    """They are two accounts, if the application names its databases; a typed name is never an owner."""
    accounts = [owner_account(b"1", "here"), owner_account(b"1", "there"), owner_account(b"1")]

    assert len({*accounts, typed_account("1")}) == 4


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:203.0.113.7", "203.0.113.7", True),
        ("fe80::1%eth0", "fe80::1", True),
        ("203.0.113.7", "203.0.113.8", False),
        ("device 1", "device 2", False),
    ],
)
def test_what_one_source_is(one: str, other: str, same: bool) -> None:
    """The addresses of one IPv6 network are one source: a single customer has all of them."""
    throttle = Throttle(MemoryThrottle())

    assert same is (throttle.names(ADA, one) == throttle.names(ADA, other))


def test_names_say_nothing_without_the_key() -> None:
    """Names under two server keys have nothing in common; account, source and both differ from each other."""
    throttle = Throttle(MemoryThrottle())
    keyed = [throttle.under(KeyBytes(bytes([number]) * 32)) for number in (1, 2)]
    names = [name for one in (throttle, *keyed) for name in one.names(ADA, HOME)]

    assert len(set(names)) == 9
    assert keyed[0].names(ADA, HOME) == throttle.under(KeyBytes(b"\1" * 32)).names(ADA, HOME)


# ------------------------------------------------------------------ whatever happens

Event = tuple[str, int, int, float]
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["wrong", "right", "busy", "wait", "back", "ahead"]),
        st.integers(0, 2),  # the account
        st.integers(0, 3),  # the source
        st.floats(0, 5_000, allow_nan=False),
    ),
    max_size=80,
)


@given(events=EVENTS)
def test_no_wait_is_too_long_or_negative(events: Sequence[Event]) -> None:
    """Whatever is tried, and if the clock is set back by years or ahead by years: a wait is above 0 and at
    most the longest, and once it is over the attempt is made."""
    doors = Doors()
    for what, account, source, seconds in events:
        at = owner_account(b"%d" % account), f"203.0.113.{source}"
        if what == "wait":
            doors.clock.now += seconds
        elif what in ("back", "ahead"):
            doors.clock.now += seconds * 20_000 * (1 if what == "ahead" else -1)
        elif what == "busy":
            reserved = doors.reserve(*at)
            if isinstance(reserved, Reservation):
                doors.throttle.give_back(doors.store, reserved, opened=False)
        else:
            wait = doors.right(*at) if what == "right" else doors.wrong(*at)
            if wait:
                assert 0 < wait <= 300
                doors.clock.now += wait
                assert doors.right(*at) == 0


@given(events=EVENTS)
def test_attempts_that_were_not_made_leave_no_trace(events: Sequence[Event]) -> None:
    """Attempts that were given back, one after another, leave what was there before."""
    doors = Doors()
    for what, account, source, seconds in events:
        at = owner_account(b"%d" % account), f"203.0.113.{source}"
        doors.clock.now += seconds / 100
        if what != "busy":
            doors.wrong(*at)
            continue
        before = doors.remembered
        reserved = doors.reserve(*at)
        if isinstance(reserved, Reservation):
            doors.throttle.give_back(doors.store, reserved, opened=False)

        assert before == doors.remembered


@pytest.mark.parametrize("seed", range(3))
def test_guesses_in_a_day_are_counted(seed: int) -> None:
    """A thousand sources that try all day make no more guesses at one account than its waits allow: one a
    minute, and what is free at first."""
    chance, doors, made = random.Random(seed), Doors(), 0
    end = doors.clock.now + DAY
    while doors.clock.now < end:
        made += not doors.wrong(ADA, f"198.51.{chance.randrange(4)}.{chance.randrange(250)}")
        doors.clock.now += chance.uniform(0, 20)

    assert made < DAY / 60 + 11


# ------------------------------------------------------------------ at one time


def test_guesses_at_one_time_cannot_all_pass() -> None:
    """Of 200 attempts that are made before any has ended, five pass."""
    doors = Doors()
    names = doors.throttle.names(ADA, HOME)
    with ThreadPoolExecutor(16) as pool:
        reserved = list(pool.map(lambda _: doors.throttle.reserve(doors.store, names), range(200)))

    assert Counter([Reservation] * 5 + [float] * 195) == Counter(map(type, reserved))


def test_a_success_among_failures_takes_one_back() -> None:
    """Where others failed meanwhile, one failure less is remembered, and the waits of the others stay."""
    doors = Doors(pair=Backoff(free=100))
    mine = doors.reserve(ADA, HOME)
    for number in range(4):
        doors.wrong(ADA, f"198.51.100.{number}")
    assert doors.wrong(ADA, OFFICE) == 1
    assert isinstance(mine, Reservation)
    doors.throttle.give_back(doors.store, mine, opened=True)
    doors.clock.now += 1

    assert doors.wrong(ADA, OFFICE) == 0
    assert doors.wrong(ADA, OFFICE) == 1


# ------------------------------------------------------------------ the memory of one process


def test_the_memory_is_bounded() -> None:
    """A flood of names drops those that were not used for longest; the account under attack stays."""
    store = MemoryThrottle(most=50)
    throttle = Throttle(store, source=Backoff(free=10_000))
    for number in range(500):
        throttle.reserve(store, throttle.names(owner_account(b"%d" % number), HOME))
        throttle.reserve(store, throttle.names(ADA, HOME))

    assert len(store) == 50
    assert isinstance(throttle.reserve(store, throttle.names(ADA, None)), float)


@pytest.mark.parametrize(
    "wrong",
    [
        {"free": 0},
        {"first": 0.0},
        {"first": 61.0},
        {"forget": -1.0},
        {"longest": math.inf},
        {"first": math.nan},
    ],
)
def test_impossible_rules_are_refused(wrong: dict[str, Any]) -> None:
    """A wait that never ends, or no wait at all, is no rule."""
    with pytest.raises(ConfigurationError):
        Backoff(**wrong)


@pytest.mark.parametrize(
    "misused",
    [
        lambda: Throttle(cast("Any", "redis://")),
        lambda: Throttle(MemoryThrottle()).names(ADA, cast("Any", 203)),
        lambda: typed_account(cast("Any", b"ada")),
    ],
)
def test_misuse_is_told(misused: Callable[[], Names]) -> None:
    """What cannot be counted is an error, and not an attempt without a count."""
    with pytest.raises(ConfigurationError):
        misused()
