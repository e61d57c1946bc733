"""Settle: carry out the pending work of an unlocked owner, and of every owner that it reaches.

**An unlock only reads.** It sends no INSERT, UPDATE or DELETE, locks no row and waits for nobody. So it works
on a standby, in a read-only transaction, and beside another transaction of the same owner. Sealed keys are
opened in memory, and values are read with them. The pending work in the rows is *settled*:

- sealed grants, sealed write epochs and a sealed slot are adopted;
- pending grants are fulfilled;
- a slot that falls short of the policy is replaced;
- a scope without a key gets a key;
- an epoch starts where somebody was removed, or where the maker of the present epoch is not proven. If the
  key of an owner was granted to such a group, that owner gets a new epoch too, with the next value that is
  written for it.

Settling is part of a transaction that writes: the first flush with anything to write in the unlocked session,
the first statement that encrypts a value of these owners, or `unlocked.settle()`. It comes before anything is
encrypted or sealed under these keys, so that nothing is ever written under a key that has to be replaced
first. After a rollback the work is pending again. Rows that only need adopting or fulfilling are left alone
while another transaction holds them: the other transaction does the same work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy_envelope.keys.model import GrantState, KeyState, Purpose
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.sharing.adoption import adopt_grants
from sqlalchemy_envelope.orm.sharing.beyond import by_class, find_left, renew_beyond, renew_left
from sqlalchemy_envelope.orm.sharing.epochs import start_epoch, start_scope_epoch
from sqlalchemy_envelope.orm.sharing.granted import Opening, load_again, owners_of
from sqlalchemy_envelope.orm.sharing.left_out import put_in_missing
from sqlalchemy_envelope.orm.sharing.locking import lock_groups
from sqlalchemy_envelope.orm.sharing.new_grants import fulfil, recipients_in
from sqlalchemy_envelope.orm.sharing.own_keys import settle_own_keys
from sqlalchemy_envelope.orm.sharing.refusing import grant_refused, refusing
from sqlalchemy_envelope.orm.sharing.rights import gives
from sqlalchemy_envelope.orm.tables.grant_counts import count_grants

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy_envelope.keys.keyring import Keyring, OwnerId
    from sqlalchemy_envelope.keys.model import KeyId, StoredKey
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.sharing.adoption import Unproven
    from sqlalchemy_envelope.orm.sharing.granted import Places
    from sqlalchemy_envelope.orm.tables.grant_counts import GrantCounts
    from sqlalchemy_envelope.orm.tables.owners import GrantClass, Place

    Held = dict[KeyId, tuple[Place, StoredKey]]


def settle(desk: Desk, keyring: Keyring, found: Opening, *, writes: bool = False) -> None:
    """Carry out the pending work that needs a holder of these keys.

    Adopt sealed grants, fulfil pending grants, and start new epochs where somebody was removed or where the
    maker of an epoch is not proven.

    Args:
        desk, keyring: the session with its policy, and the keys to work with.
        found: the owners, and the grants that led to their keys.
        writes: whether values are about to be written for these owners. Otherwise some epochs wait until
            then: the epochs of owners whose key was granted to a group that somebody was removed from. A
            group may hold the keys of any number of owners.
    """
    unproven = adopt_grants(desk, keyring, found.grants)
    # Before anything else: an older root key that is linked to a planted root key would be the attacker's.
    _replace_unproven(desk, keyring, found.places, unproven)
    sealed: list[tuple[Place, StoredKey]] = []
    for owner, place in found.places.items():
        root = keyring.current(owner, Purpose.ROOT)
        if root is not None and (owner not in unproven or root.key_id != unproven[owner][0]):
            event = AuditEvent("keys_refused", place.owner_class.name, owner_id=place.primary_key)
            with refusing(desk, keyring, owner, event, altogether=True):
                sealed += [(place, key) for key in settle_own_keys(desk, keyring, place)]
    shared = {owner: place for owner, place in found.places.items() if place.owner_class.grants_of}
    if shared:
        _settle_shared(desk, keyring, found.places, shared, writes=writes)
    for place, key in sealed:
        with refusing(desk, keyring, place.owner, grant_refused(place, key)):
            start_scope_epoch(desk, place, key.scope, keyring, instead_of=key.key_id)


def _replace_unproven(desk: Desk, keyring: Keyring, places: Places, unproven: Unproven) -> None:
    """Start epochs in place of unproven root keys. Owners that reach other owners come first."""
    keyring.distrusted.update(key_id for key_id, _ in unproven.values())
    mine = [(places[owner], key_id) for owner, (key_id, _) in unproven.items() if owner in places]
    vouching = dict(unproven.values())
    if mine:
        renew_beyond(desk, keyring, by_class(mine), vouching)
    for place, key_id in mine:
        start_epoch(desk, place, keyring, vouching=vouching[key_id], instead_of=key_id)


def _settle_shared(desk: Desk, keyring: Keyring, places: Places, shared: Places, *, writes: bool) -> None:
    """Start due epochs, grant keys to members who were left out of them, and fulfil pending grants."""
    held = _shared_keys(keyring, shared)
    counts = _count(desk, held)
    left = [place for place in shared.values() if _is_left(keyring, place, counts, removed=not writes)]
    active = by_class(
        (place, key_id) for key_id, (place, key) in held.items() if key.state is KeyState.ACTIVE
    )
    beyond = find_left(desk.session, active)
    if left or beyond:
        lock_groups(desk, [*left, *(one.place for one in beyond)])
        if beyond:
            renew_beyond(desk, keyring, active)
        # Read again under the lock: the keys that are reached through these owners are stale by now.
        load_again(desk, keyring, places, owners_of(Opening(places, [], {})))
        _start_epochs(desk, keyring, shared, writes=writes)
        held = _shared_keys(keyring, shared)
        counts = _count(desk, held)
    put_in_missing(desk, keyring, held)
    past = _keys_of_the_past(keyring, shared)
    if past:
        counts |= _count(desk, past)
    for key_id, (place, key) in {**held, **past}.items():
        if key_id in counts and counts[key_id].pending:
            with refusing(desk, keyring, place.owner, grant_refused(place, key)):
                _grant_pending(desk, keyring, place, key)


def _start_epochs(desk: Desk, keyring: Keyring, places: Places, *, writes: bool) -> None:
    """Start epochs of the owners that somebody left, unless another transaction was faster.

    If values are about to be written, continue with the owners whose keys became stale through these epochs,
    round after round: a key is sealed to a group only after the group's own epoch.
    """
    done: set[OwnerId] = set()
    while True:
        counts = count_grants(desk.session, _grants_of(places.values()), _shared_keys(keyring, places))
        due = [one for one in places.values() if one.owner not in done and _is_left(keyring, one, counts)]
        removed = [one for one in due if _is_left(keyring, one, counts, removed=True)]
        due = removed or (due if writes else [])
        if not due:
            return
        lock_groups(desk, due)
        for place in due:
            done.add(place.owner)
            _renew(desk, keyring, place, counts)


def _renew(desk: Desk, keyring: Keyring, place: Place, counts: Mapping[KeyId, GrantCounts]) -> None:
    # The root key first: a new root key brings new data keys.
    for key in sorted(keyring.keys_of(place.owner), key=lambda one: one.purpose is not Purpose.ROOT):
        if key.key_id not in counts or not counts[key.key_id].is_left:
            continue
        with refusing(desk, keyring, place.owner, grant_refused(place, key)):
            if keyring.open(key.key_id) is None:
                continue
            if key.purpose is not Purpose.ROOT:
                start_scope_epoch(desk, place, key.scope, keyring, instead_of=key.key_id)
            elif start_epoch(desk, place, keyring, instead_of=key.key_id):
                return


def _is_left(
    keyring: Keyring, place: Place, counts: Mapping[KeyId, GrantCounts], *, removed: bool = False
) -> bool:
    """Whether an epoch is due; if `removed`, because somebody was removed from this very owner."""
    keys = [key for key in keyring.keys_of(place.owner) if key.state is KeyState.ACTIVE]
    mine = [counts[key.key_id] for key in keys if key.key_id in counts]
    return any(one.is_removed if removed else one.is_left for one in mine)


def _shared_keys(keyring: Keyring, places: Places) -> Held:
    """The keys that these owners grant: the active keys, and older keys of a scope with a shared history."""
    found: Held = {}
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


def _keys_of_the_past(keyring: Keyring, places: Places) -> Held:
    """The retired keys that these owners granted to the members of their time.

    A newer key does not lead to these keys, and a grant of such a key may still be pending.
    """
    return {
        key.key_id: (place, key)
        for owner, place in places.items()
        for key in keyring.keys_of(owner)
        if key.state is KeyState.RETIRED
        and any(one.history == "from_join" and gives(one, key) for one in place.owner_class.grants_of)
    }


def _count(desk: Desk, held: Held) -> dict[KeyId, GrantCounts]:
    """Count the grants of these keys."""
    return count_grants(desk.session, _grants_of(place for place, _ in held.values()), held)


def _grants_of(places: Iterable[Place]) -> list[GrantClass]:
    return list({grant for place in places for grant in place.owner_class.grants_of})


def _grant_pending(desk: Desk, keyring: Keyring, place: Place, key: StoredKey) -> None:
    """Seal a key to the recipients of its pending grants."""
    opened = keyring.open(key.key_id)
    if opened is None:
        return
    for grant_class in place.owner_class.grants_of:
        if gives(grant_class, key):
            pending = desk.grants(grant_class).load_of([key.key_id], GrantState.PENDING)
            renew_left(desk, keyring, recipients_in(grant_class, pending))
            fulfil(desk, grant_class, {key.key_id: opened}, pending)
