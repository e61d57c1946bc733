"""Members who were left out of a key: their rows still grant them another generation of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy_envelope.keys.model import OpenedKey
from sqlalchemy_envelope.orm.sharing.beyond import renew_left
from sqlalchemy_envelope.orm.sharing.epochs import load_locked
from sqlalchemy_envelope.orm.sharing.locking import lock_groups
from sqlalchemy_envelope.orm.sharing.new_grants import grant_to
from sqlalchemy_envelope.orm.sharing.recipients import rows_granting
from sqlalchemy_envelope.orm.sharing.refusing import grant_refused, refusing
from sqlalchemy_envelope.orm.sharing.rights import gives, is_due, vouches

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sqlalchemy_envelope.keys.keyring import Keyring, OwnerId
    from sqlalchemy_envelope.keys.model import KeyId, StoredKey
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.sharing.recipients import Recipient
    from sqlalchemy_envelope.orm.tables.owners import Place


def put_in_missing(desk: Desk, keyring: Keyring, held: Mapping[KeyId, tuple[Place, StoredKey]]) -> None:
    """Grant these keys to members who were left out of them. Perhaps no other holder will ever do it."""
    missing: dict[OwnerId, set[KeyId]] = {}
    for grant_class in {grant: None for place, _ in held.values() for grant in place.owner_class.grants_of}:
        mine = [
            key_id
            for key_id, (place, key) in held.items()
            if place.owner_class is grant_class.of.owner_class and gives(grant_class, key)
        ]
        for key_id in desk.grants(grant_class).keys_with_missing(mine):
            missing.setdefault(held[key_id][0].owner, set()).add(key_id)
    for owner, key_ids in missing.items():
        place, key = held[next(iter(key_ids))]
        with refusing(desk, keyring, owner, grant_refused(place, key)):
            _put_in(desk, place, keyring, key_ids)


def _put_in(desk: Desk, place: Place, keyring: Keyring, wanted: Collection[KeyId]) -> None:
    if not _missing(desk, place, keyring.keys_of(place.owner), wanted):
        return  # rows that no flush added: they are no reason to wait for a lock
    store = desk.keys(place.owner_class)
    lock_groups(desk, [place])
    there = load_locked(store, place)
    keyring.add_stored(place.owner, there)
    for key, missing in _missing(desk, place, there, wanted):
        opened = keyring.open(key.key_id)
        if opened is not None:
            renew_left(desk, keyring, missing)
            stored = grant_to(desk, store, OpenedKey(key, opened.key), missing, strict=False)
            keyring.add_stored(place.owner, [stored])


def _missing(
    desk: Desk, place: Place, there: Sequence[StoredKey], wanted: Collection[KeyId]
) -> list[tuple[StoredKey, list[Recipient]]]:
    """The wanted keys of an owner, each with the members that it was not granted to."""
    found = []
    for key in [one for one in there if one.key_id in wanted]:
        alike = [
            one
            for one in there
            if (one.purpose, one.scope) == (key.purpose, key.scope)
            and vouches(desk.policy.seals, one.epoch, key.epoch)
        ]
        due = [one for one in place.owner_class.grants_of if is_due(one, key.purpose, key.scope, key.state)]
        missing = [row for one in due for row in rows_granting(desk, one, alike, without=key)]
        if missing:
            found.append((key, missing))
    return found
