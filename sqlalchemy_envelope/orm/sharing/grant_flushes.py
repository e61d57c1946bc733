"""Flushes of granting rows: a new row seals a key to its recipient, a deleted row starts a new epoch.

This happens after the flush has written its rows, when their primary keys are known, in the same transaction.
Lock the group, read its keys as they are now, and seal these keys. Before the flush deletes a row, the group
is locked.

A row that is deleted and added again in one flush is a single UPDATE. If its ends are unchanged, its grants
stay; if it is void, it is granted as a new row is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import and_, inspect, select

from sqlalchemy_envelope.exceptions import GrantError, NotEnrolledError
from sqlalchemy_envelope.keys.model import KeyState, Purpose
from sqlalchemy_envelope.orm.columns.plans import plan_of_mapper
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.current.desk import desk_of
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.sharing.beyond import by_class, find_left, renew_left
from sqlalchemy_envelope.orm.sharing.circles import owners_around, refuse_circles
from sqlalchemy_envelope.orm.sharing.epochs import start_epoch, start_scope_epoch
from sqlalchemy_envelope.orm.sharing.first_grants import grant_first
from sqlalchemy_envelope.orm.sharing.following import follow, note_moved
from sqlalchemy_envelope.orm.sharing.locking import lock_groups
from sqlalchemy_envelope.orm.sharing.membership import catch_up, forget_looks
from sqlalchemy_envelope.orm.sharing.new_grants import grant_to, granted_keys, insert_grants, pending_for
from sqlalchemy_envelope.orm.sharing.reachable import note_left
from sqlalchemy_envelope.orm.sharing.recipients import Recipient
from sqlalchemy_envelope.orm.sharing.rights import take_void, void_among
from sqlalchemy_envelope.orm.sharing.row_changes import is_moved, place_before
from sqlalchemy_envelope.orm.sharing.row_switches import Ends, is_written_anew, row_before
from sqlalchemy_envelope.orm.tables.binds import bind_for
from sqlalchemy_envelope.orm.tables.grant_counts import count_grants
from sqlalchemy_envelope.orm.tables.key_grant import grant_class_of, grant_written_by, grants_can_circle
from sqlalchemy_envelope.orm.tables.key_rows import KeyStore
from sqlalchemy_envelope.orm.tables.owners import Place, owner_class_of, places_by_class
from sqlalchemy_envelope.orm.tables.session_notes import page_of, put_page, take_page
from sqlalchemy_envelope.orm.tables.stored_rows import usable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from sqlalchemy.orm import InstanceState, Mapper, Session

    from sqlalchemy_envelope.keys.keyring import Keyring
    from sqlalchemy_envelope.keys.model import StoredKey
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.sharing.following import Joined
    from sqlalchemy_envelope.orm.tables.owners import GrantClass
    from sqlalchemy_envelope.orm.tables.stored_rows import OwnedKey

Shared = tuple["Place", "str | None"]
"""A key that is granted: the owner, and the scope, or None for the root key."""


@dataclass(slots=True)
class _Changes:
    """A page of `SessionNotes`: the changes of the present flush to granting rows.

    Attributes:
        leaving: the keys that deleted rows granted.
        before: for each changed row, the owner of the key that it granted.
        switched: for each row that is deleted and added again, its former ends.
        early: the keys whose grants were deleted before the flush writes values.
    """

    leaving: set[Shared] = field(default_factory=set)
    early: set[Shared] = field(default_factory=set)
    before: dict[InstanceState[Any], Place] = field(default_factory=dict)
    switched: dict[InstanceState[Any], Ends] = field(default_factory=dict)


def before_flush(session: Session, *_: object) -> None:
    """Note the grants that the flush will change or delete, while the rows still name them."""
    leaving: set[Shared] = set()
    names = Names(session)
    changes = _Changes()
    put_page(session, changes)
    for instance in session.dirty:
        changed: InstanceState[Any] = inspect(instance)
        grant_class = grant_class_of(changed.mapper)
        if grant_class is not None:
            changes.before[changed] = place_before(session, grant_class, changed)
    for instance in session.deleted:
        leaving |= _granted_to(session, names, instance)
    changes.leaving = leaving
    # Deleted granting rows are noted later, by `before_delete`: a deletion may become an UPDATE.
    removed = [left for one in session.deleted for left in _left_by(session, inspect(one))]
    moved = [
        place
        for state, place in changes.before.items()
        if (of := grant_class_of(state.mapper)) is not None and is_moved(of, state)
    ]
    places = [*(place for place, _ in (*leaving, *removed)), *moved]
    if places:
        lock_groups(desk_of(session), places)
    if removed and _writes_for_groups(session):
        changes.early = _delete_early(session, names)


def _writes_for_groups(session: Session) -> bool:
    """Whether the flush may write encrypted values of owners that share their keys."""
    plans = (plan_of_mapper(inspect(one).mapper) for one in [*session.dirty, *session.new])
    paths = (attribute.encrypted.path for plan in plans for attribute in plan)
    return any(owner_class.grants_of for path in paths for owner_class in path.owner_classes)


def _delete_early(session: Session, names: Names) -> set[Shared]:
    """Delete the grants of granting rows that the flush will delete, and return the keys that they granted.

    The unit of work writes values before it deletes rows. With the grants gone, the first value for the group
    starts the epoch, so that the removed member cannot open what is written in the same flush.

    A member who is unlocked here, and leaves, keeps the key for this flush.
    """
    found: set[Shared] = set()
    for instance in session.deleted:
        state: InstanceState[Any] = inspect(instance)
        grant = grant_class_of(state.mapper)
        if grant is None or state.key is None or is_written_anew(session, state.key):
            continue
        recipient = names.place(grant.to.owner_class, grant.values(state, grant.to.columns))
        if _is_unlocked(session, recipient):
            continue
        desk_of(session).grants(grant).delete([grant.values(state, grant.row_key)])
        found |= _left_by(session, state)
    if found:
        forget_looks(session)
    return found


def _is_unlocked(session: Session, place: Place) -> bool:
    """Whether an unlocked session holds the root key of an owner."""
    keyrings = [
        one.keyring_for(place.owner, session)
        for one in context.unlocked_sessions(session)
        if not one.on_demand
    ]
    return any(one is not None and one.current(place.owner, Purpose.ROOT) is not None for one in keyrings)


def _granted_to(session: Session, names: Names, instance: object) -> set[Shared]:
    """The keys that were granted to an object that is to be deleted; none if the object is no owner."""
    state: InstanceState[Any] = inspect(instance)
    owner_class = owner_class_of(getattr(type(instance), "__table__", None))
    if owner_class is None or state.key is None or not owner_class.grants_to:
        return set()
    found: set[Shared] = set()
    for grant in [] if is_written_anew(session, state.key) else owner_class.grants_to:
        pairs = zip(grant.to.columns, state.key[1], strict=True)
        query = select(*grant.of.columns).where(and_(*(column == value for column, value in pairs)))
        with session.no_autoflush:
            rows = session.execute(query, bind_arguments=bind_for(session, grant.mapper, query)).all()
        found |= {(names.place(grant.of.owner_class, tuple(row)), grant.scope) for row in rows}
    return found


def before_delete(mapper: object, connection: object, state: InstanceState[Any]) -> None:
    """Note a granting row that will be deleted, also an orphan, which is in no list of the session."""
    session = state.session
    if session is not None:
        left = _left_by(session, state)
        page_of(session, _Changes).leaving.update(left)
        if left:
            lock_groups(desk_of(session), [place for place, _ in left])


def before_insert(mapper: object, connection: object, state: InstanceState[Any]) -> None:
    """Note a new granting row that takes over a row that was deleted in the same flush."""
    session, grant = state.session, grant_class_of(state.mapper)
    before = None if session is None or grant is None else row_before(session, grant, state)
    if session is None or grant is None or before is None:
        return
    page_of(session, _Changes).switched[state] = before
    if before != Ends(grant.values(state, grant.of.columns), grant.values(state, grant.to.columns)):
        note_moved(session, grant, before)
        place = Names(session).place(grant.of.owner_class, before.of)
        lock_groups(desk_of(session), [place])


def _left_by(session: Session, state: InstanceState[Any]) -> set[Shared]:
    """The key that a granting row granted that is about to be deleted."""
    grant = grant_class_of(state.mapper)
    return set() if grant is None else {(place_before(session, grant, state), grant.scope)}


def refuse_other_class(mapper: Mapper[Any], connection: object, state: InstanceState[Any]) -> None:
    """Refuse a row of a grant's table that another mapped class is about to insert.

    Raises:
        GrantError: the class is not the grant class of the table. Everybody would see the row, and it would
            grant nothing.
    """
    grant = grant_written_by(mapper)
    if grant is not None:
        raise GrantError(
            f"{mapper.class_.__name__} writes rows of {grant.table.name}, and only a "
            f"{grant.mapper.class_.__name__} grants by them: add a {grant.mapper.class_.__name__}."
        )


def after_flush(session: Session, *_: object) -> None:
    """Grant keys to new recipients, and start new epochs where somebody left."""
    changes = take_page(session, _Changes) or _Changes()
    written = _written(session, changes.before, changes.switched)
    left = changes.leaving | written.left
    followed = follow(session, written.joined, written.kept)
    left |= followed.left
    joined = [*written.joined, *followed.joined, *_void_among(session, written.kept)]
    if left or joined:
        _change(desk_of(session), left, joined, changes.early)


def leave(desk: Desk, left: Collection[Shared]) -> None:
    """Start new epochs of these keys: somebody who held them leaves, and the granting row may stay."""
    if left:
        _change(desk, set(left), (), ())


class _Written(NamedTuple):
    """The granting rows of a flush.

    Attributes:
        left: the keys that somebody was removed from.
        joined: the rows to grant.
        kept: the rows that were written again unchanged.
    """

    left: set[Shared]
    joined: list[Joined]
    kept: list[Joined]


def _written(
    session: Session,
    before: Mapping[InstanceState[Any], Place],
    switched: Mapping[InstanceState[Any], Ends],
) -> _Written:
    """Sort the granting rows of a flush. The grants of rows that name somebody else now are deleted.

    Args:
        session: the session of the flush.
        before: for each changed row, the owner of the key that it granted.
        switched: for each row that a new object took over, its former ends.
    """
    found = _Written(set(), [], [])
    names, new = Names(session), session.new  # SQLAlchemy makes a new set at each access
    for instance in [*session.dirty, *new]:
        state: InstanceState[Any] = inspect(instance)
        grant = grant_class_of(state.mapper)
        if grant is None:
            continue
        place, recipient = _ends(names, grant, state)
        if state in switched:
            ends = switched[state]
            former = names.place(grant.of.owner_class, ends.of)
            moved = ends != Ends(place.primary_key, recipient.primary_key)
            if not moved:
                found.kept.append((grant, place, recipient))
        elif instance in new:
            found.joined.append((grant, place, recipient))
            continue
        else:
            former, moved = before.get(state, place), is_moved(grant, state)
        if moved:
            desk_of(session).grants(grant).delete([recipient.row_key])
            found.left.add((former, grant.scope))
            found.joined.append((grant, place, recipient))
    return found


def _change(desk: Desk, left: set[Shared], joined: Sequence[Joined], early: Collection[Shared]) -> None:
    """Start new epochs of these keys, and grant to these recipients.

    Args:
        early: the keys whose new epoch may have started within the flush.
    """
    with desk.session.no_autoflush:
        shared: dict[tuple[GrantClass, Place], list[Recipient]] = {}
        for grant, place, recipient in joined:
            shared.setdefault((grant, place), []).append(recipient)
        shared = grant_first(desk, shared)
        places = {place for place, _ in left} | {place for _, place in shared}
        lock_groups(desk, places | _around(desk, shared))
        forget_looks(desk.session)  # the checks before the lock
        stored = _load(desk, places)
        for place, scope in _farthest_first(desk.session, left, stored):
            may_be_done = (place, scope) in early
            _leave(desk, place, scope, stored.get(place, []), may_be_done=may_be_done)
        note_left(desk, {place for place, scope in left if scope is None})
        for (grant, place), recipients in shared.items():
            _join(desk, grant, place, recipients, stored.get(place, []))
    forget_looks(desk.session)


def _around(desk: Desk, shared: Mapping[tuple[GrantClass, Place], Sequence[Recipient]]) -> set[Place]:
    """The owners that might be in a circle with these grants. All of them are locked in one order."""
    found: set[Place] = set()
    for (grant, place), recipients in shared.items():
        if grant.scope is None and grants_can_circle(grant):
            found |= owners_around(desk.session, place, recipients)
    return found


def _void_among(session: Session, kept: Sequence[Joined]) -> list[Joined]:
    """The void rows among rows that were written again unchanged.

    A holder of the key through a void row is not named by the row. The epoch for that starts before the next
    write, as after any removal.
    """
    found: list[Joined] = []
    for grant in {grant for grant, _, _ in kept}:
        desk = desk_of(session)
        some = {one.row_key: (grant, place, one) for of, place, one in kept if of is grant}
        void = void_among(desk, grant, list(some))
        if void:
            lock_groups(desk, [some[row_key][1] for row_key in void])
            # Another flush may have granted these rows meanwhile.
            found += [some[row_key] for row_key in take_void(desk, grant, void)]
    return found


def _load(desk: Desk, places: Collection[Place]) -> dict[Place, list[OwnedKey]]:
    """The keys of these locked owners, as they are now."""
    found: dict[Place, list[OwnedKey]] = {}
    for owner_class, mine in places_by_class(places).items():
        some, store = {place.owner: place for place in mine}, desk.keys(owner_class)
        keys = [place.primary_key for place in some.values() if None not in place.primary_key]
        for one in store.load(keys, for_update=store.shows_others_when_locked):
            found.setdefault(some[one.owner], []).append(one)
    return found


def _ends(names: Names, grant: GrantClass, state: InstanceState[Any]) -> tuple[Place, Recipient]:
    place = names.place(grant.of.owner_class, grant.values(state, grant.of.columns))
    row_key = grant.values(state, grant.row_key)
    return place, Recipient(grant, row_key, grant.values(state, grant.to.columns))


def _farthest_first(
    session: Session, left: Collection[Shared], stored: Mapping[Place, Sequence[OwnedKey]]
) -> list[Shared]:
    """Sort the keys, the farthest owner first: its epoch makes stale the keys that were sealed to it."""
    if len(left) < 2:
        return list(left)
    active = {one: _active(stored.get(one[0], ()), *_kind(one[1])) for one in left}
    keys = [(place, key.key_id) for (place, _), key in active.items() if key is not None]
    found = find_left(session, by_class(keys), {key_id for _, key_id in keys})
    levels = {one.key_id: one.level for one in found}
    return sorted(left, key=lambda one: -levels.get(key.key_id, -1) if (key := active[one]) else 1)


def _kind(scope: str | None) -> tuple[Purpose, str | None]:
    return (Purpose.ROOT if scope is None else Purpose.DATA), scope


def _leave(
    desk: Desk, place: Place, scope: str | None, stored: Sequence[OwnedKey], *, may_be_done: bool
) -> None:
    if None in place.primary_key:
        return
    key = _active(usable(stored), *_kind(scope))
    if key is None:
        return
    if may_be_done:
        counts = count_grants(desk.session, place.owner_class.grants_of, [key.key_id])
        if key.key_id in counts and not counts[key.key_id].is_removed:
            return
    keyring = _holder(desk, place, stored)
    if keyring is None and context.only_by_ticket(desk.session):
        return  # a ticket starts no epoch. The next holder who writes does, and a write by ticket is refused
    # Only replace this key: a server that opened the group in this transaction has seen the removal already.
    if scope is None:
        start_epoch(desk, place, keyring, instead_of=key.key_id)
    else:
        start_scope_epoch(desk, place, scope, keyring, instead_of=key.key_id)


def _active(keys: Iterable[OwnedKey], purpose: Purpose, scope: str | None) -> StoredKey | None:
    """The active key of this purpose and scope."""
    kind = purpose, scope or "", KeyState.ACTIVE
    return next(
        (one.stored for one in keys if (one.stored.purpose, one.stored.scope, one.stored.state) == kind), None
    )


def _join(
    desk: Desk,
    grant: GrantClass,
    place: Place,
    recipients: list[Recipient],
    stored: Sequence[OwnedKey],
) -> None:
    if grant.scope is None and grants_can_circle(grant):
        refuse_circles(desk, place, recipients)
    keyring = _holder(desk, place, stored)
    if keyring is None and _needs_more_than_a_ticket(desk.session, grant, place):
        what = f"The key of this {place.owner_class.name}, for a {grant.mapper.class_.__name__},"
        raise context.locked(what, desk.session, use="give")
    store = desk.keys(place.owner_class)
    if grant.history == "from_join" and not _is_nobodys(store, grant, place, keyring):
        if grant.scope is None:
            start_epoch(desk, place, keyring, recipients)
        else:
            start_scope_epoch(desk, place, grant.scope, keyring, recipients)
        return
    if keyring is None:
        _note_pending(desk, store, grant, place, recipients)
        return
    renew_left(desk, keyring, recipients)
    for key in granted_keys(keyring, grant, place.owner):
        keyring.add_stored(place.owner, [grant_to(desk, store, key, recipients)])


def _needs_more_than_a_ticket(session: Session, grant: GrantClass, place: Place) -> bool:
    """Whether tickets are all that is open here, and a new row of this class would give a key that a ticket
    carries, or start an epoch."""
    return context.only_by_ticket(session, place.owner) or (
        grant.history == "from_join" and context.only_by_ticket(session)
    )


def _is_nobodys(store: KeyStore, grant: GrantClass, place: Place, keyring: Keyring | None) -> bool:
    """Whether nobody has the owner's root key yet: it was never granted, and has no slot.

    The first recipients of a just enrolled owner then read the values that were written with the enrolment,
    because nobody could read these values otherwise.
    """
    root = keyring.current(place.owner, Purpose.ROOT) if keyring is not None else None
    if root is None or root.granted or grant.scope is not None:
        return False
    return not store.load_slots([root.key_id], closed_too=True)


def _note_pending(
    desk: Desk,
    store: KeyStore,
    grant: GrantClass,
    place: Place,
    recipients: list[Recipient],
) -> None:
    key = _active(usable(store.load([place.primary_key])), *_kind(grant.scope))
    if key is None:
        name = place.owner_class.name
        if not store.is_there(place.primary_key):
            raise NotEnrolledError(
                f"A {grant.mapper.class_.__name__} grants the key of a {name} that is not in the database. "
                f"Add the {name} first, or correct the row."
            )
        raise NotEnrolledError(
            f"A {grant.mapper.class_.__name__} grants the key of a {name} that has none. Make it: "
            f"`envelope.enroll(session, owner)`.{context.server_hint(desk.session)}"
        )
    insert_grants(desk, pending_for(key.key_id, recipients))
    store.add_granted([(key.key_id, len(recipients))])


def _holder(desk: Desk, place: Place, stored: Sequence[OwnedKey]) -> Keyring | None:
    """An unlocked keyring that reaches the owner's root key, with the owner's keys as they are now."""
    for unlocked in context.unlocked_sessions(desk.session):
        if unlocked.on_demand:
            unlocked.prepare_write(desk.session, place.owner_class, [place.primary_key], 0)
        unlocked.follow_owners(desk.session, place.owner_class, [place.primary_key])
        unlocked.settle_for(desk.session, place.owner)
        keyring = unlocked.keyring_for(place.owner, desk.session)
        if keyring is None or (
            not unlocked.on_demand
            and not catch_up(desk, keyring, unlocked.places_for(place.owner), place, stored)
        ):
            continue
        return keyring
    return None
