"""New epochs: a fresh key replaces a key that somebody was shut out from.

First lock the group, then seal the new key to everybody who is a member at that time, including members who
were left out of the old key. No secret is needed. The new key is sealed to the public keys of the remaining
members and of each key slot. The retired key stays, because earlier values are encrypted under it. A holder
of the old key adds two things that only a holder can make: the proof of having held it, and the link through
which new members read earlier values.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.keys.hierarchy import (
    describe,
    link_to_newer_root,
    proof_of_epoch,
    seal_to_root,
    short,
    wrap_under_root,
)
from sqlalchemy_envelope.keys.model import KeyState, OpenedKey, Purpose
from sqlalchemy_envelope.keys.slots import sealed_slot
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.indexes.filling import renew_unique_tags
from sqlalchemy_envelope.orm.sharing.carried_slots import carried_slots
from sqlalchemy_envelope.orm.sharing.locking import lock_groups
from sqlalchemy_envelope.orm.sharing.new_grants import insert_grants, seal_to
from sqlalchemy_envelope.orm.sharing.recipients import members_of
from sqlalchemy_envelope.orm.sharing.rights import has_past
from sqlalchemy_envelope.orm.sharing.rollbacks import note_new_keys
from sqlalchemy_envelope.orm.tables.stored_rows import usable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy_envelope.keys.keyring import Keyring
    from sqlalchemy_envelope.keys.model import KeyId, StoredKey, StoredSlot
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.sharing.new_grants import NewGrant
    from sqlalchemy_envelope.orm.sharing.recipients import Recipient
    from sqlalchemy_envelope.orm.tables.key_rows import KeyStore
    from sqlalchemy_envelope.orm.tables.owners import Place


def start_epoch(
    desk: Desk,
    place: Place,
    keyring: Keyring | None,
    joining: Iterable[Recipient] = (),
    vouching: OpenedKey | None = None,
    *,
    instead_of: KeyId | None = None,
    for_nobody: bool = False,
) -> bool:
    """Make a new root key, and new data and index keys for each scope, for the holders of the old root key.

    Four statements read and four write, whatever the number of members.

    Args:
        desk, place: the session with its policy, and the owner.
        keyring: the keyring that takes the new keys, if it may hold them; None if there is none.
        joining: further recipients of the new root key.
        vouching: an earlier root key that is proven, where the active root key is not. The new root key then
            has a proof by `vouching`, and a proof by the active root key if that key opens here: some members
            may have adopted the earlier key, and other members the active key.
        instead_of: the root key to replace. Nothing is done if another root key is active by now.
        for_nobody: start the epoch even if no member and no slot could open the new root key.

    Returns:
        Whether the epoch was started. An owner without keys gets none.
    """
    locked = _LockedOwner(desk, place)
    old = locked.root
    if old is None or instead_of not in (None, old.key_id):
        return False
    members, slots = [*locked.members(old), *joining], locked.open_slots(old)
    if not (members or slots or for_nobody):
        return False
    held = keyring.open(old.key_id) if keyring is not None else None
    root = locked.new_root(old, [one for one in (vouching, held) if one is not None])
    before, children = locked.new_data_keys(root)
    epoch = _NewEpoch(locked, [*before, old], [root, *children])
    with epoch.written():
        epoch.grant(root, members)
        for child, of in zip(children, before, strict=True):
            epoch.grant(child, locked.members(of))
        epoch.insert()
        locked.store.insert_slots([sealed_slot(root, slot) for slot in slots])
        if held is not None and has_past(place.owner_class):
            epoch.link(held, root)
    epoch.tell(root, len(members))
    keeps = keyring is not None and held is not None and _reaches(keyring, old, epoch.grants_of(root), slots)
    epoch.take_into(keyring, keeps=keeps)
    if any(one.stored.purpose is Purpose.INDEX for one in children):
        renew_unique_tags(desk.session, place, keyring if keeps else None)
    return True


def start_scope_epoch(
    desk: Desk,
    place: Place,
    scope: str,
    keyring: Keyring | None,
    joining: Iterable[Recipient] = (),
    *,
    instead_of: KeyId | None = None,
) -> bool:
    """Make a new data key for a scope; as `start_epoch`.

    The new key is wrapped under the owner's root key if that key is open here, and sealed to it otherwise.
    """
    locked = _LockedOwner(desk, place)
    old, root = locked.data_key(scope), locked.root
    if old is None or root is None or instead_of not in (None, old.key_id):
        return False
    held = keyring.open(root.key_id) if keyring is not None else None
    child = locked.new_data_key(old)
    stored = wrap_under_root(child, held) if held is not None else seal_to_root(child, root)
    child = OpenedKey(stored, child.key)
    to = [*locked.members(old), *joining]
    epoch = _NewEpoch(locked, [old], [child])
    with epoch.written():
        epoch.grant(child, to)
        epoch.insert()
    epoch.tell(child, len(to))
    epoch.take_into(keyring, keeps=held is not None)
    return True


def load_locked(store: KeyStore, place: Place) -> list[StoredKey]:
    """The keys of a locked owner, as they are now.

    Raises:
        RowSealError, OwnerMismatchError: a key row was altered.
    """
    return [
        one.stored
        for one in usable(store.load([place.primary_key], for_update=store.shows_others_when_locked))
    ]


class _LockedOwner:
    """A locked owner, with its keys as they are now."""

    def __init__(self, desk: Desk, place: Place) -> None:
        lock_groups(desk, [place])
        self.desk = desk
        self.place = place
        self.store = desk.keys(place.owner_class)
        self.keys = load_locked(self.store, place)

    @cached_property
    def root(self) -> StoredKey | None:
        """The active root key."""
        return next((key for key in self.keys if _is_active(key, Purpose.ROOT)), None)

    def data_key(self, scope: str) -> StoredKey | None:
        """The active data key of a scope."""
        return next((key for key in self.keys if _is_active(key, Purpose.DATA) and key.scope == scope), None)

    def members(self, key: StoredKey) -> list[Recipient]:
        """The recipients of grants of this key, or of another generation of it. An index key is granted to
        nobody: the root key leads to it."""
        if key.purpose is Purpose.INDEX:
            return []
        scope = None if key.purpose is Purpose.ROOT else key.scope
        grants = self.place.owner_class.grants_with(scope)
        return members_of(self.desk, grants, key, self._generations(key)) if grants else []

    def open_slots(self, root: StoredKey) -> list[StoredSlot]:
        """The slots of a root key that have a public key, so that a new root key can be sealed to them."""
        return carried_slots(self.desk, self.place, self.store.load_slots([root.key_id]))

    def new_root(self, old: StoredKey, provers: Sequence[OpenedKey]) -> OpenedKey:
        """A new root key, with a proof by each of these earlier root keys."""
        root = describe(
            KeyBytes.generate(),
            old.owner_reference,
            Purpose.ROOT,
            epoch=self._next_epoch(old),
            hybrid=self.desk.policy.hybrid,
        )
        if not provers:
            return root
        proof = b"".join(proof_of_epoch(one, root.stored.key_id.bytes) for one in provers)
        return OpenedKey(replace(root.stored, proof=proof), root.key)

    def new_data_key(self, old: StoredKey) -> OpenedKey:
        """A new data key in place of an old data key of the same scope, not wrapped yet."""
        epoch = self._next_epoch(old)
        return describe(KeyBytes.generate(), old.owner_reference, old.purpose, scope=old.scope, epoch=epoch)

    def new_data_keys(self, root: OpenedKey) -> tuple[list[StoredKey], list[OpenedKey]]:
        """The active data and index keys, and the new keys that replace them, wrapped under this root key.

        Whoever had the old root key had the index keys, and must not learn the tags of later values.
        """
        replaced = (Purpose.DATA, Purpose.INDEX)
        before = [key for key in self.keys if key.purpose in replaced and key.state is KeyState.ACTIVE]
        made = [self.new_data_key(key) for key in before]
        return before, [OpenedKey(wrap_under_root(one, root), one.key) for one in made]

    def _next_epoch(self, old: StoredKey) -> int:
        return max(key.epoch for key in self._generations(old)) + 1

    def _generations(self, key: StoredKey) -> list[StoredKey]:
        if key.purpose is Purpose.ROOT:
            return [one for one in self.keys if one.purpose is Purpose.ROOT]
        return [one for one in self.keys if one.purpose is key.purpose and one.scope == key.scope]


class _NewEpoch:
    """New keys of an owner in place of old ones: written, granted, and taken into a keyring."""

    def __init__(
        self, locked: _LockedOwner, replaced: Sequence[StoredKey], made: Sequence[OpenedKey]
    ) -> None:
        self._desk, self._store, self._place = locked.desk, locked.store, locked.place
        self._replaced = replaced
        self._retired = [replace(key, state=KeyState.RETIRED) for key in replaced]
        self._made = list(made)
        self._grants: list[NewGrant] = []

    @contextmanager
    def written(self) -> Iterator[None]:
        """Retire the old keys before the body writes the new ones: two keys may not be active at once.

        After an error the new keys are wiped.
        """
        try:
            self._store.replace_keys(self._retired)
            yield
        except BaseException:
            self._wipe()
            raise

    def grant(self, key: OpenedKey, to: Sequence[Recipient]) -> None:
        """Seal a new key to these recipients. `insert` writes the grants."""
        self._grants += seal_to(self._desk, key, to)

    def insert(self) -> None:
        """Write the new keys, each with the number of its grants, and then the grants."""
        self._made = [
            OpenedKey(replace(key.stored, granted=len(self.grants_of(key))), key.key) for key in self._made
        ]
        self._store.insert_keys([(self._place.primary_key, key.stored) for key in self._made])
        insert_grants(self._desk, self._grants)

    def link(self, held: OpenedKey, root: OpenedKey) -> None:
        """Wrap the old root key under the new root key, so that new members read earlier values."""
        linked = link_to_newer_root(OpenedKey(self._retired[-1], held.key), root)
        self._store.replace_keys([linked])
        self._retired[-1] = linked

    def grants_of(self, key: OpenedKey) -> list[NewGrant]:
        """The grants of a new key."""
        return [one for one in self._grants if one[2].key_id == key.stored.key_id]

    def tell(self, key: OpenedKey, members: int) -> None:
        """Emit the audit event."""
        name, owner_id = self._place.owner_class.name, self._place.primary_key
        self._desk.emit(
            AuditEvent("epoch_started", name, members, key_id=short(key.stored), owner_id=owner_id)
        )

    def take_into(self, keyring: Keyring | None, *, keeps: bool) -> None:
        """Tell a keyring the keys as they are stored now. It holds the new keys if it `keeps` them."""
        if not keeps:
            self._wipe()
        if keyring is None:
            return
        made, owner = [one.stored for one in self._made], self._place.owner
        keyring.add_stored(owner, [*self._retired, *made])
        if keeps:
            keyring.add(owner, self._made)
        note_new_keys(self._desk.session, keyring, owner, made, self._replaced)

    def _wipe(self) -> None:
        for one in self._made:
            one.key.wipe()


def _is_active(key: StoredKey, purpose: Purpose) -> bool:
    return key.purpose is purpose and key.state is KeyState.ACTIVE


def _reaches(
    keyring: Keyring, old: StoredKey, grants: Iterable[NewGrant], slots: Sequence[StoredSlot]
) -> bool:
    """Whether a keyring that holds the old root key may hold the new root key.

    The keyring's owner may be the very member who was removed. It may hold the new root key if a grant of
    that key opens here, or if a slot led to the old root key.
    """
    if slots and not keyring.has_way(old.key_id):
        return True
    sealed_under = (grant.recipient_key_id for _, _, grant in grants)
    return any(one is not None and keyring.open(one) is not None for one in sealed_under)
