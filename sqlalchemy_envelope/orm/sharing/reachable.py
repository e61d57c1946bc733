"""Owners that were enrolled without a slot: before the commit, somebody has to be granted their keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import event
from sqlalchemy.orm import Session

from sqlalchemy_envelope.exceptions import EnrollmentError
from sqlalchemy_envelope.orm.current.desk import Desk
from sqlalchemy_envelope.orm.sharing.rollbacks import note_rollback
from sqlalchemy_envelope.orm.tables.grant_counts import count_grants
from sqlalchemy_envelope.orm.tables.session_notes import known_page, page_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass, Place


@dataclass(slots=True)
class _Unreachable:
    """A page of `SessionNotes`: owners without a slot, and the policy that each was enrolled under."""

    waiting: dict[Place, Policy] = field(default_factory=dict)


def note_unreachable(desk: Desk, places: Sequence[Place]) -> None:
    """These owners were enrolled without a slot: each has to be granted to somebody before the commit."""
    if not places:
        return
    if not event.contains(Session, "before_commit", _require_reachable):
        event.listen(Session, "before_commit", _require_reachable)
    waiting = page_of(desk.session, _Unreachable).waiting
    waiting.update(dict.fromkeys(places, desk.policy))
    note_rollback(desk.session, lambda: _forget(waiting, places))


def _forget(waiting: dict[Place, Policy], places: Iterable[Place]) -> None:
    for place in places:
        waiting.pop(place, None)


def _require_reachable(session: Session) -> None:
    page = known_page(session, _Unreachable)
    if page is None or not page.waiting:
        return
    waiting = page.waiting
    session.flush()
    by_class: dict[tuple[OwnerClass, int], list[Place]] = {}
    for place, policy in waiting.items():
        by_class.setdefault((place.owner_class, id(policy)), []).append(place)
    for (owner_class, _), places in by_class.items():
        store = Desk(session, waiting[places[0]]).keys(owner_class)
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
