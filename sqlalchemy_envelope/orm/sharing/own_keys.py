"""The pending work among an owner's own keys: sealed keys, unlinked keys, and kinds of keys without one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy_envelope.crypto.sealing import is_sealed
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.keys.hierarchy import describe, last_epochs, link_to_newer_root, wrap_under_root
from sqlalchemy_envelope.keys.model import GrantState, KeyState, OpenedKey, Purpose
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.sharing.rights import has_past
from sqlalchemy_envelope.orm.sharing.rollbacks import note_new_keys
from sqlalchemy_envelope.orm.tables.stored_rows import usable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy_envelope.keys.keyring import Keyring
    from sqlalchemy_envelope.keys.model import StoredKey
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.sharing.granted import Opening
    from sqlalchemy_envelope.orm.tables.owners import Kind, Place


class _Undone(NamedTuple):
    """The pending work among an owner's own keys.

    Attributes:
        sealed: keys that are sealed to the owner's root key.
        unlinked: retired root keys without a link to a newer root key.
        missing: the kinds of keys that the owner has none of: a scope without a data key, or without an index
            key.
    """

    sealed: list[StoredKey]
    unlinked: list[StoredKey]
    missing: frozenset[Kind]


def _undone(keyring: Keyring, place: Place) -> _Undone:
    keys = keyring.keys_of(place.owner)
    sealed = [key for key in keys if key.wrapped is not None and is_sealed(key.wrapped)]
    unlinked = [
        key
        for key in keys
        if key.purpose is Purpose.ROOT and key.state is KeyState.RETIRED and key.wrapped is None
    ]
    here = {(key.purpose, key.scope) for key in keys}
    missing = frozenset(place.owner_class.kinds - here)
    return _Undone(sealed, unlinked if has_past(place.owner_class) else [], missing)


def is_left_undone(keyring: Keyring, found: Opening) -> bool:
    """Whether the loaded rows show any pending work."""
    if any(grant.state is GrantState.SEALED for _, grant in found.grants):
        return True
    return any(any(_undone(keyring, place)) for place in found.places.values())


def settle_own_keys(desk: Desk, keyring: Keyring, place: Place) -> list[StoredKey]:
    """Wrap sealed keys under the owner's root key, link unlinked root keys, and make missing keys.

    Returns:
        The data keys to replace, because anybody can have sealed them.
    """
    undone = _undone(keyring, place)
    root = keyring.root(place.owner) if any(undone) else None
    if root is None:
        return []
    unproven = _adopt(desk, keyring, place, root, undone)
    if undone.missing:
        _make_missing(desk, keyring, place, root, undone.missing)
    return unproven


def _adopt(desk: Desk, keyring: Keyring, place: Place, root: OpenedKey, undone: _Undone) -> list[StoredKey]:
    """Wrap and link the keys that no other transaction holds.

    Returns:
        The active data keys that anybody can have sealed; none with row seals.
    """
    store = desk.keys(place.owner_class)
    free = store.free([key.key_id for key in (*undone.sealed, *undone.unlinked)])
    sealed, unlinked = _opened(keyring, undone.sealed), _opened(keyring, undone.unlinked)
    changed = [_wrapped(keyring, place, key, root) for key in sealed if key.stored.key_id in free]
    changed += [link_to_newer_root(key, root) for key in unlinked if key.stored.key_id in free]
    store.replace_keys(changed, in_their_state=True)
    keyring.add_stored(place.owner, changed)
    writes = sum(key.purpose is Purpose.WRITE for key in changed)
    if writes:
        desk.emit(
            AuditEvent("write_epoch_adopted", place.owner_class.name, writes, owner_id=place.primary_key)
        )
    if desk.policy.seals.is_on:
        return []
    active = [key.stored for key in sealed if key.stored.state is KeyState.ACTIVE]
    return [key for key in active if key.purpose is Purpose.DATA]


def _opened(keyring: Keyring, keys: Iterable[StoredKey]) -> list[OpenedKey]:
    """Open these keys, as far as they open, with their rows as they are now.

    The keyring may have opened a key while its row was still active.
    """
    opened = ((key, keyring.open(key.key_id)) for key in keys)
    return [OpenedKey(key, one.key) for key, one in opened if one is not None]


def _wrapped(keyring: Keyring, place: Place, key: OpenedKey, root: OpenedKey) -> StoredKey:
    """Wrap a sealed key under the root key.

    Where new members may not read earlier values, wrap it under the root key that it was sealed to.
    """
    under = None if has_past(place.owner_class) else keyring.open(key.stored.wrapping_key_id)
    return wrap_under_root(key, under or root)


def _make_missing(
    desk: Desk, keyring: Keyring, place: Place, root: OpenedKey, missing: Iterable[Kind]
) -> None:
    """Make keys of the kinds that the owner has none of."""
    owner, store = place.owner, desk.keys(place.owner_class)
    # A destroyed key is in no keyring, and its epoch is taken.
    epochs = last_epochs(one.stored for one in store.load([place.primary_key]))
    reference, made = root.stored.owner_reference, []
    for kind in sorted(missing):
        purpose, scope = kind
        epoch = epochs.get(kind, 0) + 1
        key = describe(KeyBytes.generate(), reference, purpose, scope=scope, epoch=epoch)
        made.append(OpenedKey(wrap_under_root(key, root), key.key))
    written = store.insert_first([(place.primary_key, one.stored) for one in made])
    mine = [one for one in made if one.stored.key_id in written]
    keyring.add(owner, mine)
    if mine:
        note_new_keys(desk.session, keyring, owner, [one.stored for one in mine])
    if len(mine) < len(made):
        # Another unlock of this owner made keys at the same moment: go on with those keys.
        for one in made:
            if one.stored.key_id not in written:
                one.key.wipe()
        there = usable(store.load([place.primary_key], for_update=True))
        keyring.add_stored(owner, [one.stored for one in there])
