"""Where the unlocked session lives: in the context, and bound to a `Session`, which is asked first.

Threads, asyncio tasks and greenlets each see their own context. `Session.info` serves code that runs in
another context than the one that unlocked: a synchronous generator dependency of FastAPI is run in a copy.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.exceptions import LockedError, SessionForkedError, SessionLeftError
from sqlalchemy_envelope.orm.policy import noted_policy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.crypto.aead import Field, ValueCipher
    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.orm.owners import OwnerClass, Place
    from sqlalchemy_envelope.orm.policy import Policy
    from sqlalchemy_envelope.orm.unlocked import UnlockedSession

BOUND = "sqlalchemy_envelope.unlocked"


class NothingUnlocked:
    """Stands in the context when nothing is unlocked, so that the hot path asks one question less."""

    readers: Mapping[object, Mapping[bytes, Any]] = {}
    policy: Policy | None = None
    only_class: OwnerClass | None = None
    only_key: Any = None
    handed_sealed = True
    is_open = False
    left: type[LockedError] | None = None

    def reader(self, header: bytes, field: Field) -> None:
        """No key is here."""

    def remember(self, *_: object) -> None:
        """Nothing opened, so there is nothing to keep."""

    def note_provenance(self, *_: object) -> None:
        """Nothing opened, so nothing came from anywhere."""

    def came_from(self, *_: object) -> bool:
        """Nothing opened, so nothing came from anybody."""
        return False

    def begin_statement(self, session: Session) -> None:
        """Nothing is noted here, so there is nothing to let go."""

    def saw(self, session: Session | None) -> None:
        """Nothing is decrypted here, so there is nothing to find again."""


NOTHING = NothingUnlocked()
CURRENT: ContextVar[UnlockedSession | NothingUnlocked] = ContextVar("unlocked", default=NOTHING)
USING: ContextVar[Place | None] = ContextVar("using", default=None)


WATCHED = [False]
"""Whether rows have been seen as they were fetched: on a SQLAlchemy that hands them on past `fetching`, rows
of several owners are refused, and not left uncompared."""
PROCESS: list[UnlockedSession | None] = [None]
"""The server session of the whole process, if there is one."""


def serve_process(server: UnlockedSession | None) -> None:
    """Let a server session stand wherever nothing else is unlocked; None ends that. The default of `CURRENT`
    is one object for ever, so it is that object which answers with the server's."""
    PROCESS[0] = server
    vars(NOTHING).clear()
    if server is not None:
        vars(NOTHING).update(
            {
                name: getattr(server, name)
                for name in ("readers", "is_open", "reader", "remember", "begin_statement", "saw")
            },
            note_provenance=server.note_provenance,
            came_from=server.came_from,
            policy=server.policy,
            handed_sealed=False,
        )


def unlocked_sessions(session: Session | None) -> tuple[UnlockedSession, ...]:
    """The open unlocked sessions that serve here, the one bound to the `Session` first."""
    bound = session.info.get(BOUND) if session is not None else None
    current = CURRENT.get()
    if current is NOTHING and PROCESS[0] is not None:
        current = PROCESS[0]
    if bound is None or bound is current:
        return (current,) if current.is_open else ()  # type: ignore[return-value]  # only an UnlockedSession is open
    return tuple(one for one in (bound, current) if one.is_open)  # type: ignore[misc]  # as above


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


def owner_of(session: Session | None, header: bytes) -> OwnerId | None:
    """Whose key a stored value names, if it is unlocked here."""
    for unlocked in unlocked_sessions(session):
        owner = unlocked.owner_of(header)
        if owner is not None:
            return owner
    return None


def locked(what: str, session: Session | None = None) -> LockedError:
    """The error for `what` being locked here; it says so if the unlocked session was left or forked away."""
    bound = session.info.get(BOUND) if session is not None else None
    left = next((one.left for one in (bound, CURRENT.get()) if one is not None and one.left), None)
    if left is SessionForkedError:
        return SessionForkedError(f"{what} is locked: keys do not cross a fork; unlock again in the child.")
    if left is SessionLeftError:
        return SessionLeftError(f"{what} is locked: its unlocked session was left; unlock again.")
    return LockedError(
        f"{what} is locked: unlock its owner around this, "
        "`with envelope.unlock(session, owner, secret=...):`."
    )


def policy_of(session: Session) -> Policy:
    """The policy for what a session's flush does by itself: of what is unlocked here, or the session's own.

    Raises:
        ConfigurationError: there are several with different server keys, and nothing says which.
    """
    return next((one.policy for one in unlocked_sessions(session)), None) or noted_policy(session)
