"""Work that is not done on the database: a key derivation, a call to a provider.

Each verb is a generator that does its database work and yields what takes time elsewhere. The synchronous
face runs that on the spot, the asynchronous one in a thread: the core is written once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

from sqlalchemy_envelope.crypto.argon2id import KdfSalt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy_envelope.crypto.secret import KeyBytes

T = TypeVar("T")


class Derivation(NamedTuple):
    """A key derivation that a step waits for."""

    secret: bytes
    salt: KdfSalt

    def __repr__(self) -> str:
        return "<Derivation redacted>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("secrets are not copied or pickled")


class Outside(NamedTuple):
    """A call to a provider that a step waits for."""

    call: Callable[[], Any]


Steps = Generator[Derivation | Outside, Any, T]


@contextmanager
def wiping(*keys: KeyBytes) -> Iterator[None]:
    """Wipe keys at the end of the block, however it ends."""
    try:
        yield
    finally:
        for key in keys:
            key.wipe()
