"""A provider may be down, slow, hung, refusing or wrong: each is an error of ours that shows no key."""

import base64
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from hashlib import sha512

import pytest

from sqlalchemy_envelope import (
    ConfigurationError,
    EnvelopeError,
    FormatError,
    ProviderError,
    ProviderTimeoutError,
    TamperedKeyError,
    TruncatedError,
)
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.keys.providers import ProviderCalls

RAW = sha512(b"kek").digest()[:32]
KEY = KeyBytes(RAW)
CONTEXT = {"library": "sqlalchemy-envelope/v1", "kek": "6b" * 32}
Answer = Callable[[bytes, Mapping[str, str]], object]


class Holder:
    """A provider that answers as its test says, call by call, and the last way ever after."""

    def __init__(self, *answers: object, local: bool = False) -> None:
        self.answers, self.local, self.reference = answers, local, "holder/1"
        self.calls = 0

    def wrap(self, key: bytes, context: Mapping[str, str]) -> bytes:
        answer = self.answers[min(self.calls, len(self.answers) - 1)]
        self.calls += 1
        if isinstance(answer, BaseException):
            raise answer
        return answer(key, context) if callable(answer) else answer  # type: ignore[return-value]

    unwrap = wrap


def hasty(provider: Holder, **options: float) -> ProviderCalls:
    """Calls that come back within milliseconds; how long they wait for an answer, a test of that says."""
    return ProviderCalls(provider, "holder", **{"timeout": 30.0, "backoff": 0.001, **options})  # type: ignore[arg-type]


def both(calls: ProviderCalls) -> list[Callable[[], object]]:
    """The two things that a provider is asked for."""
    return [lambda: calls.wrap(KEY, CONTEXT), lambda: calls.unwrap(b"\x14wrapped", CONTEXT)]


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What hung calls wait for; it opens when the test is over."""
    event = threading.Event()
    yield event
    event.set()


def hang(gate: threading.Event) -> Answer:
    """An answer that does not come while the test lasts."""
    return lambda key, context: gate.wait(60) and b""


# ---------------------------------------------------------------- the format


@pytest.mark.parametrize("local", [True, False])
def test_a_key_is_stored_behind_its_format_byte(local: bool) -> None:
    """What is stored is 0x14 and what the provider made, and the provider gets that back without the byte."""
    holder = Holder(lambda key, context: key[::-1], local=local)
    calls = ProviderCalls(holder, "holder")
    blob = calls.wrap(KEY, CONTEXT)

    assert b"\x14" + RAW[::-1] == blob
    assert calls.unwrap(blob, CONTEXT) == KEY
    assert ("holder/1", local) == (calls.reference, calls.local)
    assert repr(calls) == "<ProviderCalls 'holder': Holder>"


@pytest.mark.parametrize(
    ("blob", "error"),
    [
        (b"", FormatError),
        (b"\x11" + bytes(104), FormatError),
        (b"\x15", FormatError),
        (b"\x14", TruncatedError),
    ],
)
def test_another_format_is_refused_without_a_call(blob: bytes, error: type[EnvelopeError]) -> None:
    """The provider does not see what is not of format 0x14."""
    holder = Holder(RAW)
    with pytest.raises(error) as caught:
        hasty(holder).unwrap(blob, CONTEXT)

    assert (error, 0) == (caught.type, holder.calls)


def test_a_provider_cannot_change_the_context() -> None:
    """It is handed a copy: what it does to that is not seen by the next call."""
    given = dict(CONTEXT)
    holder = Holder(lambda key, context: context.clear() or RAW, local=True)  # type: ignore[attr-defined]
    for call in both(ProviderCalls(holder, "holder")):
        call()
    ProviderCalls(holder, "holder").wrap(KEY, given)

    assert given == CONTEXT


@pytest.mark.parametrize("answer", [None, "text", 0, bytes(31), bytes(33), b"", [0] * 32, memoryview(RAW)])
@pytest.mark.parametrize("local", [True, False])
def test_an_answer_that_is_no_key_is_refused(answer: object, local: bool) -> None:
    """What is not 32 bytes is a `ProviderError`, and is not asked for again."""
    holder = Holder(answer, local=local)
    with pytest.raises(ProviderError, match="which is no key of 32 bytes"):
        ProviderCalls(holder, "holder").unwrap(b"\x14wrapped", CONTEXT)

    assert holder.calls == 1


@pytest.mark.parametrize("answer", [None, "text", 0, b"", [0] * 32])
def test_an_answer_that_is_no_wrapped_key_is_refused(answer: object) -> None:
    """What is not bytes, or empty, is not stored."""
    with pytest.raises(ProviderError, match="which is no wrapped key"):
        ProviderCalls(Holder(answer), "holder").wrap(KEY, CONTEXT)


def test_a_wrong_answer_is_not_shown() -> None:
    """The message has the type and the size of a wrong answer, and nothing of what is in it."""
    with pytest.raises(ProviderError) as caught:
        ProviderCalls(Holder(RAW + b"!"), "holder").unwrap(b"\x14wrapped", CONTEXT)

    assert "answered bytes of 33 bytes" in str(caught.value)
    assert not shows_key(caught.value)


# ---------------------------------------------------------------- down, refusing, flaky


@pytest.mark.parametrize("error", [ConnectionRefusedError("down"), OSError("no route"), TimeoutError("late")])
def test_a_provider_that_is_down_is_asked_thrice(error: OSError) -> None:
    """Two retries, then a `ProviderError` whose cause is what the provider raised."""
    for number in range(2):
        holder = Holder(error)
        with pytest.raises(ProviderError) as caught:
            both(hasty(holder))[number]()
        assert holder.calls == 3
        assert caught.value.__cause__ is error
        assert (ProviderTimeoutError if isinstance(error, TimeoutError) else ProviderError) is caught.type


@pytest.mark.parametrize("error", [RuntimeError("denied"), PermissionError("denied"), KeyError("Plaintext")])
def test_a_refusal_is_final(error: Exception) -> None:
    """A provider that says no is not asked again."""
    holder = Holder(error)
    with pytest.raises(ProviderError, match=f"did not wrap a key: {type(error).__name__}") as caught:
        hasty(holder).wrap(KEY, CONTEXT)

    assert holder.calls == 1
    assert caught.value.__cause__ is error


def test_what_passes_leaves_no_trace() -> None:
    """A provider that fails twice and then answers has answered."""
    for number in range(2):
        holder = Holder(ConnectionResetError(), TimeoutError(), RAW)
        both(hasty(holder))[number]()
        assert holder.calls == 3


def test_a_provider_knows_what_may_pass() -> None:
    """Errors that the provider itself marks are tried again, and others are not."""
    holder = Holder(RuntimeError("throttled"), RuntimeError("denied"))
    holder.is_transient = lambda error: str(error) == "throttled"  # type: ignore[attr-defined]
    with pytest.raises(ProviderError) as caught:
        hasty(holder).wrap(KEY, CONTEXT)

    assert (str(caught.value.__cause__), holder.calls) == ("denied", 2)


def test_pauses_grow_and_vary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pause is of random length, up to a bound that doubles."""
    pauses: list[float] = []
    monkeypatch.setattr("sqlalchemy_envelope.keys.providers.calls.time.sleep", pauses.append)
    for _ in range(20):
        with pytest.raises(ProviderError):
            hasty(Holder(ConnectionError()), backoff=1.0, retries=3).wrap(KEY, CONTEXT)

    assert 60 == len(pauses) == len(set(pauses))
    assert [2**n / 2 < max(pauses[n::3]) <= 2**n for n in range(3)] == [True] * 3


def test_a_local_provider_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be called inside a flush, where nobody wants to pause."""
    monkeypatch.setattr("sqlalchemy_envelope.keys.providers.calls.time.sleep", pytest.fail)
    holder = Holder(ConnectionError(), local=True)
    with pytest.raises(ProviderError):
        ProviderCalls(holder, "holder").wrap(KEY, CONTEXT)

    assert holder.calls == 1


@pytest.mark.parametrize("local", [True, False])
def test_our_own_errors_pass_unchanged(local: bool) -> None:
    """A provider that can say more than "failed" says it in our words, once."""
    holder = Holder(TamperedKeyError("Moved here."), local=local)
    with pytest.raises(TamperedKeyError, match="Moved here"):
        hasty(holder).unwrap(b"\x14wrapped", CONTEXT)

    assert holder.calls == 1


def test_an_interruption_is_no_failure_of_the_provider() -> None:
    """What is no `Exception` reaches the caller as it is."""
    with pytest.raises(KeyboardInterrupt):
        hasty(Holder(KeyboardInterrupt())).wrap(KEY, CONTEXT)


# ---------------------------------------------------------------- slow and hung


def test_a_slow_provider_is_given_up(gate: threading.Event) -> None:
    """A call that does not come back is a `ProviderTimeoutError` after as many tries as were allowed."""
    for number in range(2):
        calls = hasty(Holder(hang(gate)), timeout=0.02)
        with pytest.raises(ProviderTimeoutError, match=r"in 0\.02 seconds; it was asked 3 times"):
            both(calls)[number]()


def test_a_slow_answer_then_a_quick_one(gate: threading.Event) -> None:
    """After a call that hung, the next try may well answer."""
    assert hasty(Holder(hang(gate), RAW), timeout=0.2).unwrap(b"\x14wrapped", CONTEXT) == KEY


def test_hung_calls_do_not_pile_up(gate: threading.Event) -> None:
    """With every place taken by a call that hangs, another is refused unasked; places come back."""
    entered = threading.Barrier(3)
    holder = Holder(lambda key, context: entered.wait(10) >= 0 and gate.wait(60) and RAW)
    calls = hasty(holder, timeout=0.02, retries=0, max_in_flight=2)

    def wait() -> None:
        with pytest.raises(ProviderTimeoutError):
            calls.unwrap(b"\x14wrapped", CONTEXT)

    waiting = [threading.Thread(target=wait) for _ in range(2)]
    for thread in waiting:
        thread.start()
    entered.wait(10)
    for thread in waiting:
        thread.join(10)
    with pytest.raises(ProviderTimeoutError, match="has 2 calls that did not come back"):
        calls.unwrap(b"\x14wrapped", CONTEXT)
    assert holder.calls == 2

    holder.answers = (RAW,)
    gate.set()
    for _ in range(200):  # tries of 20 ms, until the hung threads have left
        try:
            assert calls.unwrap(b"\x14wrapped", CONTEXT) == KEY
            return
        except ProviderTimeoutError:
            continue
    pytest.fail("no place came back")


def test_a_failed_start_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started the call fails, and takes no place for ever."""
    calls = hasty(Holder(RAW), max_in_flight=1)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(ProviderError, match="RuntimeError"):
                calls.wrap(KEY, CONTEXT)

    assert calls.unwrap(b"\x14wrapped", CONTEXT) == KEY


def test_a_remote_call_has_a_thread_and_an_empty_context() -> None:
    """A local provider is called where the caller is; another one elsewhere, out of sight of its context."""
    variable: ContextVar[str] = ContextVar("variable", default="nothing")
    variable.set("an unlocked session")
    seen: list[tuple[bool, str]] = []

    def look(key: bytes, context: Mapping[str, str]) -> bytes:
        seen.append((threading.current_thread() is threading.main_thread(), variable.get()))
        return RAW

    ProviderCalls(Holder(look, local=True), "holder").wrap(KEY, CONTEXT)
    ProviderCalls(Holder(look), "holder").wrap(KEY, CONTEXT)

    assert seen == [(True, "an unlocked session"), (False, "nothing")]


PROGRAM = """
import os, threading, warnings
from sqlalchemy_envelope import ProviderTimeoutError
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.keys.providers import ProviderCalls
class Holder:
    reference, local, hung = "holder/1", False, True
    def wrap(self, key, context):
        return threading.Event().wait() if self.hung else key
    unwrap = wrap
holder = Holder()
calls = ProviderCalls(holder, "holder", timeout=0.02, retries=0, max_in_flight=1)
try:
    calls.wrap(KeyBytes(bytes(32)), {})
except ProviderTimeoutError:
    print("given up", flush=True)
"""
IN_A_CHILD = """
warnings.simplefilter("ignore")
holder.hung = False
calls._timeout = 30
if (child := os.fork()) == 0:
    print(len(calls.wrap(KeyBytes(bytes(32)), {})), flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


def program(source: str) -> list[str]:
    """What a program prints that must end by itself."""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split("\n")[:-1]


def test_a_hung_call_does_not_hold_up_the_exit() -> None:
    """The interpreter ends although a call to a provider has not come back."""
    assert program(PROGRAM) == ["given up"]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork on Windows")
def test_a_forked_child_starts_anew() -> None:
    """Calls that hang in the parent take no place in a child."""
    assert program(PROGRAM + IN_A_CHILD) == ["given up", "33"]


def test_places_are_those_of_one_process(gate: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under another process id all places are free, for the threads that held them are not there."""
    calls = hasty(Holder(hang(gate), RAW), timeout=0.2, retries=0, max_in_flight=1)
    for _ in range(2):
        with pytest.raises(ProviderTimeoutError):
            calls.unwrap(b"\x14wrapped", CONTEXT)
    monkeypatch.setattr("sqlalchemy_envelope.keys.providers.calls.os.getpid", lambda: -1)

    assert calls.unwrap(b"\x14wrapped", CONTEXT) == KEY


# ---------------------------------------------------------------- what shows


def shows_key(error: BaseException | None) -> bool:
    """Whether an error shows the key, printed with the variables of each frame, as error trackers do."""
    if error is None:
        return False
    told = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    told += f"{vars(error)} {error.args}"
    spellings = (repr(RAW)[2:-1], RAW.hex(), RAW.hex().upper(), base64.b64encode(RAW).decode().rstrip("="))
    return any(spelling in told for spelling in spellings) or shows_key(error.__cause__ or error.__context__)


class TellingError(Exception):
    """An SDK's error with what it was given in an attribute."""

    def __init__(self, plaintext: bytes) -> None:
        super().__init__("bad request")
        self.plaintext = plaintext


def with_cause(key: bytes) -> Exception:
    """A harmless error that comes of one that is not."""
    error = RuntimeError("harmless")
    error.__cause__ = ValueError(key)
    return error


@pytest.mark.parametrize(
    "error",
    [
        lambda key: ValueError(f"Invalid type for parameter Plaintext, value: {key!r}"),
        lambda key: ValueError(key),
        lambda key: ValueError(key.decode("latin-1")),
        lambda key: RuntimeError(f"400 Bad Request: {base64.b64encode(key).decode()}"),
        lambda key: RuntimeError(f"400 Bad Request: {base64.urlsafe_b64encode(key).decode()}"),
        lambda key: OSError(key.hex()),
        lambda key: ConnectionError(key.hex().upper()),
        TellingError,
        with_cause,
    ],
)
@pytest.mark.parametrize("local", [True, False])
def test_an_error_that_shows_the_key_is_left_out(error: Callable[[bytes], Exception], local: bool) -> None:
    """SDKs print what they refuse: such an error is not our cause, and nowhere beside it."""

    def refuse(key: bytes, context: Mapping[str, str]) -> bytes:
        raise error(key)

    with pytest.raises(ProviderError) as caught:
        hasty(Holder(refuse, local=local)).wrap(KEY, CONTEXT)

    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    assert not shows_key(caught.value)


@pytest.mark.parametrize("local", [True, False])
def test_no_frame_shows_the_key(local: bool) -> None:
    """The provider's frames, which have the key among their variables, are not kept with its error."""

    def refuse(key: bytes, context: Mapping[str, str]) -> bytes:
        plaintext = base64.b64encode(key)
        try:
            return {}[plaintext[:3]]  # type: ignore[no-any-return]
        except KeyError as error:
            raise RuntimeError("denied") from error

    with pytest.raises(ProviderError) as caught:
        hasty(Holder(refuse, local=local)).wrap(KEY, CONTEXT)

    assert str(caught.value.__cause__) == "denied"
    assert not shows_key(caught.value)


# ---------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    "options",
    [{"timeout": 0}, {"timeout": float("nan")}, {"retries": -1}, {"backoff": -1}, {"max_in_flight": 0}],
)
def test_numbers_that_cannot_be_are_refused(options: dict[str, float]) -> None:
    """A time-out of nothing, or a count below its least, is a `ConfigurationError`."""
    with pytest.raises(ConfigurationError):
        hasty(Holder(RAW), **options)


def test_what_is_no_provider_is_refused() -> None:
    """An SDK's client in the place of a provider is named, with what it lacks."""
    with pytest.raises(
        ConfigurationError, match="'aws' is a dict, which has no reference and no local and no wr"
    ):
        ProviderCalls({}, "aws")  # type: ignore[arg-type]


@pytest.mark.parametrize("reference", ["", "x" * 256, None, b"bytes"])
def test_a_reference_fits_its_column(reference: object) -> None:
    """A reference is text of 1 to 255 characters, and is looked at when it is asked for."""
    holder = Holder(RAW)
    calls = ProviderCalls(holder, "holder")
    holder.reference = reference  # type: ignore[assignment]
    with pytest.raises(ConfigurationError, match="not text of 1 to 255"):
        _ = calls.reference
    holder.reference = "x" * 255

    assert calls.reference == "x" * 255
