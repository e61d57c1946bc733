"""The extent in which keys are open: a scope is entered, and later left or locked, which closes its values.

Scopes nest: an inner scope sees the keys of the outer scope too, and takes only its own keys away.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy_envelope.crypto.frames import emptying
from sqlalchemy_envelope.exceptions import (
    ConfigurationError,
    LockedError,
    SessionForkedError,
    SessionLeftError,
    UnflushedError,
)
from sqlalchemy_envelope.orm.columns.leaving import forget_plaintext
from sqlalchemy_envelope.orm.columns.state import unflushed
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.current.open_keys import OpenKeys
from sqlalchemy_envelope.orm.sessions.nothing_around import NOTHING_AROUND
from sqlalchemy_envelope.orm.tables.session_notes import notes_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from sqlalchemy.orm import InstanceState, Session

    from sqlalchemy_envelope.crypto.aead import ValueCipher
    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.orm.columns.plans import EncryptedAttribute
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass

_live: WeakKeyDictionary[Scope, None] = WeakKeyDictionary()

T = TypeVar("T")


class Scope(OpenKeys):
    """Stands in the context and, if there is a `Session`, on the `Session`, from `with` to its end. Each kind
    of unlocked session decides which keys are open in it."""

    on_demand = False
    follows = False
    enrolls = False
    by_ticket = False
    provider: str | None = None

    def __init__(self, session: Session | None, policy: Policy) -> None:
        self.home = session
        self.policy = policy
        self._parent: Any = NOTHING_AROUND
        # Dictionaries, because a WeakSet cannot be listed while another thread adds to it.
        self._children: WeakKeyDictionary[Scope, None] = WeakKeyDictionary()
        self._sessions: WeakKeyDictionary[Session, None] = WeakKeyDictionary()
        self._last_seen: Session | None = None
        self._displaced: Scope | None = None
        self._surrounding: Any = context.NOTHING
        self.is_open = False
        self.left: type[LockedError] | None = None
        self.readers: dict[object, dict[bytes, Any]] = {}
        """By column and value header, the reader for one owner's values. Emptied when anything is locked."""
        _live[self] = None

    @emptying
    def __enter__(self) -> Self:
        """Unlock: from now on, values of the owner are encrypted and decrypted.

        Raises:
            SessionLeftError, SessionForkedError: the session was left, or belongs to the parent process.
        """
        self._require_usable()
        if self.is_open:
            raise ConfigurationError(
                "This unlocked session is entered already; unlock again for a second one."
            )
        open_here = context.unlocked_sessions(self.home)
        if open_here:
            self._parent = open_here[0]
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
        """Python asks for this method before it calls `__aenter__`, which always raises."""
        raise AssertionError("__aenter__ has raised")

    @emptying
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: object
    ) -> None:
        """Lock. Raises `UnflushedError` if values would be lost, unless the block raised an exception."""
        try:
            self._lock(raise_unflushed=kind is None)
        finally:
            self._leave_context()

    @emptying
    def lock(self) -> None:
        """Lock now: wipe the keys and expire decrypted values. Leaving the block later does nothing more.

        Raises:
            UnflushedError: values waited to be encrypted. They stay in their objects, but the keys are gone.
        """
        self._require_usable()
        self._lock(raise_unflushed=True)

    @property
    def _is_outermost(self) -> bool:
        return self._parent is NOTHING_AROUND

    def outward(self) -> Iterator[Scope]:
        """Yield this session and the unlocked sessions around it."""
        scope: Any = self
        while scope is not NOTHING_AROUND:
            yield scope
            scope = scope._parent

    def begin_statement(self, session: Session | None) -> None:
        """Note that a session runs a statement here."""
        self.saw(session)

    def saw(self, session: Session | None) -> None:
        """Note a session that may hold decrypted values."""
        if session is not None and session is not self._last_seen and self.is_open:
            self._last_seen = session
            self._sessions[session] = None
            self._parent.saw(session)

    def remember(self, slot: object, header: bytes, cipher: ValueCipher, entry: tuple[Any, ...]) -> None:
        """Keep the reader for a column's values under one key, for the hot paths."""
        # A dict of dicts: a dict keyed by pairs would cost a tuple and its hash for each value.
        self.readers.setdefault(slot, {})[header] = entry
        if self.reader(header, cipher.field) is not cipher:
            self.readers.pop(slot, None)  # another thread left meanwhile: the reader would outlive its key

    def _clear_readers(self) -> None:
        self.readers.clear()  # keep the same dictionary: other code refers to the process's readers
        for child in _living(self._children):
            child._clear_readers()

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
            self._close(SessionLeftError)  # whatever fails above, the keys must not stay
            for session in sessions[len(closed) :]:
                forget_plaintext(session, self._stays_open)
        if waiting and raise_unflushed:
            raise UnflushedError(
                f"The unlocked session was left before {', '.join(sorted(set(waiting)))} was flushed; the "
                "values are still in their objects. Call session.commit() or session.flush() inside the "
                "`with`."
            )

    def close_in_child(self) -> None:
        """Close the session in a forked child, which must not have its parent's keys."""
        self._close(SessionForkedError)

    def _close(self, why: type[LockedError]) -> None:
        self.is_open = False
        self.left = why
        self._wipe()
        self._clear_readers()
        self._last_seen = None

    @abstractmethod
    def _wipe(self) -> None:
        """Wipe every key."""

    def _leave_context(self) -> None:
        # Do not use context tokens. If sessions are not left in order, a token would put back a session that
        # was left meanwhile. And a token works only in the context in which it was made. A session under an
        # inner session keeps its links until the inner session is left too. Through these links, the inner
        # session finds the sessions that are still open.
        notes = notes_of(self.home) if self.home is not None else None
        if notes is not None and notes.bound is self:
            below, self._displaced = self._displaced, None
            while below is not None and not below.is_open:
                below = below._displaced
            notes.bound = below
        if context.CURRENT.get() is self:
            around, self._surrounding = self._surrounding, context.NOTHING
            while around is not context.NOTHING and not around.is_open:
                around = around._surrounding
            context.CURRENT.set(around)

    def _is_lost(self, state: InstanceState[Any], attribute: EncryptedAttribute) -> bool:
        """Tell whether no other session could write this value: an outer session with its owner's key can."""
        if self._is_outermost:
            return True
        values = [state.dict.get(key) for key in attribute.owner_keys]
        owner = (
            Names(state.session).of(attribute.encrypted.path, values) if values and state.session else None
        )
        # The outer session may have grants that were not followed yet. It checks again when it is left.
        return owner is None or (owner not in self._parent and not self._parent.follows)

    @abstractmethod
    def _cipher(self, owner: OwnerId, attribute: EncryptedAttribute) -> ValueCipher | None:
        """Return the cipher that closes a decrypted value when this session is left."""

    def _stays_open(self, owner: OwnerId | None) -> bool:
        return owner is not None and owner in self._parent


def _living(known: WeakKeyDictionary[T, None]) -> list[T]:
    return [one for reference in known.keyrefs() if (one := reference()) is not None]


def forget_everywhere(owner_classes: Collection[OwnerClass], owners: Iterable[OwnerId]) -> None:
    """Forget the keys of owners who were shredded, in every unlocked session of this process."""
    for owner in owners:
        for scope in _living(_live):
            scope.forget_deleted(owner_classes, owner)


def _close_in_child() -> None:
    for scope in _living(_live):
        if scope.left is None:
            scope.close_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
