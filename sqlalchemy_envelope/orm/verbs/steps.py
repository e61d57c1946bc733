"""Work outside the database: a key derivation, a call to a provider or a store, or a pause.

Each verb is a generator that does its database work and yields other slow work. The synchronous envelope does
this work at once, and the asynchronous envelope does it in a thread. So the core is written once.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from sqlalchemy_envelope.crypto.argon2id import KdfSalt
from sqlalchemy_envelope.crypto.secret import Hidden, Uncopied
from sqlalchemy_envelope.orm.current.keks import Outside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy_envelope.crypto.secret import KeyBytes
    from sqlalchemy_envelope.orm.sessions.unlocked import UnlockedSession

T = TypeVar("T")


class Derivation(Uncopied):
    """A key derivation that a step waits for.

    Attributes:
        seconds: how long it took, without the wait for a place; None before that.
    """

    __slots__ = ("salt", "seconds", "secret")

    def __init__(self, secret: bytes | Hidden[bytes], salt: KdfSalt) -> None:
        self.secret = secret if isinstance(secret, Hidden) else Hidden(secret)
        self.salt = salt
        self.seconds: float | None = None

    def took(self, seconds: float) -> None:
        """Note how long it took."""
        self.seconds = seconds

    def __repr__(self) -> str:
        return "<Derivation redacted>"


class Pause(NamedTuple):
    """Some time that a step lets pass, in seconds."""

    seconds: float


Work = Derivation | Outside | Pause
Steps = Generator[Work, Any, T]


@contextmanager
def wiping(*keys: KeyBytes) -> Iterator[None]:
    """Wipe keys at the end of the block, however it ends."""
    try:
        yield
    finally:
        for key in keys:
            key.wipe()


@contextmanager
def locking_if_untold(unlocked: UnlockedSession) -> Iterator[None]:
    """Lock again if the body, which emits an event, raises: what cannot be recorded is not done."""
    try:
        yield
    except BaseException:
        unlocked.lock()
        raise
