"""Key bytes and secrets that do not print, pickle, copy or compare carelessly; keys can be wiped.

What they hold stands in a closure and in no attribute: error trackers print the attributes, the items and the
`repr` of whatever they find among a frame's variables.

CPython gives no promise that no copy remains (docs/explanation/limitations.md); what this class owns, `wipe`
zeroes. There is no `__del__` that does so: in `cipher(subkey(...).buffer)` it would run before the buffer is
read, and the key would be 32 zeros.
"""

import os
from collections.abc import Callable
from hmac import compare_digest
from typing import Generic, NoReturn, TypeVar, cast

T = TypeVar("T")

KEY_SIZE = 32
"""Size of every key, in bytes."""


class Uncopied:
    """What holds keys is neither copied nor pickled: a copy would outlive the wiping."""

    __slots__ = ()

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError("keys are not copied or pickled")

    __copy__ = __deepcopy__ = __reduce__ = __reduce_ex__ = __getstate__ = _refuse


def _holding(value: T) -> Callable[[], T]:
    return lambda: value


class Hidden(Uncopied, Generic[T]):
    """A value that shows nothing of itself to whoever only looks: a secret on its way to its derivation."""

    __slots__ = ("reveal",)

    def __init__(self, value: T) -> None:
        self.reveal: Callable[[], T] = _holding(value)

    def __repr__(self) -> str:
        return "<Hidden redacted>"


class KeyBytes(Uncopied):
    """32 secret bytes in a buffer of their own. `bytes(key)` does not exist; `.buffer`
    is for `crypto` alone."""

    __slots__ = ("_derived", "_held")

    def __init__(self, data: bytes | bytearray) -> None:
        if len(data) != KEY_SIZE:
            del data
            raise ValueError(f"a key has {KEY_SIZE} bytes")
        self._held = _holding(bytearray(data))
        self._derived: dict[Callable[[KeyBytes], object], object] = {}

    @property
    def buffer(self) -> bytearray:
        """The bytes themselves."""
        return self._held()

    @classmethod
    def generate(cls) -> "KeyBytes":
        """A fresh, uniformly random key."""
        return cls(os.urandom(KEY_SIZE))

    def derived(self, derive: Callable[["KeyBytes"], T]) -> T:
        """What `derive` makes of this key: made once, and gone when the key is wiped."""
        found = self._derived.get(derive)
        if found is None:
            found = self._derived[derive] = derive(self)
            if not any(self.buffer):  # wiped by another thread since it was read
                self.wipe()
        return cast("T", found)

    def wipe(self) -> None:
        """Overwrite the bytes with zeros, and those of the keys that were derived from them."""
        self.buffer[:] = bytes(KEY_SIZE)
        for derive in tuple(self._derived):
            derived = self._derived.pop(derive, None)
            if isinstance(derived, KeyBytes):
                derived.wipe()  # what is not one is an object of OpenSSL, which cleanses it when it is freed

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeyBytes) and compare_digest(self.buffer, other.buffer)

    __hash__ = None  # type: ignore[assignment]  # a hash of a key would be one more place that knows it

    def __repr__(self) -> str:
        return "<KeyBytes redacted>"
