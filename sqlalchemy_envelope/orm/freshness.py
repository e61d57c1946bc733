"""Keys that others share change hands: before an unlocked session writes under one, it looks whether somebody
was removed since, or a new epoch was started elsewhere. Once in each transaction, with one query."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import ref

from sqlalchemy_envelope.keys.model import Purpose
from sqlalchemy_envelope.orm.opening import Opening, follow_grants, load_owners, settle
from sqlalchemy_envelope.orm.store import KeyStore, count_grants

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.orm.owners import OwnerClass
    from sqlalchemy_envelope.orm.unlocked import UnlockedSession

_LOOKED = "sqlalchemy_envelope.looked"


def freshen(
    unlocked: UnlockedSession,
    session: Session,
    owner_class: OwnerClass,
    keys: Collection[tuple[Any, ...]],
) -> None:
    """See to it that what is written for these owners is under keys that only present members hold."""
    keyring = unlocked.keyring
    places = {owner_class.owner_id(key): key for key in keys}
    held = {
        place.owner: place
        for owner, place in unlocked.places.items()
        if owner in places and keyring.current(owner, Purpose.ROOT) is not None
    }
    looked = _looked(session)
    waiting = {owner: place for owner, place in held.items() if (owner, id(keyring)) not in looked}
    if not waiting:
        return
    looked.update((owner, id(keyring)) for owner in waiting)
    known = {}
    for owner in waiting:
        for key in keyring.keys_of(owner):
            if keyring.current(owner, key.purpose, key.scope) == key:
                known[key.key_id] = owner
    store = KeyStore(session, owner_class, unlocked.policy.seals)
    granted = store.load_granted(known)
    counts = count_grants(session, owner_class.grants_of, known)
    due = {
        owner
        for key_id, owner in known.items()
        if granted.get(key_id) is None
        or granted[key_id] != (counts[key_id].rows if key_id in counts else 0)
        or (key_id in counts and counts[key_id].stale)
    }
    if not due:
        return
    with session.no_autoflush:
        start = [place for owner, place in waiting.items() if owner in due]
        load_owners(session, unlocked.policy, keyring, start)
        everybody = list(unlocked.places.values())
        found = follow_grants(session, unlocked.policy, keyring, everybody)
        settle(session, unlocked.policy, keyring, Opening({p.owner: p for p in start}, found.grants))


def forget_looks(session: Session) -> None:
    """Something was granted or revoked in this transaction: look again."""
    session.info.pop(_LOOKED, None)


def _looked(session: Session) -> set[Any]:
    transaction = session.get_transaction()
    noted = session.info.get(_LOOKED)
    if noted is None or transaction is None or noted[0]() is not transaction:
        noted = (ref(transaction) if transaction is not None else lambda: None, set())
        session.info[_LOOKED] = noted
    looked: set[Any] = noted[1]
    return looked
