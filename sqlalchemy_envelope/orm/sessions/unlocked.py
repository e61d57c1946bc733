"""One unlocked session: the keys that are open, where, and what happens when it is left.

Unlocked sessions nest: an inner one sees the keys of the outer one too, and takes only its own with it. Two
other kinds stand where this one may: `write_only`, which encrypts for owners who are locked, and `server`,
which opens owners as their rows appear.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar
from weakref import WeakKeyDictionary, WeakMethod, WeakSet, finalize

from sqlalchemy.orm import attributes

from sqlalchemy_envelope.crypto.aead import HEADER_SIZE, check_value
from sqlalchemy_envelope.crypto.context import encode_reference
from sqlalchemy_envelope.crypto.frames import emptying
from sqlalchemy_envelope.exceptions import (
    ConfigurationError,
    LockedError,
    SessionForkedError,
    SessionLeftError,
    UnflushedError,
)
from sqlalchemy_envelope.keys.keyring import Keyring
from sqlalchemy_envelope.orm.columns.leaving import forget_plaintext
from sqlalchemy_envelope.orm.columns.sealed import Sealed
from sqlalchemy_envelope.orm.columns.state import unflushed
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.sharing.membership import freshen
from sqlalchemy_envelope.orm.sharing.reach import Reach
from sqlalchemy_envelope.orm.sharing.rollbacks import note_outcome, note_rollback
from sqlalchemy_envelope.orm.sharing.settle import Opening
from sqlalchemy_envelope.orm.tables.cascades import in_greenlet
from sqlalchemy_envelope.orm.tables.owners import Place, require_owner_class
from sqlalchemy_envelope.orm.tables.session_notes import notes_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from sqlalchemy.orm import InstanceState, Session

    from sqlalchemy_envelope.crypto.aead import Field, ValueCipher
    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.keys.model import OpenedKey
    from sqlalchemy_envelope.orm.columns.plans import EncryptedAttribute
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.sharing.waiting import Waiting
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass

_live: WeakSet[UnlockedSession] = WeakSet()


T = TypeVar("T")


class UnlockedSession(context.OpenKeys):
    """Keys of an owner and of all that was granted to it, open from `with` to its end. Made by
    `Envelope.enroll` and `Envelope.unlock`.

    Entering it puts it into the context and binds it to the `Session`. It is left once;
    after that it is of no use.
    """

    on_demand = False
    """Whether keys are fetched or made as they are needed: it is told beforehand of the rows that come."""
    follows = False
    """Whether grants, here or around this, are followed as they are needed: it is told so too."""

    def __init__(
        self,
        session: Session | None,
        policy: Policy,
        places: Sequence[Place],
        keyring: Keyring,
        waiting: Waiting | None = None,
    ) -> None:
        self.home = session
        self.policy = policy
        self.places: dict[OwnerId, Place] = {place.owner: place for place in places}
        self._keyring = keyring
        self._former: dict[OwnerId, tuple[Place | None, Keyring]] = {}
        """Of owners that were deleted, until the commit: others have their names."""
        self._waiting = waiting
        self._settled = waiting is None
        self._reach: Reach | None = None
        if waiting is not None:
            self._reach, self.follows = Reach(policy, keyring, places[0]), True
            waiting.take(keyring, Opening(dict(self.places), [], {}), waits=True)
        self._parent: Any = None
        # Dictionaries, because a WeakSet cannot be listed while another thread adds to it.
        self._children: WeakKeyDictionary[UnlockedSession, None] = WeakKeyDictionary()
        self._sessions: WeakKeyDictionary[Session, None] = WeakKeyDictionary()
        self._last_seen: Session | None = None
        self._displaced: UnlockedSession | None = None
        self._surrounding: Any = context.NOTHING
        self.is_open = False
        self.left: type[LockedError] | None = None
        self.readers: dict[object, dict[bytes, Any]] = {}
        """By column and value header, what opens the values of one owner. Emptied when anything is locked."""
        _live.add(self)
        # One that is never entered is left by nobody: its keys are wiped when it is forgotten.
        finalize(self, keyring.wipe).atexit = False
        if waiting is not None:
            finalize(self, waiting.wipe).atexit = False

    @emptying
    def __enter__(self) -> Self:
        """Unlock: from here on values of the owner are encrypted and decrypted.

        Raises:
            SessionLeftError, SessionForkedError: it was left already, or belongs to the parent process.
        """
        self._require_usable()
        if self.is_open:
            raise ConfigurationError(
                "This unlocked session is entered already; unlock again for a second one."
            )
        open_here = context.unlocked_sessions(self.home)
        self._parent = open_here[0] if open_here else None
        if self._parent is not None:
            self._parent._children[self] = None
            self.follows = self.follows or self._parent.follows
        self.is_open = True
        if self.home is not None:
            notes = notes_of(self.home)
            self._displaced, notes.bound = notes.bound, self
            self._sessions[self.home] = None
        self._surrounding = context.CURRENT.get()
        context.CURRENT.set(self)
        return self

    def __aenter__(self) -> NoReturn:
        raise ConfigurationError(
            "This is entered without waiting for anything: write `with`, and not `async with`. For an "
            "AsyncSession, `AsyncEnvelope` has the same verbs; its enroll and unlock take `async with`."
        )

    def __aexit__(self, *_: object) -> NoReturn:
        """Never reached; without it `async with` would not come as far as `__aenter__`."""
        raise NotImplementedError

    @property
    def only_owner(self) -> OwnerId | None:
        """The owner whose keys are open here, if nobody else's are, or could be in a moment."""
        if self.on_demand or self._reach or not len(self._keyring) == len(self.places) == 1:
            return None
        owner = next(iter(self.places), None)
        return owner if self._parent is None or self._parent.only_owner == owner else None

    def admit(self, place: Place, keys: Iterable[OpenedKey]) -> None:
        """Take in an owner that was enrolled inside this unlocked session."""
        if self._reach is not None:
            self._reach.note(place)
        self.places[place.owner] = place
        self._keyring.add(place.owner, keys)

    def make_way(self, session: Session, place: Place) -> None:
        """A session makes the first keys of this owner: what is open here under its name, or around this, is
        of one that it deleted in the same transaction."""
        owner = place.owner
        if owner in self._keyring and not self.on_demand:
            self._former[owner] = self.places.get(owner), self._keyring.put_aside(owner)
            self._clear_readers()
            forget, take_back = WeakMethod(self._forget_former), WeakMethod(self._take_back_former)
            note_outcome(
                session,
                lambda: (call := forget()) and call(owner),
                lambda: (call := take_back()) and call(owner),
            )
        if self._parent is not None:
            self._parent.make_way(session, place)

    def _forget_former(self, owner: OwnerId) -> None:
        _, keyring = self._former.pop(owner, (None, None))
        if keyring is not None:
            keyring.wipe()

    def _take_back_former(self, owner: OwnerId) -> None:
        place, keyring = self._former.pop(owner, (None, None))
        if keyring is None:
            return
        self._keyring.put_back(owner, keyring)
        if place is not None:
            self.places[owner] = place
        self._clear_readers()

    @property
    def keyring(self) -> Keyring:
        """The keys themselves."""
        return self._keyring

    def follow_all(self, session: Session | None = None) -> None:
        """Follow everything that the owner was granted, and what that leads to, here and around this, unless
        it was followed: with one query for each class of grants and of owners on the way.

        Args:
            session: the one to read with. Another one than that of the unlock may be in use by another thread
                or task; left out, or if it reaches another database, that of the unlock reads.
        """
        reach = self._reach
        if reach is not None and self._waiting is not None and self.left is None:
            reader = self._reads_with(reach, session)
            if reader is not None:
                self._end(reach, reach.follow_all(reader, self))
        if self._parent is not None:
            self._parent.follow_all(session)

    def _end(self, reach: Reach, found: Opening) -> None:
        """Everything was followed."""
        if self._reach is reach:  # no other thread was faster
            self._take(found, waits=True, whole=True)
            self._reach = None
            self.follows = self._parent is not None and self._parent.follows

    def _take(self, found: Opening, *, waits: bool = False, whole: bool = False) -> None:
        assert self._waiting is not None  # noqa: S101 - who was unlocked alone follows
        self.places.update(found.places)
        if self._waiting.take(self._keyring, found, waits=waits, whole=whole):
            self._settled = False

    def follow_owners(
        self, session: Session | None, owner_class: OwnerClass, keys: Collection[tuple[Any, ...]]
    ) -> None:
        """Follow what leads to these owners, here and around this, on every way: something is written or
        granted for them."""
        self._follow_owners(session, owner_class, keys)
        if self._parent is not None:
            self._parent.follow_owners(session, owner_class, keys)

    def _follow_owners(
        self, session: Session | None, owner_class: OwnerClass, keys: Collection[tuple[Any, ...]]
    ) -> None:
        reach = self._reach
        left = reach.unfollowed(owner_class, keys) if reach is not None and self.left is None else ()
        if reach is None or not left:
            return
        reader = self._reads_with(reach, session)
        if reader is None:
            return
        for found in reach.follow_owners(reader, self, owner_class, left):
            self._take(found)

    def may_follow(self, owner_class: OwnerClass, header: bytes) -> bool:
        """Whether nothing looked yet, here and around this, for grants that lead to the key of a stored
        value."""
        reach = self._reach
        if reach is not None and reach.may_lead_to(owner_class) and reach.closed(owner_class, [header]):
            return True
        return self._parent is not None and bool(self._parent.may_follow(owner_class, header))

    def find_others(self, session: Session | None) -> None:
        """Have it known whether keys of other owners may come, here and around this: `only_owner` tells
        nobody as long as it is not."""
        reach = self._reach
        if reach is not None and self._waiting is not None and self.left is None:
            reader = self._reads_with(reach, session)
            if reader is not None and not reach.leads_on(reader):
                self._end(reach, Opening(dict(self.places), [], {}))
        if self._parent is not None:
            self._parent.find_others(session)

    def _reads_with(self, reach: Reach, session: Session | None) -> Session | None:
        """The session that grants are read with; None where nothing can be awaited."""
        reader = session if session is not None and reach.is_in(session) else self.home
        if reader is None or (self._waiting is not None and self._waiting.is_async(reader)):
            return reader if in_greenlet() else None
        return reader

    def keyring_for(self, owner: OwnerId, session: Session | None = None) -> Keyring | None:
        """The keyring, of this unlocked session or one around it, that reaches the root key of an owner to
        whom the grants were followed."""
        if self.is_open and owner in self._keyring and self._keyring.root(owner) is not None:
            return self._keyring
        return self._parent.keyring_for(owner, session) if self._parent is not None else None

    @emptying
    def settle(self) -> None:
        """Do now what the first write would do: adopt what was sealed to this owner, grant what is pending,
        start a new epoch where somebody was removed. For a log-in whose requests only read. Never commits; a
        rollback leaves it to the next write. With nothing left to do it does nothing.

        Raises:
            SessionLeftError, SessionForkedError: it was left already, or belongs to the parent process.
            ConfigurationError: the session is an AsyncSession.
        """
        self._require_usable()
        if self.home is None:
            return
        is_async = self._waiting is not None and self._waiting.is_async(self.home)
        if is_async and not in_greenlet():
            raise ConfigurationError(
                "An AsyncSession is settled with `await AsyncEnvelope(envelope).settle(session)`."
            )
        self.settle_in(self.home)

    def settle_in(self, session: Session) -> None:
        """As `settle`, in the transaction of a session that is about to write under these keys."""
        waiting = self._waiting
        if self._settled or waiting is None or self.left is not None:
            return
        self._settled = True  # what it writes itself asks for nothing
        try:
            self._follow_undone(session)
            for owner_class, keys in waiting.owners.items():
                self._follow_owners(session, owner_class, keys)
            self._settled = True
            self.places.update(waiting.settle(session, self.policy, self._keyring))
        except BaseException:
            self._settle_again()
            raise
        again = WeakMethod(self._settle_again)
        note_rollback(session, lambda: (settle_again := again()) and settle_again())

    def _follow_undone(self, session: Session) -> None:
        """Follow what leads to the owners for whom something waits."""
        reach = self._reach
        reader = None if reach is None else self._reads_with(reach, session)
        if reach is None or reader is None or reach.has_looked:
            return
        undone = reach.undone(reader)
        if undone is None:
            self.follow_all(session)
        for owner_class, keys in (undone or {}).items():
            for found in reach.follow_owners(reader, self, owner_class, keys):
                self._take(found, waits=True)
        reach.has_looked = True

    def _settle_again(self) -> None:
        if self._waiting is not None:
            self._waiting.again()
        self._settled = False

    def settle_for(self, session: Session, owner: OwnerId) -> None:
        """As `settle_in`, here or around this, of who holds this owner's keys."""
        if self.is_open and not self._settled and owner in self._keyring:
            self.settle_in(session)
        if self._parent is not None:
            self._parent.settle_for(session, owner)

    def places_for(self, owner: OwnerId) -> Mapping[OwnerId, Place]:
        """Whom the keyring reaches, of this unlocked session or one around it, that this owner's keys are
        in."""
        if self._parent is None or (self.is_open and owner in self._keyring):
            return self.places
        found: Mapping[OwnerId, Place] = self._parent.places_for(owner)
        return found

    def waits_in(self, session: Session) -> bool:
        """Whether an unlock in this session, here or around this, left something to be settled."""
        if self.home is session and self.is_open and not self._settled:
            return True
        return self._parent is not None and bool(self._parent.waits_in(session))

    def settle_around(self, session: Session) -> None:
        """Settle whatever was unlocked in this session, here and around this: it writes."""
        if self.home is session and self.is_open:
            self.settle_in(session)
        if self._parent is not None:
            self._parent.settle_around(session)

    @property
    def makes_keys(self) -> bool:
        """Whether owners without keys get some, here or around this."""
        return self._parent is not None and bool(self._parent.makes_keys)

    def sole(self, owner_class: OwnerClass, where: bytes) -> set[tuple[Any, ...]]:
        """The primary keys of the sole owners of a class that are open here: several, if one was deleted and
        another one made."""
        found = {
            place.primary_key
            for place in list(self.places.values())
            if place.owner_class is owner_class and place.where == where and place.owner in self
        }
        return found | self._parent.sole(owner_class, where) if self._parent is not None else found

    def prepare_read(
        self, session: Session | None, owner_class: OwnerClass, headers: Mapping[bytes, int]
    ) -> None:
        """Rows with values under these keys, so many of each, are about to be read; all are told at once, so
        that keys can be fetched in batches."""
        if self._parent is not None:
            self._parent.prepare_read(session, owner_class, headers)
        reach = self._reach
        if reach is None or self.left is not None:
            return
        reader = session or self.home
        if reader is not None:
            reach.look_again(reader)
        closed = reach.closed(owner_class, headers)
        if self._parent is not None:
            closed = [header for header in closed if self._parent.owner_of(header) is None]
        reader = self._reads_with(reach, session) if closed else None
        if reader is None:
            return
        for found in reach.follow_values(reader, self, owner_class, closed):
            self._take(found)

    def prepare_write(
        self, session: Session | None, owner_class: OwnerClass, keys: Collection[tuple[Any, ...]], values: int
    ) -> None:
        """So many values of these owners, by primary key, are about to be encrypted."""
        writer = session or self.home
        self._follow_owners(session, owner_class, keys)
        if self.is_open and not self._settled and writer is not None:
            names = Names(writer)
            if writer is self.home or any(names.owner(owner_class, key) in self._keyring for key in keys):
                self.settle_in(writer)
        if self.is_open and session is not None and owner_class.grants_of:
            freshen(session, self.policy, self._keyring, self.places, owner_class, keys)
        if self._parent is None:
            return
        others = keys
        if session is not None:
            names = Names(session)
            others = [key for key in keys if names.owner(owner_class, key) not in self._keyring]
        self._parent.prepare_write(session, owner_class, others, values)

    @emptying
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: object
    ) -> None:
        """Lock. Raises `UnflushedError` if values would be lost, unless an exception
        is on its way already."""
        try:
            self._lock(raise_unflushed=kind is None)
        finally:
            self._leave_context()

    @emptying
    def lock(self) -> None:
        """Lock now: wipe the keys and expire what was decrypted. Leaving the block later does nothing more.

        Raises:
            UnflushedError: values waited to be encrypted. They stay in their objects; the
                keys are gone all the same.
        """
        self._require_usable()
        self._lock(raise_unflushed=True)

    @emptying
    def using(self, owner: object) -> AbstractContextManager[None]:
        """Inside, an UPDATE that writes no column of its rows' owner is encrypted for this one. A query asks
        whether its WHERE takes rows of others, and then it is a `StatementRefusedError`. An INSERT names the
        owner in its values; one into the table of a joined subclass, whose base has the owner's column, is
        encrypted for this one too.

        Raises:
            LockedError: the owner is not unlocked here.
        """
        self._require_usable()
        owner_class = require_owner_class(owner)
        identity = attributes.instance_state(owner).key
        session = attributes.instance_state(owner).session or self.home
        place = None
        if identity is not None and session is not None:
            place = Names(session).place(owner_class, tuple(identity[1]))
        if place is not None:
            self.follow_owners(session, owner_class, [place.primary_key])
        if place is None or (place.owner not in self and not self.on_demand):
            raise context.locked(f"{owner_class.name}, for `using`,", self.home)
        return _using(place)

    @emptying
    def decrypt(self, sealed: Sealed, *, primary_key: object = None) -> Any:
        """The value behind a `Sealed` handle.

        Args:
            sealed: what a select of columns gave.
            primary_key: of its row (a tuple if composite), for a row-bound column.

        Raises:
            LockedError: its key is not unlocked here.
            FormatError, TruncatedError, DecryptionError: it does not belong to that column or row.
            ConfigurationError: it is no `Sealed`.
        """
        self._require_usable()
        if not isinstance(sealed, Sealed):
            raise ConfigurationError(
                f"decrypt() opens a Sealed, which is what a select of columns gives for a locked value. This "
                f"is of the type {type(sealed).__name__}: use it as it is."
            )
        if sealed.why is not None:
            raise sealed.error()
        field = sealed.format.field
        check_value(sealed.blob, field.label)
        cipher = self.reader(bytes(sealed.blob[:HEADER_SIZE]), field)
        if cipher is None and self.follows:
            self._seek(bytes(sealed.blob[:HEADER_SIZE]))
            cipher = self.reader(bytes(sealed.blob[:HEADER_SIZE]), field)
        if cipher is None:
            raise self._locked(field.label, bytes(sealed.blob[:HEADER_SIZE]))
        if field.row_bound and primary_key is None:
            raise ConfigurationError(f"{field.label!r} is row-bound: say which row, with `primary_key=`.")
        parts = primary_key if isinstance(primary_key, tuple) else (primary_key,)
        reference = encode_reference(parts) if field.row_bound else b""
        return sealed.format.decode(cipher.decrypt(bytes(sealed.blob), reference))

    def _locked(self, label: str, header: bytes) -> LockedError:
        classes = self._reach.owner_classes if self._reach is not None else ()
        if any(self.may_follow(one, header) for one in classes):
            return LockedError(
                f"A value of {label!r} is locked: nothing looked yet whether a grant leads to its key, and "
                "`decrypt` cannot wait for that. Unlock with `follow='all'`, or decrypt where it can: "
                "`await session.run_sync(lambda _: unlocked.decrypt(sealed))`."
            )
        return context.locked(f"A value of {label!r}", self.home)

    def _seek(self, header: bytes) -> None:
        """Follow what leads to a value that says nothing of its owner but the name of its key."""
        for owner_class in self._reach.owner_classes if self._reach is not None else ():
            self.prepare_read(None, owner_class, {header: 1})
        if self._parent is not None:
            self._parent._seek(header)

    def reader(self, header: bytes, field: Field) -> ValueCipher | None:
        """The cipher for a stored value, from this session or one around it."""
        found = self._keyring.reader(header, field) if self.is_open else None
        return found or (self._parent.reader(header, field) if self._parent is not None else None)

    def writer(
        self, owner: OwnerId, scope: str, field: Field, session: Session | None = None
    ) -> ValueCipher | None:
        """The cipher for new values of an owner that a session writes, from this unlocked session or one
        around it."""
        found = self._keyring.writer(owner, scope, field) if self.is_open else None
        if found is None and self._parent is not None:
            found = self._parent.writer(owner, scope, field, session)
        return found

    def owner_of(self, header: bytes) -> OwnerId | None:
        """Whose key a stored value names, if it is open here."""
        found = self._keyring.owner_of(header) if self.is_open else None
        return found or (self._parent.owner_of(header) if self._parent is not None else None)

    def __contains__(self, owner: OwnerId) -> bool:
        here = self.is_open and owner in self._keyring
        return here or (self._parent is not None and owner in self._parent)

    def remember(self, slot: object, header: bytes, cipher: ValueCipher, entry: tuple[Any, ...]) -> None:
        """Keep what opens the values of a column under one key, for the hot paths."""
        # A dict of dicts, and not one keyed by pairs, which would cost a tuple and its hash for each value.
        self.readers.setdefault(slot, {})[header] = entry
        if self.reader(header, cipher.field) is not cipher:
            self.readers.pop(slot, None)  # left by another thread meanwhile; this would have outlived its key

    def begin_statement(self, session: Session | None) -> None:
        """A session runs a statement here."""
        self.saw(session)

    def saw(self, session: Session | None) -> None:
        """Note a session that may hold decrypted values."""
        if session is not None and session is not self._last_seen and self.is_open:
            self._last_seen = session
            self._sessions[session] = None
            if self._parent is not None:
                self._parent.saw(session)

    def drop(self, owner: OwnerId) -> None:
        """Forget an owner whose enrolment was rolled back: what is written under its
        keys could never be read."""
        self._keyring.drop(owner)
        place = self.places.pop(owner, None)
        if self._reach is not None and place is not None:
            self._reach.forget(place)
        self._clear_readers()

    def forget_deleted(self, owner_classes: Collection[OwnerClass], owner: OwnerId | None = None) -> None:
        """Owners of these classes may have been deleted, and this owner was: forget its keys."""
        if owner is not None and owner in self.places:
            self.drop(owner)
        if self._parent is not None:
            self._parent.forget_deleted(owner_classes, owner)

    def __del__(self) -> None:
        # An unlock that was never entered, to authenticate and no more, leaves no key behind either.
        keyring = getattr(self, "_keyring", None)
        waiting = getattr(self, "_waiting", None)
        for one in (keyring, waiting, *(aside for _, aside in getattr(self, "_former", {}).values())):
            if one is not None:
                one.wipe()

    def __repr__(self) -> str:
        names = {place.owner_class.name for place in self.places.values()}
        return (
            f"<{type(self).__name__} of {', '.join(sorted(names)) or 'nobody'}, "
            f"{'open' if self.is_open else 'locked'}>"
        )

    def _refuse(self, *_: Any) -> Any:
        raise TypeError("unlocked sessions are not copied or pickled")

    __copy__ = __deepcopy__ = __reduce__ = __reduce_ex__ = __getstate__ = _refuse

    def _require_usable(self) -> None:
        if self.left is SessionForkedError:
            raise SessionForkedError(
                "This unlocked session belongs to the parent process; unlock again in the child."
            )
        if self.left is not None:
            raise SessionLeftError("This unlocked session was left; unlock again.")

    def _lock(self, *, raise_unflushed: bool) -> None:
        if self.left is not None:
            return
        sessions, waiting, closed = _living(self._sessions), [], []
        try:
            waiting = [name for session in sessions for name in unflushed(session, self._is_lost)]
            for session in sessions:
                forget_plaintext(session, self._stays_open, self._cipher)
                closed.append(session)
        finally:
            self._close(SessionLeftError)  # whatever went wrong above, the keys do not stay
            for session in sessions[len(closed) :]:
                forget_plaintext(session, self._stays_open)
        if waiting and raise_unflushed:
            raise UnflushedError(
                f"The unlocked session was left before {', '.join(sorted(set(waiting)))} was flushed; the "
                "values are still in their objects. Call session.commit() or session.flush() inside the "
                "`with`."
            )

    def close_in_child(self) -> None:
        """This is a forked child: its parent's keys do not come with it."""
        self._close(SessionForkedError)

    def _close(self, why: type[LockedError]) -> None:
        self.is_open = False
        self.left = why
        self._keyring.wipe()
        for owner in list(self._former):
            self._forget_former(owner)
        if self._waiting is not None:
            self._waiting.wipe()
        self._clear_readers()
        self._last_seen = None

    def _clear_readers(self) -> None:
        self.readers.clear()  # the same dictionary: the process's own is known by others
        for child in _living(self._children):
            child._clear_readers()

    def _leave_context(self) -> None:
        # No tokens: one would put back a session that was left meanwhile, where they are not left in order,
        # and is of no use in another context than it was made in. A session that is covered by an inner one
        # keeps its links until that one is left too, and finds through them what is still open.
        notes = notes_of(self.home) if self.home is not None else None
        if notes is not None and notes.bound is self:
            below, self._displaced = self._displaced, None
            while below is not None and not below.is_open:
                below = below._displaced
            notes.bound = below
        if context.CURRENT.get() is self:
            around, self._surrounding = self._surrounding, context.NOTHING
            while isinstance(around, UnlockedSession) and not around.is_open:
                around = around._surrounding
            context.CURRENT.set(around)

    def _is_lost(self, state: InstanceState[Any], attribute: EncryptedAttribute) -> bool:
        """Whether nobody else could write this value: an outer session that holds its
        owner's key still can."""
        if self._parent is None:
            return True
        values = [state.dict.get(key) for key in attribute.owner_keys]
        owner = (
            Names(state.session).of(attribute.encrypted.path, values) if values and state.session else None
        )
        # What the outer one reaches may not be followed yet; it looks again when it is left itself.
        return owner is None or (owner not in self._parent and not self._parent.follows)

    def _cipher(self, owner: OwnerId, attribute: EncryptedAttribute) -> ValueCipher | None:
        """What closes a value that was read, when this is left."""
        return self._keyring.writer(owner, attribute.encrypted.scope, attribute.type.field)

    def _stays_open(self, owner: OwnerId | None) -> bool:
        return self._parent is not None and owner is not None and owner in self._parent


@contextmanager
def _using(place: Place) -> Iterator[None]:
    token = context.USING.set(place)
    try:
        yield
    finally:
        context.USING.reset(token)


def _living(known: WeakKeyDictionary[T, None]) -> list[T]:
    return [one for reference in known.keyrefs() if (one := reference()) is not None]


def _close_in_child() -> None:
    for unlocked in list(_live):
        if unlocked.left is None:
            unlocked.close_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
