"""Server mode: owners whose keys a provider holds are opened as their rows appear.

For applications whose operator holds the keys, and for worker processes. Keys are fetched for all rows of a
fetch at once, kept for a time, a number of uses and up to a number of owners, and always with a reason in the
audit event. Owners without a slot of the provider stay locked.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import inspect
from sqlalchemy.util import concurrency

from sqlalchemy_envelope.exceptions import ConfigurationError, EnvelopeError
from sqlalchemy_envelope.keys.hierarchy import check_generations
from sqlalchemy_envelope.keys.keyring import Keyring
from sqlalchemy_envelope.keys.model import Purpose, SlotKind
from sqlalchemy_envelope.keys.slots import open_slot, provider_slot
from sqlalchemy_envelope.orm import context
from sqlalchemy_envelope.orm.audit import AuditEvent
from sqlalchemy_envelope.orm.enrolling import bound_keys, new_keys
from sqlalchemy_envelope.orm.epochs import Place
from sqlalchemy_envelope.orm.opening import Opening, settle
from sqlalchemy_envelope.orm.owners import owner_class_of
from sqlalchemy_envelope.orm.provided import require_no_locks
from sqlalchemy_envelope.orm.store import KeyStore
from sqlalchemy_envelope.orm.transactions import note_enrolment
from sqlalchemy_envelope.orm.unlocked import UnlockedSession
from sqlalchemy_envelope.orm.unlocking import require_reason
from sqlalchemy_envelope.orm.writing import ENROLLING_OWNER, Enrolling, enrolling_in, note_enrolling

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from sqlalchemy.orm import InstanceState, Session

    from sqlalchemy_envelope.crypto.secret import KeyBytes
    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.keys.model import OpenedKey, StoredKey, StoredSlot
    from sqlalchemy_envelope.keys.slots import ProviderKek
    from sqlalchemy_envelope.orm.owners import OwnerClass
    from sqlalchemy_envelope.orm.policy import Policy

_IN_USE = 5.0
"""Seconds for which an owner that was just needed is kept, whatever the limits say: another thread may be
reading its rows."""
_MADE = "sqlalchemy_envelope.server_made"


class ServerSession(UnlockedSession):
    """An unlocked session of a server, for a request or a job (`with`), or for the whole process
    (`everywhere`). Made by `Envelope.server_mode`."""

    on_demand = True

    def __init__(self, session: Session | None, policy: Policy, provider: str, reason: str) -> None:
        require_reason(reason)
        self._providers = policy.require_providers()
        self._provider = provider
        self._local = self._providers.is_local(provider)
        self._reason = reason
        self._used: OrderedDict[OwnerId, tuple[float, float]] = OrderedDict()
        self._uses: dict[bytes, int] = {}
        self._whole: set[OwnerId] = set()
        self._swept = time.monotonic()
        self._guard = Lock()
        self._process_wide = False
        super().__init__(session, policy, (), Keyring())

    def everywhere(self) -> Self:
        """Serve the whole process from here on, until `stop`: every thread and task, those that start later
        included, and child processes, each with keys of its own. Whoever unlocks inside sees both.

        Raises:
            ConfigurationError: another one serves the process already.
        """
        self._require_usable()
        if self.is_open or context.PROCESS[0] is not None:
            raise ConfigurationError(
                "Server mode is on for this process already; stop() the other one first."
            )
        self.is_open = self._process_wide = True
        self.policy.emit(self._event("server_mode_started", "the process", 1))
        context.serve_process(self)
        return self

    def stop(self) -> None:
        """Stop serving the process: wipe the keys. What was decrypted stays in its objects."""
        if context.PROCESS[0] is self:
            context.serve_process(None)
        self.lock()

    def __enter__(self) -> Self:
        """Serve this context and, if one was given, this `Session`."""
        super().__enter__()
        self.policy.emit(self._event("server_mode_started", "a context", 1))
        return self

    def prepare_read(
        self, session: Session | None, owner_class: OwnerClass, headers: Mapping[bytes, int]
    ) -> None:
        """Fetch the keys of these values that are not here yet, one query for some thousands."""
        if self._parent is not None:
            self._parent.prepare_read(session, owner_class, headers)
        if not self.is_open or session is None:
            return
        missing = []
        for header, uses in headers.items():
            owner = self._keyring.owner_of(header)
            if owner is None:
                if len(header) == 17 and (self._parent is None or self._parent.owner_of(header) is None):
                    missing.append(header)
            else:
                self._touch(owner, header, uses)
        if missing:
            store = KeyStore(session, owner_class, self.policy.seals)
            self._open(session, owner_class, store.load_held(header[1:] for header in missing))

    def prepare_write(
        self, session: Session | None, owner_class: OwnerClass, keys: Collection[tuple[Any, ...]], values: int
    ) -> None:
        """Open these owners for writing; who has no keys yet gets some."""
        if self._parent is not None:
            self._parent.prepare_write(session, owner_class, keys, values)
        if session is None or not self.is_open:
            return
        places = [Place(owner_class, key) for key in keys]
        missing = [
            place
            for place in places
            if place.owner not in self._whole and (self._parent is None or place.owner not in self._parent)
        ]
        if missing:
            self._open_whole(session, owner_class, missing)
        super().prepare_write(session, owner_class, keys, values)

    def _open_whole(self, session: Session, owner_class: OwnerClass, places: list[Place]) -> None:
        store = KeyStore(session, owner_class, self.policy.seals)
        rows: dict[OwnerId, list[Any]] = {}
        for row in store.load([place.primary_key for place in places]):
            rows.setdefault(row.owner, []).append(row)
        new = [place for place in places if place.owner not in rows]
        if new:
            self._enroll_rows(session, owner_class, new)
        roots: dict[Any, StoredKey] = {}
        for owner, found in rows.items():
            keys = [row.stored for row in found]
            error: EnvelopeError | None = next((row.error for row in found if row.error is not None), None)
            try:
                check_generations(keys)
            except EnvelopeError as altered:
                error = error or altered
            self._keyring.add_stored(owner, keys)
            if error is not None:
                self._keyring.refuse(owner, error, altogether=True)
            else:
                roots |= {key.key_id: key for key in keys if key.purpose is Purpose.ROOT}
        held = store.load_slots(roots, SlotKind.PROVIDER) if roots else []
        self._open_roots(session, owner_class, [(roots[slot.key_id], slot) for slot in held])
        reached = {place.owner: place for place in places if self._keyring.root(place.owner) is not None}
        self._whole.update(reached)
        self.places.update(reached)
        if owner_class.grants_of and rows:
            settle(session, self.policy, self._keyring, Opening(reached, []))

    def _open(
        self, session: Session, owner_class: OwnerClass, held: Sequence[tuple[Any, Any, StoredSlot]]
    ) -> None:
        """Take in data keys that were loaded with the root key and the slot that lead to them."""
        for data, root, _ in held:
            self._keyring.add_stored(data.owner, [root.stored, data.stored])
            error = data.error or root.error
            if error is not None:
                self._keyring.refuse(data.owner, error, altogether=True)
            self.places.setdefault(data.owner, Place(owner_class, data.primary_key))
        self._open_roots(session, owner_class, [(root.stored, slot) for _, root, slot in held])

    def _open_roots(
        self, session: Session, owner_class: OwnerClass, held: Iterable[tuple[StoredKey, StoredSlot]]
    ) -> None:
        opened = 0
        for root, slot in held:
            if self._providers.of(slot) != self._provider:
                continue
            owner = self._keyring.owner_of_key(root.key_id)
            if self._keyring.is_open(root.key_id):
                continue
            try:
                self._keyring.add(owner, [open_slot(slot, root, self._kek(session, slot))])
                opened += 1
            except EnvelopeError as error:
                if not isinstance(error, _PASSING):
                    self._keyring.refuse(owner, error, altogether=True)
                else:
                    raise
            self._touch(owner, None, 1)
        if opened:
            self.policy.emit(self._event("server_opened", owner_class.name, opened))

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

    def _enroll_rows(self, session: Session, owner_class: OwnerClass, places: Iterable[Place]) -> None:
        """Make keys for owners who are in the database and have none."""
        if owner_class.reference_attribute is not None:
            return  # what keys are bound to is not known here; they stay locked
        kek = self.kek_for_new(session)
        made = [
            (place, bound_keys(new_keys(owner_class, self.policy), place.owner, self.policy))
            for place in places
        ]
        self.write_new(session, owner_class, made, kek)

    def write_new(
        self,
        session: Session,
        owner_class: OwnerClass,
        made: Sequence[tuple[Place, list[OpenedKey]]],
        kek: ProviderKek,
    ) -> None:
        """Store the keys of new owners, all of them in two statements, and hold them."""
        store = KeyStore(session, owner_class, self.policy.seals)
        store.insert_keys([(place.primary_key, one.stored) for place, keys in made for one in keys])
        store.insert_slots([provider_slot(keys[0], kek) for _, keys in made])
        for place, keys in made:
            self._keyring.add(place.owner, keys)
            self.places[place.owner] = place
            self._whole.add(place.owner)
            self._touch(place.owner, None, 1)
            note_enrolment(session, place.owner, self)
        self.policy.emit(self._event("server_enrolled", owner_class.name, len(made)))

    def begin_statement(self, session: Session) -> None:
        """Let go of what is over a limit."""
        if not self._process_wide:
            super().begin_statement(session)
        now = time.monotonic()
        if now - self._swept > 1.0 or len(self._used) > self._providers.cache.keys:
            self._swept = now
            self._sweep(now)

    def _touch(self, owner: OwnerId, header: bytes | None, uses: int) -> None:
        now = time.monotonic()
        since, _ = self._used.get(owner, (now, now))
        self._used[owner] = since, now
        self._used.move_to_end(owner)
        if header is not None:
            self._uses[owner] = self._uses.get(owner, 0) + uses

    def _sweep(self, now: float) -> None:
        cache = self._providers.cache
        with self._guard:
            due = [
                owner
                for owner, (since, last) in list(self._used.items())
                if now - last > _IN_USE
                and (now - since > cache.seconds or self._uses.get(owner, 0) > cache.uses)
            ]
            over = len(self._used) - len(due) - cache.keys
            for owner, (_, last) in list(self._used.items()):
                if over <= 0:
                    break
                if now - last > _IN_USE and owner not in due:
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
        self.places.pop(owner, None)
        self._keyring.drop(owner)

    def drop(self, owner: OwnerId) -> None:
        """An owner's enrolment was rolled back."""
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
        self._keyring = Keyring()
        for known in (self._used, self._uses, self._whole, self.places, self.readers):
            known.clear()  # type: ignore[attr-defined]
        self._providers.forget()

    def _event(self, name: str, owner_class: str, count: int) -> AuditEvent:
        return AuditEvent(name, owner_class, count=count, reason=self._reason, provider=self._provider)


_PASSING = (ConfigurationError,)


def _off_loop(call: Callable[[], Any]) -> Any:
    """Call a provider; where asyncio runs, in a thread, so that its loop is not held up."""
    if concurrency.in_greenlet():
        return concurrency.await_only(asyncio.to_thread(call))
    return call()


def _server(session: Session) -> ServerSession | None:
    return next((one for one in context.unlocked_sessions(session) if isinstance(one, ServerSession)), None)


def before_flush(session: Session, *_: object) -> None:
    """New owners get keys in server mode, without a call of `enroll`."""
    server = _server(session)
    if server is None:
        return
    waiting = enrolling_in(session)
    made: list[tuple[InstanceState[Any], OwnerClass, list[OpenedKey]]] = []
    for instance in session.new:
        state: InstanceState[Any] = inspect(instance)
        owner_class = owner_class_of(getattr(type(instance), "__table__", None))
        if owner_class is None or owner_class.key_class is None or state in waiting:
            continue
        if owner_class.slot_class is None:
            continue
        keys = new_keys(owner_class, server.policy)
        keyring = Keyring()
        keyring.add(ENROLLING_OWNER, keys[1:])
        note_enrolling(session, Enrolling(state, owner_class, keyring))
        made.append((state, owner_class, keys))
    if made:
        server.kek_for_new(session)
        session.info[_MADE] = made


def after_flush(session: Session, *_: object) -> None:
    """Their rows are written: bind their keys to them and store those."""
    made = session.info.pop(_MADE, None)
    server = _server(session)
    if not made or server is None:
        return
    kek = server.kek_for_new(session)
    by_class: dict[OwnerClass, list[tuple[Place, list[OpenedKey]]]] = {}
    for state, owner_class, keys in made:
        enrolling_in(session).pop(state, None)
        primary_key = tuple(
            state.dict[state.mapper.get_property_by_column(column).key] for column in state.mapper.primary_key
        )
        place = Place(owner_class, primary_key)
        reference = owner_class.reference(state.obj(), primary_key)
        by_class.setdefault(owner_class, []).append((place, bound_keys(keys, reference, server.policy)))
    with session.no_autoflush:
        for owner_class, some in by_class.items():
            server.write_new(session, owner_class, some, kek)


def after_soft_rollback(session: Session, *_: object) -> None:
    """A flush that failed leaves no half-made owners behind."""
    for state, _, keys in session.info.pop(_MADE, None) or ():
        enrolling_in(session).pop(state, None)
        for one in keys:
            one.key.wipe()
