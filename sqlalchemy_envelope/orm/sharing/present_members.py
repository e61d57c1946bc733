"""The check of shared keys before a write by a session that may not start an epoch: it only reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.exceptions import LockedError
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.sharing.beyond import find_left
from sqlalchemy_envelope.orm.sharing.membership import (
    due_among,
    held_scopes,
    is_present,
    looked_at,
    not_looked_at,
)
from sqlalchemy_envelope.orm.tables.grant_counts import count_grants

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.keyring import Keyring, OwnerId
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass, Place


def refuse_due_epochs(
    session: Session,
    keyring: Keyring,
    known_places: Mapping[OwnerId, Place],
    owner_class: OwnerClass,
    keys: Collection[tuple[Any, ...]],
) -> None:
    """Refuse to write for these owners, of one class, where an epoch has to start first.

    Raises:
        LockedError: somebody was removed, or the keys here were replaced.
    """
    names, looked = Names(session), looked_at(session)
    before = set(looked)
    owners = {names.owner(owner_class, key): key for key in keys}
    waiting = not_looked_at(session, keyring, known_places, owners)
    strangers = [names.place(owner_class, key) for owner, key in owners.items() if owner not in known_places]
    if due_among(session, keyring, owner_class, waiting) if waiting else ():
        refused = True
    else:
        held = held_scopes(session, keyring, strangers)
        counts = count_grants(session, owner_class.grants_of, held) if held else {}
        refused = bool(held) and (
            not all(is_present(counts.get(key_id)) for key_id in held)
            or bool(find_left(session, {owner_class: held}))
        )
    if refused:
        looked.intersection_update(before)  # the next attempt is refused too
        raise LockedError(
            f"A value of a {owner_class.name} cannot be written by ticket: a member was removed, or the keys "
            "were replaced, and a new key has to come first. A ticket makes no keys. Unlock with the secret, "
            "write once or call settle(), and issue a new ticket."
        )
