"""Owners that were enrolled without a slot: before the commit, somebody has to be granted their keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import event
from sqlalchemy.orm import Session

from sqlalchemy_envelope.exceptions import EnrollmentError
from sqlalchemy_envelope.orm.sharing.rollbacks import note_rollback
from sqlalchemy_envelope.orm.tables.grant_rows import count_grants
from sqlalchemy_envelope.orm.tables.key_rows import KeyStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass, Place

_UNREACHABLE = "sqlalchemy_envelope.unreachable"
_Waiting = dict["Place", "Policy"]


def note_unreachable(session: Session, policy: Policy, places: Sequence[Place]) -> None:
    """These owners were enrolled without a slot: each has to be granted to somebody before the commit."""
    if not places:
        return
    if not event.contains(Session, "before_commit", _require_reachable):
        event.listen(Session, "before_commit", _require_reachable)
    waiting: _Waiting = session.info.setdefault(_UNREACHABLE, {})
    waiting.update(dict.fromkeys(places, policy))
    note_rollback(session, lambda: _forget(waiting, places))


def _forget(waiting: _Waiting, places: Iterable[Place]) -> None:
    for place in places:
        waiting.pop(place, None)


def _require_reachable(session: Session) -> None:
    waiting: _Waiting = session.info.get(_UNREACHABLE, {})
    if not waiting:
        return
    session.flush()
    by_class: dict[tuple[OwnerClass, int], list[Place]] = {}
    for place, policy in waiting.items():
        by_class.setdefault((place.owner_class, id(policy)), []).append(place)
    for (owner_class, _), places in by_class.items():
        store = KeyStore(session, owner_class, waiting[places[0]].seals)
        roots = store.load_active_roots([place.primary_key for place in places])
        key_ids = [one.stored.key_id for one in roots.values()]
        counts = count_grants(session, owner_class.grants_of, key_ids) if owner_class.grants_of else {}
        for one in roots.values():
            count = counts.get(one.stored.key_id)
            if count is None or count.rows == count.pending:
                raise EnrollmentError(
                    f"Nobody could open the keys of a new {owner_class.name} after this commit: add a grant "
                    "of it to somebody who is enrolled, or enroll it with `secret=` or `provider=`."
                )
    waiting.clear()
