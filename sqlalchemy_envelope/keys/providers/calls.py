"""Calls to a provider: the stored format 0x14, time-outs, retries, and errors that show no key.

    0      1
    | 0x14 | what the provider made |

A call over a network runs on a thread of its own, which nobody waits for longer than the time-out. The
threads are daemons, unlike those of `ThreadPoolExecutor`, which the interpreter joins when it exits: one hung
call would hold up the exit for ever. A thread costs less than a tenth of a millisecond, a call to a key
service several milliseconds.
"""

import base64
import os
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from threading import BoundedSemaphore, Thread

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

FORMAT_PROVIDER = 0x14
MAX_REFERENCE = 255
_FINAL = (PermissionError, FileNotFoundError)
"""The kinds of `OSError` that are refusals: asking again changes nothing."""


class ProviderCalls:
    """One provider, under the name the application gave it, called with patience but not without end.

    Args:
        provider: whom to call.
        name: how messages and audit events speak of it.
        timeout: seconds that one call may take. Of no effect on a local provider, as is what follows.
        retries: how often a call is made again after a failure that may pass.
        backoff: the longest pause before the first retry, in seconds; it doubles with each. How long a pause
            really is, chance decides, so that many processes do not come back at the same moment.
        max_in_flight: calls at one time. One that hung and was given up counts until it comes back.

    Raises:
        ConfigurationError: not a provider, or numbers that cannot be.
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
        """Whether it may be called in the midst of a flush."""
        return self.provider.local

    @property
    def reference(self) -> str:
        """Which outside key wraps now.

        Raises:
            ConfigurationError: it does not fit its column.
        """
        reference = self.provider.reference
        if not isinstance(reference, str) or not 0 < len(reference) <= MAX_REFERENCE:
            raise ConfigurationError(
                f"The reference of provider {self.name!r} is not text of 1 to {MAX_REFERENCE} characters."
            )
        return reference

    @property
    def is_campaign(self) -> bool:
        """Whether its slots wait to be claimed."""
        return bool(getattr(self.provider, "campaign", False))

    @property
    def can_open(self) -> bool:
        """Whether it unwraps at all: the public half of an offline key does not."""
        return bool(getattr(self.provider, "can_open", True))

    @property
    def public_key(self) -> bytes | None:
        """Of an offline key, what root keys are sealed to: its private half is their KEK."""
        return getattr(self.provider, "kek_public_key", None)

    def wrap(self, key: KeyBytes, context: Mapping[str, str]) -> bytes:
        """What is stored: the format byte, and what the provider makes of the key.

        Raises:
            ProviderError, ProviderTimeoutError: it refused, failed, or did not answer in time.
        """
        # The key leaves its buffer inside the call: no frame of ours has it among its variables.
        answer = self._call("wrap", lambda: self.provider.wrap(bytes(key.buffer), dict(context)), key)
        if not isinstance(answer, (bytes, bytearray)) or not answer:
            kind = _kind(answer)
            del answer  # whatever is in it, no traceback of ours shows it
            raise ProviderError(f"Provider {self.name!r} answered {kind}, which is no wrapped key.")
        return bytes([FORMAT_PROVIDER]) + answer

    def unwrap(self, blob: bytes, context: Mapping[str, str]) -> KeyBytes:
        """Unwrap what `wrap` made. The caller goes on to compare the key with what is stored about it.

        Raises:
            FormatError, TruncatedError: not a key that a provider wrapped; it was not called.
            ProviderError, ProviderTimeoutError: it refused, failed, or did not answer in time.
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

    def _call(self, verb: str, operation: Callable[[], object], key: KeyBytes | None = None) -> object:
        retries, tries = 0 if self.provider.local else self._retries, 0
        while True:
            tries += 1
            try:
                return operation() if self.provider.local else self._in_time(operation)
            except EnvelopeError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, it becomes ours
                again = tries <= retries and self._may_pass(error)
                refusal = None if again else self._refusal(verb, tries, error, key)
            # Not in the handler: there the provider's error would be the context, whatever the cause is.
            if refusal is not None:
                raise refusal
            time.sleep(random.uniform(0, self._backoff * 2 ** (tries - 1)))  # noqa: S311 - no secret

    def _refusal(self, verb: str, tries: int, error: Exception, key: KeyBytes | None) -> ProviderError:
        """Our error for the provider's, made here so that no frame that it passes has that one."""
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
        if self._pid != os.getpid():  # the threads that held places did not come along into this child
            self._places, self._pid = BoundedSemaphore(self._max_in_flight), os.getpid()
        places, began = self._places, time.monotonic()
        if not places.acquire(timeout=self._timeout):
            raise ProviderTimeoutError(
                f"Provider {self.name!r} has {self._max_in_flight} calls that did not come back; "
                "no other was made."
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
        if isinstance(error, OSError) and not isinstance(error, _FINAL):  # time-outs and connections are
            return True
        is_transient: Callable[[Exception], bool] | None = getattr(self.provider, "is_transient", None)
        return is_transient is not None and is_transient(error)

    def __repr__(self) -> str:
        return f"<ProviderCalls {self.name!r}: {type(self.provider).__name__}>"


def _kind(answer: object) -> str:
    """What an answer is, and nothing of what is in it."""
    size = f" of {len(answer)} bytes" if isinstance(answer, (bytes, bytearray)) else ""
    return type(answer).__name__ + size


def _presentable(error: Exception, key: KeyBytes | None) -> Exception | None:
    """The provider's error as the cause of ours, or None if its text shows the key.

    SDKs print the arguments that they refuse. The tracebacks go too: the variables of their frames hold the
    key, and error trackers print those.
    """
    found: list[BaseException] = [error]
    for link in found:
        link.__traceback__ = None
        for other in (link.__cause__, link.__context__):
            if other is not None and not any(other is one for one in found):
                found.append(other)
    return None if key is not None and any(_shows(link, key) for link in found) else error


def _shows(error: BaseException, key: KeyBytes) -> bool:
    try:
        text = f"{error} {error!r} {vars(error)!r}"
    except Exception:  # noqa: BLE001 - what cannot be asked whether it shows the key is taken to
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
