"""Key bytes and secrets that do not print, pickle, copy or compare carelessly; keys can be wiped.

A closure holds the bytes, and no attribute: error trackers print the attributes, the items and the `repr` of
every variable of a frame.

CPython does not promise that no copy remains (docs/explanation/limitations.md); `wipe` zeroes the buffer of
this class. There is no `__del__` that does so: in `cipher(subkey(...).buffer)` it would run before the buffer
is read, and the key would be 32 zeros.
"""

import os
from collections.abc import Callable
from hmac import compare_digest
from typing import Generic, NoReturn, Self, TypeVar, cast

T = TypeVar("T")

KEY_SIZE = 32
"""Size of every key, in bytes."""


class Uncopied:
    """The parent of all that holds keys: neither copied nor pickled. A copy would outlive the wiping."""

    __slots__ = ()

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError("keys are not copied or pickled")

    __copy__ = __deepcopy__ = __reduce__ = __reduce_ex__ = __getstate__ = _refuse


def _holding(value: T) -> Callable[[], T]:
    return lambda: value


class Hidden(Uncopied, Generic[T]):
    """A value that does not show itself to code that only looks, like a secret on its way to its derivation.

    Call `reveal()` for the value.
    """

    __slots__ = ("reveal",)

    def __init__(self, value: T) -> None:
        self.reveal: Callable[[], T] = _holding(value)

    def __repr__(self) -> str:
        return "<Hidden redacted>"


class KeyBytes(Uncopied):
    """A key: 32 secret bytes in a buffer of their own.

    There is no `bytes(key)`; `.buffer` is for `crypto` alone.

    Raises:
        ValueError: the data has another size.
    """

    __slots__ = ("_derived", "_held")

    def __init__(self, data: bytes | bytearray) -> None:
        if len(data) != KEY_SIZE:
            del data
            raise ValueError(f"a key has {KEY_SIZE} bytes")
        self._held = _holding(bytearray(data))
        self._derived: dict[Callable[[KeyBytes], object], object] = {}

    @property
    def buffer(self) -> bytearray:
        """The bytes themselves; zeros after `wipe`."""
        return self._held()

    @classmethod
    def generate(cls) -> Self:
        """A fresh, uniformly random key."""
        return cls(os.urandom(KEY_SIZE))

    def derived(self, derive: Callable[["KeyBytes"], T]) -> T:
        """The result of `derive(key)`: made once, and dropped when the key is wiped."""
        result = self._derived.get(derive)
        if result is None:
            result = self._derived[derive] = derive(self)
            if not any(self.buffer):  # another thread wiped the key meanwhile
                self.wipe()
        return cast("T", result)

    def wipe(self) -> None:
        """Overwrite the bytes with zeros, and those of the keys that were derived from them."""
        self.buffer[:] = bytes(KEY_SIZE)
        for derive in tuple(self._derived):
            derived = self._derived.pop(derive, None)
            if isinstance(derived, KeyBytes):
                derived.wipe()  # all else is an object of OpenSSL, which cleanses its memory when freed

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeyBytes) and compare_digest(self.buffer, other.buffer)

    __hash__ = None  # type: ignore[assignment]  # a hash of a key would be one more place that knows it

    def __repr__(self) -> str:
        return "<KeyBytes redacted>"
