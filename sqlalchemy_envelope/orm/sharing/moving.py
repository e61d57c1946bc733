"""After a root key was replaced: what is under an earlier root key of the owner is wrapped under the new one.

The data keys of earlier epochs move, the links to earlier root keys, the keys that others granted to this
owner, and this owner's shares of emergency accesses to others. So nothing needs the earlier root key any
more, and it can be destroyed. Each new wrap is opened before the old one is overwritten.

Where new members may not read earlier values, the owner's own keys stay where they are: the new root key must
not lead to them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sqlalchemy_envelope.crypto.sealing import is_sealed
from sqlalchemy_envelope.exceptions import EnvelopeError, KeyNotFoundError
from sqlalchemy_envelope.keys.emergency import moved_share
from sqlalchemy_envelope.keys.grants import adopted_grant, way_through
from sqlalchemy_envelope.keys.hierarchy import link_to_newer_root, open_wrap, short, wrap_of, wrap_under_root
from sqlalchemy_envelope.keys.model import GrantState, OpenedKey, Purpose
from sqlalchemy_envelope.orm.sharing.epochs import load_locked
from sqlalchemy_envelope.orm.sharing.rights import has_past
from sqlalchemy_envelope.orm.tables.emergency_rows import EmergencyRows

if TYPE_CHECKING:
    from sqlalchemy_envelope.keys.keyring import Keyring
    from sqlalchemy_envelope.keys.model import StoredGrant, StoredKey, Wrap
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.tables.owners import EmergencyClass, GrantClass, Place


def move_under_newest_root(desk: Desk, place: Place, keyring: Keyring) -> int:
    """Move what is under earlier root keys of an owner, as far as it opens here; how much moved.

    The owner is locked, and its active root key is in the keyring.
    """
    root = keyring.root(place.owner)
    if root is None:
        return 0
    moved = _move_own(desk, place, keyring, root) if has_past(place.owner_class) else 0
    for grant_class in place.owner_class.grants_to:
        moved += _move_granted(desk, place, keyring, root, grant_class)
    for emergency in place.owner_class.emergencies_to:
        moved += _move_shares(desk, place, keyring, root, emergency)
    return moved


def _move_own(desk: Desk, place: Place, keyring: Keyring, root: OpenedKey) -> int:
    store, changed = desk.keys(place.owner_class), []
    for key in load_locked(store, place):
        if key.key_id == root.stored.key_id or key.wrapping_key_id in (None, root.stored.key_id):
            continue
        if key.wrapped is None or is_sealed(key.wrapped):
            continue  # anybody can have sealed it: the owner adopts it first
        opened = _opened(keyring, key)
        if opened is not None:
            made = (link_to_newer_root if key.purpose is Purpose.ROOT else wrap_under_root)(opened, root)
            _require_open(made, wrap_of(made), root)
            changed.append(made)
    store.replace_keys(changed, in_their_state=True)
    return len(changed)


def _opened(keyring: Keyring, key: StoredKey) -> OpenedKey | None:
    try:
        opened = keyring.open(key.key_id)
    except EnvelopeError:
        return None  # it was altered: it stays as it is
    return None if opened is None else OpenedKey(key, opened.key)


def _move_granted(
    desk: Desk, place: Place, keyring: Keyring, root: OpenedKey, grant_class: GrantClass
) -> int:
    store, moved = desk.grants(grant_class), []
    for grant, error, owned in store.load_to([place.primary_key]):
        under = grant.recipient_key_id
        is_mine = keyring.owner_of_key(under) == place.owner if under is not None else False
        if error or owned.error or grant.state is not GrantState.ADOPTED or not is_mine:
            continue
        if under != root.stored.key_id:
            made = _moved_grant(keyring, grant, owned.stored, root)
            if made is not None:
                moved.append(made)
    store.replace(moved)
    return len(moved)


def _moved_grant(
    keyring: Keyring, grant: StoredGrant, stored: StoredKey, root: OpenedKey
) -> StoredGrant | None:
    try:
        way, parent = way_through(grant, stored), keyring.open(grant.recipient_key_id)
        if way is None or parent is None:
            return None
        key = open_wrap(stored, way, parent)
    except EnvelopeError:
        return None  # it was altered: it stays as it is
    try:
        made = adopted_grant(replace(grant, recipient_key_id=root.stored.key_id), key, root)
        _require_open(stored, way_through(made, stored), root)
    finally:
        key.key.wipe()
    return made


def _move_shares(
    desk: Desk, place: Place, keyring: Keyring, root: OpenedKey, emergency: EmergencyClass
) -> int:
    """Seal this person's shares of emergency accesses to the new root key."""
    rows, store = (
        EmergencyRows(desk.session, emergency, desk.policy.seals),
        desk.keys(emergency.of.owner_class),
    )
    moved = 0
    for owner_key, (person_key, stored) in rows.load_to(place.primary_key):
        if stored.person_key_id == root.stored.key_id:
            continue
        owned = next(iter(store.load([owner_key])), None)
        if owned is None or keyring.owner_of_key(stored.person_key_id) != place.owner:
            continue
        row = replace(stored, owner=owned.stored.owner_reference, person=root.stored.owner_reference)
        try:
            old = keyring.open(row.person_key_id)
            made = None if old is None else moved_share(row, old.key, root.stored)
        except EnvelopeError:
            continue  # it was altered: it stays as it is
        moved += made is not None and rows.move(owner_key, person_key, row, made)
    return moved


def _require_open(stored: StoredKey, way: Wrap | None, root: OpenedKey) -> None:
    """Open a new wrap, before it takes the place of the old one.

    Raises:
        KeyNotFoundError: there is no wrap.
        TamperedKeyError: it does not open.
    """
    if way is None:
        raise KeyNotFoundError(f"Key {short(stored)} was not wrapped anew; its old wrap was kept.")
    open_wrap(stored, way, root).key.wipe()
