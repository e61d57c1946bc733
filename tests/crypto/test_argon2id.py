"""Key derivation: its profiles, what is refused before anything is allocated, and how many run at once."""

import asyncio
import importlib.util
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from argon2 import extract_parameters, low_level
from hypothesis import given
from hypothesis import strategies as st

from sqlalchemy_envelope import Envelope
from sqlalchemy_envelope.crypto import argon2id
from sqlalchemy_envelope.crypto.argon2id import KdfLimit, KdfProfile, KdfSalt, check_bounds, derive_kek
from sqlalchemy_envelope.crypto.kdf import key_encryption_key
from sqlalchemy_envelope.exceptions import KdfParametersError, UnlockBusyError
from tests.costs import unchecked

CHEAP = KdfProfile.unsafe_for_tests()
DEFAULT = KdfProfile.RFC9106_LOW_MEMORY
PATIENCE = 60.0
"""Seconds after which a test gives up; none of them waits that long unless it fails."""


def phc(memory: int, passes: int, lanes: int, salt: str = "A" * 22) -> str:
    return f"$argon2id$v=19$m={memory},t={passes},p={lanes}${salt}"


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make any call of the engine fail the test."""

    def called(*_: object, **__: object) -> None:
        pytest.fail("something was derived")

    monkeypatch.setattr(argon2id, "hash_secret_raw", called)


# ---------------------------------------------------------------- profiles


def test_the_default_is_real() -> None:
    """Who asks for nothing gets RFC 9106's second recommended option; the named ones are what they say."""
    profile = Envelope().kdf_profile

    assert (profile.memory, profile.passes, profile.lanes) == (65_536, 3, 4)
    assert KdfProfile(262_144, 3, 1) == KdfProfile.LIBSODIUM_MODERATE
    assert KdfProfile(19_456, 2, 1) == KdfProfile.OWASP_MINIMUM


ACCEPTED = [
    (19_456, 2, 1),
    (19_456, 16, 16),
    (47_104, 1, 1),
    (1_048_576, 1, 16),
    (1_048_576, 8, 1),
    (524_288, 16, 1),
]
REFUSED = [
    (19_455, 2, 1),
    (47_103, 1, 1),
    (19_456, 1, 1),
    (1_048_577, 2, 1),
    (65_536, 17, 1),
    (65_536, 3, 17),
    (65_536, 3, 0),
    (65_536, 3, -1),
    (65_536, 0, 1),
    (65_536, -1, 1),
    (-65_536, 3, 1),
    (0, 0, 0),
    (1_048_576, 9, 1),
    (524_289, 16, 1),
    (2**32 - 1, 3, 1),
    (65_536, 2**31, 1),
]


@pytest.mark.parametrize("parameters", ACCEPTED)
def test_the_bounds_are_accepted(parameters: tuple[int, int, int]) -> None:
    """Every bound itself is within bounds."""
    check_bounds(*parameters)

    assert KdfSalt.parse(phc(*parameters), policy=DEFAULT).profile == KdfProfile(*parameters)


@pytest.mark.parametrize("parameters", REFUSED)
def test_what_is_out_of_bounds_is_refused(parameters: tuple[int, int, int], no_engine: None) -> None:
    """One step beyond any bound is refused by the check, by a profile and by a stored string alike."""
    with pytest.raises(KdfParametersError, match="nothing was derived"):
        check_bounds(*parameters)
    with pytest.raises(KdfParametersError):
        KdfProfile(*parameters)
    with pytest.raises(KdfParametersError):
        replace(DEFAULT, memory=parameters[0], passes=parameters[1], lanes=parameters[2])
    with pytest.raises(KdfParametersError):
        KdfSalt.parse(phc(*parameters), policy=DEFAULT)


@given(st.integers(-1, 2**33), st.integers(-1, 2**33), st.integers(-1, 2**33))
def test_no_profile_can_exhaust_the_machine(memory: int, passes: int, lanes: int) -> None:
    """Whatever a database says, a profile never asks for over 1 GiB, 8 GiB of walking, or 16 threads."""
    try:
        profile = KdfProfile(memory, passes, lanes)
    except KdfParametersError:
        return

    assert profile.memory <= 2**20
    assert profile.memory * profile.passes <= 8 * 2**20
    assert 1 <= profile.lanes <= 16


def test_the_cheap_profile_is_cheap() -> None:
    """The profile for tests is 64 KiB, one pass and one lane, which no checked profile can be."""
    cheap = KdfProfile.unsafe_for_tests()

    assert (cheap.memory, cheap.passes, cheap.lanes) == (64, 1, 1)
    assert cheap == CHEAP
    for make in (lambda: KdfProfile(64, 1, 1), lambda: replace(cheap, passes=2)):
        with pytest.raises(KdfParametersError):
            make()


def test_a_profile_does_not_change() -> None:
    """A policy that was checked stays what was checked."""
    with pytest.raises(FrozenInstanceError):
        DEFAULT.memory = 8  # type: ignore[misc]


@pytest.mark.parametrize(
    ("other", "short"),
    [
        ((65_536, 3, 4), False),
        ((65_537, 4, 5), False),
        ((65_535, 3, 4), True),
        ((65_536, 2, 4), True),
        ((65_536, 3, 3), True),
        ((1_048_576, 8, 3), True),
    ],
)
def test_any_lower_parameter_falls_short(other: tuple[int, int, int], short: bool) -> None:
    """A slot is due for an upgrade if one parameter is lower than the policy's, else it is not."""
    assert short is DEFAULT.exceeds(KdfProfile(*other))


# ---------------------------------------------------------------- stored strings


@given(st.binary(min_size=16, max_size=16), st.sampled_from(ACCEPTED))
def test_a_salt_string_reads_back(salt: bytes, parameters: tuple[int, int, int]) -> None:
    """What is written is read back the same, and is a string that `argon2-cffi` understands too."""
    written = KdfSalt(KdfProfile(*parameters), salt)
    read = KdfSalt.parse(str(written), policy=DEFAULT)
    theirs = extract_parameters(f"{written}${'A' * 43}")

    assert written == read
    assert str(written) == str(read)
    assert parameters == (theirs.memory_cost, theirs.time_cost, theirs.parallelism)
    assert (theirs.version, theirs.salt_len) == (19, 16)


@given(
    st.text(max_size=140)
    | st.from_regex(re.compile(r"\$argon2id\$v=19\$m=\d+,t=\d+,p=\d+\$[\w+/]{21,23}"), fullmatch=True)
)
def test_whatever_is_read_is_written_the_same(text: str) -> None:
    """There is one spelling: a string is either refused, or is exactly what would be written."""
    try:
        read = KdfSalt.parse(text, policy=DEFAULT)
    except KdfParametersError:
        return

    assert text == str(read)


GOOD = phc(65_536, 3, 4)
OTHER_SPELLINGS = {
    "empty": "",
    "another algorithm": GOOD.replace("argon2id", "argon2i"),
    "another case": GOOD.replace("argon2id", "Argon2id"),
    "another version": GOOD.replace("v=19", "v=16"),
    "a leading zero": GOOD.replace("t=3", "t=03"),
    "a sign": GOOD.replace("t=3", "t=+3"),
    "a space": GOOD.replace("t=3", "t= 3"),
    "another order": GOOD.replace("t=3,p=4", "p=4,t=3"),
    "a digit that is not ASCII": GOOD.replace("t=3", "t=\u0663"),
    "a line end": GOOD + "\n",
    "something before": " " + GOOD,
    "a hash": GOOD + "$" + "A" * 43,
    "padding": GOOD + "==",
    "a short salt": GOOD[:-1],
    "a long salt": GOOD + "A",
    "the URL alphabet": GOOD[:-2] + "-A",
    "trailing bits": GOOD[:-1] + "B",
    "a megabyte": GOOD + "A" * 1_000_000,
}


@pytest.mark.parametrize("text", OTHER_SPELLINGS.values(), ids=OTHER_SPELLINGS)
def test_other_spellings_are_refused(text: str, no_engine: None) -> None:
    """A stored string in any spelling but the one is refused, and is not shown."""
    with pytest.raises(KdfParametersError, match=r"key-derivation .* is not .*canonical") as caught:
        KdfSalt.parse(text, policy=DEFAULT)

    assert "AAAA" not in str(caught.value)


def test_a_huge_string_is_not_even_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A string that no salt string can be as long as is refused by its length alone."""
    monkeypatch.setattr(argon2id, "_PHC", None)
    with pytest.raises(KdfParametersError):
        KdfSalt.parse("A" * 129, policy=DEFAULT)
    with pytest.raises(AttributeError):  # one of 128 characters is looked at
        KdfSalt.parse("A" * 128, policy=DEFAULT)


def test_the_cheap_profile_is_read_only_where_it_is_the_policy() -> None:
    """A planted cheap slot is refused by any real policy, and is read under the very profile alone."""
    planted = str(KdfSalt.generate(CHEAP))
    for policy in (DEFAULT, KdfProfile.OWASP_MINIMUM, unchecked(128, 1, 1), unchecked(64, 2, 1)):
        with pytest.raises(KdfParametersError):
            KdfSalt.parse(planted, policy=policy)

    assert KdfSalt.parse(planted, policy=CHEAP).profile == CHEAP


def test_a_cheap_policy_makes_no_other_profile_readable() -> None:
    """Under the tests' policy a real slot is still read, and one that is out of bounds still refused."""
    assert KdfSalt.parse(GOOD, policy=CHEAP).profile == DEFAULT
    for weak in (phc(64, 2, 1), phc(65, 1, 1), phc(64, 1, 2), phc(2**32 - 1, 1, 1)):
        with pytest.raises(KdfParametersError):
            KdfSalt.parse(weak, policy=CHEAP)


def test_a_slot_of_the_test_profile_is_named() -> None:
    """A slot that a test suite made is refused by the name of its profile, with the line to write."""
    with pytest.raises(KdfParametersError, match=r"Envelope\(kdf_profile=KdfProfile\.unsafe_for_tests\(\)\)"):
        KdfSalt.parse(phc(64, 1, 1), policy=DEFAULT)


def test_salts_are_fresh() -> None:
    """Every slot has a salt of its own, 16 random bytes, with the profile of the policy."""
    made = [KdfSalt.generate(CHEAP) for _ in range(1000)]

    assert len({one.salt for one in made}) == 1000
    assert {16} == {len(one.salt) for one in made}
    assert {CHEAP} == {one.profile for one in made}


# ---------------------------------------------------------------- deriving


def test_the_engine_is_given_every_parameter() -> None:
    """The KEK is Argon2id as `argon2-cffi`'s other door gives it, put through HKDF; no parameter is lost."""
    profile = unchecked(96, 2, 3)
    salt = KdfSalt(profile, bytes(range(16)))
    encoded = low_level.hash_secret(b"secret", salt.salt, 2, 96, 3, 32, low_level.Type.ID, version=19)
    text = encoded.decode().rpartition("$")[2]
    stretched = argon2id.base64.b64decode(text + "=")

    assert key_encryption_key(stretched) == derive_kek(b"secret", salt)


def test_each_input_changes_the_key() -> None:
    """Another secret, salt, memory, number of passes or lanes gives another KEK; the same gives the same."""
    base = KdfSalt(unchecked(96, 1, 1), bytes(16))
    others = [
        (b"secreu", base),
        (b"secret", replace(base, salt=b"\1" + bytes(15))),
        (b"secret", replace(base, profile=CHEAP)),
        (b"secret", replace(base, profile=unchecked(96, 2, 1))),
        (b"secret", replace(base, profile=unchecked(96, 1, 2))),
    ]
    made = [bytes(derive_kek(secret, salt).buffer) for secret, salt in [(b"secret", base), *others]]

    assert len(made) == len(set(made))
    assert made[0] == bytes(derive_kek(b"secret", base).buffer)
    assert bytes(32) not in made


# ---------------------------------------------------------------- how many at once


class Watched:
    """The engine, called through, with a gate inside that the test opens; counts who is in."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.inside = self.most = self.calls = 0
        self._lock = threading.Lock()
        self._engine: Callable[..., bytes] = argon2id.hash_secret_raw
        monkeypatch.setattr(argon2id, "hash_secret_raw", self)

    def __call__(self, *args: Any, **kwargs: Any) -> bytes:
        with self._lock:
            self.calls += 1
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.entered.release()
        try:
            assert self.gate.wait(PATIENCE)
            return self._engine(*args, **kwargs)
        finally:
            with self._lock:
                self.inside -= 1

    def wait_for(self, count: int) -> None:
        for _ in range(count):
            assert self.entered.acquire(timeout=PATIENCE)


SALT = KdfSalt(CHEAP, bytes(16))


@pytest.mark.parametrize("concurrent", [1, 2, 3])
def test_so_many_derive_at_once(concurrent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many derivations as the limit run side by side; one more is told so, and derives nothing."""
    watched = Watched(monkeypatch)
    limit = KdfLimit(concurrent, wait=0.01)
    with ThreadPoolExecutor(concurrent) as pool:
        running = [pool.submit(limit.derive, b"secret", SALT) for _ in range(concurrent)]
        watched.wait_for(concurrent)
        with pytest.raises(UnlockBusyError, match=re.escape("0.01 s")):
            limit.derive(b"secret", SALT)
        assert (concurrent, concurrent) == (watched.calls, watched.inside)
        watched.gate.set()
        expected = derive_kek(b"secret", SALT)

        assert all(expected == one.result(PATIENCE) for one in running)
    assert expected == limit.derive(b"secret", SALT)


def test_further_derivations_wait_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes while all are taken waits and then derives: twelve callers, never more than two inside."""
    watched = Watched(monkeypatch)
    limit = KdfLimit(2, wait=PATIENCE)
    asked, acquire = threading.Semaphore(0), limit._slots.acquire

    def asking(*args: Any, **kwargs: Any) -> bool:
        asked.release()
        return acquire(*args, **kwargs)

    monkeypatch.setattr(limit._slots, "acquire", asking)

    def derive(number: int) -> bytes:
        return bytes(limit.derive(b"secret %d" % number, SALT).buffer)

    with ThreadPoolExecutor(12) as pool:
        running = [pool.submit(derive, number) for number in range(12)]
        watched.wait_for(2)  # two are in, and stay until the gate opens
        for _ in range(12):
            assert asked.acquire(timeout=PATIENCE)
        assert watched.calls == 2
        watched.gate.set()
        made = [one.result(PATIENCE) for one in running]

    assert (watched.calls, watched.most) == (12, 2)
    assert made == [bytes(derive_kek(b"secret %d" % number, SALT).buffer) for number in range(12)]


@pytest.mark.parametrize("failure", [MemoryError, KeyboardInterrupt, ValueError])
def test_a_failed_derivation_gives_its_place_back(
    failure: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After any number of failures inside the engine there are as many places as before, and not one more."""
    limit = KdfLimit(2, wait=0.01)
    with monkeypatch.context() as patched:

        def fail(*_: object, **__: object) -> None:
            raise failure

        patched.setattr(argon2id, "hash_secret_raw", fail)
        for _ in range(5):
            with pytest.raises(failure):
                limit.derive(b"secret", SALT)
    watched = Watched(monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(limit.derive, b"secret", SALT) for _ in range(2)]
        watched.wait_for(2)
        with pytest.raises(UnlockBusyError):
            limit.derive(b"secret", SALT)
        watched.gate.set()
        for one in running:
            one.result(PATIENCE)


def test_being_refused_gives_no_place_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was told that it is busy took no place and gives none back, however often it tries."""
    watched = Watched(monkeypatch)
    limit = KdfLimit(1, wait=0.001)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(limit.derive, b"secret", SALT)
        watched.wait_for(1)
        for _ in range(5):
            with pytest.raises(UnlockBusyError):
                limit.derive(b"secret", SALT)
        watched.gate.set()
        running.result(PATIENCE)

    assert (watched.calls, watched.most) == (1, 1)


def test_each_envelope_has_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """`concurrent_derivations` is the limit, and one for each core where nothing is said."""
    made = []
    monkeypatch.setattr(
        "sqlalchemy_envelope.orm.verbs.envelope.envelope.KdfLimit", lambda *args: made.append(args)
    )
    Envelope()
    Envelope(concurrent_derivations=7, derivation_wait=0.5)

    assert [(os.cpu_count(), 5.0), (7, 0.5)] == made


FORKED = """
import os, threading
from sqlalchemy_envelope.crypto import argon2id
from sqlalchemy_envelope.crypto.argon2id import KdfLimit, KdfProfile, KdfSalt

salt = KdfSalt(KdfProfile.unsafe_for_tests(), bytes(16))
limit = KdfLimit(1, wait=5)
entered, gate, engine = threading.Event(), threading.Event(), argon2id.hash_secret_raw

def held(*args, **kwargs):
    entered.set()
    gate.wait(60)
    return engine(*args, **kwargs)

argon2id.hash_secret_raw = held
thread = threading.Thread(target=limit.derive, args=(b"secret", salt))
thread.start()
entered.wait(60)
child = os.fork()
if child == 0:
    argon2id.hash_secret_raw = engine
    try:
        limit.derive(b"secret", salt)
    except BaseException:
        os._exit(1)
    os._exit(0)
gate.set()
thread.join(60)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_takes_no_place_with_it() -> None:
    """A child forked while its parent derives can derive: the thread in that place is not in the child."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED], capture_output=True, text=True, timeout=PATIENCE
    )

    assert run.stdout.strip() == "0", run.stderr


def test_in_a_forked_child_every_place_is_free() -> None:
    """What runs in a child gives each limit there is all its places back, and no more than those."""
    limit = KdfLimit(1, wait=0.01)
    limit._slots.acquire()  # as a thread that is not in the child did
    with pytest.raises(UnlockBusyError):
        limit.derive(b"secret", SALT)
    argon2id._reset_in_child()

    assert limit.derive(b"secret", SALT) == derive_kek(b"secret", SALT)
    assert limit._slots.acquire(blocking=False)
    assert not limit._slots.acquire(blocking=False)


def test_a_system_without_fork_has_nothing_to_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no fork the module is imported all the same."""
    monkeypatch.delattr(os, "register_at_fork", raising=False)
    spec = importlib.util.spec_from_file_location("argon2id_without_fork", argon2id.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look for their module
    spec.loader.exec_module(module)

    assert module.KdfLimit(1, 1.0).derive(b"secret", SALT) == derive_kek(b"secret", SALT)


# ---------------------------------------------------------------- the interpreter


async def test_derivations_release_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event loop goes on beating while two real derivations are inside the engine at once."""
    engine = argon2id.hash_secret_raw
    inside = 0
    lock = threading.Lock()

    def watched(*args: Any, **kwargs: Any) -> bytes:
        nonlocal inside
        with lock:
            inside += 1
        try:
            return engine(*args, **kwargs)  # a lock held in here lets no one see `inside` at two
        finally:
            with lock:
                inside -= 1

    monkeypatch.setattr(argon2id, "hash_secret_raw", watched)
    limit = KdfLimit(2, wait=PATIENCE)
    salt = KdfSalt(KdfProfile(65_536, 3, 1), bytes(16))
    both = asyncio.gather(*(asyncio.to_thread(limit.derive, b"secret", salt) for _ in range(2)))
    beats = 0
    while not both.done():
        await asyncio.sleep(0)
        beats += inside == 2
    first, second = await both
    print(f"{beats} beats of the event loop while two derivations ran")

    assert first == second
    assert beats >= 20
