"""Index keys of the server: each serves one blind index whose scope is the server (section 13).

An index key is wrapped by a provider, most often under the server keys. So the database alone gives nobody
more than which rows have equal values, and a new server key changes no tag.
"""

import datetime as dt
import uuid
from dataclasses import dataclass, field
from enum import StrEnum
from hmac import compare_digest
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING

from sqlalchemy_envelope.crypto import kdf
from sqlalchemy_envelope.crypto.blind_index import IndexHasher
from sqlalchemy_envelope.crypto.secret import KeyBytes, Uncopied
from sqlalchemy_envelope.exceptions import TamperedKeyError

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
    """Its tags are looked for, and are not in the index yet. A unique index has them in its guard."""
    MOVING = "moving"
    """Its tags are written and looked for. Rows that were not moved have the tags of the active key."""
    RETIRED = "retired"
    """No row has its tags."""


@dataclass(frozen=True)
class StoredIndexKey:
    """One row of a table of index keys.

    Attributes:
        label: the label of the index.
        epoch: the generation of the key, from 1 on.
        commitment: 32 public bytes that no other key has.
        provider_ref: the name of the provider that unwraps it, and which of its keys wraps.
        wrapped: the key, as the provider wrapped it (format 0x14).
    """

    key_id: uuid.UUID
    label: str
    epoch: int
    state: IndexKeyState
    commitment: bytes
    provider_ref: str
    wrapped: bytes = field(repr=False)
    created_at: dt.datetime | None = None

    @property
    def provider_name(self) -> str:
        """The name of the provider that unwraps it."""
        return self.provider_ref.partition(" ")[0]


def _context(key_id: uuid.UUID, label: str) -> dict[str, str]:
    return {"purpose": "index", "index": label, "key_id": str(key_id)}


def make_index_key(calls: "ProviderCalls", label: str, epoch: int, state: IndexKeyState) -> StoredIndexKey:
    """Make an index key, wrapped by a provider.

    Raises:
        ProviderError: the provider failed, or did not answer in time.
    """
    key = KeyBytes.generate()
    try:
        commitment = kdf.commitment(key)
        key_id = kdf.key_id_of(commitment)
        reference = f"{calls.name} {calls.reference}"[:255]
        wrapped = calls.wrap(key, _context(key_id, label))
        return StoredIndexKey(key_id, label, epoch, state, commitment, reference, wrapped)
    finally:
        key.wipe()


def open_index_key(calls: "ProviderCalls", stored: StoredIndexKey) -> KeyBytes:
    """Unwrap an index key, and compare it with its row.

    Raises:
        ProviderError: the provider failed, or does not unwrap it.
        TamperedKeyError: it is another key than the row describes.
    """
    key = calls.unwrap(stored.wrapped, _context(stored.key_id, stored.label))
    commitment = kdf.commitment(key)
    same = [
        compare_digest(commitment, stored.commitment),
        compare_digest(kdf.key_id_of(commitment).bytes, stored.key_id.bytes),
    ]
    if not all(same):
        key.wipe()
        raise TamperedKeyError(f"The index key of {stored.label!r} is not the key that its row describes.")
    return key


@dataclass(frozen=True)
class IndexHashers:
    """What makes the tags of one index at this moment.

    Attributes:
        writes: makes the tag that is written; None if the index has no key yet.
        guards: makes the tag that a unique index has beside it during a rotation; else None.
        seeks: makes the tags that a row with the value may have.
    """

    writes: IndexHasher | None
    guards: IndexHasher | None
    seeks: tuple[IndexHasher, ...]


NO_HASHERS = IndexHashers(None, None, ())
"""Of an index that has no key yet: no row has a tag."""


class IndexKeyCache(Uncopied):
    """The index keys that a process has opened, each for some seconds."""

    def __init__(self) -> None:
        self._hashers: dict[tuple[bytes, str], tuple[float, IndexHashers]] = {}
        self._opened: dict[uuid.UUID, KeyBytes] = {}
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
        self._hashers[where, label] = began + FRESH_SECONDS, hashers

    def forget(self, where: bytes, label: str) -> None:
        """Read the keys of an index again before they are used next."""
        self._hashers.pop((where, label), None)

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
        for key in list(self._opened.values()):
            key.wipe()
        self._opened.clear()
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"<IndexKeyCache of {len(self._opened)} keys>"
