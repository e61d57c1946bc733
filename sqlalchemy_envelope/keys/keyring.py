"""The keys of one unlocked session: the known keys, the stored ways to them, and the keys that are open.

A *way* to a key is one stored wrap of it (`Wrap`). Ways lead from one key to the next: a root key opens its
owner's data keys, the retired root keys before it, and the keys that were granted to its owner. A key is
opened when it is first needed: nobody needs all of them, and to open a key costs more than to read a value.

This module is over 400 lines long: keys, ciphers and hashers are wiped together, under a single lock.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from threading import RLock
from typing import Protocol

from sqlalchemy_envelope.crypto.aead import HEADER_SIZE, Field, ValueCipher, value_header
from sqlalchemy_envelope.crypto.blind_index import IndexHasher
from sqlalchemy_envelope.crypto.secret import KeyBytes, Uncopied
from sqlalchemy_envelope.exceptions import EnvelopeError, GrantError, TamperedKeyError
from sqlalchemy_envelope.keys.hierarchy import open_wrap, short, wrap_of
from sqlalchemy_envelope.keys.model import KeyId, KeyState, OpenedKey, Purpose, StoredKey, Wrap

OwnerId = bytes
"""An owner's database and schema, table label and primary key, encoded without ambiguity. Two databases have
a user 1 each, and the keys of the first must never be used for the second."""
MAX_DEPTH = 32
"""The most steps from a key that is open to a key that is not: grants through groups of groups, and back
through the epochs of each."""


class Index(Protocol):
    """A blind index: it says what makes its tags under a key."""

    def hasher(self, key: KeyBytes) -> IndexHasher:
        """What makes the tags under this index key."""
        ...


_NONE: dict[tuple[Purpose, str], KeyId] = {}
_NO_CIPHERS: dict[Field, ValueCipher] = {}


class Keyring(Uncopied):
    """Keys by id, the current key of each owner and scope, a cached cipher for each key and field, and a
    cached hasher for each index key and blind index.

    Building a cipher costs as much as three values. So each cipher is built once, and kept.
    """

    def __init__(self) -> None:
        self._stored: dict[KeyId, tuple[OwnerId, StoredKey]] = {}
        self._ways: dict[KeyId, list[Wrap]] = {}
        self._opened: dict[KeyId, OpenedKey] = {}
        self._by_header: dict[bytes, KeyId] = {}
        self._current: dict[OwnerId, dict[tuple[Purpose, str], KeyId]] = {}
        self._owners: dict[OwnerId, set[KeyId]] = {}
        self._ciphers: dict[KeyId, dict[Field, ValueCipher]] = {}
        self._hashers: dict[KeyId, dict[Index, IndexHasher]] = {}
        self._refused: dict[OwnerId, tuple[EnvelopeError, bool]] = {}
        self.destroyed: dict[bytes, OwnerId] = {}
        """The owners of destroyed keys, by the header of the values that were under each."""
        self.distrusted: set[KeyId] = set()
        """Ids of root keys that nothing proves genuine (section 7): they read, and must not encrypt."""
        # In server mode, all threads of the process share one keyring.
        self._lock = RLock()
        self._wiped = 0

    def add_stored(self, owner: OwnerId, keys: Iterable[StoredKey]) -> None:
        """Add the rows of an owner's keys, with the ways that these rows hold; destroyed keys are only noted.

        Raises:
            TamperedKeyError: a key is stored for another owner too.
        """
        with self._lock:
            for stored in keys:
                if stored.state is KeyState.DESTROYED:
                    self.destroyed[value_header(stored.key_id.bytes)] = owner
                    continue
                known = self._stored.get(stored.key_id)
                if known is not None and known[0] != owner:
                    raise TamperedKeyError(f"Key {short(stored)} is stored for two owners.")
                self._stored[stored.key_id] = owner, stored
                opened = self._opened.get(stored.key_id)
                if opened is not None and opened.stored is not stored:
                    # Take the columns that may change from the new row, so that no old value is written back.
                    row = replace(
                        opened.stored,
                        state=stored.state,
                        wrapping_key_id=stored.wrapping_key_id,
                        wrapped=stored.wrapped,
                        granted=stored.granted,
                        seal=stored.seal,
                    )
                    self._opened[stored.key_id] = OpenedKey(row, opened.key)
                self._owners.setdefault(owner, set()).add(stored.key_id)
                if stored.purpose is not Purpose.ROOT:
                    self._by_header[stored.key_id.bytes] = stored.key_id
                if stored.state is KeyState.ACTIVE:
                    kinds = self._current.setdefault(owner, {})
                    kinds[stored.purpose, stored.scope] = stored.key_id
                way = wrap_of(stored)
                if way is not None:
                    self.add_way(stored.key_id, way)

    def add_way(self, key_id: KeyId, way: Wrap) -> None:
        """Add one way to a key, if it is not known yet."""
        ways = self._ways.setdefault(key_id, [])
        if way not in ways:
            ways.append(way)

    def refuse(self, owner: OwnerId, error: EnvelopeError, *, altogether: bool) -> None:
        """Remember that the stored rows of an owner are not as they were written: `open` raises `error`.

        Args:
            altogether: open none of the owner's keys; otherwise open those that a genuine way leads to.
        """
        known = self._refused.get(owner)
        self._refused[owner] = (error, altogether or (known is not None and known[1]))

    def refusal(self, owner: OwnerId) -> EnvelopeError | None:
        """The error that `refuse` remembered for this owner, if any."""
        return self._refused.get(owner, (None, False))[0]

    def add(self, owner: OwnerId, keys: Iterable[OpenedKey]) -> None:
        """Add opened keys of an owner. A second copy of a key that is open already is wiped.

        Raises:
            TamperedKeyError: a key is stored for another owner too.
        """
        with self._lock:
            for opened in keys:
                self.add_stored(owner, [opened.stored])
                held = self._opened.setdefault(opened.stored.key_id, opened)
                if held is not opened and held.key is not opened.key:
                    opened.key.wipe()

    def open(self, key_id: KeyId | None) -> OpenedKey | None:
        """Open the key with this id; None if no open key leads to it.

        Raises:
            TamperedKeyError: a way to the key was altered.
            GrantError: every way to the key is too long (`MAX_DEPTH`).
            EnvelopeError: the error that `refuse` remembered for the owner.
        """
        with self._lock:
            while key_id is not None:
                count = len(self._opened)
                opened, error = None, None
                try:
                    opened = self._open(key_id, 0, set())
                except EnvelopeError as refused:
                    error = refused
                # A key that was opened in this round may lead to a key that was tried before it.
                if opened is None and len(self._opened) > count:
                    continue
                if error is not None:
                    raise error
                return opened
            return None

    def _open(self, key_id: KeyId, depth: int, tried: set[KeyId]) -> OpenedKey | None:
        """Open a key by one of its ways. No key is tried twice: planted rows could make endless paths."""
        opened = self._opened.get(key_id)
        known = self._stored.get(key_id)  # read once: another thread may wipe at any moment, without waiting
        if opened is not None or key_id in tried or known is None:
            return opened
        if depth >= MAX_DEPTH:
            raise GrantError(
                f"A key is more than {MAX_DEPTH} steps away from any open key: grant it more directly."
            )
        tried.add(key_id)
        refused, altogether = self._refused.get(known[0], (None, False))
        if refused is not None and altogether:
            raise refused
        wiped = self._wiped
        for way in self._ways.get(key_id, ()):
            try:
                if way.under not in self._opened:
                    self._open_newest_first(way.under, depth + 1, tried)
                parent = self._open(way.under, depth + 1, tried)
                if parent is None:
                    continue
                opened = open_wrap(known[1], way, parent)
            except EnvelopeError as error:
                if wiped != self._wiped:
                    return None
                refused = error
                continue
            self._opened[key_id] = opened
            if wiped != self._wiped:  # a signal handler or another thread wiped, without waiting
                self._opened.pop(key_id, opened).key.wipe()
                return None
            return opened
        if refused is not None:
            raise refused
        return None

    def _open_newest_first(self, key_id: KeyId, depth: int, tried: set[KeyId]) -> None:
        """Open the newer root keys of a retired root key, from the newest on.

        Each retired root key is wrapped under a newer one. Opened in this order, no path through the epochs
        of an owner is long, however many epochs there are.
        """
        known = self._stored.get(key_id)
        if known is None or known[1].purpose is not Purpose.ROOT or known[1].state is KeyState.ACTIVE:
            return
        for newer in self.keys_of(known[0]):
            if newer.purpose is Purpose.ROOT and newer.epoch > known[1].epoch:
                self._open(newer.key_id, depth, tried)

    def leads_to(self, key_id: KeyId) -> bool:
        """Whether stored ways lead from the open keys to this key.

        Raises:
            EnvelopeError: see `open`.
        """
        return self.open(key_id) is not None

    def is_open(self, key_id: KeyId) -> bool:
        """Whether this key is open already."""
        return key_id in self._opened

    def has_way(self, key_id: KeyId) -> bool:
        """Whether a stored way leads to this key; a root key that a slot opened may have none."""
        return bool(self._ways.get(key_id))

    def owner_of_key(self, key_id: KeyId) -> OwnerId:
        """The owner of a key; empty bytes if the key is not known here."""
        known = self._stored.get(key_id)
        return b"" if known is None else known[0]

    def epoch_of(self, key_id: KeyId) -> int:
        """The epoch of a key; 0 if the key is not known here."""
        known = self._stored.get(key_id)
        return 0 if known is None else known[1].epoch

    def stored(self, key_id: KeyId) -> StoredKey | None:
        """The row of a key; None if the key is not known here."""
        known = self._stored.get(key_id)
        return None if known is None else known[1]

    def keys_of(self, owner: OwnerId) -> list[StoredKey]:
        """The rows of an owner's keys, newest epoch first."""
        entries = [self._stored.get(key_id) for key_id in list(self._owners.get(owner, ()))]
        return sorted((entry[1] for entry in entries if entry is not None), key=lambda key: -key.epoch)

    def current(self, owner: OwnerId, purpose: Purpose, scope: str = "") -> StoredKey | None:
        """The row of an owner's active key, open or not; None if it is not known here."""
        key_id = self._current.get(owner, {}).get((purpose, scope))
        return None if key_id is None else self.stored(key_id)

    def root(self, owner: OwnerId) -> OpenedKey | None:
        """The active root key of an owner; None if no open key leads to it.

        Raises:
            EnvelopeError: see `open`.
        """
        stored = self.current(owner, Purpose.ROOT)
        return None if stored is None else self.open(stored.key_id)

    def drop(self, owner: OwnerId) -> None:
        """Forget and wipe all keys of one owner."""
        with self._lock:
            self._forget(owner, self._owners.pop(owner, set()))
            self._refused.pop(owner, None)

    def put_aside(self, owner: OwnerId) -> "Keyring":
        """Move an owner's keys to a keyring of their own, because a new owner has the same id."""
        with self._lock:
            aside = Keyring()
            for key in self.keys_of(owner):
                aside._take_from(self, owner, key)
            self.drop(owner)
            return aside

    def put_back(self, owner: OwnerId, aside: "Keyring") -> None:
        """Move keys back from `put_aside`; the keys that the owner's id has now are wiped."""
        with self._lock:
            self.drop(owner)
            self.take(aside, owner)

    def take(self, other: "Keyring", owner: OwnerId) -> None:
        """Move an owner's keys here from another keyring, with their ways. As `add` for keys open here.

        Raises:
            TamperedKeyError: a key is stored for another owner too.
        """
        with self._lock:
            for key in other.keys_of(owner):
                self._take_from(other, owner, key)
            if owner in other._refused:
                error, altogether = other._refused[owner]
                self.refuse(owner, error, altogether=altogether)

    def _take_from(self, other: "Keyring", owner: OwnerId, key: StoredKey) -> None:
        self.add_stored(owner, [key])
        for way in other._ways.get(key.key_id, ()):
            self.add_way(key.key_id, way)
        opened = other._opened.pop(key.key_id, None)
        if opened is not None and self._opened.setdefault(key.key_id, opened).key is not opened.key:
            opened.key.wipe()

    def take_back(self, owner: OwnerId, made: Iterable[KeyId], replaced: Iterable[StoredKey]) -> None:
        """Forget and wipe keys of an owner whose rows did not stay; the keys before them are current again.

        Args:
            made: the keys to forget.
            replaced: the rows that stand again.
        """
        with self._lock:
            if owner in self._owners:
                self._forget(owner, made)
                self._owners[owner].difference_update(made)
                self.add_stored(owner, replaced)

    def _forget(self, owner: OwnerId, key_ids: Iterable[KeyId]) -> None:
        gone = set(key_ids)
        kinds = self._current.get(owner, {})
        for kind in [kind for kind, key_id in kinds.items() if key_id in gone]:
            del kinds[kind]
        if not kinds:
            self._current.pop(owner, None)
        for key_id in gone:
            self._stored.pop(key_id, None)
            self._ways.pop(key_id, None)
            self._by_header.pop(key_id.bytes, None)
            opened = self._opened.pop(key_id, None)
            if opened is not None:
                opened.key.wipe()
            self._ciphers.pop(key_id, None)
            self._hashers.pop(key_id, None)

    def wipe(self) -> None:
        """Forget and wipe all keys."""
        self._wiped += 1
        opened = list(self._opened.values())
        # Forget first, then wipe: `cipher` relies on this order.
        for known in (
            self._opened,
            self._by_header,
            self._stored,
            self._ways,
            self._current,
            self._owners,
            self._ciphers,
            self._hashers,
            self._refused,
            self.destroyed,
            self.distrusted,
        ):
            known.clear()
        for held in opened:
            held.key.wipe()

    def reader(self, header: bytes, field: Field) -> ValueCipher | None:
        """The cipher for a stored value that begins with `header`; None if its key is not here.

        Raises:
            EnvelopeError: see `open`.
        """
        key_id = self._by_header.get(bytes(header[1:HEADER_SIZE]))
        return None if key_id is None else self.cipher(key_id, field)

    def writer(self, owner: OwnerId, scope: str, field: Field) -> ValueCipher | None:
        """The cipher that encrypts new values of an owner; None if the owner's keys are not here.

        Raises:
            EnvelopeError: see `open`.
        """
        key_id = self._current.get(owner, _NONE).get((Purpose.DATA, scope))
        if key_id is None:
            refused, altogether = self._refused.get(owner, (None, False))
            if refused is not None and altogether:
                raise refused
            return None
        return self.cipher(key_id, field)

    def owner_of(self, header: bytes) -> OwnerId | None:
        """The owner whose key a stored value names in its header; None if the key is not known here."""
        key_id = self._by_header.get(bytes(header[1:HEADER_SIZE]))
        known = None if key_id is None else self._stored.get(key_id)
        return None if known is None else known[0]

    def cipher(self, key_id: KeyId, field: Field) -> ValueCipher | None:
        """The cipher of one field under one key; None if no open key leads to it.

        Raises:
            EnvelopeError: see `open`.
        """
        cipher = self._ciphers.get(key_id, _NO_CIPHERS).get(field)
        if cipher is None:
            opened = self.open(key_id)
            if opened is None:
                return None
            cipher = ValueCipher(opened.key, key_id, field)
            with self._lock:
                # Another thread may have wiped the key while the cipher was built, perhaps from 32 zeros.
                held = self._opened.get(key_id)
                if held is None or held.key is not opened.key:
                    return None
                self._ciphers.setdefault(key_id, {})[field] = cipher
            if key_id not in self._opened:  # `wipe` does not wait for the lock
                self._ciphers.pop(key_id, None)
                return None
        return cipher

    def index_writer(self, owner: OwnerId, scope: str, index: Index) -> IndexHasher | None:
        """What makes the tags of an owner's new values; None if no index key of the owner is open here.

        Raises:
            EnvelopeError: see `open`.
        """
        key_id = self._current.get(owner, _NONE).get((Purpose.INDEX, scope))
        return None if key_id is None else self.hasher(key_id, index)

    def index_seekers(
        self, owner: OwnerId, scope: str, index: Index, *, whole: bool = False
    ) -> list[IndexHasher]:
        """What makes the tags that values of an owner may have: under its index key, and under the earlier
        ones that open here. None of them, if the index key does not open: new values would be missed.

        Args:
            whole: none of them either, if one of the earlier ones does not open. A row under it would count
                as a row with another value.

        Raises:
            EnvelopeError: see `open`.
        """
        if self.index_writer(owner, scope, index) is None:
            return []
        keys = [one for one in self.keys_of(owner) if one.purpose is Purpose.INDEX and one.scope == scope]
        hashers = [self.hasher(one.key_id, index) for one in keys]
        opened = [one for one in hashers if one is not None]
        return [] if whole and len(opened) < len(hashers) else opened

    def hasher(self, key_id: KeyId, index: Index) -> IndexHasher | None:
        """The hasher of one blind index under one index key; None if no open key leads to it.

        Raises:
            EnvelopeError: see `open`.
        """
        known = self._hashers.get(key_id)
        hasher = None if known is None else known.get(index)
        if hasher is None:
            opened = self.open(key_id)
            if opened is None:
                return None
            hasher = index.hasher(opened.key)
            with self._lock:
                # Another thread may have wiped the key while the hasher was built, perhaps from 32 zeros.
                held = self._opened.get(key_id)
                if held is None or held.key is not opened.key:
                    return None
                self._hashers.setdefault(key_id, {})[index] = hasher
            if key_id not in self._opened:  # `wipe` does not wait for the lock
                self._hashers.pop(key_id, None)
                return None
        return hasher

    def copy_of(self, owner: OwnerId) -> list[OpenedKey]:
        """Copies of the open keys of an owner, for another keyring, which is wiped at another time."""
        with self._lock:
            wiped = self._wiped
            opened = [self._opened.get(key_id) for key_id in list(self._owners.get(owner, ()))]
            copies = [OpenedKey(key.stored, KeyBytes(key.key.buffer)) for key in opened if key is not None]
            if wiped == self._wiped:
                return copies
            # Another thread wiped meanwhile: these may be copies of zeros.
            for copied in copies:
                copied.key.wipe()
            return []

    def __contains__(self, owner: OwnerId) -> bool:
        return owner in self._owners

    def __iter__(self) -> Iterator[OwnerId]:
        return iter(list(self._owners))

    def __len__(self) -> int:
        return len(self._owners)

    def __repr__(self) -> str:
        return f"<Keyring of {len(self._stored)} keys>"
