"""`Pkcs11` with python-pkcs11 against a token of SoftHSM2, made for these tests."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha512
from pathlib import Path
from typing import Any

import pytest

from sqlalchemy_envelope import (
    ConfigurationError,
    EnvelopeError,
    FormatError,
    ProviderError,
    TruncatedError,
)
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.keys.providers import KeyProvider, Pkcs11, ProviderCalls

pkcs11 = pytest.importorskip("pkcs11", reason="python-pkcs11 is not installed")

RAW = sha512(b"kek").digest()[:32]
CONTEXT = {"library": "sqlalchemy-envelope/v1", "kek": "6b" * 32}
OTHER = CONTEXT | {"kek": "6c" * 32}
PLACES = ["/usr/lib/softhsm/libsofthsm2.so", *map(str, Path("/usr/lib").glob("*/softhsm/libsofthsm2.so"))]
LIBRARY = next((path for path in PLACES if Path(path).exists()), None)
MISSING = LIBRARY is None or shutil.which("softhsm2-util") is None

# python-pkcs11 tidies up a search also where the session has gone, and may say that it could not.
untidy = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. 'pkcs11:pytest.PytestUnraisableExceptionWarning"
)

pytestmark = pytest.mark.skipif(MISSING, reason="SoftHSM2 is not installed; on Debian: apt install softhsm2")


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A token with two AES keys of 256 bits, `app` and `old`."""
    folder = tmp_path_factory.mktemp("softhsm")
    (folder / "tokens").mkdir()
    settings = folder / "softhsm2.conf"
    settings.write_text(f"directories.tokendir = {folder / 'tokens'}\nlog.level = ERROR\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(settings))
        made = ["--init-token", "--free", "--label", "test", "--pin", "1234", "--so-pin", "5678"]
        subprocess.run(["softhsm2-util", *made], check=True, capture_output=True)
        token = pkcs11.lib(LIBRARY).get_token(token_label="test")
        with token.open(user_pin="1234", rw=True) as session:
            for label in ("app", "old"):
                session.generate_key(pkcs11.KeyType.AES, 256, label=label, store=True)
        yield token


@pytest.fixture
def session(token: Any) -> Iterator[Any]:
    """A session of that token, logged in."""
    with token.open(user_pin="1234") as session:
        yield session


def calls_of(provider: KeyProvider) -> ProviderCalls:
    """Calls to a provider, with next to no pauses."""
    return ProviderCalls(provider, "hsm", timeout=10, backoff=0.001)


def test_a_key_goes_to_the_token_and_back(session: Any) -> None:
    """A key comes back under its context alone; what is stored names the token's key by its label."""
    provider: KeyProvider = Pkcs11(session, "app")
    calls = calls_of(provider)
    blob = calls.wrap(KeyBytes(RAW), CONTEXT)

    assert (provider.reference, provider.local, repr(provider)) == ("app", False, "<Pkcs11 'app'>")
    assert (blob[:6], len(blob)) == (b"\x14\x01\x03app", 6 + 12 + 32 + 16)
    assert RAW not in blob
    assert KeyBytes(RAW) == calls.unwrap(blob, dict(reversed(CONTEXT.items())))
    with pytest.raises(ProviderError):
        calls.unwrap(blob, OTHER)


def test_two_wraps_of_one_key_differ(session: Any) -> None:
    """The nonce is made anew for each."""
    provider = Pkcs11(session, "app")

    assert len({provider.wrap(RAW, CONTEXT) for _ in range(20)}) == 20


def test_every_flipped_byte_is_refused(session: Any) -> None:
    """Format, label, nonce, ciphertext and tag all count."""
    provider = Pkcs11(session, "app", retired=["old"])
    wrapped = provider.wrap(RAW, CONTEXT)
    calls = calls_of(provider)
    for place in range(len(wrapped)):
        flipped = bytearray(wrapped)
        flipped[place] ^= 1
        with pytest.raises(EnvelopeError):
            calls.unwrap(b"\x14" + flipped, CONTEXT)


@pytest.mark.parametrize("unbound", [False, True])
def test_another_length_is_refused(session: Any, unbound: bool) -> None:
    """Cut short it is truncated, longer it is of no format; the token is not asked."""
    provider = Pkcs11(session, "app", unsafe_unbound=unbound)
    wrapped = provider.wrap(RAW, CONTEXT)
    for size in range(1, len(wrapped)):
        with pytest.raises(TruncatedError):
            provider.unwrap(wrapped[:size], CONTEXT)
    for other in (wrapped + b"\0", b"", b"\x03" + wrapped[1:]):
        with pytest.raises(FormatError) as caught:
            provider.unwrap(other, CONTEXT)
        assert caught.type is FormatError


def test_a_retired_key_still_unwraps(session: Any) -> None:
    """After a change of label, what the old key wrapped opens if that label is given as retired, else not."""
    old = calls_of(Pkcs11(session, "old")).wrap(KeyBytes(RAW), CONTEXT)

    assert KeyBytes(RAW) == calls_of(Pkcs11(session, "app", retired=["old"])).unwrap(old, CONTEXT)
    with pytest.raises(ProviderError, match="neither the label nor a retired one"):
        calls_of(Pkcs11(session, "app")).unwrap(old, CONTEXT)


def test_another_key_opens_nothing(session: Any) -> None:
    """A wrap that is made to name another key of the token does not open under it."""
    wrapped = Pkcs11(session, "old").wrap(RAW, CONTEXT)
    with pytest.raises(ProviderError):
        calls_of(Pkcs11(session, "app")).unwrap(b"\x14" + wrapped.replace(b"old", b"app", 1), CONTEXT)


def test_a_token_without_associated_data_wraps_unbound(session: Any) -> None:
    """Key wrap with padding is bound to no context, and unwraps whichever way new keys are wrapped."""
    unbound = calls_of(Pkcs11(session, "app", unsafe_unbound=True))
    blob = unbound.wrap(KeyBytes(RAW), CONTEXT)

    assert (blob[:6], len(blob)) == (b"\x14\x02\x03app", 6 + 40)
    assert KeyBytes(RAW) == unbound.unwrap(blob, OTHER)
    assert KeyBytes(RAW) == calls_of(Pkcs11(session, "app")).unwrap(blob, CONTEXT)
    with pytest.raises(ProviderError):
        unbound.unwrap(blob[:-1] + bytes([blob[-1] ^ 1]), CONTEXT)


def test_no_object_stays_in_the_token(session: Any) -> None:
    """What key wrap needs for a moment is destroyed again."""

    def objects() -> int:
        return sum(1 for _ in session.get_objects())

    provider = Pkcs11(session, "app", unsafe_unbound=True)
    before = objects()
    provider.unwrap(provider.wrap(RAW, CONTEXT), CONTEXT)

    assert objects() == before == 2


def test_a_key_that_is_not_there_is_a_refusal(session: Any) -> None:
    """A label that the token does not have is told at the first use."""
    with pytest.raises(ProviderError, match="did not wrap a key: NoSuchKey"):
        calls_of(Pkcs11(session, "none")).wrap(KeyBytes(RAW), CONTEXT)


@pytest.mark.parametrize("label", ["", "x" * 256, "é" * 128])
def test_a_label_has_its_size(label: str) -> None:
    """A label is 1 to 255 bytes."""
    with pytest.raises(ConfigurationError):
        Pkcs11(None, label)


def test_threads_take_turns(session: Any) -> None:
    """Eight threads wrap and unwrap over one session at once, and each gets its own key back."""
    calls = calls_of(Pkcs11(session, "app"))

    def work(number: int) -> bool:
        key = KeyBytes(sha512(b"%d" % number).digest()[:32])
        return all(calls.unwrap(calls.wrap(key, CONTEXT), CONTEXT) == key for _ in range(25))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [True] * 8


def opener(token: Any) -> tuple[Callable[[], Any], list[Any]]:
    """A function that opens a session, and the list of those it opened."""
    opened: list[Any] = []

    def open_session() -> Any:
        opened.append(token.open(user_pin="1234"))
        return opened[-1]

    return open_session, opened


@untidy
def test_a_lost_session_is_opened_anew(token: Any) -> None:
    """With a function that opens sessions the first is opened when it is needed, and a lost one replaced."""
    open_session, opened = opener(token)
    calls = calls_of(Pkcs11(open_session, "app"))
    assert opened == []
    blob = calls.wrap(KeyBytes(RAW), CONTEXT)
    opened[0].close()

    assert KeyBytes(RAW) == calls.unwrap(blob, CONTEXT)
    assert KeyBytes(RAW) == calls.unwrap(blob, CONTEXT)
    assert len(opened) == 2
    opened[1].close()


def test_a_refusal_does_not_cost_the_session(token: Any) -> None:
    """What is no loss of the session leaves it in use, and is not tried again."""
    open_session, opened = opener(token)
    calls = calls_of(Pkcs11(open_session, "none"))
    for _ in range(2):
        with pytest.raises(ProviderError):
            calls.wrap(KeyBytes(RAW), CONTEXT)

    assert len(opened) == 1
    opened[0].close()


@untidy
def test_a_given_session_that_is_closed_is_an_error(token: Any) -> None:
    """Without a function to open another there is nothing to try again."""
    session = token.open(user_pin="1234")
    calls = calls_of(Pkcs11(session, "app"))
    session.close()
    with pytest.raises(ProviderError):
        calls.wrap(KeyBytes(RAW), CONTEXT)


def test_a_session_does_not_cross_a_fork(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a child, where the token's library was never initialised, it is refused before it is touched."""
    provider = Pkcs11(session, "app")
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(ProviderError, match="does not cross a fork"):
        provider.wrap(RAW, CONTEXT)
