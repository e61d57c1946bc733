"""Keys that others share change hands: before an unlocked session writes under one, it looks whether somebody
was removed since, or a new epoch was started elsewhere: from the owner that it writes for, or from another
that reaches this one's key through any number of grants. Once in each transaction, with one statement for
each class of grants on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import Delete, Insert, TextClause, Update

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.keys.model import KeyState, Purpose
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.current.context import policy_of
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.sharing.beyond import find_left, renew_beyond
from sqlalchemy_envelope.orm.sharing.epochs import start_scope_epoch
from sqlalchemy_envelope.orm.sharing.locking import lock_groups
from sqlalchemy_envelope.orm.sharing.settle import (
    Opening,
    follow_grants,
    load_again,
    load_owners,
    owners_of,
    settle,
)
from sqlalchemy_envelope.orm.tables.grant_rows import count_grants
from sqlalchemy_envelope.orm.tables.key_grant import grant_of, has_grants
from sqlalchemy_envelope.orm.tables.key_rows import usable
from sqlalchemy_envelope.orm.tables.owners import owner_class_of
from sqlalchemy_envelope.orm.tables.session_notes import (
    WithinTransaction,
    known_page,
    page_within,
    take_page,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.keyring import Keyring, OwnerId
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.tables.key_rows import OwnedKey
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass, Place


@dataclass
class _Looks(WithinTransaction):
    """A page of `SessionNotes`: what was looked at."""

    seen: set[Any] = field(default_factory=set)


def freshen(
    session: Session,
    policy: Policy,
    keyring: Keyring,
    known_places: Mapping[OwnerId, Place],
    owner_class: OwnerClass,
    keys: Collection[tuple[Any, ...]],
) -> None:
    """See to it that what is written for these owners is under keys that only present members hold."""
    names = Names(session)
    places = {names.owner(owner_class, key): key for key in keys}
    _freshen_scopes(
        session,
        policy,
        keyring,
        known_places,
        [names.place(owner_class, key) for owner, key in places.items() if owner not in known_places],
    )
    held = {
        place.owner: place
        for owner, place in known_places.items()
        if owner in places and keyring.current(owner, Purpose.ROOT) is not None
    }
    looked = looked_at(session)
    waiting = {owner: place for owner, place in held.items() if (owner, id(keyring)) not in looked}
    if not waiting:
        return
    looked.update((owner, id(keyring)) for owner in waiting)
    known = {}
    for owner in waiting:
        for key in keyring.keys_of(owner):
            if keyring.current(owner, key.purpose, key.scope) == key:
                known[key.key_id] = owner
    counts = count_grants(session, owner_class.grants_of, known)
    due = {
        owner
        for key_id, owner in known.items()
        if key_id in keyring.distrusted
        or (count := counts.get(key_id)) is None
        or not count.is_active
        or count.is_left
    }
    # Those who are not due are if somebody left whom their keys are sealed to.
    if len(due) < len(waiting) and find_left(session, {owner_class: known}):
        due = set(waiting)
    if not due:
        return
    with session.no_autoflush:
        start = [place for owner, place in waiting.items() if owner in due]
        lock_groups(session, policy, start)
        load_owners(session, policy, keyring, start)
        everybody = owners_of(Opening(dict(known_places), [], {}))
        found = follow_grants(session, policy, keyring, known_places.values(), everybody)
        settle(session, policy, keyring, Opening({p.owner: p for p in start}, found.grants, {}), writes=True)


def _freshen_scopes(
    session: Session,
    policy: Policy,
    keyring: Keyring,
    known_places: Mapping[OwnerId, Place],
    places: Iterable[Place],
) -> None:
    """The same for owners of whom a scope is held here, and no more. Who may not have its key any more gets
    none of the new one, and it is made by nobody in particular: the owner's root key is not here."""
    looked = looked_at(session)
    held = {
        key.key_id: place
        for place in places
        if place.owner in keyring and (place.owner, id(keyring)) not in looked
        for key in keyring.keys_of(place.owner)
        if key.purpose is Purpose.DATA and key.state is KeyState.ACTIVE
    }
    if not held:
        return
    looked.update((place.owner, id(keyring)) for place in held.values())
    owner_class = next(iter(held.values())).owner_class
    beyond = find_left(session, {owner_class: held})
    counts = count_grants(session, owner_class.grants_of, held)
    if not beyond and all((one := counts.get(key)) and one.is_active and not one.is_left for key in held):
        return
    with session.no_autoflush:
        lock_groups(session, policy, [*(one.place for one in beyond), *held.values()])
        if beyond:
            renew_beyond(session, policy, keyring, {owner_class: held})
        counts = count_grants(session, owner_class.grants_of, held)
        for key_id, place in held.items():
            scope = stored.scope if (stored := keyring.stored(key_id)) is not None else ""
            if key_id in counts and counts[key_id].is_left:
                start_scope_epoch(session, policy, place, scope, None, instead_of=key_id)
        # What was written under is here still, and is not to be written under again.
        load_owners(session, policy, keyring, list(dict.fromkeys(held.values())))
        load_again(session, policy, keyring, dict(known_places))


def catch_up(
    session: Session,
    policy: Policy,
    keyring: Keyring,
    known_places: Mapping[OwnerId, Place],
    place: Place,
    stored: Sequence[OwnedKey],
) -> bool:
    """Take in the keys of an owner who is locked, as they are now; tells whether the active root key
    opens."""
    keyring.add_stored(place.owner, [one.stored for one in usable(stored)])
    if keyring.root(place.owner) is None:
        # An epoch was started elsewhere: it was granted to whoever is unlocked here too.
        everybody = owners_of(Opening({**known_places, place.owner: place}, [], {}))
        follow_grants(session, policy, keyring, known_places.values(), everybody)
    return keyring.root(place.owner) is not None


def forget_looks(session: Session, *_: object) -> None:
    """Something was granted or revoked in this transaction, or rolled back: look again."""
    take_page(session, _Looks)


def on_statement(session: Session, statement: object) -> None:
    """A statement that may remove or change granting rows past the unit of work comes: look again."""
    if isinstance(statement, Insert):
        if has_grants(statement.table) and not session._flushing:
            _tell_bypassed(session, statement.table)
        return
    if known_page(session, _Looks) is None:
        return
    if isinstance(statement, TextClause):
        text = statement.text.lstrip().upper()
        # Whatever it sets: with another search_path the same names are other tables.
        if not text.startswith("SELECT") or "SET_CONFIG" in text:
            forget_looks(session)
    elif isinstance(statement, (Delete, Update)) and (
        # Of recipients too: their grants go with them. What a flush writes of them moves no grant.
        has_grants(statement.table)
        or (
            owner_class_of(statement.table) is not None
            and not (isinstance(statement, Update) and session._flushing)
        )
    ):
        forget_looks(session)


def _tell_bypassed(session: Session, table: Any) -> None:
    """Granting rows are inserted that are no objects: they grant nothing, and nobody shall have to guess."""
    try:
        policy = policy_of(session)
    except ConfigurationError:
        return  # several envelopes, and nothing says whose log this is: no reason to refuse the statement
    policy.emit(AuditEvent("grant_bypassed", grant_of(table).of.owner_class.name))


def looked_at(session: Session) -> set[Any]:
    """What was looked at in the session's present transaction."""
    return page_within(session, _Looks, session.get_transaction()).seen
