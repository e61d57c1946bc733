"""The tags of slow indexes: each value is stretched by Argon2id before it is hashed (section 13).

It is for values that can be guessed. Whoever has the database and the index key then pays the cost of one
derivation for each guess; without it, a guess costs a microsecond.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy_envelope.crypto.argon2id import SALT_SIZE, KdfLimit, KdfProfile
from sqlalchemy_envelope.crypto.blind_index import IndexHasher
from sqlalchemy_envelope.crypto.kdf import subkey
from sqlalchemy_envelope.crypto.secret import KeyBytes

WAIT_SECONDS = 30.0
_THREADS = os.cpu_count() or 1
LIMIT = KdfLimit(_THREADS, WAIT_SECONDS)
"""At most as many derivations at once as there are processors, in this process: each takes its memory."""


def slow_form(form: str, profile: KdfProfile) -> str:
    """The form of a slow index: another cost makes other tags."""
    return f"argon2id m={profile.memory},t={profile.passes},p={profile.lanes} of {form}"


class SlowIndexHasher(IndexHasher):
    """Makes the tags of one slow index.

    Args:
        key, label, bits: as of `IndexHasher`.
        form: as of `IndexHasher`, by `slow_form`.
        profile: the cost of a derivation.
        run: calls a function and returns what it returns, without holding up an event loop.
    """

    __slots__ = ("_profile", "_run", "_salt")

    def __init__(
        self,
        key: KeyBytes,
        label: str,
        form: str,
        bits: int,
        profile: KdfProfile,
        run: Callable[[Callable[[], Any]], Any] = lambda call: call(),
    ) -> None:
        super().__init__(key, label, form, bits)
        # Of the key, and not random: a value has to have the same tag in every row. Of the label: nobody
        # saves work by guessing the values of two indexes at once.
        derived = subkey(key, "index-salt", label.encode("utf-8"))
        self._salt = bytes(derived.buffer[:SALT_SIZE])
        derived.wipe()
        self._profile = profile
        self._run = run

    def tag(self, data: bytes) -> bytes:
        """The tag of a value's bytes.

        Raises:
            UnlockBusyError: too many derivations ran at once.
        """
        stretched: bytes = self._run(lambda: self._stretched(data))
        return super().tag(stretched)

    def tags(self, datas: Iterable[bytes | None]) -> list[bytes | None]:
        """The tags of many values, None for each None. Equal values are stretched once, and all processors
        work.

        Raises:
            UnlockBusyError: too many derivations ran at once.
        """
        wanted = list(datas)
        different = list(dict.fromkeys(one for one in wanted if one is not None))
        found: list[bytes] = self._run(lambda: self._all_stretched(different))
        tags = {
            data: super(SlowIndexHasher, self).tag(one) for data, one in zip(different, found, strict=True)
        }
        return [None if data is None else tags[data] for data in wanted]

    def _all_stretched(self, datas: list[bytes]) -> list[bytes]:
        if len(datas) < 2:
            return [self._stretched(data) for data in datas]
        with ThreadPoolExecutor(min(_THREADS, len(datas)), "envelope-index") as threads:
            return list(threads.map(self._stretched, datas))

    def _stretched(self, data: bytes) -> bytes:
        return LIMIT.stretch(data, self._salt, self._profile)

    def __repr__(self) -> str:
        return f"<SlowIndexHasher of {self._size} bytes>"
