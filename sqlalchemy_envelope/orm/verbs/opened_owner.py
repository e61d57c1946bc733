"""An owner that is open here, for the verbs that give its keys to somebody: a slot, a ticket, an epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy_envelope.exceptions import EnvelopeError
from sqlalchemy_envelope.keys.model import KeyState, Purpose
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.verbs.owner_keys import active_root, load_keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy_envelope.keys.keyring import Keyring
    from sqlalchemy_envelope.keys.model import OpenedKey, StoredKey
    from sqlalchemy_envelope.orm.verbs.owner_keys import LocatedOwner


def settle_owner(located: LocatedOwner) -> None:
    """Settle what waits for an owner before its keys are given to somebody."""
    session = located.desk.session
    for unlocked in context.unlocked_sessions(session):
        unlocked.follow_owners(session, located.place.owner_class, [located.place.primary_key])
    context.settle_unlocked(session)


def opened_root(located: LocatedOwner, root: StoredKey) -> OpenedKey:
    """Return an owner's active root key, which is open here.

    Raises:
        LockedError: no unlocked session has the root key.
        TransactionConflictError: the owner's keys were replaced since the unlock.
    """
    return _open(located, root)[0]


def opened_roots(located: LocatedOwner, keys: Sequence[StoredKey] | None = None) -> list[OpenedKey]:
    """Return the root keys of an owner that are open here, the active one first.

    The values of earlier epochs may be under keys that only a retired root key opens. So a new slot is made
    for each of these root keys.

    Args:
        keys: the owner's keys; loaded if they are left out.

    Raises: as `opened_root`.
    """
    keys = load_keys(located) if keys is None else keys
    active, keyring = _open(located, active_root(located, keys))
    found = [active]
    for key in keys:
        if key.purpose is not Purpose.ROOT or key.state is not KeyState.RETIRED:
            continue
        try:
            retired = keyring.open(key.key_id)
        except EnvelopeError:
            continue  # the values under it stay locked, as they are now
        if retired is not None:
            found.append(retired)
    return found


def _open(located: LocatedOwner, root: StoredKey) -> tuple[OpenedKey, Keyring]:
    session = located.desk.session
    for unlocked in context.unlocked_sessions(session):
        if unlocked.on_demand:  # a server opens owners as they are needed
            unlocked.prepare_write(session, located.place.owner_class, [located.place.primary_key], 0)
        else:
            unlocked.follow_owners(session, located.place.owner_class, [located.place.primary_key])
        keyring = unlocked.keyring_for(located.place.owner, session)
        opened = None if keyring is None else keyring.open(root.key_id)
        if keyring is not None and opened is not None:
            return opened, keyring
    context.refuse_replaced(session, located.place.owner, located.place.owner_class, root.key_id)
    raise context.locked(f"This {located.name}", session, located.place.owner_class, use="give")
