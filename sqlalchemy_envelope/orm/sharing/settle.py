"""What an unlocked owner reaches beyond its own keys, and how what waits for it is put in order.

Grants lead from owner to owner: a user to its groups, a group to larger ones and to what its members share
with it. They are followed level by level, one query for each class of grants and one for each class of
owners, and no owner twice; all of them, or those within some owners (`reach`).

**An unlock reads.** It sends no INSERT, UPDATE or DELETE, locks no row and waits for nobody: on a standby, in
a read-only transaction, beside another transaction of the same owner. What is sealed is opened in memory, and
read by. What waits in the rows is *settled*:

- grants and write epochs that are sealed are adopted, and a sealed slot;
- grants that are pending are fulfilled;
- a slot that falls short of the policy is replaced;
- scopes without a key get one;
- an epoch starts where somebody was removed, or where the maker of the present one is not proven. Whose key
  was granted to an owner that has a new epoch for that gets one with the next value that is written.

Settling is part of a transaction that writes: of the first flush with anything to write in the session that
was unlocked, of the first statement that encrypts a value of these owners, or of `unlocked.settle()`. It
comes before anything is encrypted or sealed under these keys, so that nothing is ever written under a key
that has to be replaced first. Rolled back, it waits again. Of rows that another transaction holds it leaves
those that are only to be adopted or fulfilled: that one does the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy_envelope.crypto.sealing import is_sealed
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.exceptions import (
    EnvelopeError,
    KeyNotFoundError,
    TamperedKeyError,
    TransactionConflictError,
)
from sqlalchemy_envelope.keys.grants import adopted_grant, sealed_grant, way_through
from sqlalchemy_envelope.keys.hierarchy import (
    check_generations,
    describe,
    is_proven,
    link_to_newer_root,
    open_wrap,
    short,
    wrap_under_root,
)
from sqlalchemy_envelope.keys.model import GrantState, KeyState, OpenedKey, Purpose
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.sharing.beyond import MAX_LEVELS, by_class, find_left, renew_beyond, renew_left
from sqlalchemy_envelope.orm.sharing.epochs import (
    Recipient,
    put_in,
    roots_of,
    start_epoch,
    start_scope_epoch,
)
from sqlalchemy_envelope.orm.sharing.locking import lock_groups
from sqlalchemy_envelope.orm.sharing.rollbacks import note_new_keys
from sqlalchemy_envelope.orm.tables.grant_rows import GrantCounts, GrantStore, count_grants
from sqlalchemy_envelope.orm.tables.key_rows import KeyStore, usable
from sqlalchemy_envelope.orm.tables.owners import Place

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.keyring import Keyring, OwnerId
    from sqlalchemy_envelope.keys.model import KeyId, StoredGrant, StoredKey
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.tables.key_rows import OwnedKey
    from sqlalchemy_envelope.orm.tables.owners import GrantClass, OwnerClass

Places = dict["OwnerId", Place]
Owners = Mapping["OwnerClass", Collection[tuple[Any, ...]]]
"""Owners by class and primary key."""


class Opening(NamedTuple):
    """What was found: the owners whose root keys are held, the grants that led to keys, and of whom a scope
    was granted."""

    places: Places
    grants: list[tuple[GrantClass, StoredGrant]]
    scoped: dict[OwnerClass, dict[tuple[Any, ...], None]]


def owners_of(found: Opening) -> Owners:
    """Whose grants were found, by class and primary key."""
    owners = {of: dict(keys) for of, keys in found.scoped.items()}
    for place in found.places.values():
        owners.setdefault(place.owner_class, {})[place.primary_key] = None
    return owners


def follow_grants(
    session: Session,
    policy: Policy,
    keyring: Keyring,
    start: Iterable[Place],
    within: Owners | None = None,
    levels: int = MAX_LEVELS,
    rows: Iterable[OwnedKey] = (),
) -> Opening:
    """Load what these owners were granted, and what that leads to, into the keyring, unopened.

    Args:
        within: the owners whose grants are followed; None for all.
        levels: how many grants in a row.
        rows: every key of some of these owners, if they were read already.
    """
    first, by_owner = list(start), _by_owner(rows)
    found = _follow_all(session, policy, keyring, first, within, levels, by_owner)
    beyond = found.places.keys() - {place.owner for place in first}
    if any(_is_ahead(keyring, owner) for owner in beyond):
        found = _follow_all(session, policy, keyring, first, within, levels, {})
    return found


def _is_ahead(keyring: Keyring, owner: OwnerId) -> bool:
    """Whether a grant led to an owner, and none to its active root key: an epoch was committed after the
    grants were read, and before the keys were."""
    root = keyring.current(owner, Purpose.ROOT)
    return root is not None and not keyring.is_open(root.key_id) and not keyring.has_way(root.key_id)


def _follow_all(
    session: Session,
    policy: Policy,
    keyring: Keyring,
    start: list[Place],
    within: Owners | None,
    levels: int,
    rows: Mapping[OwnerId, list[OwnedKey]],
) -> Opening:
    found = Opening({place.owner: place for place in start}, [], {})
    frontier = list(found.places.values())
    for _ in range(levels):
        reached: Places = {}
        for owner_class in {place.owner_class for place in frontier}:
            keys = [place.primary_key for place in frontier if place.owner_class is owner_class]
            for grant_class in owner_class.grants_to:
                of = None if within is None else list(within.get(grant_class.of.owner_class, ()))
                if of is None or of:
                    _follow(session, policy, keyring, grant_class, keys, found, reached, of)
        frontier = list(reached.values())
        for owner_class in {place.owner_class for place in frontier}:
            some = [place for place in frontier if place.owner_class is owner_class]
            read = [row for place in some for row in rows.get(place.owner, ())]
            _take_in(policy, keyring, owner_class, read)
            if unread := [place for place in some if place.owner not in rows]:
                load_owners(session, policy, keyring, unread)
        if not frontier:
            break
    return found


def _follow(
    session: Session,
    policy: Policy,
    keyring: Keyring,
    grant_class: GrantClass,
    recipients: list[tuple[object, ...]],
    found: Opening,
    reached: Places,
    of: list[tuple[object, ...]] | None,
) -> None:
    owner_class = grant_class.of.owner_class
    where = Names(session).where(owner_class)
    for grant, broken, owned in GrantStore(session, grant_class, policy.seals).load_to(recipients, of):
        error = broken or owned.error
        try:
            if error is None and not _grants(grant_class, owned.stored):
                error = TamperedKeyError(
                    f"A stored grant of {owner_class.name} grants another key than its class may."
                )
            way = None if error is not None else way_through(grant, owned.stored)
            keyring.add_stored(owned.owner, [owned.stored] if owned.owner not in found.places else [])
        except TamperedKeyError as altered:
            error, way = error or altered, None
        if error is not None:
            policy.emit(AuditEvent("grant_refused", owner_class.name, key_id=short(owned.stored)))
            keyring.refuse(owned.owner, error, altogether=owned.error is not None)
        elif way is not None:
            keyring.add_way(owned.stored.key_id, way)
            found.grants.append((grant_class, grant))
            if grant_class.scope is not None:
                found.scoped.setdefault(owner_class, {})[owned.primary_key] = None
        else:
            continue
        # Of who is refused too, so that values under their keys are known for theirs, and the reason is told.
        if grant_class.scope is None and owned.owner not in found.places:
            place = Place(owner_class, owned.primary_key, where)
            found.places[owned.owner] = reached[owned.owner] = place


def _grants(grant_class: GrantClass, key: StoredKey) -> bool:
    if grant_class.scope is None:
        return key.purpose is Purpose.ROOT
    return key.purpose is Purpose.DATA and key.scope == grant_class.scope


def load_owners(
    session: Session, policy: Policy, keyring: Keyring, places: list[Place], *, again: bool = False
) -> None:
    """Load every key of these owners, of one class, into the keyring, unopened; `again` if that was done
    before, and whatever hangs on nothing was told then."""
    store = KeyStore(session, places[0].owner_class, policy.seals)
    found = store.load([place.primary_key for place in places])
    _take_in(policy, keyring, places[0].owner_class, found, again=again)


def _by_owner(rows: Iterable[OwnedKey]) -> dict[OwnerId, list[OwnedKey]]:
    by_owner: dict[OwnerId, list[OwnedKey]] = {}
    for one in rows:
        by_owner.setdefault(one.owner, []).append(one)
    return by_owner


def _take_in(
    policy: Policy,
    keyring: Keyring,
    owner_class: OwnerClass,
    found: Iterable[OwnedKey],
    *,
    again: bool = False,
) -> None:
    """Take in every key of some owners of one class, as it is stored; `again` as for `load_owners`."""
    for owner, rows in _by_owner(found).items():
        error = next((row.error for row in rows if row.error is not None), None)
        try:
            keyring.add_stored(owner, [row.stored for row in rows])
            check_generations([row.stored for row in rows])
        except EnvelopeError as altered:
            error = error or altered
        if error is not None:
            policy.emit(AuditEvent("keys_refused", owner_class.name))
            keyring.refuse(owner, error, altogether=True)
        elif not again and _hangs_on_nothing(rows):
            lost = KeyNotFoundError("A key is wrapped under a root key that its owner does not have.")
            keyring.refuse(owner, lost, altogether=False)


def _hangs_on_nothing(rows: Iterable[OwnedKey]) -> bool:
    """Whether one of an owner's keys is wrapped under none of the others."""
    keys = [row.stored for row in rows]
    ids = {key.key_id for key in keys}
    return any(
        key.wrapped is None or key.wrapping_key_id not in ids
        for key in keys
        if key.purpose is not Purpose.ROOT and key.state is not KeyState.DESTROYED
    )


def settle(
    session: Session, policy: Policy, keyring: Keyring, found: Opening, *, writes: bool = False
) -> None:
    """Put in order what waited for a holder of these keys: adopt what was sealed, grant what is pending, and
    start new epochs where somebody was removed or where an epoch's maker is not proven.

    Args:
        session, policy, keyring: where, how, and by which keys.
        found: whose keys, and what was granted.
        writes: values are about to be written for these owners. Else an epoch that an owner is due because
            somebody was removed from another one, whom its key was granted to, waits until then: a group may
            own any number of them.
    """
    unproven = _adopt_grants(session, policy, keyring, found)
    # Before anything else: an older root key that is linked to one that somebody planted would be theirs.
    _replace_unproven(session, policy, keyring, found.places, unproven)
    sealed: list[tuple[Place, StoredKey]] = []
    for owner, place in found.places.items():
        root = keyring.current(owner, Purpose.ROOT)
        if root is not None and (owner not in unproven or root.key_id != unproven[owner][0]):
            try:
                sealed += [(place, key) for key in _settle_owner(session, policy, keyring, place)]
            except TransactionConflictError:
                raise
            except EnvelopeError as error:
                keyring.refuse(owner, error, altogether=True)
                policy.emit(AuditEvent("keys_refused", place.owner_class.name))
    _settle_grants(session, policy, keyring, found.places, sealed, writes=writes)


def _replace_unproven(
    session: Session,
    policy: Policy,
    keyring: Keyring,
    places: Places,
    unproven: Mapping[OwnerId, tuple[KeyId, OpenedKey]],
) -> None:
    """Start epochs in place of root keys that nobody vouches for, those who reach others first."""
    keyring.distrusted.update(key_id for key_id, _ in unproven.values())
    mine = [(places[owner], key_id) for owner, (key_id, _) in unproven.items() if owner in places]
    vouching = dict(unproven.values())
    if mine:
        renew_beyond(session, policy, keyring, by_class(mine), vouching)
    for place, key_id in mine:
        start_epoch(session, policy, place, keyring, vouching=vouching[key_id], instead_of=key_id)


def _adopt_grants(
    session: Session, policy: Policy, keyring: Keyring, found: Opening
) -> dict[OwnerId, tuple[KeyId, OpenedKey]]:
    """Wrap what was sealed under the recipients' own root keys; tells whose active root key is not to be
    trusted, with the newest one that is."""
    adopted: dict[GrantClass, list[StoredGrant]] = {}
    trusted: dict[OwnerId, list[OpenedKey]] = {}
    unproven: dict[OwnerId, tuple[KeyId, OpenedKey]] = {}
    adopted_before: dict[OwnerId, list[StoredGrant]] = {}
    for grant_class, grant in found.grants:
        if grant_class.scope is None and grant.state is GrantState.ADOPTED:
            adopted_before.setdefault(keyring.owner_of_key(grant.key_id), []).append(grant)
    sealed = [one for one in found.grants if one[1].state is GrantState.SEALED]
    # The older first: each epoch vouches for the next.
    for grant_class, grant in sorted(sealed, key=lambda one: keyring.epoch_of(one[1].key_id)):
        owner = keyring.owner_of_key(grant.key_id)
        try:
            key, recipient = keyring.open(grant.key_id), keyring.open(grant.recipient_key_id)
            if key is None or recipient is None:
                continue
            if key.stored.purpose is Purpose.ROOT and not policy.seals.is_on:
                if owner not in trusted:
                    trusted[owner] = _opened(keyring, adopted_before.get(owner, ()))
                known = trusted[owner]
                is_known = not known or any(one.stored.key_id == key.stored.key_id for one in known)
                # By the newest alone: an older one is known to those who were removed since.
                newest = max(known, key=lambda one: one.stored.epoch, default=key)
                if not (is_known or is_proven(key.stored, [newest])):
                    if key.stored.state is KeyState.ACTIVE:
                        unproven[owner] = key.stored.key_id, newest
                    continue
                trusted[owner].append(key)
            adopted.setdefault(grant_class, []).append(adopted_grant(grant, key, recipient))
        except TransactionConflictError:
            raise
        except EnvelopeError as error:
            keyring.refuse(owner, error, altogether=False)
            policy.emit(
                AuditEvent("grant_refused", grant_class.of.owner_class.name, key_id=grant.key_id.hex[:8])
            )
    for grant_class, grants in adopted.items():
        store = GrantStore(session, grant_class, policy.seals)
        free = store.free([one.grant_id for one in grants])
        mine = [one for one in grants if one.grant_id in free]
        store.replace(mine)
        if mine:
            policy.emit(AuditEvent("grant_adopted", grant_class.of.owner_class.name, count=len(mine)))
    return unproven


def _opened(keyring: Keyring, adopted: Iterable[StoredGrant]) -> list[OpenedKey]:
    """The root keys in grants that were adopted at an earlier unlock. Nobody but their recipient can have
    wrapped them so; what is sealed, anybody can have made."""
    opened = []
    for grant in adopted:
        stored = keyring.stored(grant.key_id)
        if stored is None:
            continue
        try:
            # Through this very grant: what another way opens says nothing about who wrote this row.
            way, parent = way_through(grant, stored), keyring.open(grant.recipient_key_id)
            if way is not None and parent is not None:
                opened.append(open_wrap(stored, way, parent))
        except EnvelopeError:
            continue
    return opened


class _Undone(NamedTuple):
    """What waits among an owner's own keys: those sealed to its root key, those without a link to it, and the
    scopes that have none."""

    sealed: list[StoredKey]
    unlinked: list[StoredKey]
    missing: frozenset[str]


def _undone(keyring: Keyring, place: Place) -> _Undone:
    keys = keyring.keys_of(place.owner)
    sealed = [key for key in keys if key.wrapped is not None and is_sealed(key.wrapped)]
    unlinked = [
        key
        for key in keys
        if key.purpose is Purpose.ROOT and key.state is KeyState.RETIRED and key.wrapped is None
    ]
    unlinked = unlinked if _has_past(place.owner_class) else []
    here = {key.scope for key in keys if key.purpose is Purpose.DATA}
    return _Undone(sealed, unlinked, frozenset(place.owner_class.scopes - here))


def _has_past(owner_class: OwnerClass) -> bool:
    """Whether who joins an owner of this class reads what was written before."""
    return all(one.history == "shared" for one in owner_class.grants_of if one.scope is None)


def is_left_undone(keyring: Keyring, found: Opening) -> bool:
    """Whether anything waits, as far as the rows tell that were loaded."""
    if any(grant.state is GrantState.SEALED for _, grant in found.grants):
        return True
    return any(any(_undone(keyring, place)) for place in found.places.values())


def load_again(
    session: Session, policy: Policy, keyring: Keyring, places: Places, within: Owners | None = None
) -> Opening:
    """What these owners have and were granted, as it is now.

    Args:
        within: the owners whose grants are followed; None for all.
    """
    for owner_class in {place.owner_class for place in places.values()}:
        some = [place for place in places.values() if place.owner_class is owner_class]
        load_owners(session, policy, keyring, some, again=True)
    return follow_grants(session, policy, keyring, places.values(), within)


def _settle_owner(session: Session, policy: Policy, keyring: Keyring, place: Place) -> list[StoredKey]:
    """An owner's own keys: what was sealed to its root key, what has no link to it, scopes without a key.
    Tells which data keys are to be replaced, since anybody can have sealed them."""
    owner, changed, unproven = place.owner, [], []
    sealed, unlinked, missing = _undone(keyring, place)
    if not (sealed or unlinked or missing):
        return []
    root = keyring.root(owner)
    if root is None:
        return []
    store = KeyStore(session, place.owner_class, policy.seals)
    free = store.free([key.key_id for key in (*sealed, *unlinked)])
    for key in sealed:
        opened = keyring.open(key.key_id)
        if opened is None:
            continue
        # With the row as it is now: it may have been opened when it was still active. Under the root key that
        # it was sealed to, where who joined since is not to read what is under it.
        under = None if _has_past(place.owner_class) else keyring.open(key.wrapping_key_id)
        if key.key_id in free:
            changed.append(wrap_under_root(OpenedKey(key, opened.key), under or root))
        if key.purpose is Purpose.DATA and key.state is KeyState.ACTIVE and not policy.seals.is_on:
            unproven.append(key)
    for key in unlinked:
        older = keyring.open(key.key_id)
        if older is not None and key.key_id in free:
            changed.append(link_to_newer_root(OpenedKey(key, older.key), root))
    store.replace_keys(changed, in_their_state=True)
    keyring.add_stored(owner, changed)
    writes = sum(key.purpose is Purpose.WRITE for key in changed)
    if writes:
        policy.emit(AuditEvent("write_epoch_adopted", place.owner_class.name, count=writes))
    # A destroyed key is in no keyring, and its epoch is taken.
    taken = [one.stored for one in store.load([place.primary_key])] if missing else []
    data = sorted((key for key in taken if key.purpose is Purpose.DATA), key=lambda key: key.epoch)
    epochs = {key.scope: key.epoch for key in data}
    new = [
        describe(
            KeyBytes.generate(),
            root.stored.owner_reference,
            Purpose.DATA,
            scope=scope,
            epoch=epochs.get(scope, 0) + 1,
        )
        for scope in sorted(missing)
    ]
    made = [OpenedKey(wrap_under_root(one, root), one.key) for one in new]
    written = store.insert_first([(place.primary_key, one.stored) for one in made])
    mine = [one for one in made if one.stored.key_id in written]
    keyring.add(owner, mine)
    if mine:
        note_new_keys(session, keyring, owner, [one.stored for one in mine])
    if len(mine) < len(made):
        # Another unlock of this owner made them at the same moment: go on with its keys.
        for one in made:
            if one.stored.key_id not in written:
                one.key.wipe()
        there = usable(store.load([place.primary_key], for_update=True))
        keyring.add_stored(owner, [one.stored for one in there])
    return unproven


def _settle_grants(
    session: Session,
    policy: Policy,
    keyring: Keyring,
    places: Places,
    sealed: Sequence[tuple[Place, StoredKey]],
    *,
    writes: bool,
) -> None:
    """Grant what is pending, put in who was left out, and start an epoch where somebody left, or where a data
    key was sealed by anybody."""
    shared = {owner: place for owner, place in places.items() if place.owner_class.grants_of}
    if shared:
        _settle_shared(session, policy, keyring, places, shared, writes=writes)
    for place, key in sealed:
        with _refusing(keyring, policy, place, key):
            start_scope_epoch(session, policy, place, key.scope, keyring, instead_of=key.key_id)


def _settle_shared(
    session: Session, policy: Policy, keyring: Keyring, places: Places, shared: Places, *, writes: bool
) -> None:
    held = _shared_keys(keyring, shared)
    counts = count_grants(session, _grants_of(shared.values()), held)
    left = [place for owner, place in shared.items() if _is_left(keyring, place, counts, removed=not writes)]
    active = by_class(
        (place, key_id) for key_id, (place, key) in held.items() if key.state is KeyState.ACTIVE
    )
    beyond = find_left(session, active)
    if left or beyond:
        lock_groups(session, policy, [*left, *(one.place for one in beyond)])
        if beyond:
            renew_beyond(session, policy, keyring, active)
        # As they are under the lock: those who are reached through one of these are stale by now.
        load_again(session, policy, keyring, places, owners_of(Opening(places, [], {})))
        _start_epochs(session, policy, keyring, shared, writes=writes)
        held = _shared_keys(keyring, shared)
        counts = count_grants(session, _grants_of(shared.values()), held)
    _put_in_missing(session, policy, keyring, held)
    past = _keys_of_the_past(keyring, shared)
    if past:
        counts |= count_grants(session, _grants_of(place for place, _ in past.values()), past)
    for key_id, (place, key) in {**held, **past}.items():
        if key_id in counts and counts[key_id].pending:
            with _refusing(keyring, policy, place, key):
                grant_pending(session, policy, keyring, place, key)


def _start_epochs(
    session: Session, policy: Policy, keyring: Keyring, places: Places, *, writes: bool
) -> None:
    """New epochs of those whom somebody left, unless another transaction was faster. Then, if their keys are
    about to be written by, of those whose keys are stale because of these, one after the other: what is
    sealed to a group comes after the group's own epoch."""
    done: set[OwnerId] = set()
    while True:
        counts = count_grants(session, _grants_of(places.values()), _shared_keys(keyring, places))
        due = [one for one in places.values() if one.owner not in done and _is_left(keyring, one, counts)]
        removed = [one for one in due if _is_left(keyring, one, counts, removed=True)]
        due = removed or (due if writes else [])
        if not due:
            return
        lock_groups(session, policy, due)
        for place in due:
            done.add(place.owner)
            _renew(session, policy, keyring, place, counts)


def _renew(
    session: Session, policy: Policy, keyring: Keyring, place: Place, counts: Mapping[KeyId, GrantCounts]
) -> None:
    # The root key first: a new one brings new data keys.
    for key in sorted(keyring.keys_of(place.owner), key=lambda one: one.purpose is not Purpose.ROOT):
        if key.key_id not in counts or not counts[key.key_id].is_left:
            continue
        with _refusing(keyring, policy, place, key):
            if keyring.open(key.key_id) is None:
                continue
            if key.purpose is not Purpose.ROOT:
                start_scope_epoch(session, policy, place, key.scope, keyring, instead_of=key.key_id)
            elif start_epoch(session, policy, place, keyring, instead_of=key.key_id):
                return


def _is_left(
    keyring: Keyring, place: Place, counts: Mapping[KeyId, GrantCounts], *, removed: bool = False
) -> bool:
    """Whether an epoch is due; if `removed`, because somebody was removed from this very owner."""
    keys = [key for key in keyring.keys_of(place.owner) if key.state is KeyState.ACTIVE]
    mine = [counts[key.key_id] for key in keys if key.key_id in counts]
    return any(one.is_removed if removed else one.is_left for one in mine)


def _shared_keys(keyring: Keyring, places: Places) -> dict[KeyId, tuple[Place, StoredKey]]:
    """The keys that grants of these owners are of: the active ones, and the older ones of a scope that is
    granted with its past."""
    found = {}
    for owner, place in places.items():
        past = {one.scope for one in place.owner_class.grants_of if one.history == "shared"}
        for key in keyring.keys_of(owner):
            is_data = key.purpose is Purpose.DATA
            if key.state is KeyState.ACTIVE:
                if is_data or key.purpose is Purpose.ROOT:
                    found[key.key_id] = place, key
            elif is_data and key.scope in past:
                found[key.key_id] = place, key
    return found


def _keys_of_the_past(keyring: Keyring, places: Places) -> dict[KeyId, tuple[Place, StoredKey]]:
    """The older keys of these owners that are granted to whoever was there at their time: a newer one does
    not lead to them, and a grant of one may be pending still."""
    return {
        key.key_id: (place, key)
        for owner, place in places.items()
        for key in keyring.keys_of(owner)
        if key.state is KeyState.RETIRED
        and any(one.history == "from_join" and _grants(one, key) for one in place.owner_class.grants_of)
    }


def _grants_of(places: Iterable[Place]) -> list[GrantClass]:
    return list({grant for place in places for grant in place.owner_class.grants_of})


def _put_in_missing(
    session: Session, policy: Policy, keyring: Keyring, held: Mapping[KeyId, tuple[Place, StoredKey]]
) -> None:
    """Grant keys to members who were left out of them: nobody else may ever do it."""
    missing: dict[OwnerId, set[KeyId]] = {}
    for grant_class in _grants_of(place for place, _ in held.values()):
        mine = [
            key_id
            for key_id, (place, key) in held.items()
            if place.owner_class is grant_class.of.owner_class and _grants(grant_class, key)
        ]
        for key_id in GrantStore(session, grant_class, policy.seals).keys_with_missing(mine):
            missing.setdefault(held[key_id][0].owner, set()).add(key_id)
    for key_ids in missing.values():
        place, key = held[next(iter(key_ids))]
        with _refusing(keyring, policy, place, key):
            put_in(session, policy, place, keyring, key_ids, partial(renew_left, session, policy, keyring))


@contextmanager
def _refusing(keyring: Keyring, policy: Policy, place: Place, key: StoredKey) -> Iterator[None]:
    """What is wrong with the keys of one owner is told to who asks for them, and stops nobody else's."""
    try:
        yield
    except TransactionConflictError:
        raise
    except EnvelopeError as error:
        keyring.refuse(place.owner, error, altogether=False)
        policy.emit(AuditEvent("grant_refused", place.owner_class.name, key_id=short(key)))


def grant_pending(session: Session, policy: Policy, keyring: Keyring, place: Place, key: StoredKey) -> None:
    """Seal a key to those to whom it was granted while nobody present held it."""
    opened = keyring.open(key.key_id)
    if opened is None:
        return
    for grant_class in place.owner_class.grants_of:
        if not _grants(grant_class, key):
            continue
        store = GrantStore(session, grant_class, policy.seals)
        waiting = store.load_of([key.key_id], GrantState.PENDING)
        to = [Recipient(grant_class, row_key, recipient) for _, row_key, recipient in waiting]
        renew_left(session, policy, keyring, to)
        roots = roots_of(session, policy, to, strict=False)
        sealed, free = [], store.free([grant.grant_id for grant, _, _ in waiting])
        for grant, _, recipient in waiting:
            root = roots.get((grant_class.to.owner_class, recipient))
            if root is not None and grant.grant_id in free:
                made = sealed_grant(opened, grant.granting_row, root, grant.grant_id)
                sealed.append(replace(made, recipient=grant.recipient))
        store.replace(sealed)
        if sealed:
            policy.emit(AuditEvent("grant_sealed", place.owner_class.name, count=len(sealed)))
