"""Calls to a provider: the stored format 0x14 (section 8), time-outs, retries, and errors that show no key.

    0      1
    | 0x14 | the provider's bytes |

A call over a network runs on a thread of its own, and nobody waits for it longer than the time-out. The
threads are daemons. The interpreter joins the threads of a `ThreadPoolExecutor` when it exits: one call that
hangs would hold up the exit for ever. A thread costs less than a tenth of a millisecond, and a call to a key
service several milliseconds.
"""

import base64
import os
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from hmac import compare_digest
from threading import BoundedSemaphore, Thread

from sqlalchemy_envelope.crypto.frames import chained
from sqlalchemy_envelope.crypto.secret import KEY_SIZE, KeyBytes
from sqlalchemy_envelope.exceptions import (
    ConfigurationError,
    EnvelopeError,
    FormatError,
    ProviderError,
    ProviderTimeoutError,
    TruncatedError,
)
from sqlalchemy_envelope.keys.providers.base import KeyProvider
from sqlalchemy_envelope.words import counted

FORMAT_PROVIDER = 0x14
MAX_REFERENCE = 255
"""The most characters of a provider's reference, as wide as its column."""
_FINAL = (PermissionError, FileNotFoundError)
"""The kinds of `OSError` that are refusals: another try changes nothing."""


class ProviderCalls:
    """One provider, under the name that the application gave it, called with time-outs and retries.

    Args:
        provider: the provider to call.
        name: its name in messages and audit events.
        timeout: the seconds that one call may take. A local provider has no time-outs and no retries.
        retries: how often a call is made again after a failure that may pass.
        backoff: the longest pause before the first retry, in seconds; it doubles with each retry. The length
            of each pause is random, so that many processes do not come back at the same moment.
        max_in_flight: the calls that may run at one time. A call that was given up counts until it returns.

    Raises:
        ConfigurationError: this is not a provider, or a number is out of range.
    """

    def __init__(
        self,
        provider: KeyProvider,
        name: str,
        *,
        timeout: float = 5.0,
        retries: int = 2,
        backoff: float = 0.1,
        max_in_flight: int = 8,
    ) -> None:
        missing = [part for part in ("reference", "local", "wrap", "unwrap") if not hasattr(provider, part)]
        if missing:
            raise ConfigurationError(
                f"Provider {name!r} is a {type(provider).__name__}, which has no {' and no '.join(missing)}."
            )
        if not (timeout > 0 and retries >= 0 and backoff >= 0 and max_in_flight >= 1):
            raise ConfigurationError(
                f"Provider {name!r}: timeout is more than 0, retries and backoff at least 0, "
                "max_in_flight at least 1."
            )
        self.provider = provider
        self.name = name
        self._timeout, self._retries, self._backoff = timeout, retries, backoff
        self._max_in_flight = max_in_flight
        self._places, self._pid = BoundedSemaphore(max_in_flight), os.getpid()

    @property
    def local(self) -> bool:
        """Whether the provider may be called in the midst of a flush."""
        return self.provider.local

    @property
    def reference(self) -> str:
        """The outside key that wraps now.

        Raises:
            ConfigurationError: the provider's reference does not fit its column.
        """
        reference = self.provider.reference
        if not isinstance(reference, str) or not 0 < len(reference) <= MAX_REFERENCE:
            raise ConfigurationError(
                f"The reference of provider {self.name!r} is not text of 1 to {MAX_REFERENCE} characters."
            )
        return reference

    @property
    def is_campaign(self) -> bool:
        """Whether the keys in its slots wait for their owners to claim them."""
        return bool(getattr(self.provider, "campaign", False))

    @property
    def can_open(self) -> bool:
        """Whether the provider unwraps: the public half of an offline key does not."""
        return bool(getattr(self.provider, "can_open", True))

    @property
    def public_key(self) -> bytes | None:
        """The public half of an offline key, to which root keys are sealed; None for all other providers."""
        return getattr(self.provider, "kek_public_key", None)

    def wrap(self, key: KeyBytes, context: Mapping[str, str]) -> bytes:
        """Wrap a key, as it is stored: the format byte, and the bytes that the provider makes.

        Raises:
            ProviderError: the provider refused, failed, or answered with no bytes.
            ProviderTimeoutError: it did not answer in time.
        """
        # The key leaves its buffer inside the call, so that no frame of ours has it among its variables.
        answer = self._call("wrap", lambda: self.provider.wrap(bytes(key.buffer), dict(context)), key)
        if not isinstance(answer, (bytes, bytearray)) or not answer:
            kind = _kind(answer)
            del answer  # no traceback of ours shows its content
            raise ProviderError(f"Provider {self.name!r} answered {kind}, which is no wrapped key.")
        return bytes([FORMAT_PROVIDER]) + answer

    def unwrap(self, blob: bytes, context: Mapping[str, str]) -> KeyBytes:
        """Unwrap what `wrap` made. The caller must compare the key with what is stored about it.

        Raises:
            FormatError, TruncatedError: a provider did not wrap this key; none was called.
            ProviderError: the provider refused, failed, or answered with no key of 32 bytes.
            ProviderTimeoutError: it did not answer in time.
        """
        if not blob or blob[0] != FORMAT_PROVIDER:
            raise FormatError(f"The stored key is not in format 0x{FORMAT_PROVIDER:02x}.")
        if len(blob) == 1:
            raise TruncatedError("The stored key ends where the provider's bytes should begin.")
        answer = self._call("unwrap", lambda: self.provider.unwrap(bytes(blob[1:]), dict(context)))
        if not isinstance(answer, (bytes, bytearray)) or len(answer) != KEY_SIZE:
            kind = _kind(answer)
            del answer  # it may be a key and a line end
            raise ProviderError(
                f"Provider {self.name!r} answered {kind}, which is no key of {KEY_SIZE} bytes."
            )
        return KeyBytes(answer)

    def rewrap(self, blob: bytes, context: Mapping[str, str]) -> bytes:
        """Wrap a key anew, under the outside key that wraps now. What the provider wrapped is unwrapped again
        and compared, so that the old wrap may be given up.

        Raises: as `unwrap` and `wrap`, and
            ProviderError: the provider does not open what it wrapped.
        """
        key = self.unwrap(blob, context)
        again: KeyBytes | None = None
        try:
            made = self.wrap(key, context)
            again = self.unwrap(made, context)
            if not compare_digest(again.buffer, key.buffer):
                raise ProviderError(
                    f"Provider {self.name!r} does not open what it has just wrapped: the old wrap was kept."
                )
            return made
        finally:
            for one in (key, again):
                if one is not None:
                    one.wipe()

    def _call(self, verb: str, operation: Callable[[], object], key: KeyBytes | None = None) -> object:
        retries, tries = 0 if self.provider.local else self._retries, 0
        while True:
            tries += 1
            try:
                return operation() if self.provider.local else self._in_time(operation)
            except EnvelopeError:
                raise
            except Exception as error:  # noqa: BLE001 - every error of a provider becomes ours
                again = tries <= retries and self._may_pass(error)
                refusal = None if again else self._refusal(verb, tries, error, key)
            # Raised outside of the handler: inside, the provider's error would be its context in any case.
            if refusal is not None:
                raise refusal
            time.sleep(random.uniform(0, self._backoff * 2 ** (tries - 1)))  # noqa: S311 - no secret

    def _refusal(self, verb: str, tries: int, error: Exception, key: KeyBytes | None) -> ProviderError:
        """Our error for the provider's, made here: no frame that our error passes holds the provider's."""
        refusal = ProviderError(f"Provider {self.name!r} did not {verb} a key: {type(error).__name__}.")
        if isinstance(error, TimeoutError):
            refusal = ProviderTimeoutError(
                f"Provider {self.name!r} did not {verb} a key in {self._timeout:g} seconds; "
                f"it was asked {tries} times."
            )
        refusal.__cause__ = _presentable(error, key)
        return refusal

    def _in_time(self, operation: Callable[[], object]) -> object:
        """Run the operation on a thread; give it up after the time-out.

        The thread starts with an empty context: a call that hangs must not keep an unlocked session alive.
        """
        if self._pid != os.getpid():  # a forked child: the threads that held places do not exist here
            self._places, self._pid = BoundedSemaphore(self._max_in_flight), os.getpid()
        places, began = self._places, time.monotonic()
        if not places.acquire(timeout=self._timeout):
            raise ProviderTimeoutError(
                f"Provider {self.name!r} has {self._max_in_flight} calls that did not come back; "
                "no further call was made."
            )
        future: Future[object] = Future()

        def work() -> None:
            try:
                future.set_result(operation())
            except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
                future.set_exception(error)
            finally:
                places.release()

        try:
            Thread(target=work, name=f"provider {self.name}", daemon=True).start()
        except RuntimeError:  # no thread can be started any more
            places.release()
            raise
        return future.result(max(0.0, began + self._timeout - time.monotonic()))

    def _may_pass(self, error: Exception) -> bool:
        # Time-outs and lost connections are kinds of `OSError`.
        if isinstance(error, OSError) and not isinstance(error, _FINAL):
            return True
        is_transient: Callable[[Exception], bool] | None = getattr(self.provider, "is_transient", None)
        return is_transient is not None and is_transient(error)

    def __repr__(self) -> str:
        return f"<ProviderCalls {self.name!r}: {type(self.provider).__name__}>"


def _kind(answer: object) -> str:
    """The type and the size of an answer, and nothing of its content."""
    size = f" of {counted(len(answer), 'byte')}" if isinstance(answer, (bytes, bytearray)) else ""
    return type(answer).__name__ + size


def _presentable(error: Exception, key: KeyBytes | None) -> Exception | None:
    """The provider's error as the cause of ours, or None if its text shows the key.

    SDKs print the arguments that they refuse. The tracebacks go too: their frames hold the key, and error
    trackers print the variables of frames.
    """
    chain = chained(error)
    for link in chain:
        link.__traceback__ = None
    return None if key is not None and any(_shows(link, key) for link in chain) else error


def _shows(error: BaseException, key: KeyBytes) -> bool:
    try:
        text = f"{error} {error!r} {vars(error)!r}"
    except Exception:  # noqa: BLE001 - an error that cannot be printed here may show the key elsewhere
        return True
    raw = bytes(key.buffer)
    spellings = (
        repr(raw)[2:-1],
        repr(raw.decode("latin-1"))[1:-1],
        raw.hex(),
        base64.b64encode(raw).decode().rstrip("="),
        base64.urlsafe_b64encode(raw).decode().rstrip("="),
    )
    return any(spelling in text or spelling.upper() in text for spelling in spellings)
