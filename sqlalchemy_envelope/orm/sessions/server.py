"""Server mode: owners whose keys a provider holds are opened as their rows appear.

For applications whose operator holds the keys, and for worker processes. Keys are fetched for all rows of a
fetch at once, kept for a time, a number of uses and up to a number of owners, and always with a reason in the
audit event. Owners without a slot of the provider are read through grants to owners who have one, and stay
locked if there are none.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, Any, Self, TypeVar
from uuid import UUID
from weakref import WeakKeyDictionary

from sqlalchemy.exc import IntegrityError
from sqlalchemy.util import concurrency

from sqlalchemy_envelope.crypto.aead import HEADER_SIZE
from sqlalchemy_envelope.crypto.sealing import is_sealed
from sqlalchemy_envelope.exceptions import (
    ConfigurationError,
    EnrollmentError,
    EnvelopeError,
    ProviderError,
    TransactionConflictError,
)
from sqlalchemy_envelope.keys.hierarchy import bound_keys, check_generations, new_keys
from sqlalchemy_envelope.keys.keyring import Keyring
from sqlalchemy_envelope.keys.model import KeyState, Purpose, SlotKind
from sqlalchemy_envelope.keys.slots import adopted_slot, open_slot, provider_slot
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.current.locks import require_no_locks
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.current.policy import require_reason
from sqlalchemy_envelope.orm.current.threads import off_loop
from sqlalchemy_envelope.orm.sessions.found_keys import FoundKeys
from sqlalchemy_envelope.orm.sessions.unlocked import UnlockedSession
from sqlalchemy_envelope.orm.sharing.first_use import trusting_first_use
from sqlalchemy_envelope.orm.sharing.membership import looked_at
from sqlalchemy_envelope.orm.sharing.rollbacks import note_end, note_enrolment
from sqlalchemy_envelope.orm.sharing.roots import open_with_kek, renew
from sqlalchemy_envelope.orm.sharing.settle import Opening, follow_grants, settle
from sqlalchemy_envelope.orm.sharing.ways_from_provider import ways_from_provider
from sqlalchemy_envelope.orm.tables.cascades import in_greenlet, require_cascades
from sqlalchemy_envelope.orm.tables.foreign_key_errors import is_foreign_key_error
from sqlalchemy_envelope.orm.tables.key_rows import KeyStore, usable
from sqlalchemy_envelope.orm.tables.owners import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.crypto.aead import Field, ValueCipher
    from sqlalchemy_envelope.crypto.secret import KeyBytes
    from sqlalchemy_envelope.exceptions import LockedError
    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.keys.model import KeyId, OpenedKey, StoredKey, StoredSlot
    from sqlalchemy_envelope.keys.slots import ProviderKek
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.sharing.settle import Places
    from sqlalchemy_envelope.orm.tables.key_rows import OwnedKey
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass

T = TypeVar("T")

_MOST_TURNS = 5
"""Most times that the same owners are looked for anew because others make or delete their keys."""
_MOST_SHOWN = 5
"""Most primary keys in an error."""
_IN_USE = 5.0
"""Seconds for which an owner that was just needed is kept, whatever the limits say: another thread may be
reading its rows."""


class ServerSession(UnlockedSession):
    """An unlocked session of a server, for a request or a job (`with`), or for the whole process
    (`everywhere`). Made by `Envelope.server_mode`."""

    on_demand = True

    def __init__(self, session: Session | None, policy: Policy, provider: str, reason: str) -> None:
        require_reason(reason)
        self._providers = policy.require_providers()
        self._provider = provider
        self._local = self._providers.is_local(provider)
        self._can_open = self._providers.can_open(provider)
        self._reason = reason
        self._used: OrderedDict[OwnerId, tuple[float, float]] = OrderedDict()
        self._uses: dict[OwnerId, int] = {}
        self._whole: set[OwnerId] = set()
        self._stale: set[OwnerId] = set()
        self._granted: set[OwnerId] = set()
        self._swept = time.monotonic()
        self._guard = Lock()
        self._process_wide = False
        self._fresh: WeakKeyDictionary[Session, _Fresh] = WeakKeyDictionary()
        self._found: WeakKeyDictionary[Session, FoundKeys] = WeakKeyDictionary()
        self._closed: WeakKeyDictionary[Session, tuple[object, set[bytes]]] = WeakKeyDictionary()
        super().__init__(session, policy, (), Keyring())

    @property
    def makes_keys(self) -> bool:
        """Owners without keys get some here."""
        return True

    def everywhere(self) -> Self:
        """Serve the whole process from here on, until `stop`: every thread and task, those that start later
        included, and child processes, each with keys of its own. Whoever unlocks inside sees both.

        Raises:
            ConfigurationError: another one serves the process already.
        """
        self._require_usable()
        if self.is_open or context.NOTHING.server is not None:
            raise ConfigurationError(
                "Server mode is on for this process already; stop() the other one first."
            )
        self.is_open = self._process_wide = True
        self.policy.emit(self._event("server_mode_started", "the process", 1))
        context.NOTHING.serve(self)
        return self

    def stop(self) -> None:
        """Stop serving the process: wipe the keys. What was decrypted stays in its objects."""
        if context.NOTHING.server is self:
            context.NOTHING.serve(None)
        self.lock()

    def __enter__(self) -> Self:
        """Serve this context and, if one was given, this `Session`."""
        super().__enter__()
        self.policy.emit(self._event("server_mode_started", "a context", 1))
        return self

    def prepare(self) -> Self:
        """Have the KEK that new owners' slots are under wrapped now, at start-up: else the first flush of a
        new owner asks the provider, before its first statement.

        Raises:
            ProviderError: the provider failed.
        """
        if self._providers.needs_new(self._provider):
            self._providers.wrap_new(self._provider)
        return self

    def prepare_read(
        self, session: Session | None, owner_class: OwnerClass, headers: Mapping[bytes, int]
    ) -> None:
        """Fetch the keys of these values that are not here yet, one query for some thousands."""
        if self._parent is not None:
            self._parent.prepare_read(session, owner_class, headers)
        if not self.is_open or session is None:
            return
        missing, stale = [], set()
        with self._guard:  # what is found here is not swept away before it is marked as in use
            for header, uses in headers.items():
                owner = self._keyring.owner_of(header)
                if owner is not None and owner in self._stale:
                    stale.add(owner)
                    missing.append(header)
                elif owner is not None and self._leads_to(header):
                    self._touch(owner, uses)
                elif len(header) == HEADER_SIZE and (owner is not None or self.owner_of(header) is None):
                    missing.append(header)
        if missing:
            store = KeyStore(session, owner_class, self.policy.seals)
            held = store.load_held(header[1:] for header in missing)
            self._take_in(session, owner_class, held)
            there = {data.stored.key_id for data, _, _ in held}
            there |= self._follow_grants(session, store, owner_class, missing)
            self._drop_deleted(
                key_id for header in missing if (key_id := UUID(bytes=header[1:])) not in there
            )
        for owner in stale & self._stale:
            self.drop(owner)  # no slot of the provider leads to its keys any more

    def _leads_to(self, header: bytes) -> bool:
        """Whether something that is known here opens this key, or says why it must not be opened."""
        try:
            return self._keyring.open(UUID(bytes=header[1:])) is not None
        except EnvelopeError:
            return True

    def _follow_grants(
        self, session: Session, store: KeyStore, owner_class: OwnerClass, headers: Sequence[bytes]
    ) -> set[KeyId]:
        """Open the keys of these values that are still closed through grants to owners whom the provider can
        open. Gives the ids of all keys that these owners have."""
        if not owner_class.grants_of or not self._can_open:
            return set()
        closed = self._closed_of(session)
        asked = [header for header in headers if header not in closed and not self._is_ready(header)]
        if not asked:
            return set()
        rows = store.load_around([UUID(bytes=header[1:]) for header in asked])
        ways = ways_from_provider(session, self.policy.seals, self._provider, owner_class, rows)
        names, starts = Names(session), []
        for of, keys in ways.starts.items():
            held = KeyStore(session, of, self.policy.seals).load_held_of(list(keys))
            self._take_in(session, of, held)
            starts += [names.place(of, key) for key in keys]
        if starts:
            found = follow_grants(session, self.policy, self._keyring, starts, ways.between, rows=rows)
            self._take_granted(found, {place.owner for place in starts}, names)
        closed.update(header for header in asked if not self._is_ready(header))
        return {row.stored.key_id for row in rows}

    def _take_granted(self, found: Opening, starts: set[OwnerId], names: Names) -> None:
        """Note the owners whom grants led to."""
        places = list(found.places.values())
        places += [names.place(of, key) for of, keys in found.scoped.items() for key in keys]
        opened: Counter[str] = Counter()
        for place in places:
            if place.owner in starts:
                continue
            if place.owner not in self._granted or place.owner in self._stale:
                opened[place.owner_class.name] += 1
                self._renewed(place.owner)
            self._granted.add(place.owner)
            self.places.setdefault(place.owner, place)
            self._touch(place.owner, 1)
        for name, count in opened.items():
            self.policy.emit(self._event("server_opened", name, count))

    def _is_ready(self, header: bytes) -> bool:
        """Whether the key of this value serves whoever reads it now."""
        owner = self._keyring.owner_of(header)
        return owner is not None and owner not in self._stale and self._leads_to(header)

    def _closed_of(self, session: Session) -> set[bytes]:
        """The values' keys that no grant leads to, as the session's transaction sees it."""
        look, found = looked_at(session), self._closed.get(session)
        if found is None or found[0] is not look:
            found = self._closed[session] = look, set()
        return found[1]

    def _drop_deleted(self, key_ids: Iterable[KeyId]) -> None:
        """Forget keys that are in the database no more, though their owner has others."""
        for key_id in key_ids:
            owner = self._keyring.owner_of_key(key_id)
            if owner and owner not in self._stale:
                self._keyring.take_back(owner, [key_id], ())
                self._clear_readers()

    def prepare_write(
        self, session: Session | None, owner_class: OwnerClass, keys: Collection[tuple[Any, ...]], values: int
    ) -> None:
        """Open these owners for writing; who has no keys yet gets some."""
        if self._parent is not None:
            self._parent.prepare_write(session, owner_class, keys, values)
        if session is None or not self.is_open:
            return
        found, fresh, names = self._found_in(session), self._fresh_of(session), Names(session)
        waiting = [
            place
            for place in {names.place(owner_class, key) for key in keys}
            if place.owner not in found and (self._parent is None or place.owner not in self._parent)
        ]
        # What is shared is opened anew in each transaction: somebody may have been removed since.
        known = [
            place
            for place in waiting
            if place.owner in fresh.keyring or (place.owner in self._whole and not owner_class.grants_of)
        ]
        found.look_for(session, self.policy.seals, known, [fresh.keyring, self._keyring])
        missing = [place for place in waiting if place.owner not in found]
        if missing:
            self._open_whole(session, owner_class, missing)

    def _found_in(self, session: Session) -> FoundKeys:
        """What the session's present transaction found, since something changed hands in it."""
        look, found = looked_at(session), self._found.get(session)
        if found is None or found.look is not look:
            found = self._found[session] = FoundKeys(look)
            note_end(session, found.close)
        return found

    def _open_whole(self, session: Session, owner_class: OwnerClass, places: list[Place]) -> None:
        """Open these owners in this transaction; who has no keys gets some, or goes on with those that others
        made at the same moment."""
        store = KeyStore(session, owner_class, self.policy.seals)
        locking = False
        for _ in range(_MOST_TURNS):
            rows: dict[OwnerId, list[OwnedKey]] = {}
            for row in store.load([place.primary_key for place in places], for_update=locking):
                rows.setdefault(row.owner, []).append(row)
            there = [place for place in places if place.owner in rows]
            self._open_found(session, store, there, rows, locking=locking)
            new = [place for place in places if place.owner not in rows]
            places = self._enroll_rows(session, owner_class, new)
            if not places:
                return
            locking = store.shows_others_when_locked
        raise TransactionConflictError(
            f"Keys of this {owner_class.name} are in {owner_class.key_class.__table__.name}, and this "
            "transaction does not see them: others make and delete them at this moment, or a row policy of "
            "the database hides them. Run the transaction again."
        )

    def _open_found(
        self,
        session: Session,
        store: KeyStore,
        places: list[Place],
        rows: Mapping[OwnerId, list[OwnedKey]],
        *,
        locking: bool,
    ) -> None:
        if not places:
            return
        owner_class, keyring = places[0].owner_class, self._found_in(session).opened
        roots = [row.stored.key_id for place in places for row in rows[place.owner] if _is_root(row.stored)]
        slots: dict[KeyId, list[StoredSlot]] = {}
        some = store.load_slots(roots, SlotKind.PROVIDER, for_update=locking) if self._can_open else ()
        for slot in some:
            if self._providers.of(slot) == self._provider:
                slots.setdefault(slot.key_id, []).append(slot)
        opened: Places = {
            place.owner: place
            for place in places
            if self._open_owner(session, store, keyring, place, rows[place.owner], slots)
        }
        if not opened:
            return
        self.policy.emit(self._event("server_opened", owner_class.name, len(opened)))
        if owner_class.grants_of:
            settle(session, self.policy, keyring, Opening(opened, [], {}))
        for place in opened.values():
            self._renewed(place.owner)
            self._share(place, keyring)

    def _open_owner(
        self,
        session: Session,
        store: KeyStore,
        keyring: Keyring,
        place: Place,
        found: list[OwnedKey],
        slots: Mapping[KeyId, list[StoredSlot]],
    ) -> bool:
        """Take all of one owner's keys into a keyring; tells whether its active root key opened."""
        keys = [row.stored for row in found]
        try:
            usable(found)
            check_generations(keys)
            root = next((key for key in keys if _is_root(key) and key.state is KeyState.ACTIVE), None)
            slot = next(iter(slots.get(root.key_id, ())), None) if root is not None else None
            if root is None or slot is None:
                if place.owner not in self._granted:  # what a grant leads to is read, and not written
                    self._forget(place.owner)
                return False
            kek = self._kek(session, slot)
            mine = [one for key in keys for one in slots.get(key.key_id, ())]
            reached = trusting_first_use(open_with_kek(self.policy, keys, root, slot, mine, kek), keys)
            keyring.add(place.owner, [reached.root, *reached.older])
            keyring.add_stored(place.owner, keys)
            if not reached.trusted:
                renew(session, self.policy, place, keyring, reached)
            elif is_sealed(slot.wrapped):
                store.replace_slot(slot, adopted_slot(slot, reached.root, kek))
        except (ProviderError, ConfigurationError, TransactionConflictError):
            raise
        except EnvelopeError as error:
            keyring.drop(place.owner)
            keyring.refuse(place.owner, error, altogether=True)
            self._refuse_owner(place.owner, keys, error)
            return False
        return True

    def _share(self, place: Place, keyring: Keyring) -> None:
        """An owner's keys serve everybody here: to read, and to write in transactions that find them."""
        owner = place.owner
        keys = keyring.copy_of(owner)
        # Root keys first: as soon as a data key is known here, other threads take it to be open.
        self._keyring.add(owner, [one for one in keys if _is_root(one.stored)])
        self._keyring.add(owner, [one for one in keys if not _is_root(one.stored)])
        self._keyring.add_stored(owner, keyring.keys_of(owner))
        self.places[owner] = place
        self._whole.add(owner)
        self._touch(owner, 1)

    def _take_in(
        self, session: Session, owner_class: OwnerClass, held: Sequence[tuple[OwnedKey, OwnedKey, StoredSlot]]
    ) -> None:
        """Take in data keys that were loaded with the root key and the slot that lead to them."""
        opened, store_where = set(), Names(session).where(owner_class)
        for data, root, slot in held:
            owner = data.owner
            if self._providers.of(slot) != self._provider or not self._can_open:
                continue
            try:
                usable([root, data])
                if not self._keyring.is_open(root.stored.key_id) or owner in self._stale:
                    self._keyring.add(owner, [open_slot(slot, root.stored, self._kek(session, slot))])
                    self._renewed(owner)
                    opened.add(owner)
                # Last: as soon as it is known here, other threads take it to be open.
                self._keyring.add_stored(owner, [data.stored])
            except (ProviderError, ConfigurationError):
                raise
            except EnvelopeError as error:
                self._refuse_owner(owner, [root.stored, data.stored], error)
            self.places.setdefault(owner, Place(owner_class, data.primary_key, store_where))
            self._touch(owner, 1)
        if opened:
            self.policy.emit(self._event("server_opened", owner_class.name, len(opened)))

    def _refuse_owner(self, owner: OwnerId, keys: Sequence[StoredKey], error: EnvelopeError) -> None:
        """Whoever asks for these keys is told why they do not open."""
        self._keyring.refuse(owner, error, altogether=True)
        self._keyring.add_stored(owner, keys)

    def _kek(self, session: Session, slot: StoredSlot) -> KeyBytes:
        kek = self._providers.cached(slot)
        if kek is None:
            if not self._local:
                require_no_locks(session, self._provider)
            kek = _off_loop(lambda: self._providers.open(slot))
        return kek

    def kek_for_new(self, session: Session) -> ProviderKek:
        """The KEK that new owners' slots are under. A flush takes the one that is there, however old."""
        ready = self._providers.ready_for_new(self._provider)
        flushing = session._flushing
        if ready is not None and (flushing or not self._providers.needs_new(self._provider)):
            return ready
        if not self._local:
            require_no_locks(session, self._provider)
        made: ProviderKek = _off_loop(lambda: self._providers.wrap_new(self._provider))
        return made

    def _enroll_rows(self, session: Session, owner_class: OwnerClass, places: list[Place]) -> list[Place]:
        """Make keys for owners who are in the database and have none: for whom others were faster."""
        if not places or owner_class.reference_attribute is not None:
            return []  # what keys are bound to is not known here; they stay locked
        kek = self.kek_for_new(session)
        made = [
            (
                place,
                bound_keys(
                    new_keys(owner_class.scopes, hybrid=self.policy.hybrid),
                    owner_class.reference_of(place.primary_key),
                ),
            )
            for place in places
        ]
        try:
            return self.write_new(session, owner_class, made, kek)
        except IntegrityError as error:
            if not is_foreign_key_error(error):
                raise
            keys = [", ".join(map(repr, place.primary_key)) for place in places]
            told = f"no {owner_class.name} has the key {keys[0]}"
            if len(keys) > 1:
                some = "; ".join(keys[:_MOST_SHOWN])
                told = f"at least one of these keys is no {owner_class.name}'s: {some}"
            raise EnrollmentError(
                f"Rows name an owner who does not exist: {told}. "
                f"Insert the {owner_class.name} before its rows."
            ) from error

    def write_new(
        self,
        session: Session,
        owner_class: OwnerClass,
        made: Sequence[tuple[Place, list[OpenedKey]]],
        kek: ProviderKek,
    ) -> list[Place]:
        """Store the keys of new owners, all in three statements, and hold them: for this session alone until
        its transaction is committed. Those for whom others stored keys at the same moment are returned, and
        have none of these."""
        require_cascades(session, owner_class.mapper)
        store = KeyStore(session, owner_class, self.policy.seals)
        stored = store.insert_first_of(
            [
                (place.primary_key, [one.stored for one in keys], [provider_slot(keys[0], kek)])
                for place, keys in made
            ]
        )
        fresh, found, lost = self._fresh_of(session), self._found_in(session), []
        for place, keys in made:
            if keys[0].stored.key_id not in stored:
                lost.append(place)
                for one in keys:
                    one.key.wipe()
                continue
            fresh.keyring.add(place.owner, keys)
            found.note_made(place, keys)
            note_enrolment(
                session,
                place.owner,
                fresh,
                lambda place=place: self._admit(fresh, place),  # type: ignore[misc]
            )
        if stored:
            self.policy.emit(self._event("server_enrolled", owner_class.name, len(stored)))
        return lost

    def _fresh_of(self, session: Session) -> _Fresh:
        fresh = self._fresh.get(session)
        if fresh is None:
            fresh = self._fresh[session] = _Fresh()
        return fresh

    def _admit(self, fresh: _Fresh, place: Place) -> None:
        """An owner's keys are committed: they serve everybody here."""
        if self.is_open and place.owner in fresh.keyring:
            self._share(place, fresh.keyring)
        fresh.drop(place.owner)

    def writer(
        self, owner: OwnerId, scope: str, field: Field, session: Session | None = None
    ) -> ValueCipher | None:
        """The cipher for new values of an owner, under a key that the session's transaction found or made."""
        found = self._found.get(session) if session is not None else None
        cipher = None
        if session is not None and found is not None and self.is_open:
            kept = (self._keyring, self._fresh_of(session).keyring)
            cipher = found.writer(owner, scope, field, kept)
            if cipher is None and (place := found.forget(owner)) is not None:
                # It was over a limit, or another thread let go of it: it is opened for this one alone.
                self._open_whole(session, place.owner_class, [place])
                cipher = self._found_in(session).writer(owner, scope, field, kept)
        if cipher is None and self._parent is not None:
            cipher = self._parent.writer(owner, scope, field, session)
        return cipher

    def reader(self, header: bytes, field: Field) -> ValueCipher | None:
        """The cipher for a stored value. Values name their key, so a new owner's serves whoever sees them."""
        found = super().reader(header, field)
        if found is None and self.is_open:
            found = next(
                (
                    cipher
                    for one in self._all_fresh()
                    if (cipher := one.keyring.reader(header, field)) is not None
                ),
                None,
            )
        return found

    def owner_of(self, header: bytes) -> OwnerId | None:
        """Whose key a stored value names."""
        found = super().owner_of(header)
        if found is None and self.is_open:
            found = next(
                (owner for one in self._all_fresh() if (owner := one.keyring.owner_of(header)) is not None),
                None,
            )
        return found

    def keyring_for(self, owner: OwnerId, session: Session | None = None) -> Keyring | None:
        """The keyring that reaches the owner's root key."""
        found = self._found.get(session) if session is not None else None
        if found is not None and found.opened.root(owner) is not None:
            return found.opened
        fresh = self._fresh.get(session) if session is not None else None
        if fresh is not None and owner in fresh.keyring:
            return fresh.keyring
        return super().keyring_for(owner, session)

    def begin_statement(self, session: Session | None) -> None:
        """Let go of what is over a limit."""
        self.saw(session)
        now = time.monotonic()
        if now - self._swept > 1.0 or len(self._used) > self._providers.cache.keys:
            self._swept = now
            self._sweep(now)

    def _touch(self, owner: OwnerId, uses: int) -> None:
        now = time.monotonic()
        since, _ = self._used.pop(owner, (now, now))
        self._used[owner] = since, now  # the latest at the end
        self._uses[owner] = self._uses.get(owner, 0) + uses

    def _renewed(self, owner: OwnerId) -> None:
        """An owner's keys were opened anew: its time and uses begin again."""
        self._stale.discard(owner)
        self._used.pop(owner, None)
        self._uses.pop(owner, None)

    def _sweep(self, now: float) -> None:
        """Let go of owners over a limit; one that is in use is to be opened anew before its next use."""
        cache = self._providers.cache
        with self._guard:
            due = []
            for owner, (since, last) in list(self._used.items()):
                if now - since > cache.seconds or self._uses.get(owner, 0) > cache.uses:
                    if now - last > _IN_USE:
                        due.append(owner)
                    else:
                        self._stale.add(owner)
                        self._whole.discard(owner)
            gone = set(due)
            over = len(self._used) - len(due) - cache.keys
            for owner, (_, last) in list(self._used.items()):
                if over <= 0:
                    break
                if now - last > _IN_USE and owner not in gone:
                    due.append(owner)
                    over -= 1
            for owner in due:
                self._forget(owner)
        if due:
            self._clear_readers()

    def _forget(self, owner: OwnerId) -> None:
        self._used.pop(owner, None)
        self._uses.pop(owner, None)
        self._whole.discard(owner)
        self._stale.discard(owner)
        self._granted.discard(owner)
        self.places.pop(owner, None)
        self._keyring.drop(owner)

    def forget_deleted(self, owner_classes: Collection[OwnerClass], owner: OwnerId | None = None) -> None:
        """Owners of these classes may have been deleted: load their keys anew before their next use."""
        with self._guard:
            due = {owner for owner, place in list(self.places.items()) if place.owner_class in owner_classes}
            self._stale |= due
            self._whole -= due
        super().forget_deleted(owner_classes, owner)

    def drop(self, owner: OwnerId) -> None:
        """An owner's keys are not to be used again."""
        self._forget(owner)
        self._clear_readers()

    def saw(self, session: Session | None) -> None:
        """Note a session that may hold decrypted values; for a whole process nobody will ask."""
        if not self._process_wide:
            super().saw(session)

    def close_in_child(self) -> None:
        """A forked child has no keys of its parent's, and goes on serving if that served its process."""
        if not self._process_wide:
            super().close_in_child()
            return
        self._guard = Lock()
        self._keyring.wipe()
        self._wipe_of_sessions()
        self._keyring = Keyring()  # the other one's lock may be held by a thread that is not here
        for known in (
            self._used,
            self._uses,
            self._whole,
            self._stale,
            self._granted,
            self._closed,
            self.places,
            self.readers,
        ):
            known.clear()
        self._providers.forget()

    def _close(self, why: type[LockedError]) -> None:
        super()._close(why)
        self._wipe_of_sessions()

    def _all_fresh(self) -> list[_Fresh]:
        return _of_all(self._fresh)

    def _wipe_of_sessions(self) -> None:
        for fresh in _of_all(self._fresh):
            fresh.keyring.wipe()
        for found in _of_all(self._found):
            found.close()
        self._fresh.clear()
        self._found.clear()

    def _event(self, name: str, owner_class: str, count: int) -> AuditEvent:
        return AuditEvent(name, owner_class, count=count, reason=self._reason, provider=self._provider)


class _Fresh:
    """The keys of owners who are new in one session, and not committed yet."""

    def __init__(self) -> None:
        self.keyring = Keyring()

    def drop(self, owner: OwnerId) -> None:
        """The transaction that made them was rolled back, or committed."""
        self.keyring.drop(owner)


def _of_all(by_session: WeakKeyDictionary[Session, T]) -> list[T]:
    # By references: `values()` fails when another thread's session comes in meanwhile.
    sessions = [reference() for reference in by_session.keyrefs()]
    found = [by_session.get(session) for session in sessions if session is not None]
    return [one for one in found if one is not None]


def _is_root(key: StoredKey) -> bool:
    return key.purpose is Purpose.ROOT


def _off_loop(call: Callable[[], Any]) -> Any:
    """Call a provider; where asyncio runs, in a thread, so that its loop is not held up."""
    if in_greenlet():
        return concurrency.await_only(off_loop(call))
    return call()
