"""Where the unlocked session lives: in the context, and bound to a `Session`, which is asked first.

Threads, asyncio tasks and greenlets each see their own context. `Session.info` serves code that runs in
another context than the one that unlocked: a synchronous generator dependency of FastAPI is run in a copy.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy_envelope.exceptions import (
    LockedError,
    LockReason,
    NotEnrolledError,
    SessionForkedError,
    SessionLeftError,
)
from sqlalchemy_envelope.orm.current.policy import has_server_keys, noted_policy, noted_realm
from sqlalchemy_envelope.orm.tables.location import location_of
from sqlalchemy_envelope.orm.tables.session_notes import NOTES, known_page, page_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.crypto.aead import Field, ValueCipher
    from sqlalchemy_envelope.keys.keyring import Keyring, OwnerId
    from sqlalchemy_envelope.keys.model import OpenedKey
    from sqlalchemy_envelope.keys.row_seals import Realm
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass, Place


class OpenKeys(Protocol):
    """The keys that are open here, as statements, rows and attributes see them; an unlocked session is one.

    Attributes:
        readers: by column and value header, what opens the values of one owner.
        on_demand: whether keys are fetched or made as they are needed: such a session is told beforehand of
            the rows that come.
        follows: whether grants are followed as they are needed: such a session is told so too.
        enrolls: whether new owners get keys here with the flush that adds them.
        home: the session that it was opened with.
        left: why it is open no more.
    """

    readers: dict[object, dict[bytes, Any]]
    policy: Policy
    home: Session | None
    is_open: bool
    left: type[LockedError] | None
    on_demand: bool
    follows: bool
    enrolls: bool

    def __contains__(self, owner: OwnerId) -> bool: ...

    def reader(self, header: bytes, field: Field) -> ValueCipher | None:
        """The cipher for a stored value, if its key is open."""

    def writer(
        self, owner: OwnerId, scope: str, field: Field, session: Session | None = None
    ) -> ValueCipher | None:
        """The cipher for new values of an owner that a session writes, if its key is open."""

    def owner_of(self, header: bytes) -> OwnerId | None:
        """Whose key a stored value names, if it is open."""

    @property
    def only_owner(self) -> OwnerId | None:
        """The owner whose keys are open here, if nobody else's are, or could be in a moment."""

    @property
    def makes_keys(self) -> bool:
        """Whether owners without keys get some here."""
        ...

    def sole(self, owner_class: OwnerClass, where: bytes) -> set[tuple[Any, ...]]:
        """The primary keys of the sole owners of a class, in this database and schema, that are open here:
        several, if one was deleted and another one made."""
        ...

    def keyring_for(self, owner: OwnerId, session: Session | None = None) -> Keyring | None:
        """The keyring that reaches the owner's root key."""

    def follow_all(self, session: Session | None = None) -> None:
        """Follow all grants that were not followed yet."""

    def follow_owners(
        self, session: Session | None, owner_class: OwnerClass, keys: Collection[tuple[Any, ...]]
    ) -> None:
        """Follow the grants that lead to these owners, by primary key."""

    def may_follow(self, owner_class: OwnerClass, header: bytes) -> bool:
        """Whether nothing looked yet for grants that lead to the key of a stored value."""
        ...

    def find_others(self, session: Session | None) -> None:
        """Have it known whether keys of other owners may come."""

    def prepare_read(
        self, session: Session | None, owner_class: OwnerClass, headers: Mapping[bytes, int]
    ) -> None:
        """Rows with values under these keys, so many of each, are about to be read."""

    def prepare_write(
        self, session: Session | None, owner_class: OwnerClass, keys: Collection[tuple[Any, ...]], values: int
    ) -> None:
        """So many values of these owners, by primary key, are about to be encrypted."""

    def waits_in(self, session: Session) -> bool:
        """Whether an unlock in this session left something to be settled."""
        ...

    def settle_for(self, session: Session, owner: OwnerId) -> None:
        """A session is about to write under this owner's keys: what waits for them is put in order first."""

    def places_for(self, owner: OwnerId) -> Mapping[OwnerId, Place]:
        """Whom the keys that this owner's are among reach."""
        ...

    def settle_around(self, session: Session) -> None:
        """The session writes: what unlocks in it left waiting is put in order first."""

    def remember(self, slot: object, header: bytes, cipher: ValueCipher, entry: tuple[Any, ...]) -> None:
        """Keep what opens the values of a column under one key, for the hot paths."""

    def begin_statement(self, session: Session | None) -> None:
        """A session runs a statement here."""

    def saw(self, session: Session | None) -> None:
        """Note a session that may hold decrypted values."""

    def admit(self, place: Place, keys: Iterable[OpenedKey]) -> None:
        """Take in an owner that was enrolled inside this unlocked session."""

    def make_way(self, session: Session, place: Place) -> None:
        """A session makes the first keys of this owner: others of its name are a deleted one's."""

    def drop(self, owner: OwnerId) -> None:
        """Forget an owner's keys."""

    def forget_deleted(self, owner_classes: Collection[OwnerClass], owner: OwnerId | None = None) -> None:
        """Owners of these classes may have been deleted, and this owner was: trust no key of theirs."""


class NothingUnlocked:
    """Stands in the context where nothing is unlocked, so that the hot path asks one question less. The
    server session of the whole process answers in its place, if there is one.

    Attributes:
        server: that server session.
        is_open, begin_statement, saw: those of the server session; without it they are False and do nothing.
    """

    __slots__ = ("begin_statement", "is_open", "saw", "server")
    server: OpenKeys | None
    is_open: bool
    begin_statement: Callable[[Session | None], None]
    saw: Callable[[Session | None], None]
    left = None

    def __init__(self) -> None:
        self.serve(None)

    def serve(self, server: OpenKeys | None) -> None:
        """Let a server session answer wherever nothing else is unlocked; None ends that."""
        self.server = server
        self.is_open = server is not None and server.is_open
        self.begin_statement = _do_nothing if server is None else server.begin_statement
        self.saw = _do_nothing if server is None else server.saw


def _do_nothing(session: Session | None) -> None:
    """Nothing is decrypted here, so there is nothing to find again."""


NOTHING = NothingUnlocked()
"""The default of `CURRENT`, one object for ever. Its `server` is that of the process."""
CURRENT: ContextVar[OpenKeys | NothingUnlocked] = ContextVar("unlocked", default=NOTHING)
USING: ContextVar[Place | None] = ContextVar("using", default=None)


@contextmanager
def using(place: Place) -> Iterator[None]:
    """Inside, statements that name no owner are encrypted for this one."""
    token = USING.set(place)
    try:
        yield
    finally:
        USING.reset(token)


def bound_to(session: Session | None) -> Any:
    """The unlocked session that is bound to a `Session`, open or left."""
    notes = session.info.get(NOTES) if session is not None else None
    return None if notes is None else notes.bound


def unlocked_sessions(session: Session | None) -> tuple[OpenKeys, ...]:
    """The open unlocked sessions that serve here, the one bound to the `Session` first."""
    notes = session.info.get(NOTES) if session is not None else None
    current: Any = CURRENT.get()
    bound: Any = notes.bound if notes is not None else None
    if bound is current:  # the most frequent case
        return (current,) if current.is_open else ()
    if current is NOTHING:
        current = NOTHING.server
    if bound is None:
        return (current,) if current is not None and current.is_open else ()
    return tuple(one for one in (bound, current) if one is not None and one.is_open)


def settle_unlocked(session: Session) -> None:
    """The session writes under the keys that are open here: what waits for them is put in order first."""
    for unlocked in unlocked_sessions(session):
        unlocked.settle_around(session)


def find_reader(session: Session | None, header: bytes, field: Field) -> ValueCipher | None:
    """The cipher for a stored value, if an unlocked session here holds its key."""
    for unlocked in unlocked_sessions(session):
        cipher = unlocked.reader(header, field)
        if cipher is not None:
            return cipher
    return None


def find_writer(session: Session | None, owner: OwnerId, scope: str, field: Field) -> ValueCipher | None:
    """The cipher that encrypts new values of an owner, if an unlocked session here holds its key."""
    for unlocked in unlocked_sessions(session):
        cipher = unlocked.writer(owner, scope, field, session)
        if cipher is not None:
            return cipher
    return None


def only_owner(here: tuple[OpenKeys, ...]) -> OwnerId | None:
    """The one owner who is unlocked in these sessions. What opens is that owner's: no other key is here."""
    return here[0].only_owner if len(here) == 1 else None


def owner_of(session: Session | None, header: bytes) -> OwnerId | None:
    """Whose key a stored value names, if it is unlocked here."""
    for unlocked in unlocked_sessions(session):
        owner = unlocked.owner_of(header)
        if owner is not None:
            return owner
    return None


class _Left:
    """A page of `SessionNotes`: what was unlocked in the session was left."""

    __slots__ = ()


def note_left(session: Session) -> None:
    """What was unlocked in a session was left: errors tell it from a session that was never unlocked."""
    page_of(session, _Left)


def locked(
    what: str,
    session: Session | None = None,
    owner_class: OwnerClass | None = None,
    scope: str = "",
    *,
    was_open: bool = False,
) -> LockedError:
    """The error for `what` being locked here: what was unlocked was left or forked away, somebody else is
    unlocked, or nobody is; and who else than the owner may open this scope of its keys.

    Args:
        was_open: whether it was open, and was closed when its unlocked session was left.
    """
    bound = bound_to(session)
    left = next((one.left for one in (bound, CURRENT.get()) if one is not None and one.left), None)
    if left is SessionForkedError:
        return SessionForkedError(f"{what} is locked: keys do not cross a fork; unlock again in the child.")
    if left is SessionLeftError:
        return SessionLeftError(f"{what} is locked: its unlocked session was left; unlock again.")
    here = unlocked_sessions(session)
    if was_open or (not here and session is not None and known_page(session, _Left) is not None):
        return LockedError(
            f"{what} is locked: it is used after the `with` of its unlock has ended. Read and write inside "
            f"the `with`, or unlock again.{server_hint(session)}"
        ).because(LockReason.LEFT)
    hint = _place_hint(session, owner_class)
    reason = LockReason.OTHER_DATABASE if hint else None
    if not here:
        reason = LockReason.NOTHING_UNLOCKED
    else_ = _others(here)
    tell = " `envelope.why_locked(session, instance)` tells what is missing." if reason is None else ""
    grants = (
        [] if owner_class is None else [one for one in owner_class.grants_of if one.scope in (None, scope)]
    )
    if owner_class is not None and grants:
        # A group has no secret of its own, as a rule: `secret=` would lead nowhere.
        holders = " or ".join(sorted({one.to.owner_class.name for one in grants}))
        names = " or ".join(sorted({one.mapper.class_.__name__ for one in grants}))
        return LockedError(
            f"{what} is locked: {else_}unlock a {holders} who has the key by a {names} around this, or its "
            f"{owner_class.name} if that has a secret. A {names} that was added while nobody with the key "
            "was unlocked gives it after somebody with the key has unlocked and written, or called "
            f"envelope.settle(session).{hint}{tell}"
        ).because(reason)
    return LockedError(
        f"{what} is locked: {else_}unlock its owner around this, "
        f"`with envelope.unlock(session, owner, secret=...):`.{hint}{tell}{server_hint(session)}"
    ).because(reason)


def no_keys(what: str, owner: str, session: Session | None) -> LockedError:
    """The error for a value that is to be written, and whose owner has no keys."""
    return LockedError(
        f"{what} cannot be encrypted: its {owner} has no keys yet. Make them, "
        f"`envelope.enroll(session, owner, ...)`.{server_hint(session)}"
    ).because(LockReason.NOT_ENROLLED)


def _others(here: Iterable[OpenKeys]) -> str:
    """Who is unlocked in place of the owner, for an error; nothing where nobody is. By number: a primary key
    may be a name or an address, and errors go into logs."""
    places = {place.owner: place for one in here for place in list(getattr(one, "places", {}).values())}
    if not places:
        return ""
    counts = sorted(Counter(place.owner_class.name for place in places.values()).items())
    shown = [f"{count} {'owner' if count == 1 else 'owners'} of class {name}" for name, count in counts]
    are, do = ("is", "does") if len(places) == 1 else ("are", "do")
    return f"{' and '.join(shown)} {are} unlocked here, which {do} not open it: "


def no_sole(what: str, name: str, session: Session | None) -> NotEnrolledError:
    """The error for a value that is to be written under the key of a sole owner that is not there. Where
    there are server keys, server mode makes it; a secret would keep it from the server."""
    served = has_server_keys(session) and not unlocked_sessions(session)
    first = (
        "This process has server keys and no server mode: call "
        "`envelope.server_mode(reason=...).everywhere()` when the process starts, which makes it. To open it "
        f"with a secret instead: `envelope.enroll(session, {name}(), secret=...)`."
    )
    cure = first if served else f"Make it: `envelope.enroll(session, {name}(), secret=...)`."
    return NotEnrolledError(
        f"{what} is encrypted with the key of the sole {name}, and there is none yet. {cure}"
    )


def _place_hint(session: Session | None, owner_class: OwnerClass | None) -> str:
    """What an error adds where an owner of this class is unlocked in another database or schema."""
    if session is None or owner_class is None:
        return ""
    there = {
        place.where
        for unlocked in unlocked_sessions(session)
        for place in list(getattr(unlocked, "places", {}).values())
        if place.owner_class is owner_class
    }
    if not there or location_of(session, owner_class.mapper, realm_of(session)) in there:
        return ""
    return (
        f" What is unlocked is a {owner_class.name} in another database or schema. If two engines reach one "
        "database, give it one name: `Envelope(realm='app')`."
    )


def server_hint(session: Session | None = None) -> str:
    """What an error adds where nothing is unlocked, though there are server keys that may be meant to."""
    if unlocked_sessions(session) or not has_server_keys(session):
        return ""
    return (
        " This process has server keys and no server mode: if this owner has a slot of the server, and the "
        "server is to open it here, call `envelope.server_mode(reason=...).everywhere()` when the process "
        "starts."
    )


def realm_of(session: Session | None) -> Realm:
    """The name of the database, as the application's `Envelope` gives it; None if it gives none."""
    for unlocked in unlocked_sessions(session):
        return unlocked.policy.seals.realm
    return noted_realm(session)


def policy_of(session: Session) -> Policy:
    """The policy for what a session's flush does by itself: of what is unlocked here, or the session's own.

    Raises:
        ConfigurationError: there are several with different server keys, and nothing says which.
    """
    return next((one.policy for one in unlocked_sessions(session)), None) or noted_policy(session)
