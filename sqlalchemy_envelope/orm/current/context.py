"""Where the unlocked session is kept: in the context, and in the `Session` it is bound to, asked first.

Threads, asyncio tasks and greenlets each have their own context. The `Session` serves code that runs in
another context than the unlock: FastAPI runs a synchronous generator dependency in a copy of the context.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy_envelope.exceptions import (
    LockedError,
    LockReason,
    NotEnrolledError,
    SessionForkedError,
    SessionLeftError,
    TransactionConflictError,
)
from sqlalchemy_envelope.keys.model import Purpose
from sqlalchemy_envelope.orm.current.policy import has_server_keys, noted_policy, noted_realm
from sqlalchemy_envelope.orm.tables.location import location_of
from sqlalchemy_envelope.orm.tables.session_notes import NOTES, known_page, page_of
from sqlalchemy_envelope.words import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.crypto.aead import Field, ValueCipher
    from sqlalchemy_envelope.crypto.blind_index import IndexHasher
    from sqlalchemy_envelope.keys.keyring import Index, OwnerId
    from sqlalchemy_envelope.keys.model import KeyId
    from sqlalchemy_envelope.keys.row_seals import Realm
    from sqlalchemy_envelope.orm.current.open_keys import OpenKeys
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass, Place


class NothingUnlocked:
    """Stands in the context where nothing is unlocked, so that the hot path asks one question less.

    If the whole process has a server session, that session answers in its place.

    Attributes:
        server: the server session of the process.
        is_open, begin_statement, saw: those of the server session. Without it, `is_open` is False and the
            two functions do nothing.
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
        """Let a server session answer where nothing else is unlocked; None ends that."""
        self.server = server
        self.is_open = server is not None and server.is_open
        self.begin_statement = _do_nothing if server is None else server.begin_statement
        self.saw = _do_nothing if server is None else server.saw


def _do_nothing(session: Session | None) -> None:
    """Nothing is decrypted here, so there is nothing to find again."""


NOTHING = NothingUnlocked()
"""The default of `CURRENT`, the same object for ever. Its `server` is that of the process."""
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
    return tuple(keys for keys in (bound, current) if keys is not None and keys.is_open)


def settle_unlocked(session: Session) -> None:
    """Settle what waits in the open unlocked sessions, before the session writes under their keys."""
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


def find_index_writer(
    session: Session | None, owner: OwnerId, scope: str, index: Index
) -> IndexHasher | None:
    """What makes the tags of an owner's new values, if an unlocked session here holds its index key."""
    for unlocked in unlocked_sessions(session):
        hasher = unlocked.index_writer(owner, scope, index, session)
        if hasher is not None:
            return hasher
    return None


def only_owner(here: tuple[OpenKeys, ...]) -> OwnerId | None:
    """The only owner who is unlocked in these sessions. A value that opens is that owner's: no other key is
    here."""
    return here[0].only_owner if len(here) == 1 else None


def only_by_ticket(session: Session | None, owner: OwnerId | None = None) -> bool:
    """Whether tickets are all that is open here; if an owner is given, whether its keys are open by a ticket
    and in no other way."""
    here: Any = unlocked_sessions(session)
    every = [one for innermost in here for one in innermost.outward()]
    some = every if owner is None else [one for one in every if owner in one.keyring]
    return bool(some) and all(one.by_ticket for one in some)


def owner_of(session: Session | None, header: bytes) -> OwnerId | None:
    """The owner whose key a stored value names, if the owner is unlocked here."""
    for unlocked in unlocked_sessions(session):
        owner = unlocked.owner_of(header)
        if owner is not None:
            return owner
    return None


_TICKET_GIVES = (
    "a ticket opened its owner, and a ticket carries no root key and changes nothing about keys. Unlock with "
    "the secret around this, `with envelope.unlock(session, owner, secret=...):`."
)
_TICKET_LACKS = (
    "a ticket is open here, and does not carry the key. Keys that were made or granted after the ticket was "
    "issued open at the next log-in: log in again, `envelope.unlock(session, owner, secret=...)`, and issue "
    "a new ticket. `envelope.why_locked(session, instance)` tells what is missing."
)


class _Left:
    """A page of `SessionNotes`: what was unlocked in the session was left."""

    __slots__ = ()


def note_left(session: Session) -> None:
    """Note that an unlocked session of this session was left, so that errors can tell it from a session that
    was never unlocked."""
    page_of(session, _Left)


def locked(
    what: str,
    session: Session | None = None,
    owner_class: OwnerClass | None = None,
    scope: str = "",
    *,
    was_open: bool = False,
    use: Literal["read", "write", "give"] = "read",
) -> LockedError:
    """The error for `what` being locked here.

    It says why: the unlocked session was left or belongs to the parent process, another owner is unlocked,
    server mode does not reach the key, or nobody is unlocked. And it says which owners beside the value's own
    may open this scope of its keys.

    Args:
        was_open: whether the value was open, and was closed when its unlocked session was left.
        use: what the key was wanted for; "give" is to give it to somebody else.
    """
    bound = bound_to(session)
    left = next((keys.left for keys in (bound, CURRENT.get()) if keys is not None and keys.left), None)
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
    if only_by_ticket(session) and not hint:
        return LockedError(f"{what} is locked: {_TICKET_GIVES if use == 'give' else _TICKET_LACKS}")
    # What a server reads may be the value's own owner: it is not counted among the others of a write.
    others = _others(here if use == "read" else [keys for keys in here if keys.provider is None])
    else_ = f"{_not_served(here, use)}{others}"
    tell = " `envelope.why_locked(session, instance)` tells what is missing." if reason is None else ""
    every = () if owner_class is None else owner_class.grants_of
    grants = [grant for grant in every if grant.scope in (None, scope)]
    if owner_class is not None and grants:
        # A group has no secret of its own, as a rule: `secret=` would lead nowhere.
        holders = " or ".join(sorted({grant.to.owner_class.name for grant in grants}))
        names = " or ".join(sorted({grant.mapper.class_.__name__ for grant in grants}))
        return LockedError(
            f"{what} is locked: {else_}unlock a {holders} whose {names} gives the key, around this, or its "
            f"{owner_class.name} if that has a secret. A {names} that was added while no owner with the key "
            "was unlocked is pending. It gives the key after an owner with the key has unlocked and written, "
            f"or called envelope.settle(session).{hint}{tell}"
        ).because(reason)
    return LockedError(
        f"{what} is locked: {else_}unlock its owner around this, "
        f"`with envelope.unlock(session, owner, secret=...):`.{hint}{tell}{server_hint(session)}"
    ).because(reason)


def refuse_replaced(
    session: Session | None, owner: OwnerId, owner_class: OwnerClass, root_id: KeyId | None = None
) -> None:
    """Refuse to go on with keys that another transaction replaced since their owner was unlocked here.

    Args:
        root_id: the active root key; None if the unlocked sessions know it.

    Raises:
        TransactionConflictError: the owner has a newer root key, to which the earlier one does not lead. A
            new unlock opens it. A member of a group may have been removed instead: this is not told here.
    """
    if owner_class.grants_with(None):
        return
    here: Any = unlocked_sessions(session)
    for keyring in [one.keyring for innermost in here for one in innermost.outward() if not one.on_demand]:
        root = keyring.current(owner, Purpose.ROOT)
        if root is None or keyring.is_open(root_id or root.key_id):
            continue
        if any(keyring.is_open(key.key_id) for key in keyring.keys_of(owner) if key.purpose is Purpose.ROOT):
            raise TransactionConflictError(
                f"The keys of this {owner_class.name} were replaced since it was unlocked here. Run the "
                "transaction again, with the unlock in it."
            )


def no_keys(what: str, owner: str, session: Session | None, *, is_there: bool) -> LockedError:
    """The error for a value whose owner has no keys, so that it cannot be written.

    Args:
        is_there: whether the owner's row is in the database.
    """
    why = f"its row names a {owner} that is not in the database. Add the {owner} first, or correct the row."
    if is_there:
        why = f"its {owner} has no keys yet. Make them, `envelope.enroll(session, owner, ...)`."
        why += server_hint(session)
    return LockedError(f"{what} cannot be encrypted: {why}").because(LockReason.NOT_ENROLLED)


def destroyed_keys(what: str, owner: str) -> LockedError:
    """The error for a value whose owner was shredded, so that it cannot be written."""
    return LockedError(
        f"{what} cannot be encrypted: the keys of its {owner} were destroyed. To write for it again, "
        "make new keys, `envelope.enroll(session, owner, ...)`."
    ).because(LockReason.SHREDDED)


def _not_served(here: Iterable[OpenKeys], use: str) -> str:
    """The words for an error in server mode; empty where it is off."""
    provider = next((keys.provider for keys in here if keys.provider is not None), None)
    if provider is None:
        return ""
    if use == "read":
        nothing = f"neither a slot of its provider {provider!r} nor a grant leads to the key"
        return f"server mode is on, and {nothing}: "
    served = (
        f"server mode is on, and its provider {provider!r} has no slot of the owner. Through a grant, server "
        "mode only reads"
    )
    if use == "give":
        return f"{served}: "
    add_slot = f"`envelope.add_provider(session, owner, provider={provider!r})`"
    return (
        f"{served}. Write inside `with envelope.write_only(session):`, or add a slot while the owner is "
        f"unlocked, {add_slot}. Or "
    )


def _others(here: Iterable[OpenKeys]) -> str:
    """The owners that are unlocked in place of the value's own, for an error; empty if nobody is.

    They are counted by class: a primary key may be a name or an address, and errors go into logs.
    """
    places = {place.owner: place for keys in here for place in list(getattr(keys, "places", {}).values())}
    if not places:
        return ""
    counts = sorted(Counter(place.owner_class.name for place in places.values()).items())
    shown = [f"{counted(count, 'owner')} of class {name}" for name, count in counts]
    are, do = ("is", "does") if len(places) == 1 else ("are", "do")
    return f"{' and '.join(shown)} {are} unlocked here, which {do} not open it: "


def no_sole(what: str, name: str, session: Session | None) -> NotEnrolledError:
    """The error for a value to be written under the key of a sole owner that does not exist.

    Where there are server keys, the message names server mode first: a secret would keep the sole owner from
    the server.
    """
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
    """The words that an error adds if an owner of this class is unlocked in another database or schema."""
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
    """The words that an error adds if nothing is unlocked, although server keys are there that may be meant
    to serve."""
    if unlocked_sessions(session) or not has_server_keys(session):
        return ""
    return (
        " This process has server keys and no server mode: if this owner has a slot of the server, and the "
        "server is to open it here, call `envelope.server_mode(reason=...).everywhere()` when the process "
        "starts."
    )


def realm_of(session: Session | None) -> Realm:
    """The name of the database in the application's `Envelope`; None if it gives none."""
    for unlocked in unlocked_sessions(session):
        return unlocked.policy.seals.realm
    return noted_realm(session)


def policy_of(session: Session) -> Policy:
    """The policy for what a flush does by itself: that of an unlocked session here, or the session's own.

    Raises:
        ConfigurationError: several policies have different server keys, and nothing says which to use.
    """
    return next((keys.policy for keys in unlocked_sessions(session)), None) or noted_policy(session)
