"""Refuse a commit after which nobody might be able to open the keys of an owner.

An owner that was enrolled without a slot waits for its first grant. An owner needs another way to its keys if
its provider was removed, or if the last holder of its key leaves while the other members have no key yet. The
last member of a group may leave: nobody expects to read the group's data any more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import event
from sqlalchemy.orm import Session

from sqlalchemy_envelope.exceptions import EnrollmentError
from sqlalchemy_envelope.keys.model import KeyState, Purpose, SlotKind
from sqlalchemy_envelope.orm.current.desk import Desk
from sqlalchemy_envelope.orm.sharing.rollbacks import note_rollback
from sqlalchemy_envelope.orm.tables.grant_counts import count_grants
from sqlalchemy_envelope.orm.tables.session_notes import known_page, page_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy_envelope.keys.model import StoredKey
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass, Place
    from sqlalchemy_envelope.orm.tables.stored_rows import OwnedKey

_NEW = (
    "Nobody could open the keys of a new {name} after this commit: add a grant of it to somebody who is "
    "enrolled, or enroll it with `secret=` or `provider=`."
)
_PROVIDER_REMOVED = (
    "Nobody could open the keys of this {name} after this commit: its only key slots were those of the "
    "provider that was removed. Add a provider or a secret, or grant its key to somebody, in the same "
    "transaction."
)
_LEFT = (
    "Nobody could open a key of this {name} after this commit: its last holder leaves, and its grants to the "
    "others are pending. Once the others have keys, unlock the holder and call `settle()`, and "
    "then delete the holder's row."
)


class _Doubt(NamedTuple):
    policy: Policy
    message: str
    may_be_empty: bool = False
    """Whether nothing is refused where no grant is left."""
    is_new: bool = False
    """Whether the owner was enrolled: custodians alone are nobody who uses it."""


@dataclass(slots=True)
class _Unreachable:
    """A page of `SessionNotes`: the owners to look at before the commit."""

    waiting: dict[Place, _Doubt] = field(default_factory=dict)


def note_unreachable(desk: Desk, places: Iterable[Place]) -> None:
    """Note owners that were enrolled without a slot. Each needs a grant to somebody before the commit."""
    _note(desk, list(places), _Doubt(desk.policy, _NEW, is_new=True))


def note_slots_removed(desk: Desk, place: Place) -> None:
    """Note an owner whose slots were deleted. It needs another slot or a grant before the commit."""
    _note(desk, [place], _Doubt(desk.policy, _PROVIDER_REMOVED))


def note_left(desk: Desk, places: Iterable[Place]) -> None:
    """Note owners that somebody leaves. If members remain, a member has to hold the key at the commit."""
    _note(desk, list(places), _Doubt(desk.policy, _LEFT, may_be_empty=True))


def _note(desk: Desk, places: Sequence[Place], doubt: _Doubt) -> None:
    if not places:
        return
    listen()
    waiting = page_of(desk.session, _Unreachable).waiting
    new = [place for place in places if place not in waiting]  # the first note says more
    waiting.update(dict.fromkeys(new, doubt))
    note_rollback(desk.session, lambda: _forget(waiting, new))


def _forget(waiting: dict[Place, _Doubt], places: Iterable[Place]) -> None:
    for place in places:
        waiting.pop(place, None)


def listen() -> None:
    """Look at each commit: where granting rows are mapped, its flush may bring the first doubt."""
    if not event.contains(Session, "before_commit", _require_reachable):
        event.listen(Session, "before_commit", _require_reachable)


def _require_reachable(session: Session) -> None:
    if session.in_nested_transaction():
        return  # work after the savepoint may bring a way
    session.flush()  # as the commit does next: a member may leave with it
    page = known_page(session, _Unreachable)
    if page is None or not page.waiting:
        return
    waiting = page.waiting
    alike: dict[tuple[OwnerClass, str, int], list[Place]] = {}
    for place, doubt in waiting.items():
        alike.setdefault((place.owner_class, doubt.message, id(doubt.policy)), []).append(place)
    for (owner_class, _, _), places in alike.items():
        doubt = waiting[places[0]]
        _require(Desk(session, doubt.policy), owner_class, doubt, places)
    waiting.clear()


def _require(desk: Desk, owner_class: OwnerClass, doubt: _Doubt, places: Sequence[Place]) -> None:
    store = desk.keys(owner_class)
    owners = [place.primary_key for place in places]
    if doubt.may_be_empty:
        # The new epoch may be sealed to the remaining members: they would lose the earlier values.
        roots = [key for key in store.load(owners) if _hangs_on_nothing(key.stored)]
    else:
        roots = list(store.load_active_roots(owners).values())
    unreachable = _without_grant(desk, owner_class, roots, may_be_empty=doubt.may_be_empty)
    if not unreachable:
        return
    slots = store.load_slots([root.stored.key_id for root in unreachable], closed_too=True)
    opened = {slot.key_id for slot in slots if not (doubt.is_new and slot.kind is SlotKind.ESCROW)}
    if any(root.stored.key_id not in opened for root in unreachable):
        raise EnrollmentError(doubt.message.format(name=owner_class.name))


def _hangs_on_nothing(key: StoredKey) -> bool:
    """Whether a key is a root key that no newer root key leads back to."""
    return key.purpose is Purpose.ROOT and key.state is not KeyState.DESTROYED and key.wrapping_key_id is None


def _without_grant(
    desk: Desk, owner_class: OwnerClass, roots: Sequence[OwnedKey], *, may_be_empty: bool
) -> list[OwnedKey]:
    """The root keys among these that no grant leads to: all their grants are pending, or they have none."""
    key_ids = [root.stored.key_id for root in roots]
    counts = count_grants(desk.session, owner_class.grants_of, key_ids) if owner_class.grants_of else {}
    found = []
    for root in roots:
        count = counts.get(root.stored.key_id)
        if count is None or count.rows == 0:
            if not may_be_empty:
                found.append(root)
        elif count.rows == count.pending:
            found.append(root)
    return found
