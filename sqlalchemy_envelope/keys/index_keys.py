"""Index keys of the server: each serves one blind index whose scope is the server (section 13).

An index key is wrapped by a provider, most often under the server keys. So the database alone gives nobody
more than which rows have equal values, and a new server key changes no tag.

The provider's wrap is bound to the label, the id and the generation of a key, and the key itself seals its
row's state. The newest key says what is the state of the others. So whoever can write to the database, and
has an older key, cannot bring that key back. As with row seals, whole rows that were copied earlier can be
put back; a process that knows a newer generation refuses them.
"""

import datetime as dt
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from hmac import compare_digest
from threading import Lock, Thread
from time import monotonic
from typing import TYPE_CHECKING

from sqlalchemy_envelope.crypto import kdf
from sqlalchemy_envelope.crypto.blind_index import IndexHasher, index_row_seal
from sqlalchemy_envelope.crypto.secret import KeyBytes, Uncopied
from sqlalchemy_envelope.exceptions import EnvelopeError, TamperedKeyError

if TYPE_CHECKING:
    from sqlalchemy_envelope.keys.providers.calls import ProviderCalls

FRESH_SECONDS = 30.0
"""How long a process goes on with the index keys that it read. A rotation waits longer than that between two
of its steps, so that no process works by the step before the last."""


class IndexKeyState(StrEnum):
    """The state of an index key. A rotation takes a new key through the states from the second on."""

    ACTIVE = "active"
    """Its tags are written and looked for."""
    NEXT = "next"
    """Its tags are looked for, and are written into the guard of the index."""
    READY = "ready"
    """As before, and every row has its tag in the guard: who has to find a row with a value looks there."""
    MOVING = "moving"
    """Its tags are written into the index and the guard. Rows that were not moved have the tags of the active
    key in the index, and its own in the guard."""
    RETIRED = "retired"
    """No row has its tags. They are still looked for, and the guard is still written."""
    DESTROYED = "destroyed"
    """The row has no key any more."""


@dataclass(frozen=True)
class StoredIndexKey:
    """One row of a table of index keys.

    Attributes:
        label: the label of the index.
        epoch: the generation of the key, from 1 on.
        commitment: 32 public bytes that no other key has.
        provider_ref: the name of the provider that unwraps it, and which of its keys wraps.
        wrapped: the key, as the provider wrapped it (format 0x14); empty of a key that was destroyed.
        seal: made with the key over its label, generation and state.
    """

    key_id: uuid.UUID
    label: str
    epoch: int
    state: IndexKeyState
    commitment: bytes
    provider_ref: str
    wrapped: bytes = field(repr=False)
    seal: bytes = field(default=b"", repr=False)
    changed_at: dt.datetime | None = None

    @property
    def provider_name(self) -> str:
        """The name of the provider that unwraps it."""
        return self.provider_ref.partition(" ")[0]


def index_key_context(stored: StoredIndexKey) -> dict[str, str]:
    """What the provider binds the wrap of an index key to."""
    return {
        "library": "sqlalchemy-envelope/v1",
        "index": stored.label,
        "index_epoch": str(stored.epoch),
        "index_key": stored.key_id.hex,
    }


def reference_of(calls: "ProviderCalls") -> str:
    """What a key that a provider wraps now names: the provider, and which of its keys."""
    return f"{calls.name} {calls.reference}"[:255]


def row_seal(key: KeyBytes, stored: StoredIndexKey, state: IndexKeyState) -> bytes:
    """The seal of a key's row in this state."""
    return index_row_seal(key, stored.label, stored.epoch, state.value)


def make_index_key(calls: "ProviderCalls", label: str, epoch: int, state: IndexKeyState) -> StoredIndexKey:
    """Make an index key, wrapped by a provider.

    Raises:
        ProviderError: the provider failed, or did not answer in time.
    """
    key = KeyBytes.generate()
    try:
        commitment = kdf.commitment(key)
        made = StoredIndexKey(
            kdf.key_id_of(commitment), label, epoch, state, commitment, reference_of(calls), b""
        )
        wrapped = calls.wrap(key, index_key_context(made))
        return replace(made, wrapped=wrapped, seal=row_seal(key, made, state))
    finally:
        key.wipe()


def open_index_key(calls: "ProviderCalls", stored: StoredIndexKey) -> KeyBytes:
    """Unwrap an index key, and compare it with its row.

    Raises:
        ProviderError: the provider failed, or does not unwrap it.
        TamperedKeyError: it is another key than the row describes.
    """
    key = calls.unwrap(stored.wrapped, index_key_context(stored))
    commitment = kdf.commitment(key)
    same = [
        compare_digest(commitment, stored.commitment),
        compare_digest(kdf.key_id_of(commitment).bytes, stored.key_id.bytes),
    ]
    if not all(same):
        key.wipe()
        raise TamperedKeyError(f"The index key of {stored.label!r} is not the key that its row describes.")
    return key


def check_row(key: KeyBytes, stored: StoredIndexKey) -> None:
    """Check that the application put a key into the state that its row says.

    Raises:
        TamperedKeyError: it did not.
    """
    if not compare_digest(row_seal(key, stored, stored.state), stored.seal):
        raise TamperedKeyError(
            f"The row of the index key of {stored.label!r}, generation {stored.epoch}, was altered: its seal "
            f"does not fit the state {stored.state.value!r}."
        )


_TOGETHER = {
    IndexKeyState.ACTIVE: (set[IndexKeyState](), {IndexKeyState.RETIRED}),
    IndexKeyState.NEXT: ({IndexKeyState.ACTIVE},),
    IndexKeyState.READY: ({IndexKeyState.ACTIVE},),
    IndexKeyState.MOVING: ({IndexKeyState.ACTIVE},),
}
"""By the state of the newest key of an index, the states that its other key may have."""


_RANKS = {IndexKeyState.NEXT: 0, IndexKeyState.READY: 1, IndexKeyState.MOVING: 2}


def progress_of(rows: "Sequence[StoredIndexKey]") -> int:
    """How far the rotations of an index are: a number that each step makes larger.

    Args:
        rows: all its rows, destroyed keys among them, the newest first.
    """
    if not rows:
        return 0
    is_clearing = any(row.state is IndexKeyState.RETIRED for row in rows)
    return 5 * rows[0].epoch + _RANKS.get(rows[0].state, 3 if is_clearing else 4)


def check_states(label: str, rows: "Sequence[StoredIndexKey]") -> None:
    """Check that the states of an index's keys fit together: the newest says what the other is.

    Args:
        rows: the rows that have a key, the newest first.

    Raises:
        TamperedKeyError: they do not.
    """
    states = [row.state for row in rows]
    if len(rows) > 2 or set(states[1:]) not in _TOGETHER.get(states[0], ()):
        shown = ", ".join(f"{row.epoch} {row.state.value}" for row in rows)
        raise TamperedKeyError(
            f"The index keys of {label!r} do not fit together ({shown}): a row was altered, or is missing."
        )


@dataclass(frozen=True)
class IndexHashers:
    """What makes the tags of one index at this moment.

    Attributes:
        writes: makes the tag that is written; None if the index has no key yet.
        guards: makes the tag that is written into the guard during a rotation; else None.
        seeks: makes the tags that a row with the value may have.
        by_guard: whether a row with a value is found by the guard, which every row has, and perhaps not by
            the index.
        progress: how far the rotations of the index are: it never goes back.
        seen_at: when this process first saw this progress, by `monotonic`.
    """

    writes: IndexHasher | None
    guards: IndexHasher | None
    seeks: tuple[IndexHasher, ...]
    by_guard: bool = False
    progress: int = 0
    seen_at: float = 0.0

    @property
    def is_rotating(self) -> bool:
        """Whether rows may have the tags of two keys."""
        return self.guards is not None


NO_HASHERS = IndexHashers(None, None, ())
"""Of an index that has no key yet: no row has a tag."""


class IndexKeyCache(Uncopied):
    """The index keys that a process has opened, each for some seconds."""

    def __init__(self) -> None:
        self._hashers: dict[tuple[bytes, str], tuple[float, IndexHashers]] = {}
        self._opened: dict[uuid.UUID, KeyBytes] = {}
        self._progress: dict[tuple[bytes, str], tuple[int, float]] = {}
        self._opening: dict[uuid.UUID, float] = {}
        self._lock = Lock()

    def get(self, where: bytes, label: str) -> IndexHashers | None:
        """The hashers of an index; None if they were not read lately.

        Args:
            where: the database and the schema of the index's table.
        """
        until, found = self._hashers.get((where, label), (0.0, None))
        return found if until > monotonic() else None

    def put(self, where: bytes, label: str, hashers: IndexHashers, began: float) -> None:
        """Keep the hashers of an index.

        Args:
            began: the time by `monotonic` before the rows were read.
        """
        known, seen_at = self._progress.get((where, label), (0, 0.0))
        if hashers.progress < known:
            return
        if hashers.progress > known:
            seen_at = monotonic()
            self._progress[where, label] = hashers.progress, seen_at
        self._hashers[where, label] = began + FRESH_SECONDS, replace(hashers, seen_at=seen_at)

    def check_progress(self, where: bytes, label: str, progress: int) -> None:
        """Refuse rows that were put back: this process knows later ones.

        Raises:
            TamperedKeyError: it does.
        """
        known, _ = self._progress.get((where, label), (0, 0.0))
        if progress < known:
            raise TamperedKeyError(
                f"The index keys of {label!r} are older than those that this process knows already. Either "
                "the database was restored from a backup: start this process again. Or somebody put an "
                "earlier key back."
            )

    def forget(self, where: bytes, label: str) -> None:
        """Read the keys of an index again before they are used next."""
        self._hashers.pop((where, label), None)

    def forget_all(self) -> None:
        """Read all keys again before they are used next."""
        self._hashers.clear()

    def before(
        self, where: bytes, label: str, stored: StoredIndexKey, open_: "Callable[[], KeyBytes]"
    ) -> "IndexHashers | None":
        """The hashers of an index as they were, for as long as a new key may be opened over a network.

        The first call starts to open it, on a thread. A rotation waits for the same time.

        Args:
            stored: the row of the new key.
            open_: unwraps it.
        """
        _, known = self._hashers.get((where, label), (0.0, None))
        with self._lock:
            is_first = stored.key_id not in self._opening
            until = self._opening.setdefault(stored.key_id, monotonic() + FRESH_SECONDS)
        if is_first and known is not None:
            Thread(target=self._open_in_time, args=(stored, open_), daemon=True).start()
        return known if monotonic() < until else None

    def _open_in_time(self, stored: StoredIndexKey, open_: "Callable[[], KeyBytes]") -> None:
        with suppress(EnvelopeError):  # until its time is over; the statement after that says what is missing
            key = open_()
            with self._lock:
                self._opened.setdefault(stored.key_id, key)

    def key(self, stored: StoredIndexKey, calls: "ProviderCalls") -> KeyBytes:
        """The index key of a row; unwrapped once.

        Raises:
            ProviderError, TamperedKeyError: see `open_index_key`.
        """
        held = self._opened.get(stored.key_id)
        if held is None:
            key = open_index_key(calls, stored)
            with self._lock:
                held = self._opened.setdefault(stored.key_id, key)
        return held

    def is_open(self, stored: StoredIndexKey) -> bool:
        """Whether the key of a row was unwrapped already."""
        return stored.key_id in self._opened

    def clear(self) -> None:
        """Wipe all keys: at the end, and in a forked child."""
        self._hashers.clear()
        self._opening.clear()
        for key in list(self._opened.values()):
            key.wipe()
        self._opened.clear()
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"<IndexKeyCache of {len(self._opened)} keys>"
