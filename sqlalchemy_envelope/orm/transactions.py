"""Keys whose rows were rolled back are never used again: what is written under them could never be read.

An enrolment becomes real with the commit of its transaction. Until then the keyrings that hold its keys are
noted here by session, and a rollback, of a savepoint too, takes the keys out of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakSet

from sqlalchemy import event
from sqlalchemy.orm import Session

if TYPE_CHECKING:
    from sqlalchemy.orm import SessionTransaction

    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.orm.unlocked import UnlockedSession

_FRESH = "sqlalchemy_envelope.fresh"


@dataclass(eq=False)
class _Enrolment:
    owner: OwnerId
    within: list[SessionTransaction]
    """The transactions around it, innermost first; all must commit."""
    holders: WeakSet[UnlockedSession] = field(default_factory=WeakSet)


def note_enrolment(session: Session, owner: OwnerId, unlocked: UnlockedSession) -> None:
    """Keys of this owner were written in the session's current transaction."""
    if not event.contains(Session, "after_transaction_end", _ended):
        event.listen(Session, "after_commit", _committed)
        event.listen(Session, "after_transaction_end", _ended)
    within = []
    transaction = session.get_nested_transaction() or session.get_transaction()
    while transaction is not None:
        within.append(transaction)
        transaction = transaction.parent
    enrolment = _Enrolment(owner, within)
    enrolment.holders.add(unlocked)
    session.info.setdefault(_FRESH, []).append(enrolment)


def note_unlock(session: Session, owner: OwnerId, unlocked: UnlockedSession) -> None:
    """An owner was unlocked; if its enrolment has not been committed yet, its keys may still go."""
    for enrolment in session.info.get(_FRESH, ()):
        if enrolment.owner == owner:
            enrolment.holders.add(unlocked)


def _committed(session: Session) -> None:
    transaction = session.get_nested_transaction() or session.get_transaction()
    for enrolment in session.info.get(_FRESH, ()):
        if transaction in enrolment.within:
            enrolment.within.remove(transaction)


def _ended(session: Session, transaction: SessionTransaction) -> None:
    fresh = session.info.get(_FRESH)
    if not fresh:
        return
    for enrolment in list(fresh):
        if transaction in enrolment.within:
            for unlocked in list(enrolment.holders):
                unlocked.drop(enrolment.owner)
            enrolment.within.clear()
        if not enrolment.within:
            fresh.remove(enrolment)
