"""Never use a key after its row was rolled back: values under such a key could never be read.

An enrolment becomes real with the commit of its transaction. Until then, the keyrings that hold its keys are
noted here by session. A rollback, also of a savepoint, takes the keys out of the keyrings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet

from sqlalchemy import event
from sqlalchemy.orm import Session

from sqlalchemy_envelope.orm.tables.session_notes import known_page, page_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy.orm import SessionTransaction

    from sqlalchemy_envelope.keys.keyring import Keyring, OwnerId
    from sqlalchemy_envelope.keys.model import StoredKey


@dataclass(eq=False)
class _Enrolment:
    owner: OwnerId
    within: list[SessionTransaction]
    """The transactions around it, innermost first; all must commit."""
    holders: WeakSet[KeyHolder] = field(default_factory=WeakSet)
    committed: Callable[[], None] | None = None
    undo: Callable[[], None] | None = None
    what: object = None
    """The subject of `committed`, so that several requests for the same subject make a single call."""


@dataclass(slots=True)
class _Enrolments:
    """A page of `SessionNotes`: the enrolments that are not committed yet, the oldest first."""

    fresh: list[_Enrolment] = field(default_factory=list)


class KeyHolder(Protocol):
    """A holder of keys that a rollback may take away."""

    def drop(self, owner: OwnerId) -> None:
        """Forget an owner's keys."""


def note_enrolment(
    session: Session, owner: OwnerId, unlocked: KeyHolder, committed: Callable[[], None] | None = None
) -> None:
    """Note that the session's current transaction wrote keys of this owner.

    `committed` is called when they are committed for good.
    """
    enrolment = _note(session, owner)
    enrolment.committed = committed
    enrolment.holders.add(unlocked)


def note_new_keys(
    session: Session,
    keyring: Keyring,
    owner: OwnerId,
    made: Iterable[StoredKey],
    replaced: Iterable[StoredKey] = (),
) -> None:
    """Note that an owner with keys got new keys in the session's current transaction.

    A rollback takes the new keys out of the keyring, and makes the replaced keys current again.
    """
    key_ids, before = [key.key_id for key in made], list(replaced)
    _note(session, owner).undo = lambda: keyring.take_back(owner, key_ids, before)


def note_end(session: Session, ended: Callable[[], None]) -> None:
    """Call this when the session's current transaction ends, with a commit or a rollback."""
    enrolment = _note(session, b"")
    enrolment.committed = enrolment.undo = ended


def note_commit(session: Session, what: object, committed: Callable[[], None]) -> None:
    """Call this when the session's current transaction is committed for good, once for each `what`."""
    within = _around(session)
    if any(one.what == what and one.within == within for one in page_of(session, _Enrolments).fresh):
        return
    enrolment = _note(session, b"")
    enrolment.what, enrolment.committed = what, committed


def note_outcome(session: Session, committed: Callable[[], None], undone: Callable[[], None]) -> None:
    """Call `committed` when the session's current transaction is committed for good.

    Call `undone` if it is rolled back.
    """
    enrolment = _note(session, b"")
    enrolment.committed, enrolment.undo = committed, undone


def note_rollback(session: Session, undone: Callable[[], None]) -> None:
    """Call this if the session's current transaction or savepoint is rolled back."""
    _note(session, b"").undo = undone


def _note(session: Session, owner: OwnerId) -> _Enrolment:
    if not event.contains(Session, "after_transaction_end", _ended):
        event.listen(Session, "after_commit", _committed)
        event.listen(Session, "after_transaction_end", _ended)
    enrolment = _Enrolment(owner, _around(session))
    page_of(session, _Enrolments).fresh.append(enrolment)
    return enrolment


def _fresh_in(session: Session) -> list[_Enrolment]:
    page = known_page(session, _Enrolments)
    return [] if page is None else page.fresh


def _around(session: Session) -> list[SessionTransaction]:
    """The session's current transaction and the transactions around it, the innermost first."""
    within = []
    transaction = session.get_nested_transaction() or session.get_transaction()
    while transaction is not None:
        within.append(transaction)
        transaction = transaction.parent
    return within


def note_unlock(session: Session, owner: OwnerId, unlocked: KeyHolder) -> None:
    """Note that an owner was unlocked. A rollback of its enrolment takes its keys away again."""
    for enrolment in _fresh_in(session):
        if enrolment.owner == owner and enrolment.undo is None:
            enrolment.holders.add(unlocked)


def _committed(session: Session) -> None:
    transaction = session.get_nested_transaction() or session.get_transaction()
    for enrolment in _fresh_in(session):
        if transaction in enrolment.within:
            enrolment.within.remove(transaction)
            if not enrolment.within and enrolment.committed is not None:
                enrolment.committed()
                enrolment.committed = None


def _ended(session: Session, transaction: SessionTransaction) -> None:
    fresh = _fresh_in(session)
    if not fresh:
        return
    for enrolment in fresh[::-1]:  # the newest first: each makes the keys before it current
        if transaction in enrolment.within:
            if enrolment.undo is not None:
                enrolment.undo()
            for unlocked in list(enrolment.holders):
                unlocked.drop(enrolment.owner)
            enrolment.within.clear()
    fresh[:] = [enrolment for enrolment in fresh if enrolment.within]
