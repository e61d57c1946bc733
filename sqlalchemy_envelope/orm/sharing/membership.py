"""Check the members of shared keys before an unlocked session writes under these keys.

The check looks for two changes: a member was removed, or another session started a new epoch. It covers the
owner of the new value, and every owner that reaches this owner's key through any number of grants. It runs
once in each transaction, with one statement for each class of grants on the way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import Delete, Insert, Table, TextClause, TextualSelect, Update
from sqlalchemy.orm import FromStatement

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.keys.model import KeyState, Purpose
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.current.context import policy_of
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.sharing.beyond import find_left, renew_beyond
from sqlalchemy_envelope.orm.sharing.epochs import start_scope_epoch
from sqlalchemy_envelope.orm.sharing.granted import Opening, follow_grants, load_again, load_owners, owners_of
from sqlalchemy_envelope.orm.sharing.locking import lock_groups
from sqlalchemy_envelope.orm.sharing.settle import settle
from sqlalchemy_envelope.orm.tables.cascades import deletes_grants
from sqlalchemy_envelope.orm.tables.grant_counts import count_grants
from sqlalchemy_envelope.orm.tables.key_grant import grant_of, has_grants
from sqlalchemy_envelope.orm.tables.owners import owner_class_of
from sqlalchemy_envelope.orm.tables.session_notes import (
    WithinTransaction,
    known_page,
    page_within,
    take_page,
)
from sqlalchemy_envelope.orm.tables.stored_rows import usable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.keyring import Keyring, OwnerId
    from sqlalchemy_envelope.keys.model import KeyId
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.sharing.granted import Places
    from sqlalchemy_envelope.orm.tables.grant_counts import GrantCounts
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass, Place
    from sqlalchemy_envelope.orm.tables.stored_rows import OwnedKey


@dataclass
class _Looks(WithinTransaction):
    """A page of `SessionNotes`: the owners that were checked."""

    seen: set[Any] = field(default_factory=set)


def require_present_members(
    desk: Desk,
    keyring: Keyring,
    known_places: Mapping[OwnerId, Place],
    owner_class: OwnerClass,
    keys: Collection[tuple[Any, ...]],
) -> None:
    """Make sure that values for these owners are encrypted under keys that only present members hold."""
    names = Names(desk.session)
    owners = {names.owner(owner_class, key): key for key in keys}
    strangers = [names.place(owner_class, key) for owner, key in owners.items() if owner not in known_places]
    _renew_scopes(desk, keyring, known_places, strangers)
    waiting = not_looked_at(desk.session, keyring, known_places, owners)
    due = due_among(desk.session, keyring, owner_class, waiting) if waiting else ()
    if due:
        _settle_again(desk, keyring, known_places, [waiting[owner] for owner in waiting if owner in due])


def not_looked_at(
    session: Session,
    keyring: Keyring,
    known_places: Mapping[OwnerId, Place],
    owners: Collection[OwnerId],
) -> Places:
    """The owners with root keys in this keyring that were not checked in this transaction yet.

    They are noted as checked.
    """
    looked = looked_at(session)
    waiting = {
        owner: place
        for owner, place in known_places.items()
        if owner in owners
        and keyring.current(owner, Purpose.ROOT) is not None
        and (owner, id(keyring)) not in looked
    }
    looked.update((owner, id(keyring)) for owner in waiting)
    return waiting


def due_among(
    session: Session, keyring: Keyring, owner_class: OwnerClass, waiting: Places
) -> Collection[OwnerId]:
    """The owners among these, of one class, with a key that must not encrypt new values.

    A former member holds such a key, or the key was replaced already, or this keyring distrusts it.
    """
    known = {
        key.key_id: owner
        for owner in waiting
        for key in keyring.keys_of(owner)
        if keyring.current(owner, key.purpose, key.scope) == key
    }
    counts = count_grants(session, owner_class.grants_of, known)
    due = {
        owner
        for key_id, owner in known.items()
        if key_id in keyring.distrusted or not is_present(counts.get(key_id))
    }
    # Keys that are granted to a group are due too, if somebody was removed from that group.
    if len(due) < len(waiting) and find_left(session, {owner_class: known}):
        return waiting
    return due


def is_present(count: GrantCounts | None) -> bool:
    """Whether a key is active, and nobody was removed from it."""
    return count is not None and count.is_active and not count.is_left


def _settle_again(
    desk: Desk, keyring: Keyring, known_places: Mapping[OwnerId, Place], due: list[Place]
) -> None:
    """Take in the keys of these owners, of one class, as they are under the lock, and settle them."""
    with desk.session.no_autoflush:
        lock_groups(desk, due)
        load_owners(desk, keyring, due)
        everybody = owners_of(Opening(dict(known_places), [], {}))
        found = follow_grants(desk, keyring, known_places.values(), everybody)
        mine = {place.owner: place for place in due}
        settle(desk, keyring, Opening(mine, found.grants, {}), writes=True)


def _renew_scopes(
    desk: Desk, keyring: Keyring, known_places: Mapping[OwnerId, Place], places: Iterable[Place]
) -> None:
    """The same for owners of which this keyring holds only scopes.

    A former member gets no grant of the new key. The new key is sealed to the owner's root key and not
    wrapped under it, because the root key is not here. So nothing in the sealed key shows its maker.
    """
    held = held_scopes(desk.session, keyring, places)
    if not held:
        return
    owner_class = next(iter(held.values())).owner_class
    beyond = find_left(desk.session, {owner_class: held})
    counts = count_grants(desk.session, owner_class.grants_of, held)
    if not beyond and all(is_present(counts.get(key_id)) for key_id in held):
        return
    with desk.session.no_autoflush:
        lock_groups(desk, [*(one.place for one in beyond), *held.values()])
        if beyond:
            renew_beyond(desk, keyring, {owner_class: held})
        counts = count_grants(desk.session, owner_class.grants_of, held)
        for key_id in [one for one in held if one in counts and counts[one].is_left]:
            stored = keyring.stored(key_id)
            scope = "" if stored is None else stored.scope
            start_scope_epoch(desk, held[key_id], scope, None, instead_of=key_id)
        # The keyring still holds the replaced keys, and must not encrypt under them again.
        load_owners(desk, keyring, list(dict.fromkeys(held.values())))
        load_again(desk, keyring, dict(known_places))


def held_scopes(session: Session, keyring: Keyring, places: Iterable[Place]) -> dict[KeyId, Place]:
    """The active data keys of the owners that were not checked in this transaction yet, all of one class.

    The owners are noted as checked.
    """
    looked = looked_at(session)
    new = [one for one in places if one.owner in keyring and (one.owner, id(keyring)) not in looked]
    held = {
        key.key_id: place
        for place in new
        for key in keyring.keys_of(place.owner)
        if key.purpose is Purpose.DATA and key.state is KeyState.ACTIVE
    }
    looked.update((place.owner, id(keyring)) for place in held.values())
    return held


def catch_up(
    desk: Desk,
    keyring: Keyring,
    known_places: Mapping[OwnerId, Place],
    place: Place,
    stored: Sequence[OwnedKey],
) -> bool:
    """Take in the keys of a locked owner, as they are now.

    Returns:
        Whether the active root key opens.
    """
    keyring.add_stored(place.owner, [one.stored for one in usable(stored)])
    if keyring.root(place.owner) is None:
        # Another session started an epoch, and granted the new key to the owners that are unlocked here too.
        everybody = owners_of(Opening({**known_places, place.owner: place}, [], {}))
        follow_grants(desk, keyring, known_places.values(), everybody)
    return keyring.root(place.owner) is not None


def forget_looks(session: Session, *_: object) -> None:
    """Check again: a key was granted or revoked in this transaction, or a rollback happened."""
    take_page(session, _Looks)


def on_statement(session: Session, statement: object) -> None:
    """Check again after a statement that may remove or change granting rows past the unit of work."""
    if isinstance(statement, Insert):
        if has_grants(statement.table) and not session._flushing:
            _tell_bypassed(session, statement.table)
        return
    if known_page(session, _Looks) is None:
        return
    while isinstance(statement, (FromStatement, TextualSelect)):
        statement = statement.element
    if isinstance(statement, TextClause):
        on_text(session, statement.text)
    elif isinstance(statement, Delete):
        # The granting rows go with their recipients, and with any other row that a cascade leads on from.
        if not isinstance(statement.table, Table) or deletes_grants(statement.table):
            forget_looks(session)
    elif isinstance(statement, Update) and (
        # An UPDATE by a flush moves no grant.
        has_grants(statement.table) or (owner_class_of(statement.table) is not None and not session._flushing)
    ):
        forget_looks(session)


def on_text(session: Session, text: str) -> None:
    """Check again after SQL that is not known to be a query."""
    text = text.lstrip().upper()
    # Whatever the statement sets: with another search_path the same names are other tables.
    if not text.startswith("SELECT") or "SET_CONFIG" in text:
        forget_looks(session)


def _tell_bypassed(session: Session, table: Any) -> None:
    """Report granting rows that are inserted past the unit of work, because such rows grant nothing."""
    try:
        policy = policy_of(session)
    except ConfigurationError:
        return  # several envelopes, and it is unknown which log to write to: do not refuse the statement
    policy.emit(AuditEvent("grant_bypassed", grant_of(table).of.owner_class.name))


def looked_at(session: Session) -> set[Any]:
    """The owners that were checked in the session's present transaction."""
    return page_within(session, _Looks, session.get_transaction()).seen
